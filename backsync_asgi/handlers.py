"""How the user's functions are called: on the loop or in threads, within a time limit and the middleware.

It knows neither models nor connections: what a function is given is its caller's affair.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
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
        self._thread_limit = threads
        self._threads: ThreadPoolExecutor | None = None

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
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._thread_limit, thread_name_prefix="backsync")
        run = functools.partial(contextvars.copy_context().run, _call_plain, function, ctx, *args)
        return await asyncio.get_running_loop().run_in_executor(self._threads, run)

    def shutdown(self) -> None:
        """Let the worker threads go; running functions end by themselves."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None


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
