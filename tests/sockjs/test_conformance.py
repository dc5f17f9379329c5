"""What each SockJS URL answers, to the byte: pages, info, methods, frames, headers, CORS, cookies, versions of HTTP."""

from __future__ import annotations

import email.utils
import json
import re
import time

import pytest

from tests.sockjs.client import Response, read_response, request
from tests.sockjs.client import head as request_head
from tests.sockjs.conftest import REFUSED_HANDSHAKE, OpenService, Target
from tests.sockjs.speech import (
    CALLBACK,
    EVENTSOURCE,
    HTML,
    HTMLFILE,
    JSONP,
    NO_STORE,
    PLAIN,
    POLLING,
    STREAMING,
    TRANSPORTS,
    XHR,
    XHR_STREAMING,
    Service,
    Transport,
    messages_of,
    new_session,
)

YEAR = 31_536_000

IFRAME = re.compile(
    r"""<!DOCTYPE html>
<html>
<head>
  <meta http-equiv="X-UA-Compatible" content="IE=edge" />
  <meta http-equiv="Content-Type" content="text/html; charset=UTF-8" />
  <script src="[^"<>\s]+"></script>
  <script>
    document\.domain = document\.domain;
    SockJS\.bootstrap_iframe\(\);
  </script>
</head>
<body>
  <h2>Don't panic!</h2>
  <p>This is a SockJS hidden iframe\. It's used for cross domain magic\.</p>
</body>
</html>"""
)


def assert_never_cached(response: Response) -> None:
    assert response.header("cache-control") == NO_STORE
    assert response.header("expires") is None
    assert response.header("last-modified") is None


def assert_cached_for_a_year(response: Response) -> None:
    assert response.header("cache-control") == f"public, max-age={YEAR}"
    expires = email.utils.parsedate_to_datetime(response.header("expires") or "")
    assert expires.timestamp() > time.time()
    assert response.header("last-modified") is None


# ── Greeting ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ["", "/"])
@pytest.mark.parametrize("prefix", ["/echo", "/cookie_needed_echo"])
def test_greeting(open_service: OpenService, prefix: str, path: str) -> None:
    response = open_service(prefix).request("GET", path)
    assert response.status == 200
    assert response.header("content-type") == PLAIN
    assert response.header("set-cookie") is None
    assert response.body() == b"Welcome to SockJS!\n"


def test_keep_alive_works_after_the_greeting(echo: Service) -> None:
    wire = echo.wire()
    for _ in range(3):
        response = echo.request("GET", "", on=wire)
        assert response.status == 200
        assert (response.header("connection") or "keep-alive").lower() == "keep-alive"
        assert response.body() == b"Welcome to SockJS!\n"


# ── Info ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("prefix", "websocket", "cookie_needed"),
    [
        ("/echo", True, False),
        ("/close", True, False),
        ("/disabled_websocket_echo", False, False),
        ("/cookie_needed_echo", True, True),
    ],
)
def test_info(open_service: OpenService, prefix: str, websocket: bool, cookie_needed: bool) -> None:
    response = open_service(prefix).request("GET", "/info")
    assert response.status == 200
    assert response.header("content-type") == "application/json; charset=UTF-8"
    assert response.header("set-cookie") is None
    assert_never_cached(response)
    info = json.loads(response.body())
    assert info["websocket"] is websocket
    assert info["cookie_needed"] is cookie_needed
    assert info["origins"] == ["*:*"]
    assert type(info["entropy"]) is int


def test_entropy_is_fresh_and_spans_32_bits(echo: Service) -> None:
    """32 draws, all different (odds of a collision: 1 to 8 million), the top bit both set and not (1 to 2^31)."""
    wire = echo.wire()
    draws = [json.loads(echo.request("GET", "/info", on=wire).body())["entropy"] for _ in range(32)]
    assert all(0 <= draw < 2**32 for draw in draws)
    assert len(set(draws)) == len(draws)
    assert {draw >> 31 for draw in draws} == {0, 1}


