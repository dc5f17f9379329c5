"""Places: what is known of where records are, and which channels hear that one is gone from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backsync_asgi.errors import Reject
from backsync_asgi.hub import Hub
from backsync_asgi.limits import Horizon
from backsync_asgi.places import Places

ROOMS = ["a", "b", 1, True]


def places(*names: str) -> Places:
    return Places("Note", names, Hub(Horizon(), now=lambda: 0.0))


def gone_from(where: Places, id: str | int, room: Any, *, is_known: bool = True) -> list[str]:
    """The keys of the channels that hear of a delete as the record comes to a room."""
    heard: list[str] = []
    where._hub.mark_dirty = lambda topic: heard.append(topic.key_text)  # type: ignore[method-assign]
    where.move(id, where.of({"room": room}), is_known)
    return heard


def test_a_model_without_key_has_one_place() -> None:
    where = places()
    assert where.of({"room": "a"}) == ((), "")
    assert where.knows(7), "there is nothing to find out"
    assert [topic.key for topic in where.leave(7)] == [()]


@pytest.mark.parametrize("room", [None, 1.5, [], "x" * 200])
def test_what_is_no_key_is_told_by_its_field(room: Any) -> None:
    fields = {} if room is None else {"room": room}
    where = places("room")
    with pytest.raises(Reject, match="Note is keyed: its records and subscriptions need room") as caught:
        where.of(fields)
    assert [fault["field"] for fault in caught.value.details] == ["room"]


def test_true_and_one_are_two_keys() -> None:
    where = places("room")
    assert where.of({"room": 1}) == (("1",), '{"room":1}')
    assert where.of({"room": True}) == (("true",), '{"room":true}')


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(ROOMS) | st.none())))
def test_a_record_that_moves_is_gone_from_where_it_was(steps: Sequence[tuple[int, Any]]) -> None:
    where = places("room")
    was: dict[int, Any] = {}
    for id, room in steps:
        before = was.pop(id, None)
        if room is None:
            topics = where.leave(id)
            if before is not None:
                assert [topic.key_text for topic in topics] == [where.of({"room": before})[1]]
        else:
            left = [] if before is None or (before, type(before)) == (room, type(room)) else [before]
            assert gone_from(where, id, room) == [where.of({"room": it})[1] for it in left]
            was[id] = room
        assert where.knows(id) == (id in was)


def test_a_record_that_somebody_is_reading_leaves_every_other_room() -> None:
    where = places("room")
    for room in ("a", "b"):
        where._hub.topic("Note", *where.of({"room": room}))
    with where.reading():
        assert gone_from(where, 1, "a", is_known=False) == ['{"room":"b"}']
    assert gone_from(where, 2, "a", is_known=False) == [], "nobody reads"


def test_what_is_read_for_a_query_is_learned_once() -> None:
    where = places("room")
    where.learn_query({"room": "a"}, ['{"id":1,"room":"a"}', {"id": 2, "room": "a"}, {"id": 3}])
    assert [where.knows(id) for id in (1, "2", 3)] == [True, True, False], "a row may lack its key"
    where.learn_query({"room": "a"}, [{"id": 4, "room": "a"}])
    assert not where.knows(4)
    where.learn_query({}, [{"id": 5, "room": "a"}])
    assert not where.knows(5), "what is read of all rooms may be without bound"
