"""Any text survives any transport: what must be escaped is escaped on the wire, what was sent is what comes back."""

from __future__ import annotations

import json
import re

import pytest

from tests.sockjs.conftest import Control
from tests.sockjs.speech import (
    TRANSPORTS,
    XHR,
    HTTPConversation,
    RawConversation,
    Service,
    SocketConversation,
    Transport,
    messages_of,
)

WAYS: list[str | Transport] = [*TRANSPORTS, "websocket", "raw"]
FRAMED: list[str | Transport] = [*TRANSPORTS, "websocket"]

# What the server owes: these come as \uXXXX, some of the control characters in JSON's short forms.
ESCAPED = [
    chr(code)
    for first, last in [(0, 0x1F), (0x200C, 0x200F), (0x2028, 0x202F), (0x2060, 0x206F), (0xFFF0, 0xFFFF)]
    for code in range(first, last + 1)
]
SHORT = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}

# What some client somewhere is known to break: the set that the SockJS client itself escapes before it sends.
CLIENT_KILLERS = [
    (0x0000, 0x001F),
    (0x0300, 0x0333),
    (0x033D, 0x0346),
    (0x034A, 0x034C),
    (0x0350, 0x0352),
    (0x0357, 0x0358),
    (0x035C, 0x0362),
    (0x0374, 0x0374),
    (0x037E, 0x037E),
    (0x0387, 0x0387),
    (0x0591, 0x05AF),
    (0x0600, 0x0605),
    (0x06DD, 0x06DD),
    (0x070F, 0x070F),
    (0x17B4, 0x17B5),
    (0x200B, 0x200F),
    (0x2028, 0x202F),
    (0x2060, 0x206F),
    (0xD7FF, 0xD7FF),
    (0xE000, 0xE000),
    (0xFEFF, 0xFEFF),
    (0xFFF0, 0xFFFF),
    (0x1F600, 0x1F610),
    (0x10FFF0, 0x10FFFF),
]

DIFFICULT = {
    "quotes and backslashes": '"\'`\\ \\" \\\\ \\n \\u0041 /\\/',
    "markup": "<b>&amp;</b> </script> <!-- --> ]]> <script>",
    "percent": "% %% %25 %0A %zz 100%",
    "plus and form": "a+b=c&d=e;f #g ?h",
    "line ends": "a\nb\rc\r\nd\u2028e\u2029f\u0085g",
    "a frame": 'a["x"] o h c[3000,"Go away!"]',
    "emoji": "😀 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪",
    "right to left": "שלום \u202eabc\u202c العربية \u2067x\u2069",
    "combining": "é é ﬁ Å Å Z̸̢͖̈́͝a̷̛̱l̴̢͑g̷̯̈́o̵̹̚",
    "zero width and byte order marks": "\ufeffa\u200bb\u200cc\u200dd\u2060e\ufffe",
    "noncharacters": "\ufdd0 \ufffe \uffff \U0001fffe \U0010ffff",
    "private use": "\ue000 \uf8ff \U000f0000",
    "nothing but spaces": "   \t  ",
    "empty": "",
    "NUL": "\0a\0",
    "__proto__": "__proto__",
}


