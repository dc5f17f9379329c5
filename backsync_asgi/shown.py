"""Reading for one client: a query is answered from what a visibility rule shows of the records, and nothing else.

The order, the filters, the limit and the place of a page go by the shown fields. A reader compares the stored ones, so
it is given those conditions alone whose fields no rule may change.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from .sockjs.frames import loads
from .stores.base import MAX_PAGE, Query, Reader, Record, Selection, arrange, matches, paced, parse_query

MANY = 10_000  # records that are held to find a page among them

Pair = tuple[Record, Record]  # a record, and what is shown of it
Show = Callable[[Mapping[str, Any]], Mapping[str, Any] | None]


async def read_shown(reader: Reader, query: Query, show: Show, is_whole: Callable[[str], bool]) -> list[Pair]:
    """The records that a query asks for among those that are shown, each with what is shown of it.

    is_whole: whether the rule leaves a field as it is in all that it shows.

    Raises what the reader raises.
    """
    asked = parse_query(query)
    given = {field: value for field, value in asked.where.items() if is_whole(field)}
    if not asked.order:
        return [pair async for pair in _scanned(reader, given, asked, show)]
    if not all(is_whole(field) for field, _ in asked.order):
        pairs: list[Pair] = []
        async for pair in _scanned(reader, given, asked, show):
            pairs.append(pair)
            if asked.limit is not None and len(pairs) >= MANY:
                pairs = await arrange(pairs, _shown, asked)
        return await arrange(pairs, _shown, asked)
    given["$order"] = [f"-{field}" if descending else field for field, descending in asked.order]
    if asked.after is not None:
        given["$after"] = dict(asked.after)
    if asked.limit is None:
        return [pair async for pair in _scanned(reader, given, asked, show)]
    return await _page(reader, given, asked, asked.limit, show)


def _shown(pair: Pair) -> Record:
    return pair[1]


async def _scanned(reader: Reader, given: Query, asked: Selection, show: Show) -> AsyncIterator[Pair]:
    """All records that the reader has for a query, as far as they are shown and match."""
    async with aclosing(reader.snapshot(given)) as chunks:
        async for texts in chunks:
            async for text in paced(texts):
                if (pair := _pair(loads(text), asked, show)) is not None:
                    yield pair


async def _page(reader: Reader, given: dict[str, Any], asked: Selection, limit: int, show: Show) -> list[Pair]:
    """As many records as the page has; reads on where some are hidden, in larger and larger steps."""
    found: list[Pair] = []
    step = limit
    while True:
        rows = await reader.read({**given, "$limit": step})
        async for row in paced(rows):
            if (pair := _pair(row, asked, show)) is not None:
                found.append(pair)
                if len(found) == limit:
                    return found
        if len(rows) < step:
            return found
        after = {field: rows[-1].get(field) for field, _ in asked.places}
        if after == given.get("$after"):  # a reader that does not know pages
            return found
        given["$after"] = after
        step = min(MAX_PAGE, 4 * step)


def _pair(row: Any, asked: Selection, show: Show) -> Pair | None:
    seen = show(row)
    return None if seen is None or not matches(seen, asked.where) else (row, dict(seen))
