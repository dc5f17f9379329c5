"""A chat: who is here, and what they say. It owns the rules of the room, and knows nothing of transports."""

from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from backsync_asgi import Backsync, Context, Reject
from backsync_asgi.stores import Store
from examples.database import database

KEPT = 500  # messages, and up to 20 more: making room each time would cost each message a look at all of them
ROOM_EVERY = 20  # messages, from the first on

sync = Backsync()
users = sync.model("User", ephemeral=True, grace=2.0)  # here as long as their page is; a reconnect is no departure
typing = sync.model("Typing", ephemeral=True, grace=0.1, ttl=4.0)  # seconds; who goes is not waited for
messages = sync.model("ChatMessage", store=database(index=["time"]))
posts = count()


@users.on("upsert")
async def enter(ctx: Context, data: dict[str, Any]) -> dict[str, Any]:
    """The page says a name. The id is its client's public one, which nobody else can have."""
    user = await ctx.store.upsert({"id": ctx.connection.client_id, "screenName": text_of(data, "screenName", 40)})
    ctx.state.user = user
    return user


@typing.on("upsert")
async def type_on(ctx: Context, data: dict[str, Any]) -> dict[str, Any]:
    return await ctx.store.upsert(author(ctx))


@messages.on("upsert")
async def post(ctx: Context, data: dict[str, Any]) -> dict[str, Any]:
    """Only what is said comes from the page; who said it, and when, does not. What has an id was said before."""
    if "id" in data:
        raise Reject("forbidden", "What is said is said.")
    user, text = author(ctx), text_of(data, "text", 2000)
    await typing.delete(user["id"])
    said = {"text": text, "time": datetime.now(UTC).isoformat(), "userId": user["id"], "screenName": user["screenName"]}
    if next(posts) % ROOM_EVERY == 0:
        await make_room(ctx.store)
    return await ctx.store.upsert(said)


async def make_room(store: Store) -> None:
    """Delete what is older than the newest messages, for the pages that show it as well."""
    newest = await store.read({"$order": "-time", "$limit": KEPT})
    if len(newest) == KEPT:
        for message in await store.read({"$order": "-time", "$after": newest[-1]}):
            await messages.delete(message["id"])


@messages.on("delete")
async def keep(ctx: Context, data: dict[str, Any]) -> NoReturn:
    raise Reject("forbidden", "What is said is said.")


def author(ctx: Context) -> dict[str, Any]:
    if not hasattr(ctx.state, "user"):
        raise Reject("unauthorized", "Say your name first.")
    return dict(ctx.state.user)


def text_of(data: dict[str, Any], field: str, longest: int) -> str:
    """The text in that field; whatever else is there is refused with a word to the person who wrote it."""
    text = data[field].strip() if isinstance(data.get(field), str) else ""
    if not 1 <= len(text) <= longest:
        raise Reject("invalid", f"1 to {longest} characters, please.", [{"field": field, "message": "length"}])
    return text


EXAMPLES = Path(__file__).parent.parent
app = Starlette(
    routes=[
        Mount("/backsync", app=sync),
        Mount("/static", app=StaticFiles(directory=EXAMPLES / "static")),
        Mount("/", app=StaticFiles(directory=EXAMPLES / "chat" / "page", html=True)),
    ],
    lifespan=sync.lifespan,
)
