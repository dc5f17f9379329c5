"""What the application's own code raises ends the call that it was made for, and nothing else.

Kind of fault: an exception that is no `Exception` (SystemExit, GeneratorExit, a cancellation that nobody asked for)
passes by `except Exception` and ends a task, a flush or the event loop, and with it what belongs to others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from backsync_asgi import Backsync, Context
from backsync_asgi.stores import MemoryStore

from .inprocess import connect

ODD = [SystemExit(1), GeneratorExit(), asyncio.CancelledError(), BaseException("x"), ValueError("x")]
odd = pytest.mark.parametrize("error", ODD, ids=repr)
both = pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])


def raising(error: BaseException, plain: bool) -> Callable[..., Any]:
    """A hook or handler that raises it, plain or async; the async one after a turn of the event loop."""
    if plain:

        def fail(ctx: Context, data: Any = None) -> None:
            raise error

        return fail

    async def fail_late(ctx: Context, data: Any = None) -> None:
        await asyncio.sleep(0)
        raise error

    return fail_late


class OddStore(MemoryStore):
    """A store of the application's own that fails at some records; as a database, it takes its time."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error
        self.is_mended = False

    async def get(self, id: Any) -> Any:
        await asyncio.sleep(0)
        return await super().get(id)

    async def upsert(self, record: Any) -> Any:
        await asyncio.sleep(0)
        if record.get("bad") and not self.is_mended:
            raise self._error
        return await super().upsert(record)

    async def delete(self, id: Any, version: Any = None) -> bool:
        await asyncio.sleep(0)
        if id == "stuck" and not self.is_mended:
            raise self._error
        return await super().delete(id, version)


@odd
async def test_a_rule_that_fails_hides_its_record_and_silences_no_other_model(error: BaseException) -> None:
    sync = Backsync()
    secrets, news = sync.model("Secret", store=MemoryStore()), sync.model("News", store=MemoryStore())

    @secrets.visible
    def seen(ctx: Context, record: dict[str, Any]) -> bool:
        if record["id"] == "bad":
            raise error
        return True

    async with connect(sync) as ann, connect(sync) as bob:
        await ann.call("Secret:subscribe")
        for client in (ann, bob):
            await client.call("News:subscribe")
        await secrets.upsert({"id": "bad"})  # all in one tick
        await secrets.upsert({"id": "good"})
        await news.upsert({"id": 1})
        assert [(it["event"], it["data"]["id"]) for it in await ann.pushes()] == [
            ("Secret:delete", "bad"),
            ("Secret:upsert", "good"),
            ("News:upsert", 1),
        ]
        assert [it["data"]["id"] for it in await bob.pushes()] == [1]
        assert await ann.call("Secret:upsert", {"id": "bad"}) == {"id": "bad"}, "its own caller gets a reply"
        assert await bob.call("Secret:read") == [{"id": "good"}]


@odd
async def test_a_client_whose_audience_cannot_be_found_is_one_of_its_own(error: BaseException) -> None:
    sync = Backsync()
    model = sync.model("M", store=MemoryStore())

    def audience(ctx: Context) -> str:
        raise error

    model.visible(audience=audience)(lambda ctx, record: True)
    async with connect(sync) as client:
        await client.call("M:subscribe")
        await model.upsert({"id": 1})
        assert [it["data"]["id"] for it in await client.pushes()] == [1]


async def test_an_audience_that_is_no_key_is_one_of_its_own() -> None:
    sync = Backsync()
    model = sync.model("M", store=MemoryStore())
    no_key: Any = ["a", "list"]
    model.visible(audience=lambda ctx: no_key)(lambda ctx, record: True)
    async with connect(sync) as client:
        assert (await client.call("M:subscribe"))["mode"] == "snapshot"


@both
@odd
async def test_a_handler_guard_or_middleware_that_fails_answers_its_caller(error: BaseException, plain: bool) -> None:
    sync = Backsync()
    model = sync.model("M", store=MemoryStore())
    model.on("act")(raising(error, plain))
    model.on("subscribe")(raising(error, plain))

    @sync.middleware
    async def pass_on(ctx: Context, *args: Any, call_next: Any) -> Any:
        if ctx.method == "upsert":
            raise error
        return await call_next(ctx, *args)

    model.on("upsert")(raising(error, plain))
    async with connect(sync) as client:
        for event in ("M:act", "M:subscribe", "M:upsert", "M:act"):
            assert (await client.error(event, {"id": 1}))["code"] == "handler_error"