# ── The iframe page ──────────────────────────────────────────────────────────────────────────────────────────────────

GOOD_IFRAMES = [
    "/iframe.html",
    "/iframe-a.html",
    "/iframe-.html",
    "/iframe-0.1.2.html",
    "/iframe-0.1.2abc-dirty.2144.html",
    "/iframe.html?t=q1w2",
    "/iframe-a.html?x=/y",
    "/iframe.html.html",
    "/iframe-a%20b.html",
]
BAD_IFRAMES = [
    "/iframe",
    "/iframe.htm",
    "/iframe.xml",
    "/iframe.HTML",
    "/IFRAME.HTML",
    "/IFRAME.html",
    "/IFRAME",
    "/iframe-/.html",
    "/iframe-%2F.html",
    "/iframexhtml",
    "/iframe.html/",
    "/iframe.htmlx",
    "/xiframe.html",
    "/iframe.html%0A",
]


@pytest.mark.parametrize("path", GOOD_IFRAMES)
def test_iframe_page(echo: Service, path: str) -> None:
    response = echo.request("GET", path)
    assert response.status == 200
    assert response.header("content-type") == HTML
    assert response.header("set-cookie") is None
    assert_cached_for_a_year(response)
    etag = response.header("etag")
    assert etag is not None
    assert re.fullmatch(r'"[^"]+"', etag), "a strong ETag"
    page = response.body().decode()
    assert IFRAME.fullmatch(page), page


@pytest.mark.parametrize("path", BAD_IFRAMES)
def test_not_an_iframe_url(echo: Service, path: str) -> None:
    assert echo.request("GET", path).status == 404


def test_iframe_page_is_not_sent_again(echo: Service) -> None:
    etag = echo.request("GET", "/iframe.html").header("etag")
    assert etag is not None
    assert echo.request("GET", "/iframe-x.html").header("etag") == etag, "one page, one ETag"
    for known in (etag, "W/" + etag, f'"other", {etag}', "*"):
        response = echo.request("GET", "/iframe.html", headers=[("If-None-Match", known)])
        assert response.status == 304, known
        assert response.header("content-type") is None
        assert response.header("etag") == etag
        wire = response.wire
        assert response.body() == b""
        # Nothing may follow the head: the next answer on this connection is read from its first byte.
        assert echo.request("GET", "", on=wire).body() == b"Welcome to SockJS!\n"


@pytest.mark.parametrize(
    "unknown", ['"other"', "", '"', 'W/"', "x" * 10_000, '"' + "x" * 10_000 + '"', '"\xff"', ",,,"]
)
def test_iframe_page_is_sent_for_another_etag(echo: Service, unknown: str) -> None:
    response = echo.request("GET", "/iframe.html", headers=[("If-None-Match", unknown)])
    assert response.status == 200
    assert IFRAME.fullmatch(response.body().decode())


# ── URLs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

GOOD_PLACES = [
    "/a/{}",
    "/_/{}_",
    "/1/{}",
    "/abcdefgh_i-j%20/{}abcdefg_i-j%20",
    "/%C3%BC/{}%E2%82%AC",
    "/~!$&'()*+,=:@/{}x",
]


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("place", GOOD_PLACES)
def test_server_and_session_are_any_segments(echo: Service, place: str, transport: Transport) -> None:
    place = place.format(new_session())
    query = f"?c={CALLBACK}" if transport.needs_callback else ""
    assert echo.request(transport.method, f"{place}/{transport.name}{query}").status == 200


BAD_PLACES = [
    "",
    "/",
    "//",
    "///",
    "/a",
    "/a/",
    "//a",
    "/a/a/",
    "//a/a",
    "/a//a",
    "/a/a/a",
    "/a./a",
    "/a/a.",
    "/./.",
    "/a/..",
    "/../a",
    "/.",
    "/a%2E/a",
    "/a/%2ea",
    "/%2e%2e/a",
    "/a/b%2Fc",
]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("name", ["xhr", "eventsource", "xhr_send"])
@pytest.mark.parametrize("place", BAD_PLACES)
def test_wrong_segments_are_not_found(echo: Service, place: str, name: str, method: str) -> None:
    assert echo.request(method, f"{place}/{name}").status == 404


