"""A chat: who is here, and what they say. It owns the rules of the room, and knows nothing of transports."""

import asyncio
from collections import Counter
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from backsync_asgi import Backsync, Context, Reject
from backsync_asgi.stores import MemoryStore

GRACE = 2.0  # seconds that a person stays after their last connection: a reconnect is not a departure

sync = Backsync()
users = sync.model("User", store=MemoryStore(limit=10_000))
messages = sync.model("ChatMessage", store=MemoryStore(limit=500, full="evict"))


@users
class Users:
    """Who is here. A page says its name and a secret of its own; the id that all see is made from the secret."""

    def __init__(self) -> None:
        self.connections: Counter[str] = Counter()

    async def upsert(self, ctx: Context, data: dict[str, Any]) -> dict[str, Any]:
        name, secret = text_of(data, "screenName", 40), text_of(data, "secret", 100)
        id = ctx.state.user["id"] if hasattr(ctx.state, "user") else sha256(secret.encode()).hexdigest()[:12]
        user = await ctx.store.upsert({"id": id, "screenName": name})
        if not hasattr(ctx.state, "user"):
            self.connections[id] += 1
        ctx.state.user = user
        return user

    async def on_close(self, ctx: Context) -> None:
        if hasattr(ctx.state, "user"):
            id = ctx.state.user["id"]
            self.connections[id] -= 1
            await asyncio.sleep(GRACE)
            if not self.connections[id]:
                del self.connections[id]
                await users.delete(id)


@messages.on("upsert")
async def post(ctx: Context, data: dict[str, Any]) -> dict[str, Any]:
    """Only what is said comes from the page; who said it, and when, does not."""
    text = text_of(data, "text", 2000)
    if not hasattr(ctx.state, "user"):
        raise Reject("unauthorized", "Say your name first.")
    author = {"userId": ctx.state.user["id"], "screenName": ctx.state.user["screenName"]}
    return await ctx.store.upsert({"text": text, "time": datetime.now(UTC).isoformat(), **author})


@users.on("delete")
@messages.on("delete")
async def keep(ctx: Context, data: dict[str, Any]) -> NoReturn:
    raise Reject("forbidden", "People leave by themselves, and what is said is said.")


def text_of(data: dict[str, Any], field: str, longest: int) -> str:
    """The text in that field; whatever else is there is refused with a word to the person who wrote it."""
    value = data.get(field)
    text = value.strip() if isinstance(value, str) else ""
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
