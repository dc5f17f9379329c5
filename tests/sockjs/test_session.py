"""The session as a state machine with a virtual clock: every order of events keeps its promises; runs no server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backsync_asgi.sockjs import session
from backsync_asgi.sockjs.frames import HEARTBEAT, OPEN, Close, Frame, Message, batch
from backsync_asgi.sockjs.session import GOING_AWAY, INTERRUPTED, OCCUPIED, TIMED_OUT, Session, Timing

TICK = 1.0  # seconds between two sweeps
TIMING = Timing(heartbeat=7.0, disconnect_delay=3.0, poll_duration=5.0, stream_duration=9.0, write_deadline=4.0)


@dataclass
class FakeEndpoint:
    """An application that has messages waiting and notes what it is told."""

    session: Session | None = None
    waiting: list[Message] = field(default_factory=list)
    pulled: list[str] = field(default_factory=list)
    got: list[str | bytes] = field(default_factory=list)
    ends: list[tuple[int, str]] = field(default_factory=list)
    urgent: bool = False
    last_words: str | None = None

    behind = False

    def received(self, message: str | bytes) -> None:
        self.got.append(message)

    async def caught_up(self) -> None:
        """There is always room."""

    def pull(self) -> Frame | None:
        if not self.waiting:
            return None
        frame = batch(self.waiting)
        self.pulled += [message.text for message in self.waiting]
        self.waiting = []
        return frame

    def closed(self, code: int, reason: str) -> None:
        self.ends.append((code, reason))
        if self.last_words is not None:
            self.waiting.append(Message(self.last_words))

    def tick(self, now: float) -> bool:
        return False


@dataclass
class FakeReceiver:
    """A response or socket: `takes` frames in all (None: any number); blocked while its peer does not read."""

    takes: int | None = None
    lifetime: float | None = None
    way: Any = None
    blocked: bool = False
    frames: list[Frame] = field(default_factory=list)
    over: bool = False
    aborted: bool = False
    left: int = 0  # bytes that the peer has not taken
    on_last: Callable[[], None] | None = None

    @property
    def writable(self) -> bool:
        return not self.blocked

    def unsent(self) -> object:
        return self.left

    def fills(self, frame: Frame) -> bool:
        return self.takes is not None and len(self.frames) + 1 >= self.takes

    form = "frame"

    def declines(self, frame: Frame) -> bool:
        if not self.writable or self.fills(frame):
            return True
        self.write(frame, last=False)
        return False

    def write(self, frame: Frame, last: bool) -> None:
        assert not self.over, "nothing is written after the last frame"
        assert not self.blocked or frame is OCCUPIED, "nothing is written to a receiver that cannot take it"
        self.frames.append(frame)
        self.over = last
        if last and self.on_last is not None:
            self.on_last()

    def abort(self) -> None:
        self.aborted = True

    @property
    def texts(self) -> list[str]:
        return [frame.text for frame in self.frames]


def poll() -> FakeReceiver:
    return FakeReceiver(takes=1, lifetime=TIMING.poll_duration)


def stream(takes: int = 4) -> FakeReceiver:
    return FakeReceiver(takes=takes, lifetime=TIMING.stream_duration)


def open_session() -> tuple[Session, FakeEndpoint]:
    session, endpoint = Session(TIMING), FakeEndpoint()
    session.endpoint = endpoint
    session.accept()
    return session, endpoint


# Examples: one for each promise


def test_a_client_is_greeted_once_however_it_comes_back() -> None:
    session, _ = open_session()
    first, second = poll(), stream()
    session.attach(first)
    session.attach(second)
    assert (first.texts, second.texts) == (["o"], [])


def test_a_session_that_is_not_accepted_keeps_its_client_waiting() -> None:
    session = Session(TIMING)
    session.endpoint = FakeEndpoint(waiting=[Message("x")])
    receiver = stream()
    session.attach(receiver)
    assert receiver.texts == []
    session.accept()
    assert receiver.texts == ["o", 'a["x"]']


def test_a_refused_session_is_never_greeted() -> None:
    session, endpoint = Session(TIMING), FakeEndpoint()
    session.endpoint = endpoint
    session.close(4503, "No")
    receiver = poll()
    session.attach(receiver)
    assert receiver.texts == ['c[4503,"No"]']
    assert endpoint.ends == [(4503, "No")]


def test_a_second_receiver_is_turned_away_and_the_first_not_disturbed() -> None:
    session, endpoint = open_session()
    first, second = stream(), poll()
    session.attach(first)
    session.attach(second)
    assert (second.frames, second.over) == ([OCCUPIED], True)
    session.detach(second)
    endpoint.waiting.append(Message("x"))
    session.wake()
    assert first.texts == ["o", 'a["x"]']


def test_a_client_that_polls_again_at_once_is_not_turned_away() -> None:
    session, endpoint = open_session()
    second = stream()
    first = poll()
    first.on_last = lambda: session.attach(second)
    endpoint.waiting.append(Message("x"))
    session.attach(first)
    assert (first.texts, second.texts) == (["o"], ['a["x"]'])


def test_all_that_waits_comes_in_one_frame() -> None:
    session, endpoint = open_session()
    session.attach(poll())
    endpoint.waiting += [Message("1"), Message("2")]
    session.wake()
    endpoint.waiting.append(Message("3"))
    receiver = poll()
    session.attach(receiver)
    assert receiver.texts == ['a["1","2","3"]']


def test_a_shared_frame_goes_out_at_once_or_not_at_all() -> None:
    frame = batch([Message("x")])
    waiting = Session(TIMING)
    waiting.attach(FakeReceiver())
    assert waiting.declines(frame), "it is not accepted, so its client is not greeted yet"
    session, _ = open_session()
    assert session.declines(frame), "nobody is there"
    receiver = FakeReceiver()
    session.attach(receiver)
    assert not session.declines(frame)
    assert receiver.frames[-1] is frame
    receiver.blocked = True
    assert session.declines(frame), "the client does not read"
    polled, _ = open_session()
    polled.attach(poll())
    polled.attach(poll())
    assert polled.declines(frame), "the response would be over: there may be more to put into it"


def test_what_waits_is_written_before_the_goodbye() -> None:
    session, endpoint = open_session()
    receiver = stream()
    session.attach(receiver)
    receiver.blocked = True
    endpoint.last_words = "bye"
    endpoint.waiting.append(Message("x"))
    session.go_away()
    assert receiver.texts == ["o"]
    receiver.blocked = False
    session.wake()
    assert receiver.texts == ["o", 'a["x","bye"]', GOING_AWAY.text]
    assert endpoint.ends == [(1012, "Service restart")]


def test_the_first_goodbye_counts() -> None:
    session, endpoint = open_session()
    session.close(3000, "First")
    session.close(3001, "Second")
    session.go_away()
    receiver = poll()
    session.attach(receiver)
    session.attach(receiver := poll())
    assert receiver.texts == ['c[3000,"First"]']
    assert endpoint.ends == [(3000, "First")]


def test_a_code_that_is_never_sent_is_refused_and_the_session_goes_on() -> None:
    session, _ = open_session()
    with pytest.raises(ValueError, match="expected 1000-1003"):
        session.close(1006)
    assert session.close_frame is None


def test_the_close_frame_is_served_again_for_as_long_as_a_client_may_stay_away() -> None:
    session, _ = open_session()
    session.attach(poll())
    session.tick(0)
    session.tick(2)
    session.close(3000, "Go away!")
    for now in (3.0, 5.0):
        assert session.tick(now)
        session.attach(receiver := poll())
        assert receiver.texts == ['c[3000,"Go away!"]']
    assert session.tick(6.0)
    assert not session.tick(9.0)


def test_nothing_is_received_after_the_end() -> None:
    session, endpoint = open_session()
    session.received("1")
    session.close()
    session.received("2")
    assert endpoint.got == ["1"]


def test_a_session_whose_request_breaks_off_ends() -> None:
    session, endpoint = open_session()
    session.attach(receiver := stream())
    session.detach(receiver)
    assert endpoint.ends == [(1006, "Connection interrupted")]
    session.attach(receiver := poll())
    assert receiver.frames == [INTERRUPTED]


def test_a_session_that_nobody_receives_from_times_out() -> None:
    session, endpoint = open_session()
    session.attach(poll())
    assert session.tick(100)
    assert session.tick(102.9)
    assert not session.tick(103)
    assert endpoint.ends == [(1006, "Connection timed out")]


def test_a_poll_that_waits_is_ended_by_a_heartbeat() -> None:
    session, _ = open_session()
    session.attach(poll())
    session.attach(receiver := poll())
    for now in range(5):
        session.tick(now)
    assert receiver.frames == []
    session.tick(5)
    assert (receiver.frames, receiver.over) == ([HEARTBEAT], True)


def test_silence_is_broken_by_heartbeats_and_by_nothing_else() -> None:
    session, endpoint = open_session()
    receiver = FakeReceiver()
    session.attach(receiver)
    for now in range(5):
        session.tick(now)
    endpoint.waiting.append(Message("x"))
    session.wake()
    for now in range(5, 20):
        session.tick(now)
    # Noted at 5, so the first beat is due at 12 and the next, after the tick that notes it, at 19 or 20.
    assert receiver.texts[:3] == ["o", 'a["x"]', "h"]
    assert receiver.texts.count("h") in (1, 2)


def test_a_socket_that_does_not_read_changes_is_left_alone() -> None:
    session, endpoint = open_session()
    receiver = FakeReceiver()
    session.attach(receiver)
    receiver.blocked = True
    for now in range(100):
        session.tick(now)
    assert not receiver.aborted
    assert endpoint.ends == []


@pytest.mark.parametrize("lifetime", [None, TIMING.stream_duration])
def test_a_client_on_a_slow_line_that_takes_something_is_not_given_up(lifetime: float | None) -> None:
    """Kind: a deadline for something long counts the time in which nothing was taken, not the whole time."""
    session, endpoint = open_session()
    receiver = FakeReceiver(lifetime=lifetime)
    session.attach(receiver)
    receiver.blocked = endpoint.urgent = True
    for second in range(60):
        receiver.left = 1000 - second // 3  # something each three seconds
        session.tick(second)
        assert not receiver.aborted
    session.close(3000)
    for second in range(60, 100):
        receiver.left = 1000 - second // 3
        session.tick(second)
        assert not receiver.aborted, "the close frame waits, too"
    for second in range(100, 100 + 2 + int(TIMING.write_deadline)):
        session.tick(second)
    assert receiver.aborted


def test_a_client_that_does_not_take_a_reply_is_given_up_at_the_write_deadline() -> None:
    session, endpoint = open_session()
    receiver = FakeReceiver()
    session.attach(receiver)
    receiver.blocked = endpoint.urgent = True
    for now in range(4):
        session.tick(now)
    assert not receiver.aborted
    session.tick(4)
    assert receiver.aborted
    assert endpoint.ends == [(1006, "Connection interrupted")]


def test_a_client_that_takes_its_replies_slowly_is_not_given_up() -> None:
    session, endpoint = open_session()
    receiver = FakeReceiver()
    session.attach(receiver)
    endpoint.urgent = True  # there is always one more
    for now in range(100):
        receiver.blocked = True
        session.tick(now)
        receiver.blocked = False
        endpoint.waiting.append(Message(str(now)))
        session.wake()
    assert not receiver.aborted
    assert endpoint.ends == []


def test_a_client_that_does_not_take_the_goodbye_is_given_up_too() -> None:
    session, endpoint = open_session()
    receiver = FakeReceiver()
    session.attach(receiver)
    receiver.blocked = True
    session.close(3000)
    for now in range(5):
        session.tick(now)
    assert receiver.aborted
    assert endpoint.ends == [(3000, "")], "the application hears of one end"


def test_a_stream_that_nobody_reads_is_given_up_after_its_time() -> None:
    session, endpoint = open_session()
    receiver = stream()
    session.attach(receiver)
    receiver.blocked = True
    for now in range(13):
        session.tick(now)
    assert not receiver.aborted
    session.tick(13)
    assert receiver.aborted
    assert [code for code, _ in endpoint.ends] == [1006]


def test_an_endpoint_may_close_its_session_as_it_ticks() -> None:
    class Impatient(FakeEndpoint):
        def tick(self, now: float) -> bool:
            assert self.session is not None
            self.session.close(3000, "Too slow")
            return False

    session, _ = open_session()
    session.endpoint = endpoint = Impatient(session)
    receiver = FakeReceiver()
    session.attach(receiver)
    assert session.tick(1)
    assert receiver.texts == ["o", 'c[3000,"Too slow"]']
    assert endpoint.ends == [(3000, "Too slow")]
    forgotten_at = 1 + TIMING.disconnect_delay
    assert [session.tick(now) for now in (forgotten_at - 0.1, forgotten_at)] == [True, False], (
        "its close frame is kept, then it is forgotten"
    )


# Any order of events


class SessionMachine(RuleBasedStateMachine):
    """A session, its application and its clients doing whatever they may, while the sweep ticks once a second."""

    @initialize(last_words=st.sampled_from([None, "bye"]))
    def begin(self, last_words: str | None) -> None:
        self.session = Session(TIMING)
        self.endpoint = FakeEndpoint(last_words=last_words)
        self.session.endpoint = self.endpoint
        self.now = 0.0
        self.queued: list[str] = []
        self.receivers: list[FakeReceiver] = []
        self.turned_away: list[FakeReceiver] = []
        self.broken_off = False  # a receiver went away, or was aborted, before its last frame
        self.forgotten = False
        self.alone_since: float | None = 0.0
        self.attached_at = 0.0
        self.silent_since = 0.0
        self.frames_seen = 0
        self.ends_seen = 0
        self.port: tuple[Any, object, int] = (None, session.changed.epoch, len(session.changed))

    # What happens

    @rule()
    def accept(self) -> None:
        self.session.accept()

    @rule(kind=st.sampled_from(["poll", "stream", "socket"]), blocked=st.booleans())
    def attach(self, kind: str, blocked: bool) -> None:
        receiver = poll() if kind == "poll" else stream() if kind == "stream" else FakeReceiver()
        if kind == "socket":
            receiver.way = 3 + len(self.receivers)
        receiver.blocked = blocked
        occupied = self.session.receiver is not None
        if not occupied:
            self.receivers.append(receiver)
            self.attached_at = self.silent_since = self.now
            self.alone_since = None
        self.session.attach(receiver)
        if occupied:
            assert (receiver.frames, receiver.over) == ([OCCUPIED], True)
            self.turned_away.append(receiver)

    @precondition(lambda self: self.receivers)
    @rule(data=st.data())
    def a_request_ends(self, data: st.DataObject) -> None:
        receiver = data.draw(st.sampled_from(self.receivers + self.turned_away))
        open_before = self.session.close_frame is None
        active = self.session.receiver is receiver
        self.session.detach(receiver)
        if active:
            receiver.over = self.broken_off = True
            assert self.session.close_frame is not None
            assert not open_before or self.session.close_frame is INTERRUPTED

    @rule(texts=st.lists(st.sampled_from("abc"), min_size=1, max_size=3))
    def messages_wait(self, texts: list[str]) -> None:
        if self.session.close_frame is not None:
            return  # an application whose session has ended has nobody to write to
        texts = [f"{text}{len(self.queued) + index}" for index, text in enumerate(texts)]
        self.queued += texts
        self.endpoint.waiting += map(Message, texts)
        self.session.wake()

    @rule()
    def offer(self) -> None:
        if self.session.close_frame is not None or self.endpoint.waiting:
            return  # the hub offers to those alone for whom nothing waits
        text = f"offer{len(self.queued)}"
        frame = batch([Message(text)])
        if not self.session.declines(frame):
            assert self.receivers[-1].frames[-1] is frame
            self.queued.append(text)
            self.endpoint.pulled.append(text)

    @precondition(lambda self: self.session.receiver is not None)
    @rule()
    def the_peer_stops_reading(self) -> None:
        self.receivers[-1].blocked = True
        if self.receivers[-1].way is not None:  # whose server says so; of the others one learns by writing
            self.session.writability_changed()

    @precondition(lambda self: self.session.receiver is not None)
    @rule()
    def the_peer_reads_again(self) -> None:
        self.receivers[-1].blocked = False
        self.session.wake()

    @rule(urgent=st.booleans())
    def replies_wait(self, urgent: bool) -> None:
        self.endpoint.urgent = urgent

    @rule()
    def receive(self) -> None:
        before = len(self.endpoint.got)
        was_open = self.session.close_frame is None
        self.session.received("in")
        assert len(self.endpoint.got) == before + was_open

    @rule(code=st.sampled_from([1000, 3000, 4999]))
    def close(self, code: int) -> None:
        self.session.close(code, "Reason")

    @rule()
    def go_away(self) -> None:
        self.session.go_away()

    @rule(ticks=st.integers(1, 5))
    def time_passes(self, ticks: int) -> None:
        for _ in range(ticks):
            self.now += TICK
            self.tick()

    def tick(self) -> None:
        receiver = self.session.receiver
        alive = self.session.tick(self.now)
        self.note_what_was_written()
        if receiver is None:
            self.forgotten = self.forgotten or not alive
            return
        assert alive, "a session with a receiver is not forgotten"
        if receiver.writable:
            assert isinstance(receiver, FakeReceiver)
            if receiver.lifetime is not None and self.now - self.attached_at > receiver.lifetime + TICK:
                assert receiver.over, "a poll or stream is answered within its time and one tick"
            if not receiver.over and self.session.accepted:
                assert self.now - self.silent_since <= TIMING.heartbeat + TICK, "silence is broken by heartbeats"
        elif receiver.aborted:  # type: ignore[attr-defined]
            self.broken_off = True

    # What holds after each of it

    @property
    def written(self) -> list[Frame]:
        return [frame for receiver in self.receivers for frame in receiver.frames]

    @invariant()
    def time_is_noted(self) -> None:
        """Keep the model's own moments: since when nobody is there, since when nothing was written."""
        if self.session.receiver is None:
            ended_now = len(self.endpoint.ends) > self.ends_seen
            if self.alone_since is None or ended_now:  # the close frame is served for a full delay
                self.alone_since = self.now
        else:
            self.alone_since = None
        self.ends_seen = len(self.endpoint.ends)
        self.note_what_was_written()

    def note_what_was_written(self) -> None:
        if len(self.written) != self.frames_seen:
            self.frames_seen = len(self.written)
            self.silent_since = self.now
        if self.session.receiver is not None and self.receivers[-1].blocked:
            self.silent_since = self.now

    @invariant()
    def one_receiver_at_a_time(self) -> None:
        open_receivers = [receiver for receiver in self.receivers if not receiver.over and not receiver.aborted]
        assert len(open_receivers) == (self.session.receiver is not None)
        assert self.session.receiver in [None, *open_receivers]

    @invariant()
    def the_open_frame_comes_first_and_once(self) -> None:
        frames = [frame for frame in self.written if frame is not HEARTBEAT]
        if OPEN in frames:
            assert frames.index(OPEN) == 0
            assert frames.count(OPEN) == 1
        else:
            assert not any(frame.messages for frame in frames)

    @invariant()
    def messages_arrive_in_order_each_once(self) -> None:
        arrived = [message.text for frame in self.written for message in frame.messages]
        expected = self.queued + (["bye"] if self.endpoint.ends and self.endpoint.last_words else [])
        assert arrived == expected[: len(arrived)]
        assert arrived == self.endpoint.pulled

    @invariant()
    def nothing_is_left_waiting_while_it_can_be_written(self) -> None:
        receiver = self.session.receiver
        if receiver is not None and receiver.writable and self.session.accepted:
            assert self.session.endpoint is None or self.endpoint.waiting == []

    @invariant()
    def the_goodbye_comes_after_all_messages_and_is_the_same_each_time(self) -> None:
        closes = [frame for frame in self.written if isinstance(frame, Close)]
        assert all(frame is self.session.close_frame for frame in closes)
        if closes:
            first = next(index for index, frame in enumerate(self.written) if isinstance(frame, Close))
            assert all(isinstance(frame, Close) for frame in self.written[first:])
            gone = self.broken_off or self.session.close_frame is TIMED_OUT
            if self.session.accepted and OPEN in self.written and not gone:
                assert self.endpoint.waiting == [], "what waited is written before the goodbye"

    @invariant()
    def a_receiver_that_gets_the_goodbye_is_over(self) -> None:
        for receiver in self.receivers:
            assert receiver.over or not any(isinstance(frame, Close) for frame in receiver.frames)

    @invariant()
    def a_socket_is_written_to_past_its_transport_only_while_nothing_else_is_to_be_written(self) -> None:
        way, receiver = self.session.way, self.session.receiver
        if way is not None:
            assert receiver is self.receivers[-1]
            assert (way, self.session.declines) == (receiver.way, receiver.declines)
            assert receiver.writable
            assert OPEN in self.receivers[-1].frames or any(OPEN in before.frames for before in self.receivers)
            assert self.endpoint.waiting == []
        before, epoch, read = self.port
        is_noted = session.changed.epoch is not epoch or self.session in session.changed[read:]
        assert way == before or is_noted, "whoever has sorted its links must notice"
        self.port = (way, session.changed.epoch, len(session.changed))

    @invariant()
    def a_closed_session_keeps_no_writable_receiver(self) -> None:
        if self.session.close_frame is not None and self.session.receiver is not None:
            assert not self.session.receiver.writable

    @invariant()
    def the_application_hears_of_one_end(self) -> None:
        ended = self.session.close_frame is not None
        assert len(self.endpoint.ends) == ended
        if ended:
            (code, reason), frame = self.endpoint.ends[0], self.session.close_frame
            assert frame is not None
            assert (code, reason) == (1006 if frame in (INTERRUPTED, TIMED_OUT) else frame.code, frame.reason)

    @invariant()
    def who_has_no_receiver_is_forgotten_in_time(self) -> None:
        if self.alone_since is None:
            return
        if self.now - self.alone_since > TIMING.disconnect_delay + TICK:
            assert self.forgotten
            assert self.session.close_frame is not None


SessionMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
test_a_session_keeps_its_promises_in_any_order_of_events = SessionMachine.TestCase
