"""What Django commits is broadcast, and nothing else; a project in one process with Backsync."""

from __future__ import annotations

import datetime
import decimal
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

import tests.live.django_project.settings  # noqa: F401 - sets Django up, which the imports below need

# isort: split
from asgiref.sync import sync_to_async
from django.core.asgi import get_asgi_application
from django.db import OperationalError, connection, connections, models, transaction

from backsync_asgi import Backsync, Reject
from backsync_asgi.live import UnseenWrite, live
from backsync_asgi.live.django import LiveModel
from backsync_asgi.stores import MemoryStore
from backsync_asgi.testing import connect
from tests.live.django_project.models import Account, Base, Blob, Folder, Grade, Label, Note, Reminder, Tag, Ticket
from tests.live.documents import py_blocks
from tests.live.heard import Heard


class Stop(Exception):
    """What ends a transaction."""


@pytest.fixture(autouse=True)
def tables() -> Iterator[None]:
    """Empty tables, in the one database of the process."""
    kinds = [Tag, Folder, Note, Reminder, Ticket, Account]
    with connection.schema_editor() as editor:
        for kind in kinds:
            editor.create_model(kind)
    yield
    with connection.schema_editor() as editor:
        for kind in reversed(kinds):
            editor.delete_model(kind)
    connections.close_all()


@contextmanager
def made_live(sync: Backsync, name: str, mapped: type[Any], **options: Any) -> Iterator[LiveModel]:
    """Live for the block only: the receivers are Django's, of the whole process."""
    feed = live(sync.model(name), mapped, **options)
    assert isinstance(feed, LiveModel)
    try:
        yield feed
    finally:
        feed.close()


@pytest.fixture
def sync() -> Backsync:
    return Backsync()


@pytest.fixture
def heard(sync: Backsync, monkeypatch: pytest.MonkeyPatch) -> Heard:
    return Heard(sync, monkeypatch, "Note")


@pytest.fixture
def feed(sync: Backsync, heard: Heard) -> Iterator[LiveModel]:
    """Note is live, and what it publishes is heard."""
    with made_live(sync, "Note", Note, fields=["text", "count"]) as feed:
        yield feed


def upsert(id: int, text: str, count: int = 0) -> tuple[str, dict[str, Any]]:
    return "upsert", {"id": id, "text": text, "count": count}


# ── Signals ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("feed")
def test_what_is_saved_and_deleted_is_broadcast_as_the_database_holds_it(heard: Heard) -> None:
    note = Note.objects.create(text="Tea")
    assert heard.take() == [upsert(1, "Tea")]
    note.count = models.F("count") + 1
    note.save()
    assert heard.take() == [upsert(1, "Tea", 1)]
    note.delete()
    assert heard.take() == [("delete", {"id": 1})]


@pytest.mark.usefixtures("feed")
def test_a_transaction_is_broadcast_after_its_end_each_row_once(heard: Heard) -> None:
    with transaction.atomic():
        note = Note.objects.create(text="a")
        with transaction.atomic():
            note.text = "b"
            note.save()
        Note.objects.create(text="c")
        assert heard.take() == []
    assert heard.take() == [upsert(1, "b"), upsert(2, "c")]


@pytest.mark.usefixtures("feed")
def test_what_is_rolled_back_is_not_broadcast(heard: Heard) -> None:
    with pytest.raises(Stop), transaction.atomic():
        Note.objects.create(text="a")
        raise Stop
    with transaction.atomic():
        Note.objects.create(text="b")
        with pytest.raises(Stop), transaction.atomic():
            Note.objects.create(text="c")
            raise Stop
    assert [data["text"] for _, data in heard.take()] == ["b"]


@pytest.mark.usefixtures("feed")
def test_cascades_are_seen(heard: Heard) -> None:
    folder = Folder.objects.create(name="f")
    Note.objects.create(text="a", folder=folder)
    heard.take()
    folder.delete()
    assert heard.take() == [("delete", {"id": 1})]


