"""Slow clients against a real server: some do not read, one reads a byte a second, the others must not notice.

`python -m tests.convergence.slow` is the server; `measure` starts it and plays all the clients. It judges nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from backsync_asgi import Backsync, Context
from backsync_asgi.limits import Limits
from backsync_asgi.stores import MemoryStore

ROOT = Path(__file__).resolve().parent.parent.parent
RECORDS = 100
TICK = 0.05  # seconds between two bursts of changes
BUFFER = 16_384  # bytes of each socket's buffers: the less lies there, the sooner a client counts as slow
PROBES = 10  # clients that look at what they get; the others only read it

sync = Backsync(limits=Limits(handler_timeout=600.0))
item = sync.model("Item", store=MemoryStore())


@item.on("churn")
async def churn(ctx: Context, order: dict[str, Any]) -> int:
    """Change the records in turn, so many a second, for so many seconds. Returns how many changes there were."""
    begin, done = time.monotonic(), 0
    while (elapsed := time.monotonic() - begin) < order["seconds"]:
        while done < elapsed * order["rate"]:
            await item.upsert({"id": done % RECORDS, "at": done, "sent": time.monotonic(), "pad": "x" * order["pad"]})
            done += 1
        await asyncio.sleep(TICK)
    return done


@item.on("memory")
async def memory(ctx: Context, data: object) -> int:
    """The server's memory, in bytes."""
    with open("/proc/self/statm") as file:  # noqa: ASYNC230 - not a file on a disk
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def serve() -> None:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    listening.bind(("127.0.0.1", 0))
    listening.listen(4096)
    print(listening.getsockname()[1], flush=True)
    # Without pings, which would end the connections of those who do not read: what is measured is what they cost.
    config = uvicorn.Config(sync, log_level="warning", timeout_graceful_shutdown=1, ws_ping_interval=None)
    uvicorn.Server(config).run(sockets=[listening])


class Peer(asyncio.Protocol):
    """A WebSocket with the frames of SockJS, as small as it can be. reading: "all", "nothing" or "blindly"."""

    def __init__(self) -> None:
        self.reading = "all"
        self.records: dict[int, int] = {}
        self.seqs: list[int] = []
        self.delays: list[float] = []
        self.replies: asyncio.Queue[Any] = asyncio.Queue()
        self.lost = False
        self._buffer = bytearray()
        self._upgraded = False
        self._transport: asyncio.Transport | None = None
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def open(cls, port: int) -> Peer:
        own = socket.socket()
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        own.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(own, ("127.0.0.1", port))
        _, peer = await loop.create_connection(cls, sock=own)
        head = (
            f"GET /000/{id(peer)}/websocket HTTP/1.1",
            "Host: localhost",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        )
        peer.write("\r\n".join([*head, "", ""]).encode())
        await peer._opened
        return peer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True

    def write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    async def call(self, event: str, data: Any = None) -> Any:
        """Ask, and wait for the reply."""
        text = json.dumps([json.dumps({"id": 1, "event": event, "data": data})]).encode()
        assert len(text) < 65_536
        size = bytes([0x80 | len(text)]) if len(text) < 126 else b"\xfe" + len(text).to_bytes(2, "big")
        self.write(b"\x81" + size + b"\0\0\0\0" + text)  # masked, with zeros
        return (await self.replies.get())["data"]

    def stop_reading(self) -> None:
        assert self._transport is not None
        self.reading = "nothing"
        self._transport.pause_reading()

    def read_again(self) -> None:
        assert self._transport is not None
        self.reading = "all"
        self._transport.resume_reading()

    async def read_a_byte_a_second(self) -> None:
        """Until it is cancelled."""
        assert self._transport is not None
        own: socket.socket = self._transport.get_extra_info("socket")
        while True:
            with contextlib.suppress(BlockingIOError):
                self._buffer += own.recv(1)
            await asyncio.sleep(1)

    def data_received(self, data: bytes) -> None:
        if self.reading == "blindly":
            return
        self._buffer += data
        if not self._upgraded:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            del self._buffer[: end + 4]
            self._upgraded = True
        while (text := self._frame()) is not None:
            if text[:1] == b"o":
                self._opened.set_result(None)
            elif text[:1] == b"a":
                for message in json.loads(text[1:]):
                    self._take(json.loads(message))

    def _frame(self) -> bytes | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        size, begin = buffer[1], 2
        if size == 126:
            size, begin = int.from_bytes(buffer[2:4], "big"), 4
        elif size == 127:
            size, begin = int.from_bytes(buffer[2:10], "big"), 10
        if len(buffer) < begin + size:
            return None
        payload = bytes(buffer[begin : begin + size])
        opcode = buffer[0] & 15
        del buffer[: begin + size]
        return payload if opcode == 1 else b""

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self.replies.put_nowait(message)
        elif "seq" in message:
            record = message["data"]
            self.seqs.append(message["seq"])
            self.records[record["id"]] = record["at"]
            self.delays.append(time.monotonic() - record["sent"])

    def close(self) -> None:
        assert self._transport is not None
        self._transport.abort()


