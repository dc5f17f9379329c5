"""The app as the protocol describes it, row by row, by a WebSocket in process; handlers are test_models' affair."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from backsync_asgi import Backsync, Context, Reject, testing
from backsync_asgi import app as app_module
from backsync_asgi.connection import SNAPSHOT_FAILED, Connection
from backsync_asgi.limits import Horizon, Limits, Memory
from backsync_asgi.models import WRITES_AT_ONCE
from backsync_asgi.sockjs import Settings
from backsync_asgi.stores import MemoryStore
from tests.inprocess import Answer, Closed, Socket, connect, fetch, websocket_scope


@pytest.fixture
def sync() -> Backsync:
    """An app with one model, kept in memory."""
    sync = Backsync()
    sync.model("Todo", store=MemoryStore())
    return sync


async def epoch_of(sync: Backsync) -> str:
    async with connect(sync) as client:
        epoch = (await client.call("Todo:subscribe", snapshot=False))["epoch"]
        assert isinstance(epoch, str)
        return epoch


# Requests and replies


async def test_a_reply_carries_the_id_and_the_event_as_received(sync: Backsync) -> None:
    async with connect(sync) as client:
        client.send({"id": "my-id", "event": "Todo:create", "data": {"id": 1}})
        assert await client.receive() == {"id": "my-id", "event": "Todo:create", "data": {"id": 1}}


async def test_without_an_id_there_is_no_reply_but_the_deed_is_done(sync: Backsync) -> None:
    async with connect(sync) as client:
        client.send({"event": "Todo:upsert", "data": {"id": 1}})
        assert await client.call("Todo:read") == [{"id": 1}]


async def test_a_failure_without_an_id_is_logged(sync: Backsync, caplog: pytest.LogCaptureFixture) -> None:
    async with connect(sync) as client:
        client.send({"event": "Todo:patch", "data": {"id": 1}})
        await client.call("Todo:read")
    assert "Todo:patch failed" in caplog.text
    assert "not_found" in caplog.text


async def test_requests_to_one_model_are_answered_in_order(sync: Backsync) -> None:
    async with connect(sync) as client:
        ids = [client.ask("Todo:upsert", {"id": number}) for number in range(50)]
        assert [(await client.receive())["id"] for _ in ids] == ids


async def test_what_comes_behind_a_write_that_takes_turns_waits_with_it(sync: Backsync) -> None:
    async with connect(sync) as client, connect(sync) as other:
        many = [{"id": number, "by": "many"} for number in range(3 * WRITES_AT_ONCE)]
        first, last = client.ask("Todo:upsert", many), client.ask("Todo:upsert", {"id": 0, "by": "last"})
        after = client.ask("Todo:read", {"id": 0})
        assert await other.call("Todo:read", {"id": 0}) == {"id": 0, "by": "many"}
        assert [(await client.receive())["id"] for _ in range(3)] == [first, last, after]
        assert await other.call("Todo:read", {"id": 0}) == {"id": 0, "by": "last"}


async def test_read_gives_the_records_that_a_query_asks_for(sync: Backsync) -> None:
    async with connect(sync) as client:
        await client.call("Todo:upsert", [{"id": 1, "done": True}, {"id": 2, "done": False}])
        assert await client.call("Todo:read") == [{"id": 1, "done": True}, {"id": 2, "done": False}]
        assert await client.call("Todo:read", {"done": False}) == [{"id": 2, "done": False}]
        assert await client.call("Todo:read", {"id": 1}) == {"id": 1, "done": True}
        assert (await client.error("Todo:read", {"id": 3}))["code"] == "not_found"
        queries: list[Any] = [[], "x", 1, True]
        for query in queries:
            assert (await client.error("Todo:read", query))["code"] == "invalid"


async def test_upsert_gives_the_stored_record_with_its_id(sync: Backsync) -> None:
    async with connect(sync) as client:
        record = await client.call("Todo:upsert", {"title": "x"})
        assert record == {"title": "x", "id": record["id"]}
        assert await client.call("Todo:upsert", {"id": record["id"]}) == {"id": record["id"]}, "it replaces"


async def test_create_and_update_are_upserts(sync: Backsync) -> None:
    async with connect(sync) as client:
        assert await client.call("Todo:create", {"id": 1}) == {"id": 1}
        assert await client.call("Todo:update", {"id": 1, "x": 2}) == {"id": 1, "x": 2}


async def test_an_array_is_written_record_by_record_until_one_fails(sync: Backsync) -> None:
    async with connect(sync) as client:
        assert await client.call("Todo:upsert", [{"id": 1}, {"id": 2}]) == [{"id": 1}, {"id": 2}]
        assert await client.call("Todo:upsert", []) == []
        error = await client.error("Todo:patch", [{"id": 1, "x": 1}, {"id": 9}, {"id": 2, "x": 1}])
        assert (error["code"], error["details"]["done"]) == ("not_found", 1)
        assert await client.call("Todo:read") == [{"id": 1, "x": 1}, {"id": 2}]


async def test_patch_changes_and_removes_fields_and_gives_the_whole_record(sync: Backsync) -> None:
    async with connect(sync) as client:
        await client.call("Todo:upsert", {"id": 1, "a": 1, "b": 2})
        assert await client.call("Todo:patch", {"id": 1, "a": 3}, unset=["b"]) == {"id": 1, "a": 3}
        assert (await client.error("Todo:patch", {"id": 9}))["code"] == "not_found"
        assert (await client.error("Todo:patch", {"a": 1}))["code"] == "invalid"
        wrong: list[Any] = ["b", [1], {}, 1]
        for unset in wrong:
            assert (await client.error("Todo:patch", {"id": 1}, unset=unset))["code"] == "invalid"


async def test_delete_counts_the_id_only_and_is_broadcast_once(sync: Backsync) -> None:
    async with connect(sync) as client:
        await client.call("Todo:subscribe")
        await client.call("Todo:upsert", {"id": 1})
        assert await client.call("Todo:delete", {"id": 1, "title": "whatever"}) == {}
        assert await client.call("Todo:delete", {"id": 1}) == {}
        assert [push["data"] for push in await client.pushes() if push["event"] == "Todo:delete"] == []
        deletes = [it for it in client.received if it.get("event") == "Todo:delete" and "seq" in it]
        assert [it["data"] for it in deletes] == [{"id": 1}]
        assert (await client.error("Todo:delete", {}))["code"] == "invalid"
        assert (await client.error("Todo:delete"))["code"] == "invalid"


@pytest.mark.parametrize("id", ["", "x" * 129, True, 1.5, [], {}, 2**53])
@pytest.mark.parametrize("method", ["upsert", "patch", "delete"])
async def test_a_record_has_an_id_as_they_are(sync: Backsync, method: str, id: Any) -> None:
    async with connect(sync) as client:
        error = await client.error(f"Todo:{method}", {"id": id})
        assert error["code"] == "invalid"
        assert error["details"][0]["field"] == "id"


@pytest.mark.parametrize("data", [None, 1, "x", True])
@pytest.mark.parametrize("method", ["upsert", "patch", "delete"])
async def test_a_record_is_an_object(sync: Backsync, method: str, data: Any) -> None:
    async with connect(sync) as client:
        assert (await client.error(f"Todo:{method}", data))["code"] == "invalid"
        assert (await client.error(f"Todo:{method}", [data]))["code"] == "invalid"


async def test_a_record_has_at_most_256_fields_with_names_of_at_most_128_characters(sync: Backsync) -> None:
    async with connect(sync) as client:
        many = {"id": 1, **{f"f{number}": 0 for number in range(255)}}
        assert await client.call("Todo:upsert", many) == many
        assert (await client.error("Todo:upsert", {**many, "more": 0}))["code"] == "too_large"
        assert await client.call("Todo:upsert", {"id": 1, "x" * 128: 0})
        assert (await client.error("Todo:upsert", {"id": 1, "x" * 129: 0}))["code"] == "invalid"


@pytest.mark.parametrize("id", ["__proto__", "constructor", "../x", "\0", "<script>", "é😀\u2028"])
async def test_odd_ids_are_ids(sync: Backsync, id: str) -> None:
    async with connect(sync) as client:
        assert await client.call("Todo:upsert", {"id": id, "__proto__": {"x": 1}}) == {"id": id, "__proto__": {"x": 1}}
        assert await client.call("Todo:read", {"id": id}) == {"id": id, "__proto__": {"x": 1}}


# What is refused, while the connection lives


@pytest.mark.parametrize(
    ("event", "code"),
    [
        ("None:read", "unknown_model"),
        ("None:subscribe", "unknown_model"),
        ("None:unsubscribe", "unknown_model"),
        ("Todo:fly", "unknown_method"),
        ("Todo:on", "unknown_method"),
        ("Todo:store", "unknown_method"),
        ("Todo:__init__", "unknown_method"),
        ("Todo:_write", "unknown_method"),
        ("Todo:publish", "unknown_method"),
        ("$:fly", "unknown_method"),
        ("$:__init__", "unknown_method"),
        ("$:auth", "unknown_method"),
        ("Todo", "bad_message"),
        ("", "bad_message"),
        ("Todo:", "bad_message"),
        ("$$:x", "bad_message"),
    ],
)
async def test_the_unknown_gets_its_error_and_the_connection_lives(sync: Backsync, event: str, code: str) -> None:
    async with connect(sync) as client:
        reply = await client.reply(client.ask(event))
        assert (reply["event"], reply["data"], reply["error"]["code"]) == (event, None, code)
        assert reply["error"]["message"]
        assert await client.call("Todo:read") == []


async def test_what_has_nobody_to_tell_is_counted_and_the_connection_lives(
    sync: Backsync, caplog: pytest.LogCaptureFixture
) -> None:
    async with connect(sync) as client:
        bad = ["", "x", "[]", "1", "null", '"x"', "{", '{"event":1}', '{"id":[],"event":"Todo:read"}', "[" * 60_000]
        for text in bad:
            client.send_text(text)
        assert await client.pushes() == []
        assert sync.bad_messages == len(bad)
    assert all(len(record.getMessage()) < 500 for record in caplog.records)


async def test_a_missing_event_is_told(sync: Backsync) -> None:
    async with connect(sync) as client:
        client.send({"id": 5})
        reply = await client.receive()
        assert (reply["id"], reply["event"], reply["error"]["code"]) == (5, None, "bad_message")


async def test_bytes_are_read_as_text(sync: Backsync) -> None:
    async with connect(sync) as client:
        client._to_app.put_nowait({"type": "websocket.receive", "bytes": b'{"id":1,"event":"Todo:read"}'})
        client._to_app.put_nowait({"type": "websocket.receive", "bytes": b"\xff"})
        assert (await client.receive())["data"] == []
        assert await client.pushes() == []
        assert sync.bad_messages == 1


# Subscribing


async def test_a_subscription_begins_with_a_snapshot_and_its_position(sync: Backsync) -> None:
    async with connect(sync) as client:
        await client.call("Todo:upsert", {"id": 1})
        answer = await client.call("Todo:subscribe")
        assert answer == {"mode": "snapshot", "epoch": answer["epoch"], "seq": 1, "records": [{"id": 1}]}
        await sync.model("Todo").upsert({"id": 2})
        await sync.model("Todo").delete(1)
        assert await client.pushes() == [
            {"event": "Todo:upsert", "data": {"id": 2}, "seq": 2},
            {"event": "Todo:delete", "data": {"id": 1}, "seq": 3},
        ]


async def test_a_query_is_for_the_snapshot_and_does_not_filter_changes(sync: Backsync) -> None:
    async with connect(sync) as client:
        await client.call("Todo:upsert", [{"id": 1, "done": True}, {"id": 2, "done": False}])
        assert (await client.call("Todo:subscribe", {"done": True}))["records"] == [{"id": 1, "done": True}]
        await sync.model("Todo").upsert({"id": 3, "done": False})
        assert [push["data"]["id"] for push in await client.pushes()] == [3]


async def test_a_snapshot_by_id_is_a_list_of_one(sync: Backsync) -> None:
    async with connect(sync) as client:
        await client.call("Todo:upsert", {"id": 1})
        assert (await client.call("Todo:subscribe", {"id": 1}))["records"] == [{"id": 1}]


async def test_who_was_away_gets_what_has_changed_each_record_once(sync: Backsync) -> None:
    todo = sync.model("Todo")
    async with connect(sync) as client:
        start = await client.call("Todo:subscribe")
    for number in (1, 2, 1, 3):
        await todo.upsert({"id": number})
    await todo.delete(2)
    async with connect(sync) as client:
        since = {"epoch": start["epoch"], "seq": start["seq"]}
        assert await client.call("Todo:subscribe", since=since) == {"mode": "resume", "epoch": start["epoch"], "seq": 0}
        assert [(push["event"], push["data"], push["seq"]) for push in await client.pushes()] == [
            ("Todo:upsert", {"id": 1}, 3),
            ("Todo:upsert", {"id": 3}, 4),
            ("Todo:delete", {"id": 2}, 5),
        ]
        assert (await client.call("Todo:subscribe", since={**since, "seq": 5}))["mode"] == "resume"
        assert await client.pushes() == []


async def test_a_resume_repeated_gives_the_same(sync: Backsync) -> None:
    epoch = await epoch_of(sync)
    await sync.model("Todo").upsert({"id": 1})
    async with connect(sync) as client:
        for _ in range(2):
            await client.call("Todo:subscribe", since={"epoch": epoch, "seq": 0})
            assert [push["seq"] for push in await client.pushes()] == [1]


async def test_without_a_snapshot_one_starts_at_the_current_position(sync: Backsync) -> None:
    async with connect(sync) as client:
        await sync.model("Todo").upsert({"id": 1})
        answer = await client.call("Todo:subscribe", snapshot=False)
        assert answer == {"mode": "resume", "epoch": answer["epoch"], "seq": 1}
        assert await client.pushes() == []
        await sync.model("Todo").upsert({"id": 2})
        assert [push["seq"] for push in await client.pushes()] == [2]


@pytest.mark.parametrize("wants", [True, False], ids=["with records", "without"])
async def test_a_position_beyond_the_horizon_gets_a_snapshot(wants: bool) -> None:
    sync = Backsync(horizon=Horizon(records=2))
    todo = sync.model("Todo", store=MemoryStore())
    epoch = await epoch_of(sync)
    for number in range(5):
        await todo.upsert({"id": number})
    async with connect(sync) as client:
        answer = await client.call("Todo:subscribe", since={"epoch": epoch, "seq": 2}, snapshot=wants)
        assert (answer["mode"], answer["seq"]) == ("snapshot", 5)
        assert ("records" in answer) == wants
        assert await client.pushes() == []


@pytest.mark.parametrize(
    "since",
    [
        *(
            {"seq": -1},
            {"seq": "5"},
            {"seq": 2**63},
            {"seq": 3},
            {"seq": 1.0},
            {"seq": True},
            {"seq": None},
            {"seq": []},
        ),
        *({"epoch": "other"}, {"epoch": ""}, {"epoch": 5}, {"epoch": None}, {"epoch": "x" * 1_000}),
        *({}, [], "x", 1, True, {"epoch": {}, "seq": {}}),
    ],
    ids=repr,
)
async def test_any_other_position_gets_a_snapshot(sync: Backsync, since: Any) -> None:
    await sync.model("Todo").upsert({"id": 1})
    epoch = await epoch_of(sync)
    if isinstance(since, dict) and len(since) == 1:
        since = {"epoch": epoch, "seq": 0, **since}
    async with connect(sync) as client:
        answer = await client.call("Todo:subscribe", since=since)
        assert answer == {"mode": "snapshot", "epoch": epoch, "seq": 1, "records": [{"id": 1}]}


async def test_subscribing_twice_answers_twice_and_is_one_subscription(sync: Backsync) -> None:
    async with connect(sync) as client:
        assert await client.call("Todo:subscribe") == await client.call("Todo:subscribe", {"done": True})
        await sync.model("Todo").upsert({"id": 1})
        assert len(await client.pushes()) == 1
        await client.call("Todo:unsubscribe")
        await sync.model("Todo").upsert({"id": 2})
        assert await client.pushes() == []


async def test_unsubscribing_from_what_one_does_not_hear_is_no_error(sync: Backsync) -> None:
    async with connect(sync) as client:
        assert await client.call("Todo:unsubscribe", {"any": "query"}) == {}


async def test_nobody_hears_what_it_did_not_subscribe_to(sync: Backsync) -> None:
    sync.model("Other", store=MemoryStore())
    async with connect(sync) as client:
        await client.call("Other:subscribe")
        await sync.model("Todo").upsert({"id": 1})
        assert await client.pushes() == []


async def test_an_author_hears_its_reply_first_and_then_its_own_change(sync: Backsync) -> None:
    async with connect(sync) as client:
        await client.call("Todo:subscribe")
        id = client.ask("Todo:upsert", {"id": 1})
        reply, echo = await client.receive(), await client.receive()
        assert reply == {"id": id, "event": "Todo:upsert", "data": {"id": 1}}
        assert echo == {"event": "Todo:upsert", "data": {"id": 1}, "seq": 1}


async def test_a_write_that_races_with_a_snapshot_is_in_it_or_comes_after_it() -> None:
    sync = Backsync()
    reading, go_on = asyncio.Event(), asyncio.Event()
    rows: list[dict[str, Any]] = []

    @sync.model("M").on("read")
    async def read(ctx: Context, query: dict[str, Any]) -> list[dict[str, Any]]:
        seen = list(rows)
        reading.set()
        await go_on.wait()
        return seen

    async with connect(sync) as client:
        id = client.ask("M:subscribe")
        await reading.wait()
        rows.append({"id": 1})
        await sync.model("M").upsert({"id": 1})
        go_on.set()
        reply = await client.receive()
        assert (reply["id"], reply["data"]["seq"], reply["data"]["records"]) == (id, 0, [])
        assert await client.receive() == {"event": "M:upsert", "data": {"id": 1}, "seq": 1}


async def test_a_subscription_whose_snapshot_fails_is_none() -> None:
    sync = Backsync()

    @sync.model("M").on("read")
    async def read(ctx: Context, query: dict[str, Any]) -> list[dict[str, Any]]:
        raise Reject("forbidden", "No.")

    async with connect(sync) as client:
        assert (await client.error("M:subscribe"))["code"] == "forbidden"
        await sync.model("M").upsert({"id": 1})
        assert await client.pushes() == []


async def test_a_model_that_nobody_can_read_has_what_its_channel_remembers() -> None:
    sync = Backsync()
    model = sync.model("M")
    for id in ("a", "b", "a"):
        model.publish("upsert", {"id": id})
    model.publish("delete", {"id": "b"})
    async with connect(sync) as client:
        answer = await client.call("M:subscribe")
        assert (answer["seq"], answer["records"]) == (4, [{"id": "a"}])


async def test_a_client_may_have_so_many_subscriptions_and_no_more() -> None:
    sync = Backsync(limits=Limits(subscriptions=2))
    for name in "ABC":
        sync.model(name, store=MemoryStore())
    async with connect(sync) as client:
        for name in "ABA":
            await client.call(f"{name}:subscribe")
        error = await client.error("C:subscribe")
        assert (error["code"], error["details"]) == ("too_large", {"limit": 2})
        await client.call("A:unsubscribe")
        await client.call("C:subscribe")


async def test_a_live_client_beyond_the_horizon_gets_a_new_snapshot() -> None:
    sync = Backsync(horizon=Horizon(records=2))
    todo = sync.model("Todo", store=MemoryStore())
    async with connect(sync) as client:
        epoch = (await client.call("Todo:subscribe"))["epoch"]
        client.stall()
        await todo.upsert({"id": "wakes"})
        await asyncio.sleep(0)
        for number in range(10):
            await todo.upsert({"id": number})
            await asyncio.sleep(0)
        client.read_again()
        first, snapshot = await client.receive(), await client.receive()
        assert first["data"] == {"id": "wakes"}, "what was on its way already"
        assert snapshot["event"] == "Todo:snapshot"
        assert (snapshot["data"]["epoch"], snapshot["data"]["seq"]) == (epoch, 11)
        assert [record["id"] for record in snapshot["data"]["records"]] == ["wakes", *range(10)]
        await todo.upsert({"id": "after"})
        assert [push["seq"] for push in await client.pushes()] == [12]


async def test_what_another_request_holds_back_comes_after_the_position_of_a_snapshot_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Connection, "_takes_at_once", True)  # as it was when the client asked
    sync = Backsync()
    todo = sync.model("Todo", store=MemoryStore())
    reads, said, may_read, may_end = asyncio.Event(), asyncio.Event(), asyncio.Event(), asyncio.Event()
    may_read.set()

    @todo.on("read")
    async def read(ctx: Context, query: dict[str, Any]) -> Any:
        reads.set()
        await may_read.wait()
        return await ctx.store.read(query)

    @todo.on("say", concurrent=True)
    async def say(ctx: Context, data: Any) -> None:
        todo.publish("upsert", {"id": "said"})
        said.set()
        await may_end.wait()

    async with connect(sync) as client:
        await client.call("Todo:subscribe")
        client.stall()
        for id in ("wakes", "waits"):
            await todo.upsert({"id": id})
            await asyncio.sleep(0)
        may_read.clear()
        reads.clear()
        anew, saying = client.ask("Todo:subscribe"), client.ask("Todo:say")
        await reads.wait()
        await said.wait()
        client.read_again()
        may_read.set()
        position = (await client.reply(anew))["data"]["seq"]
        may_end.set()
        await client.reply(saying)
        assert [push["seq"] for push in await client.pushes()] == list(range(position + 1, 4))


async def test_a_client_that_is_behind_gets_the_newest_states_only(sync: Backsync) -> None:
    todo = sync.model("Todo")
    async with connect(sync) as slow, connect(sync) as quick:
        for client in (slow, quick):
            await client.call("Todo:subscribe")
        slow.stall()
        for number in range(20):
            await todo.upsert({"id": "a", "n": number})
            assert [push["data"]["n"] for push in await quick.pushes()] == [number]
        slow.read_again()
        assert [push["data"]["n"] for push in await slow.pushes()] in ([0, 19], [19])


async def test_a_transient_event_has_no_position_and_is_not_resumed(sync: Backsync) -> None:
    todo = sync.model("Todo")
    async with connect(sync) as client:
        epoch = (await client.call("Todo:subscribe"))["epoch"]
        todo.publish("typing", {"who": "Ann"})
        assert await client.pushes() == [{"event": "Todo:typing", "data": {"who": "Ann"}}]
    async with connect(sync) as client:
        await client.call("Todo:subscribe", since={"epoch": epoch, "seq": 0})
        assert await client.pushes() == []


async def test_what_a_full_store_drops_is_announced_as_deleted() -> None:
    sync = Backsync()
    log = sync.model("Log", store=MemoryStore(limit=2, full="evict"))
    async with connect(sync) as client:
        await client.call("Log:subscribe")
        for number in range(3):
            await log.upsert({"id": number})
        pushes = await client.pushes()
        assert {(push["event"], push["data"]["id"]) for push in pushes} == {
            *(("Log:upsert", 1), ("Log:upsert", 2), ("Log:delete", 0))
        }


# Control


async def test_a_greeting_tells_version_heartbeat_and_limits(sync: Backsync) -> None:
    async with connect(sync) as client:
        welcome = await client.call("$:hello", {"version": 1, "client": "c1"})
        assert (welcome["version"], welcome["heartbeat"]) == (1, 25.0)
        assert welcome["limits"]["message"] == 65_536


async def test_a_ping_is_answered_at_once_whatever_a_handler_does() -> None:
    sync = Backsync()
    go_on = asyncio.Event()

    @sync.model("M").on("wait")
    async def wait(ctx: Context, data: Any) -> None:
        await go_on.wait()

    async with connect(sync) as client:
        waiting = client.ask("M:wait")
        assert await client.call("$:ping") == {}
        go_on.set()
        assert (await client.reply(waiting))["data"] is None


async def test_a_slow_handler_holds_up_its_own_model_only() -> None:
    sync = Backsync()
    go_on = asyncio.Event()
    sync.model("Quick", store=MemoryStore())

    @sync.model("Slow").on("wait")
    async def wait(ctx: Context, data: Any) -> Any:
        if data == "first":
            await go_on.wait()
        return data

    async with connect(sync) as client:
        first, second = client.ask("Slow:wait", "first"), client.ask("Slow:wait", "second")
        assert await client.call("Quick:read") == []
        go_on.set()
        assert (await client.reply(first))["data"] == "first"
        assert (await client.reply(second))["data"] == "second"


async def test_a_drain_says_goodbye_and_when_to_come_back(sync: Backsync) -> None:
    async with connect(sync) as client:
        await client.call("$:ping")
        sync.drain()
        sync.drain()
        bye = await client.receive()
        assert bye["event"] == "$:bye"
        assert bye["data"]["code"] == 1012
        low, high = bye["data"]["retry"]
        assert 0 <= low < high <= 30
        with pytest.raises(Closed) as caught:
            await client.receive()
        assert caught.value.code == 1012
    async with connect(sync) as late:
        with pytest.raises(Closed) as caught:
            await late.receive()
        assert not caught.value.accepted


@pytest.mark.parametrize(("clients", "window"), [(1, 0.5), (100, 0.5), (1_000, 5.0), (2_000, 7.0), (50_000, 30.0)])
def test_few_clients_come_back_at_once_and_many_spread(clients: int, window: float) -> None:
    """Kind: a wait that is sized for a crowd, also where there is one client, such as while an app is developed."""
    site = Backsync()._site
    site.connections.update(object() for _ in range(clients))  # type: ignore[misc]
    windows = []
    while site.connections:
        site.connections.pop()
        windows.append(site.window_to_return())
    assert set(windows) == {window}


async def test_a_framed_client_gets_the_goodbye_in_frames(sync: Backsync) -> None:
    async with connect(sync, "/000/abc/websocket") as client:
        assert await client.text() == "o"
        client.send_text(json.dumps([json.dumps({"id": 1, "event": "$:ping"})]))
        assert json.loads(json.loads((await client.text())[1:])[0])["id"] == 1
        sync.drain()
        assert json.loads(json.loads((await client.text())[1:])[0])["event"] == "$:bye"
        assert await client.text() == 'c[1012,"Service restart"]'
        assert await client.close_code() == 1012


async def test_what_waits_is_in_one_frame(sync: Backsync) -> None:
    async with connect(sync, "/000/abc/websocket") as client:
        assert await client.text() == "o"
        client.send_text(json.dumps([json.dumps({"id": 1, "event": "Todo:subscribe"})]))
        await client.text()
        for number in range(10):
            await sync.model("Todo").upsert({"id": number})
        assert len(json.loads((await client.text())[1:])) == 10


# Limits of one client


async def test_a_client_that_does_not_take_its_replies_is_not_served_until_it_does() -> None:
    sync = Backsync(limits=Limits(replies=1_000))
    reads: list[Any] = []

    @sync.model("Todo").on("read")
    async def read(ctx: Context, query: dict[str, Any]) -> list[dict[str, Any]]:
        reads.append(ctx.connection)
        return [{"id": 1, "text": "x" * 2_000}]  # a single one may be larger

    async with connect(sync) as client:
        await client.call("$:ping")
        client.stall()
        asked = [client.ask("Todo:read") for _ in range(20)]
        async with connect(sync) as control:
            for _ in range(20):
                await control.call("$:ping")
        assert len(reads) <= 3, "one in the server's hands, one that waits, one more that was asked before it was full"
        client.read_again()
        assert [(await client.receive())["id"] for _ in asked] == asked


async def test_a_client_that_pings_and_does_not_read_is_closed_and_may_come_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sync = Backsync(limits=Limits(replies=1_000))
    async with connect(sync) as client:
        await client.call("$:ping")
        client.stall()
        for _ in range(100):
            client.ask("$:ping")
        async with connect(sync) as control:
            while "does not read its replies" not in caplog.text:
                await control.call("$:ping")
        client.read_again()
        assert await client.close_code() == 4413


@pytest.mark.parametrize("transport", ["websocket", "framed", "xhr", "xhr_streaming"])
async def test_snapshots_larger_than_the_limit_of_replies_come_one_after_the_other(
    transport: testing.Transport,
) -> None:
    sync = Backsync(limits=Limits(replies=1_000))
    names = [f"M{number}" for number in range(6)]
    for name in names:
        await sync.model(name, store=MemoryStore()).upsert({"id": 1, "text": "x" * 2_000})
    async with testing.connect(sync, transport=transport) as client:
        views = await asyncio.gather(*(client.subscribe(name) for name in names))
        assert [len(view) for view in views] == [1] * len(names)


async def test_who_asks_faster_than_the_handlers_answer_is_not_read_from() -> None:
    sync = Backsync(limits=Limits(requests=4))
    go_on = asyncio.Event()

    @sync.model("M").on("wait")
    async def wait(ctx: Context, data: Any) -> None:
        await go_on.wait()

    async with connect(sync) as client:
        asked = [client.ask("M:wait") for _ in range(20)]
        async with connect(sync) as control:
            await control.call("$:ping")
        assert client._to_app.qsize() >= 10, "the rest waits where it came from"
        go_on.set()
        assert [(await client.receive())["id"] for _ in asked] == asked


async def test_the_bytes_of_waiting_requests_have_a_bound_too() -> None:
    sync = Backsync(limits=Limits(requests_size=2_000))
    go_on = asyncio.Event()

    @sync.model("M").on("wait")
    async def wait(ctx: Context, data: Any) -> None:
        await go_on.wait()

    async with connect(sync) as client:
        asked = [client.ask("M:wait", "x" * 1_000) for _ in range(10)]
        async with connect(sync) as control:
            await control.call("$:ping")
        assert client._to_app.qsize() >= 6, "the rest waits where it came from"
        go_on.set()
        assert [(await client.receive())["id"] for _ in asked] == asked


async def test_a_ping_is_answered_though_hundreds_of_requests_wait() -> None:
    sync = Backsync()
    go_on = asyncio.Event()

    @sync.model("M").on("wait")
    async def wait(ctx: Context, data: Any) -> None:
        await go_on.wait()

    async with connect(sync) as client:
        asked = [client.ask("M:wait") for _ in range(900)]
        assert await client.call("$:ping") == {}
        go_on.set()
        assert {(await client.receive())["id"] for _ in asked} == set(asked)


@pytest.mark.parametrize(
    "name", ["handler_timeout", "threads", "replies", "requests", "requests_size", "subscriptions", "greeting"]
)
@pytest.mark.parametrize("value", [0, -1, True, "1", None])
def test_a_limit_is_a_positive_number(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"Limits got {name}="):
        Limits(**{name: value})


def test_settings_that_make_no_sense_are_found_at_start() -> None:
    with pytest.raises(ValueError, match="compat"):
        Backsync(compat="2013")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="allowed_origins got"):
        Backsync(allowed_origins=["https://example.com/"])
    with pytest.raises(TypeError):
        Backsync(unknown=True)  # type: ignore[call-arg]


# Who may connect


async def test_a_page_of_another_origin_is_refused(sync: Backsync) -> None:
    async with connect(sync, headers=[(b"origin", b"https://evil.example")]) as client:
        with pytest.raises(Closed) as caught:
            await client.receive()
        assert not caught.value.accepted
    async with connect(sync, headers=[(b"origin", b"http://testserver")]) as client:
        await client.call("$:ping")


async def test_origins_that_are_named_may_connect() -> None:
    sync = Backsync(allowed_origins=["https://page.example"])
    async with connect(sync, headers=[(b"origin", b"https://page.example")]) as client:
        await client.call("$:ping")
    answer = await fetch(sync, "/info", headers=[(b"origin", b"https://page.example")])
    assert answer.headers["access-control-allow-origin"] == "https://page.example"


# The client's files


@pytest.fixture
def static(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the built client's."""
    monkeypatch.setattr(app_module, "STATIC", tmp_path)
    return tmp_path


