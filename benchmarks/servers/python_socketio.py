"""python-socketio's asynchronous server: `emit` to everybody."""

from __future__ import annotations

import socketio

from .records import EVENT, Record

server = socketio.AsyncServer(async_mode="asgi", cors_allowed_origins="*", http_compression=False)
app = socketio.ASGIApp(server)


@server.on("Note:upsert")  # type: ignore[untyped-decorator]
async def upsert(sid: str, record: Record) -> None:
    await server.emit("Note:upsert", record, to=sid)


async def publish(record: Record) -> None:
    await server.emit(EVENT, record)
