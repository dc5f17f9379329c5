"""What the settings change: who may come, which transports there are, heartbeats, limits; and codes of closing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest

from tests.servers import HTTPParser, Server
from tests.sockjs.client import WebSocket, handshake, read_response, request
from tests.sockjs.conftest import REFUSED_HANDSHAKE, OpenService, Target
from tests.sockjs.speech import (
    HTMLFILE,
    JSONP,
    POLLING,
    STREAMING,
    TRANSPORTS,
    XHR,
    XHR_STREAMING,
    HTTPConversation,
    Receiver,
    Service,
    SocketConversation,
    Transport,
    new_session,
)


@pytest.fixture
def target(shared_server: Callable[..., Server], http: HTTPParser) -> Iterator[Target]:
    """The server of settings_app.py in place of the conformance server."""
    yield from Target.watched(shared_server("tests.sockjs.settings_app:app", http=http, errors_expected=True), http)


# ── Origins ──────────────────────────────────────────────────────────────────────────────────────────────────────────

FOREIGN = [
    "null",
    "https://evil.example",
    "https://good.example.evil",
    "https://evil.example?good.example",
    "https://goodXexample",
    "https://xgood.example",
    "https://sub.good.example",
    "http://good.example",
    "https://good.example:8443",
    "https://good.example:443",
    "https://good.example.",
    "https://good.example/",
    "https://user@good.example",
    "https://good.example@evil.example",
    "https://g\xf6\xf6d.example",
    "https://xn--good-.example",
    "HTTPS://GOOD.EXAMPLE",
    "https://good.example, https://evil.example",
    "https://good.example https://evil.example",
    "good.example",
    "https://",
    "*",
    "",
    "https://" + "x" * 8_000,
    "\xff\xfe",
    "http://good.example:3000:3000",
]


@pytest.mark.parametrize("origin", FOREIGN)
def test_a_foreign_origin_is_refused(open_service: OpenService, target: Target, origin: str) -> None:
    """403 on every session URL and socket, without CORS headers; info and the greeting say nothing that is secret."""
    target.allow_error(REFUSED_HANDSHAKE)
    listed = open_service("/listed")
    headers = [("Origin", origin)]
    requests = [(each.method, each.path(new_session())) for each in TRANSPORTS]
    requests += [("POST", f"/0/{new_session()}/xhr_send"), ("POST", f"/0/{new_session()}/jsonp_send")]
    requests += [("OPTIONS", f"/0/{new_session()}/xhr"), ("OPTIONS", f"/0/{new_session()}/xhr_send")]
    for method, path in requests:
        response = listed.request(method, path, headers=headers)
        assert response.status == 403, (method, path)
        assert response.header("access-control-allow-origin") is None
        assert response.header("access-control-allow-credentials") is None
    info = listed.request("GET", "/info", headers=headers)
    assert info.status in (200, 403)
    assert info.header("access-control-allow-origin") is None
    for path in (f"/0/{new_session()}/websocket", "/websocket"):
        refused = request(listed.wire(), "GET", listed.prefix + path, headers=[*handshake(), *headers])
        assert refused.status == 403


def test_two_origins_are_refused(open_service: OpenService) -> None:
    headers = [("Origin", "https://good.example"), ("Origin", "https://good.example")]
    response = open_service("/listed").request("POST", f"/0/{new_session()}/xhr", headers=headers)
    assert response.status == 403


@pytest.mark.parametrize("origin", ["https://good.example", "http://good.example:3000"])
def test_a_listed_origin_is_let_in(open_service: OpenService, origin: str) -> None:
    listed = open_service("/listed")
    headers = [("Origin", origin)]
    session = new_session()
    for method, path in (("POST", f"/0/{session}/xhr"), ("GET", "/info"), ("OPTIONS", f"/0/{session}/xhr_send")):
        response = listed.request(method, path, headers=headers)
        assert response.status in (200, 204)
        assert response.header("access-control-allow-origin") == origin
        assert response.header("access-control-allow-credentials") == "true"
    assert listed.request("POST", f"/0/{session}/xhr_send", headers=headers, body=b'["x"]').status == 204
    assert listed.websocket(headers=headers).receive() == "o"


def test_a_request_without_an_origin_is_let_in(open_service: OpenService) -> None:
    for prefix in ("/listed", "/plain"):
        response = open_service(prefix).request("POST", f"/0/{new_session()}/xhr")
        assert response.status == 200
        assert response.body() == b"o\n"


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("good.example", "http://good.example", 200),
        ("good.example:80", "http://good.example", 200),
        ("good.example:8080", "http://good.example:8080", 200),
        ("[::1]:8080", "http://[::1]:8080", 200),
        ("good.example:8080", "http://good.example", 403),
        ("good.example", "http://good.example:8080", 403),
        ("good.example", "http://evil.example", 403),
        ("good.example", "http://good.example.evil", 403),
        ("good.example", "null", 403),
        ("good.example", "", 403),
        ("", "http://", 403),
    ],
)
def test_by_default_only_the_own_origin(
    open_service: OpenService, target: Target, host: str, origin: str, status: int
) -> None:
    target.allow_error(REFUSED_HANDSHAKE)
    plain = open_service("/plain")
    headers = [("Host", host), ("Origin", origin)]
    response = plain.request("POST", f"/0/{new_session()}/xhr", headers=headers)
    assert response.status == status or (not host and response.status == 400)
    path = f"{plain.prefix}/0/{new_session()}/websocket"
    response = request(plain.wire(), "GET", path, headers=[*handshake(), *headers])
    assert response.status == (101 if status == 200 else 403) or (not host and response.status == 400)


def test_a_refusal_names_the_setting(open_service: OpenService, target: Target) -> None:
    open_service("/plain").request("POST", f"/0/{new_session()}/xhr", headers=[("Origin", "https://who.example")])
    line = target.server.wait_for_log(r".*https://who\.example.*", within=2.0).group()
    assert "allowed_origins" in line


# ── Transports ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_transports_of_old_browsers_are_off_by_default(open_service: OpenService) -> None:
    plain = open_service("/plain")
    for transport in (JSONP, HTMLFILE):
        assert plain.request(transport.method, transport.path(new_session())).status == 404
    assert plain.request("POST", f"/0/{new_session()}/jsonp_send").status == 404
    assert plain.request("GET", "/iframe.html").status == 404
    for transport in (XHR, XHR_STREAMING):
        talk = plain.converse(transport)
        talk.send("x")
        assert talk.receive(1) == ["x"]


# ── Heartbeats ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_heartbeats(open_service: OpenService) -> None:
    """All wait side by side. Silence brings `h` on every framed transport; a poll ends with it, a stream goes on."""
    quick = open_service("/quick")
    polls = [(transport, quick.open(transport)[0]) for transport in POLLING]
    waiting = [(transport, session, quick.waiting_poll(transport, session)) for transport, session in polls]
    streams = [(transport, *quick.open(transport)) for transport in STREAMING]
    talk = quick.converse("websocket")
    assert isinstance(talk, SocketConversation)
    raw = quick.websocket("/websocket")
    for transport, session, poll in waiting:
        receiver = Receiver(transport, read_response(poll))
        receiver.expect("h")
        receiver.expect_end()
        quick.upload(transport, session, ["x"])
        quick.receive(transport, session).expect('a["x"]')
    for transport, session, stream in streams:
        stream.expect("h", "h")
        quick.upload(transport, session, ["x"])
        frame = stream.frame()
        while frame == "h":
            frame = stream.frame()
        assert frame == 'a["x"]'
    assert talk.frame() == "h"
    assert talk.frame() == "h"
    raw.send("x")
    assert raw.receive() == "x"


# ── Limits ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_too_many_sessions(open_service: OpenService, target: Target) -> None:
    """503 for a further one; those that are there are not disturbed, and room that is left is given anew."""
    target.allow_error(REFUSED_HANDSHAKE)
    few = open_service("/few")
    first, stream = few.open(XHR_STREAMING)
    socket = few.websocket()
    assert socket.receive() == "o"
    assert few.request("POST", f"/0/{new_session()}/xhr").status == 503
    refused = request(few.wire(), "GET", f"{few.prefix}/0/{new_session()}/websocket", headers=handshake())
    assert refused.status == 503
    few.upload(XHR, first, ["x"])
    stream.expect('a["x"]')
    socket.close()
    socket.read_close()
    assert socket.wire.read_to_end() == b""
    assert WebSocket(few.wire(), f"{few.prefix}/0/{new_session()}/websocket").receive() == "o"


# ── Closing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 2999, 5000])
def test_a_code_that_must_not_be_sent(open_service: OpenService, code: int) -> None:
    """A ValueError where the application closes; the session lives on."""
    told = open_service("/told")
    talk = told.converse(XHR)
    talk.send(f"{code} x")
    (answer,) = talk.receive(1)
    assert answer.startswith("ValueError: ")
    assert str(code) in answer
    talk.send("3001 now")
    assert isinstance(talk, HTTPConversation)
    assert talk.frame() == 'c[3001,"now"]'


@pytest.mark.parametrize("way", [*TRANSPORTS, "websocket"], ids=str)
@pytest.mark.parametrize(
    ("reason", "sent"),
    [("", ""), ('say "no" </script> %', 'say "no" </script> %'), ("x" * 200, "x" * 123), ("€" * 60, "€" * 41)],
)
def test_a_reason(open_service: OpenService, way: str | Transport, reason: str, sent: str) -> None:
    """At most 123 bytes, cut where a character ends; escaped as messages are."""
    talk = open_service("/told").converse(way)
    assert isinstance(talk, HTTPConversation | SocketConversation)
    talk.send(f"4000 {reason}")
    frame = talk.frame()
    assert frame[0] == "c"
    assert json.loads(frame[1:]) == [4000, sent]


@pytest.mark.parametrize(("reason", "sent"), [("", ""), ("x" * 200, "x" * 123), ("€" * 60, "€" * 41)])
def test_a_reason_on_a_raw_websocket(open_service: OpenService, reason: str, sent: str) -> None:
    socket = open_service("/told").websocket("/websocket")
    socket.send(f"4000 {reason}")
    assert socket.read_close() == (4000, sent)


# ── What the application hears ───────────────────────────────────────────────────────────────────────────────────────


def leave(service: Service, how: str) -> None:
    """Come and go in this way."""
    if how == "stream broken off":
        _, stream = service.open(XHR_STREAMING)
        stream.wire.reset()
        return
    socket = service.websocket("/websocket" if how.startswith("raw") else None)
    if not how.startswith("raw"):
        assert socket.receive() == "o"
    if how.endswith("closed"):
        socket.close(3001, "bye")
        socket.read_close()
    elif how.endswith("reset"):
        socket.wire.reset()
    else:
        socket.wire.close()


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("framed, closed", 3001),
        ("raw, closed", 3001),
        ("framed, gone", 1006),
        ("raw, gone", 1006),
        ("framed, reset", 1006),
        ("raw, reset", 1006),
        ("stream broken off", 1006),
    ],
)
def test_the_application_hears_how_a_session_ended(open_service: OpenService, how: str, code: int) -> None:
    """A goodbye with its code; 1006 where there was none (uvicorn itself says 1005 then)."""
    service = open_service("/witness")
    talk = service.converse("websocket")
    talk.send("?")
    before = json.loads(talk.receive(1)[0])
    leave(service, how)
    ended = before
    until = time.monotonic() + 1.0
    while ended == before:
        assert time.monotonic() < until, "the application heard nothing"
        talk.send("?")
        ended = json.loads(talk.receive(1)[0])
    assert ended == [*before, code]


# ── Whose session it is ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_session_answers_only_to_who_opened_it(open_service: OpenService) -> None:
    """To anybody else it does not exist: 404, not 403, and nothing happens to it."""
    bound = open_service("/bound")
    session = new_session()
    own = [("X-User", "ann")]
    assert bound.request("POST", f"/0/{session}/xhr", headers=own).body() == b"o\n"
    strangers: list[list[tuple[str, str]]] = [[("X-User", "bob")], []]
    for stranger in strangers:
        for name, body in (("xhr", b""), ("xhr_streaming", b""), ("xhr_send", b'["x"]')):
            assert bound.request("POST", f"/0/{session}/{name}", headers=stranger, body=body).status == 404
    assert bound.request("POST", f"/0/{session}/xhr_send", headers=own, body=b'["y"]').status == 204
    assert bound.request("POST", f"/0/{session}/xhr", headers=own).body() == b'a["y"]\n'
