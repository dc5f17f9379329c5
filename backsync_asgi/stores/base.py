"""The contract of stores, where the records of a model live, and its pure parts; it knows no models and connections."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import re
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, TypeVar
from weakref import WeakKeyDictionary

from backsync_asgi.errors import EncodeError, Reject
from backsync_asgi.logs import escaped
from backsync_asgi.messages import MAX_FIELDS, MAX_ID, MAX_SAFE_INTEGER, check_query, encode, is_id, shorten

logger = logging.getLogger("backsync")

Id = str | int
Record = dict[str, Any]
Query = Mapping[str, Any]
Row = TypeVar("Row")

MAX_PAGE = 1_000  # records of one page; a query without a limit reads all
MAX_ORDER = 8  # fields by which records are ordered
MAX_RECORD = 65_536  # bytes of a record as JSON; a client's message is not larger either
CHUNK = 2_000  # records that a snapshot reads at a time
RUN = 2_000  # rows that are sorted at a time
SLICE = 0.005  # seconds of work on rows before the event loop gets its turn
# What a column's type raises for a row, and SQLAlchemy for one of an unknown subclass.
UNREADABLE = (ValueError, LookupError, TypeError, ArithmeticError, AssertionError)
MAX_SKIPPED = 100  # rows that are logged because they cannot be sent, per store or model
INTEGER_ID = re.compile(r"0|-?[1-9][0-9]{0,18}")
LAST_INTEGER = 2**63 - 1
BY_ID = (("id", False),)  # the order of pages for which none is given


class Unsure(Reject):
    """`unavailable`, from a store that does not know whether a write was committed."""


class Reader(Protocol):
    """What a model's records are read from: a store, or a table of the application's.

    It raises Reject where a query is refused: `invalid` (details: a list of `{"field", "message"}`), `unavailable`.
    """

    async def read(self, query: Query) -> list[Record]:
        """The records whose fields equal the query's, in its order; see `parse_query`. Without one, in an own order."""

    def snapshot(self, query: Query) -> AsyncGenerator[list[str], None]:
        """What `read` reads, as JSON texts and in chunks, so that neither all rows nor their decoded forms are held.

        All chunks are of one moment where that can be. Close it (`contextlib.aclosing`) if you leave early.
        """

    async def get(self, id: Id) -> Record | None:
        """The record of that id, or None."""


class Store(Reader, Protocol):
    """A home for records: dicts with string keys, each with an `id` (a string of 1-128 characters or an integer).

    Ids are compared as browsers compare them: 1 and "1" name the same record. A store keeps JSON: what JSON writes as
    text, such as a date, comes out as text. Records that come out are the caller's to change: the store keeps its own.
    An acknowledged write is kept (for a memory store: as long as the process). Of two writes of one record at once,
    also by two processes, the second sees what the first has written.

    A store raises Reject where a request is refused: `invalid` (details: a list of `{"field", "message"}`),
    `not_found`, `conflict` (details: `{"current": record}`), `too_large` (details: `{"limit": number}`), `unavailable`
    (retrying is safe); and EncodeError for what JSON cannot carry. Nothing is stored then; where that is not sure, it
    raises `Unsure`, and the record is read again and broadcast as soon as that can be done.

    version: the field that counts a record's writes, from 1, or None. The store counts; a write or delete that names
    another value than the current one is a `conflict`, one that names none is unconditional.
    """

    version: str | None

    def bind(self, model: str, version: str | None) -> None:
        """Become the store of a model of that name, which counts versions in that field. Called once, by the model."""

    async def upsert(self, record: Mapping[str, Any]) -> Record:
        """Replace the record of that id in its place, or add it; returns it whole, with a new id if it had none."""

    async def patch(self, id: Id, fields: Mapping[str, Any], unset: Sequence[str] = ()) -> Record:
        """Change some fields, remove others; returns the whole record. Raises Reject("not_found")."""

    async def delete(self, id: Id, version: Any = None) -> bool:
        """Remove the record. False: there was none, whatever the version. version: the one that it must have.

        Raises Reject("conflict").
        """

    def take_evicted(self) -> Iterable[Id]:
        """The ids of records that the store has dropped by itself since the last call, to be announced as deleted."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What a query asks for.

    where: the values that fields must have; a record that lacks one of the fields does not match.
    order: (field, descending) each; records that are equal in these are ordered by id, in the last one's direction.
        Empty: the order of the store.
    limit: so many records, or all.
    after: the order's fields and the id of a record; only what comes after it. It need not be there any more.
    """

    where: Mapping[str, Any]
    order: tuple[tuple[str, bool], ...] = ()
    limit: int | None = None
    after: Mapping[str, Any] | None = None

    @property
    def descending(self) -> bool:
        """The direction in which ids are compared."""
        return bool(self.order) and self.order[-1][1]

    @property
    def places(self) -> Sequence[tuple[str, bool]]:
        """The order down to the id, which no two records have in common."""
        return self.order if "id" in dict(self.order) else (*self.order, ("id", self.descending))


