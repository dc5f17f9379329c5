"""The same conversation in every place where the app can stand: alone, mounted, inside FastAPI, under a root path."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from backsync_asgi import Backsync
from backsync_asgi.app import STATIC
from backsync_asgi.stores import MemoryStore
from tests.servers import Server
from tests.sockjs.client import TEXT
from tests.sockjs.speech import XHR, XHR_STREAMING, Conversation, Service, Transport

# The apps, as uvicorn imports them in a process of its own.

alone = Backsync()
alone.model("ChatMessage", store=MemoryStore())

at_root = Starlette(routes=[Mount("/", app=alone)])
at_prefix = Starlette(routes=[Mount("/backsync", app=alone)], lifespan=alone.lifespan)
nested = Starlette(routes=[Mount("/outer", routes=[Mount("/inner", app=alone)])])

in_fastapi = FastAPI()
in_fastapi.mount("/live", alone)


async def behind_proxy(scope: Scope, receive: Receive, send: Send) -> None:
    """A root path that is set without touching the path, as middlewares for `X-Forwarded-Prefix` do."""
    if scope["type"] != "lifespan":
        scope = {**scope, "root_path": "/proxy"}
    await in_fastapi(scope, receive, send)


@dataclass(frozen=True)
class Place:
    """Where the app stands, and the prefix at which a client's requests arrive at the server."""

    name: str
    app: str
    prefix: str
    options: tuple[str, ...] = ()


ROOT_PATH = ("--root-path", "/proxy")
PLACES = [
    Place("alone", "alone", ""),
    Place("mounted at /", "at_root", ""),
    Place("mounted at a prefix", "at_prefix", "/backsync"),
    Place("mounted in a mount", "nested", "/outer/inner"),
    Place("inside FastAPI", "in_fastapi", "/live"),
    Place("alone under uvicorn's root path", "alone", "", ROOT_PATH),
    Place("mounted under uvicorn's root path", "at_prefix", "/backsync", ROOT_PATH),
    Place("under a middleware's root path, which the proxy strips", "behind_proxy", "/live"),
    Place("under a middleware's root path, which the proxy leaves", "behind_proxy", "/proxy/live"),
]


@pytest.fixture(params=PLACES, ids=lambda place: place.name)
def service(request: pytest.FixtureRequest, shared_server: Callable[..., Server]) -> Iterator[Service]:
    place: Place = request.param
    server = shared_server(f"tests.test_mounting:{place.app}", options=place.options)
    with ExitStack() as closing:
        yield Service(server.port, place.prefix, closing)


def ask(conversation: Conversation, event: str, data: Any = None) -> Any:
    """Send a request; returns its reply's data. Pushes that come before it are a failure."""
    conversation.send(json.dumps({"id": 1, "event": event, "data": data}))
    reply = json.loads(conversation.receive(1)[0])
    assert reply.get("id") == 1, reply
    assert "error" not in reply, reply
    return reply["data"]


def test_the_greeting(service: Service) -> None:
    response = service.request("GET", "/")
    assert (response.status, response.body()) == (200, b"Welcome to SockJS!\n")


def test_info(service: Service) -> None:
    response = service.request("GET", "/info")
    assert response.status == 200
    assert json.loads(response.body())["websocket"] is True


def test_the_client_is_served_or_told_how_to_be_built(service: Service) -> None:
    for name in ("backsync.js", "backsync.mjs", "sockjs.js"):
        response = service.request("GET", f"/{name}")
        body = response.body()
        if (STATIC / name).is_file():
            assert (response.status, body) == (200, (STATIC / name).read_bytes())
            assert "javascript" in (response.header("content-type") or "")
        else:
            assert response.status == 404
            assert b"make client" in body


def test_what_is_not_there_is_not_found(service: Service) -> None:
    for path in ("/none", "/backsync.txt", "/a/b/c", "/a.b/c/xhr", "/info/"):
        assert service.request("GET", path).status == 404


def test_a_raw_websocket(service: Service) -> None:
    socket = service.websocket("/websocket")
    socket.send('{"id":1,"event":"$:ping"}')
    assert json.loads(socket.receive()) == {"id": 1, "event": "$:ping", "data": {}}


def test_a_page_of_the_same_origin_may_connect_and_another_may_not(service: Service) -> None:
    host = ("Host", f"localhost:{service.port}")
    own = service.websocket("/websocket", headers=[host, ("Origin", f"http://localhost:{service.port}")])
    own.send_frame(TEXT, b'{"id":1,"event":"$:ping"}')
    assert json.loads(own.receive())["data"] == {}
    response = service.request("POST", "/0/abc/xhr", headers=[host, ("Origin", "http://evil.example")])
    assert response.status == 403


@pytest.mark.parametrize("way", ["websocket", "raw", XHR, XHR_STREAMING], ids=str)
def test_a_chat_between_two(service: Service, way: str | Transport) -> None:
    author, other = service.converse(way), service.converse("websocket")
    for conversation in (author, other):
        assert ask(conversation, "ChatMessage:subscribe")["mode"] == "snapshot"
    record = ask(author, "ChatMessage:upsert", {"text": f"héllo \u2028 {way}"})
    for conversation in (author, other):
        push = json.loads(conversation.receive(1)[0])
        assert (push["event"], push["data"]) == ("ChatMessage:upsert", record)
    assert record in ask(other, "ChatMessage:read")
    assert ask(author, "ChatMessage:delete", {"id": record["id"]}) == {}
    assert json.loads(other.receive(1)[0])["event"] == "ChatMessage:delete"


def test_the_prefix_without_a_slash_leads_to_the_greeting(service: Service) -> None:
    wire = service.wire()
    response = service.request("GET", "" if service.prefix else "/", on=wire)
    if response.status == 307:  # Starlette's own answer at a mount
        response.body()
        assert (response.header("location") or "").endswith("/")
    else:
        assert response.body() == b"Welcome to SockJS!\n"
