"""For tests of applications: clients in process and a storm of faults for them; it knows the app's ASGI side only.

    from backsync_asgi.testing import chaos, connect

    async def test_everybody_sees_what_ann_writes():
        async with connect(sync, user="ann") as ann, connect(sync, user="bob") as bob:
            todos = await bob.subscribe("Todo")
            await ann.upsert("Todo", {"id": 1, "title": "Buy tea"})
            await bob.until(lambda: todos == {1: {"id": 1, "title": "Buy tea"}})

    async def test_whatever_happens_all_end_equal():
        async def write(client, random):
            await client.upsert("Todo", {"id": random.randrange(10), "title": str(random.random())})

        async with connect(sync) as ann, connect(sync, transport="xhr") as bob:
            await ann.subscribe("Todo")
            await bob.subscribe("Todo")
            await chaos([ann, bob], write)

Run them with any plugin that runs `async def` tests on asyncio (anyio's, pytest-asyncio's) or with `asyncio.run`.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import random as randomness
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from types import TracebackType
from typing import Any, Literal, Protocol
from urllib.parse import unquote

from .client import Conversation, Id, Record, Request, View
from .errors import BacksyncError, Reject

__all__ = ["chaos", "connect"]

DEADLINE = 5.0  # seconds that anything is waited for; only a failing test waits so long
LOOK_AGAIN = 0.02  # seconds between two looks at a condition, which may hang on more than the client's frames
SHOWN = 10  # messages that a failure shows

Scope = MutableMapping[str, Any]
ASGIEvent = MutableMapping[str, Any]
ASGIApp = Callable[[Scope, Callable[[], Awaitable[ASGIEvent]], Callable[[ASGIEvent], Awaitable[None]]], Awaitable[None]]
Transport = Literal["websocket", "framed", "xhr", "xhr_streaming", "eventsource"]
Way = Literal["up", "down"]  # to the server, to the client

TRANSPORTS: tuple[Transport, ...] = ("websocket", "framed", "xhr", "xhr_streaming", "eventsource")


class Closed(BacksyncError, ConnectionError):
    """The server has closed the connection, with `code` and `reason`."""

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        self.reason = reason
        super().__init__(f"the server has closed the connection with {code} {reason!r}")


def connect(
    app: ASGIApp,
    path: str = "",
    *,
    transport: Transport = "websocket",
    user: Any = None,
    token: str | None = None,
    client: str | None = None,
    hello: bool = True,
    headers: Mapping[str, str] | None = None,
    cookies: Mapping[str, str] | None = None,
    query: str = "",
    resend: bool = False,
) -> Client:
    """A client of `app`, without sockets: it calls the ASGI app as a server does, and waits for conditions, not times.

    Use it in `async with`, which leaves at the end; its connection opens with the first thing that it says.

    app: a Backsync, or the app that it is mounted in; then `path` is where, such as "/backsync".
    transport: "websocket" (raw, as programs use), or as SockJS carries it: "framed" (over a WebSocket), "xhr"
        (polling), "xhr_streaming", "eventsource".
    user: what an authentication middleware would put into the scope; `ctx.user` where there is no auth hook.
    token: what the auth hook is given. headers, cookies, query (as in a URL): of the requests, for `ctx.request`.
    client: the name by which the server knows the client again; a random one by default. hello: whether it is said at
        all; without it the server remembers no writes for it.
    resend: requests that wait when the server closes the connection stay, and `reconnect` sends them again, as after a
        `disconnect`; by default they fail.

    Raises ValueError for a transport that there is not.
    """
    if transport not in TRANSPORTS:
        raise ValueError(f"connect got transport={transport!r}, expected one of {', '.join(TRANSPORTS)}.")
    lines = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in (headers or {}).items()]
    if cookies:
        lines.append((b"cookie", "; ".join(f"{name}={value}" for name, value in cookies.items()).encode("latin-1")))
    scope: dict[str, Any] = {
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "server": ("testserver", 80),
        "client": ("testclient", 1),
        "root_path": "",
        "query_string": query.encode("latin-1"),
        "headers": [(b"host", b"testserver"), *lines],
        **({} if user is None else {"user": user}),
    }

    def dial(transport: Transport, ears: Ears) -> Line:
        if transport in ("websocket", "framed"):
            return SocketLine(app, scope, path, transport == "framed", ears)
        return HttpLine(app, scope, path, transport, ears)

    return Client(dial, Conversation(client or secrets.token_hex(8) if hello else None, token), transport, resend)


# Clients


class Client:
    """One client of an app; made by `connect`.

    connected: whether its connection is open or opening. closed: how the server has ended the last one, or None.
    transport: which the next connection uses. on_text: called with each message as it comes, before it is applied.
    """

    def __init__(self, dial: Dial, conversation: Conversation, transport: Transport, resend: bool) -> None:
        self.transport: Transport = transport
        self.closed: Closed | None = None
        self.on_text: Callable[[str], None] | None = None
        self._dial = dial
        self._talk = conversation
        self._resend = resend
        self._line: Line | None = None
        self._old_lines: list[Line] = []
        self._away = False  # cut off by the test: what is asked waits for `reconnect`
        self._twice = False
        self._replies: dict[Id, asyncio.Future[None]] = {}
        self._news = asyncio.Event()
        self._fault: BaseException | None = None
        self._last: deque[str] = deque(maxlen=SHOWN)

    async def __aenter__(self) -> Client:
        self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            await self.close()
        else:  # what has failed in the block is what to tell
            await self._leave()

    @property
    def connected(self) -> bool:
        return self._line is not None

    @property
    def views(self) -> list[View]:
        """The views of the channels that it has subscribed to."""
        return list(self._talk.views.values())

    @property
    def waiting(self) -> int:
        """How many requests have no reply yet."""
        return len(self._talk.waiting)

    # Asking

    async def call(self, event: str, data: Any = None, *, within: float = DEADLINE, **more: Any) -> Any:
        """Send a request, "Model:method", and return the data of its reply. `more` are further keys of the message.

        within: seconds. While the client is cut off, the request waits for `reconnect`.

        Raises Reject with the code, message and details of a refusal; Closed if the server closes the connection;
        TimeoutError; ValueError for a subscription, which is for `subscribe`.
        """
        if event.endswith((":subscribe", ":unsubscribe")):
            raise ValueError(f"call got {event!r}: say client.subscribe(model, query), which returns a view.")
        return (await self._answer(self._talk.request(event, data, **more), within)).data

    async def upsert(self, model: str, record: Any) -> Any:
        """Write a record, or a list of them; returns what was stored."""
        return await self.call(f"{model}:upsert", record)

    async def patch(self, model: str, record: Any, unset: Sequence[str] = ()) -> Any:
        """Change the given fields of the record with that id and remove those in `unset`; returns the whole record."""
        more: dict[str, Any] = {"unset": list(unset)} if unset else {}
        return await self.call(f"{model}:patch", record, **more)

    async def delete(self, model: str, id: Id) -> None:
        """Delete a record."""
        await self.call(f"{model}:delete", {"id": id})

    async def read(self, model: str, query: Mapping[str, Any] | None = None) -> Any:
        """The records that a query asks for."""
        return await self.call(f"{model}:read", query)

    async def subscribe(
        self,
        model: str,
        query: Mapping[str, Any] | None = None,
        *,
        snapshot: bool = True,
    ) -> View:
        """Subscribe to a channel and return the live view of it.

        query: the key of a keyed model, such as `{"room": "lobby"}`, else what the read handler is asked.
        snapshot: False to hear of new changes only.
        There is one view for each channel: subscribing again answers again and returns the same.

        Raises Reject, Closed, TimeoutError as `call`.
        """
        view = View(model, query or {})
        request = self._talk.request(
            f"{model}:subscribe", view.query, view, **({} if snapshot else {"snapshot": False})
        )
        await self._answer(request, DEADLINE)
        assert request.view is not None
        return request.view

    async def unsubscribe(self, view: View) -> None:
        """End the subscription; the view stays as it is then."""
        if not isinstance(view, View):
            raise TypeError(f"unsubscribe got {view!r}, expected the view that subscribe has returned.")
        await self._answer(self._talk.request(f"{view.model}:unsubscribe", view.query, view), DEADLINE)

    async def auth(self, token: str | None) -> None:
        """Tell the server another token, now and with each connection from now on. Cut off, only the latter: then the
        views begin with a snapshot, for what is in them was another user's."""
        if self._away:
            for view in self.views:
                view.forget_position()
        else:
            await self.call("$:auth", {"token": token})
        self._talk.token = token

    async def until(self, condition: Callable[[], object], *, within: float = DEADLINE) -> None:
        """Wait until the condition holds: it is looked at after each frame that comes, and now and then.

        Raises TimeoutError that tells what there was instead; TypeError for a condition that would have to be awaited.
        """
        try:
            async with asyncio.timeout(within):
                while True:
                    self._news.clear()
                    self._check()
                    holds = condition()
                    if inspect.isawaitable(holds):
                        if inspect.iscoroutine(holds):
                            holds.close()
                        raise TypeError(
                            f"{where(condition)} returned {holds!r}, which is true whatever it would give. Look at a "
                            "view: await client.until(lambda: 1 in view); or await the answer and compare that."
                        )
                    if holds:
                        return
                    try:
                        async with asyncio.timeout(LOOK_AGAIN):
                            await self._news.wait()
                    except TimeoutError:
                        continue
        except TimeoutError:
            raise TimeoutError(f"{where(condition)} did not come true in {within:g} s. {self._story()}") from None

    # Faults

    def disconnect(self) -> None:
        """Lose the connection, as where a cable is pulled: what was on its way is lost, and the server is not told
        goodbye. What is asked from now on waits for `reconnect`."""
        self._away = True
        if self._line is not None:
            self._line.drop()
            self._gone()

    async def reconnect(self, transport: Transport | None = None) -> None:
        """Come back, by another transport if one is given: the views resume, and what has no reply is sent again.

        Returns when all views are answered. Raises Closed, TimeoutError.
        """
        self.transport = transport or self.transport
        if self._line is not None:
            self.disconnect()
        self._away = False
        self._open()
        resumed = {request.id: request for request in self._talk.waiting.values() if request.own}
        futures = [self._future(id) for id in resumed]
        try:
            async with asyncio.timeout(DEADLINE):
                for future in futures:
                    await future
        except TimeoutError:
            late = ", ".join(request.event for request in resumed.values() if not request.answered)
            raise TimeoutError(f"{late} got no answer in {DEADLINE:g} s. {self._story()}") from None
        finally:
            for id in resumed:
                self._replies.pop(id, None)
        self._check()

    def cut_after(self, *, down: int | None = None, up: int | None = None) -> None:
        """Let so many more bytes through, down to the client or up to the server, then cut the connection. 0 bytes
        down: the next request is carried out, and its reply lost."""
        if self._line is not None:
            left = self._line.cable.left
            if down is not None:
                left["down"] = down
            if up is not None:
                left["up"] = up

    def stall(self, way: Way = "down") -> None:
        """Let nothing through for now: the client does not read ("down"), or what it sends is delayed ("up")."""
        if self._line is not None:
            self._line.cable.stall(way)

    def flow(self) -> None:
        """Let all through again."""
        if self._line is not None:
            self._line.cable.flow()

    def send_twice(self) -> None:
        """The next request is sent twice, as a proxy does that tries again."""
        self._twice = True

    async def close(self) -> None:
        """Leave, and wait for the app to be done with the connections.

        Raises what has gone wrong in the meantime: PromiseBroken, or what the app has raised.
        """
        await self._leave()
        self._check(leaving=True)

    # Inside

    def _open(self) -> None:
        """Open a connection unless there is one."""
        if self._line is not None or self._away:
            return
        self.closed = None
        self._line = self._dial(self.transport, self)
        for request in self._talk.begin():
            self._send(request)

    def _send(self, request: Request) -> None:
        assert self._line is not None
        for _ in range(2 if self._twice and not request.own else 1):
            self._talk.sent(request)
            self._line.send(request.text)
        if not request.own:
            self._twice = False

    def _future(self, id: Id) -> asyncio.Future[None]:
        if id not in self._replies:
            self._replies[id] = asyncio.get_running_loop().create_future()
        return self._replies[id]

    async def _answer(self, request: Request, within: float) -> Request:
        future = self._future(request.id)
        if self._line is not None:
            self._send(request)
        elif self.closed is not None and not self._resend:
            self._forget(request)
            raise self.closed
        else:
            self._open()
        try:
            async with asyncio.timeout(within):
                await future
        except TimeoutError:
            self._forget(request)
            raise TimeoutError(f"{request.event} got no reply in {within:g} s. {self._story()}") from None
        finally:
            self._replies.pop(request.id, None)
        self._check()
        if request.error is not None:
            raise request.error
        return request

    def _forget(self, request: Request) -> None:
        self._talk.waiting.pop(request.id, None)
        self._replies.pop(request.id, None)

    def _check(self, leaving: bool = False) -> None:
        """Raise what went wrong outside of any call."""
        if self._fault is not None:
            fault, self._fault = self._fault, None
            raise fault
        if self.closed is not None and not self._resend and not leaving:
            raise self.closed

    async def _leave(self) -> None:
        self.disconnect()
        for request in list(self._talk.waiting.values()):
            self._forget(request)
        lines, self._old_lines = self._old_lines, []
        for line in lines:
            try:
                async with asyncio.timeout(DEADLINE):
                    await line.ended()
            except TimeoutError:
                self._note(TimeoutError(f"The app was not done with a request {DEADLINE:g} s after its client left."))

    def _gone(self) -> None:
        if self._line is not None:
            self._old_lines.append(self._line)
            self._line = None
        self._news.set()

    def _note(self, fault: BaseException) -> None:
        self._fault = self._fault or fault
        for future in self._replies.values():
            if not future.done():
                future.set_result(None)  # who waits looks at the fault first
        self._news.set()

    def _fail(self, id: Id, error: Exception) -> None:
        future = self._replies.get(id)
        if future is not None and not future.done():
            future.set_exception(error)
            future.exception()  # nobody need wait for it

    def _twin(self) -> Client:
        """A new client that says the same of who it is."""
        name = None if self._talk.name is None else secrets.token_hex(8)
        return Client(self._dial, Conversation(name, self._talk.token), "websocket", False)

    def _story(self) -> str:
        """What there is, for a failure's message."""
        views = "; ".join(map(repr, self.views)) or "none"
        state = "connected" if self.connected else (str(self.closed) if self.closed else "not connected")
        waiting = ", ".join(f"{request.event} ({request.id})" for request in self._talk.waiting.values())
        last = "\n  ".join(self._last) or "nothing"
        return (
            f"The client is {state}. Views: {views}."
            + (f" Without a reply: {waiting}." if waiting else "")
            + f"\nLast messages:\n  {last}"
        )

    # As its line sees it

    def heard(self, line: Line, texts: Sequence[str]) -> None:
        """A frame has come."""
        if line is not self._line:
            return
        for text in texts:
            self._last.append(text)
            try:
                if self.on_text is not None:
                    self.on_text(text)
                request, _ = self._talk.receive(text)
            except Exception as error:  # noqa: BLE001 - the test is told; the server, in whose call this is, is not
                self._note(error)
                continue
            if request is not None and (future := self._replies.get(request.id)) is not None and not future.done():
                future.set_result(None)
        self._news.set()

    def ended(self, line: Line, code: int | None, reason: str, error: BaseException | None = None) -> None:
        """The connection is over. code: the server's close code; None where it was cut. error: what the app raised."""
        if line is not self._line:
            return
        self._gone()
        if error is not None:
            self._note(error)
        self.closed = None if code is None else Closed(code, reason)
        self._away = self.closed is None or self._resend
        for request in list(self._talk.waiting.values()):
            if request.own or not self._away:  # others wait for `reconnect`
                del self._talk.waiting[request.id]
                self._fail(request.id, self.closed or ConnectionResetError("The connection was cut."))


