"""Wire messages: what is a request and what is not, and what JSON can carry; runs no server."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import json
import types
import uuid
from typing import Any

import msgspec
import pydantic
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backsync_asgi import messages
from backsync_asgi.errors import BadMessage, EncodeError
from backsync_asgi.messages import MAX_DEPTH, MAX_ID, MAX_SAFE_INTEGER, decode, encode

texts = st.text(st.characters(codec="utf-8"), max_size=20)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def refused(message: Any) -> BadMessage:
    with pytest.raises(BadMessage) as caught:
        decode(message if isinstance(message, (str, bytes)) else json.dumps(message))
    return caught.value


def nested(depth: int) -> str:
    """A whole message of so many arrays and objects in each other."""
    return '{"id":1,"event":"M:x","data":' + "[" * (depth - 1) + "]" * (depth - 1) + "}"


# Requests


@pytest.mark.parametrize(
    ("message", "model", "method", "data"),
    [
        ({"event": "Todo:read"}, "Todo", "read", None),
        ({"event": "Todo:read", "data": {}}, "Todo", "read", {}),
        ({"event": "Todo:upsert", "data": {"id": 1}}, "Todo", "upsert", {"id": 1}),
        ({"event": "Todo:create", "data": {}}, "Todo", "upsert", {}),
        ({"event": "Todo:update", "data": {}}, "Todo", "upsert", {}),
        ({"event": "Todo:patch", "data": {}}, "Todo", "patch", {}),
        ({"event": "a.b-c_1:x"}, "a.b-c_1", "x", None),
        ({"event": "_:_"}, "_", "_", None),
        ({"event": "$:hello"}, "$", "hello", None),
        ({"event": f"{'M' * 128}:{'m' * 128}"}, "M" * 128, "m" * 128, None),
        ({"event": "M:x", "data": 0}, "M", "x", 0),
        ({"event": "M:x", "unknown": 1}, "M", "x", None),
    ],
)
def test_a_request_is_read(message: dict[str, Any], model: str, method: str, data: Any) -> None:
    request = decode(json.dumps(message))
    assert (request.model, request.method, request.data) == (model, method, data)
    assert (request.event, request.message, request.id) == (message["event"], message, None)


@pytest.mark.parametrize("id", [1, 0, -1, MAX_SAFE_INTEGER, "a", "é", "x" * MAX_ID, "__proto__", "\0", " "])
def test_a_transaction_has_a_name_or_an_exact_number(id: Any) -> None:
    assert decode(json.dumps({"id": id, "event": "M:x"})).id == id


@pytest.mark.parametrize(
    "id", ["", "x" * (MAX_ID + 1), 1.0, 1.5, True, False, [], {}, ["a"], 2**53, -(2**53), 2**64, 2**70], ids=repr
)
def test_another_id_is_refused_without_somebody_to_tell(id: Any) -> None:
    error = refused({"id": id, "event": "M:x"})
    assert "id" in str(error)
    assert (error.id, error.event) == (None, "M:x")


def test_an_id_of_null_is_no_id() -> None:
    assert decode('{"id":null,"event":"M:x"}').id is None


@pytest.mark.parametrize(
    "event",
    [
        *(
            "",
            "M",
            "M:",
            ":x",
            "M:x:y",
            "1M:x",
            "M:1x",
            "M x:y",
            "M:x y",
            "$M:x",
            "M$:x",
            "M/x:y",
            "M:x.y",
            "é:x",
            "M:é",
        ),
        *("M:x\n", "\nM:x", " M:x", "M:x ", "M\0:x", f"{'M' * 129}:x", f"M:{'x' * 129}", "$", "$:", "$$:x", "-M:x"),
        *(None, 1, True, [], {}, ["M:x"]),
    ],
    ids=repr,
)
def test_an_event_that_names_no_method_is_refused_to_its_sender(event: Any) -> None:
    error = refused({"id": "t", "event": event})
    assert error.id == "t"
    assert error.event == (event if isinstance(event, str) else None)
    assert "expected 'Model:method'" in str(error)


def test_a_missing_event_is_refused_to_its_sender() -> None:
    assert refused({"id": 7}).id == 7


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "x", "{", "[]", "[{}]", '"M:x"', "1", "null", "true", '{"event":"M:x"', "{'event':'M:x'}", "NaN"),
        *('{"event":"M:x","data":NaN}', '{"event":"M:x","data":Infinity}', '{"event":"M:x","data":1e999}', "\ufeff{}"),
    ],
)
def test_what_is_no_json_object_has_nobody_to_tell(text: str) -> None:
    for form in (text, text.encode()):
        error = refused(form)
        assert (error.id, error.event) == (None, None)


@given(st.one_of(texts, st.binary(max_size=40), json_values.map(json.dumps)))
@settings(deadline=None)
def test_any_message_is_a_request_or_refused(message: str | bytes) -> None:
    try:
        request = decode(message)
    except BadMessage as error:
        assert len(str(error)) < 500, "an error does not send the message back"
    else:
        assert messages.is_method_name(request.method)


@given(st.dictionaries(st.sampled_from(["id", "event", "data", "since", "x"]), json_values | st.just("M:x")))
@settings(deadline=None)
def test_any_object_is_a_request_or_refused_to_its_sender(message: dict[str, Any]) -> None:
    try:
        request = decode(json.dumps(message))
    except BadMessage as error:
        assert error.id in (None, message.get("id"))
    else:
        assert request.message == message


def test_the_last_of_two_equal_keys_counts() -> None:
    assert decode('{"event":"M:x","data":1,"data":2}').data == 2


def test_lone_surrogates_become_replacement_characters() -> None:
    assert decode(r'{"event":"M:x","data":"a\ud800b"}').data == "a�b"


@pytest.mark.parametrize("text", ["😀", "مرحبا", "é", "\uffff", "\u2028", "\0", "</script>", "{0} %s '; DROP TABLE"])
def test_any_text_is_data(text: str) -> None:
    assert decode(json.dumps({"event": "M:x", "data": text})).data == text


@pytest.mark.parametrize("depth", [2, 3, MAX_DEPTH - 1, MAX_DEPTH])
def test_a_message_may_be_as_deep_as_the_limit(depth: int) -> None:
    assert decode(nested(depth)).method == "x"


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, MAX_DEPTH + 2, 500, 1_024])
def test_a_deeper_message_is_refused_to_its_sender(depth: int) -> None:
    error = refused(nested(depth))
    assert (error.id, error.event) == (1, "M:x")
    assert str(MAX_DEPTH) in str(error)


def test_a_message_too_deep_for_the_parser_is_refused_too() -> None:
    assert refused(nested(1_025)).id is None


def test_a_message_with_many_brackets_side_by_side_is_not_deep() -> None:
    assert len(decode(json.dumps({"event": "M:x", "data": [[{}]] * 1_000})).data) == 1_000
    assert decode(json.dumps({"event": "M:x", "data": "[" * 1_000})).data == "[" * 1_000


# What JSON can carry


@given(json_values)
@settings(deadline=None)
def test_what_json_can_carry_comes_back_equal(value: Any) -> None:
    assert json.loads(encode(value)) == value


def test_dates_ids_enums_and_dataclasses_are_written() -> None:
    class Colour(enum.Enum):
        RED = "red"

    @dataclasses.dataclass
    class Point:
        x: int

    id = uuid.UUID(int=1)
    when = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    price = decimal.Decimal("1.50")
    value = {"colour": Colour.RED, "point": Point(1), "id": id, "when": when, "price": price}
    assert json.loads(encode(value)) == {
        "colour": "red",
        "point": {"x": 1},
        "id": str(id),
        "when": "2026-01-02T00:00:00Z",
        "price": "1.50",
    }


@pytest.mark.parametrize("kind", [types.MappingProxyType, collections.UserDict])
def test_any_mapping_is_an_object(kind: Any) -> None:
    """What counts as a record can be sent as one: a row of SQLAlchemy's is a mapping and no dict."""
    assert json.loads(encode([kind({"id": 1, "inner": kind({"at": None})})])) == [{"id": 1, "inner": {"at": None}}]
    with pytest.raises(EncodeError, match="at inner.ratio,"):
        encode(kind({"inner": kind({"ratio": float("nan")})}))
    with pytest.raises(EncodeError, match="tags"):
        encode(kind({"tags": {1}}))


