"""The wire messages of Backsync: JSON in, requests out; values in, JSON out. Pure; it knows no models."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

import orjson

from .errors import BadMessage, EncodeError, Reject
from .logs import escaped
from .sockjs.frames import loads

MAX_DEPTH = 32  # of arrays and objects in each other; nobody's record is deeper, and parsers are
MAX_ID = 128  # characters of a transaction or record id
MAX_EVENT = 257  # of the name of an event
MAX_FIELDS = 256  # of one record
MAX_KEY = 128  # characters of a field's name
MAX_QUERY = 64  # fields of a query
MAX_SAFE_INTEGER = 2**53 - 1  # beyond it JavaScript's numbers are not exact

CONTROL = "$"  # the model name of control messages
ALIASES: Mapping[str, str] = {"create": "upsert", "update": "upsert"}

# orjson would leave out fields of a dataclass that stand at their default where msgspec has made it.
_FORM = orjson.OPT_UTC_Z | orjson.OPT_PASSTHROUGH_DATACLASS

_EVENT = re.compile(r"(\$|[A-Za-z_][A-Za-z0-9_.\-]{0,127}):([A-Za-z_][A-Za-z0-9_]{0,127})")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,127}")
_METHOD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


class Request(NamedTuple):
    """One request of a client.

    event: as received. method: its canonical name, aliases resolved. data: None where the message has none.
    message: the whole object, for the optional keys that some methods know.
    """

    id: str | int | None
    event: str
    model: str
    method: str
    data: Any
    message: Mapping[str, Any]


def decode(text: str | bytes) -> Request:
    """The request in a message.

    Raises BadMessage, with the id and event as far as they can be read: with an id there is somebody to tell.
    """
    try:
        message = loads(text)
    except ValueError as error:
        raise BadMessage(f"Got {shorten(text)}, expected a JSON object: {error}") from None
    if not isinstance(message, dict):
        raise BadMessage(f"Got {shorten(text)}, expected a JSON object.")
    event = message.get("event")
    shown = event if isinstance(event, str) else None
    id = message.get("id")
    if id is not None and not is_id(id):
        raise BadMessage(f"Got the id {shorten(id)}, expected 1-{MAX_ID} characters or an integer.", event=shown)
    if too_deep(text, message):
        raise BadMessage(f"Got JSON nested deeper than {MAX_DEPTH}.", id=id, event=shown)
    names = _names_in(event) if isinstance(event, str) and len(event) <= MAX_EVENT else None
    if names is None or not isinstance(event, str):
        raise BadMessage(f"Got the event {shorten(event)}, expected 'Model:method'.", id=id, event=shown)
    return Request(id, event, *names, message.get("data"), message)


@functools.lru_cache(1024)
def _names_in(event: str) -> tuple[str, str] | None:
    """The model and the method, under its canonical name, in the name of an event; None for what is no event."""
    match = _EVENT.fullmatch(event)
    return None if match is None else (match[1], ALIASES.get(match[2], match[2]))


def is_id(value: object) -> bool:
    """Whether a value may name a transaction or a record: a string of 1-128 characters or an exact integer."""
    if isinstance(value, str):
        return 0 < len(value) <= MAX_ID
    return type(value) is int and abs(value) <= MAX_SAFE_INTEGER


def check_query(data: Any) -> dict[str, Any]:
    """The query of a read or subscribe; nothing is an empty one. Raises Reject("invalid")."""
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise Reject("invalid", f"A query got {shorten(data)}, expected an object or nothing.")
    if len(data) > MAX_QUERY:
        raise Reject("invalid", f"A query has {len(data)} fields, expected at most {MAX_QUERY}.", [])
    return data


def check_record(record: Mapping[Any, Any]) -> None:
    """Raises Reject("invalid") for an id that is none, too many fields, or a field name that is too long."""
    id = record.get("id")
    faults = []
    if id is not None and not is_id(id):
        faults.append({"field": "id", "message": "expected a string of 1-128 characters or an integer"})
    if len(record) > MAX_FIELDS:
        raise Reject("too_large", f"A record may have {MAX_FIELDS} fields.", {"limit": MAX_FIELDS})
    for key in record:
        if not isinstance(key, str) or len(key) > MAX_KEY:
            message = f"a field's name has at most {MAX_KEY} characters"
            faults.append({"field": shorten(str(key)), "message": message})
    if faults:
        raise Reject(
            "invalid",
            "The record was refused: " + escaped("; ".join(f"{it['field']}: {it['message']}" for it in faults)),
            faults,
        )


def check_integers(record: Mapping[str, Any]) -> None:
    """Raises Reject("invalid") for an integer of a client's that browsers would read as another one.

    A browser that sends one has rounded it already: what it has read would be stored in place of what is there.
    """
    try:
        orjson.dumps(record, option=orjson.OPT_STRICT_INTEGER)
    except TypeError:
        faults = [
            {"field": field, "message": "is an integer beyond 2^53, which browsers round; expected it as text"}
            for field, value in record.items()
            if not _is_exact(value)
        ]
        if faults:
            raise Reject("invalid", f"{faults[0]['field']} {faults[0]['message']}.", faults[:100]) from None


def _is_exact(value: Any) -> bool:
    try:
        orjson.dumps(value, option=orjson.OPT_STRICT_INTEGER)
    except TypeError as error:
        return "53-bit" not in str(error)
    return True


def check_unset(unset: Any) -> list[str]:
    """The fields that a patch removes. Raises Reject("invalid")."""
    if unset is None:
        return []
    if not isinstance(unset, list) or not all(isinstance(field, str) for field in unset):
        raise Reject("invalid", f"unset got {shorten(unset)}, expected a list of field names.")
    if len(unset) > MAX_FIELDS:
        raise Reject(
            "too_large", f"unset got {len(unset)} fields, a record may have {MAX_FIELDS}.", {"limit": MAX_FIELDS}
        )
    return unset


def is_model_name(value: str) -> bool:
    """Whether a model can have that name; `$` is for control messages."""
    return _NAME.fullmatch(value) is not None


def is_method_name(value: str) -> bool:
    """Whether a method can have that name."""
    return _METHOD.fullmatch(value) is not None


def too_deep(text: str | bytes, value: Any) -> bool:
    """Whether arrays and objects stand in each other deeper than MAX_DEPTH. `text` spares most values the walk."""
    brackets = text.count("[") + text.count("{") if isinstance(text, str) else text.count(b"[") + text.count(b"{")
    if brackets <= MAX_DEPTH:
        return False
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return False
    return True


def shorten(value: object, limit: int = 60) -> str:
    """A value as an error message or a log shows it: in one line, cut after `limit` characters."""
    shown = repr(value)
    return shown if len(shown) <= limit else shown[:limit] + "…"


def encode(value: Any) -> str:
    """A value as JSON text.

    Mappings, dataclasses, msgspec.Structs and pydantic models are written as objects, under their names on the wire;
    dates, UUIDs, enums and Decimals as text, UTC as `Z`, as browsers write it.

    Raises EncodeError, which names the field, for what JSON cannot carry: sets, bytes, NaN, integers of more than
    64 bits, keys that are not strings, circular values, lone surrogates.
    """
    try:
        text = orjson.dumps(value, plain, _FORM).decode()
    except TypeError as error:
        raise EncodeError(_explain(value, str(error))) from None
    # orjson writes NaN as null without a word. The path is only looked for where there may be one.
    if "null" in text and not _is_finite(value) and (path := _find_nan(value, "")) is not None:
        raise EncodeError(f"Got NaN or an infinity at {path or 'the top'}, expected a number that JSON has, or None.")
    return text


def record_of(value: Any) -> Mapping[str, Any]:
    """The record in what a handler or the program gives: a mapping is one; of a typed object, what is sent of it.

    Raises EncodeError for what JSON cannot carry, TypeError for what is no record.
    """
    if isinstance(value, (dict, Mapping)):  # dict first, since asking for Mapping takes time
        return value
    record = orjson.loads(encode(value)) if is_typed(value) else None
    if not isinstance(record, dict):
        expected = "a dict, dataclass, msgspec.Struct or pydantic model"
        raise TypeError(f"Got {shorten(value)}, expected a record: {expected}.")
    return record


def is_typed(value: object) -> bool:
    """Whether it is an instance of a dataclass, msgspec.Struct or pydantic model."""
    kind = type(value)
    marks = ("__dataclass_fields__", "__struct_fields__", "model_fields")
    return not isinstance(value, type) and any(hasattr(kind, mark) for mark in marks)


def plain(value: Any) -> Any:
    """What orjson does not know, as something that it does. Raises TypeError. The libraries stay unimported."""
    kind: Any = type(value)
    if hasattr(kind, "__struct_fields__") and not isinstance(value, type):
        return _plain_struct(value)
    if hasattr(kind, "get_secret_value"):
        raise TypeError(f"a {kind.__name__} would be written as asterisks")
    if hasattr(kind, "__pydantic_serializer__"):
        if not _is_odd(value):
            try:
                return orjson.Fragment(kind.__pydantic_serializer__.to_json(value, by_alias=True))
            except ValueError:
                pass  # there is something that it cannot write: orjson will name it
        if is_typed(value):
            return _dumped(value)
    if hasattr(kind, "__dataclass_fields__"):
        return {name: getattr(value, name, None) for name in _names_of(kind)}
    if isinstance(value, Decimal) and value.is_finite():
        return str(value)
    if isinstance(value, tuple):  # a named one
        return list(value)
    if isinstance(value, Mapping):  # such as a row of SQLAlchemy's
        return dict(value)
    raise TypeError(f"Type is not JSON serializable: {kind.__name__}")


def _plain_struct(value: Any) -> Any:
    """A msgspec.Struct as a dict, one level deep. Defaults are written whatever it says: records travel whole."""
    kind: Any = type(value)
    names, values, config, unset = _struct_form(kind)
    shown = values(value)
    if config.array_like:
        return list(shown) if config.tag is None else [config.tag, *shown]
    record = dict(zip(names, shown, strict=True))
    if unset in shown:
        record = {name: it for name, it in record.items() if it is not unset}
    return record if config.tag is None else {config.tag_field: config.tag, **record}


@functools.cache
def _struct_form(kind: Any) -> tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]], Any, Any]:
    """Its names on the wire, what gets its values, its settings, and the mark of a field that is not there."""
    msgspec = sys.modules["msgspec"]
    return kind.__struct_encode_fields__, msgspec.structs.astuple, kind.__struct_config__, msgspec.UNSET


@functools.cache
def _names_of(kind: Any) -> tuple[str, ...]:
    """The fields of a dataclass, those with a leading underscore left out."""
    return tuple(it.name for it in dataclasses.fields(kind) if not it.name.startswith("_"))


def _dumped(value: Any) -> Any:
    """A pydantic model as a dict of what is in it, nothing written in its own way."""
    return type(value).__pydantic_serializer__.to_python(value, by_alias=True)


def _is_odd(value: Any) -> bool:
    """Whether pydantic would write something in a model that no other record may have, such as bytes or NaN."""
    if value is None or isinstance(value, (str, bool)):
        return False
    if isinstance(value, int):
        return not -(2**63) <= value < 2**64
    if isinstance(value, (float, Decimal)):
        return not math.isfinite(value)
    if isinstance(value, (list, tuple)):
        return any(map(_is_odd, value))
    if isinstance(value, dict):
        return any(map(_is_odd, value.values()))
    if hasattr(type(value), "model_fields"):
        return any(map(_is_odd, vars(value).values())) or _is_odd(getattr(value, "__pydantic_extra__", None))
    if is_typed(value):
        return _is_odd(plain(value) if hasattr(type(value), "__struct_fields__") else vars(value))
    return isinstance(value, (set, frozenset, bytes, bytearray)) or hasattr(value, "get_secret_value")


def _explain(value: Any, error: str) -> str:
    path = find_culprit(value)
    where = "the value" if path is None else (path or "the top")
    allowed = "strings, numbers, booleans, None, lists and dicts with string keys"
    return f"JSON cannot carry {where}: {error}. Use {allowed}."


def find_culprit(value: Any, path: str = "", depth: int = 0) -> str | None:
    """The path of the first leaf that JSON cannot carry, empty for the whole; None if there is none."""
    if depth > MAX_DEPTH:
        return path
    children = _children(value, path)
    if children is None:
        try:
            orjson.dumps(value, plain, _FORM)
        except TypeError:
            return path
        return None
    for name, child_path, child in children:
        if not isinstance(name, (str, int)) or (isinstance(name, int) and isinstance(value, Mapping)):
            return child_path
        found = find_culprit(child, child_path, depth + 1)
        if found is not None:
            return found
    return None


_FINITE = frozenset({type(None), bool, int, str})


def _is_finite(value: Any) -> bool:
    """Whether there is no NaN or infinity in a value that orjson has written. Quick for dicts and lists."""
    kind = type(value)
    if kind in _FINITE:
        return True
    if kind is float:
        return math.isfinite(value)
    if kind is dict or kind is list:
        for child in value.values() if kind is dict else value:
            if type(child) not in _FINITE and not _is_finite(child):
                return False
        return True
    if hasattr(kind, "__pydantic_serializer__"):
        return not _is_odd(value)
    if is_typed(value):
        return _is_finite(plain(value))
    return _find_nan(value, "") is None


def _find_nan(value: Any, path: str) -> str | None:
    if isinstance(value, float):
        return None if math.isfinite(value) else path
    for _, child_path, child in _children(value, path) or ():
        found = _find_nan(child, child_path)
        if found is not None:
            return found
    return None


def _children(value: Any, path: str) -> Iterable[tuple[Any, str, Any]] | None:
    """What stands in a value, as (name or index, path, child); None for a leaf."""
    if isinstance(value, (list, tuple)):
        return ((index, f"{path}[{index}]", child) for index, child in enumerate(value))
    if is_typed(value):
        try:
            inside = _dumped(value) if hasattr(type(value), "__pydantic_serializer__") else plain(value)
        except (ValueError, RecursionError):  # such as a circular one
            return None
        return None if inside is value else _children(inside, path)
    if isinstance(value, Mapping):
        return ((name, join(path, name), child) for name, child in value.items())
    return None


def join(path: str, name: object) -> str:
    """The path of a field in what has the path: `a.b`."""
    shown = name if isinstance(name, str) else repr(name)
    return f"{path}.{shown}" if path else shown


# Messages are put together from encoded parts: a record is encoded once for its reply and its broadcast. The names of
# models and methods are of letters that JSON has no need to escape.


def reply(id: str | int, event: str, data: str) -> str:
    """The reply to a request, whose event has the form of one; `data` is JSON text."""
    shown = id if type(id) is int else f'"{id}"' if str(id).isalnum() and str(id).isascii() else encode(id)
    return f'{{"id":{shown},"event":"{event}","data":{data}}}'


def error_reply(id: str | int, event: str | None, code: str, message: str, details: Any = None) -> str:
    """The reply to a request that failed."""
    error = {"code": code, "message": message}
    if details is not None:
        error["details"] = details
    return f'{{"id":{encode(id)},"event":{encode(event)},"data":null,"error":{encode(error)}}}'


def error_reply_2012(id: str | int, event: str | None, message: str) -> str:
    """The same in the form of 2012, where an error is a text."""
    return f'{{"id":{encode(id)},"event":{encode(event)},"data":null,"error":{encode(message)}}}'


def change(event: str, data: str, seq: int, key: str = "") -> str:
    """A change of a record, on its way to the subscribers; `data` and `key` are JSON text, no key is empty."""
    keyed = f',"key":{key}' if key else ""
    return f'{{"event":"{event}","data":{data},"seq":{seq}{keyed}}}'


def with_records(data: Mapping[str, Any], records: str) -> str:
    """The data of a snapshot, which has some fields and records; these are JSON text, which is copied as it is."""
    return f'{encode(data)[:-1]},"records":{records}}}'


def push(event: str, data: str, key: str = "") -> str:
    """A message without an id and a position: a transient event or a control message; `data` and `key` as above."""
    keyed = f',"key":{key}' if key else ""
    return f'{{"event":"{event}","data":{data}{keyed}}}'
