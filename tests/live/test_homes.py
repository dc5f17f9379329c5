"""Where a write of SQLAlchemy went, and whether it was committed: other databases and schemas, and ways to commit."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, bindparam, create_engine, event, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from backsync_asgi import Backsync
from backsync_asgi.live import UnseenWrite, live
from backsync_asgi.live.home import Same, place_of
from backsync_asgi.live.sqlalchemy import LiveMapping
from backsync_asgi.testing import connect
from tests.live.heard import Heard
from tests.postgres import PostgreSQL


class Base(DeclarativeBase):
    pass


class Letter(Base):
    __tablename__ = "homed_letter"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str | None]


@contextmanager
def made_live(sync: Backsync, name: str, **options: Any) -> Iterator[LiveMapping]:
    """Live for the block only: the listeners are SQLAlchemy's, of the whole process."""
    feed = live(sync.model(name), Letter, **options)
    assert isinstance(feed, LiveMapping)
    try:
        yield feed
    finally:
        feed.close()


@contextmanager
def database(folder: Path, name: str, **options: Any) -> Iterator[Engine]:
    """An engine of a new file of SQLite with an empty table."""
    engine = create_engine(f"sqlite:///{folder}/{name}.sqlite", **options)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def a(tmp_path: Path) -> Iterator[Engine]:
    with database(tmp_path, "a") as engine:
        yield engine


@pytest.fixture
def b(tmp_path: Path) -> Iterator[Engine]:
    with database(tmp_path, "b") as engine:
        yield engine


@pytest.fixture
def sync() -> Backsync:
    return Backsync()


@pytest.fixture
def heard(sync: Backsync, monkeypatch: pytest.MonkeyPatch) -> Heard:
    return Heard(sync, monkeypatch, "Letter")


def add(bind: Engine | Connection, id: int, words: str = "x", **options: Any) -> None:
    with Session(bind, **options) as session:
        session.add(Letter(id=id, text=words))
        session.commit()


def write_in_every_way(bind: Engine | Connection) -> None:
    """Insert, update and delete the letters 1 to 3, by objects and by statements."""
    with Session(bind) as session:
        session.add(Letter(id=1, text="secret"))
        session.execute(insert(Letter), [{"id": 2, "text": "secret"}, {"id": 3, "text": "secret"}])
        session.commit()
        session.get_one(Letter, 1).text = "secret 2"
        session.execute(update(Letter).where(Letter.text == "secret").values(text="secret 2"))
        session.delete(session.get_one(Letter, 2))
        session.commit()


