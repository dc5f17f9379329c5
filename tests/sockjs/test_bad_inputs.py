"""HTTP and SockJS as they should not be spoken, beside a healthy client; what uvicorn answers itself is written down.

The WebSocket level is in test_websocket.py. Not here: X-Forwarded-For (nothing that an echo shows depends on it),
sockets that stay silent before they sign in (SockJS alone knows no sign-in), rates (off in SockJS alone).
"""

from __future__ import annotations

import json
import time

import pytest

from tests.sockjs.client import head, read_response, request
from tests.sockjs.conftest import Control, OpenService, Target
from tests.sockjs.speech import (
    JSONP,
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
from tests.sockjs.test_conformance import assert_cookie

pytestmark = pytest.mark.usefixtures("control")


def answer(service: Service, data: bytes) -> tuple[int, bytes]:
    """Send these bytes on a new connection: status and body of the one answer."""
    wire = service.wire()
    wire.send_as_taken(data)
    response = read_response(wire)
    return response.status, response.body()


# ── HTTP: what is no request ─────────────────────────────────────────────────────────────────────────────────────────

NOT_HTTP = {
    "NUL in a header": b"GET /echo HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
    "two lengths": b"POST /echo/0/s/xhr_send HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n[]]",
    "negative length": b"POST /echo/0/s/xhr_send HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    "length in letters": b"POST /echo/0/s/xhr_send HTTP/1.1\r\nHost: a\r\nContent-Length: two\r\n\r\n",
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n",
    "no target": b"GET  HTTP/1.1\r\nHost: a\r\n\r\n",
    "letters beyond ASCII in the method": b"G\xc3\x89T /echo HTTP/1.1\r\nHost: a\r\n\r\n",
    "space before the colon": b"GET /echo HTTP/1.1\r\nHost : a\r\n\r\n",
    "header without a name": b"GET /echo HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n",
}


@pytest.mark.parametrize("name", NOT_HTTP)
def test_what_is_not_http(echo: Service, name: str) -> None:
    """400 by uvicorn, with either parser."""
    assert answer(echo, NOT_HTTP[name])[0] == 400


ONE_PARSER_ONLY = {
    "bare LF": (b"GET /echo HTTP/1.1\nHost: a\n\n", 400, 200),
    "folded header": (b"GET /echo HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400, 200),
    "HTTP/0.9": (b"GET /echo\r\nHost: a\r\n\r\n", 200, 400),
    "HTTP/3.7": (b"GET /echo HTTP/3.7\r\nHost: a\r\n\r\n", 400, 200),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, 404),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 404, 404),
}


@pytest.mark.parametrize("name", ONE_PARSER_ONLY)
def test_what_only_one_parser_takes(target: Target, echo: Service, name: str) -> None:
    """uvicorn's parsers differ. Harmless where they take it: it means to them what it means to us, and what is no path
    of ours is not found. (The first number is httptools', the second h11's.)"""
    data, httptools, h11 = ONE_PARSER_ONLY[name]
    assert answer(echo, data)[0] == (h11 if target.http == "h11" else httptools)


def test_two_framings_of_one_body(target: Target, echo: Service) -> None:
    """httptools refuses Transfer-Encoding together with Content-Length; h11 goes by the chunks, as RFC 9112 says."""
    session, _ = echo.open(XHR)
    data = head(
        "POST",
        f"/echo/0/{session}/xhr_send",
        [("Transfer-Encoding", "chunked"), ("Content-Length", "5")],
    )
    status, _ = answer(echo, data + b'5\r\n["x"]\r\n0\r\n\r\n')
    assert status == (204 if target.http == "h11" else 400)
    if status == 400:
        echo.upload(XHR, session, ["x"])
    echo.receive(XHR, session).expect('a["x"]')


@pytest.mark.parametrize("size", [b"xyz", b"-5", b"0x5", b"5 5", b"fffffffffffffffffffff", b""])
def test_a_bad_chunk_size(echo: Service, size: bytes) -> None:
    """400 by uvicorn, or the connection is cut where our answer had begun; no byte of the body is applied."""
    session, _ = echo.open(XHR)
    wire = echo.wire()
    wire.send(head("POST", f"/echo/0/{session}/xhr_send", [("Transfer-Encoding", "chunked")]) + size + b'\r\n["x"]\r\n')
    assert read_response(wire).status == 400
    echo.upload(XHR, session, ["after"])
    echo.receive(XHR, session).expect('a["after"]')


