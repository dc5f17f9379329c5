"""Real connections through a proxy that misbehaves: it cuts at any byte, resets, closes by halves, stalls.

What the proxy does is told by the same `Cable` that lines in process have, so a client cannot tell one from the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import struct
from collections.abc import Sequence
from typing import Literal

import websockets
from websockets.asyncio.client import connect as open_websocket

from backsync_asgi.sockjs.receivers import Receive, Send
from backsync_asgi.testing import Cable, Ears, HttpLine, Line, Scope, Transport, Way

End = Literal["reset", "close", "half"]


class Proxy:
    """A TCP proxy in front of one port, for one line. how: how it cuts: RST, FIN, or a FIN to the server alone."""

    def __init__(self, target: int, cable: Cable, how: End) -> None:
        self._target = target
        self._cable = cable
        self._how: End = how
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._upward: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        cable.on_change.append(self._change)

    async def start(self) -> int:
        """Listen; returns the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        self._cable.cut()
        for writer in self._writers:
            writer.transport.abort()
        if self._server is not None:
            self._server.close()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.append(writer)
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            self._tasks.discard(task)
            return
        self._writers.append(up_writer)
        self._upward.add(up_writer)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass_on("up", reader, up_writer))
                both.create_task(self._pass_on("down", up_reader, writer))
        finally:
            for it in (writer, up_writer):
                it.close()
                self._writers.remove(it)
            self._upward.discard(up_writer)
            self._tasks.discard(task)

    async def _pass_on(self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(4096):
                while not self._cable.flows(way):
                    self._changed.clear()
                    await self._changed.wait()
                if self._cable.broken or writer.is_closing():
                    return
                carried = self._cable.carry(way, len(data))
                writer.write(data[:carried])
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()

    def _change(self) -> None:
        self._changed.set()
        if not self._cable.broken:
            return
        for writer in self._writers:
            if self._how == "reset" and (own := writer.get_extra_info("socket")) is not None:
                with contextlib.suppress(OSError):  # it may be closed already
                    own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if self._how == "half" and writer in self._upward and writer.can_write_eof():
                with contextlib.suppress(OSError):
                    writer.write_eof()
            elif self._how == "close":
                writer.close()
            else:
                writer.transport.abort()


class NetSocketLine:
    """A WebSocket to a real server, raw or framed, through a proxy."""

    def __init__(self, port: int, framed: bool, how: End, ears: Ears, path: str = "") -> None:
        self.cable = Cable()
        self._ears = ears
        self._framed = framed
        self._path = path
        self._over = False
        self._proxy = Proxy(port, self.cable, how)
        self._outgoing: asyncio.Queue[str] = asyncio.Queue()
        self.cable.on_change.append(self._changed)
        self._task = asyncio.ensure_future(self._run())

    def send(self, text: str) -> None:
        self._outgoing.put_nowait(json.dumps([text]) if self._framed else text)

    def drop(self) -> None:
        self.cable.cut()

    async def ended(self) -> None:
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        port = await self._proxy.start()
        path = self._path + (f"/000/{secrets.token_hex(8)}/websocket" if self._framed else "/websocket")
        sending: asyncio.Task[None] | None = None
        try:
            async with open_websocket(
                f"ws://127.0.0.1:{port}{path}", compression=None, open_timeout=5, close_timeout=1, proxy=None
            ) as peer:

                async def send() -> None:
                    with contextlib.suppress(websockets.ConnectionClosed):
                        while True:
                            await peer.send(await self._outgoing.get())

                if not self._framed:
                    sending = asyncio.ensure_future(send())
                async for text in peer:
                    assert isinstance(text, str)
                    if not self._framed:
                        self._heard([text])
                    elif text == "o":
                        sending = asyncio.ensure_future(send())
                    elif text[0] == "a":
                        self._heard(json.loads(text[1:]))
                    elif text[0] == "c":
                        self._end(*json.loads(text[1:]))
                self._end(peer.close_code, peer.close_reason or "")
        except (OSError, websockets.WebSocketException, TimeoutError) as error:
            received = getattr(error, "rcvd", None)
            self._end(None if received is None else received.code, "")
        finally:
            if sending is not None:
                sending.cancel()
                await asyncio.wait([sending])
            await self._proxy.stop()

    def _heard(self, texts: list[str]) -> None:
        if not self._over:
            self._ears.heard(self, texts)

    def _changed(self) -> None:
        if self.cable.broken:
            self._end(None, "")

    def _end(self, code: int | None, reason: str) -> None:
        if not self._over:
            self._over = True
            self._ears.ended(self, None if code == 1006 else code, reason)


class NetHttpLine:
    """A SockJS session over HTTP with a real server, through a proxy."""

    def __init__(self, port: int, transport: Transport, how: End, ears: Ears) -> None:
        self.cable = Cable()
        self._ears = ears
        self._over = False
        self._proxy = Proxy(port, self.cable, how)
        self._listening = asyncio.ensure_future(self._proxy.start())
        self.cable.on_change.append(self._changed)
        scope: Scope = {"headers": [(b"host", b"testserver")], "query_string": b""}
        self._inner = HttpLine(self._request, scope, "", transport, InnerEars(self))

    def send(self, text: str) -> None:
        self._inner.send(text)

    def drop(self) -> None:
        self.cable.cut()

    async def ended(self) -> None:
        await self._inner.ended()
        await self._listening
        await self._proxy.stop()

    def heard(self, texts: Sequence[str]) -> None:
        if not self._over:
            self._ears.heard(self, texts)

    def end(self, code: int | None, reason: str, error: BaseException | None = None) -> None:
        if not self._over:
            self._over = True
            self._ears.ended(self, code, reason, error)

    def _changed(self) -> None:
        if self.cable.broken:
            self.end(None, "")
            self._inner.cable.cut()

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request over a connection of its own, as an ASGI app sees it."""
        port = await asyncio.shield(self._listening)
        body: bytes = (await receive())["body"]
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            self._lost()
            return
        gone = asyncio.ensure_future(self._wait_for_end(receive, writer))
        try:
            head = f"{scope['method']} {scope['path']} HTTP/1.1\r\nHost: testserver\r\nContent-Length: {len(body)}\r\n"
            writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
            await writer.drain()
            await self._read(reader, send)
        except (OSError, asyncio.IncompleteReadError):
            self._lost()
        finally:
            gone.cancel()
            await asyncio.wait([gone])
            writer.close()

    def _lost(self) -> None:
        self.cable.cut()

    async def _wait_for_end(self, receive: Receive, writer: asyncio.StreamWriter) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        writer.transport.abort()

    async def _read(self, reader: asyncio.StreamReader, send: Send) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        await send({"type": "http.response.start", "status": int(head.split(" ", 2)[1]), "headers": []})
        if "transfer-encoding: chunked" in head:
            while size := int(await reader.readuntil(b"\r\n"), 16):
                chunk = (await reader.readexactly(size + 2))[:-2]
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        elif "content-length: " in head:
            size = int(head.split("content-length: ", 1)[1].split("\r\n", 1)[0])
            whole = await reader.readexactly(size)
            await send({"type": "http.response.body", "body": whole, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class InnerEars:
    """What the line inside hears is heard on the line outside."""

    def __init__(self, outer: NetHttpLine) -> None:
        self._outer = outer

    def heard(self, line: Line, texts: Sequence[str]) -> None:
        self._outer.heard(texts)

    def ended(self, line: Line, code: int | None, reason: str, error: BaseException | None = None) -> None:
        self._outer.end(code, reason, error)
