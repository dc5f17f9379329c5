"""Models: what can be registered, what handlers are told, in which order things happen; by a socket in process."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import math
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from http.cookies import SimpleCookie
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from backsync_asgi import Backsync, Context, Reject, testing
from backsync_asgi.errors import EncodeError
from backsync_asgi.limits import Limits
from backsync_asgi.models import KEY_LOOKS
from backsync_asgi.soon import SOON_LIMIT
from backsync_asgi.stores import MemoryStore
from tests.inprocess import DEADLINE, Closed, Socket, connect

Record = dict[str, Any]


@pytest.fixture
def sync() -> Backsync:
    return Backsync()


async def until(condition: Callable[[], bool], client: Socket) -> None:
    """Let the app go on until the condition holds: a round trip of a ping at a time."""
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await client.call("$:ping")


# Registering


def test_a_model_has_one_name_and_is_the_same_each_time(sync: Backsync) -> None:
    assert sync.model("Todo") is sync.model("Todo")
    assert sync.model("Todo") is not sync.model("todo")


@pytest.mark.parametrize("name", ["", "$", "1a", "a b", "a:b", "a/b", "é", "-a", "x" * 129, "a\n"])
def test_a_model_is_named_as_the_wire_can_name_it(sync: Backsync, name: str) -> None:
    with pytest.raises(ValueError, match="expected a letter"):
        sync.model(name)


def test_a_store_is_given_once(sync: Backsync) -> None:
    store = MemoryStore()
    sync.model("Todo", store=store)
    assert sync.model("Todo", store=store).store is store
    with pytest.raises(ValueError, match="given once"):
        sync.model("Todo", store=MemoryStore())
    sync.model("Late")
    assert sync.model("Late", store=store).store is store


def test_a_method_has_one_handler(sync: Backsync) -> None:
    model = sync.model("M")

    @model.on("read")
    def first(ctx: Context, data: Any) -> None: ...

    with pytest.raises(ValueError, match="M.on got 'read' twice"):

        @model.on("read")
        def second(ctx: Context, data: Any) -> None: ...


def test_a_handler_without_its_method_is_found_at_decoration(sync: Backsync) -> None:
    with pytest.raises(TypeError, match=r'expected a method: @model.on\("upsert"\)'):
        sync.model("M").on(lambda ctx, data: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", [3, ("a", 3), {"room"}, True])
def test_a_key_is_a_field_s_name_or_several(sync: Backsync, key: Any) -> None:
    with pytest.raises(TypeError, match="expected a field's name, or several in a tuple"):
        sync.model("M", key=key)


@pytest.mark.parametrize(
    ("key", "error", "told"),
    [
        ("bar", TypeError, r"got key='bar', expected key=\{\"room\": …, \"floor\": …\}"),
        ({"room": "bar"}, ValueError, r"expected key=\{\"room\": …, \"floor\": …\}"),
        ({"room": "bar", "floor": 1, "chair": 2}, ValueError, r"expected key=\{\"room\": …, \"floor\": …\}"),
        ({"room": "bar", "floor": 1.5}, ValueError, r"floor: got 1\.5, expected a text of at most 128"),
    ],
)
def test_an_event_s_key_is_checked_also_before_the_app_runs(
    sync: Backsync, key: Any, error: type[Exception], told: str
) -> None:
    model = sync.model("Chat", key=("room", "floor"))
    with pytest.raises(error, match=told):
        model.publish("typing", {}, key=key)
    model.publish("typing", {}, key={"room": "bar", "floor": 1})
    with pytest.raises(ValueError, match="a record has in its own fields"):
        model.publish("delete", {"id": 1}, key=key)
    with pytest.raises(ValueError, match="the model has no key"):
        sync.model("M").publish("typing", {}, key=key)


@pytest.mark.parametrize(("method", "hint"), [("create", "upsert"), ("update", "upsert"), ("unsubscribe", "built in")])
def test_a_name_that_is_taken_is_refused_with_the_remedy(sync: Backsync, method: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        sync.model("M").on(method)(lambda ctx, data: None)


@pytest.mark.parametrize("method", ["", "a b", "a:b", "1a", "é", "a.b"])
def test_a_method_is_named_as_the_wire_can_name_it(sync: Backsync, method: str) -> None:
    with pytest.raises(ValueError, match="expected letters"):
        sync.model("M").on(method)(lambda ctx, data: None)


def no_arguments() -> None: ...
def one_argument(ctx: Any) -> None: ...
def three_arguments(ctx: Any, data: Any, more: Any) -> None: ...
def keyword_only(ctx: Any, *, data: Any) -> None: ...
def generator(ctx: Any, data: Any) -> Any:
    yield


async def async_generator(ctx: Any, data: Any) -> Any:
    yield


@pytest.mark.parametrize(
    "function", [no_arguments, one_argument, three_arguments, keyword_only, generator, async_generator]
)
def test_a_function_that_cannot_be_called_is_found_at_decoration(sync: Backsync, function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=r"a handler takes \(ctx, data\)"):
        sync.model("M").on("x")(function)
    if function is not one_argument:
        with pytest.raises(TypeError, match=r"the open hook takes \(ctx\)"):
            sync.on("open")(function)
    with pytest.raises(TypeError, match=r"the auth hook takes \(ctx, token\)"):
        sync.on("auth")(function)


@pytest.mark.parametrize(
    "function",
    [
        lambda ctx, data: None,
        lambda *args: None,
        lambda ctx, data, more=None: None,
        functools.partial(three_arguments, more=1),
    ],
)
def test_other_ways_to_take_two_arguments_are_fine(sync: Backsync, function: Callable[..., Any]) -> None:
    assert sync.model("M").on("x")(function) is function


def test_hooks_have_their_names_and_there_is_one_auth_hook(sync: Backsync) -> None:
    with pytest.raises(ValueError, match="sync.on got 'read'"):
        sync.on("read")  # type: ignore[arg-type]
    sync.on("auth")(lambda ctx, token: None)
    with pytest.raises(ValueError, match="twice"):
        sync.on("auth")(lambda ctx, token: None)


def test_the_class_form_wants_a_class(sync: Backsync) -> None:
    with pytest.raises(TypeError, match=r"decorate functions with \.on"):
        sync.model("M")(lambda ctx, data: None)  # type: ignore[arg-type]


def test_a_method_of_a_class_is_checked_too(sync: Backsync) -> None:
    with pytest.raises(TypeError, match=r"Wrong\.read takes \(self, ctx, data\)"):

        @sync.model("M")
        class Wrong:
            def read(self, ctx: Context) -> None: ...

    with pytest.raises(TypeError, match=r"Hooked\.on_open takes \(self, ctx\)"):

        @sync.model("N")
        class Hooked:
            def on_open(self) -> None: ...


# Calling


@pytest.mark.parametrize("kind", ["async", "plain", "partial", "object"])
async def test_a_handler_may_be_any_kind_of_function(sync: Backsync, kind: str) -> None:
    threads: list[bool] = []

    def note() -> None:
        threads.append(threading.current_thread() is threading.main_thread())

    async def coroutine(ctx: Context, data: Any) -> Any:
        note()
        return [ctx.method, data]

    def plain(ctx: Context, data: Any) -> Any:
        note()
        return [ctx.method, data]

    class Answering:
        async def __call__(self, ctx: Context, data: Any) -> Any:
            note()
            return [ctx.method, data]

    handlers: dict[str, Callable[..., Any]] = {
        "async": coroutine,
        "plain": plain,
        "partial": functools.partial(coroutine),
        "object": Answering(),
    }
    sync.model("M").on("do")(handlers[kind])
    async with connect(sync) as client:
        assert await client.call("M:do", 1) == ["do", 1]
    assert threads == [kind != "plain"], "plain functions run in worker threads, the others on the event loop"


async def test_a_handler_is_told_who_asks_and_what_for(sync: Backsync) -> None:
    store = MemoryStore()
    await store.upsert({"id": "here"})
    seen: list[Any] = []

    @sync.model("M", store=store).on("look")
    async def look(ctx: Context, data: Any) -> Any:
        ctx.state.count = getattr(ctx.state, "count", 0) + 1
        seen.append((ctx.connection, hash(ctx.connection)))
        assert ctx.model is sync.model("M")
        assert await ctx.store.get("here") == {"id": "here"}
        return [ctx.user, ctx.method, ctx.state.count, ctx.request.headers["x-test"], ctx.request.query_params["q"]]

    options: dict[str, Any] = {"headers": [(b"x-test", b"1")], "user": "ann", "query_string": b"q=2"}
    async with connect(sync, **options) as first, connect(sync, **options) as second:
        assert await first.call("M:look") == ["ann", "look", 1, "1", "2"]
        assert await first.call("M:look") == ["ann", "look", 2, "1", "2"]
        assert await second.call("M:look") == ["ann", "look", 1, "1", "2"]
    assert seen[0] == seen[1] != seen[2]
    assert len({connection.id for connection, _ in seen}) == 2


async def test_a_model_without_a_store_says_so(sync: Backsync) -> None:
    @sync.model("M").on("look")
    async def look(ctx: Context, data: Any) -> Any:
        with pytest.raises(AttributeError, match="store=MemoryStore"):
            ctx.store  # noqa: B018 - reading it is the test
        return "looked"

    async with connect(sync) as client:
        assert await client.call("M:look") == "looked"


async def test_methods_without_handlers_are_unknown(sync: Backsync) -> None:
    sync.model("M")
    async with connect(sync) as client:
        for method in ("read", "upsert", "patch", "delete", "custom"):
            assert (await client.error(f"M:{method}", {"id": 1}))["code"] == "unknown_method"


async def test_data_that_is_missing_is_an_empty_query_or_none(sync: Backsync) -> None:
    model = sync.model("M")
    seen: list[Any] = []

    async def note(ctx: Context, data: Any) -> list[Any]:
        seen.append((ctx.method, data))
        return []

    for method in ("read", "subscribe", "custom"):
        model.on(method)(note)
    async with connect(sync) as client:
        await client.call("M:read")
        await client.call("M:subscribe")
        await client.call("M:custom")
    assert seen == [("read", {}), *[("subscribe", {})] * 2, ("custom", None)], "a guard, then a read: of a subscription"


class Parent:
    def notify(self, ctx: Context, data: Any) -> str:
        return "reached"


async def test_only_public_methods_of_the_class_itself_are_reachable(sync: Backsync) -> None:
    @sync.model("User")
    class Users(Parent):
        constant = 1
        other = Parent

        def __init__(self) -> None:
            self.calls = 0
            self.assigned = lambda ctx, data: "reached"

        def read(self, ctx: Context, data: Any) -> list[Record]:
            self.calls += 1
            return [{"id": 1, "calls": self.calls}]

        async def greet(self, ctx: Context, data: Any) -> str:
            return f"Hello {data}"

        def _private(self, ctx: Context, data: Any) -> str:
            return "reached"

        def __call__(self, ctx: Context, data: Any) -> str:
            return "reached"

        @property
        def name(self) -> str:
            return "reached"

        @staticmethod
        def static(ctx: Context, data: Any) -> str:
            return "reached"

        @classmethod
        def of_class(cls, ctx: Context, data: Any) -> str:
            return "reached"

        def on_open(self, ctx: Context) -> None: ...

        def on_close(self, ctx: Context) -> None: ...

    hidden = ["__init__", "__call__", "__class__", "notify", "on_open", "on_close", "_private", "constant", "other"]
    hidden += ["assigned", "name", "static", "of_class", "calls", "mro"]
    async with connect(sync) as client:
        assert await client.call("User:read") == [{"id": 1, "calls": 1}]
        assert await client.call("User:read") == [{"id": 1, "calls": 2}], "one instance serves all"
        assert await client.call("User:greet", "Ann") == "Hello Ann"
        for name in hidden:
            assert (await client.error(f"User:{name}", {"id": 1}))["code"] == "unknown_method", name


async def test_a_public_method_called_notify_is_a_handler_like_any_other(sync: Backsync) -> None:
    @sync.model("User")
    class Users:
        def notify(self, ctx: Context, data: Any) -> str:
            return "notified"

    async with connect(sync) as client:
        assert await client.call("User:notify") == "notified"


async def test_the_hooks_of_a_class_run_as_connections_come_and_go(sync: Backsync) -> None:
    events: list[str] = []
    gone = asyncio.Event()

    @sync.model("User")
    class Users:
        async def on_open(self, ctx: Context) -> None:
            assert ctx.model is sync.model("User")
            events.append("open")

        async def on_close(self, ctx: Context) -> None:
            events.append("close")
            gone.set()

        async def hear(self, ctx: Context, data: Any) -> None:
            events.append("hear")

    async with connect(sync) as client:
        await client.call("User:hear")
    await asyncio.wait_for(gone.wait(), DEADLINE)
    assert events == ["open", "hear", "close"]


# Handlers and stores together


async def test_what_upsert_returns_is_replied_and_broadcast(sync: Backsync) -> None:
    @sync.model("M").on("upsert")
    async def upsert(ctx: Context, data: Record) -> Record:
        return {**data, "id": 7, "by": "handler"}

    async with connect(sync) as author, connect(sync) as other:
        await other.call("M:subscribe")
        assert await author.call("M:upsert", {"x": 1}) == {"x": 1, "id": 7, "by": "handler"}
        assert await other.pushes() == [{"event": "M:upsert", "data": {"x": 1, "id": 7, "by": "handler"}, "seq": 1}]


@pytest.mark.parametrize("result", [None, "x", 1, [], {}, {"id": None}, {"id": ""}, {"id": 1.5}, [{"id": 1}]], ids=repr)
async def test_an_upsert_that_returns_no_record_is_a_mistake_that_the_log_explains(
    sync: Backsync, result: Any, caplog: pytest.LogCaptureFixture
) -> None:
    @sync.model("M").on("upsert")
    async def upsert(ctx: Context, data: Record) -> Any:
        return result

    async with connect(sync) as client:
        await client.call("M:subscribe")
        assert (await client.error("M:upsert", {"id": 1}))["code"] == "handler_error"
        assert await client.pushes() == []
    assert "Return what you have stored" in caplog.text


async def test_a_result_that_json_cannot_carry_is_not_broadcast(
    sync: Backsync, caplog: pytest.LogCaptureFixture
) -> None:
    @sync.model("M").on("upsert")
    async def upsert(ctx: Context, data: Record) -> Any:
        return {"id": 1, "tags": {"a"}}

    async with connect(sync) as client:
        await client.call("M:subscribe")
        assert (await client.error("M:upsert", {"id": 1}))["code"] == "handler_error"
        assert await client.pushes() == []
    assert "tags" in caplog.text


@pytest.mark.parametrize(
    "result", [float("nan"), {1, 2}, b"x", "\ud800", object()], ids=["nan", "set", "bytes", "surrogate", "object"]
)
async def test_any_result_that_json_cannot_carry_is_an_error_and_the_connection_lives(
    sync: Backsync, result: Any
) -> None:
    @sync.model("M").on("do")
    async def do(ctx: Context, data: Any) -> Any:
        return result

    async with connect(sync) as client:
        assert (await client.error("M:do"))["code"] == "handler_error"
        assert await client.call("$:ping") == {}


@pytest.mark.parametrize("rows", ["x", b"x", 1, None], ids=repr)
async def test_a_read_that_returns_no_rows_is_a_mistake(sync: Backsync, rows: Any) -> None:
    @sync.model("M").on("read")
    async def read(ctx: Context, query: Record) -> Any:
        return rows

    async with connect(sync) as client:
        assert (await client.error("M:read"))["code"] == "handler_error"
        expected = "not_found" if rows is None else "handler_error"
        assert (await client.error("M:read", {"id": 1}))["code"] == expected


async def test_a_read_may_return_any_iterable(sync: Backsync) -> None:
    @sync.model("M").on("read")
    def read(ctx: Context, query: Record) -> Any:
        return ({"id": number} for number in range(2))

    async with connect(sync) as client:
        assert await client.call("M:read") == [{"id": 0}, {"id": 1}]


class Typed(msgspec.Struct):
    value: float
    id: Any = None


@pytest.mark.parametrize("key", [(), "room"])
@pytest.mark.parametrize("has_rule", [False, True])
async def test_a_row_that_cannot_be_sent_is_left_out_of_what_a_handler_reads(
    key: Any, has_rule: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """One bad row fails nothing for the others: reads, snapshots and snapshots that replace one."""
    sync = Backsync()
    model = sync.model("M", key=key)
    if has_rule:
        model.visible(lambda ctx, record: True)
    bad: list[Any] = [
        *(
            {"id": number, "room": "x", "v": value}
            for number, value in enumerate((math.inf, math.nan, b"x", {1}, 2**70))
        ),
        *({"id": id, "room": "x"} for id in (None, "", 2**60, 1.5, "x" * 129, True)),
        {"room": "x"},
        7,
        None,
        Typed(math.nan, 5),
        Typed(1.0),
    ]

    @model.on("read")
    def read(ctx: Context, query: Record) -> Any:
        return [{"id": "a", "room": "x"}, *bad, {"id": "b", "room": "x"}]

    async with testing.connect(sync) as client:
        assert [row["id"] for row in await client.read("M", {"room": "x"})] == ["a", "b"]
        view = await client.subscribe("M", {"room": "x"})
        assert set(view) == {"a", "b"}
        logged = [record for record in caplog.records if "cannot be sent" in record.message]
        assert 10 <= len(logged) <= len(bad)
        sync.refresh()
        assert [row["id"] for row in await client.read("M", {"room": "x"})] == ["a", "b"]
    assert [record for record in caplog.records if "cannot be sent" in record.message] == logged, "once each"


async def test_rows_that_are_left_out_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    sync = Backsync()

    @sync.model("M").on("read")
    async def read(ctx: Context, query: Record) -> Any:
        return [{"id": "a"}, *({"id": number, "v": math.nan} for number in range(1_000))]

    async with connect(sync) as client:
        assert await client.call("M:read") == [{"id": "a"}]
        assert await client.call("M:read") == [{"id": "a"}]
    assert len(caplog.records) == 101
    assert "they are not logged" in caplog.text


@pytest.mark.parametrize("rows", [[{"text": "x"}], {"a": {"id": 1}}, [1], ({"_id": 1}, None)], ids=repr)
@pytest.mark.parametrize("event", ["M:read", "M:subscribe"])
async def test_a_read_without_a_record_is_a_mistake_that_the_log_explains(
    sync: Backsync, rows: Any, event: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A read handler is told of its mistake as an upsert handler is, and its client does not get an empty list."""

    @sync.model("M").on("read")
    async def read(ctx: Context, query: Record) -> Any:
        return rows

    async with connect(sync) as client:
        assert (await client.error(event))["code"] == "handler_error"
    assert "a dict with an id (a string of 1-128 characters or an integer)" in caplog.text


