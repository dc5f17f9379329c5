"""The same with a visibility rule that is asked for each client."""

from __future__ import annotations

from typing import Any

from backsync_asgi import Context

from .ours import app, item, publish

__all__ = ["app", "publish"]


@item.visible
def seen(ctx: Context, record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "pad": None}
