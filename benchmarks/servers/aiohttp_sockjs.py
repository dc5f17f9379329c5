"""SockJS for aiohttp, whose manager's `broadcast` encodes once: `python -m benchmarks.servers.aiohttp_sockjs FD`."""

from __future__ import annotations

import json
import socket
import sys

import sockjs
from aiohttp import web

from .records import EVENT, Control, Record

app = web.Application()


async def handle(manager: sockjs.SessionManager, session: sockjs.Session, message: sockjs.SockjsMessage) -> None:
    if message.type == sockjs.MsgType.MESSAGE:
        session.send(json.dumps(json.loads(message.data), separators=(",", ":")))


async def publish(record: Record) -> None:
    sockjs.get_manager("bench", app).broadcast(json.dumps({"event": EVENT, "data": record}, separators=(",", ":")))


control = Control(publish)


async def ask(request: web.Request) -> web.Response:
    control.handle(request.path, request.query_string)
    return web.Response(text="ok\n")


sockjs.add_endpoint(app, handle, name="bench", prefix="/sockjs")
app.router.add_get("/publish", ask)
app.router.add_get("/quiet", ask)

if __name__ == "__main__":
    web.run_app(app, sock=socket.socket(fileno=int(sys.argv[1])), access_log=None, print=None)