async def test_a_delete_handler_has_the_id_only_and_its_success_is_broadcast(sync: Backsync) -> None:
    seen: list[Record] = []

    @sync.model("M").on("delete")
    async def delete(ctx: Context, data: Record) -> bool | None:
        seen.append(data)
        return False if data["id"] == "missing" else None

    async with connect(sync) as author, connect(sync) as other:
        await other.call("M:subscribe")
        for id in ("a", "missing"):
            assert await author.call("M:delete", {"id": id, "x": 1}) == {}
        assert [push["data"] for push in await other.pushes()] == [{"id": "a"}]
    assert seen == [{"id": "a"}, {"id": "missing"}]


async def test_a_handler_may_wrap_the_store(sync: Backsync) -> None:
    @sync.model("M", store=MemoryStore()).on("upsert")
    async def upsert(ctx: Context, data: Record) -> Record:
        if data.get("title") == "":
            raise Reject("invalid", "A title, please.", [{"field": "title", "message": "empty"}])
        return await ctx.store.upsert(data)

    async with connect(sync) as client:
        assert await client.call("M:upsert", {"id": 1, "title": "x", "n": 1}) == {"id": 1, "title": "x", "n": 1}
        error = await client.error("M:patch", {"id": 1, "title": ""})
        assert (error["code"], error["details"]) == ("invalid", [{"field": "title", "message": "empty"}])
        assert await client.call("M:patch", {"id": 1, "title": "y"}, unset=["n"]) == {"id": 1, "title": "y"}
        assert (await client.error("M:patch", {"id": 2}))["code"] == "not_found"
        assert await client.call("M:read") == [{"id": 1, "title": "y"}]


async def test_a_patch_handler_gets_the_changed_fields(sync: Backsync) -> None:
    @sync.model("M").on("patch")
    async def patch(ctx: Context, data: Record) -> Record:
        return {"whole": True, **data}

    async with connect(sync) as client:
        assert await client.call("M:patch", {"id": 1, "x": 2}) == {"whole": True, "id": 1, "x": 2}


async def test_a_guard_decides_who_may_subscribe(sync: Backsync) -> None:
    @sync.model("M", store=MemoryStore()).on("subscribe")
    async def guard(ctx: Context, query: Record) -> bool | None:
        if ctx.user is None:
            raise Reject("unauthorized", "Sign in.")
        return bool(ctx.user == "ann") or None if ctx.user != "bob" else False

    async with connect(sync) as nobody, connect(sync, user="bob") as bob, connect(sync, user="ann") as ann:
        assert (await nobody.error("M:subscribe"))["code"] == "unauthorized"
        assert (await bob.error("M:subscribe"))["code"] == "forbidden"
        assert (await ann.call("M:subscribe"))["mode"] == "snapshot"
        await sync.model("M").upsert({"id": 1})
        assert [await client.pushes() == [] for client in (nobody, bob, ann)] == [True, True, False]


async def test_a_guard_is_no_method(sync: Backsync) -> None:
    @sync.model("M").on("subscribe")
    async def guard(ctx: Context, query: Record) -> Any:
        return "secret"

    async with connect(sync) as client:
        answer = await client.call("M:subscribe")
        assert "secret" not in str(answer)


