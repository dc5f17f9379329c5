"""Turns: writers of one record come one after the other, a holder may come again, and nobody waits for itself."""

from __future__ import annotations

import asyncio
import contextvars

import pytest

from backsync_asgi import Reject
from backsync_asgi.turns import Turns

DEADLINE = 5.0


@pytest.fixture
def turns() -> Turns:
    return Turns()


async def step(times: int = 5) -> None:
    """Let everything run that can."""
    for _ in range(times):
        await asyncio.sleep(0)


async def test_writers_of_one_record_come_one_after_the_other_in_order(turns: Turns) -> None:
    log: list[str] = []

    async def write(name: str, record: str) -> None:
        async with turns.turn(record):
            log.append(f"{name} in")
            await step()
            log.append(f"{name} out")

    await asyncio.gather(write("a", "x"), write("b", "x"), write("c", "y"))
    assert [entry for entry in log if entry[0] != "c"] == ["a in", "a out", "b in", "b out"]
    assert log.index("c in") < log.index("a out"), "another record does not wait"


async def test_new_records_do_not_wait_for_each_other(turns: Turns) -> None:
    async with asyncio.timeout(DEADLINE):
        async with turns.turn(None), turns.turn(None):
            pass


async def test_a_holder_may_take_its_turn_again(turns: Turns) -> None:
    async with asyncio.timeout(DEADLINE):
        async with turns.turn("x"), turns.turn("x"), turns.turn("x"):
            pass
        async with turns.turn("x"):
            pass


async def test_the_tasks_of_a_holder_take_turns_among_themselves(turns: Turns) -> None:
    log: list[str] = []

    async def write(name: str) -> None:
        async with turns.turn("x"):
            log.append(f"{name} in")
            await step()
            log.append(f"{name} out")

    async with asyncio.timeout(DEADLINE):
        async with turns.turn("x"):
            await asyncio.gather(write("a"), write("b"))
    assert log == ["a in", "a out", "b in", "b out"]


async def test_a_task_that_outlives_its_holder_waits_like_anybody(turns: Turns) -> None:
    log: list[str] = []
    go_on = asyncio.Event()

    async def later() -> None:
        await go_on.wait()
        async with turns.turn("x"):
            log.append("later")

    async with turns.turn("x"):
        task = asyncio.create_task(later())
        await step()
    async with turns.turn("x"):
        go_on.set()
        await step()
        log.append("second")
    await asyncio.wait_for(task, DEADLINE)
    assert log == ["second", "later"]


async def test_a_task_that_outlives_its_holder_while_it_writes_keeps_the_next_one_waiting(turns: Turns) -> None:
    log: list[str] = []
    go_on = asyncio.Event()

    async def write() -> None:
        async with turns.turn("x"):
            await go_on.wait()
            log.append("task")

    async def next_one() -> None:
        async with turns.turn("x"):
            log.append("next")

    async with turns.turn("x"):
        task = asyncio.create_task(write())
        await step()
    other = asyncio.create_task(next_one(), context=contextvars.Context())
    await step()
    assert log == []
    go_on.set()
    await asyncio.wait_for(asyncio.gather(task, other), DEADLINE)
    assert log == ["task", "next"]
    assert not turns._turns


async def test_who_is_next_but_has_not_run_yet_counts_as_the_holder(turns: Turns) -> None:
    go_on = asyncio.Event()

    async def hold() -> None:
        async with turns.turn("a"):
            await go_on.wait()

    async def first() -> None:
        async with turns.turn("a"):
            await asyncio.sleep(0)
            async with turns.turn("b"):
                pass

    async def second() -> None:
        async with turns.turn("b"):
            await go_on.wait()
            async with turns.turn("a"):
                pass

    tasks = [asyncio.create_task(work()) for work in (hold, first, second)]
    await step()
    go_on.set()
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), DEADLINE)
    assert sum(isinstance(result, Reject) for result in results) == 1
    assert not turns._waits


