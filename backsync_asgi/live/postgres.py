"""Live PostgreSQL tables: triggers notify of the keys of changed rows, whoever changes them, and a listener reads them.

A notification carries keys only. The rows are read once more as they are now, many at a time: a row that changes often
costs one read for many changes, a large one needs no way of its own, and there is no older state that could come late.
What happened while the connection was lost is found by comparing each row's version (`xmin`) with what was known.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import math
import random
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Any, Self

import orjson

from backsync_asgi.errors import EncodeError, Reject
from backsync_asgi.logs import Sparing
from backsync_asgi.messages import MAX_SAFE_INTEGER, is_id, shorten
from backsync_asgi.models import Model
from backsync_asgi.stores.base import CHUNK, MAX_PAGE, Query, Selection, Skipped, id_number_sql, invalid

from .feed import UNSENDABLE, Feed, Id, Record, check_secrets, plain, record_made
from .reading import Made, TableReader, is_for_one, selection_of, sendable

try:
    import asyncpg
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('listen needs asyncpg: pip install "backsync-asgi[postgres]".', name=error.name) from None

logger = logging.getLogger("backsync")
sparing = Sparing(logger, time.monotonic)

MAX_ID = 128  # characters of a record's id
AT_ONCE = 500  # rows read by one statement
ALL = "*"  # a notification that tells no keys: everything may have changed
FIRST_DELAY, LAST_DELAY = 0.1, 15.0  # seconds between attempts to connect again, doubled each time, with chance
CHECK_EVERY, CHECK_WITHIN = 15.0, 10.0  # seconds: what goes without a word, connection or trigger, is found by asking
CLOSE_WITHIN = 5.0  # seconds that running reads have
READERS = 4  # connections that answer clients' reads
INTEGERS = ("smallint", "integer", "bigint")
INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")  # as JSON has it
NUMBERS = (*INTEGERS, "real", "double precision", "numeric")
INFINITE = ("NaN", "Infinity", "-Infinity")  # numbers that JSON has as text
# What has the same order as its JSON text has in a browser; all else is ordered by that text.
TIMES = ("date", "time without time zone", "timestamp without time zone", "timestamp with time zone")
ORDERED = (*NUMBERS, *TIMES, "boolean", "uuid")
UNORDERED = ("json", "jsonb", "xml", "point", "line", "lseg", "box", "path", "polygon", "circle")
SETTINGS = {"timezone": "UTC"}  # by which times are written: those of two seasons would not sort as text
# Numbers in JSON that have more digits than a number of 64 bits keeps, or an exponent; texts may look so, too.
LONG_NUMBER = re.compile(r"[\[:,]\s*-?(?:\d{16}|[\d.]{17}|[\d.]+[eE])")
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


class Altered(Exception):
    """The table is not the one any more that the listener has prepared for."""


@dataclass(frozen=True)
class Table:
    """A table as the database describes it. name, schema, key: quoted, as SQL takes them; columns: name to type, as
    casts take it; required: those that are never NULL."""

    oid: int
    name: str
    schema: str
    key: str
    key_column: str
    columns: Mapping[str, str]
    required: frozenset[str]

    @property
    def channel(self) -> str:
        """Where its triggers notify: a name of at most 63 bytes, whatever the table's is."""
        return "backsync_" + hashlib.sha256(self.name.encode()).hexdigest()[:32]

    @property
    def key_type(self) -> str:
        return self.columns[self.key_column]

    def id_of(self, key: str) -> Id:
        """A key, given as text, as the record's `id`: of integers above 2^53, too, a text."""
        id: Id = plain(int(key)) if self.key_type in INTEGERS else key
        return id


FIND = """
    SELECT c.oid::int8, c.relkind::text AS kind, quote_ident(n.nspname) AS schema,
           quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass($1)
"""


