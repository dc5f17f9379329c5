"""Live PostgreSQL tables: triggers notify of the keys of changed rows, whoever changes them, and a listener reads them.

A notification carries keys only. The rows are read once more as they are now, many at a time: a row that changes often
costs one read for many changes, a large one needs no way of its own, and there is no older state that could come late.
What happened while the connection was lost is found by comparing each row's version (`xmin`) with what was known.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import orjson

from backsync_asgi.errors import Reject
from backsync_asgi.models import Context, Model

from .feed import Feed, Id, Record, check_secrets

try:
    import asyncpg
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('listen needs asyncpg: pip install "backsync-asgi[postgres]".', name=error.name) from None

logger = logging.getLogger("backsync")

MAX_ID = 128  # characters of a record's id
AT_ONCE = 500  # rows read by one statement
ALL = "*"  # a notification that tells no keys: everything may have changed
FIRST_DELAY, LAST_DELAY = 0.1, 15.0  # seconds between attempts to connect again, doubled each time, with chance
ALIVE_EVERY, ALIVE_WITHIN = 15.0, 10.0  # seconds: a connection that is cut off without a word is found by asking
CLOSE_WITHIN = 5.0  # seconds that running reads have
READERS = 4  # connections that answer clients' reads
LOST = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)

# Of a key that is too long for a record's id nobody hears; of a fault nobody who writes should: all is compared then.
FUNCTION = f"""
DECLARE
    rows text := CASE TG_OP
        WHEN 'INSERT' THEN 'SELECT %1$I::text AS key FROM new_rows'
        WHEN 'UPDATE' THEN 'SELECT %1$I::text AS key FROM new_rows UNION SELECT %1$I::text FROM old_rows'
        WHEN 'DELETE' THEN 'SELECT %1$I::text AS key FROM old_rows'
    END;
    payload text;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        PERFORM pg_notify(TG_ARGV[0], '{ALL}');
        RETURN NULL;
    END IF;
    FOR payload IN EXECUTE format(
        'SELECT jsonb_agg(key)::text FROM (
            SELECT key, sum(octet_length(to_jsonb(key)::text) + 2) OVER (ROWS UNBOUNDED PRECEDING) / 6000 AS page
            FROM (' || rows || ') AS keys WHERE length(key) <= {MAX_ID}
        ) AS pages GROUP BY page ORDER BY page', TG_ARGV[1]
    ) LOOP
        PERFORM pg_notify(TG_ARGV[0], payload);
    END LOOP;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    PERFORM pg_notify(TG_ARGV[0], '{ALL}');
    RETURN NULL;
END
"""

TRIGGERS = {
    "backsync_insert": "AFTER INSERT ON {table} REFERENCING NEW TABLE AS new_rows",
    "backsync_update": "AFTER UPDATE ON {table} REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows",
    "backsync_delete": "AFTER DELETE ON {table} REFERENCING OLD TABLE AS old_rows",
    "backsync_truncate": "AFTER TRUNCATE ON {table}",
}


@dataclass(frozen=True)
class Table:
    """A table as the database describes it. name, schema, key: quoted, as SQL takes them; columns: name to type."""

    oid: int
    name: str
    schema: str
    key: str
    key_column: str
    columns: Mapping[str, str]

    @property
    def channel(self) -> str:
        """Where its triggers notify: a name of at most 63 bytes, whatever the table's is."""
        return "backsync_" + hashlib.sha256(self.name.encode()).hexdigest()[:32]

    @property
    def key_type(self) -> str:
        return self.columns[self.key_column]

    def id_of(self, key: str) -> Id:
        """A key, given as text, as the record's `id`."""
        return int(key) if self.key_type in ("smallint", "integer", "bigint") else key


