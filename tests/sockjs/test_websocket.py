"""The framed and the raw WebSocket: framing, handshakes, and frames that RFC 6455 forbids, beside a healthy client."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.servers import Server
from tests.sockjs.client import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    WebSocket,
    frame_bytes,
    handshake,
    head,
    read_response,
    request,
)
from tests.sockjs.conftest import ECHO_APP, REFUSED_HANDSHAKE, Control, OpenService, Target
from tests.sockjs.speech import Service, messages_of, new_session

pytestmark = pytest.mark.usefixtures("control")

PLACES = ["/000/{}/websocket", "/websocket"]


def open_socket(service: Service, place: str = PLACES[0]) -> WebSocket:
    socket = service.websocket(place.format(new_session()))
    if place == PLACES[0]:
        assert socket.receive() == "o"
    return socket


def assert_echoes(socket: WebSocket, place: str = PLACES[0]) -> None:
    """The connection is as good as new."""
    if place == PLACES[0]:
        socket.send('["alive"]')
        assert socket.receive() == 'a["alive"]'
    else:
        socket.send("alive")
        assert socket.receive() == "alive"


# ── Framing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_array_or_a_single_string(echo: Service) -> None:
    socket = open_socket(echo)
    socket.send('["a","b"]')
    received: list[str] = []
    while len(received) < 2:
        received += messages_of(socket.receive())
    assert received == ["a", "b"]
    socket.send('"c"')
    assert socket.receive() == 'a["c"]'


def test_nothing_is_ignored(echo: Service) -> None:
    socket = open_socket(echo)
    for nothing in ("", "[]", " [ ] "):
        socket.send(nothing)
    assert_echoes(socket)


@pytest.mark.parametrize(
    "broken",
    ['["a', '"a', "{", "[", "a", '["a"] x', '["a",]', "NaN", "\0", "1", "null", "true", "{}", '{"a":"b"}', '["a",1]',
     "[null]", "[[]]", '[["a"]]', "[" * 30_000, '{"__proto__":null}', "'a'", "\ufeff[]x"],
)  # fmt: skip
def test_broken_framing_ends_the_connection_at_once(echo: Service, broken: str) -> None:
    """Nothing is echoed, and the close comes within a second."""
    socket = open_socket(echo)
    socket.wire.deadline = 1.0
    socket.send(broken)
    assert socket.read_frame() == (CLOSE, struct.pack("!H", 3000) + b"Broken framing.")
    socket.close(3000)
    assert socket.wire.read_to_end() == b""


def test_nothing_of_a_broken_batch_is_applied(open_service: OpenService) -> None:
    """Were the first message of the batch applied, a witness on /broadcast would hear it before the one after it."""
    broadcast = open_service("/broadcast")
    witness = broadcast.converse("websocket")
    socket = open_socket(broadcast)
    token = new_session()
    socket.send(f'["{token}", 1]')
    socket.read_close()
    witness.send("after")
    assert witness.receive(1) == ["after"]


def test_text_sent_before_the_open_frame_is_read(echo: Service) -> None:
    socket = echo.websocket()
    socket.send('["1"]')
    socket.send('["2","3"]')
    assert socket.receive() == "o"
    received: list[str] = []
    while len(received) < 3:
        received += messages_of(socket.receive())
    assert received == ["1", "2", "3"]


def test_text_sent_right_after_the_handshake(echo: Service) -> None:
    """Right after the answer, before anything that the server says over it is read."""
    wire = echo.wire()
    wire.send(head("GET", f"{echo.prefix}/0/{new_session()}/websocket", handshake()))
    assert read_response(wire).status == 101
    wire.send(frame_bytes(TEXT, b'["1"]'))
    assert wire.read_exactly(3) == b"\x81\x01o"
    assert wire.read_exactly(8) == b'\x81\x06a["1"]'


@pytest.mark.parametrize("place", PLACES)
def test_fragments_are_one_message(echo: Service, place: str) -> None:
    socket = open_socket(echo, place)
    message = '["häuser"]'.encode()
    pieces = [message[:4], message[4:5], b"", message[5:]]  # a character is cut in two
    socket.send_frame(TEXT, pieces[0], fin=False)
    socket.send_frame(CONTINUATION, pieces[1], fin=False)
    socket.send_frame(PING, b"between")
    socket.send_frame(CONTINUATION, pieces[2], fin=False)
    socket.send_frame(CONTINUATION, pieces[3])
    assert socket.read_frame() == (PONG, b"between")
    assert socket.receive() == ('a["häuser"]' if place == PLACES[0] else '["häuser"]')


@pytest.mark.parametrize("place", PLACES)
def test_ping_is_answered_and_an_unsolicited_pong_ignored(echo: Service, place: str) -> None:
    socket = open_socket(echo, place)
    socket.send_frame(PONG, b"unsolicited")
    for payload in (b"", b"x", b"y" * 125):
        socket.send_frame(PING, payload)
        assert socket.read_frame() == (PONG, payload)
    assert_echoes(socket, place)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "bye"), (3000, "€"), (4999, "x" * 123)])
def test_a_close_is_answered(echo: Service, place: str, code: int, reason: str) -> None:
    socket = open_socket(echo, place)
    socket.close(code, reason)
    assert socket.read_close()[0] == code
    assert socket.wire.read_to_end() == b""


def test_a_close_without_a_code_is_answered(echo: Service) -> None:
    socket = open_socket(echo)
    socket.send_frame(CLOSE)
    assert socket.read_close()[0] in (1000, 1005)
    assert socket.wire.read_to_end() == b""


def test_a_message_after_the_close_frame_is_ignored(open_service: OpenService) -> None:
    broadcast = open_service("/broadcast")
    witness = broadcast.converse("websocket")
    socket = open_socket(broadcast)
    token = new_session()
    goodbye = frame_bytes(CLOSE, struct.pack("!H", 1000)) + frame_bytes(TEXT, f'["{token}"]'.encode())
    socket.wire.send(goodbye)
    socket.read_close()
    witness.send("after")
    assert witness.receive(1) == ["after"]


def test_raw_closing_carries_code_and_reason(open_service: OpenService) -> None:
    socket = open_service("/close").websocket("/websocket")
    assert socket.read_close() == (3000, "Go away!")
    socket.close(3000)
    assert socket.wire.read_to_end() == b""


def test_framed_closing_says_it_twice(open_service: OpenService) -> None:
    """The close frame of SockJS first; then the socket closes too, by its own close frame."""
    socket = open_service("/close").websocket()
    assert socket.receive() == "o"
    assert socket.receive() == 'c[3000,"Go away!"]'
    assert socket.read_close()[0] in (1000, 3000)


# ── Handshakes ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("changed", "without"),
    [
        ([("Sec-WebSocket-Version", "8")], []),
        ([("Sec-WebSocket-Version", "x")], []),
        ([], ["Sec-WebSocket-Version"]),
        ([], ["Sec-WebSocket-Key"]),
        ([("Sec-WebSocket-Key", "")], []),
        ([("Sec-WebSocket-Key", "short")], []),
        ([("Sec-WebSocket-Key", "\xe9" * 24)], []),
    ],
)
def test_a_bad_handshake(echo: Service, place: str, changed: list[tuple[str, str]], without: list[str]) -> None:
    """All answered by uvicorn: 400, or 426 with the version that it wants."""
    path = echo.prefix + place.format(new_session())
    response = request(echo.wire(), "GET", path, headers=handshake(without=without, replaced=changed))
    wrong_version = any(name == "Sec-WebSocket-Version" for name, _ in changed)
    assert response.status in ((400, 426) if wrong_version else (400,))
    if response.status == 426:
        assert response.header("sec-websocket-version") == "13"


@pytest.mark.parametrize("place", PLACES)
def test_connection_close_with_an_upgrade(echo: Service, place: str) -> None:
    path = echo.prefix + place.format(new_session())
    response = request(echo.wire(), "GET", path, headers=handshake(replaced=[("Connection", "close")]))
    assert response.status == 400
    assert response.body() == b'"Connection" must be "Upgrade".'


@pytest.mark.parametrize("connection", ["keep-alive, Upgrade", "UPGRADE", "upgrade", "keep-alive , upgrade"])
def test_connection_headers_that_browsers_and_proxies_send(echo: Service, connection: str) -> None:
    path = f"{echo.prefix}/0/{new_session()}/websocket"
    headers = handshake(replaced=[("Connection", connection), ("Upgrade", "WebSocket")])
    wire = echo.wire()
    assert request(wire, "GET", path, headers=headers).status == 101
    assert wire.read_exactly(3) == b"\x81\x01o"


@pytest.mark.parametrize("place", PLACES)
def test_post_with_an_upgrade(echo: Service, place: str) -> None:
    """uvicorn takes the request for a handshake and hands it to its WebSocket library, which answers by itself: 405
    with `Allow`, as SockJS asks for, but with a text where SockJS asks for an empty body without a type."""
    path = echo.prefix + place.format(new_session())
    response = request(echo.wire(), "POST", path, headers=handshake(), body=b"")
    assert response.status == 405
    assert response.header("allow") == "GET"
    assert response.header("content-type") == "text/plain; charset=utf-8"


@pytest.mark.parametrize(
    "path",
    ["/", "", "/info", "/000/s/unknown", "/000/s.t/websocket", "/000/s/websocket/", "/000/s/xhr", "//websocket",
     "/iframe.html"],
)  # fmt: skip
def test_a_handshake_elsewhere_is_refused(target: Target, echo: Service, path: str) -> None:
    target.allow_error(REFUSED_HANDSHAKE)
    response = request(echo.wire(), "GET", echo.prefix + path, headers=handshake())
    assert response.status in (403, 404)


@pytest.mark.parametrize("protocols", ["", "x" * 8000, "v1, v2", "\xe9", ",,,", "a b", "v1;q=1", "__proto__"])
def test_odd_subprotocols(echo: Service, protocols: str) -> None:
    """Ignored, or refused by the server in front; none is ever selected."""
    path = f"{echo.prefix}/0/{new_session()}/websocket"
    wire = echo.wire()
    response = request(wire, "GET", path, headers=[*handshake(), ("Sec-WebSocket-Protocol", protocols)])
    assert response.status in (101, 400)
    assert response.header("sec-websocket-protocol") is None
    if response.status == 101:
        assert wire.read_exactly(3) == b"\x81\x01o"


@pytest.mark.parametrize(
    ("header", "refused_by"),
    [(("Sec-WebSocket-Protocol", "chat\x7f"), "httptools"), (("X", "x" * 10_000), None)],
    ids=["a control character", "a line of 10 kB"],
)
def test_a_handshake_that_gets_no_answer(
    target: Target, echo: Service, header: tuple[str, str], refused_by: str | None
) -> None:
    """What the HTTP parser lets pass and the WebSocket library refuses (its lines end at 8 KiB), uvicorn forgets to
    answer: the connection stays, without a word, until the client leaves. No code of ours hears of it."""
    wire = echo.wire()
    wire.send(head("GET", f"{echo.prefix}/0/s/websocket", [*handshake(), header]))
    if target.http == refused_by:
        assert read_response(wire).status == 400
    else:
        wire.deadline = 0.3
        with pytest.raises(TimeoutError):
            wire.read_some()


@pytest.mark.parametrize(
    "extensions",
    [
        "__proto__",
        "permessage-deflate; server_max_window_bits=99",
        "permessage-deflate; client_max_window_bits=x",
        "permessage-deflate; unknown",
        "permessage-bzip2",
        ";;;",
        "x" * 8000,
        "\xe9",
    ],
)
def test_odd_extensions_are_not_negotiated(echo: Service, extensions: str) -> None:
    path = f"{echo.prefix}/0/{new_session()}/websocket"
    wire = echo.wire()
    response = request(wire, "GET", path, headers=[*handshake(), ("Sec-WebSocket-Extensions", extensions)])
    assert response.status in (101, 400)
    assert response.header("sec-websocket-extensions") is None
    if response.status == 101:
        assert wire.read_exactly(3) == b"\x81\x01o"


# ── Frames that are forbidden ────────────────────────────────────────────────────────────────────────────────────────

FORBIDDEN = {
    "unmasked": (frame_bytes(TEXT, b'["x"]', masked=False), 1002),
    "opcode 3": (frame_bytes(3, b"x"), 1002),
    "opcode 7": (frame_bytes(7, b"x"), 1002),
    "opcode 11": (frame_bytes(0xB, b"x"), 1002),
    "opcode 15": (frame_bytes(0xF, b""), 1002),
    "RSV1 without extension": (frame_bytes(TEXT, b'["x"]', rsv=4), 1002),
    "RSV2": (frame_bytes(TEXT, b'["x"]', rsv=2), 1002),
    "RSV3": (frame_bytes(TEXT, b'["x"]', rsv=1), 1002),
    "RSV1 on a ping": (frame_bytes(PING, b"x", rsv=4), 1002),
    "fragmented ping": (frame_bytes(PING, b"x", fin=False), 1002),
    "fragmented close": (frame_bytes(CLOSE, b"", fin=False), 1002),
    "ping of 126 bytes": (frame_bytes(PING, b"x" * 126), 1002),
    "continuation of nothing": (frame_bytes(CONTINUATION, b'["x"]'), 1002),
    "unfinished continuation of nothing": (frame_bytes(CONTINUATION, b"x", fin=False), 1002),
    "text inside a fragmented text": (frame_bytes(TEXT, b"[", fin=False) + frame_bytes(TEXT, b'"x"]'), 1002),
    "binary inside a fragmented text": (frame_bytes(TEXT, b"[", fin=False) + frame_bytes(BINARY, b"x"), 1002),
    "close of one byte": (frame_bytes(CLOSE, b"\x03"), 1002),
    "close with code 999": (frame_bytes(CLOSE, struct.pack("!H", 999)), 1002),
    "close with code 1005": (frame_bytes(CLOSE, struct.pack("!H", 1005)), 1002),
    "close with code 1006": (frame_bytes(CLOSE, struct.pack("!H", 1006)), 1002),
    "close with code 5000": (frame_bytes(CLOSE, struct.pack("!H", 5000)), 1002),
    "close with a bad reason": (frame_bytes(CLOSE, struct.pack("!H", 1000) + b"\xff"), 1007),
    "17 MiB announced": (frame_bytes(TEXT, b"", announced=17 * 1024 * 1024), 1009),
    "2^63-1 bytes announced": (frame_bytes(TEXT, b"", announced=2**63 - 1), 1009),
    "2^64-1 bytes announced": (frame_bytes(TEXT, b"", announced=2**64 - 1), 1009),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_forbidden_frame_ends_the_connection(echo: Service, name: str, place: str) -> None:
    """uvicorn and its WebSocket library answer these before any code of ours."""
    socket = open_socket(echo, place)
    data, code = FORBIDDEN[name]
    socket.wire.send(data)
    assert socket.read_close()[0] == code
    assert socket.wire.read_to_end() == b""


# uvicorn 0.54 logs such text as an error of its own, with a traceback.
INVALID_UTF8 = r"(?s)ERROR: +Invalid UTF-8 sequence received from client\..*?UnicodeDecodeError: [^\n]*"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "text", [b'["\xff"]', b'["\xe2\x82"]', b'["\xed\xa0\x80"]', b'["\xc0\xaf"]', b'["\xf4\x90\x80\x80"]', b'["\xe2\x82']
)
def test_text_that_is_not_utf8(target: Target, echo: Service, place: str, text: bytes) -> None:
    """1007 by uvicorn; whole and in fragments."""
    target.allow_error(INVALID_UTF8)
    for cut in (None, 3):
        socket = open_socket(echo, place)
        if cut is None:
            socket.send_frame(TEXT, text)
        else:
            socket.send_frame(TEXT, text[:cut], fin=False)
            socket.send_frame(CONTINUATION, text[cut:])
        assert socket.read_close()[0] == 1007
        assert socket.wire.read_to_end() == b""


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("size", [70_000, 20 * 1024 * 1024])
@pytest.mark.parametrize("protocol", ["auto", "backsync_asgi.uvicorn:CompressingWebSocketProtocol"])
def test_a_message_that_inflates(
    shared_server: Callable[..., Server], closing: ExitStack, protocol: str, place: str, size: int
) -> None:
    """uvicorn compresses by default with whoever offers it (`--ws-per-message-deflate false` turns it off). What
    inflates to more than our limit ends in 1009, as if it had come so; beyond 16 MiB by uvicorn, before us.
    """
    server = shared_server(ECHO_APP, options=("--ws", protocol), errors_expected=True)
    echo = Service(server.port, "/echo", closing)
    path = echo.prefix + place.format(new_session())
    wire = echo.wire()
    offer = [*handshake(), ("Sec-WebSocket-Extensions", "permessage-deflate; client_no_context_takeover")]
    response = request(wire, "GET", path, headers=offer)
    assert response.status == 101
    assert (response.header("sec-websocket-extensions") or "").startswith("permessage-deflate")
    deflate = zlib.compressobj(wbits=-12)
    text = b'["' + b"x" * size + b'"]' if place == PLACES[0] else b"x" * size
    bomb = (deflate.compress(text) + deflate.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\0\0\xff\xff")
    wire.send(frame_bytes(TEXT, bomb, rsv=4))
    received = wire.read_until(struct.pack("!H", 1009))
    assert len(received) < 200, "nothing was echoed"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("text", ["x" * 65_537, "€" * 21_846, "x" * 200_000], ids=["ASCII", "bytes count", "200 kB"])
def test_a_message_over_the_limit(echo: Service, place: str, text: str) -> None:
    """64 KiB is the limit of one message, in bytes, far below uvicorn's own 16 MiB: closed with 1009, not echoed."""
    socket = open_socket(echo, place)
    socket.send(f'["{text}"]' if place == PLACES[0] else text)
    opcode, payload = socket.read_frame()
    if payload.startswith(b"c[1009,"):
        opcode, payload = socket.read_frame()
    assert opcode == CLOSE, f"echoed {len(payload)} bytes"
    assert payload[:2] == struct.pack("!H", 1009)