@both
@odd
async def test_a_hook_that_fails_ends_its_own_connection_only(error: BaseException, plain: bool) -> None:
    sync = Backsync()
    ended = asyncio.Event()
    is_open = False

    @sync.on("open")
    async def open_(ctx: Context) -> None:
        if is_open:
            raise error

    sync.on("close")(raising(error, plain))

    @sync.on("close")
    async def close(ctx: Context) -> None:
        ended.set()

    async with connect(sync) as client:
        await client.call("$:ping")
        is_open = True
        async with connect(sync) as refused:
            assert await refused.close_code() == 1011
        await client.call("$:ping")
    await asyncio.wait_for(ended.wait(), 5.0)


@odd
async def test_an_auth_hook_that_fails_for_a_new_token_is_answered(error: BaseException) -> None:
    sync = Backsync()

    @sync.on("auth")
    async def auth(ctx: Context, token: str | None) -> str:
        if token == "bad":
            await asyncio.sleep(0)
            raise error
        return "ann"

    async with connect(sync) as client:
        await client.call("$:hello", {"token": "good"})
        assert (await client.error("$:auth", {"token": "bad"}))["code"] == "handler_error"
        assert await client.call("$:auth", {"token": "good"}) == {}


class OddUser:
    """A user whose comparisons fail, as those of a detached row may."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    @property
    def identity(self) -> str:
        raise self._error

    def __eq__(self, other: object) -> bool:
        raise self._error

    def __hash__(self) -> int:
        raise self._error


@odd
async def test_a_user_that_cannot_be_compared_gets_its_answers(error: BaseException) -> None:
    sync = Backsync()
    sync.model("M", store=MemoryStore())

    @sync.on("auth")
    async def auth(ctx: Context, token: str | None) -> OddUser:
        return OddUser(error)

    async with connect(sync) as client:
        assert (await client.call("$:hello", {"client": "ann", "token": "t"}))["version"] == 1
        assert (await client.error("$:auth", {"token": "t"}))["code"] == "handler_error"
        assert await client.call("M:upsert", {"id": 1}) == {"id": 1}
        assert (await client.call("M:subscribe"))["records"] == [{"id": 1}]


@odd
async def test_a_store_that_fails_ends_no_task_of_others(error: BaseException) -> None:
    sync = Backsync()
    store = OddStore(error)
    model = sync.model("M", store=store)
    async with connect(sync) as client:
        await client.call("M:subscribe")
        assert (await client.error("M:upsert", {"id": 1, "bad": True}))["code"] == "handler_error"
        model.upsert_soon({"id": 2, "bad": True})
        model.upsert_soon({"id": 3})
        while not (pushes := await client.pushes()):
            pass
        assert [it["data"]["id"] for it in pushes] == [3]


@odd
async def test_an_ephemeral_record_that_cannot_be_deleted_is_tried_again(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backsync_asgi.ephemeral.RETRY", 0.001)
    sync = Backsync()
    store = OddStore(error)
    sync.model("M", store=store, ephemeral=True, grace=0.0)
    async with connect(sync) as watcher:
        await watcher.call("M:subscribe")
        async with connect(sync) as client:
            await client.call("M:upsert", {"id": "stuck"})
            await client.call("M:upsert", {"id": "free"})
        gone: list[Any] = []
        while "free" not in gone:
            gone += [it["data"]["id"] for it in await watcher.pushes() if it["event"] == "M:delete"]
        store.is_mended = True
        while "stuck" not in gone:
            gone += [it["data"]["id"] for it in await watcher.pushes() if it["event"] == "M:delete"]


@odd
async def test_middleware_that_fails_as_it_sends_ends_its_own_connection(error: BaseException) -> None:
    sync = Backsync()
    model = sync.model("M", store=MemoryStore())

    def failing(is_late: bool) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            async def fail(event: Any) -> None:
                if '"bad"' in event.get("text", ""):
                    if is_late:
                        await asyncio.sleep(0)
                    raise error
                await send(event)

            await sync(scope, receive, fail)

        return app

    async with connect(sync) as first, connect(failing(False)) as bad, connect(failing(True)) as late:
        async with connect(sync) as last:
            clients = [first, bad, late, last]
            for client in clients:
                await client.call("M:subscribe")
            for id in ("bad", "good"):
                await model.upsert({"id": id})
                await first.call("$:ping")
            for client in (first, last):
                assert [it["data"]["id"] for it in client.received if "seq" in it] + [
                    it["data"]["id"] for it in await client.pushes()
                ] == ["bad", "good"]
            for client in (bad, late):
                assert not [it for it in client.received if "seq" in it]
