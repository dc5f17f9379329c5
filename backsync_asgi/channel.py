"""A channel: an ordered dict of the last change of each record; pure, time comes in as `now`.

It is the live stream (its tail after a position), the resume (the same tail, however long the client was away) and
the conflation for slow clients (each changed record once) in one structure.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Generic, NamedTuple, TypeVar

from .limits import Horizon

Body = TypeVar("Body")


class Change(NamedTuple, Generic[Body]):
    """The last change of one record: its position, its encoded message and when it came (monotonic seconds)."""

    seq: int
    body: Body
    size: int
    at: float


class Channel(Generic[Body]):
    """Changes in one total order, the last one of each record kept, oldest first.

    epoch: names this run of positions; another epoch means that history was lost in between.
    seq: the position of the newest change; grows by one with each.
    floor: the oldest position from which the tail is complete.
    """

    __slots__ = ("_changes", "_horizon", "_none_before", "_size", "epoch", "floor", "seq")

    def __init__(self, epoch: str, horizon: Horizon) -> None:
        self.epoch = epoch
        self.seq = 0
        self.floor = 0
        self._horizon = horizon
        self._changes: OrderedDict[str, Change[Body]] = OrderedDict()
        self._size = 0
        self._none_before = -math.inf  # no change is older; it spares most evictions a look at the oldest

    def __len__(self) -> int:
        return len(self._changes)

    def get(self, key: str) -> Change[Body] | None:
        """The last change of the record `key`, if it is remembered."""
        return self._changes.get(key)

    def put(self, key: str, body: Body, size: int, now: float) -> Change[Body]:
        """Append a change of the record `key`, at the position `seq + 1`, and forget what is beyond the horizon.

        size: about how many bytes the body takes.
        """
        self.seq += 1
        change = Change(self.seq, body, size, now)
        previous = self._changes.get(key)
        if previous is not None:
            self._size -= previous.size
            self._changes.move_to_end(key)
        self._changes[key] = change
        self._size += size
        self.evict(now)
        return change

    def evict(self, now: float) -> None:
        """Forget the oldest changes as far as count, bytes or age are over the horizon. The newest goes by age only."""
        horizon, changes = self._horizon, self._changes
        while changes:
            full = len(changes) > horizon.records or self._size > horizon.size
            if now - self._none_before <= horizon.age and not full:
                return
            oldest = next(iter(changes.values()))
            self._none_before = oldest.at
            if now - oldest.at <= horizon.age and not (full and len(changes) > 1):
                return
            changes.popitem(last=False)
            self._size -= oldest.size
            self.floor = oldest.seq

    def reaches(self, seq: int) -> bool:
        """Whether the tail after a position is known."""
        return self.floor <= seq <= self.seq

    def since(self, seq: int) -> list[Change[Body]] | None:
        """The changes after a position, oldest first, each record once.

        None where the tail is not known: beyond the horizon, or a position that this epoch has not reached.
        Takes time in proportion to what it returns.
        """
        if not self.reaches(seq):
            return None
        tail = []
        for change in reversed(self._changes.values()):
            if change.seq <= seq:
                break
            tail.append(change)
        tail.reverse()
        return tail
