"""SQLStore: records in SQLite or PostgreSQL, by SQLAlchemy; how they lie in rows is for tables.py."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import ssl
import sys
import time
import zlib
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, urlencode, urlsplit
from weakref import WeakKeyDictionary

from backsync_asgi.errors import EncodeError, Reject
from backsync_asgi.logs import Sparing
from backsync_asgi.messages import record_of, shorten

try:
    import sqlalchemy as sa
    from sqlalchemy.exc import (
        DataError,
        DBAPIError,
        IntegrityError,
        OperationalError,
        ProgrammingError,
        SQLAlchemyError,
        StatementError,
    )
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
    from sqlalchemy.schema import CreateIndex
except ImportError as error:
    _name = error.name or "greenlet"  # which `pip install sqlalchemy` alone leaves out
    raise ModuleNotFoundError(
        f'SQLStore needs {_name}: pip install "backsync-asgi[sqlite]" or "backsync-asgi[postgres]".', name=_name
    ) from None

from .base import (
    CHUNK,
    UNREADABLE,
    Id,
    Query,
    Record,
    Skipped,
    Unsure,
    check_version,
    invalid,
    matches,
    merge,
    missing,
    paced,
    parse_query,
    replace,
)
from .tables import Columns, FreeForm, Layout, is_text, layout_of, select, sendable, snake_case

logger = logging.getLogger("backsync")
sparing = Sparing(logger, time.monotonic)

Result = TypeVar("Result")
Found = tuple[Record, str]  # a record and its JSON text

DRIVERS: Mapping[str, str] = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
}
EXTRAS: Mapping[str, str] = {"aiosqlite": "sqlite", "asyncpg": "postgres"}
# Classes of SQLSTATE: data, constraints, check options, what is too large (as for an index), and what triggers raise.
REFUSALS = ("22", "23", "44", "54", "P0")
SALVAGED = 500  # rows that are read at a time where some cannot be
TRIES = 3  # of a write that meets a connection which has ended, or somebody who adds the same record


class SQLStore:
    """Keeps records in a table of SQLite or PostgreSQL. A write that has returned is committed.

    url: such as `sqlite:///todo.db` or `postgresql://user@host/database`, with or without a driver's name.
    engine: an AsyncEngine of your own in place of the url; you dispose of it, and it is used as it is.
    table: the name of a table for records of any fields, which is made where it is missing (unless said, it is named
        after the model: `ChatMessage` is `chat_message`); or an `sqlalchemy.Table`, a mapped class, or a schema
        (dataclass, TypedDict, msgspec.Struct, pydantic model): a record's fields are its columns then.
    index: fields, or tuples of fields, of free-form records by which is often read or ordered.
    timeout: seconds to wait for a connection or for a lock that somebody else holds; then `unavailable`.
    pool: connections at most.

    SQLite is set to WAL, so that readers and the writer do not wait for each other, and to synchronous=FULL: what was
    acknowledged outlives a crash of the process and of the machine.

    Connections belong to the event loop in which they were opened, and are closed with it, or by `close`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        engine: AsyncEngine | None = None,
        table: str | sa.Table | type[Any] | None = None,
        index: Sequence[str | Sequence[str]] = (),
        timeout: float = 5.0,
        pool: int = 5,
    ) -> None:
        if url is not None and engine is not None:
            raise ValueError("SQLStore takes a url or an engine, and got both.")
        self._engine = engine
        self._url: sa.URL | None = None
        self._arguments: dict[str, Any] = {}  # that asyncpg is called with
        if engine is not None:
            if not hasattr(engine, "sync_engine"):
                raise TypeError(f"SQLStore got engine={shorten(engine)}, expected an AsyncEngine.")
            self._dialect = engine.dialect.name
            self._at = engine.url.set(password=None, query={}).render_as_string()
        elif url is not None:
            given: Any = url
            if not isinstance(given, str):
                raise TypeError(
                    f"SQLStore got {shorten(given)} as its url, expected a text such as 'sqlite:///todo.db', or an "
                    "AsyncEngine by its name: engine=engine."
                )
            self._url, self._arguments, self._at = read_url(url, timeout)
            self._dialect = self._url.get_backend_name()
        else:
            raise ValueError("SQLStore takes a url or an engine, and got neither.")
        if self._dialect not in ("sqlite", "postgresql"):
            raise ValueError(f"SQLStore got {self._dialect}, expected sqlite or postgresql.")
        if not timeout > 0 or type(pool) is not int or pool < 1:
            raise ValueError(f"SQLStore got timeout={timeout!r}, pool={pool!r}, expected positive numbers.")
        self.version: str | None = None
        self._name = table if isinstance(table, str) else None
        self._indexes = [(fields,) if isinstance(fields, str) else tuple(fields) for fields in index]
        self._layout: Layout | None = None if table is None or isinstance(table, str) else layout_of(table)
        if self._indexes and self._layout is not None:
            raise ValueError("SQLStore got an index for a table of your own; make it there.")
        self._timeout = timeout
        self._pool = pool
        self._skipped: Skipped | None = None
        self._homes: WeakKeyDictionary[asyncio.AbstractEventLoop, _Home] = WeakKeyDictionary()
        self._working: set[asyncio.Task[Any]] = set()  # the event loop alone would not keep them
        if self._url is not None:
            self._make_engine()  # a driver that is missing is found at start

    def bind(self, model: str, version: str | None) -> None:
        """Name the table after the model, unless it has a name, and count versions in that field.

        Raises ValueError for a version that is not among a table's columns.
        """
        if self._layout is None and self._name is None:
            self._name = snake_case(model)
        if version is not None and isinstance(self._layout, Columns) and version not in self._layout.fields:
            raise ValueError(
                f"The table of {model} has no column {version!r} to count versions in; add an integer one."
            )
        self.version = version

    @property
    def layout(self) -> Layout:
        """Where the records lie."""
        if self._layout is None:
            self._layout = FreeForm(self._name or "records", self._dialect, self._indexes)
        return self._layout

    @property
    def table(self) -> sa.Table:
        """The table, as SQLAlchemy knows it."""
        return self.layout.table

    async def open(self) -> None:
        """Connect, and make the table where it is missing. It happens by itself at first use."""
        try:
            await self._run(_nothing)
        except Reject as error:
            raise error if self._problem is None else Reject(error.code, self._problem) from None

    @property
    def _problem(self) -> str | None:
        """Why a file of SQLite cannot be opened, as far as that can be seen."""
        path = self._url.database if self._dialect == "sqlite" and self._url is not None else None
        if path is None or path.startswith("file:") or Path(path).parent.is_dir():
            return None
        return f"There is no directory {Path(path).parent.absolute()} for the database. Create it, or change the URL."

    async def close(self) -> None:
        """Close this event loop's connections. A later use opens new ones."""
        home = self._homes.pop(asyncio.get_running_loop(), None)
        if home is not None:
            await home.guard.aclose()

    # Reading

    async def read(self, query: Query) -> list[Record]:
        """The records that a query asks for; without an order as they were first written (a table's: by id)."""
        return [record for record, _ in await self._read(query)]

    async def snapshot(self, query: Query) -> AsyncGenerator[list[str], None]:
        """The same as JSON texts in chunks, all of one moment."""
        statement, rest, limit = self._select(query)
        if limit is not None:
            yield [text for _, text in await self._read(query)]
            return
        async with aclosing(self._streamed(statement, rest)) as chunks:
            async for found in chunks:
                yield [text for _, text in found]

    async def _read(self, query: Query) -> list[Found]:
        statement, rest, limit = self._select(query)

        async def work(connection: AsyncConnection) -> Sequence[sa.Row[Any]] | None:
            try:
                rows: Sequence[sa.Row[Any]] = (await connection.execute(statement)).all()
            except UNREADABLE:
                return None
            return rows

        rows = await self._run(work)
        found = [] if rows is None else await self._found(rows, rest)
        if rows is None or (limit is not None and not rest and len(found) < len(rows) == limit):
            # Some cannot be sent: a page that is short for that would look like the last.
            found = []
            async with aclosing(self._streamed(statement.limit(None), rest)) as chunks:
                async for some in chunks:
                    found += some
                    if limit is not None and len(found) >= limit:
                        break
        return found[:limit]

    async def _streamed(self, statement: sa.Select[Any], rest: Mapping[str, Any]) -> AsyncGenerator[list[Found], None]:
        with explained(self.table.name, at=self._at):
            async with (await self._whole(self._home())).moment() as connection:
                done = 0
                try:
                    async with connection.stream(statement.execution_options(yield_per=CHUNK)) as result:
                        async for rows in result.partitions(CHUNK):
                            done += len(rows)
                            yield await self._found(rows, rest)
                    return
                except UNREADABLE:  # by a column's type: another program has written what is none of it
                    keys = statement.with_only_columns(self.layout.id, maintain_column_froms=True)
                ids = (await connection.execute(keys)).scalars().all()
                for start in range(done, len(ids), SALVAGED):
                    rows = await self._salvaged(connection, ids[start : start + SALVAGED])
                    yield await self._found(rows, rest)

    async def _salvaged(self, connection: AsyncConnection, ids: Sequence[Any]) -> list[sa.Row[Any]]:
        """The rows of these ids, but those that cannot be read, which are logged."""
        statement = sa.select(*self.layout.columns()).where(self.layout.id.in_(ids))
        try:
            rows = {row[0]: row for row in (await connection.execute(statement)).all()}
        except UNREADABLE as error:
            if len(ids) == 1:
                self._skip(ids[0], error)
                return []
            half = len(ids) // 2
            return [*await self._salvaged(connection, ids[:half]), *await self._salvaged(connection, ids[half:])]
        return [rows[id] for id in ids if id in rows]

    async def _found(self, rows: Iterable[sa.Row[Any]], rest: Mapping[str, Any]) -> list[Found]:
        """The records in rows, as far as they match, and their JSON texts. What cannot be sent is logged."""
        found: list[Found] = []
        async for row in paced(rows):
            try:
                record, text = sendable(self.layout, row)
            except (EncodeError, ValueError) as error:
                self._skip(row[0], error)  # its id, or the text of a free-form record
            else:
                if matches(record, rest):
                    found.append((record, text))
        return found

    def _skip(self, id: Any, error: Exception) -> None:
        self._skipped = self._skipped or Skipped(self.table.name)
        self._skipped.note(id, error)

    async def get(self, id: Id) -> Record | None:
        """The record of that id, or None."""
        key = self.layout.key(id)
        return None if key is None else await self._run(lambda connection: self._find(connection, key))

    def _select(self, query: Query) -> tuple[sa.Select[Any], dict[str, Any], int | None]:
        selection = parse_query(query)
        for field, value in [*selection.where.items(), *(selection.after or {}).items()]:
            if not is_text(field) or (isinstance(value, str) and not is_text(value)):
                raise invalid(field, "holds the character U+0000, which databases cannot keep")
        return *select(self.layout, selection), selection.limit

    async def _find(self, connection: AsyncConnection, key: Any, *, lock: bool = False) -> Record | None:
        statement = sa.select(*self.layout.columns()).where(self.layout.id == key)
        try:
            row = (await connection.execute(statement.with_for_update() if lock else statement)).one_or_none()
        except UNREADABLE as error:  # nor is it to be taken for one that is not there
            self._skip(key, error)
            raise Reject("not_found", f"The record with the id {shorten(key)} cannot be read.") from None
        return None if row is None else self.layout.record(row)

    # Writing

    async def upsert(self, record: Mapping[str, Any]) -> Record:
        """Replace or add a record; one without an id gets a random one of 16 characters, or the table's own."""
        record = record_of(record)
        id = record.get("id")
        key = None if id is None else self.layout.key(id)

        async def work(connection: AsyncConnection) -> Record:
            current = None if key is None else await self._find(connection, key, lock=True)
            return await self._write(connection, self._replace(record, current), current, key)

        return await self._run(work, write=True)

    async def patch(self, id: Id, fields: Mapping[str, Any], unset: Sequence[str] = ()) -> Record:
        """Change some fields, remove others (a table's become NULL); raises Reject("not_found")."""
        key = self.layout.key(id)

        async def work(connection: AsyncConnection) -> Record:
            current = None if key is None else await self._find(connection, key, lock=True)
            if current is None:
                raise missing(id)
            return await self._write(connection, merge(current, fields, unset, self.version), current, key)

        return await self._run(work, write=True)

    async def delete(self, id: Id, version: Any = None) -> bool:
        """Remove the record, if it has that version. False: there was none. Raises Reject("conflict")."""
        key = self.layout.key(id)
        if key is None:
            return False

        async def work(connection: AsyncConnection) -> bool:
            if version is not None and self.version is not None:
                current = await self._find(connection, key, lock=True)
                if current is None:
                    return False
                check_version(version, current, self.version)
            return (await connection.execute(sa.delete(self.table).where(self.layout.id == key))).rowcount > 0

        return await self._run(work, write=True)

    def take_evicted(self) -> Iterable[Id]:
        """Nothing: the store drops no records by itself."""
        return ()

    def _replace(self, record: Mapping[str, Any], current: Record | None) -> Record:
        kept = replace(record, current, self.version)
        if record.get("id") is None and self.layout.key(kept["id"]) is None:
            del kept["id"]  # the table has ids of another kind, and gives them
        return kept

    async def _write(self, connection: AsyncConnection, record: Record, current: Record | None, key: Any) -> Record:
        values = self.layout.values(record, new=current is None)
        if current is None:
            statement: Any = sa.insert(self.table).values(values)
        else:
            statement = sa.update(self.table).where(self.layout.id == key).values(values)
        row = (await connection.execute(statement.returning(*self.layout.columns()))).one()
        self.layout.check_kept(values, row)
        return self.layout.record(row)

    # Connections

    async def _run(self, work: Callable[[AsyncConnection], Awaitable[Result]], *, write: bool = False) -> Result:
        return await self._whole(self._run_now(work, write))

    async def _whole(self, work: Coroutine[Any, Any, Result]) -> Result:
        """What the work returns. Who is cancelled waits for its end, where the database is SQLite: a connection that is
        left in the middle of a statement keeps its lock until the memory is next cleaned up, however it is closed."""
        if self._dialect != "sqlite":
            return await work
        task = asyncio.get_running_loop().create_task(work)
        self._working.add(task)
        task.add_done_callback(self._ended)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            raise

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._working.discard(task)
        if not task.cancelled():
            task.exception()  # which nobody may wait for any more, and the log has

    async def _run_now(self, work: Callable[[AsyncConnection], Awaitable[Result]], write: bool) -> Result:
        """What the work returns, once it is committed; again on another connection where the first turns out dead."""
        committing = False
        try:
            with explained(self.table.name, at=self._at):
                home = await self._home()
                for left in reversed(range(TRIES)):
                    try:
                        async with home.writing() if write else home.reading() as connection:
                            result = await work(connection)
                            committing = write
                        return result
                    except DBAPIError as error:
                        again = error.connection_invalidated or (write and _is_taken(error))
                        if committing or not again or not left:
                            raise
        except Reject as error:
            raise Unsure(error.code, error.message) if committing and error.code == "unavailable" else error from None
        raise AssertionError("the last try returns or raises")

    async def _home(self) -> _Home:
        loop = asyncio.get_running_loop()
        home = self._homes.get(loop)
        if home is None:
            for ended in [it for it in self._homes if it.is_closed()]:
                del self._homes[ended]  # which its home would keep
            self._working = {task for task in self._working if not task.get_loop().is_closed()}
            home = _Home(self._engine or self._make_engine(), own=self._engine is None)
            self._homes[loop] = home
            await anext(home.guard)
        async with home.opening:
            if not home.open and self._problem is not None:
                raise FileNotFoundError(self._problem)
            until = loop.time() + self._timeout
            while not home.open:
                try:
                    await self._create(home)
                    home.open = True
                except OperationalError as error:
                    # While a new file becomes WAL, SQLite does not wait for others that want the same.
                    if "locked" not in str(error.orig) or loop.time() > until:
                        raise
                    await asyncio.sleep(0.02)
        return home

    def _make_engine(self) -> AsyncEngine:
        assert self._url is not None
        options: dict[str, Any] = {"pool_size": self._pool, "max_overflow": 0, "pool_timeout": self._timeout}
        if self._dialect == "sqlite":
            options |= {"connect_args": {"timeout": self._timeout}, "isolation_level": "AUTOCOMMIT"}
        else:
            options["connect_args"] = {**self._arguments, "async_creator_fn": _connect}
        try:
            engine = create_async_engine(self._url, **options)
        except ModuleNotFoundError as error:
            extra = EXTRAS.get(error.name or "")
            raise ModuleNotFoundError(
                f'SQLStore needs {error.name}: pip install "backsync-asgi[{extra}]".', name=error.name
            ) from None
        if self._dialect == "sqlite":
            sa.event.listen(engine.sync_engine, "connect", _set_up_sqlite)
        return engine

    async def _create(self, home: _Home) -> None:
        """Make the table and its indexes where they are missing, one process at a time."""
        table = self.table

        def is_there(connection: sa.Connection) -> bool:
            return sa.inspect(connection).has_table(table.name, table.schema)

        async with home.reading() as connection:
            exists = await connection.run_sync(is_there)
            missing = await self._missing_indexes(connection) if exists else []
            if exists and not missing:
                return
        try:
            async with home.writing() as connection:
                if self._dialect == "postgresql":
                    number = zlib.crc32(table.fullname.encode())
                    await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(number)))
                if not await connection.run_sync(is_there):
                    await connection.run_sync(table.create)
                for index in missing:
                    await connection.execute(CreateIndex(index, if_not_exists=True))
        except DBAPIError as error:
            if not exists or error.connection_invalidated or "locked" in str(error.orig):
                raise
            what = "%s lacks the index %s, which could not be made; some pages take longer: %s"
            logger.warning(what, table.name, ", ".join(str(index.name) for index in missing), error.orig)

    async def _missing_indexes(self, connection: AsyncConnection) -> list[sa.Index]:
        """The indexes that a table of ours should have and does not have."""
        ours = self.layout.indexes
        if not ours:
            return []
        names = "SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = :table"
        if self._dialect == "postgresql":
            names = (
                "SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid "
                "WHERE indrelid = to_regclass(quote_ident(:table))"
            )
        found = set((await connection.execute(sa.text(names), {"table": self.table.name})).scalars())
        return [index for index in ours if index.name not in found]