@pytest.mark.parametrize("root", ["", "/backsync"])
async def test_the_client_is_served_beside_the_protocol(static: Path, root: str) -> None:
    (static / "backsync.js").write_text("// é")
    (static / "backsync.mjs").write_text("export {}")
    sync = Backsync()
    answer = await fetch(sync, f"{root}/backsync.js", root_path=root)
    assert (answer.status, answer.text) == (200, "// é")
    assert "javascript" in answer.headers["content-type"]
    assert answer.headers["access-control-allow-origin"] == "*"
    assert (
        (await fetch(sync, f"{root}/backsync.mjs", root_path=root))
        .headers["content-type"]
        .startswith("text/javascript")
    )
    again = await fetch(
        sync, f"{root}/backsync.js", headers=[(b"if-none-match", answer.headers["etag"].encode())], root_path=root
    )
    assert (again.status, again.body) == (304, b"")
    head = await fetch(sync, f"{root}/backsync.js", "HEAD", root_path=root)
    assert (head.status, head.body) == (200, b"")


async def test_the_client_is_compressed_for_browsers_that_take_it(static: Path) -> None:
    """Kind: a first visit that waits for bytes which need not be sent."""
    text = "export const text = 'é';\n" * 500
    (static / "backsync.mjs").write_text(text)
    sync = Backsync()

    async def get(accepted: str, method: str = "GET", etag: str = "") -> Answer:
        headers = [(b"accept-encoding", accepted.encode()), (b"if-none-match", etag.encode())]
        return await fetch(sync, "/backsync.mjs", method, headers=headers)

    for accepted in ("gzip", "br, gzip", "deflate, GZIP;q=0.5", "gzip ; q = 1"):
        answer = await get(accepted)
        assert gzip.decompress(answer.body).decode() == text
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.headers["content-length"] == str(len(answer.body))
        assert answer.headers["content-type"].startswith("text/javascript")
        assert answer.headers["vary"] == "Accept-Encoding"
    for accepted in ("", "identity", "br", "gzip;q=0", "gzip;q=0.000", "xgzip"):
        plain = await get(accepted)
        assert plain.text == text
        assert "content-encoding" not in plain.headers
        assert plain.headers["vary"] == "Accept-Encoding"
    assert plain.headers["etag"] != answer.headers["etag"]
    for accepted, etag in (("gzip", f'"x", W/{answer.headers["etag"]}'), ("", plain.headers["etag"])):
        again = await get(accepted, etag=etag)
        assert (again.status, again.body) == (304, b"")
    head = await get("gzip", "HEAD")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(answer.body)))
    (static / "backsync.mjs").write_text("export {}")
    assert gzip.decompress((await get("gzip", etag=answer.headers["etag"])).body) == b"export {}"


