"""The command line runs an application, and says what it needs."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backsync_asgi.cli import main

ROOT = Path(__file__).parent.parent
STARTED = "Uvicorn running on "


@contextlib.contextmanager
def running(*options: str, **environment: str) -> Iterator[tuple[str, list[str]]]:
    """`backsync run` of the echo example: its URL, and what it has said, all of it at the end."""
    command = [sys.executable, "-c", "import sys; from backsync_asgi.cli import main; sys.exit(main())"]
    server = subprocess.Popen(
        [*command, "run", "examples.sockjs_echo:app", "--port", "0", *options],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    watchdog = threading.Timer(30, server.kill)
    watchdog.start()
    said: list[str] = []
    try:
        assert server.stderr is not None
        for line in server.stderr:
            said.append(line)
            if STARTED in line:
                break
        yield said[-1].partition(STARTED)[2].split()[0], said
        server.terminate()
        said.extend(server.stderr)
        server.wait()
        server.stderr.close()
        assert "Traceback" not in "".join(said)
    finally:
        watchdog.cancel()
        server.kill()
        server.wait()


def status_of(url: str, host: str | None = None, **headers: str) -> int:
    """The status of a GET."""
    request = urllib.request.Request(url, headers=headers if host is None else {"Host": host, **headers})
    try:
        with urllib.request.urlopen(request) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_run_serves_the_application_with_our_protocol() -> None:
    with running() as (url, _):
        with urllib.request.urlopen(url + "/echo") as response:
            assert response.read() == b"Welcome to SockJS!\n"


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    "Origin": "http://evil.example:8000",
}


def test_run_on_loopback_refuses_the_names_of_others() -> None:
    with running("--allow-host", "friend.example") as (url, said):
        for host in (None, "localhost:1", "friend.example:8000"):
            assert status_of(url + "/echo", host) == 200
        assert status_of(url + "/echo", "evil.example:8000") == 400
        assert status_of(url + "/echo/websocket", "evil.example:8000", **UPGRADE) == 400
    assert "--allow-host NAME" in "".join(said)


def test_run_on_every_address_says_that_names_are_not_checked() -> None:
    with running("--host", "0.0.0.0") as (url, said):
        assert status_of(url.replace("0.0.0.0", "127.0.0.1") + "/echo", "any.example") == 200
    assert "--allow-host NAME" in said[0]
    with running("--host", "0.0.0.0", "--allow-host", "mine.example") as (url, _):
        assert status_of(url.replace("0.0.0.0", "127.0.0.1") + "/echo", "any.example") == 400


def test_run_is_one_process_whatever_the_environment_says() -> None:
    with running(WEB_CONCURRENCY="3") as (url, said):
        assert status_of(url + "/echo") == 200
    assert "parent process" not in "".join(said)
    assert "WEB_CONCURRENCY=3 is ignored" in "".join(said)


def test_run_takes_the_port_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Platforms set it; the command line comes first. HOST is ignored: some shells set it to the machine's name."""
    started: list[Any] = []
    monkeypatch.setattr("uvicorn.run", lambda *_, **options: started.append((options["host"], options["port"])))
    monkeypatch.setenv("HOST", "machine.example")
    for value, options in (("5001", []), ("", []), ("5001", ["--port", "0"])):
        monkeypatch.setenv("PORT", value)
        assert main(["run", "app:app", *options]) == 0
    assert started == [("127.0.0.1", 5001), ("127.0.0.1", 8000), ("127.0.0.1", 0)]


@pytest.mark.parametrize("port", ["http", "70000", "-1"])
def test_a_port_that_is_none_is_wrong_use(
    port: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PORT", port)
    with pytest.raises(SystemExit) as ended:
        main(["run", "app:app"])
    assert ended.value.code == 2
    assert "argument --port" in capsys.readouterr().err


def test_a_name_that_is_none_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "app:app", "--allow-host", "http://app.example"])
    assert ended.value.code == 2
    assert "--allow-host: got 'http://app.example'" in capsys.readouterr().err


def test_an_application_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run"])
    assert "app" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["uvicorn", "websockets"])
def test_it_says_in_one_line_what_to_install(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["run", "app:app"]) == 1
    assert capsys.readouterr().err == f'backsync run needs {missing}: pip install "backsync-asgi[server]"\n'


@pytest.mark.parametrize("app", ["nowhere:app", "examples.sockjs_echo:nothing"])
def test_an_application_that_is_not_there_ends_it_as_uvicorn_does(app: str) -> None:
    command = "import sys; from backsync_asgi.cli import main; sys.exit(main())"
    ended = subprocess.run(
        [sys.executable, "-c", command, "run", app, "--port", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 3
    assert "Error loading ASGI app." in ended.stderr
    assert "Traceback" not in ended.stderr
