"""The wire messages of Backsync: JSON in, requests out; values in, JSON out. Pure; it knows no models."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from .errors import BadMessage, EncodeError
from .sockjs.frames import loads

MAX_DEPTH = 32  # of arrays and objects in each other; nobody's record is deeper, and parsers are
MAX_ID = 128  # characters of a transaction or record id
MAX_FIELDS = 256  # of one record
MAX_KEY = 128  # characters of a field's name
MAX_SAFE_INTEGER = 2**53 - 1  # beyond it JavaScript's numbers are not exact

CONTROL = "$"  # the model name of control messages
ALIASES: Mapping[str, str] = {"create": "upsert", "update": "upsert"}

_EVENT = re.compile(r"(\$|[A-Za-z_][A-Za-z0-9_.\-]{0,127}):([A-Za-z_][A-Za-z0-9_]{0,127})")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,127}")
_METHOD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


@dataclass(frozen=True, slots=True)
class Request:
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
    match = _EVENT.fullmatch(event) if isinstance(event, str) else None
    if match is None or not isinstance(event, str):
        raise BadMessage(f"Got the event {shorten(event)}, expected 'Model:method'.", id=id, event=shown)
    model, method = match.groups()
    return Request(id, event, model, ALIASES.get(method, method), message.get("data"), message)


def is_id(value: object) -> bool:
    """Whether a value may name a transaction or a record: a string of 1-128 characters or an exact integer."""
    if isinstance(value, str):
        return 0 < len(value) <= MAX_ID
    return type(value) is int and abs(value) <= MAX_SAFE_INTEGER


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
    """A value as JSON text. Dates, UUIDs, enums and dataclasses are written as orjson writes them.

    Raises EncodeError, which names the field, for what JSON cannot carry: sets, bytes, Decimals, NaN, integers of more
    than 64 bits, keys that are not strings, circular values, lone surrogates.
    """
    try:
        text = orjson.dumps(value).decode()
    except TypeError as error:
        raise EncodeError(_explain(value, str(error))) from None
    # orjson writes NaN as null without a word.
    if "null" in text and (path := _find_nan(value, "")) is not None:
        raise EncodeError(f"Got NaN or an infinity at {path or 'the top'}, expected a number that JSON has, or None.")
    return text


def _explain(value: Any, error: str) -> str:
    path = _find_culprit(value, "", 0)
    where = "the value" if path is None else (path or "the top")
    allowed = "strings, numbers, booleans, None, lists and dicts with string keys"
    return f"JSON cannot carry {where}: {error}. Use {allowed}."


def _find_culprit(value: Any, path: str, depth: int) -> str | None:
    """The path of the first leaf that orjson refuses."""
    if depth > MAX_DEPTH:
        return path
    if isinstance(value, dict):
        for key, child in value.items():
            if not isinstance(key, str):
                return f"{path}.{key!r}" if path else repr(key)
            found = _find_culprit(child, f"{path}.{key}" if path else key, depth + 1)
            if found is not None:
                return found
        return None
    if isinstance(value, (list, tuple)):
        for index, child in enumerate(value):
            found = _find_culprit(child, f"{path}[{index}]", depth + 1)
            if found is not None:
                return found
        return None
    try:
        orjson.dumps(value)
    except TypeError:
        return path
    return None


def _find_nan(value: Any, path: str) -> str | None:
    if isinstance(value, float):
        return None if math.isfinite(value) else path
    if isinstance(value, dict):
        children = ((f"{path}.{key}" if path else str(key), child) for key, child in value.items())
    elif isinstance(value, (list, tuple)):
        children = ((f"{path}[{index}]", child) for index, child in enumerate(value))
    elif dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        children = ((f"{path}.{name}" if path else name, getattr(value, name, None)) for name in names)
    else:
        return None
    for child_path, child in children:
        found = _find_nan(child, child_path)
        if found is not None:
            return found
    return None


# Messages are put together from encoded parts: a record is encoded once for its reply and its broadcast. The names of
# models and methods are of letters that JSON has no need to escape.


def reply(id: str | int, event: str, data: str) -> str:
    """The reply to a request, whose event has the form of one; `data` is JSON text."""
    return f'{{"id":{id if type(id) is int else encode(id)},"event":"{event}","data":{data}}}'


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


def push(event: str, data: str, key: str = "") -> str:
    """A message without an id and a position: a transient event or a control message; `data` and `key` as above."""
    keyed = f',"key":{key}' if key else ""
    return f'{{"event":"{event}","data":{data}{keyed}}}'