# ── Another database ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["engine", "sessionmaker", "binds", "scoped", "async", "function", "routing"])
async def test_a_database_for_each_tenant_keeps_its_records_to_itself(
    sync: Backsync, a: Engine, b: Engine, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A write is compared with where the model reads: other engines' rows are no records of this one's clients."""

    class Routing(Session):
        def get_bind(self, mapper: Any = None, **options: Any) -> Engine:
            return a

    async_engines: list[AsyncEngine] = []

    def async_of(engine: Engine) -> AsyncEngine:
        async_engines.append(create_async_engine(engine.url.set(drivername="sqlite+aiosqlite")))
        return async_engines[-1]

    ways: dict[str, Any] = {
        "engine": lambda engine: engine,
        "sessionmaker": sessionmaker,
        "binds": lambda engine: sessionmaker(binds={Letter: engine}),
        "scoped": lambda engine: scoped_session(sessionmaker(engine)),
        "async": async_of,
        "function": lambda engine: lambda: Session(engine),
        "routing": lambda engine: sessionmaker(class_=Routing) if engine is a else sessionmaker(engine),
    }
    add(a, 1, "of a")
    with made_live(sync, "A", session=ways[kind](a)), made_live(sync, "B", session=ways[kind](b)):
        async with connect(sync) as client:
            of_a, of_b = await client.subscribe("A"), await client.subscribe("B")
            write_in_every_way(b)
            add(a, 4, "of a")
            await client.until(lambda: 4 in of_a and of_b.keys() == {1, 3})
            assert of_a == {id: {"id": id, "text": "of a"} for id in (1, 4)}
            assert {letter["text"] for letter in of_b.values()} == {"secret 2"}
    for each in async_engines:
        await each.dispose()
    assert "not broadcast" not in caplog.text, "each was broadcast by the model of its database"


def test_what_is_written_elsewhere_is_logged_once(
    sync: Backsync, heard: Heard, a: Engine, b: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    with made_live(sync, "Letter", session=a):
        write_in_every_way(b)
        with b.begin() as connection:
            connection.execute(text("update homed_letter set text = 'raw'"))
        add(a, 7)
    assert heard.ids() == [("upsert", 7)]
    assert len([record for record in caplog.records if "not broadcast" in record.getMessage()]) == 1


def test_rows_of_another_database_cannot_be_said_to_have_changed(
    sync: Backsync, heard: Heard, a: Engine, b: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    with made_live(sync, "Letter", session=a) as feed, Session(b) as session:
        feed.changed(session, 1)
        session.commit()
    assert heard.take() == []
    assert "not broadcast" in caplog.text


def test_without_sessions_the_first_database_is_the_models(
    sync: Backsync, heard: Heard, a: Engine, b: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    with made_live(sync, "Letter"):
        add(a, 1)
        write_in_every_way(b)
        add(a, 5)
    assert heard.ids() == [("upsert", 1), ("upsert", 5)]
    assert "Give live() session=" in caplog.text


def test_engines_of_one_database_count_as_one(sync: Backsync, heard: Heard, a: Engine, tmp_path: Path) -> None:
    link = tmp_path / "link.sqlite"
    link.symlink_to(tmp_path / "a.sqlite")
    others = [
        a.execution_options(isolation_level="SERIALIZABLE"),
        create_engine(a.url, poolclass=NullPool),
        create_engine(f"sqlite:///{link}"),
        create_engine(f"sqlite:///file:{tmp_path}/a.sqlite?uri=true"),
    ]
    with made_live(sync, "Letter", session=a):
        for id, engine in enumerate(others, 1):
            add(engine, id)
            engine.dispose()
    assert heard.ids() == [("upsert", id) for id in range(1, 5)]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("postgresql+asyncpg://u@localhost/app", "postgresql://v:w@127.0.0.1:5432/app", Same.YES),
        ("postgresql+asyncpg://u@db.example/app", "postgresql+asyncpg://u@DB.example/app?host=x", Same.YES),
        ("postgresql+asyncpg:///app?host=db", "postgresql+asyncpg://db/app", Same.YES),
        ("postgresql+asyncpg://u@db/app", "postgresql+asyncpg://u@pooler:6432/app", Same.PERHAPS),
        ("postgresql+asyncpg://", "postgresql+asyncpg://u@db/app", Same.PERHAPS),
        ("postgresql+asyncpg://u@db/app", "postgresql+asyncpg://u@db/app2", Same.NO),
        ("sqlite:///a.db", "sqlite+aiosqlite:///./a.db", Same.YES),
        ("sqlite:///a.db", "sqlite:///b.db", Same.NO),
        ("sqlite://", "sqlite://", Same.PERHAPS),
        ("sqlite:///a.db", "postgresql+asyncpg://u@db/a.db", Same.NO),
    ],
)
def test_places_are_compared_by_what_the_urls_say(one: str, other: str, same: Same) -> None:
    class Fake:
        def __init__(self, url: str) -> None:
            from sqlalchemy import make_url

            self.url = make_url(url)

    first, second = place_of(Fake(one)), place_of(Fake(other))  # type: ignore[arg-type]
    assert first.compare(second) is second.compare(first) is same


async def test_where_it_cannot_be_known_the_models_own_sessions_are_asked(
    sync: Backsync, a: Engine, b: Engine, tmp_path: Path
) -> None:
    """An engine with a creator does not say where it leads: what the clients read goes out, whoever has written."""
    import sqlite3

    to_a, to_b = (
        create_engine("sqlite://", creator=lambda name=name: sqlite3.connect(tmp_path / name), poolclass=NullPool)
        for name in ("a.sqlite", "b.sqlite")
    )
    with made_live(sync, "Letter", session=sessionmaker(a)) as feed:
        async with connect(sync) as client:
            seen = await client.subscribe("Letter")
            add(to_b, 1, "secret")
            add(to_a, 2, "of a")
            await client.until(lambda: 2 in seen and not feed._again._tasks)
            assert seen == {2: {"id": 2, "text": "of a"}}


def test_a_factory_that_chooses_by_context_is_asked_without_one(
    sync: Backsync, heard: Heard, a: Engine, b: Engine
) -> None:
    tenant: contextvars.ContextVar[Engine] = contextvars.ContextVar("tenant", default=a)

    class ByTenant(Session):
        def get_bind(self, mapper: Any = None, **options: Any) -> Engine:
            return tenant.get()

    with made_live(sync, "Letter", session=sessionmaker(class_=ByTenant)):
        token = tenant.set(b)
        with ByTenant() as session:
            session.add(Letter(id=1, text="secret"))
            session.commit()
        tenant.reset(token)
        add(a, 2)
    assert heard.ids() == [("upsert", 2)]


def test_a_session_that_reads_from_a_replica_names_its_leader(
    sync: Backsync, heard: Heard, a: Engine, b: Engine
) -> None:
    class Routing(Session):
        def get_bind(self, mapper: Any = None, *, clause: Any = None, **options: Any) -> Engine:
            return a if self._flushing or (clause is not None and clause.is_dml) else b

    sessions = sessionmaker(class_=Routing)
    with made_live(sync, "Letter", session=sessions), sessions() as session:
        session.add(Letter(id=1))
        session.commit()
        session.execute(insert(Letter), [{"id": 2}])
        session.commit()
    assert heard.ids() == [("upsert", 1), ("upsert", 2)]


# ── Another schema ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_schemas_by_translation_are_kept_apart(sync: Backsync, heard: Heard, tmp_path: Path) -> None:
    """One engine, a schema for each tenant: by options of the engine, of the connection, or of one statement."""
    engine = create_engine(f"sqlite:///{tmp_path}/main.sqlite")

    @event.listens_for(engine, "connect")
    def attach(connection: Any, record: Any) -> None:
        for name in ("one", "two"):
            connection.execute(f"attach '{tmp_path}/{name}.sqlite' as {name}")

    one, two = (
        engine.execution_options(schema_translate_map={None: name}, isolation_level="SERIALIZABLE")
        for name in ("one", "two")
    )
    for each in (one, two):
        Base.metadata.create_all(each)
    with made_live(sync, "Letter", session=one):
        write_in_every_way(two)
        assert heard.take() == []
        add(one, 1, "of one")
        assert heard.take() == [("upsert", {"id": 1, "text": "of one"})]
        to_two = {"schema_translate_map": {None: "two"}}
        to_one = {"schema_translate_map": {None: "one"}}
        with Session(engine) as session:
            session.execute(update(Letter).values(text="of two"), execution_options=to_two)
            session.commit()
            assert heard.take() == []
            session.execute(
                update(Letter).where(Letter.text == "of one").values(text="changed"), execution_options=to_one
            )
            session.commit()
            assert heard.take() == [("upsert", {"id": 1, "text": "changed"})]
    engine.dispose()


async def test_schemas_by_search_path_are_kept_apart(postgresql: PostgreSQL, sync: Backsync) -> None:
    """Connections of one engine find a table in different schemas, by their search path."""
    engine = create_async_engine(postgresql.url.replace("postgresql:", "postgresql+asyncpg:"))
    sessions = async_sessionmaker(engine)
    async with engine.begin() as connection:
        for name in ("public", "tenant_b"):
            await connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {name}"))
            await connection.execute(text(f"SET LOCAL search_path TO {name}"))
            await connection.execute(text("DROP TABLE IF EXISTS homed_letter"))
            await connection.run_sync(Base.metadata.create_all, checkfirst=False)

    async def write(schema: str, *steps: Any) -> None:
        async with sessions.begin() as session:
            await session.execute(text(f"SET LOCAL search_path TO {schema}"))
            for step in steps:
                if isinstance(step, Letter):
                    session.add(step)
                    await session.flush()
                else:
                    await session.execute(step)

    with made_live(sync, "Letter", session=sessions) as feed:
        async with connect(sync) as client:
            await write("public", Letter(id=1, text="public"))
            await write("tenant_b", Letter(id=2, text="secret"))
            seen = await client.subscribe("Letter")
            assert seen.keys() == {1}
            await write("tenant_b", Letter(id=1, text="secret"), update(Letter).values(text="secret 2"))
            back = text("SET LOCAL search_path TO public")
            there = text("SET LOCAL search_path TO tenant_b")
            await write("public", Letter(id=3, text="public"), there, Letter(id=4, text="secret"), back)
            await write("public", Letter(id=5, text="public"), there, Letter(id=6, text="secret"))
            await client.until(lambda: 5 in seen and not feed._again._tasks)
            assert seen == {id: {"id": id, "text": "public"} for id in (1, 3, 5)}
    await engine.dispose()


# ── Ways to commit ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("where", ["engine", "options", "connection", "driver"])
def test_without_transactions_each_statement_is_broadcast_at_once(
    sync: Backsync, heard: Heard, tmp_path: Path, where: str
) -> None:
    """AUTOCOMMIT: no COMMIT is given, and a rollback takes nothing back."""
    options: dict[str, Any] = {"isolation_level": "AUTOCOMMIT"} if where == "engine" else {}
    with database(tmp_path, "auto", **options) as engine, made_live(sync, "Letter"):
        if where == "driver":
            event.listen(engine, "connect", lambda connection, record: setattr(connection, "isolation_level", None))
            engine.dispose()
        bind = engine.execution_options(isolation_level="AUTOCOMMIT") if where == "options" else engine
        with bind.connect() as connection:
            if where == "connection":
                connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.execute(insert(Letter).values(id=1, text="a"))
            if where != "driver":  # of which SQLAlchemy does not know: it is found at the end
                assert heard.ids() == [("upsert", 1)], "while the connection is held"
            connection.execute(update(Letter).where(Letter.id == 1).values(text="b"))
            connection.rollback()
            assert heard.take()[-1] == ("upsert", {"id": 1, "text": "b"})
            with Session(connection) as session:
                session.add(Letter(id=2, text="c"))
                session.flush()
                session.rollback()
            assert heard.ids() == [("upsert", 2)]
            with Session(connection) as session:
                session.add(Letter(id=3, text="d"))
                session.flush()
                session.add(Letter(id=1, text="again"))
                with pytest.raises(IntegrityError):
                    session.flush()
            assert ("upsert", 3) in heard.ids()
            connection.rollback()
        with engine.connect() as connection:
            assert connection.scalar(select(Letter.text).where(Letter.id == 3)) == "d"


def test_a_connection_is_heard_at_its_commit_and_not_when_it_is_given_back(
    sync: Backsync, heard: Heard, a: Engine
) -> None:
    with made_live(sync, "Letter", session=a), a.connect() as connection:
        connection.execute(insert(Letter).values(id=1))
        assert heard.take() == []
        connection.commit()
        assert heard.ids() == [("upsert", 1)]
        connection.detach()
        connection.execute(insert(Letter).values(id=2))
        connection.commit()
        assert heard.ids() == [("upsert", 2)]


def test_primary_keys_that_a_statement_changes_are_a_delete_and_an_upsert(
    sync: Backsync, heard: Heard, a: Engine
) -> None:
    table: Any = Letter.__table__
    moving = update(table).where(table.c.id == bindparam("old"))
    with made_live(sync, "Letter", session=a), Session(a) as session:
        session.add(Letter(id=1))
        session.commit()
        ways: list[Callable[[], Any]] = [
            lambda: session.execute(update(Letter).where(Letter.id == 1).values(id=2)),
            lambda: session.execute(moving, {"old": 2, "id": 3}),
            lambda: session.connection().execute(moving.values(id=bindparam("new")), [{"old": 3, "new": 4}]),
            lambda: session.query(Letter).update({"id": 5}),
        ]
        for number, way in enumerate(ways, 2):
            heard.take()
            way()
            session.commit()
            assert sorted(heard.ids()) == [("delete", number - 1), ("upsert", number)]
        with pytest.raises(UnseenWrite, match="an UPDATE that computes primary keys"):
            session.execute(update(Letter).values(id=Letter.id + 1))


async def test_autocommit_of_postgresql_is_heard_at_once(postgresql: PostgreSQL, sync: Backsync, heard: Heard) -> None:
    engine = create_async_engine(
        postgresql.url.replace("postgresql:", "postgresql+asyncpg:"), isolation_level="AUTOCOMMIT"
    )
    async with engine.connect() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
        with made_live(sync, "Letter"):
            await connection.execute(insert(Letter).values(id=1, text="a"))
            assert heard.take() == [("upsert", {"id": 1, "text": "a"})]
            async with AsyncSession(connection) as session:
                session.add(Letter(id=2, text="b"))
                await session.flush()
                assert heard.ids() == [("upsert", 2)]
                session.add(Letter(id=1, text="again"))
                with pytest.raises(IntegrityError):
                    await session.flush()
            await connection.execute(update(Letter).values(text="c"))
            await connection.rollback()
            assert heard.ids()[-2:] == [("upsert", 1), ("upsert", 2)]
        await connection.run_sync(Base.metadata.drop_all)
    await engine.dispose()


def test_a_commit_as_text_is_refused(sync: Backsync, heard: Heard, a: Engine) -> None:
    with made_live(sync, "Letter", session=a), a.connect() as connection:
        connection.execute(insert(Letter).values(id=1))
        with pytest.raises(UnseenWrite, match=r"a COMMIT that is given as text.*Use the commit\(\)"):
            connection.execute(text("commit"))
        connection.rollback()
        connection.execute(text("select 'commit'"))
    assert heard.take() == []


class Planted(Exception):
    """What a hook of another program raises."""


def fail(*_: Any) -> None:
    raise Planted


@pytest.mark.parametrize("insert_first", [True, False])
@pytest.mark.parametrize("how", ["session", "connection", "begin"])
def test_a_commit_that_another_hook_prevents_is_not_broadcast(
    sync: Backsync, heard: Heard, a: Engine, how: str, insert_first: bool
) -> None:
    """A hook of another program that fails between the order to COMMIT and the COMMIT."""
    with made_live(sync, "Letter", session=a):
        target: Any = Engine if insert_first else a
        event.listen(target, "commit", fail, insert=insert_first)
        try:
            with pytest.raises(Planted):
                if how == "session":
                    add(a, 1)
                else:
                    with a.connect() if how == "connection" else a.begin() as connection:
                        connection.execute(insert(Letter).values(id=1))
                        connection.commit()
        finally:
            event.remove(target, "commit", fail)
        assert ("upsert", 1) not in heard.ids()
        add(a, 2)
        assert heard.ids()[-1] == ("upsert", 2)


def test_a_commit_after_which_another_hook_fails_is_broadcast(sync: Backsync, heard: Heard, a: Engine) -> None:
    event.listen(Session, "after_commit", fail, insert=True)
    try:
        with made_live(sync, "Letter", session=a), pytest.raises(Planted):
            add(a, 1)
    finally:
        event.remove(Session, "after_commit", fail)
    assert heard.ids() == [("upsert", 1)]


async def test_what_a_hook_of_another_program_writes_in_the_commit_is_broadcast(sync: Backsync, a: Engine) -> None:
    def write(connection: Connection) -> None:
        connection.execute(update(Letter).where(Letter.id == 1).values(text="late"))

    with made_live(sync, "Letter", session=a):
        async with connect(sync) as client:
            seen = await client.subscribe("Letter")
            event.listen(a, "commit", write)
            try:
                add(a, 1)
            finally:
                event.remove(a, "commit", write)
            await client.until(lambda: seen.get(1, {}).get("text") == "late")


async def test_a_row_that_a_transaction_only_reads_does_not_hide_what_another_has_written(
    sync: Backsync, a: Engine
) -> None:
    """Tickets have the order of commits only for rows that both have locked; others are read once more."""
    add(a, 1, "old")
    ordered, go_on = threading.Event(), threading.Event()
    dialect: Any = a.dialect
    do_commit = type(dialect).do_commit

    def hold_up_and_commit(connection: Any) -> None:
        if threading.current_thread() is writer:
            ordered.set()
            assert go_on.wait(10)
        do_commit(dialect, connection)

    def write() -> None:
        with Session(a) as session:
            session.get_one(Letter, 1).text = "new"
            session.commit()

    with made_live(sync, "Letter", session=a) as feed:
        async with connect(sync) as client:
            seen = await client.subscribe("Letter")
            writer = threading.Thread(target=write)
            dialect.do_commit = hold_up_and_commit
            writer.start()
            assert await asyncio.to_thread(ordered.wait, 10)
            with Session(a) as session:
                feed.changed(session, 1)
                session.commit()
            go_on.set()
            await asyncio.to_thread(writer.join, 10)
            await client.until(lambda: seen[1]["text"] == "new")


def test_what_a_failed_commit_leaves_in_the_transaction_is_broadcast_if_it_is_committed_later(
    sync: Backsync, heard: Heard, a: Engine
) -> None:
    with made_live(sync, "Letter", session=a), a.connect() as connection:
        connection.execute(insert(Letter).values(id=1))
        event.listen(a, "commit", fail)
        with pytest.raises(Planted):
            connection.commit()
        event.remove(a, "commit", fail)
        connection.rollback()  # SQLAlchemy takes it for ended; the driver has not rolled it back
        connection.execute(insert(Letter).values(id=2))
        connection.commit()
        held = [("upsert", id) for id in connection.scalars(select(Letter.id).order_by(Letter.id))]
    assert sorted(heard.ids()) == sorted(held)


# ── Sessions of every kind ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["async_scoped_session", "function", "scoped_session", "context", "class", "partial"])
async def test_whatever_makes_sessions_may_be_named(sync: Backsync, a: Engine, kind: str) -> None:
    """What may be passed as session= works, or is refused at once."""
    async_engine = create_async_engine(a.url.set(drivername="sqlite+aiosqlite"))
    from asyncio import current_task

    @contextmanager
    def scope() -> Iterator[Session]:
        with Session(a) as session:
            yield session

    ways: dict[str, Any] = {
        "async_scoped_session": lambda: async_scoped_session(async_sessionmaker(async_engine), current_task),
        "function": lambda: lambda: AsyncSession(async_engine),
        "scoped_session": lambda: scoped_session(sessionmaker(a)),
        "context": lambda: scope,
        "class": lambda: sessionmaker(async_engine, class_=AsyncSession),  # type: ignore[call-overload]
        "partial": lambda: functools.partial(Session, a),
    }
    with made_live(sync, "Letter", session=ways[kind]()):
        async with connect(sync) as client:
            seen = await client.subscribe("Letter")
            add(a, 1)
            await client.until(lambda: 1 in seen)
            assert await client.read("Letter") == [{"id": 1, "text": "x"}]
    await async_engine.dispose()


def anything(value: Any) -> Any:
    """The same, of which a type checker knows nothing."""
    return value


async def coroutine() -> Any: ...


def generator() -> Any:
    yield


@pytest.mark.parametrize(
    ("session", "message"),
    [
        (coroutine, "a coroutine function"),
        (generator, "a generator function, such as a dependency of FastAPI"),
        (Session, "expected a sessionmaker"),
        (lambda engine: None, "which cannot be called without arguments"),
        (lambda: None, "makes None, expected one that makes a Session"),
        (lambda: create_engine("sqlite://"), "expected one that makes a Session"),
        (Session(), "expected a sessionmaker"),
        (
            anything(sessionmaker)(create_async_engine("sqlite+aiosqlite:///x.db")),
            "of an async engine.*Use async_sessionmaker",
        ),
        (create_async_engine("sqlite+aiosqlite:///x.db").sync_engine, "of an async engine.*Use async_sessionmaker"),
        (anything(async_sessionmaker)(create_engine("sqlite:///x.db")), "of a sync engine.*Use sessionmaker"),
        ("sqlite://", "expected a sessionmaker"),
    ],
)
def test_what_makes_no_sessions_is_refused_at_once(sync: Backsync, session: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        live(sync.model("Letter"), Letter, session=session)
