"""What carries a conversation does not matter: cut at any byte (I28), any transport (I29), any pieces (I30)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from backsync_asgi import Backsync
from backsync_asgi.stores import MemoryStore
from backsync_asgi.testing import TRANSPORTS, Client, Transport, connect
from tests.convergence.clock import virtual

Record = dict[str, Any]
DIFFICULT = 'quotes " and % and \u2028, <b>, \u200c, é, \U0001f98a, \\, \r\n\x00'


def make() -> Backsync:
    sync = Backsync()
    sync.model("Todo", store=MemoryStore(), version="rev")
    sync.model("Message", store=MemoryStore(), key="room")
    return sync


async def converse(ann: Client, bob: Client) -> list[Any]:
    """A conversation of two, one request after the other; returns what ann was answered."""
    answers = [
        await ann.upsert("Todo", {"id": 1, "title": DIFFICULT}),
        await ann.upsert("Todo", [{"id": 2}, {"id": "3", "done": False}]),
    ]
    await bob.upsert("Message", {"id": 1, "room": "lobby", "text": DIFFICULT})
    answers.append(await ann.patch("Todo", {"id": 2, "done": True}))
    await bob.upsert("Message", {"id": 1, "room": "attic"})
    await ann.delete("Todo", "3")
    answers.append(await ann.upsert("Message", {"id": 2, "room": "lobby"}))
    await bob.patch("Todo", {"id": 1, "title": "short", "rev": 1})
    answers.append(await ann.read("Todo"))
    return answers


async def subscribe(ann: Client) -> None:
    await ann.subscribe("Todo")
    for room in ("lobby", "attic"):
        await ann.subscribe("Message", {"room": room})


async def through(client: Client, work: Coroutine[Any, Any, Any]) -> Any:
    """Do it to the end; the client comes back where it is cut off."""
    task = asyncio.ensure_future(work)
    await client.until(lambda: task.done() or not client.connected)
    if not client.connected:
        await client.reconnect()
    return await task


async def state_after(transport: Transport, prepare: Callable[[Client], None] | None = None) -> tuple[Any, Client]:
    """What ann's views hold and she was answered after the conversation; cut where `prepare` says, then come back."""
    sync = make()
    async with connect(sync, transport=transport, client="ann's client") as ann, connect(sync) as bob:
        await subscribe(ann)
        if prepare is not None:
            prepare(ann)
        answers = await through(ann, converse(ann, bob))
        await through(ann, ann.call("$:ping"))
        return ([dict(view) for view in ann.views], answers), ann


class Meter:
    """Counts what goes through, by giving a line much room and looking at what is left."""

    ROOM = 10_000_000

    def __init__(self) -> None:
        self.left: dict[Any, int] = {}

    def __call__(self, client: Client) -> None:
        assert client._line is not None
        client.cut_after(up=self.ROOM, down=self.ROOM)
        self.left = client._line.cable.left


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("transport", ["websocket", "xhr_streaming"])
@virtual
async def test_a_cut_at_any_byte_changes_nothing_in_the_end(transport: Transport, way: str) -> None:
    meter = Meter()
    uncut, _ = await state_after(transport, meter)
    total = Meter.ROOM - meter.left[way]
    assert total > 400
    # A WebSocket message is lost as a whole, so every third byte meets all that there is to meet.
    for byte in range(0, total + 1, 3 if transport == "websocket" else 2):

        def prepare(client: Client, byte: int = byte) -> None:
            client.cut_after(**{way: byte})

        after, _ = await state_after(transport, prepare)
        assert after == uncut, f"cut after {byte} bytes {way}"


@virtual
async def test_every_transport_gives_the_same_events_and_answers() -> None:
    told = []
    for transport in TRANSPORTS:
        state, ann = await state_after(transport)
        told.append((state, [(view.model, view.query, view.events) for view in ann._talk.views.values()]))
    assert told[0][1][0][2], "there are events"
    for transport, other in zip(TRANSPORTS, told, strict=True):
        assert other == told[0], transport


@virtual
async def test_many_messages_in_one_upload_or_one_each_come_to_the_same() -> None:
    results = []
    for together in (True, False):
        sync = make()
        async with connect(sync, transport="xhr") as ann:
            view = await ann.subscribe("Todo")
            if together:
                ann.stall("up")
            asking = [
                asyncio.ensure_future(ann.upsert("Todo", {"id": number % 3, "at": number})) for number in range(9)
            ]
            if together:
                await asyncio.sleep(0.01)
                ann.flow()
            answers = await asyncio.gather(*asking)
            await ann.call("$:ping")
            results.append((answers, json.loads(json.dumps(list(view.items())))))
    assert results[0] == results[1]