async def describe(connection: Any, name: str) -> Table:
    """Look a table up by its name, with a schema and quotes if need be. Raises ValueError, TypeError."""
    try:
        row = await connection.fetchrow(FIND, name)
    except asyncpg.InvalidNameError:
        row = None
    if row is None:
        raise ValueError(f'listen got table={name!r}, which the database has not; names are as in SQL: app."Order".')
    if row["kind"] not in ("r", "p"):
        raise TypeError(f"listen got table={name!r}, which is no table: triggers need one.")
    columns = await connection.fetch(
        """
        SELECT a.attname AS name, quote_ident(a.attname) AS quoted,
               format_type(CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE a.atttypid END, -1) AS type,
               a.attnotnull AS is_required, coalesce(a.attnum = ANY(i.indkey), false) AS is_key
        FROM pg_attribute a LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary
        JOIN pg_type t ON t.oid = a.atttypid
        WHERE a.attrelid = $1::int8::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
        """,
        row["oid"],
    )
    keys = [column for column in columns if column["is_key"]]
    if len(keys) != 1:
        got = ", ".join(column["name"] for column in keys) or "missing"
        raise TypeError(f"listen got table={name!r}, whose primary key is {got}; a record has one id, of one column.")
    types = {column["name"]: column["type"] for column in columns}
    required = frozenset(column["name"] for column in columns if column["is_required"])
    return Table(row["oid"], row["name"], row["schema"], keys[0]["quoted"], keys[0]["name"], types, required)


async def arguments_of(connection: Any, table: Table) -> str:
    """What the triggers call their function with, as SQL writes it."""
    statement = "SELECT quote_literal($1::text) || ', ' || quote_literal($2::text)"
    arguments: str = await connection.fetchval(statement, table.channel, table.key_column)
    return arguments


async def missing(connection: Any, table: Table) -> set[str]:
    """The names of the triggers that the table lacks, or has but for another key, or disabled."""
    there = await connection.fetch(
        "SELECT tgname FROM pg_trigger WHERE tgrelid = $1::int8::oid AND NOT tgisinternal AND tgenabled <> 'D' "
        "AND position($2 IN pg_get_triggerdef(oid)) > 0",
        table.oid,
        f"backsync_notify({await arguments_of(connection, table)})",
    )
    return TRIGGERS.keys() - {row["tgname"] for row in there}


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
        arguments = await arguments_of(connection, table)
        for name in await missing(connection, table):
            await connection.execute(f"DROP TRIGGER IF EXISTS {name} ON {table.name}")
            await connection.execute(
                f"CREATE TRIGGER {name} {TRIGGERS[name].format(table=table.name)} "
                f"FOR EACH STATEMENT EXECUTE FUNCTION {function}({arguments})"
            )


async def uninstall(dsn: str, table: str) -> None:
    """Remove from a table what `listen` has installed. Raises ValueError where there is no such table."""
    connection = await asyncpg.connect(without_driver(dsn))
    try:
        found = await describe(connection, table)
        async with connection.transaction():
            for name in TRIGGERS:
                await connection.execute(f"DROP TRIGGER IF EXISTS {name} ON {found.name}")
        with contextlib.suppress(asyncpg.DependentObjectsStillExistError):  # other tables of the schema are live
            await connection.execute(f"DROP FUNCTION IF EXISTS {found.schema}.backsync_notify()")
    finally:
        await connection.close()