@pytest.mark.usefixtures("feed")
def test_a_queryset_is_deleted_row_by_row(heard: Heard) -> None:
    for text in ("a", "b"):
        Note.objects.create(text=text)
    heard.take()
    Note.objects.filter(text="b").delete()
    assert heard.take() == [("delete", {"id": 2})]


@pytest.mark.usefixtures("feed")
def test_subclasses_count(heard: Heard) -> None:
    reminder = Reminder.objects.create(text="a", due=datetime.datetime(2012, 1, 1, tzinfo=datetime.UTC))
    reminder.text = "b"
    reminder.save()
    reminder.delete()
    assert heard.take() == [upsert(1, "a"), upsert(1, "b"), ("delete", {"id": 1})]


def test_to_record_may_use_relations_and_hears_when_they_change(sync: Backsync, heard: Heard) -> None:
    def to_record(note: Any) -> dict[str, Any]:
        return {"tags": sorted(tag.name for tag in note.tags.all())}

    with made_live(sync, "Note", Note, to_record=to_record):
        note, tag = Note.objects.create(text="a"), Tag.objects.create(name="hot")
        note.tags.add(tag)
        assert heard.take() == [("upsert", {"id": 1, "tags": []}), ("upsert", {"id": 1, "tags": ["hot"]})]
        tag.notes.remove(note)
        assert heard.take() == [("upsert", {"id": 1, "tags": []})]


def test_values_are_as_json_carries_them(sync: Backsync, monkeypatch: pytest.MonkeyPatch) -> None:
    heard, code = Heard(sync, monkeypatch, "Ticket"), uuid.UUID(int=1)
    with made_live(sync, "Ticket", Ticket):
        Ticket.objects.create(code=code, price=decimal.Decimal("1.50"), scan="a.png", day=datetime.date(2012, 1, 2))
    expected = {"id": str(code), "code": str(code), "price": "1.50", "scan": "a.png", "day": "2012-01-02"}
    assert heard.take() == [("upsert", expected)]


# ── What signals do not tell of ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("feed")
def test_querysets_that_write_many_rows_are_covered(heard: Heard) -> None:
    made = Note.objects.bulk_create([Note(text="a"), Note(text="b")])
    assert heard.take() == [upsert(1, "a"), upsert(2, "b")]
    Note.objects.filter(text="b").update(text="c")
    assert heard.take() == [upsert(2, "c")]
    for note in made:
        note.count = 5
    Note.objects.bulk_update(made, ["count"])
    assert heard.take() == [upsert(1, "a", 5), upsert(2, "c", 5)]
    with pytest.raises(Stop), transaction.atomic():
        Note.objects.update(text="d")
        raise Stop
    assert heard.take() == []
    with pytest.raises(UnseenWrite, match="INSERT OR IGNORE"):
        Note.objects.bulk_create([Note(id=1, text="x")], ignore_conflicts=True)


def test_rows_that_lose_a_reference_are_seen(sync: Backsync, heard: Heard) -> None:
    shelf = Folder.objects.create(name="s")
    with made_live(sync, "Note", Note, fields=["shelf_id"]):
        Note.objects.create(shelf=shelf)
        shelf.delete()
    assert heard.take() == [("upsert", {"id": 1, "shelf_id": 1}), ("upsert", {"id": 1, "shelf_id": None})]


