"""Host names: what a page of another site sends, as soon as its name leads to this machine, is refused.

The kind of fault: what a client says of the server, such as Host, is taken for the server's own word.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest

from backsync_asgi import Backsync
from backsync_asgi.hosts import MAX_NAMED, Hosts, is_loopback, name_of
from backsync_asgi.stores import MemoryStore
from tests.inprocess import Closed, Socket, fetch, websocket_scope

ALLOWED = (
    "localhost",
    "localhost:8000",
    "LOCALHOST:8000",
    "localhost.:8000",
    "app.localhost",
    "127.0.0.1:8000",
    "127.1.2.3",
    "[::1]:8000",
    "[0:0:0:0:0:0:0:1]",
    "[::1]",
    "app.example.com",
    "app.example.com.:443",
    "a.b.example.org",
)
REFUSED = (
    "",
    ".",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "evil.example#localhost",
    "localhost@evil.example",
    "evil.example,localhost",
    "localhost localhost",
    "localhost\x00",
    "localhost:80:80",
    "localhost:x",
    "localhost..",
    "::1",
    "[::1",
    "[::2]",
    "0.0.0.0:8000",
    "192.168.0.1",
    "2130706433",
    "example.org",
    "xexample.org",
    "notlocalhost",
    "appexample.com",
    "*.example.org",
    "ⓛocalhost",
    "*",
)


def app() -> Hosts:
    sync = Backsync()
    sync.model("Note", store=MemoryStore())
    return Hosts(sync, ["app.example.com", "*.example.org", "2001:db8::1"])


def with_hosts(scope: Any, *hosts: str, more: tuple[tuple[bytes, bytes], ...] = ()) -> Any:
    others = [pair for pair in scope["headers"] if pair[0] != b"host"]
    scope["headers"] = [*others, *more, *((b"host", host.encode()) for host in hosts)]
    return scope


@pytest.mark.parametrize(
    ("hosts", "allowed"),
    [
        *(((host,), True) for host in ALLOWED),
        *(((host,), False) for host in REFUSED),
        ((), False),
        (("localhost", "localhost"), False),
        (("localhost", "evil.example"), False),
        (("[2001:DB8:0::1]:8000",), True),
    ],
)
@pytest.mark.parametrize("answers", [True, False], ids=["with an answer", "plain"])
async def test_a_websocket_comes_to_a_name_of_the_server(hosts: tuple[str, ...], allowed: bool, answers: bool) -> None:
    scope = with_hosts(websocket_scope("/websocket"), *hosts)
    sent: list[Any] = []
    if answers:
        scope["extensions"] = {"websocket.http.response": {}}

        events = [{"type": "websocket.connect"}, *2 * [{"type": "websocket.disconnect", "code": 1006}]]

        async def receive() -> Any:
            return events.pop(0)

        async def send(event: Any) -> None:
            sent.append(event)

        if not allowed:
            await app()(scope, receive, send)
            assert not events  # uvicorn logs an error for an application that returns before
            assert sent[0]["status"] == 400
            assert b"--allow-host" in sent[1]["body"]
        return
    socket = Socket(app(), scope)
    if allowed:
        await socket.call("Note:read")
        await socket.leave(1000)
    else:
        with pytest.raises(Closed) as closed:
            await socket.text()
        assert not closed.value.accepted


async def status_of(served: Hosts, path: str, host: bytes, *more: tuple[bytes, bytes]) -> int:
    """The status of a GET with one Host header."""

    async def with_host(scope: Any, receive: Any, send: Any) -> None:
        scope["headers"] = [(b"host", host), *more]
        await served(scope, receive, send)

    return (await fetch(with_host, path)).status


@pytest.mark.parametrize("path", ["/info", "/backsync.mjs", "/abc/def/xhr", "/"])
@pytest.mark.parametrize("origin", [(), ((b"origin", b"http://evil.example:8000"),)])
async def test_so_does_each_http_request(path: str, origin: Any) -> None:
    assert await status_of(app(), path, b"evil.example:8000", *origin) == 400
    assert await status_of(app(), path, b"evil.example", (b"x-forwarded-host", b"localhost")) == 400
    assert await status_of(app(), path, b"localhost:8000") != 400


async def test_a_refused_name_is_logged_once_and_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    served = app()
    for _ in range(3):
        assert await status_of(served, "/info", b"evil\r\nERROR:root:admin logged in") == 400
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1
    assert "\n" not in lines[0]
    for number in range(2 * MAX_NAMED):
        assert await status_of(served, "/info", b"evil%d.example" % number) == 400
    assert len([record for record in caplog.records if "Refused" in record.getMessage()]) == MAX_NAMED


@pytest.mark.parametrize("name", ["http://app.example", "app.example:80", "", "a b", "*", "x.*.y", "*x.y", "a/b"])
def test_what_is_no_host_name_is_refused_at_the_start(name: str) -> None:
    with pytest.raises(ValueError, match="expected a host name"):
        name_of(name)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((host, True) for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9")),
        *((host, False) for host in ("0.0.0.0", "::", "", "192.0.2.1")),
    ],
)
def test_loopback_is_what_this_machine_alone_reaches(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
