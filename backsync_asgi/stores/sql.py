"""SQLStore: records in SQLite or PostgreSQL, by SQLAlchemy; how they lie in rows is for tables.py."""

from __future__ import annotations

import asyncio
import logging
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
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from backsync_asgi.errors import Reject
from backsync_asgi.logs import Sparing
from backsync_asgi.messages import record_of

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
    Id,
    Query,
    Record,
    Unsure,
    check_version,
    invalid,
    matches,
    merge,
    missing,
    parse_query,
    replace,
)
from .tables import Columns, FreeForm, Layout, is_text, layout_of, select, snake_case

logger = logging.getLogger("backsync")
sparing = Sparing(logger, time.monotonic)

Result = TypeVar("Result")

DRIVERS: Mapping[str, str] = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
}
EXTRAS: Mapping[str, str] = {"aiosqlite": "sqlite", "asyncpg": "postgres"}
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
        self._url = None if url is None else parse_url(url)
        at = engine.url if engine is not None else self._url
        self._at = "" if at is None else at.set(password=None, query={}).render_as_string()
        if engine is not None:
            self._dialect = engine.dialect.name
        elif self._url is not None:
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
        await self._run(_nothing)

    async def close(self) -> None:
        """Close this event loop's connections. A later use opens new ones."""
        home = self._homes.pop(asyncio.get_running_loop(), None)
        if home is not None:
            await home.guard.aclose()

    # Reading

    async def read(self, query: Query) -> list[Record]:
        """The records that a query asks for; without an order as they were first written (a table's: by id)."""
        statement, rest, limit = self._select(query)

        async def work(connection: AsyncConnection) -> list[Record]:
            rows = (await connection.execute(statement)).all()
            return [self.layout.record(row) for row in rows]

        records = await self._run(work)
        return [record for record in records if matches(record, rest)][:limit] if rest else records

    async def snapshot(self, query: Query) -> AsyncGenerator[list[str], None]:
        """The same as JSON texts in chunks, all of one moment."""
        statement, rest, limit = self._select(query)
        left = limit
        with explained(self.table.name, at=self._at):
            async with (await self._whole(self._home())).moment() as connection:
                async with connection.stream(statement.execution_options(yield_per=CHUNK)) as result:
                    async for rows in result.partitions(CHUNK):
                        kept = [row for row in rows if matches(self.layout.record(row), rest)] if rest else rows
                        yield self.layout.texts(kept[:left])
                        if left is not None and (left := left - len(kept)) <= 0:
                            return

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
        row = (await connection.execute(statement.with_for_update() if lock else statement)).one_or_none()
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
            settings = {"lock_timeout": str(int(self._timeout * 1000)), "application_name": "backsync"}
            options["connect_args"] = {"timeout": self._timeout, "server_settings": settings}
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
            if await connection.run_sync(is_there) and not table.indexes:
                return
        async with home.writing() as connection:
            if self._dialect == "postgresql":
                number = zlib.crc32(table.fullname.encode())
                await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(number)))
            if not await connection.run_sync(is_there):
                await connection.run_sync(table.create)
            elif isinstance(self.layout, FreeForm):
                for index in table.indexes:
                    await connection.execute(CreateIndex(index, if_not_exists=True))


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


def parse_url(url: str) -> sa.URL:
    """A URL with an asynchronous driver. Raises ValueError for other databases, and for SQLite in memory."""
    try:
        parsed = sa.make_url(url)
    except SQLAlchemyError:
        got = "an empty text" if not url else "what is no URL"  # which may hold a password
        raise ValueError(
            f"SQLStore got {got}, expected such as 'sqlite:///todo.db' or 'postgresql://user@host/database'."
        ) from None
    parsed = parsed.set(drivername=DRIVERS.get(parsed.drivername, parsed.drivername))
    if parsed.drivername not in DRIVERS.values():
        raise ValueError(
            f"SQLStore got a URL that begins with {parsed.drivername}://, expected sqlite:// or postgresql://, without "
            "a driver's name."
        )
    if parsed.drivername == "sqlite+aiosqlite" and parsed.database in (None, "", ":memory:"):
        raise ValueError("SQLStore got SQLite without a file; for records in memory there is MemoryStore.")
    return parsed


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
    # SQL's classes of data errors and broken rules; and values that have no such comparison, as points have no order
    return state[:2] in ("22", "23") or state == "42883"


def _faults() -> tuple[type[Exception], ...]:
    """What a database raises; asyncpg by itself as it connects. TimeoutError is an OSError."""
    asyncpg: Any = sys.modules.get("asyncpg")
    drivers = () if asyncpg is None else (asyncpg.PostgresError, asyncpg.InterfaceError)
    return (SQLAlchemyError, OSError, *drivers)
