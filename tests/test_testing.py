"""The testing kit as its users meet it: what it lets them say, what it notices, and what its failures tell."""

from __future__ import annotations

import asyncio
import json
import random as randomness
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from backsync_asgi import Backsync, Context, Reject
from backsync_asgi import testing as testing_module
from backsync_asgi.client import Conversation, PromiseBroken, View
from backsync_asgi.limits import Horizon
from backsync_asgi.stores import MemoryStore
from backsync_asgi.testing import TRANSPORTS, Client, Closed, Transport, chaos, connect
from tests.convergence.clock import virtual

Record = dict[str, Any]


@pytest.fixture
def sync() -> Backsync:
    sync = Backsync(horizon=Horizon(records=20))
    sync.model("Todo", store=MemoryStore())
    sync.model("Message", store=MemoryStore(), key="room")
    return sync


# Clients


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_client_writes_reads_and_sees_by_any_transport(sync: Backsync, transport: Transport) -> None:
    async with connect(sync, transport=transport) as ann, connect(sync) as bob:
        todos = await ann.subscribe("Todo")
        stored = await bob.upsert("Todo", {"title": "Buy tea", "done": False})
        await ann.until(lambda: todos == {stored["id"]: stored})
        assert await ann.patch("Todo", {"id": stored["id"], "title": "tea"}, ["done"]) == {
            "id": stored["id"],
            "title": "tea",
        }
        assert await bob.read("Todo", {"title": "tea"}) == [{"id": stored["id"], "title": "tea"}]
        await bob.delete("Todo", stored["id"])
        await ann.until(lambda: not todos)
        assert [event.method for event in todos.events] == ["upsert", "upsert", "delete"]
        assert todos.since == {"epoch": todos.epoch, "seq": 3}


async def test_a_client_reaches_an_app_where_it_is_mounted(sync: Backsync) -> None:
    host = Starlette(routes=[Mount("/live/sync", app=sync)])
    for transport in TRANSPORTS:
        async with connect(host, "/live/sync", transport=transport) as ann:
            assert await ann.read("Todo") == []


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_path_where_nothing_is_ends_the_connection(sync: Backsync, transport: Transport) -> None:
    host = Starlette(routes=[Mount("/backsync", app=sync)])
    for app, path in ((sync, "/nowhere"), (host, ""), (host, "/backsink")):
        async with connect(app, path, transport=transport) as ann:
            with pytest.raises(Closed, match=f'nothing answered at {path or "/"};.* path="/backsync"'):
                await ann.read("Todo")


async def test_wrong_use_is_told_at_once(sync: Backsync) -> None:
    async with connect(sync) as ann:
        with pytest.raises(TypeError, match="true whatever it would give"):
            await ann.until(lambda: ann.read("Todo"))
        with pytest.raises(TypeError, match="got 'Todo', expected the view"):
            await ann.unsubscribe("Todo")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="got 1 clients and no view to check"):
            await chaos([ann])
        with pytest.raises(ValueError, match="got 0 clients"):
            await chaos([])


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_what_a_client_says_of_itself_reaches_the_handlers(transport: Transport) -> None:
    sync = Backsync()
    seen: list[Any] = []

    @sync.on("auth")
    async def auth(ctx: Context, token: str | None) -> str | None:
        return token

    @sync.model("M").on("look")
    async def look(ctx: Context, data: object) -> None:
        request = ctx.request
        seen.append((ctx.user, request.headers["x-test"], request.cookies, request.query_params["page"]))

    options: dict[str, Any] = {"headers": {"X-Test": "é"}, "cookies": {"a": "1", "b": "2"}, "query": "page=3"}
    async with connect(sync, transport=transport, token="ann", **options) as ann:
        await ann.call("M:look")
    assert seen == [("ann", "é", {"a": "1", "b": "2"}, "3")]


async def test_a_user_is_whom_the_middleware_would_find() -> None:
    sync = Backsync()
    sync.model("M").on("who")(lambda ctx, data: ctx.user)
    async with connect(sync, user="ann") as ann:
        assert await ann.call("M:who") == "ann"


async def test_a_refusal_is_the_reject_that_was_raised(sync: Backsync) -> None:
    async with connect(sync) as ann:
        with pytest.raises(Reject) as refused:
            await ann.patch("Todo", {"id": 1})
        assert refused.value.code == "not_found"
        with pytest.raises(Reject) as refused:
            await ann.subscribe("Message")
        assert refused.value.details == [{"field": "room", "message": refused.value.details[0]["message"]}]
        assert ann.views == []


