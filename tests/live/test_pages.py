"""Live tables are read as stores are: by pages, in any order, whatever reads them; knows no writes."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import JSON, DateTime, Engine, Numeric, create_engine, delete, insert, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

import tests.live.django_project.settings  # noqa: F401 - sets Django up, which the imports below need

# isort: split
from asgiref.sync import sync_to_async
from django.db import connection, connections

from backsync_asgi import Backsync, Reject
from backsync_asgi.live import listen, live
from backsync_asgi.stores.base import CHUNK, Reader
from backsync_asgi.testing import Client, connect
from tests.live.django_project.models import Sample as DjangoSample
from tests.postgres import PostgreSQL

Row = dict[str, Any]


class Base(DeclarativeBase):
    pass


class Sample(Base):
    __tablename__ = "sample"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    word: Mapped[str | None]
    size: Mapped[float | None]
    count: Mapped[int]
    done: Mapped[bool | None]
    at: Mapped[datetime.datetime | None] = mapped_column(DateTime(timezone=True))
    price: Mapped[decimal.Decimal | None] = mapped_column(Numeric(8, 2))
    tags: Mapped[Any] = mapped_column(JSON(none_as_null=True), nullable=True)


FIELDS = ("id", "word", "size", "count", "done", "at", "price")
EMPTY: Row = dict.fromkeys((*FIELDS, "tags"))


@dataclass
class Table:
    """A live table. fill: puts these rows in place of what is there; change: gives a row a word, or deletes it.

    at_once: rows of a large result that are made in one go.
    """

    sync: Backsync
    fill: Callable[[list[Row]], Awaitable[None]]
    change: Callable[[int, str | None], Awaitable[None]]
    at_once: int

    @property
    def reader(self) -> Reader:
        reader = self.sync.model("Sample").reader
        assert reader is not None
        return reader

    async def read(self, query: Mapping[str, Any]) -> list[Row]:
        """The records of a query as a browser has them; a snapshot holds the same."""
        async with contextlib.aclosing(self.reader.snapshot(query)) as chunks:
            rows = [orjson.loads(text) async for chunk in chunks for text in chunk]
        assert [row["id"] for row in await self.reader.read(query)] == [row["id"] for row in rows]
        return rows

    async def ids(self, query: Mapping[str, Any]) -> list[int]:
        return [row["id"] for row in await self.read(query)]


@contextlib.asynccontextmanager
async def in_sqlalchemy(engine: AsyncEngine, reading: Engine | AsyncEngine) -> AsyncIterator[Table]:
    sync = Backsync()
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
    factory: Any = sessionmaker(reading) if isinstance(reading, Engine) else async_sessionmaker(reading)
    feed = live(sync.model("Sample"), Sample, session=factory, bulk="publish")
    unheard = {"backsync_bulk": "ignore"}

    async def fill(rows: list[Row]) -> None:
        async with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                await connection.execute(text("SET LOCAL session_replication_role = replica"))  # no triggers
            await connection.execute(delete(Sample), execution_options=unheard)
            if rows:
                await connection.execute(insert(Sample), rows, execution_options=unheard)

    async def change(id: int, word: str | None) -> None:
        async with engine.begin() as connection:
            chosen: Any = delete(Sample) if word is None else update(Sample).values(word=word)
            await connection.execute(chosen.where(Sample.id == id))

    yield Table(sync, fill, change, 5_000 if isinstance(reading, Engine) else 2_000)
    feed.close()
    await engine.dispose()


@contextlib.asynccontextmanager
async def in_django() -> AsyncIterator[Table]:
    sync = Backsync()

    def make() -> None:
        with connection.schema_editor() as editor:
            editor.create_model(DjangoSample)
        connections.close_all()  # live() comes before the connections whose statements it is to hear

    def drop() -> None:
        with connection.schema_editor() as editor:
            editor.delete_model(DjangoSample)
        connections.close_all()

    def fill(rows: list[Row]) -> None:
        feed._bulk = "ignore"
        DjangoSample.objects.all()._raw_delete("default")
        DjangoSample.objects.bulk_create([DjangoSample(**row) for row in rows])
        feed._bulk = "publish"

    def change(id: int, word: str | None) -> None:
        rows = DjangoSample.objects.filter(pk=id)
        if word is None:
            rows.delete()
        else:
            rows.update(word=word)

    await sync_to_async(make)()
    feed: Any = live(sync.model("Sample"), DjangoSample)
    yield Table(sync, sync_to_async(fill), sync_to_async(change), 5_000)
    feed.close()
    await sync_to_async(drop)()


@contextlib.asynccontextmanager
async def in_postgresql(engine: AsyncEngine, url: str) -> AsyncIterator[Table]:
    async with in_sqlalchemy(engine, engine) as table:
        table.sync, table.at_once = Backsync(), CHUNK
        async with listen(table.sync.model("Sample"), url, table="sample"):
            yield table


@pytest.fixture(scope="module", params=["sync", "async", "async-postgres", "django", "listen"])
async def table(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Table]:
    """A live table of each kind."""
    if request.param == "django":
        async with in_django() as table:
            yield table
        return
    if request.param in ("sync", "async"):
        path = f"{tmp_path_factory.mktemp('pages')}/pages.sqlite"
        engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
        reading = create_engine(f"sqlite:///{path}") if request.param == "sync" else engine
        async with in_sqlalchemy(engine, reading) as table:
            yield table
        if isinstance(reading, Engine):
            reading.dispose()
        return
    server: PostgreSQL = request.getfixturevalue("postgresql")
    engine = create_async_engine(server.url.replace("postgresql:", "postgresql+asyncpg:"))
    async with (
        in_postgresql(engine, server.url) if request.param == "listen" else in_sqlalchemy(engine, engine) as table
    ):
        yield table


# ── Pages ────────────────────────────────────────────────────────────────────────────────────────────────────────────

# Texts whose order is the same by code points and by the rules of a language.
values = {
    "word": st.none() | st.text("01ab", max_size=3),
    "size": st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.1, 0.5, -0.0]),
    "count": st.integers(-2, 2),
    "done": st.none() | st.booleans(),
    "at": st.none()
    | st.datetimes(
        datetime.datetime(2012, 1, 1),  # noqa: DTZ001 - the strategy adds the zone
        datetime.datetime(2012, 1, 2),  # noqa: DTZ001
        timezones=st.just(datetime.UTC),
    ),
    "price": st.none() | st.decimals(-10, 10, places=2, allow_nan=False),
}
rows = st.lists(
    st.fixed_dictionaries({"id": st.integers(-20, 20), **values}), max_size=15, unique_by=lambda row: row["id"]
)
SORTED = [field for field in FIELDS if field != "price"]  # whose text sorts otherwise
orders = st.lists(st.tuples(st.sampled_from(SORTED), st.booleans()), max_size=3, unique_by=lambda place: place[0])


def arranged(rows: list[Row], order: list[tuple[str, bool]]) -> list[int]:
    """The ids in that order, by Python's own sorting."""
    if "id" not in dict(order):
        order = [*order, ("id", bool(order) and order[-1][1])]
    found = list(rows)

    def place(field: str, row: Row) -> Any:
        return (False, 0) if row[field] is None else (True, row[field])

    for field, descending in reversed(order):
        found.sort(key=functools.partial(place, field), reverse=descending)
    return [row["id"] for row in found]


