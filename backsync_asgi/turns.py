"""Turns: who writes a record waits for the writer before it; it knows no models and no stores.

A holder may take its own turn again, as a handler does that calls `model.upsert` for the record it is called with.
Tasks that it starts meanwhile share its turn, and take turns among themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from contextvars import ContextVar
from types import MappingProxyType

from .errors import Reject


class _Turn:
    """A record's turn, or that of the tasks which share one holder's. users: who holds it or waits for it.

    lock: made for the first one who has to wait, which is rare.
    within: the turn that is shared. is_over: the holder whose turn was shared has left. after: then called once the
    last user has left, too.
    """

    __slots__ = ("after", "is_over", "lock", "users", "within")

    def __init__(self, within: _Turn | None = None) -> None:
        self.within = within
        self.lock: asyncio.Lock | None = None
        self.users = 0
        self.is_over = False
        self.after: Callable[[], None] | None = None


class Turns:
    """One at a time per record."""

    held: ContextVar[Mapping[Hashable, _Turn]] = ContextVar("backsync_turns", default=MappingProxyType({}))

    def __init__(self) -> None:
        self._turns: dict[Hashable, _Turn] = {}
        self._waits: dict[object, tuple[Mapping[Hashable, _Turn], _Turn]] = {}  # who waits: what it shares, for what

    def start(self) -> None:
        """Another event loop runs: those who held or waited for a turn on the last one do not come back."""
        self._turns.clear()
        self._waits.clear()

    def turn(self, record: Hashable | None) -> AbstractAsyncContextManager[None]:
        """Hold the record's turn. None: a new record, which nobody else can mean.

        Entering raises Reject("unavailable") where waiting would never end: the holder of the record waits for one
        that the caller holds.
        """
        return nullcontext() if record is None else _Holding(self, record)

    def holds(self, record: Hashable) -> bool:
        """Whether the caller holds the record's turn, or shares its holder's."""
        return record in self.held.get()

    def is_taken(self, record: Hashable) -> bool:
        """Whether somebody holds the record's turn."""
        return record in self._turns

    def taken(self) -> list[Hashable]:
        """The records that are being written."""
        return list(self._turns)

    def take_free(self, record: Hashable) -> _Turn | None:
        """Hold the record's turn if nobody has it, nor the caller any: so it is nearly always."""
        if record in self._turns:
            return None
        turn = self._turns[record] = _Turn()
        turn.users = 1
        return turn

    async def take(self, record: Hashable) -> _Turn:
        """Wait for the record's turn, and hold it."""
        while True:
            held = self.held.get()
            if held:
                held = {key: turn for key, turn in held.items() if not turn.is_over}
            turn = held.get(record)
            if turn is None:
                turn = self._turns.get(record)
                if turn is None:
                    turn = self._turns[record] = _Turn()
            turn.users += 1
            try:
                await self._wait(turn, held)
            except BaseException:
                self._leave(record, turn)
                raise
            if not turn.is_over:
                return turn
            self.give_back(record, turn)  # its holder has left meanwhile: this is a writer like any other now

    def give_back(self, record: Hashable, turn: _Turn) -> None:
        """It is the next one's turn."""
        if turn.lock is not None:
            turn.lock.release()
        self._leave(record, turn)

    def _leave(self, record: Hashable, turn: _Turn) -> None:
        turn.users -= 1
        if turn.users:
            return
        turn.lock = None
        if turn.after is not None:
            turn.after()
        elif self._turns.get(record) is turn:
            del self._turns[record]

    async def _wait(self, turn: _Turn, held: Mapping[Hashable, _Turn]) -> None:
        if turn.users == 1:
            return
        if held and self._would_wait_for_itself(turn, _kept(held)):  # who holds nothing keeps nobody waiting
            raise Reject("unavailable", "Two requests write each other's records and wait for each other. Try again.")
        if turn.lock is None:
            turn.lock = asyncio.Lock()
            await turn.lock.acquire()  # at once, for who has the turn
        me = object()
        self._waits[me] = held, turn
        try:
            await turn.lock.acquire()
        finally:
            del self._waits[me]

    def _would_wait_for_itself(self, turn: _Turn, mine: set[_Turn]) -> bool:
        """Whether the holder of a turn waits, by however many others, for one that is kept here."""
        waits = [(_kept(held), wanted) for held, wanted in self._waits.values()]
        seen, ahead = set[_Turn](), [turn]
        while ahead:
            wanted = ahead.pop()
            if wanted in mine:
                return True
            if wanted not in seen:
                seen.add(wanted)
                ahead += [next_one for kept, next_one in waits if wanted in kept]
        return False


def _kept(held: Mapping[Hashable, _Turn]) -> set[_Turn]:
    """The turns that nobody else gets before who shares these goes on. One whose holder has left is nobody's."""
    kept = set[_Turn]()
    for shared in held.values():
        turn = None if shared.is_over else shared.within
        while turn is not None:
            kept.add(turn)
            turn = turn.within
    return kept


class _Holding:
    """One holder's turn, as a context manager; a generator would do, and takes twice as long."""

    __slots__ = ("_record", "_shared", "_token", "_turn", "_turns")

    def __init__(self, turns: Turns, record: Hashable) -> None:
        self._turns = turns
        self._record = record

    async def __aenter__(self) -> None:
        held = Turns.held.get()
        self._turn = (None if held else self._turns.take_free(self._record)) or await self._turns.take(self._record)
        self._shared = _Turn(self._turn)  # for the tasks that the holder starts
        self._token = Turns.held.set({**held, self._record: self._shared})

    async def __aexit__(self, *error: object) -> None:
        Turns.held.reset(self._token)
        self._shared.is_over = True
        if self._shared.users:  # a task that outlives its holder is writing the record
            self._shared.after = self._give_back
        else:
            self._give_back()

    def _give_back(self) -> None:
        self._turns.give_back(self._record, self._turn)
