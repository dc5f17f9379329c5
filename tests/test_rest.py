"""REST beside the wire, as HTTP clients see it: one request each, and the tail; the models behind are real."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from backsync_asgi import Backsync, Context, Reject
from backsync_asgi.errors import CODES
from backsync_asgi.limits import Limits
from backsync_asgi.rest import STATUS
from backsync_asgi.sockjs import Settings, Timing
from backsync_asgi.stores import MemoryStore, Store
from tests.inprocess import DEADLINE, Event, connect, websocket_scope
from tests.servers import ROOT, Server, uvicorn_server


def mounted(sync: Backsync) -> Starlette:
    return Starlette(routes=[Mount("/api", app=sync.rest()), Mount("/backsync", app=sync)])


def client_of(sync: Backsync, **options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(mounted(sync)), base_url="http://testserver", **options)


def todos(**options: Any) -> Backsync:
    sync = Backsync()
    sync.model("Todo", store=MemoryStore(), **options)
    return sync


def store_of(sync: Backsync) -> Store:
    store = sync.model("Todo").store
    assert store is not None
    return store


def error(answer: httpx.Response, status: int, code: str) -> Mapping[str, Any]:
    """The error, which must be of that status and code."""
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    told: Mapping[str, Any] = answer.json()["error"]
    return told


class Tail:
    """A streaming GET, line by line."""

    def __init__(self, sync: Backsync, query: str) -> None:
        scope = websocket_scope("/api/Todo")
        del scope["subprotocols"]
        scope.update(type="http", scheme="http", method="GET", query_string=query.encode())
        self.status = 0
        self.ended = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()
        self.to_app: asyncio.Queue[Event] = asyncio.Queue()
        self._text: asyncio.Queue[str] = asyncio.Queue()
        self._waiting = ""
        self.task = asyncio.ensure_future(mounted(sync)(scope, self.to_app.get, self._send))

    async def _send(self, event: Event) -> None:
        if not self.reads.is_set():
            await self.reads.wait()
        if event["type"] == "http.response.start":
            self.status = event["status"]
        else:
            self._text.put_nowait(event["body"].decode())
            if not event.get("more_body", False):
                self.ended.set()
                self.to_app.put_nowait({"type": "http.disconnect"})

    async def line(self) -> Any:
        async with asyncio.timeout(DEADLINE):
            while "\n" not in self._waiting:
                self._waiting += await self._text.get()
        line, _, self._waiting = self._waiting.partition("\n")
        return json.loads(line)

    async def leave(self) -> None:
        self.to_app.put_nowait({"type": "http.disconnect"})
        async with asyncio.timeout(DEADLINE):
            await self.task


@asynccontextmanager
async def tail(sync: Backsync, query: str) -> AsyncIterator[Tail]:
    stream = Tail(sync, query)
    try:
        yield stream
    finally:
        await stream.leave()


async def test_a_record_is_created_read_replaced_patched_and_deleted() -> None:
    async with client_of(todos()) as http:
        created = await http.post("/api/Todo", json={"text": "tea"})
        assert created.status_code == 201
        where, id = created.headers["location"], created.json()["id"]
        assert where == f"/api/Todo/{id}"
        assert (await http.get(where)).json() == {"id": id, "text": "tea"}
        assert (await http.put(where, json={"id": id, "text": "milk"})).json() == {"id": id, "text": "milk"}
        assert (await http.patch(where, json={"done": True})).json() == {"id": id, "text": "milk", "done": True}
        assert (await http.patch(f"{where}?$unset=text", json={})).json() == {"id": id, "done": True}
        assert (await http.get("/api/Todo")).json() == [{"id": id, "done": True}]
        deleted = await http.delete(where)
        assert (deleted.status_code, deleted.content) == (204, b"")
        error(await http.get(where), 404, "not_found")


async def test_a_write_reaches_those_who_are_subscribed() -> None:
    sync = todos()
    async with connect(mounted(sync), "/backsync/websocket") as socket, client_of(sync) as http:
        await socket.call("Todo:subscribe")
        await http.put("/api/Todo/tea", json={"text": "tea"})
        assert await socket.receive() == {"event": "Todo:upsert", "data": {"id": "tea", "text": "tea"}, "seq": 1}
    assert not sync.connections


async def test_a_list_is_queried_ordered_and_paged() -> None:
    sync = todos()
    for number in range(5):
        await sync.model("Todo").upsert({"id": number, "at": number, "done": number % 2 == 1, "text": "7"})
    async with client_of(sync) as http:

        async def ids(query: str) -> list[int]:
            return [row["id"] for row in (await http.get(f"/api/Todo?{query}")).json()]

        assert await ids("done=true") == [1, 3]
        assert await ids('text="7"') == [0, 1, 2, 3, 4]
        assert await ids("text=7") == []
        assert await ids("$order=-at&$limit=2") == [4, 3]
        assert await ids('$order=-at&$limit=2&$after={"at":3,"id":3}') == [2, 1]
        assert await ids("id=2") == [2]
        error(await http.get("/api/Todo?$limit=0"), 422, "invalid")


@pytest.mark.parametrize("id", ["toString", "__proto__", "0", "a/b", "a b", "é", "100%", "?", "a%2Fb"])
async def test_ids_of_every_kind_are_found_by_their_url(id: str) -> None:
    sync = todos()
    async with client_of(sync) as http:
        created = await http.post("/api/Todo", json={"id": id, "n": 1})
        where = created.headers["location"]
        assert (await http.get(where)).json() == {"id": id, "n": 1}
        assert (await http.patch(where, json={"n": 2})).json() == {"id": id, "n": 2}
        assert (await http.delete(where)).status_code == 204
        assert await store_of(sync).read({}) == []


async def test_an_integer_id_is_found_by_its_text_and_stays_one() -> None:
    sync = todos()
    await sync.model("Todo").upsert({"id": 5, "n": 1})
    async with client_of(sync) as http:
        assert (await http.get("/api/Todo/5")).json() == {"id": 5, "n": 1}
        assert (await http.put("/api/Todo/5", json={"n": 2})).json() == {"id": 5, "n": 2}
        assert (await http.patch("/api/Todo/5", json={"id": 5, "n": 3})).json() == {"id": 5, "n": 3}
        error(await http.put("/api/Todo/5", json={"id": 6}), 422, "invalid")


async def test_handlers_guards_middleware_and_rules_are_those_of_the_wire() -> None:
    sync = Backsync()
    model = sync.model("Todo", store=MemoryStore())
    seen: list[Any] = []

    @sync.middleware
    async def note(ctx: Context, *args: Any, call_next: Any) -> Any:
        seen.append((ctx.method, ctx.user))
        return await call_next(ctx, *args)

    @sync.on("auth")
    def auth(ctx: Context, token: str | None) -> str | None:
        if token == "bad":
            raise Reject("unauthorized", "Who is that?")
        if token == "banned":
            raise Reject("forbidden")
        return token

    @model.on("upsert")
    async def upsert(ctx: Context, todo: dict[str, Any]) -> Any:
        if todo.get("text") == "fail":
            raise RuntimeError("as asked")
        if todo.get("text") == "odd":
            raise Reject("odd_text", "Odd.", {"field": "text"})
        return await ctx.store.upsert({**todo, "owner": ctx.user})

    @model.on("subscribe")
    async def subscribe(ctx: Context, query: Any) -> None:
        raise Reject("forbidden", "Not you.")

    @model.visible
    def visible(ctx: Context, record: Mapping[str, Any]) -> bool:
        return bool(record["owner"] == ctx.user)

    ann, bob = {"Authorization": "Bearer ann"}, {"Authorization": "bearer bob"}
    async with client_of(sync) as http:
        created = await http.put("/api/Todo/a", json={"text": "tea"}, headers=ann)
        assert created.json() == {"id": "a", "text": "tea", "owner": "ann"}
        assert ("upsert", "ann") in seen
        assert (await http.get("/api/Todo", headers=ann)).json() == [created.json()]
        assert (await http.get("/api/Todo", headers=bob)).json() == []
        error(await http.get("/api/Todo/a"), 404, "not_found")
        refused = await http.get("/api/Todo", headers={"Authorization": "Bearer bad"})
        assert error(refused, 401, "unauthorized")["message"] == "Who is that?"
        assert refused.headers["www-authenticate"] == "Bearer"
        error(await http.get("/api/Todo", headers={"Authorization": "Bearer banned"}), 403, "forbidden")
        error(await http.post("/api/Todo", json={"text": "fail"}), 500, "handler_error")
        odd = error(await http.post("/api/Todo", json={"text": "odd"}), 400, "odd_text")
        assert odd["details"] == {"field": "text"}
        error(await http.get("/api/Todo?since="), 403, "forbidden")


async def test_versions_are_etags() -> None:
    async with client_of(todos(version="rev")) as http:
        first = await http.put("/api/Todo/a", json={"n": 1})
        assert first.headers["etag"] == '"1"'
        assert (await http.put("/api/Todo/a", json={"n": 2}, headers={"If-Match": '"1"'})).headers["etag"] == '"2"'
        stale = error(await http.patch("/api/Todo/a", json={"n": 3}, headers={"If-Match": '"1"'}), 412, "conflict")
        assert stale["details"]["current"] == {"id": "a", "n": 2, "rev": 2}
        error(await http.put("/api/Todo/a", json={"n": 3, "rev": 1}), 409, "conflict")
        for condition in ({"If-Match": "*"}, {"If-None-Match": "*"}, {"If-Unmodified-Since": "today"}):
            error(await http.put("/api/Todo/a", json={}, headers=condition), 422, "invalid")
        unquoted = error(await http.delete("/api/Todo/a", headers={"If-Match": "2"}), 422, "invalid")
        assert unquoted["message"] == "Got If-Match: '2', expected the ETag of one version, with its quotes."
        for tag in ("*", f'"{2**70}"'):
            error(await http.put("/api/Todo/a", json={}, headers={"If-Match": tag}), 422, "invalid")
            error(await http.delete("/api/Todo/a", headers={"If-Match": tag}), 422, "invalid")
        stale = error(await http.delete("/api/Todo/a", headers={"If-Match": '"1"'}), 412, "conflict")
        assert stale["details"]["current"] == {"id": "a", "n": 2, "rev": 2}
        assert (await http.get("/api/Todo/a")).headers["etag"] == '"2"'
        assert (await http.delete("/api/Todo/a", headers={"If-Match": '"2"'})).status_code == 204
        assert (await http.delete("/api/Todo/a", headers={"If-Match": '"2"'})).status_code == 204, "gone is gone"


async def test_what_is_no_request_to_a_record_is_refused() -> None:
    deep = "[" * 40 + "]" * 40
    kind = {"Content-Type": "application/json"}
    sync = todos()
    async with client_of(sync) as http:
        error(await http.get("/api/Nothing"), 404, "unknown_model")
        error(await http.get("/api/$"), 404, "unknown_model")
        error(await http.get("/api/Todo/a/b"), 404, "not_found")
        wrong = await http.put("/api/Todo", json={})
        error(wrong, 405, "unknown_method")
        assert wrong.headers["allow"] == "GET, HEAD, POST"
        error(await http.post("/api/Todo", content="a=b"), 415, "invalid")
        error(await http.post("/api/Todo", content="{", headers=kind), 400, "bad_message")
        error(await http.post("/api/Todo", content="[]", headers=kind), 422, "invalid")
        error(await http.post("/api/Todo", content=f'{{"a":{deep}}}', headers=kind), 400, "bad_message")
        error(await http.post("/api/Todo", json={"a": "x" * 70_000}), 413, "too_large")
        error(await http.get("/api/Todo?since=nonsense"), 422, "invalid")
        error(await http.patch("/api/Todo/none", json={"n": 1}), 404, "not_found")
        assert (await http.head("/api/Todo")).content == b""
    assert await store_of(sync).read({}) == []


async def test_pages_of_other_origins_are_refused_unless_they_are_allowed() -> None:
    foreign = {"Origin": "https://elsewhere.example"}
    async with client_of(todos()) as http:
        error(await http.post("/api/Todo", json={}, headers=foreign), 403, "forbidden")
        error(await http.delete("/api/Todo/a", headers=foreign), 403, "forbidden")
        assert (await http.post("/api/Todo", json={}, headers={"Origin": "http://testserver"})).status_code == 201
    sync = Backsync(allowed_origins=["https://elsewhere.example"])
    sync.model("Todo", store=MemoryStore())
    async with client_of(sync) as http:
        answer = await http.post("/api/Todo", json={}, headers=foreign)
        assert answer.headers["access-control-allow-origin"] == "https://elsewhere.example"
        assert answer.headers["access-control-expose-headers"] == "ETag, Location, Retry-After", "for its scripts"
        asked = await http.options("/api/Todo/a", headers={**foreign, "Access-Control-Request-Headers": "content-type"})
        assert asked.status_code == 204
        assert "PATCH" in asked.headers["access-control-allow-methods"]
        assert asked.headers["access-control-allow-headers"] == "content-type"


async def test_the_rate_of_a_host_is_limited() -> None:
    sync = Backsync(limits=Limits(rate=0.5, burst=2))
    sync.model("Todo", store=MemoryStore())
    async with client_of(sync) as http:
        answers = [await http.get("/api/Todo") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].headers["retry-after"] == "2"


async def test_a_server_that_goes_away_says_when_to_come_back() -> None:
    sync = todos()
    async with client_of(sync) as http:
        await http.get("/api/Todo")
        sync.drain()
        answer = await http.get("/api/Todo")
    error(answer, 503, "unavailable")
    assert answer.headers["retry-after"] == "1"


async def test_a_model_without_a_store_answers_by_its_handlers() -> None:
    sync = Backsync()
    model = sync.model("Todo")

    @model.on("read")
    async def read(ctx: Context, query: dict[str, Any]) -> Any:
        return [{"id": "a"}] if query.get("id") in (None, "a") else []

    async with client_of(sync) as http:
        assert (await http.get("/api/Todo")).json() == [{"id": "a"}]
        assert (await http.get("/api/Todo/a")).json() == {"id": "a"}
        error(await http.get("/api/Todo/b"), 404, "not_found")
        error(await http.delete("/api/Todo/a"), 405, "unknown_method")


async def test_an_open_hook_that_fails_or_closes_lets_nothing_through() -> None:
    sync = todos()

    @sync.on("open")
    async def opened(ctx: Context) -> None:
        if ctx.request.headers.get("x-banned"):
            raise Reject("banned", "Not here.")
        raise RuntimeError("as asked")

    async with client_of(sync) as http:
        assert error(await http.post("/api/Todo", json={}, headers={"x-banned": "1"}), 403, "forbidden")["message"] == (
            "Not here."
        )
        error(await http.post("/api/Todo", json={}), 500, "handler_error")
        error(await http.get("/api/Todo?since="), 500, "handler_error")
    assert await store_of(sync).read({}) == []


async def test_a_body_that_breaks_off_or_comes_too_slowly_is_not_applied() -> None:
    sync = Backsync(sockjs=Settings(body_deadline=0.01))
    sync.model("Todo", store=MemoryStore())
    scope = websocket_scope("/Todo", [(b"content-type", b"application/json")])
    scope.update(type="http", scheme="http", method="POST")
    statuses: list[int] = []

    async def send(event: Event) -> None:
        if event["type"] == "http.response.start":
            statuses.append(event["status"])

    for last in ({"type": "http.disconnect"}, None):
        events: asyncio.Queue[Event] = asyncio.Queue()
        events.put_nowait({"type": "http.request", "body": b'{"n": 1}', "more_body": True})
        if last is not None:
            events.put_nowait(last)
        await sync.rest()(scope, events.get, send)
    assert statuses == [400, 408]
    assert await store_of(sync).read({}) == []


async def test_tails_count_as_sessions() -> None:
    sync = Backsync(sockjs=Settings(session_limit=1))
    sync.model("Todo", store=MemoryStore())
    async with tail(sync, "since=") as stream, client_of(sync) as http:
        await stream.line()
        error(await http.get("/api/Todo?since="), 503, "unavailable")
        assert (await http.head("/api/Todo?since=")).status_code == 405


async def test_a_tail_begins_with_a_snapshot_and_goes_on_with_the_changes() -> None:
    sync = todos()
    model = sync.model("Todo")
    await model.upsert({"id": "a"})
    async with tail(sync, "since=") as stream:
        first = await stream.line()
        assert (stream.status, first["mode"], first["records"]) == (200, "snapshot", [{"id": "a"}])
        await model.upsert({"id": "b"})
        assert await stream.line() == {"event": "Todo:upsert", "data": {"id": "b"}, "seq": first["seq"] + 1}
    assert not sync.connections
    async with tail(sync, f"since={first['epoch']}:{first['seq']}") as stream:
        assert (await stream.line())["mode"] == "resume"
        assert (await stream.line())["data"] == {"id": "b"}


async def test_a_tail_of_a_keyed_model_follows_one_channel() -> None:
    sync = todos(key="room")
    async with tail(sync, "since=&room=lobby") as stream:
        assert (await stream.line())["key"] == {"room": "lobby"}
        await sync.model("Todo").upsert({"id": "a", "room": "attic"})
        await sync.model("Todo").upsert({"id": "b", "room": "lobby"})
        assert (await stream.line())["data"] == {"id": "b", "room": "lobby"}


async def test_a_tail_that_is_read_slowly_gets_the_newest_state() -> None:
    sync = todos()
    async with tail(sync, "since=") as stream:
        await stream.line()
        stream.reads.clear()
        for number in range(100):
            await sync.model("Todo").upsert({"id": "a", "n": number})
            await asyncio.sleep(0)
        stream.reads.set()
        seen = [(await stream.line())["data"]["n"]]
        while seen[-1] != 99:
            seen.append((await stream.line())["data"]["n"])
        assert len(seen) < 10


async def test_a_tail_ends_after_its_time_and_the_next_one_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kind: a client that is gone without a word. HTTP cannot tell it from a silent one, so its request must end."""
    monkeypatch.setattr("backsync_asgi.sockjs.server.SWEEP", 0.01)
    sync = Backsync(sockjs=Settings(timing=Timing(stream_duration=0.05)))
    model = sync.model("Todo", store=MemoryStore())
    async with tail(sync, "since=") as stream:
        first = await stream.line()
        async with asyncio.timeout(DEADLINE):
            await stream.ended.wait()
    assert not sync.connections
    await model.upsert({"id": "a"})
    async with tail(sync, f"since={first['epoch']}:{first['seq']}") as stream:
        assert (await stream.line())["mode"] == "resume"
        assert (await stream.line())["data"] == {"id": "a"}


