"""Frames: any text survives its quoting, any bytes parse or are refused in the documented way; runs no server."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backsync_asgi.sockjs.frames import (
    HEARTBEAT,
    MAX_REASON_BYTES,
    OPEN,
    Close,
    Frame,
    FrameError,
    Message,
    ObjectMessage,
    batch,
    check_close_code,
    cut_reason,
    escape,
    loads,
    parse_form,
    parse_upload,
    parse_websocket,
    quote,
)

# What must never stand in a frame as it is: the set of SockJS, and the surrogates that no UTF-8 has.
FRAGILE = re.compile("[\x00-\x1f\u200c-\u200f\u2028-\u202f\u2060-\u206f\ufff0-\uffff\ud800-\udfff]")
KILLER = "".join(
    map(chr, [*range(0x20), 0x7F, *range(0x200C, 0x2030), *range(0x2060, 0x2070), *range(0xFFF0, 0x10000)])
)

texts = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(KILLER + '"\\/<>%')), max_size=40)
# Text as Python can hold it: with lone surrogates too.
any_text = st.text(st.characters(), max_size=20)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# Writing


@given(texts)
@example(KILLER)
@settings(deadline=None)
def test_any_text_survives_quoting(text: str) -> None:
    assert json.loads(quote(text)) == text


@given(texts)
@example(KILLER)
@settings(deadline=None)
def test_a_quoted_text_has_no_fragile_character(text: str) -> None:
    assert not FRAGILE.search(quote(text).decode())


@given(json_values)
@settings(deadline=None)
def test_escaping_json_changes_its_looks_only(value: Any) -> None:
    text = compact(value)
    assert json.loads(escape(text)) == value
    assert not FRAGILE.search(escape(text))


def test_escapes_have_four_lower_case_digits() -> None:
    assert quote("\u200c\u2028\uffff") == rb'"\u200c\u2028\uffff"'
    assert quote("é漢😀") == '"é漢😀"'.encode()


@given(any_text)
@settings(deadline=None)
def test_what_has_no_utf_8_is_refused_by_name(text: str) -> None:
    if text.encode("utf-8", "replace") == text.encode("utf-8", "surrogatepass"):
        assert json.loads(quote(text)) == text
    else:
        with pytest.raises(ValueError, match="valid Unicode"):
            quote(text)


@given(st.lists(texts, min_size=1, max_size=6))
@settings(deadline=None)
def test_a_batch_is_one_frame_of_strings(messages: list[str]) -> None:
    body = batch(map(Message, messages)).body
    assert body[:1] == b"a"
    assert json.loads(body[1:]) == messages


@given(st.lists(st.dictionaries(texts, json_values, max_size=3), min_size=1, max_size=4))
@settings(deadline=None)
def test_in_the_protocol_of_2012_a_frame_has_objects(messages: list[dict[str, Any]]) -> None:
    body = batch(ObjectMessage(compact(message)) for message in messages).body
    assert json.loads(body[1:]) == messages
    assert not FRAGILE.search(body.decode())


def test_a_message_is_quoted_once_for_all_frames_and_a_frame_once_for_all_sessions() -> None:
    message = Message("x")
    assert message.quoted is message.quoted
    frame = batch([message])
    assert frame.body is frame.body
    assert frame.text is frame.text

    calls = []

    def wrap(body: bytes) -> bytes:
        calls.append(body)
        return body + b"\n"

    assert [frame.wire(wrap) for _ in range(3)] == [b'a["x"]\n'] * 3
    assert calls == [b'a["x"]']


def test_the_fixed_frames_are_as_clients_know_them() -> None:
    assert (OPEN.body, HEARTBEAT.body) == (b"o", b"h")
    assert Close(3000, "Go away!").body == b'c[3000,"Go away!"]'
    assert Frame(b"o").messages == ()


@given(st.one_of(any_text, texts), st.integers(0, 130))
@example("\ud800", 0)
@settings(deadline=None)
def test_a_reason_is_cut_at_the_border_of_a_character(reason: str, padding: int) -> None:
    whole = "x" * padding + reason
    cut = cut_reason(whole)
    readable = whole.encode("utf-8", "replace").decode()
    assert readable.startswith(cut)
    assert len(cut.encode()) <= MAX_REASON_BYTES
    assert cut == readable or len(readable[: len(cut) + 1].encode()) > MAX_REASON_BYTES
    assert json.loads(Close(3000, whole).body[1:]) == [3000, cut]


@pytest.mark.parametrize("code", [1000, 1001, 1008, 1011, 1012, 1013, 3000, 4999])
def test_codes_that_an_application_may_close_with(code: int) -> None:
    assert check_close_code(code) == code


@pytest.mark.parametrize(
    "code", [-1, 0, 999, 1004, 1005, 1006, 1015, 1016, 2010, 2999, 5000, True, "1000", None, 1000.0]
)
def test_codes_that_are_never_sent(code: Any) -> None:
    with pytest.raises(ValueError, match="expected 1000-1003"):
        check_close_code(code)


# Reading


@given(json_values)
@settings(deadline=None)
def test_json_is_read_as_anybody_reads_it(value: Any) -> None:
    assert loads(compact(value)) == value
    assert loads(compact(value).encode()) == value
    assert loads(json.dumps(value)) == value


@given(st.lists(any_text, max_size=4))
@settings(deadline=None)
def test_lone_surrogates_become_replacement_characters(values: list[str]) -> None:
    # As UTF-16 decoders do it: a pair of surrogates in a row is the character that it means.
    expected = [value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") for value in values]
    assert loads(json.dumps(values)) == expected


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "{",
            "[1,]",
            "NaN",
            "[Infinity]",
            "[-Infinity]",
            "01",
            "'a'",
            '"\t"',
            "\ufeff1",
            "nul",
            '{"a":1',
            "[1]]",
        ),
        # The same beside an escaped surrogate, which takes the road by the slower parser.
        *(r'["\ud800", NaN]', r'["\ud800", Infinity]', r'["\ud800", 1e999]', r'["\ud800"', '["\\ud800", "\t"]'),
        r'["\ud800", ' + "1" * 5000 + "]",
    ],
)
def test_what_is_not_strict_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the text is the parser's
        loads(text)


@pytest.mark.parametrize("raw", [b"\xff", b'"\xc0\xaf"', b'"\xed\xa0\x80"', b'\xef\xbb\xbf"x"', '"x"'.encode("utf-16")])
def test_what_is_not_utf_8_is_a_value_error(raw: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the text is the parser's
        loads(raw)


@pytest.mark.parametrize("surrogate", ["", r'"\ud800",'], ids=["plain", "with a lone surrogate"])
@pytest.mark.parametrize("bracket", ["[", '{"a":'])
@pytest.mark.parametrize("depth", [900, 1_025, 5_000, 30_000, 100_000])
def test_any_depth_is_read_or_refused(surrogate: str, bracket: str, depth: int) -> None:
    close = "]" if bracket == "[" else "}"
    text = f"[{surrogate}{bracket * depth}1{close * depth}]"
    try:
        value = loads(text)
    except ValueError:
        assert depth > 900 or surrogate  # our parser's own limit is 1 024, the slower one's is lower
    else:
        assert isinstance(value, list)
        assert depth < 1_024


def upload_result(body: bytes) -> list[str] | FrameError:
    try:
        return parse_upload(body)
    except FrameError as error:
        return error


@given(st.one_of(st.binary(max_size=60), json_values.map(lambda value: compact(value).encode())))
@settings(deadline=None)
def test_any_upload_ends_in_messages_or_a_known_error(body: bytes) -> None:
    result = upload_result(body)
    if isinstance(result, FrameError):
        assert (result.code, str(result)) in {
            ("payload_expected", "Payload expected."),
            ("bad_json", "Broken JSON encoding."),
            ("not_an_array", "Broken JSON encoding."),
            ("message_not_string", "Broken JSON encoding."),
        }
    else:
        assert all(isinstance(message, str) for message in result)


@given(st.lists(texts, max_size=5))
@settings(deadline=None)
def test_an_upload_of_strings_is_read(messages: list[str]) -> None:
    assert parse_upload(compact(messages).encode()) == messages


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "payload_expected"),
        (b'["x', "bad_json"),
        (b"\xff", "bad_json"),
        (b"{}", "not_an_array"),
        (b'{"__proto__":null}', "not_an_array"),
        (b'"a"', "not_an_array"),
        (b"null", "not_an_array"),
        (b'["a",1]', "message_not_string"),
        (b'["a",null]', "message_not_string"),
        (b'[["a"]]', "message_not_string"),
    ],
)
def test_an_upload_that_is_refused_says_why(body: bytes, code: str) -> None:
    with pytest.raises(FrameError) as caught:
        parse_upload(body)
    assert caught.value.code == code


@given(st.binary(max_size=60))
@settings(deadline=None)
def test_any_form_ends_in_bytes_or_a_known_error(body: bytes) -> None:
    try:
        assert isinstance(parse_form(body), bytes)
    except FrameError as error:
        assert error.code in ("bad_form", "payload_expected")


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"d=%5B%22x%22%5D", b'["x"]'),
        (b"d=a+b%2Bc%252B", b"a b+c%2B"),
        (b"x=1&d=2", b"2"),
        (b"d=1&d=2", b"1"),
        (b"d=", b""),
        (b"d=%E2%98%83", "☃".encode()),
    ],
)
def test_a_form_is_decoded_once(body: bytes, value: bytes) -> None:
    assert parse_form(body) == value


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "payload_expected"),
        (b"p=p", "payload_expected"),
        (b"d", "payload_expected"),
        (b"d=%ff", "bad_form"),
        (b"d=\xff", "bad_form"),
        (b"&".join([b"a=1"] * 17), "bad_form"),
    ],
)
def test_a_form_without_its_field_is_refused(body: bytes, code: str) -> None:
    try:
        value = parse_form(body)
    except FrameError as error:
        assert error.code == code
    else:
        # A field without a value is an empty payload, which `parse_upload` refuses with the same code.
        assert (value, code) == (b"", "payload_expected")


@given(st.one_of(st.text(st.characters(codec="utf-8"), max_size=60), json_values.map(compact)))
@settings(deadline=None)
def test_any_websocket_text_ends_in_messages_or_a_known_error(text: str) -> None:
    try:
        messages = parse_websocket(text)
    except FrameError as error:
        assert error.code in ("bad_json", "message_not_string")
        assert str(error) == "Broken framing."
    else:
        assert all(isinstance(message, str) for message in messages)


@pytest.mark.parametrize(("text", "messages"), [("", []), ("[]", []), ('"a"', ["a"]), ('["a","b"]', ["a", "b"])])
def test_a_websocket_text_holds_an_array_or_one_string(text: str, messages: list[str]) -> None:
    assert parse_websocket(text) == messages


@pytest.mark.parametrize("text", ["1", "{}", "null", "[1]", '["a",1]', '["a"', "a"])
def test_other_websocket_texts_are_broken_framing(text: str) -> None:
    with pytest.raises(FrameError, match="Broken framing"):
        parse_websocket(text)
