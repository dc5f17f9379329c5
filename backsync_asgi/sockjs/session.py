"""A SockJS session: a conversation that outlives the requests that carry it; pure, time comes in as `now`.

A session holds no messages. It pulls them from its endpoint whenever a receiver can take them, so that what waits for
a slow or polling client is the endpoint's to decide. Three parties meet here: the endpoint (the application's end),
the session, and at most one receiver (an open response or socket).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields
from typing import Any, Protocol

from .frames import HEARTBEAT, OPEN, Close, Frame, check_close_code, refuse

GOING_AWAY = Close(1012, "Service restart")
INTERRUPTED = Close(1002, "Connection interrupted")
OCCUPIED = Close(2010, "Another connection still open")
TIMED_OUT = Close(1002, "Connection timed out")


class Endpoint(Protocol):
    """The application's end of a session. All calls come from the event loop and must not raise."""

    def received(self, message: str | bytes) -> None:
        """Take one message."""

    @property
    def behind(self) -> bool:
        """Whether so much waits for the application that senders should wait, too."""

    async def caught_up(self) -> None:
        """Wait until there is room for more."""

    def pull(self) -> Frame | None:
        """Hand over all that is waiting for the client as one frame, or None. Called when it can be written."""

    def closed(self, code: int, reason: str) -> None:
        """The session has ended, for whatever reason; called once. 1006: the client went without a goodbye."""

    @property
    def urgent(self) -> bool:
        """Whether something waits that must be written before the write deadline."""

    def tick(self, now: float) -> bool:
        """About a second has passed; `now` is monotonic, in seconds. Returns whether shared frames were written."""


class Receiver(Protocol):
    """An open response or socket: where frames are written."""

    @property
    def lifetime(self) -> float | None:
        """Seconds after which it is ended with a heartbeat; None for ever."""

    @property
    def writable(self) -> bool:
        """Whether a frame written now goes out at once."""

    def unsent(self) -> object:
        """What the peer has not taken yet; it changes whenever the peer takes something. None where it is not known."""

    def fills(self, frame: Frame) -> bool:
        """Whether this frame is the last that it can take. A poll takes one."""

    @property
    def form(self) -> str:
        """The form in which it takes shared frames; see `Forms`."""

    @property
    def declines(self) -> Callable[[Any], object]:
        """What writes a shared frame, in that form, if it goes out at once and is not the last that can be taken.

        Something true: it is not written. It may be kept and called as long as the receiver is writable.
        """

    @property
    def way(self) -> Any:
        """A way past `declines` for what it takes, as long as the receiver is writable; see `fanout.lane_for`."""

    def write(self, frame: Frame, last: bool) -> None:
        """Write the frame; after the last one the response or socket ends."""

    def abort(self) -> None:
        """End it now, written or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long a session waits, in seconds.

    heartbeat: silence after which a client gets `h`; below the idle timeouts of proxies (nginx: 60).
    disconnect_delay: a session without receiver lives on this long; the SockJS servers' 5.
    poll_duration: the longest that one poll is kept waiting.
    stream_duration: the longest that one streaming response runs. HTTP cannot tell a dead reader from a silent one, so
        this and the disconnect delay bound how long a dead peer on a stream is taken for a living one.
    write_deadline: a reply, control or close frame that waits ends the session when the peer takes nothing for so long.
    """

    heartbeat: float = 25.0
    disconnect_delay: float = 5.0
    poll_duration: float = 25.0
    stream_duration: float = 30.0
    write_deadline: float = 10.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ValueError(f"Timing got {field.name}={value!r}, expected a positive number of seconds.")


class Changed(list[Any]):
    """Links whose `way` has changed, in that order. epoch: names this list, for who remembers how far it has read."""

    def __init__(self) -> None:
        super().__init__()
        self.epoch = object()


MAX_CHANGED = 1_000  # links in one list, then another one begins

# The newest list, for who has sorted links by their ways. What was read before is good as long as it is the same one;
# a counter could miss a change where event loops run in several threads.
changed = Changed()