# Order


async def test_a_handler_that_writes_by_itself_still_replies_before_its_own_echo(sync: Backsync) -> None:
    @sync.model("Room").on("rename")
    async def rename(ctx: Context, name: str) -> str:
        await ctx.model.upsert({"id": 1, "name": name})
        await asyncio.sleep(0)  # long enough for a flush
        await asyncio.sleep(0)
        return "renamed"

    async with connect(sync) as author, connect(sync) as other:
        for client in (author, other):
            await client.call("Room:subscribe")
        id = author.ask("Room:rename", "x")
        assert (await author.receive())["id"] == id
        assert (await author.receive())["data"] == {"id": 1, "name": "x"}
        assert [push["data"]["name"] for push in await other.pushes()] == ["x"]


async def test_a_handler_that_writes_another_model_replies_first_too(sync: Backsync) -> None:
    other_model = sync.model("Log", store=MemoryStore())

    @sync.model("M").on("do")
    async def do(ctx: Context, data: Any) -> str:
        await other_model.upsert({"id": 1})
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return "done"

    async with connect(sync) as client:
        await client.call("Log:subscribe")
        client.ask("M:do")
        assert (await client.receive())["data"] == "done"
        assert (await client.receive())["event"] == "Log:upsert"


@pytest.mark.parametrize("how", ["upsert_soon", "publish_soon", "publish"])
async def test_a_plain_handler_in_a_thread_replies_first_too(sync: Backsync, how: str) -> None:
    finished = threading.Event()

    @sync.model("M").on("do")
    def do(ctx: Context, data: Any) -> str:
        record = {"id": 1}
        if how == "upsert_soon":
            ctx.model.upsert_soon(record)
        elif how == "publish_soon":
            ctx.model.publish_soon("upsert", record)
        else:
            ctx.model.publish("upsert", record)
        finished.wait(DEADLINE)  # others hear of it while the handler still runs
        return "done"

    async with connect(sync) as author, connect(sync) as other:
        for client in (author, other):
            await client.call("M:subscribe")
        id = author.ask("M:do")
        assert (await other.receive())["data"] == {"id": 1}
        assert await author.pushes() == []
        finished.set()
        reply = await author.receive()
        assert (reply.get("id"), reply["data"]) == (id, "done")
        assert (await author.receive())["data"] == {"id": 1}


@pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])
@pytest.mark.parametrize("how", ["upsert_soon", "publish_soon", "publish"])
async def test_a_result_comes_after_all_that_its_handler_has_said_before(sync: Backsync, how: str, plain: bool) -> None:
    slow = asyncio.Event()

    class SlowStore(MemoryStore):
        async def upsert(self, record: Mapping[str, Any]) -> Record:
            if record.get("slow"):
                await slow.wait()
            return await super().upsert(record)

    model = sync.model("M", store=SlowStore())

    def save(ctx: Context, record: Record) -> Record:
        model.upsert_soon({"id": "other", "slow": True})
        said = {**record, "said": 1}
        if how == "upsert_soon":
            model.upsert_soon(said)
        else:
            getattr(model, how)("upsert", said)
        return {**record, "said": 2}

    async def save_async(ctx: Context, record: Record) -> Record:
        return save(ctx, record)

    model.on("upsert")(save if plain else save_async)
    async with connect(sync) as author, connect(sync) as other:
        await other.call("M:subscribe")
        asked = author.ask("M:upsert", {"id": 1})
        assert await other.pushes() in ([], [{"event": "M:upsert", "data": {"id": 1, "said": 1}, "seq": 1}])
        slow.set()
        assert (await author.reply(asked))["data"] == {"id": 1, "said": 2}
        await other.pushes()
        seen = [it["data"]["said"] for it in other.received if it.get("data", {}).get("id") == 1]
        assert seen in ([1, 2], [2])


async def test_what_a_handler_says_waits_for_nothing_that_others_have_said(sync: Backsync) -> None:
    slow = asyncio.Event()

    class SlowStore(MemoryStore):
        async def upsert(self, record: Mapping[str, Any]) -> Record:
            if record.get("slow"):
                await slow.wait()
            return await super().upsert(record)

    model = sync.model("M", store=SlowStore())

    @model.on("upsert")
    def save(ctx: Context, record: Record) -> Record:
        model.publish("upsert", {**record, "said": 1})
        return {**record, "said": 2}

    async with connect(sync) as client:
        model.upsert_soon({"id": 1, "slow": True})  # holds everything behind it, and the record's turn
        model.upsert_soon({"id": 2})
        await client.call("$:ping")
        assert (await client.call("M:upsert", {"id": 3}))["said"] == 2
        slow.set()


@pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])
async def test_a_store_that_hangs_on_what_a_handler_has_said_does_not_hold_its_result(plain: bool) -> None:
    sync = Backsync(limits=Limits(handler_timeout=0.05))
    go_on = asyncio.Event()

    class HangingStore(MemoryStore):
        async def upsert(self, record: Mapping[str, Any]) -> Record:
            await go_on.wait()
            return await super().upsert(record)

    model = sync.model("M", store=HangingStore())

    def save(ctx: Context, record: Record) -> Record:
        model.upsert_soon({"id": "other"})
        return record

    async def save_async(ctx: Context, record: Record) -> Record:
        return save(ctx, record)

    model.on("upsert")(save if plain else save_async)
    async with connect(sync) as client:
        await client.call("M:subscribe", {}, snapshot=False)
        assert await client.call("M:upsert", {"id": 1}) == {"id": 1}
        assert [it["data"] for it in await client.pushes()] == [{"id": 1}]
        gc.collect()  # nobody waits for what hangs any more
        go_on.set()
        while (change := await client.receive())["data"] != {"id": "other"}:
            assert change["data"] == {"id": 1}


async def test_writers_of_one_record_take_turns_and_others_need_not_wait(sync: Backsync) -> None:
    running: list[str] = []
    order: list[str] = []
    go_on = asyncio.Event()

    @sync.model("M").on("upsert")
    async def upsert(ctx: Context, data: Record) -> Record:
        assert data["id"] not in running, "one at a time per record"
        running.append(data["id"])
        if data["id"] == "a":
            await go_on.wait()
        order.append(f"{data['id']}{data['n']}")
        running.remove(data["id"])
        return data

    async with connect(sync) as first, connect(sync) as second, connect(sync) as third:
        await third.call("M:subscribe")
        a1 = first.ask("M:upsert", {"id": "a", "n": 1})
        await until(lambda: running == ["a"], first)
        a2 = second.ask("M:upsert", {"id": "a", "n": 2})
        await third.call("M:upsert", {"id": "b", "n": 3})
        assert order == ["b3"]
        go_on.set()
        await first.reply(a1)
        await second.reply(a2)
        # The order of completion is the order of broadcasts.
        assert order == ["b3", "a1", "a2"]
        await third.pushes()
        seen = [(it["data"]["n"], it["seq"]) for it in third.received if "seq" in it]
        assert seen == sorted(seen, key=lambda it: it[1])
        assert seen[-1] == (2, 3)


async def test_a_write_from_the_program_takes_its_turn_too(sync: Backsync) -> None:
    go_on = asyncio.Event()
    model = sync.model("M", store=MemoryStore())

    @model.on("upsert")
    async def upsert(ctx: Context, data: Record) -> Record:
        current = await ctx.store.get(data["id"]) or {"n": 0}
        await go_on.wait()
        return await ctx.store.upsert({**data, "n": current["n"] + 1})

    async with connect(sync) as client:
        asked = client.ask("M:upsert", {"id": 1})
        await client.call("$:ping")
        write = asyncio.ensure_future(model.upsert({"id": 1, "n": 10}))
        await client.call("$:ping")
        assert not write.done()
        go_on.set()
        assert (await client.reply(asked))["data"]["n"] == 1
        assert (await write)["n"] == 10


# Failing


@pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])
@pytest.mark.parametrize(
    "error",
    [RuntimeError("x"), StopIteration(1), TimeoutError(), asyncio.CancelledError(), BaseException("x")],
    ids=repr,
)
async def test_whatever_a_handler_raises_its_caller_gets_an_error_and_the_connection_lives(
    sync: Backsync, error: BaseException, plain: bool
) -> None:
    if plain:

        @sync.model("M").on("fail")
        def fail(ctx: Context, data: Any) -> None:
            raise error

    else:

        @sync.model("M").on("fail")
        async def async_fail(ctx: Context, data: Any) -> None:
            raise error

    async with connect(sync) as client:
        assert (await client.error("M:fail"))["code"] == "handler_error"
        assert (await client.error("M:fail"))["code"] == "handler_error", "the model's next request is handled too"


async def test_a_handler_that_cancels_itself_fails_alone(sync: Backsync) -> None:
    model = sync.model("M", store=MemoryStore())

    @model.on("quit")
    async def quit_(ctx: Context, data: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    async with connect(sync) as client:
        asked = client.ask("M:quit")
        after = client.ask("M:read")
        assert (await client.reply(asked))["error"]["code"] == "handler_error"
        assert (await client.reply(after))["data"] == []
        assert await client.call("M:read") == []


@pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])
async def test_a_handler_has_its_time_and_no_more(plain: bool, caplog: pytest.LogCaptureFixture) -> None:
    sync = Backsync(limits=Limits(handler_timeout=0.05))
    release = threading.Event()

    if plain:

        @sync.model("M").on("hang")
        def hang(ctx: Context, data: Any) -> None:
            release.wait(DEADLINE)

    else:

        @sync.model("M").on("hang")
        async def async_hang(ctx: Context, data: Any) -> None:
            await asyncio.Event().wait()

    try:
        async with connect(sync) as client:
            assert (await client.error("M:hang"))["code"] == "timeout"
            assert (await client.error("M:none"))["code"] == "unknown_method"
    finally:
        release.set()
    assert "M:hang took too long" in caplog.text


async def test_a_timeout_of_the_handlers_own_is_its_own_failure(sync: Backsync) -> None:
    @sync.model("M").on("wait")
    async def wait(ctx: Context, data: Any) -> None:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    async with connect(sync) as client:
        assert (await client.error("M:wait"))["code"] == "handler_error"


async def test_a_refusal_is_an_answer_and_no_failure(sync: Backsync, caplog: pytest.LogCaptureFixture) -> None:
    @sync.model("M").on("upsert")
    async def upsert(ctx: Context, data: Record) -> Record:
        raise Reject("out_of_stock", "None left.", {"until": "Monday"})

    async with connect(sync) as client:
        await client.call("M:subscribe")
        error = await client.error("M:upsert", {"id": 1})
        assert error == {"code": "out_of_stock", "message": "None left.", "details": {"until": "Monday"}}
        assert await client.pushes() == []
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_refusal_whose_message_has_no_utf_8_still_gets_its_reply() -> None:
    for sync in (Backsync(), Backsync(compat="2012")):

        @sync.model("M").on("do")
        async def do(ctx: Context, data: Any) -> None:
            raise Reject("forbidden", "\ud800")

        async with connect(sync) as client:
            reply = await client.reply(client.ask("M:do"))
            assert "The user may not do this." in str(reply["error"])


