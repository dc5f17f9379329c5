"""A loop that hands one prebuilt frame to uvicorn's transports: the least that a broadcast costs in Python."""

from __future__ import annotations

from collections.abc import Callable

import orjson

from backsync_asgi.sockjs.frames import websocket_frame
from backsync_asgi.uvicorn import EXTENSION

from . import bare
from .asgi import Receive, Scope, Send
from .records import EVENT, Record

writes: dict[Send, Callable[[bytes], None]] = {}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "lifespan":
        writes[send] = scope["extensions"][EXTENSION].write_frame
    try:
        await bare.app(scope, receive, send)
    finally:
        writes.pop(send, None)


async def publish(record: Record) -> None:
    frame = websocket_frame(orjson.dumps({"event": EVENT, "data": record}))
    for write in tuple(writes.values()):
        write(frame)