class Link:
    """The way to one client, for frames that many get: `declines` is what writes one, in the `form` that it takes.

    way: a way past that for who writes one to many, with nothing before it, as `fanout.lane_for` knows them; None where
        there is none. While it is the same, `form` and `declines` are. Each change is noted in `changed`.
    """

    __slots__ = ("declines", "form", "way")

    def __init__(self) -> None:
        self.form = "frame"
        self.declines: Callable[[Any], object] = refuse
        self.way: Any = None

    def refuse(self) -> None:
        """Take no more shared frames: something must go first, or nobody is there."""
        self.declines = refuse
        self._lead(None)

    def _lead(self, way: Any) -> None:
        global changed
        if way != self.way:
            self.way = way
            if len(changed) >= MAX_CHANGED:
                changed = Changed()
            changed.append(self)


class Session(Link):
    """The state of one session: new until accepted, open, then closed with a frame that stays.

    form, declines, way: the receiver's, while it has been greeted, can be written to and nothing waits. So a frame that
    many sessions share costs each of them one call, or not even that. Who has something that must go first says
    `refuse`.

    Owners call `tick` about once a second and forget the session when it returns False.
    """

    __slots__ = (
        "_attached_at",
        "_blocked_since",
        "_busy",
        "_greeted",
        "_pumping",
        "_sent_at",
        "_unsent",
        "accepted",
        "close_frame",
        "endpoint",
        "principal",
        "receiver",
        "timing",
    )

    def __init__(self, timing: Timing, principal: Hashable = None) -> None:
        super().__init__()
        self.timing = timing
        self.principal = principal
        self.endpoint: Endpoint | None = None
        self.receiver: Receiver | None = None
        self.accepted = False
        self.close_frame: Close | None = None
        self._greeted = False  # the open frame is written
        self._pumping = False
        # Moments are noted by the tick after them, so that writing a frame needs no clock.
        self._busy = True  # something was written since the last tick
        self._sent_at = 0.0
        self._attached_at: float | None = None  # of the receiver, or of its absence
        self._blocked_since: float | None = None
        self._unsent: object = None  # of a receiver that is blocked

    # The application's side

    def accept(self) -> None:
        """Open the session: its client gets the open frame, then whatever waits. Too late once it is closed."""
        if self.close_frame is None:
            self.accepted = True
            self.wake()

    def wake(self) -> None:
        """Something waits at the endpoint: pull it if a receiver can take it."""
        if not self._pumping:
            self._pumping = True
            try:
                self._pump()
            finally:
                self._pumping = False

    def writability_changed(self) -> None:
        """The receiver can be written to again, or cannot any more."""
        if self.receiver is not None and self.receiver.writable:
            self.wake()
        else:
            self.refuse()

    def close(self, code: int = 1000, reason: str = "") -> None:
        """End the session: what waits is still written, then the close frame. Only the first call counts.

        Raises ValueError for a code that must not be sent; a long reason is cut to 123 bytes.
        """
        self._end(Close(check_close_code(code), reason))

    def go_away(self) -> None:
        """End the session because the server does: what waits is still written."""
        self._end(GOING_AWAY)

    # The transports' side

    def attach(self, receiver: Receiver) -> None:
        """A receiver has come: it gets what waits, or is turned away where another one is open."""
        if self.receiver is not None:
            receiver.write(OCCUPIED, last=True)
            return
        self.receiver = receiver
        self._attached_at = None
        self.wake()

    def detach(self, receiver: Receiver, code: int = 1006, reason: str = INTERRUPTED.reason) -> None:
        """The receiver's request is over. One that broke off before its last frame ends the session.

        code, reason: what the peer said at its end; 1006 if it said nothing.
        """
        if self.receiver is receiver:
            self._release()
            self._end(INTERRUPTED, (code, reason))

    def abandon(self) -> None:
        """The event loop that its receiver belongs to has ended: nothing is written there any more."""
        self._release()

    def received(self, message: str | bytes) -> None:
        """Pass a message to the application, in order."""
        if self.endpoint is not None and self.close_frame is None:
            self.endpoint.received(message)

    @property
    def behind(self) -> bool:
        """Whether so much waits for the application that its sender should wait; see `caught_up`."""
        return self.endpoint is not None and self.close_frame is None and self.endpoint.behind

    async def caught_up(self) -> None:
        """Wait until the application has room for more."""
        if self.endpoint is not None:
            await self.endpoint.caught_up()

    # The sweep's side

    def tick(self, now: float) -> bool:
        """Send heartbeats, end what has waited too long. Returns False when the session can be forgotten."""
        if self.close_frame is None and self.endpoint is not None and self.endpoint.tick(now):
            self._busy = True
        if self._attached_at is None:  # also where the endpoint has just closed, and the receiver is let go
            self._attached_at = self._sent_at = now
        receiver = self.receiver
        waited = now - self._attached_at
        if receiver is None:
            if waited < self.timing.disconnect_delay:
                return True
            self._end(TIMED_OUT, (1006, TIMED_OUT.reason))
            return False
        if not receiver.writable:
            self._tick_blocked(receiver, now, waited)
            return True
        self._blocked_since = None
        if self._busy:
            self._busy, self._sent_at = False, now
        if receiver.lifetime is not None and waited >= receiver.lifetime:
            self._write(receiver, HEARTBEAT, last=True)
        elif now - self._sent_at >= self.timing.heartbeat:
            self._write(receiver, HEARTBEAT, last=receiver.fills(HEARTBEAT))
        return True

    def _tick_blocked(self, receiver: Receiver, now: float, waited: float) -> None:
        unsent = receiver.unsent()
        if self._busy or unsent != self._unsent:  # a slow reader is blocked at each tick, and takes something between
            self._busy, self._sent_at, self._blocked_since = False, now, now
        elif self._blocked_since is None:
            self._blocked_since = now
        self._unsent = unsent
        deadline = self.timing.write_deadline
        urgent = self.close_frame is not None or (self.endpoint is not None and self.endpoint.urgent)
        overdue = receiver.lifetime is not None and waited >= receiver.lifetime + deadline
        if (overdue or urgent) and now - self._blocked_since >= deadline:
            self._release()
            self._end(INTERRUPTED, (1006, INTERRUPTED.reason))
            receiver.abort()

    # Inside

    def _pump(self) -> None:
        while (receiver := self.receiver) is not None and receiver.writable:
            frame: Frame | None = None
            if self._greeted:
                frame = self.endpoint.pull() if self.endpoint is not None else None
            elif self.accepted:
                self._greeted = True
                frame = OPEN
            if frame is not None:
                self._write(receiver, frame, last=receiver.fills(frame))
            elif self.close_frame is not None:
                self.endpoint = None
                self._write(receiver, self.close_frame, last=True)
            else:
                if self._greeted:
                    self.form, self.declines = receiver.form, receiver.declines
                    self._lead(receiver.way)
                return
        self.refuse()

    def _write(self, receiver: Receiver, frame: Frame, last: bool) -> None:
        self._busy = True
        if last:
            # Let go before the last bytes are out: a fast client is back before this call returns.
            self._release()
        receiver.write(frame, last)

    def _release(self) -> None:
        self.receiver = None
        self.refuse()
        self._attached_at = None
        self._blocked_since = None

    def _end(self, frame: Close, gone: tuple[int, str] | None = None) -> None:
        """Close with the frame; `gone`: nobody is there any more to take what waits, and how the peer went."""
        if self.close_frame is not None:
            return
        self.close_frame = frame
        endpoint = self.endpoint
        if gone is not None:
            self.endpoint = None
        if self.receiver is None:
            self._attached_at = None  # the close frame is served for a full disconnect delay
        if endpoint is not None:
            endpoint.closed(*(gone or (frame.code, frame.reason)))
        self.wake()