@pytest.mark.parametrize("details", [{"a", "b"}, b"x", object(), float("nan")], ids=["set", "bytes", "object", "nan"])
async def test_a_refusal_whose_details_json_cannot_carry_still_gets_its_reply(sync: Backsync, details: Any) -> None:
    @sync.model("M").on("do")
    async def do(ctx: Context, data: Any) -> None:
        raise Reject("forbidden", "No.", details)

    async with connect(sync) as client:
        assert (await client.error("M:do"))["code"] in ("forbidden", "handler_error")
        assert (await client.error("M:do"))["code"] in ("forbidden", "handler_error"), "and the next one too"


# From the program


async def test_upsert_stores_broadcasts_and_returns_the_record(sync: Backsync) -> None:
    model = sync.model("M", store=MemoryStore())
    async with connect(sync) as client:
        await client.call("M:subscribe")
        record = await model.upsert({"x": 1})
        assert record == {"x": 1, "id": record["id"]}
        assert await model.patch(record["id"], {"y": 2}, ["x"]) == {"id": record["id"], "y": 2}
        assert await model.delete(record["id"]) is True
        assert await model.delete(record["id"]) is False
        # One tick, one record: the newest of its states is what is told.
        assert [push["event"] for push in await client.pushes()] == ["M:delete"]


async def test_without_a_store_what_is_written_is_broadcast(sync: Backsync) -> None:
    model = sync.model("M")
    async with connect(sync) as client:
        await client.call("M:subscribe", snapshot=False)
        await model.upsert({"id": 1})
        assert await model.delete(2) is True
        assert [push["data"]["id"] for push in await client.pushes()] == [1, 2]
    with pytest.raises(ValueError, match="expected a record with an id"):
        await model.upsert({"x": 1})
    with pytest.raises(ValueError, match="needs a store"):
        await model.patch(1, {"x": 1})


async def test_the_program_is_held_to_the_same_rules(sync: Backsync) -> None:
    model = sync.model("M", store=MemoryStore())
    with pytest.raises(Reject):
        await model.upsert({"id": True})
    with pytest.raises(Reject):
        await model.upsert({"id": 1, **{f"f{number}": 0 for number in range(256)}})
    for bad in ({"x": 1}, {"id": None}, "x", None, [{"id": 1}]):
        with pytest.raises(ValueError, match="expected a record with an id"):
            model.publish("upsert", bad)
    with pytest.raises(EncodeError, match="tags"):
        model.publish("upsert", {"id": 1, "tags": {1}})
    with pytest.raises(EncodeError, match="the top"):
        model.publish("typing", {1})
    with pytest.raises(ValueError, match="letters, digits"):
        model.publish("a b", None)


async def test_what_cannot_be_sent_is_not_stored(sync: Backsync) -> None:
    """A write that was refused left nothing: neither a record nor a broadcast."""
    store = MemoryStore()
    model = sync.model("M", store=store)
    with pytest.raises(EncodeError):
        await model.upsert({"id": 1, "tags": {1}})
    assert await store.read({}) == []


async def test_publishing_soon_works_from_any_thread_in_order(sync: Backsync) -> None:
    model = sync.model("M")
    async with connect(sync) as client:
        await client.call("M:subscribe")

        def work() -> None:
            for number in range(300):
                model.publish_soon("upsert", {"id": number})

        thread = threading.Thread(target=work)
        thread.start()
        ids = [(await client.receive())["data"]["id"] for _ in range(300)]
        thread.join()
    assert ids == list(range(300))


async def test_publishing_soon_never_raises_and_one_bad_change_stops_no_other(
    sync: Backsync, caplog: pytest.LogCaptureFixture
) -> None:
    model = sync.model("M", store=MemoryStore())
    async with connect(sync) as client:
        await client.call("M:subscribe")
        model.publish_soon("upsert", {"no": "id"})
        model.publish_soon("a b", None)
        model.publish_soon("upsert", {"id": 1, "x": {1}})
        model.upsert_soon({"id": True})
        model.upsert_soon("no record")
        model.upsert_soon({"id": 2})
        assert (await client.receive())["data"] == {"id": 2}
    assert caplog.text.count("M.publish_soon was given what cannot be published") == 3
    assert caplog.text.count("A change that was published from another thread failed") == 2


async def test_what_is_published_soon_is_what_it_was_when_it_was_published(sync: Backsync) -> None:
    model = sync.model("M", store=MemoryStore())
    deep: dict[str, Any] = {"tags": ["a"]}
    record = {"id": 1, "n": 1, "deep": deep}
    async with connect(sync) as client:
        await client.call("M:subscribe")
        model.publish_soon("upsert", record)
        record["n"] = 2
        assert (await client.receive())["data"] == {"id": 1, "n": 1, "deep": {"tags": ["a"]}}
        model.upsert_soon(record)
        record["n"] = 3
        deep["tags"].append("b")
        assert (await client.receive())["data"] == {"id": 1, "n": 2, "deep": {"tags": ["a"]}}


@pytest.mark.parametrize("how", ["upsert_soon", "publish_soon", "uncopied"])
async def test_a_log_handler_that_publishes_what_its_own_failures_log_comes_to_an_end(sync: Backsync, how: str) -> None:
    """One cause gives a bounded number of effects, where an effect is a cause again."""
    model = sync.model("Line", store=MemoryStore())
    emitted: list[logging.LogRecord] = []
    bad: dict[str, Any] = {"upsert_soon": {1}, "publish_soon": {1}, "uncopied": threading.Lock()}

    class Publisher(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            emitted.append(record)
            assert len(emitted) < 20
            line = {"id": str(len(emitted)), "text": record.getMessage(), "bad": bad[how]}
            model.publish_soon("upsert", line) if how == "publish_soon" else model.upsert_soon(line)

    publisher, logger = Publisher(), logging.getLogger("backsync")
    async with connect(sync) as client:
        logger.addHandler(publisher)
        try:
            logger.error("one cause")
            for _ in range(100):
                await client.call("$:ping")
        finally:
            logger.removeHandler(publisher)
    assert 2 <= len(emitted) < 10


async def test_an_array_that_breaks_off_says_how_far_it_came_and_the_server_lives_on(sync: Backsync) -> None:
    @sync.model("M").on("upsert")
    def save(ctx: Context, record: dict[str, Any]) -> dict[str, Any]:
        if record["id"] == 2:
            raise SystemExit
        if record["id"] == 3:
            raise LookupError
        return record

    async with connect(sync) as client:
        for last in (2, 3):
            error = await client.error("M:upsert", [{"id": 0}, {"id": last}, {"id": 4}])
            assert error["code"] == "handler_error"
            assert error["details"] == {"done": 1}
        assert await client.call("M:upsert", {"id": 5}) == {"id": 5}


async def test_before_the_loop_runs_changes_wait_and_too_many_are_dropped_with_a_warning(
    sync: Backsync, caplog: pytest.LogCaptureFixture
) -> None:
    model = sync.model("M")
    for number in range(SOON_LIMIT + 5):
        model.publish_soon("upsert", {"id": number % 50, "n": number})
    async with connect(sync) as client:
        await until(lambda: model.topic_of({}).channel.seq == SOON_LIMIT, client)
        records = (await client.call("M:subscribe"))["records"]
    assert [record["n"] for record in records] == list(range(SOON_LIMIT - 45, SOON_LIMIT + 5))
    assert "5 changes were dropped" in caplog.text


# Middleware


async def test_middleware_is_around_every_handler_and_hook_the_first_outermost(sync: Backsync) -> None:
    calls: list[str] = []

    @sync.middleware
    async def outer(ctx: Context, *args: Any, call_next: Callable[..., Awaitable[Any]]) -> Any:
        calls.append(f"outer {ctx.method}")
        return await call_next(ctx, *args)

    @sync.middleware
    async def inner(ctx: Context, *args: Any, call_next: Callable[..., Awaitable[Any]]) -> Any:
        calls.append("inner")
        result = await call_next(ctx, *args)
        return [*result, "through"] if isinstance(result, list) else result

    @sync.model("M").on("do")
    def do(ctx: Context, data: Any) -> list[Any]:
        calls.append("handler")
        return [data]

    @sync.on("open")
    async def opened(ctx: Context) -> None:
        calls.append("open")

    async with connect(sync) as client:
        assert await client.call("M:do", 1) == [1, "through"]
    assert calls == ["outer None", "inner", "open", "outer do", "inner", "handler"]


async def test_middleware_may_refuse(sync: Backsync) -> None:
    @sync.middleware
    async def refuse(ctx: Context, *args: Any, call_next: Callable[..., Awaitable[Any]]) -> Any:
        raise Reject("rate_limited", "Slowly.", {"retry_after": 1})

    sync.model("M").on("do")(lambda ctx, data: None)
    async with connect(sync) as client:
        assert (await client.error("M:do"))["code"] == "rate_limited"


# Who is there


def app_with_auth(identify: Callable[[Context, str | None], Any]) -> Backsync:
    sync = Backsync(limits=Limits(greeting=10.0))
    sync.on("auth")(identify)

    @sync.model("Me").on("who")
    async def who(ctx: Context, data: Any) -> Any:
        return ctx.user

    return sync


async def test_without_an_auth_hook_the_user_is_the_host_apps(sync: Backsync) -> None:
    sync.model("Me").on("who")(lambda ctx, data: ctx.user.name if ctx.user else None)
    async with connect(sync, user=SimpleNamespace(name="ann")) as ann, connect(sync) as nobody:
        assert await ann.call("Me:who") == "ann"
        assert await nobody.call("Me:who") is None


async def test_a_cookie_can_tell_who_it_is() -> None:
    async def identify(ctx: Context, token: str | None) -> str:
        assert token is None
        return ctx.request.cookies["session"].upper()

    sync = app_with_auth(identify)
    cookie = SimpleCookie({"session": "ann"})["session"].OutputString().encode()
    async with connect(sync, headers=[(b"cookie", cookie)]) as client:
        assert await client.call("Me:who") == "ANN"


@pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])
async def test_a_token_can_tell_who_it_is_and_requests_wait_for_that(plain: bool) -> None:
    release = threading.Event()
    seen: list[Any] = []

    def identify(ctx: Context, token: str | None) -> str:
        release.wait(DEADLINE)
        seen.append(ctx.user)
        return f"user of {token}"

    async def identify_async(ctx: Context, token: str | None) -> str:
        return await asyncio.to_thread(identify, ctx, token)

    sync = app_with_auth(identify if plain else identify_async)
    async with connect(sync, user="from the host") as client:
        hello = client.ask("$:hello", {"version": 1, "client": "c", "token": "t"})
        who = client.ask("Me:who")
        assert await client.pushes() == [], "a ping does not wait, everything else does"
        release.set()
        assert (await client.reply(hello))["data"]["version"] == 1
        assert (await client.reply(who))["data"] == "user of t"
    assert seen == ["from the host"]


