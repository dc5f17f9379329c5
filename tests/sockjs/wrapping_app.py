"""Applications of every kind behind SockJS, and SockJS inside applications of every kind, for test_wrapping.py."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, WebSocket
from starlette.applications import Starlette
from starlette.datastructures import Headers, QueryParams
from starlette.endpoints import WebSocketEndpoint
from starlette.routing import Mount, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket as StarletteWebSocket
from starlette.websockets import WebSocketDisconnect

from backsync_asgi.sockjs import SockJS

OLD_BROWSERS: dict[str, Any] = {"jsonp": True, "htmlfile": True}


# ── What is wrapped ──────────────────────────────────────────────────────────────────────────────────────────────────


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    """An echo by the letter of ASGI."""
    assert scope["type"] == "websocket"
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": event["text"]})


class Endpoint(WebSocketEndpoint):
    """An echo as a class of Starlette's."""

    encoding = "text"

    async def on_receive(self, websocket: StarletteWebSocket, data: str) -> None:
        await websocket.send_text(data)


async def starlette_echo(websocket: StarletteWebSocket) -> None:
    """An echo as a function of Starlette's, which lets the disconnect fall through."""
    await websocket.accept()
    while True:
        await websocket.send_text(await websocket.receive_text())


started: list[str] = []


@asynccontextmanager
async def note_start(app: Starlette) -> AsyncIterator[None]:
    started.append("up")
    yield
    print("the inner application has shut down", flush=True)


starlette_app = Starlette(routes=[WebSocketRoute("/", starlette_echo)], lifespan=note_start)

fastapi_app = FastAPI()


def greeting(name: Annotated[str, Query()] = "nobody") -> str:
    """A dependency that wants something of the query."""
    return f"hello {name}"


@fastapi_app.websocket("/")
async def fastapi_echo(websocket: WebSocket, hello: Annotated[str, Depends(greeting)]) -> None:
    await websocket.accept()
    await websocket.send_text(hello)
    try:
        async for text in websocket.iter_text():
            await websocket.send_text(text)
    except WebSocketDisconnect:
        pass


ECHOES: dict[str, ASGIApp] = {"bare": bare, "endpoint": Endpoint, "starlette": starlette_app, "fastapi": fastapi_app}


async def mirror(scope: Scope, receive: Receive, send: Send) -> None:
    """Tells what it sees of the request."""
    await receive()
    await send({"type": "websocket.accept"})
    seen = {
        "type": scope["type"],
        "scheme": scope["scheme"],
        "path": scope["path"],
        "raw_path": scope["raw_path"].decode(),
        "root_path": scope["root_path"],
        "query": dict(QueryParams(scope["query_string"])),
        "cookie": Headers(scope=scope).get("cookie"),
        "x-test": Headers(scope=scope).get("x-test"),
        "subprotocols": list(scope["subprotocols"]),
        "client": scope["client"][0],
        "method": "method" in scope,
        "started": started,
    }
    await send({"type": "websocket.send", "text": json.dumps(seen)})
    await receive()


async def choosy(scope: Scope, receive: Receive, send: Send) -> None:
    """Takes the last subprotocol that it is offered, and sets a header."""
    await receive()
    offered = scope["subprotocols"]
    await send(
        {"type": "websocket.accept", "subprotocol": offered[-1] if offered else None, "headers": [(b"x-seen", b"yes")]}
    )
    await receive()


# ── Applications that do not behave ──────────────────────────────────────────────────────────────────────────────────


async def rejecting(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.close", "code": 4403, "reason": "Not you"})


async def raising_before(scope: Scope, receive: Receive, send: Send) -> None:
    raise LookupError("before accept")


async def raising_after(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": "last words"})
    raise LookupError("after accept")


async def leaving_before(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()


async def leaving_after(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": "last words"})


notes: list[str] = []


async def talking_on(scope: Scope, receive: Receive, send: Send) -> None:
    """Goes on after its own close, and notes what that led to."""
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close", "code": 3000, "reason": "Go away!"})
    notes.append((await receive())["type"])
    for call in (lambda: send({"type": "websocket.send", "text": "too late"}), receive):
        try:
            await asyncio.wait_for(call(), 1.0)
        except Exception as error:  # noqa: BLE001 - which one it is, is the question
            notes.append(type(error).__name__)


async def talking_too_early(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "websocket.send", "text": "hello?"})


async def noted(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers every message with the notes so far."""
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": json.dumps(notes)})


MISBEHAVING = {
    function.__name__: function
    for function in (rejecting, raising_before, raising_after, leaving_before, leaving_after, talking_too_early)
}


# ── Backpressure ─────────────────────────────────────────────────────────────────────────────────────────────────────

sent: dict[str, int] = {}  # messages, by the X-Name of the request that opened the session
may_read = asyncio.Event()
read: dict[str, int] = {}
FLOOD = 50_000  # characters of one message


async def flood(scope: Scope, receive: Receive, send: Send) -> None:
    """Sends numbered messages for as long as `send` lets it."""
    await receive()
    await send({"type": "websocket.accept"})
    name = Headers(scope=scope)["x-test"]
    sent[name] = 0
    try:
        while True:
            await send({"type": "websocket.send", "text": f"{sent[name]}:".ljust(FLOOD, "x")})
            sent[name] += 1
    except OSError:
        sent[name] = -1


async def not_listening(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads nothing until it is told to; then everything, and says which numbers came."""
    await receive()
    await send({"type": "websocket.accept"})
    await may_read.wait()
    numbers = []
    while (event := await receive())["type"] == "websocket.receive":
        numbers.append(event["text"].split(":")[0])
        if numbers[-1] == "last":
            await send({"type": "websocket.send", "text": json.dumps(numbers)})


async def control(scope: Scope, receive: Receive, send: Send) -> None:
    """Tells what has been sent; lets the others read."""
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        if event["text"] == "read":
            may_read.set()
        await send({"type": "websocket.send", "text": json.dumps(sent)})


# ── What wraps it ────────────────────────────────────────────────────────────────────────────────────────────────────

SERVICES = {
    **{name: SockJS(echo, **OLD_BROWSERS) for name, echo in ECHOES.items()},
    **{name: SockJS(application, **OLD_BROWSERS) for name, application in MISBEHAVING.items()},
    "talking_on": SockJS(talking_on),
    "noted": SockJS(noted),
    "mirror": SockJS(mirror, **OLD_BROWSERS),
    "choosy": SockJS(choosy),
    "flood": SockJS(flood, response_limit=10**9),
    "not_listening": SockJS(not_listening),
    "control": SockJS(control),
}

app = Starlette(
    routes=[
        Mount("/a b/ü", app=SERVICES["mirror"]),
        *(Mount(f"/{name}", app=service) for name, service in SERVICES.items()),
    ],
    lifespan=note_start,
)

inside_fastapi = FastAPI()
for _name, _service in SERVICES.items():
    inside_fastapi.mount(f"/{_name}", _service)

alone = SockJS(starlette_app, **OLD_BROWSERS)
