"""Live Django models: which rows a transaction has changed, and what they hold once it is committed.

Django's signals tell what `save` and `delete` do; `transaction.on_commit` runs what is to be done after the COMMIT,
unless the transaction or the savepoint was rolled back. The row is read then. What goes past the signals is told by its
SQL.
"""

from __future__ import annotations

import datetime
import logging
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context, ContextVar
from functools import partial
from itertools import islice
from types import CodeType, FrameType
from typing import Any
from weakref import WeakKeyDictionary, finalize, ref

from django.apps import apps
from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.signals import request_started
from django.db import (
    DatabaseError,
    DataError,
    InterfaceError,
    OperationalError,
    connections,
    models,
    router,
    transaction,
)
from django.db.backends.signals import connection_created
from django.db.models import F, Func, Q, Value
from django.db.models.deletion import Collector
from django.db.models.fields.files import FieldFile
from django.db.models.functions import Collate
from django.db.models.lookups import Exact, GreaterThan, LessThan
from django.db.models.signals import m2m_changed, post_delete, post_save
from django.utils import timezone

from backsync_asgi.errors import Reject
from backsync_asgi.logs import Sparing
from backsync_asgi.messages import shorten
from backsync_asgi.models import Model
from backsync_asgi.stores.base import CHUNK, Query, Skipped, equal, id_number_sql, invalid, matches

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
sparing = Sparing(logger, time.monotonic)

Objects = Iterable[Any]  # a queryset, objects or primary keys

AT_ONCE = 500  # rows read by one statement
MAX_LOGGED = 100  # databases and schemas that are not the model's
NONE = Q(pk__in=[])  # no row
BAD_VALUE = (ValidationError, ValueError, TypeError, OverflowError)

# Fields that have the same order as their JSON text has in a browser; texts by the collation of code points.
TEXTS = (models.CharField, models.TextField, models.FileField)
ORDERED = (
    *TEXTS,
    models.BooleanField,
    models.DateField,
    models.DurationField,
    models.FloatField,
    models.IntegerField,
    models.TimeField,
    models.UUIDField,
)
CODE_POINTS = {"postgresql": "C", "mysql": "utf8mb4_bin"}  # SQLite has it by itself

# Steps of Django's own, known by their code. A statement belongs to the innermost of these on the stack.
SAVE: CodeType = models.Model._save_table.__code__
DELETE: CodeType = Collector.delete.__code__
UPDATE: CodeType = models.QuerySet.update.__code__
BULK_CREATE: CodeType = models.QuerySet.bulk_create.__code__


class Batch:
    """The rows of one transaction. It lives as long as Django keeps the transaction's hooks."""

    def __init__(self) -> None:
        self.noted: list[Callable[[], Iterable[Any]]] = []  # until it is committed
        self.done: set[Any] = set()  # that were broadcast


