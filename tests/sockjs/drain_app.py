"""Apps for test_drain.py: an echo and a flood over SockJS, alone and far inside somebody else's application."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from backsync_asgi.sockjs import SockJS
from examples import sockjs_echo

CHUNK = "x" * 60_000


async def flood(scope: Scope, receive: Receive, send: Send) -> None:
    """Sends for as long as it is let."""
    await receive()
    await send({"type": "websocket.accept"})
    try:
        while True:
            await send({"type": "websocket.send", "text": CHUNK})
    except OSError:
        pass  # the client has gone, or the server does


class Timed:
    """A middleware as they are written for ASGI itself: a function around `send`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def timed_send(message: dict[str, object]) -> None:
            await send(message)

        await self._app(scope, receive, timed_send)  # type: ignore[arg-type]


async def pass_on(request: Request, call_next: RequestResponseEndpoint) -> Response:
    """The middleware that most applications have."""
    return await call_next(request)


def services() -> list[Mount]:
    return [
        Mount("/echo", app=SockJS(sockjs_echo.echo)),
        Mount("/flood", app=SockJS(flood, response_limit=1_000_000_000)),
    ]


alone = SockJS(sockjs_echo.echo)

among_others = Starlette(routes=services())

inside = Starlette(
    routes=[Mount("/deep", routes=services())],
    middleware=[
        Middleware(Timed),
        Middleware(CORSMiddleware, allow_origins=["https://friend.example"]),
        Middleware(Timed),
    ],
)

# Starlette's own base class puts a queue and a task between the application and the server.
inside_base_class = Starlette(
    routes=[Mount("/deep", routes=services())],
    middleware=[Middleware(BaseHTTPMiddleware, dispatch=pass_on)],
)