def test_sql_of_ones_own_is_refused_with_the_remedy(feed: LiveModel, heard: Heard) -> None:
    Note.objects.create(text="a")
    heard.take()
    statement = "UPDATE django_project_note SET text = 'x'"
    with connection.cursor() as cursor:
        with pytest.raises(UnseenWrite, match=r"Note is live.*with ….bulk\(queryset\)"):
            cursor.execute(statement)
        with feed.bulk(Note.objects.filter(text="a")):
            cursor.execute(statement)
        assert heard.take() == [upsert(1, "x")]
        with feed.bulk() as changed:
            cursor.execute("INSERT INTO django_project_note (text, count) VALUES ('new', 0)")
            changed([cursor.lastrowid])
        assert heard.take() == [upsert(2, "new")]
        with pytest.raises(Stop), feed.bulk([1]):
            cursor.execute(statement)
            raise Stop
        with pytest.raises(UnseenWrite):
            cursor.execute(statement)
    assert heard.take() == []
    feed.changed([1, 9])
    assert heard.take() == [upsert(1, "x"), ("delete", {"id": 9})]


def test_bulk_ignore_lets_everything_pass(sync: Backsync, heard: Heard) -> None:
    with made_live(sync, "Note", Note, bulk="ignore"):
        Note.objects.bulk_create([Note(text="a")])
        Note.objects.update(text="b")
        assert heard.take() == []


def test_a_save_that_fails_does_not_open_the_door_to_what_is_unseen(feed: LiveModel, heard: Heard) -> None:
    Note.objects.create(text="a")
    with pytest.raises(ValueError, match="Field 'count' expected a number"):
        Note(text="b", count="many").save()
    with connection.cursor() as cursor, pytest.raises(UnseenWrite):
        cursor.execute("UPDATE django_project_note SET text = 'x'")


def test_other_tables_are_left_alone(feed: LiveModel) -> None:
    Tag.objects.bulk_create([Tag(name="update django_project_note")])
    Tag.objects.update(name="x")
    assert list(Tag.objects.values_list("name", flat=True)) == ["x"]


# ── Order and failure ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_thread_that_is_late_does_not_bring_back_the_older_state(sync: Backsync, heard: Heard) -> None:
    has_read, go_on = threading.Event(), threading.Event()

    def to_record(note: Any) -> dict[str, Any]:
        text = note.text
        if threading.current_thread() is late:
            has_read.set()
            assert go_on.wait(10)
        return {"text": text}

    def write_late() -> None:
        Note.objects.create(text="older")
        connections.close_all()

    late = threading.Thread(target=write_late)
    with made_live(sync, "Note", Note, to_record=to_record):
        late.start()
        assert has_read.wait(10)
        note = Note.objects.get()
        note.text = "newer"
        note.save()
        go_on.set()
        late.join(10)
    assert heard.take() == [("upsert", {"id": 1, "text": "newer"})]


