"""A raw HTTP/1.x and WebSocket client that sends the bytes it is told to, broken ones too; it knows no SockJS."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType

DEADLINE = 5.0  # seconds that one read or write may take; a test can fail but never hang

TEXT, BINARY, CLOSE, PING, PONG, CONTINUATION = 0x1, 0x2, 0x8, 0x9, 0xA, 0x0

Headers = Iterable[tuple[str, str]]


class Wire:
    """One TCP connection. A reset by the peer reads as the end of the stream; `was_reset` tells the two apart."""

    def __init__(self, port: int, *, deadline: float = DEADLINE) -> None:
        self.deadline = deadline
        self.was_reset = False
        self._buffer = bytearray()
        self._ended = False
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=deadline)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Wire:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        """Send all of it, or raise; a peer that has closed raises ConnectionError."""
        self._socket.settimeout(self.deadline)
        self._socket.sendall(data)

    def send_as_taken(self, data: bytes) -> bool:
        """Send to a peer that may hang up in the middle: whether all of it was taken."""
        try:
            self.send(data)
        except ConnectionError:
            return False
        return True

    def _fill(self, until: float) -> bool:
        """Read what there is into the buffer; False at the end of the stream."""
        if self._ended:
            return False
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"nothing more within {self.deadline} s; so far {bytes(self._buffer[:200])!r}")
        self._socket.settimeout(left)
        try:
            data = self._socket.recv(262_144)
        except TimeoutError:
            raise TimeoutError(f"nothing more within {self.deadline} s; so far {bytes(self._buffer[:200])!r}") from None
        except ConnectionError:
            self.was_reset = True
            data = b""
        self._ended = not data
        self._buffer += data
        return bool(data)

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def read_exactly(self, count: int) -> bytes:
        """`count` bytes; EOFError if the stream ends before."""
        until = time.monotonic() + self.deadline
        while len(self._buffer) < count:
            if not self._fill(until):
                raise EOFError(
                    f"stream ended after {len(self._buffer)} of {count} bytes: {bytes(self._buffer[:200])!r}"
                )
        return self._take(count)

    def read_until(self, mark: bytes) -> bytes:
        """Everything up to and including `mark`; EOFError if the stream ends before."""
        until = time.monotonic() + self.deadline
        while (at := self._buffer.find(mark)) < 0:
            if not self._fill(until):
                raise EOFError(f"stream ended before {mark!r}: {bytes(self._buffer[:200])!r}")
        return self._take(at + len(mark))

    def read_some(self) -> bytes:
        """What there is, at least one byte; b"" at the end of the stream."""
        if not self._buffer:
            self._fill(time.monotonic() + self.deadline)
        return self._take(len(self._buffer))

    def read_to_end(self) -> bytes:
        """Everything until the peer closes; TimeoutError if it does not."""
        until = time.monotonic() + self.deadline
        while self._fill(until):
            pass
        return self._take(len(self._buffer))

    def finish(self) -> None:
        """Send FIN and keep reading (half-close)."""
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close both directions; FIN if everything was read."""
        self._ended = True
        self._socket.close()

    def reset(self) -> None:
        """Close with RST."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()


@dataclass
class Response:
    """The head of an HTTP response; its body stays on the wire until it is asked for."""

    wire: Wire
    version: str
    status: int
    headers: tuple[tuple[str, str], ...]  # names in lower case
    bodyless: bool = False
    _left: int = field(default=-1, repr=False)
    _over: bool = field(default=False, repr=False)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name.lower()]

    def header(self, name: str) -> str | None:
        """The value of a header that may stand once only."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} stands {len(values)} times: {values}"
        return values[0] if values else None

    @property
    def chunked(self) -> bool:
        return (self.header("transfer-encoding") or "").lower() == "chunked"

    def chunk(self) -> bytes | None:
        """The next piece of the body, one HTTP chunk where it is chunked; None when the body has ended properly."""
        if self._over or self.bodyless:
            return None
        if self.chunked:
            size = int(self.wire.read_until(b"\r\n").strip(), 16)
            data = self.wire.read_exactly(size)
            assert self.wire.read_exactly(2) == b"\r\n", "a chunk must end with CR LF"
            self._over = size == 0
            return data or None
        if (length := self.header("content-length")) is not None:
            self._over = True
            return self.wire.read_exactly(int(length)) or None
        data = self.wire.read_some()
        self._over = not data
        return data or None

    def body(self) -> bytes:
        """The rest of the body."""
        pieces = []
        while (piece := self.chunk()) is not None:
            pieces.append(piece)
        return b"".join(pieces)