# ── HTTP: too much of it ─────────────────────────────────────────────────────────────────────────────────────────────


def test_too_large_a_header(target: Target, echo: Service) -> None:
    """More than 16 KiB of headers: 431 by us. h11 refuses by itself what does not fit its own 64 KiB."""
    for size in (20_000, 60_000, 70_000):
        status, _ = answer(echo, head("GET", "/echo/info", [("X", "x" * size)]))
        assert status == 431 or (status == 400 and target.http == "h11" and size > 65_536), size


def test_too_many_headers(target: Target, echo: Service) -> None:
    """More than 128 header lines: 431 by us; 10,000 of them are also too large for h11."""
    for count in (140, 1_000, 10_000):
        status, _ = answer(echo, head("GET", "/echo/info", [(f"X-{number}", "x") for number in range(count)]))
        assert status == 431 or (status == 400 and target.http == "h11" and count == 10_000), count


def test_a_header_that_a_browser_may_well_send(echo: Service) -> None:
    headers = [("Cookie", "a=" + "x" * 8_000), *((f"X-{number}", "x") for number in range(60))]
    assert answer(echo, head("GET", "/echo/info", headers))[0] == 200


def test_a_url_of_a_megabyte(echo: Service) -> None:
    """400 by uvicorn: longer than its parsers take."""
    assert answer(echo, head("GET", "/echo/" + "x" * 1_000_000))[0] in (400, 414)


def test_a_session_id_of_ten_kilobytes(echo: Service) -> None:
    assert echo.request("POST", f"/000/{'x' * 10_000}/xhr").status == 404


def test_a_body_that_is_announced_too_large(echo: Service) -> None:
    """Answered at once, nothing of the body is waited for, and no 100 Continue asks for it."""
    session, _ = echo.open(XHR)
    for expect in ([], [("Expect", "100-continue")]):
        wire = echo.wire()
        wire.deadline = 1.0
        headers = [("Content-Length", "300000000"), *expect]
        response = request(wire, "POST", f"/echo/0/{session}/xhr_send", headers=headers)
        assert response.status == 413
    echo.upload(XHR, session, ["after"])
    echo.receive(XHR, session).expect('a["after"]')


def test_expect_continue(echo: Service) -> None:
    """A body that is welcome is asked for by 100 Continue."""
    session, _ = echo.open(XHR)
    wire = echo.wire()
    response = request(
        wire, "POST", f"/echo/0/{session}/xhr_send", headers=[("Content-Length", "5"), ("Expect", "100-continue")]
    )
    assert response.status == 100
    wire.send(b'["x"]')
    assert read_response(wire).status == 204


def test_an_unknown_session_is_told_before_the_body_is_read(echo: Service) -> None:
    wire = echo.wire()
    wire.deadline = 1.0
    response = request(wire, "POST", f"/echo/0/{new_session()}/xhr_send", headers=[("Content-Length", "1000")])
    assert response.status == 404


def test_a_chunked_body_without_end(echo: Service) -> None:
    """413 as soon as it is over the limit (128 KiB), however long the rest would be."""
    session, _ = echo.open(XHR)
    wire = echo.wire()
    wire.send(head("POST", f"/echo/0/{session}/xhr_send", [("Transfer-Encoding", "chunked")]))
    chunk = b"1000\r\n" + b" " * 0x1000 + b"\r\n"
    assert all(wire.send_as_taken(chunk) for _ in range(40))
    assert read_response(wire).status == 413
    echo.upload(XHR, session, ["after"])
    echo.receive(XHR, session).expect('a["after"]')