def test_binary_on_a_framed_websocket(echo: Service) -> None:
    socket = open_socket(echo)
    socket.send_frame(BINARY, b'["x"]')
    code, reason = socket.read_close()
    assert code == 1003
    assert reason == "binary_not_supported"


def test_binary_on_a_raw_websocket_is_passed_on(echo: Service) -> None:
    socket = open_socket(echo, PLACES[1])
    socket.send_frame(BINARY, b"\x00\xffx")
    assert socket.read_frame() == (BINARY, b"\x00\xffx")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("how", ["fin", "rst", "frame cut, fin", "frame cut, rst"])
def test_a_hundred_disconnects_leave_nothing(
    target: Target, echo: Service, place: str, how: str, control: Control
) -> None:
    """The socket ends without a close frame, also in the middle of a frame: all are cleaned up, no error is logged."""
    before = target.open_files()
    for _ in range(100):
        socket = WebSocket(echo.wire(), echo.prefix + place.format(new_session()))
        if how.startswith("frame cut"):
            socket.wire.send(frame_bytes(TEXT, b'["x', announced=100)[:-1])
        if how.endswith("rst"):
            socket.wire.reset()
        else:
            socket.wire.close()
    until = time.monotonic() + 2.0
    while target.open_files() > before:
        assert time.monotonic() < until, f"{target.open_files()} files open, {before} before"
        control.check()


