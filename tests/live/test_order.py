"""Records have one order, in the browser, in stores and in live tables of each kind; knows no writes."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import tests.live.django_project.settings  # noqa: F401 - sets Django up, which the imports below need

# isort: split
from asgiref.sync import sync_to_async
from django.db import connections

from backsync_asgi import Backsync
from backsync_asgi.live import listen, live
from backsync_asgi.live.django import beyond, ordering
from backsync_asgi.stores import MemoryStore, SQLStore
from backsync_asgi.stores.base import Reader, Store
from tests.live.django_project.models import Coded as DjangoCoded
from tests.live.test_django_homes import alias_of
from tests.postgres import PostgreSQL

ROOT = Path(__file__).parents[2]
ORDERS = ["id", "-id", "same", ["-same"]]
EDGES = [
    *(
        "0",
        "1",
        "-1",
        "-0",
        "007",
        "+1",
        "1.0",
        "1e3",
        " 7",
        "7 ",
        "٣",
        "-",
        "--1",
        "c1",
        "c10",
        "c9",
        "é",
        "\uffff",
        "😀",
    ),
    *(str(sign * (2**power + step)) for sign in (1, -1) for power in (53, 63, 64) for step in (-2, -1, 0, 1, 2)),
    *("99", "100", "1000", "-99", "-100", "9" * 18, "9" * 19, "1" + "0" * 19, "9" * 100),
]


class Base(DeclarativeBase):
    pass


class Coded(Base):
    __tablename__ = "coded"
    code: Mapped[str] = mapped_column(sa.String(128), primary_key=True)
    same: Mapped[int]


class Counted(Base):
    __tablename__ = "counted"
    id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    same: Mapped[int]
    size: Mapped[int | None] = mapped_column(sa.BigInteger)


def random_ids() -> list[str]:
    """Texts of digits and letters, the same ones each time."""
    chance = random.Random(7)
    made = {"".join(chance.choices("0123456789-ab", k=chance.randint(1, 20))) for _ in range(150)}
    made |= {str(chance.randint(-(10**digits), 10**digits)) for digits in range(20) for _ in range(5)}
    return sorted({*made, *EDGES})


@pytest.fixture(scope="module")
def in_browser(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[dict[str, Any]], list[Any]], list[Any]]:
    """The ids of records in each of some orders, as the client sorts them."""
    node = shutil.which("node")
    assert node is not None, "Node is missing; see `make setup`."
    command = [node, str(ROOT / "tests" / "in_order.mjs"), str(ROOT / "client"), str(tmp_path_factory.mktemp("client"))]

    def sort(records: list[dict[str, Any]], orders: list[Any]) -> list[Any]:
        given = json.dumps({"records": records, "orders": orders})
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        found: list[Any] = json.loads(done.stdout)
        return found

    return sort


async def paged(reader: Reader, order: Any, size: int = 37) -> list[Any]:
    """The ids of all pages; the cursor of each is the last record of the one before."""
    found: list[Any] = []
    after = None
    while page := await reader.read({"$order": order, "$limit": size, "$after": after}):
        found += [record["id"] for record in page]
        after = page[-1]
        assert len(found) < 5_000
    return found


@pytest.fixture(params=["sqlite", "postgresql"])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    url = f"sqlite+aiosqlite:///{tmp_path}/order.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql").url.replace("postgresql:", "postgresql+asyncpg:")
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
    yield engine
    await engine.dispose()


async def test_ids_of_text_have_one_order(engine: AsyncEngine, in_browser: Any) -> None:
    """An order that the database and the browser see differently: ids that are integers, in columns of text."""
    ids = random_ids()
    expected = in_browser([{"id": id, "same": 1} for id in ids], ORDERS)
    stores: list[Store] = [
        MemoryStore(),
        SQLStore(engine=engine, table="free_order"),
        SQLStore(engine=engine, table=Coded),
    ]
    for store in stores:
        for id in ids:
            await store.upsert({"id": id, "same": 1})
    sync = Backsync()
    feed = live(sync.model("Coded"), Coded, session=engine)
    readers: list[Any] = [*stores, sync.model("Coded").reader]
    async with contextlib.AsyncExitStack() as stack:
        if engine.dialect.name == "postgresql":
            url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
            await stack.enter_async_context(listen(sync.model("Heard"), url, table="coded"))
            readers.append(sync.model("Heard").reader)
        for reader in readers:
            for order, sorted_ids in zip(ORDERS, expected, strict=True):
                assert await paged(reader, order) == sorted_ids, (reader, order)
    feed.close()
    async with engine.begin() as connection:
        await connection.execute(sa.text("DROP TABLE free_order"))


async def test_integers_of_a_table_have_one_order(engine: AsyncEngine, in_browser: Any) -> None:
    """An order that the database and the browser see differently: integers of which large ones are sent as text."""
    numbers = sorted({int(id) for id in random_ids() if id.removeprefix("-").isdecimal() and abs(int(id)) < 2**63})
    store = SQLStore(engine=engine, table=Counted)
    for number in numbers:
        await store.upsert({"id": number if abs(number) < 2**53 else str(number), "same": 1, "size": number})
    await store.upsert({"id": 5000, "same": 1, "size": None})
    orders = [*ORDERS, "size", "-size", ["same", "-size"]]
    records = await store.read({})
    expected = in_browser(records, orders)
    assert expected[0] == sorted(expected[0], key=int)
    memory = MemoryStore()
    for record in records:
        await memory.upsert(record)
    for reader in (store, memory):
        for order, sorted_ids in zip(orders, expected, strict=True):
            assert await paged(reader, order) == sorted_ids, (reader, order)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_ids_of_django_have_one_order(database: str, postgresql: PostgreSQL, in_browser: Any) -> None:
    """An order that the database and the browser see differently: ids that are integers, in columns of text."""
    ids = random_ids()
    expected = in_browser([{"id": id, "same": 1} for id in ids], ORDERS)

    def check(alias: str) -> None:
        with connections[alias].schema_editor() as editor:
            editor.create_model(DjangoCoded)
        objects = DjangoCoded.objects.using(alias)
        objects.bulk_create([DjangoCoded(code=id) for id in ids])
        fields = {"id": DjangoCoded._meta.pk, "same": DjangoCoded._meta.get_field("same")}
        vendor = connections[alias].vendor
        for order, sorted_ids in zip(ORDERS, expected, strict=True):
            name = order if isinstance(order, str) else order[0]
            descending, names = name.startswith("-"), dict.fromkeys((name.removeprefix("-"), "id"))
            places = [(fields[name], name, descending) for name in names]
            rows = objects.order_by(*(by for place in places for by in ordering(vendor, *place)))
            assert [row.code for row in rows] == sorted_ids, (vendor, order)
            for number in range(0, len(sorted_ids), 23):
                after = rows.filter(beyond(vendor, places, {"id": sorted_ids[number], "same": 1}))
                assert [row.code for row in after] == sorted_ids[number + 1 :], (vendor, order)
        with connections[alias].schema_editor() as editor:
            editor.delete_model(DjangoCoded)
        connections.close_all()

    if database == "sqlite":
        await sync_to_async(check)("default")
        return
    async with alias_of(postgresql) as alias:
        await sync_to_async(check)(alias)


async def test_floats_that_are_no_json_have_one_order(postgresql: PostgreSQL, in_browser: Any) -> None:
    """An order that the database and the browser see differently: infinities of a listened table are sent as text."""
    engine = create_async_engine(postgresql.url.replace("postgresql:", "postgresql+asyncpg:"))
    values = ", ".join(
        f"({id}, '{value}')" for id, value in enumerate(("1", "-Infinity", "1e300", "Infinity", "NaN", "-2"))
    )
    async with engine.begin() as connection:
        await connection.execute(sa.text("DROP TABLE IF EXISTS floats"))
        await connection.execute(sa.text("CREATE TABLE floats (id int PRIMARY KEY, same int DEFAULT 1, size float8)"))
        await connection.execute(sa.text(f"INSERT INTO floats (id, size) VALUES {values}"))
        await connection.execute(sa.text("INSERT INTO floats (id) VALUES (10), (11)"))
    sync = Backsync()
    async with listen(sync.model("Float"), postgresql.url, table="floats"):
        reader: Any = sync.model("Float").reader
        orders = ["size", "-size", ["same", "-size"]]
        for order, sorted_ids in zip(orders, in_browser(await reader.read({}), orders), strict=True):
            assert await paged(reader, order, size=2) == sorted_ids, order
    async with engine.begin() as connection:
        await connection.execute(sa.text("DROP TABLE floats"))
    await engine.dispose()
