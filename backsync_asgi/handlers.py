"""How the user's functions are called: on the loop or in threads, within a time limit and the middleware.

It knows neither models nor connections: what a function is given is its caller's affair.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import logging
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from http import HTTPStatus
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from starlette.exceptions import HTTPException

from .errors import Contained, Reject

logger = logging.getLogger("backsync")

HandlerFunction = Callable[..., Any]
Result = TypeVar("Result")

# What a handler means that refuses as its web framework does. Any other status is a failure.
CODES_OF_STATUS = {
    400: "invalid",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    409: "conflict",
    410: "not_found",
    412: "conflict",
    413: "too_large",
    422: "invalid",
    429: "rate_limited",
    503: "unavailable",
}


class HandlerTimeout(Exception):
    """A handler took longer than it may."""


class Caller:
    """Calls handlers: async ones on the loop, plain ones in worker threads, all within a time limit and the middleware.

    timeout: seconds. A plain function that takes longer is answered for, but its thread cannot be stopped: what it
        returns goes to `ctx.returned_late`.
    threads: how many plain functions run at once.
    """

    def __init__(self, timeout: float, threads: int) -> None:
        self.middleware: list[Callable[..., Awaitable[Any]]] = []
        self.loop: asyncio.AbstractEventLoop | None = None  # that runs; to be set by the app
        self._deadlines = Deadlines(timeout)
        self._is_async: dict[HandlerFunction, bool] = {}
        self._threads = Threads(threads)
        self._going_on: set[asyncio.Task[Any]] = set()

    def __call__(self, function: HandlerFunction, ctx: Any, *args: Any) -> Coroutine[Any, Any, Any]:
        """What the function returns. Raises HandlerTimeout, or what the function raises."""
        if not self.middleware:
            return self.limited(self._call(function, ctx, *args))
        call: Callable[..., Awaitable[Any]] = functools.partial(self._call, function)
        for layer in reversed(self.middleware):
            call = functools.partial(layer, call_next=call)
        return self.limited(call(ctx, *args))

    def apart(self, function: HandlerFunction, ctx: Any, *args: Any) -> Coroutine[Any, Any, Any]:
        """The same without the middleware, for a function that is no handler, as a rule of who may write."""
        known = self._is_async.get(function)
        if known is None:
            known = self._is_async[function] = is_async(function)
        if known:
            return self.limited(function(ctx, *args))
        return self.limited(self._threads.run(functools.partial(_call_plain, function, ctx, *args)))

    async def in_thread(self, work: Callable[[], Result]) -> Result:
        """What the function returns or raises, called in a worker thread."""
        return await self._threads.run(work)

    async def limited(self, work: Awaitable[Result]) -> Result:
        """What is awaited, within the time limit. Raises HandlerTimeout: a store that hangs must not hold up others.

        Raises Reject in place of an HTTPException of Starlette or FastAPI that refuses, and of a group of such refusals
        alone, as a TaskGroup makes it.
        """
        task = asyncio.current_task(self.loop) or asyncio.current_task()
        assert task is not None
        deadline = self._deadlines.start(task)
        try:
            return await work
        except HTTPException as error:
            if error.status_code not in CODES_OF_STATUS:
                raise
            raise refusal_of(error) from error
        except ExceptionGroup as error:
            refusal = _refusal_in(error)
            if refusal is None:
                raise
            raise refusal from error
        except asyncio.CancelledError as error:
            if deadline.is_over and task.cancelling() <= deadline.cancelling + 1:
                raise HandlerTimeout(f"the limit is {self._deadlines.seconds:g} s") from None
            _check_escape(error, task)
            raise
        except BaseException as error:
            _check_escape(error, task)
            raise
        finally:
            self._deadlines.end(deadline)

    async def to_the_end(self, work: Coroutine[Any, Any, Result], given_up: Callable[[], None]) -> Result:
        """What the work returns. It goes on where whoever waits is cancelled, for one more time limit at most; what
        has not ended then is cancelled, and `given_up` called."""
        task = start_contained(work)
        self._going_on.add(task)  # the event loop alone would not keep it
        task.add_done_callback(self._going_on.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.done():
                task.add_done_callback(_log_failure)
                task.get_loop().call_later(self._deadlines.seconds, _give_up, task, given_up)
            raise

    def _call(self, function: HandlerFunction, ctx: Any, *args: Any) -> Awaitable[Any]:
        known = self._is_async.get(function)
        if known is None:
            known = self._is_async[function] = is_async(function)
        if not known:
            return self._call_plain(function, ctx, *args)
        called: Awaitable[Any] = function(ctx, *args)
        return called if _close_old_connections() is None else _reconnecting(called)

    async def _call_plain(self, function: HandlerFunction, ctx: Any, *args: Any) -> Any:
        late = getattr(ctx, "returned_late", None)
        future = self._threads.run(functools.partial(_call_plain, function, ctx, *args), late)
        try:
            return await future
        except asyncio.CancelledError:
            # It has returned, and before that could be noticed the time was over.
            if late is not None and future.done() and not future.cancelled() and future.exception() is None:
                late(future.result())
            raise

    def shutdown(self) -> None:
        """Let the worker threads go; running functions end by themselves."""
        self._threads.shutdown()


class Deadline:
    """When a task is to be cancelled; `is_over` once it was. cancelling: how often others had asked for it before."""

    __slots__ = ("at", "cancelling", "is_over", "task")

    def __init__(self, task: asyncio.Task[Any], at: float) -> None:
        self.task = task
        self.at = at
        self.cancelling = task.cancelling()
        self.is_over = False


class Deadlines:
    """One time limit for many tasks, with one timer for all of them: they end in the order in which they started.

    What `asyncio.timeout` does, without a timer to set and to cancel for each call, of which nearly none comes late.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._running: dict[Deadline, None] = {}  # soonest first
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, task: asyncio.Task[Any]) -> Deadline:
        """The limit begins for the current task."""
        loop = task.get_loop()
        if loop is not self._loop:
            self._loop, self._timer = loop, None
            self._running.clear()
        deadline = Deadline(task, loop.time() + self.seconds)
        self._running[deadline] = None
        if self._timer is None:
            self._timer = loop.call_at(deadline.at, self._look)
        return deadline

    def end(self, deadline: Deadline) -> None:
        """The task is done with what was limited; that it was cancelled is over."""
        self._running.pop(deadline, None)
        if deadline.is_over:
            deadline.task.uncancel()

    def _look(self) -> None:
        self._timer = None
        assert self._loop is not None
        now = self._loop.time()
        for deadline in list(self._running):
            if deadline.at > now:
                self._timer = self._loop.call_at(deadline.at, self._look)
                return
            del self._running[deadline]
            deadline.is_over = True
            deadline.task.cancel()


