"""Records in columns: tables that are there already, mapped classes, and tables made after a schema."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import enum
import math
import secrets
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec
import orjson
import pydantic
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from backsync_asgi import Backsync, Reject, testing
from backsync_asgi.stores import MemoryStore, SQLStore, table_of
from tests.postgres import PostgreSQL

Make = Callable[[Any], SQLStore]


class Base(DeclarativeBase):
    pass


class State(enum.Enum):
    OPEN = "open"
    DONE = "done"


class Task(Base):
    __tablename__ = "tasks"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column("task_title", sa.String(20))
    done: Mapped[bool] = mapped_column(default=False)
    state: Mapped[State] = mapped_column(default=State.OPEN)
    weight: Mapped[float | None]
    due: Mapped[datetime.datetime | None] = mapped_column(sa.DateTime(timezone=True))
    day: Mapped[datetime.date | None]
    tags: Mapped[list[str] | None] = mapped_column(sa.JSON)
    kind: Mapped[str] = mapped_column(server_default="plain")


EMPTY = {"done": False, "state": "open", "weight": None, "due": None, "day": None, "tags": None, "kind": "plain"}


@pytest.fixture(params=["sqlite", "postgresql"])
async def make(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Make]:
    """`make(table)`: a store of that table in a database where it is missing."""
    url = f"sqlite:///{tmp_path}/tables.db"
    if request.param == "postgresql":
        server: PostgreSQL = request.getfixturevalue("postgresql")
        url = server.url
    stores = []

    def make(table: Any) -> SQLStore:
        stores.append(SQLStore(url, table=table))
        return stores[-1]

    yield make
    for store in stores:
        home = await store._home()
        async with home.writing() as connection:
            await connection.run_sync(store.table.drop)
        await store.close()


@pytest.fixture
def tasks(make: Make) -> SQLStore:
    return make(Task)


async def fault(work: Any) -> tuple[str, str]:
    with pytest.raises(Reject) as caught:
        await work
    return caught.value.code, caught.value.details[0]["field"]


async def test_a_row_is_a_record_with_the_names_of_the_class(tasks: SQLStore) -> None:
    assert await tasks.upsert({"title": "Tea"}) == {"id": 1, "title": "Tea", **EMPTY}
    assert await tasks.get("1") == {"id": 1, "title": "Tea", **EMPTY}
    full = {
        "id": 7,
        "title": "é😀",
        "done": True,
        "state": "done",
        "weight": 1.5,
        "due": "2026-01-02T03:04:05+00:00",
        "day": "2026-01-02",
        "tags": ["a", {"b": None}],
        "kind": "odd",
    }
    assert await tasks.upsert(full) == full
    assert await tasks.read({}) == [{"id": 1, "title": "Tea", **EMPTY}, full]


async def test_times_come_out_in_one_zone(tasks: SQLStore) -> None:
    for due in ("2026-01-02T05:04:05+02:00", "2026-01-02T03:04:05Z", "2026-01-02T03:04:05"):
        stored = await tasks.upsert({"id": 1, "title": "Tea", "due": due})
        assert stored["due"] == "2026-01-02T03:04:05+00:00"
    assert len(await tasks.read({"due": "2026-01-02T04:04:05+01:00"})) == 1


async def test_an_upsert_replaces_what_it_does_not_name_by_its_default(tasks: SQLStore) -> None:
    await tasks.upsert({"id": 1, "title": "Tea", "done": True, "weight": 2.0, "kind": "odd"})
    assert await tasks.upsert({"id": 1, "title": "Milk"}) == {"id": 1, "title": "Milk", **EMPTY, "kind": "odd"}


async def test_a_patch_changes_columns_and_unsets_to_null(tasks: SQLStore) -> None:
    await tasks.upsert({"id": 1, "title": "Tea", "weight": 2.0})
    assert await tasks.patch(1, {"done": True}, ["weight"]) == {"id": 1, "title": "Tea", **EMPTY, "done": True}
    assert await fault(tasks.patch(1, {}, ["title"])) == ("invalid", "title")
    assert await tasks.delete("1")
    assert await tasks.read({}) == []


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"other": 1}, "other"),
        ({"title": None}, "title"),
        ({"title": 5}, "title"),
        ({"title": "x" * 21}, "title"),
        ({"done": 1}, "done"),
        ({"done": "true"}, "done"),
        ({"state": "shut"}, "state"),
        ({"weight": "1"}, "weight"),
        ({"weight": True}, "weight"),
        ({"due": "tomorrow"}, "due"),
        ({"due": 5}, "due"),
        ({"day": "2026-13-01"}, "day"),
        ({"id": "abc"}, "id"),
        ({"id": 2**53 + 1}, "id"),
        ({"title": "a\0"}, "title"),
    ],
    ids=str,
)
async def test_what_a_column_cannot_hold_is_refused_with_its_field(
    tasks: SQLStore, fields: dict[str, Any], field: str
) -> None:
    assert await fault(tasks.upsert({"id": 1, "title": "Tea", **fields})) == ("invalid", field)
    assert await tasks.read({}) == []


async def test_a_query_compares_as_in_other_stores(tasks: SQLStore) -> None:
    for id, done, weight in ((1, True, 1.0), (2, False, None), (3, True, 2.5)):
        await tasks.upsert({"id": id, "title": f"t{id}", "done": done, "weight": weight, "tags": [id]})

    async def ids(**query: Any) -> list[Any]:
        return [record["id"] for record in await tasks.read(query)]

    assert await ids(done=True) == [1, 3]
    assert await ids(done=1) == []
    assert await ids(weight=1) == [1]
    assert await ids(weight=None) == [2]
    assert await ids(weight="1") == []
    assert await ids(state="open", done=False) == [2]
    assert await ids(state="shut") == []
    assert await ids(tags=[3]) == [3]
    assert await ids(title="t1") == [1]
    assert await ids(none="x") == []
    assert await ids(id="2") == [2]
    assert await ids(id="x") == []
    assert await ids(title="t1; DROP TABLE tasks") == []


@pytest.mark.parametrize("order", ["weight", "-weight", ["-done", "weight"], ["due", "-id"], None, "-title"], ids=str)
async def test_pages_of_a_table_hold_each_row_once(tasks: SQLStore, order: Any) -> None:
    for id in range(1, 12):
        weight = None if id % 4 == 0 else float(id % 3)
        await tasks.upsert({"id": id, "title": f"t{id}", "done": id % 2 == 0, "weight": weight})
    query = {} if order is None else {"$order": order}
    whole = [record["id"] for record in await tasks.read(query)]
    assert sorted(whole) == list(range(1, 12))
    seen: list[int] = []
    after: dict[str, Any] = {}
    while page := await tasks.read({**query, **after, "$limit": 3}):
        seen += [record["id"] for record in page]
        after = {"$after": page[-1]}
        await tasks.delete(page[-1]["id"])
    assert seen == whole


async def test_what_has_no_order_is_refused(tasks: SQLStore) -> None:
    assert await fault(tasks.read({"$order": "tags"})) == ("invalid", "$order")
    assert await fault(tasks.read({"$order": "other"})) == ("invalid", "$order")
    assert await fault(tasks.read({"$limit": 1, "$after": {"id": "x"}})) == ("invalid", "$after")


async def test_a_table_may_count_versions(make: Make) -> None:
    columns = sa.Column("key", sa.Text, primary_key=True), sa.Column("rev", sa.Integer), sa.Column("x", sa.Integer)
    store = make(sa.Table("counted", sa.MetaData(), *columns))
    store.bind("Counted", "rev")
    await store.upsert({"id": "a", "x": 1})
    assert await store.patch("a", {"x": 2, "rev": 1}) == {"id": "a", "rev": 2, "x": 2}
    with pytest.raises(Reject, match="conflict"):
        await store.upsert({"id": "a", "x": 3, "rev": 1})
    with pytest.raises(Reject, match="conflict"):
        await store.delete("a", 1)
    assert await store.delete("a", 2) is True
    (made,) = [await store.upsert({"x": 5})]
    assert len(made["id"]) == 16


def test_a_version_that_is_no_column_is_found_at_start() -> None:
    store = SQLStore("sqlite:///x.db", table=Task)
    with pytest.raises(ValueError, match="rev"):
        store.bind("Task", "rev")


@pytest.mark.parametrize(
    "columns",
    [
        [sa.Column("a", sa.Text, primary_key=True), sa.Column("b", sa.Text, primary_key=True)],
        [sa.Column("a", sa.Text)],
        [sa.Column("a", sa.Text, primary_key=True), sa.Column("id", sa.Text)],
    ],
    ids=["two", "none", "another"],
)
def test_a_table_needs_one_primary_key_which_is_the_id(columns: list[sa.Column[Any]]) -> None:
    with pytest.raises(ValueError, match="primary key"):
        SQLStore("sqlite:///x.db", table=sa.Table("t", sa.MetaData(), *columns))


# ── After a schema ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Data:
    id: str
    text: str
    count: int
    ratio: float | None
    done: bool
    at: datetime.datetime
    day: datetime.date
    key: uuid.UUID
    state: State
    tags: list[str]
    either: Literal["a", "b"] = "a"


class Struct(msgspec.Struct):
    id: str
    text: str
    count: int
    ratio: float | None
    done: bool
    at: datetime.datetime
    day: datetime.date
    key: uuid.UUID
    state: State
    tags: list[str]
    either: Literal["a", "b"] = "a"


class Pydantic(pydantic.BaseModel):
    id: str
    text: str
    count: int
    ratio: float | None
    done: bool
    at: datetime.datetime
    day: datetime.date
    key: uuid.UUID
    state: State
    tags: list[str]
    either: Literal["a", "b"] = "a"


class Typed(TypedDict):
    id: str
    text: str
    count: int
    ratio: float | None
    done: bool
    at: datetime.datetime
    day: datetime.date
    key: uuid.UUID
    state: State
    tags: list[str]
    either: NotRequired[Literal["a", "b"]]


VALUES = {
    "id": "a",
    "text": "é",
    "count": 2**53 - 1,
    "ratio": 0.1,
    "done": True,
    "at": "2026-01-02T03:04:05.123456+00:00",
    "day": "2026-01-02",
    "key": "12345678-1234-5678-1234-567812345678",
    "state": "done",
    "tags": ["x"],
    "either": "b",
}


@pytest.mark.parametrize("schema", [Data, Struct, Pydantic, Typed])
async def test_a_schema_is_a_table(make: Make, schema: Any) -> None:
    store = make(schema)
    assert await store.upsert(VALUES) == VALUES
    assert await store.read({"state": "done", "key": VALUES["key"], "day": "2026-01-02"}) == [VALUES]
    assert await store.upsert({**VALUES, "ratio": None}) == {**VALUES, "ratio": None}
    with pytest.raises(Reject, match="invalid"):
        await store.upsert({**VALUES, "count": "many"})


async def test_texts_of_pydantic_are_columns_of_text(make: Make) -> None:
    """Kind: a type that the schema writes as text, kept in a way in which it can be neither ordered nor compared."""

    class Link(pydantic.BaseModel):
        id: str
        url: pydantic.HttpUrl
        other: pydantic.AnyUrl | None = None
        size: pydantic.ByteSize = pydantic.ByteSize(0)

    columns = table_of(Link).c
    assert [type(column.type) for column in columns] == [sa.Text, sa.Text, sa.Text, sa.JSON]
    store = make(Link)
    for id in ("b", "a"):
        await store.upsert({"id": id, "url": f"https://{id}.example/", "size": 5})
    assert [row["id"] for row in await store.read({"$order": "url"})] == ["a", "b"]
    assert [row["id"] for row in await store.read({"url": "https://b.example/"})] == ["b"]
    with pytest.raises(Reject, match="url is 5, expected str"):
        await store.upsert({"id": "c", "url": 5})


async def test_a_schema_of_numbered_records(make: Make) -> None:
    @dataclass
    class Numbered:
        id: uuid.UUID | None
        price: decimal.Decimal | None

    table = table_of(Numbered, "prices")
    assert table.name == "prices"
    assert isinstance(table.c.price.type, sa.Numeric)
    assert table.c.id.primary_key


@dataclass
class DataWithDefaults:
    id: int | None = None
    text: str = "a"
    state: State = State.OPEN
    tags: list[str] = field(default_factory=list)
    key: uuid.UUID = field(default_factory=uuid.uuid4)


class StructWithDefaults(msgspec.Struct):
    id: int | None = None
    text: Annotated[str, msgspec.Meta(max_length=5)] = "a"
    state: State = State.OPEN
    tags: list[str] = []
    key: uuid.UUID = msgspec.field(default_factory=uuid.uuid4)


class PydanticWithDefaults(pydantic.BaseModel):
    id: int | None = None
    text: str = pydantic.Field("a", max_length=5)
    state: State = State.OPEN
    tags: list[str] = []
    key: uuid.UUID = pydantic.Field(default_factory=uuid.uuid4)


@pytest.mark.parametrize("schema", [DataWithDefaults, StructWithDefaults, PydanticWithDefaults])
async def test_what_a_record_leaves_out_has_the_default_of_the_schema(make: Make, schema: Any) -> None:
    store = make(schema)
    first, second = await store.upsert({}), await store.upsert({"text": "b", "tags": ["x"]})
    keys = {uuid.UUID(record.pop("key")) for record in (first, second)}
    assert first == {"id": 1, "text": "a", "state": "open", "tags": []}
    assert second == {"id": 2, "text": "b", "state": "open", "tags": ["x"]}
    assert len(keys) == 2, "each has its own"
    replaced = await store.upsert({"id": 2})
    assert (replaced["text"], replaced["tags"]) == ("a", [])


async def test_a_new_record_gets_the_tables_own_id_whatever_random_digits_come(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kind: a random id that is taken for something else. One of hexadecimal digits may be a number."""
    monkeypatch.setattr(secrets, "token_hex", lambda size: "8907301940368441")
    assert (await make(DataWithDefaults).upsert({}))["id"] == 1


