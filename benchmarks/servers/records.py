"""The records that every Python server publishes, and how it is told to; it knows no server."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

RECORD_SIZE = 200  # bytes of a record as compact JSON
RECORDS = int(os.environ.get("BENCH_RECORDS", "100"))  # distinct records
EVENT = "Item:upsert"

Record = dict[str, Any]
Publish = Callable[[Record], Awaitable[object]]


def mark(number: int) -> str:
    """What the load generator finds a record by: which change it is, and when it was published."""
    return f"@{number % 1_000_000:06d}{time.monotonic_ns():019d}"


_PAD = "x" * (RECORD_SIZE - len('{"id":"r00000","mark":"","note":null,"pad":""}') - len(mark(0)))


def record(number: int) -> Record:
    """A record of RECORD_SIZE bytes, published now."""
    return {"id": f"r{number % RECORDS:05d}", "mark": mark(number), "note": None, "pad": _PAD}


async def publish_paced(publish: Publish, count: int, burst: int, interval: float) -> None:
    """Publish so many changes, `burst` of them back to back every `interval` seconds."""
    at = time.monotonic()
    for first in range(0, count, burst):
        for number in range(first, min(first + burst, count)):
            await publish(record(number))
        at += interval
        await asyncio.sleep(max(0.0, at - time.monotonic()))


class Control:
    """Does what the benchmark asks for over HTTP: /publish?count=&burst=&interval= and /quiet."""

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        self._tasks: set[asyncio.Task[None]] = set()

    def handle(self, path: str, query: str) -> None:
        """Start what is asked for; to be called on the event loop."""
        if path == "/publish":
            asked = {name: values[0] for name, values in parse_qs(query).items()}
            work = publish_paced(self._publish, int(asked["count"]), int(asked["burst"]), float(asked["interval"]))
            task = asyncio.get_running_loop().create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif path == "/quiet":
            gc.collect()