def nothing_at(path: str) -> str:
    """Why a connection that was never opened has ended, most likely."""
    return f'nothing answered at {path or "/"}; where is it mounted? connect(app, path="/backsync")'


def where(condition: Callable[[], object]) -> str:
    """A condition as a message names it."""
    code = getattr(condition, "__code__", None)
    return repr(condition) if code is None else f"The condition at {code.co_filename}:{code.co_firstlineno}"


# Lines: one connection each


class Ears(Protocol):
    """Who hears what comes over a line."""

    def heard(self, line: Line, texts: Sequence[str]) -> None: ...

    def ended(self, line: Line, code: int | None, reason: str, error: BaseException | None = None) -> None: ...


class Line(Protocol):
    """One connection to the server."""

    cable: Cable

    def send(self, text: str) -> None:
        """Send a message; it waits where the connection is not open yet."""

    def drop(self) -> None:
        """The cable is cut."""

    async def ended(self) -> None:
        """Wait until the server is done with it."""


Dial = Callable[[Transport, Ears], Line]


class Cable:
    """What lies between the client and the app: it lets bytes through, holds them back, or breaks.

    left: bytes that still get through, each way; then it breaks. on_change: called when it flows again or breaks.
    """

    def __init__(self) -> None:
        self.broken = False
        self.left: dict[Way, int] = {}
        self.on_change: list[Callable[[], None]] = []
        self._stalled: set[Way] = set()

    def stall(self, way: Way) -> None:
        self._stalled.add(way)

    def flow(self) -> None:
        self._stalled.clear()
        self._changed()

    def flows(self, way: Way) -> bool:
        """Whether anything gets through now. A broken one holds nothing back: all is lost at once."""
        return self.broken or way not in self._stalled

    def carry(self, way: Way, size: int) -> int:
        """How many of so many bytes get through. Fewer than all: it has broken."""
        if self.broken:
            return 0
        left = self.left.get(way)
        if left is None:
            return size
        if left >= size:
            self.left[way] = left - size
            return size
        self.cut()
        return left

    def cut(self) -> None:
        self.broken = True
        self._changed()

    def _changed(self) -> None:
        for changed in list(self.on_change):
            changed()


