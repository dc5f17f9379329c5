"""Ephemeral records: how long they live and whose they are, however leaving, coming back and writing overlap."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backsync_asgi import Backsync, Context
from backsync_asgi.ephemeral import Lives
from backsync_asgi.errors import Reject
from backsync_asgi.hub import Acting
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


class Owner:
    """A connection, as far as it owns records."""

    user = None
    is_open = True

    def __init__(self, client: str) -> None:
        self.client = client
        self.owner = self


class Unwalked(dict[str, Id]):
    """Records that are not looked at one by one."""

    def __iter__(self) -> Any:
        raise AssertionError("all records were looked at")

    items = values = keys = __iter__


def lives() -> Lives:
    async def delete(id: Id, is_due: Any) -> None:
        raise AssertionError("nothing is to be deleted")

    return Lives("M", 1.0, None, delete)


def write(lives: Lives, owner: Owner, id: Id) -> None:
    token = Acting.current.set(Acting(owner))  # type: ignore[arg-type]
    try:
        lives.note("upsert", id)
    finally:
        Acting.current.reset(token)


def may_write(lives: Lives, client: str, id: Id) -> bool:
    try:
        lives.check(Owner(client), id)
    except Reject:
        return False
    return True


@pytest.mark.parametrize("stays", [False, True])
def test_who_says_its_name_takes_its_records_along_however_many(stays: bool) -> None:
    """Kind: a message of 60 bytes costs work for each record that its sender owns."""
    them, owner = lives(), Owner("old")
    for id in range(3):
        write(them, owner, id)
    [holding] = them._owned["old"]
    holding.records = Unwalked(holding.records)
    for old, new in (("old", "new"), ("new", "newer"), ("newer", "new")):
        them.renamed(old, new, None, stays)
    assert all(may_write(them, "new", id) for id in range(3))
    assert may_write(them, "old", 1) is stays


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.sampled_from("abc"), st.integers(0, 3)),
            st.tuples(st.just("delete"), st.just(""), st.integers(0, 3)),
            st.tuples(st.sampled_from(["move", "share"]), st.sampled_from("abc"), st.sampled_from("abc")),
        ),
        max_size=30,
    )
)
def test_a_record_is_owned_as_sets_of_its_clients_say(steps: list[tuple[str, str, Any]]) -> None:
    them, owners = lives(), dict[int, set[str]]()
    for what, client, other in steps:
        if what == "write":
            write(them, Owner(client), other)
            owners.setdefault(other, set()).add(client)
        elif what == "delete":
            them.note("delete", other)
            owners.pop(other, None)
        elif client != other:
            them.renamed(client, other, None, what == "share")
            for clients in owners.values():
                if client in clients:
                    clients.add(other)
                    if what == "move":
                        clients.discard(client)
        for id in range(4):
            for name in "abc":
                assert may_write(them, name, id) is (name in owners.get(id, {name}))
    held = {client for client, holdings in them._owned.items() if holdings}
    assert held == set().union(*owners.values()) == them._owned.keys()


async def test_a_hidden_record_of_somebody_else_is_answered_for_as_a_missing_one() -> None:
    """The kind of fault: a refusal tells that a record is there which the client may not see."""
    sync = Backsync()
    cursors = sync.model("Cursor", ephemeral=True)
    cursors.visible(lambda ctx, record: record["user"] == ctx.user)
    async with connect(sync, user="ann") as ann, connect(sync, user="bob") as bob:
        await ann.upsert("Cursor", {"id": 1, "user": "ann", "x": 1})
        for id in (1, 2):
            await bob.delete("Cursor", id)
            with pytest.raises(Reject) as refused:
                await bob.patch("Cursor", {"id": id, "x": 2})
            assert (refused.value.code, str(id) in refused.value.message) == ("not_found", True)
        with pytest.raises(Reject, match="may not upsert"):
            await bob.upsert("Cursor", {"id": 1, "user": "bob"})
        assert await ann.read("Cursor", {"id": 1}) == {"id": 1, "user": "ann", "x": 1}
        await ann.patch("Cursor", {"id": 1, "x": 3})
        await ann.delete("Cursor", 1)
        await bob.upsert("Cursor", {"id": 1, "user": "bob"})
