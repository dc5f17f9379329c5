"""A server that is killed at any moment has lost nothing that it had acknowledged, through the whole app."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

from backsync_asgi.testing import Client
from tests.processes.server import Server, come_back, rows_of

ROUNDS = 20
CLIENTS = 3


class Writers:
    """Clients that each write one record after the other, and what was acknowledged of it: the number in each."""

    def __init__(self, clients: list[Client]) -> None:
        self.acknowledged: dict[str, int] = {}
        self._news = asyncio.Event()
        self._stopped = False
        self._tasks = [asyncio.create_task(self._write(name, client)) for name, client in enumerate(clients)]

    async def _write(self, name: int, client: Client) -> None:
        for number in itertools.count():
            # Some records are written once, so that none hides the loss of another; one is written again and again.
            for id in (f"{name}-{number}", f"{name}"):
                stored = await client.call("Row:upsert", {"id": id, "n": number}, within=60)
                assert (stored["id"], stored["n"]) == (id, number)
                self.acknowledged[id] = number
                self._news.set()
            if self._stopped:
                return

    async def until_more(self, count: int) -> None:
        """Wait until so many more records are acknowledged."""
        wanted = len(self.acknowledged) + count
        async with asyncio.timeout(20):
            while len(self.acknowledged) < wanted:
                self._news.clear()
                await self._news.wait()

    async def stop(self) -> None:
        """Wait for what is under way."""
        self._stopped = True
        await asyncio.gather(*self._tasks)

    def end(self) -> None:
        for task in self._tasks:
            task.cancel()


async def test_a_server_that_is_killed_twenty_times_has_lost_no_acknowledged_write(url: str) -> None:
    server = Server(url)
    clients = [server.client() for _ in range(CLIENTS)]
    server.start()
    for client in clients:
        await come_back(client)
    views = [await client.subscribe("Row") for client in clients]
    writers = Writers(clients)
    try:
        for _ in range(ROUNDS):
            await writers.until_more(random.randint(1, 20))
            server.kill()
            check(writers.acknowledged, await rows_of(url))
            server.start()
            await asyncio.gather(*map(come_back, clients))
        await writers.stop()
        rows = await rows_of(url)
        check(writers.acknowledged, rows)
        assert {id: row["n"] for id, row in rows.items()} == writers.acknowledged
        for client, view in zip(clients, views, strict=True):
            await client.until(lambda view=view: dict(view) == rows)  # type: ignore[misc]
            await client.close()
    finally:
        writers.end()
        server.kill()


def check(acknowledged: dict[str, int], rows: dict[Any, dict[str, Any]]) -> None:
    """All that was acknowledged is there; what had no reply yet may be there, too."""
    for id, number in acknowledged.items():
        assert rows[id]["n"] >= number
