"""What is gone, for clients that take no snapshots, as those of 2012: ids of deleted records; pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable


class Gone:
    """The ids of records that were deleted and have not come again: the last `limit` of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._ids: OrderedDict[str, str | int] = OrderedDict()

    def note(self, method: str, id: str | int) -> None:
        """A record was changed, by an `upsert` or a `delete`."""
        self._ids.pop(str(id), None)
        if method == "delete":
            self._ids[str(id)] = id
            if len(self._ids) > self._limit:
                self._ids.popitem(last=False)

    def without(self, there: Iterable[str | int]) -> list[str | int]:
        """What is gone, but for what turns out to be there."""
        kept = {str(id) for id in there}
        return [id for name, id in self._ids.items() if name not in kept]
