"""Records in columns: tables that are there already, mapped classes, and tables made after a schema."""

from __future__ import annotations

import datetime
import decimal
import enum
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec
import pydantic
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from backsync_asgi import Reject
from backsync_asgi.stores import SQLStore, table_of
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
