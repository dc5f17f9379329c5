"""What clients can do to the log: no line of their own in it, and not more lines than somebody reads; pure."""

from __future__ import annotations

import logging
import traceback
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress

PERIOD = 10.0  # seconds
BURST = 3  # lines of one kind in a period; more are counted and left out
MAX_KINDS = 1_000  # kinds that are counted; then the one that was logged longest ago is forgotten
MAX_LINE = 4_000  # characters of a message
INDENT = "    "


class Sparing:
    """Logs at most BURST lines of a kind in a period, and with the next one how many were left out.

    now: a monotonic clock, in seconds.
    """

    def __init__(self, logger: logging.Logger, now: Callable[[], float]) -> None:
        self._logger = logger
        self._now = now
        self._kinds: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()  # when its period began, and its lines

    def log(
        self, level: int, kind: Hashable, message: str, *args: object, exc_info: BaseException | None = None
    ) -> None:
        """As the logger's `log`. kind: what is counted together, such as the event and the client's address."""
        if not self._logger.isEnabledFor(level):
            return
        now = self._now()
        began, lines = self._kinds.pop(kind, (now, 0))
        left_out = 0
        if now - began >= PERIOD:
            began, lines, left_out = now, 0, max(0, lines - BURST)
        self._kinds[kind] = began, lines + 1
        if len(self._kinds) > MAX_KINDS:
            self._kinds.popitem(last=False)
        if lines >= BURST:
            return
        if left_out:
            message, args = message + " (%d more of these were left out.)", (*args, left_out)
        self._logger.log(level, message, *args, exc_info=exc_info, stacklevel=2)


class OneLine(logging.Filter):
    """Escapes what would begin a new line in a message, or act on a terminal, and indents tracebacks that have such.

    What a client has sent may be in any of them: names of fields and methods, ids, texts of exceptions.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Every record passes."""
        with suppress(Exception):  # a message that does not fit its arguments: the handler says so
            message = record.getMessage()
            if len(message) > MAX_LINE or not message.isprintable():
                record.msg, record.args = escaped(message), ()
            error = record.exc_info[1] if record.exc_info else None
            if error is not None and not all(str(it).isprintable() for it in _chain(error)):
                lines = "".join(traceback.format_exception(error)).rstrip("\n").split("\n")
                record.exc_text = "\n".join(INDENT + escaped(line) for line in lines)
        return True


def escaped(text: str) -> str:
    """The text in one line: what cannot be printed as Python writes it, and not more than MAX_LINE characters."""
    cut = text if len(text) <= MAX_LINE else text[:MAX_LINE] + "…"
    if cut.isprintable():
        return cut
    return "".join(it if it.isprintable() else it.encode("unicode_escape").decode("ascii") for it in cut)


def protect(*names: str) -> None:
    """Have these loggers write one line for each message; as often as one likes."""
    for name in names:
        logger = logging.getLogger(name)
        if not any(isinstance(it, OneLine) for it in logger.filters):
            logger.addFilter(OneLine())


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exceptions that a traceback shows."""
    ahead, seen = [error], set[int]()
    while ahead:
        it = ahead.pop()
        if id(it) in seen:
            continue
        seen.add(id(it))
        yield it
        ahead += [cause for cause in (it.__cause__, it.__context__) if cause is not None]
        if isinstance(it, BaseExceptionGroup):
            ahead += it.exceptions