class RenamedStruct(msgspec.Struct, rename="camel"):
    id: int
    full_name: str


class RenamedPydantic(pydantic.BaseModel):
    id: int
    full_name: str = pydantic.Field(alias="fullName")


@pytest.mark.parametrize("schema", [RenamedStruct, RenamedPydantic])
async def test_columns_are_named_as_the_record_is_sent(make: Make, schema: Any) -> None:
    store = make(schema)
    assert await store.upsert({"id": 1, "fullName": "Ann"}) == {"id": 1, "fullName": "Ann"}
    assert await store.read({"fullName": "Ann"}) == [{"id": 1, "fullName": "Ann"}]


def test_what_is_no_schema_is_no_table() -> None:
    with pytest.raises(TypeError, match="expected a dataclass, TypedDict, msgspec.Struct or pydantic model"):
        table_of(dict)


def test_a_schema_without_an_id_is_no_table() -> None:
    with pytest.raises(ValueError, match="no field `id`"):
        table_of(TypedDict("Nothing", {"x": int}))  # type: ignore[operator]


# ── Rows that cannot be sent ─────────────────────────────────────────────────────────────────────────────────────────


async def texts_of(store: SQLStore, query: dict[str, Any]) -> list[Any]:
    async with contextlib.aclosing(store.snapshot(query)) as chunks:
        return [orjson.loads(text)["id"] async for chunk in chunks for text in chunk]


