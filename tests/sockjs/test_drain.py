"""A signal to plain uvicorn, alone or with our server deep inside another application: everybody is told, all ends."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from tests.servers import Server, hypercorn_server
from tests.sockjs.client import Headers, frame_bytes, handshake, head

APP = "tests.sockjs.drain_app"
GONE_WITHIN = 10.0  # seconds
GONE_WITHIN_DESPITE_THE_DEAF = 15.0
BYE = b'c[1012,"Service restart"]'
CLOSE_1012 = b"\x88" + bytes([2 + len("Service restart")]) + struct.pack("!H", 1012) + b"Service restart"
AT_ONCE = 100  # connections that are being opened

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Crowd:
    polls: int
    streams: int
    sockets: int


FULL = Crowd(polls=1000, streams=200, sockets=1000)
SMALL = Crowd(polls=20, streams=20, sockets=20)


class Client:
    """One connection of one session, opened and then left alone until the server ends it."""

    def __init__(self, kind: str, port: int, prefix: str, number: int) -> None:
        self.kind = kind
        self._port = port
        self._path = f"{prefix}/0/{kind}{number}"

    async def open(self) -> None:
        """Have the open frame read; a poll waits again after it."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        match self.kind:
            case "poll":
                self._ask("POST", "/xhr", [("Content-Length", "0")])
                assert await self._reader.readuntil(b"\r\n\r\no\n")
                self._ask("POST", "/xhr", [("Content-Length", "0")])
            case "stream":
                self._ask("POST", "/xhr_streaming", [("Content-Length", "0")])
                assert await self._reader.readuntil(b"2\r\no\n\r\n")
            case "socket":
                self._ask("GET", "/websocket", handshake())
                assert (await self._reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
                assert await self._reader.readexactly(3) == b"\x81\x01o"

    def _ask(self, method: str, suffix: str, headers: Headers) -> None:
        self._writer.write(head(method, self._path + suffix, headers))

    async def end(self) -> str:
        """What the server said from then on: "right", or the bytes."""
        said = await self._reader.read()
        if self.kind == "socket" and said:
            self._writer.write(frame_bytes(0x8, CLOSE_1012[2:4]))  # the answer to its close frame
        self._writer.close()
        return "right" if self._right(said) else repr(said[-300:])

    def _right(self, said: bytes) -> bool:
        match self.kind:
            case "poll":
                head, _, body = said.partition(b"\r\n\r\n")
                length = re.search(rb"\r\ncontent-length: (\d+)", head)
                whole = body if length else unchunked(body)
                return (
                    head.startswith(b"HTTP/1.1 200 ")
                    and whole == BYE + b"\n"
                    and (length is None or int(length[1]) == len(body))
                )
            case "stream":
                return unchunked(said) == BYE + b"\n"
            case _:
                return said == b"\x81" + bytes([len(BYE)]) + BYE + CLOSE_1012


def unchunked(body: bytes) -> bytes | None:
    """The content of a complete chunked body; None if its last chunk is missing or something follows it."""
    content = b""
    while True:
        size, _, rest = body.partition(b"\r\n")
        if re.fullmatch(rb"[0-9a-f]+", size) is None:
            return None
        length = int(size, 16)
        if length == 0:
            return content if rest == b"\r\n" else None
        content, body = content + rest[:length], rest[length + 2 :]


async def gather(crowd: Crowd, server: Server, prefix: str) -> list[Client]:
    """The whole crowd, connected."""
    clients = [
        Client(kind, server.port, prefix, number)
        for kind, count in (("poll", crowd.polls), ("stream", crowd.streams), ("socket", crowd.sockets))
        for number in range(count)
    ]
    places = asyncio.Semaphore(AT_ONCE)

    async def open(client: Client) -> None:
        async with places, asyncio.timeout(30):
            await client.open()

    await asyncio.gather(*map(open, clients))
    return clients


async def all_ends(clients: list[Client]) -> Counter[tuple[str, str]]:
    async with asyncio.timeout(30):
        ends = await asyncio.gather(*(client.end() for client in clients))
    return Counter(zip((client.kind for client in clients), ends, strict=True))


async def gone(server: Server, within: float) -> float:
    """Wait for the process to be gone; the seconds it took. AssertionError with the log if it is not."""
    began = time.monotonic()
    try:
        await asyncio.to_thread(server.process.wait, within)
    finally:
        server.kill()
    took = time.monotonic() - began
    assert server.process.returncode in (0, -signal.SIGTERM, -signal.SIGINT, 130), server.log
    return took


@pytest.fixture
async def deaf() -> AsyncIterator[Callable[[int, str], Awaitable[None]]]:
    """`await deaf(port, prefix)`: five peers ask for a flood of which they never read more than its beginning."""
    sockets: list[socket.socket] = []

    async def connect(port: int, prefix: str) -> None:
        for number in range(5):
            peer = socket.socket()
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the kernel makes that its least
            peer.setblocking(False)
            sockets.append(peer)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(peer, ("127.0.0.1", port))
            if number % 2:
                request = head("GET", f"{prefix}/0/s{number}/websocket", handshake())
            else:
                request = head("POST", f"{prefix}/0/s{number}/xhr_streaming", [("Content-Length", "0")])
            await loop.sock_sendall(peer, request)
            assert await loop.sock_recv(peer, 8)

    yield connect
    for peer in sockets:
        peer.close()


@asynccontextmanager
async def crowded(server: Server, crowd: Crowd, prefix: str) -> AsyncIterator[None]:
    """In the block the server is told to end; after it, everybody in the crowd must have been told once."""
    clients = await gather(crowd, server, prefix)
    ends = asyncio.create_task(all_ends(clients))
    try:
        yield
        assert await ends == {
            (kind, "right"): count
            for kind, count in (("poll", crowd.polls), ("stream", crowd.streams), ("socket", crowd.sockets))
        }
    finally:
        ends.cancel()


@pytest.mark.parametrize(
    ("app", "prefix", "crowd", "number", "http"),
    [
        ("alone", "", FULL, signal.SIGTERM, "httptools"),
        ("alone", "", SMALL, signal.SIGINT, "h11"),
        ("inside", "/deep/echo", FULL, signal.SIGTERM, "httptools"),
        ("inside", "/deep/echo", SMALL, signal.SIGINT, "h11"),
        ("inside_base_class", "/deep/echo", SMALL, signal.SIGTERM, "httptools"),
    ],
    ids=lambda value: {SMALL: "small", FULL: "full"}.get(value) if isinstance(value, Crowd) else None,
)
async def test_everybody_is_told_once_and_the_process_goes(
    serve: Callable[..., Server], app: str, prefix: str, crowd: Crowd, number: signal.Signals, http: str
) -> None:
    server = serve(f"{APP}:{app}", http=http)
    async with crowded(server, crowd, prefix):
        server.process.send_signal(number)
        assert await gone(server, GONE_WITHIN) < GONE_WITHIN
    server.check_log()


async def test_sockets_of_uvicorns_deprecated_protocol(serve: Callable[..., Server]) -> None:
    """Its `send` of a close needs a task, and at a signal there is none."""
    server = serve(f"{APP}:alone", options=("--ws", "websockets"))
    async with crowded(server, SMALL, ""):
        server.process.send_signal(signal.SIGTERM)
        assert await gone(server, GONE_WITHIN) < GONE_WITHIN
    server.check_log()


async def test_hypercorn() -> None:
    """Its handlers are the loop's, beside which ours is called. Only where it is one process: its worker processes get
    no signal, nor anything else that an application could hear of before its requests are cancelled."""
    with hypercorn_server(
        f"{APP}:inside", options=("--workers", "0"), errors_expected=True
    ) as server:  # it logs idle connections
        async with crowded(server, SMALL, "/deep/echo"):
            server.process.send_signal(signal.SIGTERM)
            assert await gone(server, GONE_WITHIN) < GONE_WITHIN


async def test_peers_that_do_not_read_are_cut(
    serve: Callable[..., Server], deaf: Callable[[int, str], Awaitable[None]]
) -> None:
    """Wherever the server is mounted: it finds the connection through every kind of middleware."""

    async def end(app: str, prefix: str) -> None:
        server = serve(f"{APP}:{app}")
        await deaf(server.port, f"{prefix}/flood")
        async with crowded(server, SMALL, f"{prefix}/echo"):
            server.process.send_signal(signal.SIGTERM)
            await gone(server, GONE_WITHIN_DESPITE_THE_DEAF)
        server.check_log()

    await asyncio.gather(end("among_others", ""), end("inside", "/deep"), end("inside_base_class", "/deep"))


async def test_a_second_signal_ends_it_at_once(
    serve: Callable[..., Server], deaf: Callable[[int, str], Awaitable[None]]
) -> None:
    """As Ctrl-C twice does with any application of uvicorn's."""
    server = serve(f"{APP}:among_others", errors_expected=True)  # uvicorn logs each request that it leaves behind
    await deaf(server.port, "/flood")
    async with crowded(server, SMALL, "/echo"):
        server.process.send_signal(signal.SIGINT)
        await asyncio.to_thread(server.wait_for_log, "Waiting for connections to close")
        server.process.send_signal(signal.SIGINT)
        assert await gone(server, 5.0) < 2.0