@pytest.mark.parametrize(
    "path",
    [
        "/info/",
        "/info.json",
        "/INFO",
        "/infox",
        "//",
        "/000/s/xhr/",
        "/000/s/xhrx",
        "/000/s/XHR",
        "/000/s/",
        "/000/s",
        "/000/s/unknown",
        "/000/s/websocket/",
        "/websocket/",
        "/websocket/x",
        "/000/websocket",
        "/000/s/__init__",
    ],
)
def test_other_urls_are_not_found(echo: Service, path: str) -> None:
    for method in ("GET", "POST"):
        assert echo.request(method, path).status == 404


def test_a_prefix_is_matched_whole(open_service: OpenService) -> None:
    for prefix in ("/ech", "/echox", "/Echo", ""):
        assert open_service(prefix).request("GET", "/info").status == 404


# ── Methods ──────────────────────────────────────────────────────────────────────────────────────────────────────────

METHODS = {
    "": {"GET"},
    "/": {"GET"},
    "/iframe.html": {"GET"},
    "/info": {"GET", "OPTIONS"},
    "/000/s/xhr": {"POST", "OPTIONS"},
    "/000/s/xhr_streaming": {"POST", "OPTIONS"},
    "/000/s/xhr_send": {"POST", "OPTIONS"},
    "/000/s/eventsource": {"GET"},
    f"/000/s/htmlfile?c={CALLBACK}": {"GET"},
    f"/000/s/jsonp?c={CALLBACK}": {"GET"},
    "/000/s/jsonp_send": {"POST"},
    "/000/s/websocket": {"GET"},
    "/websocket": {"GET"},
}


WRONG_METHODS = [
    (path, method)
    for path, allowed in METHODS.items()
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS")
    if method not in allowed
]


@pytest.mark.parametrize(("path", "method"), WRONG_METHODS)
def test_a_wrong_method_is_405(echo: Service, path: str, method: str) -> None:
    allowed = METHODS[path]
    response = echo.request(method, path)
    assert response.status == 405
    named = {name.strip() for name in (response.header("allow") or "").split(",")}
    assert allowed <= named, named
    assert method not in named
    assert response.header("content-type") is None
    assert response.body() == b""


def test_a_plain_get_on_a_websocket_url(echo: Service) -> None:
    for path in ("/000/s/websocket", "/websocket"):
        response = echo.request("GET", path)
        assert response.status == 400
        assert response.body() == b'Can "Upgrade" only to "WebSocket".'


@pytest.mark.parametrize("connection", ["close", "keep-alive", "x-upgrade"])
def test_an_upgrade_that_the_connection_header_does_not_announce(echo: Service, connection: str) -> None:
    headers = [("Upgrade", "websocket"), ("Connection", connection), ("Sec-WebSocket-Version", "13")]
    for path in ("/000/s/websocket", "/websocket"):
        response = echo.request("GET", path, headers=headers)
        assert response.status == 400
        assert response.body() == b'"Connection" must be "Upgrade".'


def test_an_upgrade_to_something_else(echo: Service) -> None:
    headers = [("Upgrade", "h2c"), ("Connection", "keep-alive")]
    response = echo.request("GET", "/000/s/websocket", headers=headers)
    assert response.status == 400
    assert response.body() == b'Can "Upgrade" only to "WebSocket".'


# ── The disabled transport ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ["/000/s/websocket", "/websocket"])
def test_a_disabled_transport_is_not_found(target: Target, open_service: OpenService, path: str) -> None:
    target.allow_error(REFUSED_HANDSHAKE)
    service = open_service("/disabled_websocket_echo")
    assert service.request("GET", path).status == 404
    assert service.request("POST", path).status == 404
    handshake = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="),
    ]
    assert service.request("GET", path, headers=handshake).status == 404