@pytest.mark.parametrize(("code", "closes_with"), [("unauthorized", 4501), ("forbidden", 4503), ("own_code", 4500)])
@pytest.mark.parametrize("first", ["$:hello", "Me:who", "$:ping"])
async def test_who_is_refused_is_closed_with_a_code_that_says_do_not_come_back(
    code: str, closes_with: int, first: str
) -> None:
    async def identify(ctx: Context, token: str | None) -> None:
        raise Reject(code, "Not you.")

    sync = app_with_auth(identify)
    closes: list[Context] = []
    sync.on("close")(closes.append)
    async with connect(sync) as client:
        client.ask(first)
        with pytest.raises(Closed) as caught:
            while (await client.receive())["event"] == "$:ping":
                pass
        assert (caught.value.code, caught.value.reason) == (closes_with, "Not you.")
    assert closes == [], "who never came does not go"


async def test_an_auth_hook_that_fails_lets_nobody_in_and_clients_may_come_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def identify(ctx: Context, token: str | None) -> None:
        raise RuntimeError("the database is down")

    async with connect(app_with_auth(identify)) as client:
        client.ask("Me:who")
        assert await client.close_code() == 1011
        assert client.received == []
    assert "the database is down" in caplog.text


async def test_who_says_nothing_where_it_must_is_closed_and_may_come_back() -> None:
    async def identify(ctx: Context, token: str | None) -> str:
        return "x"

    sync = app_with_auth(identify)
    async with connect(sync) as silent, connect(sync) as known:
        await known.call("Me:who")
        # The clock of connections is the sweep's, which passes it in.
        for connection in list(sync.connections):
            for now in (100.0, 109.9):
                connection.tick(now)
        assert len(sync.connections) == 2
        for connection in list(sync.connections):
            connection.tick(110.0)
        assert await silent.close_code() == 4408
        assert await known.call("Me:who") == "x"


async def test_a_live_connection_can_become_another_user() -> None:
    async def identify(ctx: Context, token: str | None) -> str:
        if token == "bad":
            raise Reject("unauthorized", "No.")
        return token or "nobody"

    sync = app_with_auth(identify)

    @sync.model("Mine").on("read")
    async def read(ctx: Context, query: Record) -> list[Record]:
        return [{"id": ctx.user}]

    async with connect(sync) as client:
        assert (await client.call("Mine:subscribe"))["records"] == [{"id": "nobody"}]
        assert await client.call("$:auth", {"token": "ann"}) == {}
        snapshot = await client.receive()
        assert (snapshot["event"], snapshot["data"]["records"]) == ("Mine:snapshot", [{"id": "ann"}])
        assert await client.call("Me:who") == "ann"
        assert await client.call("$:auth", {"token": "ann"}) == {}
        assert await client.pushes() == [], "the same user sees the same"
        assert (await client.error("$:auth", {"token": "bad"}))["code"] == "unauthorized"
        assert await client.call("Me:who") == "ann"


async def test_a_user_who_may_not_listen_any_more_loses_its_copy() -> None:
    async def identify(ctx: Context, token: str | None) -> str:
        return token or "ann"

    sync = app_with_auth(identify)
    model = sync.model("M", store=MemoryStore())

    @model.on("subscribe")
    async def guard(ctx: Context, query: Record) -> bool:
        return bool(ctx.user == "ann")

    async with connect(sync) as client:
        await model.upsert({"id": 1})
        assert len((await client.call("M:subscribe"))["records"]) == 1
        await client.call("$:auth", {"token": "bob"})
        snapshot = await client.receive()
        assert (snapshot["event"], snapshot["data"]["records"]) == ("M:snapshot", [])
        await model.upsert({"id": 2})
        assert await client.pushes() == []


# Coming and going


async def test_an_open_hook_runs_before_the_first_request_and_a_close_hook_after_the_last(sync: Backsync) -> None:
    events: list[str] = []
    go_on, gone = asyncio.Event(), asyncio.Event()

    @sync.on("open")
    async def opened(ctx: Context) -> None:
        ctx.state.name = "ann"
        events.append("open")

    @sync.on("close")
    async def closed(ctx: Context) -> None:
        events.append(f"close {ctx.state.name}")
        gone.set()

    @sync.model("M").on("do")
    async def do(ctx: Context, data: Any) -> None:
        await go_on.wait()
        events.append(f"do {data} {ctx.state.name}")

    async with connect(sync) as client:
        for number in (1, 2):
            client.ask("M:do", number)
        await client.call("$:ping")
    go_on.set()
    await asyncio.wait_for(gone.wait(), DEADLINE)
    assert events == ["open", "do 1 ann", "do 2 ann", "close ann"]


async def test_who_leaves_while_it_is_being_let_in_is_let_out_again(sync: Backsync) -> None:
    events: list[str] = []
    arrived, go_on, gone = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @sync.on("open")
    async def opened(ctx: Context) -> None:
        arrived.set()
        await go_on.wait()
        events.append("open")

    @sync.on("close")
    async def closed(ctx: Context) -> None:
        events.append("close")
        gone.set()

    async with connect(sync):
        await arrived.wait()
    go_on.set()
    await asyncio.wait_for(gone.wait(), DEADLINE)
    assert events == ["open", "close"]


async def test_an_open_hook_may_refuse(sync: Backsync) -> None:
    @sync.on("open")
    def opened(ctx: Context) -> None:
        raise Reject("forbidden", "Full.")

    async with connect(sync) as client:
        assert await client.close_code() == 4503


async def test_a_close_hook_that_fails_stops_no_other(sync: Backsync, caplog: pytest.LogCaptureFixture) -> None:
    gone = asyncio.Event()

    @sync.on("close")
    async def failing(ctx: Context) -> None:
        raise RuntimeError("x")

    @sync.on("close")
    async def closed(ctx: Context) -> None:
        gone.set()

    async with connect(sync) as client:
        await client.call("$:ping")
    await asyncio.wait_for(gone.wait(), DEADLINE)
    assert "A close hook failed" in caplog.text


async def test_a_close_hook_can_tell_the_others(sync: Backsync) -> None:
    model = sync.model("Presence", store=MemoryStore())

    @sync.on("open")
    async def opened(ctx: Context) -> None:
        await model.upsert({"id": ctx.connection.id})

    @sync.on("close")
    async def closed(ctx: Context) -> None:
        await model.delete(ctx.connection.id)

    async with connect(sync) as stays:
        await stays.call("Presence:subscribe")
        async with connect(sync) as leaves:
            await leaves.call("$:ping")
            arrival = await stays.receive()
        departure = await stays.receive()
        assert (arrival["event"], departure["event"]) == ("Presence:upsert", "Presence:delete")
        assert arrival["data"]["id"] == departure["data"]["id"]


async def test_a_handler_may_close_its_connection(sync: Backsync) -> None:
    @sync.model("M").on("bye")
    async def bye(ctx: Context, data: Any) -> str:
        ctx.connection.close(4000, "Come again")
        return "bye"

    async with connect(sync) as client:
        client.ask("M:bye")
        with pytest.raises(Closed) as caught:
            while True:
                await client.receive()
        assert (caught.value.code, caught.value.reason) == (4000, "Come again")


async def test_an_ephemeral_record_belongs_to_its_user_whatever_the_client() -> None:
    sync = Backsync()
    presence = sync.model("Presence", ephemeral=True, grace=0.01)

    @sync.on("auth")
    async def auth(ctx: Context, token: str | None) -> str | None:
        return token

    async with connect(sync) as watcher:
        await watcher.call("$:hello", {"version": 1})
        await watcher.call("Presence:subscribe")
        async with connect(sync) as first:
            await first.call("$:hello", {"version": 1, "client": "one", "token": "ann"})
            await first.call("Presence:upsert", {"id": "ann", "tab": 1})
            async with connect(sync) as second, connect(sync) as other:
                await second.call("$:hello", {"version": 1, "client": "two", "token": "ann"})
                await other.call("$:hello", {"version": 1, "client": "three", "token": "bob"})
                assert (await other.error("Presence:upsert", {"id": "ann"}))["code"] == "forbidden"
                await second.call("Presence:upsert", {"id": "ann", "tab": 2})
                assert second is not first
            assert [(await watcher.receive())["data"] for _ in range(2)] == [
                {"id": "ann", "tab": 1},
                {"id": "ann", "tab": 2},
            ]
            assert presence.lives is not None
            lives = presence.lives
            await until(lambda: ("ann", "two") not in lives._owned, watcher)  # its grace period is over
            assert await watcher.call("Presence:read", {"id": "ann"}) == {"id": "ann", "tab": 2}
        assert await watcher.receive() == {"event": "Presence:delete", "data": {"id": "ann"}, "seq": 3}


async def test_a_store_that_hangs_is_answered_for_and_holds_nobody_up() -> None:
    class Hanging(MemoryStore):
        async def upsert(self, record: Mapping[str, Any]) -> dict[str, Any]:
            if record["id"] == "slow":
                await asyncio.Event().wait()
            return await super().upsert(record)

    sync = Backsync(limits=Limits(handler_timeout=0.2))
    sync.model("M", store=Hanging())
    async with connect(sync) as client:
        assert (await client.error("M:upsert", {"id": "slow"}))["code"] == "timeout"
        assert await client.call("M:upsert", {"id": "quick"}) == {"id": "quick"}


# What may be seen changes under a client


async def test_a_user_whose_rights_have_changed_is_looked_at_anew() -> None:
    sync = Backsync()
    rights = {"ann": True}
    store = MemoryStore()
    model = sync.model("Doc", store=store)

    @model.visible(audience=lambda ctx: rights["ann"])
    def seen(ctx: Context, record: Record) -> bool:
        return rights["ann"] or not record["secret"]

    @sync.model("Board", store=MemoryStore()).on("subscribe")
    async def guard(ctx: Context, query: Record) -> None:
        if not rights["ann"]:
            raise Reject("forbidden", "No.")

    await model.upsert({"id": 1, "secret": True})
    await model.upsert({"id": 2, "secret": False})
    async with testing.connect(sync, user="ann") as client:
        docs, board = await client.subscribe("Doc"), await client.subscribe("Board")
        assert set(docs) == {1, 2}
        await sync.model("Board").upsert({"id": 1})
        await client.until(lambda: len(board) == 1)
        rights["ann"] = False
        for connection in sync.connections:
            connection.refresh()
        await client.until(lambda: set(docs) == {2} and not board)
        await model.upsert({"id": 3, "secret": True})
        await model.upsert({"id": 4, "secret": False})
        await client.until(lambda: set(docs) == {2, 4})
        rights["ann"] = True
        for connection in sync.connections:
            connection.refresh()
        await client.until(lambda: set(docs) == {1, 2, 3, 4})


# Keyed records that only handlers know


def rooms_of_a_database(sync: Backsync, rows: dict[int, Record]) -> Any:
    model = sync.model("Person", key="room")

    @model.on("read")
    async def read(ctx: Context, query: Record) -> list[Record]:
        return [row for row in rows.values() if row["room"] == query["room"]]

    @model.on("upsert")
    async def save(ctx: Context, record: Record) -> Record:
        rows[record["id"]] = record
        return record

    return model