class LiveModel:
    """A Django model whose committed changes are broadcast; made by `live`, ended by `close`."""

    def __init__(
        self,
        model: Model,
        mapped: type[Any],
        *,
        fields: Sequence[str] | None,
        to_record: Callable[[Any], Record] | None,
        bulk: str,
    ) -> None:
        check_live(model, bulk)
        self._model = model
        self._mapped = mapped
        self._fields = check_fields(model, mapped, fields, to_record is not None)
        self._to_record = to_record
        self._bulk = bulk
        self._feed = Feed(model)
        self._skipped = Skipped(model.name)
        self._again = Again(model)
        self._writes = write_pattern([mapped._meta.db_table])
        self._batches: WeakKeyDictionary[Any, ref[Batch]] = WeakKeyDictionary()  # by connection
        self._allowed: ContextVar[bool] = ContextVar("allowed", default=False)
        self._shown = {"id": mapped._meta.pk} | {name: mapped._meta.get_field(name) for name in self._fields}
        self._homes = homes_of(mapped)
        self._schema: str | None = None  # in which the database finds the table, where its name does not say
        self._elsewhere: set[Any] = set()  # what was logged
        if not model.readable:
            model.read_from(TableReader(self._rows, self._skipped))
        # For these only: a model whose deletions are listened to is deleted row by row.
        table = mapped._meta.db_table
        self._senders = [
            each
            for each in apps.get_models()
            if issubclass(each, mapped._meta.concrete_model) or each._meta.db_table == table
        ]
        for sender in self._senders:
            for signal in (post_save, post_delete):
                signal.connect(self._written, sender, weak=False)
                call_first(signal)
        if to_record is not None:  # fields alone hold no relations to many
            m2m_changed.connect(self._related, weak=False)
        if bulk == "publish":
            connection_created.connect(self._connected, weak=False)
            request_started.connect(self._look_at_thread, weak=False)
            self._look_at_thread()

    def close(self) -> None:
        """Broadcast no more. The model goes on reading from the table."""
        for sender in self._senders:
            post_save.disconnect(self._written, sender)
            post_delete.disconnect(self._written, sender)
        self._again.close()
        m2m_changed.disconnect(self._related)
        connection_created.disconnect(self._connected)
        request_started.disconnect(self._look_at_thread)
        self._bulk = "ignore"  # connections of other threads still ask

    def changed(self, objects: Objects, using: str | None = None) -> None:
        """Say that these rows have changed in a way that cannot be seen; broadcast after the commit.

        using: the database's alias; by default where the model is written.
        """
        keys = list(keys_of(objects))
        self._note(lambda: keys, self._alias_of(using))

    def _alias_of(self, using: str | None) -> str:
        if using is not None and compare(using, self._homes) is None:
            raise ValueError(
                f"The live model {self._model.name} got using={using!r}, but has its records in {self._homes[0]!r}."
            )
        return self._homes[0] if using is None else using

    @contextmanager
    def bulk(self, objects: Objects = (), using: str | None = None) -> Iterator[Callable[[Objects], None]]:
        """Let the block write the table by SQL of its own, in a transaction, and broadcast these rows after its commit.

        Gives a function that takes more rows, for those that are known only later.
        """
        alias = self._alias_of(using)
        keys = list(keys_of(objects))  # now: an update may take them out of the queryset

        def changed(more: Objects) -> None:
            keys.extend(keys_of(more))

        token = self._allowed.set(True)
        try:
            with transaction.atomic(alias):
                yield changed
                self.changed(keys, alias)
        finally:
            self._allowed.reset(token)

    # Signals

    def _written(self, instance: Any, using: str, **_: Any) -> None:
        key = instance.pk
        self._note(lambda: [key], using)

    def _related(self, instance: Any, action: str, model: type[Any], pk_set: Any, using: str, **_: Any) -> None:
        if not action.startswith("post_"):
            return
        if isinstance(instance, self._mapped):
            self._note(lambda: [instance.pk], using)
        if issubclass(model, self._mapped):
            keys = list(pk_set or ())
            self._note(lambda: keys, using)

    def _note(self, keys: Callable[[], Iterable[Any]], using: str) -> None:
        """These rows change in the transaction that runs; `keys` is called after its commit."""
        if compare(using, self._homes) is None:
            self._log_elsewhere(using, f"the database {using!r}")
            return
        connection = connections[using]
        if not connection.in_atomic_block and not connection.get_autocommit():
            raise UnseenWrite(
                f"{self._mapped.__name__} is live, and its model {self._model.name} would not hear of a commit() while "
                "autocommit is off. Use transaction.atomic()."
            )
        last = self._batches.get(connection)
        batch = None if last is None else last()
        if batch is None:
            batch = Batch()
            self._batches[connection] = ref(batch)
            finalize(batch, self._dropped, batch.noted, connection, using).atexit = False
        batch.noted.append(keys)
        hook = partial(self._committed, batch, keys, using)
        transaction.on_commit(hook, using, robust=True)
        if connection.in_atomic_block:  # before those of others: one that fails ends them all
            hooks = connection.run_on_commit
            ours = sum(getattr(each[1], "func", None) == self._committed for each in hooks[:-1])
            hooks.insert(ours, hooks.pop())

    def _log_elsewhere(self, using: str, where: str) -> None:
        """Rows of another database, or of another schema, are no records of this model; each is logged once."""
        if (using, where) not in self._elsewhere and len(self._elsewhere) < MAX_LOGGED:
            self._elsewhere.add((using, where))
            logger.warning(
                "%s is written in %s, which is not where the model %s has its records, %r: not broadcast.",
                self._mapped.__name__,
                where,
                self._model.name,
                self._homes[0],
            )

    def _committed(self, batch: Batch, keys: Callable[[], Iterable[Any]], using: str) -> None:
        """Read rows and broadcast them. A commit after this reads them later, and takes a later ticket."""
        self._batches.pop(connections[using], None)  # what is written from now on is another transaction's
        batch.noted.clear()
        wanted = [key for key in dict.fromkeys(keys()) if key not in batch.done]
        batch.done.update(wanted)
        for start in range(0, len(wanted), AT_ONCE):
            self._broadcast(wanted[start : start + AT_ONCE], using)

    def _dropped(self, noted: list[Callable[[], Iterable[Any]]], connection: Any, using: str) -> None:
        """The hooks of a transaction are gone without having been called. It was rolled back, unless the connection was
        lost: then, if it was in the very COMMIT, nobody knows whether that has happened, but the rows tell."""
        if noted and connection.errors_occurred:
            keys = list(dict.fromkeys(key for keys in noted for key in keys() if key is not None))
            logger.warning(
                "A connection was lost in a transaction that has perhaps changed these of %s: %s. They are read again.",
                self._model.name,
                ", ".join(map(repr, keys[:20])),
            )
            self._read_again(keys)

    def _read_again(self, keys: list[Any]) -> None:
        """Read rows and broadcast them, as and where clients read them."""

        def work() -> None:
            self._learn_schema(connections[self._homes[0]])
            for start in range(0, len(keys), AT_ONCE):
                self._publish(keys[start : start + AT_ONCE], self._homes[0])

        self._again.read(lambda: self._model.in_thread(work))

    def _broadcast(self, keys: list[Any], using: str) -> None:
        try:
            schema = schema_of(connections[using], self._mapped)
            if not compare(using, self._homes) or (schema is not None and self._schema is None):
                self._read_again(keys)
            elif schema is None or schema == self._schema:
                self._publish(keys, using)
            else:
                self._log_elsewhere(using, f"the schema {schema!r}")
        except Exception:
            logger.exception("Changes of %s are committed but cannot be read yet: %r", self._model.name, keys[:20])
            self._read_again(keys)

    def _learn_schema(self, connection: Any) -> None:
        found = schema_of(connection, self._mapped)
        if self._schema not in (None, found):
            logger.error(
                "The live model %s found its table in the schema %s, and now in %s: what it has is of both.",
                self._model.name,
                self._schema,
                found,
            )
        self._schema = found

    def _publish(self, keys: list[Any], using: str) -> None:
        ticket = self._feed.begin()
        try:
            changes: dict[Id, Record | None] = {plain(key): None for key in keys}
            rows = self._mapped._base_manager.using(using)
            for found in salvaged(lambda some: [*rows.filter(pk__in=some)], keys):
                id = plain(found.key if isinstance(found, Unreadable) else found.pk)
                try:
                    if isinstance(found, Unreadable):
                        raise found.error
                    changes[id] = self._record(found)
                except Exception:
                    logger.exception("The change of %s %r cannot be broadcast.", self._model.name, id)
                    changes[id] = UNSENDABLE
        except BaseException:
            self._feed.drop(ticket)
            raise
        self._feed.end(ticket, changes)

    def _record(self, found: Any) -> Record:
        id = plain(found.pk)
        if self._to_record is not None:
            return record_made(id, self._to_record(found))
        return {"id": id, **{name: value_of(found, name) for name in self._fields}}

    # What signals do not tell of

    def _look_at_thread(self, **_: Any) -> None:
        """Hear the connections that this thread has from before the model was live."""
        for connection in connections.all(initialized_only=True):
            self._connected(connection=connection)

    def _connected(self, connection: Any, **_: Any) -> None:
        if self._check not in connection.execute_wrappers:
            connection.execute_wrappers.append(self._check)

    def _check(self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        if self._bulk == "ignore" or not writes(self._writes, sql) or self._allowed.get():
            return execute(sql, params, many, context)
        if compare(context["connection"].alias, self._homes) is None:
            return execute(sql, params, many, context)
        keys = keys_of_statement(self._mapped, sql)
        if keys is None:
            name = self._mapped.__name__
            what = f"{name} is live, and its model {self._model.name} would not hear of {sql[:200]!r}"
            raise UnseenWrite(
                f"{what}. Write it by objects and querysets; or in `with ….bulk(queryset):` of what `live` has "
                'returned, which broadcasts those rows; or let everything pass by live(…, bulk="ignore").'
            )
        try:
            return execute(sql, params, many, context)
        finally:  # outside of a transaction it is committed by now, whatever a wrapper of another program raises
            self._note(keys, context["connection"].alias)

    # Reading

    async def _rows(self, query: Query, make: Callable[[Record], Made]) -> AsyncGenerator[list[Made], None]:
        yield await self._model.in_thread(lambda: self._made(query, make))

    def _made(self, query: Query, make: Callable[[Record], Made]) -> list[Made]:
        try:
            return [*self._records(query, make)]
        except DataError as error:
            what = "The database refused a query for %s: %s"
            sparing.log(logging.WARNING, ("refused", self._model), what, self._model.name, error)
            raise Reject("invalid", "The database cannot answer this query.", []) from None
        except (OperationalError, InterfaceError) as error:
            what = "The database of %s is not available: %s"
            sparing.log(logging.ERROR, ("down", self._model), what, self._model.name, error)
            raise Reject("unavailable", "The database is not available; try again.") from None

    def _records(self, query: Query, make: Callable[[Record], Made]) -> Iterator[Made]:
        selection = selection_of(self._model, query, self._shown)
        self._learn_schema(connections[self._mapped._default_manager.all().db])
        objects, rest = self._mapped._default_manager.all(), {}
        for name, value in selection.where.items():
            condition = equals(self._shown[name], name, value)
            if condition is None:
                rest[name] = value
            else:
                objects = objects.filter(condition)
        places = [(self._shown[name], name, descending) for name, descending in selection.places]
        vendor = connections[objects.db].vendor
        objects = objects.order_by(*(by for place in places for by in ordering(vendor, *place)))
        if selection.after is not None:
            objects = objects.filter(beyond(vendor, places, selection.after))

        def fetch(limit: int | None, offset: int) -> Iterable[Any]:
            page = objects if limit is None else objects[offset : offset + limit]
            found = readable(
                lambda: page.iterator(chunk_size=CHUNK),
                lambda it: it.pk,
                lambda: [*page.values_list("pk", flat=True)],
                lambda keys: self._mapped._default_manager.filter(pk__in=keys),
            )
            return list(found) if is_for_one(query) else found  # an error would keep its cursor

        def made_of(found: Any) -> Made | None:
            record = self._record(found)
            return make(record) if matches(record, rest) else None

        def made(found: Iterable[Any]) -> Iterator[Made]:
            skipped = None if is_for_one(query) else self._skipped
            return sendable(found, made_of, lambda it: plain(it.pk), skipped, (DatabaseError, InterfaceError))

        return islice(made(fetch(None, 0)), selection.limit) if rest else limited(selection.limit, fetch, made)


def check_fields(model: Model, mapped: type[Any], fields: Sequence[str] | None, has_to_record: bool) -> Sequence[str]:
    """The attributes that a record is made of. Raises TypeError or ValueError where it cannot be."""
    meta, name = mapped._meta, mapped.__name__
    if meta.abstract:
        raise TypeError(
            f"live({model.name}) got {name}, which is abstract: it has no table. Give the models that have."
        )
    if len(getattr(meta, "pk_fields", (meta.pk,))) != 1:
        columns = ", ".join(field.name for field in meta.pk_fields)
        raise TypeError(f"live({model.name}) got {name}, whose primary key is {columns}; a record has one id.")
    concrete = {field.attname: field for field in meta.concrete_fields}
    if fields is not None:
        unknown = [field for field in fields if field not in concrete]
        if unknown:
            raise ValueError(
                f"live({model.name}) got the fields {unknown}, expected some of {', '.join(concrete)}; "
                "for anything else there is to_record=."
            )
        return list(fields)
    if has_to_record:
        return [field for field in model.options.key if field in concrete]
    binary = [field for field in concrete if isinstance(concrete[field], models.BinaryField)]
    if binary:
        raise ValueError(
            f"live({model.name}): JSON cannot carry {', '.join(binary)} of {name}. Name others by fields=."
        )
    if "id" in concrete and meta.pk.attname != "id":
        raise ValueError(f"live({model.name}): {name}.id is not its primary key. Give to_record= or fields=.")
    check_secrets(model, name, concrete)
    return list(concrete)


def call_first(signal: Any) -> None:
    """Have the receiver that was connected last called before the others: one that fails ends them all, and outside of
    a transaction the row is committed by then."""
    with signal.lock:
        signal.receivers.insert(0, signal.receivers.pop())
        signal.sender_receivers_cache.clear()


def homes_of(mapped: type[Any]) -> list[str]:
    """The aliases of the database that a model is written to and, where that is another, read from, as a replica.

    A router that chooses by context, such as by tenant, is asked without any.
    """

    def ask() -> list[str]:
        objects = mapped._default_manager.all()
        written = objects._db or router.db_for_write(mapped)
        return list(dict.fromkeys((written, objects.db)))

    return Context().run(ask)


def compare(using: str, homes: Sequence[str]) -> bool | None:
    """Whether an alias leads to one of these databases; False: perhaps; None: no."""
    if using in homes:
        return True
    found: bool | None = None
    for home in homes:
        one, other = (connections.settings[alias] for alias in (using, home))
        if all(str(one.get(name) or "") == str(other.get(name) or "") for name in ("ENGINE", "NAME", "HOST", "PORT")):
            found = found or all(one.get(name) == other.get(name) for name in ("USER", "OPTIONS"))
    return found


def schema_of(connection: Any, mapped: type[Any]) -> str | None:
    """The schema in which a connection of PostgreSQL finds the model's table; None where it finds none, or for others.

    Connections of one alias may differ in that, by their search path.
    """
    if connection.vendor != "postgresql":
        return None
    with connection.cursor() as cursor:
        name = connection.ops.quote_name(mapped._meta.db_table)
        cursor.execute("SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = to_regclass(%s)", [name])
        found = cursor.fetchone()
    return None if found is None else str(found[0])


def value_of(found: Any, name: str) -> Any:
    """An attribute as JSON carries it; of a file its name."""
    value = getattr(found, name)
    return value.name if isinstance(value, FieldFile) else plain(value)


def keys_of(objects: Objects) -> Iterator[Any]:
    """The primary keys of objects, of a queryset's, or as they are."""
    if isinstance(objects, models.QuerySet):
        objects = objects.values_list("pk", flat=True)
    for each in objects:
        yield each.pk if isinstance(each, models.Model) else each


def keys_of_statement(mapped: type[Any], sql: str) -> Callable[[], Iterable[Any]] | None:
    """What gives, after the commit, the primary keys of the rows that the statement being executed is about to write.

    None where it cannot be known. Of `save` and `delete` signals tell. What else Django executes for a queryset is
    known from the stack: no signal tells of it, and the SQL alone does not tell the rows.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        known = frame.f_locals if frame.f_code in (DELETE, UPDATE, BULK_CREATE) else {}
        if frame.f_code is SAVE or (frame.f_code is DELETE and sql.lstrip()[:6].upper() == "DELETE"):
            return tuple
        if frame.f_code is DELETE and "objs" in known:  # of which the deleted ones take away a reference (`SET_NULL`)
            deleted = list(keys_of(known["objs"]))
            return lambda: deleted
        if frame.f_code is UPDATE:
            updated = list(known["self"].values_list("pk", flat=True))
            pk = mapped._meta.pk
            for name in {pk.name, pk.attname} & known["kwargs"].keys():
                value = known["kwargs"][name]
                if hasattr(value, "resolve_expression"):  # which only the database knows
                    return None
                updated.append(pk.to_python(getattr(value, "pk", value)))
            return lambda: updated
        if frame.f_code is BULK_CREATE:
            made, ignores = list(known["objs"]), known["ignore_conflicts"]
            returns = connections[known["self"].db].features.can_return_rows_from_bulk_insert
            if ignores or (not returns and any(each.pk is None for each in made)):
                return None
            return lambda: [each.pk for each in made]
        frame = frame.f_back
    return None


# How values compare


def typed(field: Any, name: str, value: Any) -> Any:
    """A value of a query as the field takes it. Raises ValidationError, ValueError, TypeError or OverflowError."""
    if isinstance(field, models.DurationField):
        return datetime.timedelta(seconds=value)
    taken = field.to_python(value)
    if isinstance(taken, datetime.datetime) and settings.USE_TZ and timezone.is_naive(taken):
        taken = timezone.make_aware(taken, datetime.UTC)
    is_same = str(plain(taken)) == str(value) if name == "id" else equal(plain(taken), value)
    if not is_same and (not isinstance(value, str) or isinstance(taken, (int, float))):  # 7 is not "7"
        raise ValueError(value)
    return taken


def equals(field: Any, name: str, value: Any) -> Any:
    """The condition that a field has a value; None: only the record can tell."""
    if isinstance(field, models.JSONField):
        return None
    if value is None:
        return Q(**{f"{field.attname}__isnull": True})
    try:
        return Q(**{field.attname: typed(field, name, value)})
    except BAD_VALUE:  # which is in none of the rows
        return NONE


def place_of(vendor: str, field: Any, name: str) -> Any:
    """What to order by for a field: as its JSON text sorts in a browser, whatever the database's language is.

    Raises Reject("invalid") for a field whose text sorts otherwise than its values.
    """
    kind = getattr(field, "target_field", field)
    if name != "id" and (not isinstance(kind, ORDERED) or hasattr(kind, "from_db_value")):
        raise invalid("$order", f"names {name}, which is not a field that has an order as browsers see it")
    collation = CODE_POINTS.get(vendor) if isinstance(kind, TEXTS) else None
    return F(field.attname) if collation is None else Collate(F(field.attname), collation)


class IdNumber(Func):  # type: ignore[misc]
    """The integer that an id of text is, by which ids are ordered before their texts: see `id_key`."""

    output_field = models.BigIntegerField()

    def as_sql(self, compiler: Any, connection: Any, **_: Any) -> tuple[str, Sequence[Any]]:
        text, parameters = compiler.compile(self.source_expressions[0])
        sql = id_number_sql(connection.vendor, f"({text})")
        return f"({sql})", [*parameters] * sql.count(f"({text})")


def is_text_id(field: Any, name: str) -> bool:
    """Whether it is the primary key, of text."""
    return name == "id" and isinstance(getattr(field, "target_field", field), TEXTS)


def ordering(vendor: str, field: Any, name: str, descending: bool) -> Iterator[Any]:
    """What to order by for a field: nothing comes before everything."""
    nulls = True if field.null else None
    place = place_of(vendor, field, name)
    for by in (IdNumber(place), place) if is_text_id(field, name) else (place,):
        yield by.desc(nulls_last=nulls) if descending else by.asc(nulls_first=nulls)


def beyond(vendor: str, places: Sequence[tuple[Any, str, bool]], after: Mapping[str, Any]) -> Any:
    """That a row comes after a place in the order. Raises Reject("invalid")."""
    condition = NONE
    for field, name, descending in reversed(places):
        attribute, value = field.attname, after.get(name)
        if value is None and field.null:
            further = NONE if descending else Q(**{f"{attribute}__isnull": False})
            condition = further | (Q(**{f"{attribute}__isnull": True}) & condition)
            continue
        try:
            bound = None if value is None else typed(field, name, value)
        except BAD_VALUE:
            bound = None
        if bound is None:
            raise invalid("$after", f"has {shorten(value)} for {name}, which is no value of it") from None
        place = place_of(vendor, field, name)
        other = Value(bound, output_field=getattr(field, "target_field", field))
        follows = LessThan if descending else GreaterThan
        further = Q(follows(place, other))
        if is_text_id(field, name):
            number, other_number = IdNumber(place), IdNumber(other)
            further = Q(follows(number, other_number)) | (Q(Exact(number, other_number)) & further)
        if descending and field.null:
            further |= Q(**{f"{attribute}__isnull": True})
        condition = further | (Q(**{attribute: bound}) & condition)
    return condition