async def describe(connection: Any, name: str) -> Table:
    """Look a table up by its name, with a schema and quotes if need be. Raises ValueError, TypeError."""
    row = await connection.fetchrow(
        """
        SELECT c.oid::int8, c.relkind::text AS kind, quote_ident(n.nspname) AS schema,
               quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass($1)
        """,
        name,
    )
    if row is None:
        raise ValueError(f'listen got table={name!r}, which the database has not; names are as in SQL: app."Order".')
    if row["kind"] not in ("r", "p"):
        raise TypeError(f"listen got table={name!r}, which is no table: triggers need one.")
    columns = await connection.fetch(
        """
        SELECT a.attname AS name, quote_ident(a.attname) AS quoted, format_type(a.atttypid, a.atttypmod) AS type,
               coalesce(a.attnum = ANY(i.indkey), false) AS is_key
        FROM pg_attribute a LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary
        WHERE a.attrelid = $1::int8::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
        """,
        row["oid"],
    )
    keys = [column for column in columns if column["is_key"]]
    if len(keys) != 1:
        got = ", ".join(column["name"] for column in keys) or "missing"
        raise TypeError(f"listen got table={name!r}, whose primary key is {got}; a record has one id, of one column.")
    types = {column["name"]: column["type"] for column in columns}
    return Table(row["oid"], row["name"], row["schema"], keys[0]["quoted"], keys[0]["name"], types)


async def install(connection: Any, table: Table) -> None:
    """See to it that the table has its triggers; locks it only if something is missing."""
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(hashtext('backsync'))")  # processes start together
        function = f"{table.schema}.backsync_notify"
        source = await connection.fetchval("SELECT p.prosrc FROM pg_proc p WHERE p.oid = to_regproc($1)", function)
        if source != FUNCTION:
            await connection.execute(
                f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql "
                f"SET search_path = pg_catalog AS $backsync${FUNCTION}$backsync$"
            )
        arguments = ", ".join(
            await connection.fetchval(
                "SELECT ARRAY[quote_literal($1::text), quote_literal($2::text)]", table.channel, table.key_column
            )
        )
        there = await connection.fetch(
            "SELECT tgname FROM pg_trigger WHERE tgrelid = $1::int8::oid AND NOT tgisinternal AND tgenabled <> 'D' "
            "AND position($2 IN pg_get_triggerdef(oid)) > 0",
            table.oid,
            f"backsync_notify({arguments})",
        )
        for name in TRIGGERS.keys() - {row["tgname"] for row in there}:
            await connection.execute(f"DROP TRIGGER IF EXISTS {name} ON {table.name}")
            await connection.execute(
                f"CREATE TRIGGER {name} {TRIGGERS[name].format(table=table.name)} "
                f"FOR EACH STATEMENT EXECUTE FUNCTION {function}({arguments})"
            )


async def uninstall(dsn: str, table: str) -> None:
    """Remove from a table what `listen` has installed. Raises ValueError where there is no such table."""
    connection = await asyncpg.connect(dsn)
    try:
        found = await describe(connection, table)
        async with connection.transaction():
            for name in TRIGGERS:
                await connection.execute(f"DROP TRIGGER IF EXISTS {name} ON {found.name}")
        with contextlib.suppress(asyncpg.DependentObjectsStillExistError):  # other tables of the schema are live
            await connection.execute(f"DROP FUNCTION IF EXISTS {found.schema}.backsync_notify()")
    finally:
        await connection.close()