async def execute(store: SQLStore, statement: Any, values: Any = None) -> None:
    home = await store._home()
    async with home.writing() as connection:
        await connection.execute(statement, values)


class Measured(Base):
    __tablename__ = "measured"

    id: Mapped[str] = mapped_column(primary_key=True)
    v: Mapped[float]


async def test_a_row_that_cannot_be_sent_is_left_out_and_logged_once(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """One row of another program's does not fail the list for all: in reads, snapshots and pages, which stay whole."""
    store = make(Measured)
    await store.open()
    rows = [("a", 1.0), ("b", math.inf), ("c", 2.0), ("", 3.0), ("x" * 129, 3.0), ("d", -math.inf), ("e", 5.0)]
    await execute(store, sa.insert(store.table), [{"id": id, "v": v} for id, v in rows])
    for query in ({}, {"$order": "id"}, {"$order": "v", "$limit": 3}, {"$limit": 3}):
        assert [record["id"] for record in await store.read(query)] == ["a", "c", "e"]
        assert await texts_of(store, query) == ["a", "c", "e"]
    assert await texts_of(store, {"$limit": 2}) == ["a", "c"]
    assert [row["id"] for row in await store.read({"$limit": 2, "$after": {"id": "a"}})] == ["c", "e"]
    logged = [record.message for record in caplog.records if "cannot be sent" in record.message]
    assert len(logged) == 4
    assert logged[0].startswith("The record ")
    assert "of measured cannot be sent and is left out" in logged[0]
    sync = Backsync()
    sync.model("Measured", store=store)
    async with testing.connect(sync) as client:
        assert set(await client.subscribe("Measured")) == {"a", "c", "e"}
        assert [row["id"] for row in await client.read("Measured", {"$limit": 5})] == ["a", "c", "e"]


async def test_json_that_is_no_record_is_left_out(make: Make) -> None:
    """The same for free-form records, in whose column anything may have been written."""
    store = make(table_name := "free_rows")
    await store.upsert({"id": "a", "n": 1})
    bad = ['{"id": "b", "n": 1e400}', '{"n": 1}', "[1]", '{"id": 1.5}', '{"id": 9007199254740993}', "7"]
    for number, text in enumerate(bad):
        await execute(store, sa.insert(store.table), {"id": f"x{number}", "data": text})
    if store._dialect == "sqlite":
        await execute(store, sa.insert(store.table), {"id": "y", "data": '{"id": "y", "n": NaN}'})
    await store.upsert({"id": "z", "n": 2})
    for query in ({}, {"$limit": 2}, {"$limit": 9}):
        assert [record["id"] for record in await store.read(query)] == ["a", "z"], table_name
        assert await texts_of(store, query) == ["a", "z"]


# ── Values that are kept, or refused ─────────────────────────────────────────────────────────────────────────────────


@dataclass
class Price:
    id: int | None = None
    amount: decimal.Decimal = decimal.Decimal(1)


@pytest.mark.parametrize("amount", ["0.123456789012345678", "9.50", "-0.00", "1E+3", "12345678901234567890.12345"])
async def test_decimals_keep_their_digits(make: Make, amount: str) -> None:
    """A write that was acknowledged has stored what was sent, whatever numbers the database has."""
    store = make(Price)
    stored = await store.upsert({"id": 1, "amount": amount})
    assert decimal.Decimal(stored["amount"]) == decimal.Decimal(amount)
    if store._dialect == "sqlite":
        assert stored["amount"] == amount
    assert await store.read({"amount": stored["amount"]}) == [stored]


@pytest.mark.parametrize(("amount", "is_kept"), [("9.5", True), ("9.50", True), ("9.999", False), ("0.0000001", False)])
async def test_a_decimal_that_a_column_rounds_is_refused(make: Make, amount: str, is_kept: bool) -> None:
    columns = sa.Column("id", sa.Integer, primary_key=True), sa.Column("amount", sa.Numeric(10, 2))
    store = make(sa.Table("rounded", sa.MetaData(), *columns))
    if is_kept:
        assert await store.upsert({"id": 1, "amount": amount}) == {"id": 1, "amount": "9.50"}
    else:
        assert await fault(store.upsert({"id": 1, "amount": amount})) == ("invalid", "amount")
        assert await store.read({}) == []


class Timed(Base):
    __tablename__ = "timed"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime.datetime | None]
    n: Mapped[int | None] = mapped_column(sa.BigInteger)


