"""How live tables are read: what a query may name, and the rows in chunks; it knows no database."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

from backsync_asgi.errors import Reject
from backsync_asgi.messages import encode, shorten
from backsync_asgi.models import Model
from backsync_asgi.stores.base import Id, Query, Record, Selection, parse_query

Made = TypeVar("Made")


class Rows(Protocol):
    """The rows that a query asks for, in chunks; each is handed to `make` where it is made, as in a worker thread."""

    def __call__(self, query: Query, make: Callable[[Record], Made]) -> AsyncGenerator[list[Made], None]:
        """Raises Reject("invalid"), Reject("unavailable")."""


class TableReader:
    """Reads the records of a model from a table: a `Reader`, as stores are.

    texts: the same rows as JSON, where something else than we makes it.
    """

    def __init__(self, rows: Rows, texts: Callable[[Query], AsyncGenerator[list[str], None]] | None = None) -> None:
        self._rows = rows
        self._texts = texts

    async def read(self, query: Query) -> list[Record]:
        """The records that a query asks for; by id unless it says otherwise."""
        async with aclosing(self._rows(query, _itself)) as chunks:
            return [record async for chunk in chunks for record in chunk]

    def snapshot(self, query: Query) -> AsyncGenerator[list[str], None]:
        """The same as JSON texts."""
        return self._rows(query, encode) if self._texts is None else self._texts(query)

    async def get(self, id: Id) -> Record | None:
        """The record of that id, or None."""
        found = await self.read({"id": id})
        return found[0] if found else None


def _itself(record: Record) -> Record:
    return record


def selection_of(model: Model, query: Query, shown: Collection[str]) -> Selection:
    """What a query asks for. Raises Reject("invalid") where it names what is not shown, which is not to be probed."""
    selection = parse_query(query)
    fields: list[tuple[str, Any]] = [(field, field) for field in selection.where]
    for field, told in [*fields, *((field, "$order") for field, _ in selection.order)]:
        if field not in shown:
            expected = f"{model.name} cannot be read by {shorten(field)}, only by {', '.join(shown)}."
            raise Reject("invalid", expected, [{"field": told, "message": "names what is not a field to read by"}])
    return selection
