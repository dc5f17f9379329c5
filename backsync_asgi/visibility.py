"""Visibility: who sees which records of a model, and what of them, by a rule of the developer's."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Hashable, Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from time import monotonic
from typing import Any, Protocol
from uuid import UUID

import orjson

from . import messages
from .errors import EncodeError, Reject
from .handlers import check_signature, is_async
from .hub import Push, Subscriber, View, as_it_is
from .logs import Sparing
from .messages import is_id
from .sockjs.frames import Message, loads

logger = logging.getLogger("backsync")

CHANGED = "Somebody else has changed it in the meantime."  # to who may not see how
SHOWN = frozenset({"read", "upsert", "patch", "delete"})  # the methods whose replies are records


# What cannot be changed, and so is never copied.
_FIXED = frozenset({str, int, float, bool, type(None), bytes, date, datetime, time, timedelta, Decimal, UUID})


def copied(value: Any) -> Any:
    """A copy of a value of a record. What is the same in JSON is written and read, at a tenth of the cost of
    `copy.deepcopy`, which copies all else."""
    if type(value) in _FIXED:
        return value
    if type(value) in (dict, list):
        try:
            twin = orjson.loads(orjson.dumps(value))
        except (TypeError, ValueError):
            return copy.deepcopy(value)
        if twin == value:
            return twin
    return copy.deepcopy(value)


class Identified(Protocol):
    """A connection, as far as its name goes."""

    id: str


class Viewer(Protocol):
    """Who is shown something: a handler's context."""

    method: str | None

    @property
    def connection(self) -> Identified: ...


class Visibility:
    """The rule of one model, if it has one. context_of: a context for who is shown a change, by its connection."""

    def __init__(self, model: str, context_of: Callable[[Any], Any]) -> None:
        self._model = model
        self._context_of = context_of
        self._rule: Callable[[Any, dict[str, Any]], Any] | None = None
        self._audience: Callable[[Any], Hashable] | None = None
        self._sparing = Sparing(logger, monotonic)
        self._redacts: frozenset[str] | None = None  # the fields that the rule may change; None: any but the id

    @property
    def hides(self) -> bool:
        """Whether there is a rule."""
        return self._rule is not None

    def keeps(self, field: str) -> bool:
        """Whether the rule leaves a field as it is in each record that it shows."""
        return self._redacts is not None and field not in self._redacts

    def set_rule(
        self,
        rule: Callable[..., Any],
        audience: Callable[[Any], Hashable] | None,
        redacts: Iterable[str] | None = None,
    ) -> None:
        """Take the rule. Raises TypeError for a function that is none, ValueError for a second one."""
        check_signature(rule, 2, "a visibility rule takes (ctx, record)")
        if is_async(rule):
            raise TypeError(f"{rule!r} is async: a visibility rule is a plain function, asked at each delivery.")
        if self._rule is not None:
            raise ValueError(f"{self._model}.visible was given twice; there is one rule.")
        if audience is not None:
            check_signature(audience, 1, "an audience function takes (ctx)")
            if is_async(audience):
                raise TypeError(f"{audience!r} is async: an audience function is a plain one, and quick.")
        names: tuple[Any, ...] = () if redacts is None or isinstance(redacts, str) else tuple(redacts)
        if isinstance(redacts, str) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"{self._model}.visible got redacts={redacts!r}, expected a list of fields.")
        self._rule = rule
        self._audience = audience
        self._redacts = None if redacts is None else frozenset(names)

    def show(self, ctx: Viewer, record: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The record as this client may see it, or None."""
        if self._rule is None:
            return record
        try:
            seen = self._rule(ctx, {name: it if type(it) in _FIXED else copied(it) for name, it in record.items()})
            if seen is True:
                return record
            if isinstance(seen, Mapping):
                if self._redacts is not None and (changed := self._undeclared(record, seen)) is not None:
                    what = "The visibility rule of %s changed %s, which redacts= does not name; the record is hidden."
                    self._sparing.log(logging.ERROR, "changed", what, self._model, messages.shorten(changed))
                    return None
                return {**seen, "id": record["id"]} if "id" in record else seen
            if seen is not False and seen is not None:
                got = messages.shorten(seen)
                what = "The visibility rule of %s returned %s, expected a boolean or a record."
                self._sparing.log(logging.ERROR, "returned", what, self._model, got)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001
            what = "The visibility rule of %s failed; the record is hidden."
            self._sparing.log(logging.ERROR, (type(error),), what, self._model, exc_info=error)
        return None

    def _undeclared(self, record: Mapping[str, Any], seen: Mapping[str, Any]) -> str | None:
        """A field that the rule has changed without having said so."""
        for field in record.keys() | seen.keys():
            is_there = field in record and field in seen
            if field != "id" and self.keeps(field) and not (is_there and record[field] == seen[field]):
                return field
        return None

    def show_reply(self, ctx: Viewer, reply: str) -> str:
        """A remembered reply, as far as this client may see now what is in it."""
        if self._rule is None:
            return reply
        message = loads(reply)
        error = message.get("error")
        details = error.get("details") if isinstance(error, dict) else None  # a text in the mode of 2012
        if isinstance(details, dict) and isinstance(details.get("current"), dict):
            details["current"] = self.show(ctx, details["current"])
            if details["current"] is None:
                message["error"]["message"] = CHANGED
        data = message["data"]
        if ctx.method not in SHOWN:
            return messages.encode(message)
        rows = data if isinstance(data, list) else [data]
        shown = [
            (self.show(ctx, row) or {"id": row["id"]}) if isinstance(row, dict) and is_id(row.get("id")) else row
            for row in rows
        ]
        return messages.encode({**message, "data": shown if isinstance(data, list) else shown[0]})

    def audience_of(self, ctx: Viewer) -> tuple[Hashable, View]:
        """Whom this client sees the same as, and how they see changes."""
        if self._rule is None:
            return None, as_it_is
        if self._audience is None:
            return ctx.connection.id, self._view
        try:
            audience = self._audience(ctx)
            hash(audience)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001
            what = "The audience function of %s failed; the client is an audience of its own."
            self._sparing.log(logging.ERROR, ("audience", type(error)), what, self._model, exc_info=error)
            return ctx.connection.id, self._view
        return ("audience", audience), self._view

    def _view(self, push: Push, subscriber: Subscriber) -> Message:
        if push.record is None:
            return push.message
        seen = self.show(self._context_of(subscriber.owner), push.record)
        if seen is None:
            return push.gone
        if seen is push.record:
            return push.message
        try:
            return push.redacted(messages.encode(seen))
        except EncodeError as error:
            what = "The visibility rule of %s returned what cannot be sent: %s"
            self._sparing.log(logging.ERROR, "encode", what, self._model, error)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001
            what = "What the visibility rule of %s returned could not be encoded."
            self._sparing.log(logging.ERROR, ("encode", type(error)), what, self._model, exc_info=error)
        return push.gone

    def hide_current(self, ctx: Viewer, error: Reject) -> Reject:
        """A conflict tells the current record, as far as this client may see it."""
        current = error.details.get("current") if isinstance(error.details, dict) else None
        if error.code != "conflict" or not isinstance(current, Mapping):
            return error
        seen = self.show(ctx, current)
        message = CHANGED if seen is None else error.message
        return Reject(error.code, message, {**error.details, "current": seen})
