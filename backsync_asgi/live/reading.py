"""How live tables are read: what a query may name, and the rows in chunks; it knows no database."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

from backsync_asgi.errors import EncodeError, Reject
from backsync_asgi.messages import encode, is_id, shorten
from backsync_asgi.models import Model
from backsync_asgi.stores.base import MAX_PAGE, UNREADABLE, Id, Query, Record, Selection, Skipped, parse_query

from .feed import plain

Made = TypeVar("Made")
Row = TypeVar("Row")

SALVAGED = 500  # rows that are read at a time where some cannot be


class Rows(Protocol):
    """The rows that a query asks for, in chunks; each is handed to `make` where it is made, as in a worker thread."""

    def __call__(self, query: Query, make: Callable[[Record], Made]) -> AsyncGenerator[list[Made], None]:
        """Raises Reject("invalid"), Reject("unavailable")."""


class TableReader:
    """Reads the records of a model from a table: a `Reader`, as stores are. Leaves out those that cannot be sent.

    texts: the same rows as JSON, where something else than we makes it.
    """

    def __init__(
        self,
        rows: Rows,
        skipped: Skipped,
        texts: Callable[[Query], AsyncGenerator[list[str], None]] | None = None,
    ) -> None:
        self._rows = rows
        self._skipped = skipped
        self._texts = texts

    async def read(self, query: Query) -> list[Record]:
        """The records that a query asks for; by id unless it says otherwise."""
        async with aclosing(self._rows(query, _checked)) as chunks:
            return [record async for chunk in chunks for record in chunk]

    def snapshot(self, query: Query) -> AsyncGenerator[list[str], None]:
        """The same as JSON texts."""
        return self._rows(query, _text) if self._texts is None else self._texts(query)

    async def get(self, id: Id) -> Record | None:
        """The record of that id, or None. Raises Reject("not_found") for a row that cannot be sent: it must not be
        taken for one that is not there, as by a rule about who may write it."""
        try:
            found = await self.read({"id": id})
        except Reject:
            raise
        except Exception as error:  # noqa: BLE001 - `to_record` is the application's
            self._skipped.note(id, error)
            raise Reject("not_found", f"The record with the id {shorten(id)} cannot be sent.") from None
        return found[0] if found else None


def _text(record: Record) -> str:
    if not is_id(record["id"]):
        raise EncodeError("It has no id that a record can have: a string of 1-128 characters or an integer.")
    return encode(record)


def _checked(record: Record) -> Record:
    _text(record)
    return record


@dataclass(frozen=True, slots=True)
class Unreadable:
    """In place of a row that a column's type cannot read: another program has written what is none of it."""

    key: Any
    error: Exception


def salvaged(fetch: Callable[[Sequence[Any]], Sequence[Row]], keys: Sequence[Any]) -> Iterator[Row | Unreadable]:
    """The rows of these keys, as they are fetched; where some cannot be read, the others."""
    try:
        rows = fetch(keys)
    except UNREADABLE as error:
        if len(keys) == 1:
            yield Unreadable(keys[0], error)
            return
        half = len(keys) // 2
        yield from salvaged(fetch, keys[:half])
        yield from salvaged(fetch, keys[half:])
    else:
        yield from rows


def readable(
    rows: Callable[[], Iterable[Row]],
    key_of: Callable[[Row], Any],
    keys: Callable[[], Sequence[Any]],
    fetch: Callable[[Sequence[Any]], Iterable[Row]],
) -> Iterator[Row | Unreadable]:
    """The rows as they come. Where one cannot be read, those from there on are fetched by their keys.

    keys: of all rows, in order; fetch: the rows of some keys, in any order.
    """
    last: Row | None = None
    try:
        for row in rows():
            yield row
            last = row
        return
    except UNREADABLE:
        found = keys()
    key = None if last is None else key_of(last)
    start = found.index(key) + 1 if key in found else 0  # what is read twice does no harm

    def in_order(some: Sequence[Any]) -> Sequence[Row]:
        by_key = {key_of(row): row for row in fetch(some)}
        return [by_key[key] for key in some if key in by_key]

    for first in range(start, len(found), SALVAGED):
        yield from salvaged(in_order, found[first : first + SALVAGED])


def sendable(
    rows: Iterable[Row | Unreadable],
    make: Callable[[Row], Made | None],
    id_of: Callable[[Row], Any],
    skipped: Skipped | None,
    raised: tuple[type[BaseException], ...] = (),
) -> Iterator[Made]:
    """What is made of rows. One of which it cannot be made is logged and left out, as is one that gives None.

    skipped: None raises the error of such a row. raised: the errors that concern all rows, as that of a connection
        which is lost.
    """
    for row in rows:
        try:
            if type(row) is Unreadable:
                raise row.error
            made = make(row)  # type: ignore[arg-type] # it is no Unreadable
        except raised:
            raise
        except Exception as error:
            if skipped is None:
                raise
            id = plain(row.key) if isinstance(row, Unreadable) else id_of(row)
            skipped.note(id, repr(error) if not str(error) else error)
        else:
            if made is not None:
                yield made


def limited(
    limit: int | None,
    fetch: Callable[[int | None, int], Iterable[Row | Unreadable]],
    make: Callable[[Iterable[Row | Unreadable]], Iterator[Made]],
) -> Iterator[Made]:
    """As much as the limit says is made of rows; further ones are fetched where some were left out.

    fetch: `(limit, offset)`; make: leaves out rows.
    """
    if limit is None:
        yield from make(fetch(None, 0))
        return
    missing, step, offset = limit, limit, 0
    while missing:
        rows = list(fetch(step, offset))
        for made in islice(make(rows), missing):
            missing -= 1
            yield made
        if len(rows) < step:
            return
        offset += step
        step = min(MAX_PAGE, 2 * step)


def is_for_one(query: Query) -> bool:
    """Whether a query asks for one record by its id."""
    return set(query) == {"id"}


def selection_of(model: Model, query: Query, shown: Collection[str]) -> Selection:
    """What a query asks for. Raises Reject("invalid") where it names what is not shown, which is not to be probed."""
    selection = parse_query(query)
    fields: list[tuple[str, Any]] = [(field, field) for field in selection.where]
    for field, told in [*fields, *((field, "$order") for field, _ in selection.order)]:
        if field not in shown:
            expected = f"{model.name} cannot be read by {shorten(field)}, only by {', '.join(shown)}."
            raise Reject("invalid", expected, [{"field": told, "message": "names what is not a field to read by"}])
    return selection
