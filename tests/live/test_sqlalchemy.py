"""What SQLAlchemy commits is broadcast, and nothing else: sync and async sessions, SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import enum
import logging
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    Connection,
    Engine,
    ForeignKey,
    LargeBinary,
    PrimaryKeyConstraint,
    Table,
    bindparam,
    create_engine,
    delete,
    event,
    func,
    insert,
    join,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    column_property,
    mapped_column,
    relationship,
    sessionmaker,
)
from sqlalchemy.pool import StaticPool

from backsync_asgi import Backsync, Reject
from backsync_asgi.live import UnseenWrite, live
from backsync_asgi.live.sqlalchemy import LiveMapping
from backsync_asgi.testing import connect
from tests.live.heard import Heard
from tests.postgres import PostgreSQL


class Base(DeclarativeBase):
    pass


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Message(Base):
    __tablename__ = "message"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str | None]
    count: Mapped[int] = mapped_column(server_default="7", onupdate=8)


class Member(Base):
    __tablename__ = "member"
    member_id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    email: Mapped[str] = mapped_column(unique=True)
    nick: Mapped[str] = mapped_column(default="secret")
    color: Mapped[Color] = mapped_column(default=Color.RED)
    paid: Mapped[decimal.Decimal] = mapped_column(default=decimal.Decimal("1.50"))
    born: Mapped[datetime.date] = mapped_column(default=datetime.date(2012, 1, 2))
    notes: Mapped[str] = mapped_column(default="long", deferred=True)


class Account(Base):
    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    password_hash: Mapped[str]


class Page(Base):
    __tablename__ = "page"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    rev: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": rev}  # noqa: RUF012 - as SQLAlchemy wants it


class Stamped(Base):
    """With versions that are no numbers."""

    __tablename__ = "stamped"
    id: Mapped[int] = mapped_column(primary_key=True)
    stamp: Mapped[str] = mapped_column()
    __mapper_args__ = {"version_id_col": stamp, "version_id_generator": lambda version: uuid.uuid4().hex}  # noqa: RUF012


class Kept(Base):
    """With versions that the database makes."""

    __tablename__ = "kept"
    id: Mapped[int] = mapped_column(primary_key=True)
    rev: Mapped[int] = mapped_column(server_default="1")
    __mapper_args__ = {"version_id_col": rev, "version_id_generator": False}  # noqa: RUF012


class Animal(Base):
    __tablename__ = "animal"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}  # noqa: RUF012


class Dog(Animal):
    """In the same table."""

    bone: Mapped[str | None] = mapped_column(use_existing_column=True)
    __mapper_args__ = {"polymorphic_identity": "dog"}  # noqa: RUF012


class Fish(Animal):
    """In a table of its own."""

    __tablename__ = "fish"
    id: Mapped[int] = mapped_column(ForeignKey("animal.id"), primary_key=True)
    depth: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "fish"}  # noqa: RUF012


class Thread(Base):
    __tablename__ = "thread"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    posts: Mapped[list[Post]] = relationship(back_populates="thread", cascade="all, delete-orphan")


class Post(Base):
    __tablename__ = "post"
    id: Mapped[int] = mapped_column(primary_key=True)
    thread_id: Mapped[int] = mapped_column(ForeignKey("thread.id"))
    body: Mapped[str]
    thread: Mapped[Thread] = relationship(back_populates="posts")


class Album(Base):
    """Loaded with what it has, by a join."""

    __tablename__ = "album"
    id: Mapped[int] = mapped_column(primary_key=True)
    songs: Mapped[list[Song]] = relationship(lazy="joined")


class Song(Base):
    __tablename__ = "song"
    id: Mapped[int] = mapped_column(primary_key=True)
    album_id: Mapped[int] = mapped_column(ForeignKey("album.id"))


class Grade(Base):
    __tablename__ = "grade"
    __table_args__ = (PrimaryKeyConstraint("pupil", "subject"),)
    pupil: Mapped[int]
    subject: Mapped[str]


class Photo(Base):
    __tablename__ = "photo"
    id: Mapped[int] = mapped_column(primary_key=True)
    pixels: Mapped[bytes] = mapped_column(LargeBinary)


@contextmanager
def made_live(sync: Backsync, name: str, mapped: type[Any], **options: Any) -> Iterator[LiveMapping]:
    """Live for the block only: the listeners are SQLAlchemy's, of the whole process."""
    feed = live(sync.model(name), mapped, **options)
    assert isinstance(feed, LiveMapping)
    try:
        yield feed
    finally:
        feed.close()


# One way to write for all kinds of sessions: a function that gets a sync Session, and runs in it as it would in the
# application's own.

Work = Callable[[Session], Any]
Run = Callable[[Work], Any]


@pytest.fixture(params=["sync-sqlite", "async-sqlite", "async-postgres"])
async def run(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Run]:
    """Runs a function with a session of each kind; it commits by itself."""
    if request.param == "sync-sqlite":
        engine = create_engine(f"sqlite:///{tmp_path}/live.sqlite")
        Base.metadata.create_all(engine)
        sync_sessions = sessionmaker(engine)

        async def run_sync(work: Work) -> Any:
            with sync_sessions() as session:
                return work(session)

        yield run_sync
        engine.dispose()
        return
    if request.param == "async-sqlite":
        async_engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/live.sqlite")
    else:
        server: PostgreSQL = request.getfixturevalue("postgresql")
        async_engine = create_async_engine(server.url.replace("postgresql:", "postgresql+asyncpg:"))
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
    sessions = async_sessionmaker(async_engine)

    async def run_async(work: Work) -> Any:
        async with sessions() as session:
            return await session.run_sync(work)

    yield run_async
    await async_engine.dispose()


@pytest.fixture
def sync() -> Backsync:
    return Backsync()


@pytest.fixture
def heard(sync: Backsync, monkeypatch: pytest.MonkeyPatch) -> Iterator[Heard]:
    """What is published of Message, which is live."""
    heard = Heard(sync, monkeypatch, "Message")
    with made_live(sync, "Message", Message):
        yield heard


