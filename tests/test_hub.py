"""The hub against its model: whoever listens, however slowly, ends with the newest state; no models."""

from __future__ import annotations

import asyncio
import contextvars
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from backsync_asgi.hub import SHOW_TIME, Acting, Hub, Push, Subscriber, Topic, as_it_is
from backsync_asgi.limits import Horizon
from backsync_asgi.sockjs import session
from backsync_asgi.sockjs.frames import Frame, Message, refuse
from backsync_asgi.sockjs.receivers import SocketReceiver, Writer
from backsync_asgi.sockjs.session import Link, Session, Timing

LIMIT = 200  # bytes of waiting replies


class FakeLink:
    """The way to a client that reads or does not; it notes the frames and looks into them."""

    def __init__(self) -> None:
        self.subscriber: Subscriber | None = None
        self.writable = True
        self.frames: list[Frame] = []
        self.offered: list[Frame] = []
        self.declines: Callable[[Frame], object] = self.decline

    form = "frame"
    way: Any = None

    def decline(self, frame: Frame) -> bool:
        if not self.writable:
            return True
        self.offered.append(frame)
        self.frames.append(frame)
        return False

    def wake(self) -> None:
        assert self.subscriber is not None
        while self.writable and (frame := self.subscriber.pull()) is not None:
            assert frame.messages, "an empty frame is not worth a write"
            self.frames.append(frame)
        if self.writable:
            self.declines = self.decline

    def refuse(self) -> None:
        self.declines = refuse

    @property
    def messages(self) -> list[dict[str, Any]]:
        """All that came, in order."""
        return [json.loads(message.text) for frame in self.frames for message in frame.messages]

    @property
    def ids(self) -> list[Any]:
        """The ids of the changed records and the replies that came, in order."""
        return [message["data"]["id"] if "data" in message else message["reply"] for message in self.messages]


@dataclass
class Notes:
    lost: list[Topic] = field(default_factory=list)
    overflows: int = 0


def subscribe(hub: Hub, topic: Topic | None = None) -> tuple[FakeLink, Notes]:
    link, notes = FakeLink(), Notes()

    def overflow() -> None:
        notes.overflows += 1

    link.subscriber = Subscriber(hub, link, LIMIT, notes.lost.append, overflow)
    if topic is not None:
        link.subscriber.attach(topic, topic.channel.seq)
    return link, notes


def subscriber_of(link: FakeLink) -> Subscriber:
    assert link.subscriber is not None
    return link.subscriber


async def tick() -> None:
    """Let the hub's flush run: it was scheduled before this."""
    await asyncio.sleep(0)


@contextmanager
def acting_for(link: FakeLink) -> Iterator[Acting]:
    """What is published inside is published on behalf of that client."""
    acting = Acting(subscriber_of(link))
    token = Acting.current.set(acting)
    try:
        yield acting
    finally:
        Acting.current.reset(token)


def put(topic: Topic, id: str) -> None:
    topic.publish("upsert", id, json.dumps({"id": id}))


# Examples: one for each promise


async def test_what_is_published_in_one_tick_comes_in_one_frame() -> None:
    hub = Hub(Horizon())
    topic = hub.topic("M")
    link, _ = subscribe(hub, topic)
    await tick()
    for id in "abca":
        put(topic, id)
    topic.publish_event("typing", '{"id":"t"}')
    assert link.frames == []
    await tick()
    assert len(link.frames) == 1
    assert link.messages == [
        {"event": "M:upsert", "data": {"id": "b"}, "seq": 2},
        {"event": "M:upsert", "data": {"id": "c"}, "seq": 3},
        {"event": "M:upsert", "data": {"id": "a"}, "seq": 4},
        {"event": "M:typing", "data": {"id": "t"}},
    ]


class SocketLink(Link):
    """The way to a client whose socket may be written to past its transport, until something must go first."""

    def __init__(self, hub: Hub, topic: Topic) -> None:
        super().__init__()
        self.ours, self.theirs = socket.socketpair()
        self.theirs.setblocking(False)
        self.left: list[bytes] = []
        self.subscriber = Subscriber(hub, self, LIMIT, lambda topic: None, lambda: None)
        self.subscriber.attach(topic, topic.channel.seq)

    def wake(self) -> None:
        if self.ours.fileno() == -1:
            return
        while (frame := self.subscriber.pull()) is not None:
            self.ours.sendall(frame.raw)
        self.form, self.declines = "raw", self.left.append
        self._lead(self.ours.fileno())

    def read(self) -> list[Any]:
        """The ids of what has come."""
        ids, got = [], b""
        with suppress(BlockingIOError):
            got = self.theirs.recv(65_536)
        while got:
            text, got = got[2 : 2 + got[1]], got[2 + got[1] :]
            ids.append(json.loads(text)["data"]["id"])
        return ids

    def close(self) -> None:
        self.refuse()
        self.ours.close()
        self.theirs.close()