async def test_types_and_source_maps_have_types_of_their_own(static: Path) -> None:
    for name, type_ in {"backsync.d.ts": "text/plain; charset=utf-8", "backsync.js.map": "application/json"}.items():
        (static / name).write_text("{}")
        assert (await fetch(Backsync(), f"/{name}")).headers["content-type"] == type_


async def test_a_client_that_is_not_built_is_not_found_and_told_how_to_build_it(static: Path) -> None:
    answer = await fetch(Backsync(), "/backsync.js")
    assert answer.status == 404
    assert "make client" in answer.text


@pytest.mark.parametrize("path", ["/secret.txt", "/../app.py", "/static/backsync.js", "/backsync.js/", "//backsync.js"])
async def test_nothing_else_is_served(static: Path, path: str) -> None:
    (static / "secret.txt").write_text("secret")
    assert (await fetch(Backsync(), path)).status == 404


async def test_the_mount_itself_is_the_greeting_of_sockjs(sync: Backsync) -> None:
    assert (await fetch(sync, "/")).text == "Welcome to SockJS!\n"
    assert json.loads((await fetch(sync, "/info")).body)["websocket"] is True


# Coming, going, and the server's life


async def test_whoever_leaves_is_forgotten(sync: Backsync) -> None:
    before = asyncio.all_tasks()
    async with connect(sync) as client:
        await client.call("Todo:subscribe")
        assert len(sync.connections) == 1
    assert len(sync.connections) == 0
    assert not sync.model("Todo").topic_of({}).audiences
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_a_disconnect_does_not_cancel_a_running_handler() -> None:
    sync = Backsync()
    started, go_on, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @sync.model("M").on("work")
    async def work(ctx: Context, data: Any) -> None:
        started.set()
        await go_on.wait()
        done.set()

    async with connect(sync) as client:
        client.ask("M:work")
        await started.wait()
    go_on.set()
    async with asyncio.timeout(5):
        await done.wait()


