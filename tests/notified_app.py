"""A live model and its REST beside it, with short times: for clients that must be notified over every transport."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.routing import Mount

from backsync_asgi import Backsync
from backsync_asgi.sockjs import Settings, Timing
from backsync_asgi.stores import MemoryStore

sync = Backsync(sockjs=Settings(timing=Timing(write_deadline=2.0)))
sync.model("Note", store=MemoryStore())

app = Starlette(
    routes=[Mount("/api", app=sync.rest()), Mount("/backsync", app=sync)],
    lifespan=sync.lifespan,
)
