"""The command line runs an application, and says what it needs."""

from __future__ import annotations

import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from backsync_asgi.cli import main

ROOT = Path(__file__).parent.parent
STARTED = "Uvicorn running on "


def test_run_serves_the_application_with_our_protocol() -> None:
    command = [sys.executable, "-c", "import sys; from backsync_asgi.cli import main; sys.exit(main())"]
    server = subprocess.Popen(
        [*command, "run", "examples.sockjs_echo:app", "--port", "0"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    watchdog = threading.Timer(30, server.kill)
    watchdog.start()
    try:
        assert server.stderr is not None
        line = next(line for line in server.stderr if STARTED in line)
        url = line.partition(STARTED)[2].split()[0]
        with urllib.request.urlopen(url + "/echo") as response:
            assert response.read() == b"Welcome to SockJS!\n"
        server.terminate()
        assert "Traceback" not in server.stderr.read()
        server.wait()
        server.stderr.close()
    finally:
        watchdog.cancel()
        server.kill()
        server.wait()


def test_an_application_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run"])
    assert "app" in capsys.readouterr().err


def test_without_uvicorn_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["run", "app:app"]) == 1
    assert 'pip install "backsync-asgi[server]"' in capsys.readouterr().err
