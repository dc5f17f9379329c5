"""Who listens to what, and the delivery of changes by position; it knows no models, no requests and no sockets.

A subscriber holds positions, not messages. Publishing marks a topic dirty; one flush per tick of the event loop builds
the frame for those who keep up and offers it to each of them. Who cannot take it stays behind at its position, which
costs an integer, and pulls its own tail when it can be written to: the newest state of each changed record.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

from . import messages
from .channel import Channel
from .limits import Horizon
from .logs import Sparing
from .sockjs import session
from .sockjs.fanout import Lane, lane_for
from .sockjs.frames import Forms, Frame, Message, batch

logger = logging.getLogger("backsync")

MAX_TAILS = 64  # frames remembered for subscribers at different positions
MAX_KEPT = 65_536  # bytes of transient events kept for a subscriber whose own request holds a topic back
UNWRITTEN = "What waits for a client could not be written."
SHOW_TIME = 0.01  # seconds in one tick for audiences whose view is the application's code; then others have their turn
MAX_IDLE = 10_000  # keyed topics to which nobody listens that are kept for clients that come back
SWEEP_TOPICS = 128  # topics that must have been added before forgotten ones are looked for again

Key = tuple[str, ...]  # the values of a keyed model's key fields, each as JSON text


class Link(Protocol):
    """The way to one client, as the hub sees it."""

    form: str  # in which it takes shared frames; see `Forms`
    declines: Callable[[Any], object]  # writes one if it can go out at once; something true if it is not written

    way: Any  # past `declines`, as `lane_for` knows them, where there is one; see `session.changed`

    def wake(self) -> None:
        """Something waits: pull it as soon as it can be written."""

    def refuse(self) -> None:
        """Something waits that must go first: take no shared frame before it is written."""


class Push:
    """A change in a channel, with what it takes to show it to each audience.

    data: the record as JSON text, `{"id": …}` for a delete. record: the record itself, kept only where the audiences
    of the model see different things; None for a delete. version: of the record, where the model counts them.
    """

    __slots__ = ("_gone", "_message", "_topic", "data", "id", "method", "record", "seq", "version")

    def __init__(
        self,
        topic: Topic,
        method: str,
        id: str | int,
        data: str,
        seq: int,
        record: Mapping[str, Any] | None,
        version: int | None,
    ) -> None:
        self.method = method
        self.id = id
        self.data = data
        self.seq = seq
        self.record = record
        self.version = version
        self._topic = topic
        self._message: Message | None = None
        self._gone: Message | None = None

    @property
    def message(self) -> Message:
        """The change as it is, encoded once."""
        if self._message is None:
            self._message = self.redacted(self.data)
        return self._message

    @property
    def gone(self) -> Message:
        """The change as those see it who may not see the record: a delete, encoded once."""
        if self._gone is None:
            topic = self._topic
            text = messages.change(f"{topic.name}:delete", messages.encode({"id": self.id}), self.seq, topic.key_text)
            self._gone = topic.make_message(text)
        return self._gone

    def redacted(self, data: str) -> Message:
        """The change with other data, JSON text."""
        topic = self._topic
        return topic.make_message(messages.change(f"{topic.name}:{self.method}", data, self.seq, topic.key_text))


# How an audience sees a change; asked with any one of its members.
View = Callable[[Push, "Subscriber"], Message]


def as_it_is(push: Push, subscriber: Subscriber) -> Message:
    """The view of everybody where nothing is hidden."""
    return push.message


class Hub:
    """All topics, and the flush that delivers their changes once per tick."""

    def __init__(
        self, horizon: Horizon, message: type[Message] = Message, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.message = message
        self.now = now
        self.sparing = Sparing(logger, now)
        self.horizon = horizon
        self._topics: dict[tuple[str, Key], Topic] = {}
        self._sweep_at = SWEEP_TOPICS
        self._dirty: list[Topic] = []
        self._wanting: dict[Subscriber, None] = {}
        self.unseen: deque[Audience] = deque()  # audiences with changes that wait for their view
        self.show_until: float | None = 0.0  # None: from the first view on
        self._interrupt: KeyboardInterrupt | None = None
        # Kept, since Python 3.11 makes a system call each time that it is asked for the running one.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scheduled = False
        self.is_delivering = False  # frames are being written: middleware may publish in its `send`
        self.flushes = 0  # one in each tick in which there was something to send

    def start(self) -> None:
        """A new event loop runs: what an earlier one left undelivered is delivered on it."""
        self._let_go()
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        if self._dirty or self._wanting:
            self.schedule()

    def _let_go(self) -> None:
        """Offer nothing to those whom an event loop has left that has ended: their sockets' numbers are others' now."""
        if self._loop is None:
            return
        for topic in self._topics.values():
            for audience in topic.audiences.values():
                for subscriber in list(audience.live):
                    audience.part(subscriber)
                    subscriber.behind[audience] = audience.position
        self._wanting.clear()

    def topic(self, name: str, key: Key = (), key_text: str = "") -> Topic:
        """The topic of that model name and key, made at first use. key_text: the key as the messages show it, JSON."""
        topic = self._topics.get((name, key))
        if topic is None:
            if len(self._topics) >= self._sweep_at:
                self._forget_topics()
            topic = self._topics[name, key] = Topic(self, name, key, key_text)
        return topic

    def find(self, name: str, key: Key) -> Topic | None:
        """The topic, if it exists: who only wants to say that something is gone need not make one."""
        return self._topics.get((name, key))

    def topics_of(self, name: str) -> list[Topic]:
        """All topics of a model. Takes time in proportion to all topics there are."""
        return [topic for topic in self._topics.values() if topic.name == name]

    def _forget_topics(self) -> None:
        """Forget keyed topics to which nobody listens and whose changes are all beyond the horizon, and of the others
        to which nobody listens all but the newest: clients that come back to those get a snapshot."""
        now = self.now()
        idle: list[tuple[str, Key]] = []
        for place, topic in list(self._topics.items()):
            topic.channel.evict(now)
            if topic.key and not topic.audiences and not topic.dirty:
                if len(topic.channel):
                    idle.append(place)
                else:
                    del self._topics[place]
        for place in idle[:-MAX_IDLE]:
            del self._topics[place]
        self._sweep_at = 2 * len(self._topics) + SWEEP_TOPICS

    def mark_dirty(self, topic: Topic) -> None:
        """The topic has changes that its subscribers have not been offered."""
        if not topic.dirty:
            topic.dirty = True
            self._dirty.append(topic)
            self.schedule()

    def want(self, subscriber: Subscriber) -> None:
        """The subscriber has something to pull; it is woken at the end of the next flush."""
        self._wanting[subscriber] = None
        self.schedule()

    def schedule(self) -> None:
        """Have a flush in the next tick."""
        if not self._scheduled:
            self._scheduled = True
            if self._loop is None or self._loop.is_closed():
                self._let_go()
                self._loop = asyncio.get_running_loop()
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Offer what is new to those who keep up, then let those pull for whom more is waiting."""
        self._scheduled = False
        self.flushes += 1
        dirty, self._dirty = self._dirty, []
        self.is_delivering = True
        self.show_until = None
        try:
            if self.unseen:  # from the tick before
                self.show()
            for topic in dirty:
                if topic.dirty:  # else a burst has flushed it in the middle of the tick, and it stands here twice
                    for late in topic.flush():
                        self._wanting[late] = None
                    if self.unseen:
                        self.show()
            self.show_until = None
            wanting, self._wanting = self._wanting, {}
            for subscriber in wanting:
                try:
                    subscriber.link.wake()
                except BaseException as error:  # noqa: BLE001 - whatever it is, the others' turn comes
                    self.failed(UNWRITTEN, error)
        finally:
            self.is_delivering = False
        for topic in dirty:
            topic.forget_events()
        if self._interrupt is not None:
            self.raise_interrupt()

    def has_time_to_show(self) -> bool:
        """Whether another view may be built in this tick."""
        now = self.now()
        if self.show_until is None:
            self.show_until = now + SHOW_TIME
        return now < self.show_until

    def show(self) -> None:
        """Offer audiences the changes that wait for their view, as many of them as there is time for."""
        while self.unseen:
            if not self.has_time_to_show():
                self.schedule()
                return
            audience = self.unseen.popleft()
            for late in audience.show():
                self.wake(late)  # now, while the frame is remembered
            audience.tails.clear()  # what is seen may change

    def wake(self, subscriber: Subscriber) -> None:
        """Let a subscriber pull; what goes wrong then is its own affair."""
        try:
            subscriber.link.wake()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the others' turn comes
            self.failed(UNWRITTEN, error)

    def failed(self, what: str, error: BaseException) -> None:
        """Note a failure that must not stop the delivery to others. Ctrl-C is raised after it."""
        if isinstance(error, KeyboardInterrupt):
            self._interrupt = error
        else:
            self.sparing.log(logging.ERROR, (what, type(error)), "%s", what, exc_info=error)

    def raise_interrupt(self) -> None:
        """Raises the KeyboardInterrupt that came during a delivery."""
        interrupt, self._interrupt = self._interrupt, None
        if interrupt is not None:
            raise interrupt