def parse_query(query: Query) -> Selection:
    """A query as it comes from the wire or the program, taken apart.

    `$order`: a field, or a list of fields, `-field` for descending. `$limit`: 1 to MAX_PAGE. `$after`: the last record
    of the page before, or its order's fields and id alone. All other fields are compared for equality. A query with a
    limit or a cursor and no order is read in the order of ids, which does not change between pages.

    Raises Reject("invalid") with the field and what is wrong with it.
    """
    check_query(query)
    for field, value in query.items():
        try:
            encode({field: value})
        except EncodeError as error:
            _refuse(field if field.isprintable() else shorten(field), f"cannot be compared: {error}")
    where = {field: value for field, value in query.items() if not field.startswith("$")}
    for field in query:
        if field.startswith("$") and field not in ("$order", "$limit", "$after"):
            _refuse(field, "is reserved; there are $order, $limit and $after")
    for field, value in where.items():
        if type(value) is int and abs(value) >= 2**63:
            _refuse(field, "is an integer of more than 64 bits")
    order = _parse_order(query.get("$order"))
    limit = query.get("$limit")
    if limit is not None and (type(limit) is not int or not 1 <= limit <= MAX_PAGE):
        _refuse("$limit", f"is {shorten(limit)}, expected 1 to {MAX_PAGE}")
    after = query.get("$after")
    if after is not None:
        if not isinstance(after, Mapping) or not is_id(after.get("id")):
            _refuse("$after", f"is {shorten(after)}, expected the last record or its order's fields and id")
        after = {field: after.get(field) for field in (*(field for field, _ in order), "id")}
    if not order and (limit is not None or after is not None):
        order = BY_ID
    return Selection(where, order, limit, after)


def _parse_order(order: Any) -> tuple[tuple[str, bool], ...]:
    names = [] if order is None else [order] if isinstance(order, str) else order
    if not isinstance(names, (list, tuple)) or not all(
        isinstance(name, str) and name not in ("", "-") for name in names
    ):
        _refuse("$order", f"is {shorten(order)}, expected a field, -field, or a list of them")
    if len(names) > MAX_ORDER:
        _refuse("$order", f"names {len(names)} fields, expected at most {MAX_ORDER}")
    for name in names:
        if encode(name) != f'"{name}"':  # a database finds a field by its name as JSON has it
            _refuse("$order", f"names the field {shorten(name)}; quotes, backslashes and control characters cannot be")
    return tuple((name.removeprefix("-"), name.startswith("-")) for name in names)


def _refuse(field: str, message: str) -> NoReturn:
    raise invalid(field, message)


def invalid(field: str, message: str) -> Reject:
    """The refusal of one field. message: goes on after the field's name, such as "is missing"."""
    return Reject("invalid", escaped(f"{field} {message}."), [{"field": field, "message": message}])


def conflict(version: str, named: Any, current: Record | None) -> Reject:
    """The refusal of a write that was meant for another version."""
    counted = 0 if current is None else current.get(version)
    message = f"Somebody else has changed it in the meantime: {version} is {counted}, not {shorten(named)}."
    return Reject("conflict", message, {"current": current})


# What a write makes of the record that is there.


def replace(record: Mapping[str, Any], current: Record | None, version: str | None) -> Record:
    """The record that an upsert stores: with an id, and its version counted. current: the one that is there.

    Raises Reject("invalid") for an impossible id, Reject("conflict").
    """
    kept = dict(record)
    if kept.get("id") is None:
        kept["id"] = new_id()
    elif not is_id(kept["id"]):
        _refuse("id", f"is {shorten(kept['id'])}, expected 1-{MAX_ID} characters or an integer")
    return _count(kept, kept.get(version) if version is not None else None, current, version)