async def test_a_connection_that_the_server_refuses_fails_what_is_asked() -> None:
    sync = Backsync()

    @sync.on("open")
    async def refuse(ctx: Context) -> None:
        raise Reject("forbidden", "Not today.")

    async with connect(sync) as ann:
        with pytest.raises(Closed, match="Not today") as closed:
            await ann.call("M:read")
        assert (closed.value.code, ann.connected) == (4503, False)
        with pytest.raises(ConnectionError):
            await ann.call("M:read")


async def test_one_view_for_each_channel(sync: Backsync) -> None:
    async with connect(sync) as ann:
        lobby = await ann.subscribe("Message", {"room": "lobby"})
        attic = await ann.subscribe("Message", {"room": "attic"})
        await ann.upsert("Message", {"id": 1, "room": "lobby"})
        await ann.until(lambda: 1 in lobby)
        assert "1" in lobby
        assert lobby[1] is lobby["1"]
        assert not attic
        assert await ann.subscribe("Message", {"room": "lobby"}) is lobby
        await ann.unsubscribe(lobby)
        assert ann.views == [attic]
        await ann.upsert("Message", {"id": 2, "room": "lobby"})
        await ann.call("$:ping")
        assert list(lobby) == [1]


async def test_events_that_are_not_state_are_noted(sync: Backsync) -> None:
    async with connect(sync) as ann:
        view = await ann.subscribe("Todo", snapshot=False)
        sync.model("Todo").publish("typing", {"who": "bob"})
        await ann.until(lambda: view.events)
        assert view.events == [("typing", {"who": "bob"}, None)]
        assert not view


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_what_is_asked_while_cut_off_waits_for_the_reconnect(sync: Backsync, transport: Transport) -> None:
    async with connect(sync) as ann, connect(sync) as bob:
        todos = await ann.subscribe("Todo")
        ann.disconnect()
        writing = asyncio.ensure_future(ann.upsert("Todo", {"id": 1}))
        await bob.upsert("Todo", {"id": 2})
        assert not todos
        assert (ann.waiting, ann.connected) == (1, False)
        await ann.reconnect(transport)
        await writing
        await ann.until(lambda: set(todos) == {1, 2})
        assert (ann.waiting, ann.connected, todos.mode) == (0, True, "resume")


async def test_another_token_said_while_cut_off_begins_with_a_snapshot() -> None:
    sync = Backsync()

    @sync.on("auth")
    async def auth(ctx: Context, token: str | None) -> str | None:
        return token

    note = sync.model("Note", store=MemoryStore())
    note.visible(lambda ctx, record: record["owner"] == ctx.user)
    async with connect(sync, token="ann") as ann:
        notes = await ann.subscribe("Note")
        await ann.upsert("Note", [{"id": 1, "owner": "ann"}, {"id": 2, "owner": "bob"}])
        await ann.until(lambda: list(notes) == [1])
        ann.disconnect()
        await ann.auth("bob")
        await ann.reconnect()
        assert (list(notes), notes.mode) == ([2], "snapshot")


async def test_a_subscription_that_is_refused_as_it_resumes_leaves_nothing() -> None:
    sync = Backsync()
    allowed = True
    todo = sync.model("Todo", store=MemoryStore())

    @todo.on("subscribe")
    async def guard(ctx: Context, query: Record) -> bool:
        return allowed

    async with connect(sync) as ann:
        todos = await ann.subscribe("Todo")
        await ann.upsert("Todo", {"id": 1})
        await ann.until(lambda: todos)
        allowed = False
        await ann.reconnect()
        assert todos.error is not None
        assert (todos.error.code, dict(todos), ann.views) == ("forbidden", {}, [])


@virtual
async def test_a_condition_that_does_not_come_true_tells_what_there_was() -> None:
    sync = Backsync()
    sync.model("Todo", store=MemoryStore())
    async with connect(sync) as ann:
        todos = await ann.subscribe("Todo")
        await ann.upsert("Todo", {"id": 1, "title": "tea"})
        with pytest.raises(TimeoutError) as failure:
            await ann.until(lambda: len(todos) == 2)
        told = str(failure.value)
        assert "test_testing.py:" in told
        assert "{1: {'id': 1, 'title': 'tea'}}" in told
        assert '"event":"Todo:upsert"' in told


