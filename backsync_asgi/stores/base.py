"""The contract of stores: where the records of a model live. It knows nothing of models and connections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

Id = str | int
Record = dict[str, Any]


class Store(Protocol):
    """A home for records: dicts with string keys, each with an `id` (a string or an integer).

    Ids are compared as browsers compare them: 1 and "1" name the same record. Records that come out are the caller's
    to change: the store keeps its own. An acknowledged write is kept (for a memory store: as long as the process).
    A store raises Reject where a request is refused (`not_found`, `conflict`, `too_large`, `invalid`, `unavailable`).

    version: the field that counts a record's writes, from 1, or None. It is set by the model that the store belongs
    to. The store counts; a write that carries another value than the current one is refused with `conflict` and the
    current record in the details, one that carries none is unconditional.
    """

    version: str | None

    async def read(self, query: Mapping[str, Any]) -> list[Record]:
        """The records whose fields equal the query's, in the store's order."""

    async def get(self, id: Id) -> Record | None:
        """The record of that id, or None."""

    async def upsert(self, record: Mapping[str, Any]) -> Record:
        """Replace the record of that id, or add it; returns it whole, with a new id if it had none."""

    async def patch(self, id: Id, fields: Mapping[str, Any], unset: Sequence[str] = ()) -> Record:
        """Change some fields, remove others; returns the whole record. Raises Reject("not_found")."""

    async def delete(self, id: Id) -> bool:
        """Remove the record. False: there was none."""

    def take_evicted(self) -> Iterable[Id]:
        """The ids of records that the store has dropped by itself since the last call, to be announced as deleted."""
