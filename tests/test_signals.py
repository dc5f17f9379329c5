"""Signals around a store: what they tell, who may refuse, and what happens where nobody listens; runs no server."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from blinker import Signal

from backsync_asgi.errors import Reject
from backsync_asgi.signals import Watched, is_heard, post_delete, post_save, pre_delete, pre_save
from backsync_asgi.stores import MemoryStore

SIGNALS: dict[str, Signal] = {
    "pre_save": pre_save,
    "post_save": post_save,
    "pre_delete": pre_delete,
    "post_delete": post_delete,
}


class Model:
    """Stands for a model: a sender of its own."""


class CountingStore(MemoryStore):
    """Counts how often a record was read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    async def get(self, id: Any) -> Any:
        self.reads += 1
        return await super().get(id)


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def inner() -> CountingStore:
    return CountingStore()


@pytest.fixture
def store(model: Model, inner: CountingStore) -> Watched:
    return Watched(model, inner)


@pytest.fixture
def heard(model: Model) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """What all signals of the model have said: the name and the keywords."""
    told: list[tuple[str, dict[str, Any]]] = []
    receivers = []
    for name, signal in SIGNALS.items():

        def receive(sender: object, name: str = name, **what: Any) -> None:
            assert sender is model
            told.append((name, what))

        receivers.append(receive)
        signal.connect(receive, sender=model)
    yield told
    for receiver, signal in zip(receivers, SIGNALS.values(), strict=True):
        signal.disconnect(receiver, sender=model)


async def test_a_new_record_is_told_before_and_after(store: Watched, heard: list[Any]) -> None:
    stored = await store.upsert({"text": "a"})
    assert heard == [
        ("pre_save", {"id": None, "record": {"text": "a"}, "created": True}),
        ("post_save", {"id": stored["id"], "record": stored, "created": True}),
    ]


async def test_a_written_record_is_told_apart_from_a_new_one(store: Watched, heard: list[Any]) -> None:
    await store.upsert({"id": 1, "text": "a"})
    await store.upsert({"id": 1, "text": "b"})
    assert [(name, what["created"]) for name, what in heard] == [
        ("pre_save", True),
        ("post_save", True),
        ("pre_save", False),
        ("post_save", False),
    ]


async def test_a_patch_tells_the_whole_record(store: Watched, heard: list[Any]) -> None:
    await store.upsert({"id": 1, "text": "a", "note": "x"})
    heard.clear()
    stored = await store.patch(1, {"text": "b"}, ["note"])
    assert stored == {"id": 1, "text": "b"}
    told = {"id": 1, "record": stored, "created": False}
    assert heard == [("pre_save", told), ("post_save", told)]


async def test_a_patch_of_what_is_not_there_is_told_to_nobody(store: Watched, heard: list[Any]) -> None:
    with pytest.raises(Reject):
        await store.patch(1, {"text": "b"})
    assert heard == []


async def test_a_removed_record_is_told_with_what_it_was(store: Watched, heard: list[Any]) -> None:
    await store.upsert({"id": 1, "text": "a"})
    heard.clear()
    assert await store.delete(1) is True
    told = {"id": 1, "record": {"id": 1, "text": "a"}}
    assert heard == [("pre_delete", told), ("post_delete", told)]
    assert await store.delete(1) is False
    assert len(heard) == 2


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_receiver_may_refuse_before_anything_is_stored(
    store: Watched, inner: CountingStore, heard: list[Any], model: Model, is_async: bool
) -> None:
    await store.upsert({"id": 1, "text": "a"})
    heard.clear()

    def refuse(sender: object, **what: Any) -> None:
        raise Reject("forbidden", "Not now.")

    async def refuse_later(sender: object, **what: Any) -> None:
        refuse(sender)

    receiver = refuse_later if is_async else refuse
    with pre_save.connected_to(receiver, sender=model), pre_delete.connected_to(receiver, sender=model):
        for attempt in (store.upsert({"id": 1}), store.upsert({}), store.patch(1, {"text": "b"}), store.delete(1)):
            with pytest.raises(Reject, match="Not now"):
                await attempt
    assert await inner.read({}) == [{"id": 1, "text": "a"}]
    assert not any(name.startswith("post") for name, _ in heard)


