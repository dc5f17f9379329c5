"""Feed: what commits have changed, on its way to a model, the newest state of each record last; knows no database."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import enum
import logging
import re
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from backsync_asgi.errors import BacksyncError
from backsync_asgi.handlers import contain
from backsync_asgi.messages import MAX_SAFE_INTEGER, is_id
from backsync_asgi.models import Model

logger = logging.getLogger("backsync")

AGAIN_AFTER = (0.0, 1.0, 5.0, 20.0)  # seconds to wait before each attempt to read what has perhaps changed
AGAIN_WITHIN = 30.0  # seconds that one may take

Id = str | int
Record = dict[str, Any]
UNSENDABLE: Record = {}  # in place of a record that is there and cannot be sent; compared by identity


class UnseenWrite(BacksyncError):
    """A statement would change records of a live model in a way that cannot be broadcast; says what to do instead."""


def check_live(model: Model, bulk: str) -> None:
    """Raises ValueError for what no live model can be."""
    if bulk not in ("publish", "ignore"):
        raise ValueError(f"live({model.name}) got bulk={bulk!r}, expected 'publish' or 'ignore'.")
    if model.store is not None:
        raise ValueError(f"live({model.name}) got a model with a store: records have one home. Leave out store=.")


class Feed:
    """Publishes what commits have done to the records of one model; safe in any thread.

    Whoever commits takes a ticket before, and gives the new states with it after. Commits that write the same record
    wait for each other in the database, so their tickets have the order of the commits, even where the threads that
    come back from them do not. A state whose record has gone out with a newer ticket is left out.

    is_present: the states are those that the database has now, whoever wrote them; see `Model.publish_present`.
    """

    def __init__(self, model: Model, *, is_present: bool = False) -> None:
        self.model = model
        self._is_present = is_present
        self._lock = threading.Lock()
        self._last = 0
        self._open: set[int] = set()
        # By id as text: with which ticket it went out, and the last one that there was then, while older ones are open.
        self._newest: dict[str, tuple[int, int]] = {}

    def begin(self) -> int:
        """A ticket for a commit that is about to happen."""
        with self._lock:
            self._last += 1
            self._open.add(self._last)
            return self._last

    def end(self, ticket: int, changes: Mapping[Id, Record | None]) -> set[str]:
        """The commit has happened: publish the new state of each record, None for one that is gone. Never raises.

        A record that cannot be sent, such as UNSENDABLE, is taken from those who have its older state, and logged.

        Returns the ids, as text, of records that another commit published meanwhile: if one of the two has not written
        the row, but only read it, their tickets may not have the order of what they read.
        """
        overlapping = set()
        with self._lock:
            for id, record in changes.items():
                newest, last = self._newest.get(str(id), (0, 0))
                if max(newest, last) >= ticket:
                    overlapping.add(str(id))
                if newest < ticket:
                    self._newest[str(id)] = ticket, self._last
                    self._publish(id, record)
            self._close(ticket)
        return overlapping

    def drop(self, ticket: int) -> None:
        """The commit has not happened."""
        with self._lock:
            self._close(ticket)

    def _close(self, ticket: int) -> None:
        self._open.discard(ticket)
        if not self._open:
            self._newest.clear()

    def _publish(self, id: Id, record: Record | None) -> None:
        try:
            publish = self.model.publish_present if self._is_present else self.model.publish
            if record is None:
                publish("delete", {"id": id})
            elif record is not UNSENDABLE:
                publish("upsert", record)
        except Exception as error:  # noqa: BLE001 - it is committed: its author must not get an error
            logger.error("The change of %s %r is committed but cannot be broadcast: %s", self.model.name, id, error)
            record = UNSENDABLE
        if record is UNSENDABLE and is_id(id):
            self.model.withdraw(id)


class Again:
    """Reads once more what has perhaps changed; where that cannot be, everybody reads anew. Ended by `close`."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._tasks: set[asyncio.Task[None]] = set()

    def read(self, work: Callable[[], Awaitable[None]], otherwise: Callable[[], None] | None = None) -> None:
        """Have rows read and broadcast, soon and on the event loop; again where it fails. Safe in any thread.

        otherwise: called when it was given up.
        """

        def start() -> None:
            task = asyncio.get_running_loop().create_task(self._read(work, otherwise))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._model.soon(start)

    def close(self) -> None:
        """Read no more. Safe in any thread."""
        self._model.soon(self._cancel)

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _read(self, work: Callable[[], Awaitable[None]], otherwise: Callable[[], None] | None) -> None:
        for delay in AGAIN_AFTER:
            await asyncio.sleep(delay)
            try:
                async with asyncio.timeout(AGAIN_WITHIN):
                    await contain(work())
            except Exception as error:  # noqa: BLE001 - whatever it is, the clients read for themselves then
                logger.warning("What has perhaps changed of %s cannot be read: %r", self._model.name, error)
            else:
                return
        if otherwise is not None:
            otherwise()
        self._model.changes_lost()