class Threads:
    """Worker threads, started as they are needed; unlike an executor's they do not keep the program from ending.

    limit: how many there may be; more work waits for one.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._count = 0

    def run(self, work: Callable[[], Result], late: Callable[[Result], None] | None = None) -> asyncio.Future[Result]:
        """What `work` returns or raises, called in a thread with the caller's context. On the event loop only.

        late: is given the result where it comes after the future was cancelled.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        context = contextvars.copy_context()

        def job() -> None:
            if future.cancelled():
                return
            settle: Callable[[], None]
            try:
                result = context.run(_with_fresh_connections, work)
            except BaseException as error:  # noqa: BLE001 - it is raised where the future is awaited
                # What is no Exception would end the event loop there, and no future can carry StopIteration.
                is_plain = isinstance(error, Exception) and not isinstance(error, StopIteration)
                settle = functools.partial(_settle, future, error if is_plain else Contained(error), None, None)
            else:
                settle = functools.partial(_settle, future, None, result, late)
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


async def contain(work: Awaitable[Result]) -> Result:
    """Await the application's work. Raises Contained for what is no Exception, unless it ends the current task."""
    try:
        return await work
    except BaseException as error:
        _check_escape(error, asyncio.current_task())
        raise


def start_contained(
    work: Coroutine[Any, Any, Result], context: contextvars.Context | None = None
) -> asyncio.Task[Result]:
    """Run the application's work, as `contain` does, in a task of its own."""
    task = asyncio.get_running_loop().create_task(contain(work), context=context)
    task.add_done_callback(lambda _: work.close())  # does nothing, unless the task was cancelled before it began
    return task


