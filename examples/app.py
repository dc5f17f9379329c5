"""All examples as one application, with a page that leads to them. It mounts each whole; none needs another."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from examples import chat, console, todo

HERE = Path(__file__).parent


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """A mounted application hears nothing of start and end; so they are told."""
    async with AsyncExitStack() as running:
        for example in (chat, todo, console):
            await running.enter_async_context(example.app.router.lifespan_context(app))
        yield


async def add_slash(request: Request) -> RedirectResponse:
    """What people type has no slash at its end. Relative, so that it holds behind any proxy."""
    return RedirectResponse(request.url.path.rpartition("/")[2] + "/")


app = Starlette(
    routes=[
        *(Route(path, add_slash) for path in ("/chat", "/todo", "/console")),
        Mount("/backsync", app=chat.sync),  # the chat's, for who knocks at the usual door
        Mount("/chat", app=chat.app),
        Mount("/todo", app=todo.app),
        Mount("/console", app=console.app),
        Mount("/static", app=StaticFiles(directory=HERE / "static")),
        Mount("/", app=StaticFiles(directory=HERE / "index", html=True)),
    ],
    lifespan=lifespan,
)
