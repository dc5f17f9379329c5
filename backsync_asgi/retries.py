"""Writes that are remembered, so that one which is sent again is applied once; pure, time comes in as `now`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

import orjson

from .limits import Memory
from .messages import Request

Outcome = TypeVar("Outcome")


class Remembered(Generic[Outcome]):
    """One write: what was asked, when, and what has come of it as far as that is known."""

    __slots__ = ("at", "digest", "outcome", "size")

    def __init__(self, digest: int, at: float, outcome: Outcome) -> None:
        self.digest = digest
        self.at = at
        self.outcome = outcome
        self.size = 0


class Retries(Generic[Outcome]):
    """The last writes of each client, by transaction id."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._clients: OrderedDict[Hashable, OrderedDict[str | int, Remembered[Outcome]]] = OrderedDict()
        self._sizes: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return len(self._clients)

    def find(self, client: Hashable, id: str | int, now: float) -> Remembered[Outcome] | None:
        """The write of that transaction id, if it is remembered."""
        writes = self._clients.get(client)
        if writes is None:
            return None
        self._clients.move_to_end(client)
        self._evict(client, writes, now)
        return writes.get(id)

    def remember(
        self, client: Hashable, id: str | int, digest: int, outcome: Outcome, now: float
    ) -> Remembered[Outcome]:
        """Note that a write has begun which `find` did not know, at the same moment."""
        writes = self._clients.get(client)
        if writes is None:
            writes = self._clients[client] = OrderedDict()
            self._sizes[client] = 0
        write = writes[id] = Remembered(digest, now, outcome)
        while len(self._clients) > self._memory.clients or self._is_stale(now):
            oldest, _ = self._clients.popitem(last=False)
            del self._sizes[oldest]
        return write

    def _is_stale(self, now: float) -> bool:
        """Whether the client that was seen least lately has nothing that is young enough to be kept."""
        writes = next(iter(self._clients.values()))
        return not writes or now - next(reversed(writes.values())).at > self._memory.age

    def weigh(self, client: Hashable, id: str | int, write: Remembered[Outcome], size: int) -> None:
        """Note how many bytes the write's reply takes."""
        writes = self._clients.get(client)
        if writes is not None and writes.get(id) is write:
            self._sizes[client] += size - write.size
            write.size = size

    def forget(self, client: Hashable, id: str | int, write: Remembered[Outcome]) -> None:
        """A write that was not carried out may be tried anew."""
        writes = self._clients.get(client)
        if writes is not None and writes.get(id) is write:
            del writes[id]
            self._sizes[client] -= write.size

    def _evict(self, client: Hashable, writes: OrderedDict[str | int, Remembered[Outcome]], now: float) -> None:
        memory = self._memory
        while writes:
            oldest = next(iter(writes))
            write = writes[oldest]
            too_large = self._sizes[client] > memory.size and len(writes) > 1  # the newest is kept, however large
            if len(writes) < memory.writes and now - write.at <= memory.age and not too_large:
                return
            del writes[oldest]
            self._sizes[client] -= write.size


def digest(request: Request) -> int:
    """What tells one request of a client from its others: its event and everything that it says. 64 bits."""
    said = [request.event, request.data, request.message.get("unset"), request.message.get("version")]
    return hash(orjson.dumps(said, option=orjson.OPT_SORT_KEYS))