@given(rows=rows, order=orders, limit=st.integers(1, 6))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_pages_hold_each_record_once_and_in_order(
    table: Table, rows: list[Row], order: list[tuple[str, bool]], limit: int
) -> None:
    await table.fill(rows)
    query = {"$order": [f"-{field}" if descending else field for field, descending in order]}
    expected = arranged(rows, order)
    assert await table.ids(query) == expected
    seen: list[int] = []
    after: Row | None = None
    while page := await table.read({**query, "$limit": limit, "$after": after}):
        seen += [row["id"] for row in page]
        assert len(seen) <= len(rows)
        after = page[-1]
    assert seen == expected


@given(rows=rows, field=st.sampled_from(FIELDS))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_a_record_is_found_by_each_of_its_values(table: Table, rows: list[Row], field: str) -> None:
    await table.fill(rows)
    for record in await table.read({}):
        found = await table.read({field: record[field], "$order": "-id"})
        same = [row["id"] for row in await table.read({"$order": "-id"}) if row[field] == record[field]]
        assert [row["id"] for row in found] == same
        assert await table.reader.get(str(record["id"])) is not None
    assert await table.reader.get(21) is None


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"$limit": 0}, "$limit"),
        ({"$order": 5}, "$order"),
        ({"$order": "nothing"}, "$order"),
        ({"$order": ["count", "-password"]}, "$order"),
        ({"nothing": 1}, "nothing"),
        ({"$after": "a"}, "$after"),
        ({"$after": {"id": "a"}}, "$after"),
        ({"$order": "count", "$after": {"id": 1}}, "$after"),
        ({"$order": "word", "$after": {"id": 1, "word": 5}}, None),
        ({"$order": "at", "$after": {"id": 1, "at": "once"}}, None),
        ({"$order": "size", "$after": {"id": 1, "size": [1]}}, None),
    ],
    ids=str,
)
async def test_a_query_that_cannot_be_answered_is_refused(table: Table, query: Any, field: str | None) -> None:
    at = datetime.datetime(2012, 1, 1, tzinfo=datetime.UTC)
    await table.fill([{**EMPTY, "id": 1, "count": 1, "at": at}])
    with pytest.raises(Reject) as caught:
        await table.reader.read(query)
    assert caught.value.code == "invalid"
    if field is not None:
        assert [fault["field"] for fault in caught.value.details] == [field]


