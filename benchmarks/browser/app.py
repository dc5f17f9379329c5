"""The console and the todo list with a logger that writes so many lines a second: `POST /flood?rate=300&seconds=5`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from examples.console.handler import BacksyncHandler
from examples.console.server import app as console
from examples.console.server import lines
from examples.console.server import sync as console_sync
from examples.todo.server import app as todo
from examples.todo.server import sync as todo_sync
from examples.todo.server import todos

logger = logging.getLogger("flood")
logger.propagate = False
logger.setLevel(logging.DEBUG)
logger.addHandler(BacksyncHandler(lines))
LEVELS = (logging.DEBUG, logging.INFO, logging.INFO, logging.WARNING)


async def flood(request: Request) -> Response:
    """Writes lines one by one, evenly spread over the time; returns at once."""
    rate, seconds = float(request.query_params["rate"]), float(request.query_params["seconds"])

    async def write() -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, start + number / rate - loop.time()))
            logger.log(LEVELS[number % len(LEVELS)], "Line %d of a flood of %d a second", number, rate)

    request.app.state.task = asyncio.create_task(write())
    return Response()


async def fill(request: Request) -> Response:
    """Puts so many todos into the list."""
    for number in range(int(request.query_params["count"])):
        await todos.upsert({"title": f"Todo {number}", "done": False, "place": number})
    return Response()


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with console_sync.lifespan(app), todo_sync.lifespan(app):
        yield


app = Starlette(
    routes=[
        Route("/flood", flood, methods=["POST"]),
        Route("/fill", fill, methods=["POST"]),
        Mount("/console", app=console),
        Mount("/todo", app=todo),
    ],
    lifespan=lifespan,
)