async def test_a_time_with_a_zone_is_not_put_where_its_zone_is_lost(make: Make) -> None:
    """A browser reads a time without zone as its own: what came with one must not come back without."""
    store = make(Timed)
    assert await fault(store.upsert({"id": 1, "at": "2026-01-01T12:00:00Z"})) == ("invalid", "at")
    assert (await store.upsert({"id": 1, "at": "2026-01-01T12:00:00"}))["at"] == "2026-01-01T12:00:00"
    assert await store.read({"at": "2026-01-01T12:00:00Z"}) == []
    assert len(await store.read({"at": "2026-01-01T12:00:00"})) == 1


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00+02:00", "9999-12-31T23:59:59-02:00"])
async def test_a_time_that_utc_does_not_have_is_refused(make: Make, at: str) -> None:
    """A value that cannot be converted is the client's fault, and named: not a failed handler."""
    assert await fault(make(Sorted).upsert({"id": "a", "plain": "p", "at": at})) == ("invalid", "at")


@pytest.mark.parametrize("number", [2**53, 2**63 - 1, -(2**63), 1234567890123456789])
async def test_integers_that_browsers_would_round_are_texts(make: Make, number: int) -> None:
    """An integer beyond 2^53 is sent, taken and asked for as text, so that it comes back as it was."""
    store = make(Timed)
    await store.open()
    await execute(store, sa.insert(store.table), [{"id": 1, "n": number}, {"id": 2, "n": 5}])
    sent = {"id": 1, "at": None, "n": str(number)}
    assert await store.get(1) == sent
    assert await store.upsert(sent) == sent
    assert await store.read({"n": str(number)}) == [sent]
    assert (await store.read({"$order": "-n", "$limit": 1, "$after": sent}))[:1] in ([], [await store.get(2)])
    assert await fault(store.upsert({"id": 1, "n": "5"})) == ("invalid", "n")


