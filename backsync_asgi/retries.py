"""Writes that are remembered, so that one which is sent again is applied once; pure, time comes in as `now`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

import orjson

from .limits import Memory
from .messages import Request

Outcome = TypeVar("Outcome")

SWEEP = 1.0  # seconds between looks for clients that can be forgotten
WRITE_COST, CLIENT_COST = 512, 2_048  # about how many bytes a write takes beside its reply, and a client beside both


class Remembered(Generic[Outcome]):
    """One write: what was asked, when, and what has come of it as far as that is known."""

    __slots__ = ("_among", "at", "digest", "id", "outcome", "size")

    def __init__(self, id: str | int, digest: int, at: float, outcome: Outcome, among: _Writes[Outcome]) -> None:
        self.id = id
        self.digest = digest
        self.at = at
        self.outcome = outcome
        self.size = 0
        self._among: _Writes[Outcome] | None = among

    def weigh(self, size: int) -> None:
        """Note how many bytes the write's reply takes."""
        if self._among is not None:
            self._among.grow(size - self.size)
            self.size = size

    def forget(self) -> None:
        """A write that was not carried out may be tried anew; one that is forgotten already is left so."""
        if self._among is not None:
            del self._among.known[self.id]
            self._among.grow(-self.size, -WRITE_COST)
            self._among = None


class _Source:
    """The clients of one user or address, oldest first, and how many bytes are remembered of them."""

    __slots__ = ("clients", "size")

    def __init__(self) -> None:
        self.clients: dict[Hashable, None] = {}
        self.size = 0


class _Writes(Generic[Outcome]):
    """The writes of one client by transaction id, oldest first, and how many bytes their replies take."""

    __slots__ = ("_all", "its", "known", "size", "source")

    def __init__(self, source: Hashable, its: _Source, of_all: _Source) -> None:
        self.known: OrderedDict[str | int, Remembered[Outcome]] = OrderedDict()
        self.size = 0
        self.source = source
        self.its = its
        self._all = of_all

    def grow(self, size: int, cost: int = 0) -> None:
        """Count more bytes, of replies and beside them."""
        self.size += size
        self.its.size += size + cost
        self._all.size += size + cost

    def make_room(self, memory: Memory, now: float) -> None:
        """Forget the oldest as far as age and bytes, or the count with one more, are over the limit."""
        while self.known:
            oldest = next(iter(self.known.values()))
            too_large = self.size > memory.size and len(self.known) > 1  # the newest is kept, however large
            if len(self.known) < memory.writes and now - oldest.at <= memory.age and not too_large:
                return
            oldest.forget()


class Retries(Generic[Outcome]):
    """The last writes of each client, by transaction id."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._clients: OrderedDict[Hashable, _Writes[Outcome]] = OrderedDict()  # the one that wrote last at the end
        self._sources: dict[Hashable, _Source] = {}
        self._all = _Source()
        self._sweep_at = 0.0

    @property
    def size(self) -> int:
        """About how many bytes are remembered."""
        return self._all.size

    def __len__(self) -> int:
        return len(self._clients)

    def find(self, client: Hashable, id: str | int, now: float) -> Remembered[Outcome] | None:
        """The write of that transaction id, if it is remembered."""
        writes = self._clients.get(client)
        write = None if writes is None else writes.known.get(id)
        return None if write is None or now - write.at > self._memory.age else write

    def remember(
        self, client: Hashable, id: str | int, digest: int, outcome: Outcome, now: float, source: Hashable = None
    ) -> Remembered[Outcome]:
        """Note that a write has begun which `find` did not know, at the same moment.

        source: whose client it is; those of one source have a limit of their own.
        """
        memory = self._memory
        if now >= self._sweep_at:
            self._forget_old(now)
        writes = self._clients.get(client)
        if writes is None:
            writes = self._add(client, source)
        else:
            self._clients.move_to_end(client)
            writes.make_room(memory, now)
        write = writes.known[id] = Remembered(id, digest, now, outcome, writes)
        its, of_all = writes.its, self._all
        its.size += WRITE_COST
        of_all.size += WRITE_COST
        if its.size > memory.user_size or of_all.size > memory.total or len(self._clients) > memory.clients:
            self._forget_old(now)
            self._make_room(its, memory.user_size)
            self._make_room(of_all, memory.total)
        return write

    def _add(self, client: Hashable, source: Hashable) -> _Writes[Outcome]:
        its = self._sources.get(source)
        if its is None:
            its = self._sources[source] = _Source()
        writes = self._clients[client] = _Writes(source, its, self._all)
        writes.grow(0, CLIENT_COST)
        its.clients[client] = self._all.clients[client] = None
        return writes

    def _make_room(self, source: _Source, limit: int) -> None:
        """Forget the newest clients as far as these are over the limit."""
        while (source.size > limit or len(source.clients) > self._memory.clients) and len(source.clients) > 1:
            self._forget(next(reversed(source.clients)))

    def _forget(self, client: Hashable) -> None:
        writes = self._clients.pop(client)
        for write in list(writes.known.values()):
            write.forget()
        writes.grow(0, -CLIENT_COST)
        del writes.its.clients[client], self._all.clients[client]
        if not writes.its.clients:
            del self._sources[writes.source]

    def _forget_old(self, now: float) -> None:
        """Forget clients that have written nothing that is young enough to be kept."""
        self._sweep_at = now + SWEEP
        while self._clients:
            client, writes = next(iter(self._clients.items()))
            if writes.known and now - next(reversed(writes.known.values())).at <= self._memory.age:
                return
            self._forget(client)


def digest(request: Request) -> int:
    """What tells one request of a client from its others: its event and everything that it says. 64 bits."""
    said = [request.event, request.data, request.message.get("unset"), request.message.get("version")]
    return hash(orjson.dumps(said, option=orjson.OPT_SORT_KEYS))
