"""Visibility rules: each is given a copy of its own, with the values that the record has."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from backsync_asgi import Backsync, Context
from backsync_asgi.stores import MemoryStore
from backsync_asgi.visibility import copied
from tests.inprocess import connect

NESTED: dict[str, Any] = {"a": [{"b": None}, [], 1.5, True, "x"]}


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 1, 2**70, 1.5, "x", date(2026, 1, 1), Decimal("1.0"), NESTED, [NESTED]),
        *({"at": datetime(2026, 1, 1, tzinfo=UTC)}, [Decimal("1.0")], {1: "one"}, (1, [2]), [(1, 2)], {"s": {1}}),
    ],
    ids=repr,
)
def test_a_copy_is_the_same_and_of_the_same_kind(value: Any) -> None:
    copy = copied(value)
    assert copy == value
    assert repr(copy) == repr(value), "1 is not 1.0, nor a date its text"


def test_a_number_that_is_none_is_copied_too() -> None:
    assert repr(copied([float("nan"), {"a": float("inf")}])) == "[nan, {'a': inf}]"


async def test_a_rule_that_changes_what_it_is_given_changes_nothing_else() -> None:
    """Kind: a copy that is not deep enough lets one client's view change another's."""
    sync = Backsync()
    model = sync.model("M", store=MemoryStore())

    @model.visible
    def seen(ctx: Context, record: dict[str, Any]) -> bool:
        record["list"].clear()
        record["dict"]["a"]["b"] = 2
        return True

    record = {"id": 1, "list": [[1]], "dict": {"a": {"b": 1}}}
    async with connect(sync) as ann, connect(sync) as bob:
        for client in (ann, bob):
            await client.call("M:subscribe")
        assert await ann.call("M:upsert", record) == record
        for client in (ann, bob):
            assert [it["data"] for it in await client.pushes()] == [record]
        assert await bob.call("M:read") == [record]


async def test_a_rule_sees_a_change_as_it_was_published() -> None:
    """Kind: what a rule decides by is not what is sent, since the program has changed it since."""
    sync = Backsync()
    model = sync.model("M")
    asked: list[Any] = []

    @model.visible
    def seen(ctx: Context, record: dict[str, Any]) -> bool:
        asked.append(record["for"])
        return "ann" in record["for"]

    async with connect(sync) as client:
        await client.call("M:subscribe")
        record = {"id": 1, "for": ["bob"]}
        model.publish("upsert", record)
        record["for"].append("ann")  # type: ignore[attr-defined]
        assert [it["event"] for it in await client.pushes()] == ["M:delete"]
        assert asked == [["bob"]]