@dataclass
class Findings:
    """changes: how many there were. memory: bytes, sampled while some did not read. p99_before, p99_meanwhile: seconds
    from a change to a client that reads. caught_up: for each client that read again, the changes that it got then.
    tails: those of them after the last gap. final: each record's last state; equal: whether all who look have it."""

    changes: int = 0
    memory: list[int] = field(default_factory=list)
    p99_before: float = 0.0
    p99_meanwhile: float = 0.0
    caught_up: list[int] = field(default_factory=list)
    tails: list[list[int]] = field(default_factory=list)
    equal: bool = False
    lost: int = 0


def p99(probes: list[Peer]) -> float:
    delays = sorted(delay for probe in probes for delay in probe.delays)
    for probe in probes:
        probe.delays.clear()
    return delays[int(len(delays) * 0.99)] if delays else 0.0


@asynccontextmanager
async def server() -> AsyncIterator[int]:
    """The server in a process of its own; its port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.convergence.slow", stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        yield int(await process.stdout.readline())
    finally:
        process.terminate()
        await process.wait()


async def measure(clients: int, rate: int, seconds: float, pad: int) -> Findings:
    """A tenth of the clients stops to read, one reads a byte a second, while records change; then all read again."""
    found = Findings()
    async with server() as port:
        control = await Peer.open(port)
        peers = [await Peer.open(port) for _ in range(clients)]
        for peer in peers:
            await peer.call("Item:subscribe")
        stalled, crawling, readers = peers[: clients // 10], peers[clients // 10], peers[clients // 10 + 1 :]
        probes = readers[:PROBES]
        for peer in readers[PROBES:]:
            peer.reading = "blindly"
        order = {"rate": rate, "pad": pad, "seconds": seconds / 4}
        await control.call("Item:churn", order)
        found.p99_before = p99(probes)
        for peer in [*stalled, crawling]:
            peer.stop_reading()
        crawl = asyncio.ensure_future(crawling.read_a_byte_a_second())
        before = [len(peer.seqs) for peer in stalled]
        watch = await Peer.open(port)

        async def sample() -> None:
            while True:
                await asyncio.sleep(seconds / 20)
                found.memory.append(await watch.call("Item:memory"))

        sampling = asyncio.ensure_future(sample())
        found.changes = await control.call("Item:churn", {**order, "seconds": seconds})
        for task in (sampling, crawl):
            task.cancel()
        await asyncio.wait([sampling, crawl])
        found.p99_meanwhile = p99(probes)
        expected = {record["id"]: record["at"] for record in await control.call("Item:read")}
        for peer in stalled:
            peer.read_again()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(30):
                while not all(peer.records == expected for peer in [*stalled, *probes]):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        found.equal = all(peer.records == expected for peer in [*stalled, *probes])
        for peer, count in zip(stalled, before, strict=True):
            got = peer.seqs[count:]
            gap = max((at for at in range(1, len(got)) if got[at] > got[at - 1] + 1), default=0)
            found.caught_up.append(len(got))
            found.tails.append(got[gap:])
        found.lost = sum(peer.lost for peer in peers)
        for peer in [*peers, control, watch]:
            peer.close()
    return found


if __name__ == "__main__":
    serve()
