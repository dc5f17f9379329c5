"""One example for each way in which a system of this kind has failed somewhere; scripts/mutants.py plants them here."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from backsync_asgi import Backsync, Context, Reject
from backsync_asgi.limits import Horizon
from backsync_asgi.stores import MemoryStore
from backsync_asgi.testing import TRANSPORTS, Client, Transport, connect
from tests.convergence.clock import virtual
from tests.inprocess import connect as connect_raw
from tests.inprocess import fetch, websocket_scope

Record = dict[str, Any]


def todos(**options: Any) -> Backsync:
    sync = Backsync(horizon=Horizon(records=10, age=60.0), **options)
    sync._hub.now = lambda: asyncio.get_running_loop().time()
    sync.model("Todo", store=MemoryStore())
    return sync


async def settle(*clients: Client) -> None:
    """All that was on its way has come: what waits goes out with the reply to a ping."""
    for client in clients:
        await client.call("$:ping")


@virtual
async def test_a_resume_brings_each_changed_record_once_and_none_else() -> None:
    sync = todos()
    async with connect(sync) as ann, connect(sync) as bob:
        view = await ann.subscribe("Todo")
        for id in "abc":
            await bob.upsert("Todo", {"id": id, "at": 0})
        await settle(ann)
        ann.disconnect()
        seen = len(view.events)
        for at in range(1, 5):
            for id in "cdb":
                await bob.upsert("Todo", {"id": id, "at": at})
        await ann.reconnect()
        await settle(ann)
        assert view.mode == "resume"
        assert [(event.data["id"], event.data["at"]) for event in view.events[seen:]] == [("c", 4), ("d", 4), ("b", 4)]
        assert view["a"]["at"] == 0


@pytest.mark.parametrize("way", ["count", "age"])
@virtual
async def test_who_comes_back_from_beyond_the_horizon_gets_a_snapshot(way: str) -> None:
    sync = todos()
    async with connect(sync) as ann, connect(sync) as bob:
        view = await ann.subscribe("Todo")
        await bob.upsert("Todo", {"id": "gone"})
        await bob.upsert("Todo", {"id": "kept"})
        await settle(ann)
        ann.disconnect()
        await bob.delete("Todo", "gone")
        if way == "age":
            await asyncio.sleep(61)
        for number in range(12 if way == "count" else 1):
            await bob.upsert("Todo", {"id": number})
        await ann.reconnect()
        assert view.mode == "snapshot"
        assert "gone" not in view
        assert len(view) == (13 if way == "count" else 2)


@virtual
async def test_a_position_of_another_run_of_the_server_means_nothing() -> None:
    store = MemoryStore()

    def start() -> Backsync:
        sync = Backsync()
        sync.model("Todo", store=store)
        return sync

    app = start()

    async def door(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)

    async with connect(door) as ann:
        view = await ann.subscribe("Todo")
        for id in "abc":
            await ann.upsert("Todo", {"id": id})
        await settle(ann)
        ann.disconnect()
        app = start()
        await app.model("Todo").delete("a")
        for at in range(5):
            await app.model("Todo").upsert({"id": "b", "at": at})
        await ann.reconnect()
        await settle(ann)
        assert view == {"b": {"id": "b", "at": 4}, "c": {"id": "c"}}


@pytest.mark.parametrize("transport", TRANSPORTS)
@virtual
async def test_a_write_whose_reply_was_lost_is_applied_once(transport: Transport) -> None:
    sync = Backsync()
    bank = sync.model("Account")
    balance = 0

    @bank.on("add")
    async def add(ctx: Context, amount: int) -> int:
        nonlocal balance
        balance += amount
        return balance

    async with connect(sync, transport=transport) as ann:
        assert await ann.call("Account:add", 1) == 1
        ann.cut_after(down=0)
        adding = asyncio.ensure_future(ann.call("Account:add", 10))
        await ann.until(lambda: not ann.connected)
        assert balance == 11
        await ann.reconnect()
        assert await adding == 11
        ann.send_twice()
        assert await ann.call("Account:add", 100) == 111
        await settle(ann)
        assert balance == 111


@virtual
async def test_an_id_that_was_used_for_another_write_is_refused() -> None:
    sync = todos()
    async with connect(sync, client="ann's") as ann, connect(sync, client="bob's") as bob:
        await ann.upsert("Todo", {"id": 1})
        last = ann._talk._number
        ann._talk._number -= 1
        with pytest.raises(Reject, match="bad_message"):
            await ann.upsert("Todo", {"id": 2})
        bob._talk._number = last - 1
        await bob.upsert("Todo", {"id": 3})  # another client's ids are its own
        assert {record["id"] for record in await ann.read("Todo")} == {1, 3}


@virtual
async def test_what_was_deleted_stays_so() -> None:
    sync = todos()
    async with connect(sync) as ann, connect(sync) as bob:
        view = await ann.subscribe("Todo")
        await bob.upsert("Todo", [{"id": 1}, {"id": 2}, {"id": 3}])
        await bob.delete("Todo", 1)
        await settle(ann)
        assert list(view) == [2, 3]
        ann.disconnect()
        await bob.delete("Todo", 2)
        await ann.reconnect()
        await settle(ann)
        assert list(view) == [3]


@pytest.mark.parametrize("transport", TRANSPORTS)
@virtual
async def test_who_does_not_read_gets_the_newest_of_each_record_when_it_reads_again(transport: Transport) -> None:
    sync = todos()
    async with connect(sync, transport=transport) as slow, connect(sync) as quick, connect(sync) as author:
        view, other = await slow.subscribe("Todo"), await quick.subscribe("Todo")
        slow.stall()
        for at in range(100):
            await author.upsert("Todo", {"id": at % 5, "at": at})
        await settle(quick)
        assert len(other.events) == 100
        slow.flow()
        await slow.until(lambda: view == other)
        # What was already on its way when it stopped to read comes too: one frame.
        assert len(view.events) <= 6
        assert [event.data["at"] for event in view.events[-5:]] == [95, 96, 97, 98, 99]


@virtual
async def test_a_write_that_races_with_a_snapshot_is_not_lost() -> None:
    sync = Backsync()
    store = MemoryStore()
    reading, go_on = asyncio.Event(), asyncio.Event()

    @sync.model("Todo", store=store).on("read")
    async def read(ctx: Context, query: Record) -> list[Record]:
        rows = await ctx.store.read(query)
        reading.set()
        await go_on.wait()
        return rows

    async with connect(sync) as ann, connect(sync) as bob:
        subscribing = asyncio.ensure_future(ann.subscribe("Todo"))
        await reading.wait()
        await bob.upsert("Todo", {"id": "while it was read"})
        go_on.set()
        view = await subscribing
        await settle(ann)
        assert list(view) == ["while it was read"]


@virtual
async def test_a_snapshot_replaces_what_was_there() -> None:
    sync = todos()
    async with connect(sync) as ann, connect(sync) as bob:
        view = await ann.subscribe("Todo")
        await bob.upsert("Todo", {"id": "gone"})
        await settle(ann)
        ann.stall()
        await bob.delete("Todo", "gone")
        for number in range(15):
            await bob.upsert("Todo", {"id": number})
        ann.flow()
        await ann.until(lambda: len(view) == 15)
        assert [event.method for event in view.events][-1] == "snapshot"
        assert "gone" not in view


@pytest.mark.parametrize("jump", [-3_600.0, 3_600.0, 315_360_000.0])
async def test_the_wall_clock_is_nobodys_business(jump: float, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = Backsync()
    sync.model("Todo", store=MemoryStore())
    applied = 0

    @sync.model("Todo").on("count")
    async def count(ctx: Context, data: object) -> int:
        nonlocal applied
        applied += 1
        return applied

    async with connect(sync) as ann, connect(sync) as bob:
        view = await ann.subscribe("Todo")
        await bob.upsert("Todo", {"id": 1})
        await ann.call("Todo:count")
        await settle(ann)
        ann.disconnect()
        await bob.upsert("Todo", {"id": 2})
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + jump)
        ann._talk._number -= 2  # the same request as before, after the ping
        await ann.reconnect()
        assert view.mode == "resume"
        await ann.until(lambda: set(view) == {1, 2})


@virtual
async def test_who_may_no_longer_subscribe_hears_no_more() -> None:
    sync = Backsync()

    @sync.on("auth")
    async def auth(ctx: Context, token: str | None) -> str | None:
        return token

    todo = sync.model("Todo", store=MemoryStore())

    @todo.on("subscribe")
    async def guard(ctx: Context, query: Record) -> None:
        if ctx.user != "ann":
            raise Reject("forbidden")

    async with connect(sync, token="ann") as ann, connect(sync, token="ann") as other:
        view = await ann.subscribe("Todo")
        await other.upsert("Todo", {"id": 1})
        await ann.until(lambda: 1 in view)
        await ann.auth("nobody")
        await ann.until(lambda: not view)
        count = len(view.events)
        await other.upsert("Todo", {"id": 2})
        await settle(ann)
        assert len(view.events) == count


@virtual
async def test_a_body_that_breaks_off_is_not_applied() -> None:
    sync = todos()
    async with connect(sync) as ann:
        view = await ann.subscribe("Todo")
        path = "/000/abc/"
        assert (await fetch(sync, path + "xhr", "POST")).text == "o\n"

        async def upload(events: list[Record]) -> list[Record]:
            sent: list[Record] = []
            queue = list(events)

            async def receive() -> Record:
                return queue.pop(0)

            async def send(event: Any) -> None:
                sent.append(event)

            scope = {**websocket_scope(path + "xhr_send"), "type": "http", "method": "POST", "scheme": "http"}
            await sync(scope, receive, send)
            return sent

        body = json.dumps([json.dumps({"id": 1, "event": "Todo:upsert", "data": {"id": "half"}})]).encode()
        for size in range(1, len(body) + 1):
            part = {"type": "http.request", "body": body[:size], "more_body": True}
            assert await upload([part, {"type": "http.disconnect"}]) == []
        await settle(ann)
        assert not view
        for size in range(1, len(body)):  # a whole one counts, in whatever pieces it comes
            first = {"type": "http.request", "body": body[:size], "more_body": True}
            sent = await upload([first, {"type": "http.request", "body": body[size:]}])
            assert sent[0]["status"] == 204
        await settle(ann)
        assert list(view) == ["half"]


@virtual
async def test_an_author_has_its_reply_before_its_own_change_and_misses_nothing_after() -> None:
    sync = Backsync()
    todo = sync.model("Todo", store=MemoryStore())

    @todo.on("upsert")
    async def save(ctx: Context, record: Record) -> Record:
        return await ctx.store.upsert(record)

    @todo.on("add")
    async def add(ctx: Context, record: Record) -> Record:
        stored = await todo.upsert(record)
        await asyncio.sleep(1)
        return stored

    heard: list[str] = []
    async with connect(sync) as ann, connect(sync) as bob:
        view, other = await ann.subscribe("Todo"), await bob.subscribe("Todo")
        ann.on_text = heard.append
        adding = asyncio.ensure_future(ann.call("Todo:add", {"id": 1}))
        await bob.until(lambda: 1 in other)
        assert heard == []
        await adding
        await ann.until(lambda: 1 in view)
        assert [("id" in json.loads(text), "seq" in json.loads(text)) for text in heard] == [
            (True, False),
            (False, True),
        ]
        await bob.upsert("Todo", {"id": 2})
        await ann.until(lambda: 2 in view)


@pytest.mark.parametrize("audience", [False, True])
@virtual
async def test_no_byte_of_a_record_that_is_not_visible_is_sent(audience: bool) -> None:
    sync = Backsync()

    @sync.on("auth")
    async def auth(ctx: Context, token: str | None) -> str | None:
        return token

    note = sync.model("Note", store=MemoryStore())
    decorate = note.visible(audience=lambda ctx: ctx.user) if audience else note.visible
    decorate(lambda ctx, record: record["owner"] == ctx.user)
    heard: list[str] = []
    async with connect(sync, token="ann") as ann, connect(sync, token="bob") as bob:
        bob.on_text = heard.append
        mine, other = await ann.subscribe("Note"), await bob.subscribe("Note")
        await ann.upsert("Note", {"id": 1, "owner": "ann", "text": "hidden"})  # pushed
        await settle(ann, bob)
        bob.stall()
        await ann.upsert("Note", {"id": 1, "owner": "ann", "text": "hidden too"})  # pulled
        bob.flow()
        await settle(bob)
        bob.disconnect()
        await ann.upsert("Note", {"id": 1, "owner": "ann", "text": "hidden as well"})  # resumed
        await bob.reconnect()
        await settle(bob)
        assert await bob.read("Note") == []
        assert (len(mine), len(other)) == (1, 0)
        assert "hidden" not in "".join(heard)
        await ann.upsert("Note", {"id": 1, "owner": "bob", "text": "given away"})
        await settle(ann, bob)
        assert (len(mine), len(other)) == (0, 1)


@virtual
async def test_another_user_of_the_same_connection_gets_nothing_that_was_made_for_the_first() -> None:
    sync = Backsync()

    @sync.on("auth")
    async def auth(ctx: Context, token: str | None) -> str | None:
        return token

    note = sync.model("Note", store=MemoryStore())
    note.visible(lambda ctx, record: record["owner"] == ctx.user)
    async with connect_raw(sync) as peer, connect(sync, token="ann") as ann:
        await peer.call("$:hello", {"token": "ann"})
        answer = await peer.call("Note:subscribe")
        since = {"epoch": answer["epoch"], "seq": answer["seq"]}
        await ann.upsert("Note", {"id": 1, "owner": "ann", "text": "hidden"})
        await peer.call("Note:subscribe", since=since)  # the tail from there is made now, for ann
        assert "hidden" in str(await peer.pushes())
        await peer.call("$:auth", {"token": "bob"})
        assert (await peer.receive())["event"] == "Note:snapshot"
        again = await peer.call("Note:subscribe", since=since)
        assert (again["mode"], again["records"]) == ("snapshot", []), "nobody resumes from what another has seen"
        assert await peer.pushes() == []


@virtual
async def test_a_record_that_moves_leaves_one_room_and_enters_the_other() -> None:
    sync = Backsync()
    sync.model("Message", store=MemoryStore(), key="room")
    async with connect(sync) as ann, connect(sync) as bob:
        lobby = await ann.subscribe("Message", {"room": "lobby"})
        attic = await ann.subscribe("Message", {"room": "attic"})
        await bob.upsert("Message", {"id": 1, "room": "lobby"})
        await settle(ann)
        assert (list(lobby), list(attic)) == ([1], [])
        ann.disconnect()
        await bob.upsert("Message", {"id": 1, "room": "attic"})
        await ann.reconnect()
        await settle(ann)
        assert (list(lobby), list(attic)) == ([], [1])


@virtual
async def test_an_ephemeral_record_goes_with_its_client_unless_that_comes_back_in_time() -> None:
    sync = Backsync()
    sync.model("Cursor", ephemeral=True, grace=3.0)
    async with connect(sync) as ann, connect(sync) as bob:
        cursors = await bob.subscribe("Cursor")
        await ann.upsert("Cursor", {"id": "ann"})
        ann.disconnect()
        await asyncio.sleep(2)
        await ann.reconnect()
        await asyncio.sleep(4)
        await settle(bob)
        assert list(cursors) == ["ann"]
        ann.disconnect()
        await asyncio.sleep(4)
        await settle(bob)
        assert not cursors
