"""The same with a visibility rule that is asked for each of four audiences."""

from __future__ import annotations

import itertools
from typing import Any

from backsync_asgi import Context

from .ours import app, item, publish

__all__ = ["app", "publish"]

roles = itertools.cycle(range(4))


def role(ctx: Context) -> int:
    state = ctx.connection.state
    if not hasattr(state, "role"):
        state.role = next(roles)
    return int(state.role)


@item.visible(audience=role)
def seen(ctx: Context, record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "pad": None}
