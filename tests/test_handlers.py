"""Handlers' calls: threads for plain functions, started as needed, within a bound, and in nobody's way at the end."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Coroutine
from typing import Any

import pytest

from backsync_asgi.errors import Contained
from backsync_asgi.handlers import Caller, HandlerTimeout, Threads

DEADLINE = 5.0


async def test_a_plain_function_runs_in_a_thread_with_the_callers_context() -> None:
    name = contextvars.ContextVar("name", default="nobody")
    name.set("ann")
    threads = Threads(2)
    assert await threads.run(lambda: (name.get(), threading.current_thread() is threading.main_thread())) == (
        "ann",
        False,
    )
    threads.shutdown()


async def test_what_a_thread_raises_is_raised_to_who_waits() -> None:
    threads = Threads(1)

    def fail(error: BaseException) -> None:
        raise error

    with pytest.raises(ValueError, match="no"):
        await threads.run(lambda: fail(ValueError("no")))
    assert await threads.run(lambda: 1) == 1, "the thread lives on"
    threads.shutdown()


ODD = (SystemExit(1), GeneratorExit(), asyncio.CancelledError(), KeyboardInterrupt(), BaseException("x"))


@pytest.mark.parametrize("error", [*ODD, StopIteration(1)], ids=repr)
async def test_what_is_no_exception_leaves_a_thread_as_one(error: BaseException) -> None:
    """Kind: an exception that is no `Exception` ends a task, a future or the event loop instead of one call."""

    def fail() -> None:
        raise error

    with pytest.raises(Contained) as caught:
        await Threads(1).run(fail)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", ODD[:3], ids=repr)
@pytest.mark.parametrize("is_late", [False, True])
async def test_what_is_no_exception_leaves_a_call_as_one(error: BaseException, is_late: bool) -> None:
    caller = Caller(10.0, 1)

    async def fail(ctx: None) -> None:
        if is_late:
            await asyncio.sleep(0)
        raise error

    for work in (caller(fail, None), caller.to_the_end(fail(None), lambda: None)):
        with pytest.raises(Contained) as caught:
            await work
        assert caught.value.__cause__ is error


async def test_a_cancelled_call_is_cancelled_and_a_closed_one_closed() -> None:
    caller = Caller(10.0, 1)

    async def wait(ctx: None) -> None:
        await asyncio.Event().wait()

    task = asyncio.ensure_future(caller(wait, None))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    call = caller(wait, None)
    await asyncio.create_task(begin(call))
    call.close()  # raises what it lets through other than GeneratorExit


async def begin(call: Coroutine[Any, Any, None]) -> None:
    call.send(None)


async def test_threads_are_used_again_and_bounded() -> None:
    threads = Threads(3)
    seen: set[int] = set()
    for _ in range(20):
        seen.add(await threads.run(threading.get_ident))
    assert len(seen) <= 3
    barrier = threading.Barrier(3, timeout=DEADLINE)
    await asyncio.gather(*(threads.run(barrier.wait) for _ in range(3)))
    go_on = threading.Event()
    running = [threads.run(go_on.wait) for _ in range(10)]
    go_on.set()
    assert await asyncio.gather(*running) == [True] * 10
    assert threads._count == 3
    threads.shutdown()


async def test_after_a_shutdown_new_work_gets_new_threads() -> None:
    threads = Threads(2)
    assert await threads.run(lambda: 1) == 1
    threads.shutdown()
    assert await threads.run(lambda: 2) == 2
    threads.shutdown()


async def test_a_thread_keeps_nothing_of_what_it_has_done() -> None:
    class Big:
        pass

    threads = Threads(1)
    big = Big()
    gone = weakref.ref(big)
    await threads.run(lambda big=big: None)  # type: ignore[misc]
    del big
    await threads.run(lambda: None)
    gc.collect()
    assert gone() is None
    threads.shutdown()


async def test_work_that_nobody_waits_for_any_more_is_not_begun() -> None:
    threads = Threads(1)
    go_on = threading.Event()
    begun: list[int] = []
    first = threads.run(go_on.wait)
    second = threads.run(lambda: begun.append(2))
    second.cancel()
    go_on.set()
    await first
    await threads.run(lambda: begun.append(3))
    assert begun == [3]
    threads.shutdown()


async def test_a_plain_function_that_takes_too_long_is_answered_for() -> None:
    go_on = threading.Event()
    caller = Caller(0.01, 1)

    def wait(ctx: object) -> None:
        go_on.wait()

    with pytest.raises(HandlerTimeout):
        await caller(wait, None)
    go_on.set()
    caller.shutdown()


async def test_a_result_that_comes_in_the_very_moment_in_which_the_time_is_over_is_late() -> None:
    class Ctx:
        late: Any = None

        def returned_late(self, result: Any) -> None:
            self.late = result

    go_on = threading.Event()
    caller, ctx = Caller(DEADLINE, 1), Ctx()

    def write(ctx: Ctx) -> str:
        go_on.wait(DEADLINE)
        return "written"

    call = asyncio.create_task(caller(write, ctx))
    await asyncio.sleep(0)
    go_on.set()
    assert caller._threads._idle.acquire(timeout=DEADLINE), "the result is on its way"
    asyncio.get_running_loop().call_soon(call.cancel)
    with pytest.raises(asyncio.CancelledError):
        await call
    assert ctx.late == "written"
    caller.shutdown()


def test_a_thread_that_does_not_end_keeps_no_program_from_ending() -> None:
    program = """
import asyncio, threading, time
from backsync_asgi.handlers import Threads
async def main():
    begun = threading.Event()
    Threads(1).run(lambda: (begun.set(), time.sleep(60)))
    begun.wait()
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=20, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