async def test_the_lifespan_of_the_app_itself(sync: Backsync) -> None:
    events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    sent: asyncio.Queue[Any] = asyncio.Queue()
    task = asyncio.ensure_future(sync({"type": "lifespan"}, events.get, sent.put))
    events.put_nowait({"type": "lifespan.startup"})
    assert (await sent.get())["type"] == "lifespan.startup.complete"
    async with connect(sync) as client:
        await client.call("$:ping")
        events.put_nowait({"type": "lifespan.shutdown"})
        assert await client.close_code() == 1012
    assert (await sent.get())["type"] == "lifespan.shutdown.complete"
    await task


class OpenedStore(MemoryStore):
    """A store that notes when it is opened and closed."""

    def __init__(self, log: list[str], fails: bool = False) -> None:
        super().__init__()
        self._log = log
        self._fails = fails

    async def open(self) -> None:
        self._log.append("open")
        if self._fails:
            raise Reject("unavailable", "The database is not available; try again.")

    async def close(self) -> None:
        self._log.append("close")


async def test_a_store_is_opened_at_the_start_and_closed_at_the_end() -> None:
    sync = Backsync()
    log: list[str] = []
    store = OpenedStore(log)
    sync.model("Page", store=store)
    sync.model("Draft", store=store)
    sync.model("Todo", store=MemoryStore())
    sync.model("Typing")
    async with sync.lifespan():
        assert log == ["open"]
    assert log == ["open", "close"]


