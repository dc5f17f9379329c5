"""Models whose handlers and stores have schemas: what reaches a handler and what leaves it; by a socket in process."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pydantic
import pytest
from typing_extensions import TypedDict

from backsync_asgi import Backsync, Context, Reject
from backsync_asgi.signals import post_save, pre_save
from backsync_asgi.stores import MemoryStore
from tests.inprocess import connect


@dataclasses.dataclass
class Note:
    text: str
    likes: int = 0
    id: str | int | None = None


class Line(msgspec.Struct):
    text: str
    room: str = "lobby"


class Changes(TypedDict, total=False):
    id: int
    likes: int


class Model(pydantic.BaseModel):
    text: str
    rev: int | None = None


@pytest.fixture
def sync() -> Backsync:
    return Backsync()


async def test_a_handler_gets_and_returns_what_it_has_annotated(sync: Backsync) -> None:
    @sync.model("Note").on("upsert")
    async def save(ctx: Context, note: Note) -> Note:
        return dataclasses.replace(note, id=ctx.id or 7)

    async with connect(sync) as client:
        await client.call("Note:subscribe")
        reply = await client.call("Note:upsert", {"text": "a", "selected": True})
        assert reply == {"text": "a", "likes": 0, "id": 7}
        assert await client.receive() == {"event": "Note:upsert", "data": reply, "seq": 1}
        error = await client.error("Note:upsert", {"likes": "x"})
        assert (error["code"], [it["field"] for it in error["details"]]) == ("invalid", ["text", "likes"])


async def test_a_type_without_an_id_is_completed(sync: Backsync) -> None:
    @sync.model("Line", key="room").on("upsert")
    async def save(ctx: Context, line: Line) -> Line:
        assert ctx.id == 5
        return line

    async with connect(sync) as client:
        sent = {"id": 5, "room": "a", "text": "x"}
        assert (await client.call("Line:upsert", sent)) == sent


async def test_the_class_form_and_every_method_are_typed(sync: Backsync) -> None:
    seen: list[Any] = []

    @sync.model("Note")
    class Notes:
        def read(self, ctx: Context, query: Changes) -> list[Note]:
            seen.append(query)
            return [Note("a", 1, 1)]

        def subscribe(self, ctx: Context, query: Changes) -> None:
            seen.append(query)

        def delete(self, ctx: Context, data: Changes) -> None:
            seen.append(data)

        def patch(self, ctx: Context, data: Changes) -> Note:
            seen.append(data)
            return Note("a", data["likes"])

        def shout(self, ctx: Context, words: list[str]) -> Note:
            return Note(" ".join(words))

    async with connect(sync) as client:
        assert (await client.call("Note:read", {"likes": 1})) == [{"text": "a", "likes": 1, "id": 1}]
        assert (await client.error("Note:read", {"likes": "x"}))["code"] == "invalid"
        assert (await client.error("Note:subscribe", {"likes": "x"}))["code"] == "invalid"
        assert "records" in (await client.call("Note:subscribe", {}))
        assert (await client.call("Note:delete", {"id": 1, "text": "a"})) == {}
        assert (await client.receive())["event"] == "Note:delete"
        assert (await client.call("Note:patch", {"id": 1, "likes": 3})) == {"text": "a", "likes": 3, "id": 1}
        assert (await client.receive())["event"] == "Note:upsert"
        assert (await client.call("Note:shout", ["a", "b"]))["text"] == "a b"
        assert (await client.error("Note:shout", "a"))["details"][0]["field"] == "data"
    assert seen == [{"likes": 1}, {}, {}, {"id": 1}, {"id": 1, "likes": 3}]


async def test_a_store_gets_what_was_checked(sync: Backsync) -> None:
    sync.model("Model", store=MemoryStore(), schema=Model, version="rev")
    async with connect(sync) as client:
        assert (await client.error("Model:upsert", {"id": 1, "text": 5}))["code"] == "invalid"
        stored = await client.call("Model:upsert", {"id": 1, "text": "a", "local": 1})
        assert stored == {"id": 1, "text": "a", "rev": 1}
        assert (await client.call("Model:patch", {"id": 1, "rev": 1, "text": "b"}))["rev"] == 2
        assert (await client.error("Model:patch", {"id": 1, "rev": 1, "text": "c"}))["code"] == "conflict"
        assert (await client.error("Model:upsert", {"id": 1, "rev": 1, "text": "c"}))["code"] == "conflict"
        assert (await client.error("Model:patch", {"id": 1, "text": None}))["code"] == "invalid"
        assert (await client.error("Model:patch", {"id": 2, "text": "a"}))["code"] == "not_found"


async def test_a_patch_passes_the_upsert_handler_as_a_whole_typed_record(sync: Backsync) -> None:
    seen = []

    @sync.model("Note", store=MemoryStore(), unknown="refuse").on("upsert")
    async def save(ctx: Context, note: Note) -> Any:
        seen.append(note)
        return await ctx.store.upsert(note)

    async with connect(sync) as client:
        await client.call("Note:upsert", {"id": 1, "text": "a"})
        assert (await client.call("Note:patch", {"id": 1, "likes": 2})) == {"id": 1, "text": "a", "likes": 2}
        assert (await client.error("Note:patch", {"id": 1, "x": 2}))["details"][0]["field"] == "x"
    assert seen == [Note("a", 0, 1), Note("a", 2, 1)]


async def test_typed_handlers_hand_their_record_to_the_store(sync: Backsync) -> None:
    """To mypy, too, which reads this file: a handler may be declared to return its type, or a dict."""

    class Page(pydantic.BaseModel):
        text: str

    async def save_note(ctx: Context, note: Note) -> Note:
        return await ctx.store.upsert(note)

    async def save_line(ctx: Context, line: Line) -> Line:
        return await ctx.store.upsert(line)

    async def save_page(ctx: Context, page: Page) -> Page:
        return await ctx.store.upsert(page)

    async def save_dict(ctx: Context, note: Note) -> dict[str, Any]:
        stored = await ctx.store.upsert(dataclasses.asdict(note))
        assert stored["text"] == "a"
        return stored

    async def save_other(ctx: Context, note: Note) -> Line:
        stored = await ctx.store.upsert(note)
        assert stored.text == "a"
        return Line(stored.text)

    saves: list[Callable[..., Any]] = [save_note, save_line, save_page, save_dict, save_other]
    for number, save in enumerate(saves):
        sync.model(f"M{number}", store=MemoryStore()).on("upsert")(save)
    sync.model("M0").upsert_soon(Note("b", 0, 2))
    async with connect(sync) as client:
        for number in range(len(saves)):
            assert (await client.call(f"M{number}:upsert", {"id": 1, "text": "a"}))["text"] == "a"
        assert [note["text"] for note in await client.call("M0:read")] in (["a", "b"], ["b", "a"])


async def test_an_untyped_handler_of_a_model_with_a_schema_gets_a_checked_dict(sync: Backsync) -> None:
    @sync.model("Note", schema=Note).on("upsert")
    async def save(ctx: Context, note: dict[str, Any]) -> dict[str, Any]:
        return {**note, "id": 1}

    async with connect(sync) as client:
        assert (await client.call("Note:upsert", {"text": "a", "x": 1})) == {"text": "a", "likes": 0, "id": 1}
        assert (await client.error("Note:upsert", {}))["code"] == "invalid"


async def test_typed_records_are_published_from_anywhere(sync: Backsync) -> None:
    note = sync.model("Note")
    note.on("read")(lambda ctx, query: [])
    async with connect(sync) as client:
        await client.call("Note:subscribe")
        await note.upsert(Note("a", 0, 1))
        note.publish("upsert", Note("b", 0, 2))
        note.publish_soon("upsert", Note("c", 0, 3))
        assert [(await client.receive())["data"]["text"] for _ in range(3)] == ["a", "b", "c"]


async def test_a_visibility_rule_sees_records_of_typed_rows(sync: Backsync) -> None:
    note = sync.model("Note")

    @note.visible
    def rule(ctx: Context, record: Mapping[str, Any]) -> bool:
        return bool(record["likes"])

    @note.on("read")
    async def read(ctx: Context, query: dict[str, Any]) -> list[Note]:
        return [Note("a", 0, 1), Note("b", 1, 2)]

    async with connect(sync) as client:
        assert [it["text"] for it in (await client.call("Note:read"))] == ["b"]


def test_options_may_come_after_the_handler(sync: Backsync) -> None:
    model = sync.model("Line")

    @model.on("upsert")
    async def save(ctx: Context, line: Line) -> Line:
        return line

    sync.model("Line", version="rev", unknown="refuse")
    assert model.loaded("upsert", {"text": "a", "rev": 1}) == Line("a")
    with pytest.raises(Reject):
        model.loaded("upsert", {"text": "a", "x": 1})


def test_a_bad_annotation_is_refused_at_decoration(sync: Backsync) -> None:
    with pytest.raises(TypeError, match="is a set, which JSON cannot carry"):

        @sync.model("A").on("upsert")
        async def save(ctx: Context, data: set[str]) -> None: ...

    with pytest.raises(TypeError, match="cannot be a schema"):
        sync.model("B", schema=datetime.tzinfo)


async def test_signals_are_sent_by_the_model_for_every_write(sync: Backsync) -> None:
    note, told = sync.model("Note", store=MemoryStore()), []

    def receive(sender: Any, **what: Any) -> None:
        told.append((sender, what["id"], what["created"]))

    def refuse(sender: Any, record: dict[str, Any], **what: Any) -> None:
        if record["text"] == "no":
            raise Reject("forbidden", "No.")

    with post_save.connected_to(receive, sender=note), pre_save.connected_to(refuse, sender=note):
        async with connect(sync) as client:
            await client.call("Note:upsert", {"id": 1, "text": "a"})
            assert (await client.error("Note:upsert", {"id": 1, "text": "no"}))["code"] == "forbidden"
            await note.upsert(Note("b", 0, 1))
    assert told == [(note, 1, True), (note, 1, False)]