def new_id() -> str:
    """A random id of 16 characters, which begins with a letter: no integer, and no `c12` of Backbone's."""
    return secrets.choice("abdef") + secrets.token_hex(8)[1:]


def merge(current: Record, fields: Mapping[str, Any], unset: Sequence[str], version: str | None) -> Record:
    """The record that a patch stores: some fields changed, others removed; id and version stay out of it.

    Raises Reject("conflict").
    """
    removed = set(unset) - {"id"}
    changed = {**current, **{field: value for field, value in fields.items() if field != "id"}}
    kept = {field: value for field, value in changed.items() if field not in removed}
    return _count(kept, fields.get(version) if version is not None else None, current, version)


def _count(record: Record, named: Any, current: Record | None, version: str | None) -> Record:
    return record if version is None else {**record, version: check_version(named, current, version) + 1}


def check_version(named: Any, current: Record | None, version: str) -> int:
    """The version of the record that is there. Raises Reject("conflict") for a write that names another; None: none."""
    counted = None if current is None else current.get(version)
    if type(counted) is not int:  # a row from before versions were counted
        counted = 0
    if named is not None and (type(named) is not int or current is None or named != counted):
        raise conflict(version, named, current)
    return counted


def encode_record(record: Record) -> str:
    """A record as JSON text. Raises Reject("too_large") for one that is over a limit, EncodeError."""
    if len(record) > MAX_FIELDS:
        raise Reject("too_large", f"The record has {len(record)} fields; {MAX_FIELDS} may be.", {"limit": MAX_FIELDS})
    text = encode(record)
    size = len(text) if text.isascii() else len(text.encode())
    if size > MAX_RECORD:
        raise Reject("too_large", f"The record takes {size} bytes; {MAX_RECORD} may be.", {"limit": MAX_RECORD})
    return text


def missing(id: object) -> Reject:
    """The refusal of a patch of what is not there."""
    return Reject("not_found", f"There is no record with the id {shorten(id)}.")


# How values compare, in every store.


def equal(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal: 1 is 1.0 and not True, the order of an object's fields does not count."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def matches(record: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    """Whether a record has the values that are asked for."""
    for field, value in where.items():
        if field == "id":
            if not is_id(value) or str(record["id"]) != str(value):
                return False
        elif field not in record or not equal(record[field], value):
            return False
    return True


def id_key(id: object) -> tuple[int, str]:
    """Where an id stands in the order: integers of 64 bits by their value, 1 and "1" as one, then texts by code points.

    So a table with integer keys has the order of its index. Other texts stand where the largest integer does.
    """
    text = str(id)
    if INTEGER_ID.fullmatch(text) is None:
        return LAST_INTEGER, text
    number = int(text)
    return (number if -LAST_INTEGER - 1 <= number <= LAST_INTEGER else LAST_INTEGER), text


def id_number_sql(dialect: str, text: str) -> str:
    """The number of `id_key` as SQL, for the SQL of an id's text. In other databases than these two ids are texts.

    In SQLite it is the text itself where there is no number: it sorts after all numbers, and an index of SQLite finds
    the first of two places alone.
    """
    if dialect == "sqlite":
        number = f"CAST({text} AS INTEGER)"  # of what is no such integer it makes another text
        is_number = f"CAST({number} AS TEXT) = {text} AND {text} <> '{LAST_INTEGER}'"
        return f"CASE WHEN {is_number} THEN {number} ELSE {text} END"
    if dialect != "postgresql":
        return f"CASE WHEN {text} IS NULL THEN 0 ELSE 1 END"
    text = f"CAST({text} AS text)"  # a literal would be taken for a number before it is looked at
    fits = f"CAST({text} AS numeric) BETWEEN {-LAST_INTEGER - 1} AND {LAST_INTEGER}"
    return (
        f"CASE WHEN {text} COLLATE \"C\" ~ '^({INTEGER_ID.pattern})$' "
        f"THEN CASE WHEN {fits} THEN CAST({text} AS bigint) ELSE {LAST_INTEGER} END ELSE {LAST_INTEGER} END"
    )


def sort_key(field: str, value: Any) -> tuple[int, float, str]:
    """Where a value stands in the order: nothing, then numbers (False is 0, True is 1), then text by code points.

    Ids have an order of their own. Among the numbers are those that are sent as text: integers that browsers would
    round, and infinities. Arrays and objects stand among the texts, as JSON text.
    """
    if field == "id":
        return 1, *id_key(value)
    if value is None:
        return 0, 0, ""
    if isinstance(value, (int, float)):
        return 1, value, ""
    if value in ("Infinity", "-Infinity"):
        return 1, float(value), ""
    if isinstance(value, str) and 16 <= len(value) <= 20:
        number, _ = id_key(value)
        if abs(number) > MAX_SAFE_INTEGER and str(number) == value:
            return 1, number, ""
    return 2, 0, value if isinstance(value, str) else encode(value)


class _Descending:
    """A sort key that compares the other way round."""

    __slots__ = ("key",)

    def __init__(self, key: tuple[int, float, str]) -> None:
        self.key = key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Descending) and self.key == other.key

    def __lt__(self, other: _Descending) -> bool:
        return other.key < self.key

    __hash__ = None  # type: ignore[assignment]