async def test_a_tail_ends_when_the_server_drains() -> None:
    sync = todos()
    async with tail(sync, "since=") as stream:
        await stream.line()
        sync.drain()
        async with asyncio.timeout(DEADLINE):
            await stream.ended.wait()
        assert (await stream.line())["event"] == "$:bye"


def test_each_code_has_a_status() -> None:
    assert set(STATUS) == set(CODES)


def test_the_messages_of_2012_have_no_rest() -> None:
    with pytest.raises(ValueError, match="compat"):
        Backsync(compat="2012").rest()


# On real sockets


@pytest.fixture
def server() -> Iterator[Server]:
    with uvicorn_server("tests.rest_app:app") as running:
        yield running


def test_the_rest_sync_of_backbone_works_on_the_records(server: Server) -> None:
    modules = ROOT / "client" / "node_modules"
    node = shutil.which("node")
    assert node is not None, "Node is missing; see `make setup`."
    command = [node, str(ROOT / "tests" / "rest_backbone.mjs"), str(modules), f"{server.url}/api/Todo"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        [],
        [{"text": "tea", "rev": 1}],
        [{"text": "milk", "rev": 2}],
        [{"text": "milk", "rev": 3, "done": True}],
        True,
        409,
        [],
    ]


async def test_a_tail_on_a_socket_has_heartbeats_and_ends_with_the_server(server: Server) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=DEADLINE) as http:
        async with http.stream("GET", "/api/Todo?since=") as answer:
            assert answer.headers["content-type"] == "application/x-ndjson"
            lines = answer.aiter_lines()
            assert json.loads(await anext(lines))["records"] == []
            assert await anext(lines) == ""  # a heartbeat
            await http.put("/api/Todo/a", json={"n": 1})
            while not (line := await anext(lines)):
                pass
            assert json.loads(line)["data"] == {"id": "a", "n": 1, "rev": 1}
            await asyncio.to_thread(server.stop)
            said = [json.loads(line)["event"] async for line in lines if line]
    assert said == ["$:bye"]


