"""The app whose clients must converge, and the three worlds in which it is reached; the rules are not its affair.

core: sessions with fake receivers, nothing else between client and app. asgi: the app by its ASGI interface. Both in
virtual time. net: uvicorn behind a misbehaving proxy, in real time.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import socket
from collections import Counter
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

import uvicorn

from backsync_asgi import Backsync, Context, Reject
from backsync_asgi.client import Conversation
from backsync_asgi.limits import Horizon, Memory
from backsync_asgi.sockjs.frames import OPEN, Close, Frame
from backsync_asgi.sockjs.session import Session, Timing
from backsync_asgi.stores import MemoryStore
from backsync_asgi.testing import Cable, Client, Ears, HttpLine, Line, SocketLine, Transport
from tests.convergence.clock import VirtualLoop
from tests.convergence.net import End, NetHttpLine, NetSocketLine

T = TypeVar("T")
Record = dict[str, Any]

HORIZON = Horizon(records=12, size=100_000, age=60.0)
ROOMS = ("a", "b")
USERS = ("ann", "bob", "guest", "admin", "banned")
GRACE = 3.0
SECRET = "for the eyes of "


def seen(user: str, record: Mapping[str, Any]) -> Mapping[str, Any] | bool:
    """What a user may see of a note: the rule that the app has, and that the tests check by."""
    if record.get("secret") and user not in (record["owner"], "admin"):
        return False
    return {**record, "text": "…"} if user == "guest" else True


class Log:
    """What the handlers have done. applied: how often each write was; order: the writes of each client, as applied."""

    def __init__(self) -> None:
        self.applied: Counter[str] = Counter()
        self.order: dict[str, list[int]] = {}

    def note(self, token: str | None) -> None:
        if token is not None:
            self.applied[token] += 1
            client, _, number = token.partition("-")
            self.order.setdefault(client, []).append(int(number.partition(".")[0]))


def make_app(notes: MemoryStore, plain: MemoryStore, log: Log) -> Backsync:
    """Notes with everything that a model can have, plain records with nothing, cursors that live as their clients."""
    sync = Backsync(horizon=HORIZON, memory=Memory(age=100_000.0))
    note = sync.model("Note", store=notes, key="room", version="rev")

    @sync.on("auth")
    async def user(ctx: Context, token: str | None) -> str:
        await asyncio.sleep(0)
        return token or "guest"

    @note.on("subscribe")
    async def guard(ctx: Context, query: Record) -> None:
        await asyncio.sleep(0)
        if ctx.user == "banned":
            raise Reject("forbidden")

    @note.on("read")
    async def read(ctx: Context, query: Record) -> list[Record]:
        rows = await ctx.store.read(query)
        await asyncio.sleep(0.005)  # slow enough that writes come in between
        return rows

    async def save(ctx: Context, record: Record) -> Record:
        token = record.pop("token", None)
        if record.get("slow"):
            await asyncio.sleep(0.003)
        stored = await ctx.store.upsert(record)
        log.note(token)
        return stored

    note.on("upsert")(save)
    note.visible(lambda ctx, record: seen(ctx.user, record))
    said = sync.model("Plain", store=plain)
    said.on("upsert")(save)

    @said.on("say")
    async def say(ctx: Context, record: Record) -> Record:
        token = record.pop("token", None)
        stored = await said.upsert(record)
        log.note(token)
        await asyncio.sleep(0.003)  # others hear of it before its author has the reply
        return stored

    sync.model("Cursor", ephemeral=True, grace=GRACE)
    return sync


class SessionLine:
    """A session with a fake receiver: a stream that never ends, or ends after each frame as a poll does."""

    def __init__(self, sync: Backsync, polling: bool, ears: Ears) -> None:
        self.cable = Cable()
        self.lifetime: float | None = None
        self._ears = ears
        self._polling = polling
        self._open = False
        self._over = False
        self._outgoing: list[str] = []
        self._loop = asyncio.get_running_loop()
        self._session = Session(Timing())
        self.cable.on_change.append(self._changed)
        scope = {"type": "http", "headers": [], "query_string": b"", "path": "/"}
        self._session.endpoint = sync._site.connect(self._session, scope)
        self._session.attach(self)
        self._loop.call_later(1.0, self._tick)

    # As the session sees it

    @property
    def writable(self) -> bool:
        return not self._over and self.cable.flows("down")

    def fills(self, frame: Frame) -> bool:
        return self._polling

    form = "frame"
    way: Any = None

    def declines(self, frame: Frame) -> bool:
        if not self.writable or self.fills(frame):
            return True
        self.write(frame, last=False)
        return False

    def write(self, frame: Frame, last: bool) -> None:
        if frame is OPEN:
            self._open = True
            self._loop.call_soon(self._pump)
        elif isinstance(frame, Close):
            self._end(frame.code, frame.reason)
        else:
            texts = []
            for message in frame.messages:
                size = len(message.text.encode())
                if self.cable.carry("down", size) < size:
                    break
                texts.append(message.text)
            if not self._over:
                self._ears.heard(self, texts)
        if last and not self._over:
            self._loop.call_soon(self._poll)

    def unsent(self) -> object:
        return None

    def abort(self) -> None:
        self._end(None, "")

    def _poll(self) -> None:
        if not self._over and self._session.receiver is not self:
            self._session.attach(self)

    def _tick(self) -> None:
        if self._session.tick(self._loop.time()):
            self._loop.call_later(1.0, self._tick)

    # As the client sees it

    def send(self, text: str) -> None:
        self._outgoing.append(text)
        self._loop.call_soon(self._pump)

    def drop(self) -> None:
        self.cable.cut()

    async def ended(self) -> None:
        await asyncio.sleep(0)

    def _pump(self) -> None:
        while self._open and self._outgoing and not self._over and self.cable.flows("up"):
            text = self._outgoing.pop(0)
            size = len(text.encode())
            if self.cable.carry("up", size) == size:
                self._session.received(text)

    def _changed(self) -> None:
        if self.cable.broken:
            if not self._over:
                self._end(None, "")
                self._loop.call_soon(self._session.detach, self)
        else:
            self._loop.call_soon(self._pump)
            self._loop.call_soon(self._session.wake)

    def _end(self, code: int | None, reason: str) -> None:
        if not self._over:
            self._over = True
            self._ears.ended(self, code, reason)


class World:
    """One run of the app, its stores and its clients. `run` drives the loop."""

    real_time = False
    transports: tuple[Transport, ...] = ("websocket", "framed", "xhr", "xhr_streaming", "eventsource")

    def __init__(self) -> None:
        self.loop = self.make_loop()
        self.notes = MemoryStore()
        self.plain = MemoryStore()
        self.log = Log()
        self.clients: list[Client] = []
        self._offset = 0.0
        self.sync = self._make_app()
        self.run(self.start())

    def make_loop(self) -> asyncio.AbstractEventLoop:
        return VirtualLoop()

    def _make_app(self) -> Backsync:
        sync = make_app(self.notes, self.plain, self.log)
        sync._hub.now = lambda: self.loop.time() + self._offset
        return sync

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    async def start(self) -> None:
        """Serve the app."""

    async def stop(self) -> None:
        """Serve it no more."""

    def dial(self, transport: Transport, ears: Ears) -> Line:
        raise NotImplementedError

    def connect(self, user: str, transport: Transport = "websocket") -> Client:
        client = Client(self.dial, Conversation(secrets.token_hex(8), user), transport, True)
        self.clients.append(client)
        return client

    async def elapse(self, seconds: float) -> None:
        """Let time pass."""
        await asyncio.sleep(seconds)

    async def restart(self) -> None:
        """The server ends without a goodbye and starts anew; only the stores are as before."""
        for client in self.clients:
            client.disconnect()
        await self.stop()
        self.sync = self._make_app()
        await self.start()

    async def leave(self) -> None:
        """All clients go."""
        for client in self.clients:
            await client.close()

    def close(self) -> None:
        async def end() -> None:
            for client in self.clients:
                await client._leave()
            await self.stop()
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            if rest:
                await asyncio.wait(rest)

        self.run(end())
        self.loop.close()


class CoreWorld(World):
    """Sessions, hub and channels with fake receivers."""

    transports = ("websocket", "xhr")

    def dial(self, transport: Transport, ears: Ears) -> Line:
        return SessionLine(self.sync, transport == "xhr", ears)


class AsgiWorld(World):
    """The app by its ASGI interface."""

    def dial(self, transport: Transport, ears: Ears) -> Line:
        scope: dict[str, Any] = {
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "root_path": "",
            "query_string": b"",
            "headers": [(b"host", b"testserver")],
        }
        if transport in ("websocket", "framed"):
            return SocketLine(self.sync, scope, "", transport == "framed", ears)
        return HttpLine(self.sync, scope, "", transport, ears)


class NetWorld(World):
    """uvicorn on a port of its own, in this process, and a proxy for each connection. Time is real."""

    real_time = True
    transports = ("websocket", "framed", "xhr", "xhr_streaming")

    def __init__(self) -> None:
        self._port = 0
        self._random = random.Random(0)
        super().__init__()

    def make_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.new_event_loop()

    async def start(self) -> None:
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        self._port = listening.getsockname()[1]
        config = uvicorn.Config(self.sync, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._serving = asyncio.ensure_future(self._server._serve([listening]))
        while not self._server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.001)

    async def stop(self) -> None:
        self.sync.drain()
        self._server.should_exit = True
        await self._serving

    def dial(self, transport: Transport, ears: Ears) -> Line:
        how: End = self._random.choice(("reset", "close", "half"))
        if transport in ("websocket", "framed"):
            return NetSocketLine(self._port, transport == "framed", how, ears)
        return NetHttpLine(self._port, transport, how, ears)

    async def elapse(self, seconds: float) -> None:
        self._offset += seconds
        await asyncio.sleep(0)


logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