async def test_a_record_that_only_a_handler_knew_leaves_its_room_as_it_moves() -> None:
    sync = Backsync()
    rooms_of_a_database(sync, {1: {"id": 1, "room": "a"}, 2: {"id": 2, "room": "a"}})
    async with testing.connect(sync) as client:
        a, b = await client.subscribe("Person", {"room": "a"}), await client.subscribe("Person", {"room": "b"})
        await client.upsert("Person", {"id": 1, "room": "b"})
        await client.until(lambda: set(a) == {2} and set(b) == {1})


async def test_a_record_that_moves_while_its_room_is_read_leaves_no_ghost() -> None:
    sync = Backsync()
    rows = {1: {"id": 1, "room": "a"}}
    model = sync.model("Person", key="room")
    reading, go_on = asyncio.Event(), asyncio.Event()

    @model.on("read")
    async def read(ctx: Context, query: Record) -> list[Record]:
        found = [dict(row) for row in rows.values() if row["room"] == query["room"]]
        if query["room"] == "a":
            reading.set()
            await go_on.wait()
        return found

    async with testing.connect(sync) as client:
        late = asyncio.ensure_future(client.subscribe("Person", {"room": "a"}))
        await reading.wait()
        rows[1] = {"id": 1, "room": "b"}
        model.publish("upsert", rows[1])
        go_on.set()
        a = await late
        await client.until(lambda: not a)


async def test_a_record_whose_place_was_forgotten_leaves_every_other_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backsync_asgi.places.PLACES", 2)
    sync = Backsync()
    model = rooms_of_a_database(sync, {number: {"id": number, "room": "a"} for number in range(5)})
    async with testing.connect(sync) as client:
        a, b = await client.subscribe("Person", {"room": "a"}), await client.subscribe("Person", {"room": "b"})
        c = await client.subscribe("Person", {"room": "c"})
        await client.upsert("Person", {"id": 0, "room": "b"})
        await client.until(lambda: set(a) == {1, 2, 3, 4} and set(b) == {0})
        assert not c.events, "no record of this room was forgotten"
        assert model.places._forgotten == {('"a"',)}
        sync._hub._topics.pop(("Person", ('"a"',)))  # as when nobody has listened for long
        assert not model.places._topics_forgotten()
        assert not model.places._forgotten


@pytest.mark.parametrize("way", ["snapshot", "filtered", "handler"])
async def test_a_record_that_was_stored_before_the_start_leaves_its_room_as_it_is_published(way: str) -> None:
    sync, store = Backsync(), MemoryStore()
    model = sync.model("Person", store=store, key="room")
    if way == "filtered":
        model.visible(lambda ctx, record: True)
    if way == "handler":

        @model.on("read")
        async def read(ctx: Context, query: Record) -> list[Record]:
            return await ctx.store.read(query)

    for id in (1, 2):
        await store.upsert({"id": id, "room": "a"})
    async with testing.connect(sync) as client:
        a, b = await client.subscribe("Person", {"room": "a"}), await client.subscribe("Person", {"room": "b"})
        model.publish("upsert", await store.upsert({"id": 1, "room": "b"}))
        await client.until(lambda: set(a) == {2} and set(b) == {1})
        seen = len(a.events)
        model.publish("upsert", await store.upsert({"id": 3, "room": "b"}))
        await client.until(lambda: set(b) == {1, 3})
        assert len(a.events) == seen, "a new record is no matter of other rooms"


async def test_a_record_that_is_published_elsewhere_while_its_room_is_read_leaves_no_ghost() -> None:
    class Slow(MemoryStore):
        async def snapshot(self, query: Mapping[str, Any]) -> AsyncGenerator[list[str]]:
            found = super().snapshot(query)
            chunks = [chunk async for chunk in found]
            if query["room"] == "a":
                reading.set()
                await go_on.wait()
            for chunk in chunks:
                yield chunk

    reading, go_on = asyncio.Event(), asyncio.Event()
    sync, store = Backsync(), Slow()
    model = sync.model("Person", store=store, key="room")
    await store.upsert({"id": 1, "room": "a"})
    async with testing.connect(sync) as client:
        late = asyncio.ensure_future(client.subscribe("Person", {"room": "a"}))
        await reading.wait()
        model.publish("upsert", await store.upsert({"id": 1, "room": "b"}))
        go_on.set()
        a = await late
        await client.until(lambda: not a)


async def test_two_handlers_that_write_each_others_records_do_not_wait_for_the_time_limit(sync: Backsync) -> None:
    model = sync.model("Account", store=MemoryStore())
    inside = asyncio.Barrier(2)

    @model.on("upsert")
    async def save(ctx: Context, record: Record) -> Record:
        await inside.wait()
        await model.upsert({"id": record["to"], "changed": True})
        return await ctx.store.upsert(record)

    async with connect(sync) as one, connect(sync) as two:
        results = await asyncio.gather(
            one.call("Account:upsert", {"id": 1, "to": 2}),
            two.call("Account:upsert", {"id": 2, "to": 1}),
            return_exceptions=True,
        )
    assert len([result for result in results if isinstance(result, BaseException)]) == 1
    assert "unavailable" in str(results) or any(getattr(result, "code", "") == "unavailable" for result in results)


async def test_a_handler_that_writes_one_record_twice_at_once_stores_and_tells_the_same(sync: Backsync) -> None:
    class Slow(MemoryStore):
        async def upsert(self, record: Mapping[str, Any]) -> Record:
            if record.get("n") == 1:
                for _ in range(5):
                    await asyncio.sleep(0)
            return await super().upsert(record)

    store = Slow()
    model = sync.model("M", store=store)

    @model.on("both")
    async def both(ctx: Context, data: Any) -> None:
        await asyncio.gather(model.upsert({"id": 1, "n": 1}), model.upsert({"id": 1, "n": 2}))

    async with testing.connect(sync) as client:
        view = await client.subscribe("M")
        await client.call("M:both")
        await client.until(lambda: 1 in view)
        assert view[1] == await store.get(1)


# Whoever a client is as it is answered is who it is answered as


def owned_notes() -> tuple[Backsync, Any, asyncio.Event]:
    sync = Backsync()
    go_on = asyncio.Event()

    @sync.on("auth")
    async def auth(ctx: Context, token: str | None) -> str | None:
        return token

    model = sync.model("Note", store=MemoryStore())
    model.visible(audience=lambda ctx: ctx.user)(lambda ctx, record: record["owner"] == ctx.user)

    @model.on("slow")
    async def slow(ctx: Context, data: Any) -> None:
        await go_on.wait()

    return sync, model, go_on


async def test_a_subscription_that_waited_while_its_user_changed_is_the_new_users() -> None:
    sync, model, go_on = owned_notes()
    await model.upsert({"id": 1, "owner": "ann"})
    async with testing.connect(sync, token="ann") as client, testing.connect(sync, token="ann") as ann:
        await ann.subscribe("Note")
        slow = asyncio.ensure_future(client.call("Note:slow"))
        late = asyncio.ensure_future(client.subscribe("Note"))
        read = asyncio.ensure_future(client.read("Note"))
        await client.auth("bob")
        go_on.set()
        await slow
        view = await late
        assert (dict(view), await read) == ({}, [])
        await model.upsert({"id": 2, "owner": "ann"})
        await model.upsert({"id": 3, "owner": "bob"})
        await client.until(lambda: set(view) == {3})


async def test_nobody_resumes_from_what_another_user_has_seen() -> None:
    sync, model, _ = owned_notes()
    await model.upsert({"id": 1, "owner": "ann"})
    async with testing.connect(sync, token="ann") as client:
        view = await client.subscribe("Note")
        assert set(view) == {1}
        client.cut_after(down=0)  # the answer and the new snapshot are lost
        with pytest.raises(TimeoutError):
            await client.call("$:auth", {"token": "bob"}, within=0.05)
        client._talk.token = "bob"
        await client.reconnect()
        assert (view.mode, dict(view)) == ("snapshot", {})


async def test_who_was_away_when_its_rights_changed_does_not_resume_either() -> None:
    sync = Backsync()
    model = sync.model("Doc", store=MemoryStore())
    hidden: set[int] = set()
    model.visible(lambda ctx, record: record["id"] not in hidden)
    await model.upsert({"id": 1})
    await model.upsert({"id": 2})
    async with testing.connect(sync, user="ann") as client, testing.connect(sync, user="bob") as other:
        mine, others = await client.subscribe("Doc"), await other.subscribe("Doc")
        await client.reconnect()
        assert mine.mode == "resume", "while nothing has changed"
        client.disconnect()
        hidden.add(1)
        sync.refresh()
        await other.until(lambda: set(others) == {2})
        await client.reconnect()
        assert (mine.mode, set(mine)) == ("snapshot", {2})


async def test_subscriptions_that_need_not_wait_for_each_other_do_not_spoil_each_others_snapshots() -> None:
    sync = Backsync()
    asked: list[Any] = []
    model = sync.model("Room", key="room", store=MemoryStore())
    seen: list[Any] = []

    @model.on("subscribe", concurrent=True)
    async def guard(ctx: Context, query: Record) -> None:
        asked.append(query["room"])
        await asyncio.sleep(0)
        asked.append(query["room"])

    @model.on("read")
    async def read(ctx: Context, query: Record) -> list[Record]:
        seen.append(query["room"])
        await asyncio.sleep(0)
        return await ctx.store.read(query)

    await model.upsert({"id": 1, "room": "a"})
    async with connect(sync) as client:
        asking = [client.ask("Room:subscribe", {"room": room}) for room in ("a", "b", "a", "a")]
        for id in asking:
            answer = await client.receive()
            assert answer["data"]["mode"] == "snapshot", id
        await model.upsert({"id": 2, "room": "a"})
        assert [push["data"]["id"] for push in await client.pushes()] == [2]
    assert {message["id"] for message in client.received[:4]} == set(asking)
    assert sorted(seen) == ["a", "a", "a", "b"], "no snapshot was read for nothing"
    assert asked[:4] == ["a", "b", "a", "b"], "other channels need not wait"


async def test_a_room_that_is_forgotten_while_its_guard_decides_is_heard_all_the_same() -> None:
    sync = Backsync()
    model = sync.model("Chat", store=MemoryStore(), key="room")
    asked, go_on = asyncio.Event(), asyncio.Event()

    @model.on("subscribe")
    async def guard(ctx: Context, query: Record) -> None:
        asked.set()
        await go_on.wait()

    async with testing.connect(sync) as client:
        late = asyncio.ensure_future(client.subscribe("Chat", {"room": "slow"}))
        await asked.wait()
        for number in range(150):
            await model.upsert({"id": number, "room": f"r{number}"})
        go_on.set()
        view = await late
        await model.upsert({"id": 999, "room": "slow"})
        await client.until(lambda: 999 in view)


