"""sockjs-tornado, whose `broadcast` encodes once for all: `python -m benchmarks.servers.sockjs_tornado FD`."""

from __future__ import annotations

import asyncio
import json
import socket
import sys

from sockjs.tornado import SockJSConnection, SockJSRouter
from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler

from .records import EVENT, Control, Record

clients: set[SockJSConnection] = set()


class Connection(SockJSConnection):  # type: ignore[misc]
    def on_open(self, info: object) -> None:
        clients.add(self)

    def on_message(self, message: str) -> None:
        self.send(json.dumps(json.loads(message), separators=(",", ":")))

    def on_close(self) -> None:
        clients.discard(self)


async def publish(record: Record) -> None:
    if clients:
        text = json.dumps({"event": EVENT, "data": record}, separators=(",", ":"))
        next(iter(clients)).broadcast(clients, text)


control = Control(publish)


class Ask(RequestHandler):  # type: ignore[misc]
    def get(self) -> None:
        control.handle(self.request.path, self.request.query)
        self.write("ok\n")


async def main() -> None:
    router = SockJSRouter(Connection, "/sockjs")
    server = HTTPServer(Application([*router.urls, ("/publish|/quiet", Ask)]))
    server.add_sockets([socket.socket(fileno=int(sys.argv[1]))])
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