def head(method: str, target: str, headers: Headers = (), *, version: str = "HTTP/1.1") -> bytes:
    """The head of a request, as it stands: latin-1, a Host only if none is given."""
    lines = [f"{method} {target} {version}"]
    given = list(headers)
    if not any(name.lower() == "host" for name, _ in given):
        lines.append("Host: localhost")
    lines += [f"{name}: {value}" for name, value in given]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def read_response(wire: Wire, *, bodyless: bool = False) -> Response:
    """Read the head of the next response."""
    raw = wire.read_until(b"\r\n\r\n").decode("latin-1")
    status_line, *lines = raw[:-4].split("\r\n")
    version, status, *_ = status_line.split(" ", 2)
    headers = []
    for line in lines:
        name, colon, value = line.partition(":")
        assert colon, f"not a header: {line!r}"
        headers.append((name.lower(), value.strip()))
    code = int(status)
    return Response(wire, version, code, tuple(headers), bodyless=bodyless or code in (204, 304) or code < 200)


def request(
    wire: Wire, method: str, target: str, *, headers: Headers = (), body: bytes | None = None, version: str = "HTTP/1.1"
) -> Response:
    """Send one request and read the head of its response; with a body comes its Content-Length."""
    given = list(headers)
    if body is not None:
        given.append(("Content-Length", str(len(body))))
    wire.send(head(method, target, given, version=version) + (body or b""))
    return read_response(wire, bodyless=method == "HEAD")


def handshake(*, without: Iterable[str] = (), replaced: Headers = ()) -> list[tuple[str, str]]:
    """The headers of a WebSocket handshake, some left out or replaced by others."""
    changed = dict(replaced)
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
    }
    return [(name, value) for name, value in {**headers, **changed}.items() if name not in set(without)]


class WebSocket:
    """A WebSocket after its handshake; frames go out exactly as asked for."""

    def __init__(self, wire: Wire, target: str, headers: Headers = ()) -> None:
        sent = handshake() + list(headers)
        self.wire = wire
        self.response = request(wire, "GET", target, headers=sent)
        assert self.response.status == 101, f"handshake refused: {self.response.status} {self.response.headers}"
        key = dict(sent)["Sec-WebSocket-Key"]
        accept = base64.b64encode(hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest())
        assert self.response.header("sec-websocket-accept") == accept.decode()
        assert self.response.header("sec-websocket-extensions") is None, "compression is off by default"

    def send_frame(
        self, opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True
    ) -> None:
        """Send one frame, also one that RFC 6455 forbids. `rsv` is the three reserved bits as a number, RSV1 = 4."""
        self.wire.send(frame_bytes(opcode, payload, fin=fin, rsv=rsv, masked=masked))

    def send(self, text: str) -> None:
        self.send_frame(TEXT, text.encode())

    def read_frame(self) -> tuple[int, bytes]:
        """The next frame: opcode and payload. Whole and unmasked, as our servers send them; anything else fails."""
        first, second = self.wire.read_exactly(2)
        assert first & 0xF0 == 0x80, f"expected an unfragmented frame without reserved bits, got {first:#04x}"
        length = second & 0x7F
        assert second & 0x80 == 0, "a server must not mask"
        if length == 126:
            (length,) = struct.unpack("!H", self.wire.read_exactly(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self.wire.read_exactly(8))
        return first & 0x0F, self.wire.read_exactly(length)

    def receive(self) -> str:
        """The next text message; pings on the way are answered."""
        while True:
            opcode, payload = self.read_frame()
            if opcode == PING:
                self.send_frame(PONG, payload)
            elif opcode == TEXT:
                return payload.decode()
            elif opcode != PONG:
                raise AssertionError(f"expected a text message, got opcode {opcode:#x} {payload!r}")

    def read_close(self) -> tuple[int, str]:
        """Skip to the close frame: its code (1005 if it has none) and reason. EOFError if the stream ends first."""
        while True:
            opcode, payload = self.read_frame()
            if opcode == CLOSE:
                return (struct.unpack("!H", payload[:2])[0], payload[2:].decode()) if payload else (1005, "")

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Send a close frame; the answer is still to be read."""
        self.send_frame(CLOSE, struct.pack("!H", code) + reason.encode())


def frame_bytes(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    masked: bool = True,
    announced: int | None = None,
) -> bytes:
    """One client frame; `announced` is a length that the header claims whatever the payload is."""
    length = len(payload) if announced is None else announced
    flag = 0x80 if masked else 0
    if length < 126:
        size = bytes([flag | length])
    elif length < 65_536:
        size = bytes([flag | 126]) + struct.pack("!H", length)
    else:
        size = bytes([flag | 127]) + struct.pack("!Q", length)
    first = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    if not masked:
        return first + size + payload
    mask = os.urandom(4)
    return first + size + mask + _masked(payload, mask)


def _masked(payload: bytes, mask: bytes) -> bytes:
    """XOR with the repeated mask, as one big number: byte by byte would take most of a test's time."""
    if not payload:
        return b""
    pattern = (mask * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload) ^ int.from_bytes(pattern)).to_bytes(len(payload))