@pytest.mark.parametrize("way", FRAMED, ids=str)
def test_the_fragile_characters_come_escaped(echo: Service, way: str | Transport) -> None:
    """Looked at in the frame as it is after the transport's own framing is taken off, and in the raw bytes."""
    talk = echo.converse(way)
    assert isinstance(talk, HTTPConversation | SocketConversation)
    for character in ESCAPED:
        talk.send(f"<{character}>")
    frames = ""
    messages: list[str] = []
    while len(messages) < len(ESCAPED):
        frame = talk.frame()
        messages += messages_of(frame)
        frames += frame
    assert messages == [f"<{character}>" for character in ESCAPED]
    assert not set(frames) & set(ESCAPED)
    for character in ESCAPED:
        escape = f"<\\u{ord(character):04x}>"
        short = f"<{SHORT.get(character, escape[1:-1])}>"
        assert escape in frames or short in frames, escape


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
def test_no_fragile_character_is_among_the_bytes(echo: Service, transport: Transport) -> None:
    session, stream = echo.open(transport)
    echo.upload(transport, session, ["".join(ESCAPED)])
    if not transport.streaming:
        stream = echo.receive(transport, session)
    data = stream.response.chunk()
    assert data is not None
    inner = data[len(transport.before) : len(data) - len(transport.after)].decode()
    assert not set(inner) & set(ESCAPED)
    assert messages_of(transport.decode(data)) == ["".join(ESCAPED)]


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("name", DIFFICULT)
def test_difficult_text(echo: Service, name: str, way: str | Transport) -> None:
    talk = echo.converse(way)
    talk.send(DIFFICULT[name], "between", DIFFICULT[name])
    assert talk.receive(3) == [DIFFICULT[name], "between", DIFFICULT[name]]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_client_killers(echo: Service, way: str | Transport) -> None:
    text = "".join(chr(code) for first, last in CLIENT_KILLERS for code in range(first, last + 1))
    talk = echo.converse(way)
    talk.send(text)
    assert talk.receive(1) == [text]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_character_of_the_basic_plane(echo: Service, way: str | Transport) -> None:
    """All but the surrogates, in messages below the size limit (64 KiB each), and a sample of the other planes."""
    talk = echo.converse(way)
    characters = [code for code in range(0x10000) if not 0xD800 <= code <= 0xDFFF]
    characters += range(0x10000, 0x110000, 0x101)
    for start in range(0, len(characters), 4096):
        text = "".join(map(chr, characters[start : start + 4096]))
        talk.send(text)
        assert talk.receive(1) == [text]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_message_of_the_greatest_size(echo: Service, way: str | Transport) -> None:
    """65,000 bytes are below the limit of 65,536 whatever is counted: the message, its quotes, its array."""
    talk = echo.converse(way)
    for text in ("x" * 65_000, "€" * 21_000):
        talk.send(text)
        assert talk.receive(1) == [text]


SURROGATES = [
    (r"\ud800", "\ufffd"),
    (r"\udfff", "\ufffd"),
    (r"a\ud83db", "a\ufffdb"),
    (r"\ude00\ud83d", "\ufffd\ufffd"),
    (r"\ud800\ud83d\ude00", "\ufffd😀"),
    (r"\uD83D\uDE00", "😀"),
    (r"\ud83d\ude00", "😀"),
    (r"\\ud800", r"\ud800"),
]


def raw_send(echo: Service, way: str | Transport, talk: object, text: str) -> None:
    """Send this JSON text as it stands."""
    if isinstance(way, Transport):
        assert isinstance(talk, HTTPConversation)
        assert echo.send(way, talk.session, text).status in (200, 204)
    else:
        assert isinstance(talk, SocketConversation)
        talk.socket.send(text)


@pytest.mark.parametrize("way", FRAMED, ids=str)
@pytest.mark.parametrize(("sent", "received"), SURROGATES)
def test_lone_surrogates_are_replaced(
    echo: Service, control: Control, sent: str, received: str, way: str | Transport
) -> None:
    r"""`"\ud800"` is legal JSON but no text: each lone surrogate becomes U+FFFD, a pair stays one character."""
    talk = echo.converse(way)
    raw_send(echo, way, talk, f'["{sent}", "and {sent}"]')
    assert talk.receive(2) == [received, f"and {received}"]
    if way == "websocket":
        raw_send(echo, way, talk, f'"{sent}"')
        assert talk.receive(1) == [received]


@pytest.mark.parametrize("way", FRAMED, ids=str)
def test_all_escapes_of_json_are_understood(echo: Service, way: str | Transport) -> None:
    talk = echo.converse(way)
    raw_send(echo, way, talk, r' [ "\"\\\/\b\f\n\r\t\u00e9\u20AC" ,' + '\n"\\u0000"\t] ')
    assert talk.receive(2) == ['"\\/\b\f\n\r\té€', "\0"]


def test_framing_is_json(echo: Service) -> None:
    """The frame is strict JSON after its first letter, whatever is in it."""
    talk = echo.converse(XHR)
    assert isinstance(talk, HTTPConversation)
    everything = "".join(DIFFICULT.values())
    talk.send(everything, "x")
    frame = talk.frame()
    assert re.match(r"a\[", frame)
    assert json.loads(frame[1:]) == [everything, "x"] or json.loads(frame[1:]) == [everything]


def test_a_raw_websocket_has_no_frames(echo: Service) -> None:
    talk = echo.converse("raw")
    assert isinstance(talk, RawConversation)
    for text in ('["x"]', "x", '"x"', "[]", "h", '{"a":', "\u2028\ufffe"):
        talk.send(text)
        assert talk.receive(1) == [text]
