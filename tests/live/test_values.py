"""Values that cannot be sent, or not as they are: a row leaves where it was, is left out of reads, or is text."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import re
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import JSON, BigInteger, DateTime, create_engine, delete, insert, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

import tests.live.django_project.settings  # noqa: F401 - sets Django up, which the imports below need

# isort: split
from asgiref.sync import sync_to_async
from django.db import connection as django_connection
from django.db import connections

from backsync_asgi import Backsync, Reject
from backsync_asgi.live import listen, live
from backsync_asgi.live.feed import plain
from backsync_asgi.live.postgres import exact
from backsync_asgi.testing import connect
from tests.live.django_project.models import Big as DjangoBig
from tests.postgres import PostgreSQL

HUGE = 1234567890123456789
SAFE = 2**53 - 1
INFINITE = float("inf")


class Base(DeclarativeBase):
    pass


class Big(Base):
    __tablename__ = "big"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    room: Mapped[int | None] = mapped_column(BigInteger)
    size: Mapped[float | None]
    tags: Mapped[Any] = mapped_column(JSON, nullable=True)


class Timed(Base):
    __tablename__ = "timed"
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime.datetime] = mapped_column(DateTime(timezone=True))
    local: Mapped[datetime.datetime]


@dataclass
class Table:
    """A table of `id`, `room`, `size` and `tags` that is live as the model Big; its changes are committed."""

    sync: Backsync
    add: Callable[..., Awaitable[None]]
    change: Callable[..., Awaitable[None]]
    remove: Callable[[int], Awaitable[None]]
    infinity: Any  # how a client gets an infinite number; None: not at all


@contextlib.asynccontextmanager
async def in_sqlalchemy(folder: Path, to_record: Any, key: Any) -> AsyncIterator[Table]:
    engine = create_engine(f"sqlite:///{folder}/big.sqlite")
    Base.metadata.create_all(engine)
    sync = Backsync()
    feed = live(sync.model("Big", key=key), Big, session=sessionmaker(engine), to_record=to_record)

    def run(statement: Any) -> None:
        with engine.begin() as connection:
            connection.execute(statement)

    async def add(**values: Any) -> None:
        run(insert(Big).values(**values))

    async def change(id: int, **values: Any) -> None:
        run(update(Big).where(Big.id == id).values(**values))

    async def remove(id: int) -> None:
        run(delete(Big).where(Big.id == id))

    try:
        yield Table(sync, add, change, remove, None)
    finally:
        feed.close()
        engine.dispose()


@contextlib.asynccontextmanager
async def in_django(folder: Path, to_record: Any, key: Any) -> AsyncIterator[Table]:
    def make() -> None:
        with django_connection.schema_editor() as editor:
            editor.create_model(DjangoBig)

    def drop() -> None:
        with django_connection.schema_editor() as editor:
            editor.delete_model(DjangoBig)
        connections.close_all()

    sync = Backsync()
    feed = live(sync.model("Big", key=key), DjangoBig, to_record=to_record)
    await sync_to_async(connections.close_all)()  # of the thread that writes: it connects once more, and is heard
    await sync_to_async(make)()

    async def change(id: int, **values: Any) -> None:
        await DjangoBig.objects.filter(pk=id).aupdate(**values)

    async def remove(id: int) -> None:
        await DjangoBig.objects.filter(pk=id).adelete()

    try:
        yield Table(sync, DjangoBig.objects.acreate, change, remove, None)
    finally:
        feed.close()
        await sync_to_async(drop)()


@contextlib.asynccontextmanager
async def in_postgres(server: PostgreSQL, to_record: Any, key: Any) -> AsyncIterator[Table]:
    connection = await asyncpg.connect(server.url)
    await connection.execute("DROP TABLE IF EXISTS big")
    await connection.execute("CREATE TABLE big (id bigint PRIMARY KEY, room bigint, size float8, tags jsonb)")

    def text(values: dict[str, Any]) -> list[Any]:
        return [json.dumps(value) if name == "tags" else value for name, value in values.items()]

    async def add(**values: Any) -> None:
        places = ", ".join(f"${number}" for number in range(1, len(values) + 1))
        await connection.execute(f"INSERT INTO big ({', '.join(values)}) VALUES ({places})", *text(values))

    async def change(id: int, **values: Any) -> None:
        sets = ", ".join(f"{name} = ${number}" for number, name in enumerate(values, 2))
        await connection.execute(f"UPDATE big SET {sets} WHERE id = $1", id, *text(values))

    async def remove(id: int) -> None:
        await connection.execute("DELETE FROM big WHERE id = $1", id)

    sync = Backsync()
    async with listen(sync.model("Big", key=key), server.url, table="big", to_record=to_record):
        yield Table(sync, add, change, remove, "Infinity")
    await connection.execute("DROP TABLE big")
    await connection.close()


Make = Callable[..., contextlib.AbstractAsyncContextManager[Table]]


def maker(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    def make(*, to_record: Any = None, key: Any = ()) -> Any:
        if request.param == "sqlalchemy":
            return in_sqlalchemy(tmp_path, to_record, key)
        if request.param == "django":
            return in_django(tmp_path, to_record, key)
        return in_postgres(request.getfixturevalue("postgresql"), to_record, key)

    return make


@pytest.fixture(params=["sqlalchemy", "django", "postgres"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes a live table of each kind."""
    return maker(request, tmp_path)