@virtual
async def test_a_condition_may_hang_on_more_than_the_clients_own_frames() -> None:
    sync = Backsync()
    sync.model("Todo", store=MemoryStore())
    async with connect(sync) as ann:
        done: list[None] = []
        asyncio.get_running_loop().call_later(1.0, done.append, None)
        await ann.until(lambda: done)


@virtual
async def test_a_call_that_is_never_answered_says_so() -> None:
    sync = Backsync()

    @sync.model("M").on("hang")
    async def hang(ctx: Context, data: object) -> None:
        await asyncio.sleep(20)

    async with connect(sync) as ann:
        with pytest.raises(TimeoutError, match="M:hang got no reply in 2 s"):
            await ann.call("M:hang", within=2.0)
        ann.disconnect()
        with pytest.raises(TimeoutError, match="not connected"):
            await ann.call("M:hang")


def test_what_a_client_cannot_be_is_refused(sync: Backsync) -> None:
    with pytest.raises(ValueError, match="eventsource"):
        connect(sync, transport="pigeon")  # type: ignore[arg-type]


async def test_subscriptions_are_made_by_subscribe_alone(sync: Backsync) -> None:
    async with connect(sync) as ann:
        with pytest.raises(ValueError, match=r"client\.subscribe"):
            await ann.call("Todo:subscribe")


async def test_an_app_that_fails_fails_the_test() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("out of order")

    client = connect(broken)
    with pytest.raises(RuntimeError, match="out of order"):
        await client.call("M:read")
    await client.close()


