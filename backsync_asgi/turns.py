"""Turns: who writes a record waits for the writer before it; it knows no models and no stores.

A holder may take its own turn again, as a handler does that calls `model.upsert` for the record it is called with.
Tasks that it starts meanwhile share its turn, and take turns among themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar

from .errors import Reject


class _Turn:
    """A record's lock, or that of the tasks which share one holder's turn. users: who holds it or waits for it."""

    __slots__ = ("is_over", "lock", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0
        self.is_over = False


class Turns:
    """One at a time per record."""

    held: ContextVar[Mapping[Hashable, _Turn]] = ContextVar("backsync_turns")

    def __init__(self) -> None:
        self._turns: dict[Hashable, _Turn] = {}
        self._waits: dict[object, tuple[Mapping[Hashable, _Turn], Hashable]] = {}  # who waits: what it holds, for what

    @asynccontextmanager
    async def turn(self, record: Hashable | None) -> AsyncIterator[None]:
        """Hold the record's turn. None: a new record, which nobody else can mean.

        Raises Reject("unavailable") where waiting would never end: the holder of the record waits for one that the
        caller holds.
        """
        if record is None:
            yield
            return
        held = {key: turn for key, turn in self.held.get({}).items() if not turn.is_over}
        inherited = held.get(record)
        turn = inherited or self._turns.setdefault(record, _Turn())
        turn.users += 1
        try:
            await self._wait(turn, record, held)
            shared = _Turn()  # for the tasks that the holder starts
            token = self.held.set({**held, record: shared})
            try:
                yield
            finally:
                self.held.reset(token)
                shared.is_over = True
                turn.lock.release()
        finally:
            turn.users -= 1
            if inherited is None and not turn.users:
                del self._turns[record]

    async def _wait(self, turn: _Turn, record: Hashable, held: Mapping[Hashable, _Turn]) -> None:
        if not turn.lock.locked():
            await turn.lock.acquire()
            return
        if self._would_wait_for_itself(record, held):
            raise Reject("unavailable", "Two requests write each other's records and wait for each other. Try again.")
        me = object()
        self._waits[me] = held, record
        try:
            await turn.lock.acquire()
        finally:
            del self._waits[me]

    def _would_wait_for_itself(self, record: Hashable, held: Mapping[Hashable, _Turn]) -> bool:
        """Whether the holder of a record waits, by however many others, for one that is held here."""
        if record in held:
            return False  # the tasks of one holder take turns
        seen, ahead = set[Hashable](), [record]
        while ahead:
            wanted = ahead.pop()
            if wanted in held:
                return True
            if wanted not in seen:
                seen.add(wanted)
                ahead += [next_one for others, next_one in self._waits.values() if wanted in others]
        return False
