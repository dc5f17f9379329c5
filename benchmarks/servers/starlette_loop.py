"""What most people write first: a Starlette app that goes through its clients and awaits each `send_text`."""

from __future__ import annotations

import orjson
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from .records import EVENT, Record

clients: set[WebSocket] = set()


async def endpoint(websocket: WebSocket) -> None:
    await websocket.accept()
    clients.add(websocket)
    try:
        while True:
            message = orjson.loads(await websocket.receive_text())
            await websocket.send_text(orjson.dumps(message).decode())
    except WebSocketDisconnect:
        pass
    finally:
        clients.discard(websocket)


async def publish(record: Record) -> None:
    text = orjson.dumps({"event": EVENT, "data": record}).decode()
    for websocket in tuple(clients):
        await websocket.send_text(text)


app = Starlette(routes=[WebSocketRoute("/", endpoint)])