def plain(value: Any) -> Any:
    """A column's value as browsers read it from JSON: dates in ISO 8601, UUIDs, Decimals and integers above 2^53 as
    text, enums as their value; so, too, what arrays and JSON hold."""
    kind = type(value)
    if kind is int:
        return value if -MAX_SAFE_INTEGER <= value <= MAX_SAFE_INTEGER else str(value)
    if value is None or kind in (str, float, bool):
        return value
    if kind is dict:
        return {name: plain(it) for name, it in value.items()}
    if kind in (list, tuple):
        return [plain(it) for it in value]
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        return value.astimezone(datetime.UTC).isoformat()  # so that times sort as text
    if isinstance(value, (datetime.date, datetime.time)):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, TEXTS):
        return str(value)
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    bases: tuple[Any, ...] = (int, dict, list, tuple)
    for base in bases:  # subclasses, such as those that note their changes
        if isinstance(value, base):
            return plain(base(value))
    return value


def record_made(id: Id, made: Mapping[str, Any]) -> Record:
    """The record that `to_record` has made of the row with that id. Raises ValueError for another id in it."""
    if "id" in made and plain(made["id"]) != id:
        raise ValueError(f"to_record gave the id {made['id']!r}, expected the primary key, {id!r}.")
    return {"id": id, **{name: exact(value) for name, value in made.items() if name != "id"}}


def exact(value: Any) -> Any:
    """A value with its integers as `plain` has them, and nothing else changed."""
    kind = type(value)
    if kind is int:
        return plain(value)
    if kind is dict:
        return {name: exact(it) for name, it in value.items()}
    return [exact(it) for it in value] if kind in (list, tuple) else value


def check_secrets(model: Model, name: str, fields: Iterable[str]) -> None:
    """Raises ValueError where all columns were meant, and some look as if they were nobody's business."""
    secrets = [field for field in fields if SECRET.search(field)]
    if secrets:
        raise ValueError(
            f"live({model.name}) would send {', '.join(secrets)} of {name} to everybody who may subscribe. "
            "Name the fields that they may see: fields=[…]."
        )


def write_pattern(tables: Iterable[str]) -> re.Pattern[str]:
    """What finds a write to one of the tables in a statement's text, with or without schema and quotes."""
    names = "|".join(re.escape(table) for table in tables)
    verbs = r"insert\s+(?:or\s+\w+\s+|ignore\s+)?into|replace\s+into|update(?:\s+or\s+\w+)?|delete\s+from|merge\s+into"
    quote = r"""["`\[\]]?"""
    schema = rf"(?:{quote}\w+{quote}\s*\.\s*)?"
    return re.compile(
        rf"\b(?:{verbs}|truncate(?:\s+table)?|copy)\s+(?:only\s+)?{schema}{quote}(?:{names}){quote}(?![\w.])",
        re.IGNORECASE,
    )


def writes(pattern: re.Pattern[str], text: str) -> bool:
    """Whether a statement's text writes; definitions, such as of a trigger, and literals do not."""
    if pattern.search(text) is None:
        return False
    return DDL.match(text) is None and pattern.search(LITERAL.sub("''", text)) is not None


TEXTS = (uuid.UUID, decimal.Decimal, IPv4Address, IPv6Address, IPv4Network, IPv6Network)  # interfaces are addresses
SECRET = re.compile(r"passw|secret|token|api_?key", re.IGNORECASE)
LITERAL = re.compile("'[^']*'")
DDL = re.compile(r"\s*(?:create|alter|drop|comment|explain)\b", re.IGNORECASE)
