"""One server and one load generator, each a process on a core of its own; it knows no scenario."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from . import machine
from .peers import BUILD, ENVIRONMENT, HERE, Competitor

BACKLOG = 4096
SERVER_ENDS_WITHIN = 5.0  # seconds from SIGTERM; then it is killed


class Server:
    """A competitor's process. send_buffer: bytes of each socket's send buffer; None for the system's choice."""

    def __init__(
        self, competitor: Competitor, send_buffer: int | None = None, environment: dict[str, str] | None = None
    ) -> None:
        self.competitor = competitor
        cores = machine.cores()
        with socket.socket() as listening:
            if send_buffer is not None:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
            listening.bind(("127.0.0.1", 0))
            listening.listen(BACKLOG)
            self.port: int = listening.getsockname()[1]
            path = str(ENVIRONMENT / "tornado") if competitor.module == "sockjs_tornado" else ""
            self._process = subprocess.Popen(
                competitor.command(listening.fileno()),
                cwd=HERE.parent,
                pass_fds=[listening.fileno()],
                env={**os.environ, "PYTHONPATH": path, **(environment or {})},
                preexec_fn=machine.pinned(cores[0] if cores else None),
                stdout=subprocess.DEVNULL,
            )

    def __enter__(self) -> Self:
        self.ask("/quiet")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(SERVER_ENDS_WITHIN)
        self._process.kill()
        self._process.wait()

    def ask(self, path: str) -> None:
        """One request to its control, which must be answered."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", path)
            status = connection.getresponse().status
        finally:
            connection.close()
        if status != 200:
            raise RuntimeError(f"{self.competitor.name} answered {path} with {status}, expected 200.")

    def publish(self, count: int, burst: int, interval: float) -> None:
        """Let it publish so many changes, `burst` at once every `interval` seconds; does not wait for the end."""
        self.ask(f"/publish?count={count}&burst={burst}&interval={interval:.6f}")

    def cpu(self) -> float:
        """Seconds of CPU that it has used."""
        return machine.cpu_seconds(self._process.pid)

    def memory(self) -> int:
        """Bytes of memory that it has for itself, without garbage."""
        self.ask("/quiet")
        return machine.memory(self._process.pid)

    def settle(self, quiet: float = 0.002, within: float = 30.0) -> None:
        """Wait until it uses nearly no CPU. TimeoutError if it goes on."""
        end = time.monotonic() + within
        used = self.cpu()
        while time.monotonic() < end:
            time.sleep(0.1)
            before, used = used, self.cpu()
            if used - before < quiet:
                return
        raise TimeoutError(f"{self.competitor.name} is still busy after {within:g} s.")


@dataclass(frozen=True)
class Answer:
    """What the load generator says after a command. latency, last: 101 percentiles in microseconds, or nothing;
    `latency` of each record that came, `last` of each change at the last client that it reached."""

    late: bool
    live: int
    lost: int
    records: int
    missing: int
    calls: int
    seconds: float
    latency: list[int]
    last: list[int]


class Load:
    """The clients of one server."""

    def __init__(self, server: Server, replies: int = 0) -> None:
        cores = machine.cores()
        competitor = server.competitor
        command = [str(BUILD / "load"), str(server.port), competitor.dialect, competitor.prefix, str(replies)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=machine.pinned(cores[1] if cores else None),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def do(self, command: str) -> Answer:
        """Run one command of the load generator, as load.c lists them. RuntimeError if it fails."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        found = json.loads(line) if line else {"error": "The load generator has died."}
        if "error" in found:
            raise RuntimeError(f"{command}: {found['error']}")
        return Answer(**found)

    def open(self, count: int) -> Answer:
        """Open connections. RuntimeError if not all of them become live."""
        answer = self.do(f"open {count}")
        if answer.live != count:
            raise RuntimeError(f"{answer.live} of {count} connections became live.")
        return answer
