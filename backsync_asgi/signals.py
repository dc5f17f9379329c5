"""Signals around what models store, for code that is not a handler; needs blinker and knows no connections.

A receiver is connected as with any blinker signal: `@post_save.connect_via(sync.model("Todo"))`, or `.connect` for all
models. It is called as `receiver(model, **what)`; a plain one on the event loop, where it must be quick, an async one
is awaited. blinker keeps receivers weakly: hold on to them.

They are of writes that somebody asks the model or its handler's `ctx.store` for. What a store drops by itself, and what
`live` hears of a database, is told to subscribers and sends none.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from .stores.base import Id, Record, Store

try:
    from blinker import Signal
except ImportError:
    raise ImportError("backsync_asgi.signals needs blinker: pip install blinker") from None

__all__ = ["post_delete", "post_save", "pre_delete", "pre_save"]

logger = logging.getLogger("backsync")

pre_save = Signal(
    "`id`, `record`, `created`: a record is about to be stored; `id` is None where the store gives one. Raise Reject "
    "to refuse it. `record` is a copy, of a patched record as it will be."
)
post_save = Signal("`id`, `record`, `created`: a record has been stored. What a receiver raises is logged.")
pre_delete = Signal("`id`, `record`: a record is about to be removed. Raise Reject to refuse that.")
post_delete = Signal("`id`, `record`: a record has been removed. What a receiver raises is logged.")


def is_heard(model: Any, *signals: Signal) -> bool:
    """Whether anybody may listen to one of these signals of a model; none named: to any."""
    asked = signals or (pre_save, post_save, pre_delete, post_delete)
    # `has_receivers_for` goes on saying yes where there were some and others listen to another model.
    return any(signal.receivers and next(iter(signal.receivers_for(model)), None) is not None for signal in asked)


class Watched:
    """A model's store that sends signals. Where nobody listens, it only passes on.

    Async receivers of `post_` signals run in tasks of their own: what is stored is broadcast and answered without
    waiting for them.
    """

    def __init__(self, model: Any, store: Store) -> None:
        self._model = model
        self._store = store
        self._tasks: set[asyncio.Task[None]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def upsert(self, record: Mapping[str, Any]) -> Record:
        """As the store's; a receiver's Reject refuses it."""
        if not is_heard(self._model, pre_save, post_save):
            return await self._store.upsert(record)
        id = record.get("id")
        created = id is None or await self._store.get(id) is None
        await self._before(pre_save, id=id, record=record, created=created)
        stored = await self._store.upsert(record)
        self._after(post_save, id=stored["id"], record=stored, created=created)
        return stored

    async def patch(self, id: Id, fields: Mapping[str, Any], unset: Sequence[str] = ()) -> Record:
        """As the store's; a receiver's Reject refuses it."""
        if not is_heard(self._model, pre_save, post_save):
            return await self._store.patch(id, fields, unset)
        current = await self._store.get(id)
        if current is not None:  # else it is the store that says so
            merged = {name: it for name, it in {**current, **fields}.items() if name == "id" or name not in unset}
            await self._before(pre_save, id=id, record=merged, created=False)
        stored = await self._store.patch(id, fields, unset)
        self._after(post_save, id=stored["id"], record=stored, created=False)
        return stored

    async def delete(self, id: Id, *version: Any) -> bool:
        """As the store's; a receiver's Reject refuses it. What is not there is deleted without a signal."""
        if not is_heard(self._model, pre_delete, post_delete):
            return await self._store.delete(id, *version)
        current = await self._store.get(id)
        if current is not None:
            await self._before(pre_delete, id=id, record=current)
        deleted = await self._store.delete(id, *version)
        if deleted:
            self._after(post_delete, id=id, record=current)
        return deleted

    async def _before(self, signal: Signal, **what: Any) -> None:
        await signal.send_async(self._model, _sync_wrapper=_awaitable, **copy.deepcopy(what))

    def _after(self, signal: Signal, **what: Any) -> None:
        if signal.is_muted:
            return
        for receiver in list(signal.receivers_for(self._model)):
            try:
                waiting = receiver(self._model, **copy.deepcopy(what))
            except KeyboardInterrupt:
                raise
            except BaseException:
                logger.exception("A receiver of a signal of %r failed; the record is stored all the same.", self._model)
            else:
                if asyncio.iscoroutine(waiting):
                    task = asyncio.get_running_loop().create_task(self._finish(waiting))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)

    async def _finish(self, waiting: Awaitable[Any]) -> None:
        try:
            await waiting
        except (KeyboardInterrupt, asyncio.CancelledError):
            raise
        except BaseException:
            logger.exception("A receiver of a signal of %r failed; the record is stored all the same.", self._model)


def _awaitable(receiver: Callable[..., Any]) -> Callable[..., Any]:
    async def call(*args: Any, **what: Any) -> Any:
        return receiver(*args, **what)

    return call