def commit(*objects: Any) -> Work:
    def work(session: Session) -> None:
        session.add_all(objects)
        session.commit()

    return work


# ── The unit of work ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_is_committed_is_broadcast_as_the_database_holds_it(run: Run, heard: Heard) -> None:
    def work(session: Session) -> None:
        message = Message(text="Tea")
        session.add(message)
        session.flush()
        assert heard.take() == [], "nothing before the commit"
        session.commit()
        assert heard.take() == [("upsert", {"id": 1, "text": "Tea", "count": 7})]
        message.text = "Milk"
        session.commit()
        assert heard.take() == [("upsert", {"id": 1, "text": "Milk", "count": 8})]
        session.delete(message)
        session.commit()
        assert heard.take() == [("delete", {"id": 1})]

    await run(work)


async def test_several_changes_in_a_transaction_are_one_broadcast_of_the_last_state(run: Run, heard: Heard) -> None:
    def work(session: Session) -> None:
        message = Message(text="a")
        session.add(message)
        session.flush()
        message.text = "b"
        session.flush()
        message.text = "c"
        session.commit()
        assert heard.take() == [("upsert", {"id": 1, "text": "c", "count": 8})]

    await run(work)


async def test_what_is_rolled_back_is_not_broadcast(run: Run, heard: Heard) -> None:
    def work(session: Session) -> None:
        session.add(Message(text="a"))
        session.flush()
        session.rollback()
        session.commit()
        session.add(Message(text="b"))
        session.flush()  # and left so

    await run(work)
    assert heard.take() == []


async def test_a_flush_that_fails_is_not_broadcast_and_hides_nothing_later(run: Run, heard: Heard) -> None:
    def work(session: Session) -> None:
        session.add(Message(id=1, text="a"))
        session.commit()
        session.expunge_all()
        session.add_all([Message(id=1, text="again"), Message(id=2, text="b")])
        with pytest.raises(IntegrityError):
            session.commit()
        session.rollback()
        assert heard.ids() == [("upsert", 1)]
        session.execute(update(Message).where(Message.text == "a").values(text="c"))
        session.commit()
        assert heard.take() == [("upsert", {"id": 1, "text": "c", "count": 8})]

    await run(work)


async def test_a_savepoint_that_is_rolled_back_takes_only_its_own_changes_along(run: Run, heard: Heard) -> None:
    def work(session: Session) -> None:
        session.add(Message(id=1))
        with session.begin_nested():
            session.add(Message(id=2))
        savepoint = session.begin_nested()
        session.add(Message(id=3))
        session.flush()
        with session.begin_nested():
            session.add(Message(id=4))
        savepoint.rollback()
        session.add(Message(id=5))
        session.commit()
        assert heard.ids() == [("upsert", 1), ("upsert", 2), ("upsert", 5)]

    await run(work)


async def test_what_comes_and_goes_in_one_transaction_ends_as_deleted(run: Run, heard: Heard) -> None:
    def work(session: Session) -> None:
        message = Message(id=1)
        session.add(message)
        session.flush()
        session.delete(message)
        session.commit()
        assert heard.take() == [("delete", {"id": 1})]

    await run(work)


async def test_an_object_that_was_looked_at_and_not_changed_is_not_broadcast(run: Run, heard: Heard) -> None:
    def work(session: Session) -> None:
        message = Message(text="a")
        session.add(message)
        session.commit()
        heard.take()
        message.text = str(message.text)
        session.commit()
        assert heard.take() == []

    await run(work)


async def test_a_primary_key_that_changes_is_a_delete_and_an_upsert(run: Run, heard: Heard) -> None:
    def work(session: Session) -> None:
        message = Message(id=1, text="a")
        session.add(message)
        session.commit()
        message.id = 2
        session.commit()
        assert heard.ids() == [("upsert", 1), ("delete", 1), ("upsert", 2)]

    await run(work)


