"""How the user's functions are called: on the loop or in threads, within a time limit and the middleware.

It knows neither models nor connections: what a function is given is its caller's affair.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import threading
from collections.abc import Awaitable, Callable
from queue import SimpleQueue
from typing import Any, TypeVar

HandlerFunction = Callable[..., Any]
Result = TypeVar("Result")


class HandlerTimeout(Exception):
    """A handler took longer than it may."""


class Caller:
    """Calls handlers: async ones on the loop, plain ones in worker threads, all within a time limit and the middleware.

    timeout: seconds. A plain function that takes longer is answered for, but its thread cannot be stopped.
    threads: how many plain functions run at once.
    """

    def __init__(self, timeout: float, threads: int) -> None:
        self.middleware: list[Callable[..., Awaitable[Any]]] = []
        self._timeout = timeout
        self._threads = Threads(threads)

    async def __call__(self, function: HandlerFunction, ctx: Any, *args: Any) -> Any:
        """What the function returns. Raises HandlerTimeout, or what the function raises."""
        call: Callable[..., Awaitable[Any]] = functools.partial(self._call, function)
        for layer in reversed(self.middleware):
            call = functools.partial(layer, call_next=call)
        return await self.limited(call(ctx, *args))

    async def limited(self, work: Awaitable[Result]) -> Result:
        """What is awaited, within the time limit. Raises HandlerTimeout: a store that hangs must not hold up others."""
        limit = asyncio.timeout(self._timeout)
        try:
            async with limit:
                return await work
        except TimeoutError:
            if limit.expired():
                raise HandlerTimeout(f"the limit is {self._timeout:g} s") from None
            raise

    async def _call(self, function: HandlerFunction, ctx: Any, *args: Any) -> Any:
        if is_async(function):
            return await function(ctx, *args)
        return await self._threads.run(functools.partial(_call_plain, function, ctx, *args))

    def shutdown(self) -> None:
        """Let the worker threads go; running functions end by themselves."""
        self._threads.shutdown()


class Threads:
    """Worker threads, started as they are needed; unlike an executor's they do not keep the program from ending.

    limit: how many there may be; more work waits for one.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._count = 0

    def run(self, work: Callable[[], Result]) -> asyncio.Future[Result]:
        """What `work` returns or raises, called in a thread with the caller's context. On the event loop only."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        context = contextvars.copy_context()

        def job() -> None:
            if future.cancelled():
                return
            settle: Callable[[], None]
            try:
                result = context.run(work)
            except BaseException as error:  # noqa: BLE001 - it is for whoever waits
                settle = functools.partial(_settle, future, error, None)
            else:
                settle = functools.partial(_settle, future, None, result)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(settle)

        self._jobs.put(job)
        if not self._idle.acquire(blocking=False) and self._count < self._limit:
            self._count += 1
            threading.Thread(target=self._work, name=f"backsync-{self._count}", daemon=True).start()
        return future

    def shutdown(self) -> None:
        """End the threads as they become idle. More work starts new ones."""
        for _ in range(self._count):
            self._jobs.put(None)
        self._jobs, self._idle, self._count = SimpleQueue(), threading.Semaphore(0), 0

    def _work(self) -> None:
        jobs, idle = self._jobs, self._idle
        while (job := jobs.get()) is not None:
            job()
            del job  # what it holds need not wait for the next one
            idle.release()


def _settle(future: asyncio.Future[Any], error: BaseException | None, result: Any) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _call_plain(function: HandlerFunction, *args: Any) -> Any:
    try:
        return function(*args)
    except StopIteration as error:  # no future can carry it: whoever waits for the thread would wait for ever
        raise RuntimeError("a plain handler raised StopIteration") from error


def is_async(function: HandlerFunction) -> bool:
    """Whether calling it gives a coroutine; looks through partials and at objects with an async `__call__`."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def check_signature(function: HandlerFunction, arguments: int, expected: str) -> None:
    """Raises TypeError, at decoration, for a function that cannot be called with so many arguments."""
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError(f"{function!r} is a generator: {expected} and returns its result.")
    try:
        inspect.signature(function).bind(*range(arguments))
    except TypeError as error:
        raise TypeError(f"{function!r} does not fit: {expected} ({error}).") from None
