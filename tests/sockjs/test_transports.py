"""The table of transports: what each row writes, read again as its real client reads it; runs no server."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from urllib.parse import unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backsync_asgi.sockjs.frames import Close, Frame, FrameError, Message, batch
from backsync_asgi.sockjs.transports import (
    CALLBACK_MAX,
    TRANSPORTS,
    check_callback,
    iframe_page,
    script_string,
)

CALLBACK = "_jp.a1b2"
FRAGILE = re.compile("[\x00-\x09\x0b\x0c\x0e-\x1f\u200c-\u200f\u2028-\u202f\u2060-\u206f\ufff0-\uffff]")
TRAPS = "</script><!--\u2028\u2029\r\n\0%25%0A\"'\\\u200d\uffff😀"
texts = st.lists(
    st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(TRAPS)), max_size=30), min_size=1, max_size=5
)


def read_line(wire: bytes) -> str:
    """As sockjs-client reads a response: to the line feed."""
    line, end, rest = wire.decode().partition("\n")
    assert (end, rest) == ("\n", "")
    return line


def read_event(wire: bytes) -> str:
    """As an EventSource does, by any of its line ends; then sockjs-client decodes percent signs."""
    lines = re.split("\r\n|\r|\n", wire.decode())
    assert lines[1:] == ["", ""], "an event is one line and an empty one"
    assert lines[0].startswith("data: ")
    assert "\0" not in lines[0]
    return unquote(lines[0].removeprefix("data: "), errors="strict")


def read_argument(source: str) -> str:
    """A JavaScript string literal; these are JSON, and a script element must not end in it."""
    assert "<" not in source
    value = json.loads(source)
    assert isinstance(value, str)
    return value


def read_script(wire: bytes) -> str:
    match = re.fullmatch(r"<script>\np\((.*)\);\n</script>\r\n", wire.decode(), re.DOTALL)
    assert match is not None
    return read_argument(match[1])


def read_call(wire: bytes) -> str:
    match = re.fullmatch(rf"/\*\*/{re.escape(CALLBACK)}\((.*)\);\r\n", wire.decode(), re.DOTALL)
    assert match is not None
    return read_argument(match[1])


READERS: dict[str, Callable[[bytes], str]] = {
    "xhr": read_line,
    "xhr_streaming": read_line,
    "eventsource": read_event,
    "htmlfile": read_script,
    "jsonp": read_call,
}


def test_every_transport_has_a_reader_here() -> None:
    assert set(READERS) == set(TRANSPORTS)


@pytest.mark.parametrize("name", TRANSPORTS)
@given(texts)
@example([TRAPS])
@settings(deadline=None)
def test_any_text_survives_the_way(name: str, messages: list[str]) -> None:
    wire = TRANSPORTS[name].encode(batch(map(Message, messages)), CALLBACK)
    frame = READERS[name](wire)
    assert frame[0] == "a"
    assert json.loads(frame[1:]) == messages
    assert not FRAGILE.search(wire.decode())


@pytest.mark.parametrize("name", TRANSPORTS)
@pytest.mark.parametrize("frame", [Frame(b"o"), Frame(b"h"), Close(3000, "Go </script> away")], ids=lambda it: it.text)
def test_frames_without_messages_survive_too(name: str, frame: Frame) -> None:
    assert READERS[name](TRANSPORTS[name].encode(frame, CALLBACK)) == frame.text


@pytest.mark.parametrize("name", TRANSPORTS)
def test_a_frame_is_wrapped_once_for_all_sessions_of_a_transport(name: str) -> None:
    transport, frame = TRANSPORTS[name], batch([Message("x")])
    assert frame.wire(transport.wrap) is frame.wire(transport.wrap)


def test_polling_ends_after_one_frame_and_streams_have_a_prelude() -> None:
    assert {name for name, transport in TRANSPORTS.items() if transport.polling} == {"xhr", "jsonp"}
    assert {name for name, transport in TRANSPORTS.items() if transport.prelude is not None} == {
        *("xhr_streaming", "eventsource", "htmlfile")
    }


def test_the_preludes_are_as_long_as_browsers_need() -> None:
    streaming, events, page = (TRANSPORTS[name].prelude for name in ("xhr_streaming", "eventsource", "htmlfile"))
    assert streaming is not None
    assert events is not None
    assert page is not None
    assert streaming("") == b"h" * 2048 + b"\n"
    assert events("") == b"\r\n"
    assert len(page(CALLBACK)) > 1024 + 4
    assert page(CALLBACK).endswith(b"\r\n\r\n")
    assert f"var c = parent.{CALLBACK};".encode() in page(CALLBACK)


@given(st.binary(max_size=10).map(lambda raw: json.dumps(raw.decode("latin-1"))))
@settings(deadline=None)
def test_a_script_string_is_one_literal_that_ends_no_script(text: str) -> None:
    assert read_argument(script_string(text.encode()).decode()) == text


@pytest.mark.parametrize("callback", ["a", "_jp.a1b2", "A-Z.0_9", "__proto__", "x" * CALLBACK_MAX])
def test_names_that_real_pages_use_are_callbacks(callback: str) -> None:
    assert check_callback(callback) == callback


@pytest.mark.parametrize("callback", [None, ""])
def test_a_callback_is_required(callback: str | None) -> None:
    with pytest.raises(FrameError, match='"callback" parameter required') as caught:
        check_callback(callback)
    assert caught.value.code == "callback_required"


@pytest.mark.parametrize(
    "callback",
    [" ", "*", "abc(", "abc\n", "a\n", "</script>", "a,b", "ä", "а", "a;alert(1)", "a/**/", "x" * (CALLBACK_MAX + 1)],
)
def test_other_callbacks_are_refused_with_a_fixed_text(callback: str) -> None:
    with pytest.raises(FrameError, match='^invalid "callback" parameter$') as caught:
        check_callback(callback)
    assert caught.value.code == "invalid_callback"


@given(st.text(max_size=40))
@settings(deadline=None)
def test_any_callback_that_passes_is_harmless_in_a_script(callback: str) -> None:
    with contextlib.suppress(FrameError):
        assert re.fullmatch(r"[A-Za-z0-9._-]+", check_callback(callback), re.ASCII)


def test_the_iframe_page_loads_the_client_and_its_url_cannot_break_out() -> None:
    page = iframe_page('https://x.test/sockjs.js?a=1&b="><script>').decode()
    assert '<script src="https://x.test/sockjs.js?a=1&amp;b=&quot;>&lt;script>"></script>' in page
    assert "SockJS.bootstrap_iframe();" in page
    assert page.endswith("</html>")
