"""Two event loops that run at once, each in its thread: one of them serves, the other one hands its requests over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from .app import ASGIApp
from .receivers import Receive, Scope, Send

BEGINS_WITHIN = 5.0  # seconds; a loop that does not begin until then waits for the other one


async def answer_on(loop: asyncio.AbstractEventLoop, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Have the app answer on another event loop; it receives and sends on this one.

    Raises RuntimeError where the other loop does not begin: it may wait for this one.
    """
    here = asyncio.get_running_loop()
    begun = asyncio.Event()

    def back(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def called(*args: Any) -> Any:
            return await call(*args)

        async def call_back(*args: Any) -> Any:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(called(*args), here))

        return call_back

    async def answer() -> None:
        here.call_soon_threadsafe(begun.set)
        await app(scope, back(receive), back(send))

    answered = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(answer(), loop))
    try:
        async with asyncio.timeout(BEGINS_WITHIN):
            await begun.wait()
    except TimeoutError:
        raise RuntimeError(
            f"Backsync runs on another event loop of this process, which has not answered in {BEGINS_WITHIN:g} s. "
            "It may wait for this one, as where an async test calls a test client that blocks: call that in a thread."
        ) from None
    finally:
        if not begun.is_set():
            answered.cancel()
    try:
        await answered
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # The other loop has ended, and what it served with it.