class SocketLine:
    """A WebSocket: raw, or with the frames of SockJS."""

    def __init__(self, app: ASGIApp, scope: Scope, path: str, framed: bool, ears: Ears) -> None:
        self.cable = Cable()
        self._ears = ears
        self._framed = framed
        self._news = asyncio.Event()
        self._flowing = asyncio.Event()
        self._begun = False
        self._open = False
        self._over = False
        self._code = 1006
        self._accepted = False
        self._path = path
        self._outgoing: deque[str] = deque()
        self.cable.on_change.append(self._changed)
        path += f"/000/{secrets.token_hex(8)}/websocket" if framed else "/websocket"
        own = {"type": "websocket", "scheme": "ws", "path": path, "raw_path": path.encode(), "subprotocols": []}
        self._task = asyncio.ensure_future(self._run(app, {**scope, **own, "extensions": {}}))

    def send(self, text: str) -> None:
        self._outgoing.append(json.dumps([text]) if self._framed else text)
        self._news.set()

    def drop(self) -> None:
        self.cable.cut()

    async def ended(self) -> None:
        await asyncio.wait([self._task])

    async def _run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self._receive, self._send)
        except Exception as error:  # noqa: BLE001 - the test is told
            self._end(1011, "The app has failed.", error)
        else:
            self._end(1006, "The app has returned without a close." if self._accepted else nothing_at(self._path))

    async def _receive(self) -> ASGIEvent:
        if not self._begun:
            self._begun = True
            return {"type": "websocket.connect"}
        while True:
            self._news.clear()
            if self._over:
                return {"type": "websocket.disconnect", "code": self._code}
            if self._open and self._outgoing and self.cable.flows("up"):
                text = self._outgoing.popleft()
                size = len(text.encode())
                if self.cable.carry("up", size) == size:
                    return {"type": "websocket.receive", "text": text}
            else:
                await self._news.wait()

    async def _send(self, event: ASGIEvent) -> None:
        while not self.cable.flows("down"):
            self._flowing.clear()
            await self._flowing.wait()
        if self._over:
            raise OSError("The client has gone.")
        match event["type"]:
            case "websocket.accept":
                self._accepted = True
                if not self._framed:
                    self._opened()
            case "websocket.send":
                text: str = event["text"]
                size = len(text.encode())
                if self.cable.carry("down", size) == size:
                    self._heard(text)
            case "websocket.close":
                self._code = event.get("code", 1000)
                self._end(self._code, event.get("reason") or ("" if self._accepted else nothing_at(self._path)))
            case other:
                raise ValueError(f"The app sent {other!r}, which is no event of a WebSocket.")

    def _heard(self, text: str) -> None:
        if not self._framed:
            self._ears.heard(self, [text])
            return
        match text[:1]:
            case "o":
                self._opened()
            case "a":
                self._ears.heard(self, json.loads(text[1:]))
            case "c":
                self._code, reason = json.loads(text[1:])
                self._end(self._code, reason)

    def _opened(self) -> None:
        self._open = True
        self._news.set()

    def _changed(self) -> None:
        self._flowing.set()
        self._news.set()
        if self.cable.broken:
            self._end(None, "")

    def _end(self, code: int | None, reason: str, error: BaseException | None = None) -> None:
        if not self._over:
            self._over = True
            self._flowing.set()
            self._news.set()
            self._ears.ended(self, code, reason, error)


