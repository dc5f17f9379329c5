"""A process that writes to a store and tells of each acknowledged write, to be killed in the middle of one."""

from __future__ import annotations

import asyncio
import itertools
from multiprocessing.connection import Connection

from backsync_asgi.stores import SQLStore


def write(url: str, start: int, acknowledged: Connection) -> None:
    """Write one number after the other, to 50 records in turn, until the process is killed."""
    asyncio.run(_write(url, start, acknowledged))


async def _write(url: str, start: int, acknowledged: Connection) -> None:
    store = SQLStore(url, table="written")
    for number in itertools.count(start):
        record = await store.upsert({"id": number % 50, "n": number})
        acknowledged.send(record["n"])
