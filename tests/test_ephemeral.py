"""Ephemeral records: how long they live and whose they are, however leaving, coming back and writing overlap."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from backsync_asgi import Backsync, Context
from backsync_asgi.ephemeral import Lives
from backsync_asgi.errors import Reject
from backsync_asgi.models import Model
from backsync_asgi.stores import MemoryStore
from backsync_asgi.stores.base import Id
from backsync_asgi.testing import connect
from tests.convergence.clock import virtual


def lives_of(model: Model) -> Lives:
    assert model.lives is not None
    return model.lives


@virtual
async def test_the_grace_period_begins_with_the_last_leave() -> None:
    sync = Backsync()
    sync.model("Cursor", ephemeral=True, grace=4.0)
    async with connect(sync) as ann, connect(sync) as bob:
        cursors = await bob.subscribe("Cursor")
        await ann.upsert("Cursor", {"id": "ann"})
        ann.disconnect()
        await asyncio.sleep(1)
        await ann.reconnect()
        await ann.call("$:ping")
        await asyncio.sleep(2)
        ann.disconnect()
        await asyncio.sleep(3)  # 6 s after the first leave
        await bob.call("$:ping")
        assert list(cursors) == ["ann"]
        await asyncio.sleep(1.5)
        await bob.until(lambda: not cursors)


@virtual
async def test_a_record_that_is_renewed_while_its_ttl_ends_stays() -> None:
    sync = Backsync()
    cursor = sync.model("Cursor", ephemeral=True, ttl=10.0)

    @cursor.on("upsert")
    async def save(ctx: Context, record: dict[str, Any]) -> Mapping[str, Any]:
        if record.get("slow"):
            await asyncio.sleep(2)
        return await ctx.store.upsert(record)

    async with connect(sync) as ann:
        await ann.upsert("Cursor", {"id": "ann"})
        await asyncio.sleep(9)
        await ann.upsert("Cursor", {"id": "ann", "slow": True})  # its turn is over after the ttl
        await asyncio.sleep(5)
        assert await ann.read("Cursor") == [{"id": "ann", "slow": True}]
        await asyncio.sleep(6)
        assert await ann.read("Cursor") == []


@virtual
async def test_who_comes_back_while_its_record_is_to_go_keeps_it() -> None:
    sync = Backsync()
    cursor = sync.model("Cursor", ephemeral=True, grace=1.0)
    async with connect(sync) as ann, connect(sync) as bob:
        cursors = await bob.subscribe("Cursor")
        await ann.upsert("Cursor", {"id": "ann"})
        async with cursor._turn("ann"):
            ann.disconnect()
            await asyncio.sleep(2)
            await ann.reconnect()
            await ann.call("$:ping")
        await asyncio.sleep(2)
        await bob.call("$:ping")
        assert list(cursors) == ["ann"]
        ann.disconnect()
        await asyncio.sleep(2)
        await bob.until(lambda: not cursors)
    lives = lives_of(cursor)
    assert (lives._owners, lives._owned, lives._leaves) == ({}, {}, {})


@virtual
async def test_a_record_that_two_clients_of_a_user_wrote_goes_with_the_second() -> None:
    sync = Backsync()
    cursor = sync.model("Cursor", ephemeral=True, grace=1.0)
    async with connect(sync, user="ann") as one, connect(sync, user="ann") as two, connect(sync) as bob:
        cursors = await bob.subscribe("Cursor")
        await one.upsert("Cursor", {"id": "ann"})
        async with cursor._turn("ann"):
            write = asyncio.ensure_future(two.upsert("Cursor", {"id": "ann", "tab": 2}))
            await asyncio.sleep(1)
            one.disconnect()
            await asyncio.sleep(2)
        await write
        await asyncio.sleep(2)
        await bob.call("$:ping")
        assert cursors == {"ann": {"id": "ann", "tab": 2}}
        two.disconnect()
        await asyncio.sleep(2)
        await bob.until(lambda: not cursors)


@pytest.mark.parametrize("way", ["evicted", "deleted elsewhere"])
async def test_a_record_that_its_store_has_lost_belongs_to_nobody(way: str) -> None:
    sync = Backsync()
    store = MemoryStore(limit=1, full="evict")
    cursor = sync.model("Cursor", ephemeral=True, store=store)
    async with connect(sync) as ann, connect(sync) as bob:
        await ann.upsert("Cursor", {"id": 1})
        if way == "evicted":
            await bob.upsert("Cursor", {"id": 2})
            assert list(lives_of(cursor)._owners) == ["2"]
            await bob.upsert("Cursor", {"id": 1})
        else:
            with pytest.raises(Reject, match="somebody else"):
                await bob.upsert("Cursor", {"id": 1})
            await store.delete(1)
            assert await cursor.delete(1) is False
            assert not lives_of(cursor)._owners
            await bob.upsert("Cursor", {"id": 1, "of": "bob"})


@virtual
async def test_a_tab_that_signs_in_as_somebody_else_does_not_take_the_other_tabs_records_along() -> None:
    sync = Backsync()

    @sync.on("auth")
    async def auth(ctx: Context, token: str | None) -> str | None:
        return token

    sync.model("Cursor", ephemeral=True, grace=1.0)
    async with (
        connect(sync, token="ann", client="page") as tab,
        connect(sync, token="ann", client="page") as other,
        connect(sync) as bob,
    ):
        cursors = await bob.subscribe("Cursor")
        await other.upsert("Cursor", {"id": "ann"})
        await tab.auth("eve")
        tab.disconnect()
        await asyncio.sleep(5)
        await bob.call("$:ping")
        assert list(cursors) == ["ann"], "who wrote it is still here"
        await other.upsert("Cursor", {"id": "ann", "x": 1})
        other.disconnect()
        await bob.until(lambda: not cursors)


class Faulty(MemoryStore):
    """A store in which so many deletes fail before one succeeds."""

    def __init__(self, faults: int) -> None:
        super().__init__()
        self.faults = faults
        self.tried_at: list[float] = []

    async def delete(self, id: Id, version: Any = None) -> bool:
        self.tried_at.append(asyncio.get_running_loop().time())
        if self.faults:
            self.faults -= 1
            raise Reject("unavailable", "The database is not available; try again.")
        return await super().delete(id, version)


@pytest.mark.parametrize("way", ["gone", "ttl"])
@virtual
async def test_a_record_that_its_store_could_not_delete_goes_as_soon_as_it_can(way: str) -> None:
    sync = Backsync()
    store = Faulty(8)
    cursor = sync.model("Cursor", ephemeral=True, grace=1.0, ttl=5.0 if way == "ttl" else None, store=store)
    async with connect(sync) as ann, connect(sync) as bob:
        cursors = await bob.subscribe("Cursor")
        await ann.upsert("Cursor", {"id": "ann"})
        if way == "gone":
            ann.disconnect()
        await asyncio.sleep(300)
        await bob.until(lambda: not cursors)
    first, *again = store.tried_at
    assert [round(at - first) for at in again] == [1, 3, 7, 15, 31, 63, 123, 183]
    lives = lives_of(cursor)
    assert (lives._owners, lives._owned, lives._leaves, list(lives._failed)) == ({}, {}, {}, [])
    assert lives._retry_timer is None


@virtual
async def test_who_is_back_before_its_record_could_be_deleted_keeps_it() -> None:
    sync = Backsync()
    store = Faulty(3)
    sync.model("Cursor", ephemeral=True, grace=1.0, store=store)
    async with connect(sync) as ann, connect(sync) as bob:
        cursors = await bob.subscribe("Cursor")
        await ann.upsert("Cursor", {"id": "ann"})
        ann.disconnect()
        await asyncio.sleep(3)
        assert len(store.tried_at) == 2
        await ann.reconnect()
        await asyncio.sleep(300)
        await bob.call("$:ping")
        assert list(cursors) == ["ann"]
        assert len(store.tried_at) == 2


@virtual
async def test_one_record_that_cannot_be_deleted_keeps_no_other_and_the_log_is_not_flooded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("backsync_asgi.ephemeral.MAX_FAILED", 10)
    sync = Backsync()
    store = Faulty(20)
    cursor = sync.model("Cursor", ephemeral=True, grace=1.0, store=store)
    async with connect(sync) as ann, connect(sync) as bob:
        cursors = await bob.subscribe("Cursor")
        for number in range(25):
            await ann.upsert("Cursor", {"id": number})
        ann.disconnect()
        await asyncio.sleep(300)
        await bob.call("$:ping")
        assert list(cursors) == list(range(10)), "what is too much to remember is given up, the oldest first"
    assert len([record for record in caplog.records if "could not be deleted" in record.message]) == 1
    assert not lives_of(cursor)._failed