def without_driver(dsn: str) -> str:
    """A URL as asyncpg reads it: one of SQLAlchemy's names a driver, too."""
    return re.sub(r"^(postgres(?:ql)?)\+\w+://", r"\1://", dsn)


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
        self._dsn = without_driver(dsn)
        self._name = table
        self._chosen = fields
        self._to_record = to_record
        self._install = install
        self._feed = Feed(model, is_present=True)
        self._skipped = Skipped(model.name)
        self._versions: dict[str, int] | None = None  # by key as text: the xmin of the row that was last seen
        self._noted: dict[str, None] = {}  # keys, or ALL, in the order in which they were notified of
        self._news = asyncio.Event()
        self._lost = False
        self._table: Table | None = None
        self._pool: Any = None
        self._first: Any = None  # the connection that the task begins with
        self._task: asyncio.Task[None] | None = None
        model.hears_others = True
        if not model.readable:
            model.read_from(TableReader(self._rows, self._skipped, self._texts if to_record is None else None))

    async def __aenter__(self) -> Self:
        connection = await self._connect()  # a mistake in a name or password shows here
        try:
            await self._prepare(connection)
        except BaseException:
            await connection.close()
            raise
        self._pool = asyncpg.create_pool(
            self._dsn, min_size=0, max_size=READERS, statement_cache_size=0, server_settings=SETTINGS
        )
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
        attempt, is_altered = 0, False
        while True:
            try:
                if connection is None:
                    connection = await self._connect()
                    await self._prepare(connection)
                    logger.info("The listener of %s is back.", self._name)
                    if is_altered:  # the same rows may be other records
                        self._model.changes_lost()
                        is_altered = False
                attempt = 0
                await self._serve(connection)
            except LOST as error:
                logger.warning("The listener of %s has lost its connection: %r", self._name, error)
            except Altered as error:
                logger.warning("The listener of %s starts again: %s", self._name, error)
                is_altered = True
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
        settings = {**SETTINGS, "application_name": f"backsync {self._model.name}"}  # as pg_stat_activity shows it
        return await asyncpg.connect(self._dsn, statement_cache_size=0, timeout=CHECK_WITHIN, server_settings=settings)

    async def _prepare(self, connection: Any) -> None:
        """Listen, then learn what there is and broadcast what has changed since the last time."""
        table = await describe(connection, self._name)
        check_columns(self._model, table, self._chosen, self._to_record is not None)
        if self._install:
            await install(connection, table)
        elif lacking := await missing(connection, table):
            raise ValueError(
                f"listen({self._model.name}) got install=False, but {table.name} lacks {', '.join(sorted(lacking))}. "
                "Let its owner call backsync_asgi.live.postgres.install, or leave out install=False."
            )
        self._table = table
        self._lost = False
        connection.add_termination_listener(self._on_lost)
        self._noted.clear()
        await connection.add_listener(table.channel, self._on_notification)
        await self._compare(connection, table)

    async def _serve(self, connection: Any) -> None:
        assert self._table is not None
        now = asyncio.get_running_loop().time
        check_at = now() + CHECK_EVERY
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(check_at):
                    await self._news.wait()
            if now() >= check_at:
                async with asyncio.timeout(CHECK_WITHIN):
                    await self._check(connection, self._table)
                check_at = now() + CHECK_EVERY
            self._news.clear()
            noted, self._noted = self._noted, {}
            if self._lost:
                raise ConnectionError("the server has ended it")
            if ALL in noted:
                del noted[ALL]
                await self._compare(connection, self._table)
            await self._broadcast(connection, self._table, noted)

    async def _check(self, connection: Any, table: Table) -> None:
        """Raises Altered where the table is not what it was: a migration may have made it anew, without triggers."""
        try:
            now = await describe(connection, self._name)
        except (TypeError, ValueError) as error:
            raise Altered(str(error)) from None
        if now != table or await missing(connection, table):
            raise Altered(f"{table.name} was made anew or altered")

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
        query = (
            f"{self._select(table)}, t.xmin::text::int8 AS version FROM {table.name} t "
            f"WHERE t.{table.key} = ANY($1::text[]::{table.key_type}[])"
        )
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
                        changes[id] = UNSENDABLE
                elif self._versions.pop(key, None) is not None:
                    changes[id] = None
            self._feed.end(self._feed.begin(), changes)

    def _select(self, table: Table) -> str:
        """How a statement begins that reads rows as JSON; whole records where there is no `to_record`."""
        names = ["*"] if self._chosen is None else [quoted(name) for name in self._chosen if name != "id"]
        columns, row = [f"t.{name}" for name in names], "to_json(backsync_row)"
        if self._to_record is None and (self._chosen is not None or table.key_column != "id"):
            columns.insert(0, f"t.{table.key}{'' if table.key_type in INTEGERS else '::text'} AS id")
        elif self._to_record is None and table.key_type not in (*INTEGERS, "text", "uuid", "character varying"):
            row = f"to_jsonb(backsync_row) || jsonb_build_object('id', t.{table.key}::text)"
        row = f"(SELECT {row} FROM (SELECT {', '.join(columns)}) backsync_row)::text"
        return f"SELECT t.{table.key}::text AS key, {row} AS row"

    def _record(self, table: Table, row: Any) -> Record:
        fields: Record = orjson.loads(exact(row["row"]))
        if self._to_record is None:
            return fields
        return record_made(table.id_of(row["key"]), {**self._to_record(fields), "id": table.id_of(row["key"])})

    # Reading

    def _rows(self, query: Query, make: Callable[[Record], Made]) -> AsyncGenerator[list[Made], None]:
        return self._made(query, lambda table, row: make(self._record(table, row)))

    def _texts(self, query: Query) -> AsyncGenerator[list[str], None]:
        return self._made(query, lambda table, row: text_of_row(row))

    async def _made(self, query: Query, make: Callable[[Table, Any], Made]) -> AsyncGenerator[list[Made], None]:
        """What is made of the rows that a query asks for, in chunks; rows that cannot be sent are left out."""
        table = self._table
        if table is None or self._pool is None:
            raise Reject("unavailable", f"{self._model.name} has no connection to its database. Try again.")
        selection = selection_of(self._model, query, self._filters(table))
        where, order, values = conditions_of(table, selection)

        def made(rows: Sequence[Any]) -> Iterator[Made]:
            skipped = None if is_for_one(query) else self._skipped
            return sendable(rows, partial(make, table), lambda row: table.id_of(row["key"]), skipped)

        try:
            if selection.limit is not None:
                missing, step, offset = selection.limit, selection.limit, 0
                while missing:
                    # Only of the page's rows JSON is made.
                    page = f"SELECT t.* FROM {table.name} t{where}{order} LIMIT {step} OFFSET {offset}"
                    rows = await self._pool.fetch(f"{self._select(table)} FROM ({page}) t{order}", *values)
                    some = [*islice(made(rows), missing)]
                    yield some
                    missing -= len(some) if len(rows) == step else missing
                    offset, step = offset + step, min(MAX_PAGE, 2 * step)
                return
            statement = f"{self._select(table)} FROM {table.name} t{where}{order}"
            if "id" in selection.where:
                yield [*made(await self._pool.fetch(statement, *values))]
                return
            async with self._pool.acquire() as connection, connection.transaction(readonly=True):
                cursor = await connection.cursor(statement, *values)
                while rows := await cursor.fetch(CHUNK):
                    yield [*made(rows)]
        except asyncpg.DataError as error:  # a value that its column cannot hold is in none of the rows
            if selection.after is not None or not selection.where:
                raise Reject("invalid", f"{self._model.name} cannot be read so: {error}", []) from None
        except asyncpg.UndefinedFunctionError as error:  # as points have no order
            raise Reject("invalid", f"{self._model.name} cannot be read so: {error}", []) from None
        except LOST as error:
            sparing.log(logging.WARNING, self._model, "%s could not be read: %r", self._model.name, error)
            raise Reject("unavailable", f"{self._model.name} has no connection to its database. Try again.") from None

    def _filters(self, table: Table) -> list[str]:
        """What a query may name."""
        if self._chosen is not None:
            names: Iterable[str] = self._chosen
        elif self._to_record is not None:
            names = (name for name in self._model.options.key if name in table.columns)
        else:
            names = table.columns
        return list(dict.fromkeys(("id", *names)))


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