@pytest.mark.parametrize(
    ("transport", "content_type", "size", "status"),
    [
        (XHR, "text/plain", 131_072, 204),
        (XHR, "text/plain", 131_073, 413),
        (JSONP, "text/plain", 131_072, 200),
        (JSONP, "text/plain", 131_073, 413),
        (JSONP, "application/x-www-form-urlencoded", 196_608, 200),
        (JSONP, "application/x-www-form-urlencoded", 196_609, 413),
    ],
)
def test_the_size_of_a_body(echo: Service, transport: Transport, content_type: str, size: int, status: int) -> None:
    """Exactly the limit is accepted, one byte more is not."""
    session, _ = echo.open(transport)
    form = "urlencoded" in content_type
    start, end = (b"d=%5B%22", b"%22%5D") if form else (b'["', b'"]')
    filling = size - len(start) - len(end)
    if form:
        body = start + b"%22%2C%22".join([b"%20" * 20_000] * 3)
        body += b"%22%2C%22" + b"x" * (size - len(body) - len(end) - 9) + end
    else:
        body = start + b"x" * 60_000 + b'","' + b"x" * 60_000 + b'","' + b"x" * (filling - 120_006) + end
    assert len(body) == size
    path = f"/0/{session}/{transport.upload}"
    assert echo.request("POST", path, headers=[("Content-Type", content_type)], body=body).status == status


@pytest.mark.parametrize("transport", [XHR, JSONP], ids=str)
def test_the_size_of_one_message(echo: Service, transport: Transport) -> None:
    """A message of more than 64 KiB: 413, and nothing of its batch is applied."""
    session, _ = echo.open(transport)
    response = echo.send(transport, session, json.dumps(["first", "x" * 66_000]))
    assert response.status == 413
    assert response.header("x-backsync-error") == "message_too_big"
    echo.upload(transport, session, ["after"])
    echo.receive(transport, session).expect('a["after"]')


# ── HTTP: other oddities ─────────────────────────────────────────────────────────────────────────────────────────────


def test_no_host(target: Target, echo: Service) -> None:
    """400: by us behind httptools, by h11 itself."""
    assert answer(echo, b"GET /echo/info HTTP/1.1\r\n\r\n")[0] == 400


@pytest.mark.parametrize("host", ["a b/../x?y", "a b", "a/b", "a?b", "a@b", "<script>", "a,b"])
def test_a_host_that_is_none(echo: Service, host: str) -> None:
    assert answer(echo, head("GET", "/echo/info", [("Host", host)]))[0] == 400


def test_two_hosts(echo: Service) -> None:
    assert answer(echo, head("GET", "/echo/info", [("Host", "a"), ("Host", "b")]))[0] == 400


@pytest.mark.parametrize(
    "host", ["localhost", "example.com:8081", "127.0.0.1", "[::1]:80", "xn--bcher-kva.example", "a_b"]
)
def test_a_good_host(echo: Service, host: str) -> None:
    assert answer(echo, head("GET", "/echo/info", [("Host", host)]))[0] == 200


def test_a_target_in_absolute_form(target: Target, echo: Service) -> None:
    """Routed by its path with httptools. uvicorn with h11 hands the whole URL on as the path: 404."""
    status, _ = answer(echo, head("GET", "http://example.com/echo/info?x"))
    assert status == (404 if target.http == "h11" else 200)


@pytest.mark.parametrize(
    "path",
    [
        "/../echo/../x",
        "/%2e%2e/x",
        "/%00",
        "/%ZZ",
        "/%ff",
        "/;",
        "/info;x=1",
        "/info%00",
        "/info%0A",
        "/info%20",
        "/000/s/xhr%00",
        "/000/s/xhr%0a",
        "/000/s/xhr;x",
        "/000/%2e%2e/xhr",
        "/..%2f..%2f/xhr",
        "/000/s%2exhr",
    ],
)
def test_odd_paths_are_not_found(echo: Service, path: str) -> None:
    for method in ("GET", "POST"):
        assert echo.request(method, path).status == 404