@pytest.mark.parametrize("value", [True, "1", 1.5, [1], {"a": 1}, None, "x", "\x00", 2**62], ids=repr)
async def test_a_value_that_a_field_cannot_have_is_found_nowhere(table: Table, value: Any) -> None:
    await table.fill([{**EMPTY, "id": 1, "count": 1, "word": "w", "done": True}])
    assert await table.ids({"count": value}) == []
    assert await table.ids({"count": 1.0, "done": True}) == [1]


async def test_values_in_json_are_compared_as_they_are_and_have_no_order(table: Table) -> None:
    tags: list[Any] = [["a"], {"a": 1, "b": [True]}, "a", 1, None, ["a", "b"], ["a"]]
    await table.fill([{**EMPTY, "id": id, "count": 1, "tags": it} for id, it in enumerate(tags)])
    assert await table.ids({"tags": ["a"]}) == [0, 6]
    assert await table.ids({"tags": ["a"], "$limit": 1}) == [0]
    assert await table.ids({"tags": ["a"], "$after": {"id": 0}, "$limit": 1}) == [6]
    assert await table.ids({"tags": {"b": [True], "a": 1.0}}) == [1]
    assert await table.ids({"tags": {"b": [1], "a": 1}}) == []
    assert await table.ids({"tags": "a"}) == [2]
    assert await table.ids({"tags": None}) == [4]
    with pytest.raises(Reject, match="which is not a field that has an order"):
        await table.read({"$order": "tags"})


async def test_an_order_that_browsers_cannot_keep_is_refused(table: Table) -> None:
    """The kind of fault: a decimal's text sorts otherwise than the decimal, and changes would come to wrong places."""
    await table.fill([{**EMPTY, "id": 1, "count": 1, "price": decimal.Decimal("10.00")}])
    (row,) = await table.read({})
    if isinstance(row["price"], str):
        with pytest.raises(Reject, match=r"\$order names '?price"):
            await table.read({"$order": "price", "$limit": 1})
    else:
        assert await table.read({"$order": "price", "$limit": 1}) == [row]


async def test_a_page_begins_after_a_record_that_is_no_more(table: Table) -> None:
    await table.fill([{**EMPTY, "id": id, "count": id // 4} for id in range(12)])
    first = await table.read({"$order": ["-count", "id"], "$limit": 5})
    assert [row["id"] for row in first] == [8, 9, 10, 11, 4]
    await table.change(4, None)
    assert await table.ids({"$order": ["-count", "id"], "$limit": 5, "$after": first[-1]}) == [5, 6, 7, 0, 1]


async def test_a_large_table_is_read_in_chunks(table: Table) -> None:
    await table.fill([{**EMPTY, "id": id, "count": id} for id in range(5_000)])
    async with contextlib.aclosing(table.reader.snapshot({"$order": "-count"})) as chunks:
        sizes = [len(chunk) async for chunk in chunks]
    assert sum(sizes) == 5_000
    assert max(sizes) == table.at_once, "in a thread the texts are made as the rows come"
    async with contextlib.aclosing(table.reader.snapshot({})) as chunks:
        assert await anext(chunks), "and whoever has enough may leave"


# ── A client that opens a table page by page ─────────────────────────────────────────────────────────────────────────


async def pages(ann: Client, query: Row, first: list[Row]) -> list[Row]:
    """All rows, page after page, as a list that is scrolled down."""
    found = list(first)
    while page := await ann.read("Sample", {**query, "$after": found[-1]}):
        found += page
    return found


async def test_a_table_of_5000_rows_is_opened_page_by_page_and_stays_live(table: Table) -> None:
    await table.fill([{**EMPTY, "id": id, "count": id % 7, "word": "old"} for id in range(5_000)])
    query = {"$order": "-count", "$limit": 500}
    async with connect(table.sync) as ann:
        shown = await ann.subscribe("Sample", query)
        assert len(shown) == 500
        assert {row["count"] for row in shown.values()} == {6}
        await table.change(6, "first page")  # which has ids 6, 13, 20 …
        await table.change(0, "last page")
        await table.change(13, None)
        await ann.until(lambda: shown.get(0, EMPTY)["word"] == "last page" and 13 not in shown)
        rows = await pages(ann, query, sorted(shown.values(), key=lambda row: (row["count"], row["id"]))[-500:][::-1])
        assert len({row["id"] for row in rows}) == len(rows)
        assert len({row["id"] for row in rows} | shown.keys()) == 4_999
        assert shown[6]["word"] == "first page"
        await table.change(3, "later")
        await ann.until(lambda: shown.get(3, EMPTY)["word"] == "later")


async def test_a_page_that_is_read_anew_is_the_page_that_was_asked_for(table: Table) -> None:
    await table.fill([{**EMPTY, "id": id, "count": 1} for id in range(50)])
    async with connect(table.sync) as ann:
        shown = await ann.subscribe("Sample", {"$order": "-id", "$limit": 3})
        assert list(shown) == [49, 48, 47]
        await table.fill([{**EMPTY, "id": id, "count": 2} for id in range(60)])
        table.sync.model("Sample").refresh()
        await ann.until(lambda: list(shown) == [59, 58, 57])
