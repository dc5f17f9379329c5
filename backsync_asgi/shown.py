"""Reading for one client: a query is answered from what a visibility rule shows of the records, and nothing else.

The order, the filters, the limit and the place of a page go by the shown fields. A reader compares the stored ones, so
it is given those conditions alone whose fields no rule may change.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import aclosing
from typing import Any, NamedTuple

from .sockjs.frames import loads
from .stores.base import MAX_PAGE, Query, Reader, Record, Selection, arrange, matches, paced, parse_query

MANY = 10_000  # records that are held to find a page among them

# What a client gets of a record, as a record and as JSON text; None: nothing. It is given the text of a record, too, if
# there is one.
Show = Callable[[Mapping[str, Any], str | None], tuple[Mapping[str, Any], str] | None]


class Shown(NamedTuple):
    """A record that a client may see. Holds no more than is needed: thousands of nested records keep the garbage
    collector busy for longer than the event loop may stand still.

    row: some fields of the stored record. text: what is shown of it. place: the shown fields by which it is ordered.
    """

    row: Record
    text: str
    place: Record


async def read_shown(
    reader: Reader, query: Query, show: Show, is_whole: Callable[[str], bool], fields: Collection[str]
) -> list[Shown]:
    """The records that a query asks for among those that are shown.

    is_whole: whether the rule leaves a field as it is in all that it shows. fields: what is wanted of stored records.

    Raises what the reader raises.
    """
    asked = parse_query(query)
    given = {field: value for field, value in asked.where.items() if is_whole(field)}
    look = _Look(asked, show, fields)
    if not asked.order:
        return [shown async for shown in look.scan(reader, given)]
    if not all(is_whole(field) for field, _ in asked.order):
        found: list[Shown] = []
        async for shown in look.scan(reader, given):
            found.append(shown)
            if asked.limit is not None and len(found) >= MANY:
                found = await arrange(found, _place, asked)
        return await arrange(found, _place, asked)
    given["$order"] = [f"-{field}" if descending else field for field, descending in asked.order]
    if asked.after is not None:
        given["$after"] = dict(asked.after)
    if asked.limit is None:
        return [shown async for shown in look.scan(reader, given)]
    return await look.page(reader, given, asked.limit)


def _place(shown: Shown) -> Record:
    return shown.place


class _Look:
    """One query's look at records."""

    def __init__(self, asked: Selection, show: Show, fields: Collection[str]) -> None:
        self._asked = asked
        self._show = show
        self._fields = fields

    async def scan(self, reader: Reader, given: Query) -> AsyncIterator[Shown]:
        """All records that the reader has for a query, as far as they are shown and match."""
        async with aclosing(reader.snapshot(given)) as chunks:
            async for texts in chunks:
                async for text in paced(texts):
                    if (shown := self._at(loads(text), text)) is not None:
                        yield shown

    async def page(self, reader: Reader, given: dict[str, Any], limit: int) -> list[Shown]:
        """As many records as the page has; reads on where some are hidden, in larger and larger steps."""
        found: list[Shown] = []
        step = limit
        while True:
            rows = await reader.read({**given, "$limit": step})
            async for row in paced(rows):
                if (shown := self._at(row)) is not None:
                    found.append(shown)
                    if len(found) == limit:
                        return found
            if len(rows) < step:
                return found
            after = {field: rows[-1].get(field) for field, _ in self._asked.places}
            if after == given.get("$after"):  # a reader that does not know pages
                return found
            given["$after"] = after
            step = min(MAX_PAGE, 4 * step)

    def _at(self, row: Any, text: str | None = None) -> Shown | None:
        found = self._show(row, text)
        if found is None or not matches(found[0], self._asked.where):
            return None
        wanted = {field: row[field] for field in self._fields if field in row}
        return Shown(wanted, found[1], {field: found[0].get(field) for field, _ in self._asked.places})
