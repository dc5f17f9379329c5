"""A `logging.Handler` whose records become records of a model. It knows logging and a model, nothing of browsers."""

import logging
import traceback
from typing import Any

from backsync_asgi.models import Model

LONGEST = 20_000  # characters of a message or a traceback; a log line is for reading


class BacksyncHandler(logging.Handler):
    """Shows log records in every browser that is subscribed to `model`.

    Works from any thread, from asyncio code and before the event loop runs; never blocks the code that logs and never
    raises into it. How many lines are kept is the affair of the model's store.
    """

    def __init__(self, model: Model, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self.model = model

    def emit(self, record: logging.LogRecord) -> None:
        # What Backsync itself logs while it carries a line would become a line again, and so for ever.
        if record.name.partition(".")[0] == "backsync":
            return
        try:
            self.model.upsert_soon(line_of(record))
        except Exception:  # noqa: BLE001 - the contract of `emit`: a log line never breaks the code that logs
            self.handleError(record)


def line_of(record: logging.LogRecord) -> dict[str, Any]:
    """The record as plain data. `time` is in seconds since 1970; `trace` is None where nothing was raised."""
    trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else record.exc_text
    return {
        "time": record.created,
        "level": record.levelname,
        "severity": record.levelno,
        "logger": record.name,
        "message": record.getMessage()[:LONGEST],
        "place": f"{record.filename}:{record.lineno}",
        "function": record.funcName,
        "thread": record.threadName,
        "task": getattr(record, "taskName", None),  # since Python 3.12
        "trace": trace[-LONGEST:] if trace else None,  # the end of a traceback says what happened
    }
