"""The server's own affairs, in process: what one session does must not reach the others."""

from __future__ import annotations

import asyncio
import errno
import logging
import re
from typing import Any, cast

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from backsync_asgi import Backsync
from backsync_asgi.sockjs import SockJS
from backsync_asgi.sockjs.server import Server, Settings, check_files
from backsync_asgi.sockjs.session import Session
from backsync_asgi.stores import MemoryStore
from tests.inprocess import connect, fetch, websocket_scope
from tests.sockjs.test_session import FakeEndpoint, FakeReceiver


class Endpoint(FakeEndpoint):
    """An application's end that counts its ticks, and fails at each of them or not."""

    ticks = 0
    fails = False

    def tick(self, now: float) -> bool:
        self.ticks += 1
        if self.fails:
            raise TypeError("a bug")
        return False


async def test_a_session_that_fails_does_not_end_the_sweep(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(lambda session, scope: cast(Any, None), Settings())
    server.start()
    endpoints = []
    for fails in (False, True, True, False):
        session = Session(server.settings.timing)
        session.endpoint = endpoint = Endpoint(session)
        endpoint.fails = fails
        session.accept()
        session.attach(FakeReceiver())
        server._sockets.add(session)
        endpoints.append(endpoint)
    with caplog.at_level(logging.ERROR, "backsync.sockjs"):
        for count in (1, 2):
            server._sweep()
            assert [endpoint.ticks for endpoint in endpoints] == [count] * 4
            assert server._sweeping is not None, "it goes on"
            server._sweeping.cancel()
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["a bug"] * 4


@pytest.mark.parametrize(
    "length",
    [b"9" * 5_000, b"1" + b"0" * 30, b"-1", b"1_0", b"\xb2"],
    ids=["long", "large", "negative", "odd", "digit"],
)
async def test_a_length_that_is_no_number_of_bytes_is_refused(length: bytes) -> None:
    """Kind: a number of a client's that Python refuses to read, which was a traceback."""
    app = SockJS(accept)
    assert (await fetch(app, "/0/session/xhr", "POST")).body == b"o\n"
    sent = await fetch(app, "/0/session/xhr_send", "POST", b"[]", [(b"content-length", length)])
    assert sent.status == 413
    zeros = [(b"content-length", b"0" * 5_000 + b"2")]
    assert (await fetch(app, "/0/session/xhr_send", "POST", b"[]", zeros)).status == 204


class LocalProtocolError(Exception):
    """What uvicorn raises with h11 once the client has broken HTTP."""


@pytest.mark.parametrize("path", ["/backsync/info", "/backsync/0/unknown/xhr_send", "/backsync/nothing", "/api/Note"])
async def test_an_answer_to_a_client_that_has_broken_http_waits_for_its_end(path: str) -> None:
    """Kind: a `send` that fails for what the client did. uvicorn logs a traceback of what is raised, and an error for
    an application that returns before it has said that the client is gone."""
    sync = Backsync()
    sync.model("Note", store=MemoryStore())
    app = Starlette(routes=[Mount("/backsync", app=sync), Mount("/api", app=sync.rest())])
    scope = {**websocket_scope(path), "type": "http", "scheme": "http", "method": "POST"}
    events: asyncio.Queue[Any] = asyncio.Queue()
    events.put_nowait({"type": "http.request", "body": b"", "more_body": False})

    async def send(event: Any) -> None:
        raise LocalProtocolError

    answered = asyncio.ensure_future(app(scope, events.get, send))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not answered.done()
    events.put_nowait({"type": "http.disconnect"})
    async with asyncio.timeout(5.0):
        await answered


async def accept(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), BaseException("other")]
)
async def test_an_application_behind_sockjs_ends_its_own_session_only(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """Kind: what ends more than itself. SystemExit and KeyboardInterrupt end the event loop where they leave a task."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await receive()
        raise error

    async with connect(SockJS(app), "/websocket") as socket:
        assert await socket.close_code() == 1011
    assert [record.message for record in caplog.records] == ["The application behind SockJS failed."]


async def test_a_refusal_and_who_comes_and_leaves_are_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Neither has a session id in it, which would let its reader act as the client; and one client writes few lines."""
    with caplog.at_level(logging.DEBUG, "backsync.sockjs"):
        async with connect(SockJS(accept), "/websocket", client=("192.0.2.7", 1234)):
            pass
        app = SockJS(accept)
        for _ in range(100):
            await fetch(app, "/0/secret/xhr_send", "POST", b"[]", client=("192.0.2.8", 1234))
    texts = [record.getMessage() for record in caplog.records]
    begins = re.fullmatch(r"Session (\w+) begins, of 192\.0\.2\.7:1234\.", texts[0])
    assert begins is not None
    assert texts[1] == f"Session {begins[1]} has ended: 1002 'Connection interrupted'."
    assert texts[2] == "Refused 192.0.2.8:1234: 404 unknown_session."
    assert len(texts) < 10
    assert "secret" not in str(texts)


async def test_it_is_logged_that_no_more_files_can_be_opened(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with caplog.at_level(logging.ERROR, "backsync.sockjs"):
        check_files()
        assert not caplog.records
        monkeypatch.setattr("os.dup", full)
        for _ in range(100):
            check_files()
    assert 1 <= len(caplog.records) <= 3
    assert "ulimit -n" in caplog.text


async def test_text_that_is_no_utf8_does_not_fill_the_log_of_uvicorn(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvicorn's own protocol class logs a traceback for each."""
    for name in ("uvicorn", "uvicorn.error"):  # as they are before uvicorn sets them up
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
        monkeypatch.setattr(logging.getLogger(name), "level", logging.NOTSET)
    Server(lambda session, scope: cast(Any, None), Settings()).start()
    uvicorn = logging.getLogger("uvicorn.error")
    for _ in range(100):
        try:
            b"\xff".decode()
        except UnicodeDecodeError:
            uvicorn.exception("Invalid UTF-8 sequence received from client.")
    assert len(caplog.records) <= 2
    assert "Traceback" not in caplog.text
    uvicorn.error("Another line.")
    assert "Another line." in caplog.text


async def test_clients_that_cannot_be_accepted_do_not_fill_the_log_of_asyncio(caplog: pytest.LogCaptureFixture) -> None:
    """asyncio reports each of them with a traceback, as often as the backlog is long."""
    loop = asyncio.get_running_loop()
    others: list[dict[str, Any]] = []
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda loop, context: others.append(context))
    try:
        for _ in range(3):
            Server(lambda session, scope: cast(Any, None), Settings()).start()
        error = OSError(errno.EMFILE, "Too many open files")
        for _ in range(100):
            loop.call_exception_handler({"message": "socket.accept() out of system resource", "exception": error})
        other = {"message": "another one"}
        loop.call_exception_handler(other)
        assert others == [other]
        assert len(caplog.records) <= 2
    finally:
        loop.set_exception_handler(before)
