"""Backsync with REST, which tells how many of its requests are not over; its streams are short."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from backsync_asgi import Backsync
from backsync_asgi.sockjs import Settings, Timing
from backsync_asgi.sockjs.receivers import Receive, Scope, Send
from backsync_asgi.stores import MemoryStore

TIMING = Timing(heartbeat=1.0, disconnect_delay=1.0, poll_duration=2.0, stream_duration=2.0)

sync = Backsync(sockjs=Settings(timing=TIMING))
sync.model("Note", store=MemoryStore())
under_way: set[object] = set()


async def left(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(under_way)))


inner = Starlette(
    routes=[Route("/left", left), Mount("/api", app=sync.rest()), Mount("/backsync", app=sync)],
    lifespan=sync.lifespan,
)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    is_counted = scope["type"] != "lifespan" and scope["path"] != "/left"
    mark = object()
    if is_counted:
        under_way.add(mark)
    try:
        await inner(scope, receive, send)
    finally:
        under_way.discard(mark)
