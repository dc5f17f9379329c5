"""A todo list that all who open it share. It owns what a todo may be, and knows nothing of who is connected when."""

from itertools import count
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from backsync_asgi import Backsync, Context, Reject
from backsync_asgi.stores import MemoryStore

LONGEST = 200  # characters of a title

sync = Backsync()
todos = sync.model("Todo", store=MemoryStore(limit=1000), version="rev")
places = count(1)


@todos.on("upsert")
async def save(ctx: Context, todo: dict[str, Any]) -> dict[str, Any]:
    """Checks what the page says; a new todo gets the next place, so that the order is the same for everybody.

    A page that names the `rev` its edit began with hears of a conflict; one that names none writes last and wins.
    """
    title = todo["title"].strip() if isinstance(todo.get("title"), str) else ""
    if not 1 <= len(title) <= LONGEST:
        message = f"A todo has 1 to {LONGEST} characters; this one has {len(title)}."
        raise Reject("invalid", message, [{"field": "title", "message": "length"}])
    known = await ctx.store.get(todo["id"]) if "id" in todo else {"place": next(places)}
    if known is None:
        raise Reject("not_found", "There is no such todo any more.")
    record = {"title": title, "done": todo.get("done") is True, "place": known["place"]}
    return await ctx.store.upsert(record | {name: todo[name] for name in ("id", "rev") if name in todo})


EXAMPLES = Path(__file__).parent.parent
app = Starlette(
    routes=[
        Mount("/backsync", app=sync),
        Mount("/static", app=StaticFiles(directory=EXAMPLES / "static")),
        Mount("/", app=StaticFiles(directory=EXAMPLES / "todo" / "page", html=True)),
    ],
    lifespan=sync.lifespan,
)
