"""The console: what a program logs, live in a browser. It joins handler and job, which do not know each other."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from backsync_asgi import Backsync, Context, Reject
from backsync_asgi.stores import MemoryStore
from examples.console.handler import BacksyncHandler
from examples.console.job import Indexer

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent

sync = Backsync()
lines = sync.model("LogLine", store=MemoryStore(limit=1000, full="evict"))


@lines.on("upsert")
@lines.on("delete")
async def only_read(ctx: Context, data: dict[str, Any]) -> NoReturn:
    """Browsers read; what is written comes from the handler, which does not come this way."""
    raise Reject("forbidden", "A log is not written by its readers.")


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """The job runs, and is heard, as long as the server does."""
    logger, handler = logging.getLogger("indexer"), BacksyncHandler(lines)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False  # what the browser shows need not fill the terminal as well
    logger.addHandler(handler)
    async with sync.lifespan(app):
        job = asyncio.create_task(Indexer(REPOSITORY).run(), name="indexer")
        job.add_done_callback(report_failure)
        try:
            yield
        finally:
            job.cancel()
            await asyncio.wait([job])
            logger.removeHandler(handler)


def report_failure(job: asyncio.Task[None]) -> None:
    """A job that dies says so, in the console too."""
    if not job.cancelled() and (error := job.exception()) is not None:
        logging.getLogger("indexer").critical("The job has died", exc_info=error)


app = Starlette(
    routes=[
        Mount("/backsync", app=sync),
        Mount("/static", app=StaticFiles(directory=HERE.parent / "static")),
        Mount("/", app=StaticFiles(directory=HERE / "page", html=True)),
    ],
    lifespan=lifespan,
)
