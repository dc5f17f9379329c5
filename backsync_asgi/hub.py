"""Who listens to what, and the delivery of changes by position; it knows no models, no requests and no sockets.

A subscriber holds positions, not messages. Publishing marks a topic dirty; one flush per tick of the event loop builds
the frame for those who keep up and offers it to each of them. Who cannot take it stays behind at its position, which
costs an integer, and pulls its own tail when it can be written to: the newest state of each changed record.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Protocol

from . import messages
from .channel import Channel, Horizon
from .sockjs.frames import Frame, Message, batch

MAX_TAILS = 64  # frames remembered for subscribers at different positions


class Link(Protocol):
    """The way to one client, as the hub sees it."""

    def offer(self, frame: Frame) -> bool:
        """Write a shared frame if it can go out at once."""

    def wake(self) -> None:
        """Something waits: pull it as soon as it can be written."""


class Hub:
    """All topics, and the flush that delivers their changes once per tick."""

    def __init__(
        self, horizon: Horizon, message: type[Message] = Message, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.message = message
        self.now = now
        self._horizon = horizon
        self._topics: dict[str, Topic] = {}
        self._dirty: list[Topic] = []
        self._wanting: dict[Subscriber, None] = {}
        self._scheduled = False

    def start(self) -> None:
        """A new event loop runs: what an earlier one left undelivered is delivered on it."""
        self._scheduled = False
        if self._dirty or self._wanting:
            self._schedule()

    def topic(self, name: str) -> Topic:
        """The topic of that name, made at first use."""
        topic = self._topics.get(name)
        if topic is None:
            topic = self._topics[name] = Topic(self, name, Channel(secrets.token_hex(8), self._horizon), self._horizon)
        return topic

    def mark_dirty(self, topic: Topic) -> None:
        """The topic has changes that its subscribers have not been offered."""
        if not topic.dirty:
            topic.dirty = True
            self._dirty.append(topic)
            self._schedule()

    def want(self, subscriber: Subscriber) -> None:
        """The subscriber has something to pull; it is woken at the end of the next flush."""
        self._wanting[subscriber] = None
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Offer what is new to those who keep up, then let those pull for whom more is waiting."""
        self._scheduled = False
        dirty, self._dirty = self._dirty, []
        for topic in dirty:
            if topic.dirty:  # else a burst has flushed it in the middle of the tick, and it stands here twice
                for late in topic.flush():
                    self._wanting[late] = None
        wanting, self._wanting = self._wanting, {}
        for subscriber in wanting:
            subscriber.link.wake()
        for topic in dirty:
            topic.forget_events()