class SendClient:
    """A client behind a session, as ASGI's `send` reaches it; what middleware does there, `before_send` does."""

    def __init__(self, hub: Hub, topic: Topic, before_send: Callable[[Any], None] = lambda event: None) -> None:
        self.before_send = before_send
        self.events: list[Any] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.caught_up = asyncio.Event()
        self.session = Session(Timing())
        self.subscriber = Subscriber(hub, self.session, LIMIT, lambda topic: None, lambda: None)
        self.session.endpoint = cast(Any, self)
        writer = Writer(self.send)
        writer.on_writability(self.session.writability_changed)
        self.session.accept()
        self.session.attach(SocketReceiver(writer, raw=True))
        self.subscriber.attach(topic, topic.channel.seq)

    def pull(self) -> Frame | None:
        frame = self.subscriber.pull()
        if frame is None and len(self.ids) > 1:
            self.caught_up.set()
        return frame

    async def send(self, event: Any) -> None:
        self.before_send(event)
        if not self.reads.is_set():
            await self.reads.wait()
        self.events.append(event)

    @property
    def ids(self) -> list[Any]:
        return [json.loads(event["text"])["data"]["id"] for event in self.events if "text" in event]


async def test_sockets_are_written_to_until_something_must_go_first_or_they_are_closed() -> None:
    hub = Hub(Horizon())
    topic = hub.topic("M")
    with closing(SocketLink(hub, topic)) as one, closing(SocketLink(hub, topic)) as two:
        with closing(SocketLink(hub, topic)) as gone:
            link, _ = subscribe(hub, topic)
            await tick()
            put(topic, "a")
            await tick()
            assert [one.read(), two.read(), gone.read(), link.ids] == [["a"]] * 4
            put(topic, "b")
            one.subscriber.send('{"data":{"id":"reply"}}')
        await tick()
        assert [one.read(), two.read(), link.ids] == [["reply", "b"], ["b"], ["a", "b"]]
        two.subscriber.detach(topic)
        put(topic, "c")
        await tick()
        assert [one.read(), two.read(), link.ids] == [["c"], [], ["a", "b", "c"]]
        assert one.left == two.left == gone.left == [], "nothing had to go to a transport"


ACTS = ["put", "reply", "reply and put", "leave", "come", "close"]


@given(
    acts=st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 4)), max_size=40),
    longest=st.sampled_from([1, 2, 7, 1_000]),
)
@example(acts=[("put", 0), *[("reply", number) for number in range(5)] * 2, ("put", 0)], longest=1_000)
@example(acts=[("put", 0), ("close", 1), ("put", 0)], longest=1)
def test_whatever_sockets_do_each_gets_what_is_its_own_and_the_others_nothing(
    acts: list[tuple[str, int]], longest: int
) -> None:
    """Also where a number becomes another client's, and where so much has changed that all are sorted anew."""

    async def run() -> None:
        hub = Hub(Horizon())
        topic = hub.topic("M")
        links = [stack.enter_context(closing(SocketLink(hub, topic))) for _ in range(5)]
        present = {*range(5)}
        await tick()
        for count, (act, number) in enumerate(acts):
            link, expected = links[number], dict[int, list[str]]()
            if act in ("reply", "reply and put"):
                link.subscriber.send('{"data":{"id":"reply"}}')
                expected = {number: ["reply"]}
            if act in ("put", "reply and put"):
                put(topic, str(count))
                expected |= {at: [*expected.get(at, []), str(count)] for at in present}
            if act == "come":
                link.subscriber.attach(topic, topic.channel.seq)
                present.add(number)
            if act in ("leave", "close"):
                link.subscriber.detach(topic)
                present.discard(number)
            if act == "close":
                link.close()
                links[number] = stack.enter_context(closing(SocketLink(hub, topic)))
                present.add(number)
            await tick()
            assert [it.read() for it in links] == [expected.get(at, []) for at in range(5)]
        assert not any(it.left for it in links), "nothing had to go to a transport"

    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "MAX_CHANGED", longest)
        asyncio.run(run())


async def test_who_stops_reading_within_a_broadcast_is_behind_and_catches_up_when_it_reads_again() -> None:
    hub = Hub(Horizon())
    topic = hub.topic("M")
    clients = [SendClient(hub, topic) for _ in range(3)]
    slow = clients[1]
    await tick()
    put(topic, "a")
    await tick()
    assert [client.ids for client in clients] == [["a"]] * 3
    slow.reads.clear()
    for id in "bcd":  # "b" is on its way when it is found that nobody reads
        put(topic, id)
        await tick()
    put(topic, "c")
    await tick()
    assert [client.ids for client in clients] == [["a", "b", "c", "d", "c"], ["a"], ["a", "b", "c", "d", "c"]]
    slow.reads.set()
    async with asyncio.timeout(5):
        await slow.caught_up.wait()
    assert slow.ids == ["a", "b", "d", "c"]
    put(topic, "e")
    await tick()
    assert [client.ids[-1] for client in clients] == ["e"] * 3


async def test_a_burst_that_middleware_publishes_as_it_sends_overtakes_nothing() -> None:
    hub = Hub(Horizon(records=4))
    topic, other = hub.topic("M"), hub.topic("Other")

    def burst(event: Any) -> None:
        if '"M:' in event.get("text", ""):
            for id in "xyx":
                put(other, id)

    clients = [SendClient(hub, topic, burst), SendClient(hub, topic)]
    for client in clients:
        client.subscriber.attach(other, 0)
    await tick()
    slow = clients[1]
    slow.reads.clear()
    for id in "ab":
        put(topic, id)
        await tick()
    slow.reads.set()
    async with asyncio.timeout(5):
        await slow.caught_up.wait()
    await tick()
    for client in clients:
        assert [id for id in client.ids if id in "ab"] == ["a", "b"]
        assert [id for id in client.ids if id in "xy"][-2:] == ["y", "x"]


