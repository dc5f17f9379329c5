"""MemoryStore: records in a dict, for prototypes, tests and what need not outlive the process."""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Any, Literal

import orjson

from backsync_asgi.errors import Reject
from backsync_asgi.messages import record_of

from .base import (
    BY_ID,
    CHUNK,
    Id,
    Query,
    Record,
    arrange,
    check_version,
    encode_record,
    id_key,
    matches,
    merge,
    missing,
    paced,
    parse_query,
    replace,
)

MAX_CHANGED = 1_000  # ids that find their place one by one; more are sorted with all others


class Row:
    """A record, encoded to be sent; to be compared it is decoded when that is first asked for."""

    __slots__ = ("_record", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._record: Record | None = None

    @property
    def record(self) -> Record:
        """The record, which never leaves the store."""
        if self._record is None:
            self._record = self.copy()
        return self._record

    def copy(self) -> Record:
        """The record for somebody else."""
        record: Record = orjson.loads(self.text)
        return record


class MemoryStore:
    """Keeps records in memory, in the order in which they were first written, and loses them with the process.

    limit: the number of records that are kept.
    full: what happens to one more: "reject" refuses it (`too_large`), "evict" drops the oldest, as a log does.
    """

    def __init__(self, *, limit: int = 100_000, full: Literal["reject", "evict"] = "reject") -> None:
        if type(limit) is not int or limit < 1:
            raise ValueError(f"MemoryStore got limit={limit!r}, expected a positive number of records.")
        if full not in ("reject", "evict"):
            raise ValueError(f"MemoryStore got full={full!r}, expected 'reject' or 'evict'.")
        self.version: str | None = None
        self._limit = limit
        self._full = full
        self._rows: OrderedDict[str, Row] = OrderedDict()
        self._ids: list[tuple[int, str]] | None = None  # in order, for pages; None: to be sorted when one is read
        self._changed: set[str] = set()  # ids that were added or removed since then
        self._evicted: dict[str, Id] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def bind(self, model: str, version: str | None) -> None:
        """Count versions in that field; a memory store has no use for the model's name."""
        self.version = version

    async def read(self, query: Query) -> list[Record]:
        """The records that a query asks for, oldest first unless it says otherwise."""
        return [orjson.loads(text) async for text in paced(await self._select(query))]

    async def snapshot(self, query: Query) -> AsyncGenerator[list[str], None]:
        """The same as JSON texts, which were encoded when they were written."""
        texts = await self._select(query)
        for start in range(0, len(texts), CHUNK):
            yield texts[start : start + CHUNK]

    async def get(self, id: Id) -> Record | None:
        """The record of that id, or None."""
        row = self._rows.get(str(id))
        return None if row is None else row.copy()

    async def upsert(self, record: Mapping[str, Any]) -> Record:
        """Replace or add a record; one without an id gets a random one of 16 characters."""
        record = record_of(record)
        id = record.get("id")
        row = None if id is None or self.version is None else self._rows.get(str(id))
        current = None if row is None else row.copy()
        return self._keep(replace(record, current, self.version))

    async def patch(self, id: Id, fields: Mapping[str, Any], unset: Sequence[str] = ()) -> Record:
        """Change some fields, remove others; raises Reject("not_found")."""
        row = self._rows.get(str(id))
        if row is None:
            raise missing(id)
        return self._keep(merge(row.copy(), fields, unset, self.version))

    async def delete(self, id: Id, version: Any = None) -> bool:
        """Remove the record, if it has that version. False: there was none. Raises Reject("conflict")."""
        row = self._rows.get(str(id))
        if row is None:
            return False
        if version is not None and self.version is not None:
            check_version(version, row.copy(), self.version)
        del self._rows[str(id)]
        self._change(str(id))
        return True

    def take_evicted(self) -> Iterable[Id]:
        """The ids of the records that have made room for newer ones since the last call."""
        evicted, self._evicted = self._evicted, {}
        return evicted.values()

    async def _select(self, query: Query) -> list[str]:
        """The texts of one moment: rows are taken at once, and only compared in slices of time."""
        selection = parse_query(query)
        where, order, after, limit = selection.where, selection.order, selection.after, selection.limit
        rows: Sequence[Row]
        if "id" in where:
            rows = [row] if (row := self._rows.get(str(where["id"]))) is not None else []
        elif order == BY_ID:
            ids = self._sorted_ids()
            start = 0 if after is None else bisect.bisect_right(ids, id_key(after["id"]))
            stop = None if where or limit is None else start + limit
            rows = [self._rows[id] for _, id in ids[start:stop]]
        else:
            rows = list(self._rows.values())
        is_ordered = not order or (order == BY_ID and "id" not in where)
        if where:
            kept = []
            async for row in paced(rows):
                if matches(row.record, where):
                    kept.append(row)
                    if is_ordered and len(kept) == limit:
                        break
            rows = kept
        if not is_ordered:
            rows = await arrange(rows, lambda row: row.record, selection)
        return [row.text for row in rows[:limit]]

    def _sorted_ids(self) -> list[tuple[int, str]]:
        if self._ids is None:
            self._ids = sorted(map(id_key, self._rows))
        for id in self._changed:
            place = id_key(id)
            index = bisect.bisect_left(self._ids, place)
            if self._ids[index : index + 1] == [place]:
                del self._ids[index]
            if id in self._rows:
                self._ids.insert(index, place)
        self._changed.clear()
        return self._ids

    def _change(self, id: str) -> None:
        """An id was added or removed."""
        if self._ids is not None:
            self._changed.add(id)
            if len(self._changed) > MAX_CHANGED:
                self._ids = None
                self._changed.clear()

    def _keep(self, record: Record) -> Record:
        text = encode_record(record)
        key = str(record["id"])
        if key not in self._rows:
            if len(self._rows) >= self._limit:
                self._make_room()
            self._evicted.pop(key, None)  # whoever adds it again tells
            self._change(key)
        row = self._rows[key] = Row(text)
        return row.copy()

    def _make_room(self) -> None:
        if self._full == "reject":
            raise Reject("too_large", f"The store is full: it keeps {self._limit} records.", {"limit": self._limit})
        key, oldest = self._rows.popitem(last=False)
        self._change(key)
        self._evicted[key] = oldest.record["id"]