@pytest.mark.parametrize(
    "session", ["%00", "%ff", "%FE%FF", "%ZZ", "%", ";", "a;b=c", "__proto__", "%F0%9F%98%80", "constructor"]
)
def test_odd_session_ids_are_harmless(echo: Service, session: str) -> None:
    """They are any characters but slash and dot: a session of its own, or not found where they are no text."""
    unique = session + new_session()
    response = echo.request("POST", f"/000/{unique}/xhr")
    assert response.status in (200, 404)
    if response.status == 200:
        assert response.body() == b"o\n"
        assert echo.request("POST", f"/000/{unique}/xhr_send", body=b'["x"]').status == 204


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "GZIP", "gzip, identity"])
def test_an_encoded_body(echo: Service, encoding: str) -> None:
    session, _ = echo.open(XHR)
    path = f"/000/{session}/xhr_send"
    response = echo.request("POST", path, headers=[("Content-Encoding", encoding)], body=b'["x"]')
    assert response.status == 415
    assert response.header("x-backsync-error") == "unsupported_encoding"
    assert echo.request("POST", path, headers=[("Content-Encoding", "identity")], body=b'["y"]').status == 204
    echo.receive(XHR, session).expect('a["y"]')


def test_a_thousand_requests_at_once(echo: Service) -> None:
    """Pipelined on one connection: answered one at a time, in order."""
    wire = echo.wire()
    requests = b"".join(head("GET", f"/echo/info?{number}") + head("GET", "/echo") for number in range(500))
    wire.send(requests)
    for _ in range(500):
        assert "entropy" in json.loads(read_response(wire).body())
        assert read_response(wire).body() == b"Welcome to SockJS!\n"


@pytest.mark.parametrize(
    "cookie",
    [
        "JSESSIONID=a%0d%0aX:1".replace("%0d%0a", "\t"),
        'JSESSIONID="',
        'JSESSIONID=";',
        "JSESSIONID=" + "x" * 5_000,
        "JSESSIONID=\xfc",
        "JSESSIONID=a\x7fb",
        "JSESSIONID=a,b\\c",
        "JSESSIONID=a b",
        "JSESSIONID",
        ";;;=;=",
        "=JSESSIONID",
    ],
)
def test_cookies_that_are_not_echoed(target: Target, open_service: OpenService, cookie: str) -> None:
    """A control character other than a tab does not come so far: uvicorn answers 400."""
    service = open_service("/cookie_needed_echo")
    response = service.request("POST", f"/000/{new_session()}/xhr", headers=[("Cookie", cookie)])
    if "\x7f" in cookie and response.status == 400:
        return
    assert response.status == 200
    assert_cookie(response, "dummy")


def test_percent_escapes_in_a_cookie_stay_escapes(open_service: OpenService) -> None:
    """`a%0d%0aX:1` has no control characters; whatever comes back, it is one header line."""
    service = open_service("/cookie_needed_echo")
    cookie = [("Cookie", "JSESSIONID=a%0d%0aX:1")]
    response = service.request("POST", f"/000/{new_session()}/xhr", headers=cookie)
    assert response.header("set-cookie") in ("JSESSIONID=dummy; Path=/", "JSESSIONID=a%0d%0aX:1; Path=/")
    assert response.header("x") is None


@pytest.mark.parametrize("origin", ["x" * 10_000, "https://ex\xe4mple", "a b", "https://a,https://b", "https://a\tb"])
def test_odd_origins_are_never_an_error(echo: Service, origin: str) -> None:
    """Where every origin is allowed, what is no origin may be echoed or not; it is never a 500 nor a second header."""
    for method, path in (("GET", "/info"), ("POST", f"/000/{new_session()}/xhr"), ("OPTIONS", "/info")):
        response = echo.request(method, path, headers=[("Origin", origin)])
        assert response.status in (200, 204, 403)
        assert response.header("access-control-allow-origin") in (None, "*", origin)


def test_two_origins(echo: Service) -> None:
    headers = [("Origin", "https://a"), ("Origin", "https://b")]
    response = echo.request("GET", "/info", headers=headers)
    assert response.status in (200, 403)
    assert len(response.all("access-control-allow-origin")) <= 1


# ── SockJS: uploads that are none ────────────────────────────────────────────────────────────────────────────────────