def circular() -> list[Any]:
    value: list[Any] = []
    value.append({"again": value})
    return value


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ({"tags": {"a"}}, "tags"),
        ({"price": decimal.Decimal("NaN")}, "price"),
        ({"photo": b"x"}, "photo"),
        ({"rows": [1, {"deep": object()}]}, "rows[1].deep"),
        ({"text": "a\ud800"}, "text"),
        ({"number": 2**64}, "number"),
        ({"number": -(2**63) - 1}, "number"),
        ({"inner": {1: "x"}}, "inner.1"),
        ({("a", "b"): 1}, "('a', 'b')"),
        ({"ratio": float("nan")}, "ratio"),
        ({"ratio": [0.5, float("inf")]}, "ratio[1]"),
        ({"ratio": (float("-inf"),)}, "ratio[0]"),
        ({"none": None, "ratio": float("nan")}, "ratio"),
        (float("nan"), "the top"),
        ({1, 2}, "the top"),
        ({"loop": circular()}, "loop[0].again[0].again"),
        ({"a\ud800": 1}, "a"),
    ],
    ids=lambda it: repr(it)[:30],
)
def test_what_json_cannot_carry_is_refused_and_the_field_named(value: Any, names: str) -> None:
    with pytest.raises(EncodeError) as caught:
        encode(value)
    assert names in str(caught.value)


