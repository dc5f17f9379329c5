"""`SockJS`: any ASGI WebSocket application, reachable over every SockJS transport; it knows nothing of models."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast
from urllib.parse import quote

from starlette.websockets import WebSocketDisconnect

from .frames import BinaryMessage, Frame, Message, batch
from .receivers import Event, Receive, Scope, Send, SocketReceiver
from .server import Server, Settings, route_path
from .session import Session

logger = logging.getLogger("backsync.sockjs")

ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

QUEUE_LIMIT = (
    1_048_576  # bytes that may wait for the client before `send` waits, and for the application before reading does
)


class SockJS:
    """An ASGI app that lets browsers reach `app`, an ASGI WebSocket application, over all SockJS transports.

    The inner app sees an ordinary `websocket` scope and `receive`/`send`, whatever the browser really used.
    `settings` are those of `Settings`, by name; an unknown one is a TypeError.
    """

    def __init__(self, app: ASGIApp, **settings: Any) -> None:
        self._app = app
        self._tasks: set[asyncio.Task[None]] = set()
        self.server = Server(self._connect, Settings(**settings))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)  # run alone: the server's lifespan is the inner app's
        else:
            await self.server(scope, receive, send)

    def _connect(self, session: Session, scope: Scope) -> ApplicationEndpoint:
        endpoint = ApplicationEndpoint(session)
        run = endpoint.run(self._app, websocket_scope(scope), self._tasks)
        task = asyncio.get_running_loop().create_task(run)
        if not task.done():  # which an eager task may be
            self._tasks.add(task)
        return endpoint


class ApplicationEndpoint:
    """The end of a session at which an ASGI application runs."""

    __slots__ = (
        "_arrived",
        "_ended",
        "_inbox",
        "_inbox_size",
        "_outbox",
        "_outbox_size",
        "_room_in",
        "_room_out",
        "_session",
        "_taken",
    )

    def __init__(self, session: Session) -> None:
        self._session = session
        self._inbox: list[Event] = [{"type": "websocket.connect"}]
        self._taken: list[Event] = []  # what the application reads from, newest first
        self._inbox_size = 0
        self._outbox: list[Message] = []
        self._outbox_size = 0
        self._ended = False
        # Made only while somebody waits: most sessions are idle, and there may be many.
        self._arrived: asyncio.Future[None] | None = None  # a Future, for it takes a third of an Event's memory
        self._room_in: asyncio.Event | None = None
        self._room_out: asyncio.Event | None = None

    async def run(self, app: ASGIApp, scope: Scope, tasks: set[asyncio.Task[None]]) -> None:
        """Run the application for this session, to its end. `tasks` holds this one's, and is to let go of it then."""
        task = asyncio.current_task()
        try:
            await app(scope, self._receive, self._send)
        except BaseException as error:  # also SystemExit: an application ends its own session only
            is_ending = isinstance(error, asyncio.CancelledError) and bool(task is not None and task.cancelling())
            # After the end, a failing send or receive is no news.
            if not is_ending and not (self._ended and isinstance(error, OSError | WebSocketDisconnect)):
                logger.exception("The application behind SockJS failed.")
            self._session.close(1011, "Internal error")
            if is_ending:
                raise
        else:
            self._session.close(1000)
        finally:
            tasks.discard(cast("asyncio.Task[None]", task))

    # As the session sees it

    def received(self, message: str | bytes) -> None:
        key = "text" if isinstance(message, str) else "bytes"
        self._put({"type": "websocket.receive", key: message}, len(message))

    @property
    def behind(self) -> bool:
        return self._inbox_size > QUEUE_LIMIT

    async def caught_up(self) -> None:
        if self._room_in is None:
            self._room_in = asyncio.Event()
        await self._room_in.wait()

    def pull(self) -> Frame | None:
        if not self._outbox:
            return None
        frame = batch(self._outbox)
        self._outbox = []
        self._outbox_size = 0
        wake(self._room_out)
        self._room_out = None
        return frame

    def closed(self, code: int, reason: str) -> None:
        self._ended = True
        self._put({"type": "websocket.disconnect", "code": code, "reason": reason}, 0)
        wake(self._room_in)
        self._room_in = None
        wake(self._room_out)
        self._room_out = None

    @property
    def urgent(self) -> bool:
        return False  # the application waits in `send`: it decides how long

    def tick(self, now: float) -> bool:
        return False  # each frame is pulled

    def _put(self, event: Event, size: int) -> None:
        self._inbox.append(event)
        self._inbox_size += size
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    # As the application sees it

    async def _receive(self) -> Event:
        while not self._taken:
            if self._inbox:
                self._taken, self._inbox = self._inbox[::-1], []
            elif self._ended:
                raise RuntimeError("receive was called after websocket.disconnect: nothing comes any more.")
            else:
                self._arrived = asyncio.get_running_loop().create_future()
                await self._arrived
        event = self._taken.pop()
        self._inbox_size -= len(event.get("text") or event.get("bytes") or "")
        if self._inbox_size <= QUEUE_LIMIT:
            wake(self._room_in)
            self._room_in = None
        return event

    async def _send(self, event: Event) -> None:
        match event["type"]:
            case "websocket.accept":
                receiver = self._session.receiver
                if isinstance(receiver, SocketReceiver):
                    receiver.subprotocol = event.get("subprotocol")
                    receiver.accept_headers += list(event.get("headers", []))
                self._session.accept()
            case "websocket.send":
                await self._send_message(event)
            case "websocket.close":
                self._session.close(event.get("code", 1000), event.get("reason") or "")
            case other:
                raise ValueError(
                    f"send got {other!r}, expected 'websocket.accept', 'websocket.send' or 'websocket.close'."
                )

    async def _send_message(self, event: Event) -> None:
        if not self._session.accepted:
            raise RuntimeError("send got a message before websocket.accept.")
        while self._room_out is not None:
            await self._room_out.wait()
        if self._ended:
            raise OSError("The client has gone.")
        text = event.get("text")
        if text is not None:
            message = Message(text)
        elif isinstance(receiver := self._session.receiver, SocketReceiver) and receiver.raw:
            message = BinaryMessage(event["bytes"])
        else:
            raise ValueError("send got bytes; SockJS carries text only. Encode them, as base64 for example.")
        self._outbox.append(message)
        self._outbox_size += len(event["bytes"] if text is None else text)
        if self._outbox_size > QUEUE_LIMIT:
            self._room_out = asyncio.Event()
        self._session.wake()


def wake(event: asyncio.Event | None) -> None:
    """Let those go on who wait for the event."""
    if event is not None:
        event.set()


def websocket_scope(scope: Scope) -> Scope:
    """The scope that the inner application sees: a WebSocket to the mount's own path."""
    secure = scope.get("scheme") in ("https", "wss")
    path: str = scope["path"]
    below = route_path(scope)
    inner = {
        **scope,
        "type": "websocket",
        "scheme": "wss" if secure else "ws",
        "path": path.removesuffix(below) + "/",
        "subprotocols": scope.get("subprotocols") or [],
        "extensions": {},
    }
    inner.pop("method", None)
    inner["raw_path"] = quote(inner["path"]).encode()
    return inner
