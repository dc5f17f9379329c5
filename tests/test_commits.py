"""What a store has committed reaches whoever is subscribed, whatever fails after it; in process, without sockets."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import pytest

from backsync_asgi import Backsync, Context, Reject, commits
from backsync_asgi.client import View
from backsync_asgi.commits import MAX_DOUBTS, Doubts
from backsync_asgi.limits import Limits
from backsync_asgi.models import Model
from backsync_asgi.signals import post_delete, post_save
from backsync_asgi.soon import SOON_LIMIT
from backsync_asgi.stores import MemoryStore, SQLStore
from backsync_asgi.stores.base import Unsure
from backsync_asgi.testing import Client, connect
from tests.inprocess import fetch

Id = str | int
Record = dict[str, Any]
Result = TypeVar("Result")

LIMIT = 0.2  # seconds that a handler has here
SEED: tuple[Record, ...] = ({"id": 1, "n": 0}, {"id": 2, "n": 0})


class Slow(MemoryStore):
    """Commits at once, and says so only when it is let: as a database does whose answer is late."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = asyncio.Event()
        self.answers.set()
        self.committed = asyncio.Event()

    async def upsert(self, record: Mapping[str, Any]) -> Record:
        return await self._late(await super().upsert(record))

    async def patch(self, id: Id, fields: Mapping[str, Any], unset: Sequence[str] = ()) -> Record:
        return await self._late(await super().patch(id, fields, unset))

    async def delete(self, id: Id, version: Any = None) -> bool:
        return await self._late(await super().delete(id, version))

    async def _late(self, result: Result) -> Result:
        self.committed.set()
        await self.answers.wait()
        return result


@pytest.fixture
def sync() -> Backsync:
    return Backsync(limits=Limits(handler_timeout=LIMIT))


@pytest.fixture
async def store() -> Slow:
    store = Slow()
    for record in SEED:
        await store.upsert(record)
    return store


WRITES: dict[str, tuple[str, Record]] = {
    "upsert": ("M:upsert", {"id": 1, "n": 1}),
    "new": ("M:upsert", {"n": 1}),
    "patch": ("M:patch", {"id": 1, "n": 1}),
    "delete": ("M:delete", {"id": 1}),
}


@pytest.fixture(params=WRITES)
def write(request: pytest.FixtureRequest) -> tuple[str, Record]:
    return WRITES[request.param]


async def code_of(call: Awaitable[Any]) -> str:
    with pytest.raises(Reject) as refusal:
        await call
    return refusal.value.code


async def until_equal(client: Client, view: View, store: MemoryStore) -> None:
    """Wait until the client has what the store has, which must not be what it began with."""
    rows = {row["id"]: row for row in await store.read({})}
    assert rows != {row["id"]: row for row in SEED}, "nothing has been committed"
    await client.until(lambda: dict(view) == rows)


# The store is late


async def test_a_write_that_is_committed_after_its_time_limit_is_broadcast(
    sync: Backsync, store: Slow, write: tuple[str, Record]
) -> None:
    sync.model("M", store=store)
    async with connect(sync) as author, connect(sync) as reader:
        view, own = await reader.subscribe("M"), await author.subscribe("M")
        store.answers.clear()
        assert await code_of(author.call(*write)) == "timeout"
        store.answers.set()
        await until_equal(reader, view, store)
        await until_equal(author, own, store)


