"""SQLStore beside the contract: its set-up, several processes, and what it says when the database fails."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import asyncpg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from backsync_asgi import Backsync, Reject
from backsync_asgi.stores import SQLStore
from backsync_asgi.stores.base import Unsure, parse_query
from backsync_asgi.stores.sql import read_url
from backsync_asgi.stores.tables import select
from tests.forks import processes
from tests.postgres import PostgreSQL, postgres
from tests.servers import ROOT
from tests.stores.writer import write

DEADLINE = 5.0

Make = Callable[..., SQLStore]


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without tables of ours."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/store.db"
        return
    server: PostgreSQL = request.getfixturevalue("postgresql")
    yield server.url
    asyncio.run(drop_tables(server.url))


async def drop_tables(url: str) -> None:
    engine = create_async_engine(url.replace("postgresql:", "postgresql+asyncpg:"))
    async with engine.begin() as connection:
        await connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        await connection.execute(sa.text("CREATE SCHEMA public"))
    await engine.dispose()


@pytest.fixture
async def make(url: str) -> AsyncIterator[Make]:
    """`make(**options)`: a store in that database, each as another process would have it."""
    stores = []

    def make(**options: Any) -> SQLStore:
        stores.append(SQLStore(url, **options))
        return stores[-1]

    yield make
    for store in stores:
        await store.close()


def secrets() -> sa.Table:
    return sa.Table(
        "t", sa.MetaData(), sa.Column("id", sa.Text, primary_key=True), sa.Column("x", sa.Text, unique=True)
    )


async def refusal(work: Awaitable[Any]) -> Reject:
    with pytest.raises(Reject) as caught:
        await work
    return caught.value


# ── Set-up ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("missing", "name", "remedy"),
    [
        ("sqlalchemy", "SQLStore", 'pip install "backsync-asgi[sqlite]"'),
        ("greenlet", "SQLStore", 'pip install "backsync-asgi[sqlite]"'),
        ("aiosqlite", "SQLStore", 'pip install "backsync-asgi[sqlite]"'),
        ("sqlalchemy", "MemoryStore", None),
    ],
)
def test_a_missing_extra_is_named_where_it_is_needed(missing: str, name: str, remedy: str | None) -> None:
    program = f"""
import sys
sys.modules[{missing!r}] = None
from backsync_asgi.stores import {name} as Store
Store() if {name!r} == "MemoryStore" else Store("sqlite:///x.db")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    if remedy is None:
        assert done.returncode == 0, done.stderr
    else:
        assert remedy in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"url": "nothing"},
        {"url": "mysql://host/db"},
        {"url": "sqlite://"},
        {"url": "sqlite:///:memory:"},
        {"url": "sqlite:///x.db", "pool": 0},
        {"url": "sqlite:///x.db", "timeout": 0},
        {
            "url": "sqlite:///x.db",
            "index": ["x"],
            "table": sa.Table("t", sa.MetaData(), sa.Column("id", primary_key=True)),
        },
    ],
    ids=str,
)
def test_a_wrong_option_is_found_at_start(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="SQLStore"):
        SQLStore(**options)


def parameters_of(url: str) -> str:
    """The parameters of the session that a store has, as the server knows them; it must work."""

    async def ask() -> str:
        store = SQLStore(url, table="parameters")
        try:
            await store.upsert({"id": 1})
            assert await store.read({}) == [{"id": 1}]
            home = await store._home()
            async with home.reading() as connection:
                names = ("application_name", "search_path", "lock_timeout", "statement_timeout")
                return ";".join([str((await connection.exec_driver_sql(f"SHOW {name}")).scalar()) for name in names])
        finally:
            await store.close()

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ("sslmode=disable", 'backsync;"$user", public;5s;0'),
        ("sslmode=prefer&channel_binding=prefer&connect_timeout=10", 'backsync;"$user", public;5s;0'),
        ("application_name=web&target_session_attrs=read-write", 'web;"$user", public;5s;0'),
        ("options=-c%20statement_timeout%3D7s&keepalives=1&gssencmode=disable", 'backsync;"$user", public;5s;7s'),
        ("options=-c+search_path%3Dpublic,pg_catalog&sslmode=allow", "backsync;public,pg_catalog;5s;0"),
        ("ssl=disable&prepared_statement_cache_size=0", 'backsync;"$user", public;5s;0'),
        ("pgbouncer=true&connection_limit=1&sslmode=", 'backsync;"$user", public;0;0'),
        ("channel_binding=require&client_encoding=UTF8", 'backsync;"$user", public;5s;0'),
    ],
)
@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg"])
def test_a_url_of_postgresql_is_taken_as_databases_are_handed_out(
    postgresql: PostgreSQL, scheme: str, parameters: str, told: str
) -> None:
    """The kind of fault: parameters that every other program understands fail each request."""
    assert parameters_of(f"{postgresql.url.replace('postgresql', scheme, 1)}?{parameters}") == told