async def test_a_store_that_cannot_be_opened_ends_the_start_and_says_so() -> None:
    sync = Backsync()
    log: list[str] = []
    sync.model("Page", store=OpenedStore(log))
    sync.model("Todo", store=OpenedStore(log, fails=True))
    events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    sent: asyncio.Queue[Any] = asyncio.Queue()
    events.put_nowait({"type": "lifespan.startup"})
    with pytest.raises(RuntimeError, match="The store of Todo could not be opened"):
        await sync({"type": "lifespan"}, events.get, sent.put)
    told = "The store of Todo could not be opened: unavailable: The database is not available; try again."
    assert sent.get_nowait() == {"type": "lifespan.startup.failed", "message": told}
    assert sent.empty()
    assert log == ["open", "open", "close", "close"]


async def test_what_was_published_before_the_loop_ran_goes_out_when_it_does(sync: Backsync) -> None:
    with_nobody = Backsync()
    with_nobody.model("M").publish_soon("upsert", {"id": 1})
    async with connect(with_nobody) as client:
        while (answer := await client.call("M:subscribe"))["seq"] != 1:
            pass
        assert answer["records"] == [{"id": 1}]


async def test_a_handler_that_fails_is_logged_with_its_name(caplog: pytest.LogCaptureFixture) -> None:
    sync = Backsync()

    @sync.model("M").on("fail")
    async def fail(ctx: Context, data: Any) -> None:
        raise RuntimeError("secret")

    with caplog.at_level(logging.ERROR, "backsync"):
        async with connect(sync) as client:
            error = await client.error("M:fail")
    assert error["code"] == "handler_error"
    assert "secret" not in json.dumps(error)
    assert "M:fail" in caplog.text
    assert "secret" in caplog.text