async def test_a_subscription_that_is_refused_when_asked_again_is_over() -> None:
    sync = Backsync()
    model = sync.model("Doc", store=MemoryStore())
    open_to_all = True

    @model.on("subscribe")
    async def guard(ctx: Context, query: Record) -> bool:
        return open_to_all

    async with testing.connect(sync) as client:
        await client.subscribe("Doc")
        open_to_all = False
        with pytest.raises(Reject, match="may not subscribe"):
            await client.subscribe("Doc")
        await model.upsert({"id": 1})
        await client.call("$:ping")  # what came for a channel that it is not subscribed to would break a promise


async def test_a_subscription_to_one_record_outlives_the_record() -> None:
    sync = Backsync()
    model = sync.model("Doc", store=MemoryStore())
    await model.upsert({"id": 1})

    @model.on("subscribe")
    async def guard(ctx: Context, query: Record) -> None: ...

    async with testing.connect(sync) as client:
        view = await client.subscribe("Doc", {"id": 1})
        await model.delete(1)
        sync.refresh()
        await client.until(lambda: "snapshot" in [event.method for event in view.events])
        await model.upsert({"id": 1, "back": True})
        await client.until(lambda: view == {1: {"id": 1, "back": True}})


async def test_a_snapshot_that_is_asked_for_within_another_request_goes_not_beyond_what_may_be_sent() -> None:
    sync = Backsync()
    model = sync.model("B", store=MemoryStore())
    inside, go_on = asyncio.Event(), asyncio.Event()

    @sync.model("A").on("go")
    async def go(ctx: Context, data: Any) -> None:
        await model.upsert({"id": 1})
        inside.set()
        await go_on.wait()

    async with testing.connect(sync) as client:
        view = await client.subscribe("B")
        going = asyncio.ensure_future(client.call("A:go"))
        await inside.wait()
        await model.upsert({"id": 2})
        await client.subscribe("B")
        go_on.set()
        await going
        await client.until(lambda: set(view) == {1, 2})


async def test_a_write_of_thousands_lets_others_have_their_turn() -> None:
    sync = Backsync()
    sync.model("M", store=MemoryStore())
    async with testing.connect(sync) as one, testing.connect(sync) as other:
        await other.call("$:ping")
        many = asyncio.ensure_future(one.upsert("M", [{}] * 2_000))
        await one.call("$:ping")
        for _ in range(3):
            await other.call("$:ping")
        assert not many.done()
        assert len(await many) == 2_000


async def test_an_array_that_was_written_in_part_is_not_written_again_by_a_retry() -> None:
    sync = Backsync()
    model = sync.model("M", store=MemoryStore())

    @model.on("upsert")
    async def save(ctx: Context, record: Record) -> Record:
        if record["t"] == 3:
            raise Reject("unavailable", "Not now.")
        return await ctx.store.upsert(record)

    async with connect(sync) as client:
        await client.call("$:hello", {"client": "c"})
        for _ in range(2):
            client.send({"id": 77, "event": "M:upsert", "data": [{"t": 1}, {"t": 2}, {"t": 3}]})
            assert (await client.receive())["error"]["details"] == {"done": 2}
        assert len(await client.call("M:read")) == 2


async def test_a_wrong_key_is_told_with_what_was_got(sync: Backsync) -> None:
    sync.model("Chat", store=MemoryStore(), key="room")
    async with connect(sync) as client:
        error = await client.error("Chat:subscribe", {"room": 1.5})
        assert error["code"] == "invalid"
        assert "need room. room: got 1.5, expected a text" in error["message"]
        assert "room: missing, expected a text" in (await client.error("Chat:upsert", {"id": 1}))["message"]


async def test_a_plain_handler_that_returns_a_coroutine_is_told_so() -> None:
    sync = Backsync(debug=True)

    async def work() -> int:
        return 1

    @sync.model("M").on("go")
    def go(ctx: Context, data: Any) -> Any:
        return work()

    async with connect(sync) as client:
        error = await client.error("M:go")
        assert error["code"] == "handler_error"
        assert "make the handler async and await it" in error["message"]


async def test_a_conflict_of_a_method_of_ones_own_hides_what_may_not_be_seen(sync: Backsync) -> None:
    model = sync.model("Doc", store=MemoryStore(), version="rev")

    @model.visible
    def may_see(ctx: Context, record: Record) -> Any:
        return {"title": record["title"]} if record["id"] == 1 else False

    @model.on("rename")
    async def rename(ctx: Context, data: Any) -> Any:
        if data["id"] == 3:
            raise Reject("conflict", details={"current": {"title": "no id"}})
        return await ctx.model.upsert(data)

    for id in (1, 2):
        await model.upsert({"id": id, "title": "t", "secret": "s"})
    async with testing.connect(sync) as client:
        for id, seen in ((1, {"id": 1, "title": "t"}), (2, None), (3, None)):
            texts: list[str] = []
            client.on_text = texts.append
            client.send_twice()
            with pytest.raises(Reject) as caught:
                await client.call("Doc:rename", {"id": id, "title": "u", "rev": 7})
            assert (caught.value.code, caught.value.details) == ("conflict", {"current": seen})
            await client.call("$:ping")
            assert "secret" not in "".join(texts)


async def test_a_delete_that_names_another_version_is_a_conflict(sync: Backsync) -> None:
    model = sync.model("Page", store=MemoryStore(), version="rev")
    kept = sync.model("Kept", store=MemoryStore(), version="rev")
    asked: list[Record] = []

    @kept.on("delete")
    async def delete(ctx: Context, data: Record) -> bool:
        asked.append(data)
        return await ctx.store.delete(data["id"], data.get("rev"))

    async with connect(sync) as client:
        for name in ("Page", "Kept"):
            await client.call(f"{name}:upsert", {"id": 1})
            stored = await client.call(f"{name}:upsert", {"id": 1})
            error = await client.error(f"{name}:delete", {"id": 1}, version=1)
            assert (error["code"], error["details"]) == ("conflict", {"current": stored})
            assert await client.call(f"{name}:delete", {"id": 1, "other": True}, version=2) == {}
            assert await client.call(f"{name}:delete", {"id": 1}, version=2) == {}, "it is gone already"
            await client.call(f"{name}:upsert", {"id": 1})
            assert await client.call(f"{name}:delete", {"id": 1, "rev": 7}) == {}, "only its id counts"
    assert asked == [{"id": 1, "rev": 1}, {"id": 1, "rev": 2}, {"id": 1, "rev": 2}, {"id": 1}]
    assert model.store is not None
    assert await model.store.read({}) == []


async def test_a_patch_does_not_get_round_the_limit_of_fields(sync: Backsync) -> None:
    store = MemoryStore()
    sync.model("M", store=store)
    fields = {f"f{number}": number for number in range(200)}
    async with connect(sync) as client:
        await client.call("M:upsert", {"id": 1, **fields})
        error = await client.error("M:patch", {"id": 1, **{f"g{number}": number for number in range(200)}})
        assert error["code"] == "too_large"
    assert await store.get(1) == {"id": 1, **fields}


@pytest.mark.parametrize("event", ["M:upsert", "M:patch", "M:delete"])
@pytest.mark.parametrize("key", ["room", ()])
async def test_a_store_that_hangs_as_it_is_asked_for_a_record_holds_nobody_up(event: str, key: Any) -> None:
    class Hanging(MemoryStore):
        async def get(self, id: int | str) -> Record | None:
            if id == "slow":
                await asyncio.Event().wait()
            return await super().get(id)

    sync = Backsync(limits=Limits(handler_timeout=0.2))
    model = sync.model("M", store=Hanging(), key=key)

    @model.on("upsert")
    async def save(ctx: Context, record: Record) -> Any:
        return await ctx.store.upsert(record)

    async with connect(sync) as client:
        if key or event == "M:patch":
            assert (await client.error(event, {"id": "slow", "room": "a"}))["code"] == "timeout"
        assert await client.call("M:upsert", {"id": "quick", "room": "a"}) == {"id": "quick", "room": "a"}


# When nobody has told what has changed


async def test_a_model_can_have_everybody_read_anew() -> None:
    sync = Backsync()
    store = MemoryStore()
    model = sync.model("Doc", store=store)
    await model.upsert({"id": 1})
    async with testing.connect(sync) as here, testing.connect(sync, transport="xhr") as away:
        mine, others = await here.subscribe("Doc"), await away.subscribe("Doc")
        epoch = mine.epoch
        away.disconnect()
        await store.delete(1)
        await store.upsert({"id": 2})
        model.refresh()
        await here.until(lambda: set(mine) == {2})
        assert mine.epoch != epoch
        await model.upsert({"id": 3})
        await here.until(lambda: set(mine) == {2, 3})
        await away.reconnect()
        assert (others.mode, set(others)) == ("snapshot", {2, 3})


async def test_changes_that_had_to_be_dropped_are_read_anew(caplog: pytest.LogCaptureFixture) -> None:
    sync = Backsync()
    rows: dict[int, Record] = {}
    model = sync.model("Row")

    @model.on("read")
    async def read(ctx: Context, query: Record) -> list[Record]:
        return list(rows.values())

    async with testing.connect(sync) as client:
        view = await client.subscribe("Row")
        for number in range(SOON_LIMIT + 5):  # while the loop has no turn
            rows[number] = {"id": number}
            model.publish_soon("upsert", rows[number])
        await client.until(lambda: len(view) == len(rows))
    assert "5 changes were dropped" in caplog.text


async def test_a_query_does_not_tell_what_is_redacted() -> None:
    sync = Backsync()
    model = sync.model("Card", store=MemoryStore())
    model.visible(lambda ctx, record: {"name": record["name"]})
    await model.upsert({"id": 1, "name": "ann", "pin": 4711})
    async with testing.connect(sync) as client:
        assert await client.read("Card", {"pin": 4711}) == []
        assert dict(await client.subscribe("Card", {"pin": 4711})) == {}
        assert await client.read("Card", {"$order": "pin", "$after": {"pin": 4000, "id": 1}}) == []
        assert len(await client.read("Card", {"$order": ["-name", "id"], "$limit": 5})) == 1
        assert await client.read("Card", {"name": "ann"}) == [{"id": 1, "name": "ann"}]


async def test_a_subscription_that_fails_leaves_the_one_that_was_there() -> None:
    sync = Backsync()
    model = sync.model("Doc")

    @model.on("read")
    async def read(ctx: Context, query: Record) -> list[Record]:
        if query.get("bad"):
            raise Reject("invalid", "No such query.")
        return []

    async with testing.connect(sync) as client:
        view = await client.subscribe("Doc")
        with pytest.raises(Reject, match="No such query"):
            await client.subscribe("Doc", {"bad": True})
        model.publish("upsert", {"id": 1})
        await client.until(lambda: set(view) == {1})


class Person:
    """A user that nothing tells from another but being another object."""

    def __init__(self, name: str) -> None:
        self.name = name