def _check_escape(error: BaseException, task: asyncio.Task[Any] | None) -> None:
    """Raises Contained for an exception of the application's that is no Exception. A cancellation of the task, its
    closing and Ctrl-C may pass."""
    if isinstance(error, (Exception, KeyboardInterrupt)) or task is None:
        return
    if isinstance(error, asyncio.CancelledError) and task.cancelling():
        return
    if isinstance(error, GeneratorExit) and asyncio.current_task(task.get_loop()) is not task:
        return
    raise Contained(error) from error


def _close_old_connections() -> Callable[[], None] | None:
    """Django's function that closes a thread's database connections that are broken or old; None without Django.

    It closes them around its own requests, and knows nothing of our handlers.
    """
    database, conf = sys.modules.get("django.db"), sys.modules.get("django.conf")
    if database is None or conf is None or not getattr(getattr(conf, "settings", None), "configured", False):
        return None
    return getattr(database, "close_old_connections", None)


def _with_fresh_connections(work: Callable[[], Result]) -> Result:
    close = _close_old_connections()
    if close is None:
        return work()
    close()
    try:
        return work()
    finally:
        close()


async def _reconnecting(called: Awaitable[Any]) -> Any:
    """What an async handler returns; after an error of Django's database its thread for async code connects anew."""
    try:
        return await called
    except Exception as error:
        if isinstance(error, sys.modules["django.db"].Error):
            close = _close_old_connections()
            assert close is not None
            await sys.modules["asgiref.sync"].sync_to_async(close)()
        raise


def _give_up(task: asyncio.Task[Any], given_up: Callable[[], None]) -> None:
    if not task.done():
        logger.error("A write did not end within its time limit, nor within another one; it may have been stored.")
        task.cancel()
        given_up()


def _log_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.warning("A write that nobody waited for any more failed: %r", task.exception())


def _settle(
    future: asyncio.Future[Any], error: BaseException | None, result: Any, late: Callable[[Any], None] | None
) -> None:
    if future.cancelled():
        if late is not None:
            late(result)
    elif error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _call_plain(function: HandlerFunction, *args: Any) -> Any:
    result = function(*args)
    if inspect.iscoroutine(result):
        result.close()
        raise TypeError(f"{located(function)} returned a coroutine: make the handler async and await it.")
    return result


def is_async(function: HandlerFunction) -> bool:
    """Whether calling it gives a coroutine; looks through partials and at objects with an async `__call__`."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def refusal_of(error: HTTPException) -> Reject:
    """The same refusal as a Reject: a text is the message, anything else the details."""
    code = CODES_OF_STATUS[error.status_code]
    detail: Any = error.detail  # FastAPI's may be any JSON
    if isinstance(detail, str):
        return Reject(code, "" if detail == HTTPStatus(error.status_code).phrase else detail)
    return Reject(code, details=detail)


def _refusal_in(group: ExceptionGroup[Exception]) -> Reject | None:
    """The first refusal in a group that holds nothing else."""
    found: Reject | None = None
    for error in group.exceptions:
        refusal: Exception | None = error
        if isinstance(error, ExceptionGroup):
            refusal = _refusal_in(error)
        elif isinstance(error, HTTPException) and error.status_code in CODES_OF_STATUS:
            refusal = refusal_of(error)
        if not isinstance(refusal, Reject):
            return None
        found = found or refusal
    return found


def located(function: Any) -> str:
    """The function's name and where it was defined, such as `save (app.py:12)`, for messages to its author."""
    code = getattr(function, "__code__", None)
    if code is None:
        return repr(function)
    return f"{function.__qualname__} ({Path(code.co_filename).name}:{code.co_firstlineno})"


def check_signature(function: HandlerFunction, arguments: int, expected: str) -> None:
    """Raises TypeError, at decoration, for a function that cannot be called with so many arguments."""
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError(f"{located(function)} is a generator: {expected} and returns its result.")
    try:
        inspect.signature(function).bind(*range(arguments))
    except TypeError as error:
        raise TypeError(f"{located(function)} does not fit: {expected} ({error}).") from None
