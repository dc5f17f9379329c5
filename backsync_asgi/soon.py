"""Soon: what other threads want done on the event loop, in order and within a bound; it knows nothing of what it is."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

from .handlers import start_contained
from .logs import Sparing

logger = logging.getLogger("backsync")
# A logging handler may publish what is logged here: without a limit one line would cause lines for ever.
sparing = Sparing(logger, time.monotonic)

SOON_LIMIT = 10_000  # changes that may wait for the event loop; then the oldest go

Act = Callable[[], Coroutine[Any, Any, Any] | None]  # done when it has returned, and what it returns has

# What to do, on whose behalf, and whom to tell if it has to be dropped.
Waiting = tuple[Act, contextvars.Context, Callable[[], None] | None]


class Line:
    """What one handler has said that is not done yet: `soon` is made when there is something."""

    current: ContextVar[Line | None] = ContextVar("backsync_line", default=None)

    __slots__ = ("is_over", "soon")

    def __init__(self) -> None:
        self.soon: Soon | None = None
        self.is_over = False

    async def drained(self) -> None:
        """Wait until what has been said is done."""
        if self.soon is not None:
            done = asyncio.Event()
            self.soon._append(done.set, done.set)
            await done.wait()


class Soon:
    """Changes on their way from other threads to the event loop, in order.

    What is said in the context of a `Line` has an order of its own, and waits for nobody else's.
    """

    def __init__(self, within: Soon | None = None) -> None:
        self._waiting: deque[Waiting] = deque()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None if within is None else within._loop
        self._thread = 0  # that it runs in
        self._task: asyncio.Task[None] | None = None
        # Those of all lines within: nobody else holds on to them.
        self._tasks: set[asyncio.Task[None]] = set() if within is None else within._tasks
        self._scheduled = False
        self._dropped = 0
        self._lost: dict[Callable[[], None], None] = {}  # whom to tell of what was dropped

    def put(self, act: Act, on_lost: Callable[[], None] | None = None) -> None:
        """Queue something to do on the loop. Safe in any thread; never waits.

        on_lost: called on the loop if it had to be dropped because too much waits; once for all that have the same.
        """
        line = Line.current.get()
        soon = self if line is None else self._soon_of(line)
        soon._append(act, on_lost)

    def _soon_of(self, line: Line) -> Soon:
        with self._lock:
            if line.is_over or self._loop is None:
                return self
            if line.soon is None:
                line.soon = Soon(self)
            return line.soon

    def _append(self, act: Act, on_lost: Callable[[], None] | None) -> None:
        # On whose behalf: what a handler writes, from its thread, is held back until its reply like any other.
        context = contextvars.copy_context()
        with self._lock:
            if len(self._waiting) >= SOON_LIMIT:
                *_, unheard = self._waiting.popleft()
                self._dropped += 1
                if unheard is not None:
                    self._lost[unheard] = None
            self._waiting.append((act, context, on_lost))
            self._schedule()

    def run(self, act: Callable[[], None], on_lost: Callable[[], None] | None = None) -> None:
        """Do it now on the event loop, soon from anywhere else; then as `put`."""
        if self._is_here():
            act()
        else:
            self.put(act, on_lost)

    def _is_here(self) -> bool:
        """Whether this is called on the event loop; without asking for the running one, which is a system call."""
        if self._loop is not None and self._thread == threading.get_ident() and self._loop.is_running():
            return True
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            return False
        return self._loop is None or running is self._loop

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """The event loop is there: what waits is done now."""
        with self._lock:
            self._loop = loop
            self._thread = threading.get_ident()
            self._scheduled = False
            if self._waiting:
                self._schedule()

    def _schedule(self) -> None:
        if self._loop is None or self._scheduled:
            return
        try:
            self._loop.call_soon_threadsafe(self._start_draining)
            self._scheduled = True
        except RuntimeError:  # the loop is closed: the program is ending, or another loop is to come
            self._loop = None

    def _start_draining(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._drain())
            self._tasks.add(self._task)
            self._task.add_done_callback(self._tasks.discard)

    async def _drain(self) -> None:
        for count in itertools.count(1):
            with self._lock:
                if not self._waiting:
                    self._scheduled = False
                    return
                act, context, _ = self._waiting.popleft()
                dropped, self._dropped = self._dropped, 0
                lost, self._lost = self._lost, {}
            if count % 100 == 0:
                await asyncio.sleep(0)  # a long queue must not stop the loop
            if dropped:
                what = "%d changes were dropped: more than %d waited for the event loop."
                sparing.log(logging.WARNING, "dropped", what, dropped, SOON_LIMIT)
            try:
                for tell in lost:
                    tell()
                waiting = context.run(act)
                if waiting is not None:
                    await start_contained(waiting, context)
            except Exception as error:  # noqa: BLE001 - one bad change must not stop those behind it
                what = "A change that was published from another thread failed: %r"
                sparing.log(logging.ERROR, ("failed", type(error)), what, error)