async def test_two_that_write_each_others_records_are_told_at_once(turns: Turns) -> None:
    inside = asyncio.Barrier(2)

    async def write(first: str, second: str) -> str:
        async with turns.turn(first):
            await inside.wait()
            async with turns.turn(second):
                return first

    results = await asyncio.wait_for(asyncio.gather(write("x", "y"), write("y", "x"), return_exceptions=True), DEADLINE)
    refused = [result for result in results if isinstance(result, Reject)]
    assert [error.code for error in refused] == ["unavailable"]
    assert len([result for result in results if isinstance(result, str)]) == 1


async def test_a_circle_of_three_is_found_and_a_chain_is_none(turns: Turns) -> None:
    inside = asyncio.Barrier(3)

    async def write(first: str, second: str) -> str:
        async with turns.turn(first):
            await inside.wait()
            async with turns.turn(second):
                return first

    circle = await asyncio.wait_for(
        asyncio.gather(write("x", "y"), write("y", "z"), write("z", "x"), return_exceptions=True), DEADLINE
    )
    assert sum(isinstance(result, Reject) for result in circle) == 1
    chain = await asyncio.wait_for(asyncio.gather(write("x", "y"), write("y", "z"), write("z", "w")), DEADLINE)
    assert list(chain) == ["x", "y", "z"]


async def test_the_helpers_of_two_holders_that_wait_for_each_other_are_found_out(turns: Turns) -> None:
    inside = asyncio.Barrier(2)

    async def take(record: str) -> None:
        async with turns.turn(record):
            pass

    async def write(first: str, second: str) -> None:
        async with turns.turn(first):
            await inside.wait()
            await asyncio.gather(take(first), take(second))

    results = await asyncio.wait_for(asyncio.gather(write("x", "y"), write("y", "x"), return_exceptions=True), DEADLINE)
    assert sum(isinstance(result, Reject) for result in results) == 1


async def test_a_turn_that_is_over_keeps_nobody_from_waiting(turns: Turns) -> None:
    """A background task of a holder that has left waits for a record whose writer may wait for the holder's."""
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def background() -> None:
        async with turns.turn("y"):
            pass

    async def hold_y_then_take_x() -> str:
        async with turns.turn("y"):
            inside.set()
            await go_on.wait()
            async with turns.turn("x"):
                return "written"

    async def hold_x() -> None:
        async with turns.turn("x"):
            go_on.set()
            await step()

    other = asyncio.create_task(hold_y_then_take_x(), context=contextvars.Context())
    await inside.wait()
    async with turns.turn("x"):
        task = asyncio.create_task(background())
        await step()
    results = await asyncio.wait_for(asyncio.gather(other, task, hold_x()), DEADLINE)
    assert results[0] == "written"


@pytest.mark.parametrize("first", ["shared", "other"])
async def test_the_tasks_of_one_holder_that_wait_for_each_other_are_told_at_once(turns: Turns, first: str) -> None:
    inside = asyncio.Barrier(2)

    async def write(name: str, one: str, other: str) -> None:
        async with turns.turn(one):
            await inside.wait()
            await step(1 if name == first else 5)
            async with turns.turn(other):
                pass

    async with turns.turn("x"):
        results = await asyncio.wait_for(
            asyncio.gather(write("shared", "x", "y"), write("other", "y", "x"), return_exceptions=True), DEADLINE
        )
    assert sum(isinstance(result, Reject) for result in results) == 1
    assert not turns._waits


async def test_who_gives_up_waiting_holds_up_nobody(turns: Turns) -> None:
    async with turns.turn("x"):
        waiting = asyncio.create_task(turns.turn("x").__aenter__(), context=contextvars.Context())
        await step()
        waiting.cancel()
        await asyncio.wait([waiting])
    async with asyncio.timeout(DEADLINE):
        async with turns.turn("x"):
            pass


async def test_nothing_is_left_of_turns_that_are_over(turns: Turns) -> None:
    async def write(number: int) -> None:
        async with turns.turn(number % 3):
            await step(1)

    await asyncio.gather(*(write(number) for number in range(30)))
    assert not turns._turns
    assert not turns._waits