async def test_subclasses_count_in_the_same_table_and_in_their_own(
    run: Run, sync: Backsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard(sync, monkeypatch, "Animal")

    def work(session: Session) -> None:
        fish = Fish(id=3, name="Wanda", depth=5)
        session.add_all([Animal(id=1, name="Ann"), Dog(id=2, name="Rex", bone="old"), fish])
        session.commit()
        assert heard.take() == [
            ("upsert", {"id": 1, "kind": "animal", "name": "Ann"}),
            ("upsert", {"id": 2, "kind": "dog", "name": "Rex", "bone": "old"}),
            ("upsert", {"id": 3, "kind": "fish", "name": "Wanda", "depth": 5}),
        ]
        fish.depth = 6
        session.commit()
        session.execute(update(Fish).values(depth=7))
        session.commit()
        expected = {"id": 3, "kind": "fish", "name": "Wanda"}
        assert heard.take() == [("upsert", {**expected, "depth": 6}), ("upsert", {**expected, "depth": 7})]

    with made_live(sync, "Animal", Animal):
        await run(work)


async def test_cascades_of_the_unit_of_work_are_seen(run: Run, sync: Backsync, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard(sync, monkeypatch, "Post")

    def work(session: Session) -> None:
        thread = Thread(id=1, title="t", posts=[Post(id=1, body="a"), Post(id=2, body="b")])
        session.add(thread)
        session.commit()
        thread.posts.pop(0)  # an orphan
        session.commit()
        session.delete(thread)
        session.commit()
        assert heard.ids() == [("upsert", 1), ("upsert", 2), ("delete", 1), ("delete", 2)]

    with made_live(sync, "Post", Post):
        await run(work)


async def test_to_record_may_use_relationships(run: Run, sync: Backsync, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard(sync, monkeypatch, "Post")
    with made_live(sync, "Post", Post, to_record=lambda post: {"body": post.body, "thread": post.thread.title}):
        await run(commit(Thread(id=1, title="t", posts=[Post(id=1, body="a")])))
    assert heard.take() == [("upsert", {"id": 1, "body": "a", "thread": "t"})]


async def test_values_are_as_json_carries_them(run: Run, sync: Backsync, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard(sync, monkeypatch, "Member")
    key = uuid.UUID(int=1)
    with made_live(sync, "Member", Member):
        await run(commit(Member(member_id=key, email="a")))
    (change,) = heard.take()
    assert change[0] == "upsert"
    paid = change[1].pop("paid")
    assert isinstance(paid, str)
    assert decimal.Decimal(paid) == decimal.Decimal("1.5")
    assert change[1] == {
        "id": str(key),
        "member_id": str(key),
        "email": "a",
        "nick": "secret",
        "color": "red",
        "born": "2012-01-02",
    }


async def test_fields_keep_the_others_in_the_house(run: Run, sync: Backsync, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard(sync, monkeypatch, "Member")
    with made_live(sync, "Member", Member, fields=["email"]):
        await run(commit(Member(member_id=uuid.UUID(int=1), email="a")))
    assert heard.take() == [("upsert", {"id": str(uuid.UUID(int=1)), "email": "a"})]


# ── What goes past the unit of work ──────────────────────────────────────────────────────────────────────────────────


async def test_statements_over_many_rows_are_covered(run: Run, heard: Heard) -> None:
    def work(session: Session) -> None:
        session.execute(insert(Message), [{"text": "a"}, {"text": "b"}])
        session.commit()
        assert heard.take() == [
            ("upsert", {"id": 1, "text": "a", "count": 7}),
            ("upsert", {"id": 2, "text": "b", "count": 7}),
        ]
        session.execute(update(Message).where(Message.text == "b").values(text=func.upper(Message.text)))
        session.commit()
        assert heard.take() == [("upsert", {"id": 2, "text": "B", "count": 8})]
        session.execute(update(Message), [{"id": 1, "text": "c"}, {"id": 2, "text": "d"}])
        session.commit()
        assert [data["text"] for _, data in heard.take()] == ["c", "d"]
        session.query(Message).filter(Message.id < 2).update({"text": "e"})
        session.commit()
        assert heard.ids() == [("upsert", 1)]
        session.execute(delete(Message).where(Message.text == "e"))
        session.query(Message).filter_by(text="d").delete()
        session.commit()
        assert heard.ids() == [("delete", 1), ("delete", 2)]

    await run(work)


async def test_the_old_bulk_methods_are_covered(run: Run, heard: Heard) -> None:
    def work(session: Session) -> None:
        session.bulk_save_objects([Message(text="a"), Message(text="b")])
        session.bulk_insert_mappings(Message, [{"text": "c"}])
        session.bulk_update_mappings(Message, [{"id": 2, "text": "d"}])
        session.commit()
        assert [(data["id"], data["text"]) for _, data in heard.take()] == [(1, "a"), (2, "d"), (3, "c")]

    await run(work)


async def test_core_statements_are_covered_in_sessions_and_on_connections(run: Run, heard: Heard) -> None:
    table = Message.__table__
    renamed = update(table).where(table.c.id == bindparam("which")).values(text=bindparam("new"))  # type: ignore[arg-type]

    def work(session: Session) -> None:
        session.execute(insert(table), {"text": "a"})  # type: ignore[arg-type]
        session.connection().execute(insert(table).values(text="b"))  # type: ignore[arg-type]
        session.connection().execute(renamed, [{"which": 1, "new": "c"}, {"which": 2, "new": "d"}])
        session.commit()
        assert [(data["id"], data["text"]) for _, data in heard.take()] == [(1, "c"), (2, "d")]

    await run(work)


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_a_connection_without_a_session_is_heard_when_it_ends(ending: str, heard: Heard, tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/live.sqlite")
    Base.metadata.create_all(engine)
    with engine.connect() as connection:
        connection.execute(insert(Message).values(text="a"))
        getattr(connection, ending)()
    engine.dispose()
    assert heard.ids() == ([("upsert", 1)] if ending == "commit" else [])


async def test_inserts_on_conflict_are_covered(run: Run, sync: Backsync, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard(sync, monkeypatch, "Member")
    key, other = uuid.UUID(int=1), uuid.UUID(int=2)

    def work(session: Session) -> None:
        dialect: Any = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
        session.add(Member(member_id=key, email="a"))
        session.commit()
        heard.take()
        upsert = dialect.insert(Member).on_conflict_do_update(index_elements=["email"], set_={"nick": "new"})
        session.execute(upsert, [{"member_id": other, "email": "a"}, {"member_id": other, "email": "b"}])
        session.commit()
        assert [(data["id"], data["nick"]) for _, data in heard.take()] == [
            (str(key), "new"),
            (str(other), "secret"),
        ]
        values = {"member_id": key, "email": "c"}
        session.execute(
            dialect.insert(Member).values(values).on_conflict_do_update(index_elements=["member_id"], set_=values)
        )
        session.commit()
        assert [(data["id"], data["email"]) for _, data in heard.take()] == [(str(key), "c")]
        session.execute(upsert.values(member_id=uuid.UUID(int=3), email="c", nick="late"))
        session.execute(dialect.insert(Member).values(values).on_conflict_do_nothing())
        session.commit()
        assert [(data["id"], data["nick"]) for _, data in heard.take()] == [(str(key), "new")]

    with made_live(sync, "Member", Member):
        await run(work)


async def test_inserts_of_several_values_are_covered_and_tell_their_keys(run: Run, heard: Heard) -> None:
    def work(session: Session) -> None:
        session.execute(insert(Message).values([{"text": "a"}, {"text": "b"}]))
        made: Any = session.execute(insert(Message).values(text="c"))
        assert made.inserted_primary_key == (3,)
        session.commit()
        assert [(data["id"], data["text"]) for _, data in heard.take()] == [(1, "a"), (2, "b"), (3, "c")]

    await run(work)


async def test_an_insert_whose_rows_cannot_be_known_is_refused(run: Run, heard: Heard) -> None:
    def work(session: Session) -> None:
        with pytest.raises(UnseenWrite, match="an INSERT whose primary keys cannot be known. Use add_all"):
            session.execute(insert(Message).from_select(["text"], select(Thread.title)))
        session.rollback()

    await run(work)


async def test_returning_gives_its_rows_and_is_covered(run: Run, heard: Heard) -> None:
    def work(session: Session) -> None:
        made = session.scalars(insert(Message).returning(Message), [{"text": "a"}, {"text": "b"}]).all()
        assert [message.text for message in made] == ["a", "b"]
        assert session.execute(
            update(Message).where(Message.id == 2).values(text="c").returning(Message.text)
        ).all() == [("c",)]
        session.commit()
        assert [data["text"] for _, data in heard.take()] == ["a", "c"]

    await run(work)


@pytest.mark.parametrize(
    "statement",
    [
        "update message set text = 'x'",
        'DELETE FROM "message"',
        "insert into message (text) values ('x')",
        "with gone as (select 1) delete from message where id in (select * from gone)",
    ],
)
async def test_text_that_writes_the_table_is_refused_with_the_remedy(run: Run, heard: Heard, statement: str) -> None:
    def work(session: Session) -> None:
        with pytest.raises(UnseenWrite, match=r"Message is live.*backsync_bulk.*changed\(session"):
            session.execute(text(statement))
        session.rollback()
        with pytest.raises(UnseenWrite):
            session.connection().exec_driver_sql(statement)

    await run(work)
    assert heard.take() == []


async def test_what_passes_unseen_may_be_said(run: Run, sync: Backsync, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard(sync, monkeypatch, "Message")

    def work(session: Session) -> None:
        session.add(Message(id=1, text="a"))
        session.commit()
        heard.take()
        session.execute(text("update message set text = 'b'"), execution_options={"backsync_bulk": "ignore"})
        session.commit()
        assert heard.take() == []
        feed.changed(session, 1, 2)
        session.commit()
        assert heard.take() == [("upsert", {"id": 1, "text": "b", "count": 7}), ("delete", {"id": 2})]

    with made_live(sync, "Message", Message) as feed:
        await run(work)


async def test_bulk_ignore_lets_everything_pass_but_the_unit_of_work(
    run: Run, sync: Backsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard(sync, monkeypatch, "Message")

    def work(session: Session) -> None:
        session.execute(insert(Message), [{"text": "a"}])
        session.execute(text("update message set text = 'x'"))
        session.add(Message(text="b"))
        session.commit()
        assert heard.ids() == [("upsert", 2)]

    with made_live(sync, "Message", Message, bulk="ignore"):
        await run(work)


async def test_a_hook_amid_a_flush_that_writes_by_itself_is_seen(run: Run, heard: Heard) -> None:
    def count(mapper: Any, connection: Connection, target: Thread) -> None:
        connection.execute(update(Message).where(Message.id == 1).values(count=Message.count + 1))

    def work(session: Session) -> None:
        session.add(Message(id=1))
        session.commit()
        session.add(Thread(id=1, title="t"))
        session.commit()
        assert [data["count"] for _, data in heard.take()] == [7, 8]

    event.listen(Thread, "after_insert", count)
    try:
        await run(work)
    finally:
        event.remove(Thread, "after_insert", count)


# ── Order and failure ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_thread_that_comes_back_late_from_its_commit_does_not_bring_back_the_older_state(
    heard: Heard, tmp_path: Path
) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/live.sqlite")
    Base.metadata.create_all(engine)
    sessions = sessionmaker(engine)
    with sessions() as session:
        session.add(Message(id=1, text="0"))
        session.commit()
    heard.take()
    committed, go_on = threading.Event(), threading.Event()
    dialect: Any = engine.dialect
    do_commit = type(dialect).do_commit

    def commit_and_hold_up(connection: Any) -> None:
        do_commit(dialect, connection)
        if threading.current_thread() is late:
            committed.set()
            assert go_on.wait(10)

    def write_late() -> None:
        with engine.connect() as connection:
            connection.execute(update(Message).values(text="older"))
            connection.commit()

    late = threading.Thread(target=write_late)
    dialect.do_commit = commit_and_hold_up
    late.start()
    assert committed.wait(10)
    with sessions() as session:
        session.execute(update(Message).values(text="newer"))
        session.commit()
    go_on.set()
    late.join(10)
    engine.dispose()
    assert [data["text"] for _, data in heard.take()] == ["newer"]


def test_a_session_within_a_transaction_of_somebody_else_waits_for_its_end(heard: Heard, tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/live.sqlite")
    Base.metadata.create_all(engine)
    for ending in ("rollback", "commit"):
        with engine.connect() as connection:
            outer = connection.begin()
            with Session(connection, join_transaction_mode="create_savepoint") as session:
                session.add(Message(text=ending))
                session.commit()
            assert heard.take() == []
            getattr(outer, ending)()
        assert [data["text"] for _, data in heard.take()] == (["commit"] if ending == "commit" else [])
    engine.dispose()


def test_a_commit_that_fails_is_not_broadcast(heard: Heard, tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/live.sqlite")
    event.listen(engine, "connect", lambda connection, record: connection.execute("pragma foreign_keys = on"))
    with engine.begin() as connection:
        connection.exec_driver_sql("create table message (id integer primary key, text text, count int default 1)")
        connection.exec_driver_sql(
            "create table tie (id int references message (id) deferrable initially deferred, x int)"
        )
    with Session(engine) as session:
        session.add(Message(id=1))
        session.execute(text("insert into tie values (99, 1)"))  # found out at the COMMIT
        with pytest.raises(IntegrityError):
            session.commit()
        session.rollback()
        session.add(Message(id=2))
        session.commit()
    engine.dispose()
    assert heard.ids() == [("upsert", 2)]


async def test_a_commit_in_which_the_backend_ends_is_read_again(
    postgresql: PostgreSQL, sync: Backsync, caplog: pytest.LogCaptureFixture
) -> None:
    engine = create_async_engine(postgresql.url.replace("postgresql:", "postgresql+asyncpg:"))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
        for statement in (
            "CREATE OR REPLACE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$",
            "CREATE CONSTRAINT TRIGGER die AFTER INSERT OR UPDATE ON message DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW WHEN (NEW.text = 'die') EXECUTE FUNCTION die()",
        ):
            await connection.execute(text(statement))
    sessions = async_sessionmaker(engine)
    with made_live(sync, "Message", Message, session=sessions):
        async with connect(sync) as ann:
            seen = await ann.subscribe("Message")
            await in_session(sessions, commit(Message(id=1, text="a")))
            sync.model("Message").publish("upsert", {"id": 1, "text": "what the lost commit was about"})
            await ann.until(lambda: seen.get(1, {}).get("text") == "what the lost commit was about")
            async with sessions() as session:
                (await session.get_one(Message, 1)).text = "die"
                session.add(Message(id=2, text="die"))
                with pytest.raises(DBAPIError):
                    await session.commit()
            await ann.until(lambda: seen == {1: {"id": 1, "text": "a", "count": 7}})
    await engine.dispose()
    assert "may have changed these of Message: 2, 1" in caplog.text


def lose_next_commit(engine: Engine, error: BaseException | None = None) -> None:
    """The next COMMIT is carried out, but its author does not hear of it."""
    dialect: Any = engine.dialect

    def do_commit(connection: Any) -> None:
        del dialect.do_commit
        dialect.do_commit(connection)
        raise error or ConnectionResetError("cut off")

    dialect.do_commit = do_commit


def executing(statement: Any) -> Work:
    def work(session: Session) -> None:
        session.execute(statement)
        session.commit()

    return work


def engine_of(sessions: Any) -> Engine:
    bind = sessions.kw["bind"]
    engine: Engine = bind if isinstance(bind, Engine) else bind.sync_engine
    return engine


async def test_a_commit_of_which_nobody_knows_is_read_again_and_later_ones_win(
    sync: Backsync, sessions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with made_live(sync, "Message", Message, session=sessions) as feed:
        texts: list[str] = []
        async with connect(sync) as ann:
            seen = await ann.subscribe("Message")
            lose_next_commit(engine_of(sessions))
            with pytest.raises(ConnectionResetError):
                await in_session(sessions, executing(update(Message)))
            await ann.until(lambda: seen[1]["count"] == 8)  # by `onupdate`
            has_read, go_on = asyncio.Event(), asyncio.Event()
            read = feed._in_session

            async def hold_up(work: Any) -> Any:
                changes = await read(work)
                has_read.set()
                await go_on.wait()
                return changes

            monkeypatch.setattr(feed, "_in_session", hold_up)
            lose_next_commit(engine_of(sessions))
            with pytest.raises(ConnectionResetError):
                await in_session(sessions, commit(Message(id=4, text="lost")))
            await has_read.wait()
            ann.on_text = texts.append
            await in_session(sessions, executing(update(Message).where(Message.id == 4).values(text="later")))
            go_on.set()
            await in_session(sessions, commit(Message(id=5)))
            await ann.until(lambda: 5 in seen and not feed._again._tasks)
            assert seen[4]["text"] == "later"
            assert not [text for text in texts if "lost" in text]


async def test_a_commit_that_is_cancelled_is_read_again(sync: Backsync, tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/live.sqlite")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    with made_live(sync, "Message", Message, session=engine):
        async with connect(sync) as ann:
            seen = await ann.subscribe("Message")
            lose_next_commit(engine.sync_engine, asyncio.CancelledError())
            with pytest.raises(asyncio.CancelledError):
                await in_session(async_sessionmaker(engine), commit(Message(id=1, text="a")))
            await ann.until(lambda: 1 in seen)
    await engine.dispose()


async def test_where_rows_in_doubt_cannot_be_read_everybody_reads_anew(
    sync: Backsync, sessions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backsync_asgi.live.feed.AGAIN_AFTER", (0.0, 0.0))
    with made_live(sync, "Message", Message, session=sessions) as feed:
        async with connect(sync) as ann:
            seen = await ann.subscribe("Message")
            monkeypatch.setattr(feed, "_in_session", fail)
            lose_next_commit(engine_of(sessions))
            with pytest.raises(ConnectionResetError):
                await in_session(sessions, commit(Message(id=4, text="lost")))
            if isinstance(sessions, sessionmaker):
                monkeypatch.undo()  # by which clients read, too
            await ann.until(lambda: 4 in seen)


async def fail(*_: Any) -> None:
    raise OSError("planted")


async def test_where_no_session_is_known_everybody_reads_anew(sync: Backsync, sessions: Any) -> None:
    @sync.model("Message").on("read")
    async def read(ctx: Any, query: Any) -> list[dict[str, Any]]:
        found: list[int] = []
        await in_session(sessions, lambda session: found.extend(session.scalars(select(Message.id))))
        return [{"id": id} for id in found]

    with made_live(sync, "Message", Message):
        async with connect(sync) as ann:
            seen = await ann.subscribe("Message")
            lose_next_commit(engine_of(sessions))
            with pytest.raises(ConnectionResetError):
                await in_session(sessions, commit(Message(id=4, text="lost")))
            await ann.until(lambda: seen.keys() == {1, 2, 3, 4})


async def test_a_record_that_cannot_be_made_or_sent_does_not_stop_the_others(
    run: Run, sync: Backsync, caplog: pytest.LogCaptureFixture
) -> None:
    def to_record(message: Message) -> dict[str, Any]:
        if message.text == "bad":
            raise KeyError("no")
        return {"text": {1, 2} if message.text == "unsent" else message.text}

    with made_live(sync, "Message", Message, to_record=to_record):
        async with connect(sync) as ann:
            seen = await ann.subscribe("Message")
            with caplog.at_level(logging.ERROR, "backsync"):
                await run(
                    commit(*[Message(id=id, text=text) for id, text in enumerate(("a", "bad", "unsent", "b"), 1)])
                )
            await ann.until(lambda: seen == {1: {"id": 1, "text": "a"}, 4: {"id": 4, "text": "b"}})
    assert len(caplog.records) == 2


async def test_a_version_that_the_mapper_counts_keeps_older_states_away(run: Run, sync: Backsync) -> None:
    pages = sync.model("Page", version="rev")

    def work(session: Session) -> None:
        page = Page(id=1, title="a")
        session.add(page)
        session.commit()
        page.title = "b"
        session.commit()

    with made_live(sync, "Page", Page):
        async with connect(sync) as ann:
            seen = await ann.subscribe("Page")
            await run(work)
            pages.publish("upsert", {"id": 1, "title": "a", "rev": 1})  # of another process, late
            pages.publish("upsert", {"id": 2, "title": "end", "rev": 1})
            await ann.until(lambda: 2 in seen)
            assert seen[1] == {"id": 1, "title": "b", "rev": 2}


# ── Reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["sync", "async"])
async def sessions(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    """A session factory of each kind, of a database with three messages."""
    engine: Engine = create_engine(f"sqlite:///{tmp_path}/read.sqlite")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([Message(id=1, text="a"), Message(id=2, text="b"), Message(id=3, text=None)])
        session.add_all([Member(member_id=uuid.UUID(int=n), email=str(n), color=Color.BLUE) for n in (1, 2)])
        session.commit()
    if request.param == "sync":
        yield sessionmaker(engine)
    else:
        async_engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/read.sqlite")
        yield async_sessionmaker(async_engine)
        await async_engine.dispose()
    engine.dispose()


async def in_session(sessions: Any, work: Work) -> None:
    session = sessions()
    if isinstance(session, AsyncSession):
        async with session:
            await session.run_sync(work)
    else:
        with session:
            await asyncio.to_thread(work, session)


async def test_a_subscriber_gets_what_the_database_has_and_then_what_changes(sync: Backsync, sessions: Any) -> None:
    with made_live(sync, "Message", Message, session=sessions):
        async with connect(sync) as ann:
            seen = await ann.subscribe("Message")
            assert seen.keys() == {1, 2, 3}
            await in_session(sessions, commit(Message(id=4, text="d")))
            await ann.until(lambda: seen.get(4) == {"id": 4, "text": "d", "count": 7})


async def test_queries_filter_by_columns(sync: Backsync, sessions: Any) -> None:
    with made_live(sync, "Message", Message, session=sessions), made_live(sync, "Member", Member, session=sessions):
        async with connect(sync) as ann:

            async def ids(model: str, query: dict[str, Any]) -> list[Any]:
                return [row["id"] for row in await ann.read(model, query)]

            assert await ids("Message", {"text": "b"}) == [2]
            assert await ids("Message", {"text": None}) == [3]
            assert await ids("Message", {"count": 7, "text": "a"}) == [1]
            assert await ids("Message", {"count": "7"}) == [], "values of different kinds are different, as in stores"
            assert await ids("Member", {"color": "green"}) == []
            assert await ids("Member", {"color": "blue", "born": "2012-01-02"}) == [
                str(uuid.UUID(int=n)) for n in (1, 2)
            ]
            assert (await ann.read("Message", {"id": "2"}))["text"] == "b"
            assert (await ann.read("Member", {"id": str(uuid.UUID(int=1))}))["email"] == "1"
            for model, query, code in (
                ("Message", {"id": 9}, "not_found"),
                ("Message", {"id": "x"}, "not_found"),
                ("Message", {"nothing": 1}, "invalid"),
                ("Message", {"$order": "nothing"}, "invalid"),
                ("Message", {"$order": "count", "$after": {"count": "seven", "id": 1}}, "invalid"),
            ):
                with pytest.raises(Reject) as refused:
                    await ann.read(model, query)
                assert refused.value.code == code, query


async def test_pages_go_by_every_kind_of_column(sync: Backsync, sessions: Any) -> None:
    def write(session: Session) -> None:
        for number in range(9):
            session.add(
                Member(
                    email=f"m{number % 4}.{number}",
                    color=list(Color)[number % 2],
                    paid=decimal.Decimal(number % 3) / 4,
                    born=datetime.date(2012, 1, 1 + number % 2),
                )
            )
        session.commit()

    await in_session(sessions, write)
    with made_live(sync, "Member", Member, session=sessions):
        async with connect(sync) as ann:
            for field in ("id", "member_id", "email", "nick", "color", "born"):  # decimals have no order
                for query in ({"$order": field}, {"$order": [f"-{field}", "email"]}):
                    whole = await ann.read("Member", query)
                    found = page = await ann.read("Member", {**query, "$limit": 2})
                    while page := await ann.read("Member", {**query, "$limit": 2, "$after": page[-1]}):
                        found += page
                    assert found == whole, query
                    assert len(whole) == 11


async def test_pages_of_a_room_hold_its_records_only(sync: Backsync, sessions: Any) -> None:
    sync.model("Message", key="text")
    await in_session(sessions, executing(insert(Message).values([{"text": "a"}, {"text": "b"}, {"text": "a"}])))
    with made_live(sync, "Message", Message, session=sessions):
        async with connect(sync) as ann:
            query = {"text": "a", "$order": "-id", "$limit": 2}
            seen = await ann.subscribe("Message", query)
            assert list(seen) == [6, 4]
            assert [row["id"] for row in await ann.read("Message", {**query, "$after": seen[4]})] == [1]
            await in_session(sessions, executing(update(Message).where(Message.id == 6).values(text="b")))
            await ann.until(lambda: list(seen) == [4])


async def test_a_database_that_is_not_there_is_unavailable(sync: Backsync) -> None:
    engine = create_async_engine("postgresql+asyncpg://tests@127.0.0.1:1/postgres")
    with made_live(sync, "Message", Message, session=engine):
        async with connect(sync) as ann:
            with pytest.raises(Reject, match="unavailable"):
                await ann.read("Message")
    await engine.dispose()


async def test_what_is_not_among_the_fields_cannot_be_probed(sync: Backsync, sessions: Any) -> None:
    with made_live(sync, "Member", Member, session=sessions, fields=["email"]):
        async with connect(sync) as eve:
            with pytest.raises(Reject, match="only by id, email"):
                await eve.read("Member", {"nick": "secret"})


async def test_objects_may_be_loaded_with_what_they_have(sync: Backsync, sessions: Any) -> None:
    def write(session: Session) -> None:
        session.add_all([Album(id=id, songs=[Song(), Song()]) for id in (1, 2, 3)])
        session.commit()

    def to_record(album: Album) -> dict[str, Any]:
        return {"songs": len(album.songs)}

    with made_live(sync, "Album", Album, session=sessions, to_record=to_record):
        async with connect(sync) as ann:
            seen = await ann.subscribe("Album")
            await in_session(sessions, write)
            await ann.until(lambda: seen == {id: {"id": id, "songs": 2} for id in (1, 2, 3)})
            assert [row["id"] for row in await ann.read("Album", {"$limit": 2, "$after": {"id": 1}})] == [2, 3]
            with pytest.raises(Reject, match="cannot be read by .songs., only by id"):
                await ann.read("Album", {"$order": "songs"})


async def test_nothing_is_written_from_the_wire(sync: Backsync, sessions: Any) -> None:
    with made_live(sync, "Message", Message, session=sessions):
        async with connect(sync) as eve:
            for method in ("upsert", "delete"):
                with pytest.raises(Reject) as refused:
                    await eve.call(f"Message:{method}", {"id": 1})
                assert refused.value.code == "unknown_method"


async def test_a_row_of_an_unknown_subclass_shuts_nobody_out(sync: Backsync, sessions: Any) -> None:
    """A row that no class is for, as another release of the program wrote it, fails alone, in reads and in commits."""

    def insert_kinds(session: Session) -> None:
        session.execute(
            insert(Base.metadata.tables["animal"]),
            [{"id": id, "kind": kind, "name": "n"} for id, kind in enumerate(["dog", "unicorn"], 1)],
        )
        session.commit()

    async def in_session(work: Callable[[Session], None]) -> None:
        if isinstance(sessions, async_sessionmaker):
            async with sessions() as session:
                await session.run_sync(work)
        else:
            with sessions() as session:
                work(session)

    with made_live(sync, "Animal", Animal, session=sessions):
        async with connect(sync) as early, connect(sync) as late:
            before = await early.subscribe("Animal")
            await in_session(insert_kinds)
            await early.until(lambda: before.keys() == {1})
            assert (await late.subscribe("Animal")).keys() == {1}


async def test_a_read_handler_of_the_models_own_stays(sync: Backsync, sessions: Any) -> None:
    @sync.model("Message").on("read")
    async def read(ctx: Any, query: Any) -> list[dict[str, Any]]:
        return [{"id": 99}]

    with made_live(sync, "Message", Message, session=sessions):
        async with connect(sync) as ann:
            assert await ann.read("Message") == [{"id": 99}]


async def test_a_writer_gets_its_reply_before_its_own_change(sync: Backsync, tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/live.sqlite")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    sessions = async_sessionmaker(engine)

    @sync.model("Message").on("say")
    async def say(ctx: Any, words: str) -> str:
        async with sessions() as session:
            session.add(Message(id=1, text=words))
            await session.commit()
        return "said"

    texts: list[str] = []
    with made_live(sync, "Message", Message):
        async with connect(sync) as ann:
            seen = await ann.subscribe("Message")
            ann.on_text = texts.append
            assert await ann.call("Message:say", "Tea") == "said"
            await ann.until(lambda: 1 in seen)
    await engine.dispose()
    assert ['"said"' in text for text in texts] == [True, False]


# ── Other classes, other models ──────────────────────────────────────────────────────────────────────────────────────


class Headline(Base):
    """The table of Message, with fewer columns."""

    __table__ = Table("message", Base.metadata, extend_existing=True)
    __mapper_args__ = {"include_properties": ["id", "text"]}  # noqa: RUF012


class Reflected(DeclarativeBase):
    """Classes of metadata of their own, as reflection makes them."""


class Letter(Reflected):
    __tablename__ = "message"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str | None]


class Pair(Base):
    """Rows of two tables."""

    __table__ = join(Post.__table__, Thread.__table__)
    id = column_property(Post.__table__.c.id)
    thread_id = column_property(Post.__table__.c.thread_id, Thread.__table__.c.id)


@pytest.fixture
def two_models(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path}/live.sqlite")
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("other", [Headline, Letter])
def test_a_class_hears_what_is_written_by_another_of_its_table(
    two_models: Engine, sync: Backsync, monkeypatch: pytest.MonkeyPatch, other: Any
) -> None:
    heard = Heard(sync, monkeypatch, "Message")
    with made_live(sync, "Message", Message, session=two_models), Session(two_models) as session:
        row = other(id=1, text="a")
        session.add(row)
        session.commit()
        row.text = "b"
        session.commit()
        assert heard.take() == [("upsert", {"id": 1, "text": text, "count": count}) for text, count in LETTERS[other]]
        session.execute(update(other).values(text="c"))
        session.commit()
        assert [data["text"] for _, data in heard.take()] == ["c"]
        session.delete(row)
        session.commit()
        assert heard.take() == [("delete", {"id": 1})]


LETTERS: dict[Any, Any] = {Headline: [("a", 7), ("b", 8)], Letter: [("a", 7), ("b", 7)]}  # which has no `onupdate`


def test_objects_that_are_rows_of_another_kind_are_refused(two_models: Engine, sync: Backsync) -> None:
    with made_live(sync, "Thread", Thread), Session(two_models) as session:
        session.add(Pair(id=1, thread_id=2, body="a", title="b"))
        with pytest.raises(UnseenWrite, match=r"objects of Pair, which lie in its table.*Write them as Thread"):
            session.commit()
    with made_live(sync, "Thread", Thread, bulk="ignore"), Session(two_models) as session:
        session.add(Pair(id=1, thread_id=2, body="a", title="b"))
        session.commit()


def test_parents_and_siblings_of_a_class_are_other_rows(
    two_models: Engine, sync: Backsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard(sync, monkeypatch, "Fish")
    with made_live(sync, "Fish", Fish), Session(two_models) as session:
        session.add_all([Animal(id=1, name="Ann"), Dog(id=2, name="Rex"), Fish(id=3, name="Wanda", depth=5)])
        session.commit()
    assert heard.ids() == [("upsert", 3)]


def test_two_models_of_one_table_hear_the_same(
    two_models: Engine, sync: Backsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard(sync, monkeypatch, "Message", "Headline")
    with made_live(sync, "Message", Message), made_live(sync, "Headline", Headline), Session(two_models) as session:
        session.add(Message(id=1, text="a"))
        session.commit()
        session.add(Headline(id=2, text="b"))
        session.commit()
    shown = [data for _, data in heard.take()]
    assert sorted(map(len, shown)) == [2, 2, 3, 3]
    assert sorted(data["id"] for data in shown) == [1, 1, 2, 2]


@pytest.mark.parametrize(("mapped", "version"), [(Page, "rev"), (Message, None), (Stamped, None), (Kept, None)])
def test_versions_that_the_mapper_counts_are_the_models(sync: Backsync, mapped: type[Any], version: str | None) -> None:
    with made_live(sync, "It", mapped):
        assert sync.model("It").options.version == version
    if version is not None:
        assert sync.model("It", version=version).options.version == version


def test_versions_that_are_not_shown_are_not_the_models(sync: Backsync) -> None:
    with made_live(sync, "Page", Page, fields=["title"]):
        assert sync.model("Page").options.version is None


# ── What cannot be live ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("mapped", "options", "error", "message"),
    [
        (Grade, {}, TypeError, "whose primary key is pupil, subject; a record has one id"),
        (Photo, {}, ValueError, "JSON cannot carry pixels of Photo"),
        (Account, {}, ValueError, "would send password_hash of Account to everybody who may subscribe"),
        (Message, {"fields": ["nothing"]}, ValueError, r"got the fields \['nothing'\], which Message has not"),
        (Message, {"bulk": "sometimes"}, ValueError, "expected 'publish' or 'ignore'"),
        (Message, {"session": 5}, TypeError, "expected a sessionmaker"),
        (dict, {}, TypeError, "expected a class that SQLAlchemy maps"),
        (Message(text="a"), {}, TypeError, "expected a class that SQLAlchemy maps"),
    ],
)
def test_what_cannot_be_live_says_why(
    sync: Backsync, mapped: type[Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        live(sync.model("X"), mapped, **options)


def test_sessions_that_have_one_connection_for_all_are_refused(
    sync: Backsync, caplog: pytest.LogCaptureFixture
) -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    for session in (engine, async_sessionmaker(engine)):
        with pytest.raises(ValueError, match=r"one connection for all \(StaticPool\).*Give the engine a file"):
            live(sync.model("Message"), Message, session=session)
    assert sync.model("Message").reader is None
    with pytest.raises(ValueError, match="each thread has a database of its own"):
        live(sync.model("Message"), Message, session=create_engine("sqlite://"))
    with made_live(sync, "Message", Message, session=create_engine("sqlite://", poolclass=StaticPool)):
        assert "would roll back what others have not yet committed" in caplog.text, "a test may do it"


async def test_sessions_that_are_bound_later_are_looked_at_when_clients_read(
    sync: Backsync, caplog: pytest.LogCaptureFixture
) -> None:
    sessions = async_sessionmaker()
    with made_live(sync, "Message", Message, session=sessions):
        engine = create_async_engine("sqlite+aiosqlite://")
        sessions.configure(bind=engine)
        async with connect(sync) as ann:
            with pytest.raises(Reject, match="handler_error"):
                await ann.read("Message")
    await engine.dispose()
    assert "which have one connection for all" in caplog.text


def test_a_photo_is_live_without_its_pixels(sync: Backsync) -> None:
    with made_live(sync, "Photo", Photo, fields=["id"]) as feed:
        assert isinstance(feed, LiveMapping)


async def test_what_is_closed_hears_nothing(run: Run, sync: Backsync, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard(sync, monkeypatch, "Message")
    with made_live(sync, "Message", Message):
        pass
    await run(commit(Message(text="a")))
    assert heard.take() == []


def test_a_namesake_in_another_database_is_left_alone(sync: Backsync, tmp_path: Path) -> None:
    ours, theirs = (create_engine(f"sqlite:///{tmp_path}/{name}.sqlite") for name in ("ours", "theirs"))
    for engine in (ours, theirs):
        Base.metadata.create_all(engine)
    statement = text("update message set text = 'x'")
    with made_live(sync, "Message", Message, session=ours):
        with theirs.begin() as connection:
            connection.execute(statement)
        with ours.begin() as connection, pytest.raises(UnseenWrite):
            connection.execute(statement)
    ours.dispose()
    theirs.dispose()


def test_text_is_refused_on_every_engine_of_the_database_whatever_its_driver(
    sync: Backsync, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ours, of_a_job = (
        create_async_engine("sqlite+aiosqlite:///app.sqlite"),
        create_engine(f"sqlite:///{tmp_path}/app.sqlite"),
    )
    Base.metadata.create_all(of_a_job)
    with made_live(sync, "Message", Message, session=ours):
        for statement in (text("update message set text = 'x'"), text("delete from message")):
            with of_a_job.begin() as connection, pytest.raises(UnseenWrite):
                connection.execute(statement)
    of_a_job.dispose()


def test_statements_of_others_are_not_looked_at_twice(heard: Heard, tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/live.sqlite")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.execute(text("insert into thread (title) values ('update message')"))
        session.execute(insert(Thread).values(title="x"))
        session.commit()
        assert len(session.scalars(select(Thread)).all()) == 2
    engine.dispose()
    assert heard.take() == []
