"""One frame to many clients in one go; it knows file descriptors, bytes and ASGI events, and no sessions.

A broadcast costs what its system calls cost if nothing else happens between them: no turn of the interpreter, and no
look at a thousand transports, none of which is in the processor's cache. `os.write` would not do: it lets other threads
run each time, and one that computes gives the interpreter back after 5 ms, for every client. So libc's `send` is
called as it is, while the interpreter is held; the sockets do not block. (`write` would do the same, and looks at more
of a file than is in the cache.) Where there is none, each transport is called.

Of a client that only ASGI's `send` reaches, its `send` alone is touched, for the same reason.
"""

from __future__ import annotations

import socket
from array import array
from collections.abc import Callable, MutableSequence, Sequence
from itertools import repeat
from typing import Any

from .receivers import DONE, Event, Send, Writer, begin

try:
    import ctypes

    _send: Callable[..., int] | None = ctypes.PyDLL(None).send
    _size: Callable[[int], Any] = ctypes.c_size_t.from_param  # made into an argument once, not for each socket
    _send.restype = ctypes.c_ssize_t  # type: ignore[union-attr]
except (ImportError, OSError, TypeError, AttributeError):  # Windows, or an interpreter without libffi
    _send = None

FLAGS = getattr(socket, "MSG_NOSIGNAL", 0)

IN_ONE_GO = 512  # sockets, some 3 ms of work, after which other threads have their turn if they wait for one


class Lane:
    """Clients that take the same in one form, each by the way of its link.

    Whoever has a lane must take out of it whose way changes, before it writes again.
    """

    __slots__ = ("_columns", "_links", "_rows")

    def __init__(self, *columns: MutableSequence[Any]) -> None:
        self._rows: dict[object, int] = {}
        self._links: list[object] = []
        self._columns = (self._links, *columns)

    def _append(self, link: object, *cells: Any) -> None:
        self._rows[link] = len(self._links)
        for column, cell in zip(self._columns, (link, *cells), strict=True):
            column.append(cell)

    def discard(self, link: object) -> bool:
        """Take a client out; the last one takes its place. False: it was not there."""
        row = self._rows.pop(link, None)
        if row is None:
            return False
        for column in self._columns:
            last = column.pop()
            if row < len(column):
                column[row] = last
        if row < len(self._links):
            self._rows[self._links[row]] = row
        return True

    def add(self, link: object, way: Any, declines: Callable[[Any], object]) -> None:
        """One more client, with the way of its link and what writes to it otherwise."""
        raise NotImplementedError

    def write(self, it: Any) -> None:
        """Write to all."""
        raise NotImplementedError


def lane_for(way: int | Writer) -> Lane:
    """An empty lane for ways of that kind."""
    return Sockets() if isinstance(way, int) else Writers()


class Sockets(Lane):
    """Sockets that take the same bytes: of each its number, and what writes to its transport, in which nothing waits.

    What a socket does not take, or takes in part, its transport gets. A number that is not a socket's any more is
    another client's soon.
    """

    __slots__ = ("_fds", "_writes")

    def __init__(self) -> None:
        self._fds = array("i")  # the numbers themselves, side by side; a list would have them all over the memory
        self._writes: list[Callable[[bytes], object]] = []
        super().__init__(self._fds, self._writes)

    def add(self, link: object, fd: int, write: Callable[[bytes], object]) -> None:
        """One more socket."""
        self._append(link, fd, write)

    def write(self, wire: bytes) -> None:
        """Write to all."""
        size, fds = len(wire), self._fds
        counts: list[int] = []
        if _send is None:
            counts = [0] * len(fds)
        else:
            for start in range(0, len(fds), IN_ONE_GO):
                some = fds[start : start + IN_ONE_GO]
                counts += map(_send, some, repeat(wire), repeat(_size(size)), repeat(FLAGS))
        if counts.count(size) != len(counts):
            for write, count in zip(self._writes, counts, strict=True):
                if count != size:  # it is full, or -1: for whatever reason, which the transport finds out
                    write(wire[max(count, 0) :])


class Writers(Lane):
    """Writers that take the same events, of which none waits."""

    __slots__ = ("_sends", "_writers")

    def __init__(self) -> None:
        self._sends: list[Send] = []
        self._writers: list[Writer] = []
        super().__init__(self._sends, self._writers)

    def add(self, link: object, writer: Writer, declines: Callable[[Any], object]) -> None:
        """One more writer."""
        self._append(link, writer.send, writer)

    def write(self, events: Sequence[Event]) -> None:
        """Write to all."""
        writers = list(self._writers)  # middleware may publish in its `send`, for which a client leaves the lane
        if len(events) != 1:
            for writer in writers:
                writer.declines(events)
            return
        [event] = events
        for at, send in enumerate(list(self._sends)):
            try:
                steps, waits_for = begin(send, event)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - whatever a `send` raises, only its connection ends
                writers[at].fail(error)
            else:
                if waits_for is not DONE:
                    writers[at].wait(steps, waits_for)