@contextmanager
def explained(name: str, refusal: str = "The record breaks a rule of its table.", *, at: str = "") -> Iterator[None]:
    """Turn what the database says of a table into a refusal; the log has its text, clients do not.

    refusal: what clients are told where the data is wrong, not the database. at: where it is, for the log.
    """
    try:
        yield
    except _faults() as error:
        if _is_bad_data(error):
            what = "The database refused what it was given for %s: %s"
            sparing.log(logging.WARNING, ("refused", name, at), what, name, error)
            raise Reject("invalid", refusal, []) from None
        if isinstance(error, ProgrammingError):
            raise
        what = "The database of %s%s is not available: %r"
        sparing.log(logging.ERROR, ("down", name, at), what, name, at and f", {at},", error)
        raise Reject("unavailable", "The database is not available; try again.") from None


class _Home:
    """The connections of one event loop. guard: ends with the loop, and they with it."""

    def __init__(self, engine: AsyncEngine, own: bool) -> None:
        self.open = False
        self.opening = asyncio.Lock()
        self.guard = self._until_the_loop_ends(engine, own)
        self._sqlite = engine.dialect.name == "sqlite"
        self.engine = engine
        self._autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._turn = asyncio.Lock()  # of SQLite's one writer: fairer than its own way of asking again and again

    async def _until_the_loop_ends(self, engine: AsyncEngine, own: bool) -> AsyncGenerator[None, None]:
        """An event loop closes what generators it has seen begin when it ends."""
        try:
            yield
        finally:
            if own:
                await engine.dispose()

    def reading(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A connection for one statement."""
        return self._autocommit.connect()

    @asynccontextmanager
    async def moment(self) -> AsyncIterator[AsyncConnection]:
        """A connection all of whose statements see one moment."""
        if self._sqlite:
            async with self._autocommit.connect() as connection:
                await connection.exec_driver_sql("BEGIN")
                yield connection
        else:
            async with self.engine.connect() as connection:
                yield await connection.execution_options(isolation_level="REPEATABLE READ")

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A connection whose transaction is committed at the end."""
        if self._sqlite:
            # What is read first decides what is written: nobody may write in between.
            async with self._turn, self._autocommit.begin() as connection:
                await connection.exec_driver_sql("BEGIN IMMEDIATE")
                yield connection
        else:
            async with self.engine.begin() as connection:
                yield connection


async def _nothing(connection: AsyncConnection) -> None:
    await connection.execute(sa.select(1))


async def _connect(**arguments: Any) -> Any:
    """A connection of asyncpg, which reads the URL as PostgreSQL's own programs do; SQLAlchemy would not."""
    asyncpg: Any = sys.modules["asyncpg"]  # which SQLAlchemy has imported, as it was found at start
    return await asyncpg.connect(**arguments)


def read_url(url: str, timeout: float) -> tuple[sa.URL, dict[str, Any], str]:
    """What SQLAlchemy is given, what asyncpg is called with, and the URL without its password, for the log.

    Raises ValueError for what no store can use, with the remedy: other databases and drivers, SQLite in memory, and
    parameters of PostgreSQL's URLs that asyncpg does not have.
    """
    name = url.partition(":")[0]
    driver = DRIVERS.get(name, name)
    if "://" not in url or driver not in DRIVERS.values():
        got = f"a URL that begins with {name}://" if "://" in url else "what is no URL" if url else "an empty text"
        raise ValueError(
            f"SQLStore got {got}, expected sqlite:// or postgresql://, without a driver's name: such as "
            "'sqlite:///todo.db' or 'postgresql://user@host/database'."
        )
    if driver == "postgresql+asyncpg":
        dsn, arguments, at = _read_postgresql_url(url, timeout)
        return sa.make_url("postgresql+asyncpg://"), {"dsn": dsn, **arguments}, at
    try:
        parsed = sa.make_url(url).set(drivername=driver)
    except (SQLAlchemyError, ValueError):
        raise ValueError("SQLStore got what is no URL of SQLite, expected such as 'sqlite:///todo.db'.") from None
    if parsed.host:
        raise ValueError(
            f"SQLStore got sqlite://{parsed.host}/…, expected sqlite:///name.db, or sqlite:////folder/name.db for one "
            "from the root."
        )
    if parsed.database in (None, "", ":memory:"):
        raise ValueError("SQLStore got SQLite without a file; for records in memory there is MemoryStore.")
    if str(parsed.database).startswith("~"):
        raise ValueError(
            f"SQLStore got the path {parsed.database!r}, in which ~ is not expanded: pass the whole path, as of "
            "os.path.expanduser."
        )
    return parsed, {}, parsed.render_as_string(hide_password=True)


# Parameters of PostgreSQL's URLs. asyncpg takes all that it does not know for settings of the server.
_FOR_ASYNCPG = frozenset({"host", "port", "dbname", "database", "user", "password", "passfile", "service"}) | {
    *("sslmode", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword", "sslnegotiation", "krbsrvname", "gsslib"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version", "target_session_attrs"),
}
_SETTINGS = frozenset({"application_name", "options", "search_path", "timezone", "statement_timeout"}) | {
    *("lock_timeout", "idle_in_transaction_session_timeout"),
}
_PASSED_OVER = frozenset({"channel_binding", "fallback_application_name", "client_encoding", "gssencmode"}) | {
    *("sslsni", "sslcompression", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"),
    *("tcp_user_timeout", "requirepeer", "load_balance_hosts", "connection_limit", "pool_timeout"),
}
_HOSTS = re.compile(r"((\[[^\]]+\]|[^:,\[\]]*)(:[0-9]+)?(,|$))*")
_VALUES: Mapping[str, tuple[str, ...]] = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "channel_binding": ("disable", "prefer", "require"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
}


def _read_postgresql_url(url: str, timeout: float) -> tuple[str, dict[str, Any], str]:
    """The URL for asyncpg, what it is called with beside, and the URL without password and parameters."""
    given = urlsplit(url)
    authority, _, hosts = given.netloc.rpartition("@")
    if given.fragment or "@" in given.path or "@" in authority:
        raise ValueError("SQLStore got a URL with #, / or @ in the user or password: write them %23, %2F and %40.")
    if _HOSTS.fullmatch(hosts) is None:
        raise ValueError(f"SQLStore got the host {hosts!r} in its URL, expected such as 'name:5432' or '[::1]:5432'.")
    parameters = dict(parse_qsl(given.query))
    if "ssl" in parameters:  # as SQLAlchemy's URLs name it
        parameters.setdefault("sslmode", parameters.pop("ssl"))
    settings: dict[str, str] = {"lock_timeout": str(int(timeout * 1000)), "application_name": "backsync"}
    arguments: dict[str, Any] = {"timeout": timeout, "server_settings": settings}
    kept: dict[str, str] = {}
    for name, value in parameters.items():
        if name in _VALUES and value not in _VALUES[name]:
            raise ValueError(f"SQLStore got {name}={value!r} in its URL, expected one of {', '.join(_VALUES[name])}.")
        if name in ("sslrootcert", "sslcert", "sslkey") and value != "system" and not os.path.exists(value):
            raise ValueError(f"SQLStore got {name}={value!r} in its URL, a file that is not there.")
        if name == "channel_binding" and value == "require":
            logger.warning(
                "SQLStore got channel_binding=require, which asyncpg does not have: it connects without. "
                "sslmode=verify-full has the server's certificate checked."
            )
        if name in _FOR_ASYNCPG:
            kept[name] = value
        elif name in _SETTINGS:
            settings[name] = value
        elif name == "connect_timeout":
            arguments["timeout"] = _seconds(value) or timeout
        elif name == "prepared_statement_cache_size":
            arguments[name] = int(_seconds(value))
        elif name == "pgbouncer":  # a pool that changes connections between statements
            arguments |= {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
            del settings["lock_timeout"]  # which it refuses
        elif name not in _PASSED_OVER:
            raise ValueError(
                f"SQLStore got the parameter {name} in its URL, which asyncpg does not have: leave it out. Settings of "
                "the server are given as options=-c%20NAME%3DVALUE."
            )
    if kept.get("sslmode") in ("verify-ca", "verify-full") and _uses_the_systems_certificates(kept):
        context = arguments["ssl"] = ssl.create_default_context()
        context.check_hostname = kept.pop("sslmode") == "verify-full"
        if "sslcert" in kept:
            context.load_cert_chain(kept["sslcert"], kept.get("sslkey"), kept.get("sslpassword"))
    query = f"?{urlencode(kept, quote_via=quote)}" if kept else ""
    at = f"postgresql://{authority.partition(':')[0]}{'@' if authority else ''}{hosts}{given.path}"
    return f"postgresql://{given.netloc}{given.path}{query}", arguments, at


def _uses_the_systems_certificates(parameters: dict[str, str]) -> bool:
    """Whether no file names whom to trust, in the URL or where asyncpg looks for one."""
    named = parameters.get("sslrootcert") or os.environ.get("PGSSLROOTCERT")
    if named == "system":
        parameters.pop("sslrootcert", None)
        return True
    return named is None and not os.path.exists(os.path.expanduser("~/.postgresql/root.crt"))


def _seconds(value: str) -> float:
    if not value.isascii() or not value.isdecimal():
        raise ValueError(f"SQLStore got {value!r} in its URL, expected a number.")
    return float(value)


def _set_up_sqlite(connection: Any, _: object) -> None:
    try:
        cursor = connection.cursor()  # what `execute` of the connection returns cannot be closed in SQLAlchemy 2.0
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()
    except BaseException:
        connection.close()  # nobody else does, as it is not in the pool yet
        raise


def _is_taken(error: DBAPIError) -> bool:
    """Whether somebody has added the same row in the meantime."""
    return isinstance(error, IntegrityError)


def _is_bad_data(error: Exception) -> bool:
    if isinstance(error, (IntegrityError, DataError)) or type(error) is StatementError:  # a parameter cannot be bound
        return True
    state = getattr(getattr(error, "orig", None), "sqlstate", None) or ""
    # And values that have no such comparison, as points have no order.
    return state[:2] in REFUSALS or state == "42883"


def _faults() -> tuple[type[Exception], ...]:
    """What a database raises; asyncpg by itself as it connects. TimeoutError is an OSError."""
    asyncpg: Any = sys.modules.get("asyncpg")
    drivers = () if asyncpg is None else (asyncpg.PostgresError, asyncpg.InterfaceError)
    return (SQLAlchemyError, OSError, *drivers)
