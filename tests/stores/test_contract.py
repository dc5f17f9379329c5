"""The contract of stores, once for all of them: a store is what behaves so."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backsync_asgi import Reject
from backsync_asgi.errors import EncodeError
from backsync_asgi.stores import MemoryStore, SQLStore, Store
from backsync_asgi.stores.base import CHUNK
from tests.postgres import PostgreSQL

Make = Callable[[], AbstractAsyncContextManager[Store]]

numbers = itertools.count()


def maker(kind: str, where: str) -> Make:
    """A function that makes empty stores of a kind."""

    @asynccontextmanager
    async def make() -> AsyncIterator[Store]:
        if kind == "memory":
            yield MemoryStore()
            return
        store = SQLStore(where, table=f"contract_{next(numbers)}", pool=2)
        yield store
        await store.close()

    return make


@pytest.fixture(scope="module", params=["memory", "sqlite", "postgresql"])
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Make:
    where = ""
    if request.param == "sqlite":
        where = f"sqlite:///{tmp_path_factory.mktemp('sqlite')}/contract.db"
    elif request.param == "postgresql":
        server: PostgreSQL = request.getfixturevalue("postgresql")
        where = server.url
    return maker(request.param, where)


@pytest.fixture
async def store(make: Make) -> AsyncIterator[Store]:
    async with make() as store:
        yield store


async def ids(store: Store, query: dict[str, Any]) -> list[Any]:
    """The ids of the records that a query reads, which a snapshot reads as well."""
    records = await store.read(query)
    async with contextlib.aclosing(store.snapshot(query)) as chunks:
        rows = [orjson.loads(text) async for chunk in chunks for text in chunk]
    assert rows == records
    return [record["id"] for record in records]


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


# ── Order and pages ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_order_goes_by_fields_then_by_id(store: Store) -> None:
    for id, x in (("b", 2), ("a", 2), ("c", 1), ("d", None), ("e", 10)):
        await store.upsert({"id": id, "x": x})
    assert await ids(store, {"$order": "x"}) == ["d", "c", "a", "b", "e"]
    assert await ids(store, {"$order": ["-x"]}) == ["e", "b", "a", "c", "d"], "ties go the way of the last field"
    assert await ids(store, {"$order": ["x", "-id"]}) == ["d", "c", "b", "a", "e"]
    assert await ids(store, {"$order": "id"}) == ["a", "b", "c", "d", "e"]
    assert await ids(store, {"x": 2, "$order": "-id"}) == ["b", "a"]


ORDERED = [None, -1.5, False, 0.25, True, 2, 10, "", "10", "9", "B", [1], "[]", [], "a", "é", "\uffff", "😀", {"a": 1}]


async def test_values_of_all_kinds_have_one_order(store: Store) -> None:
    for number, value in enumerate(ORDERED):
        await store.upsert({"id": f"{number:02}", "x": value})
    await store.upsert({"id": "none"})
    values = [record.get("x") for record in await store.read({"$order": "x"})]
    expected = [None, None, -1.5, False, 0.25, True, 2, 10, "", "10", "9", "B", [1], "[]", [], "a", {"a": 1}]
    assert values == [*expected, "é", "\uffff", "😀"]
    assert (await ids(store, {"$order": "-x"}))[::-1] == await ids(store, {"$order": "x"})


@pytest.mark.parametrize("order", [None, "x", "-x", ["-x", "id"], ["y", "-x"], ["-y", "-id"]], ids=str)
async def test_pages_hold_each_record_once_though_the_last_ones_are_deleted(store: Store, order: Any) -> None:
    for number, value in enumerate(ORDERED):
        await store.upsert({"id": f"{number:02}", "x": value, "y": number % 3})
    query = {} if order is None else {"$order": order}
    whole = await ids(store, {**query, "$limit": 1000})
    assert sorted(whole) == [f"{number:02}" for number in range(len(ORDERED))]
    seen: list[Any] = []
    after: dict[str, Any] = {}
    while page := await store.read({**query, **after, "$limit": 4}):
        assert len(page) <= 4
        seen += [record["id"] for record in page]
        after = {"$after": page[-1]}
        await store.delete(page[-1]["id"])
    assert seen == whole


async def test_a_page_may_begin_after_any_number(store: Store) -> None:
    numbers = [-(2**63), -0.5, 2**53 + 1, 2**63, 2**64 - 1, 1e308]
    for position, number in enumerate(numbers):
        await store.upsert({"id": position, "x": number})
    for position, number in enumerate(numbers):
        query = {"$order": "x", "$after": {"id": position, "x": number}}
        assert [record["x"] for record in await store.read(query)] == numbers[position + 1 :]


async def test_a_limit_without_an_order_goes_by_id(store: Store) -> None:
    for id in ("c", "a", "b"):
        await store.upsert({"id": id})
    assert await ids(store, {"$limit": 2}) == ["a", "b"]
    assert await ids(store, {"$after": {"id": "a"}}) == ["b", "c"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"$limit": 0}, "$limit"),
        ({"$limit": 1001}, "$limit"),
        ({"$limit": True}, "$limit"),
        ({"$limit": "5"}, "$limit"),
        ({"$order": 5}, "$order"),
        ({"$order": ""}, "$order"),
        ({"$order": ["-"]}, "$order"),
        ({"$order": [["x"]]}, "$order"),
        ({"$order": ['a"b']}, "$order"),
        ({"$order": ["x"] * 9}, "$order"),
        ({"$after": "a"}, "$after"),
        ({"$after": {"x": 1}}, "$after"),
        ({"$where": {}}, "$where"),
        ({"x": 2**63}, "x"),
        ({"x": -(2**64)}, "x"),
    ],
    ids=str,
)
async def test_a_query_that_cannot_be_answered_is_refused_with_its_field(store: Store, query: Any, field: str) -> None:
    with pytest.raises(Reject) as caught:
        await store.read(query)
    assert caught.value.code == "invalid"
    assert [fault["field"] for fault in caught.value.details] == [field]


@pytest.mark.parametrize("value", [math.nan, "\ud800", {1: 2}, {1, 2}], ids=repr)
async def test_a_query_of_what_json_cannot_carry_is_refused(store: Store, value: Any) -> None:
    with pytest.raises(Reject) as caught:
        await store.read({"x": value})
    assert caught.value.code == "invalid"


NAMES = [
    "a.b",
    "$x",
    'a"b',
    "a'b",
    "a\\b",
    "",
    " ",
    "é",
    "[0]",
    "0",
    "*",
    "%s",
    ":x",
    "a\nb",
    "toString",
    "__proto__",
    "-x",
]


@pytest.mark.parametrize("name", NAMES, ids=repr)
async def test_a_field_may_have_any_name(store: Store, name: str) -> None:
    await store.upsert({"id": "a", name: "one"})
    await store.upsert({"id": "b", name: "two"})
    await store.upsert({"id": "c", "a": {"b": "one"}})
    assert await store.get("a") == {"id": "a", name: "one"}
    if not name.startswith("$"):
        assert await ids(store, {name: "one"}) == ["a"]
    if not set('"\\\n') & set(name) and name:
        assert await ids(store, {"$order": "-" + name}) == ["b", "a", "c"]


TEXTS = ["it's", 'say "x"', "a\\b", "%", "_", "1", "true", "null", "", " ", "x; DROP TABLE", "é😀\uffff", "$.x", "\t\n"]


@pytest.mark.parametrize("text", TEXTS, ids=repr)
async def test_a_text_is_found_as_it_is_and_only_so(store: Store, text: str) -> None:
    await store.upsert({"id": "a", "x": text})
    for id, other in (("b", text + "x"), ("c", [text]), ("d", 1), ("e", True), ("f", None)):
        await store.upsert({"id": id, "x": other})
    assert await ids(store, {"x": text}) == ["a"]


async def test_values_of_different_kinds_are_different(store: Store) -> None:
    values = [True, False, 1, 0, "1", "0", "true", None, "null", [], "[]", {}, [1], [True], 0.5, 2**53, 2**62]
    for number, value in enumerate(values):
        await store.upsert({"id": f"r{number}", "x": value})
    await store.upsert({"id": "without"})
    for number, value in enumerate(values):
        assert await ids(store, {"x": value}) == [f"r{number}"], value
    assert await ids(store, {"x": 1.0}) == ["r2"]
    assert await ids(store, {"x": -0.0}) == ["r3"]


async def test_values_in_arrays_and_objects_are_compared_as_they_are(store: Store) -> None:
    await store.upsert({"id": "a", "x": {"b": [1, "2", None], "c": True}})
    assert await ids(store, {"x": {"c": True, "b": [1.0, "2", None]}}) == ["a"]
    assert await ids(store, {"x": {"c": 1, "b": [1, "2", None]}}) == []
    assert await ids(store, {"x": {"c": True, "b": [1, "2", None]}, "$limit": 1}) == ["a"]


async def test_what_is_stored_comes_out_as_json_has_it(store: Store) -> None:
    record = {
        "id": "a",
        "f": 1.5,
        "big": 2**53 - 1,
        "t": "é\u2028</script>",
        "n": None,
        "l": [1, {"x": []}],
        "b": False,
    }
    assert await store.upsert(record) == record
    assert await store.get("a") == record
    assert list((await store.get("a") or {}).items()) == list(record.items()), "in the order of its fields"


# ── Ids ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "id", ["toString", "0", 0, -1, "__proto__", "a'b", 'a"b', "é😀", " ", 2**53 - 1, "x" * 128], ids=str
)
async def test_any_id_will_do(store: Store, id: Any) -> None:
    assert await store.upsert({"id": id, "x": 1}) == {"id": id, "x": 1}
    assert await store.get(id) == {"id": id, "x": 1}
    assert await ids(store, {"id": id, "x": 1}) == [id]
    assert await store.patch(id, {"x": 2}) == {"id": id, "x": 2}
    assert await store.delete(str(id))


@pytest.mark.parametrize("id", ["", "x" * 129, True, 1.5, [], {}, 2**60], ids=str)
async def test_an_impossible_id_is_refused_and_not_there(store: Store, id: Any) -> None:
    with pytest.raises(Reject) as caught:
        await store.upsert({"id": id})
    assert (caught.value.code, caught.value.details[0]["field"]) == ("invalid", "id")
    assert await store.get(id) is None
    assert await store.delete(id) is False
    assert await store.read({"id": id}) == []
    with pytest.raises(Reject, match="not_found"):
        await store.patch(id, {})


# ── Versions ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_store_counts_the_writes_of_a_record(store: Store) -> None:
    store.bind("Thing", "rev")
    assert await store.upsert({"id": "a"}) == {"id": "a", "rev": 1}
    assert await store.upsert({"id": "a", "x": 1}) == {"id": "a", "x": 1, "rev": 2}
    assert await store.upsert({"id": "a", "rev": 2}) == {"id": "a", "rev": 3}
    assert await store.patch("a", {"x": 2}) == {"id": "a", "x": 2, "rev": 4}
    assert await store.patch("a", {"x": 3, "rev": 4}, ["rev"]) == {"id": "a", "x": 3, "rev": 5}
    assert await store.delete("a")
    assert await store.upsert({"id": "a"}) == {"id": "a", "rev": 1}


@pytest.mark.parametrize("named", [1, 3, 0, "2", True, 2.0], ids=repr)
async def test_a_write_that_names_another_version_is_a_conflict(store: Store, named: Any) -> None:
    store.bind("Thing", "rev")
    await store.upsert({"id": "a"})
    current = await store.upsert({"id": "a", "x": 1})
    for write in (store.upsert({"id": "a", "rev": named}), store.patch("a", {"rev": named}), store.delete("a", named)):
        with pytest.raises(Reject) as caught:
            await write
        assert (caught.value.code, caught.value.details) == ("conflict", {"current": current})
    assert await store.get("a") == current


async def test_a_version_of_what_is_not_there_is_a_conflict(store: Store) -> None:
    store.bind("Thing", "rev")
    with pytest.raises(Reject) as caught:
        await store.upsert({"id": "a", "rev": 1})
    assert (caught.value.code, caught.value.details) == ("conflict", {"current": None})


async def test_a_delete_removes_the_version_that_it_names(store: Store) -> None:
    store.bind("Thing", "rev")
    await store.upsert({"id": "a"})
    await store.upsert({"id": "a"})
    assert await store.delete("a", 2) is True
    assert await store.get("a") is None
    assert await store.delete("a", 2) is False, "what is gone is no conflict"
    await store.upsert({"id": "a"})
    assert await store.delete("a", None) is True


async def test_a_store_that_counts_no_versions_asks_for_none(store: Store) -> None:
    await store.upsert({"id": "a"})
    assert await store.delete("a", 7) is True


# ── Sizes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_record_cannot_grow_beyond_its_limits_by_patches(store: Store) -> None:
    await store.upsert({"id": "a", "x": "é" * 16_000})
    for fields, limit in (({"y": "é" * 16_760}, 65_536), ({f"f{number}": 1 for number in range(255)}, 256)):
        with pytest.raises(Reject) as caught:
            await store.patch("a", fields)
        assert (caught.value.code, caught.value.details) == ("too_large", {"limit": limit})
    assert await store.get("a") == {"id": "a", "x": "é" * 16_000}
    assert len(await store.patch("a", {f"f{number}": 1 for number in range(254)})) == 256


async def test_what_json_cannot_carry_is_not_stored(store: Store) -> None:
    for value in (math.nan, {1, 2}, "\ud800", b"x"):
        with pytest.raises(EncodeError):
            await store.upsert({"id": "a", "x": value})
    assert await store.read({}) == []


async def test_a_snapshot_comes_in_chunks(store: Store) -> None:
    for number in range(2 * CHUNK + 1):
        await store.upsert({"id": number})
    async with contextlib.aclosing(store.snapshot({})) as chunks:
        sizes = [len(chunk) async for chunk in chunks]
    assert sum(sizes) == 2 * CHUNK + 1
    assert max(sizes) <= CHUNK
    async with contextlib.aclosing(store.snapshot({})) as chunks:
        async for chunk in chunks:
            assert chunk[0] == '{"id":0}'
            break
    await store.upsert({"id": "after"})


# ── Any history ──────────────────────────────────────────────────────────────────────────────────────────────────────

keys = st.sampled_from(["a", "b", "c", 1, "1", 10, "é"])
values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([0.5, 1e15, -2.25, 2**53 - 1]),
    st.sampled_from(["", "1", "a", "B", "é", "'", "true", "\u2028"]),
    st.lists(st.integers(0, 1), max_size=2),
)
fields = st.dictionaries(st.sampled_from(["x", "y", "a.b", "rev"]), values, max_size=3)
queries = st.fixed_dictionaries(
    {},
    optional={
        "x": values,
        "y": values,
        "$order": st.lists(st.sampled_from(["x", "-x", "y", "-a.b", "id", "-id"]), max_size=3, unique=True),
        "$limit": st.integers(1, 3),
        "$after": st.builds(lambda id, more: {"id": id, **more}, keys, fields),
    },
)
operations: Any = st.lists(
    st.one_of(
        st.tuples(st.just("upsert"), keys, fields),
        st.tuples(st.just("patch"), keys, fields),
        st.tuples(st.just("delete"), keys, st.fixed_dictionaries({}, optional={"rev": st.integers(0, 3)})),
        st.tuples(st.just("read"), keys, queries),
    ),
    max_size=20,
)


async def outcome(store: Store, operation: str, id: Any, data: dict[str, Any]) -> Any:
    try:
        match operation:
            case "upsert":
                return await store.upsert({"id": id, **data})
            case "patch":
                return await store.patch(id, data, ["y"] if "x" in data else [])
            case "delete":
                return await store.delete(id, data.get("rev"))
            case _:
                return await store.read(data)
    except Reject as error:
        return error.code, error.message, error.details


@pytest.mark.parametrize("version", [None, "rev"])
@given(operations=operations)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_history_is_that_of_a_memory_store(make: Make, version: str | None, operations: Any) -> None:
    model = MemoryStore()
    model.bind("Thing", version)
    async with make() as store:
        store.bind("Thing", version)
        for operation in operations:
            assert await outcome(store, *operation) == await outcome(model, *operation), operation
        assert await ids(store, {}) == await ids(model, {})


histories = st.lists(
    st.tuples(st.sampled_from(["upsert", "patch", "delete"]), st.sampled_from(["a", "b", 1, "1"]), st.integers(0, 5)),
    max_size=20,
)


@given(operations=histories)
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_history_equals_a_dict(make: Make, operations: list[tuple[str, Any, int]]) -> None:
    async with make() as store:
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
