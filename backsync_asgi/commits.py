"""Commits: what a store has taken is told of, whatever fails after it; it knows neither models nor connections.

`Handed` is a store as a handler has it; `Doubts` looks again at records whose present state nobody may have been told.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar, overload

from .handlers import start_contained
from .stores.base import Id, Record, Store

logger = logging.getLogger("backsync")

Result = TypeVar("Result")

MAX_TOLD = 10_000  # records of a model of which it is known when they were told of last
MAX_GIVEN = 1_000  # typed objects of one handler of which the stored record is known
MAX_DOUBTS = 1_000  # records of a model that are looked at one by one; more are read anew as a whole
FIRST_DELAY, LAST_DELAY = 0.1, 15.0  # seconds until a store that did not answer is asked again, doubled each time


class Commit(Protocol):
    """Carries out a write of a record to its end, and calls `told` with what it returns."""

    def __call__(
        self, id: Id | None, write: Callable[[], Awaitable[Result]], told: Callable[[Result], object]
    ) -> Awaitable[Result]:
        """id: of the record, None where the store gives one."""


class Permitting(Protocol):
    """Asks whether a handler may write a record, and holds the record's turn meanwhile."""

    def __call__(
        self, method: str, id: Id | None, fields: Mapping[str, Any], unset: Sequence[str] = ()
    ) -> AbstractAsyncContextManager[Mapping[str, Any]]:
        """Gives the version that the write must name, as `{field: version}`, where it is known. Raises Reject."""


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


class _Struct(Protocol):
    __struct_fields__: ClassVar[tuple[str, ...]]


class _Model(Protocol):
    __pydantic_complete__: ClassVar[bool]


class _TypedDict(Protocol):
    __total__: ClassVar[bool]


Given = TypeVar("Given", bound=_Dataclass | _Struct | _Model | _TypedDict)


class TypedStore(Store, Protocol):
    """A store as handlers have it, which also takes typed objects: what is written as one comes back as one."""

    @overload
    async def upsert(self, record: Given) -> Given: ...
    @overload
    async def upsert(self, record: Mapping[str, Any]) -> Record: ...


class Types(Protocol):
    """Turns the typed objects of a handler into records, and back."""

    completes: bool  # whether records, too, lack what the handler's type leaves out

    def record_of(self, value: Any) -> Mapping[str, Any]:
        """The record that is to be stored."""

    def typed(self, value: Any, stored: Record) -> Any:
        """What has been stored, as an object of the same type as the value."""


class Told:
    """In which order the records of a model were told of. A new record and what a handler writes beside its own are
    written without a turn: who has told of one since then may have told a newer state.

    now: the number of the last telling.
    """

    def __init__(self) -> None:
        self.now = 0
        self._last: OrderedDict[str, int] = OrderedDict()  # by the record's id as text
        self._forgotten = 0  # the last one that is not among these

    def note(self, id: Id) -> None:
        """The record is told of."""
        name = str(id)
        self.now += 1
        self._last[name] = self.now
        self._last.move_to_end(name)
        if len(self._last) > MAX_TOLD:
            _, self._forgotten = self._last.popitem(last=False)

    def since(self, id: Id, number: int) -> bool:
        """Whether the record may have been told of after that telling."""
        return self._last.get(str(id), self._forgotten) > number


@dataclass(slots=True)
class _Write:
    """A handler's last write of a record. begun: what had been told when it began. place: where the record is since
    then. has_moved: it was elsewhere in the same handler. is_told: nothing is left to tell."""

    id: Id
    begun: int
    place: Hashable
    has_moved: bool
    is_told: bool = False