async def test_a_transient_event_that_middleware_publishes_as_it_sends_comes_once_to_all() -> None:
    hub = Hub(Horizon())
    topic, other = hub.topic("M"), hub.topic("Other")

    def tell(event: Any) -> None:
        if '"M:upsert' in event.get("text", ""):
            for told in (topic, other):
                told.publish_event("sent", '{"id":"sent"}')

    clients = [SendClient(hub, topic, tell), SendClient(hub, topic)]
    clients[1].subscriber.attach(topic, 0, "another kind")
    for client in clients:
        client.subscriber.attach(other, 0)
    await tick()
    put(other, "b")  # it is flushed first, and once more because of the event
    put(topic, "a")
    await tick()
    await tick()
    assert [client.ids for client in clients] == [["b", "a", "sent", "sent"]] * 2


async def test_a_change_is_encoded_once_however_many_listen() -> None:
    made: list[str] = []
    quoted: list[str] = []

    class CountingMessage(Message):
        __slots__ = ()

        def __init__(self, text: str) -> None:
            made.append(text)
            super().__init__(text)

        @property
        def quoted(self) -> bytes:
            if self._quoted is None:
                quoted.append(self.text)
            return super().quoted

    hub = Hub(Horizon(), CountingMessage)
    topic = hub.topic("M")
    links = [subscribe(hub, topic)[0] for _ in range(50)]
    await tick()
    put(topic, "a")
    put(topic, "b")
    await tick()
    frames = {id(frame) for link in links for frame in link.frames}
    assert len(frames) == 1
    for link in links:
        assert json.loads(link.frames[0].body[1:])
    assert len(made) == len(quoted) == 2


async def test_all_who_are_behind_at_the_same_position_share_a_frame_too() -> None:
    hub = Hub(Horizon())
    topic = hub.topic("M")
    links = [subscribe(hub, topic)[0] for _ in range(20)]
    await tick()
    for link in links:
        link.writable = False
    put(topic, "a")
    await tick()
    put(topic, "a")
    put(topic, "b")
    await tick()
    for link in links:
        link.writable = True
        link.wake()
    assert {len(link.frames) for link in links} == {1}
    assert len({id(link.frames[0]) for link in links}) == 1
    assert [message["seq"] for message in links[0].messages] == [2, 3]


async def test_who_resumes_gets_the_tail_and_then_keeps_up() -> None:
    hub = Hub(Horizon())
    topic = hub.topic("M")
    for id in "abc":
        put(topic, id)
    await tick()
    link, _ = subscribe(hub)
    subscriber_of(link).attach(topic, 1)
    await tick()
    put(topic, "d")
    await tick()
    assert link.ids == ["b", "c", "d"]


async def test_nobody_is_told_of_what_was_before() -> None:
    hub = Hub(Horizon())
    topic = hub.topic("M")
    put(topic, "a")
    link, _ = subscribe(hub, topic)
    await tick()
    assert link.frames == []


async def test_who_has_left_gets_nothing_more() -> None:
    hub = Hub(Horizon())
    topic = hub.topic("M")
    link, _ = subscribe(hub, topic)
    await tick()
    put(topic, "a")
    subscriber_of(link).detach(topic)
    await tick()
    assert link.frames == []
    assert not topic.audiences


async def test_replies_go_before_changes_that_wait() -> None:
    hub = Hub(Horizon())
    topic = hub.topic("M")
    link, _ = subscribe(hub, topic)
    await tick()
    put(topic, "a")
    subscriber_of(link).send('{"reply":1}')
    subscriber_of(link).send('{"reply":2}')
    await tick()
    assert link.ids == [1, 2, "a"]
    assert len(link.frames) == 1


async def test_an_author_hears_its_reply_first_and_others_need_not_wait_for_that() -> None:
    hub = Hub(Horizon())
    topic = hub.topic("M")
    author, _ = subscribe(hub, topic)
    other, _ = subscribe(hub, topic)
    await tick()
    with acting_for(author) as acting:
        put(topic, "a")
    await tick()
    put(topic, "b")
    await tick()
    assert (author.ids, other.ids) == ([], ["a", "b"])
    subscriber_of(author).send('{"reply":1}')
    acting.finish()
    await tick()
    assert author.ids == [1, "a", "b"]


async def test_what_came_before_a_request_is_not_held_back_by_it() -> None:
    hub = Hub(Horizon())
    topic = hub.topic("M")
    author, _ = subscribe(hub, topic)
    await tick()
    put(topic, "before")
    await tick()
    with acting_for(author) as acting:
        put(topic, "own")
    await tick()
    assert author.ids == ["before"]
    acting.finish()
    await tick()
    assert author.ids == ["before", "own"]


async def test_two_requests_of_an_author_are_held_until_both_are_answered() -> None:
    hub = Hub(Horizon())
    topic = hub.topic("M")
    author, _ = subscribe(hub, topic)
    await tick()
    with acting_for(author) as first:
        put(topic, "a")
    with acting_for(author) as second:
        put(topic, "b")
    first.finish()
    await tick()
    assert author.ids == []
    second.finish()
    await tick()
    assert author.ids == ["a", "b"]


