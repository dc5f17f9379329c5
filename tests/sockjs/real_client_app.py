"""The echo example, a page beside it from which the real client talks, and a service that keeps to its own origin."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from backsync_asgi.sockjs import SockJS
from examples import sockjs_echo

PAGE = """<!doctype html>
<title>SockJS</title>
<link rel="icon" href="data:,">
<script src="/lib/sockjs.js"></script>
<script src="/here/conversation.js"></script>
<body></body>
"""

app = Starlette(
    routes=[
        Route("/page", lambda request: HTMLResponse(PAGE)),
        Mount("/here", app=StaticFiles(directory=Path(__file__).parent)),
        Mount(
            "/own", app=SockJS(sockjs_echo.echo, jsonp=True, htmlfile=True, iframe=True, sockjs_url="/lib/sockjs.js")
        ),
        Mount("/", app=sockjs_echo.app),
    ]
)
