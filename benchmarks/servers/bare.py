"""A bare ASGI app: what a broadcast, an echo and an idle connection cost at least where only ASGI's `send` is used."""

from __future__ import annotations

import orjson

from .asgi import Receive, Scope, Send
from .records import EVENT, Record

clients: set[Send] = set()


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await receive()
    await send({"type": "websocket.accept"})
    clients.add(send)
    try:
        while (event := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": event["text"]})
    finally:
        clients.discard(send)


async def publish(record: Record) -> None:
    message = {"type": "websocket.send", "text": orjson.dumps({"event": EVENT, "data": record}).decode()}
    for send in tuple(clients):
        await send(message)