@virtual
async def test_an_app_that_does_not_let_go_of_a_client_is_noticed() -> None:
    async def clinging(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await asyncio.sleep(60)

    client = connect(clinging)
    with pytest.raises(TimeoutError, match="not done with a request"):
        async with client:
            await asyncio.sleep(0)


# What a client notices of a server that breaks its promises


def conversation() -> tuple[Conversation, View]:
    talk = Conversation(None, None)
    view = View("Todo", {})
    request = talk.request("Todo:subscribe", {}, view)
    talk.sent(request)
    answer = {"mode": "snapshot", "epoch": "e", "seq": 5, "records": [{"id": 1}]}
    talk.receive(json.dumps({"id": request.id, "event": "Todo:subscribe", "data": answer}))
    return talk, view


def test_changes_move_a_view_and_its_position() -> None:
    talk, view = conversation()
    talk.receive('{"event":"Todo:upsert","data":{"id":2},"seq":7}')
    talk.receive('{"event":"Todo:delete","data":{"id":"1"},"seq":9}')
    assert (dict(view), view.since) == ({2: {"id": 2}}, {"epoch": "e", "seq": 9})
    talk.receive('{"event":"Todo:snapshot","data":{"epoch":"f","seq":1,"records":[{"id":3}]}}')
    assert (dict(view), view.since) == ({3: {"id": 3}}, {"epoch": "f", "seq": 1})


@pytest.mark.parametrize(
    "message",
    [
        {"event": "Todo:upsert", "data": {"id": 2}, "seq": 5},
        {"event": "Todo:upsert", "data": {"id": 2}, "seq": 4},
        {"event": "Note:upsert", "data": {"id": 2}, "seq": 6},
        {"event": "Todo:upsert", "data": {"id": 2}, "seq": 6, "key": {"room": "a"}},
        {"id": 1, "event": "Todo:subscribe", "data": {}},
        {"id": 99, "event": "Todo:read", "data": []},
    ],
    ids=["a position again", "an older one", "another model", "another room", "a second reply", "a reply to nothing"],
)
def test_a_broken_promise_is_told(message: Record) -> None:
    talk, _ = conversation()
    with pytest.raises(PromiseBroken):
        talk.receive(json.dumps(message))


def test_a_resume_that_answers_with_another_position_breaks_a_promise() -> None:
    talk, _ = conversation()
    [request] = talk.begin()
    talk.sent(request)
    assert request.since == {"epoch": "e", "seq": 5}
    answer = {"mode": "resume", "epoch": "e", "seq": 6}
    with pytest.raises(PromiseBroken):
        talk.receive(json.dumps({"id": request.id, "event": "Todo:subscribe", "data": answer}))


def test_a_broken_promise_is_a_failed_assertion() -> None:
    assert issubclass(PromiseBroken, AssertionError)


# Chaos


async def write(client: Client, random: randomness.Random) -> None:
    id = random.randrange(8)
    match random.randrange(4):
        case 0:
            await client.delete("Todo", id)
        case 1:
            await client.patch("Todo", {"id": id, "at": random.random()})  # may be refused: there may be none
        case 2:
            await client.upsert("Todo", [{"id": id, "at": random.random()}, {"id": id + 1}])
        case _:
            await client.upsert("Todo", {"id": id, "at": random.random()})


@pytest.mark.parametrize("seed", range(5))
async def test_an_app_that_keeps_its_promises_survives(sync: Backsync, seed: int) -> None:
    async with connect(sync) as ann, connect(sync, transport="xhr") as bob, connect(sync) as eve:
        for client in (ann, bob, eve):
            await client.subscribe("Todo")
        await chaos([ann, bob, eve], write, seed=seed)
        assert dict(ann.views[0]) == dict(bob.views[0]) == {it["id"]: it for it in await eve.read("Todo")}


async def test_chaos_without_acts_lets_the_test_act_itself(sync: Backsync) -> None:
    async with connect(sync) as ann:
        await ann.subscribe("Todo")
        await sync.model("Todo").upsert({"id": 1})
        await chaos([ann], steps=20, seed=1)
        assert list(ann.views[0]) == [1]


async def test_an_app_that_forgets_to_tell_is_found_out_and_the_seed_told() -> None:
    sync = Backsync()
    store = MemoryStore()

    @sync.model("Todo", store=store).on("quietly")
    async def quietly(ctx: Context, record: Record) -> None:
        await store.upsert(record)  # past the model: nobody hears of it

    async def act(client: Client, random: randomness.Random) -> None:
        await client.call("Todo:quietly", {"id": random.randrange(5)})

    async with connect(sync) as ann:
        await ann.subscribe("Todo")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(testing_module, "DEADLINE", 0.2)
            patch.setattr(Client.until, "__kwdefaults__", {"within": 0.2})
            with pytest.raises(AssertionError) as failure:
                await chaos([ann], act, steps=30, seed=4)
    told = str(failure.value)
    assert "differs from what it may see" in told
    assert "seed=4" in told
    assert "client 0: act" in told


async def test_an_app_that_applies_a_repeated_write_twice_is_found_out_by_what_should_be_seen() -> None:
    sync = Backsync()
    counter = sync.model("Counter", store=MemoryStore())
    pressed = 0

    @counter.on("press")
    async def press(ctx: Context, amount: int) -> int:
        now = ((await ctx.store.get("n")) or {"value": 0})["value"] + amount
        await counter.upsert({"id": "n", "value": now})
        return int(now)

    async def act(client: Client, random: randomness.Random) -> None:
        nonlocal pressed
        pressed += 1
        await client.call("Counter:press", 1)

    def expected(client: Client, view: View) -> dict[str | int, Record]:
        return {"n": {"id": "n", "value": pressed}}

    async with connect(sync) as ann:
        await ann.subscribe("Counter")
        await chaos([ann], act, seed=2, visible=expected)
        assert pressed > 10
    async with connect(sync, hello=False) as nameless:  # whose writes the server does not remember
        await nameless.subscribe("Counter")
        with pytest.raises(AssertionError, match="sees what it should not"):
            await chaos([nameless], act, seed=2, visible=expected)


async def test_the_same_seed_does_the_same() -> None:
    scripts = []
    for _ in range(2):
        sync = Backsync()
        sync.model("Todo", store=MemoryStore())

        async def act(client: Client, random: randomness.Random) -> None:
            await client.upsert("Todo", {"id": random.randrange(5), "at": random.random()})

        def never(client: Client, view: View) -> dict[str | int, Record]:
            return {"no": {"id": "no"}}

        async with connect(sync, client="ann") as ann:
            await ann.subscribe("Todo")
            with pytest.raises(AssertionError) as failure:
                await chaos([ann], act, steps=60, seed=9, visible=never)
            scripts.append(str(failure.value).partition("did:")[2])
    assert scripts[0] == scripts[1]
    assert "cut" in scripts[0]