def test_a_url_of_postgresql_may_name_several_hosts_and_a_quoted_password(postgresql: PostgreSQL) -> None:
    host = postgresql.url.partition("@")[2].partition("/")[0]
    assert parameters_of(f"postgresql://tests:p%40s%2Fs%23@127.0.0.1:1,{host}/postgres").startswith("backsync")
    assert parameters_of(f"postgresql:///postgres?host=127.0.0.1&port={host.rpartition(':')[2]}&user=tests&password=x")


def test_a_url_may_name_a_socket_of_the_machine(tmp_path: Path) -> None:
    url, arguments, at = read_url(f"postgresql://ann:pw@/shop?host={tmp_path}&sslmode=disable", 5.0)
    assert url.drivername == "postgresql+asyncpg"
    assert unquote(arguments["dsn"]) == f"postgresql://ann:pw@/shop?host={tmp_path}&sslmode=disable"
    assert at == "postgresql://ann@/shop"


@pytest.mark.parametrize("mode", ["verify-full", "verify-ca"])
def test_certificates_are_checked_by_those_of_the_system_where_no_file_is_named(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for more in ("", "&sslrootcert=system"):
        _, arguments, _ = read_url(f"postgresql://ann@host/shop?sslmode={mode}{more}", 5.0)
        assert arguments["ssl"].verify_mode.name == "CERT_REQUIRED"
        assert arguments["ssl"].check_hostname is (mode == "verify-full")
        assert arguments["dsn"] == "postgresql://ann@host/shop"


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("postgresql://ann:secret@host/db?sslmode=maybe", "expected one of disable, allow"),
        ("postgresql://ann:secret@host/db?target_session_attrs=secret", "expected one of any, read-write"),
        ("postgresql://ann:secret@host/db?sslrootcert=/not/there.crt", "a file that is not there"),
        ("postgresql://ann:secret@host/db?connect_timeout=soon", "expected a number"),
        ("postgresql://ann:secret@host/db?conect_timeout=5", "the parameter conect_timeout"),
        ("postgresql://ann:secret@host/db?schema=shop", "options=-c%20NAME%3DVALUE"),
        ("postgresql://ann:sec@ret@host/db", "write them %23, %2F and %40"),
        ("postgresql://ann:sec/ret@host/db", "write them %23, %2F and %40"),
        ("postgresql://ann:sec#ret@host/db", "write them %23, %2F and %40"),
        ("postgresql://ann:secret@host:port/db", "expected such as 'name:5432'"),
        ("postgresql+psycopg://ann:secret@host/db", "without a driver's name"),
        ("sqlite://todo.db", "expected sqlite:///name.db"),
        ("sqlite:///~/todo.db", "os.path.expanduser"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_at_once_with_the_remedy(url: str, remedy: str) -> None:
    with pytest.raises(ValueError, match="SQLStore got") as caught:
        SQLStore(url)
    assert remedy in str(caught.value)
    assert "ann:" not in str(caught.value)


async def test_a_directory_that_is_missing_is_named_as_the_app_starts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sync = Backsync()
    sync.model("Todo", store=SQLStore(f"sqlite:///{tmp_path}/data/todo.db", timeout=0.5))
    with pytest.raises(RuntimeError, match=f"There is no directory {tmp_path}/data for the database. Create it"):
        async with sync.lifespan():
            pytest.fail("it has started")
    assert f"There is no directory {tmp_path}/data" in caplog.text


def test_an_error_never_shows_a_password() -> None:
    with pytest.raises(ValueError, match="mysql") as caught:
        SQLStore("mysql://ann:secret@host/db")
    assert "secret" not in str(caught.value)


def test_a_table_is_named_after_its_model_unless_it_has_a_name(sqlite: str) -> None:
    one, other = SQLStore(sqlite), SQLStore(sqlite, table="talk")
    for store in (one, other):
        store.bind("ChatMessage", "rev")
        assert store.version == "rev"
    assert (one.table.name, other.table.name) == ("chat_message", "talk")


def test_a_store_lives_in_any_event_loop_and_closes_with_it(url: str) -> None:
    store = SQLStore(url, table="loops")

    async def use(number: int) -> int:
        await store.upsert({"id": number})
        return len(await store.read({}))

    assert [asyncio.run(use(number)) for number in range(3)] == [1, 2, 3]
    assert len(store._homes) == 1, "it keeps nothing of loops that have ended"


async def test_the_table_is_made_as_the_app_starts(url: str) -> None:
    sync = Backsync()
    sync.model("ChatMessage", store=SQLStore(url))
    engine = create_async_engine(
        url.replace("sqlite:", "sqlite+aiosqlite:").replace("postgresql:", "postgresql+asyncpg:")
    )
    async with sync.lifespan(), engine.connect() as connection:
        assert await connection.run_sync(lambda it: sa.inspect(it).get_table_names()) == ["chat_message"]
    await engine.dispose()


@pytest.mark.parametrize("url", ["sqlite:////nowhere/at/all.db", "postgresql://nobody@127.0.0.1:1/nothing"])
async def test_a_database_that_is_not_there_is_told_as_the_app_starts(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    sync = Backsync()
    sync.model("Todo", store=SQLStore(url, timeout=1.0))
    with pytest.raises(RuntimeError, match="The store of Todo could not be opened"):
        async with sync.lifespan():
            pytest.fail("it has started")
    for thread in threading.enumerate():  # aiosqlite's says goodbye to the event loop, which must be there
        if "_connection_worker_thread" in thread.name:
            await asyncio.to_thread(thread.join, DEADLINE)
    assert f"The database of todo, {url.replace('sqlite:', 'sqlite+aiosqlite:')}, is not available" in caplog.text


async def test_many_processes_may_make_the_table_at_once(make: Make) -> None:
    stores = [make(table="many", index=["x"]) for _ in range(5)]
    await asyncio.gather(*(store.open() for store in stores))
    await asyncio.gather(*(store.upsert({"id": number}) for number, store in enumerate(stores)))
    assert len(await stores[0].read({})) == 5


async def test_an_engine_of_ones_own_stays_open(sqlite: str) -> None:
    engine = create_async_engine(sqlite.replace("sqlite:", "sqlite+aiosqlite:"))
    store = SQLStore(engine=engine, table="t")
    await store.upsert({"id": "a"})
    await store.close()
    async with engine.connect() as connection:
        assert (await connection.execute(sa.select(sa.func.count()).select_from(store.table))).scalar() == 1
    await engine.dispose()


async def test_sqlite_writes_ahead_and_to_the_disk(sqlite: str) -> None:
    store = SQLStore(sqlite)
    home = await store._home()
    async with home.reading() as connection:
        found = [
            (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous")
        ]
    assert found == ["wal", 2]
    await store.close()


# ── Several processes ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_of_two_writes_of_one_version_one_wins(make: Make) -> None:
    stores = [make(table="race") for _ in range(4)]
    for store in stores:
        store.bind("Race", "rev")
    await stores[0].upsert({"id": "a"})
    for version in range(1, 11):
        writes = [store.upsert({"id": "a", "by": number, "rev": version}) for number, store in enumerate(stores)]
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
        (won,) = [it for it in outcomes if isinstance(it, dict)]
        lost = [it for it in outcomes if isinstance(it, Reject)]
        assert [(it.code, it.details) for it in lost] == [("conflict", {"current": won})] * 3
        assert won["rev"] == version + 1


async def test_of_a_write_and_a_delete_of_one_version_one_wins(make: Make) -> None:
    writer, deleter = make(table="race"), make(table="race")
    for store in (writer, deleter):
        store.bind("Race", "rev")
    for number in range(20):
        id = f"r{number}"
        await writer.upsert({"id": id})
        work = [writer.upsert({"id": id, "x": 1, "rev": 1}), deleter.delete(id, 1)]
        written, deleted = await asyncio.gather(*work[:: 1 if number % 2 else -1], return_exceptions=True)
        written, deleted = (written, deleted) if number % 2 else (deleted, written)
        left = await writer.get(id)
        if deleted is True:
            assert left is None
            assert isinstance(written, Reject)
            assert (written.code, written.details) == ("conflict", {"current": None})
        else:
            assert left == written == {"id": id, "x": 1, "rev": 2}
            assert isinstance(deleted, Reject)
            assert (deleted.code, deleted.details) == ("conflict", {"current": left})


async def test_no_patch_is_lost_and_no_record_is_added_twice(make: Make) -> None:
    stores = [make(table="race") for _ in range(4)]
    for store in stores:
        store.bind("Race", "rev")
    await asyncio.gather(*(store.upsert({"id": "a"}) for store in stores for _ in range(3)))
    assert await stores[0].read({}) == [{"id": "a", "rev": 12}]
    await asyncio.gather(*(store.patch("a", {f"f{n}": n}) for n, store in enumerate(stores * 5)))
    assert await stores[0].get("a") == {"id": "a", "rev": 32, **{f"f{n}": n for n in range(20)}}


async def test_a_snapshot_is_of_one_moment(make: Make) -> None:
    store = make(table="moment")
    home = await store._home()
    async with home.writing() as connection:
        rows = [store.layout.values({"id": f"{number:04}"}, new=True) for number in range(1_200)]
        await connection.execute(sa.insert(store.table), rows)
    chunks = store.snapshot({})
    first = await anext(chunks)
    await store.upsert({"id": "0000", "late": True})
    await store.upsert({"id": "late"})
    rest = [text async for chunk in chunks for text in chunk]
    assert len(first) + len(rest) == 1_200
    assert not [text for text in rest if "late" in text]


# ── Speed ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "query",
    [
        {"$limit": 100, "$after": {"id": "a"}},
        {"$order": "-id", "$limit": 100},
        {"$order": "-at", "$limit": 100, "$after": {"id": "a", "at": 5}},
        {"room": "x", "$order": "at", "$limit": 100, "$after": {"id": "a", "at": None}},
        {"room": "x", "$limit": 100, "$order": "at"},
    ],
    ids=str,
)
async def test_a_page_is_found_by_an_index(sqlite: str, query: dict[str, Any]) -> None:
    """Whatever the number of rows: nothing is scanned that is not read, nothing is sorted."""
    store = SQLStore(sqlite, table="pages", index=["at", ("room", "at")])
    statement, rest = select(store.layout, parse_query(query))
    assert not rest
    home = await store._home()
    async with home.reading() as connection:
        compiled = statement.compile(dialect=home.engine.dialect, compile_kwargs={"render_postcompile": True})
        values = tuple(compiled.params[name] for name in compiled.positiontup or ())
        plan = (await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}", values)).all()
    steps = " / ".join(row[-1] for row in plan)
    assert "USING INDEX" in steps, steps
    assert "$after" not in query or "SEARCH" in steps, steps
    assert "TEMP B-TREE" not in steps, steps
    await store.close()


async def execute(store: SQLStore, statement: str) -> None:
    home = await store._home()
    async with home.writing() as connection:
        await connection.execute(sa.text(statement))


async def test_a_table_from_before_gets_the_index_that_pages_go_by(make: Make) -> None:
    """An order that the database and the browser see differently: the tables that are there follow the new one, too."""
    store = make(table="older")
    for id in ("10", "9", "a"):
        await store.upsert({"id": id})
    await execute(store, "DROP INDEX ix_older_id")
    await store.close()
    assert [record["id"] for record in await store.read({"$limit": 3})] == ["9", "10", "a"]
    await execute(store, "DROP INDEX ix_older_id")  # there is one again
    await store.close()


async def test_a_table_whose_index_cannot_be_made_is_read_and_written(
    postgresql: PostgreSQL, caplog: pytest.LogCaptureFixture
) -> None:
    """An upgrade that shuts people out: not every user of a database may make indexes."""
    store = SQLStore(postgresql.url, table="foreign_table")
    await store.upsert({"id": "10"})
    for statement in (
        "DROP INDEX ix_foreign_table_id",
        "DROP ROLE IF EXISTS reader",
        "CREATE ROLE reader LOGIN",
        "GRANT USAGE ON SCHEMA public TO reader",
        "GRANT SELECT, INSERT, UPDATE ON foreign_table TO reader",
    ):
        await execute(store, statement)
    other = SQLStore(postgresql.url.replace("tests@", "reader@"), table="foreign_table")
    await other.upsert({"id": "9"})
    assert [record["id"] for record in await other.read({"$limit": 3})] == ["9", "10"]
    assert "lacks the index ix_foreign_table_id" in caplog.text
    await other.close()
    for statement in ("DROP TABLE foreign_table", "DROP OWNED BY reader", "DROP ROLE reader"):
        await execute(store, statement)
    await store.close()


# ── Bad values ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_nul_is_refused_with_its_field(make: Make) -> None:
    store = make(table="nul")
    await store.upsert({"id": "a", "x": "\\u0000 is no NUL"})
    for fields, field in (
        ({"x": "a\0"}, "x"),
        ({"y": [{"z": "\0"}]}, "y"),
        ({"k\0": 1}, "k\0"),
        ({"o": {"\0": 1}}, "o"),
    ):
        for work in (store.upsert({"id": "b", **fields}), store.patch("a", fields)):
            error = await refusal(work)
            assert (error.code, error.details[0]["field"]) == ("invalid", field)
    assert (await refusal(store.upsert({"id": "\0"}))).code == "invalid"
    assert (await refusal(store.read({"x": "\0"}))).code == "invalid"
    assert (await refusal(store.read({"$order": "x", "$after": {"id": "a", "x": "\0"}}))).code == "invalid"
    assert await store.get("\0") is None
    assert await store.get("\ud800") is None
    assert await store.delete("\0") is False
    assert [record["id"] for record in await store.read({})] == ["a"]


# ── A database that fails ────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Somebody else writes all the while."""
    connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.close()


async def test_a_locked_database_is_unavailable_after_the_timeout_and_blocks_nobody(
    sqlite: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = SQLStore(sqlite, table="t", timeout=0.2)
    await store.upsert({"id": "a"})
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    with locked(sqlite):
        error = await refusal(store.upsert({"id": "b"}))
        assert await store.read({}) == [{"id": "a"}], "readers go on"
    ticking.cancel()
    assert error.code == "unavailable"
    assert "locked" not in f"{error.message}{error.details}"
    assert "database is locked" in caplog.text
    assert ticks >= 5
    assert await store.upsert({"id": "b"}) == {"id": "b"}
    await store.close()


async def test_a_write_that_is_given_up_leaves_the_store_in_order(sqlite: str) -> None:
    store = SQLStore(sqlite, table="t", timeout=0.3, pool=1)
    await store.upsert({"id": "a"})
    with locked(sqlite):
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await store.upsert({"id": "b"})
    assert await store.upsert({"id": "c"}) == {"id": "c"}
    assert await store.read({"id": "c"}) == [{"id": "c"}]
    await store.close()


async def test_a_write_that_is_cancelled_at_any_moment_leaves_no_lock(sqlite: str) -> None:
    store = SQLStore(sqlite, timeout=0.5)
    await store.open()
    kept = gc.isenabled()
    gc.disable()  # which would let the locks go of connections that nobody has
    try:
        for turns in range(40):
            write = asyncio.create_task(store.upsert({"id": turns}))
            for _ in range(turns):
                await asyncio.sleep(0)
                if turns % 2:
                    await asyncio.to_thread(bool)  # for as long as a statement may take
            write.cancel()
            await asyncio.wait([write])
            assert await store.upsert({"id": "next"}) == {"id": "next"}, turns
    finally:
        if kept:
            gc.enable()
    await store.close()


def engine_with(url: str, pragma: str) -> AsyncEngine:
    engine = create_async_engine(url.replace("sqlite:", "sqlite+aiosqlite:"))

    @sa.event.listens_for(engine.sync_engine, "connect")
    def set_up(connection: Any, _: object) -> None:
        connection.execute(f"PRAGMA {pragma}")

    return engine


async def test_a_full_disk_is_unavailable_and_what_was_acknowledged_stays(
    sqlite: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_with(sqlite, "max_page_count=40")
    store = SQLStore(engine=engine, table="t")
    kept = []
    with pytest.raises(Reject) as caught:
        for number in range(100):
            kept.append(await store.upsert({"id": number, "text": "x" * 4_000}))
    assert caught.value.code == "unavailable"
    assert "full" in caplog.text
    assert 10 < len(kept) < 50
    assert await store.read({}) == kept
    assert await store.delete(0)
    await store.upsert({"id": "again", "text": "x" * 2_000})
    await engine.dispose()


async def test_a_database_that_is_only_to_be_read_can_be_read(sqlite: str) -> None:
    store = SQLStore(sqlite, table="t")
    await store.upsert({"id": "a"})
    await store.close()
    engine = engine_with(sqlite, "query_only=ON")
    store = SQLStore(engine=engine, table="t")
    assert await store.read({}) == [{"id": "a"}]
    assert (await refusal(store.upsert({"id": "b"}))).code == "unavailable"
    await engine.dispose()


async def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"no database" * 1_000)
    for path in (tmp_path / "x.db", tmp_path / "no" / "folder.db", tmp_path):
        store = SQLStore(f"sqlite:///{path}", table="t")
        assert (await refusal(store.read({}))).code == "unavailable"
        await store.close()
    for thread in threading.enumerate():  # a connection that fails ends its thread without waiting for it
        if "_connection_worker_thread" in thread.name:
            await asyncio.to_thread(thread.join, 5.0)


async def test_a_database_that_comes_back_is_used_again(caplog: pytest.LogCaptureFixture) -> None:
    with postgres() as server:
        store = SQLStore(server.url, table="t", timeout=2.0)
        await store.upsert({"id": "a"})
        server.restart()
        assert await store.upsert({"id": "b"}) == {"id": "b"}, "nobody notices between two writes"
        server.restart()
        assert len(await store.read({})) == 2
        server.stop()
        for work in (
            store.upsert({"id": "c"}),
            store.read({}),
            store.get("a"),
            store.delete("a"),
            anext(store.snapshot({})),
        ):
            error = await refusal(work)
            assert (error.code, error.message) == ("unavailable", "The database is not available; try again.")
        assert "not available" in caplog.text
        server.start()
        assert await store.upsert({"id": "c"}) == {"id": "c"}
        await store.close()


async def test_what_a_crashing_database_has_acknowledged_is_kept() -> None:
    with postgres() as server:
        store = SQLStore(server.url, table="t", timeout=2.0)
        await store.open()
        acknowledged: list[int] = []
        refused: list[Reject] = []

        enough = asyncio.Event()

        async def write(start: int) -> None:
            for number in range(start, start + 2_000):
                try:
                    await store.upsert({"id": number})
                    acknowledged.append(number)
                    if len(acknowledged) == 50:
                        enough.set()
                except Reject as error:
                    refused.append(error)
                    return

        writers = [asyncio.create_task(write(10_000 * n)) for n in range(4)]
        await asyncio.wait_for(enough.wait(), 20)
        await asyncio.to_thread(server.kill)
        await asyncio.gather(*writers)
        server.start()
        assert {error.code for error in refused} == {"unavailable"}
        assert set(acknowledged) <= {record["id"] for record in await store.read({})}
        await store.close()


async def test_a_write_whose_commit_got_no_answer_says_that_it_may_be_stored(url: str) -> None:
    engine = create_async_engine(
        url.replace("sqlite:", "sqlite+aiosqlite:").replace("postgresql:", "postgresql+asyncpg:")
    )
    store = SQLStore(engine=engine, table="unanswered")
    await store.open()

    def lose_the_answer(connection: sa.Connection) -> None:
        connection.connection.commit()
        raise ConnectionResetError("cut")

    sa.event.listen(engine.sync_engine, "commit", lose_the_answer)
    with pytest.raises(Unsure) as doubt:
        await store.upsert({"id": "a"})
    assert doubt.value.code == "unavailable"
    sa.event.remove(engine.sync_engine, "commit", lose_the_answer)
    assert await store.get("a") == {"id": "a"}
    with pytest.raises(Reject) as refused:
        await store.patch("b", {})
    assert not isinstance(refused.value, Unsure)
    await engine.dispose()


def test_no_acknowledged_write_is_lost_when_the_process_is_killed(sqlite: str) -> None:
    number = -1
    for _ in range(20):
        acknowledged, sender = processes.Pipe(duplex=False)
        process = processes.Process(target=write, args=(sqlite, number + 1, sender))
        process.start()
        sender.close()
        for _ in range(random.randint(1, 30)):
            number = acknowledged.recv()
        process.kill()
        with contextlib.suppress(EOFError):
            while True:  # what it had acknowledged before it was killed
                number = acknowledged.recv()
        acknowledged.close()
        process.join()
        process.close()
        written = {record["id"]: record["n"] for record in asyncio.run(SQLStore(sqlite, table="written").read({}))}
        for told in range(max(0, number - 49), number + 1):
            assert written[told % 50] >= told


async def test_what_a_rule_of_the_database_refuses_is_no_outage(postgresql: PostgreSQL) -> None:
    """A write that can never succeed is `invalid`: after `unavailable` a client would send it for ever."""
    table = sa.Table("ruled", sa.MetaData(), sa.Column("id", sa.Text, primary_key=True), sa.Column("x", sa.Text))
    view = sa.Table("view_of_ruled", sa.MetaData(), sa.Column("id", sa.Text, primary_key=True), sa.Column("x", sa.Text))
    connection = await asyncpg.connect(postgresql.url)
    await connection.execute("""
        CREATE TABLE ruled (id text PRIMARY KEY, x text);
        CREATE INDEX ON ruled (x);
        CREATE VIEW view_of_ruled AS SELECT * FROM ruled WHERE x <> 'hidden' WITH CHECK OPTION;
        CREATE FUNCTION check_ruled() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN IF new.x = 'bad' THEN RAISE EXCEPTION 'planted'; END IF; RETURN new; END $$;
        CREATE TRIGGER check_ruled BEFORE INSERT OR UPDATE ON ruled FOR EACH ROW EXECUTE FUNCTION check_ruled();
    """)
    long = random.Random(1).randbytes(10_000).hex()
    stores = [SQLStore(postgresql.url, table=it) for it in (table, view)]
    indexed = SQLStore(postgresql.url, table="indexed", index=["x"])
    try:
        for store, value in ((stores[0], "bad"), (stores[0], long), (stores[1], "hidden"), (indexed, long)):
            assert (await refusal(store.upsert({"id": "a", "x": value}))).code == "invalid", value[:9]
            assert (await store.upsert({"id": "a", "x": "good"}))["x"] == "good"
    finally:
        for store in (*stores, indexed):
            await store.close()
        await connection.close()
        await drop_tables(postgresql.url)


async def test_what_the_database_says_is_for_the_log(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    store = make(table=secrets())
    await store.upsert({"id": "a", "x": "secret"})
    with caplog.at_level(logging.WARNING, "backsync"):
        error = await refusal(store.upsert({"id": "b", "x": "secret"}))
    assert (error.code, error.message) == ("invalid", "The record breaks a rule of its table.")
    assert "secret" in caplog.text
