"""A todo list that all who open it share. It owns what a todo may be, and knows nothing of who is connected when."""

import time
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from backsync_asgi import Backsync, Context, Reject
from examples.database import database

LONGEST = 200  # characters of a title
MOST = 1000  # todos; the list opens as a whole

sync = Backsync()
todos = sync.model("Todo", store=database(), version="rev")


@todos.on("upsert")
async def save(ctx: Context, todo: dict[str, Any]) -> dict[str, Any]:
    """Checks what the page says; a new todo gets a place by the time, so that the order is the same for everybody.

    A page that names the `rev` its edit began with hears of a conflict; one that names none writes last and wins.
    """
    title = todo["title"].strip() if isinstance(todo.get("title"), str) else ""
    if not 1 <= len(title) <= LONGEST:
        message = f"A todo has 1 to {LONGEST} characters; this one has {len(title)}."
        raise Reject("invalid", message, [{"field": "title", "message": "length"}])
    if "id" not in todo:
        place = time.time_ns() // 1000  # microseconds: a browser's numbers hold no finer; a counter would start anew
        if len(await ctx.store.read({"$limit": MOST})) == MOST:
            raise Reject("too_large", f"The list is full: it takes {MOST} todos.", {"limit": MOST})
    elif ctx.method == "patch" and type(todo.get("place")) is int:  # a patch arrives merged into the stored record
        place = todo["place"]
    elif (known := await ctx.store.get(todo["id"])) is not None:
        place = known["place"]
    else:
        raise Reject("not_found", "There is no such todo any more.")
    record = {"title": title, "done": todo.get("done") is True, "place": place}
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