async def paced(rows: Iterable[Row]) -> AsyncIterator[Row]:
    """The same rows. Lets the event loop go on with other work after each `SLICE` of time that they take.

    Many that are paced at the same time take turns: in each turn of the event loop one of them goes on.
    """
    begun = time.perf_counter()
    for number, row in enumerate(rows):
        yield row
        if number % 8 == 7 and time.perf_counter() - begun > SLICE:
            await _queues.setdefault(asyncio.get_running_loop(), _Queue()).turn()
            begun = time.perf_counter()


class _Queue:
    """Work of one event loop that was interrupted, and goes on in the order in which it was."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def turn(self) -> None:
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._waiting.append(waiter)
        if len(self._waiting) == 1:
            loop.call_soon(self._next, loop)
        await waiter

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        waiter = self._waiting.popleft()
        if not waiter.done():  # else it was cancelled
            waiter.set_result(None)
        if self._waiting:
            loop.call_soon(self._next, loop)


_queues: WeakKeyDictionary[asyncio.AbstractEventLoop, _Queue] = WeakKeyDictionary()


async def arrange(rows: Iterable[Row], record_of: Callable[[Row], Record], selection: Selection) -> list[Row]:
    """The rows in the selection's order, from its cursor on and up to its limit; `where` is not looked at.

    Works in slices: the event loop is not held up, however many rows there are.
    """
    order = selection.places
    turned = {descending for _, descending in order} == {True}  # all descend: the plain keys, from the other end
    mixed = not turned and any(descending for _, descending in order)

    def place(record: Mapping[str, Any]) -> list[Any]:
        keys = [sort_key(field, record.get(field)) for field, _ in order]
        if mixed:
            return [_Descending(key) if down else key for key, (_, down) in zip(keys, order, strict=True)]
        return keys

    bound = None if selection.after is None else place(selection.after)
    limit = selection.limit
    runs: list[list[tuple[Any, Row]]] = [[]]  # each is sorted but the last
    async for row in paced(rows):
        placed = (place(record_of(row)), row)
        if bound is not None and not (placed[0] < bound if turned else bound < placed[0]):
            continue
        runs[-1].append(placed)
        if len(runs[-1]) >= RUN:
            runs[-1].sort(key=_first, reverse=turned)
            if limit is None:
                runs.append([])
            else:
                del runs[-1][limit:]
    runs[-1].sort(key=_first, reverse=turned)
    ordered = heapq.merge(*runs, key=_first, reverse=turned) if len(runs) > 1 else runs[0]
    return [row async for _, row in paced(itertools.islice(ordered, limit))]


def _first(pair: tuple[Any, object]) -> Any:
    return pair[0]


class Skipped:
    """Logs the rows that cannot be sent, such as one with an infinity: each once, and not more than MAX_SKIPPED.

    name: of the table or model that they belong to.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._logged: set[str] = set()

    def note(self, id: object, problem: object) -> None:
        """A row is left out of what is sent. id: as far as it is known."""
        shown = shorten(id)
        if shown in self._logged or len(self._logged) > MAX_SKIPPED:
            return
        self._logged.add(shown)
        if len(self._logged) > MAX_SKIPPED:
            logger.error("More records of %s cannot be sent and are left out; they are not logged.", self._name)
        else:
            logger.error("The record %s of %s cannot be sent and is left out: %s", shown, self._name, problem)
