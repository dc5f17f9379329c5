"""ASGI scopes with the required keys only: a server may leave all others out, or say None (daphne has no `scheme`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.websockets import WebSocket

from backsync_asgi import Backsync, Context
from backsync_asgi.sockjs import SockJS
from backsync_asgi.stores import MemoryStore
from tests.inprocess import ASGIApp, Scope, connect, fetch

HOST = "testserver"  # of the in-process client
REQUIRED = {"type", "asgi", "http_version", "method", "path", "headers"}  # HTTP's; a WebSocket needs still less
# All but `root_path`, which Starlette's own Mount needs as text.
# All but `root_path`, which Starlette's own Mount needs as text.
OPTIONAL = [
    "scheme",
    "raw_path",
    "query_string",
    "client",
    "server",
    "subprotocols",
    "extensions",
    "state",
]


def required_only(scope: Scope) -> Scope:
    keys = REQUIRED if scope["type"] == "http" else {"type", "asgi", "path", "headers"}
    return {key: value for key, value in scope.items() if key in keys}


def all_none(scope: Scope) -> Scope:
    return {**scope, **dict.fromkeys(OPTIONAL)}


def odd_headers(scope: Scope) -> Scope:
    """Any iterable of pairs will do, also one that can be read once."""
    return {**scope, "headers": (list(pair) for pair in list(scope["headers"]))}


SERVERS: Mapping[str, Callable[[Scope], Scope]] = {
    "required keys": required_only,
    "None for what is optional": all_none,
    "headers that can be read once": odd_headers,
}


@pytest.fixture(params=list(SERVERS.values()), ids=list(SERVERS))
def behind(request: pytest.FixtureRequest) -> Callable[[ASGIApp], ASGIApp]:
    """The app behind a server whose scopes are like that."""

    def wrap(app: ASGIApp) -> ASGIApp:
        async def changed(scope: Scope, receive: Any, send: Any) -> None:
            await app(request.param(scope), receive, send)

        return changed

    return wrap


@pytest.fixture
def sync() -> Backsync:
    sync = Backsync()
    model = sync.model("Note", store=MemoryStore())

    @model.on("where")
    async def where(ctx: Context, data: Any) -> list[Any]:
        request = ctx.request
        return [request.url.path, dict(request.query_params), request.headers.get("host"), request.cookies]

    return sync


@pytest.mark.parametrize("mount", ["", "/backsync"])
async def test_a_websocket_is_served(behind: Callable[[ASGIApp], ASGIApp], sync: Backsync, mount: str) -> None:
    app = behind(Starlette(routes=[Mount(mount, app=sync)]) if mount else sync)
    async with connect(app, f"{mount}/websocket") as socket:
        assert await socket.call("Note:upsert", {"id": 1}) == {"id": 1}
        assert await socket.call("Note:where") == [f"{mount}/websocket", {}, HOST, {}]


@pytest.mark.parametrize("path", ["/Note?since=", "/Note", "/Note/1"])
async def test_rest_is_served(behind: Callable[[ASGIApp], ASGIApp], sync: Backsync, path: str) -> None:
    app = behind(sync.rest())
    created = await fetch(app, "/Note", "POST", b'{"id": 1}', [(b"content-type", b"application/json")])
    assert created.status == 201
    read = await fetch(app, path.partition("?")[0])
    assert json.loads(read.body) in ([{"id": 1}], {"id": 1})


@pytest.mark.parametrize("mount", ["", "/backsync"])
async def test_http_transports_and_files_are_served(
    behind: Callable[[ASGIApp], ASGIApp], sync: Backsync, mount: str
) -> None:
    app = behind(Starlette(routes=[Mount(mount, app=sync)]) if mount else sync)
    assert (await fetch(app, f"{mount}/info")).status == 200
    opened = await fetch(app, f"{mount}/server/session/xhr", "POST")
    assert opened.body == b"o\n"
    sent = await fetch(app, f"{mount}/server/session/xhr_send", "POST", b'["{}"]')
    assert sent.status == 204
    assert (await fetch(app, f"{mount}/backsync.js")).status in (200, 404)
    assert (await fetch(app, f"{mount}/server/session/jsonp")).status == 404


async def test_an_application_behind_sockjs_gets_a_whole_scope(behind: Callable[[ASGIApp], ASGIApp]) -> None:
    seen: dict[str, Any] = {}

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        seen.update(scope)
        socket = WebSocket(scope, receive, send)
        await socket.accept()
        await socket.send_text(f"{socket.url.path} {dict(socket.query_params)} {socket.headers.get('host')}")
        await socket.close()

    app = behind(SockJS(echo))
    async with connect(app, "/websocket") as socket:
        assert await socket.text() == "/ {} testserver"
    assert seen["scheme"] == "ws"
    assert seen["subprotocols"] == []


async def test_a_refused_origin_is_refused(behind: Callable[[ASGIApp], ASGIApp], sync: Backsync) -> None:
    headers = [(b"origin", b"http://evil.example")]
    async with connect(behind(sync), "/websocket", headers) as socket:
        assert await socket.close_code() == 1008
    assert (await fetch(behind(sync.rest()), "/Note", headers=headers)).status == 403
