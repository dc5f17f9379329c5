"""MemoryStore beside the contract: its limit, and what happens at it."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from backsync_asgi import Reject
from backsync_asgi.stores import MemoryStore, base
from backsync_asgi.stores.base import id_key


async def test_a_full_store_refuses_one_more_and_says_how_many_it_keeps() -> None:
    store = MemoryStore(limit=2)
    for id in ("a", "b", "a"):
        await store.upsert({"id": id})
    with pytest.raises(Reject) as caught:
        await store.upsert({"id": "c"})
    assert (caught.value.code, caught.value.details) == ("too_large", {"limit": 2})
    assert len(store) == 2
    await store.delete("a")
    await store.upsert({"id": "c"})


async def test_a_log_drops_its_oldest_records_and_tells_which() -> None:
    store = MemoryStore(limit=2, full="evict")
    for id in ("a", "b", "a", "c", "d"):
        await store.upsert({"id": id})
    assert [record["id"] for record in await store.read({})] == ["c", "d"]
    assert list(store.take_evicted()) == ["a", "b"]
    assert list(store.take_evicted()) == []


@pytest.mark.parametrize(
    "options", [{"limit": 0}, {"limit": -1}, {"limit": True}, {"limit": "1"}, {"limit": 1.5}, {"full": "drop"}]
)
def test_a_wrong_option_is_found_at_start(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="MemoryStore got"):
        MemoryStore(**options)


@pytest.mark.parametrize("cancelled", [False, True])
async def test_in_each_turn_of_the_event_loop_one_slice_of_rows_is_worked_on(
    cancelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kind of fault: work that is sliced for each client alone adds up where many ask at once."""
    monkeypatch.setattr(base, "SLICE", -1.0)  # a slice is the fewest rows
    worked = 0
    in_turns: list[int] = []

    async def work() -> int:
        nonlocal worked
        async for _ in base.paced(range(80)):
            worked += 1
        return worked

    tasks = [asyncio.create_task(work()) for _ in range(20)]
    while not all(task.done() for task in tasks):
        before = worked
        await asyncio.sleep(0)
        in_turns.append(worked - before)
        if cancelled and len(in_turns) == 5:
            for task in tasks[::2]:
                task.cancel()
    assert max(in_turns[1:]) == 8
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(it, int) for it in ended) == (10 if cancelled else 20)


@pytest.mark.parametrize("changes", [40, 3_000])
async def test_pages_by_id_keep_up_with_what_is_added_and_removed(changes: int) -> None:
    """Few changes find their places one by one, many are sorted with all others."""
    chance = random.Random(changes)
    store = MemoryStore(limit=1_500, full="evict")
    for _ in range(4):
        for _ in range(changes):
            id = chance.choice(["", "a", "-"]) + str(chance.randint(0, 2_000))
            if chance.random() < 0.7:
                await store.upsert({"id": id})
            else:
                await store.delete(id)
        expected = sorted((str(record["id"]) for record in await store.read({})), key=id_key)
        found: list[Any] = []
        after = None
        while page := await store.read({"$limit": 1_000, "$after": after}):
            found += [record["id"] for record in page]
            after = page[-1]
        assert found == expected
