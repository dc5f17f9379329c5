"""An ASGI server for one client, in process: it calls `app(scope, receive, send)` and knows no sockets and no sleeps.

`connect(app)` is a raw WebSocket that speaks the messages of Backsync; `fetch(app, path)` is one HTTP request.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

DEADLINE = 5.0  # seconds; only a failing test waits so long

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
ASGIApp = Callable[[Scope, Callable[[], Awaitable[Event]], Callable[[Event], Awaitable[None]]], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]


class Closed(Exception):
    """The server has closed the socket, with `code` and `reason`; or refused it, then `accepted` is False."""

    def __init__(self, code: int, reason: str, accepted: bool) -> None:
        self.code = code
        self.reason = reason
        self.accepted = accepted
        super().__init__(f"closed with {code} {reason!r}" + ("" if accepted else " before it was accepted"))


class Socket:
    """A WebSocket of one client. Every wait ends at the deadline with a TimeoutError that tells what has come."""

    def __init__(self, app: ASGIApp, scope: Scope) -> None:
        self.accepted = False
        self.closed: Closed | None = None
        self.received: list[Any] = []  # all messages that came, also those that were passed over
        self._to_app: asyncio.Queue[Event] = asyncio.Queue()
        self._from_app: asyncio.Queue[Any] = asyncio.Queue()
        self._reads = asyncio.Event()
        self._reads.set()
        self._ids = itertools.count(1)
        self._to_app.put_nowait({"type": "websocket.connect"})
        self.task = asyncio.ensure_future(app(scope, self._to_app.get, self._send))

    async def _send(self, event: Event) -> None:
        if not self._reads.is_set():  # as servers do, it waits only when there is a reason to
            await self._reads.wait()
        match event["type"]:
            case "websocket.accept":
                assert not self.accepted, "a socket is accepted once"
                self.accepted = True
            case "websocket.send":
                assert self.accepted
                assert self.closed is None, "nothing is sent after the close"
                self._from_app.put_nowait(event["text"])
            case "websocket.close":
                assert self.closed is None, "a socket is closed once"
                self.closed = Closed(event.get("code", 1000), event.get("reason") or "", self.accepted)
                self._from_app.put_nowait(self.closed)
                self._to_app.put_nowait({"type": "websocket.disconnect", "code": self.closed.code})
            case other:
                raise AssertionError(f"an unexpected event: {other}")

    def stall(self) -> None:
        """Stop reading: the server's next `send` waits."""
        self._reads.clear()

    def read_again(self) -> None:
        self._reads.set()

    # Sending

    def send_text(self, text: str) -> None:
        self._to_app.put_nowait({"type": "websocket.receive", "text": text})

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one message."""
        self.send_text(json.dumps(message))

    def ask(self, event: str, data: Any = None, **more: Any) -> int:
        """Send a request and return its id; `more` are optional keys of the message."""
        id = next(self._ids)
        self.send({"id": id, "event": event, **({} if data is None else {"data": data}), **more})
        return id

    # Receiving

    async def text(self) -> str:
        """The next message as it came. Raises Closed."""
        try:
            async with asyncio.timeout(DEADLINE):
                item = await self._from_app.get()
        except TimeoutError:
            raise TimeoutError(f"nothing more has come; before: {self.received}") from None
        if isinstance(item, Closed):
            self._from_app.put_nowait(item)  # for whoever asks again
            raise item
        assert isinstance(item, str)
        return item

    async def receive(self) -> Any:
        """The next message. Raises Closed."""
        message = json.loads(await self.text())
        self.received.append(message)
        return message

    async def reply(self, id: int) -> Any:
        """The reply to a request; changes on the way are passed over, replies to others are a failure."""
        while (message := await self.receive()).get("id") != id:
            assert "id" not in message, f"expected the reply to {id}, got {message}"
        return message

    async def call(self, event: str, data: Any = None, **more: Any) -> Any:
        """Send a request and return its reply's data, which must not be an error."""
        reply = await self.reply(self.ask(event, data, **more))
        assert "error" not in reply, reply
        return reply["data"]

    async def error(self, event: str, data: Any = None, **more: Any) -> Any:
        """Send a request that must fail; returns the error."""
        reply = await self.reply(self.ask(event, data, **more))
        assert reply["data"] is None, reply
        return reply["error"]

    async def pushes(self) -> list[Any]:
        """The messages that came before the reply to a ping sent now. A ping never waits and is answered in order."""
        id = self.ask("$:ping")
        pushes = []
        while (message := await self.receive()).get("id") != id:
            pushes.append(message)
        return pushes

    async def close_code(self) -> int:
        """Wait for the server to close the socket; what comes before is passed over."""
        while True:
            try:
                await self.receive()
            except Closed as closed:
                return closed.code

    async def leave(self, code: int = 1001) -> None:
        """Go, as a page does, and wait for the app to be done with the request."""
        self.read_again()
        self._to_app.put_nowait({"type": "websocket.disconnect", "code": code})
        async with asyncio.timeout(DEADLINE):
            await self.task


def websocket_scope(path: str = "/websocket", headers: Headers = (), user: Any = None, **more: Any) -> Scope:
    """The scope of a WebSocket; `user` is what an authentication middleware would have put there."""
    scope: dict[str, Any] = {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws",
        "server": ("testserver", 80),
        "client": ("testclient", 1),
        "root_path": "",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"testserver"), *headers],
        "subprotocols": [],
        "extensions": {},
    }
    if user is not None:
        scope["user"] = user
    return {**scope, **more}


@asynccontextmanager
async def connect(
    app: ASGIApp, path: str = "/websocket", headers: Headers = (), user: Any = None, **more: Any
) -> AsyncIterator[Socket]:
    """A client of the app, at a raw WebSocket; it leaves at the end, and the app's request must end then."""
    socket = Socket(app, websocket_scope(path, headers, user, **more))
    try:
        yield socket
    finally:
        await socket.leave()


@dataclass(frozen=True)
class Answer:
    """A complete HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


async def fetch(
    app: ASGIApp, path: str, method: str = "GET", body: bytes = b"", headers: Headers = (), **more: Any
) -> Answer:
    """One HTTP request, to the end of its response."""
    scope = {**websocket_scope(path, headers), "type": "http", "scheme": "http", "method": method, **more}
    for key in ("subprotocols",):
        del scope[key]
    incoming: list[Event] = [{"type": "http.request", "body": body, "more_body": False}]
    outgoing: list[Event] = []
    complete = asyncio.Event()

    async def receive() -> Event:
        if incoming:
            return incoming.pop(0)
        await complete.wait()
        return {"type": "http.disconnect"}

    async def send(event: Event) -> None:
        assert not complete.is_set(), "nothing is sent after the end"
        outgoing.append(event)
        if event["type"] == "http.response.body" and not event.get("more_body", False):
            complete.set()

    async with asyncio.timeout(DEADLINE):
        await app(scope, receive, send)
    assert complete.is_set(), "the response must end"
    start, *rest = outgoing
    text_headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in start["headers"]}
    return Answer(start["status"], text_headers, b"".join(event.get("body", b"") for event in rest))