async def test_what_fails_afterwards_is_logged_and_the_record_is_stored(
    store: Watched, inner: CountingStore, heard: list[Any], model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(sender: object, **what: Any) -> None:
        raise Reject("forbidden", "Too late.")

    async def fail_later(sender: object, **what: Any) -> None:
        raise ZeroDivisionError

    with post_save.connected_to(fail, sender=model), post_save.connected_to(fail_later, sender=model):
        with caplog.at_level(logging.ERROR, "backsync"):
            await store.upsert({"id": 1})
            await asyncio.gather(*store._tasks)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [Reject, ZeroDivisionError]
    assert await inner.get(1) == {"id": 1}
    assert [name for name, _ in heard] == ["pre_save", "post_save"]


async def test_a_write_does_not_wait_for_async_receivers_afterwards(store: Watched, model: Model) -> None:
    gate, told = asyncio.Event(), []

    async def slow(sender: object, **what: Any) -> None:
        await gate.wait()
        told.append(what["id"])

    with post_save.connected_to(slow, sender=model):
        await store.upsert({"id": 1})
        assert told == []
        gate.set()
        await asyncio.gather(*store._tasks)
    assert told == [1]


async def test_a_receiver_cannot_change_what_is_stored(store: Watched, inner: CountingStore, model: Model) -> None:
    def meddle(sender: object, record: dict[str, Any], **what: Any) -> None:
        record["tags"].append("x")
        record["id"] = 2

    with pre_save.connected_to(meddle, sender=model), post_save.connected_to(meddle, sender=model):
        assert await store.upsert({"id": 1, "tags": []}) == {"id": 1, "tags": []}
    assert await inner.read({}) == [{"id": 1, "tags": []}]


async def test_where_nobody_listens_the_store_does_nothing_more(store: Watched, inner: CountingStore) -> None:
    other = Model()

    def receive(sender: object, **what: Any) -> None:
        raise AssertionError("it is another model's")

    with pre_save.connected_to(receive, sender=other), post_delete.connected_to(receive, sender=other):
        await store.upsert({"id": 1})
        await store.patch(1, {"a": 1})
        assert await store.delete(1) is True
    assert inner.reads == 0


def test_it_is_known_whether_anybody_listens(model: Model) -> None:
    def receive(sender: object, **what: Any) -> None:
        raise AssertionError("nothing was sent")

    assert not is_heard(model)
    with post_delete.connected_to(receive, sender=model):
        assert is_heard(model)
        assert is_heard(model, pre_save, post_delete)
        assert not is_heard(model, pre_save)
        assert not is_heard(Model())
    with pre_save.connected_to(receive):
        assert is_heard(model)
    assert not is_heard(model)


def test_who_has_listened_before_does_not_count(model: Model) -> None:
    def receive(sender: object, **what: Any) -> None:
        raise AssertionError("nothing was sent")

    other = Model()
    with post_delete.connected_to(receive, sender=other):
        with post_delete.connected_to(lambda sender, **what: None, sender=model):
            assert is_heard(model)
        assert not is_heard(model)


async def test_a_receiver_may_listen_to_all_models(store: Watched, model: Model) -> None:
    told: list[object] = []

    def receive(sender: object, **what: Any) -> None:
        told.append(sender)

    with post_save.connected_to(receive):
        await store.upsert({"id": 1})
    assert told == [model]


async def test_everything_else_is_the_stores(store: Watched, inner: CountingStore) -> None:
    await store.upsert({"id": 1})
    assert await store.read({}) == [{"id": 1}]
    assert list(store.take_evicted()) == []
    assert store.version is None


def test_without_blinker_the_remedy_is_told_in_one_line() -> None:
    program = "import sys; sys.modules['blinker'] = None; import backsync_asgi; import backsync_asgi.signals"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.stderr.splitlines()[-1] == "ImportError: backsync_asgi.signals needs blinker: pip install blinker"


def test_nothing_imports_blinker_by_itself() -> None:
    program = "import sys, backsync_asgi, backsync_asgi.stores; assert 'blinker' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
