"""MemoryStore beside the contract: its limit, and what happens at it."""

from __future__ import annotations

from typing import Any

import pytest

from backsync_asgi import Reject
from backsync_asgi.stores import MemoryStore


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