async def test_what_a_request_leaves_running_holds_nobody_back() -> None:
    hub = Hub(Horizon())
    topic = hub.topic("M")
    author, _ = subscribe(hub, topic)
    await tick()
    with acting_for(author) as acting:
        acting.finish()
        put(topic, "later")
    await tick()
    assert author.ids == ["later"]


async def test_a_transient_event_is_for_those_who_keep_up() -> None:
    hub = Hub(Horizon())
    topic = hub.topic("M")
    quick, _ = subscribe(hub, topic)
    slow, _ = subscribe(hub, topic)
    await tick()
    slow.writable = False
    put(topic, "a")
    topic.publish_event("typing", '{"id":"t"}')
    put(topic, "b")
    await tick()
    slow.writable = True
    slow.wake()
    late, _ = subscribe(hub)
    subscriber_of(late).attach(topic, 0)
    await tick()
    assert (quick.ids, slow.ids, late.ids) == (["a", "t", "b"], ["a", "b"], ["a", "b"])


async def test_an_event_reaches_a_client_that_gets_a_reply_in_the_same_tick() -> None:
    hub = Hub(Horizon())
    topic = hub.topic("M")
    link, _ = subscribe(hub, topic)
    await tick()
    topic.publish_event("typing", '{"id":"t"}')
    subscriber_of(link).send('{"reply":1}')
    await tick()
    assert link.ids == [1, "t"]


@pytest.mark.parametrize("size", [1, 400], ids=["by count", "by bytes"])
async def test_a_burst_larger_than_the_horizon_loses_nothing(size: int) -> None:
    hub = Hub(Horizon(records=10) if size == 1 else Horizon(size=4_000))
    topic = hub.topic("M")
    link, notes = subscribe(hub, topic)
    await tick()
    ids = [f"{number:0{size}}" for number in range(100)]
    for id in ids:
        put(topic, id)
    await tick()
    assert link.ids == ids
    assert notes.lost == []


async def test_a_burst_of_events_loses_nothing_and_is_not_kept() -> None:
    hub = Hub(Horizon(records=10))
    topic = hub.topic("M")
    link, _ = subscribe(hub, topic)
    await tick()
    for number in range(100):
        topic.publish_event("typing", json.dumps({"id": number}))
    await tick()
    assert link.ids == list(range(100))


async def test_a_reply_that_waits_during_a_burst_does_not_make_its_client_late() -> None:
    hub = Hub(Horizon(records=10))
    topic = hub.topic("M")
    link, notes = subscribe(hub, topic)
    await tick()
    subscriber_of(link).send('{"reply":"r"}')
    topic.publish_event("typing", '{"id":"t"}')
    ids = [str(number) for number in range(100)]
    for id in ids:
        put(topic, id)
    await tick()
    assert link.ids == ["r", "t", *ids]
    assert notes.lost == []


async def test_who_falls_beyond_the_horizon_is_told_once_and_held_until_released() -> None:
    hub = Hub(Horizon(records=4))
    topic = hub.topic("M")
    link, notes = subscribe(hub, topic)
    await tick()
    link.writable = False
    for id in "abcdef":
        put(topic, id)
        await tick()
    link.writable = True
    link.wake()
    link.wake()
    put(topic, "g")
    await tick()
    assert notes.lost == [topic]
    assert link.frames == []
    subscriber_of(link).attach(topic, topic.channel.seq)  # as a snapshot does
    subscriber_of(link).release(topic)
    put(topic, "h")
    await tick()
    assert link.ids == ["h"]


async def test_time_alone_can_put_a_client_beyond_the_horizon() -> None:
    now = 0.0
    hub = Hub(Horizon(age=10.0), now=lambda: now)
    topic = hub.topic("M")
    link, notes = subscribe(hub, topic)
    await tick()
    link.writable = False
    put(topic, "a")
    await tick()
    now = 11.0
    put(topic, "b")
    await tick()
    link.writable = True
    link.wake()
    assert notes.lost == [topic]


async def test_what_nothing_else_bounds_is_dropped_at_the_limit_of_replies() -> None:
    hub = Hub(Horizon())
    link, notes = subscribe(hub)
    link.writable = False
    subscriber = subscriber_of(link)
    subscriber.send('"' + "x" * LIMIT + '"')  # a single one may be larger
    await tick()
    subscriber.send('"y"')
    assert notes.overflows == 0, "who asks waits until it is not full any more"
    assert subscriber.is_full
    subscriber.send('"z"', bounded=True)
    assert notes.overflows == 0, "a large reply ends no client that says something else meanwhile"
    subscriber.send('"' + "z" * LIMIT + '"', bounded=True)
    subscriber.send('"z"', bounded=True)
    assert notes.overflows == 1
    assert (subscriber.outbox, subscriber.outbox_size) == ([], 0)


