"""The life of a SockJS session as its client sees it: opening, one receiver, breaking off, closing, expiry, uploads."""

from __future__ import annotations

import json
import time
from urllib.parse import quote_plus

import pytest

from tests.sockjs.client import head as request_head
from tests.sockjs.client import read_response
from tests.sockjs.conftest import Control, OpenService
from tests.sockjs.speech import (
    JSONP,
    PLAIN,
    STREAMING,
    TRANSPORTS,
    XHR,
    XHR_STREAMING,
    HTTPConversation,
    Receiver,
    Service,
    Transport,
    messages_of,
    new_session,
)

OCCUPIED = 'c[2010,"Another connection still open"]'
INTERRUPTED = 'c[1002,"Connection interrupted"]'
GONE = 'c[3000,"Go away!"]'


def receiver_once_free(service: Service, transport: Transport, session: str) -> str:
    """The first frame of a new receiver, once the server has noticed that the last one has gone (within a second)."""
    until = time.monotonic() + 1.0
    while True:
        receiver = service.receive(transport, session)
        frame = receiver.frame()
        assert frame is not None
        if frame != OCCUPIED or time.monotonic() > until:
            receiver.wire.close()
            return frame
        receiver.wire.close()


# ── Opening ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
def test_open_is_the_first_frame_of_every_session(open_service: OpenService, transport: Transport) -> None:
    for prefix in ("/echo", "/close", "/cookie_needed_echo"):
        open_service(prefix).open(transport)


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
def test_the_server_segment_is_ignored(echo: Service, transport: Transport) -> None:
    session = new_session()
    echo.receive(XHR, session, server="000").expect("o")
    assert echo.send(transport, session, '["x"]', server="111").status in (200, 204)
    echo.receive(transport, session, server="999").expect('a["x"]')


def test_services_do_not_share_sessions(open_service: OpenService) -> None:
    session, _ = open_service("/echo").open(XHR)
    other = open_service("/cookie_needed_echo")
    assert other.send(XHR, session, '["x"]').status == 404
    other.receive(XHR, session).expect("o")


@pytest.mark.parametrize("first", TRANSPORTS, ids=str)
@pytest.mark.parametrize("second", TRANSPORTS, ids=str)
def test_a_session_goes_on_over_another_transport(echo: Service, first: Transport, second: Transport) -> None:
    """Nothing is lost or doubled when the transport changes between two receivers."""
    session, stream = echo.open(first)
    filler = "x" * 4096
    if first.streaming:  # to its byte limit, so that it ends in good order
        echo.upload(first, session, [filler])
        stream.expect(f'a["{filler}"]')
        stream.expect_end()
    echo.upload(second, session, ["1", "2"])
    talk = HTTPConversation(echo, second, session)
    assert talk.receive(2) == ["1", "2"]
    echo.upload(first, session, ["3"])
    assert talk.receive(1) == ["3"]


# ── One receiver ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("second", TRANSPORTS, ids=str)
@pytest.mark.parametrize("first", STREAMING, ids=str)
def test_a_second_receiver_is_turned_away_from_a_stream(echo: Service, first: Transport, second: Transport) -> None:
    session, stream = echo.open(first)
    for _ in range(2):
        intruder = echo.receive(second, session)
        intruder.expect(OCCUPIED)
        intruder.expect_end()
    echo.upload(first, session, ["x"])
    stream.expect('a["x"]')


@pytest.mark.parametrize("second", TRANSPORTS, ids=str)
@pytest.mark.parametrize("first", [XHR, JSONP], ids=str)
def test_a_second_receiver_is_turned_away_from_a_poll(echo: Service, first: Transport, second: Transport) -> None:
    session, _ = echo.open(first)
    poll = echo.waiting_poll(first, session)
    for _ in range(2):
        intruder = echo.receive(second, session)
        intruder.expect(OCCUPIED)
        intruder.expect_end()
    echo.upload(first, session, ["x"])
    Receiver(first, read_response(poll)).expect('a["x"]')