def test_many_empty_fragments(target: Target, echo: Service, control: Control) -> None:
    """20,000 empty fragments in one message: our protocol ends the connection, uvicorn's own takes them one by one,
    which we cannot limit. Other clients do not wait for it."""
    socket = open_socket(echo)
    socket.send_frame(TEXT, b'["x"', fin=False)
    fragment = frame_bytes(CONTINUATION, b"", fin=False)
    socket.wire.send_as_taken(fragment * 20_000)
    control.check()
    socket.wire.send_as_taken(frame_bytes(CONTINUATION, b"]"))
    opcode, payload = socket.read_frame()
    assert (opcode, payload) == (TEXT, b'a["x"]') or opcode == CLOSE


def test_a_flood_of_pings(echo: Service, control: Control) -> None:
    """5,000 pings at once: answered by uvicorn itself, before any limit of ours; nobody else waits for it."""
    socket = open_socket(echo)
    socket.wire.send(frame_bytes(PING, b"x") * 5_000)
    control.check()
    for _ in range(5_000):
        assert socket.read_frame() == (PONG, b"x")
    assert_echoes(socket)


def test_a_flood_of_pongs(echo: Service, control: Control) -> None:
    socket = open_socket(echo)
    socket.wire.send(frame_bytes(PONG, b"x") * 5_000)
    control.check()
    assert_echoes(socket)