BROKEN = [
    b'["x',
    b'["x"',
    b'"x',
    b"x",
    b'["x"] x',
    b'["x",]',
    b"['x']",
    b"[NaN]",
    b'["x"]\0',
    b"{}",
    b'"a"',
    b"1",
    b"null",
    b"true",
    b'{"0":"x"}',
    b'{"__proto__":null}',
    b"[1]",
    b"[null]",
    b'["x",1]',
    b'["x",null,{"a":1},["b"]]',
    b'[["x"]]',
    b'["\xff"]',
    b'["\xc0\xaf"]',
    b'["\xed\xa0\x80"]',
    b'["\xed\xa0\xbd\xed\xb8\x80"]',
    b'["\xf4\x90\x80\x80"]',
    b'["\xe2\x82"]',
    b'["a\nb"]',
    b'["\\x41"]',
    b'["\\u12"]',
    b'\xef\xbb\xbf["x"]',
    '["x"]'.encode("utf-16"),
    b"[" * 60_000,
    b'["x",' + b"[" * 60_000 + b"]" * 60_000 + b"]",
]


@pytest.mark.parametrize("transport", [XHR, JSONP], ids=str)
@pytest.mark.parametrize("body", BROKEN, ids=lambda body: repr(body[:24]))
def test_a_broken_upload(echo: Service, transport: Transport, body: bytes) -> None:
    """Nothing of it is applied, a finer code says what was wrong, and the session lives on."""
    session, _ = echo.open(transport)
    path = f"/000/{session}/{transport.upload}"
    response = echo.request("POST", path, headers=[("Content-Type", "text/plain")], body=body)
    assert response.status == 500
    assert (response.header("content-type") or "").startswith("text/plain")
    assert response.header("x-backsync-error")
    assert response.body() == b"Broken JSON encoding."
    echo.upload(transport, session, ["after"])
    echo.receive(transport, session).expect('a["after"]')


@pytest.mark.parametrize("body", [b"[1]", b'["x",null,{"a":1},["b"]]'])
def test_the_finer_code_of_what_is_not_a_string(echo: Service, body: bytes) -> None:
    session, _ = echo.open(XHR)
    response = echo.request("POST", f"/000/{session}/xhr_send", body=body)
    assert response.header("x-backsync-error") == "message_not_string"


@pytest.mark.parametrize("transport", [XHR, JSONP], ids=str)
def test_an_empty_upload(echo: Service, transport: Transport) -> None:
    session, _ = echo.open(transport)
    for content_type in ("text/plain", "application/x-www-form-urlencoded"):
        path = f"/000/{session}/{transport.upload}"
        response = echo.request("POST", path, headers=[("Content-Type", content_type)], body=b"")
        assert response.status == 500
        assert response.body() == b"Payload expected."
    echo.upload(transport, session, ["after"])
    echo.receive(transport, session).expect('a["after"]')


@pytest.mark.parametrize(
    ("body", "answers"),
    [
        (b"d=", {b"Payload expected."}),
        (b"p=p", {b"Payload expected."}),
        (b"d", {b"Payload expected."}),
        (b"&&&", {b"Payload expected."}),
        (b"D=[]", {b"Payload expected."}),
        (b"d=%5B%22x", {b"Broken JSON encoding."}),
        (b"d=%ZZ", {b"Broken JSON encoding."}),
        (b"d=%ff", {b"Broken JSON encoding."}),
        (b"d=[%22%ff%22]", {b"Broken JSON encoding."}),
        (b"d=[%22%ed%a0%80%22]", {b"Broken JSON encoding."}),
        (b"d=\xff", {b"Broken JSON encoding."}),
        (b"d=1", {b"Broken JSON encoding."}),
        (b"d=%7B%7D", {b"Broken JSON encoding."}),
        (b'["x"]', {b"Payload expected."}),
    ],
)
def test_a_broken_form(echo: Service, body: bytes, answers: set[bytes]) -> None:
    session, _ = echo.open(JSONP)
    headers = [("Content-Type", "application/x-www-form-urlencoded")]
    response = echo.request("POST", f"/000/{session}/jsonp_send", headers=headers, body=body)
    assert response.status == 500
    assert response.body() in answers
    echo.upload(JSONP, session, ["after"])
    echo.receive(JSONP, session).expect('a["after"]')