@pytest.mark.parametrize(
    "users", [(Person("ann"), Person("bob")), (-1, -2), ("ann", "bob")], ids=["objects", "numbers", "texts"]
)
async def test_users_are_told_apart_whatever_they_are(users: tuple[Any, Any]) -> None:
    sync = Backsync()
    who = users[0]

    @sync.on("auth")
    async def auth(ctx: Context, token: str | None) -> Any:
        return who

    model = sync.model("Note", store=MemoryStore())
    model.visible(lambda ctx, record: record["owner"] == users.index(ctx.user))
    await model.upsert({"id": 1, "owner": 0})
    async with testing.connect(sync) as client:
        view = await client.subscribe("Note")
        assert set(view) == {1}
        await client.reconnect()
        assert view.mode == "resume"
        who = users[1]
        await client.reconnect()
        assert (view.mode, set(view)) == ("snapshot", set())


async def test_a_write_is_remembered_for_the_user_who_sent_it() -> None:
    sync = Backsync()
    go_on = asyncio.Event()
    paid: list[str] = []

    @sync.on("auth")
    async def auth(ctx: Context, token: str | None) -> str | None:
        return token

    @sync.model("Bank").on("slow")
    async def slow(ctx: Context, data: Any) -> None:
        await go_on.wait()

    @sync.model("Bank").on("pay")
    async def pay(ctx: Context, data: Any) -> None:
        paid.append(ctx.user)

    payment = {"id": "p", "event": "Bank:pay"}
    async with connect(sync) as first:
        await first.call("$:hello", {"client": "c", "token": "ann"})
        first.ask("Bank:slow")
        first.send(payment)
        await first.call("$:auth", {"token": "bob"})
        go_on.set()
        while "p" not in [(await first.receive())["id"]]:
            pass
    async with connect(sync) as again:
        await again.call("$:hello", {"client": "c", "token": "ann"})
        again.send(payment)
        assert (await again.receive())["id"] == "p"
    assert paid == ["ann"]


async def test_greetings_and_tokens_that_wait_have_a_bound() -> None:
    sync = Backsync()
    go_on = asyncio.Event()

    @sync.on("auth")
    async def auth(ctx: Context, token: str | None) -> str | None:
        await go_on.wait()
        return token

    async with connect(sync) as client:
        hellos = [client.ask("$:hello", {"client": "c"}) for _ in range(50)]
        refused = [(await client.receive())["error"]["code"] for _ in range(42)]
        assert set(refused) == {"rate_limited"}
        go_on.set()
        assert [(await client.receive())["id"] for _ in range(8)] == hellos[:8]
        go_on.clear()
        for number in range(50):
            client.ask("$:auth", {"token": str(number)})
        assert {(await client.receive())["error"]["code"] for _ in range(42)} == {"rate_limited"}
        go_on.set()


async def test_calls_that_ask_for_no_order_count_until_they_are_done() -> None:
    sync = Backsync(limits=Limits(requests=4))
    go_on = asyncio.Event()
    begun: list[int] = []

    @sync.model("M").on("wait", concurrent=True)
    async def wait(ctx: Context, data: int) -> None:
        begun.append(data)
        await go_on.wait()

    async with connect(sync) as client:
        asked = [client.ask("M:wait", number) for number in range(20)]
        async with connect(sync) as control:
            for _ in range(5):
                await control.call("$:ping")
        assert len(begun) <= 4
        go_on.set()
        assert {(await client.receive())["id"] for _ in asked} == set(asked)


@pytest.mark.parametrize("what", ["app", "model", "subscription"])
async def test_transient_events_while_a_client_reads_anew_come_after_its_snapshot(sync: Backsync, what: str) -> None:
    model = sync.model("Doc")
    begun, go_on = asyncio.Event(), asyncio.Event()
    go_on.set()

    @model.on("read")
    async def read(ctx: Context, query: Record) -> list[Record]:
        begun.set()
        await go_on.wait()
        return [{"id": 1}]

    async with connect(sync) as client:
        await client.call("Doc:subscribe")
        begun.clear()
        go_on.clear()
        model.publish("typing", "a")
        if what == "subscription":
            client.ask("Doc:subscribe")
        else:
            (sync if what == "app" else model).refresh()
        model.publish("typing", "b")
        await asyncio.wait_for(begun.wait(), DEADLINE)
        model.publish("typing", "c")
        model.publish("upsert", {"id": 2})
        model.publish("typing", "d")
        assert [it["data"] for it in await client.pushes()] in ([], ["a"], ["a", "b"])
        go_on.set()
        while len(client.received) < 8:  # two answers before, then a snapshot, four events and a change
            await client.receive()
        said = [it["data"] for it in client.received if it.get("event") == "Doc:typing"]
        assert said == ["a", "b", "c", "d"]
        assert [it["event"] for it in client.received][-3:] == ["Doc:typing", "Doc:upsert", "Doc:typing"]
        assert await client.pushes() == []


@pytest.mark.parametrize("what", ["app", "model"])
async def test_many_refreshes_at_once_are_one_snapshot(what: str) -> None:
    sync = Backsync()
    reads: list[int] = []
    model = sync.model("Doc")

    @model.on("read")
    async def read(ctx: Context, query: Record) -> list[Record]:
        reads.append(1)
        return [{"id": len(reads)}]

    async with testing.connect(sync) as client:
        view = await client.subscribe("Doc")
        for _ in range(50):
            (sync if what == "app" else model).refresh()
        await client.until(lambda: set(view) == {2})
        await client.call("$:ping")
        assert len(reads) == 2


async def test_a_refresh_while_the_one_before_is_read_leaves_that_unsent() -> None:
    sync = Backsync()
    begun, go_on = asyncio.Event(), asyncio.Event()
    reads: list[int] = []
    model = sync.model("Doc")

    @model.on("read")
    async def read(ctx: Context, query: Record) -> list[Record]:
        reads.append(1)
        if len(reads) == 2:
            begun.set()
            await go_on.wait()
        return [{"id": len(reads)}]

    async with connect(sync) as client:
        await client.call("Doc:subscribe")
        for number in range(5):
            model.publish("upsert", {"id": number})
        await client.pushes()
        model.refresh()
        await asyncio.wait_for(begun.wait(), testing.DEADLINE)
        for _ in range(5):
            model.refresh()
        go_on.set()
        snapshot = await client.receive()
        assert (snapshot["data"]["seq"], snapshot["data"]["records"]) == (0, [{"id": 3}])
        assert await client.pushes() == []
    assert len(reads) == 3


async def test_a_refresh_while_a_client_subscribes_comes_not_before_the_reply() -> None:
    sync = Backsync()
    model = sync.model("Doc")
    begun, go_on = asyncio.Event(), asyncio.Event()
    reads: list[int] = []

    @model.on("read")
    async def read(ctx: Context, query: Record) -> list[Record]:
        reads.append(1)
        number = len(reads)
        if number == 1:
            begun.set()
            await go_on.wait()
        return [{"id": number}]

    async with connect(sync) as client:
        asked = client.ask("Doc:subscribe")
        await asyncio.wait_for(begun.wait(), DEADLINE)
        model.refresh()
        assert await client.pushes() == []
        go_on.set()
        assert (await client.reply(asked))["data"]["records"] == [{"id": 2}]
        assert await client.pushes() == []


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_subscription_that_a_refresh_has_overtaken_begins_where_the_new_epoch_is(is_first: bool) -> None:
    class Late(MemoryStore):
        async def snapshot(self, query: Mapping[str, Any]) -> AsyncGenerator[list[str], None]:
            begun.set()
            await go_on.wait()
            async for texts in super().snapshot(query):
                yield texts

    sync = Backsync()
    begun, go_on = asyncio.Event(), asyncio.Event()
    model = sync.model("Doc", store=Late())
    for number in range(5):
        await model.upsert({"id": number})
    async with connect(sync) as client:
        if not is_first:
            go_on.set()
            await client.call("Doc:subscribe")
            go_on.clear()
            begun.clear()
        asked = client.ask("Doc:subscribe")
        await asyncio.wait_for(begun.wait(), DEADLINE)
        model.refresh()
        await model.upsert({"id": 5})
        go_on.set()
        while (answer := await client.receive()).get("id") != asked:
            pass
        assert answer["data"]["seq"] <= 1, "nobody has been further in this epoch"
        await model.upsert({"id": 6})
        assert (await client.pushes())[-1]["data"] == {"id": 6}


async def test_a_record_that_has_moved_unheard_before_a_refresh_leaves_the_room_where_it_is() -> None:
    sync, store = Backsync(), MemoryStore()
    model = sync.model("Doc", store=store, key="room")
    await model.upsert({"id": 1, "room": "a"})
    async with testing.connect(sync) as client:
        view = await client.subscribe("Doc", {"room": "b"})
        await store.upsert({"id": 1, "room": "b"})
        model.refresh()
        await client.until(lambda: 1 in view)
        await model.upsert({"id": 1, "room": "c"})
        await client.until(lambda: not view)


async def test_a_key_of_another_type_than_the_records_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """The kind of fault: a mistake of the page that looks like an empty list."""
    sync = Backsync()
    notes = sync.model("Note", store=MemoryStore(), key="room")
    await notes.upsert({"id": 1, "room": 1})
    async with testing.connect(sync) as client:
        for room in ("lobby", 2, "2", "1", "1"):
            await client.subscribe("Note", {"room": room})
            await client.call("$:ping")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert "{'room': '1'}, where there is no record, but there are records of {'room': 1}" in lines[0]


async def test_looking_for_mistyped_keys_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    sync, store = Backsync(), MemoryStore()
    sync.model("Note", store=store, key="room")
    reads: list[Any] = []
    read = store.read

    async def counted(query: Any) -> Any:
        reads.append(query)
        return await read(query)

    monkeypatch.setattr(store, "read", counted)
    async with testing.connect(sync) as client:
        for room in range(60):
            view = await client.subscribe("Note", {"room": room})
            await client.unsubscribe(view)
    assert len(reads) == KEY_LOOKS


async def test_a_client_gets_its_public_name_with_the_greeting(sync: Backsync) -> None:
    @sync.model("Me").on("name")
    async def name(ctx: Context, data: Any) -> str:
        return ctx.connection.client_id

    async with connect(sync, "/websocket") as client:
        welcome = await client.call("$:hello", {"client": "a name of its own"})
        assert welcome["id"] == await client.call("Me:name")
        assert len(welcome["id"]) == 16


@pytest.mark.parametrize("value", [2**53, -(2**53), 2**63, [1, {"deep": 2**60}]], ids=repr)
async def test_an_integer_that_browsers_round_is_not_stored(sync: Backsync, value: Any) -> None:
    """A page that saves a record whole must not put a rounded number in place of the one that it could not read."""
    store = MemoryStore()
    sync.model("M", store=store)
    async with connect(sync) as client:
        await client.call("M:upsert", {"id": 1, "n": 2**53 - 1})
        for event in ("M:upsert", "M:patch"):
            error = await client.error(event, {"id": 1, "ok": 1.5, "n": value})
            assert (error["code"], [it["field"] for it in error["details"]]) == ("invalid", ["n"])
            assert "as text" in error["message"]
        assert await client.call("M:upsert", {"id": 1, "n": str(value)}) == {"id": 1, "n": str(value)}
