"""SockJS services with other settings than the conformance server's, mounted in Starlette, for test_settings.py."""

from __future__ import annotations

import json

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from backsync_asgi.sockjs import SockJS, Timing


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """A Starlette WebSocket."""
    socket = WebSocket(scope, receive, send)
    await socket.accept()
    try:
        while True:
            await socket.send_text(await socket.receive_text())
    except WebSocketDisconnect:
        pass


async def close_as_told(scope: Scope, receive: Receive, send: Send) -> None:
    """A message is a code and a reason: closes with them, or sends back why that cannot be."""
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        code, _, reason = event["text"].partition(" ")
        try:
            await send({"type": "websocket.close", "code": int(code), "reason": reason})
        except ValueError as error:
            await send({"type": "websocket.send", "text": f"ValueError: {error}"})


_ended: list[int] = []


async def witness(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers every message with the codes by which sessions of this service have ended so far."""
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": json.dumps(_ended)})
    _ended.append(event["code"])


def user(scope: Scope) -> str | None:
    """Who asks, by a header that only a test would trust."""
    return Headers(scope=scope).get("x-user")


LISTED = ["https://good.example", "http://good.example:3000"]
QUICK = Timing(heartbeat=0.5, poll_duration=1.0)

app = Starlette(
    routes=[
        Mount("/plain", app=SockJS(echo)),
        Mount("/listed", app=SockJS(echo, allowed_origins=LISTED, jsonp=True, htmlfile=True, iframe=True)),
        Mount("/quick", app=SockJS(echo, timing=QUICK, jsonp=True, htmlfile=True)),
        Mount("/few", app=SockJS(echo, session_limit=2)),
        Mount("/witness", app=SockJS(witness)),
        Mount("/bound", app=SockJS(echo, principal=user)),
        Mount("/told", app=SockJS(close_as_told, jsonp=True, htmlfile=True)),
    ]
)
