"""The services that SockJS conformance clients expect, on one port: `uvicorn examples.sockjs_echo:app --port 8081`.

It also shows SockJS without models: each service is a plain ASGI WebSocket application.
"""

from __future__ import annotations

from pathlib import Path

from starlette.staticfiles import StaticFiles

import backsync_asgi
from backsync_asgi.sockjs import SockJS
from backsync_asgi.sockjs.receivers import Receive, Scope, Send

# For conformance clients only: every origin, every transport.
OPEN_TO_ALL = {
    "allowed_origins": "*",
    "jsonp": True,
    "htmlfile": True,
    "iframe": True,
    "sockjs_url": "/lib/sockjs.js",
    "response_limit": 4096,
}

_listeners: set[Send] = set()


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Send back what comes."""
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        await send({**event, "type": "websocket.send"})


async def close(scope: Scope, receive: Receive, send: Send) -> None:
    """Close at once."""
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close", "code": 3000, "reason": "Go away!"})


async def amplify(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a number n with 2^n times `x`."""
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        try:
            power = int(float(event.get("text", "")))
        except (ValueError, OverflowError):
            power = 1
        await send({"type": "websocket.send", "text": "x" * 2 ** min(max(power, 0), 19)})


async def broadcast(scope: Scope, receive: Receive, send: Send) -> None:
    """Send each message to every session of the service."""
    await receive()
    await send({"type": "websocket.accept"})
    _listeners.add(send)
    try:
        while (event := await receive())["type"] == "websocket.receive":
            for listener in list(_listeners):
                try:
                    await listener({"type": "websocket.send", "text": event.get("text", "")})
                except OSError:
                    _listeners.discard(listener)
    finally:
        _listeners.discard(send)


SERVICES = {
    "/echo": SockJS(echo, **OPEN_TO_ALL),
    "/close": SockJS(close, **OPEN_TO_ALL),
    "/disabled_websocket_echo": SockJS(echo, **OPEN_TO_ALL, websocket=False),
    "/cookie_needed_echo": SockJS(echo, **OPEN_TO_ALL, cookies=True, any_origin_with_cookies=True),
    "/amplify": SockJS(amplify, **OPEN_TO_ALL),
    "/broadcast": SockJS(broadcast, **OPEN_TO_ALL),
}

# Below /lib, for the iframe page: the client that comes with Backsync, once it is built.
CLIENT = StaticFiles(directory=Path(backsync_asgi.__file__).parent / "static", check_dir=False)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Hand each request to its service."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    prefix = "/" + scope["path"].removeprefix("/").split("/", 1)[0]
    service = CLIENT if prefix == "/lib" and scope["type"] == "http" else SERVICES.get(prefix)
    if service is not None:
        scope["root_path"] = scope.get("root_path", "") + prefix
        await service(scope, receive, send)
    elif scope["type"] == "http":
        await send({"type": "http.response.start", "status": 404, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"Not found."})
    else:
        await send({"type": "websocket.close"})


async def lifespan(receive: Receive, send: Send) -> None:
    """Nothing to set up or to tear down."""
    while True:
        event = await receive()
        await send({"type": event["type"] + ".complete"})
        if event["type"] == "lifespan.shutdown":
            return