def test_the_other_transports_work_where_one_is_disabled(open_service: OpenService) -> None:
    for transport in TRANSPORTS:
        talk = open_service("/disabled_websocket_echo").converse(transport)
        talk.send("x")
        assert talk.receive(1) == ["x"]


# ── Frames on the wire ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("transport", POLLING, ids=str)
def test_one_poll_is_one_frame(echo: Service, transport: Transport) -> None:
    session = new_session()
    wire = echo.wire()
    for upload, frame in ((None, "o"), (["x"], 'a["x"]'), (["y"], 'a["y"]')):
        if upload is not None:
            echo.upload(transport, session, upload)
        response = echo.request(transport.method, transport.path(session), on=wire)
        assert response.status == 200
        assert response.header("content-type") == transport.content_type
        assert response.body() == transport.encode(frame)


@pytest.mark.parametrize("transport", STREAMING, ids=str)
def test_streaming_is_prelude_then_frames_each_at_once(echo: Service, transport: Transport) -> None:
    """`Receiver` has read the prelude as one chunk; here each frame is read as one before the next is caused."""
    session, stream = echo.open(transport)
    assert stream.response.header("content-type") == transport.content_type
    assert stream.response.header("x-accel-buffering") == "no"
    for message in ("x", "y", "abc"):
        echo.upload(transport, session, [message])
        assert stream.response.chunk() == transport.encode(f'a["{message}"]')


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
def test_a_waiting_poll_gets_what_comes(echo: Service, transport: Transport) -> None:
    session, stream = echo.open(transport)
    if not transport.streaming:
        poll = echo.waiting_poll(transport, session)
        echo.upload(transport, session, ["x"])
        assert read_response(poll).body() == transport.encode('a["x"]')
    else:
        echo.upload(transport, session, ["x"])
        stream.expect('a["x"]')


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
def test_all_that_waits_goes_into_one_frame(open_service: OpenService, transport: Transport) -> None:
    """A witness on the same service tells when the messages have reached every session, the waiting one included."""
    broadcast = open_service("/broadcast")
    session, stream = broadcast.open(transport)
    if transport.streaming:
        # Let the stream end at its byte limit, so that the session has no receiver.
        filler = "x" * 5000
        broadcast.upload(transport, session, [filler])
        assert messages_of(stream.frame() or "") == [filler]
        stream.expect_end()
    witness = broadcast.converse("websocket")
    token = new_session()
    sent = [f"{token}-{number}" for number in range(5)]
    witness.send(*sent)
    assert witness.receive(5) == sent
    witness.send("after")
    assert witness.receive(1) == ["after"]
    frame = broadcast.receive(transport, session).frame()
    assert messages_of(frame or "")[:5] == sent


