"""SockJS as a client speaks it: a table of transports, conversations over them; it knows nothing of our server."""

from __future__ import annotations

import itertools
import json
import re
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from tests.sockjs.client import Headers, Response, WebSocket, Wire, head, request

CALLBACK = "_jp.a1b2"  # the kind of name that the real client sends
NO_STORE = "no-store, no-cache, no-transform, must-revalidate, max-age=0"
JAVASCRIPT = "application/javascript; charset=UTF-8"
PLAIN = "text/plain; charset=UTF-8"
HTML = "text/html; charset=UTF-8"

HTMLFILE_PAGE = """<!doctype html>
<html><head>
  <meta http-equiv="X-UA-Compatible" content="IE=edge" />
  <meta http-equiv="Content-Type" content="text/html; charset=UTF-8" />
</head><body><h2>Don't panic!</h2>
  <script>
    document.domain = document.domain;
    var c = parent.CALLBACK;
    c.start();
    function p(d) {c.message(d);};
    window.onload = function() {c.stop();};
  </script>"""


@dataclass(frozen=True)
class Transport:
    """A receiving transport over HTTP: how it is asked for, and how its bytes look."""

    name: str
    method: str
    content_type: str
    streaming: bool
    before: bytes  # of a frame
    after: bytes
    encode_text: Callable[[str], str]  # frame → what stands between `before` and `after`
    decode_text: Callable[[str], str]
    needs_callback: bool = False
    cors: bool = False
    upload: str = "xhr_send"

    def __str__(self) -> str:
        return self.name

    def path(self, session: str, *, server: str = "000") -> str:
        return f"/{server}/{session}/{self.name}" + (f"?c={CALLBACK}" if self.needs_callback else "")

    def encode(self, frame: str) -> bytes:
        """The exact bytes of an ASCII frame that has no character which a script context escapes further."""
        return self.before + self.encode_text(frame).encode() + self.after

    def decode(self, data: bytes) -> str:
        """The frame in exactly these bytes; anything before or after it is an error."""
        assert data.startswith(self.before), f"{self.name}: a frame starts with {self.before!r}, got {data[:80]!r}"
        assert data.endswith(self.after), f"{self.name}: a frame ends with {self.after!r}, got {data[-80:]!r}"
        text = data[len(self.before) : len(data) - len(self.after)].decode()
        return self.decode_text(text)


def _same(text: str) -> str:
    return text


def _xhr_decode(text: str) -> str:
    assert "\n" not in text, f"one line is one frame: {text!r}"
    return text


def _json_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _script_decode(text: str) -> str:
    assert "</" not in text, f"a script could be ended by the data: {text!r}"
    value = json.loads(text)
    assert isinstance(value, str), f"a frame in a script is a JSON string: {text!r}"
    return value