@dataclasses.dataclass
class Reading:
    ratio: float
    note: str | None = None


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (Reading(float("nan")), "ratio"),
        ({"r": Reading(float("inf"))}, "r.ratio"),
        ([Reading(float("nan"))], "[0].ratio"),
    ],
)
def test_a_number_in_a_dataclass_does_not_become_null_either(value: Any, names: str) -> None:
    with pytest.raises(EncodeError) as caught:
        encode(value)
    assert f"at {names}," in str(caught.value)


def test_none_and_the_word_null_are_no_nan() -> None:
    assert json.loads(encode(Reading(0.5, None))) == {"ratio": 0.5, "note": None}
    assert json.loads(encode({"a": None, "b": "null", "c": 0.0})) == {"a": None, "b": "null", "c": 0.0}


# Replies and pushes


events = st.from_regex(r"(\$|[A-Za-z_][A-Za-z0-9_.\-]{0,127}):([A-Za-z_][A-Za-z0-9_]{0,127})", fullmatch=True)


@given(st.one_of(texts.filter(bool), st.integers(-MAX_SAFE_INTEGER, MAX_SAFE_INTEGER)), events, json_values)
@example('"', "A_z0.-:m", None)
@settings(deadline=None)
def test_messages_are_put_together_from_encoded_parts(id: str | int, event: str, data: Any) -> None:
    body = encode(data)
    assert json.loads(messages.reply(id, event, body)) == {"id": id, "event": event, "data": data}
    assert json.loads(messages.push(event, body)) == {"event": event, "data": data}
    assert json.loads(messages.change(event, body, 5)) == {"event": event, "data": data, "seq": 5}


def test_an_error_reply_has_data_null_and_details_only_if_there_are_any() -> None:
    reply = {"id": 1, "event": "M:x", "data": None}
    assert json.loads(messages.error_reply(1, "M:x", "invalid", "No.")) == {
        **reply,
        "error": {"code": "invalid", "message": "No."},
    }
    assert json.loads(messages.error_reply(1, "M:x", "invalid", "No.", [])) == {
        **reply,
        "error": {"code": "invalid", "message": "No.", "details": []},
    }
    assert json.loads(messages.error_reply(1, None, "bad_message", "No."))["event"] is None


def test_an_error_of_2012_is_a_text() -> None:
    assert json.loads(messages.error_reply_2012("t", "M:x", "No.")) == {
        "id": "t",
        "event": "M:x",
        "data": None,
        "error": "No.",
    }


# Values beside a null, which stands for NaN in what orjson writes


class Link(pydantic.BaseModel):
    url: pydantic.HttpUrl
    note: str | None = None


class Secret(pydantic.BaseModel):
    word: pydantic.SecretStr
    note: str | None = "x"


@dataclasses.dataclass
class Measured:
    value: float
    note: str | None = None


class Holder(pydantic.BaseModel):
    inside: Measured


class Framed(msgspec.Struct):
    inside: Any = None


@pytest.mark.parametrize(
    "value",
    [
        Link(url=pydantic.HttpUrl("https://example.com/")),
        {"url": pydantic.HttpUrl("https://example.com/"), "note": None},
        Measured(1.5),
        Holder(inside=Measured(0.5)),
        Framed([None, {"a": None, "b": "null"}, Measured(2.5)]),
        [None, ["null", {"deep": [None, 1.5]}], (None, True)],
        {"at": datetime.date(2026, 1, 1), "amount": decimal.Decimal("1.50"), "none": None},
    ],
    ids=repr,
)
def test_a_null_beside_any_value_is_only_a_null(value: Any) -> None:
    """Values that write themselves stand beside a null as without one."""
    assert "null" in encode(value)


@pytest.mark.parametrize(
    "value",
    [
        {"a": None, "b": {"c": [1.0, float("nan")]}},
        [None, float("-inf")],
        Measured(float("inf")),
        Holder(inside=Measured(float("nan"))),
        Framed([Measured(float("nan"))]),
        {"none": None, "link": Measured(float("nan"))},
        (None, {"x": float("inf")}),
    ],
    ids=repr,
)
def test_a_number_that_json_does_not_have_is_found_wherever_it_stands(value: Any) -> None:
    """A quick look first must not pass over a NaN that the slow one would find."""
    with pytest.raises(EncodeError, match="NaN or an infinity"):
        encode(value)


@pytest.mark.parametrize(
    "value",
    [pydantic.SecretStr("a"), {"word": pydantic.SecretStr("a"), "note": None}, Secret(word="a"), [Secret(word="a")]],  # type: ignore[arg-type]
    ids=["itself", "in a dict", "in a model", "in a list"],
)
def test_a_secret_is_not_written_as_asterisks(value: Any) -> None:
    """What would be written as something else than it is, is refused."""
    with pytest.raises(EncodeError, match="JSON cannot carry"):
        encode(value)
