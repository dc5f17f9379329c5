"""A server that is killed at any moment has lost nothing that it had acknowledged, through the whole app."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest

from backsync_asgi.testing import Client
from tests.processes.server import Process, client_of, come_back, rows_of
from tests.servers import Server

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
    server = Process(url)
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


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_one_that_is_told_to_end_has_lost_none_either_and_ends_without_an_error(
    url: str, serve: Callable[..., Server]
) -> None:
    options = {"options": ("--factory",), "env": {"DATABASE_URL": url}}
    server = serve("tests.processes.server:app", **options)
    client = client_of(server.port)
    view = await client.subscribe("Row")
    writers = Writers([client])
    try:
        await writers.until_more(20)
        await asyncio.to_thread(server.stop)
        server.check_log()
        check(writers.acknowledged, await rows_of(url))
        await asyncio.to_thread(serve, "tests.processes.server:app", port=server.port, **options)
        await come_back(client)
        await writers.stop()
        rows = await rows_of(url)
        assert {id: row["n"] for id, row in rows.items()} == writers.acknowledged
        await client.until(lambda: dict(view) == rows)
        await client.close()
    finally:
        writers.end()


def check(acknowledged: dict[str, int], rows: dict[Any, dict[str, Any]]) -> None:
    """All that was acknowledged is there; what had no reply yet may be there, too."""
    for id, number in acknowledged.items():
        assert rows[id]["n"] >= number
