"""What it costs to check and write a record of 200 bytes, for each kind of type: `python -m benchmarks.schemas`.

Times are the best of several rounds; the ratios are to a plain dict, read and written by orjson alone.
"""

from __future__ import annotations

import dataclasses
import sys
import timeit
from collections.abc import Callable
from typing import Any
from unittest import mock

import msgspec
import orjson
import pydantic
from typing_extensions import TypedDict

from backsync_asgi import messages
from backsync_asgi.schemas import schema_of

NUMBER, ROUNDS = 20_000, 7
TEXT = orjson.dumps(
    {"id": "a" * 16, "room": "lobby", "author": "Ann", "text": "x" * 90, "at": 1.5e9, "likes": 7, "ok": True}
)


@dataclasses.dataclass
class Dataclass:
    room: str
    author: str
    text: str
    at: float
    id: str | None = None
    likes: int = 0
    ok: bool = False


class Dictionary(TypedDict):
    room: str
    author: str
    text: str
    at: float
    id: str | None
    likes: int
    ok: bool


class Struct(msgspec.Struct):
    room: str
    author: str
    text: str
    at: float
    id: str | None = None
    likes: int = 0
    ok: bool = False


class Model(pydantic.BaseModel):
    room: str
    author: str
    text: str
    at: float
    id: str | None = None
    likes: int = 0
    ok: bool = False


def cost(function: Callable[[], Any]) -> float:
    """Microseconds per call."""
    return min(timeit.repeat(function, number=NUMBER, repeat=ROUNDS)) / NUMBER * 1e6


def main() -> None:
    data = orjson.loads(TEXT)
    base_read, base_write = cost(lambda: orjson.loads(TEXT)), cost(lambda: messages.encode(data))
    print(f"record of {len(TEXT)} bytes; plain dict: parse {base_read:.2f} µs, encode {base_write:.2f} µs")
    print(f"{'':24}{'load':>8}{'refuse':>8}{'encode':>8}{'record':>8}{'parse + load + encode, ratio':>32}   (µs)")
    for name, annotation, without in (
        ("dataclass, msgspec", Dataclass, ""),
        ("dataclass, pydantic", Dataclass, "msgspec"),
        ("TypedDict, msgspec", Dictionary, ""),
        ("TypedDict, pydantic", Dictionary, "msgspec"),
        ("msgspec.Struct", Struct, ""),
        ("pydantic.BaseModel", Model, ""),
    ):
        with mock.patch.dict(sys.modules, {without: None} if without else {}):
            schema = schema_of(annotation)
        assert schema is not None
        value = schema.load(data)
        load = cost(lambda schema=schema: schema.load(data))  # type: ignore[misc]
        refuse = cost(lambda schema=schema: refuse_one(schema, {**data, "likes": "7"}))  # type: ignore[misc]
        encode = cost(lambda value=value: messages.encode(value))  # type: ignore[misc]
        record = cost(lambda value=value: messages.record_of(value))  # type: ignore[misc]
        ratio = (base_read + load + encode) / (base_read + base_write)
        print(f"{name:24}{load:8.2f}{refuse:8.2f}{encode:8.2f}{record:8.2f}{ratio:32.2f}")


def refuse_one(schema: Any, data: Any) -> None:
    try:
        schema.load(data)
    except Exception:  # noqa: BLE001 - the refusal is what is measured
        return
    raise AssertionError("nothing was refused")


if __name__ == "__main__":
    main()