class Topic:
    """One channel and its subscribers.

    live: those who have been offered everything up to `flushed`. The others are behind, each at a position of its own.
    """

    def __init__(self, hub: Hub, name: str, channel: Channel[Message], horizon: Horizon) -> None:
        self.name = name
        self.channel = channel
        self.dirty = False
        self.flushed = 0
        self.live: dict[Subscriber, None] = {}
        self._hub = hub
        self._burst = max(1, horizon.records // 2)
        self._burst_size = horizon.size // 2
        self._unflushed_size = 0
        self._events: list[tuple[int, Message]] = []
        self._tails: dict[int, Frame] = {}
        self._live_tail: int | None = None  # the position whose remembered tail has transient events in it

    def publish(self, method: str, key: str, data: str) -> None:
        """Append a change of the record `key`; `data` is its JSON text."""
        self._before_change()
        event = f"{self.name}:{method}"
        make = self._hub.message
        size = len(data) + len(event) + 40
        self.channel.put(key, lambda seq: make(messages.change(event, data, seq)), size, self._hub.now())
        self._unflushed_size += size
        self._tails.clear()
        self._hub.mark_dirty(self)

    def publish_event(self, method: str, data: str) -> None:
        """Send a transient event to those who keep up, in order with the changes."""
        self._before_change()
        self._events.append((self.channel.seq, self._hub.message(messages.push(f"{self.name}:{method}", data))))
        self._unflushed_size += len(data)
        self._hub.mark_dirty(self)

    def _before_change(self) -> None:
        acting = Acting.current.get()
        if acting is not None:
            acting.hold(self)
        # A burst within one tick must not outrun the horizon under those who keep up.
        count = self.channel.seq - self.flushed + len(self._events)
        if count >= self._burst or self._unflushed_size >= self._burst_size:
            for late in self.flush():
                late.link.wake()  # now, while the tail reaches back to it and has the transient events in it
            self.forget_events()

    def flush(self) -> list[Subscriber]:
        """Offer what is new to all who keep up. Returns those who could not take it and are behind from now on."""
        self.dirty = False
        start, self.flushed = self.flushed, self.channel.seq
        self._unflushed_size = 0
        late: list[Subscriber] = []
        if self.live:
            frame = self._new_frame(start)
            if frame is None or frame.messages:
                late = [
                    subscriber
                    for subscriber in tuple(self.live)
                    if subscriber.outbox or frame is None or not subscriber.link.offer(frame)
                ]
            for subscriber in late:
                self.live.pop(subscriber, None)
                subscriber.behind[self] = start
        return late

    def _new_frame(self, start: int) -> Frame | None:
        """Changes and transient events since `start`, in order; remembered for those who pull in this very tick."""
        changes = self.channel.since(start)
        if changes is None:
            return None
        if self._events:
            ordered = sorted(
                [(change.seq, 0, change.body) for change in changes] + [(seq, 1, event) for seq, event in self._events],
                key=lambda item: item[:2],
            )
            frame = batch(message for _, _, message in ordered)
        else:
            frame = batch(change.body for change in changes)
        self._tails[start] = frame
        self._live_tail = start
        return frame

    def forget_events(self) -> None:
        """The tick is over: transient events are not for those who come later."""
        if self._events:
            self._events = []
            if self._live_tail is not None:
                self._tails.pop(self._live_tail, None)
        self._live_tail = None

    def tail(self, seq: int) -> Frame | None:
        """The frame of the changes after a position, shared by all who ask from there; None beyond the horizon."""
        frame = self._tails.get(seq)
        if frame is None:
            self.channel.evict(self._hub.now())
            changes = self.channel.since(seq)
            if changes is None:
                return None
            if len(self._tails) >= MAX_TAILS:
                self._tails.clear()
            frame = self._tails[seq] = batch(change.body for change in changes)
        return frame


class Subscriber:
    """One client's positions, and the replies that wait for it.

    on_lost: called with a topic whose horizon has passed the subscriber's position; the topic is held until released.
    on_overflow: called when the waiting replies are over `limit` bytes; they are dropped.
    """

    __slots__ = (
        "_held",
        "_hub",
        "_limit",
        "_on_lost",
        "_on_overflow",
        "behind",
        "link",
        "outbox",
        "outbox_size",
    )

    def __init__(
        self, hub: Hub, link: Link, limit: int, on_lost: Callable[[Topic], None], on_overflow: Callable[[], None]
    ) -> None:
        self.link = link
        self.outbox: list[Message] = []
        self.outbox_size = 0
        self.behind: dict[Topic, int] = {}
        self._held: dict[Topic, int] = {}
        self._hub = hub
        self._limit = limit
        self._on_lost = on_lost
        self._on_overflow = on_overflow

    def send(self, text: str) -> None:
        """Queue a reply or control message. It goes out with the next flush, before the changes that wait."""
        if self.outbox and self.outbox_size + len(text) > self._limit:
            self.outbox.clear()
            self.outbox_size = 0
            self._on_overflow()
            return
        self.outbox.append(self._hub.message(text))
        self.outbox_size += len(text)
        self._hub.want(self)

    def attach(self, topic: Topic, seq: int) -> None:
        """Listen to a topic, from after a position."""
        topic.live.pop(self, None)
        self.behind[topic] = seq
        self._hub.want(self)

    def detach(self, topic: Topic) -> None:
        """Listen to a topic no more."""
        topic.live.pop(self, None)
        self.behind.pop(topic, None)

    def listens_to(self, topic: Topic) -> bool:
        """Whether it is attached to a topic."""
        return self in topic.live or topic in self.behind

    def hold(self, topic: Topic) -> None:
        """Deliver nothing of the topic until it is released as often as held."""
        self._held[topic] = self._held.get(topic, 0) + 1
        if self in topic.live:
            del topic.live[self]
            self.behind[topic] = topic.flushed

    def release(self, topic: Topic) -> None:
        """Undo one hold; what has come in the meantime is delivered."""
        left = self._held[topic] - 1
        if left:
            self._held[topic] = left
            return
        del self._held[topic]
        if topic in self.behind:
            self._hub.want(self)

    def pull(self) -> Frame | None:
        """All that waits, as one frame: replies first, then the tail of each topic that the subscriber is behind on."""
        frames: list[Frame] = []
        if self.outbox:
            frames.append(batch(self.outbox))
            self.outbox = []
            self.outbox_size = 0
        for topic in list(self.behind) if self.behind else ():
            if topic in self._held:
                continue
            if topic.dirty:  # its flush is under way in this tick, and brings this subscriber back here
                self._hub.want(self)
                continue
            tail = topic.tail(self.behind[topic])
            if tail is None:
                self.hold(topic)
                self._on_lost(topic)
                continue
            del self.behind[topic]
            topic.live[self] = None
            if tail.messages:
                frames.append(tail)
        if len(frames) > 1:
            return batch(message for frame in frames for message in frame.messages)
        return frames[0] if frames else None


class Acting:
    """On whose behalf the current context runs: a request of a subscriber.

    What is published meanwhile is held back from that subscriber until `finish`, so that it sees the reply to its
    request before its own change.
    """

    current: ContextVar[Acting | None] = ContextVar("backsync_acting", default=None)

    __slots__ = ("_held", "_open", "_subscriber", "locks")

    def __init__(self, subscriber: Subscriber) -> None:
        self._subscriber = subscriber
        self._held: set[Topic] = set()
        self._open = True
        self.locks: set[object] = set()  # the turns that this context has taken; it may take them again

    def hold(self, topic: Topic) -> None:
        """Hold the topic back until the reply, if the subscriber listens to it."""
        if self._open and topic not in self._held and self._subscriber.listens_to(topic):
            self._held.add(topic)
            self._subscriber.hold(topic)

    def finish(self) -> None:
        """The reply is queued: let go what was held back."""
        self._open = False
        for topic in self._held:
            self._subscriber.release(topic)
        self._held.clear()
