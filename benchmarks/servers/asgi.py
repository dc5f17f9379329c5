"""Serves one of the ASGI servers of the benchmarks under uvicorn: `python -m benchmarks.servers.asgi NAME FD WS`."""

from __future__ import annotations

import importlib
import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import uvicorn

from .records import Control, Publish

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def controlled(app: App, publish: Publish) -> App:
    """The app, and the benchmark's control beside it."""
    control = Control(publish)

    async def both(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in ("/publish", "/quiet"):
            await app(scope, receive, send)
            return
        control.handle(scope["path"], scope["query_string"].decode())
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
        await send({"type": "http.response.body", "body": b"ok\n"})

    return both


def main() -> None:
    name, descriptor, protocol = sys.argv[1:]
    server: Any = importlib.import_module(f"benchmarks.servers.{name}")
    config = uvicorn.Config(
        controlled(server.app, server.publish),
        ws=protocol,
        ws_per_message_deflate=False,
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=1,
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(descriptor))])


if __name__ == "__main__":
    main()
