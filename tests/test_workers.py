"""Several workers of one application are noticed; other processes are not taken for such.

The kind of fault: processes that each think to be alone, so that half of the pages see nothing, silently.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from backsync_asgi import Backsync, workers
from backsync_asgi.stores import MemoryStore

ROOT = Path(__file__).parent.parent
WARNING = "Several worker processes"
TAKE = "import sys; from backsync_asgi import workers; print(workers.take(sys.argv[1], int(sys.argv[2])), flush=True)"


def child(application: str, number: int = 0, *, stays: bool = False) -> subprocess.Popen[str]:
    """A process of this parent that takes a place, and keeps it until its input ends if it `stays`."""
    program = TAKE + ("; sys.stdin.read()" if stays else "")
    return subprocess.Popen(
        [sys.executable, "-c", program, application, str(number)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> str:
    """What it has said, once it has ended."""
    return process.communicate(timeout=30)[0].strip()


def test_one_process_of_a_parent_holds_a_place_while_it_lives() -> None:
    name = f"{__file__}:{os.getpid()}"
    first = child(name, stays=True)
    try:
        assert answer(first) == "True"
        assert end(child(name)) == "False"
        assert end(child(name, 1)) == "True"
        assert end(child(name + " another application")) == "True"
        first.kill()
        first.communicate()
        assert end(child(name)) == "True"
    finally:
        first.kill()
        first.communicate()


def test_a_process_has_its_own_places() -> None:
    assert workers.take(__file__, 0)
    assert workers.take(__file__, 0)
    assert workers.take(__file__, 1, again=False)
    assert not workers.take(__file__, 1, again=False)


async def test_applications_of_one_factory_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a program serves that starts a process for each of its applications."""
    places: list[str] = []

    def take(application: str, number: int, *, again: bool = True) -> bool:
        places.append(application)
        return True

    monkeypatch.setattr(workers, "take", take)
    for name in ("Shop", "Blog", "Shop"):
        sync = Backsync()
        sync.model(name, store=MemoryStore())
        sync._look_for_other_workers(asyncio.get_running_loop())
    assert places[0] == places[2] != places[1]


def test_where_it_cannot_be_found_out_nothing_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_files", {})
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/nowhere/at/all")
    assert workers.take("an application that nobody has", 0)


@pytest.mark.parametrize(("others", "joined", "warned"), [(True, False, 1), (True, True, 0), (False, False, 0)])
async def test_the_warning_comes_once_and_only_where_nothing_joins_the_workers(
    others: bool, joined: bool, warned: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "is_worker", lambda: True)
    monkeypatch.setattr(workers, "take", lambda application, number, again=True: number == 1 or not others)
    waits: list[float] = []

    class Loop:
        """A loop whose timers are due at once."""

        def call_later(self, delay: float, function: object, *args: object) -> None:
            waits.append(delay)
            asyncio.get_running_loop().call_soon(function, *args)  # type: ignore[arg-type]

    sync = Backsync()
    sync.model("Note", store=MemoryStore()).hears_others = joined
    sync._look_for_other_workers(Loop())  # type: ignore[arg-type]
    for _ in range(10):
        await asyncio.sleep(0)
    assert sum(WARNING in record.getMessage() for record in caplog.records) == warned
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    assert len(waits) == (3 if warned else 0)


@pytest.mark.parametrize(("options", "warned"), [(["--workers", "3"], 1), ([], 0)])
def test_uvicorn_with_several_workers_logs_one_line(options: list[str], warned: int) -> None:
    server = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "tests.rest_app:app", "--port", "0", *options],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "WEB_CONCURRENCY": ""} if options else {**os.environ, "WEB_CONCURRENCY": "1"},
    )
    watchdog = threading.Timer(60, server.kill)
    watchdog.start()
    said: list[str] = []
    try:
        assert server.stderr is not None
        for line in server.stderr:
            said.append(line)
            started = sum("Application startup complete" in it for it in said)
            if any(WARNING in it for it in said) or (not warned and started):
                break
        server.send_signal(signal.SIGTERM)
        said += list(server.stderr)
        server.wait()
        server.stderr.close()
    finally:
        watchdog.cancel()
        server.kill()
        server.wait()
    assert sum(WARNING in line for line in said) == warned, said
