"""Starts real web servers in processes of their own and ends them; knows nothing of the apps that they serve."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent

HTTPParser = Literal["httptools", "h11"]
HTTP_PARSERS: tuple[HTTPParser, ...] = ("httptools", "h11")

WEBSOCKETS: Mapping[HTTPParser, str] = {"httptools": "backsync_asgi.uvicorn:WebSocketProtocol", "h11": "auto"}

START_WITHIN = 30.0  # seconds; a cold start on a busy machine takes two or three
STOP_WITHIN = 5.0  # seconds from SIGTERM to the end of the process

# What a server that does its work never logs. The last two are how asyncio and Python report what nobody waited for.
TROUBLE = re.compile(r"Traceback \(most recent call last\)|\b(?:ERROR|CRITICAL)\b|was never (?:retrieved|awaited)")


class Server:
    """A running server process. `log` is all that it has written so far, standard output and error together."""

    def __init__(self, name: str, command: Sequence[str], cwd: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.port = 0  # known once it listens
        self._lines: list[str] = []
        self._log_ended = False
        self._ended_by_us = False
        self._news = threading.Condition()
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",
        )
        self._reader = threading.Thread(target=self._read_log, name=f"log of {name}", daemon=True)
        self._reader.start()

    @property
    def url(self) -> str:
        """Where it listens, as `http://host:port` without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """All that the server has written so far."""
        with self._news:
            return "".join(self._lines)

    def wait_for_log(self, pattern: str, within: float = START_WITHIN) -> re.Match[str]:
        """Wait until the log matches, at most `within` seconds; AssertionError with the log if it does not."""
        until = time.monotonic() + within
        with self._news:
            while True:
                log = "".join(self._lines)
                found = re.search(pattern, log)
                if found is not None:
                    return found
                if self._log_ended:
                    raise AssertionError(f"{self.name} ended without logging {pattern!r}:\n{log}")
                if not self._news.wait(until - time.monotonic()):
                    raise AssertionError(f"{self.name} did not log {pattern!r} within {within} s:\n{log}")

    def stop(self, within: float = STOP_WITHIN) -> None:
        """End it by SIGTERM, as a deployment does; AssertionError if it must be killed or had ended by itself.

        Harmless after an earlier `stop` or `kill`.
        """
        if self._ended_by_us:
            return
        ended_by_itself = self.process.poll() is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} was still running {within} s after SIGTERM:\n{self.log}") from None
        self._close()
        # uvicorn raises the signal anew once it has shut down, hypercorn returns.
        if ended_by_itself or status not in (0, -signal.SIGTERM):
            raise AssertionError(f"{self.name} ended by itself or with an error (status {status}):\n{self.log}")

    def kill(self) -> None:
        """End it at once by SIGKILL, as a crash does."""
        self.process.kill()
        self.process.wait()
        self._close()

    def check_log(self) -> None:
        """AssertionError if the log tells of an error or of something that nobody waited for."""
        trouble = TROUBLE.search(self.log)
        if trouble is not None:
            raise AssertionError(f"{self.name} logged {trouble.group()!r}:\n{self.log}")

    def _read_log(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self._lines.append(line)
                self._news.notify_all()
        with self._news:
            self._log_ended = True
            self._news.notify_all()

    def _close(self) -> None:
        self._ended_by_us = True
        self._reader.join()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextmanager
def _running(server: Server, errors_expected: bool, stop_within: float) -> Iterator[Server]:
    found = None
    try:
        found = server.wait_for_log(r"[Rr]unning on (?:https?://127\.0\.0\.1:(\d+)|(?:unix )?socket )")
        server.port = int(found.group(1) or 0)
        yield server
    except BaseException as error:
        server.kill()
        if found is not None:  # else it is the start that failed, and that error has the log
            error.add_note(f"Log of {server.name}:\n{server.log}")
        raise
    server.stop(stop_within)
    if not errors_expected:
        server.check_log()


@contextmanager
def uvicorn_server(
    app: str,
    *,
    http: HTTPParser = "httptools",
    port: int = 0,
    options: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    errors_expected: bool = False,
    stop_within: float = STOP_WITHIN,
) -> Iterator[Server]:
    """Serve `app` ("package.module:name", found from `cwd`) by uvicorn; entered once it listens.

    Each HTTP parser comes with a WebSocket protocol, so that what is tested with both is tested with both of these:
    httptools with ours, h11 with uvicorn's own.

    `port=0` takes a free one; `options` are further command-line options (`"--factory"`, `"--root-path", "/x"`).
    Leaving ends it by SIGTERM, and fails if it takes more than `stop_within` seconds or, unless `errors_expected`,
    if the log holds an error. When the block itself fails, the log is attached to that failure.
    """
    fixed = ["--http", http, "--ws", WEBSOCKETS[http], "--port", str(port), "--no-access-log"]
    command = [sys.executable, "-m", "uvicorn", app, *fixed, *options]
    with _running(Server(f"uvicorn {app} ({http})", command, cwd, env or {}), errors_expected, stop_within) as server:
        yield server


@contextmanager
def hypercorn_server(
    app: str,
    *,
    port: int = 0,
    options: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    errors_expected: bool = False,
    stop_within: float = STOP_WITHIN,
) -> Iterator[Server]:
    """Serve `app` by hypercorn: otherwise as `uvicorn_server`."""
    command = [sys.executable, "-m", "hypercorn", app, "--bind", f"127.0.0.1:{port}", *options]
    with _running(Server(f"hypercorn {app}", command, cwd, env or {}), errors_expected, stop_within) as server:
        yield server
