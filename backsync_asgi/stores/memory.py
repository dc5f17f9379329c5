"""MemoryStore: records in a dict, for prototypes, tests and what need not outlive the process."""

from __future__ import annotations

import copy
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from backsync_asgi.errors import Reject

from .base import Id, Record


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
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._evicted: list[Id] = []

    def __len__(self) -> int:
        return len(self._records)

    async def read(self, query: Mapping[str, Any]) -> list[Record]:
        """The records whose fields equal the query's, oldest first."""
        if set(query) == {"id"}:
            record = await self.get(query["id"])
            return [] if record is None else [record]
        return [
            copy.deepcopy(record)
            for record in self._records.values()
            if all(field in record and equal(record[field], value) for field, value in query.items())
        ]

    async def get(self, id: Id) -> Record | None:
        """The record of that id, or None."""
        record = self._records.get(str(id))
        return None if record is None else copy.deepcopy(record)

    async def upsert(self, record: Mapping[str, Any]) -> Record:
        """Replace or add a record; one without an id gets a random one of 16 characters."""
        kept = copy.deepcopy(dict(record))
        if kept.get("id") is None:
            kept["id"] = secrets.token_hex(8)
        key = str(kept["id"])
        self._count(kept, self._records.get(key))
        if key not in self._records and len(self._records) >= self._limit:
            self._make_room()
        self._records[key] = kept
        return copy.deepcopy(kept)

    async def patch(self, id: Id, fields: Mapping[str, Any], unset: Sequence[str] = ()) -> Record:
        """Change some fields, remove others; raises Reject("not_found")."""
        record = self._records.get(str(id))
        if record is None:
            raise Reject("not_found", f"There is no record with the id {id!r}.")
        changes = {field: copy.deepcopy(value) for field, value in fields.items() if field != "id"}
        kept = {field: value for field, value in {**record, **changes}.items() if field not in unset or field == "id"}
        if self.version is not None:
            kept[self.version] = fields.get(self.version)
        self._count(kept, record)
        self._records[str(id)] = kept
        return copy.deepcopy(kept)

    async def delete(self, id: Id) -> bool:
        """Remove the record. False: there was none."""
        return self._records.pop(str(id), None) is not None

    def take_evicted(self) -> Iterable[Id]:
        """The ids of the records that have made room for newer ones since the last call."""
        evicted, self._evicted = self._evicted, []
        return evicted

    def _count(self, record: Record, current: Record | None) -> None:
        """Set the version of a record that is about to take the place of the current one."""
        if self.version is None:
            return
        named = record.get(self.version)
        counted = 0 if current is None else current[self.version]
        if named is not None and (type(named) is not int or current is None or named != counted):
            message = f"Somebody else has changed it in the meantime: {self.version} is {counted}, not {named!r}."
            raise Reject("conflict", message, {"current": copy.deepcopy(current)})
        record[self.version] = counted + 1

    def _make_room(self) -> None:
        if self._full == "reject":
            raise Reject("too_large", f"The store is full: it keeps {self._limit} records.", {"limit": self._limit})
        _, oldest = self._records.popitem(last=False)
        self._evicted.append(oldest["id"])


def equal(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal; Python holds True for 1."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)