async def test_topics_to_which_nobody_listens_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kind: what a client makes by naming it lives for a time, however many it names."""
    monkeypatch.setattr("backsync_asgi.hub.MAX_IDLE", 100)
    monkeypatch.setattr("backsync_asgi.hub.SWEEP_TOPICS", 10)
    hub = Hub(Horizon())
    link, _ = subscribe(hub, hub.topic("M", ("first",)))
    put(hub.topic("M", ("first",)), "a")
    for number in range(5_000):
        put(hub.topic("M", (str(number),)), "a")
        await tick()
        assert len(hub._topics) <= 2 * 101 + 10
    assert hub.find("M", ("4999",)) is not None, "the newest are kept"
    assert hub.find("M", ("0",)) is None
    put(hub.topic("M", ("first",)), "b")
    await tick()
    assert link.ids == ["a", "b"]


async def test_topics_of_one_name_are_one_topic_and_each_run_has_its_epoch() -> None:
    hub = Hub(Horizon())
    assert hub.topic("M") is hub.topic("M")
    assert (
        len({hub.topic("M").channel.epoch, hub.topic("N").channel.epoch, Hub(Horizon()).topic("M").channel.epoch}) == 3
    )


async def test_an_idle_hub_schedules_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(Horizon())
    topic = hub.topic("M")
    subscribe(hub, topic)
    await tick()
    flushes: list[None] = []
    monkeypatch.setattr(hub, "flush", lambda: flushes.append(None))
    for _ in range(3):
        await tick()
    assert flushes == []
    put(topic, "a")
    put(topic, "b")
    await tick()
    assert len(flushes) == 1


# Any order of events


@dataclass
class Client:
    """A subscriber beside what it should have heard."""

    link: FakeLink
    notes: Notes
    base: dict[str, int] = field(default_factory=dict)  # topic → the position from which it listens
    actings: dict[int, Acting] = field(default_factory=dict)  # requests under way
    lost: set[str] = field(default_factory=set)  # topics held until a snapshot
    undisturbed: bool = True  # in this tick: it reads, listens as before and has no reply or request of its own
    replies: list[int] = field(default_factory=list)
    events: list[int] = field(default_factory=list)  # that it must get, having kept up
    seen: int = 0  # messages looked at
    last: dict[str, int] = field(default_factory=dict)  # topic → the newest position that came
    newest: dict[tuple[str, str], int] = field(default_factory=dict)
    got_replies: list[int] = field(default_factory=list)
    got_events: list[int] = field(default_factory=list)
    after_event: dict[str, int] = field(default_factory=dict)  # topic → nothing up to that position may come any more


CLIENTS = 3
clients = st.integers(0, CLIENTS - 1)
names = st.sampled_from(["M", "N"])


class HubMachine(RuleBasedStateMachine):
    """Clients that listen, stall, ask and leave while others publish. Rules fill a tick; the rule `tick` runs it."""

    has_views = False  # whether what each client sees is the application's affair, and takes a tick's time to find out

    @initialize(records=st.integers(2, 8))
    def begin(self, records: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.time = 0.0
        self.hub = Hub(Horizon(records=records), now=lambda: self.time)
        self.clients: list[Client] = []
        for _ in range(CLIENTS):
            link, notes = subscribe(self.hub)
            self.clients.append(Client(link, notes))
        self.log: list[tuple[str, str, int, int | None]] = []  # topic, id, position, the request it was made in
        self.answered: dict[int, int] = {}  # request → the client that made it; its reply is queued
        self.authors: dict[int, Client] = {}
        self.event_positions: dict[int, tuple[str, int]] = {}
        self.number = 0
        self.work: list[Callable[[], None]] = []

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.loop.close()

    def next(self) -> int:
        self.number += 1
        return self.number

    # What happens within a tick

    @rule(name=names, id=st.sampled_from("abcde"), author=st.none() | clients)
    def publish(self, name: str, id: str, author: int | None) -> None:
        self.work.append(lambda: self.do_publish(name, id, author))

    @rule(name=names, count=st.integers(5, 25))
    def publish_much(self, name: str, count: int) -> None:
        self.work += [lambda id=f"id{number}": self.do_publish(name, id, None) for number in range(count)]  # type: ignore[misc]

    def do_publish(self, name: str, id: str, author: int | None) -> None:
        topic = self.hub.topic(name)
        request = None
        acting = None
        if author is not None:
            client = self.clients[author]
            client.undisturbed = False
            if not client.actings:
                number = self.next()
                client.actings[number] = Acting(subscriber_of(client.link))
                self.authors[number] = client
            request, acting = next(iter(client.actings.items()))
        self.in_context(acting, lambda: put(topic, id))
        self.log.append((name, id, topic.channel.seq, request))

    @rule(name=names)
    def publish_event(self, name: str) -> None:
        def do() -> None:
            number = self.next()
            topic = self.hub.topic(name)
            self.event_positions[number] = (name, topic.channel.seq)
            topic.publish_event("event", json.dumps({"id": number}))
            for client in self.clients:
                if name in client.base:
                    client.events.append(number)

        self.work.append(do)

    @rule(who=clients)
    def reply(self, who: int) -> None:
        """Answer the client's request that is under way, or send it a message out of the blue."""

        def do() -> None:
            client = self.clients[who]
            client.undisturbed = False
            request, acting = client.actings.popitem() if client.actings else (self.next(), None)
            overflows = client.notes.overflows
            subscriber_of(client.link).send(json.dumps({"reply": request}), bounded=True)
            if client.notes.overflows > overflows:
                client.replies = client.got_replies[:]
            else:
                client.replies.append(request)
            if acting is not None:
                acting.finish()

        self.work.append(do)

    @rule(who=clients, name=names, resume=st.booleans())
    def attach(self, who: int, name: str, resume: bool) -> None:
        def do() -> None:
            client, topic = self.clients[who], self.hub.topic(name)
            if name in client.lost:
                return
            client.undisturbed = False
            position = topic.channel.seq
            if resume and name in client.base and client.last.get(name, 0) >= topic.channel.floor:
                position = client.last.get(name, client.base[name])
                if position < topic.channel.floor:
                    return
            subscriber_of(client.link).attach(topic, position, *self.view_of(who))
            if resume or name not in client.base:
                client.last[name] = position
            # else events from before the snapshot may come after it: the app puts them in front by `catch_up`
            client.base[name] = position

        self.work.append(do)

    @rule(who=clients, name=names)
    def detach(self, who: int, name: str) -> None:
        def do() -> None:
            client = self.clients[who]
            if name in client.lost:
                return
            client.undisturbed = False
            subscriber_of(client.link).detach(self.hub.topic(name))
            client.base.pop(name, None)

        self.work.append(do)

    @rule(who=clients)
    def stall(self, who: int) -> None:
        def do() -> None:
            self.clients[who].link.writable = False
            self.clients[who].undisturbed = False

        self.work.append(do)

    @rule(who=clients)
    def read_again(self, who: int) -> None:
        def do() -> None:
            link = self.clients[who].link
            if not link.writable:
                link.writable = True
                link.wake()

        self.work.append(do)

    @rule(who=clients)
    def snapshot(self, who: int) -> None:
        """What the app does for a client that has fallen beyond the horizon."""

        def do() -> None:
            client = self.clients[who]
            for name in client.lost:
                topic = self.hub.topic(name)
                subscriber_of(client.link).attach(topic, topic.channel.seq, *self.view_of(self.clients.index(client)))
                client.base[name] = client.last[name] = topic.channel.seq
                subscriber_of(client.link).release(topic)
            client.lost.clear()
            client.undisturbed = False

        self.work.append(do)

    @rule()
    def tick(self) -> None:
        work, self.work = self.work, []
        for client in self.clients:
            client.undisturbed = client.link.writable and not client.actings and not client.lost
            client.events = []
        offered = [len(client.link.offered) for client in self.clients]

        async def run() -> None:
            for do in work:
                do()
                self.check()  # much in one tick may be written in its middle
            await tick()
            while self.hub.unseen or any(client.link.writable and is_late(client) for client in self.clients):
                self.check()
                await tick()

        self.loop.run_until_complete(run())
        self.check()
        for client in self.clients:
            if client.undisturbed and not self.has_views:
                assert not client.lost, "who keeps up is never lost"
                recent = client.got_events[len(client.got_events) - len(client.events) :]
                assert self.by_topic(recent) == self.by_topic(client.events)  # topics have no order among them
            self.check_complete(client)
        if not self.has_views:
            self.check_shared(offered)

    def view_of(self, who: int) -> tuple[Any, ...]:
        """The kind of a client's audience, and its view."""
        if not self.has_views:
            return ()

        def view(push: Push, subscriber: Subscriber) -> Message:
            self.time += SHOW_TIME
            return push.message

        return who % 2, view

    def by_topic(self, events: list[int]) -> list[int]:
        """The same events, those of one topic behind those of the other."""
        return sorted(events, key=lambda number: self.event_positions[number][0])

    def in_context(self, acting: Acting | None, do: Callable[[], None]) -> None:
        context = contextvars.copy_context()
        context.run(Acting.current.set, acting)
        context.run(do)

    # What holds

    def check(self) -> None:
        """Look at what has come since the last look."""
        for client in self.clients:
            messages = client.link.messages
            for message in messages[client.seen :]:
                self.look_at(client, message)
            client.seen = len(messages)
            self.note_lost(client)
            subscriber = subscriber_of(client.link)
            assert subscriber.outbox_size <= LIMIT + len('{"reply": 10000}')

    def look_at(self, client: Client, message: dict[str, Any]) -> None:
        if "reply" in message:
            client.got_replies.append(message["reply"])
            assert client.got_replies == client.replies[: len(client.got_replies)], "replies come in order, each once"
            return
        name, _, method = message["event"].partition(":")
        assert name in client.base, "nothing of a topic that the client does not listen to"
        assert name not in client.lost, "nothing while a snapshot is on its way"
        if method == "event":
            number = message["data"]["id"]
            _, position = self.event_positions[number]
            assert number not in client.got_events
            assert client.last.get(name, 0) <= position, "an event comes before the changes that were made after it"
            client.got_events.append(number)
            client.after_event[name] = position
            return
        seq, id = message["seq"], message["data"]["id"]
        assert seq > client.last.get(name, 0), "positions grow"
        assert seq > client.base[name]
        published = next(entry for entry in self.log if (entry[0], entry[2]) == (name, seq))
        assert published[1] == id
        request = published[3]
        if request is not None and self.authors[request] is client:
            assert request not in client.actings, "nobody hears of its own change before its request is answered"
            assert request in client.got_replies or request not in client.replies
        client.last[name] = seq
        client.newest[name, id] = seq

    def note_lost(self, client: Client) -> None:
        for topic in client.notes.lost:
            assert topic.name not in client.lost, "told once"
            assert client.last.get(topic.name, client.base[topic.name]) < topic.channel.floor, "not without need"
            client.lost.add(topic.name)
        client.notes.lost.clear()

    def check_complete(self, client: Client) -> None:
        """Who reads, and has no request under way, has the newest state of all that has changed."""
        if not client.link.writable or client.actings:
            return
        assert client.got_replies == client.replies
        for name, base in client.base.items():
            if name not in client.lost:
                newest = {id: seq for topic, id, seq, _ in self.log if topic == name and seq > base}
                for id, seq in newest.items():
                    assert client.newest.get((name, id)) == seq, f"{name} {id}"

    def check_shared(self, before: list[int]) -> None:
        """A frame that two clients got by an offer is one object: equal ones were not made twice."""
        frames = {
            id(frame): frame
            for client, count in zip(self.clients, before, strict=True)
            for frame in client.link.offered[count:]
        }
        texts = [tuple(message.text for message in frame.messages) for frame in frames.values()]
        assert len(set(texts)) == len(texts)


