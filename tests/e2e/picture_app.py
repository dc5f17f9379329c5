"""The chat with a clock of its own, so that its picture is the same each time; the chat knows nothing of it."""

from __future__ import annotations

from datetime import datetime, timedelta, tzinfo
from itertools import count
from unittest.mock import patch

from examples.chat import app as app
from examples.chat import server

FIRST = datetime.fromisoformat("2026-05-04T09:41:00+00:00")
_minutes = count()


class Clock(datetime):
    """Each look at it is a minute after the one before."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Clock:
        return cls.fromisoformat((FIRST + timedelta(minutes=next(_minutes))).isoformat())


patch.object(server, "datetime", Clock).start()  # for as long as the process lives
