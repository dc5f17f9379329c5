"""An application with a live model and REST beside it, for clients on real sockets."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.routing import Mount

from backsync_asgi import Backsync
from backsync_asgi.sockjs import Settings, Timing
from backsync_asgi.stores import MemoryStore

sync = Backsync(sockjs=Settings(timing=Timing(heartbeat=1.0)))
sync.model("Todo", store=MemoryStore(), version="rev")

app = Starlette(
    routes=[Mount("/api", app=sync.rest()), Mount("/backsync", app=sync)],
    lifespan=sync.lifespan,
)
