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
            self._among.size += size - self.size
            self.size = size

    def forget(self) -> None:
        """A write that was not carried out may be tried anew; one that is forgotten already is left so."""
        if self._among is not None:
            del self._among.known[self.id]
            self._among.size -= self.size
            self._among = None


class _Writes(Generic[Outcome]):
    """The writes of one client by transaction id, oldest first, and how many bytes their replies take."""

    __slots__ = ("known", "size")

    def __init__(self) -> None:
        self.known: OrderedDict[str | int, Remembered[Outcome]] = OrderedDict()
        self.size = 0

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
        self._sweep_at = 0.0

    def __len__(self) -> int:
        return len(self._clients)

    def find(self, client: Hashable, id: str | int, now: float) -> Remembered[Outcome] | None:
        """The write of that transaction id, if it is remembered."""
        writes = self._clients.get(client)
        write = None if writes is None else writes.known.get(id)
        return None if write is None or now - write.at > self._memory.age else write

    def remember(
        self, client: Hashable, id: str | int, digest: int, outcome: Outcome, now: float
    ) -> Remembered[Outcome]:
        """Note that a write has begun which `find` did not know, at the same moment."""
        writes = self._clients.get(client)
        if writes is None:
            writes = self._clients[client] = _Writes()
        else:
            self._clients.move_to_end(client)
            writes.make_room(self._memory, now)
        write = writes.known[id] = Remembered(id, digest, now, outcome, writes)
        if len(self._clients) > self._memory.clients:
            self._clients.popitem(last=False)
        if now >= self._sweep_at:
            self._forget_clients(now)
        return write

    def _forget_clients(self, now: float) -> None:
        """Forget those who have written nothing that is young enough to be kept."""
        self._sweep_at = now + SWEEP
        while self._clients:
            known = next(iter(self._clients.values())).known
            if known and now - next(reversed(known.values())).at <= self._memory.age:
                return
            self._clients.popitem(last=False)


def digest(request: Request) -> int:
    """What tells one request of a client from its others: its event and everything that it says. 64 bits."""
    said = [request.event, request.data, request.message.get("unset"), request.message.get("version")]
    return hash(orjson.dumps(said, option=orjson.OPT_SORT_KEYS))