def is_late(client: Client) -> bool:
    """Whether changes wait for a client that nothing holds back."""
    subscriber = subscriber_of(client.link)
    return any(not subscriber.is_held(audience.topic) for audience in subscriber.behind)


class ViewMachine(HubMachine):
    """The same where each frame takes as long as a tick may: what is shown is spread over many."""

    has_views = True


HubMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
test_the_hub_keeps_its_promises_in_any_order_of_events = HubMachine.TestCase
ViewMachine.TestCase.settings = HubMachine.TestCase.settings
test_the_hub_keeps_its_promises_where_views_take_long = ViewMachine.TestCase


# Views, which are the application's code


async def test_a_view_that_takes_long_lets_others_have_their_turn_and_loses_nothing() -> None:
    """Kind: one write costs work for each subscriber, all of it in one turn of the event loop."""
    time = 0.0
    hub = Hub(Horizon(), now=lambda: time)
    topic = hub.topic("M")

    def view(push: Push, subscriber: Subscriber) -> Message:
        nonlocal time
        time += SHOW_TIME
        return push.message

    links = []
    for number in range(5):
        link, _ = subscribe(hub)
        subscriber_of(link).attach(topic, 0, number, view)
        links.append(link)
    await tick()
    topic.publish_event("typing", "1")
    put(topic, "a")
    came = []
    for _ in range(6):
        await tick()
        came.append([len(link.messages) for link in links])
    assert came[0] == [2, 0, 0, 0, 0], "one in each tick"
    assert came[-1] == [2, 2, 2, 2, 2]
    assert hub.flushes == 1 + 5
    put(topic, "b")
    await tick()
    put(topic, "b")  # meanwhile
    for _ in range(10):
        await tick()
    expected = ["M:typing", "M:upsert", "M:upsert"]
    assert [message["event"] for message in links[4].messages] == expected, "of a record its newest state"
    assert [message["event"] for message in links[0].messages] == [*expected, "M:upsert"]