@pytest.mark.parametrize("number", [2**53 + 1, -(2**63)])
async def test_ids_that_browsers_would_round_are_texts(make: Make, number: int) -> None:
    columns = sa.Column("id", sa.BigInteger, primary_key=True), sa.Column("t", sa.Text)
    store = make(sa.Table("large_ids", sa.MetaData(), *columns))
    await store.open()
    await execute(store, sa.insert(store.table), [{"id": number, "t": "a"}, {"id": number + 1, "t": "b"}])
    assert [row["id"] for row in await store.read({})] == [str(number), str(number + 1)]
    assert await store.patch(str(number), {"t": "c"}) == {"id": str(number), "t": "c"}
    assert await store.get(str(number + 1)) == {"id": str(number + 1), "t": "b"}


# ── Types that are decorated ─────────────────────────────────────────────────────────────────────────────────────────


class Plain(sa.types.TypeDecorator[Any]):
    """As SQLModel's texts: it changes the column's declaration alone."""

    impl = sa.String
    cache_ok = True


class Listed(sa.types.TypeDecorator[Any]):
    """One that has values of its own."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str | None:
        return None if value is None else ",".join(value)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> list[str] | None:
        return None if value is None else value.split(",")


class Documents(sa.types.TypeDecorator[Any]):
    impl = sa.JSON
    cache_ok = True


class Decorated(Base):
    __tablename__ = "decorated"

    id: Mapped[str] = mapped_column(Plain(20), primary_key=True)
    name: Mapped[str | None] = mapped_column(Plain(5))
    words: Mapped[list[str] | None] = mapped_column(Listed)
    data: Mapped[Any | None] = mapped_column(Documents)


@pytest.mark.parametrize("value", [5, True, {"a": 1}, ["a"], 1.5, "too long"], ids=repr)
async def test_columns_of_decorated_types_are_checked(make: Make, value: Any) -> None:
    """What a decorator adds to a type does not hide it: the field is named as with the type itself."""
    store = make(Decorated)
    assert await fault(store.upsert({"id": "a", "name": value})) == ("invalid", "name")
    with pytest.raises(Reject, match="invalid"):
        await store.upsert({"id": "a", "words": 5})


async def test_a_type_with_values_of_its_own_keeps_them(make: Make) -> None:
    store = make(Decorated)
    full = {"id": "a", "name": "b", "words": ["x", "y"], "data": {"deep": [None, 1.5]}}
    assert await store.upsert(full) == full
    assert await store.read({"words": ["x", "y"]}) == [full]
    assert await store.read({"data": {"deep": [None, 1.5]}}) == [full]
    assert await fault(store.read({"$order": "words"})) == ("invalid", "$order")
    assert await fault(store.read({"$order": "data"})) == ("invalid", "$order")
    assert await store.read({"$order": "name"}) == [full]


# ── One order for database and browser ───────────────────────────────────────────────────────────────────────────────


class Grade(enum.Enum):
    """The names, the values and the declaration have an order each."""

    ZERO = "m"
    ALPHA = "z"
    MID = "a"


class Rank(enum.IntEnum):
    TEN = 10
    TWO = 2
    NINE = 9


class Sorted(Base):
    __tablename__ = "sorted"

    id: Mapped[str] = mapped_column(primary_key=True)
    text: Mapped[str | None] = mapped_column(sa.String().with_variant(sa.String(collation="NOCASE"), "sqlite"))
    plain: Mapped[str]
    number: Mapped[float | None]
    flag: Mapped[bool | None]
    grade: Mapped[Grade | None] = mapped_column(sa.Enum(Grade, name="kind_of_grade"))
    rank: Mapped[Rank | None]
    word: Mapped[str | None] = mapped_column(sa.Enum("b", "a", "c", name="words"))
    at: Mapped[datetime.datetime | None] = mapped_column(sa.DateTime(timezone=True))
    local: Mapped[datetime.datetime | None]
    day: Mapped[datetime.date | None]
    time: Mapped[datetime.time | None]
    key: Mapped[uuid.UUID | None]
    span: Mapped[datetime.timedelta | None]
    price: Mapped[decimal.Decimal | None] = mapped_column(sa.Numeric(10, 2))


SORTED: dict[str, list[Any]] = {
    "text": ["a", "B", "b", "A", "é", "e", "_", " ", "", "😀", "\ufffd", "aB", "a b", "10", "9", None],
    "plain": ["a", "B", "b", "A", "é", "e", "_", " ", "", "😀", "\ufffd", "aB", "a b", "10", "9", "-"],
    "number": [0.0, -0.0, 1, 1.5, 10, 9, -1e300, 1e-9, None, 1.0],
    "flag": [True, False, None, True],
    "grade": ["m", "z", "a", None, "z"],
    "rank": [10, 2, 9, None, 10],
    "word": ["b", "a", "c", None],
    "at": [
        "2026-01-01T12:00:00Z",
        "2026-01-01T12:00:00.500Z",
        "2026-01-01T13:00:00.25+01:00",
        "2026-01-01T14:00:00+03:00",
        "2026-01-01T12:00:00.000001Z",
        None,
    ],
    "local": ["2026-01-01T12:00:00", "2026-01-01T12:00:00.5", "2026-01-01T12:00:00.000001", "1999-12-31T00:00", None],
    "day": ["2026-01-10", "2026-01-09", "0999-01-01", None],
    "time": ["12:00", "12:00:00.5", "12:00:00.000001", "09:30", None],
    "key": [str(uuid.UUID(int=it)) for it in (1, 2**127, 10, 2**64)] + [None],
    "span": [10, 9, 0.5, None, 86400],
}


@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize("field", SORTED)
async def test_an_order_is_the_same_in_database_and_browser(make: Make, field: str, sign: str) -> None:
    """Pages are in the order of what is sent, as browsers and the other stores compare it, and hold each row once."""
    store, memory = make(Sorted), MemoryStore()
    for number, value in enumerate(SORTED[field]):
        await memory.upsert(await store.upsert({"id": f"r{number:02}", "plain": "p", field: value}))
    order = f"{sign}{field}"
    expected = [row["id"] for row in await memory.read({"$order": order})]
    assert [row["id"] for row in await store.read({"$order": order})] == expected
    for size in (1, 3):
        found: list[str] = []
        after = None
        while page := await store.read({"$order": order, "$limit": size, "$after": after}):
            found += [row["id"] for row in page]
            after = page[-1]
            assert len(found) <= len(expected)
        assert found == expected


async def test_ids_of_text_are_ordered_as_integers_then_by_code_points(make: Make) -> None:
    store = make(Measured)
    for id in ("b", "A", "a", "B", "é", "_", "10", "9", "😀"):
        await store.upsert({"id": id, "v": 1.0})
    found = [row["id"] for row in await store.read({"$limit": 20})]
    assert found == ["9", "10", "A", "B", "_", "a", "b", "é", "😀"]
    assert [row["id"] for row in await store.read({"$limit": 20, "$after": {"id": "B"}})] == found[
        found.index("B") + 1 :
    ]


async def test_an_order_that_browsers_cannot_see_is_refused(make: Make) -> None:
    """A decimal is sent as text, "10" before "9"."""
    store = make(Sorted)
    with pytest.raises(Reject, match="a decimal: it is sent as text"):
        await store.read({"$order": "price"})


async def test_a_value_is_compared_as_it_is_whatever_the_collation(make: Make) -> None:
    store = make(Sorted)
    await store.upsert({"id": "1", "text": "Ann", "plain": "p"})
    assert await store.read({"text": "ann"}) == []
    assert len(await store.read({"text": "Ann", "plain": "p"})) == 1


@pytest.mark.parametrize(
    ("column", "bad"),
    [("at", "soon"), ("grade", "NONE"), ("key", "not-a-key"), ("price", "much"), ("day", "2026-13-45")],
)
async def test_a_row_that_its_column_cannot_read_is_left_out(
    tmp_path: Path, column: str, bad: str, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite keeps anything in any column: what another program has put there fails its own row alone."""
    store = SQLStore(f"sqlite:///{tmp_path}/any.db", table=Sorted)
    rows = [{"id": f"r{number:04}", "plain": "p", "number": number} for number in range(1_200)]
    await store.open()
    await execute(store, sa.insert(store.table), rows)
    unreadable = {"r0000", "r0003", "r0700", "r1199"}
    await execute(store, sa.text(f"UPDATE sorted SET {column} = :bad WHERE id IN {tuple(unreadable)}"), {"bad": bad})
    expected = [row["id"] for row in rows if row["id"] not in unreadable]
    for query in ({}, {"$order": "number"}):
        assert [row["id"] for row in await store.read(query)] == expected
        assert await texts_of(store, query) == expected
    assert [row["id"] for row in await store.read({"$order": "number", "$limit": 5})] == expected[:5]
    assert await texts_of(store, {"$limit": 5, "$after": {"id": "r0002"}}) == expected[2:7]
    assert len([record for record in caplog.records if "cannot be sent" in record.message]) == len(unreadable)
    for work in (store.get("r0003"), store.patch("r0003", {"number": 1})):
        with pytest.raises(Reject, match="not_found: The record with the id 'r0003' cannot be read"):
            await work
    assert await store.delete("r0003")
    await store.close()