def test_a_hundred_polls_and_a_hundred_uploads_at_once(echo: Service, control: Control) -> None:
    """Exactly one of the polls stays, the others get 2010; each message is delivered once."""
    session, _ = echo.open(XHR)
    path = f"{echo.prefix}/000/{session}/xhr"
    polls = [echo.wire() for _ in range(100)]
    uploads = [echo.wire() for _ in range(100)]
    for number, (poll, upload) in enumerate(zip(polls, uploads, strict=True)):
        poll.send(request_head("POST", path, [("Content-Length", "0")]))
        body = f'["{number}"]'.encode()
        upload.send(request_head("POST", path + "_send", [("Content-Length", str(len(body)))]) + body)
    for upload in uploads:
        assert read_response(upload).status == 204
    received: list[str] = []
    waiting = 0
    for poll in polls:
        poll.deadline = 0.3
        try:
            frame = Receiver(XHR, read_response(poll)).frame()
        except TimeoutError:
            waiting += 1
            continue
        assert frame is not None
        if frame != OCCUPIED:
            received += messages_of(frame)
    assert waiting <= 1
    if waiting == 0:
        while len(received) < 100:
            received += messages_of(echo.receive(XHR, session).frame() or "")
    assert sorted(received, key=int) == [str(number) for number in range(100)]


# ── Breaking off ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("transport", STREAMING, ids=str)
def test_a_stream_that_breaks_off_ends_the_session(echo: Service, transport: Transport, how: str) -> None:
    session, stream = echo.open(transport)
    if how == "rst":
        stream.wire.reset()
    else:
        stream.wire.close()
    frame = receiver_once_free(echo, transport, session)
    assert frame in ("o", INTERRUPTED)


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("transport", [XHR, JSONP], ids=str)
def test_a_poll_that_breaks_off_ends_the_session(echo: Service, transport: Transport, how: str) -> None:
    session, _ = echo.open(transport)
    wire = echo.waiting_poll(transport, session)
    echo.receive(transport, session).expect(OCCUPIED)
    if how == "rst":
        wire.reset()
    else:
        wire.close()
    frame = receiver_once_free(echo, transport, session)
    assert frame in ("o", INTERRUPTED)


def test_an_interrupted_session_stays_closed(echo: Service) -> None:
    """Either the old session says again and again that it was interrupted, or a fresh one has taken its place."""
    session, stream = echo.open(XHR_STREAMING)
    stream.wire.reset()
    frame = receiver_once_free(echo, XHR, session)
    if frame == INTERRUPTED:
        assert echo.send(XHR, session, '["x"]').status == 404
        echo.receive(XHR, session).expect(INTERRUPTED)
    else:
        echo.upload(XHR, session, ["x"])
        echo.receive(XHR, session).expect('a["x"]')


def test_half_close_during_a_poll(echo: Service, control: Control) -> None:
    """The client sends FIN but goes on reading. uvicorn takes that for a disconnect; the session may be over by it, or
    live on: what must not be is a session that stays occupied by the dead poll."""
    session, _ = echo.open(XHR)
    wire = echo.waiting_poll(XHR, session)
    echo.receive(XHR, session).expect(OCCUPIED)
    wire.finish()
    frame = receiver_once_free(echo, XHR_STREAMING, session)
    assert frame in ("o", INTERRUPTED)


# ── Closing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("second", TRANSPORTS, ids=str)
@pytest.mark.parametrize("first", TRANSPORTS, ids=str)
def test_the_close_frame_is_served_again(open_service: OpenService, first: Transport, second: Transport) -> None:
    close = open_service("/close")
    session, stream = close.open(first)
    if first.streaming:
        stream.expect(GONE)
        stream.expect_end()
    for _ in range(2):
        later = close.receive(second, session)
        later.expect(GONE)
        later.expect_end()


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
def test_an_upload_to_a_closed_session_is_not_found(open_service: OpenService, transport: Transport) -> None:
    close = open_service("/close")
    session, stream = close.open(transport)
    if not transport.streaming:
        stream = close.receive(transport, session)
    stream.expect(GONE)
    stream.expect_end()
    assert close.send(transport, session, '["x"]').status == 404
    close.receive(transport, session).expect(GONE)


# ── Uploads ──────────────────────────────────────────────────────────────────────────────────────────────────────────

CONTENT_TYPES = [
    None,
    "text/plain",
    "T",
    "application/json",
    "application/xml",
    "",
    "application/json; charset=utf-8",
    "text/xml; charset=utf-8",
    "text/xml",
    "image/png",
    "application/x-www-form-urlencoded",
]


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
def test_xhr_send_takes_any_content_type(echo: Service, content_type: str | None) -> None:
    session, _ = echo.open(XHR)
    headers = [] if content_type is None else [("Content-Type", content_type)]
    response = echo.request("POST", f"/000/{session}/xhr_send", headers=headers, body=b'["x"]')
    assert response.status == 204
    assert response.header("content-type") == PLAIN
    assert response.body() == b""
    echo.receive(XHR, session).expect('a["x"]')


