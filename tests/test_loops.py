"""Several event loops in one process: at once, each in its thread, or one after the other."""

from __future__ import annotations

import asyncio

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient, WebSocketTestSession

from backsync_asgi import Backsync
from backsync_asgi.sockjs import loops
from backsync_asgi.stores import MemoryStore
from backsync_asgi.testing import connect


@pytest.fixture
def app() -> Starlette:
    sync = Backsync()
    sync.model("Todo", store=MemoryStore())
    return Starlette(routes=[Mount("/backsync", app=sync), Mount("/api", app=sync.rest())])


def ask(client: WebSocketTestSession, method: str, data: object = None) -> None:
    client.send_json({"id": 1, "event": f"Todo:{method}", "data": data})


def test_clients_on_loops_of_their_own_see_each_other(app: Starlette) -> None:
    """A second loop must not take the models from the one that serves: outside of `with`, each session has its own."""
    client = TestClient(app)
    with client.websocket_connect("/backsync/websocket") as ann:
        ask(ann, "subscribe")
        assert ann.receive_json()["data"]["records"] == []
        with client.websocket_connect("/backsync/websocket") as bob:
            ask(bob, "upsert", {"id": "bob"})
            assert bob.receive_json()["data"] == ann.receive_json()["data"] == {"id": "bob"}
        assert client.put("/api/Todo/rest", json={}).status_code == 200
        assert ann.receive_json()["data"] == {"id": "rest"}
        assert client.get("/backsync/").text == "Welcome to SockJS!\n"
        ask(ann, "upsert", {"id": "ann"})
        assert [ann.receive_json()["data"] for _ in range(2)] == [{"id": "ann"}] * 2
    assert [todo["id"] for todo in client.get("/api/Todo").json()] == ["bob", "rest", "ann"]


def test_a_loop_that_ends_ends_what_it_served_for_others(app: Starlette) -> None:
    client = TestClient(app)
    ann = client.websocket_connect("/backsync/websocket")
    ann.__enter__()
    with client.websocket_connect("/backsync/websocket") as bob:
        ask(bob, "read")
        assert bob.receive_json()["data"] == []
        ann.__exit__(None, None, None)
    assert client.get("/api/Todo").json() == []


async def test_a_loop_that_waits_for_the_other_one_is_told_so(app: Starlette, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be answered fails with the remedy, and harms nobody else."""
    monkeypatch.setattr(loops, "BEGINS_WITHIN", 0.05)
    async with connect(app, "/backsync") as ann:
        seen = await ann.subscribe("Todo")
        for path in ("/api/Todo", "/backsync/info"):
            with pytest.raises(RuntimeError, match="call that in a thread"):
                TestClient(app).get(path)
        monkeypatch.undo()
        await asyncio.to_thread(TestClient(app).put, "/api/Todo/a", json={})
        await ann.until(lambda: seen == {"a": {"id": "a"}})


async def test_a_second_lifespan_is_refused_while_the_first_one_runs() -> None:
    sync = Backsync()
    async with sync.lifespan():

        def start() -> None:
            with TestClient(Starlette(lifespan=sync.lifespan)):
                raise AssertionError("it has started")

        with pytest.raises(RuntimeError, match="runs on another event loop"):
            await asyncio.to_thread(start)