async def test_a_view_that_fails_hides_a_change_and_stops_no_other() -> None:
    hub = Hub(Horizon())
    topic, other = hub.topic("M"), hub.topic("Other")

    def view(push: Push, subscriber: Subscriber) -> Message:
        if push.id == "bad":
            raise SystemExit
        return push.message

    link, _ = subscribe(hub, other)
    subscriber_of(link).attach(topic, 0, "kind", view)
    await tick()
    for id in ("bad", "good"):
        put(topic, id)
    put(other, "x")
    await tick()
    shown = [(message["event"], message["data"]["id"]) for message in link.messages]
    assert sorted(shown) == [("M:delete", "bad"), ("M:upsert", "good"), ("Other:upsert", "x")]


class BrokenLink(FakeLink):
    """The way to a client whose transport fails."""

    def decline(self, frame: Frame) -> bool:
        raise SystemExit

    def wake(self) -> None:
        raise SystemExit


async def test_a_link_that_fails_stops_no_other() -> None:
    hub = Hub(Horizon())
    topic = hub.topic("M")
    broken = BrokenLink()
    broken.subscriber = Subscriber(hub, broken, LIMIT, lambda topic: None, lambda: None)
    broken.subscriber.attach(topic, 0)
    before, _ = subscribe(hub, topic)
    await tick()
    topic.audience(None, as_it_is).catch_up(broken.subscriber)
    after, _ = subscribe(hub, topic)
    await tick()
    for id in "ab":
        put(topic, id)
        await tick()
    assert before.ids == after.ids == ["a", "b"]


async def test_ctrl_c_during_a_delivery_is_raised_after_it() -> None:
    hub = Hub(Horizon())
    topic = hub.topic("M")

    def view(push: Push, subscriber: Subscriber) -> Message:
        raise KeyboardInterrupt

    subscriber_of(subscribe(hub)[0]).attach(topic, 0, "kind", view)
    link, _ = subscribe(hub, topic)
    hub.flush()
    put(topic, "a")
    with pytest.raises(KeyboardInterrupt):
        hub.flush()
    assert link.ids == ["a"]
    assert not hub.is_delivering


# Transient events and a subscriber's own requests


