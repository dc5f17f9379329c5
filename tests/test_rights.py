"""Who may write which record: `@model.allow` and `readonly=True`, for each way in which a client's write arrives.

The kind of fault: a write that replaces, moves or deletes a record past the one place which is to decide.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest

from backsync_asgi import Backsync, Context, Reject, testing
from backsync_asgi.models import _number_in
from backsync_asgi.stores import MemoryStore, SQLStore, Store
from tests.inprocess import connect

Record = dict[str, Any]
Ask = tuple[str, Record | None, Record | None]

MEMBERS = {"ann": {"blue"}, "bob": {"red"}, "cat": {"red", "blue"}}
BLUE = {"id": "n1", "room": "blue", "text": "of Ann"}


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Any) -> Store:
    return MemoryStore() if request.param == "memory" else SQLStore(f"sqlite:///{tmp_path}/rights.db")


async def only_members(ctx: Context, method: str, old: Record | None, new: Record | None) -> bool:
    if ctx.model.store is not None:
        await ctx.store.read({"$limit": 1})  # a rule may read
    return all(record["room"] in MEMBERS[ctx.user] for record in (old, new) if record is not None)


def rooms(store: Store | None, **options: Any) -> tuple[Backsync, Any]:
    """An app whose notes may be written by the members of their rooms."""
    sync = Backsync()
    notes = sync.model("Note", store=store, key="room", **options)
    notes.allow(only_members)
    return sync, notes


async def code_of(call: Any) -> str | None:
    """The code with which a call is refused; None: it is not."""
    try:
        await call
    except Reject as error:
        return error.code
    return None


@pytest.mark.parametrize("own", [(), ("upsert",), ("upsert", "patch", "delete")], ids=["store", "upsert", "handlers"])
async def test_a_record_is_not_taken_over_moved_or_deleted_past_the_rule(store: Store, own: tuple[str, ...]) -> None:
    sync, notes = rooms(store)
    calls: list[str] = []

    async def handler(ctx: Context, data: Record) -> Any:
        calls.append(str(ctx.method))
        match ctx.method:
            case "upsert":
                return await ctx.store.upsert(data)
            case "patch":
                return await ctx.store.patch(data["id"], data, ctx.unset)
        return await ctx.store.delete(data["id"])

    for method in own:
        notes.on(method)(handler)
    await notes.upsert(BLUE)
    async with testing.connect(sync, user="bob") as bob, testing.connect(sync, user="ann") as ann:
        attempts: list[tuple[str, Any, dict[str, Any]]] = [
            ("upsert", {**BLUE, "room": "red"}, {}),
            ("create", {**BLUE, "room": "red"}, {}),
            ("update", {**BLUE, "room": "red"}, {}),
            ("upsert", {**BLUE, "text": "of Bob"}, {}),
            ("upsert", [{"room": "red"}, {**BLUE, "room": "red"}], {}),
            ("upsert", [{"id": "mine", "room": "red"}, {"id": "mine", "room": "blue"}], {}),
            ("patch", {"id": "n1", "room": "red"}, {}),
            ("patch", {"id": "n1"}, {"unset": ["text"]}),
            ("delete", {"id": "n1"}, {}),
            ("delete", {**BLUE, "room": "red"}, {}),
            ("delete", [{"id": "n1"}], {}),
        ]
        for method, data, more in attempts:
            assert await code_of(bob.call(f"Note:{method}", data, **more)) == "forbidden", (method, data)
        assert await notes.store.get("n1") == BLUE
        assert await notes.store.get("mine") == {"id": "mine", "room": "red"}  # the first of the array
        assert await code_of(ann.upsert("Note", {**BLUE, "room": "red"})) == "forbidden"  # not out of her room, either
        assert (await ann.patch("Note", {"id": "n1", "text": "again"}))["text"] == "again"
        await ann.delete("Note", "n1")
        assert await notes.store.get("n1") is None
        assert await code_of(bob.upsert("Note", {"room": "blue"})) == "forbidden"
        assert (await bob.upsert("Note", {"room": "red"}))["room"] == "red"
    if own:
        assert "upsert" in calls


async def test_rest_asks_the_rule(store: Store) -> None:
    sync = Backsync()
    notes = sync.model("Note", store=store)

    @notes.allow
    async def may_write(ctx: Context, method: str, old: Record | None, new: Record | None) -> bool:
        me = ctx.request.headers.get("x-user")
        return all(record.get("owner") == me for record in (old, new) if record is not None)

    await notes.upsert({"id": "a", "owner": "ann"})
    transport = httpx.ASGITransport(app=sync.rest())
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers={"x-user": "bob"}) as bob:
        assert (await bob.put("/Note/a", json={"owner": "bob"})).status_code == 403
        assert (await bob.post("/Note", json={"id": "a", "owner": "bob"})).status_code == 403
        assert (await bob.patch("/Note/a", json={"owner": "bob"})).status_code == 403
        assert (await bob.delete("/Note/a")).status_code == 403
        assert (await bob.post("/Note", json={"owner": "bob"})).status_code == 201
    assert await notes.store.get("a") == {"id": "a", "owner": "ann"}  # type: ignore[union-attr]


async def test_a_browser_of_2012_is_asked_about_too() -> None:
    sync = Backsync(compat="2012")
    users = sync.model("User", store=MemoryStore())
    users.allow(lambda ctx, method, old, new: method != "delete")
    await users.upsert({"id": 1, "name": "Ann"})
    async with connect(sync, "/websocket") as client:
        client.send({"id": "a", "event": "User:delete", "data": {"id": 1, "name": "Ann"}})
        while (message := await client.receive()).get("id") != "a":
            pass
        assert "may not delete" in message["error"]
    assert await users.store.get(1) is not None  # type: ignore[union-attr]


class Task(msgspec.Struct):
    title: str
    done: bool = False


async def test_the_rule_sees_the_record_as_it_would_be_stored(store: Store) -> None:
    sync = Backsync()
    tasks = sync.model("Task", store=store, schema=Task, version="rev")
    asked: list[Ask] = []

    @tasks.allow
    async def note(ctx: Context, method: str, old: Record | None, new: Record | None) -> bool:
        asked.append(copy.deepcopy((method, old, new)))
        if new is not None:
            new["title"] = "the rule has copies"
        return True

    async with testing.connect(sync) as client:
        await client.call("Task:create", {"id": "a", "title": "x", "stray": 1})
        await client.patch("Task", {"id": "a", "done": True})
        await client.patch("Task", {"id": "a"}, unset=["done"])
        await client.call("Task:update", {"id": 5, "title": "y"})
        await client.upsert("Task", {"id": "5", "title": "z"})
        await client.upsert("Task", {"title": "new"})
        await client.delete("Task", "a")
    first = {"id": "a", "title": "x", "done": False, "rev": 1}
    assert asked[0] == ("upsert", None, first)
    assert asked[1] == ("patch", first, {**first, "done": True, "rev": 2})
    assert asked[2][2] == {"id": "a", "title": "x", "rev": 3}
    assert asked[4][1] == {"id": 5, "title": "y", "done": False, "rev": 1}
    assert asked[5] == ("upsert", None, {"title": "new", "done": False, "rev": 1})
    assert asked[6] == ("delete", {"id": "a", "title": "x", "rev": 3}, None)


@pytest.mark.parametrize("answer", [None, 1, "yes", {}, RuntimeError("no"), KeyError("owner")])
@pytest.mark.parametrize("plain", [True, False])
async def test_what_is_not_true_refuses_and_is_logged(
    answer: Any, plain: bool, caplog: pytest.LogCaptureFixture
) -> None:
    sync = Backsync()
    notes = sync.model("Note", store=MemoryStore())

    def decide(ctx: Context, method: str, old: Record | None, new: Record | None) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def decide_later(ctx: Context, method: str, old: Record | None, new: Record | None) -> Any:
        return decide(ctx, method, old, new)

    notes.allow(decide if plain else decide_later)
    async with testing.connect(sync) as client:
        code = await code_of(client.upsert("Note", {"id": 1}))
    assert code == ("handler_error" if isinstance(answer, Exception) else "forbidden")
    assert await notes.store.get(1) is None  # type: ignore[union-attr]
    assert any(record.levelno == logging.ERROR for record in caplog.records)


async def test_a_rule_refuses_with_words_of_its_own() -> None:
    sync = Backsync()
    notes = sync.model("Note", store=MemoryStore())

    @notes.allow
    def closed(ctx: Context, method: str, old: Record | None, new: Record | None) -> bool:
        raise Reject("closed", "Come back on Monday.", {"day": 1})

    async with testing.connect(sync) as client:
        with pytest.raises(Reject) as refusal:
            await client.upsert("Note", {"id": 1})
    assert (refusal.value.code, refusal.value.details) == ("closed", {"day": 1})


@pytest.mark.parametrize("fails", [False, True])
async def test_a_hidden_record_is_answered_for_as_a_missing_one(fails: bool) -> None:
    sync = Backsync()
    notes = sync.model("Note", store=MemoryStore(), schema=Task)

    @notes.visible
    def owner_sees(ctx: Context, note: Record) -> bool:
        return bool(note["title"] == ctx.user)

    @notes.allow
    def owner_writes(ctx: Context, method: str, old: Record | None, new: Record | None) -> bool:
        if old is not None and old["title"] != ctx.user:
            if fails:
                raise RuntimeError(old["title"])
            raise Reject("locked", f"Locked by {old['title']}.", old)
        return True

    await notes.upsert({"id": "hidden", "title": "ann", "done": True})

    async def answers(bob: testing.Client, id: str) -> list[object]:
        found: list[object] = []
        attempts: list[tuple[str, Record]] = [("patch", {"done": False}), ("patch", {"done": "wrong"}), ("delete", {})]
        for method, data in attempts:
            try:
                found.append(await bob.call(f"Note:{method}", {"id": id, **data}))
            except Reject as error:
                found.append((error.code, error.message.replace(id, "ID"), error.details))
        return found

    async with testing.connect(sync, user="bob") as bob:
        assert await answers(bob, "hidden") == await answers(bob, "missing")
        with pytest.raises(Reject) as refusal:
            await bob.upsert("Note", {"id": "hidden", "title": "bob"})
    assert (refusal.value.code, refusal.value.details) == ("forbidden", None)
    assert "ann" not in refusal.value.message
    stored = await notes.store.get("hidden")  # type: ignore[union-attr]
    assert stored == {"id": "hidden", "title": "ann", "done": True}


@pytest.mark.parametrize("act", ["other id", "other room", "delete", "patch room", "delete other"])
async def test_a_handler_does_not_lead_past_the_rule(store: Store, act: str) -> None:
    sync, notes = rooms(store)

    @notes.on("upsert")
    async def save(ctx: Context, note: Record) -> Record:
        match act:
            case "other id":
                return await ctx.store.upsert({**note, "id": "n1"})
            case "other room":
                return await ctx.store.upsert({**note, "room": "blue"})
            case "patch room":
                await ctx.store.upsert(note)
                return await ctx.store.patch(note["id"], {"room": "blue"})
            case "delete other":
                await ctx.store.delete("n1")
                return note
        await ctx.store.delete(note["id"])
        return note

    @notes.on("delete")
    async def no_deletes(ctx: Context, data: Record) -> bool:
        raise AssertionError("the rule comes first")

    await notes.upsert(BLUE)
    data: Record = {"id": "n1" if act == "delete" else "n2", "room": "blue" if act == "delete" else "red"}
    if act == "delete":
        sync, notes = rooms(store := MemoryStore())
        await store.upsert(BLUE)

        @notes.on("upsert")
        async def clear(ctx: Context, note: Record) -> Record:
            await ctx.store.delete(note["id"])
            return note

        notes.rights._rule = lambda ctx, method, old, new: method != "delete"
    async with testing.connect(sync, user="ann" if act == "delete" else "bob") as client:
        assert await code_of(client.upsert("Note", data)) == "forbidden"
    assert await store.get("n1") == BLUE
    moved = await store.get("n2")
    assert moved is None or moved["room"] == "red"


async def test_a_handler_may_complete_what_its_client_was_allowed_to_write(store: Store) -> None:
    sync, notes = rooms(store)
    asked: list[str] = []

    @notes.on("upsert")
    async def save(ctx: Context, note: Record) -> Record:
        asked.append("upsert")
        return await ctx.store.upsert({**note, "author": ctx.user})

    @notes.on("delete")
    async def mark(ctx: Context, data: Record) -> bool:
        ctx.model.publish("upsert", await ctx.store.patch(data["id"], {"gone": True}))
        return False

    @notes.on("archive")
    async def archive(ctx: Context, data: Record) -> None:
        await ctx.store.patch(data["id"], {"room": "red"})  # a method of its own decides by itself

    async with testing.connect(sync, user="ann") as ann:
        assert (await ann.upsert("Note", {"room": "blue"}))["author"] == "ann"
        assert (await ann.upsert("Note", BLUE))["author"] == "ann"
        await ann.delete("Note", "n1")
        await ann.call("Note:archive", {"id": "n1"})
    assert await store.get("n1") == {**BLUE, "author": "ann", "gone": True, "room": "red"}
    await notes.upsert({**BLUE, "room": "green"})  # so does the program


async def test_the_rule_is_asked_while_no_other_write_of_the_record_runs() -> None:
    sync = Backsync()
    notes = sync.model("Note", store=MemoryStore())
    began, go_on = asyncio.Event(), asyncio.Event()

    @notes.allow
    async def first_come(ctx: Context, method: str, old: Record | None, new: Record | None) -> bool:
        if ctx.user == "ann":
            began.set()
            await go_on.wait()
        return old is None

    async with testing.connect(sync, user="ann") as ann, testing.connect(sync, user="bob") as bob:
        one = asyncio.create_task(code_of(ann.upsert("Note", {"id": "a", "by": "ann"})))
        await began.wait()
        other = asyncio.create_task(code_of(bob.upsert("Note", {"id": "a", "by": "bob"})))
        await bob.call("$:ping")
        go_on.set()
        assert (await one, await other) == (None, "forbidden")
    assert await notes.store.get("a") == {"id": "a", "by": "ann"}  # type: ignore[union-attr]


@pytest.mark.parametrize("method", ["upsert", "patch", "delete"])
@pytest.mark.parametrize("own_handler", [False, True])
async def test_another_process_does_not_come_between_the_rule_and_the_write(
    method: str, own_handler: bool, tmp_path: Any
) -> None:
    """Where versions are counted, the write names the version of the record that the rule was shown."""
    url = f"sqlite:///{tmp_path}/shared.db"
    store, elsewhere = SQLStore(url, table="note"), SQLStore(url, table="note")
    sync, notes = rooms(store, version="rev")
    elsewhere.bind("Note", "rev")
    await notes.upsert(BLUE)
    asked = []

    async def overtaken(ctx: Context, method: str, old: Record | None, new: Record | None) -> bool:
        asked.append(old)
        if len(asked) == 1:
            await elsewhere.upsert({"id": "n1", "room": "red", "text": "moved"})
        return bool(old and old["room"] == "blue")

    notes.rights._rule = overtaken
    if own_handler:

        @notes.on(method)
        async def handle(ctx: Context, data: Record) -> Any:
            if method == "upsert":
                return await ctx.store.upsert(data)
            if method == "patch":
                return await ctx.store.patch(data["id"], data)
            return await ctx.store.delete(data["id"])

    async with testing.connect(sync, user="ann") as ann:
        code = await code_of(ann.call(f"Note:{method}", {"id": "n1"} if method == "delete" else BLUE))
    assert code == ("conflict" if own_handler else "forbidden")
    assert await store.get("n1") == {"id": "n1", "room": "red", "text": "moved", "rev": 2}
    await store.close()
    await elsewhere.close()


async def test_a_conflict_is_answered_to_those_who_may_write(store: Store) -> None:
    """The refusal comes first: the current record, which a conflict holds, is for who may change it."""
    sync, notes = rooms(store, version="rev")
    await notes.upsert(BLUE)
    await notes.upsert(BLUE)
    async with testing.connect(sync, user="bob") as bob, testing.connect(sync, user="ann") as ann:
        for client, code in ((bob, "forbidden"), (ann, "conflict")):
            for method, more in (("upsert", {}), ("patch", {}), ("delete", {"version": 1})):
                with pytest.raises(Reject) as refusal:
                    await client.call(f"Note:{method}", {**BLUE, "rev": 1}, **more)
                assert refusal.value.code == code
                assert (refusal.value.details is None) == (code == "forbidden")
    assert await store.get("n1") == {**BLUE, "rev": 2}


async def test_without_a_store_there_is_no_old_record() -> None:
    sync = Backsync()
    notes = sync.model("Note")
    asked: list[Ask] = []

    @notes.allow
    async def note(ctx: Context, method: str, old: Record | None, new: Record | None) -> bool:
        asked.append((method, old, new))
        return method != "delete"

    @notes.on("upsert")
    async def save(ctx: Context, data: Record) -> Record:
        return data

    @notes.on("delete")
    async def remove(ctx: Context, data: Record) -> None: ...

    async with testing.connect(sync) as client:
        assert await client.upsert("Note", {"id": 1}) == {"id": 1}
        assert await code_of(client.delete("Note", 1)) == "forbidden"
    assert asked == [("upsert", None, {"id": 1}), ("delete", None, None)]


async def test_live_records_are_shown_to_the_rule() -> None:
    class Rows(MemoryStore):
        """What reads a table that something else writes."""

    sync, rows = Backsync(), Rows()
    notes = sync.model("Note", key="room")
    notes.read_from(rows)
    notes.allow(only_members)
    await rows.upsert(BLUE)

    @notes.on("upsert")
    async def save(ctx: Context, data: Record) -> Record:
        return await rows.upsert(data)

    @notes.on("delete")
    async def remove(ctx: Context, data: Record) -> bool:
        return await rows.delete(data["id"])

    async with testing.connect(sync, user="bob") as bob:
        assert await code_of(bob.upsert("Note", {**BLUE, "room": "red"})) == "forbidden"
        for fields in ({"text": "of Bob"}, {"room": "red"}):  # which goes through the upsert handler
            assert await code_of(bob.patch("Note", {"id": "n1", **fields})) == "forbidden"
            assert await code_of(bob.call("Note:patch", [{"id": "n1", **fields}])) == "forbidden"
        assert await code_of(bob.delete("Note", "n1")) == "forbidden"
        assert await bob.upsert("Note", {"id": "n2", "room": "red"}) == {"id": "n2", "room": "red"}
        assert await bob.patch("Note", {"id": "n2", "text": "of Bob"}) == {"id": "n2", "room": "red", "text": "of Bob"}
    assert await rows.get("n1") == BLUE


async def test_a_patch_of_the_key_is_refused_before_the_rule_is_asked(store: Store) -> None:
    """The kind of fault: the rule gets a record that could never be stored, fails, and hides what is wrong."""
    sync, notes = rooms(store)
    await notes.upsert(BLUE)
    async with testing.connect(sync, user="ann") as ann:
        assert await code_of(ann.patch("Note", {"id": "n1"}, ["room"])) == "invalid"
        assert await code_of(ann.patch("Note", {"id": "n1", "room": None})) == "invalid"
        assert await code_of(ann.patch("Note", {"id": "n1", "room": ["red"]})) == "invalid"
        assert await ann.patch("Note", {"id": "n1", "text": "new"}) == {**BLUE, "text": "new"}


@pytest.mark.parametrize("spelt", ["05", " 5", "+5", "5.0", "5e0", "\u0665", "0_5"])
async def test_an_id_that_a_database_reads_in_another_way_does_not_hide_the_record(spelt: str) -> None:
    sync, rows = Backsync(), MemoryStore()
    notes = sync.model("Note")
    notes.read_from(rows)
    notes.allow(lambda ctx, method, old, new: old is None or old["owner"] == ctx.user)

    @notes.on("upsert")
    async def save(ctx: Context, note: Record) -> Record:
        return await rows.upsert({**note, "id": int(float(note["id"]))})

    @notes.on("delete")
    async def remove(ctx: Context, data: Record) -> bool:
        return await rows.delete(int(float(data["id"])))

    await rows.upsert({"id": 5, "owner": "ann"})
    async with testing.connect(sync, user="bob") as bob:
        assert await code_of(bob.upsert("Note", {"id": spelt, "owner": "bob"})) == "forbidden"
        assert await code_of(bob.delete("Note", spelt)) == "forbidden"
    assert await rows.get(5) == {"id": 5, "owner": "ann"}


@pytest.mark.parametrize(
    ("id", "number"),
    [
        ("01234567890123456789", 1234567890123456789),
        *((id, None) for id in ("5.5", "1e400", "nan", "five", "5", 5, "")),
    ],
)
def test_which_number_an_id_may_be_taken_for(id: str | int, number: int | None) -> None:
    assert _number_in(id) == number


async def test_what_no_client_can_do_is_refused_as_that_whatever_is_stored() -> None:
    sync, rows = Backsync(), MemoryStore()
    notes = sync.model("Note")
    notes.read_from(rows)
    notes.allow(lambda ctx, method, old, new: old is not None)
    await rows.upsert({"id": 1})
    async with testing.connect(sync) as client:
        for method in ("upsert", "patch", "delete"):
            for id in (1, 2):
                assert await code_of(client.call(f"Note:{method}", {"id": id})) == "unknown_method"


async def test_an_ephemeral_record_needs_its_owner_and_the_rule() -> None:
    sync = Backsync()
    cursors = sync.model("Cursor", ephemeral=True)
    cursors.allow(lambda ctx, method, old, new: new is None or "spam" not in new)
    async with testing.connect(sync, user="ann") as ann, testing.connect(sync, user="bob") as bob:
        await ann.upsert("Cursor", {"id": "c", "x": 1})
        assert await code_of(bob.upsert("Cursor", {"id": "c", "x": 2})) == "forbidden"
        assert await code_of(bob.delete("Cursor", "c")) == "forbidden"
        assert await code_of(ann.patch("Cursor", {"id": "c", "spam": 2})) == "forbidden"
        await ann.patch("Cursor", {"id": "c", "x": 3})


@pytest.mark.parametrize("rule", [lambda ctx, old, new: True, lambda: True])
def test_a_rule_takes_four_parameters(rule: Callable[..., bool]) -> None:
    with pytest.raises(TypeError, match=r"a rule takes \(ctx, method, old, new\)"):
        Backsync().model("Note").allow(rule)


def test_a_model_has_one_rule() -> None:
    notes = Backsync().model("Note")
    notes.allow(only_members)
    with pytest.raises(ValueError, match="one rule"):
        notes.allow(only_members)


# readonly


async def test_a_readonly_model_is_written_by_the_program_alone() -> None:
    sync = Backsync()
    news = sync.model("News", store=MemoryStore(), readonly=True)

    @news.on("like")
    async def like(ctx: Context, data: Record) -> Record:
        return await ctx.store.patch(data["id"], {"likes": 1})

    await news.upsert({"id": 1, "likes": 0})
    transport = httpx.ASGITransport(app=sync.rest())
    async with testing.connect(sync) as client, httpx.AsyncClient(transport=transport, base_url="http://t") as rest:
        for method in ("upsert", "create", "update", "patch", "delete"):
            for data in ({"id": 1}, [{"id": 1}], []):
                assert await code_of(client.call(f"News:{method}", data)) == "forbidden", (method, data)
        assert (await rest.put("/News/1", json={})).status_code == 403
        assert (await rest.post("/News", json={})).status_code == 403
        assert (await rest.delete("/News/1")).status_code == 403
        await client.call("News:like", {"id": 1})
        assert await client.read("News") == [{"id": 1, "likes": 1}]
        assert await news.delete(1)


def test_a_readonly_model_has_no_handlers_that_write() -> None:
    sync = Backsync()
    with pytest.raises(ValueError, match="readonly=True and a handler for delete"):
        sync.model("A", store=MemoryStore(), readonly=True).on("delete")(lambda ctx, data: None)
    sync.model("B").on("upsert")(lambda ctx, data: data)
    with pytest.raises(ValueError, match="readonly=True and a handler for upsert"):
        sync.model("B", readonly=True)


# What is probably not meant


async def warnings_of(sync: Backsync, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is logged as the app starts, and not again."""
    for _ in range(2):
        async with sync.lifespan():
            pass
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("upsrt", "Did you mean 'upsert'?"),
        ("Upsert", "Did you mean 'upsert'?"),
        ("subscibe", "Did you mean 'subscribe'?"),
        ("delte", "Did you mean 'delete'?"),
        ("subscribed", "Did you mean 'subscribe'?"),
        ("upserts", "Did you mean 'upsert'?"),
        ("remove", "Did you mean 'delete'?"),
        ("destroy", "Did you mean 'delete'?"),
        ("save", "handler for 'save', but none for 'upsert'"),
    ],
)
async def test_a_handler_that_closes_nothing_is_named_at_the_start(
    method: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    sync = Backsync()
    sync.model("Note", store=MemoryStore()).on(method)(lambda ctx, data: data)
    lines = await warnings_of(sync, caplog)
    assert any(said in line for line in lines), lines
    assert len(lines) == len(set(lines))


@pytest.mark.parametrize("method", ["like", "undelete", "remove", "upsert_all", "read_mine"])
async def test_a_method_of_ones_own_is_not_suspected(method: str, caplog: pytest.LogCaptureFixture) -> None:
    sync = Backsync()
    for name in ("upsert", "delete", method):
        sync.model("Note", store=MemoryStore() if name == "upsert" else None).on(name)(lambda ctx, data: data)
    assert await warnings_of(sync, caplog) == []


async def test_an_app_with_an_auth_hook_names_what_everybody_may_write(caplog: pytest.LogCaptureFixture) -> None:
    sync = Backsync()
    sync.on("auth")(lambda ctx, token: token)
    sync.model("Open", store=MemoryStore())
    sync.model("Half", store=MemoryStore()).on("upsert")(lambda ctx, data: data)
    sync.model("Closed", store=MemoryStore(), readonly=True)
    sync.model("Mine", ephemeral=True)
    sync.model("Ruled", store=MemoryStore()).allow(only_members)
    sync.model("Events").on("upsert")(lambda ctx, data: data)
    lines = await warnings_of(sync, caplog)
    assert len(lines) == 1
    assert "Open (upsert, patch, delete), Half (delete)." in lines[0]


async def test_what_is_meant_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    sync = Backsync()
    sync.model("Open", store=MemoryStore())
    checked = sync.model("Checked", store=MemoryStore())
    for method in ("upsert", "undelete", "clear_done"):
        checked.on(method)(lambda ctx, data: data)
    sync.model("Ruled", store=MemoryStore()).allow(only_members)
    sync.model("Ruled").on("archive")(lambda ctx, data: data)
    assert await warnings_of(sync, caplog) == []
