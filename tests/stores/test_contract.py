"""The contract of stores, once for all of them: a store is what behaves so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backsync_asgi import Reject
from backsync_asgi.stores import MemoryStore, Store

STORES: dict[str, Callable[[], Store]] = {"memory": MemoryStore}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> Store:
    return STORES[request.param]()


async def test_a_new_record_gets_an_id_that_no_other_has(store: Store) -> None:
    records = [await store.upsert({"n": number}) for number in range(20)]
    ids = [record["id"] for record in records]
    assert len(set(ids)) == 20
    assert all(isinstance(id, str) and id for id in ids)
    assert await store.get(ids[3]) == {"n": 3, "id": ids[3]}


async def test_an_id_of_none_is_no_id(store: Store) -> None:
    assert (await store.upsert({"id": None}))["id"] is not None


async def test_an_upsert_adds_or_replaces_the_whole_record(store: Store) -> None:
    assert await store.upsert({"id": "a", "x": 1}) == {"id": "a", "x": 1}
    assert await store.upsert({"id": "a", "y": 2}) == {"id": "a", "y": 2}
    assert await store.get("a") == {"id": "a", "y": 2}
    assert len(await store.read({})) == 1


async def test_ids_are_compared_as_browsers_compare_them(store: Store) -> None:
    await store.upsert({"id": 1, "x": 1})
    await store.upsert({"id": "1", "x": 2})
    assert len(await store.read({})) == 1
    assert await store.get(1) == await store.get("1")
    assert (await store.patch("1", {"x": 3}))["x"] == 3
    assert await store.delete(1)
    assert await store.read({}) == []


async def test_records_are_read_in_the_order_in_which_they_came(store: Store) -> None:
    for id in ("c", "a", "b"):
        await store.upsert({"id": id})
    await store.upsert({"id": "c", "again": True})
    assert [record["id"] for record in await store.read({})] == ["c", "a", "b"]


async def test_a_query_is_equality_of_its_fields(store: Store) -> None:
    await store.upsert({"id": "a", "room": "x", "done": True})
    await store.upsert({"id": "b", "room": "x", "done": False})
    await store.upsert({"id": "c", "room": "y"})
    await store.upsert({"id": "d", "room": None})

    async def ids(**query: Any) -> list[str]:
        return [record["id"] for record in await store.read(query)]

    assert await ids(room="x") == ["a", "b"]
    assert await ids(room="x", done=False) == ["b"]
    assert await ids(room=None) == ["d"], "a missing field is not None"
    assert await ids(none="x") == []
    assert await ids(id="b") == ["b"]
    assert await ids(id="z") == []
    assert await ids(id="b", room="y") == []


@pytest.mark.parametrize("value", [[], {}, [1], {"a": 1}, None, 1.5, True], ids=repr)
async def test_any_value_may_stand_in_a_query(store: Store, value: Any) -> None:
    await store.upsert({"id": "a", "x": value})
    assert [record["id"] for record in await store.read({"x": value})] == ["a"]
    assert await store.read({"id": value}) == []


async def test_a_patch_changes_some_fields_and_removes_others(store: Store) -> None:
    await store.upsert({"id": "a", "x": 1, "y": 2, "z": 3})
    assert await store.patch("a", {"id": "other", "x": 9}, ["y", "none"]) == {"id": "a", "x": 9, "z": 3}
    assert await store.get("a") == {"id": "a", "x": 9, "z": 3}
    assert await store.patch("a", {}, ["id"]) == {"id": "a", "x": 9, "z": 3}, "the id stays"


async def test_what_is_changed_and_removed_at_once_is_removed(store: Store) -> None:
    await store.upsert({"id": "a"})
    assert await store.patch("a", {"x": 1}, ["x"]) == {"id": "a"}


async def test_what_is_not_there_cannot_be_patched(store: Store) -> None:
    with pytest.raises(Reject) as caught:
        await store.patch("a", {"x": 1})
    assert caught.value.code == "not_found"


async def test_what_is_not_there_is_not_deleted(store: Store) -> None:
    await store.upsert({"id": "a"})
    assert await store.delete("a") is True
    assert await store.delete("a") is False
    assert await store.get("a") is None


async def test_a_store_keeps_its_own_copy(store: Store) -> None:
    given = {"id": "a", "tags": ["x"]}
    stored = await store.upsert(given)
    given["tags"].append("y")  # type: ignore[attr-defined]
    stored["tags"].append("z")
    for record in [await store.get("a"), *await store.read({}), *await store.read({"id": "a"})]:
        assert record == {"id": "a", "tags": ["x"]}
        record["tags"].append("w")
    changes = {"tags": ["v"]}
    patched = await store.patch("a", changes)
    changes["tags"].append("u")
    patched["tags"].append("t")
    assert await store.get("a") == {"id": "a", "tags": ["v"]}


async def test_a_store_that_drops_nothing_by_itself_has_nothing_to_announce(store: Store) -> None:
    await store.upsert({"id": "a"})
    await store.delete("a")
    assert list(store.take_evicted()) == []


operations = st.lists(
    st.one_of(
        st.tuples(st.just("upsert"), st.sampled_from(["a", "b", 1, "1"]), st.integers(0, 5)),
        st.tuples(st.just("patch"), st.sampled_from(["a", "b", 1, "1"]), st.integers(0, 5)),
        st.tuples(st.just("delete"), st.sampled_from(["a", "b", 1, "1"]), st.just(0)),
    ),
    max_size=20,
)


@pytest.mark.parametrize("make", STORES.values(), ids=STORES)
@given(operations=operations)
@settings(deadline=None)
async def test_any_history_equals_a_dict(make: Callable[[], Store], operations: list[tuple[str, Any, int]]) -> None:
    store = make()
    model: dict[str, dict[str, Any]] = {}
    for operation, id, number in operations:
        key = str(id)
        if operation == "upsert":
            model[key] = {"id": id, "n": number}
            assert await store.upsert({"id": id, "n": number}) == model[key]
        elif operation == "delete":
            assert await store.delete(id) == (model.pop(key, None) is not None)
        elif key in model:
            model[key] = {**model[key], "p": number}
            assert await store.patch(id, {"p": number}) == model[key]
        else:
            with pytest.raises(Reject):
                await store.patch(id, {"p": number})
    assert await store.read({}) == list(model.values())
