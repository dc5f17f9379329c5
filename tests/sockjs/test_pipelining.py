"""Requests that come while an earlier one on their connection is answered: nothing of either stays behind.

uvicorn tells the application of the end of the last request on a connection only, so each of these stayed for ever, and
kept the process from ending.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest

from tests.servers import HTTPParser, Server, uvicorn_server
from tests.sockjs.client import Wire, handshake, head, request

APP = "tests.sockjs.pipelining_app:app"
NUMBERS = itertools.count()
OURS = "backsync_asgi.uvicorn:WebSocketProtocol"


def receiving(transport: str) -> bytes:
    """A request of a receiving transport, for a session of its own."""
    return head("POST", f"/backsync/server/session{next(NUMBERS)}/{transport}", [("Content-Length", "0")])


def upgrade() -> bytes:
    return head("GET", "/backsync/server/socket/websocket", handshake())


def info() -> bytes:
    return head("GET", "/backsync/info")


def tail() -> bytes:
    return head("GET", "/api/Note?since=")


# What is under way, and what comes behind it on the same connection. A poll's first answer is complete at once.
UNDER_WAY: Mapping[str, Callable[[], bytes]] = {
    "a stream": lambda: receiving("xhr_streaming"),
    "a poll": lambda: head("POST", "/backsync/server/polled/xhr", [("Content-Length", "0")]) * 2,
    "a followed model": tail,
}
BEHIND: Mapping[str, Callable[[], bytes]] = {
    "an upgrade": upgrade,
    "a request": info,
    "another stream": lambda: receiving("xhr_streaming"),
}


@contextmanager
def server(http: HTTPParser, ws: str) -> Iterator[Server]:
    with uvicorn_server(APP, http=http, options=["--ws", ws]) as running:
        yield running


def left(server: Server) -> str:
    with Wire(server.port) as wire:
        return request(wire, "GET", "/left").body().decode()


@pytest.mark.parametrize("ws", [OURS, "auto"])
def test_what_comes_behind_an_answer_leaves_nothing(http: HTTPParser, ws: str) -> None:
    with server(http, ws) as running:
        for under_way, behind in itertools.product(UNDER_WAY.values(), BEHIND.values()):
            leave_after(running, under_way(), behind())
        leave_after(running, receiving("xhr_streaming"), b"\0 no request\r\n\r\n")
        until = time.monotonic() + 10
        while (now := left(running)) != "0" and time.monotonic() < until:
            time.sleep(0.1)
        assert now == "0", "requests that are still answered"


def test_the_process_ends_while_they_are_under_way(http: HTTPParser) -> None:
    with server(http, OURS) as running:
        for under_way, behind in itertools.product(UNDER_WAY.values(), BEHIND.values()):
            leave_after(running, under_way(), behind())


def leave_after(server: Server, first: bytes, second: bytes) -> None:
    """Send both, the second one once the first is answered in part, then leave."""
    with Wire(server.port) as wire:
        wire.send(first)
        wire.read_until(b"\r\n\r\n")
        wire.send_as_taken(second)