class Handed:
    """A model's store as a handler has it. Whatever is written and not `told` of until the handler ends, by what it
    returns or publishes, `tell` is called for with the id of each record; and so for what tasks write that outlive it.

    is_instant: the store never waits once it has begun to write. place_of: in which channel a record is, None where
    it is gone or the model has one only: whoever reads a channel while a record passes it is to be told that it is
    gone, of which its last state says nothing.
    types: converts typed objects.
    permitting: of a model with a rule of who may write, in a handler of a client's write.
    """

    __slots__ = (
        "_all_told",
        "_commit",
        "_given",
        "_is_instant",
        "_permitting",
        "_place_of",
        "_store",
        "_tell",
        "_types",
        "_writes",
    )

    def __init__(
        self,
        store: Store,
        commit: Commit,
        tell: Callable[[Id], None],
        all_told: Told,
        is_instant: bool,
        place_of: Callable[[Mapping[str, Any]], Hashable],
        types: Types,
        permitting: Permitting | None = None,
    ) -> None:
        self._types = types
        self._given: dict[int, tuple[Any, Record]] | None = None  # by the typed object's identity
        self._store = store
        self._permitting = permitting
        self._is_instant = is_instant
        self._commit = commit
        self._tell = tell
        self._all_told = all_told
        self._place_of = place_of
        self._writes: dict[str, _Write] | None = {}  # by the record's id as text; None once the handler has ended

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def upsert(self, record: Any) -> Coroutine[Any, Any, Any]:
        """As the store's; what is written as a typed object comes back as one."""
        if not isinstance(record, (dict, Mapping)):
            return self._upsert_typed(record)
        if self._types.completes:
            record = self._types.record_of(record)
        return self._upsert_mapping(record)

    async def _upsert_typed(self, record: Any) -> Any:
        stored = await self._upsert_mapping(self._types.record_of(record))
        typed = self._types.typed(record, stored)
        if self._given is None:
            self._given = {}
        elif len(self._given) >= MAX_GIVEN:
            del self._given[next(iter(self._given))]
        self._given[id(typed)] = typed, stored
        return typed

    @property
    def has_typed(self) -> bool:
        """Whether typed objects were written."""
        return self._given is not None

    def stored_as(self, result: object) -> Record | None:
        """The record of a typed object that `upsert` has returned."""
        given = None if self._given is None else self._given.get(id(result))
        return None if given is None or given[0] is not result else given[1]

    def _upsert_mapping(self, record: Mapping[str, Any]) -> Coroutine[Any, Any, Record]:
        return self._upsert(record) if self._permitting is None else self._upsert_permitted(record, self._permitting)

    async def _upsert_permitted(self, record: Mapping[str, Any], permitting: Permitting) -> Record:
        async with permitting("upsert", record.get("id"), record) as version:
            return await self._upsert({**version, **record})

    async def _upsert(self, record: Mapping[str, Any]) -> Record:
        begun = self._all_told.now
        if self._is_instant:  # the usual write, in memory: what `commit` does then, without its cost
            stored = await self._store.upsert(record)
            self._note(stored, begun)
            return stored
        return await self._commit(
            record.get("id"), lambda: self._store.upsert(record), lambda stored: self._note(stored, begun)
        )

    async def patch(self, id: Id, fields: Mapping[str, Any], unset: Sequence[str] = ()) -> Record:
        """As the store's."""
        if self._permitting is None:
            return await self._patch(id, fields, unset)
        async with self._permitting("patch", id, fields, unset) as version:
            return await self._patch(id, {**version, **fields}, unset)

    async def _patch(self, id: Id, fields: Mapping[str, Any], unset: Sequence[str]) -> Record:
        begun = self._all_told.now
        return await self._commit(
            id, lambda: self._store.patch(id, fields, unset), lambda stored: self._note(stored, begun)
        )

    async def delete(self, id: Id, *version: Any) -> bool:
        """As the store's."""
        if self._permitting is None:
            return await self._delete(id, *version)
        async with self._permitting("delete", id, {}) as known:
            return await self._delete(id, *(version or known.values()))

    async def _delete(self, id: Id, *version: Any) -> bool:
        begun = self._all_told.now

        def note(deleted: bool) -> None:
            if deleted:
                self._note({"id": id}, begun)

        return await self._commit(id, lambda: self._store.delete(id, *version), note)

    def _note(self, record: Mapping[str, Any], begun: int) -> None:
        id, name = record["id"], str(record["id"])
        if self._writes is None:
            self._tell(id)
            return
        place, before = self._place_of(record), self._writes.get(name)
        has_moved = before is not None and (before.has_moved or before.place != place)
        self._writes[name] = _Write(id, begun, place, has_moved)

    def told(self, id: Id, place: Hashable) -> None:
        """The handler tells of the record. What somebody else has told since it was written may be newer, and that a
        record is gone from another channel is not told by this: then it is looked at all the same."""
        write = self._writes.get(str(id)) if self._writes else None
        if write is not None and not write.has_moved:
            write.is_told = place == write.place and not self._all_told.since(id, write.begun)

    def end(self) -> None:
        """The handler has ended; what it has written and not told is told of soon."""
        writes, self._writes = self._writes, None
        for write in (writes or {}).values():
            if not write.is_told:
                self._tell(write.id)


class Doubts:
    """Records whose state is to be looked at and told, one after the other, and again until the store answers.

    look: called with a record's id; with None where it is not known which records have changed.
    """

    def __init__(self, look: Callable[[Id | None], Coroutine[Any, Any, None]]) -> None:
        self._look = look
        self._ids: dict[str | None, tuple[Id | None, contextvars.Context]] = {}  # and on whose behalf
        self._failed: dict[str | None, tuple[Id | None, contextvars.Context]] = {}  # that are looked at again later
        self._added = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def add(self, id: Id | None) -> None:
        """Look at this record soon. On the event loop only."""
        if len(self._ids) + len(self._failed) >= MAX_DOUBTS:
            self._ids.clear()
            self._failed.clear()
            id = None
        name = None if id is None else str(id)
        self._failed.pop(name, None)
        self._ids[name] = id, contextvars.copy_context()
        self._added.set()
        if self._task is None or self._task.done() or self._task.get_loop().is_closed():
            self._added = asyncio.Event()  # which belongs to an event loop
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        delay = FIRST_DELAY
        while self._ids or self._failed:
            if not self._ids:
                self._added.clear()
                try:
                    async with asyncio.timeout(delay):
                        await self._added.wait()  # one that fails keeps no other waiting
                except TimeoutError:
                    self._ids, self._failed = {**self._failed, **self._ids}, {}  # one may have come just now
                    delay = min(2 * delay, LAST_DELAY)
                continue
            name = next(iter(self._ids))
            id, context = self._ids.pop(name)
            try:
                await start_contained(self._look(id), context)
                delay = FIRST_DELAY
            except Exception as error:  # noqa: BLE001 - whatever it is, clients would stay with an older state
                logger.warning("A record whose write may be untold cannot be read yet: %r", error)
                if name not in self._ids:  # else it is looked at again anyway
                    self._failed[name] = id, context
