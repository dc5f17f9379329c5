"""Live SQLAlchemy classes: which rows a transaction has changed, and what they hold as it is committed.

While a transaction runs, only the primary keys of changed rows are noted. Just before its COMMIT they are read once
more, in the same transaction: what is broadcast is what the database holds, whatever its defaults and triggers did.
After the COMMIT it goes out. A key that was noted in vain, as by a statement that changed nothing, costs but a read.
"""

from __future__ import annotations

import contextlib
import datetime
import inspect as inspect_
import logging
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any
from weakref import WeakSet

from sqlalchemy import Column, Delete, Insert, LargeBinary, Table, Update, event, inspect, select
from sqlalchemy.engine import Connection, CursorResult, Engine, ExceptionContext, TwoPhaseTransaction
from sqlalchemy.exc import DBAPIError, InvalidRequestError, SQLAlchemyError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
)
from sqlalchemy.orm import (
    Mapper,
    Session,
    object_mapper,
    object_session,
    scoped_session,
    sessionmaker,
    with_polymorphic,
)
from sqlalchemy.pool import Pool, SingletonThreadPool, StaticPool
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, BooleanClauseList, ColumnElement

from backsync_asgi.messages import shorten
from backsync_asgi.models import Model
from backsync_asgi.stores.base import CHUNK, Query, Skipped, matches
from backsync_asgi.stores.sql import explained
from backsync_asgi.stores.tables import Fields
from backsync_asgi.stores.tables import select as select_rows

from .feed import (
    UNSENDABLE,
    Again,
    Feed,
    Id,
    Record,
    UnseenWrite,
    check_live,
    check_secrets,
    plain,
    record_made,
    write_pattern,
    writes,
)
from .home import (
    SCHEMA_CHANGE,
    SCHEMA_OF,
    SCHEMAS,
    Home,
    Same,
    home_of,
    homes_of,
    is_autocommit,
    place_of,
    schema_of,
    single_bind,
    sync_bind,
)
from .reading import (
    Made,
    TableReader,
    Unreadable,
    is_for_one,
    limited,
    readable,
    salvaged,
    selection_of,
    sendable,
)

logger = logging.getLogger("backsync")

AT_ONCE = 500  # rows read by one statement; SQLite takes 32 766 parameters, old ones 999
OPTION = "backsync_bulk"  # the execution option by which one statement passes unseen

READER = "backsync_reader"  # marks the sessions of our own
MAX_LOGGED = 100  # databases and schemas that are not the model's
COMMIT = re.compile(r"\s*(?:commit|end)\b(?!\s+prepared)", re.IGNORECASE)

Keys = dict[Any, None]  # primary keys in the order in which they were first changed


ALL: WeakSet[LiveMapping] = WeakSet()  # that broadcast


class Unit:
    """What is known of a session: whether it is flushing, and which connections it has begun on."""

    def __init__(self) -> None:
        self.flushing = False
        self.connections: WeakSet[Connection] = WeakSet()
        self.keys: Keys = {}  # said by `changed`


class Journal:
    """The rows that a connection's transaction has changed, savepoint by savepoint; at its end, what they hold.

    It hangs on the connection's `info`. It relies on savepoints being nested; where they are not, it knows too many
    keys, never too few.
    """

    def __init__(self) -> None:
        self.unit: Unit | None = None  # of the session whose transaction it is
        self.homes: list[Home] = []  # of the model, as this transaction first wrote
        self.same: Same | None = None  # whether it is in one of these databases
        self.has_moved = False  # it names other schemas now than when it began to write
        self.levels: list[Keys] = [{}]
        self.ticket: int | None = None  # set between the order to COMMIT and its outcome
        self.keys: Keys = {}  # whose rows were read then
        self.changes: dict[Id, Record | None] | None = None  # None: to be read by a session of the model's own

    @property
    def has_keys(self) -> bool:
        return any(self.levels)

    def take_keys(self) -> Keys:
        keys: Keys = {}
        for level in self.levels:
            keys.update(level)
        self.levels = [{}]
        return keys


class Source:
    """What rows are read from: whole objects, or where that will do (and is five times as fast) some columns only."""

    def __init__(self, entity: Any, id: str, columns: Sequence[str] | None) -> None:
        self.entity = entity
        self.columns = columns
        self.id = getattr(entity, id)
        self._id = id

    @property
    def is_flat(self) -> bool:
        return self.columns is not None

    def selected(self) -> list[Any]:
        if self.columns is None:
            return [self.entity]
        return [self.id, *(getattr(self.entity, name) for name in self.columns)]

    def rows(self, result: Any) -> Iterable[Any]:
        if self.columns is not None:
            return result  # type: ignore[no-any-return]
        return result.unique().scalars()  # type: ignore[no-any-return] # of a joined collection there are several rows

    def id_of(self, found: Any) -> Id:
        return plain(self.key_of(found))  # type: ignore[no-any-return]

    def key_of(self, found: Any) -> Any:
        return getattr(found, self._id) if self.columns is None else found[0]