# What no client of good will sends


@pytest.mark.parametrize("depth", [29, 31, 32, 33, 200, 300, 1_100])
@pytest.mark.parametrize("name", ["$after", "text", "$order", "since=&room"])
@pytest.mark.parametrize("brackets", ["[]", ('{"a":', "}")], ids=["arrays", "objects"])
async def test_a_parameter_that_is_nested_too_deep_is_invalid(depth: int, name: str, brackets: Any) -> None:
    """A query that cannot be carried out is the client's fault, however it is shaped: 422, and nothing in the log."""
    opening, closing = brackets
    value = opening * depth + ("1" if closing == "}" else "") + closing * depth
    if depth == 29 and name == "since=&room":
        return  # a subscription, which would go on
    async with client_of(todos()) as http:
        answer = await http.get(f"/api/Todo?{name}={quote(value)}")
    if depth == 29 and name == "text":
        assert answer.json() == []
    else:
        error(answer, 422, "invalid")


async def test_a_query_has_so_many_fields() -> None:
    """The cost of a query is bounded, over the wire and over REST, and the refusal says so."""
    sync = todos()
    store = store_of(sync)
    await store.upsert({"id": 1})
    many = {f"f{number}": number for number in range(65)}
    async with client_of(sync) as http, connect(sync) as client:
        assert (
            "65 fields, expected at most 64"
            in error(await http.get("/api/Todo", params=many), 422, "invalid")["message"]
        )
        for event in ("Todo:read", "Todo:subscribe", "Todo:unsubscribe"):
            assert (await client.error(event, many))["code"] == "invalid"
        del many["f0"]
        assert (await http.get("/api/Todo", params=many)).json() == []
        assert await client.call("Todo:read", many) == []