class HttpLine:
    """A session over HTTP: one request after the other to receive, another to send, as SockJS clients make them."""

    def __init__(self, app: ASGIApp, scope: Scope, path: str, transport: Transport, ears: Ears) -> None:
        self.cable = Cable()
        self._app = app
        self._scope = scope
        self._path = path
        self._base = f"{path}/000/{secrets.token_hex(8)}/"
        self._transport: Transport = transport
        self._ears = ears
        self._news = asyncio.Event()
        self._open = False
        self._over = False
        self._outgoing: list[str] = []
        self.cable.on_change.append(self._changed)
        self._tasks = [asyncio.ensure_future(self._guard(self._poll)), asyncio.ensure_future(self._guard(self._upload))]

    def send(self, text: str) -> None:
        self._outgoing.append(text)
        self._news.set()

    def drop(self) -> None:
        self.cable.cut()

    async def ended(self) -> None:
        await asyncio.wait(self._tasks)

    async def _guard(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - the test is told
            self._end(1011, "The app has failed.", error)

    async def _poll(self) -> None:
        method = "GET" if self._transport == "eventsource" else "POST"
        while not self._over:
            exchange = Exchange(self.cable, b"", self._heard)
            await exchange.run(self._app, self._scope, method, self._base + self._transport)
            if exchange.status != 200 and not self.cable.broken:
                told = f"{self._transport} was answered with {exchange.status}: {exchange.rest!r}"
                self._end(1006, f"{told}, {nothing_at(self._path)}" if exchange.status == 404 else told)

    async def _upload(self) -> None:
        while not self._over:
            self._news.clear()
            if not (self._open and self._outgoing and self.cable.flows("up")):
                await self._news.wait()
                continue
            texts, self._outgoing = self._outgoing, []
            exchange = Exchange(self.cable, json.dumps(texts).encode(), None)
            await exchange.run(self._app, self._scope, "POST", self._base + "xhr_send")
            if exchange.status != 204 and not self._over:
                self._end(1006, f"xhr_send was answered with {exchange.status}: {exchange.rest!r}")

    def _heard(self, line: bytes) -> None:
        text = line.decode()
        if self._transport == "eventsource":
            text = unquote(text.removeprefix("data: "))
        match text[:1]:
            case "o":
                self._open = True
                self._news.set()
            case "a":
                self._ears.heard(self, json.loads(text[1:]))
            case "c":
                self._end(*json.loads(text[1:]))

    def _changed(self) -> None:
        self._news.set()
        if self.cable.broken:
            self._end(None, "")

    def _end(self, code: int | None, reason: str, error: BaseException | None = None) -> None:
        if not self._over:
            self._over = True
            self._news.set()
            self._ears.ended(self, code, reason, error)


class Exchange:
    """One HTTP request and its response, over a cable that may break in either.

    on_line: called with each line of the body as it comes. rest: the body, or what has come after its last line.
    """

    def __init__(self, cable: Cable, body: bytes, on_line: Callable[[bytes], None] | None) -> None:
        self.status = 0
        self.rest = b""
        self._cable = cable
        self._body: bytes | None = body
        self._on_line = on_line
        self._complete = False
        self._changed = asyncio.Event()

    async def run(self, app: ASGIApp, scope: Scope, method: str, path: str) -> None:
        own = {"type": "http", "scheme": "http", "method": method, "path": path, "raw_path": path.encode()}
        self._cable.on_change.append(self._changed.set)
        try:
            await app({**scope, **own}, self._receive, self._send)
        finally:
            self._cable.on_change.remove(self._changed.set)

    async def _receive(self) -> ASGIEvent:
        if self._body is not None:
            body, self._body = self._body, None
            carried = self._cable.carry("up", len(body))
            if carried or not body:
                return {"type": "http.request", "body": body[:carried], "more_body": carried < len(body)}
        while not self._complete and not self._cable.broken:
            self._changed.clear()
            await self._changed.wait()
        return {"type": "http.disconnect"}

    async def _send(self, event: ASGIEvent) -> None:
        while not self._cable.flows("down"):
            self._changed.clear()
            await self._changed.wait()
        if self._cable.broken:
            return  # as servers do: the response goes nowhere, and nobody is told
        if event["type"] == "http.response.start":
            self.status = event["status"]
            return
        body: bytes = event.get("body", b"")
        self.rest += body[: self._cable.carry("down", len(body))]
        if self._on_line is not None:
            *lines, self.rest = self.rest.split(b"\n")
            for line in lines:
                self._on_line(line.removesuffix(b"\r"))
        if not event.get("more_body", False):
            self._complete = True
            self._changed.set()


# The storm


Act = Callable[[Client, randomness.Random], Awaitable[object]]


async def chaos(
    clients: Iterable[Client],
    act: Act | None = None,
    *,
    steps: int = 200,
    seed: int | None = None,
    transports: Sequence[Transport] = TRANSPORTS,
    visible: Callable[[Client, View], Mapping[Id, Record]] | None = None,
) -> None:
    """Let clients act while their connections are cut at any byte, stall, are delayed and change their transport, and
    requests are sent twice and replies lost. Then heal everything and check that each view is equal to the server's.

    clients: connected ones; their views are what is checked, so subscribe first.
    act: `(client, random)`, async: does something, with random choices from `random`. It may be refused (Reject).
        What it asks while its client is cut off waits until it is back, and is applied once.
    steps: faults and acts. seed: of all choices; by default a random one. A failure tells it.
    transports: those that clients may change to. visible: what a view should hold in the end; by default what a new
        client is given that says the same as the old one of who it is.

    Raises ValueError if no client has a view; AssertionError with the seed and all that was done, if a view differs, a
    promise of the protocol is broken or something is never answered.
    """
    clients = list(clients)
    if not any(client.views for client in clients):
        raise ValueError(f"chaos got {len(clients)} clients and no view to check: await client.subscribe(model) first.")
    seed = secrets.randbits(32) if seed is None else seed
    storm = Storm(clients, act, randomness.Random(seed), transports)
    try:
        await storm.blow(steps)
        await storm.heal()
        await storm.compare(visible)
    except Exception as error:
        script = "\n  ".join(storm.script)
        raise AssertionError(f"{error}\nchaos(…, steps={steps}, seed={seed}) did:\n  {script}") from error
    finally:
        await storm.end()


class Storm:
    """One run of `chaos`. script: what was done, a line each."""

    def __init__(
        self, clients: list[Client], act: Act | None, random: randomness.Random, transports: Sequence[Transport]
    ) -> None:
        self.script: list[str] = []
        self._clients = clients
        self._act = act
        self._random = random
        self._transports = transports
        self._acts: set[asyncio.Task[object]] = set()
        self._twins: list[Client] = []

    async def blow(self, steps: int) -> None:
        for client in self._clients:
            client._resend = True
        deeds = [self._cut, self._cut_later, self._lose_reply, self._stall, self._flow, self._twice, self._come_back]
        weights = [1, 2, 1, 2, 3, 2, 4]
        if self._act is not None:
            deeds.append(self._do)
            weights.append(sum(weights))
        for _ in range(steps):
            number = self._random.randrange(len(self._clients))
            deed = self._random.choices(deeds, weights)[0]
            done = await deed(self._clients[number])
            if done is not None:
                self.script.append(f"client {number}: {done}")
            for _ in range(self._random.choice((0, 0, 1, 2, 5, 20))):
                await asyncio.sleep(0)
            self._look()

    def _look(self) -> None:
        for client in self._clients:
            client._check()

    async def _do(self, client: Client) -> str | None:
        if len(self._acts) > 100:
            return None
        assert self._act is not None
        self._acts.add(asyncio.ensure_future(self._act(client, randomness.Random(self._random.random()))))
        return "act"

    async def _cut(self, client: Client) -> str | None:
        if not client.connected:
            return None
        client.disconnect()
        return "cut"

    async def _cut_later(self, client: Client) -> str | None:
        size = int(2 ** self._random.uniform(0, 11))
        way = self._random.choice(("up", "down"))
        client.cut_after(**{way: size})
        return f"cut after {size} bytes {way}" if client.connected else None

    async def _lose_reply(self, client: Client) -> str | None:
        client.cut_after(down=0)
        return "lose what comes next" if client.connected else None

    async def _stall(self, client: Client) -> str | None:
        way: Way = self._random.choice(("up", "down"))
        client.stall(way)
        return f"stall {way}" if client.connected else None

    async def _flow(self, client: Client) -> str | None:
        client.flow()
        return "flow"

    async def _twice(self, client: Client) -> str | None:
        client.send_twice()
        return "send twice"

    async def _come_back(self, client: Client) -> str | None:
        if client.connected:
            return None
        client.transport = self._random.choice(list(self._transports))
        client._away = False
        client._open()
        return f"come back by {client.transport}"

    async def heal(self) -> None:
        """All faults are over, and all that was asked is answered."""
        self.script.append("heal")
        for client in self._clients:
            client._twice = False
            await client.reconnect()
        if self._acts:
            done, late = await asyncio.wait(self._acts, timeout=2 * DEADLINE)
            if late:
                raise AssertionError(f"{len(late)} acts were never done. {self._clients[0]._story()}")
            for task in done:
                if (error := task.exception()) is not None and not isinstance(error, Reject):
                    raise error
        self._look()

    async def compare(self, visible: Callable[[Client, View], Mapping[Id, Record]] | None) -> None:
        for number, client in enumerate(self._clients):
            twin = client._twin()
            self._twins.append(twin)
            for view in client.views:
                other = await twin.subscribe(view.model, view.query)
                try:
                    await client.until(lambda view=view, other=other: view == other)  # type: ignore[misc]
                except TimeoutError as error:
                    raise AssertionError(
                        f"client {number} differs from what it may see: {difference(view, other)}\n{error}"
                    ) from error
                expected = view if visible is None else visible(client, view)
                if view != expected:
                    raise AssertionError(f"client {number} sees what it should not: {difference(view, expected)}")
        self._look()

    async def end(self) -> None:
        for task in self._acts:
            task.cancel()
        if self._acts:
            await asyncio.wait(self._acts)
        for twin in self._twins:
            await twin._leave()


def difference(got: Mapping[Id, Record], expected: Mapping[Id, Record]) -> str:
    """What tells two sets of records apart."""
    lines = []
    for id in dict.fromkeys(itertools.chain(got, expected)):
        if got.get(id) != expected.get(id):
            lines.append(f"{id!r} is {got.get(id)}, expected {expected.get(id)}")
    return "; ".join(lines)