async def test_in_debug_the_exception_is_told() -> None:
    sync = Backsync(debug=True)

    @sync.model("M").on("fail")
    async def fail(ctx: Context, data: Any) -> None:
        raise RuntimeError("helpful")

    async with connect(sync) as client:
        assert "helpful" in (await client.error("M:fail"))["message"]


def test_an_app_may_be_started_more_than_once() -> None:
    """As tests do that share an app: each start has an event loop of its own, and the end before it is forgotten."""
    sync = Backsync()
    sync.model("Todo", store=MemoryStore())
    for _ in range(2):
        with TestClient(sync) as client, client.websocket_connect("/websocket") as socket:
            socket.send_json({"id": 1, "event": "Todo:read"})
            assert socket.receive_json()["data"] == []


def test_what_an_event_loop_has_left_behind_holds_up_none_on_the_next() -> None:
    sync = Backsync()
    sync.model("Todo", store=MemoryStore())
    here = sync.model("Here", ephemeral=True, ttl=0.01)

    async def first() -> None:
        async with connect(sync):
            await here.upsert({"id": 1})
            await sync._turns.take(("Todo", "1"))  # as a writer does that never ends

    async def second() -> None:
        async with connect(sync) as client:
            await client.call("Here:subscribe")
            assert await client.call("Todo:upsert", {"id": 1}) == {"id": 1}
            while (await client.receive()).get("event") != "Here:delete":
                pass

    asyncio.run(first())
    asyncio.run(second())


class Numbered:
    """What the server in front offers for a socket whose number is known; see `backsync_asgi.uvicorn`."""

    frames_writable = True

    def __init__(self, fd: int) -> None:
        self.frames_fd = fd
        self.written: list[bytes] = []
        self.write_frame = self.written.append

    def on_writability(self, callback: Callable[[], None]) -> None:
        """It keeps up."""

    def on_message(self, callback: Callable[[str | bytes], bool]) -> None:
        """All comes by `receive`."""

    def heard(self) -> None:
        """Nobody asks."""


def test_a_socket_that_an_event_loop_has_left_behind_is_not_written_to_on_the_next() -> None:
    """Where its tasks were not even cancelled: uvloop has closed it, and its number is somebody else's."""
    sync = Backsync()
    model = sync.model("Todo", store=MemoryStore())
    ours, theirs = socket.socketpair()
    direct = Numbered(ours.fileno())

    async def first() -> Socket:
        left = Socket(sync, websocket_scope(extensions={"backsync.frames": direct}))
        left.send({"id": 1, "event": "Todo:subscribe"})
        for _ in range(20):
            await asyncio.sleep(0)
        await model.upsert({"id": 1})
        await asyncio.sleep(0)
        assert b"Todo:upsert" in theirs.recv(65_536)
        direct.written.clear()
        return left

    async def second() -> None:
        await model.upsert({"id": 2})  # before anybody comes
        await asyncio.sleep(0)
        async with connect(sync) as client:
            await client.call("Todo:upsert", {"id": 3})
            sync.refresh()
            await client.call("Todo:upsert", {"id": 4})

    with ours, theirs:
        theirs.setblocking(False)
        loop = asyncio.new_event_loop()
        left = loop.run_until_complete(first())
        loop.close()
        asyncio.run(second())
        with pytest.raises(BlockingIOError):
            theirs.recv(65_536)
        assert direct.written == []
    with contextlib.suppress(RuntimeError):  # its event loop is closed
        left.task.get_coro().close()


async def test_it_may_be_started_again_on_the_same_loop(sync: Backsync) -> None:
    for _ in range(2):
        async with sync.lifespan():
            async with connect(sync) as client:
                assert await client.call("$:ping") == {}


async def test_a_refused_origin_is_logged_where_browsers_ask_first(
    sync: Backsync, caplog: pytest.LogCaptureFixture
) -> None:
    await fetch(sync, "/info", headers=[(b"origin", b"https://elsewhere.example")])
    assert "allowed_origins=['https://elsewhere.example']" in caplog.text


# More than one thing at a time


async def test_a_snapshot_that_waits_is_of_what_the_client_has_asked_for_since(sync: Backsync) -> None:
    todo, slow, gate = sync.model("Todo"), sync.model("Slow"), asyncio.Event()

    @slow.on("read")
    async def read(ctx: Context, query: dict[str, Any]) -> list[Any]:
        await gate.wait()
        return []

    for id in 1, 2:
        await todo.upsert({"id": id, "of": id})
    async with connect(sync) as client:
        await client.call("Slow:subscribe", snapshot=False)
        await client.call("Todo:subscribe", {"of": 1})
        slow.refresh()
        todo.refresh()  # which waits for the one before
        assert (await client.call("Todo:subscribe", {"of": 2}))["records"] == [{"id": 2, "of": 2}]
        gate.set()
        while (push := await client.receive())["event"] != "Todo:snapshot":
            pass
        assert push["data"]["records"] == [{"id": 2, "of": 2}]


async def test_a_second_subscription_loses_no_change_for_the_first(sync: Backsync) -> None:
    """What came before its reply comes before it, in order; the position is one for the connection."""
    todos = sync.model("Todo")
    async with connect(sync) as client:
        first = await client.call("Todo:subscribe")
        await todos.upsert({"id": "a"})
        client.ask("Todo:subscribe", snapshot=False)
        client.ask("Todo:subscribe", since={"epoch": first["epoch"], "seq": 0})
        heard = [await client.receive() for _ in range(4)]
        assert [message["data"] for message in heard if "id" not in message] == [{"id": "a"}, {"id": "a"}]
        assert [message["data"]["seq"] for message in heard if "id" in message] == [1, 0]