def frames_until_the_limit(transport: Transport, message: str, limit: int = 4096) -> int:
    """How many frames with this message a stream carries before it ends; the same whether or not `o` is counted."""
    size = len(transport.encode(f'a["{message}"]'))
    counts = {-(-(limit - opening) // size) for opening in (0, len(transport.encode("o")))}
    assert len(counts) == 1, "choose another message: the count hangs on the open frame"
    count = counts.pop()
    unframed = -(-limit // len(message))
    assert count != unframed, "choose another message: the framing would not show"
    return count


@pytest.mark.parametrize("transport", STREAMING, ids=str)
def test_a_stream_ends_at_its_byte_limit(echo: Service, transport: Transport) -> None:
    """4096 bytes: the framing counts, the prelude (2 KiB of it for xhr_streaming) does not."""
    message = "x" * 128
    session, stream = echo.open(transport)
    for _ in range(frames_until_the_limit(transport, message)):
        echo.upload(transport, session, [message])
        stream.expect(f'a["{message}"]')
    stream.expect_end()
    echo.upload(transport, session, ["between"])
    echo.receive(transport, session).expect('a["between"]')


@pytest.mark.parametrize("transport", STREAMING, ids=str)
def test_one_big_message_is_whole_and_ends_the_stream(echo: Service, transport: Transport) -> None:
    session, stream = echo.open(transport)
    message = "x" * 4096
    echo.upload(transport, session, [message])
    stream.expect(f'a["{message}"]')
    stream.expect_end()


def test_htmlfile_data_cannot_end_the_script(echo: Service) -> None:
    for transport in (HTMLFILE, JSONP):
        session, stream = echo.open(transport)
        message = "</script><script>alert(1)</script><!--"
        echo.upload(transport, session, [message])
        if not transport.streaming:
            stream = echo.receive(transport, session)
        data = stream.response.chunk()
        assert data is not None
        inner = data[len(transport.before) : len(data) - len(transport.after)]
        assert b"</" not in inner
        if transport is HTMLFILE:
            assert b"<!--" not in inner, "it changes how a parser reads the following </script>"
        assert messages_of(transport.decode(data)) == [message]


def test_eventsource_percent_encodes_what_a_data_line_cannot_hold(echo: Service) -> None:
    session, stream = echo.open(EVENTSOURCE)
    message = "100% \r\n\0 %25 %0A"
    echo.upload(EVENTSOURCE, session, [message])
    data = stream.response.chunk()
    assert data is not None
    assert data == b'data: a["100%25 \\r\\n\\u0000 %2525 %250A"]\r\n\r\n'
    assert messages_of(EVENTSOURCE.decode(data)) == [message]


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
def test_a_closing_service(open_service: OpenService, transport: Transport) -> None:
    close = open_service("/close")
    session, stream = close.open(transport)
    if not transport.streaming:
        stream = close.receive(transport, session)
    stream.expect('c[3000,"Go away!"]')
    stream.expect_end()


def test_a_closing_service_over_websocket(open_service: OpenService) -> None:
    socket = open_service("/close").websocket()
    assert socket.receive() == "o"
    assert socket.receive() == 'c[3000,"Go away!"]'
    code, _ = socket.read_close()
    socket.close(code)
    assert socket.wire.read_to_end() == b""


# ── Callbacks ────────────────────────────────────────────────────────────────────────────────────────────────────────

REQUIRED, INVALID = b'"callback" parameter required', b'invalid "callback" parameter'


@pytest.mark.parametrize("name", ["jsonp", "htmlfile"])
@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", REQUIRED),
        ("?", REQUIRED),
        ("?c=", REQUIRED),
        ("?c", REQUIRED),
        ("?d=abc", REQUIRED),
        ("?C=abc", REQUIRED),
        ("?c=%20", INVALID),
        ("?c=*", INVALID),
        ("?c=abc(", INVALID),
        ("?c=abc%28", INVALID),
        ("?c=abc%0A", INVALID),
        ("?c=%0Aabc", INVALID),
        ("?c=abc%00", INVALID),
        ("?c=</script>", INVALID),
        ("?c=%3C/script%3E%3Cscript%3E", INVALID),
        ("?c=a%20b", INVALID),
        ("?c=a+b", INVALID),
        ("?c=a;b", INVALID),
        ("?c=%C3%A9", INVALID),
        ("?c=%CE%B1lert", INVALID),
        ("?c=%D9%A1", INVALID),
        ("?c=%ff", INVALID),
        ("?c=" + "x" * 33, INVALID),
        ("?c=" + "x" * 3000, INVALID),
        ("?c=a&c=b", INVALID),
        ("?c=a[0]", INVALID),
    ],
)
def test_a_bad_callback(echo: Service, name: str, query: str, message: bytes) -> None:
    session = new_session()
    response = echo.request("GET", f"/000/{session}/{name}{query}")
    assert response.status == 500
    assert (response.header("content-type") or "").startswith("text/plain")
    assert response.body() == message
    assert echo.send(XHR, session, '["x"]').status == 404, "validated before any session is opened"


@pytest.mark.parametrize("name", ["jsonp", "htmlfile"])
def test_no_answer_of_a_script_transport_is_sniffed(echo: Service, name: str) -> None:
    for query in ("", "?c=*", f"?c={CALLBACK}"):
        response = echo.request("GET", f"/000/{new_session()}/{name}{query}")
        assert response.header("x-content-type-options") == "nosniff", query


@pytest.mark.parametrize("callback", ["x", "_jp.a1b2", "a.b-c_D9", "x" * 32, "%63allback", "_sockjs_global.aB3"])
def test_a_good_callback(echo: Service, callback: str) -> None:
    name = callback.replace("%63", "c").encode()
    response = echo.request("GET", f"/000/{new_session()}/jsonp?c={callback}")
    assert response.body() == b"/**/" + name + b'("o");\r\n'
    response = echo.request("GET", f"/000/{new_session()}/htmlfile?c={callback}&x=y")
    assert b"\n    var c = parent." + name + b";\n" in (response.chunk() or b"")


# ── Headers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
def test_receivers_and_uploads_are_never_cached(echo: Service, transport: Transport) -> None:
    session, stream = echo.open(transport)
    assert_never_cached(stream.response)
    assert_never_cached(echo.send(transport, session, '["x"]'))
    if transport.needs_callback:
        assert stream.response.header("x-content-type-options") == "nosniff"


CORS_URLS = [
    ("GET", "/info"),
    ("POST", "/000/{}/xhr"),
    ("POST", "/000/{}/xhr_streaming"),
    ("POST", "/000/{}/xhr_send"),  # to a session that does not exist: a page must be able to read the 404 too
    ("GET", "/000/{}/eventsource"),
]


@pytest.mark.parametrize(("method", "path"), CORS_URLS)
@pytest.mark.parametrize(
    ("origin", "allowed", "credentials"),
    [
        (None, "*", None),
        ("http://example.com", "http://example.com", "true"),
        ("https://sub.example.com:8443", "https://sub.example.com:8443", "true"),
        ("test", "test", "true"),
        ("null", "null", "true"),
    ],
)
def test_cors(echo: Service, method: str, path: str, origin: str | None, allowed: str, credentials: str | None) -> None:
    headers = [] if origin is None else [("Origin", origin)]
    response = echo.request(method, path.format(new_session()), headers=headers)
    assert response.header("access-control-allow-origin") == allowed
    assert response.header("access-control-allow-credentials") == credentials


def test_cors_on_an_accepted_upload(echo: Service) -> None:
    session, _ = echo.open(XHR)
    response = echo.request("POST", f"/0/{session}/xhr_send", headers=[("Origin", "http://a.b")], body=b'["x"]')
    assert response.status == 204
    assert response.header("access-control-allow-origin") == "http://a.b"
    assert response.header("access-control-allow-credentials") == "true"


PREFLIGHTS = [
    ("/info", "OPTIONS, GET"),
    ("/000/s/xhr", "OPTIONS, POST"),
    ("/000/s/xhr_streaming", "OPTIONS, POST"),
    ("/000/s/xhr_send", "OPTIONS, POST"),
]


@pytest.mark.parametrize(("method", "path"), [("GET", "/iframe.html"), ("OPTIONS", "/info"), ("OPTIONS", "/0/s/xhr")])
def test_expires_is_a_year_ahead(echo: Service, method: str, path: str) -> None:
    expires = email.utils.parsedate_to_datetime(echo.request(method, path).header("expires") or "")
    assert abs(expires.timestamp() - time.time() - YEAR) < 2 * 86_400


@pytest.mark.parametrize(("path", "methods"), PREFLIGHTS)
@pytest.mark.parametrize("origin", [None, "http://example.com", "null"])
def test_preflight(echo: Service, path: str, methods: str, origin: str | None) -> None:
    headers = [] if origin is None else [("Origin", origin), ("Access-Control-Request-Method", "POST")]
    response = echo.request("OPTIONS", path, headers=headers)
    assert response.status == 204
    assert response.body() == b""
    assert_cached_for_a_year(response)
    assert response.header("access-control-max-age") == str(YEAR)
    assert response.header("access-control-allow-methods") == methods
    assert response.header("access-control-allow-headers") is None
    assert response.header("access-control-allow-origin") == ("*" if origin is None else origin)
    assert response.header("access-control-allow-credentials") == (None if origin is None else "true")


@pytest.mark.parametrize(("path", "methods"), PREFLIGHTS)
@pytest.mark.parametrize(
    ("asked", "allowed"),
    [
        ("content-type", "content-type"),
        ("a, b, c", "a, b, c"),
        ("X-One,X-Two", "X-One,X-Two"),
        ("", None),
        ("   ", None),
        ("a b", None),
        ("a: b", None),
        ("<script>", None),
        ("x" * 8192, None),
        ("\xe9", None),
    ],
)
def test_preflight_echoes_header_names_and_nothing_else(
    echo: Service, path: str, methods: str, asked: str, allowed: str | None
) -> None:
    headers = [("Origin", "http://example.com"), ("Access-Control-Request-Headers", asked)]
    response = echo.request("OPTIONS", path, headers=headers)
    assert response.status == 204
    assert response.header("access-control-allow-methods") == methods
    assert response.header("access-control-allow-headers") == allowed


# ── Cookies ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def assert_cookie(response: Response, value: str) -> None:
    cookie = response.header("set-cookie")
    assert cookie is not None
    pair, *attributes = cookie.split(";")
    assert pair == f"JSESSIONID={value}"
    assert [each.strip().lower() for each in attributes] == ["path=/"]


GOOD_COOKIES = [
    (None, "dummy"),
    ("", "dummy"),
    ("other=1", "dummy"),
    ("JSESSIONID=abcdef", "abcdef"),
    ("JSESSIONID=abcdef; other=1", "abcdef"),
    ("other=1; JSESSIONID=abc-DEF_0.9~x", "abc-DEF_0.9~x"),
    ("JSESSIONID=first; JSESSIONID=second", "first"),
    ("XJSESSIONID=x", "dummy"),
    ("other=JSESSIONID=x", "dummy"),
]


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize(("sent", "echoed"), GOOD_COOKIES)
def test_cookie_on_every_session_url(
    open_service: OpenService, transport: Transport, sent: str | None, echoed: str
) -> None:
    service = open_service("/cookie_needed_echo")
    headers = [] if sent is None else [("Cookie", sent)]
    session = new_session()
    assert_cookie(service.request(transport.method, transport.path(session), headers=headers), echoed)
    path = f"/000/{session}/{transport.upload}"
    assert_cookie(service.request("POST", path, headers=headers, body=b'["x"]'), echoed)


@pytest.mark.parametrize(("sent", "echoed"), GOOD_COOKIES)
def test_cookie_on_a_websocket(open_service: OpenService, sent: str | None, echoed: str) -> None:
    headers = [] if sent is None else [("Cookie", sent)]
    assert_cookie(open_service("/cookie_needed_echo").websocket(headers=headers).response, echoed)


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
def test_no_cookie_unless_asked_for(echo: Service, transport: Transport) -> None:
    session = new_session()
    cookie = [("Cookie", "JSESSIONID=abcdef")]
    for method, path in ((transport.method, transport.path(session)), ("POST", f"/000/{session}/{transport.upload}")):
        assert echo.request(method, path, headers=cookie).header("set-cookie") is None


# ── HTTP versions ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_http_1_0_answers_are_whole(echo: Service) -> None:
    wire = echo.wire()
    response = request(wire, "GET", "/echo", version="HTTP/1.0")
    assert response.status == 200
    assert not response.chunked
    assert response.body() == b"Welcome to SockJS!\n"
    assert wire.read_to_end() == b"", "without keep-alive the connection ends"


@pytest.mark.parametrize("transport", POLLING, ids=str)
def test_http_1_0_polls(target: Target, open_service: OpenService, transport: Transport) -> None:
    """One frame, then the end of the connection. uvicorn with httptools may chunk it all the same, h11 does not."""
    echo = open_service("/echo")
    response = echo.request(transport.method, transport.path(new_session()), version="HTTP/1.0")
    assert response.status == 200
    if target.http == "h11":
        assert not response.chunked
    assert response.body() == transport.encode("o")
    assert response.wire.read_to_end() == b""


@pytest.mark.parametrize("transport", STREAMING, ids=str)
def test_http_1_0_streams_end_with_the_connection(
    target: Target, open_service: OpenService, transport: Transport
) -> None:
    """uvicorn with httptools chunks the answer to an HTTP/1.0 client all the same, which no application can change:
    a client of that age would see the chunk sizes as data. With h11 there are no chunks. Both end the connection."""
    close = open_service("/close")
    response = close.request(transport.method, transport.path(new_session()), version="HTTP/1.0")
    assert response.status == 200
    assert response.header("content-length") is None
    assert response.chunked is (target.http == "httptools")
    body = response.body()
    assert body.endswith(transport.encode("o") + transport.encode('c[3000,"Go away!"]'))
    assert response.wire.read_to_end() == b""


@pytest.mark.parametrize("transport", STREAMING, ids=str)
def test_http_1_1_streams_are_chunked_and_the_connection_lives_on(
    open_service: OpenService, transport: Transport
) -> None:
    close = open_service("/close")
    response = close.request(transport.method, transport.path(new_session()))
    assert response.chunked
    assert response.header("content-length") is None
    assert response.body().endswith(transport.encode('c[3000,"Go away!"]'))
    assert close.request("GET", "", on=response.wire).body() == b"Welcome to SockJS!\n"


def test_xhr_polls_on_one_connection(echo: Service) -> None:
    """A receiver lets go of the session before its last bytes are sent: no fast client is told 2010 by mistake."""
    session, wire, sender = new_session(), echo.wire(), echo.wire()
    for number in range(100):
        frame = "o" if number == 0 else f'a["{number}"]'
        assert echo.request("POST", f"/0/{session}/xhr", on=wire).body() == frame.encode() + b"\n"
        upload = f'["{number + 1}"]'.encode()
        assert echo.request("POST", f"/0/{session}/xhr_send", body=upload, on=sender).status == 204


def test_the_next_poll_on_another_connection_is_no_second_receiver(echo: Service) -> None:
    session = new_session()
    wires = [echo.wire() for _ in range(4)]
    assert echo.request("POST", f"/0/{session}/xhr", on=wires[0]).body() == b"o\n"
    for number in range(100):
        waiting = wires[number % 3]
        path = f"{echo.prefix}/0/{session}/xhr"
        waiting.send(request_head("POST", path, [("Content-Length", "0")]))
        upload = f'["{number}"]'.encode()
        assert echo.request("POST", f"/0/{session}/xhr_send", body=upload, on=wires[3]).status == 204
        response = read_response(waiting)
        frame = response.chunk()
        # Sent before the end of the last response was read: the earliest that a client can be.
        wires[(number + 1) % 3].send(request_head("POST", path, [("Content-Length", "0")]))
        assert frame == f'a["{number}"]\n'.encode()
        assert response.chunk() is None
        upload = f'["{number}+"]'.encode()
        assert echo.request("POST", f"/0/{session}/xhr_send", body=upload, on=wires[3]).status == 204
        again = read_response(wires[(number + 1) % 3])
        assert again.body() == f'a["{number}+"]\n'.encode()


def test_a_stream_is_followed_by_the_next_at_once(echo: Service) -> None:
    message = "x" * 4096
    session, stream = echo.open(XHR_STREAMING)
    for _ in range(30):
        echo.upload(XHR_STREAMING, session, [message])
        stream.expect(f'a["{message}"]')
        following = echo.receive(XHR_STREAMING, session)
        stream.expect_end()
        stream = following