class Topic:
    """One channel and the audiences that listen to it; one for each model, and for each key of a keyed model.

    flushed: the position up to which those who keep up have been offered everything.
    """

    __slots__ = (
        "_events",
        "_had_events",
        "_hub",
        "_unflushed_size",
        "audiences",
        "channel",
        "dirty",
        "flushed",
        "kept",
        "key",
        "key_text",
        "name",
    )

    def __init__(self, hub: Hub, name: str, key: Key, key_text: str) -> None:
        self.name = name
        self.key = key
        self.key_text = key_text
        self.channel: Channel[Push] = Channel(secrets.token_hex(8), hub.horizon)
        self.audiences: dict[Hashable, Audience] = {}
        self.dirty = False
        self.flushed = 0
        self._hub = hub
        self._unflushed_size = 0
        self._events: list[tuple[int, Message]] = []  # transient, not offered yet
        self._had_events = False  # those that the tails of this tick have in them
        self.kept: dict[Subscriber, Kept] = {}  # for those who kept up until a request of theirs held the topic back

    def restart(self) -> None:
        """What has changed is not known: another epoch begins. Whoever listens is to be given a snapshot."""
        self._flush_now()
        self.channel = Channel(secrets.token_hex(8), self._hub.horizon)
        self.flushed = 0
        for kept in self.kept.values():
            kept.restart()
        for audience in self.audiences.values():
            audience.restart()

    def make_message(self, text: str) -> Message:
        """A message in the form that this hub's clients understand."""
        return self._hub.message(text)

    def now(self) -> float:
        """The hub's clock: monotonic, in seconds."""
        return self._hub.now()

    def audience(self, kind: Hashable, view: View) -> Audience:
        """The audience of that kind, made for its first member. Who is of one kind sees the same, by the same view."""
        audience = self.audiences.get(kind)
        if audience is None:
            audience = self.audiences[kind] = Audience(self, kind, view)
        return audience

    def publish(
        self,
        method: str,
        id: str | int,
        data: str,
        record: Mapping[str, Any] | None = None,
        version: int | None = None,
        is_present: bool = False,
    ) -> bool:
        """Append a change of a record; see `Push`. False: it was ignored, for a newer version is known.

        is_present: it is the record's state now, whatever was known: it may have been deleted, and added again.
        """
        if version is not None and not is_present:
            last = self.channel.get(str(id))
            if last is not None and last.body.version is not None and last.body.version > version:
                return False
        self._before_change()
        size = len(data) + 64
        channel = self.channel
        channel.put(str(id), Push(self, method, id, data, channel.seq + 1, record, version), size, self._hub.now())
        self._unflushed_size += size
        for audience in self.audiences.values():
            audience.tails.clear()
        self._hub.mark_dirty(self)
        return True

    def shows(self, id: str | int, data: str) -> bool:
        """Whether that, JSON text, is what was published last of a record."""
        last = self.channel.get(str(id))
        return last is not None and last.body.method == "upsert" and last.body.data == data

    def publish_event(self, method: str, data: str) -> None:
        """Send a transient event to those who keep up, in order with the changes."""
        self._before_change()
        message = self.make_message(messages.push(f"{self.name}:{method}", data, self.key_text))
        self._events.append((self.channel.seq, message))
        for subscriber, kept in list(self.kept.items()):
            if not kept.add(self.channel.seq, message):
                del self.kept[subscriber]
        self._unflushed_size += len(data)
        self._hub.mark_dirty(self)

    def _before_change(self) -> None:
        acting = Acting.current.get()
        if acting is not None:
            acting.hold(self)
        # A burst within one tick must not outrun the horizon under those who keep up.
        horizon = self._hub.horizon
        count = self.channel.seq - self.flushed + len(self._events)
        if count >= max(1, horizon.records // 2) or self._unflushed_size >= horizon.size // 2:
            self._flush_now()

    def _flush_now(self) -> None:
        hub = self._hub
        if hub.is_delivering:
            return  # what is being written must come first, and be written once
        hub.is_delivering = True
        try:
            for late in self.flush():
                hub.wake(late)  # now, while the tail reaches back to it and has the transient events in it
            if hub.unseen:
                hub.show_until = None
                hub.show()
        finally:
            hub.is_delivering = False
        self.forget_events()
        hub.raise_interrupt()

    def flush(self) -> list[Subscriber]:
        """Offer what is new to all who keep up. Returns those who could not take it and are behind from now on.

        Audiences whose view is the application's code are offered it by `Hub.show`.
        """
        self.dirty = False
        start, self.flushed = self.flushed, self.channel.seq
        self._unflushed_size = 0
        events, self._events = self._events, []  # what comes meanwhile, from middleware, is for the next flush
        self._had_events = self._had_events or bool(events)
        late: list[Subscriber] = []
        listening = [audience for audience in self.audiences.values() if audience.live]
        if listening:
            changes = self.channel.since(start)
            pushes = None if changes is None else [change.body for change in changes]
            for audience in listening:
                if audience.filters:
                    audience.wait(start, events)
                else:
                    late += audience.offer(start, pushes, events)
        return late

    def wait_for_view(self, audience: Audience) -> None:
        """An audience has changes that wait for its view."""
        self._hub.unseen.append(audience)

    def failed(self, what: str, error: BaseException) -> None:
        """As `Hub.failed`."""
        self._hub.failed(what, error)

    def keep_events(self, subscriber: Subscriber, audience: Audience) -> None:
        """Keep transient events, from those not offered yet on, for one who kept up and must wait for its reply."""
        kept = Kept()
        events = audience.waiting + self._events if audience.waiting else self._events
        if not events or all(kept.add(seq, message) for seq, message in events):
            self.kept[subscriber] = kept

    def forget_events(self) -> None:
        """The tick is over: transient events are not for those who come later, and what is seen may change."""
        had_events, self._had_events = self._had_events, False
        for audience in self.audiences.values():
            if had_events or audience.filters:
                audience.tails.clear()


class Audience:
    """Those subscribers of a topic who see the same of it.

    live: those who have been offered everything up to `position`, with their links; the others are behind.
    offered: frames so far.
    tails: frames of what came after a position, remembered while nothing changes.
    waits: whether changes wait for the view, which is the application's code; waiting: the transient events among them.
    """

    __slots__ = (
        "_epoch",
        "_kind",
        "_lanes",
        "_members",
        "_others",
        "_read",
        "_start",
        "filters",
        "live",
        "offered",
        "tails",
        "topic",
        "view",
        "waiting",
        "waits",
    )

    def __init__(self, topic: Topic, kind: Hashable, view: View) -> None:
        self.topic = topic
        self.live: dict[Subscriber, Link] = {}
        self.offered = 0
        self.tails: dict[int, Frame] = {}
        self._kind = kind
        self.view = view
        self.filters = view is not as_it_is  # then frames are good for a tick only: what is seen may change
        self._members = 0
        self.waits = False
        self.waiting: list[tuple[int, Message]] = []
        self._start = 0
        # Those of `live`, sorted by how they are written to, as it was so far in `session.changed`.
        self._epoch: object = None  # None: they are not sorted
        self._read = 0
        self._lanes: dict[str, Lane] = {}
        self._others: dict[Link, None] = {}

    @property
    def position(self) -> int:
        """Up to where those who keep up have been offered everything."""
        return self._start if self.waits else self.topic.flushed

    def wait(self, start: int, events: list[tuple[int, Message]]) -> None:
        """Let what came after `start` wait for the view, behind what waits already."""
        if not self.waits:
            self.waits, self._start = True, start
            self.topic.wait_for_view(self)
        self.waiting += events

    def show(self) -> list[Subscriber]:
        """Offer what waits for the view. Returns those who are behind from now on."""
        start, self.waits = self._start, False
        events, self.waiting = self.waiting, []
        if not self.live:
            return []
        changes = self.topic.channel.since(start)
        flushed = self.topic.flushed  # what came after it is for the next flush
        pushes = None if changes is None else [change.body for change in changes if change.seq <= flushed]
        return self.offer(start, pushes, events)

    def restart(self) -> None:
        """Positions begin again at 0: everybody is to be given a snapshot."""
        self.tails.clear()
        self._start = 0
        self.waiting = [(0, message) for _, message in self.waiting]

    def join(self) -> None:
        """One more member."""
        self._members += 1

    def catch_up(self, subscriber: Subscriber) -> None:
        """A member is offered what comes from now on."""
        if subscriber not in self.live:
            self.live[subscriber] = subscriber.link
            if self._epoch is not None:
                self._place(subscriber.link)

    def part(self, subscriber: Subscriber) -> bool:
        """A member is not offered any more what comes. False: it was not anyway."""
        link = self.live.pop(subscriber, None)
        if link is not None:
            self._displace(link)
        return link is not None

    def leave(self, subscriber: Subscriber) -> None:
        """One member less; the last one ends the audience."""
        self.part(subscriber)
        self._members -= 1
        if not self._members:
            self.topic.audiences.pop(self._kind, None)

    def offer(self, start: int, pushes: list[Push] | None, events: list[tuple[int, Message]]) -> list[Subscriber]:
        """Offer what came after `start` to those who keep up. Returns those who are behind from now on.

        pushes: None if the horizon has passed `start`.
        """
        try:
            frame = None
            if pushes is not None:
                frame = self.tails[start] = self.frame(pushes, events, next(iter(self.live)))
            if frame is not None and not frame.messages:
                return []
            late = list(self.live) if frame is None else self._offer(frame)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the other audiences' turn comes
            self.topic.failed(f"Changes of {self.topic.name} could not be written to all clients at once.", error)
            late = list(self.live)
        for subscriber in late:
            self.part(subscriber)
            subscriber.behind[self] = start
        return late

    def _offer(self, frame: Frame) -> list[Subscriber]:
        """Write a frame to those who keep up. Returns those to whom it could not be written."""
        self.offered += 1
        self._sort()
        forms = Forms(frame)
        for form, lane in list(self._lanes.items()):
            lane.write(forms[form])
        declined = set()
        for link in list(self._others):
            declines = link.declines
            try:
                if declines(forms[link.form]):
                    declined.add(link)
            except BaseException as error:  # noqa: BLE001 - whatever it is, the other clients' turn comes
                self.topic.failed(f"A change of {self.topic.name} could not be written to a client.", error)
                declined.add(link)
        return [subscriber for subscriber, link in self.live.items() if link in declined] if declined else []

    def _sort(self) -> None:
        """Sort anew those whose way has changed; all where that is not known, or much."""
        changed = session.changed
        if self._epoch is changed.epoch and len(changed) - self._read <= len(self.live):
            for link in changed[self._read :]:
                if self._displace(link):
                    self._place(link)
        else:
            self._lanes, self._others = {}, {}
            for link in self.live.values():
                self._place(link)
        self._epoch, self._read = changed.epoch, len(changed)

    def _place(self, link: Link) -> None:
        if link.way is None:
            self._others[link] = None
            return
        lane = self._lanes.get(link.form)
        if lane is None:
            lane = self._lanes[link.form] = lane_for(link.way)
        lane.add(link, link.way, link.declines)

    def _displace(self, link: Link) -> bool:
        """Take a link out of its place. False: it had none."""
        if link in self._others:
            del self._others[link]
            return True
        return any(lane.discard(link) for lane in self._lanes.values())

    def tail(self, seq: int, subscriber: Subscriber, events: Sequence[tuple[int, Message]] = ()) -> Frame | None:
        """The frame of the changes after a position, shared by all who ask from there; None beyond the horizon.

        events: transient ones that were kept for this subscriber alone.
        """
        frame = None if events else self.tails.get(seq)
        if frame is None:
            channel = self.topic.channel
            channel.evict(self.topic.now())
            changes = channel.since(seq)
            if changes is None:
                return None
            frame = self.frame([change.body for change in changes], events, subscriber)
            if not self.filters and not events:
                if len(self.tails) >= MAX_TAILS:
                    self.tails.clear()
                self.tails[seq] = frame
        return frame

    def frame(self, pushes: list[Push], events: Sequence[tuple[int, Message]], member: Subscriber) -> Frame:
        """Changes and transient events in one order, as a member sees them."""
        view = self._safe_view if self.filters else self.view
        if not events:
            return batch([view(push, member) for push in pushes])
        ordered = [(push.seq, 0, view(push, member)) for push in pushes] + [(seq, 1, event) for seq, event in events]
        ordered.sort(key=lambda item: item[:2])
        return batch(message for _, _, message in ordered)

    def _safe_view(self, push: Push, member: Subscriber) -> Message:
        """The view, which is the application's code; a change that it fails at is hidden."""
        try:
            return self.view(push, member)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it is, the other changes are shown
            self.topic.failed(f"A change of {self.topic.name} could not be shown; it is hidden.", error)
            return push.gone


class Kept:
    """Transient events that wait for a subscriber's own request to be answered, up to MAX_KEPT bytes."""

    __slots__ = ("_size", "events")

    def __init__(self) -> None:
        self.events: list[tuple[int, Message]] = []
        self._size = 0

    def add(self, seq: int, message: Message) -> bool:
        """False: there is no room for one more."""
        self._size += len(message.text)
        self.events.append((seq, message))
        return self._size <= MAX_KEPT

    def take(self, seq: int) -> list[tuple[int, Message]]:
        """The events up to a position, which need not be kept any more."""
        taken = [event for event in self.events if event[0] <= seq]
        self.events = self.events[len(taken) :]
        self._size -= sum(len(message.text) for _, message in taken)
        return taken

    def restart(self) -> None:
        """Positions begin anew; what is kept was before the first one."""
        self.events = [(0, message) for _, message in self.events]


class Subscriber:
    """One client's positions, and the replies that wait for it.

    owner: whose positions they are; the hub only hands it on to views.
    on_lost: called with a topic whose horizon has passed the subscriber's position; the topic is held until released.
    limit: bytes of waiting replies; see `is_full`. on_overflow: called when more than that were dropped.
    """

    __slots__ = (
        "_bounded_size",
        "_held",
        "_hub",
        "_limit",
        "_on_lost",
        "_on_overflow",
        "audiences",
        "behind",
        "link",
        "outbox",
        "outbox_size",
        "owner",
    )

    def __init__(
        self,
        hub: Hub,
        link: Link,
        limit: int,
        on_lost: Callable[[Topic], None],
        on_overflow: Callable[[], None],
        owner: Any = None,
    ) -> None:
        self.link = link
        self.owner = owner
        self.outbox: list[Message] = []
        self.outbox_size = 0
        self._bounded_size = 0  # of these
        self.audiences: dict[Topic, Audience] = {}
        self.behind: dict[Audience, int] = {}
        self._held: dict[Topic, int] = {}
        self._hub = hub
        self._limit = limit
        self._on_lost = on_lost
        self._on_overflow = on_overflow

    def send(self, text: str, *, bounded: bool = False) -> None:
        """Queue a reply or control message. It goes out with the next flush, before the changes that wait.

        bounded: close the client instead where too many of these wait; for what nothing else keeps within bounds.
            Other replies do not count: a request waits until there is room for its reply.
        """
        if bounded:
            if self._bounded_size > self._limit:
                self.outbox.clear()
                self.outbox_size = self._bounded_size = 0
                self._on_overflow()
                return
            self._bounded_size += len(text)
        self._queue(self._hub.message(text))
        self._hub.want(self)

    def _queue(self, message: Message) -> None:
        self.outbox.append(message)
        self.outbox_size += len(message.text)
        self.link.refuse()

    @property
    def is_full(self) -> bool:
        """Whether so many bytes of replies wait that no more should be asked for."""
        return self.outbox_size > self._limit

    def attach(self, topic: Topic, seq: int, kind: Hashable = None, view: View = as_it_is) -> None:
        """Listen to a topic from after a position, as a member of the audience of that kind; see `Topic.audience`.

        Who was a member already and kept up, or did until a request of its own, gets the transient events meanwhile.
        """
        audience = topic.audience(kind, view)
        old = self.audiences.get(topic)
        if old is not audience:
            audience.join()
            if old is not None:
                self._leave(old)
            self.audiences[topic] = audience
        if audience.part(self):
            topic.keep_events(self, audience)
        self.behind[audience] = seq
        self._hub.want(self)

    def position(self, topic: Topic) -> int | None:
        """Up to where the subscriber has been offered a topic's changes; None if it does not listen to it."""
        audience = self.audiences.get(topic)
        return None if audience is None else self.behind.get(audience, audience.position)

    def catch_up(self, topic: Topic, seq: int) -> None:
        """Queue what came until a position before the reply that names it: one who listens already misses nothing.

        Only for the request that holds the topic; while another one does, its changes have to wait.
        """
        audience, position = self.audiences.get(topic), self.position(topic)
        if audience is None or position is None or position >= seq or self._held.get(topic, 0) > 1:
            return
        changes = topic.channel.since(position)
        if changes is None:
            return  # it is beyond the horizon, and will be told
        kept = topic.kept.get(self)
        events = [] if kept is None else kept.take(seq)
        pushes = [change.body for change in changes if change.seq <= seq]
        for message in audience.frame(pushes, events, self).messages:
            self._queue(message)
        self.behind[audience] = seq

    @property
    def offered(self) -> int:
        """A number that changes as shared frames are written."""
        return sum([audience.offered for audience in self.audiences.values() if self in audience.live])

    def begin_anew(self, name: str) -> None:
        """Topics of that name have restarted: a position from before says nothing, and may be one that is to come."""
        for audience in self.behind:
            if audience.topic.name == name:
                self.behind[audience] = 0

    def detach(self, topic: Topic) -> None:
        """Listen to a topic no more."""
        audience = self.audiences.pop(topic, None)
        if audience is not None:
            self._leave(audience)

    def _leave(self, audience: Audience) -> None:
        audience.leave(self)
        audience.topic.kept.pop(self, None)
        self.behind.pop(audience, None)

    def hold(self, topic: Topic) -> None:
        """Deliver nothing of the topic until it is released as often as held."""
        self._held[topic] = self._held.get(topic, 0) + 1
        audience = self.audiences.get(topic)
        if audience is not None and audience.part(self):
            self.behind[audience] = audience.position if audience.waits else topic.flushed
            topic.keep_events(self, audience)

    def is_held(self, topic: Topic) -> bool:
        """Whether a topic's changes have to wait."""
        return topic in self._held

    def release(self, topic: Topic) -> None:
        """Undo one hold; what has come in the meantime is delivered."""
        left = self._held[topic] - 1
        if left:
            self._held[topic] = left
            return
        discard(self._held, topic)
        if topic in self.audiences:
            self._hub.want(self)

    def pull(self) -> Frame | None:
        """All that waits, as one frame: replies first, then the tail of each topic that the subscriber is behind on."""
        if not self.outbox and not self.behind:
            return None
        waiting: list[Message] = []
        tails: list[Frame] = []
        if self.outbox:
            waiting, self.outbox = self.outbox, []
            self.outbox_size = self._bounded_size = 0
        for audience in list(self.behind) if self.behind else ():
            topic = audience.topic
            if topic in self._held:
                continue
            if topic.dirty or audience.waits:  # its flush is under way, and brings this subscriber back here
                self._hub.want(self)
                continue
            seq = self.behind[audience]
            if audience.filters and seq not in audience.tails and not self._hub.has_time_to_show():
                self._hub.want(self)
                continue
            kept = topic.kept.pop(self, None)
            tail = audience.tail(seq, self, () if kept is None else kept.events)
            if tail is None:
                self.hold(topic)
                self._on_lost(topic)
                continue
            discard(self.behind, audience)
            audience.catch_up(self)
            if tail.messages:
                tails.append(tail)
        if len(tails) == 1 and not waiting:
            return tails[0]  # which others may share
        for tail in tails:
            waiting += tail.messages
        return batch(waiting) if waiting else None


def discard(table: dict[Any, Any], name: object) -> None:
    """Remove an entry, and with the last one the memory that the table has kept: most clients are idle."""
    table.pop(name, None)
    if not table:
        table.clear()


class Acting:
    """On whose behalf the current context runs: a request of a subscriber.

    What is published meanwhile is held back from that subscriber until `finish`, so that it sees the reply to its
    request before its own change.
    """

    current: ContextVar[Acting | None] = ContextVar("backsync_acting", default=None)

    __slots__ = ("_held", "_open", "subscriber", "user")

    def __init__(self, subscriber: Subscriber, user: Any = None) -> None:
        self.subscriber = subscriber
        self.user = user  # whose request it is; the hub only hands it on
        self._held: set[Topic] = set()
        self._open = True

    def hold(self, topic: Topic) -> None:
        """Hold the topic back until the reply, if the subscriber listens to it."""
        if self._open and topic not in self._held and topic in self.subscriber.audiences:
            self._held.add(topic)
            self.subscriber.hold(topic)

    def finish(self) -> None:
        """The reply is queued: let go what was held back."""
        self._open = False
        for topic in self._held:
            self.subscriber.release(topic)
        self._held.clear()