async def test_who_waits_for_its_reply_gets_the_transient_events_of_that_time_after_it() -> None:
    hub = Hub(Horizon())
    topic = hub.topic("M")
    (link, _), (other, _) = subscribe(hub, topic), subscribe(hub, topic)
    await tick()
    topic.publish_event("before", "0")
    with acting_for(link) as acting:
        topic.publish("upsert", 1, '{"id":1}')
        topic.publish_event("typing", "1")
    await tick()
    topic.publish_event("typing", "2")
    topic.publish("upsert", 2, '{"id":2}')
    await tick()
    assert link.messages == [], "nothing of the topic comes before the reply"
    subscriber_of(link).send('{"reply":"r"}')
    acting.finish()
    await tick()
    said = [message.get("event", "reply") for message in link.messages]
    assert said == ["reply", "M:before", "M:upsert", "M:typing", "M:typing", "M:upsert"]
    assert [message["event"] for message in other.messages] == said[1:]
    topic.publish_event("after", "3")
    await tick()
    assert link.messages[-1]["event"] == "M:after"
    assert not topic.kept


async def test_kept_transient_events_have_a_bound() -> None:
    hub = Hub(Horizon(records=4))
    topic = hub.topic("M")
    link, _ = subscribe(hub, topic)
    await tick()
    with acting_for(link) as acting:
        for number in range(200):
            topic.publish_event("typing", '"' + "x" * 1_000 + f'{number}"')
        assert not topic.kept
        topic.publish("upsert", 1, '{"id":1}')
    acting.finish()
    await tick()
    assert [message["event"] for message in link.messages] == ["M:upsert"], "as for anybody who is behind"


async def test_who_was_behind_already_gets_no_transient_events_for_waiting() -> None:
    hub = Hub(Horizon())
    topic = hub.topic("M")
    link, _ = subscribe(hub, topic)
    await tick()
    link.writable = False
    topic.publish("upsert", 1, '{"id":1}')
    await tick()
    with acting_for(link) as acting:
        topic.publish_event("typing", "1")
    acting.finish()
    link.writable = True
    subscriber_of(link).link.wake()
    await tick()
    assert [message["event"] for message in link.messages] == ["M:upsert"]


async def test_who_leaves_while_it_waits_leaves_nothing_behind() -> None:
    hub = Hub(Horizon())
    topic = hub.topic("M")
    link, _ = subscribe(hub, topic)
    await tick()
    with acting_for(link) as acting:
        topic.publish_event("typing", "1")
    assert topic.kept
    subscriber_of(link).detach(topic)
    acting.finish()
    assert not topic.kept
    assert not topic.audiences


def again(link: FakeLink, topic: Topic, seq: int) -> None:
    subscriber_of(link).attach(topic, seq)


@pytest.mark.parametrize("held", ["before", "after"])
async def test_who_subscribes_anew_gets_the_transient_events_meanwhile_in_order_and_once(held: str) -> None:
    hub = Hub(Horizon())
    topic = hub.topic("M")
    link, _ = subscribe(hub, topic)
    await tick()
    topic.publish_event("same_tick", "0")
    acting = Acting(subscriber_of(link))
    if held == "before":
        acting.hold(topic)
        topic.publish_event("held", "1")
    again(link, topic, topic.channel.seq)
    acting.hold(topic)
    topic.publish_event("meanwhile", "2")
    put(topic, "a")
    await tick()
    topic.publish_event("later", "3")
    put(topic, "b")
    await tick()
    assert link.messages == []
    again(link, topic, 0)  # a second try, whose answer says position 1
    subscriber_of(link).catch_up(topic, 1)
    subscriber_of(link).send('{"event":"reply"}')
    acting.finish()
    await tick()
    said = [message["event"] for message in link.messages]
    expected = ["same_tick", *(["held"] if held == "before" else []), "meanwhile", "upsert", "later"]
    assert said == [*(f"M:{event}" for event in expected), "reply", "M:upsert"]
    await tick()
    assert len(link.messages) == len(said)
    assert not topic.kept


async def test_who_was_behind_gets_no_transient_events_for_subscribing_anew() -> None:
    hub = Hub(Horizon())
    topic = hub.topic("M")
    link, _ = subscribe(hub, topic)
    await tick()
    link.writable = False
    put(topic, "a")
    await tick()
    again(link, topic, 0)
    topic.publish_event("typing", "1")
    link.writable = True
    await tick()
    assert [message["event"] for message in link.messages] == ["M:upsert"]


async def test_transient_events_outlive_the_begin_of_another_epoch() -> None:
    hub = Hub(Horizon())
    topic = hub.topic("M")
    (link, _), (waits, _) = subscribe(hub, topic), subscribe(hub, topic)
    await tick()
    put(topic, "a")
    await tick()
    subscriber_of(waits).hold(topic)
    topic.publish_event("before", "1")
    topic.restart()
    for it in (link, waits):
        subscriber_of(it).hold(topic)
    topic.publish_event("meanwhile", "2")
    put(topic, "b")
    for it in (link, waits):
        again(it, topic, 0)
        subscriber_of(it).release(topic)
    subscriber_of(waits).release(topic)
    await tick()
    said = ["M:upsert", "M:before", "M:meanwhile", "M:upsert"]
    assert [message["event"] for message in link.messages] == said
    assert [message["event"] for message in waits.messages] == said