async def test_a_cache_buster_is_no_filter() -> None:
    """jQuery's `cache: false` adds `_`, with which no record would match."""
    sync = todos()
    await store_of(sync).upsert({"id": 1, "done": True})
    async with client_of(sync) as http:
        assert (await http.get("/api/Todo?_=1699999999999")).json() == [{"id": 1, "done": True}]
        assert (await http.get("/api/Todo?done=true&_=1")).json() == [{"id": 1, "done": True}]
        assert (await http.get("/api/Todo/1?_=1")).json() == {"id": 1, "done": True}
        assert (await http.patch("/api/Todo/1?_=1", json={"done": False})).json() == {"id": 1, "done": False}
    tail = Tail(sync, "since=&_=1")
    assert (await tail.line())["mode"] == "snapshot"
    await tail.leave()


async def test_a_parameter_that_is_given_twice_is_invalid() -> None:
    async with client_of(todos()) as http:
        told = error(await http.get("/api/Todo?done=true&done=false"), 422, "invalid")
    assert told["details"] == [{"field": "done", "message": "is given twice"}]


@pytest.mark.parametrize("name", ["If-Match", "Content-Type", "Authorization", "Origin"])
async def test_a_header_that_counts_once_is_not_taken_from_several(name: str) -> None:
    """Of two conditions, types or tokens none may be passed over."""
    sync = todos(version="rev")
    await store_of(sync).upsert({"id": 1})
    values = {"If-Match": ('"9"', '"1"'), "Content-Type": ("text/plain", "application/json")}.get(name, ("a", "b"))
    headers = [(name, value) for value in values]
    if name != "Content-Type":
        headers.append(("Content-Type", "application/json"))
    async with client_of(sync) as http:
        told = error(await http.put("/api/Todo/1", content=b'{"x": 1}', headers=headers), 400, "bad_message")
        assert "expected one" in told["message"]
    assert await store_of(sync).read({}) == [{"id": 1, "rev": 1}]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([(b"host", b"testserver"), *((b"x%d" % number, b"y") for number in range(10_000))], 431),
        ([(b"host", b"testserver"), (b"x", b"y" * 70_000)], 431),
        ([], 400),
        ([(b"host", b"a"), (b"host", b"b")], 400),
        ([(b"host", b"a b")], 400),
    ],
    ids=["many", "large", "no host", "two hosts", "no name"],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
