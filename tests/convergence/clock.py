"""An event loop in which time passes only when there is nothing else to do; it knows no app."""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any


class Standstill(Exception):
    """Everything waits for something else, and no timer is set: nothing will ever happen."""


class JumpingSelector(selectors.DefaultSelector):
    """Does not wait: where nothing is ready, it lets the clock jump to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise Standstill("Nothing is ready, and no timer is set.")
            self.now += max(0.0, timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio loop whose clock jumps: hours take no time. Threads and sockets have no place in it."""

    def __init__(self) -> None:
        self._jumping = JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run(main: Any) -> Any:
    """`asyncio.run` with a clock that jumps."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test in virtual time."""

    @functools.wraps(test)
    def in_virtual_time(*args: Any, **named: Any) -> None:
        run(test(*args, **named))

    return in_virtual_time
