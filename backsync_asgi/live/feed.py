"""Feed: what commits have changed, on its way to a model, the newest state of each record last; knows no database."""

from __future__ import annotations

import datetime
import decimal
import enum
import logging
import threading
import uuid
from collections.abc import Mapping
from typing import Any

from backsync_asgi.errors import BacksyncError
from backsync_asgi.models import Model

logger = logging.getLogger("backsync")

Id = str | int
Record = dict[str, Any]


class UnseenWrite(BacksyncError):
    """A statement would change records of a live model in a way that cannot be broadcast; says what to do instead."""


class Feed:
    """Publishes what commits have done to the records of one model; safe in any thread.

    Whoever commits takes a ticket before, and gives the new states with it after. Commits that write the same record
    wait for each other in the database, so their tickets have the order of the commits, even where the threads that
    come back from them do not. A state whose record has gone out with a newer ticket is left out.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._lock = threading.Lock()
        self._last = 0
        self._open: set[int] = set()
        self._newest: dict[str, int] = {}  # by id as text: with which ticket it went out, while older ones are open

    def begin(self) -> int:
        """A ticket for a commit that is about to happen."""
        with self._lock:
            self._last += 1
            self._open.add(self._last)
            return self._last

    def end(self, ticket: int, changes: Mapping[Id, Record | None]) -> None:
        """The commit has happened: publish the new state of each record, None for one that is gone. Never raises.

        A record that cannot be sent is logged and does not stop the others.
        """
        with self._lock:
            for id, record in changes.items():
                if self._newest.get(str(id), 0) < ticket:
                    self._newest[str(id)] = ticket
                    self._publish(id, record)
            self._close(ticket)

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
            if record is None:
                self.model.publish("delete", {"id": id})
            else:
                self.model.publish("upsert", record)
        except Exception as error:  # noqa: BLE001 - it is committed: its author must not hear of a failure
            logger.error("The change of %s %r is committed but cannot be broadcast: %s", self.model.name, id, error)


def plain(value: Any) -> Any:
    """A column's value as JSON carries it: dates in ISO 8601, UUIDs and Decimals as text, enums as their value."""
    if value is None or type(value) in (str, int, float, bool, dict, list):
        return value
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, (datetime.date, datetime.time)):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, (uuid.UUID, decimal.Decimal)):
        return str(value)
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    return value