def test_a_form_that_says_it_twice(echo: Service) -> None:
    """The first counts, or the whole is refused; never both."""
    session, _ = echo.open(JSONP)
    headers = [("Content-Type", "application/x-www-form-urlencoded")]
    body = b"d=%5B%22a%22%5D&d=%5B%22b%22%5D"
    response = echo.request("POST", f"/000/{session}/jsonp_send", headers=headers, body=body)
    assert response.status in (200, 500)
    echo.upload(JSONP, session, ["after"])
    expected = ["a", "after"] if response.status == 200 else ["after"]
    assert HTTPConversation(echo, JSONP, session).receive(len(expected)) == expected


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_a_body_cut_off_is_not_applied(echo: Service, control: Control, how: str) -> None:
    """Also not where the part that came is a whole JSON array by itself."""
    for body in (b'["x"', b'["x"]'):
        session, _ = echo.open(XHR)
        wire = echo.wire()
        wire.send(head("POST", f"/echo/0/{session}/xhr_send", [("Content-Length", "100")]) + body)
        if how == "rst":
            wire.reset()
        else:
            wire.close()
        control.check()
        echo.upload(XHR, session, ["after"])
        echo.receive(XHR, session).expect('a["after"]')


def test_a_body_of_single_bytes(echo: Service) -> None:
    """Each byte a chunk of its own, characters cut apart: applied once, at the end."""
    session, _ = echo.open(XHR)
    wire = echo.wire()
    wire.send(head("POST", f"/echo/0/{session}/xhr_send", [("Transfer-Encoding", "chunked")]))
    for byte in '["häuser", "😀"]'.encode():
        wire.send(b"1\r\n" + bytes([byte]) + b"\r\n")
    wire.send(b"0\r\n\r\n")
    assert read_response(wire).status == 204
    assert HTTPConversation(echo, XHR, session).receive(2) == ["häuser", "😀"]


def test_messages_are_applied_once_however_the_request_ends(echo: Service) -> None:
    """The client resets the connection right after the last byte of its body: the upload counts once or not at all."""
    session, _ = echo.open(XHR)
    for number in range(20):
        body = f'["{number}"]'.encode()
        wire = echo.wire()
        wire.send(head("POST", f"/echo/0/{session}/xhr_send", [("Content-Length", str(len(body)))]) + body)
        wire.reset()
    echo.upload(XHR, session, ["last"])
    talk = HTTPConversation(echo, XHR, session)
    received: list[str] = []
    while not received or received[-1] != "last":
        received += talk.receive(1)
    assert len(received) == len(set(received))
    assert received[:-1] == sorted(received[:-1], key=int)


# ── SockJS: others ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
def test_a_receiver_with_a_body(echo: Service, transport: Transport) -> None:
    """A body where none is expected is of no interest, and the connection goes on after it."""
    wire = echo.wire()
    response = echo.request(transport.method, transport.path(new_session()), body=b"x" * 1000, on=wire)
    receiver = Receiver(transport, response)
    receiver.expect("o")
    if not transport.streaming:
        receiver.expect_end()
        assert echo.request("GET", "", on=wire).status == 200


def test_disconnects_leave_nothing(target: Target, echo: Service, control: Control) -> None:
    """Streams and polls break off by the hundred; then the server has as many open files as before."""
    before = target.open_files()
    for _ in range(50):
        _, stream = echo.open(XHR_STREAMING)
        stream.wire.reset()
        session, receiver = echo.open(XHR)
        receiver.wire.close()
        echo.waiting_poll(XHR, session).reset()
    until = time.monotonic() + 2.0
    while target.open_files() > before:
        assert time.monotonic() < until, f"{target.open_files()} files open, {before} before"
        control.check()


def test_a_new_session_for_each_of_a_thousand_polls(echo: Service, control: Control) -> None:
    wire = echo.wire()
    for _ in range(1000):
        assert echo.request("POST", f"/0/{new_session()}/xhr", on=wire).body() == b"o\n"
    control.check()


@pytest.mark.parametrize("power", [0, 5, 19, 20, -1, 1000])
def test_amplify(open_service: OpenService, power: int) -> None:
    """The server's own messages may be larger than what it accepts: half a megabyte in one frame."""
    session, _ = open_service("/amplify").open(XHR)
    service = open_service("/amplify")
    service.upload(XHR, session, [str(power)])
    (message,) = messages_of(service.receive(XHR, session).frame() or "")
    assert message == "x" * 2 ** min(max(power, 0), 19)
