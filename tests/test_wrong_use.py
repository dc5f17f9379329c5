"""Values of the wrong kind are refused where they are given, with what was got, what was expected and the remedy.

The kind of fault: a value that is taken, and fails later at another place, without its name, or never.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from backsync_asgi import Backsync, Context, Reject
from backsync_asgi.limits import Horizon, Limits, Memory
from backsync_asgi.live import listen, live
from backsync_asgi.sockjs import Settings, Timing
from backsync_asgi.stores import MemoryStore, SQLStore
from backsync_asgi.testing import connect

DSN = "postgresql://user:hidden@localhost/app"


class Base(DeclarativeBase):
    """The tables of this module."""


class Task(Base):
    """A row."""

    __tablename__ = "task"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]


async def awaited(row: Any) -> dict[str, Any]:
    return {}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fields": "title"}, "fields='title', expected a list of names"),
        ({"fields": [1]}, r"fields=\[1\], expected a list of names"),
        ({"fields": 5}, "fields=5, expected a list of names"),
        ({"to_record": "title"}, "to_record='title', expected a plain function"),
        ({"to_record": awaited}, "to_record=.*, expected a plain function"),
        ({"to_record": lambda: None}, "expects a plain function that takes the row"),
    ],
)
def test_live_tables(options: dict[str, Any], said: str) -> None:
    sync = Backsync()
    with pytest.raises(TypeError, match=r"live\(Task\).*" + said):
        live(sync.model("Task"), Task, **options)
    with pytest.raises(TypeError, match=r"listen\(Task\).*" + said):
        listen(sync.model("Task"), DSN, table="task", **options)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"table": Task}, "expected the table's name"),
        ({"table": ""}, "expected the table's name"),
        ({"install": "no"}, "expected True or False"),
        ({"dsn": None}, "expected the URL of a PostgreSQL database"),
        ({"dsn": "sqlite:///app.db"}, "'sqlite' before the first colon, expected the URL of a PostgreSQL database"),
        ({"dsn": create_engine("sqlite://")}, "expected the URL of a PostgreSQL database"),
    ],
)
def test_listening(arguments: dict[str, Any], said: str) -> None:
    given = {"dsn": DSN, "table": "task", **arguments}
    with pytest.raises(TypeError, match=said):
        listen(Backsync().model("Task"), given.pop("dsn"), **given)


def test_a_function_whose_signature_is_unknown_is_taken() -> None:
    listen(Backsync().model("Task"), DSN, table="task", to_record=dict)


@pytest.mark.parametrize("url", [5, create_engine("sqlite://"), Task])
def test_sql_stores(url: Any) -> None:
    with pytest.raises(TypeError, match="SQLStore got .* as its url, expected a text such as"):
        SQLStore(url)
    with pytest.raises(TypeError, match="SQLStore got engine=.*, expected an AsyncEngine"):
        SQLStore(engine=url)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Limits(threads=1.5), "Limits got threads=1.5, expected a whole number"),  # type: ignore[arg-type]
        (lambda: Horizon(records=1.5), "Horizon got records=1.5, expected a whole number"),  # type: ignore[arg-type]
        (lambda: Memory(clients=1.5), "Memory got clients=1.5, expected a whole number"),  # type: ignore[arg-type]
        (lambda: Settings(timing={}), "timing got {}, expected Timing"),  # type: ignore[arg-type]
        (lambda: Settings(timing=Timing), "timing got .*, expected Timing"),  # type: ignore[arg-type]
        (lambda: Settings(cookies="no"), "cookies got 'no', expected True or False"),  # type: ignore[arg-type]
        (lambda: Settings(principal=5), "principal got 5, expected a function"),  # type: ignore[arg-type]
        (lambda: Settings(body_deadline="5"), "body_deadline got '5', expected a positive number"),  # type: ignore[arg-type]
    ],
)
def test_settings(make: Callable[[], object], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        make()


def test_a_float_may_be_whole_where_seconds_are_meant() -> None:
    assert Limits(handler_timeout=5, rate=2).handler_timeout == 5


def test_a_rule_redacts_fields() -> None:
    names: Any = [5]
    with pytest.raises(TypeError, match="expected a list of fields"):
        Backsync().model("Task").visible(lambda ctx, record: True, redacts=names)


def test_a_class_of_handlers_is_made_without_arguments() -> None:
    class Tasks:
        def __init__(self, path: str) -> None:
            self.path = path

        def read(self, ctx: Context, query: Any) -> list[Any]:
            return []

    with pytest.raises(TypeError, match="Tasks does not fit: one instance, made without arguments, serves all"):
        Backsync().model("Task")(Tasks)


def test_a_function_that_does_not_fit_is_named_by_its_place() -> None:
    """Kind: a message whose reader has to search for what it is about."""

    async def save(message: Any) -> Any:
        return message

    place = rf"save \(test_wrong_use\.py:{save.__code__.co_firstlineno}\) does not fit: a handler takes \(ctx, data\)"
    with pytest.raises(TypeError, match=place):
        Backsync().model("Todo").on("upsert")(save)
    with pytest.raises(TypeError, match=r"functools\.partial\(.*does not fit"):
        Backsync().model("Todo").on("upsert")(partial(save, 1))


@pytest.mark.parametrize("method", ["read", "upsert"])
@pytest.mark.filterwarnings("ignore:coroutine")
async def test_a_coroutine_that_a_handler_returns_is_told_to_be_awaited(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    sync = Backsync()

    @sync.model("Todo", store=MemoryStore()).on(method)
    async def forgetful(ctx: Context, data: Any) -> Any:
        return getattr(ctx.store, method)(data)

    async with connect(sync) as client:
        with pytest.raises(Reject, match="handler_error"):
            await client.call(f"Todo:{method}", {"text": "x"})
    assert "Await it first." in caplog.text
