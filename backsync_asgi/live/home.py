"""Home: the database and the schema that a live class is read from, and whether a write of SQLAlchemy went there."""

from __future__ import annotations

import contextlib
import contextvars
import enum
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import ref

from sqlalchemy import text, update
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Mapper, Session, sessionmaker

Options = Mapping[str, Any]

SCHEMAS = "schema_translate_map"
LOCAL = (None, "", "localhost", "127.0.0.1", "::1")
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433, "oracle": 1521}
# Where a table lies that is named without its schema. Connections of one engine may differ in that.
SCHEMA_OF = {"postgresql": text("SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = to_regclass(:name)")}
SCHEMA_CHANGE = re.compile(r"search_path|\bset\s+(?:session\s+|local\s+)?role\b|session\s+authorization", re.IGNORECASE)


class Same(enum.IntEnum):
    """Whether two databases are one."""

    NO = 0
    PERHAPS = 1  # as one that has two host names
    YES = 2


@dataclass(frozen=True)
class Place:
    """Where a database is, as far as an engine's URL says, whichever driver and user it is reached with."""

    kind: str
    host: str
    port: int | None
    name: str | None  # None: the URL does not say; of SQLite a file

    def compare(self, other: Place) -> Same:
        """Whether both are the same database."""
        if self.kind != other.kind:
            return Same.NO
        if self.name is None or other.name is None:
            return Same.PERHAPS
        if self.name != other.name:
            return Same.NO
        return Same.YES if (self.host, self.port) == (other.host, other.port) else Same.PERHAPS


def place_of(engine: Engine) -> Place:
    """Where an engine's database is."""
    url = engine.url
    kind = url.get_backend_name().replace("mariadb", "mysql")
    if kind == "sqlite":
        return Place(kind, "", None, file_of(url.database, url.query))
    host = url.host or url.query.get("host")
    port = url.port or url.query.get("port") or PORTS.get(kind)
    name = url.database or url.query.get("dbname")
    return Place(
        kind,
        "localhost" if host in LOCAL else str(host).lower(),
        int(str(port)) if str(port).isdigit() else None,
        None if name is None else str(name),
    )


def file_of(database: str | None, query: Options) -> str | None:
    """The file of an SQLite database; None for one in memory."""
    name = database or ""
    if name.startswith("file:"):
        name = name[5:].split("?")[0]
    in_memory = name in ("", ":memory:") or query.get("mode") == "memory"
    return None if in_memory else os.path.realpath(name)


class Home:
    """A database, as one of its engines reaches it, and how that maps the schemas of tables."""

    def __init__(self, engine: Engine, schemas: Options | None) -> None:
        self.schemas: Options = schemas or {}
        self.place = place_of(engine)
        self._dialect = ref(engine.dialect)

    @property
    def is_gone(self) -> bool:
        """Whether the engine exists no more."""
        return self._dialect() is None

    def compare(self, engine: Engine) -> Same:
        """Whether an engine leads there, too."""
        if engine.dialect is self._dialect():  # options give an engine copies that share it
            return Same.YES
        return place_of(engine).compare(self.place)

    def has(self, table: Any, conn: Connection, options: Options) -> bool:
        """Whether a statement with these options writes the schema that the table has here."""
        theirs = options.get(SCHEMAS) or {}
        if not theirs and not self.schemas:
            return True
        default = conn.dialect.default_schema_name or ("main" if conn.dialect.name == "sqlite" else None)
        named = (schemas.get(table.schema, table.schema) or default for schemas in (theirs, self.schemas))
        return next(named) == next(named)

    def is_named_without_schema(self, table: Any) -> bool:
        """Whether the database has to look for the table's schema."""
        return self.schemas.get(table.schema, table.schema) is None


def home_of(bind: Engine | Connection) -> Home:
    """The database of an engine or a connection, with its own options."""
    return Home(bind.engine, bind.get_execution_options().get(SCHEMAS))


def schema_of(conn: Connection, table: Any) -> str | None:
    """The schema in which a connection finds a table that is named without one; None where it finds none, or where a
    connection cannot change that."""
    question = SCHEMA_OF.get(conn.dialect.name)
    if question is None:
        return None
    name = conn.dialect.identifier_preparer.quote(table.name)
    found = conn.execute(question, {"name": name}).scalar()
    return None if found is None else str(found)


def is_autocommit(conn: Connection) -> bool:
    """Whether each statement is committed by itself, by SQLAlchemy's isolation level or by the driver's own setting."""
    level = conn.get_execution_options().get("isolation_level") or getattr(
        conn.dialect, "_on_connect_isolation_level", None
    )
    if level is not None:
        return bool(level == "AUTOCOMMIT")
    driver: Any = conn.connection.dbapi_connection
    if getattr(driver, "autocommit", None) is True:
        return True
    # Of sqlite3, where the application begins transactions by itself, or none.
    return getattr(driver, "isolation_level", "") is None and getattr(driver, "in_transaction", None) is False


def homes_of(sessions: Callable[[], Any] | None, mapper: Mapper[Any]) -> list[Home]:
    """The databases that a session factory reads the class from and writes it to, such as a replica and its leader.

    None of them where that cannot be known yet. A factory that chooses by context, such as by tenant, is asked without
    any.
    """
    bind = single_bind(sessions)
    if bind is not None:
        return [home_of(bind)]
    if sessions is None:
        return []
    try:
        binds = contextvars.Context().run(lambda: list(binds_of(sessions(), mapper)))
    except Exception:  # noqa: BLE001 - it is the application's function, and may not be ready
        return []
    return [home_of(bind) for bind in binds]


def single_bind(sessions: Callable[[], Any] | None) -> Engine | Connection | None:
    """What a session factory is bound to, if it does not choose."""
    if not isinstance(sessions, (sessionmaker, async_sessionmaker)) or sessions.kw.get("binds"):
        return None
    kind: Any = sessions.class_
    if isinstance(sessions, async_sessionmaker):
        kind = sessions.kw.get("sync_session_class") or kind.sync_session_class
    if kind.get_bind is not Session.get_bind:
        return None
    return sync_bind(sessions.kw.get("bind"))


def sync_bind(bind: Any) -> Engine | Connection | None:
    """An engine or connection, of an async one that within; None for anything else."""
    for name in ("sync_engine", "sync_connection"):
        bind = getattr(bind, name, bind)
    return bind if isinstance(bind, (Engine, Connection)) else None


def binds_of(session: Any, mapper: Mapper[Any]) -> Iterator[Engine | Connection]:
    """What a session reads the class from, and what it writes it to."""
    sync_session: Any = session.sync_session if isinstance(session, AsyncSession) else session
    for options in ({}, {"clause": update(mapper.class_)}):
        with contextlib.suppress(SQLAlchemyError):
            yield sync_session.get_bind(mapper=mapper, **options)
    sync_session._flushing = True  # by which factories choose, as SQLAlchemy's documentation shows
    try:
        with contextlib.suppress(SQLAlchemyError):
            yield sync_session.get_bind(mapper=mapper)
    finally:
        sync_session._flushing = False
