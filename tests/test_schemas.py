"""Schemas: what is loaded, what is refused and in which words, the same for every kind of type; runs no server."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import functools
import inspect
import json
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Annotated, Any, Generic, Literal, NotRequired, Required, TypeVar

import msgspec
import pydantic
import pydantic.dataclasses
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from backsync_asgi import messages
from backsync_asgi.errors import EncodeError, Reject
from backsync_asgi.schemas import MAX_FAULTS, Schema, data_annotation, schema_of

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


# The same types in each way of writing them.


@dataclasses.dataclass
class PlaceDataclass:
    city: str
    lines: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class PersonDataclass:
    name: str
    id: str | int | None = None
    age: int = 0
    ratio: float = 0.5
    admin: bool = False
    note: str | None = None
    colour: Colour = Colour.RED
    level: Level = Level.LOW
    kind: Literal["a", "b"] = "a"
    born: datetime.date | None = None
    seen: datetime.datetime | None = None
    token: uuid.UUID | None = None
    price: decimal.Decimal | None = None
    place: PlaceDataclass | None = None
    places: list[PlaceDataclass] = dataclasses.field(default_factory=list)
    named: dict[str, PlaceDataclass] = dataclasses.field(default_factory=dict)
    pair: tuple[int, str] | None = None
    either: int | str = 0
    friend: PersonDataclass | None = None
    any: Any = None


class PlaceDict(TypedDict):
    city: str
    lines: NotRequired[list[str]]


class PersonDict(TypedDict, total=False):
    name: Required[str]
    id: str | int | None
    age: int
    ratio: float
    admin: bool
    note: str | None
    colour: Colour
    level: Level
    kind: Literal["a", "b"]
    born: datetime.date | None
    seen: datetime.datetime | None
    token: uuid.UUID | None
    price: decimal.Decimal | None
    place: PlaceDict | None
    places: list[PlaceDict]
    named: dict[str, PlaceDict]
    pair: tuple[int, str] | None
    either: int | str
    friend: PersonDict | None
    any: Any


class PlaceStruct(msgspec.Struct):
    city: str
    lines: list[str] = []


class PersonStruct(msgspec.Struct):
    name: str
    id: str | int | None = None
    age: int = 0
    ratio: float = 0.5
    admin: bool = False
    note: str | None = None
    colour: Colour = Colour.RED
    level: Level = Level.LOW
    kind: Literal["a", "b"] = "a"
    born: datetime.date | None = None
    seen: datetime.datetime | None = None
    token: uuid.UUID | None = None
    price: decimal.Decimal | None = None
    place: PlaceStruct | None = None
    places: list[PlaceStruct] = []
    named: dict[str, PlaceStruct] = {}
    pair: tuple[int, str] | None = None
    either: int | str = 0
    friend: PersonStruct | None = None
    any: Any = None


class PlaceModel(pydantic.BaseModel):
    city: str
    lines: list[str] = []


class PersonModel(pydantic.BaseModel):
    name: str
    id: str | int | None = None
    age: int = 0
    ratio: float = 0.5
    admin: bool = False
    note: str | None = None
    colour: Colour = Colour.RED
    level: Level = Level.LOW
    kind: Literal["a", "b"] = "a"
    born: datetime.date | None = None
    seen: datetime.datetime | None = None
    token: uuid.UUID | None = None
    price: decimal.Decimal | None = None
    place: PlaceModel | None = None
    places: list[PlaceModel] = []
    named: dict[str, PlaceModel] = {}
    pair: tuple[int, str] | None = None
    either: int | str = 0
    friend: PersonModel | None = None
    any: Any = None


@functools.cache
def made(annotation: Any, without: str = "", **options: Any) -> Schema:
    """The schema of a type, made as if a library were not installed."""
    with pytest.MonkeyPatch.context() as patch:
        if without:
            patch.setitem(sys.modules, without, None)
        schema = schema_of(annotation, **options)
    assert schema is not None
    return schema


# Name, type, the library that is missing.
KINDS = {
    "dataclass by msgspec": (PersonDataclass, ""),
    "dataclass by pydantic": (PersonDataclass, "msgspec"),
    "TypedDict by msgspec": (PersonDict, ""),
    "TypedDict by pydantic": (PersonDict, "msgspec"),
    "Struct": (PersonStruct, ""),
    "pydantic model": (PersonModel, ""),
}


@pytest.fixture(params=KINDS)
def person(request: pytest.FixtureRequest) -> Callable[..., Schema]:
    """`person(unknown="refuse", …)`: the schema of a person, in each way of writing it."""
    annotation, without = KINDS[request.param]
    return functools.partial(made, annotation, without)


def look(value: Any, name: str) -> Any:
    return value[name] if isinstance(value, dict) else getattr(value, name)


def refused(schema: Schema, data: Any, **more: Any) -> list[tuple[str, str]]:
    """The faults, as (field, message)."""
    with pytest.raises(Reject) as caught:
        schema.load(data, **more)
    assert caught.value.code == "invalid"
    assert all(it.keys() == {"field", "message"} for it in caught.value.details)
    json.dumps(caught.value.details)
    return [(it["field"], it["message"]) for it in caught.value.details]


# What is loaded

WHOLE = {
    "id": 7,
    "name": "Ann",
    "age": 3,
    "ratio": 1.5,
    "admin": True,
    "note": "x",
    "colour": "blue",
    "level": 2,
    "kind": "b",
    "born": "2026-01-02",
    "seen": "2026-01-02T03:04:05Z",
    "token": "00000000-0000-0000-0000-000000000001",
    "price": "1.50",
    "place": {"city": "Rome", "lines": ["1"]},
    "places": [{"city": "Oslo", "lines": []}],
    "named": {"__proto__": {"city": "Bern", "lines": []}},
    "pair": [1, "a"],
    "either": "text",
    "friend": None,
    "any": {"a": [1, None]},
}


def test_data_becomes_what_the_annotation_says(person: Callable[..., Schema]) -> None:
    value = person().load(WHOLE)
    assert (look(value, "id"), look(value, "name"), look(value, "admin")) == (7, "Ann", True)
    assert look(value, "born") == datetime.date(2026, 1, 2)
    assert look(value, "seen") == datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    assert (look(value, "token"), look(value, "price")) == (uuid.UUID(int=1), decimal.Decimal("1.50"))
    assert (look(value, "colour"), look(value, "level")) == (Colour.BLUE, Level.HIGH)
    assert look(look(value, "places")[0], "city") == "Oslo"
    assert look(look(value, "named")["__proto__"], "city") == "Bern"


def test_what_was_loaded_is_written_as_it_was_sent(person: Callable[..., Schema]) -> None:
    schema = person()
    assert json.loads(messages.encode(schema.load(WHOLE))) == WHOLE
    assert schema.record(schema.load(WHOLE)) == WHOLE | (
        {name: look(schema.load(WHOLE), name) for name in WHOLE} if schema.type is PersonDict else {}
    )


def test_defaults_stand_where_nothing_was_sent(person: Callable[..., Schema]) -> None:
    schema = person()
    first, second = schema.load({"name": "Ann"}), schema.load({"name": "Bob"})
    if schema.type is PersonDict:
        assert first == {"name": "Ann"}
        return
    assert (look(first, "ratio"), look(first, "kind"), look(first, "places")) == (0.5, "a", [])
    assert look(first, "places") is not look(second, "places")


def test_an_integer_is_a_number(person: Callable[..., Schema]) -> None:
    assert look(person().load({"name": "Ann", "ratio": 2}), "ratio") == 2


# What is refused, and in which words


@pytest.mark.parametrize(
    ("data", "faults"),
    [
        ({}, [("name", "missing")]),
        ({"name": 5}, [("name", "expected a string, got an integer")]),
        ({"name": None}, [("name", "expected a string, got null")]),
        ({"age": "1"}, [("age", "expected an integer, got a string")]),
        ({"age": 1.0}, [("age", "expected an integer, got a number")]),
        ({"age": 1e300}, [("age", "expected an integer, got a number")]),
        ({"age": True}, [("age", "expected an integer, got a boolean")]),
        ({"age": {}}, [("age", "expected an integer, got an object")]),
        ({"ratio": "1.5"}, [("ratio", "expected a number, got a string")]),
        ({"admin": 1}, [("admin", "expected a boolean, got an integer")]),
        ({"admin": "true"}, [("admin", "expected a boolean, got a string")]),
        ({"note": []}, [("note", "expected a string, got an array")]),
        ({"colour": "green"}, [("colour", "expected 'red' or 'blue'")]),
        ({"colour": 5}, [("colour", "expected 'red' or 'blue'")]),
        ({"level": 3}, [("level", "expected 1 or 2")]),
        ({"kind": "c"}, [("kind", "expected 'a' or 'b'")]),
        ({"born": "soon"}, [("born", "expected a date such as '2026-01-31'")]),
        ({"born": 5}, [("born", "expected a date such as '2026-01-31', got an integer")]),
        ({"seen": "x"}, [("seen", "expected a date and time such as '2026-01-31T12:00:00Z'")]),
        ({"token": "x"}, [("token", "expected a UUID")]),
        ({"price": "x"}, [("price", "expected a decimal number")]),
        ({"place": "x"}, [("place", "expected an object, got a string")]),
        ({"place": []}, [("place", "expected an object, got an array")]),
        ({"place": {}}, [("place.city", "missing")]),
        ({"places": {}}, [("places", "expected an array, got an object")]),
        ({"places": [{"city": "a"}, {"city": 1}, {}]}, [
            ("places[1].city", "expected a string, got an integer"),
            ("places[2].city", "missing"),
        ]),
        ({"place": {"city": "a", "lines": ["x", 1, "y", None]}}, [
            ("place.lines[1]", "expected a string, got an integer"),
            ("place.lines[3]", "expected a string, got null"),
        ]),
        ({"named": {"a b": {"city": 1}}}, [("named.a b.city", "expected a string, got an integer")]),
        ({"pair": ["x", "y"]}, [("pair[0]", "expected an integer, got a string")]),
        ({"either": []}, [("either", "expected an integer or a string, got an array")]),
        ({"either": {}}, [("either", "expected an integer or a string, got an object")]),
        ({"friend": {"name": "Bob", "friend": {"age": "1"}}}, [
            ("friend.friend.name", "missing"),
            ("friend.friend.age", "expected an integer, got a string"),
        ]),
        ({"name": 1, "age": "x", "place": {"city": 2}, "kind": "c"}, [
            ("name", "expected a string, got an integer"),
            ("age", "expected an integer, got a string"),
            ("kind", "expected 'a' or 'b'"),
            ("place.city", "expected a string, got an integer"),
        ]),
    ],
    ids=lambda it: str(it)[:40],
)  # fmt: skip
def test_each_fault_is_told_in_the_same_words(
    person: Callable[..., Schema], data: dict[str, Any], faults: list[tuple[str, str]]
) -> None:
    whole = data if data == {} else {"name": "Ann", **data}
    assert sorted(refused(person(), whole)) == sorted(faults)


@pytest.mark.parametrize("data", [None, 1, True, "x", [], [{}], 1.5], ids=repr)
def test_what_is_no_object_is_refused_as_a_whole(person: Callable[..., Schema], data: Any) -> None:
    [(field, message)] = refused(person(), data)
    assert field == "data"
    assert message.startswith("expected an object, got ")


def test_a_refusal_says_what_is_wrong_at_a_glance(person: Callable[..., Schema]) -> None:
    with pytest.raises(Reject, match="The data was refused: age: expected an integer, got a string") as caught:
        person().load({"name": "Ann", "age": "1"})
    assert caught.value.message.endswith("a string")
    with pytest.raises(Reject) as caught:
        person().load({"name": "Ann", "age": "1", "ratio": "1", "admin": 1, "note": 1, "either": []})
    assert caught.value.message.endswith("; and 2 more")


def test_a_refusal_does_not_send_the_data_back(person: Callable[..., Schema]) -> None:
    huge = "x" * 60_000
    for data in (
        {"name": [huge]},
        {"name": "a", "kind": huge},
        {"name": "a", "colour": huge},
        {"name": "a", "born": huge},
        {"name": "a", "token": huge},
        {"name": "a", "price": huge},
        {"name": "a", "named": {huge: 1}},
        {"name": "a", "place": {"city": {huge: huge}}},
    ):
        assert len(json.dumps(refused(person(), data))) < 1_000
    assert len(json.dumps(refused(person(unknown="refuse"), {"name": "a", huge: 1}))) < 1_000


def test_no_more_than_a_hundred_faults_are_told(person: Callable[..., Schema]) -> None:
    assert len(refused(person(), {"name": "a", "places": [{}] * 20_000})) == MAX_FAULTS


def test_data_may_be_nested_deeply(person: Callable[..., Schema]) -> None:
    data: dict[str, Any] = {"name": "a"}
    for _ in range(14):
        data = {"name": "a", "friend": data}
    person().load(data)
    for _ in range(3_000):
        data = {"name": "a", "friend": data}
    assert len(refused(person(), data)) == 1


# Fields that a type does not have


def test_unknown_fields_are_dropped_unless_said_otherwise(person: Callable[..., Schema]) -> None:
    schema = person()
    value = schema.load({"name": "Ann", "selected": True, "__proto__": {}, "constructor": 1})
    assert "selected" not in messages.encode(value)
    assert "__proto__" not in messages.encode(value)


def test_unknown_fields_are_refused_on_demand_with_all_other_faults(person: Callable[..., Schema]) -> None:
    schema = person(unknown="refuse")
    assert sorted(refused(schema, {"nmae": "Ann", "age": "1", "__proto__": 1})) == [
        ("__proto__", "unknown field"),
        ("age", "expected an integer, got a string"),
        ("name", "missing"),
        ("nmae", "unknown field"),
    ]
    schema.load({"name": "Ann"})


def test_what_the_framework_sets_is_never_unknown(person: Callable[..., Schema]) -> None:
    schema = person(owned=("id", "rev", "room"), unknown="refuse")
    sent = {"name": "Ann", "id": 1, "rev": 3, "room": "a"}
    record = schema.record(schema.load(sent), sent)
    assert (record["id"], record["rev"], record["room"]) == (1, 3, "a")


def test_what_the_framework_sets_may_be_missing_or_null(person: Callable[..., Schema]) -> None:
    schema = person(owned=("id", "rev"))
    for sent in ({"name": "Ann"}, {"name": "Ann", "id": None, "rev": None}):
        record = schema.record(schema.load(sent), sent)
        assert record.get("id") is None
        assert record.get("rev") is None


@dataclasses.dataclass
class NoteDataclass:
    text: str


class NoteDict(TypedDict):
    text: str


class NoteStruct(msgspec.Struct, forbid_unknown_fields=True):
    text: str


class NoteModel(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    text: str


NOTES = [(NoteDataclass, ""), (NoteDataclass, "msgspec"), (NoteDict, ""), (NoteDict, "msgspec")]
NOTES += [(NoteStruct, ""), (NoteModel, "")]


@pytest.mark.parametrize(("annotation", "without"), NOTES)
def test_a_type_may_leave_the_id_to_the_framework(annotation: Any, without: str) -> None:
    schema = made(annotation, without, owned=("id", "rev"), unknown="refuse")
    sent = {"id": 5, "rev": 2, "text": "x"}
    assert schema.record(schema.load(sent), sent) == sent
    assert schema.record(schema.load({"text": "x"}), {"text": "x"}) == {"text": "x"}


@pytest.mark.parametrize("annotation", [NoteStruct, NoteModel])
def test_a_type_that_forbids_unknown_fields_is_obeyed(annotation: Any) -> None:
    assert refused(made(annotation, unknown="drop"), {"text": 1, "x": 1}) == [
        ("text", "expected a string, got an integer"),
        ("x", "unknown field"),
    ]


def test_a_type_that_allows_unknown_fields_is_obeyed() -> None:
    class Free(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="allow")
        text: str

    schema = made(Free, unknown="refuse")
    sent = {"text": "x", "id": 1, "more": [1]}
    assert json.loads(messages.encode(schema.load(sent))) == sent


def test_an_id_that_the_type_needs_is_needed() -> None:
    class Needy(msgspec.Struct):
        id: int

    assert refused(made(Needy), {}) == [("id", "missing")]
    assert refused(made(Needy), {"id": "x"}) == [("id", "expected an integer, got a string")]


def test_another_setting_for_unknown_fields_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 'drop' or 'refuse'"):
        schema_of(NoteStruct, unknown="ignore")  # type: ignore[arg-type]


# Patches


def test_a_patch_is_checked_as_the_record_that_it_makes(person: Callable[..., Schema]) -> None:
    schema = person()
    stored = {"id": 1, "name": "Ann", "age": 3, "old": True}
    record = messages.encode(schema.load({"id": 1, "age": 4}, stored))
    assert json.loads(record)["name"] == "Ann"
    assert json.loads(record)["age"] == 4
    assert refused(schema, {"id": 1, "age": "x"}, stored=stored) == [("age", "expected an integer, got a string")]
    assert refused(schema, {"id": 1}, stored=stored, unset=["name", "id"]) == [("name", "missing")]


def test_a_patch_answers_for_its_own_unknown_fields_alone(person: Callable[..., Schema]) -> None:
    schema = person(unknown="refuse")
    stored = {"id": 1, "name": "Ann", "old": True}
    schema.load({"age": 1}, stored)
    assert refused(schema, {"new": 1}, stored=stored) == [("new", "unknown field")]


# Constraints


class LimitsStruct(msgspec.Struct):
    size: Annotated[int, msgspec.Meta(ge=1, le=10)] = 1
    share: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.5
    even: Annotated[int, msgspec.Meta(multiple_of=2)] = 0
    code: Annotated[str, msgspec.Meta(min_length=2, max_length=4)] = "ab"
    word: Annotated[str, msgspec.Meta(pattern="^[a-z]+$")] = "a"
    tags: Annotated[list[str], msgspec.Meta(min_length=1, max_length=2)] = msgspec.field(default_factory=lambda: ["a"])
    when: Annotated[datetime.datetime, msgspec.Meta(tz=True)] | None = None


class LimitsModel(pydantic.BaseModel):
    size: int = pydantic.Field(1, ge=1, le=10)
    share: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.5
    even: Annotated[int, pydantic.Field(multiple_of=2)] = 0
    code: Annotated[str, pydantic.Field(min_length=2, max_length=4)] = "ab"
    word: Annotated[str, pydantic.Field(pattern="^[a-z]+$")] = "a"
    tags: Annotated[list[str], pydantic.Field(min_length=1, max_length=2)] = ["a"]
    when: pydantic.AwareDatetime | None = None


@dataclasses.dataclass
class LimitsOfMsgspec:
    size: Annotated[int, msgspec.Meta(ge=1, le=10)] = 1


@dataclasses.dataclass
class LimitsOfPydantic:
    size: Annotated[int, pydantic.Field(ge=1, le=10)] = 1


@dataclasses.dataclass
class DefaultsOfPydantic:
    size: int = pydantic.Field(default=1, ge=1, le=10)


@pytest.mark.parametrize(
    "annotation", [LimitsStruct, LimitsModel, LimitsOfMsgspec, LimitsOfPydantic, DefaultsOfPydantic]
)
def test_constraints_are_kept_by_the_library_that_they_are_of(annotation: Any) -> None:
    schema = made(annotation)
    assert look(schema.load({}), "size") == 1
    assert refused(schema, {"size": 0}) == [("size", "expected a number >= 1")]
    assert refused(schema, {"size": 11}) == [("size", "expected a number <= 10")]


@pytest.mark.parametrize("annotation", [LimitsStruct, LimitsModel])
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("share", 0, "expected a number > 0.0"),
        ("share", 1.5, "expected a number < 1.0"),
        ("even", 1, "expected a number: a multiple of 2"),
        ("code", "a", "expected a string of length >= 2"),
        ("code", "abcde", "expected a string of length <= 4"),
        ("word", "A" * 10_000, "expected a string matching '^[a-z]+$'"),
        ("tags", [], "expected an array of length >= 1"),
        ("tags", ["a"] * 3, "expected an array of length <= 2"),
        ("tags", [1], "[0]: expected a string, got an integer"),
        ("when", "2026-01-01T00:00:00", "expected a date and time with a timezone"),
    ],
)
def test_constraints_have_the_same_words(annotation: Any, field: str, value: Any, message: str) -> None:
    inner, _, told = message.rpartition(": expected")
    path, expected = (field + inner, "expected" + told) if inner.startswith("[") else (field, message)
    assert refused(made(annotation), {field: value}) == [(path, expected)]


def test_what_an_application_says_is_told() -> None:
    class Range(pydantic.BaseModel):
        low: int
        high: int

        @pydantic.model_validator(mode="after")
        def check(self) -> Range:
            if self.low > self.high:
                raise ValueError("low is above high" + "!" * 1_000)
            return self

    class Order(msgspec.Struct):
        low: int
        high: int

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError("low is above high" + "!" * 1_000)

    for annotation in (Range, Order):
        [(field, message)] = refused(made(annotation), {"low": 2, "high": 1})
        assert field == "data"
        assert message.startswith("low is above high!")
        assert len(message) < 300


# Names


class RenamedStruct(msgspec.Struct, rename="camel"):
    full_name: str
    key: int | None = msgspec.field(default=None, name="id")


class RenamedModel(pydantic.BaseModel):
    full_name: str = pydantic.Field(alias="fullName")
    key: int | None = pydantic.Field(None, validation_alias="id", serialization_alias="id")


@pytest.mark.parametrize("annotation", [RenamedStruct, RenamedModel])
def test_a_field_has_one_name_on_the_wire_for_both_ways(annotation: Any) -> None:
    schema = made(annotation, unknown="refuse")
    sent = {"fullName": "Ann", "id": 1}
    assert schema.record(schema.load(sent), sent) == sent
    assert refused(schema, {"fullName": 1}) == [("fullName", "expected a string, got an integer")]
    assert sorted(refused(schema, {"full_name": "Ann"})) == [("fullName", "missing"), ("full_name", "unknown field")]


def test_a_field_read_by_several_names_is_written_by_one_of_them() -> None:
    class Old(pydantic.BaseModel):
        text: str = pydantic.Field(validation_alias=pydantic.AliasChoices("text", "body"), serialization_alias="text")

    schema = made(Old, unknown="refuse")
    assert schema.record(schema.load({"body": "x"})) == {"text": "x"}


def test_a_field_that_could_not_come_back_is_refused_at_once() -> None:
    class Torn(pydantic.BaseModel):
        text: str = pydantic.Field(validation_alias="in", serialization_alias="out")

    with pytest.raises(TypeError, match=r"Torn.out is read as \['in'\] and written as 'out'"):
        schema_of(Torn)


def test_two_fields_of_one_name_are_refused_at_once() -> None:
    class Twins(pydantic.BaseModel):
        one: str = pydantic.Field(alias="x")
        two: str = pydantic.Field(alias="x")

    with pytest.raises(TypeError, match=r"Twins.x"):
        schema_of(Twins)


def test_an_alias_that_would_not_be_written_is_refused_at_once() -> None:
    annotation = dataclasses.make_dataclass("Aliased", [("a", Annotated[str, pydantic.Field(alias="b")])])
    with pytest.raises(TypeError, match=r"Aliased.a has an alias"):
        schema_of(annotation)


def test_a_computed_field_goes_out_and_is_ignored_when_it_comes_back() -> None:
    class Named(pydantic.BaseModel):
        first: str

        @pydantic.computed_field
        def shout(self) -> str:
            return self.first.upper()

    schema = made(Named, unknown="refuse")
    record = schema.record(schema.load({"first": "a"}))
    assert record == {"first": "a", "shout": "A"}
    assert schema.record(schema.load({**record, "shout": "forged"})) == record


# Kinds of types


class Frozen(msgspec.Struct, frozen=True):
    text: str


class Child(PlaceStruct, kw_only=True):
    zip: int


@dataclasses.dataclass(frozen=True, slots=True)
class Base:
    id: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Derived(Base):
    text: str = ""


class Box(msgspec.Struct, Generic[T]):
    item: T
    items: list[T] = []


@dataclasses.dataclass
class BoxDataclass(Generic[T]):
    item: T
    items: list[T] = dataclasses.field(default_factory=list)


class BoxModel(pydantic.BaseModel, Generic[T]):
    item: T
    items: list[T] = []


class Circle(msgspec.Struct, tag="circle"):
    radius: float


class Square(msgspec.Struct, tag="square"):
    side: float


@pytest.mark.parametrize(
    ("annotation", "data"),
    [
        (Frozen, {"text": "x"}),
        (Child, {"city": "x", "lines": [], "zip": 1}),
        (Derived, {"id": "a", "text": "x"}),
        (Box[int], {"item": 1, "items": [2]}),
        (BoxDataclass[int], {"item": 1, "items": [2]}),
        (BoxModel[int], {"item": 1, "items": [2]}),
        (list[Frozen], [{"text": "x"}]),
        (Frozen | None, None),
        (Circle | Square, {"type": "square", "side": 1.0}),
        (Circle, {"type": "circle", "radius": 1.0}),
        (str, "x"),
        (int | None, 5),
        (Sequence[int], [1]),
        (Mapping[str, int], {"a": 1}),
        (Literal["a", 1], 1),
        (tuple[int, ...], [1, 2]),
    ],
    ids=str,
)
@pytest.mark.parametrize("without", ["", "msgspec"])
def test_any_type_that_can_be_checked_is_a_schema(annotation: Any, data: Any, without: str) -> None:
    of_msgspec = any(name in str(annotation) for name in ("Frozen", "Child", "Box[", "Circle"))
    schema = made(annotation, "" if of_msgspec else without)
    assert json.loads(messages.encode(schema.load(data))) == data


@pytest.mark.parametrize("annotation", [Box[int], BoxDataclass[int], BoxModel[int]])
def test_a_generic_type_is_what_it_is_made_of(annotation: Any) -> None:
    assert refused(made(annotation), {"item": "x", "items": [1, "y"]}) == [
        ("item", "expected an integer, got a string"),
        ("items[1]", "expected an integer, got a string"),
    ]


def test_a_union_told_apart_by_a_tag_has_the_faults_of_that_member() -> None:
    schema = made(Circle | Square)
    assert refused(schema, {"type": "square", "side": "x"}) == [("side", "expected a number, got a string")]
    assert refused(schema, {"type": "x" * 10_000}) == [("type", "expected one of the allowed values")]


def test_faults_in_a_list_have_an_index_for_a_path() -> None:
    assert refused(made(list[Frozen]), [{"text": 1}, {}]) == [
        ("[0].text", "expected a string, got an integer"),
        ("[1].text", "missing"),
    ]


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "sNaN"])
def test_a_decimal_that_is_no_number_is_refused(person: Callable[..., Schema], text: str) -> None:
    [(field, message)] = refused(person(), {"name": "a", "price": text})
    assert field == "price"
    assert message.startswith("expected a decimal number")


def test_a_model_that_asks_for_leniency_has_it() -> None:
    class Lenient(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(strict=False)
        age: int

    assert made(Lenient).load({"age": "1"}).age == 1


@pytest.mark.parametrize(
    "annotation",
    [
        *(inspect.Parameter.empty, Any, object, dict, Mapping, dict[str, Any], Mapping[str, Any], dict[str, object]),
        *(dict | None, dict[str, Any] | None),
    ],
    ids=str,
)
def test_an_annotation_that_says_nothing_is_no_schema(annotation: Any) -> None:
    assert schema_of(annotation) is None


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (dataclasses.make_dataclass("A", [("tags", set[str])]), "A.tags is a set, which JSON cannot carry: use a list"),
        (dataclasses.make_dataclass("A", [("photo", bytes)]), "A.photo is a bytes"),
        (dataclasses.make_dataclass("A", [("left", list[datetime.timedelta])]), "A.left is a timedelta"),
        (dataclasses.make_dataclass("A", [("by", dict[int, str])]), "A.by has keys that are not strings"),
        (dataclasses.make_dataclass("A", [("x", "Nowhere")]), "A cannot be a schema: name 'Nowhere' is not defined"),
        (dataclasses.make_dataclass("A", [("x", SimpleNamespace)]), "A cannot be a schema"),
        (SimpleNamespace, "SimpleNamespace cannot be a schema"),
        (pydantic.create_model("A", tags=(set[str], ...)), "A.tags is a set"),
        (msgspec.defstruct("A", [("tags", frozenset[str])]), "A.tags is a frozenset"),
    ],
)
@pytest.mark.parametrize("without", ["", "msgspec"])
def test_a_type_that_cannot_be_kept_is_refused_at_once(annotation: Any, message: str, without: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if without and not hasattr(annotation, "__struct_fields__"):
            patch.setitem(sys.modules, without, None)
        with pytest.raises(TypeError) as caught:
            schema_of(annotation)
    assert message in str(caught.value)


def test_types_of_both_libraries_in_one_are_refused_at_once() -> None:
    with pytest.raises(TypeError, match="Mixed mixes types of msgspec and pydantic: use those of one"):
        schema_of(dataclasses.make_dataclass("Mixed", [("one", Frozen), ("other", NoteModel)]))


def test_without_a_library_the_remedy_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msgspec", None)
    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(TypeError, match="NoteDataclass by msgspec or pydantic: pip install msgspec"):
        schema_of(NoteDataclass)
    assert schema_of(dict[str, Any]) is None


def test_neither_library_is_imported_unless_a_type_needs_it() -> None:
    program = (
        "import sys, dataclasses, backsync_asgi, backsync_asgi.schemas as s\n"
        "assert s.schema_of(dict) is None\n"
        "assert not {'msgspec', 'pydantic'} & sys.modules.keys()\n"
        "s.schema_of(dataclasses.make_dataclass('A', [('x', str)]))\n"
        "assert {'msgspec', 'pydantic'} & sys.modules.keys() == {'msgspec'}\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


# What comes out of handlers


def test_typed_objects_are_written_wherever_they_stand() -> None:
    place = {"city": "Rome", "lines": []}
    for made_place in (PlaceDataclass("Rome"), PlaceStruct("Rome"), PlaceModel(city="Rome")):
        assert json.loads(messages.encode([{"place": made_place}, made_place])) == [{"place": place}, place]
        assert messages.record_of(made_place) == place


def test_a_field_at_its_default_is_written(person: Callable[..., Schema]) -> None:
    schema = person()
    record = schema.record(schema.load({"name": "Ann"}))
    assert record.keys() == ({"name"} if schema.type is PersonDict else set(WHOLE))


def test_a_pydantic_dataclass_is_written_by_its_own_rules() -> None:
    @pydantic.dataclasses.dataclass
    class Event:
        at: datetime.datetime

        @pydantic.field_serializer("at")
        def year(self, at: datetime.datetime) -> int:
            return at.year

    assert messages.encode([Event(datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC))]) == '[{"at":2026}]'


def test_a_private_field_of_a_dataclass_stays_here() -> None:
    assert messages.encode(dataclasses.make_dataclass("Secret", ["a", "_b"])(1, 2)) == '{"a":1}'


def test_a_struct_travels_whole_and_under_its_own_names() -> None:
    class Odd(msgspec.Struct, omit_defaults=True, rename="upper", tag="odd"):
        a: int = 1
        b: int | msgspec.UnsetType = msgspec.UNSET

    class Row(msgspec.Struct, array_like=True):
        a: int
        b: str

    assert json.loads(messages.encode(Odd())) == {"type": "odd", "A": 1}
    assert json.loads(messages.encode({"row": Row(1, "x")})) == {"row": [1, "x"]}


class Loose(msgspec.Struct):
    data: Any


class LooseModel(pydantic.BaseModel):
    data: Any


@dataclasses.dataclass
class LooseDataclass:
    data: Any


@pytest.mark.parametrize("kind", [Loose, LooseModel, LooseDataclass])
@pytest.mark.parametrize(
    "value",
    [{1}, b"x", float("nan"), [0.5, float("inf")], 2**64, {"a": object()}, decimal.Decimal("NaN"), "\ud800"],
    ids=["set", "bytes", "nan", "infinity", "large", "object", "decimal", "surrogate"],
)
def test_what_json_cannot_carry_is_refused_in_a_typed_object_too(kind: Any, value: Any) -> None:
    with pytest.raises(EncodeError, match=r"data|pydantic"):
        messages.encode({"rows": [kind(data=value)]})


@pytest.mark.parametrize("value", [1, "x", None, [1], PlaceDict, PlaceStruct])
def test_what_is_no_record_is_refused_with_the_remedy(value: Any) -> None:
    with pytest.raises(TypeError, match=r"expected a record: a dict, dataclass, msgspec.Struct or pydantic model"):
        messages.record_of(value)


# Annotations


class Here:
    def method(self, ctx: Any, data: NoteStruct) -> None: ...

    def __call__(self, ctx: Any, data: NoteStruct) -> None: ...


def test_the_second_parameter_says_what_the_data_is() -> None:
    def typed(ctx: Nowhere, data: NoteStruct) -> Nowhere: ...  # type: ignore[name-defined]  # noqa: F821

    @functools.wraps(typed)
    def wrapped(*args: Any) -> None: ...

    def more(extra: int, ctx: Any, data: NoteStruct) -> None: ...

    for function in (typed, wrapped, functools.partial(more, 1), Here().method, Here()):
        assert data_annotation(function) is NoteStruct
    for none in (lambda ctx, data: None, lambda *args: None, lambda ctx: None):
        assert data_annotation(none) is inspect.Parameter.empty


def test_a_type_of_the_function_in_which_a_handler_is_made_is_found() -> None:
    class Local(msgspec.Struct):
        text: str

    def handler(ctx: Any, data: list[Local]) -> None: ...

    def register() -> Any:
        return data_annotation(handler)

    assert register() == list[Local]


def test_constraints_of_an_annotation_are_kept() -> None:
    def handler(ctx: Any, data: Annotated[int, msgspec.Meta(ge=1)]) -> None: ...

    schema = schema_of(data_annotation(handler))
    assert schema is not None
    assert refused(schema, 0) == [("data", "expected a number >= 1")]


def test_an_annotation_that_is_nowhere_is_refused_with_the_remedy() -> None:
    def handler(ctx: Any, message: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(TypeError, match=r"annotates 'message' with 'Nowhere': name 'Nowhere' is not defined\. Define"):
        data_annotation(handler)


# Whatever is sent

texts = st.text(st.characters(codec="utf-8"), max_size=10) | st.sampled_from(["red", "2026-01-02", "1.5", "a", "NaN"])
scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
json_values: st.SearchStrategy[Any] = st.recursive(
    scalars | texts,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(texts | st.sampled_from(list(WHOLE)), inner, max_size=4)
    ),
    max_leaves=10,
)
people = st.fixed_dictionaries(
    {"name": texts},
    optional={
        name: st.just(value) | json_values | st.sampled_from(list(WHOLE.values()))
        for name, value in WHOLE.items()
        if name != "name"
    },
)


@pytest.mark.parametrize("kind", KINDS)
@given(data=json_values | people)
@settings(deadline=None, max_examples=150)
def test_any_json_is_loaded_or_refused_and_what_is_loaded_is_stable(kind: str, data: Any) -> None:
    schema = made(*KINDS[kind])
    try:
        value = schema.load(data)
    except Reject as error:
        assert error.code == "invalid"
        assert error.details
        assert len(error.message) < 2_000
    else:
        written = messages.encode(value)
        again = schema.load(json.loads(written))
        assert again == value
        assert messages.encode(again) == written


@given(data=json_values | people)
@settings(deadline=None, max_examples=150)
def test_all_kinds_agree_on_what_is_refused(data: Any) -> None:
    if isinstance(data, dict):  # where pydantic is more lenient, as documented: digits for a time, true for 1
        lenient: dict[str, Any] = {"seen": str, "born": str, "level": (bool, float)}
        data = {name: it for name, it in data.items() if not isinstance(it, lenient.get(name, ())) or it == WHOLE[name]}
    outcomes = set()
    for annotation, without in KINDS.values():
        try:
            made(annotation, without).load(data)
        except Reject as error:
            outcomes.add(frozenset(re.split(r"[.\[]", it["field"])[0] for it in error.details))
        else:
            outcomes.add(frozenset())
    assert len(outcomes) == 1, outcomes


# Types that are written in their own way


class Priced(pydantic.BaseModel):
    amount: int

    @pydantic.field_serializer("amount")
    def written(self, value: int) -> str:
        return f"{value} EUR"


class Turned(pydantic.BaseModel):
    word: Annotated[str, pydantic.PlainSerializer(lambda value: value[::-1])]


class Whole(pydantic.BaseModel):
    word: str

    @pydantic.model_serializer
    def written(self) -> dict[str, Any]:
        return {"text": self.word}


@pytest.mark.parametrize(
    ("annotation", "data", "field"),
    [(Priced, {"amount": 5}, "amount"), (Turned, {"word": "ab"}, "word"), (Whole, {"word": "a"}, "word")],
)
def test_what_a_serializer_writes_must_be_read_back_as_it_is(annotation: Any, data: Any, field: str) -> None:
    """A value that a schema writes otherwise than it reads is refused before it is stored."""
    schema = made(annotation)
    with pytest.raises(EncodeError, match=f"{annotation.__name__} writes what it cannot read back. .*{field}"):
        schema.record(schema.load(data), data)


class Rounded(pydantic.BaseModel):
    ratio: float
    url: pydantic.HttpUrl | None = None

    @pydantic.field_serializer("ratio")
    def written(self, value: float) -> float:
        return round(value, 1)

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> float:
        return 2 * round(self.ratio, 1)


def test_a_serializer_that_writes_what_it_reads_is_fine() -> None:
    schema = made(Rounded)
    record = schema.record(schema.load({"ratio": 0.51, "url": "https://example.com"}), {"id": 1})
    assert record == {"ratio": 0.5, "url": "https://example.com/", "double": 1.0, "id": 1}
    assert schema.record(schema.load(record), record) == record


class Linked(pydantic.BaseModel):
    url: pydantic.HttpUrl
    site: pydantic.AnyUrl | None = None
    note: str | None = None


@dataclasses.dataclass
class LinkedDataclass:
    url: pydantic.HttpUrl
    note: str | None = None


class LinkedDict(TypedDict):
    url: pydantic.HttpUrl
    note: NotRequired[str | None]


@pytest.mark.parametrize("annotation", [Linked, LinkedDataclass, LinkedDict])
def test_urls_of_pydantic_are_texts(annotation: Any) -> None:
    """A type with a serializer of its own is written by it, also beside a null."""
    schema = made(annotation)
    record = json.loads(messages.encode(schema.record(schema.load({"url": "https://example.com", "note": None}))))
    assert (record["url"], record["note"]) == ("https://example.com/", None)
    assert json.loads(messages.encode(schema.load({"url": record["url"], "note": None})))["url"] == record["url"]


@pytest.mark.parametrize("secret", [pydantic.SecretStr, pydantic.SecretBytes, pydantic.Secret[int]])
def test_secrets_are_refused_at_decoration(secret: Any) -> None:
    """What would be stored as asterisks is lost without a word."""
    annotation = pydantic.create_model("Account", word=(secret | None, None))
    with pytest.raises(TypeError, match="Account.word is a Secret.*, which is written as asterisks"):
        made(annotation)


class Lenient(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=False)

    ratio: float = 0.0
    amount: decimal.Decimal = decimal.Decimal(0)


@pytest.mark.parametrize("data", [{"ratio": "NaN"}, {"ratio": "inf"}, {"ratio": "1e999"}, {"amount": "NaN"}], ids=repr)
def test_a_number_that_json_does_not_have_is_refused_by_lenient_models_too(data: Any) -> None:
    """What a schema takes must be such that it can be sent."""
    with pytest.raises(Reject) as caught:
        made(Lenient).load(data)
    assert caught.value.code == "invalid"
    assert made(Lenient).load({"ratio": "1.5"}).ratio == 1.5


@pytest.mark.parametrize("others", [{}, {"amount": (decimal.Decimal | None, None)}], ids=["alone", "beside a decimal"])
@pytest.mark.parametrize("time", ["12:00:00Z", "12:00:00+02:00"])
def test_a_time_that_could_not_be_sent_is_refused(time: str, others: Any) -> None:
    """A time of day with a zone has no JSON form but in a pydantic model."""
    fields = [("at", datetime.time), *((name, kind, default) for name, (kind, default) in others.items())]
    for annotation in (msgspec.defstruct("Alarm", fields), dataclasses.make_dataclass("Alarm", fields)):
        with pytest.raises(Reject, match="at: expected .*a time without a time zone"):
            made(annotation).load({"at": time})
        assert made(annotation).load({"at": "12:00:00"}).at == datetime.time(12)
