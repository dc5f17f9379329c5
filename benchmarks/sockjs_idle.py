"""What idle polling sessions cost: `python -m benchmarks.sockjs_idle [SESSIONS]`; knows the echo example's /broadcast.

A process serves the example, this one holds the sessions: each a connection with a poll that waits. Reported are the
server's memory for each, how long a broadcast takes to reach all, and what is left when they have gone.
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from backsync_asgi.sockjs.receivers import Receive, Scope, Send
from examples import sockjs_echo

SESSIONS = 9000
AT_ONCE = 200  # sessions that are being opened
GONE_WITHIN = 30.0  # seconds in which the server has to forget sessions whose clients have left
ROOT = Path(__file__).parent.parent


# ── The server ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class State:
    """Of the server's process. resident: bytes of memory."""

    sessions: int
    tasks: int
    resident: int


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """The echo example, and its process's state at /state."""
    if scope["type"] != "http" or scope["path"] != "/state":
        await sockjs_echo.app(scope, receive, send)
        return
    body = json.dumps(asdict(own_state())).encode()
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def own_state() -> State:
    gc.collect()
    status = Path("/proc/self/status").read_text()
    return State(
        sessions=sum(service.server.sessions for service in sockjs_echo.SERVICES.values()),
        tasks=len(asyncio.all_tasks()),
        resident=int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024,
    )


@asynccontextmanager
async def serving() -> AsyncIterator[int]:
    """uvicorn with its defaults, in a process of its own; its port."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "uvicorn", "benchmarks.sockjs_idle:app", "--port", "0", "--no-access-log"),
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(30):
            while (
                found := re.search(rb"running on http://127\.0\.0\.1:(\d+)", await process.stderr.readline())
            ) is None:
                pass
        yield int(found[1])
    finally:
        process.terminate()
        await process.wait()


# ── The clients ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Idler(asyncio.Protocol):
    """One session that polls for ever."""

    def __init__(self) -> None:
        path = f"/broadcast/0/{uuid.uuid4().hex}"
        self._poll = f"POST {path}/xhr HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode()
        self.path = path
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.heard: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._said = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._poll)

    def data_received(self, data: bytes) -> None:
        self._said += data
        head, end, frame = self._said.partition(b"\r\n\r\n")
        if not end or not frame.endswith(b"\n"):
            return
        self._said = b""
        if frame == b"o\n":
            self.opened.set_result(None)
        elif frame == b'a["news"]\n':
            self.heard.set_result(time.perf_counter())
        elif frame != b"h\n":
            raise ValueError(f"A poll got {head!r} and {frame!r}.")
        if self._transport is not None:
            self._transport.write(self._poll)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(error or ConnectionError("The server has hung up."))

    def leave(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def ask(port: int, method: str, path: str, body: bytes = b"") -> bytes:
    """The body of the answer to one request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    answer = await reader.read()
    writer.close()
    return answer.partition(b"\r\n\r\n")[2]


async def state(port: int) -> State:
    return State(**json.loads(await ask(port, "GET", "/state")))


async def connect(port: int, count: int) -> list[Idler]:
    """That many sessions, each waiting in its second poll."""
    places = asyncio.Semaphore(AT_ONCE)

    async def open() -> Idler:
        async with places:
            _, idler = await asyncio.get_running_loop().create_connection(Idler, "127.0.0.1", port)
            await idler.opened
            return idler

    return await asyncio.gather(*(open() for _ in range(count)))


async def settled(port: int, tasks: int) -> State:
    """Wait until there are no sessions, and no more tasks than these; the state of then. TimeoutError if not."""
    async with asyncio.timeout(GONE_WITHIN):
        while True:
            now = await state(port)
            if now.sessions == 0 and now.tasks <= tasks:
                return now
            await asyncio.sleep(0.1)


@dataclass(frozen=True)
class Result:
    """full: with all sessions waiting. after: with none again. again: with as many a second time."""

    count: int
    base: State
    full: State
    after: State
    again: State
    connected: float  # seconds
    reached: float  # seconds from a broadcast's upload to the last session's hearing of it
    gone: float  # seconds

    @property
    def each(self) -> float:
        """KiB of memory for each session."""
        return (self.full.resident - self.base.resident) / self.count / 1024


async def measure(count: int) -> Result:
    async with serving() as port:
        tasks = (await state(port)).tasks
        leave(await connect(port, 100))  # for caches, and code that is imported late
        base = await settled(port, tasks)

        began = time.perf_counter()
        idlers = await connect(port, count)
        connected = time.perf_counter() - began
        full = await state(port)

        began = time.perf_counter()
        await ask(port, "POST", idlers[0].path + "/xhr_send", b'["news"]')
        reached = max(await asyncio.gather(*(idler.heard for idler in idlers))) - began

        began = time.perf_counter()
        leave(idlers)
        after = await settled(port, tasks)
        gone = time.perf_counter() - began

        idlers = await connect(port, count)
        again = await state(port)
        leave(idlers)
        return Result(count, base, full, after, again, connected, reached, gone)


def leave(idlers: list[Idler]) -> None:
    for idler in idlers:
        idler.leave()


def main() -> None:
    result = asyncio.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else SESSIONS))
    mib = 1024 * 1024
    rows = [
        ("idle sessions", f"{result.count:,}"),
        ("memory for each", f"{result.each:.1f} KiB"),
        ("connected in", f"{result.connected:.1f} s"),
        ("broadcast reached all in", f"{result.reached:.2f} s"),
        ("sessions, tasks before", f"{result.base.sessions}, {result.base.tasks}"),
        ("sessions, tasks with all", f"{result.full.sessions}, {result.full.tasks}"),
        ("sessions, tasks after", f"{result.after.sessions}, {result.after.tasks} ({result.gone:.1f} s later)"),
        ("resident before", f"{result.base.resident / mib:.1f} MiB"),
        ("resident with all", f"{result.full.resident / mib:.1f} MiB"),
        ("resident after", f"{result.after.resident / mib:.1f} MiB"),
        ("resident with all again", f"{result.again.resident / mib:.1f} MiB"),
    ]
    for name, value in rows:
        print(f"{name:26}{value}")


if __name__ == "__main__":
    main()