async def test_headers_have_the_limits_of_sessions(headers: Any, status: int, method: str) -> None:
    """What a session's transports refuse, REST refuses: it is the same server."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(event: Any) -> None:
        sent.append(event)

    scope = {"type": "http", "http_version": "1.1", "method": method, "path": "/Todo", "headers": headers}
    await todos().rest()(scope, receive, send)
    assert sent[0]["status"] == status
    assert json.loads(sent[1]["body"])["error"]["code"] == ("too_large" if status == 431 else "bad_message")


@pytest.mark.parametrize("length", [b"300000000", b"9" * 19, b"9" * 5_000, b"-1", b"0" * 5_000 + b"65537"])
@pytest.mark.parametrize(("method", "path"), [("POST", "/Todo"), ("PUT", "/Todo/1"), ("PATCH", "/Todo/1")])
async def test_a_body_that_is_announced_too_large_is_not_read(length: bytes, method: str, path: str) -> None:
    """What a session's uploads refuse at once, REST refuses at once, and ends the connection that it does not read."""
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("it is read")

    async def send(event: Any) -> None:
        sent.append(event)

    headers = [(b"host", b"testserver"), (b"content-type", b"application/json"), (b"content-length", length)]
    scope = {"type": "http", "http_version": "1.1", "method": method, "path": path, "headers": headers}
    await todos().rest()(scope, receive, send)
    assert sent[0]["status"] == 413
    assert (b"connection", b"close") in sent[0]["headers"]
    assert json.loads(sent[1]["body"])["error"]["details"] == {"limit": 65_536}