class LiveMapping:
    """A mapped class whose committed changes are broadcast; made by `live`, ended by `close`."""

    def __init__(
        self,
        model: Model,
        mapped: type[Any],
        *,
        session: Any,
        fields: Sequence[str] | None,
        to_record: Callable[[Any], Record] | None,
        bulk: str,
    ) -> None:
        mapper = inspect(mapped)
        assert isinstance(mapper, Mapper)
        check_live(model, bulk)
        self._model = model
        self._mapped = mapped
        self._mapper = mapper
        self._key = key_column(model, mapper)
        self._id = mapper.get_property_by_column(self._key).key
        self._is_default = fields is None
        self._fields = check_fields(model, mapper, fields, self._id, to_record is not None)
        shown = ("id", *(name for name in self._fields if name in mapper.column_attrs))
        self._filters = tuple(dict.fromkeys(shown))  # what a query may name
        self._zoned = {
            attribute.key for attribute in mapper.column_attrs if getattr(attribute.columns[0].type, "timezone", False)
        }
        self._to_record = to_record
        self._bulk = bulk
        self._feed = Feed(model)
        self._skipped = Skipped(model.name)
        self._again = Again(model)
        self._writes = write_pattern(
            {table.name for each in mapper.self_and_descendants for table in each.tables if isinstance(table, Table)}
        )
        self._listeners: list[tuple[Any, str, Callable[..., Any]]] = []
        self._strangers: WeakSet[Mapper[Any]] = WeakSet()  # mappers of other tables, or other rows
        version = model.options.version
        if version is not None and to_record is None and version not in self._fields:
            raise ValueError(f"{model.name} counts {version!r}, which {mapped.__name__} has not among its fields.")
        self._sessions = None if session is None else sessions_of(model, session)
        self._is_async = is_async(model, self._sessions)
        self._home: Home | None = None  # where there is no session: the database that is written first
        self._schema: str | None = None  # in which the database finds the table, where its name does not say
        self._elsewhere: set[tuple[Any, ...]] = set()  # what was logged
        bind = single_bind(self._sessions)
        if bind is not None:
            check_pool(model, bind.engine)
        counted = version_of(mapper)
        if version is None and counted is not None and counted in self._fields:
            model.infer(version=counted)
        if session is not None and not model.readable:
            model.read_from(TableReader(self._rows, self._skipped))
        self._listen()
        ALL.add(self)

    def close(self) -> None:
        """Broadcast no more. The model goes on reading from the table."""
        self._again.close()
        ALL.discard(self)
        for target, name, function in self._listeners:
            event.remove(target, name, function)
        self._listeners.clear()

    def changed(self, session: Session | AsyncSession, *keys: Any) -> None:
        """Say that this session's transaction changes rows in a way that cannot be seen, by their primary keys.

        They are read and broadcast as it is committed, as all others.
        """
        sync_session = session.sync_session if isinstance(session, AsyncSession) else session
        unit: Unit = sync_session.info.setdefault(self, Unit())
        unit.keys.update(dict.fromkeys(keys))

    # What is listened to

    def _listen(self) -> None:
        def on(target: Any, name: str, function: Callable[..., Any], **options: Any) -> None:
            event.listen(target, name, function, **options)
            self._listeners.append((target, name, function))

        for name in ("after_insert", "after_update", "after_delete"):
            on(Mapper, name, getattr(self, f"_{name}"))
        for name in ("after_begin", "before_flush", "after_flush", "after_soft_rollback", "before_commit"):
            on(Session, name, getattr(self, f"_{name}"))
        for name in ("begin", "savepoint", "rollback_savepoint", "release_savepoint", "commit", "rollback"):
            on(Engine, name, getattr(self, f"_{name}"))
        on(Engine, "handle_error", self._handle_error)
        on(Pool, "checkin", self._checkin)
        if self._bulk != "ignore":
            on(Engine, "before_execute", self._before_execute, retval=True)
            on(Engine, "after_execute", self._after_execute)
            on(Engine, "before_cursor_execute", self._before_cursor_execute)

    # The unit of work

    def _after_insert(self, mapper: Mapper[Any], conn: Connection, target: Any) -> None:
        if self._is_about(mapper, conn):
            self._note(conn, mapper.primary_key_from_instance(target))

    def _after_update(self, mapper: Mapper[Any], conn: Connection, target: Any) -> None:
        session = object_session(target)
        if session is not None and self._is_about(mapper, conn) and session.is_modified(target):
            before = inspect(target).identity
            if before is not None:
                self._note(conn, before)
            self._note(conn, mapper.primary_key_from_instance(target))

    def _after_delete(self, mapper: Mapper[Any], conn: Connection, target: Any) -> None:
        if self._is_about(mapper, conn):
            identity = inspect(target).identity
            self._note(conn, mapper.primary_key_from_instance(target) if identity is None else identity)

    def _is_about(self, mapper: Mapper[Any], conn: Connection) -> bool:
        """Whether objects of a class are rows of ours: of the mapped class, or of another that has its table, too."""
        options = conn.get_execution_options()
        if mapper.isa(self._mapper):
            return self._is_home(self._key.table, conn, options)
        if mapper in self._strangers:
            return False
        named = [table for table in mapper.tables if isinstance(table, Table) and self._has_name(table)]
        if not named or mapper.base_mapper is self._mapper.base_mapper:  # as a parent, whose rows are others
            self._strangers.add(mapper)
            return False
        shared = [table for table in named if self._is_home(table, conn, options)]
        if any(list(mapper.primary_key) == list(table.primary_key.columns) for table in shared):
            return True
        if shared and self._bulk != "ignore":
            raise self._refusal(
                f"objects of {mapper.class_.__name__}, which lie in its table and have another primary key",
                f"Write them as {self._mapped.__name__}",
            )
        return False

    def _is_home(self, table: Any, conn: Connection, options: Mapping[str, Any]) -> bool:
        """Whether a statement with these options writes a table of the class in the database that the model reads from;
        the table may be described by other metadata."""
        if table not in self._mapper_tables() and (self._sessions is None or not self._has_name(table)):
            return False
        if self._compare(conn, options) is Same.NO:
            self._log_elsewhere(conn, "")
            return False
        homes = self._journal(conn).homes
        if homes and not any(home.has(table, conn, options) for home in homes):
            self._log_elsewhere(conn, f", by {SCHEMAS}={options.get(SCHEMAS)!r}")
            return False
        return True

    def _compare(self, conn: Connection, options: Mapping[str, Any] | None = None) -> Same:
        """Whether a connection leads to the database that the model reads from. options: of a statement that may be
        the first one of all, and decides where there is no session."""
        journal = self._journal(conn)
        if journal.same is None or not journal.homes:
            if self._sessions is not None:
                journal.homes = homes_of(self._sessions, self._mapper)
            else:
                if options is not None and (self._home is None or self._home.is_gone):
                    self._home, self._schema = Home(conn.engine, options.get(SCHEMAS)), None
                journal.homes = [] if self._home is None else [self._home]
            journal.same = max((home.compare(conn.engine) for home in journal.homes), default=Same.PERHAPS)
        return journal.same

    def _log_elsewhere(self, conn: Connection, where: str) -> None:
        """Rows of another database, or of another schema, are no records of this model; each is logged once."""
        place = (place_of(conn.engine), where)
        if place in self._elsewhere or len(self._elsewhere) >= MAX_LOGGED:
            return
        self._elsewhere.add(place)
        if any(each is not self and each._mapped is self._mapped and each._reads(conn) for each in list(ALL)):
            return
        remedy = "To broadcast both, make one live model for each." if self._sessions else "Give live() session=."
        logger.warning(
            "%s is written in %r%s, which is not where the model %s has its records: not broadcast. %s",
            self._mapped.__name__,
            conn.engine.url,
            where,
            self._model.name,
            remedy,
        )

    def _reads(self, conn: Connection) -> bool:
        """Whether the model reads from the database that a connection leads to."""
        return any(home.compare(conn.engine) is not Same.NO for home in homes_of(self._sessions, self._mapper))

    def _has_name(self, table: Any) -> bool:
        return any(str(table) == str(each) for each in self._mapper_tables())

    def _note(self, conn: Connection, keys: Iterable[Any]) -> None:
        if isinstance(conn.get_transaction(), TwoPhaseTransaction):
            raise UnseenWrite(
                f"A two-phase transaction changes {self._model.name}, whose rows cannot be read at its end. "
                "Use an ordinary transaction."
            )
        self._journal(conn).levels[-1].update(dict.fromkeys(keys))

    def _journal(self, conn: Connection) -> Journal:
        journal: Journal = conn.info.setdefault(self, Journal())
        return journal

    # Sessions

    def _after_begin(self, session: Session, transaction: object, conn: Connection) -> None:
        if READER not in session.info:
            unit: Unit = session.info.setdefault(self, Unit())
            unit.connections.add(conn)
            self._journal(conn).unit = unit

    def _before_flush(self, session: Session, *_: Any) -> None:
        session.info.setdefault(self, Unit()).flushing = True

    def _after_flush(self, session: Session, *_: Any) -> None:
        unit: Unit = session.info.setdefault(self, Unit())
        unit.flushing = False
        for conn in list(unit.connections):
            if not conn.closed:
                self._settle(conn)

    def _after_soft_rollback(self, session: Session, *_: Any) -> None:
        if self in session.info:
            session.info[self].flushing = False

    def _before_commit(self, session: Session) -> None:
        unit: Unit | None = session.info.get(self)
        if unit is not None and unit.keys:
            keys, unit.keys = unit.keys, {}
            self._note(session.connection(bind_arguments={"mapper": self._mapper}), keys)

    # Transactions

    def _begin(self, conn: Connection) -> None:
        """What is known of the transaction before ended by neither COMMIT nor ROLLBACK, as where a hook of another
        program failed. It may not even have ended in the database."""
        journal: Journal | None = conn.info.get(self)
        if journal is not None:
            keys = {**journal.keys, **journal.take_keys()}
            self._end_unknown(conn.info)
            if keys:
                self._journal(conn).levels[0].update(keys)

    def _savepoint(self, conn: Connection, name: str | None) -> None:
        self._journal(conn).levels.append({})

    def _rollback_savepoint(self, conn: Connection, name: str, context: None) -> None:
        if not conn.invalidated:
            levels = self._journal(conn).levels
            if len(levels) > 1:
                levels.pop()

    def _release_savepoint(self, conn: Connection, name: str, context: None) -> None:
        levels = self._journal(conn).levels
        if len(levels) > 1:
            keys = levels.pop()
            levels[-1].update(keys)

    def _commit(self, conn: Connection) -> None:
        """The order to COMMIT has been given; it is not yet carried out."""
        journal: Journal | None = conn.info.get(self)
        if journal is not None:
            watch_commits(conn.dialect)
            self._prepare(conn, journal)

    def _prepare(self, conn: Connection, journal: Journal) -> None:
        """Read what the transaction has changed, and take a ticket for it."""
        keys = journal.take_keys()
        if not keys:
            return
        ticket = self._feed.begin()
        try:
            same = self._compare(conn)
            if same is Same.NO:  # by `changed`
                self._log_elsewhere(conn, "")
            else:
                same = min(same, self._compare_schema(conn, journal))
            if same is Same.NO:
                self._feed.drop(ticket)
                return
            journal.changes = self._read(conn, keys, journal.homes) if same is Same.YES else None
            if same is Same.PERHAPS and self._sessions is None:
                self._log_elsewhere(conn, "")
        except BaseException:
            self._feed.drop(ticket)
            raise
        journal.ticket, journal.keys = ticket, keys

    def _compare_schema(self, conn: Connection, journal: Journal) -> Same:
        """Whether a table whose name has no schema is, for this connection, the one that the model reads from."""
        table = self._key.table
        if conn.dialect.name not in SCHEMA_OF or not any(it.is_named_without_schema(table) for it in journal.homes):
            return Same.YES
        found = schema_of(conn, table)
        if self._schema is None and self._sessions is None:
            self._schema = found
        if found is None or self._schema is None:
            return Same.PERHAPS
        if found == self._schema:
            return Same.YES
        if journal.has_moved:
            return Same.PERHAPS
        self._log_elsewhere(conn, f", in the schema {found}")
        return Same.NO

    def _settle(self, conn: Connection) -> None:
        """Broadcast what a connection has changed that commits each statement by itself."""
        journal: Journal | None = conn.info.get(self)
        if journal is not None and journal.has_keys and is_autocommit(conn):
            self._prepare(conn, journal)
            self._deliver(journal)

    def _rollback(self, conn: Connection) -> None:
        if conn.invalidated:  # its notes are gone with it, and it could not even be asked for them
            return
        journal: Journal | None = conn.info.get(self)
        if journal is not None and journal.has_keys and is_autocommit(conn):
            try:
                self._settle(conn)
            except Exception:
                logger.exception("Changes of %s are committed but cannot be read yet.", self._model.name)
                journal.ticket, journal.changes = self._feed.begin(), None
                self._deliver(journal)
        self._forget(conn.info)

    def _handle_error(self, context: ExceptionContext) -> None:
        conn = context.connection
        if conn is None or conn.closed or conn.invalidated:
            return
        journal: Journal | None = conn.info.get(self)
        if journal is None or journal.ticket is None:
            return
        if context.is_disconnect or context.sqlalchemy_exception is None:  # else the database itself has said no
            del conn.info[self]
            self._doubt(journal)
        else:
            self._forget(conn.info)

    def _doubt(self, journal: Journal) -> None:
        """Whether a COMMIT has happened is not known, as where the connection was lost in it, but the rows tell."""
        logger.warning(
            "The outcome of a COMMIT is not known, which may have changed these of %s: %s. They are read again.",
            self._model.name,
            ", ".join(repr(plain(key)) for key in islice(journal.keys, 20)),
        )
        journal.changes = None
        self._deliver(journal)

    def _deliver(self, journal: Journal) -> None:
        """Broadcast what was committed, or have it read."""
        if journal.ticket is None:
            return
        ticket, keys, changes = journal.ticket, journal.keys, journal.changes
        journal.ticket, journal.keys, journal.changes = None, {}, None
        if changes is not None:
            overlapping = self._feed.end(ticket, changes)
            if not overlapping or self._sessions is None:
                return
            keys = {key: None for key in keys if str(plain(key)) in overlapping}
            ticket = self._feed.begin()
        if self._sessions is None:
            self._feed.drop(ticket)
            self._model.changes_lost()
        else:
            self._again.read(lambda: self._read_again(ticket, keys), lambda: self._feed.drop(ticket))

    async def _read_again(self, ticket: int, keys: Keys) -> None:
        """Broadcast what the rows hold by now, by the ticket of the COMMIT in doubt: later writers have later ones."""

        def work(session: Session) -> dict[Id, Record | None]:
            conn = self._connection_of(session)
            return self._read(conn, keys, [], lock=True)

        self._feed.end(ticket, await self._in_session(work))

    def _connection_of(self, session: Session) -> Connection:
        """The connection of a session to read from; learns in which schema it finds the table."""
        conn = session.connection(bind_arguments={"mapper": self._mapper})
        table = self._key.table
        if conn.dialect.name in SCHEMA_OF and home_of(conn).is_named_without_schema(table):
            found = schema_of(conn, table)
            if self._schema not in (None, found):
                logger.error(
                    "The sessions of the live model %s find its table in the schema %s, and now in %s. "
                    "Make one live model for each schema.",
                    self._model.name,
                    self._schema,
                    found,
                )
            self._schema = found
        return conn

    def _checkin(self, dbapi_connection: object, connection_record: Any) -> None:
        self._end_unknown(connection_record.info)

    def _end_unknown(self, info: Any) -> None:
        """A transaction has ended of which neither COMMIT nor ROLLBACK was reported."""
        journal: Journal | None = info.pop(self, None)
        if journal is not None and journal.ticket is not None:
            self._doubt(journal)

    def _finish(self, info: Any) -> None:
        """The transaction was committed: broadcast its changes."""
        journal: Journal | None = info.pop(self, None)
        if journal is None:
            return
        self._deliver(journal)
        late = journal.take_keys()  # written after they were read, by a hook of another program
        if late:
            journal.ticket, journal.keys = self._feed.begin(), late
            self._deliver(journal)

    def _forget(self, info: Any) -> None:
        journal: Journal | None = info.pop(self, None)
        if journal is not None and journal.ticket is not None:
            self._feed.drop(journal.ticket)

    # Records

    def _read(
        self, conn: Connection, keys: Keys, homes: Sequence[Home], *, lock: bool = False
    ) -> dict[Id, Record | None]:
        """What the rows of these keys hold, None where there is none, in the order of the keys.

        homes: that name the schemas, instead of the connection's own options. lock: wait for others that are about to
            change them, where the database can.
        """
        changes: dict[Id, Record | None] = {}
        ids: dict[str, Id] = {}  # as text, since who names a key by hand may write "1" for 1
        for key in keys:
            changes[ids.setdefault(str(plain(key)), plain(key))] = None
        table = self._table()
        statement = select(*table.selected())
        if homes and (homes[0].schemas or conn.get_execution_options().get(SCHEMAS)):
            statement = statement.execution_options(**{SCHEMAS: homes[0].schemas})
        if lock:
            statement = statement.with_for_update(read=True, of=self._key.table)
        with Session(conn, autoflush=False, join_transaction_mode="rollback_only", info={READER: True}) as session:
            executor = conn if table.is_flat else session

            def fetch(some: Sequence[Any]) -> list[Any]:
                return [*table.rows(executor.execute(statement.where(table.id.in_(some))))]

            for some in batched(keys, AT_ONCE):
                for found in salvaged(fetch, some):
                    id = plain(found.key) if isinstance(found, Unreadable) else table.id_of(found)
                    id = ids.get(str(id), id)
                    try:
                        if isinstance(found, Unreadable):
                            raise found.error
                        changes[id] = self._record(table, found)
                    except DBAPIError:  # the transaction is broken, and its author has to know
                        raise
                    except Exception:
                        logger.exception("The change of %s %r cannot be broadcast.", self._model.name, id)
                        changes[id] = UNSENDABLE
        return changes

    def _table(self) -> Source:
        """Where rows are read from; asked each time, since a subclass may have been declared meanwhile."""
        has_subclasses = len(list(islice(self._mapper.self_and_descendants, 2))) > 1
        is_flat = self._to_record is None and not has_subclasses
        if is_flat and all(name in self._mapper.column_attrs for name in self._fields):
            return Source(self._mapped, self._id, self._fields)
        return Source(with_polymorphic(self._mapped, "*") if has_subclasses else self._mapped, self._id, None)

    def _record(self, table: Source, found: Any) -> Record:
        id = table.id_of(found)
        if table.columns is not None:
            values = map(self._value, table.columns, found[1:]) if self._zoned else map(plain, found[1:])
            return {"id": id, **dict(zip(table.columns, values, strict=True))}
        if self._to_record is not None:
            return record_made(id, self._to_record(found))
        names: Iterable[str] = self._fields
        if self._is_default and type(found) is not self._mapped:
            names = default_fields(object_mapper(found))
        return {"id": id, **{name: self._value(name, getattr(found, name)) for name in names}}

    def _value(self, name: str, value: Any) -> Any:
        """A field's value as JSON carries it. SQLite keeps no zone: what it gives back is UTC, as in stores."""
        if name in self._zoned and isinstance(value, datetime.datetime) and value.tzinfo is None:
            value = value.replace(tzinfo=datetime.UTC)
        return plain(value)

    # Statements that go past the unit of work

    def _before_execute(
        self, conn: Connection, statement: Any, many: Sequence[Any], one: Mapping[str, Any], options: Mapping[str, Any]
    ) -> tuple[Any, Sequence[Any], Mapping[str, Any]]:
        if self._is_ours(conn, statement, options):
            if isinstance(statement, (Update, Delete)):
                for given in many or [one]:
                    self._note(conn, self._keys_of(conn, statement, given, options))
                    if isinstance(statement, Update):
                        self._note(conn, self._new_keys_of(statement, given))
            elif not len(statement.exported_columns):  # no RETURNING of its own
                return statement.return_defaults(supplemental_cols=[pk_of(statement.table)]), many, one
        return statement, many, one

    def _is_ours(self, conn: Connection, statement: Any, options: Mapping[str, Any]) -> bool:
        """Whether it writes a table of the class, by itself and not as a step of the unit of work."""
        if not isinstance(statement, (Insert, Update, Delete)) or options.get(OPTION) == "ignore":
            return False
        return self._is_home(statement.table, conn, options) and not self._is_flush(conn, options)

    def _is_flush(self, conn: Connection, options: Mapping[str, Any]) -> bool:
        """The unit of work executes with a cache of the mapper's; a hook's own statement amid a flush does not."""
        unit = self._journal(conn).unit
        return unit is not None and unit.flushing and "compiled_cache" in options

    def _mapper_tables(self) -> set[Any]:
        return {table for mapper in self._mapper.self_and_descendants for table in mapper.tables}

    def _keys_of(
        self, conn: Connection, statement: Update | Delete, given: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Iterable[Any]:
        """The primary keys of the rows that it is going to change."""
        key = pk_of(statement.table)
        where = statement.whereclause
        for clause in conjuncts(where):
            if (
                isinstance(clause, BinaryExpression)
                and clause.operator is operators.eq
                and isinstance(clause.right, BindParameter)
                and isinstance(clause.left, Column)
                and clause.left.table == statement.table
                and clause.left.key == key.key
            ):
                return [given.get(clause.right.key, clause.right.effective_value)]
        query = select(key) if where is None else select(key).where(where)
        if options.get(SCHEMAS):
            query = query.execution_options(**{SCHEMAS: options[SCHEMAS]})
        return list(conn.execute(query, dict(given)).scalars())

    def _new_keys_of(self, statement: Update, given: Mapping[str, Any]) -> Iterable[Any]:
        """The primary keys that it gives to rows, if it changes any."""
        key = pk_of(statement.table)
        for column, value in (getattr(statement, "_values", None) or {}).items():
            if getattr(column, "key", column) == key.key:
                if not isinstance(value, BindParameter):
                    raise self._refusal("an UPDATE that computes primary keys", "Change them one by one, as objects")
                yield given.get(value.key, value.effective_value)
                return
        if key.key in given:  # or it is what chooses the row, which does no harm
            yield given[key.key]

    def _after_execute(
        self,
        conn: Connection,
        statement: Any,
        many: Sequence[Mapping[str, Any]],
        one: Mapping[str, Any],
        options: Mapping[str, Any],
        result: CursorResult[Any],
    ) -> None:
        if isinstance(statement, Insert) and self._is_ours(conn, statement, options):
            given = inserted_keys(statement, result)
            if any(value is None for value in given):
                raise self._refusal(
                    "an INSERT whose primary keys cannot be known",
                    "Use add_all, or insert(…) with values or a list of them, without RETURNING",
                )
            self._note(conn, given)
        if self in conn.info:
            self._settle(conn)

    def _before_cursor_execute(
        self, conn: Connection, cursor: object, text: str, parameters: object, context: Any, many: bool
    ) -> None:
        """Other statements, such as text, are looked at as text: they may pass if they write no table of that name."""
        journal: Journal | None = conn.info.get(self)
        if journal is not None and journal.has_keys:
            journal.has_moved = journal.has_moved or SCHEMA_CHANGE.search(text) is not None
            if COMMIT.match(text):
                raise self._refusal("a COMMIT that is given as text", "Use the commit() of the session or connection")
        if not writes(self._writes, text):
            return
        if isinstance(context.invoked_statement, (Insert, Update, Delete)) or self._compare(conn) is Same.NO:
            return  # its table is known: it was covered, or is a namesake in another database
        if context.execution_options.get(OPTION) != "ignore":
            raise self._refusal(f"{text[:200]!r}", "Write it with the functions insert, update and delete")

    def _refusal(self, what: str, remedy: str) -> UnseenWrite:
        return UnseenWrite(
            f"{self._mapped.__name__} is live, and its model {self._model.name} would not hear of {what}. {remedy}; or "
            f'pass execution_options={{"{OPTION}": "ignore"}} and say which rows have changed: '
            "`….changed(session, *primary_keys)` of what `live` has returned."
        )

    # Reading

    async def _rows(self, query: Query, make: Callable[[Record], Made]) -> AsyncGenerator[list[Made], None]:
        with self._explained():
            if not self._reads_async():
                yield await self._in_session(lambda session: [*self._records(session, query, make)])
                return
            assert self._sessions is not None
            async with self._sessions() as session:
                records = await session.run_sync(self._records, query, make)
                while some := await session.run_sync(lambda _: [*islice(records, CHUNK)]):
                    yield some

    async def _in_session(self, work: Callable[[Session], Made]) -> Made:
        """What the function returns, called with a session where that may wait: in a thread or a greenlet."""
        sessions = self._sessions
        assert sessions is not None
        if self._reads_async():
            async with sessions() as session:
                made: Made = await session.run_sync(work)
                return made

        def in_thread() -> Made:
            with sessions() as session:
                return work(session)

        return await self._model.in_thread(in_thread)

    def _reads_async(self) -> bool:
        """Whether the sessions are async ones; a function that could not be asked before is asked now."""
        if self._is_async is None:
            assert self._sessions is not None
            self._is_async = is_async_session(self._model, self._sessions())
        return self._is_async

    def _explained(self) -> contextlib.AbstractContextManager[None]:
        return explained(self._model.name, "The database cannot answer this query.")

    def _records(self, session: Session, query: Query, make: Callable[[Record], Made]) -> Iterator[Made]:
        """What is made of the records that a query asks for, read from the database as they are taken."""
        selection = selection_of(self._model, query, self._filters)
        check_pool(self._model, self._connection_of(session).engine)  # its factory may be bound later, or choose
        table = self._table()
        fields = {name: table.id if name == "id" else getattr(table.entity, name) for name in self._filters}
        statement, rest = select_rows(Fields(fields, table.selected()), selection)
        # Objects may have collections, which need all rows.
        options = {"yield_per": CHUNK} if table.is_flat and selection.limit is None else {}
        statement = statement.limit(None)

        def fetch(limit: int | None, offset: int) -> Iterable[Any]:
            page = statement if limit is None else statement.limit(limit).offset(offset)
            return readable(
                lambda: table.rows(session.execute(page, execution_options=options)),
                table.key_of,
                lambda: session.scalars(page.with_only_columns(table.id, maintain_column_froms=True)).all(),
                lambda keys: table.rows(session.execute(select(*table.selected()).where(table.id.in_(keys)))),
            )

        def made_of(row: Any) -> Made | None:
            record = self._record(table, row)
            return make(record) if matches(record, rest) else None

        def made(rows: Iterable[Any]) -> Iterator[Made]:
            skipped = None if is_for_one(query) else self._skipped
            return sendable(rows, made_of, table.id_of, skipped, (SQLAlchemyError,))

        return islice(made(fetch(None, 0)), selection.limit) if rest else limited(selection.limit, fetch, made)


# Looking at mapped classes and statements


def key_column(model: Model, mapper: Mapper[Any]) -> ColumnElement[Any]:
    """The one column of the primary key. Raises TypeError where a record's id cannot be made of it."""
    name = mapper.class_.__name__
    if len(mapper.primary_key) != 1:
        columns = ", ".join(column.name for column in mapper.primary_key)
        raise TypeError(
            f"live({model.name}) got {name}, whose primary key is {columns}; a record has one id. "
            "Give the table a key of one column, and the others a unique constraint."
        )
    return mapper.primary_key[0]


def sessions_of(model: Model, session: Any) -> Callable[[], Any]:
    """A session factory. Raises TypeError for what is neither that nor an engine."""
    if isinstance(session, AsyncEngine):
        return async_sessionmaker(session)
    if isinstance(session, Engine):
        return sessionmaker(session)
    if isinstance(session, (scoped_session, async_scoped_session)):
        return sessions_of(model, session.session_factory)  # whose sessions are not the ones that others work with
    function = inspect_.unwrap(session) if callable(session) else session
    if inspect_.iscoroutinefunction(function):
        remedy = ": a coroutine function. Pass one that returns the session"
    elif inspect_.isasyncgenfunction(function) or inspect_.isgeneratorfunction(function):
        remedy = "" if function is not session else ": a generator function, such as a dependency of FastAPI. Pass what"
        if not remedy:
            return session  # type: ignore[no-any-return] # a context manager is made of it
        remedy += " it makes its sessions with"
    elif callable(session) and not (isinstance(session, type) and issubclass(session, (Session, AsyncSession))):
        try:
            inspect_.signature(session).bind()
        except TypeError:
            remedy = ", which cannot be called without arguments"
        except ValueError:  # of a builtin that does not say
            return session  # type: ignore[no-any-return]
        else:
            return session  # type: ignore[no-any-return]
    else:
        remedy = ""
    raise TypeError(
        f"live({model.name}) got session={session!r}{remedy}; expected a sessionmaker, async_sessionmaker, "
        "Engine or AsyncEngine."
    )


def is_async(model: Model, sessions: Callable[[], Any] | None) -> bool | None:
    """Whether a factory makes async sessions; None where it cannot tell before there is an event loop, or more.

    Raises TypeError for one that makes something else.
    """
    if isinstance(sessions, (sessionmaker, async_sessionmaker)):
        makes_async = issubclass(sessions.class_, AsyncSession)
        bind = sync_bind(sessions.kw.get("bind"))
        if bind is not None and bind.dialect.is_async is not makes_async:
            engine, maker = ("an async", "async_sessionmaker") if bind.dialect.is_async else ("a sync", "sessionmaker")
            raise TypeError(
                f"live({model.name}) got a session= of {engine} engine, {bind.engine.url!r}, that makes "
                f"{sessions.class_.__name__}. Use {maker}, or pass the engine itself."
            )
        return makes_async
    if sessions is None:
        return False
    try:
        made = sessions()
    except Exception:  # noqa: BLE001 - it is the application's function, and may not be ready
        return None
    return is_async_session(model, made)


def is_async_session(model: Model, made: Any) -> bool:
    """Whether what a factory has made is an async session, or gives one. Raises TypeError for something else."""
    gives = isinstance(made, (contextlib.AbstractContextManager, contextlib.AbstractAsyncContextManager))
    if gives and not isinstance(made, (Engine, AsyncEngine, Connection, AsyncConnection)):
        return isinstance(made, contextlib.AbstractAsyncContextManager)
    if inspect_.iscoroutine(made):
        made.close()
    raise TypeError(
        f"live({model.name}) got a session= that makes {shorten(made)}, expected one that makes a Session or "
        "AsyncSession, such as a sessionmaker or async_sessionmaker."
    )


def watch_commits(dialect: Any) -> None:
    """Have `finish_commit` called after each COMMIT of a dialect that has been carried out: no event tells of that.

    Hooks of other programs may fail between the event `commit` and the COMMIT, and after it.
    """
    commit = dialect.do_commit
    if getattr(commit, "is_watched", False):
        return

    def do_commit(dbapi_connection: Any) -> None:
        commit(dbapi_connection)
        for each in list(getattr(dbapi_connection, "info", ())):
            if isinstance(each, LiveMapping):
                each._finish(dbapi_connection.info)

    do_commit.is_watched = True  # type: ignore[attr-defined]
    dialect.do_commit = do_commit


def check_pool(model: Model, engine: Engine) -> None:
    """Raises ValueError for an engine whose sessions would get into each other's way where clients read."""
    is_in_memory = engine.dialect.name == "sqlite" and engine.url.database in (None, "", ":memory:")
    if isinstance(engine.pool, StaticPool):
        message = (
            f"live({model.name}) got sessions of {engine.url!r}, which have one connection for all (StaticPool), "
            "expected one for each: a client that reads would roll back what others have not yet committed. "
            f"Give the engine {'a file, as sqlite:///app.db has' if is_in_memory else 'another pool'}; or leave out "
            "session=, and clients begin with what they hear."
        )
        if engine.dialect.is_async:
            raise ValueError(message)
        logger.warning("%s", message)  # as tests do it, where one thing happens after the other
    elif isinstance(engine.pool, SingletonThreadPool) and is_in_memory:
        raise ValueError(
            f"live({model.name}) got sessions of {engine.url!r}, where each thread has a database of its own, and "
            "clients read in other threads than yours. Use a file, such as sqlite:///app.db."
        )


def check_fields(
    model: Model, mapper: Mapper[Any], fields: Sequence[str] | None, id: str, has_to_record: bool
) -> Sequence[str]:
    """The attributes that a record is made of. Raises ValueError for those that it cannot be made of."""
    name = mapper.class_.__name__
    if fields is not None:
        unknown = [field for field in fields if not hasattr(mapper.class_, field)]
        if unknown:
            raise ValueError(f"live({model.name}) got the fields {unknown}, which {name} has not.")
        return [field for field in fields if field != "id"] if id == "id" else list(fields)
    if has_to_record:
        return [field for field in model.options.key if field in mapper.column_attrs]
    chosen = default_fields(mapper)
    binary = [field for field in chosen if isinstance(mapper.column_attrs[field].columns[0].type, LargeBinary)]
    if binary:
        raise ValueError(
            f"live({model.name}): JSON cannot carry {', '.join(binary)} of {name}. Name others by fields=."
        )
    if id != "id" and "id" in mapper.column_attrs:
        raise ValueError(f"live({model.name}): {name}.id is not its primary key, {id} is. Give to_record= or fields=.")
    check_secrets(model, name, chosen)
    return chosen


def version_of(mapper: Mapper[Any]) -> str | None:
    """The attribute in which the mapper itself counts versions up from 1; None where it does not, or in another way."""
    column = mapper.version_id_col
    if column is None or getattr(mapper.version_id_generator, "__module__", None) != Mapper.__module__:
        return None
    return mapper.get_property_by_column(column).key


def default_fields(mapper: Mapper[Any]) -> list[str]:
    """The columns that are loaded with an object."""
    return [attribute.key for attribute in mapper.column_attrs if not attribute.deferred]


def pk_of(table: Any) -> Column[Any]:
    """The primary key's column of a table of a mapped class, which has one."""
    column: Column[Any] = next(iter(table.primary_key.columns))
    return column


def conjuncts(where: ColumnElement[Any] | None) -> Iterator[ColumnElement[Any]]:
    """The conditions that must all hold."""
    if isinstance(where, BooleanClauseList) and where.operator is operators.and_:
        for clause in where.clauses:
            yield from conjuncts(clause)
    elif where is not None:
        yield where


def inserted_keys(statement: Insert, result: CursorResult[Any]) -> list[Any]:
    """The primary keys of the rows that an INSERT has made, or changed on conflict; None for one that is not known."""
    key = pk_of(statement.table)
    rows = result.returned_defaults_rows
    if rows is not None:
        return [getattr(row, key.key) for row in rows]
    if getattr(statement, "_post_values_clause", None) is not None:
        return [None]  # on conflict it may have changed another row than that of the values
    keys = [row.get(key.key) for row in result.context.compiled_parameters]
    if None not in keys:
        return keys
    try:
        return [None if row is None else row[0] for row in result.inserted_primary_key_rows]
    except InvalidRequestError:
        return [None]


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """The items in lists of at most that size."""
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some
