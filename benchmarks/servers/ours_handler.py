"""The same with a handler between the request and the store, as most applications have one."""

from __future__ import annotations

from typing import Any

from backsync_asgi import Context

from .ours import app, note, publish

__all__ = ["app", "publish"]


@note.on("upsert")
async def save(ctx: Context, data: dict[str, Any]) -> dict[str, Any]:
    return await ctx.store.upsert(data)
