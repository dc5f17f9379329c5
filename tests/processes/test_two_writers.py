"""Two servers that write the same rows, through the whole app: nobody is taken back to an older version."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from backsync_asgi import Reject
from backsync_asgi.testing import Client
from tests.processes.server import Process, come_back, rows_of

IDS = ("x", "y", "z")
WRITES = 60  # of each client
CLIENTS = 2  # of each server


class Reader:
    """A client that notes what it is shown, and writes what its own view makes it believe.

    backwards: each record that came after a newer version of itself. written: the versions that were acknowledged.
    conflicts: the version that was named, and the current record.
    """

    def __init__(self, client: Client, random: random.Random) -> None:
        self.client = client
        self.backwards: list[tuple[int, dict[str, Any]]] = []
        self.written: list[tuple[str, int]] = []
        self.conflicts: list[tuple[int, dict[str, Any]]] = []
        self._random = random
        self._newest: dict[Any, int] = {}
        client.on_text = self._note

    def _note(self, text: str) -> None:
        message = json.loads(text)
        data, name = message["data"], message["event"]
        if name in ("Row:upsert", "Live:upsert") and "seq" in message:
            self._see(data)
        elif name in ("Row:subscribe", "Row:snapshot") and data is not None:
            for record in data["records"]:
                self._see(record)

    def _see(self, record: dict[str, Any]) -> None:
        newest = self._newest.get(record["id"], 0)
        if record["rev"] < newest:
            self.backwards.append((newest, record))
        self._newest[record["id"]] = max(newest, record["rev"])

    async def write(self) -> None:
        """Write rows at random; now and then read all anew."""
        view = await self.client.subscribe("Row")
        for number in range(WRITES):
            record: dict[str, Any] = {"id": self._random.choice(IDS), "n": number}
            if record["id"] in view and self._random.random() < 0.7:
                record["rev"] = view[record["id"]]["rev"]
            try:
                stored = await self.client.upsert("Row", record)
            except Reject as error:
                assert error.code == "conflict"
                self.conflicts.append((record["rev"], error.details["current"]))
                await self.client.subscribe("Row")
            else:
                self.written.append((stored["id"], stored["rev"]))


@asynccontextmanager
async def two_servers(url: str, **options: Any) -> AsyncIterator[list[Reader]]:
    servers = [Process(url, **options) for _ in range(2)]
    readers = [Reader(server.client(), random.Random(seed)) for server in servers for seed in range(CLIENTS)]
    try:
        for server in servers:
            server.start()
        for reader in readers:
            await come_back(reader.client)
        yield readers
        for reader in readers:
            await reader.client.close()
    finally:
        for server in servers:
            server.kill()


async def test_nobody_goes_back_to_an_older_version_and_who_is_late_is_told_the_present_one(url: str) -> None:
    async with two_servers(url) as readers:
        await asyncio.gather(*(reader.write() for reader in readers))
        rows = await rows_of(url)
        for reader in readers:
            assert reader.backwards == []
            view = await reader.client.subscribe("Row")
            assert dict(view) == rows
        conflicts = [conflict for reader in readers for conflict in reader.conflicts]
        assert conflicts, "they have not met"
        for named, current in conflicts:
            assert named < current["rev"] <= rows[current["id"]]["rev"]
        written = [write for reader in readers for write in reader.written]
        assert len(written) == len(set(written)), "of two writes of one version one wins"
        assert Counter(id for id, _ in written) == {id: row["rev"] for id, row in rows.items()}


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
async def test_where_the_database_tells_of_changes_the_clients_of_both_are_equal_to_the_table(url: str) -> None:
    async with two_servers(url, listens=True) as readers:
        views = [await reader.client.subscribe("Live") for reader in readers]
        await asyncio.gather(*(reader.write() for reader in readers))
        for id, reader in zip(IDS, itertools.cycle(readers), strict=False):
            await reader.client.delete("Row", id)
        await asyncio.gather(*(reader.write() for reader in readers))
        await readers[0].client.delete("Row", "y")
        await readers[-1].client.upsert("Row", {"id": "last", "n": 1})
        rows = await rows_of(url)
        assert {*rows} <= {"x", "z", "last"}
        for reader, view in zip(readers, views, strict=True):
            await reader.client.until(lambda view=view: dict(view) == rows)  # type: ignore[misc]