@pytest.mark.parametrize(
    "content_type", [each for each in CONTENT_TYPES if each != "application/x-www-form-urlencoded"]
)
def test_jsonp_send_takes_the_body_itself(echo: Service, content_type: str | None) -> None:
    """Two of our sources differ on types that are neither a form nor text; real clients send forms only. The body is
    taken as it is, as for xhr_send."""
    session, _ = echo.open(JSONP)
    headers = [] if content_type is None else [("Content-Type", content_type)]
    response = echo.request("POST", f"/000/{session}/jsonp_send", headers=headers, body=b'["x%20+"]')
    assert response.status == 200
    assert response.header("content-type") == PLAIN
    assert response.body() == b"ok"
    echo.receive(JSONP, session).expect('a["x%20+"]')


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"d=%5B%22x%22%5D", "x"),
        (b"d=[%22x%22]", "x"),
        (b'd=["x"]', "x"),
        (b"a=1&d=%5B%22x%22%5D&b=2", "x"),
        (b"%64=%5B%22x%22%5D", "x"),
        (b"d=%5B%22a+b%22%5D", "a b"),
        (b"d=%5B%22a%2Bb%22%5D", "a+b"),
        (b"d=%5B%22a%252Bb%22%5D", "a%2Bb"),
        (b"d=%5B%22a%26b%3Dc%22%5D", "a&b=c"),
        (b"d=%5B%22%C3%BC%E2%82%AC%F0%9F%98%80%22%5D", "ü€😀"),
        (b"d=" + quote_plus(json.dumps(["%&+=;#\r\n\0ü"])).encode(), "%&+=;#\r\n\0ü"),
    ],
)
@pytest.mark.parametrize(
    "content_type", ["application/x-www-form-urlencoded", "application/x-www-form-urlencoded; charset=UTF-8"]
)
def test_jsonp_send_takes_a_form(echo: Service, content_type: str, body: bytes, message: str) -> None:
    session, _ = echo.open(JSONP)
    response = echo.request("POST", f"/0/{session}/jsonp_send", headers=[("Content-Type", content_type)], body=body)
    assert (response.status, response.header("content-type"), response.body()) == (200, PLAIN, b"ok")
    assert messages_of(echo.receive(JSONP, session).frame() or "") == [message]


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
def test_an_upload_to_an_unknown_session_is_not_found(echo: Service, transport: Transport) -> None:
    assert echo.send(transport, new_session(), '["x"]').status == 404
    assert echo.send(transport, new_session(), "bad").status == 404


@pytest.mark.parametrize("transport", [XHR, JSONP], ids=str)
def test_an_empty_array_is_ignored(echo: Service, transport: Transport) -> None:
    session, _ = echo.open(transport)
    echo.upload(transport, session, [])
    echo.upload(transport, session, ["x"])
    echo.receive(transport, session).expect('a["x"]')


def test_a_whole_buffer_in_one_upload(echo: Service) -> None:
    """A busy honest client sends all that it has: thousands of messages in one array, limited by bytes only."""
    session, _ = echo.open(XHR)
    sent = [f"{number:x}" for number in range(15_000)]
    echo.upload(XHR, session, sent)
    received: list[str] = []
    while len(received) < len(sent):
        received += messages_of(echo.receive(XHR, session).frame() or "")
    assert received == sent


def test_messages_keep_their_order(echo: Service) -> None:
    ways: list[Transport | str] = [*TRANSPORTS, "websocket", "raw"]
    for way in ways:
        talk = echo.converse(way)
        sent = [str(number) for number in range(30)]
        for number in range(0, 30, 3):
            talk.send(*sent[number : number + 3])
        assert talk.receive(30) == sent


def test_two_websockets_may_use_one_id(echo: Service) -> None:
    session = new_session()
    first, second = (echo.websocket(f"/000/{session}/websocket") for _ in range(2))
    for socket, message in ((first, "1"), (second, "2")):
        assert socket.receive() == "o"
        socket.send(f'["{message}"]')
    assert first.receive() == 'a["1"]'
    assert second.receive() == 'a["2"]'
    # ... and neither is found by it.
    assert echo.send(XHR, session, '["x"]').status == 404
    echo.open(XHR, session)
    echo.upload(XHR, session, ["3"])
    echo.receive(XHR, session).expect('a["3"]')
