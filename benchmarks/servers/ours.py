"""Backsync: a model with a store, whose every change goes to its subscribers, and one with a room for each client.

BENCH_ROOMS: publish to so many rooms in turn instead.
"""

from __future__ import annotations

import os

from backsync_asgi import Backsync
from backsync_asgi.limits import Horizon
from backsync_asgi.stores import MemoryStore

from .records import RECORDS, Record

ROOMS = int(os.environ.get("BENCH_ROOMS", "0"))
LARGE = Horizon(records=RECORDS, size=RECORDS * 1024)  # so that a resume finds all of a large channel

app = Backsync(horizon=LARGE if RECORDS > 1000 else None)
item = app.model("Item", store=MemoryStore())
note = app.model("Note", store=MemoryStore(), key="room")


async def publish(record: Record) -> None:
    if ROOMS:
        room = f"room {int(record['mark'][1:7]) % ROOMS}"
        await note.upsert({**record, "id": room, "room": room})
    else:
        await item.upsert(record)
