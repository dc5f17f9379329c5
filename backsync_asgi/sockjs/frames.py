"""SockJS frames: what is written to and read from the wire; pure, it knows no session and no socket."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal
from urllib.parse import parse_qsl

import orjson

MAX_REASON_BYTES = 123  # RFC 6455, 5.5: a close frame's payload is at most 125 bytes, two of them the code

# Some browsers change or drop these characters on some transports, so they travel as \uXXXX. The control characters
# below U+0020, which belong to the set too, are escaped by JSON itself.
_FRAGILE = re.compile("[\u200c-\u200f\u2028-\u202f\u2060-\u206f\ufff0-\uffff]")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


class FrameError(ValueError):
    """Bytes from a peer that are not of the protocol's form.

    `code` is for programs (the header X-Backsync-Error), the message is what SockJS clients expect in the body.
    """

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


def loads(text: str | bytes) -> Any:
    """Parse JSON. Lone surrogates, legal as escapes but not as text, become U+FFFD.

    Raises ValueError for everything else that is not strict JSON in UTF-8, NaN and Infinity included.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raw = text if isinstance(text, str) else text.decode("utf-8")  # UnicodeDecodeError is a ValueError
        if _SURROGATE_ESCAPE.search(raw) is None:
            raise
        try:
            value = json.loads(raw, parse_constant=_refuse_constant)
        except RecursionError:
            raise ValueError("JSON nested too deeply") from None
        whole = json.dumps(value, ensure_ascii=False)
        return orjson.loads(whole.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def escape(text: str) -> str:
    """JSON text with every fragile character as `\\uXXXX` (they can stand only inside strings)."""
    if text.isascii():
        return text
    return _FRAGILE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def quote(text: str) -> bytes:
    """The text as a JSON string literal that survives every transport.

    Raises ValueError for lone surrogates: there is no UTF-8 for them.
    """
    try:
        quoted = orjson.dumps(text)
    except TypeError as error:
        raise ValueError(f"a message must be valid Unicode text: {error}") from None
    return quoted if text.isascii() else escape(quoted.decode()).encode()


class Message:
    """One message to a client: JSON text or any other text, quoted at most once however many sessions get it."""

    __slots__ = ("_quoted", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._quoted: bytes | None = None

    @property
    def quoted(self) -> bytes:
        """The message as an element of an `a[...]` frame."""
        if self._quoted is None:
            self._quoted = quote(self.text)
        return self._quoted

    @property
    def raw(self) -> bytes:
        """The message as a frame of RFC 6455."""
        return websocket_frame(self.text.encode())

    @property
    def event(self) -> dict[str, Any]:
        """The message as an ASGI event."""
        return {"type": "websocket.send", "text": self.text}


class BinaryMessage(Message):
    """Bytes, which only a raw WebSocket can carry."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        super().__init__("")
        self.data = data

    @property
    def raw(self) -> bytes:
        return websocket_frame(self.data, opcode=2)

    @property
    def event(self) -> dict[str, Any]:
        return {"type": "websocket.send", "bytes": self.data}


class ObjectMessage(Message):
    """A message of the 2012 protocol: it stands in the frame as a JSON object, not as a string."""

    __slots__ = ()

    @property
    def quoted(self) -> bytes:
        if self._quoted is None:
            self._quoted = escape(self.text).encode()
        return self._quoted


class Frame:
    """One frame, encoded at most once for each transport. `messages` are those of an `a[...]` frame."""

    __slots__ = ("_body", "_framed_events", "_raw", "_raw_events", "_stream_events", "_text", "_wires", "messages")

    def __init__(self, body: bytes | None = None, messages: Sequence[Message] = ()) -> None:
        self.messages = messages
        self._body = body
        self._text: str | None = None
        self._raw: bytes | None = None
        self._raw_events: tuple[dict[str, Any], ...] | None = None
        self._framed_events: tuple[dict[str, Any], ...] | None = None
        self._wires: dict[Callable[[bytes], bytes], bytes] = {}
        self._stream_events: dict[Callable[[bytes], bytes], tuple[dict[str, Any]]] = {}

    @property
    def body(self) -> bytes:
        """The frame itself: `o`, `h`, `a[...]` or `c[...]`."""
        if self._body is None:
            self._body = b"a[" + b",".join([message.quoted for message in self.messages]) + b"]"
        return self._body

    @property
    def text(self) -> str:
        """The frame for a WebSocket text message."""
        if self._text is None:
            self._text = self.body.decode()
        return self._text

    @property
    def raw(self) -> bytes:
        """The messages for a raw WebSocket: each as a frame of RFC 6455, one behind the other."""
        if self._raw is None:
            self._raw = b"".join([message.raw for message in self.messages])
        return self._raw

    @property
    def raw_events(self) -> tuple[dict[str, Any], ...]:
        """The messages for a raw WebSocket, as ASGI events."""
        if self._raw_events is None:
            self._raw_events = tuple([message.event for message in self.messages])
        return self._raw_events

    @property
    def framed_events(self) -> tuple[dict[str, Any], ...]:
        """The frame as an ASGI event."""
        if self._framed_events is None:
            self._framed_events = ({"type": "websocket.send", "text": self.text},)
        return self._framed_events

    @property
    def framed(self) -> bytes:
        """The frame for a WebSocket, as a frame of RFC 6455."""
        return self.wire(websocket_frame)

    def wire(self, wrap: Callable[[bytes], bytes]) -> bytes:
        """The frame as one transport's bytes; `wrap` is the transport's function from the table of transports."""
        wire = self._wires.get(wrap)
        if wire is None:
            wire = self._wires[wrap] = wrap(self.body)
        return wire

    def stream_events(self, wrap: Callable[[bytes], bytes]) -> tuple[dict[str, Any]]:
        """The same as an ASGI event of a response that goes on."""
        events = self._stream_events.get(wrap)
        if events is None:
            event = {"type": "http.response.body", "body": self.wire(wrap), "more_body": True}
            events = self._stream_events[wrap] = (event,)
        return events


class Forms(dict[str, Any]):
    """A frame that many get, in the forms in which their links take it, each made when it is first asked for.

    Under the names of Frame's properties; "frame" is the Frame itself.
    """

    def __init__(self, frame: Frame) -> None:
        super().__init__(frame=frame)

    def __missing__(self, form: str) -> Any:
        made = self[form] = getattr(self["frame"], form)
        return made


def refuse(form: object) -> Literal[True]:
    """What stands for a link that cannot take a shared frame now."""
    return True


class Close(Frame):
    """The close frame of a session: `c[CODE,"REASON"]`."""

    __slots__ = ("code", "reason")

    def __init__(self, code: int, reason: str = "") -> None:
        self.code = code
        self.reason = cut_reason(reason)
        super().__init__(b"c[%d,%s]" % (code, quote(self.reason)))


def websocket_frame(payload: bytes, opcode: int = 1) -> bytes:
    """A message as one RFC 6455 frame from a server: final, unmasked. opcode: 1 for text, 2 for bytes."""
    size = len(payload)
    if size < 126:
        return b"%c%c%b" % (0x80 | opcode, size, payload)
    if size < 65_536:
        return b"%c\x7e%b%b" % (0x80 | opcode, size.to_bytes(2, "big"), payload)
    return b"%c\x7f%b%b" % (0x80 | opcode, size.to_bytes(8, "big"), payload)


OPEN = Frame(b"o")
HEARTBEAT = Frame(b"h")


def batch(messages: Iterable[Message]) -> Frame:
    """One `a[...]` frame of all the messages."""
    return Frame(messages=tuple(messages))


def cut_reason(reason: str) -> str:
    """The reason cut to 123 bytes of UTF-8, at the border of a character."""
    return reason.encode("utf-8", "replace")[:MAX_REASON_BYTES].decode("utf-8", "ignore")


def check_close_code(code: int) -> int:
    """The code, if an application may close with it: 1000, 1001-1014 as WebSocket knows them, or 3000-4999.

    Raises ValueError otherwise; 1005, 1006 and 1015 are never sent (RFC 6455, 7.4.1).
    """
    if type(code) is int and (code in _CLOSE_CODES or 3000 <= code <= 4999):
        return code
    raise ValueError(f"close got the code {code!r}, expected 1000-1003, 1007-1014 or 3000-4999.")


_CLOSE_CODES = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014})


def parse_upload(body: bytes) -> list[str]:
    """The messages of an upload: a JSON array of strings.

    Raises FrameError with the fixed texts that SockJS clients know.
    """
    if not body:
        raise FrameError("payload_expected", "Payload expected.")
    try:
        messages = loads(body)
    except ValueError:
        raise FrameError("bad_json", "Broken JSON encoding.") from None
    if not isinstance(messages, list):
        raise FrameError("not_an_array", "Broken JSON encoding.")
    if not all(isinstance(message, str) for message in messages):
        raise FrameError("message_not_string", "Broken JSON encoding.")
    return messages


def parse_form(body: bytes) -> bytes:
    """The field `d` of an uploaded form, decoded once.

    Raises FrameError if there is none. Of several fields the first counts.
    """
    try:
        fields = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, errors="strict", encoding="utf-8", max_num_fields=16
        )
    except ValueError:
        raise FrameError("bad_form", "Broken JSON encoding.") from None
    for name, value in fields:
        if name == "d":
            return value.encode()
    raise FrameError("payload_expected", "Payload expected.")


def parse_websocket(text: str) -> list[str]:
    """The messages of one WebSocket text message: a JSON array of strings, or one JSON string.

    An empty text and an empty array carry none. Raises FrameError for anything else.
    """
    if not text:
        return []
    try:
        value = loads(text)
    except ValueError:
        raise FrameError("bad_json", "Broken framing.") from None
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(message, str) for message in value):
        return value
    raise FrameError("message_not_string", "Broken framing.")