def test_a_record_that_cannot_be_made_does_not_stop_the_others(
    sync: Backsync, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    def to_record(note: Any) -> dict[str, Any]:
        if note.text == "bad":
            raise KeyError("no")
        return {"text": note.text}

    with made_live(sync, "Note", Note, to_record=to_record), transaction.atomic():
        for text in ("bad", "good"):
            Note.objects.create(text=text)
    assert heard.take() == [("upsert", {"id": 2, "text": "good"})]
    assert "The change of Note 1 cannot be broadcast" in caplog.text


async def test_one_row_that_its_column_cannot_read_shuts_nobody_out(
    sync: Backsync, caplog: pytest.LogCaptureFixture
) -> None:
    """A value that another program wrote and a field refuses: its row fails alone, in reads and in commits."""
    codes = [uuid.UUID(int=number) for number in range(1, 6)]

    def spoil() -> None:
        Ticket.objects.bulk_create(Ticket(code=code, price=1) for code in codes)
        spoiled = [codes[0].hex, codes[3].hex]
        connection.connection.execute(
            "UPDATE django_project_ticket SET day = '2026-13-45' WHERE code IN (?, ?)", spoiled
        )

    def change() -> None:
        with transaction.atomic():
            for code in codes[3:]:
                Ticket.objects.filter(pk=code).update(price=2)

    await sync_to_async(spoil)()
    await sync_to_async(connections.close_all)()  # of the thread that writes: it connects once more, and is heard
    with made_live(sync, "Ticket", Ticket, fields=["day", "price"]):
        async with connect(sync) as client:
            seen = await client.subscribe("Ticket")
            whole = [str(codes[number]) for number in (1, 2, 4)]
            assert sorted(seen) == whole
            page = {"$order": "id", "$limit": 2}
            assert [row["id"] for row in await client.read("Ticket", page)] == whole[:2]
            with pytest.raises(Reject, match="not_found"):
                await client.read("Ticket", {"id": str(codes[3])})
            await sync_to_async(change)()  # is committed, though one of them cannot be broadcast
            await client.until(lambda: seen[whole[2]]["price"] == "2.00")
            assert sorted(seen) == whole
            assert f"The change of Ticket '{codes[3]}' cannot be broadcast" in caplog.text


def test_what_another_model_of_the_table_writes_is_seen(sync: Backsync, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard(sync, monkeypatch, "Tag")
    with made_live(sync, "Tag", Tag):
        label = Label.objects.create(name="a")
        label.name = "b"
        label.save()
        Label.objects.update(name="c")
        Label.objects.bulk_create([Label(name="d")])
        label.delete()
    names = [data.get("name") for _, data in heard.take()]
    assert names == ["a", "b", "c", "d", None]


def lose_commit(monkeypatch: pytest.MonkeyPatch, *, is_carried_out: bool) -> None:
    """The connection of this thread is lost in its next COMMIT, after or before that is carried out."""
    commit, rollback = connection._commit, connection._rollback

    def fail() -> None:
        connection.errors_occurred = True
        raise OperationalError("the server has closed the connection")

    def lose() -> None:
        (commit if is_carried_out else rollback)()
        monkeypatch.setattr(connection, "_rollback", fail)
        fail()

    monkeypatch.setattr(connection, "_commit", lose)


@pytest.mark.parametrize("is_carried_out", [True, False])
async def test_a_commit_of_which_nobody_knows_is_read_again(
    sync: Backsync, monkeypatch: pytest.MonkeyPatch, is_carried_out: bool
) -> None:
    def write() -> None:
        note = Note.objects.create(text="before")
        Note.objects.create(text="deleted")
        sync.model("Note").publish("upsert", {"id": note.pk, "text": "wrong"})
        with pytest.raises(OperationalError), transaction.atomic():
            lose_commit(monkeypatch, is_carried_out=is_carried_out)
            note.text = "after"
            note.save()
            Note.objects.filter(text="deleted").delete()
        monkeypatch.undo()
        connections.close_all()

    with made_live(sync, "Note", Note, fields=["text"]):
        async with connect(sync) as ann:
            seen = await ann.subscribe("Note")
            await sync_to_async(write)()
            if is_carried_out:
                await ann.until(lambda: seen == {1: {"id": 1, "text": "after"}})
            else:
                await ann.until(lambda: seen == {1: {"id": 1, "text": "before"}, 2: {"id": 2, "text": "deleted"}})


async def test_what_cannot_be_read_after_its_commit_is_read_later(
    sync: Backsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backsync_asgi.live.feed.AGAIN_AFTER", (0.0, 0.0))

    with made_live(sync, "Note", Note, fields=["text"]) as feed:
        publish, failures = feed._publish, [OSError("once"), OSError("twice")]

        def fail(keys: list[Any], using: str) -> None:
            if failures:
                raise failures.pop()
            publish(keys, using)

        monkeypatch.setattr(feed, "_publish", fail)
        async with connect(sync) as ann:
            seen = await ann.subscribe("Note")
            await sync_to_async(Note.objects.create)(text="a")
            await ann.until(lambda: seen == {1: {"id": 1, "text": "a"}})
            await sync_to_async(connections.close_all)()


# ── In an application ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("view", ["save", "asave"])
async def test_what_a_view_saves_reaches_a_subscriber(sync: Backsync, view: str) -> None:
    app = Starlette(routes=[Mount("/backsync", app=sync), Mount("/", app=get_asgi_application())])
    with made_live(sync, "Note", Note):
        async with (
            connect(app, "/backsync") as ann,
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as browser,
        ):
            assert (await browser.get(f"/{view}?text=before")).status_code == 204
            seen = await ann.subscribe("Note")
            assert [note["text"] for note in seen.values()] == ["before"]
            await browser.get(f"/{view}?text=after")
            await ann.until(lambda: {note["text"] for note in seen.values()} == {"before", "after"})


async def test_queries_filter_by_columns(sync: Backsync) -> None:
    with made_live(sync, "Note", Note, fields=["text", "count"]):
        await sync_to_async(Note.objects.create)(text="a")
        await sync_to_async(Note.objects.create)(text="b", count=3)
        async with connect(sync) as ann:
            assert [note["text"] for note in await ann.read("Note")] == ["a", "b"]
            assert [note["text"] for note in await ann.read("Note", {"count": 3})] == ["b"]
            for nothing in ({"count": "3"}, {"count": "many"}, {"count": 3.5}, {"text": 3}, {"id": "01", "count": 0}):
                assert await ann.read("Note", nothing) == [], nothing
            assert (await ann.read("Note", {"id": "1"}))["text"] == "a"
            for query, code in (
                ({"id": 9}, "not_found"),
                ({"id": "x"}, "not_found"),
                ({"count": "many", "$order": "-folder_id"}, "invalid"),
                ({"$order": "count", "$after": {"count": "many", "id": 1}}, "invalid"),
                ({"folder_id": 1}, "invalid"),
                ({"folder__name": "f"}, "invalid"),
            ):
                with pytest.raises(Reject) as refused:
                    await ann.read("Note", query)
                assert refused.value.code == code, query


@pytest.mark.parametrize(
    ("mapped", "options", "error", "message"),
    [
        (Grade, {}, TypeError, "whose primary key is pupil, subject; a record has one id"),
        (Blob, {}, ValueError, "JSON cannot carry content of Blob"),
        (Account, {}, ValueError, "would send password of Account to everybody"),
        (Base, {}, TypeError, "which is abstract"),
        (Note, {"fields": ["tags"]}, ValueError, r"got the fields \['tags'\], expected some of id, text"),
        (Note, {"bulk": "refuse"}, ValueError, "expected 'publish' or 'ignore'"),
        (Note, {"session": 5}, TypeError, "a Django model needs none"),
    ],
)
def test_what_cannot_be_live_says_why(
    sync: Backsync, mapped: type[Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        live(sync.model("X"), mapped, **options)


def test_records_have_one_home(sync: Backsync) -> None:
    with pytest.raises(ValueError, match="records have one home"):
        live(sync.model("Note", store=MemoryStore()), Note)


def test_what_is_closed_hears_nothing_and_refuses_nothing(sync: Backsync, heard: Heard) -> None:
    with made_live(sync, "Note", Note):
        pass
    Note.objects.create(text="a")
    Note.objects.update(text="b")
    assert heard.take() == []


async def test_the_program_in_the_documents_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    program = next(block for block in py_blocks() if "get_asgi_application" in block)
    monkeypatch.setitem(sys.modules, "notes", ModuleType("notes"))
    monkeypatch.setitem(sys.modules, "notes.models", sys.modules["tests.live.django_project.models"])
    names: dict[str, Any] = {"__name__": "asgi"}
    exec(compile(program, "<docs/databases.md>", "exec", dont_inherit=True), names)
    app, feed = names["application"], names["notes"]
    try:
        async with (
            connect(app, "/backsync") as ann,
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as browser,
        ):
            seen = await ann.subscribe("Note")
            await browser.get("/save?text=Tea")
            await ann.until(lambda: list(seen.values()) == [{"id": 1, "text": "Tea"}])
    finally:
        feed.close()