def record(id: Any, **fields: Any) -> dict[str, Any]:
    return {"id": id, "room": None, "size": None, "tags": None, **fields}


def value_of(row: Any, name: str) -> Any:
    return row[name] if isinstance(row, dict) else getattr(row, name)


# ── Rows that cannot be sent any more ────────────────────────────────────────────────────────────────────────────────


async def test_a_row_that_loses_its_key_leaves_the_room_and_comes_back(
    table: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """What makes a record unsendable after it was sent takes its older state from those who have it."""
    async with table(key="room") as live_table, connect(live_table.sync) as client:
        await live_table.add(id=1, room=1)
        await live_table.add(id=2, room=1)
        seen, other = await client.subscribe("Big", {"room": 1}), await client.subscribe("Big", {"room": 2})
        await live_table.change(1, room=None)
        await client.until(lambda: seen.keys() == {2})
        assert "Big 1 " in caplog.text
        await live_table.change(1, room=2)
        await client.until(lambda: other.keys() == {1})
        await live_table.add(id=3)  # was never in a room
        await live_table.change(3, room=2)
        await client.until(lambda: other.keys() == {1, 3})


async def test_a_row_of_which_no_record_can_be_made_leaves_and_is_not_read(
    table: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def to_record(row: Any) -> dict[str, Any]:
        size = value_of(row, "size")
        if size == 13:
            raise RuntimeError("planted")
        return {"size": {size} if size == 14 else size}

    async with table(to_record=to_record) as live_table, connect(live_table.sync) as client:
        for id in range(1, 5):
            await live_table.add(id=id, size=id)
        seen = await client.subscribe("Big")
        assert seen.keys() == {1, 2, 3, 4}
        await live_table.change(2, size=13)
        await live_table.change(3, size=14)
        await live_table.change(4, size=5)
        await client.until(lambda: seen.keys() == {1, 4} and seen[4]["size"] == 5)
        assert [row["id"] for row in await client.read("Big")] == [1, 4]
        for id in (2, 3):
            with pytest.raises(Reject, match="not_found"):
                await client.read("Big", {"id": id})
            assert re.search(f"The record '?{id}'? of Big cannot be sent", caplog.text)
        await live_table.change(2, size=2)
        await client.until(lambda: seen.keys() == {1, 2, 4})


async def test_one_row_that_json_cannot_carry_shuts_nobody_out(table: Make, caplog: pytest.LogCaptureFixture) -> None:
    """One row fails alone: in snapshots, reads, pages and changes."""
    async with table() as live_table, connect(live_table.sync) as early, connect(live_table.sync) as late:
        before = await early.subscribe("Big")
        for id in range(1, 8):
            await live_table.add(id=id, size=INFINITE if id in (2, 3) else 1.0)
        whole = {1, 4, 5, 6, 7} | ({2, 3} if live_table.infinity else set())
        await early.until(lambda: before.keys() == whole)
        after = await late.subscribe("Big")
        assert after.keys() == whole
        assert [row["id"] for row in await late.read("Big")] == sorted(whole)
        found = page = await late.read("Big", {"$limit": 2})
        while page := await late.read("Big", {"$limit": 2, "$after": page[-1]}):
            found += page
        assert [row["id"] for row in found] == sorted(whole)
        if live_table.infinity is None:
            assert len(await late.read("Big", {"$limit": 2})) == 2, "a page is full while there are more"
            assert caplog.text.count("The record 2 of Big cannot be sent") == 1, "once"
        else:
            assert after[2]["size"] == live_table.infinity
        await live_table.change(1, size=INFINITE)
        await live_table.change(2, size=2.0)
        await early.until(lambda: 2 in before and before[2]["size"] == 2.0)
        await late.until(lambda: after == before)
        assert (1 in after) == (live_table.infinity is not None)


@pytest.mark.parametrize("table", ["sqlalchemy"], indirect=True)
@pytest.mark.parametrize("whole", [False, True])
async def test_one_row_that_its_column_cannot_read_shuts_nobody_out(
    table: Make, whole: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A value that another program wrote and a column's type refuses: its row fails alone, in reads and in commits."""

    def to_record(row: Any) -> dict[str, Any]:
        return {"size": row.size}

    async with table(to_record=to_record if whole else None) as live_table, connect(live_table.sync) as early:
        before = await early.subscribe("Big")
        for id in range(1, 8):
            await live_table.add(id=id, size=1.0, tags=[id])
        await early.until(lambda: len(before) == 7)
        with contextlib.closing(sqlite3.connect(tmp_path / "big.sqlite")) as connection, connection:
            connection.execute("UPDATE big SET tags = '{not json' WHERE id IN (1, 4)")
        async with connect(live_table.sync) as late:
            after = await late.subscribe("Big")
            assert after.keys() == {2, 3, 5, 6, 7}
            assert [row["id"] for row in await late.read("Big")] == [2, 3, 5, 6, 7]
            page = {"$order": "id", "$limit": 2}
            assert [row["id"] for row in await late.read("Big", page)] == [2, 3]
            assert [row["id"] for row in await late.read("Big", {**page, "$after": {"id": 3}})] == [5, 6]
            with pytest.raises(Reject, match="not_found"):
                await late.read("Big", {"id": 4})
            assert caplog.text.count("The record 4 of Big cannot be sent") == 1, "once"
            await live_table.change(4, size=2.0)  # is committed, though it cannot be broadcast
            await early.until(lambda: 4 not in before)
            await live_table.change(4, tags=[])
            await late.until(lambda: 4 in after and after[4]["size"] == 2.0)
            await early.until(lambda: 4 in before)


# ── Numbers that browsers cannot hold ────────────────────────────────────────────────────────────────────────────────


async def test_integers_of_64_bits_are_text_wherever_they_stand(table: Make) -> None:
    """Snapshots, changes, reads and browsers agree on a value: what a number of 64 bits does not hold is text."""
    async with table() as live_table, connect(live_table.sync) as client:
        for id in (HUGE, HUGE + 1, SAFE, -HUGE):
            await live_table.add(id=id, room=id, tags={"n": [id, {"m": id}]})
        seen = await client.subscribe("Big")
        told = {id: id if id == SAFE else str(id) for id in (HUGE, HUGE + 1, SAFE, -HUGE)}
        expected = {it: record(it, room=it, tags={"n": [it, {"m": it}]}) for it in told.values()}
        assert seen == expected
        await live_table.change(HUGE, room=HUGE + 2)
        await client.until(lambda: seen[str(HUGE)]["room"] == str(HUGE + 2))
        assert await client.read("Big", {"id": str(HUGE)}) == seen[str(HUGE)]
        assert await client.read("Big", {"room": str(HUGE + 1)}) == [expected[str(HUGE + 1)]]
        assert await client.read("Big", {"room": str(SAFE)}) == [], "values of different kinds are different"
        ids, page = [], await client.read("Big", {"$limit": 1})
        while page:
            ids.append(page[0]["id"])
            page = await client.read("Big", {"$limit": 1, "$after": page[-1]})
        assert ids == [told[id] for id in sorted(told)]
        order = {"$order": "room", "$limit": 1}
        second = await client.read("Big", {**order, "$after": (await client.read("Big", order))[0]})
        assert [row["id"] for row in second] == [SAFE]
        await live_table.add(id=HUGE + 5)
        await client.until(lambda: str(HUGE + 5) in seen)
        await live_table.remove(HUGE + 1)
        await client.until(lambda: str(HUGE + 1) not in seen)


async def test_integers_of_64_bits_name_channels_as_text(table: Make) -> None:
    async with table(key="room") as live_table, connect(live_table.sync) as client:
        await live_table.add(id=1, room=HUGE)
        await live_table.add(id=2, room=7)
        seen, small = await client.subscribe("Big", {"room": str(HUGE)}), await client.subscribe("Big", {"room": 7})
        assert [*seen, *small] == [1, 2]
        await live_table.add(id=3, room=HUGE)
        await live_table.change(2, room=HUGE)
        await client.until(lambda: seen.keys() == {1, 2, 3} and not small)
        with pytest.raises(Reject, match="as text above 2\\^53"):
            await client.subscribe("Big", {"room": HUGE})


async def test_what_to_record_makes_has_no_number_that_a_browser_would_change(table: Make) -> None:
    def to_record(row: Any) -> dict[str, Any]:
        return {"room": int(value_of(row, "room")), "all": [int(value_of(row, "id"))], "id": value_of(row, "id")}

    async with table(to_record=to_record, key="room") as live_table, connect(live_table.sync) as client:
        seen = await client.subscribe("Big", {"room": str(HUGE)})
        await live_table.add(id=HUGE, room=HUGE)
        await client.until(lambda: seen == {str(HUGE): {"id": str(HUGE), "room": str(HUGE), "all": [str(HUGE)]}})
        assert await client.read("Big", {"room": str(HUGE)}) == [seen[str(HUGE)]]


async def test_a_handler_may_return_a_record_whose_id_has_64_bits(table: Make) -> None:
    async with table() as live_table, connect(live_table.sync) as client:
        seen = await client.subscribe("Big")

        @live_table.sync.model("Big").on("upsert")
        async def save(ctx: Any, data: dict[str, Any]) -> dict[str, Any]:
            if ctx.id is None:
                await live_table.add(id=HUGE, size=1.0)
                return {"id": HUGE, "size": 1.0}
            await live_table.change(int(data["id"]), size=data["size"])
            return data

        assert (await client.upsert("Big", {"size": 1.0}))["id"] == str(HUGE)
        await client.until(lambda: seen.keys() == {str(HUGE)})
        await client.patch("Big", {"id": str(HUGE), "size": 2.0})
        await client.until(lambda: seen == {str(HUGE): record(str(HUGE), size=2.0)})
        with pytest.raises(Reject, match="not_found"):
            await client.patch("Big", {"id": 5, "size": 2.0})


@given(st.recursive(st.integers() | st.text() | st.none(), lambda it: st.lists(it) | st.dictionaries(st.text(), it)))
def test_what_is_plain_holds_no_number_that_a_browser_would_change(value: Any) -> None:
    assert json.loads(json.dumps(plain(value)), parse_int=lambda digits: int(float(digits))) == plain(value)


@pytest.mark.parametrize("text", ["10.0.0.1", "::1", "10.0.0.0/8", "10.0.0.1/8"])
def test_addresses_are_text(text: str) -> None:
    made = ipaddress.ip_interface(text) if text.endswith("1/8") else ipaddress.ip_network(text)
    assert plain(made if "/" in text else ipaddress.ip_address(text)) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a":9007199254740991,"b":0.1,"c":-1.5e+300}', None),
        ('{"a":9007199254740993,"b":-9007199254740993}', '{"a":"9007199254740993","b":"-9007199254740993"}'),
        ('{"a": [1e400, 0.1234567890123456789]}', '{"a":["1e400","0.1234567890123456789"]}'),
        ('{"a":"1234567890123456789, 1e5"}', None),
        ('{"a":1.00000000000000000000}', '{"a":1.0}'),
        ('{"a":' + "9" * 5000 + "}", '{"a":"' + "9" * 5000 + '"}'),
    ],
)
def test_numbers_of_postgresql_that_browsers_cannot_hold_are_text(text: str, expected: str | None) -> None:
    assert json.loads(exact(text)) == json.loads(expected or text)


async def test_times_of_columns_with_a_zone_are_in_utc_whatever_the_database_keeps(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/timed.sqlite")
    Base.metadata.create_all(engine)
    sync = Backsync()
    feed = live(sync.model("Timed"), Timed, session=sessionmaker(engine))
    with sessionmaker(engine).begin() as session:
        session.add(
            Timed(
                id=1,
                at=datetime.datetime(2024, 1, 2, 3, tzinfo=datetime.UTC),
                local=datetime.datetime.fromisoformat("2024-01-02"),
            )
        )
    async with connect(sync) as client:
        seen = await client.subscribe("Timed")
        assert seen[1] == {"id": 1, "at": "2024-01-02T03:00:00+00:00", "local": "2024-01-02T00:00:00"}
        assert await client.read("Timed", {"at": seen[1]["at"]}) == [seen[1]]
    feed.close()
    engine.dispose()
    summer = datetime.timezone(datetime.timedelta(hours=2))
    assert plain(datetime.datetime(2024, 10, 27, 2, 30, tzinfo=summer)) == "2024-10-27T00:30:00+00:00"


async def test_numerics_keep_their_digits(postgresql: PostgreSQL) -> None:
    connection = await asyncpg.connect(postgresql.url)
    await connection.execute(
        # The columns r and t have the names of aliases that statements are likely to use.
        "DROP TABLE IF EXISTS exact; "
        "CREATE TABLE exact (id int PRIMARY KEY, n numeric, at timestamptz, r int, t int, row int, key int); "
        "INSERT INTO exact VALUES (1, 1e400, now()), (2, 0.1234567890123456789, now()), (3, 9.50, now()), "
        "(4, 'NaN', '2024-10-27 02:30:00+02')"
    )
    sync = Backsync()
    async with listen(sync.model("Exact"), postgresql.url, table="exact"), connect(sync) as client:
        seen = await client.subscribe("Exact")
        assert [seen[id]["n"] for id in range(1, 5)] == ["1" + "0" * 400, "0.1234567890123456789", 9.5, "NaN"]
        assert seen[4]["at"] == "2024-10-27T00:30:00+00:00", "in UTC, so that times sort as text"
        for id in range(1, 5):
            assert [row["id"] for row in await client.read("Exact", {"n": seen[id]["n"]})] == [id]
        found = page = await client.read("Exact", {"$order": "n", "$limit": 1})
        while page := await client.read("Exact", {"$order": "n", "$limit": 1, "$after": page[-1]}):
            found += page
        assert [row["id"] for row in found] == [2, 3, 1, 4]
        await connection.execute("UPDATE exact SET n = 2e400 WHERE id = 1")
        await client.until(lambda: seen[1]["n"] == "2" + "0" * 400)
    await connection.execute("DROP TABLE exact")
    await connection.close()