# ── Columns whose type converts values itself ────────────────────────────────────────────────────────────────────────


class Trimmed(sa.types.TypeDecorator[str]):
    impl = sa.String(5)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value.strip()


class Cents(sa.types.TypeDecorator[float]):
    impl = sa.Integer
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else round(value * 100)

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value / 100


class Packed(sa.types.TypeDecorator[Any]):
    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else orjson.dumps(value).decode()

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else orjson.loads(value)


class Converting(Base):
    __tablename__ = "converting"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(Trimmed)
    price: Mapped[float | None] = mapped_column(Cents)
    data: Mapped[Any] = mapped_column(Packed, nullable=True)


async def test_what_a_types_own_conversion_does_not_take_is_refused_with_its_field(make: Make) -> None:
    """Columns of a TypeDecorator are not checked, or the refusal does not name the field."""
    store = make(Converting)
    bad: list[tuple[str, Any]] = [("name", value) for value in (5, True, {"a": 1}, [1], "longer")]
    bad += [("price", "x"), ("price", {"a": 1})]
    for name, value in bad:
        assert await fault(store.upsert({"id": 1, name: value})) == ("invalid", name), value
    good: list[tuple[str, Any, Any]] = [
        ("name", "  ann   ", "ann"),
        ("price", 1.25, 1.25),
        ("data", [{"a": 1}], [{"a": 1}]),
    ]
    for name, value, kept in good:
        assert (await store.upsert({"id": 1, name: value}))[name] == kept