# Numbers that browsers cannot hold


def text_of_row(row: Any) -> str:
    """A row as JSON text. Raises EncodeError where it has no id."""
    if not is_id(row["key"]):
        raise EncodeError("It has no id that a record can have: a string of 1-128 characters or an integer.")
    return exact(row["row"])


def exact(text: str) -> str:
    """The same JSON, with text in place of numbers that a number of 64 bits does not hold exactly."""
    if LONG_NUMBER.search(text) is None:
        return text
    return orjson.dumps(json.loads(text, parse_int=_whole, parse_float=_broken)).decode()


def _whole(digits: str) -> Any:
    return digits if len(digits) > 17 or abs(int(digits)) > MAX_SAFE_INTEGER else int(digits)


def _broken(digits: str) -> Any:
    number = float(digits)
    return number if math.isfinite(number) and Decimal(digits) == Decimal(repr(number)) else digits


def inexact(digits: str) -> bool:
    """Whether it is a number as `exact` writes those that browsers cannot hold."""
    if re.fullmatch(r"-?\d+(\.\d+)?([eE][+-]?\d+)?", digits) is None:
        return False
    return isinstance(_whole(digits) if digits.lstrip("-").isdigit() else _broken(digits), str)


# How values compare: in the database, as what their text is to it


def conditions_of(table: Table, selection: Selection) -> tuple[str, str, list[str]]:
    """The conditions and the order of a statement that reads rows, and its parameters. Raises Reject("invalid")."""
    values: list[str] = []

    def parameter(text: str, type: str) -> str:
        values.append(text)
        return f"CAST(${len(values)}::text AS {type})"

    where = []
    for name, value in selection.where.items():
        column, type = column_of(table, name)
        if isinstance(value, (list, dict)) or type in ("json", "jsonb"):
            text = orjson.dumps(value).decode()
            condition = f"coalesce(to_jsonb({column}), 'null') = {parameter(text, 'jsonb')}"
        elif value is None:
            condition = f"{column} IS NULL"
        else:
            known = text_of(table, name, value)
            condition = "false" if known is None else f"{column} = {parameter(known, type)}"
        where.append(condition)
    places: list[tuple[str, bool, str | None]] = []  # what to order by, whether it descends, the value to be beyond
    for name, descending in selection.places:
        column, type = column_of(table, name)
        if type in UNORDERED or type.endswith("[]"):
            raise invalid("$order", f"names {name}, which is not a field that has an order")
        is_optional = name != "id" and name not in table.required
        value = None if selection.after is None else selection.after[name]
        bound = None
        if selection.after is not None and not (value is None and is_optional):
            known = text_of(table, name, value)
            if known is None:
                raise invalid("$after", f"has {shorten(value)} for {name}, which is no value of it")
            bound = parameter(known, type if type in ORDERED else "text")
        if type not in ORDERED:
            column = f"""(to_jsonb({column}) #>> '{{}}') COLLATE "C\""""
            if type in ("text", "character varying"):
                column = f't.{quoted(table.key_column if name == "id" else name)} COLLATE "C"'
            if name == "id":
                number = partial(id_number_sql, "postgresql")
                places.append((number(f"({column})"), descending, bound if bound is None else number(bound)))
        if is_optional:
            places.append((f"({column} IS NOT NULL)", descending, str(value is not None)))
        places.append((column, descending, bound))
    if selection.after is not None:
        where.append(beyond([place for place in places if place[2] is not None]))
    order = ", ".join(f"{place} DESC" if descending else place for place, descending, _ in places)
    return f" WHERE {' AND '.join(where)}" if where else "", f" ORDER BY {order}", values