async def test_so_is_one_that_has_waited_too_long_for_a_lock_of_the_database(sync: Backsync, tmp_path: Path) -> None:
    store = SQLStore(f"sqlite:///{tmp_path}/m.db")
    sync.model("M", store=store)
    await store.open()
    async with connect(sync) as author, connect(sync) as reader:
        view = await reader.subscribe("M")
        with closing(sqlite3.connect(tmp_path / "m.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert await code_of(author.upsert("M", {"id": 1, "n": 1})) == "timeout"
            other.execute("COMMIT")
        await reader.until(lambda: dict(view) == {1: {"id": 1, "n": 1}})
        assert await store.get(1) == {"id": 1, "n": 1}
    await store.close()


async def test_who_writes_next_waits_for_the_late_write_so_that_the_order_is_kept(sync: Backsync, store: Slow) -> None:
    sync.model("M", store=store)
    async with connect(sync) as author, connect(sync) as other:
        view = await other.subscribe("M")
        store.answers.clear()
        assert await code_of(author.upsert("M", {"id": 1, "n": 1})) == "timeout"
        store.committed.clear()
        second = asyncio.create_task(other.upsert("M", {"id": 1, "n": 2}))
        await author.call("$:ping")
        assert not store.committed.is_set()
        store.answers.set()
        await second
        await until_equal(other, view, store)
        told = [event.data["n"] for event in view.events]
        assert told == sorted(told)


async def test_a_write_that_never_ends_is_given_up_and_its_record_read_again(
    sync: Backsync, store: Slow, caplog: pytest.LogCaptureFixture
) -> None:
    sync.model("M", store=store)
    async with connect(sync) as author, connect(sync) as reader:
        view = await reader.subscribe("M")
        store.answers.clear()
        assert await code_of(author.upsert("M", {"id": 1, "n": 1})) == "timeout"
        await until_equal(reader, view, store)
        store.answers.set()
        assert await author.upsert("M", {"id": 1, "n": 2}) == {"id": 1, "n": 2}
    assert "nor within another one" in caplog.text


async def test_whoever_calls_the_model_and_is_cancelled_has_written(sync: Backsync, store: Slow) -> None:
    model = sync.model("M", store=store)
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: model.upsert({"id": 3, "n": 1}),
        lambda: model.patch(1, {"n": 1}),
        lambda: model.delete(2),
    ]
    async with connect(sync) as reader:
        view = await reader.subscribe("M")
        for call in calls:
            store.committed.clear()
            store.answers.clear()
            task = asyncio.ensure_future(call())
            await store.committed.wait()
            task.cancel()
            store.answers.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until_equal(reader, view, store)


async def test_a_client_that_leaves_while_it_writes_has_written(
    sync: Backsync, store: Slow, write: tuple[str, Record]
) -> None:
    sync.model("M", store=store)
    async with connect(sync) as reader:
        view = await reader.subscribe("M")
        async with connect(sync) as author:
            store.answers.clear()
            store.committed.clear()
            asking = asyncio.create_task(author.call(*write))
            await store.committed.wait()
            author.disconnect()
            asking.cancel()
            store.answers.set()
        await until_equal(reader, view, store)


async def test_so_has_one_that_leaves_over_rest(sync: Backsync, store: Slow) -> None:
    sync.model("M", store=store)
    rest = sync.rest()
    async with connect(sync) as reader:
        view = await reader.subscribe("M")
        store.answers.clear()
        store.committed.clear()
        headers = [(b"content-type", b"application/json")]
        asking = asyncio.create_task(fetch(rest, "/M/1", "DELETE", headers=headers))
        await store.committed.wait()
        asking.cancel()
        store.answers.set()
        await until_equal(reader, view, store)


# The handler fails after its store has committed


async def hang(ctx: Context, stored: Record) -> Any:
    await asyncio.Event().wait()


async def crash(ctx: Context, stored: Record) -> Any:
    raise RuntimeError("after the commit")


async def refuse(ctx: Context, stored: Record) -> Any:
    raise Reject("forbidden", "Too late.")


async def cancel_itself(ctx: Context, stored: Record) -> Any:
    raise asyncio.CancelledError


async def forget_to_return(ctx: Context, stored: Record) -> Any:
    return None


async def return_what_cannot_be_sent(ctx: Context, stored: Record) -> Any:
    return {**stored, "what": {1, 2}}


FAILURES = [hang, crash, refuse, cancel_itself, forget_to_return, return_what_cannot_be_sent]
Failure = Callable[[Context, Record], Awaitable[Any]]


@pytest.fixture(params=FAILURES, ids=lambda failure: failure.__name__)
def failure(request: pytest.FixtureRequest) -> Failure:
    chosen: Failure = request.param
    return chosen


@pytest.mark.parametrize("kind", [Slow, MemoryStore])
async def test_what_a_handler_has_committed_before_it_fails_is_broadcast(
    sync: Backsync, failure: Failure, kind: type[MemoryStore]
) -> None:
    store = kind()
    model = sync.model("M", store=store)
    for record in SEED:
        await store.upsert(record)

    @model.on("upsert")
    async def save(ctx: Context, record: Record) -> Any:
        return await failure(ctx, await ctx.store.upsert(record))

    async with connect(sync) as author, connect(sync) as reader:
        view, own = await reader.subscribe("M"), await author.subscribe("M")
        assert await code_of(author.upsert("M", {"id": 3, "n": 1})) in ("timeout", "forbidden", "handler_error")
        await until_equal(reader, view, store)
        await until_equal(author, own, store)


@pytest.mark.parametrize("fails", [True, False])
async def test_so_is_what_a_method_of_ones_own_has_committed(sync: Backsync, store: Slow, fails: bool) -> None:
    @sync.model("M", store=store).on("clear")
    async def clear(ctx: Context, data: Any) -> None:
        await ctx.store.patch(1, {"n": 1})
        await ctx.store.delete(2)
        assert not await ctx.store.delete(5)
        if fails:
            raise RuntimeError("halfway")

    async with connect(sync) as author:
        view = await author.subscribe("M")
        if fails:
            assert await code_of(author.call("M:clear")) == "handler_error"
        else:
            await author.call("M:clear")
        await until_equal(author, view, store)
        assert {(event.method, event.data["id"]) for event in view.events} == {("upsert", 1), ("delete", 2)}


async def test_other_records_than_the_one_that_a_handler_returns_are_told_as_they_are_stored(
    sync: Backsync, store: Slow
) -> None:
    model = sync.model("M", store=store)

    @model.on("upsert")
    async def save(ctx: Context, record: Record) -> Any:
        await ctx.store.upsert({"id": 2, "n": 1})
        await ctx.store.upsert({"id": 3, "n": 1})
        model.publish("upsert", {"id": 3, "n": 1, "by": "handler"})
        return {**await ctx.store.upsert(record), "by": "handler"}

    @model.on("delete")
    async def delete(ctx: Context, data: Record) -> Any:
        await ctx.store.delete(2)
        return await ctx.store.delete(data["id"])

    async with connect(sync) as author, connect(sync) as reader:
        view = await reader.subscribe("M")
        await author.upsert("M", {"id": 1, "n": 1})
        await reader.until(lambda: len(view.events) >= 3)
        assert dict(view) == {
            1: {"id": 1, "n": 1, "by": "handler"},
            2: {"id": 2, "n": 1},
            3: {"id": 3, "n": 1, "by": "handler"},
        }
        await author.delete("M", 1)
        await reader.until(lambda: {*view} == {3})
        await author.upsert("M", {"id": 4, "n": 1})
        await reader.until(lambda: {*view} == {2, 3, 4})
        assert len(view.events) == 3 + 2 + 3, "each is told of once"


async def test_what_only_a_read_handler_can_show_is_read_once_for_all_that_was_written(
    sync: Backsync, store: Slow
) -> None:
    model = sync.model("M", store=store)
    reads: list[Record] = []

    @model.on("read")
    async def read(ctx: Context, query: Record) -> list[Record]:
        reads.append(query)
        return [{"id": row["id"], "shown": row["n"]} for row in await ctx.store.read(query)]

    @model.on("fill")
    async def fill(ctx: Context, data: Any) -> None:
        for id in range(100):
            await ctx.store.upsert({"id": id, "n": 1})

    async with connect(sync) as author:
        view = await author.subscribe("M")
        await author.call("M:fill")
        await author.until(lambda: dict(view) == {id: {"id": id, "shown": 1} for id in range(100)})
        assert len(reads) == 2


class Late(MemoryStore):
    """Commits at once, and answers late where the record says so."""

    def __init__(self) -> None:
        super().__init__()
        self.committed, self.answers = asyncio.Event(), asyncio.Event()

    async def upsert(self, record: Mapping[str, Any]) -> Record:
        stored = await super().upsert(record)
        if stored.get("late"):
            self.committed.set()
            await self.answers.wait()
        return stored


async def test_nor_is_it_read_before_an_older_state_that_somebody_has_yet_to_tell(sync: Backsync) -> None:
    store = Late()
    model = sync.model("M", store=store)

    @model.on("read")
    async def read(ctx: Context, query: Record) -> list[Record]:
        return await store.read(query)

    @model.on("renew")
    async def renew(ctx: Context, data: Any) -> None:
        await ctx.store.upsert({"id": 1, "n": 2})

    async with connect(sync) as author:
        view = await author.subscribe("M")
        writing = asyncio.create_task(model.upsert({"id": 1, "n": 1, "late": True}))
        await store.committed.wait()
        await author.call("M:renew")
        for _ in range(5):
            await author.call("$:ping")
        store.answers.set()
        await writing
        await author.until(lambda: "snapshot" in [event.method for event in view.events])
        assert dict(view) == {1: {"id": 1, "n": 2}}


async def test_what_the_hooks_of_a_class_write_is_broadcast(sync: Backsync) -> None:
    @sync.model("M", store=MemoryStore())
    class Presence:
        async def on_open(self, ctx: Context) -> None:
            await ctx.store.upsert({"id": ctx.user})

        async def on_close(self, ctx: Context) -> None:
            await ctx.store.delete(ctx.user)

    async with connect(sync, user="ann") as ann:
        view = await ann.subscribe("M")
        async with connect(sync, user="bob") as bob:
            await bob.call("$:ping")
            await ann.until(lambda: {*view} == {"ann", "bob"})
        await ann.until(lambda: {*view} == {"ann"})


async def test_of_an_array_that_breaks_off_all_that_is_committed_is_broadcast(sync: Backsync, store: Slow) -> None:
    @sync.model("M", store=store).on("upsert")
    async def save(ctx: Context, record: Record) -> Any:
        stored = await ctx.store.upsert(record)
        if record["id"] == 2:
            raise RuntimeError("in the middle")
        return {**stored, "by": "handler"}

    async with connect(sync) as author:
        view = await author.subscribe("M")
        assert await code_of(author.upsert("M", [{"id": id, "n": 1} for id in (1, 2, 3)])) == "handler_error"
        await author.until(lambda: view.get(2) == {"id": 2, "n": 1})
        assert view[1] == {"id": 1, "n": 1, "by": "handler"}
        assert len(view.events) == 2


async def test_what_a_task_of_the_handlers_own_writes_after_it_is_broadcast(sync: Backsync, store: Slow) -> None:
    tasks = []

    @sync.model("M", store=store).on("later")
    async def later(ctx: Context, data: Any) -> None:
        tasks.append(asyncio.create_task(ctx.store.upsert({"id": 3})))
        store.answers.clear()

    async with connect(sync) as author:
        view = await author.subscribe("M")
        await author.call("M:later")
        store.answers.set()
        await until_equal(author, view, store)


async def test_so_is_what_it_writes_by_the_store_of_the_handlers_context(sync: Backsync, store: Slow) -> None:
    tasks = []
    go_on = asyncio.Event()

    async def later(ctx: Context, id: Id) -> None:
        await go_on.wait()
        await ctx.store.upsert({"id": id, "n": 2})

    @sync.model("M", store=store).on("upsert")
    async def save(ctx: Context, record: Record) -> Record:
        tasks.append(asyncio.create_task(later(ctx, record["id"])))
        if record["id"] == 4:
            go_on.set()
            await asyncio.sleep(0)
        return await ctx.store.upsert(record)

    async with connect(sync) as author:
        view = await author.subscribe("M")
        await author.upsert("M", [{"id": 3, "n": 1}, {"id": 4, "n": 1}])
        await asyncio.gather(*tasks)
        await author.until(lambda: view[3]["n"] == 2)


@pytest.mark.parametrize(
    ("method", "end"), [("upsert", "fails"), ("upsert", "returns"), ("walk", "tells by the model")]
)
async def test_a_record_is_gone_from_each_channel_that_it_has_passed_in_a_handler(
    sync: Backsync, method: str, end: str
) -> None:
    model = sync.model("M", store=MemoryStore(), key="room")
    stays, goes_on = asyncio.Event(), asyncio.Event()

    @model.on(method)
    async def walk(ctx: Context, record: Record) -> Record:
        await ctx.store.upsert({"id": 1, "room": "b"})
        stays.set()
        await goes_on.wait()
        if end == "tells by the model":
            return await model.upsert({"id": 1, "room": "c"})
        stored = await ctx.store.upsert({"id": 1, "room": "c"})
        if end == "fails":
            raise RuntimeError("on the way")
        return stored

    await model.upsert({"id": 1, "room": "a"})
    async with connect(sync) as author, connect(sync) as reader:
        first = await reader.subscribe("M", {"room": "a"})
        walking = asyncio.create_task(author.call(f"M:{method}", {"id": 1, "room": "c"}))
        await stays.wait()
        between, last = await reader.subscribe("M", {"room": "b"}), await reader.subscribe("M", {"room": "c"})
        assert dict(between) == {1: {"id": 1, "room": "b"}}
        goes_on.set()
        if end == "fails":
            assert await code_of(walking) == "handler_error"
        else:
            await walking
        await reader.until(lambda: dict(last) == {1: {"id": 1, "room": "c"}})
        await reader.until(lambda: (dict(first), dict(between)) == ({}, {}))


async def test_where_a_read_handler_decides_what_is_shown_it_is_asked(sync: Backsync, store: Slow) -> None:
    model = sync.model("M", store=store)

    @model.on("read")
    async def read(ctx: Context, query: Record) -> list[Record]:
        return [{"id": row["id"], "n": row["n"]} for row in await ctx.store.read(query)]

    @model.on("upsert")
    async def save(ctx: Context, record: Record) -> Any:
        await ctx.store.upsert({**record, "secret": "s"})
        raise RuntimeError("before it could leave the secret out")

    async with connect(sync) as author, connect(sync) as reader:
        texts: list[str] = []
        reader.on_text = texts.append
        view = await reader.subscribe("M")
        assert await code_of(author.upsert("M", {"id": 3, "n": 1})) == "handler_error"
        await reader.until(lambda: view.get(3) == {"id": 3, "n": 1})
        assert "secret" not in "".join(texts)


async def test_an_ephemeral_record_is_its_writers_also_where_the_handler_fails(sync: Backsync) -> None:
    model = sync.model("Cursor", ephemeral=True)

    @model.on("upsert")
    async def save(ctx: Context, record: Record) -> Any:
        stored = await ctx.store.upsert(record)
        if record["n"] == 1:
            raise RuntimeError("after the commit")
        return stored

    async with connect(sync) as ann, connect(sync) as bob:
        view = await ann.subscribe("Cursor")
        both = (ann.upsert("Cursor", {"id": "a", "n": 1}), bob.upsert("Cursor", {"id": "b", "n": 1}))
        assert all(isinstance(it, Reject) for it in await asyncio.gather(*both, return_exceptions=True))
        await ann.until(lambda: {*view} == {"a", "b"})
        assert await code_of(ann.upsert("Cursor", {"id": "b", "n": 2})) == "forbidden"
        assert await code_of(bob.upsert("Cursor", {"id": "a", "n": 2})) == "forbidden"
        await bob.upsert("Cursor", {"id": "b", "n": 2})


async def test_a_handler_that_ends_well_is_told_of_once(sync: Backsync, store: Slow) -> None:
    @sync.model("M", store=store).on("upsert")
    async def save(ctx: Context, record: Record) -> Any:
        return {**await ctx.store.upsert(record), "by": "handler"}

    async with connect(sync) as author:
        view = await author.subscribe("M")
        await author.upsert("M", {"id": 1, "n": 1})
        await author.upsert("M", {"id": 2, "n": 1})
        await author.until(lambda: len(view.events) >= 2)
        assert [event.data for event in view.events] == [{"id": id, "n": 1, "by": "handler"} for id in (1, 2)]


@pytest.mark.parametrize("readable", [False, True])
@pytest.mark.parametrize("method", ["upsert", "delete"])
async def test_a_plain_handler_that_returns_after_its_time_limit_has_written(
    sync: Backsync, readable: bool, method: str
) -> None:
    model, rows = sync.model("M"), {row["id"]: row for row in SEED}
    began, goes_on = threading.Event(), threading.Event()

    def save(ctx: Context, record: Record) -> Any:
        began.set()
        goes_on.wait(5)
        if method == "delete":
            del rows[record["id"]]
            return True
        rows[record["id"]] = record
        return record

    model.on(method)(save)
    if readable:
        model.on("read")(lambda ctx, query: list(rows.values()))
    for row in SEED:
        model.publish("upsert", row)
    async with connect(sync) as author, connect(sync) as reader:
        view = await reader.subscribe("M")
        try:
            while not began.is_set():  # a thread may take longer to start than a handler may take
                assert await code_of(author.call(f"M:{method}", {"id": 1, "n": 1})) == "timeout"
        finally:
            goes_on.set()
        left = {1: {"id": 1, "n": 1}} if method == "upsert" else {}
        await reader.until(lambda: dict(view) == {2: SEED[1], **left})
        assert dict(view) == rows


# Others tell of a record between its commit and what its writer tells


class Handler:
    """Goes on, and on its way back, when it is let."""

    def __init__(self) -> None:
        self.has_stored, self.goes_on = asyncio.Event(), asyncio.Event()

    async def __call__(self, ctx: Context, record: Record) -> Record:
        stored = await ctx.store.upsert({"id": "new", **record})
        if record.get("slow"):
            self.has_stored.set()
            await self.goes_on.wait()
        return stored


@pytest.mark.parametrize("what", ["patch", "delete", "upsert"])
@pytest.mark.parametrize("kind", [Slow, MemoryStore])
async def test_a_new_record_that_somebody_has_written_before_its_handler_returned_is_as_it_is_stored(
    sync: Backsync, kind: type[MemoryStore], what: str
) -> None:
    handler, store = Handler(), kind()
    model = sync.model("M", store=store)
    model.on("upsert")(handler)
    async with connect(sync) as author, connect(sync) as other:
        view = await other.subscribe("M")
        writing = asyncio.create_task(author.upsert("M", {"n": 1, "slow": True}))
        await handler.has_stored.wait()
        if what == "upsert":  # which is new to its client as well
            await other.upsert("M", {"n": 2, "slow": False})
        else:
            changed = {"n": 2, "slow": False} if what == "patch" else {}
            await other.call(f"M:{what}", {"id": "new", **changed})
        handler.goes_on.set()
        await writing
        await until_equal(other, view, store)


async def test_a_record_that_was_evicted_before_its_handler_returned_is_gone(sync: Backsync) -> None:
    handler, store = Handler(), MemoryStore(limit=1, full="evict")
    model = sync.model("M", store=store)
    model.on("upsert")(handler)
    async with connect(sync) as author, connect(sync) as other:
        view = await other.subscribe("M")
        writing = asyncio.create_task(author.upsert("M", {"id": 1, "slow": True}))
        await handler.has_stored.wait()
        await model.upsert({"id": 2})
        handler.goes_on.set()
        await writing
        await other.until(lambda: len(view.events) >= 4)
        assert {*view} == {2}


async def test_a_record_that_is_added_again_before_its_eviction_is_told_stays(sync: Backsync) -> None:
    handler, store = Handler(), MemoryStore(limit=2, full="evict")
    model = sync.model("M", store=store)
    model.on("upsert")(handler)
    for id in (1, 2):
        await model.upsert({"id": id})
    async with connect(sync) as author, connect(sync) as other:
        view = await other.subscribe("M")
        writing = asyncio.create_task(author.upsert("M", {"id": 3, "slow": True}))
        await handler.has_stored.wait()
        await other.upsert("M", {"id": 1})
        handler.goes_on.set()
        await writing
        await other.until(lambda: 3 in view)
        assert {*view} == {1, 3}


async def test_what_a_handler_publishes_of_another_record_is_not_what_stays_of_it(sync: Backsync) -> None:
    model = sync.model("M", store=MemoryStore())
    has_stored, goes_on = asyncio.Event(), asyncio.Event()

    @model.on("renew")
    async def renew(ctx: Context, data: Any) -> None:
        stored = await ctx.store.upsert({"id": 1, "n": 1})
        has_stored.set()
        await goes_on.wait()
        model.publish("upsert", stored)

    async with connect(sync) as author:
        view = await author.subscribe("M")
        renewing = asyncio.create_task(author.call("M:renew"))
        await has_stored.wait()
        await model.upsert({"id": 1, "n": 2})
        goes_on.set()
        await renewing
        await author.until(lambda: [event.data["n"] for event in view.events] == [2, 1, 2])


async def test_nor_is_an_older_state_whose_store_was_late(sync: Backsync) -> None:
    store = Late()
    model = sync.model("M", store=store)

    @model.on("renew")
    async def renew(ctx: Context, data: Any) -> None:
        model.publish("upsert", await ctx.store.upsert({"id": 1, "n": 2}))

    async with connect(sync) as author:
        view = await author.subscribe("M")
        writing = asyncio.create_task(model.upsert({"id": 1, "n": 1, "late": True}))
        await store.committed.wait()
        await author.call("M:renew")
        store.answers.set()
        await writing
        await author.until(lambda: [event.data["n"] for event in view.events] == [2, 1, 2])


async def test_what_a_plain_handler_returns_of_a_record_of_its_own_choice_is_not_what_stays() -> None:
    sync = Backsync()
    model = sync.model("M", store=MemoryStore())
    has_begun, goes_on = threading.Event(), threading.Event()

    @model.on("upsert")
    def save(ctx: Context, record: Record) -> Record:
        has_begun.set()
        goes_on.wait(5)
        return {"id": 1, **record}

    async with connect(sync) as author:
        view = await author.subscribe("M")
        writing = asyncio.create_task(author.upsert("M", {"n": 1}))
        await asyncio.to_thread(has_begun.wait, 5)
        await model.upsert({"id": 1, "n": 2})
        goes_on.set()
        await writing
        await author.until(lambda: [event.data["n"] for event in view.events] == [2, 1, 2])


# What is around a write fails


async def test_receivers_that_fail_stop_no_broadcast(sync: Backsync, store: Slow) -> None:
    model = sync.model("M", store=store)

    async def failing(model: Model, **what: Any) -> None:
        raise RuntimeError("async")

    def failing_at_once(model: Model, **what: Any) -> None:
        raise RuntimeError("plain")

    async with connect(sync) as author, connect(sync) as reader:
        view = await reader.subscribe("M")
        for receiver in (failing, failing_at_once):
            with post_save.connected_to(receiver, model), post_delete.connected_to(receiver, model):
                await author.upsert("M", {"id": 3, "by": receiver.__name__})
                await until_equal(reader, view, store)
                await author.delete("M", 3)
                await reader.until(lambda: 3 not in view)


async def test_a_change_from_a_thread_that_had_to_be_dropped_is_read_anew() -> None:
    sync, rows = Backsync(), dict[Id, Record]()
    model = sync.model("Row")
    model.on("read")(lambda ctx, query: list(rows.values()))

    def publish() -> None:
        for number in range(SOON_LIMIT + 5):
            rows[number] = {"id": number}
            model.publish("upsert", rows[number])

    async with connect(sync) as client:
        view = await client.subscribe("Row")
        thread = threading.Thread(target=publish)
        thread.start()
        thread.join()  # the loop has no turn meanwhile
        await client.until(lambda: len(view) == len(rows))


# The store does not know


class Unsteady(MemoryStore):
    """Commits, then says that it does not know; and does not answer at all for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.failures = 0  # of reads that are still to come

    async def upsert(self, record: Mapping[str, Any]) -> Record:
        await super().upsert(record)
        raise Unsure("unavailable", "The connection was lost.")

    async def delete(self, id: Id, version: Any = None) -> bool:
        await super().delete(id, version)
        raise Unsure("unavailable", "The connection was lost.")

    async def get(self, id: Id) -> Record | None:
        self._fail()
        return await super().get(id)

    async def read(self, query: Mapping[str, Any]) -> list[Record]:
        self._fail()
        return await super().read(query)

    def _fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise Reject("unavailable")


@pytest.mark.parametrize("event", ["M:upsert", "M:delete"])
@pytest.mark.parametrize("id", [1, None])
async def test_a_write_of_which_the_store_is_not_sure_is_read_again_when_it_can_be(
    sync: Backsync, event: str, id: Id | None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backsync_asgi.commits.FIRST_DELAY", 0.001)
    store = Unsteady()
    model = sync.model("M", store=store)
    for record in SEED:
        await MemoryStore.upsert(store, record)
    async with connect(sync) as author, connect(sync) as reader:
        view = await reader.subscribe("M")
        store.failures = 3
        record = {"n": 1} if id is None and event == "M:upsert" else {"id": 1, "n": 1}
        with caplog.at_level(logging.WARNING):
            assert await code_of(author.call(event, record)) == "unavailable"
            rows = {row["id"]: row for row in await MemoryStore.read(store, {})}
            await reader.until(lambda: dict(view) == rows)
        assert "cannot be read yet" in caplog.text
        assert await code_of(model.upsert({"id": 9})) == "unavailable"
        await reader.until(lambda: 9 in view)


async def test_a_record_that_cannot_be_told_keeps_no_other_waiting(
    sync: Backsync, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(MemoryStore):
        async def get(self, id: Id) -> Record | None:
            if id == "broken":
                raise RuntimeError("nobody can read it")
            return await super().get(id)

    monkeypatch.setattr(commits, "FIRST_DELAY", 60.0)

    @sync.model("M", store=Broken()).on("upsert")
    async def save(ctx: Context, record: Record) -> Any:
        await ctx.store.upsert(record)
        raise RuntimeError

    async with connect(sync) as author:
        view = await author.subscribe("M")
        assert await code_of(author.upsert("M", {"id": "broken"})) == "handler_error"
        await author.until(lambda: "cannot be read yet" in caplog.text)
        assert await code_of(author.upsert("M", {"id": 2})) == "handler_error"
        await author.until(lambda: dict(view) == {2: {"id": 2}})


async def test_a_record_that_comes_in_doubt_as_another_is_tried_again_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(commits, "FIRST_DELAY", 0.02)
    looked: list[Id | None] = []
    begun, done = asyncio.Event(), asyncio.Event()

    async def look(id: Id | None) -> None:
        looked.append(id)
        begun.set()
        if looked == [1]:
            raise RuntimeError
        if set(looked[1:]) == {1, 2}:
            done.set()

    doubts, loop = Doubts(look), asyncio.get_running_loop()
    doubts.add(1)
    await begun.wait()
    loop.call_later(0.025, doubts.add, 2)
    loop.call_later(0.01, time.sleep, 0.03)  # so that both are due in the same tick, this one last
    async with asyncio.timeout(5):
        await done.wait()


async def test_a_record_that_is_left_without_a_channel_is_gone_and_not_looked_at_for_ever(
    sync: Backsync, caplog: pytest.LogCaptureFixture
) -> None:
    model = sync.model("M", store=MemoryStore(), key="room")

    @model.on("leave")
    async def leave(ctx: Context, data: Any) -> None:
        await ctx.store.upsert({"id": 1})
        raise RuntimeError

    await model.upsert({"id": 1, "room": "a"})
    async with connect(sync) as author:
        view = await author.subscribe("M", {"room": "a"})
        assert await code_of(author.call("M:leave")) == "handler_error"
        await author.until(lambda: dict(view) == {})
    assert "cannot be read yet" not in caplog.text


async def test_too_many_doubts_have_everybody_read_anew(sync: Backsync, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backsync_asgi.commits.LAST_DELAY", 0.02)
    store = Unsteady()
    model = sync.model("M", store=store)
    async with connect(sync) as reader:
        view = await reader.subscribe("M")
        store.failures = 1_000_000
        for number in range(MAX_DOUBTS + 5):
            with pytest.raises(Reject):
                await model.upsert({"id": number})
        store.failures = 0
        await reader.until(lambda: len(view) == MAX_DOUBTS + 5)
        assert len(view.events) < 10


# Another process writes the same rows: straight into the store


class Shared(Slow):
    """Reads as late as it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = asyncio.Event()
        self.reads.set()

    async def snapshot(self, query: Mapping[str, Any]) -> AsyncGenerator[list[str], None]:
        await self.reads.wait()
        async for texts in super().snapshot(query):
            yield texts

    async def write_elsewhere(self, record: Record) -> None:
        await MemoryStore.upsert(self, record)


@pytest.fixture
async def shared() -> tuple[Backsync, Shared]:
    sync, store = Backsync(), Shared()
    sync.model("M", store=store, version="rev")
    await store.upsert({"id": 1, "by": "us"})
    store.committed.clear()
    return sync, store


@pytest.mark.parametrize("how", ["subscribe", "read", "read one"])
async def test_who_has_read_a_newer_version_does_not_get_the_older_one_that_was_on_its_way(
    shared: tuple[Backsync, Shared], how: str
) -> None:
    sync, store = shared
    async with connect(sync) as author, connect(sync) as reader:
        view = await reader.subscribe("M")
        store.answers.clear()
        writing = asyncio.create_task(author.upsert("M", {"id": 1, "by": "us"}))
        await store.committed.wait()
        await store.write_elsewhere({"id": 1, "by": "them"})
        newest = {"id": 1, "by": "them", "rev": 3}
        if how == "subscribe":
            assert dict(await reader.subscribe("M")) == {1: newest}
        else:
            assert await reader.read("M", {"id": 1} if how == "read one" else None) in (newest, [newest])
        store.answers.set()
        assert (await writing)["rev"] == 2
        await author.call("$:ping")
        await reader.until(lambda: view[1] == newest)
        assert [event.data for event in view.events] in ([], [newest])


async def test_nor_one_that_was_written_while_it_read(shared: tuple[Backsync, Shared]) -> None:
    sync, store = shared
    async with connect(sync) as author, connect(sync) as reader:
        store.reads.clear()
        reading = asyncio.create_task(reader.subscribe("M"))
        await author.upsert("M", {"id": 1, "by": "us"})
        await store.write_elsewhere({"id": 1, "by": "them"})
        store.reads.set()
        view = await reading
        await author.upsert("M", {"id": 2})
        await reader.until(lambda: 2 in view)
        assert view[1] == {"id": 1, "by": "them", "rev": 3}
        assert [event.data["rev"] for event in view.events if event.data["id"] == 1] in ([], [3])


async def test_a_record_that_was_deleted_and_added_again_elsewhere_is_followed(shared: tuple[Backsync, Shared]) -> None:
    sync, store = shared
    async with connect(sync) as author:
        view = await author.subscribe("M")
        await author.upsert("M", {"id": 1, "by": "us"})
        await author.upsert("M", {"id": 1, "by": "us"})
        await MemoryStore.delete(store, 1)
        await store.write_elsewhere({"id": 1, "by": "them"})
        await author.upsert("M", {"id": 1, "by": "us anew"})
        await author.until(lambda: view[1] == {"id": 1, "by": "us anew", "rev": 2})


async def test_so_is_one_that_a_failing_handler_has_deleted_and_added_again(sync: Backsync) -> None:
    model = sync.model("M", store=MemoryStore(), version="rev")

    @model.on("again")
    async def again(ctx: Context, record: Record) -> None:
        await ctx.store.delete(record["id"])
        await ctx.store.upsert(record)
        raise RuntimeError("it has another content, and the same version")

    async with connect(sync) as author:
        view = await author.subscribe("M")
        await author.upsert("M", {"id": 1, "n": 1})
        assert await code_of(author.call("M:again", {"id": 1, "n": 2})) == "handler_error"
        await author.until(lambda: view.get(1) == {"id": 1, "n": 2, "rev": 1})


async def test_what_is_deleted_while_it_is_read_again_stays_deleted(shared: tuple[Backsync, Shared]) -> None:
    sync, store = shared
    model = sync.model("M")
    async with connect(sync) as author, connect(sync) as reader:
        view = await reader.subscribe("M")
        store.answers.clear()
        writing = asyncio.create_task(author.upsert("M", {"id": 1, "by": "us"}))
        await store.committed.wait()
        get, began, goes_on = store.get, asyncio.Event(), asyncio.Event()

        async def late(id: Id) -> Record | None:
            record = await get(id)
            began.set()
            await goes_on.wait()
            return record

        store.get = late  # type: ignore[method-assign]
        reading = asyncio.create_task(reader.read("M"))
        await began.wait()
        store.answers.set()
        await writing
        store.get = get  # type: ignore[method-assign]
        await model.delete(1)
        goes_on.set()
        await reading
        await author.upsert("M", {"id": 2})
        await reader.until(lambda: 2 in view)
        assert 1 not in view


async def test_nor_does_a_record_come_back_to_a_channel_that_it_leaves_while_it_is_read(sync: Backsync) -> None:
    class LateReads(MemoryStore):
        is_late = False

        async def get(self, id: Id) -> Record | None:
            record = await super().get(id)
            if self.is_late:
                was_read.set()
                await answers.wait()
            return record

    was_read, answers = asyncio.Event(), asyncio.Event()
    begun, goes_on = asyncio.Event(), asyncio.Event()
    store = LateReads()
    model = sync.model("M", store=store, key="room", version="rev")
    await model.upsert({"id": 1, "room": "a"})

    @model.on("upsert")
    async def save(ctx: Context, record: Record) -> Record:
        begun.set()
        await goes_on.wait()
        return await ctx.store.upsert(record)

    async with connect(sync) as author, connect(sync) as reader:
        before, after = await reader.subscribe("M", {"room": "a"}), await reader.subscribe("M", {"room": "b"})
        writing = asyncio.create_task(author.upsert("M", {"id": 1, "room": "b"}))
        await begun.wait()
        store.is_late = True
        reading = asyncio.create_task(reader.read("M", {"room": "a"}))
        await was_read.wait()
        goes_on.set()
        await writing
        answers.set()
        await reading
        await reader.call("$:ping")
        assert (dict(before), dict(after)) == ({}, {1: {"id": 1, "room": "b", "rev": 2}})
