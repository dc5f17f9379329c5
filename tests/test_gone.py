"""What is gone: the last deletes, without what has come again."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from backsync_asgi.gone import Gone


@given(st.lists(st.tuples(st.sampled_from(["upsert", "delete"]), st.integers(0, 6))), st.sets(st.integers(0, 6)))
def test_it_knows_the_last_deletes_that_have_not_come_again(steps: Sequence[tuple[str, int]], there: set[int]) -> None:
    gone = Gone(3)
    deleted: list[int] = []
    for method, id in steps:
        gone.note(method, id)
        deleted = [it for it in deleted if it != id] + ([id] if method == "delete" else [])
        deleted = deleted[-3:]
    assert gone.without(there) == [id for id in deleted if id not in there]


def test_one_and_its_text_are_one_record() -> None:
    gone = Gone(3)
    gone.note("delete", 1)
    gone.note("upsert", "1")
    gone.note("delete", "2")
    assert gone.without([]) == ["2"]
    assert gone.without([2]) == []