class Listener:
    """A live table; made by `listen`, live while it is entered."""

    def __init__(
        self,
        model: Model,
        dsn: str,
        *,
        table: str,
        fields: Sequence[str] | None,
        to_record: Callable[[Record], Record] | None,
        install: bool,
    ) -> None:
        if model.store is not None:
            raise ValueError(f"listen({model.name}) got a model with a store: records have one home. Leave out store=.")
        self._model = model
        self._dsn = dsn
        self._name = table
        self._chosen = fields
        self._to_record = to_record
        self._install = install
        self._feed = Feed(model, is_present=True)
        self._versions: dict[str, int] | None = None  # by key as text: the xmin of the row that was last seen
        self._noted: dict[str, None] = {}  # keys, or ALL, in the order in which they were notified of
        self._news = asyncio.Event()
        self._lost = False
        self._table: Table | None = None
        self._pool: Any = None
        self._first: Any = None  # the connection that the task begins with
        self._task: asyncio.Task[None] | None = None
        if not model.readable:
            model.on("read")(self._read)

    async def __aenter__(self) -> Self:
        connection = await self._connect()  # a mistake in a name or password shows here
        try:
            await self._prepare(connection)
        except BaseException:
            await connection.close()
            raise
        self._pool = asyncpg.create_pool(self._dsn, min_size=0, max_size=READERS, statement_cache_size=0)
        await self._pool
        self._first = connection
        self._task = asyncio.create_task(self._run(), name=f"backsync listens to {self._name}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        if self._first is not None:  # it was cancelled before it began
            self._first.terminate()
        try:
            async with asyncio.timeout(CLOSE_WITHIN):
                await self._pool.close()
        except LOST:
            self._pool.terminate()

    # The connection that listens

    async def _run(self) -> None:
        """Serve one connection after the other; ends only by being cancelled."""
        connection, self._first = self._first, None
        attempt = 0
        while True:
            try:
                if connection is None:
                    connection = await self._connect()
                    await self._prepare(connection)
                    logger.info("The listener of %s is back.", self._name)
                attempt = 0
                await self._serve(connection)
            except LOST as error:
                logger.warning("The listener of %s has lost its connection: %r", self._name, error)
            except Exception:
                logger.exception("The listener of %s failed and starts again.", self._name)
            finally:
                if connection is not None:
                    connection.terminate()
            connection = None
            # With chance, so that the processes of a large application do not come back in step.
            await asyncio.sleep(min(LAST_DELAY, FIRST_DELAY * 2**attempt) * random.uniform(0.5, 1))
            attempt = min(attempt + 1, 20)

    async def _connect(self) -> Any:
        settings = {"application_name": f"backsync {self._model.name}"}  # as pg_stat_activity shows it
        return await asyncpg.connect(self._dsn, statement_cache_size=0, timeout=ALIVE_WITHIN, server_settings=settings)

    async def _prepare(self, connection: Any) -> None:
        """Listen, then learn what there is and broadcast what has changed since the last time."""
        table = await describe(connection, self._name)
        check_columns(self._model, table, self._chosen, self._to_record is not None)
        if self._install:
            await install(connection, table)
        self._table = table
        self._lost = False
        connection.add_termination_listener(self._on_lost)
        self._noted.clear()
        await connection.add_listener(table.channel, self._on_notification)
        await self._compare(connection, table)

    async def _serve(self, connection: Any) -> None:
        assert self._table is not None
        while True:
            try:
                async with asyncio.timeout(ALIVE_EVERY):
                    await self._news.wait()
            except TimeoutError:
                await connection.execute("SELECT 1", timeout=ALIVE_WITHIN)
            self._news.clear()
            noted, self._noted = self._noted, {}
            if self._lost:
                raise ConnectionError("the server has ended it")
            if ALL in noted:
                del noted[ALL]
                await self._compare(connection, self._table)
            await self._broadcast(connection, self._table, noted)

    def _on_lost(self, connection: Any) -> None:
        self._lost = True
        self._news.set()

    def _on_notification(self, connection: Any, process: int, channel: str, payload: str) -> None:
        self._noted.update(dict.fromkeys([ALL] if payload == ALL else orjson.loads(payload)))
        self._news.set()

    # Rows

    async def _compare(self, connection: Any, table: Table) -> None:
        """Broadcast what differs from what was known; at first only learn it, for every client starts by reading."""
        known, seen, changed = self._versions, {}, []
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            query = (
                f"SELECT {table.key}::text, xmin::text::int8 FROM {table.name} WHERE length({table.key}::text) <= 128"
            )
            async for key, version in connection.cursor(query, prefetch=5000):
                seen[key] = version
                if known is not None and known.get(key) != version:
                    changed.append(key)
        if known is None:
            self._versions = seen
        else:
            gone = [key for key in known if key not in seen]
            await self._broadcast(connection, table, [*gone, *changed])

    async def _broadcast(self, connection: Any, table: Table, keys: Iterable[str]) -> None:
        """Read rows and broadcast them, those that are no more as deleted."""
        assert self._versions is not None
        wanted = list(keys)
        query = self._select(table) + f" WHERE {table.key} = ANY($1::text[]::{table.key_type}[])"
        for start in range(0, len(wanted), AT_ONCE):
            some = wanted[start : start + AT_ONCE]
            rows = {row["key"]: row for row in await connection.fetch(query, some)}
            changes: dict[Id, Record | None] = {}
            for key in some:
                row, id = rows.get(key), table.id_of(key)
                if row is not None:
                    self._versions[key] = row["version"]
                    try:
                        changes[id] = self._record(table, row)
                    except Exception:
                        logger.exception("The change of %s %r cannot be broadcast.", self._model.name, id)
                elif self._versions.pop(key, None) is not None:
                    changes[id] = None
            self._feed.end(self._feed.begin(), changes)

    def _select(self, table: Table) -> str:
        """The statement that reads rows as JSON, without a condition."""
        columns = "t.*" if self._chosen is None else ", ".join(f"t.{quoted(name)}" for name in self._chosen)
        row = f"(SELECT to_jsonb(r) FROM (SELECT {columns}) r)::text"
        return f"SELECT t.{table.key}::text AS key, t.xmin::text::int8 AS version, {row} AS row FROM {table.name} t"

    def _record(self, table: Table, row: Any) -> Record:
        id = table.id_of(row["key"])
        fields = orjson.loads(row["row"])
        return {**(fields if self._to_record is None else self._to_record(fields)), "id": id}

    # Reading

    async def _read(self, ctx: Context, query: dict[str, Any]) -> Any:
        table = self._table
        if table is None or self._pool is None:
            raise Reject("unavailable", f"{self._model.name} has no connection to its database. Try again.")
        conditions: list[str] = []
        values: list[str] = []
        for name, value in query.items():
            column, allowed = table.key_column if name == "id" else name, self._filters(table)
            if column not in allowed or isinstance(value, (dict, list)):
                raise Reject(
                    "invalid",
                    f"{self._model.name} cannot be read by {name!r}, only by values of {', '.join(allowed)}.",
                    [{"field": name, "message": "not a field to read by"}],
                )
            if value is None:
                conditions.append(f"t.{quoted(column)} IS NULL")
            else:
                values.append(value if isinstance(value, str) else orjson.dumps(value).decode())
                conditions.append(f"t.{quoted(column)} = CAST(${len(values)}::text AS {table.columns[column]})")
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        try:
            rows = await self._pool.fetch(f"{self._select(table)}{where} ORDER BY t.{table.key}", *values)
        except asyncpg.DataError as error:
            if set(query) == {"id"}:
                return None  # no record has such an id
            raise Reject("invalid", f"{self._model.name} cannot be read so: {error}") from None
        except LOST as error:
            logger.warning("%s could not be read: %r", self._model.name, error)
            raise Reject("unavailable", f"{self._model.name} has no connection to its database. Try again.") from None
        records = [self._record(table, row) for row in rows]
        if set(query) != {"id"}:
            return records
        return records[0] if records else None

    def _filters(self, table: Table) -> list[str]:
        """The columns that reads may name: what is not shown is not to be probed."""
        if self._chosen is not None:
            return [table.key_column, *(name for name in self._chosen if name != table.key_column)]
        if self._to_record is not None:
            return [table.key_column, *(name for name in self._model.options.key if name in table.columns)]
        return list(table.columns)


def check_columns(model: Model, table: Table, fields: Sequence[str] | None, has_to_record: bool) -> None:
    """Raises ValueError for columns that there are not, or that should not be sent."""
    if fields is not None:
        unknown = [name for name in fields if name not in table.columns]
        if unknown:
            raise ValueError(f"listen({model.name}) got the fields {unknown}, which {table.name} has not.")
    elif not has_to_record:
        if "id" in table.columns and table.key_column != "id":
            raise ValueError(f"listen({model.name}): {table.name}.id is not its primary key. Name others by fields=.")
        check_secrets(model, table.name, table.columns)


def quoted(name: str) -> str:
    """A name as SQL takes it."""
    return '"' + name.replace('"', '""') + '"'