@pytest.mark.parametrize("code", ["unavailable", "rate_limited", "timeout"])
async def test_a_snapshot_that_fails_for_a_while_ends_no_subscription(code: str) -> None:
    """The client is closed with a code that says to come back; its records stay until then."""
    sync = Backsync()
    refuses = False

    @sync.on("auth")
    async def auth(ctx: Context, token: str | None) -> str | None:
        return token

    @sync.model("Doc").on("read")
    async def read(ctx: Context, query: dict[str, Any]) -> list[dict[str, Any]]:
        if refuses:
            raise Reject(code)
        return [{"id": 1}]

    async with connect(sync) as client:
        await client.call("Doc:subscribe")
        refuses = True
        await client.call("$:auth", {"token": "other"})
        with pytest.raises(Closed) as closed:
            assert (await client.receive())["event"] != "Doc:snapshot"
        assert closed.value.code == SNAPSHOT_FAILED


async def test_who_becomes_somebody_else_while_subscribing_is_asked_anew() -> None:
    """Neither the guard's word for the one before nor its rows are for the new user."""
    sync = Backsync()
    reading, go_on = asyncio.Event(), asyncio.Event()
    docs = sync.model("Doc")

    @sync.on("auth")
    async def auth(ctx: Context, token: str | None) -> str | None:
        return token

    @docs.on("subscribe")
    async def guard(ctx: Context, query: dict[str, Any]) -> None:
        if ctx.user != "ann":
            raise Reject("forbidden")

    @docs.on("read")
    async def read(ctx: Context, query: dict[str, Any]) -> list[dict[str, Any]]:
        reading.set()
        await go_on.wait()
        return [{"id": 1, "of": ctx.user}]

    async with connect(sync) as client:
        await client.call("$:hello", {"token": "ann"})
        asked = client.ask("Doc:subscribe")
        await reading.wait()
        await client.call("$:auth", {"token": "bob"})
        go_on.set()
        answer = await client.receive()
        assert (answer["id"], answer["data"], answer["error"]["code"]) == (asked, None, "forbidden")
        docs.publish("upsert", {"id": 2})
        assert await client.call("$:ping") == {}, "nothing is pushed to who may not listen"


async def test_a_client_that_leaves_during_the_auth_hook_is_not_counted() -> None:
    sync = Backsync()
    asked, go_on = asyncio.Event(), asyncio.Event()
    presence = sync.model("Presence", ephemeral=True, grace=0.001)

    @sync.on("auth")
    async def auth(ctx: Context, token: str | None) -> str | None:
        asked.set()
        await go_on.wait()
        return token

    async with connect(sync) as client:
        client.ask("$:hello", {"client": "c", "token": "ann"})
        client.ask("Presence:upsert", {"id": "ghost"})
        await asked.wait()
    go_on.set()
    async with connect(sync) as watcher, asyncio.timeout(5):
        await watcher.call("$:hello", {"client": "w", "token": "w"})
        while presence.lives is None or presence.lives._owned or await watcher.call("Presence:read"):
            await watcher.call("$:ping")


async def test_writes_are_their_sender_s_also_after_another_has_signed_in() -> None:
    sync = Backsync()
    ran: list[tuple[int, str]] = []
    go_on = asyncio.Event()

    @sync.on("auth")
    async def auth(ctx: Context, token: str | None) -> str | None:
        return token

    @sync.model("Doc").on("upsert")
    async def save(ctx: Context, record: dict[str, Any]) -> dict[str, Any]:
        await go_on.wait()
        ran.append((record["id"], ctx.user))
        return record

    async with connect(sync) as client:
        await client.call("$:hello", {"token": "ann"})
        client.ask("Doc:upsert", [{"id": 1}, {"id": 2}])
        last = client.ask("Doc:upsert", {"id": 3})
        await client.call("$:auth", {"token": "bob"})
        go_on.set()
        while (await client.receive()).get("id") != last:
            pass
        assert ran == [(1, "ann"), (2, "ann"), (3, "ann")]


async def test_a_patch_cannot_take_the_key_from_a_record() -> None:
    sync = Backsync()
    sync.model("Doc", store=MemoryStore(), key="room")
    async with connect(sync) as client:
        await client.call("Doc:upsert", {"id": 1, "room": "a"})
        assert (await client.error("Doc:patch", {"id": 1}, unset=["room"]))["code"] == "invalid"
        assert (await client.error("Doc:patch", {"id": 1, "room": None}))["code"] == "invalid"
        assert await client.call("Doc:read") == [{"id": 1, "room": "a"}]


async def test_a_client_with_many_names_makes_the_server_forget_no_other_writes() -> None:
    """Kind: what is remembered of all is bounded by a count that one client can use up."""
    sync = Backsync(memory=Memory(clients=8))
    count = 0

    @sync.model("M").on("add")
    async def add(ctx: Context, data: Any) -> int:
        nonlocal count
        count += 1
        return count

    async with connect(sync) as victim:
        await victim.call("$:hello", {"client": "victim"})
        victim.send({"id": "w", "event": "M:add"})
        assert (await victim.receive())["data"] == 1
    async with connect(sync) as stranger:
        for number in range(20):
            asked = stranger.ask("$:hello", {"client": f"made up {number}"})
            reply = await stranger.reply(asked)
            if number >= 4:
                assert (reply["error"]["code"], reply["error"]["details"]) == ("too_large", {"limit": 4})
            await stranger.call("M:add")
        await stranger.call("$:hello", {"client": "made up 0"})  # a name that it has said before
    for number in range(20):
        async with connect(sync) as stranger:
            await stranger.call("$:hello", {"client": f"another {number}"})
            await stranger.call("M:add")
    async with connect(sync) as victim:
        await victim.call("$:hello", {"client": "victim"})
        victim.send({"id": "w", "event": "M:add"})
        assert (await victim.receive())["data"] == 1
    assert len(sync._site.retries) == 8


# Wrong use
#
# The kind of fault: a value of the wrong kind that is taken, and fails later at another place, or never.


@dataclass
class Row:
    """A type of records."""

    text: str = ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"store": MemoryStore}, "a class; expected an instance: store=MemoryStore(…)"),
        ({"store": "sqlite:///todo.db"}, "store=SQLStore(…) takes a database's URL"),
        ({"store": {}}, "expected a store, such as MemoryStore()"),
        ({"version": 1}, "expected a field's name, such as 'rev'"),
        ({"version": "id"}, "expected a field of its own that counts writes"),
        ({"version": "room", "key": "room"}, "expected a field of its own that counts writes"),
        ({"key": "$room"}, "'[$]' is reserved"),
        ({"key": ("a", "a")}, "names a field twice"),
        ({"schema": {"text": str}}, "expected the class of the records"),
        ({"schema": Row()}, "expected the class of the records"),
        ({"unknown": "ignore"}, "expected 'drop' or 'refuse'"),
        ({"readonly": "no"}, "expected True or False"),
        ({"ephemeral": 1}, "expected True or False"),
        ({"ephemeral": True, "ttl": float("nan")}, "expected positive seconds"),
        ({"ephemeral": True, "ttl": "5"}, "expected positive seconds"),
        ({"ephemeral": True, "grace": True}, "expected positive seconds"),
    ],
)
def test_an_option_of_the_wrong_kind_is_refused_with_what_is_right(options: dict[str, Any], said: str) -> None:
    sync = Backsync()
    said = said.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises((TypeError, ValueError), match=said):
        sync.model("Todo", **options)
    sync.model("Todo", store=MemoryStore(), version="rev")  # the right ones can still be given