def _eventsource_encode(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A").replace("\0", "%00")


def _eventsource_decode(text: str) -> str:
    assert not re.search(r"[\r\n\0]", text), f"a data line was broken: {text!r}"
    assert not re.search(r"%(?!25|0D|0A|00)", text), f"a bare percent sign: {text!r}"
    return re.sub(r"%(25|0D|0A|00)", lambda found: chr(int(found[1], 16)), text)


XHR = Transport("xhr", "POST", JAVASCRIPT, False, b"", b"\n", _same, _xhr_decode, cors=True)
XHR_STREAMING = Transport("xhr_streaming", "POST", JAVASCRIPT, True, b"", b"\n", _same, _xhr_decode, cors=True)
EVENTSOURCE = Transport(
    "eventsource",
    "GET",
    "text/event-stream",
    True,
    b"data: ",
    b"\r\n\r\n",
    _eventsource_encode,
    _eventsource_decode,
    cors=True,
)
HTMLFILE = Transport(
    "htmlfile",
    "GET",
    HTML,
    True,
    b"<script>\np(",
    b");\n</script>\r\n",
    _json_string,
    _script_decode,
    needs_callback=True,
)
JSONP = Transport(
    "jsonp",
    "GET",
    JAVASCRIPT,
    False,
    b"/**/" + CALLBACK.encode() + b"(",
    b");\r\n",
    _json_string,
    _script_decode,
    needs_callback=True,
    upload="jsonp_send",
)

TRANSPORTS = [XHR, XHR_STREAMING, EVENTSOURCE, HTMLFILE, JSONP]
STREAMING = [each for each in TRANSPORTS if each.streaming]
POLLING = [each for each in TRANSPORTS if not each.streaming]


def check_prelude(transport: Transport, data: bytes | None) -> None:
    """A streaming transport's first chunk is its prelude, whole and alone."""
    assert data is not None
    if transport is XHR_STREAMING:
        assert data == b"h" * 2048 + b"\n"
    elif transport is EVENTSOURCE:
        assert data == b"\r\n"
    else:
        page = HTMLFILE_PAGE.replace("CALLBACK", CALLBACK).encode()
        assert data.startswith(page), data[: len(page)]
        assert data.endswith(b"\r\n\r\n")
        padding = data[len(page) :]
        assert not padding.strip(b" \r\n"), f"padding is spaces: {padding!r}"
        assert len(data) - 4 > 1024


class Receiver:
    """One response of a receiving transport; a streaming one has given its prelude already."""

    def __init__(self, transport: Transport, response: Response) -> None:
        self.transport = transport
        self.response = response
        self.wire = response.wire
        assert response.status == 200, f"{transport}: {response.status} {response.headers} {response.body()!r}"
        if transport.streaming:
            check_prelude(transport, response.chunk())

    def frame(self) -> str | None:
        """The next frame, which must be one HTTP chunk of its own; None when the response has ended."""
        data = self.response.chunk()
        return None if data is None else self.transport.decode(data)

    def expect(self, *frames: str) -> None:
        """Exactly these frames come next."""
        for frame in frames:
            assert self.frame() == frame

    def expect_end(self) -> None:
        assert self.frame() is None


def new_session() -> str:
    return uuid.uuid4().hex


class Service:
    """One SockJS service of the server under test. Every wire it opens is closed when the test ends."""

    def __init__(self, port: int, prefix: str, closing: ExitStack) -> None:
        self.port = port
        self.prefix = prefix
        self._closing = closing

    def wire(self) -> Wire:
        return self._closing.enter_context(Wire(self.port))

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: Headers = (),
        body: bytes | None = None,
        version: str = "HTTP/1.1",
        on: Wire | None = None,
    ) -> Response:
        """One request below the prefix, on a wire of its own unless one is given; POST has an empty body by default."""
        if body is None and method == "POST":
            body = b""
        wire = self.wire() if on is None else on
        return request(wire, method, self.prefix + path, headers=headers, body=body, version=version)

    def receive(self, transport: Transport, session: str, *, server: str = "000", on: Wire | None = None) -> Receiver:
        response = self.request(transport.method, transport.path(session, server=server), on=on)
        return Receiver(transport, response)

    def open(self, transport: Transport, session: str | None = None) -> tuple[str, Receiver]:
        """Open a session: its id, and the receiver that has given `o` (a polling one has ended by that)."""
        session = new_session() if session is None else session
        receiver = self.receive(transport, session)
        receiver.expect("o")
        if not transport.streaming:
            receiver.expect_end()
        return session, receiver

    def send(self, transport: Transport, session: str, body: str, *, server: str = "000") -> Response:
        """Upload this JSON text as the transport's client would, whatever the answer is."""
        return self.request(
            "POST",
            f"/{server}/{session}/{transport.upload}",
            headers=[("Content-Type", "text/plain;charset=UTF-8")],
            body=body.encode(),
        )

    def upload(self, transport: Transport, session: str, messages: Sequence[str]) -> None:
        """Upload messages, which must be accepted."""
        response = self.send(transport, session, json.dumps(messages))
        answer = (response.status, response.body())
        assert answer == ((200, b"ok") if transport.upload == "jsonp_send" else (204, b"")), answer

    def waiting_poll(self, transport: Transport, session: str) -> Wire:
        """A poll that waits at the server; its response is still to be read.

        Sent on a connection that the server has read from before, it is ahead of what any later connection brings.
        """
        wire = self.wire()
        self.request("GET", "", on=wire).body()
        headers = [("Content-Length", "0")] if transport.method == "POST" else []
        wire.send(head(transport.method, self.prefix + transport.path(session), headers))
        return wire

    def websocket(self, path: str | None = None, headers: Headers = ()) -> WebSocket:
        path = f"/000/{new_session()}/websocket" if path is None else path
        return WebSocket(self.wire(), self.prefix + path, headers)

    def converse(self, way: str | Transport) -> Conversation:
        """A conversation over a transport, or over "websocket" (framed) or "raw"."""
        if isinstance(way, Transport):
            return HTTPConversation(self, way)
        return RawConversation(self) if way == "raw" else SocketConversation(self)


class Conversation(Protocol):
    """Messages both ways, over whatever transport."""

    def send(self, *messages: str) -> None: ...

    def receive(self, count: int) -> list[str]:
        """The next `count` messages, in order, whatever frames they come in."""
        ...


def messages_of(frame: str) -> list[str]:
    assert frame[:1] == "a", f"expected a message frame, got {frame[:80]!r}"
    messages = json.loads(frame[1:])
    assert isinstance(messages, list)
    assert all(isinstance(message, str) for message in messages)
    return messages


class HTTPConversation:
    """A session over a receiving transport: a new receiver wherever the last one has ended, as a browser would."""

    def __init__(self, service: Service, transport: Transport, session: str | None = None) -> None:
        """Open a session, or take over one that is open and has no receiver."""
        self._service = service
        self._transport = transport
        self._receiver: Receiver | None = None
        self._waiting: list[str] = []
        if session is None:
            self.session, self._receiver = service.open(transport)
        else:
            self.session = session

    def send(self, *messages: str) -> None:
        self._service.upload(self._transport, self.session, messages)

    def frame(self) -> str:
        while self._receiver is None or (frame := self._receiver.frame()) is None:
            if self._receiver is not None:
                self._receiver.wire.close()
            self._receiver = self._service.receive(self._transport, self.session)
        return frame

    def receive(self, count: int) -> list[str]:
        while len(self._waiting) < count:
            self._waiting += messages_of(self.frame())
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken


class SocketConversation:
    """A framed WebSocket session."""

    def __init__(self, service: Service) -> None:
        self.socket = service.websocket()
        self._waiting: list[str] = []
        assert self.socket.receive() == "o"

    def send(self, *messages: str) -> None:
        self.socket.send(json.dumps(messages))

    def frame(self) -> str:
        return self.socket.receive()

    def receive(self, count: int) -> list[str]:
        while len(self._waiting) < count:
            self._waiting += messages_of(self.frame())
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken


class RawConversation:
    """A raw WebSocket: a message is a message."""

    def __init__(self, service: Service) -> None:
        self.socket = service.websocket("/websocket")

    def send(self, *messages: str) -> None:
        for message in messages:
            self.socket.send(message)

    def receive(self, count: int) -> list[str]:
        return [self.socket.receive() for _ in itertools.repeat(None, count)]
