"""A channel against its model, a plain list of all changes; knows nothing of the hub that delivers them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backsync_asgi.channel import Change, Channel
from backsync_asgi.limits import Horizon

KEYS = st.sampled_from("abcdefgh")


def make(horizon: Horizon | None = None) -> Channel[str]:
    return Channel("epoch", horizon or Horizon())


def put(channel: Channel[str], key: str, *, size: int = 1, now: float = 0.0) -> Change[str]:
    return channel.put(key, f"{key}{channel.seq + 1}", size, now)


def bodies(channel: Channel[str], seq: int) -> list[str] | None:
    changes = channel.since(seq)
    return None if changes is None else [change.body for change in changes]


# Examples, one for each promise


def test_a_new_channel_has_nothing_after_its_beginning() -> None:
    channel = make()
    assert (channel.seq, channel.floor, len(channel)) == (0, 0, 0)
    assert channel.since(0) == []


def test_each_change_takes_the_next_position() -> None:
    channel = make()
    assert [put(channel, "a").body, put(channel, "b").body, put(channel, "a").body] == ["a1", "b2", "a3"]
    assert channel.seq == 3


def test_the_tail_has_each_record_once_in_the_order_of_its_last_change() -> None:
    channel = make()
    for key in "abca":
        put(channel, key)
    assert bodies(channel, 0) == ["b2", "c3", "a4"]
    assert bodies(channel, 2) == ["c3", "a4"]
    assert bodies(channel, 4) == []


def test_a_position_from_the_future_has_no_tail() -> None:
    channel = make()
    put(channel, "a")
    assert channel.since(2) is None


def test_the_oldest_record_goes_when_there_are_too_many() -> None:
    channel = make(Horizon(records=2))
    for key in "abc":
        put(channel, key)
    assert bodies(channel, 0) is None
    assert channel.floor == 1
    assert bodies(channel, 1) == ["b2", "c3"]


def test_changes_of_one_record_never_fill_the_horizon() -> None:
    channel = make(Horizon(records=2, size=10))
    for _ in range(100):
        put(channel, "a", size=9)
    assert bodies(channel, 0) == ["a100"]
    assert channel.floor == 0


def test_the_oldest_go_when_they_are_too_big_together() -> None:
    channel = make(Horizon(size=10))
    for key in "abc":
        put(channel, key, size=4)
    assert channel.floor == 1
    assert bodies(channel, 1) == ["b2", "c3"]


def test_a_change_bigger_than_the_horizon_is_still_delivered() -> None:
    channel = make(Horizon(size=10))
    put(channel, "a", size=4)
    put(channel, "b", size=100)
    assert bodies(channel, 1) == ["b2"]


def test_changes_go_when_they_are_too_old() -> None:
    channel = make(Horizon(age=10.0))
    put(channel, "a", now=0.0)
    put(channel, "b", now=5.0)
    channel.evict(10.0)
    assert bodies(channel, 0) == ["a1", "b2"]
    channel.evict(10.1)
    assert bodies(channel, 0) is None
    assert bodies(channel, 1) == ["b2"]
    channel.evict(99.0)
    assert bodies(channel, 1) is None
    assert bodies(channel, 2) == []


@pytest.mark.parametrize("limits", [{"records": 0}, {"size": 0}, {"age": 0.0}, {"records": -1}])
def test_a_horizon_that_holds_nothing_is_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="positive"):
        Horizon(**limits)


# For any history


@given(st.lists(KEYS, max_size=60))
@settings(deadline=None)
def test_within_the_horizon_every_position_has_the_exact_tail(keys: list[str]) -> None:
    channel = make()
    for key in keys:
        put(channel, key)
    history = [(key, seq) for seq, key in enumerate(keys, 1)]
    last = dict(history)
    for position in range(len(keys) + 1):
        expected = [f"{key}{seq}" for key, seq in history if seq > position and last[key] == seq]
        assert bodies(channel, position) == expected
    assert channel.since(len(keys) + 1) is None
    assert channel.since(-1) is None


class ChannelMachine(RuleBasedStateMachine):
    """Puts and evictions at any times, beside a list of all changes that forgets nothing by itself."""

    @initialize(
        records=st.integers(1, 6),
        size=st.integers(1, 30),
        age=st.floats(0.5, 20, allow_nan=False, allow_infinity=False),
    )
    def begin(self, records: int, size: int, age: float) -> None:
        self.horizon = Horizon(records=records, size=size, age=age)
        self.channel = make(self.horizon)
        self.now = 100.0
        self.floor = 0
        self.changes: list[tuple[int, str, int, float]] = []  # seq, key, size, at; all there ever were

    @rule(key=KEYS, size=st.integers(1, 12))
    def put(self, key: str, size: int) -> None:
        change = put(self.channel, key, size=size, now=self.now)
        self.changes.append((len(self.changes) + 1, key, size, self.now))
        self.forget()
        assert (change.seq, change.size, change.at) == (len(self.changes), size, self.now)

    @rule(seconds=st.floats(0, 8, allow_nan=False))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.changes)
    @rule()
    def evict(self) -> None:
        self.channel.evict(self.now)
        self.forget()

    def forget(self) -> None:
        """Move the model's floor past one change after another, until what is left is within the horizon."""
        horizon = self.horizon
        while kept := self.kept():
            seq, _, _, at = kept[0]
            too_much = len(kept) > horizon.records or sum(size for _, _, size, _ in kept) > horizon.size
            if self.now - at <= horizon.age and not (too_much and len(kept) > 1):
                break
            self.floor = seq

    def last_changes(self) -> list[tuple[int, str, int, float]]:
        last = {key: seq for seq, key, _, _ in self.changes}
        return [change for change in self.changes if last[change[1]] == change[0]]

    def kept(self) -> list[tuple[int, str, int, float]]:
        return [change for change in self.last_changes() if change[0] > self.floor]

    @invariant()
    def just_as_much_is_forgotten_as_the_horizon_demands(self) -> None:
        assert self.channel.floor == self.floor
        assert len(self.channel) == len(self.kept())

    @invariant()
    def every_position_has_the_exact_tail_or_none(self) -> None:
        for position in range(-1, len(self.changes) + 2):
            if self.channel.floor <= position <= len(self.changes):
                expected = [f"{key}{seq}" for seq, key, _, _ in self.last_changes() if seq > position]
                assert bodies(self.channel, position) == expected
            else:
                assert self.channel.since(position) is None


ChannelMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_a_channel_equals_its_model = ChannelMachine.TestCase