def column_of(table: Table, name: str) -> tuple[str, str]:
    """A field's column and its type."""
    name = table.key_column if name == "id" else name
    return f"t.{quoted(name)}", table.columns[name]


def text_of(table: Table, name: str, value: Any) -> str | None:
    """A value of a field as text that can be cast to its type; None for what no row has, as a text for a number."""
    if name == "id":
        text = str(value)
        return text if is_id(value) and (table.key_type not in INTEGERS or INTEGER.fullmatch(text)) else None
    type = table.columns[name]
    if type == "boolean":
        return str(value) if isinstance(value, bool) else None
    if type not in NUMBERS:
        return value if isinstance(value, str) else None
    if isinstance(value, str):  # which only some numbers are, to a browser
        return value if value in INFINITE or (len(value) > 15 and inexact(value)) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def beyond(places: Sequence[tuple[str, bool, str | None]]) -> str:
    """The condition that a row comes after a place in the order."""
    directions = {descending for _, descending, _ in places}
    if len(directions) == 1:  # as a row value, which finds its place in an index
        left, right = (", ".join(str(place[index]) for place in places) for index in (0, 2))
        return f"({left}) {'<' if True in directions else '>'} ({right})"
    condition = "false"
    for place, descending, bound in reversed(places):
        condition = f"({place} {'<' if descending else '>'} {bound} OR ({place} = {bound} AND {condition}))"
    return condition