@pytest.mark.parametrize(
    "settings",
    [
        {"limits": Limits},
        {"horizon": 5},
        {"memory": {}},
        {"sockjs": {}},
        {"debug": "yes"},
        {"allowed_origins": True},
        {"allowed_origins": [5]},
    ],
)
def test_a_setting_of_the_wrong_kind_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"got {next(iter(settings))}=|allowed_origins got .* expected"):
        Backsync(**settings)


@pytest.mark.parametrize("name", [None, 5, b"Todo", MemoryStore])
def test_a_model_has_a_name(name: Any) -> None:
    with pytest.raises(TypeError, match="expected a name"):
        Backsync().model(name)


@pytest.mark.parametrize("function", [5, lambda ctx: None, lambda ctx, data: None])
def test_middleware_takes_what_comes_next(function: Any) -> None:
    with pytest.raises(TypeError, match="middleware is async"):
        Backsync().middleware(function)


@pytest.mark.parametrize("audience", [5, lambda: 1])
def test_an_audience_function_takes_a_context(audience: Any) -> None:
    with pytest.raises(TypeError, match="an audience function takes"):
        Backsync().model("Todo").visible(lambda ctx, record: True, audience=audience)


async def test_a_refused_origin_names_the_host_and_the_proxy_before_the_setting(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sync = Backsync()
    headers = [(b"origin", b"https://app.example")]
    assert (await fetch(sync.rest(), "/Todo", headers=headers)).status == 403
    async with connect(sync, headers=headers) as client:
        with pytest.raises(Closed):
            await client.receive()
    [line] = [record.getMessage() for record in caplog.records]
    assert "called by the Host 'testserver'" in line
    assert line.index("Behind a proxy") < line.index("allowed_origins=['https://app.example']")


async def test_too_many_sessions_are_logged_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    sync = Backsync(sockjs=Settings(session_limit=1))
    async with connect(sync) as client:
        await client.call("$:ping")
        for number in range(20):
            assert (await fetch(sync, f"/000/session{number}/xhr", "POST")).status == 503
            async with connect(sync) as other:
                with pytest.raises(Closed):
                    await other.receive()
    assert len([record for record in caplog.records if "session_limit" in record.getMessage()]) == 1


# What one client may cost


async def test_each_record_of_an_array_counts_for_the_rate() -> None:
    """Kind: a limit counts messages, where the work is in what they hold."""
    sync = Backsync(limits=Limits(rate=0.001, burst=10))
    sync.model("M", store=MemoryStore())
    async with connect(sync) as client:
        assert len(await client.call("M:upsert", [{"id": id} for id in range(12)])) == 12
        error = await client.error("M:upsert", {"id": 1})
        assert error["code"] == "rate_limited"
        assert error["details"]["retry_after"] > 2_000


async def test_a_patch_removes_so_many_fields_and_no_more(sync: Backsync) -> None:
    async with connect(sync) as client:
        await client.call("Todo:upsert", {"id": 1, "a": 1})
        error = await client.error("Todo:patch", {"id": 1}, unset=[f"f{number}" for number in range(257)])
        assert (error["code"], error["details"]) == ("too_large", {"limit": 256})
        names = ["a", *(f"f{number}" for number in range(255))]
        assert await client.call("Todo:patch", {"id": 1}, unset=names) == {"id": 1}


async def test_a_client_that_does_not_read_gets_no_second_snapshot_made(sync: Backsync) -> None:
    """Kind: memory is held for who has paid a few bytes."""
    reads: list[int] = []
    for number in range(8):

        @sync.model(f"M{number}").on("read")
        async def read(ctx: Context, query: dict[str, Any], number: int = number) -> list[dict[str, Any]]:
            reads.append(number)
            return [{"id": id, "text": "x" * 1_000} for id in range(100)]

    async with connect(sync) as client:
        await client.call("$:ping")
        client.stall()
        asked = [client.ask(f"M{number}:subscribe") for number in range(8)]
        async with connect(sync) as control:
            for _ in range(20):
                await control.call("$:ping")
        assert len(reads) <= 2, "one in the server's hands, one that waits"
        client.read_again()
        assert sorted([(await client.receive())["id"] for _ in asked]) == asked


async def test_a_client_that_polls_gets_its_snapshots_while_its_channels_are_busy() -> None:
    sync = Backsync()
    model = sync.model("M", store=MemoryStore())
    await model.upsert({"id": 0, "text": "x" * 50_000})
    async with testing.connect(sync, transport="xhr") as client:
        view = await client.subscribe("M")
        for number in range(5):
            for id in range(3):
                await model.upsert({"id": id, "number": number})
            assert len(await client.read("M")) >= 1
        await client.until(lambda: len(view) == 3)


async def test_a_flood_of_messages_lets_others_have_their_turn_and_loses_none(sync: Backsync) -> None:
    """Kind: all that one client sends is handled in one turn of the event loop."""
    turns: list[int] = []
    async with connect(sync, "/000/abc/websocket") as client, connect(sync) as control:
        await control.call("$:ping")
        messages = [json.dumps({"id": id, "event": "$:ping"}) for id in range(1_000)]
        messages[500] = "no JSON"
        client.send_text(json.dumps(messages))
        assert await client.text() == "o"
        ids: list[int] = []
        while len(ids) < 999:
            some = json.loads((await client.text())[1:])
            turns.append(len(some))
            ids += [json.loads(it)["id"] for it in some]
        assert ids == [id for id in range(1_000) if id != 500]
        assert max(turns) <= 64


async def test_what_was_sent_before_a_client_left_is_done_however_much_it_was(sync: Backsync) -> None:
    todo = sync.model("Todo")
    async with connect(sync, "/000/abc/websocket") as client:
        assert await client.text() == "o"
        client.send_text(
            json.dumps([json.dumps({"event": "Todo:upsert", "data": {"id": id}}) for id in range(300)]),
        )
    async with connect(sync) as control:
        while len(await control.call("Todo:read")) < 300:
            pass
    assert todo.store is not None


async def test_requests_that_take_long_let_others_have_their_turn() -> None:
    sync = Backsync()
    time = 0.0
    sync._hub.now = lambda: time

    @sync.model("M").on("work", concurrent=True)
    async def work(ctx: Context, data: Any) -> int:
        nonlocal time
        time += 1.0
        return flushes()

    @sync.model("N").on("work")
    async def work_in_turn(ctx: Context, data: Any) -> int:
        return await work(ctx, data)

    def flushes() -> int:
        return sync._hub.flushes

    async with connect(sync) as client:
        for event in ("M:work", "N:work"):
            asked = [client.ask(event) for _ in range(10)]
            ticks = {(await client.reply(id))["data"] for id in asked}
            assert len(ticks) == 10, "one in each"


@pytest.mark.parametrize("transport", ["websocket", "framed", "xhr", "xhr_streaming"])
async def test_a_reply_of_any_size_comes_whatever_else_its_client_says(transport: testing.Transport) -> None:
    """Kind: a limit for what waits counts what the client waits for."""
    sync = Backsync(limits=Limits(replies=1_000))

    @sync.model("M").on("much")
    async def much(ctx: Context, data: Any) -> str:
        return "x" * 300_000

    async with testing.connect(sync, transport=transport) as client:
        await client.call("$:ping")
        asked = [asyncio.ensure_future(client.call("M:much")) for _ in range(2)]
        asked += [asyncio.ensure_future(client.call("$:ping")) for _ in range(5)]
        replies = await asyncio.gather(*asked)
        assert [len(reply) for reply in replies] == [300_000] * 2 + [0] * 5
