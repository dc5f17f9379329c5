"""Remembered writes: found while they are young and few enough, and never by another client."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from backsync_asgi.limits import Memory
from backsync_asgi.messages import Request
from backsync_asgi.retries import CLIENT_COST, SWEEP, Remembered, Retries, digest

MEMORY = Memory(writes=3, age=10.0, size=100, clients=2)


def retries() -> Retries[str]:
    return Retries(MEMORY)


def remember(memory: Retries[str], client: str, id: int, now: float, size: int = 0) -> Remembered[str]:
    assert memory.find(client, id, now) is None
    write = memory.remember(client, id, 7, f"outcome {id}", now)
    write.weigh(size)
    return write


def test_a_write_is_found_by_its_client_and_id_until_it_is_too_old() -> None:
    memory = retries()
    write = remember(memory, "ann", 1, 0.0)
    assert memory.find("ann", 1, 10.0) is write
    assert (write.digest, write.outcome) == (7, "outcome 1")
    assert memory.find("bob", 1, 0.0) is None
    assert memory.find("ann", 2, 0.0) is None
    assert memory.find("ann", 1, 10.1) is None


def test_the_oldest_make_room_for_newer_ones() -> None:
    memory = retries()
    for id in range(5):
        remember(memory, "ann", id, 0.0)
    assert [id for id in range(5) if memory.find("ann", id, 0.0)] == [2, 3, 4]


def test_large_replies_leave_room_for_fewer_and_for_one_at_least() -> None:
    memory = retries()
    for id in range(2):
        remember(memory, "ann", id, 0.0, size=60)
    remember(memory, "ann", 2, 0.0, size=1_000)
    assert [id for id in range(3) if memory.find("ann", id, 0.0)] == [1, 2]
    remember(memory, "ann", 3, 0.0)
    assert [id for id in range(4) if memory.find("ann", id, 0.0)] == [2, 3], "the newest is kept, however large"
    remember(memory, "ann", 4, 0.0)
    assert [id for id in range(5) if memory.find("ann", id, 0.0)] == [3, 4]


def test_a_write_that_was_not_carried_out_may_be_tried_anew() -> None:
    memory = retries()
    write = remember(memory, "ann", 1, 0.0, size=90)
    write.forget()
    write.forget()
    write.weigh(1_000)
    remember(memory, "ann", 1, 0.0, size=90)
    remember(memory, "ann", 2, 0.0)
    assert memory.find("ann", 1, 0.0) is not None, "what is forgotten weighs nothing"


def test_clients_that_have_not_written_for_long_are_forgotten() -> None:
    memory = retries()
    remember(memory, "ann", 1, 0.0)
    remember(memory, "bob", 1, 5.0)
    remember(memory, "ann", 2, 6.0)
    remember(memory, "eve", 1, 7.0)
    assert len(memory) == 2, "there may be two"
    assert memory.find("bob", 1, 7.0), "a newer client does not push out an older one"
    assert memory.find("eve", 1, 7.0) is None
    remember(memory, "eve", 2, 16.5 + SWEEP)
    assert len(memory) == 1
    assert memory.find("eve", 2, 17.0)


def test_one_with_many_names_pushes_nobody_out() -> None:
    """Kind: what is remembered of all is bounded by a count that one client can use up."""
    memory = Retries[str](Memory(clients=1_000, user_size=100_000, total=400_000))
    memory.remember("before", "w", 7, "x", 0.0, "ann")
    for number in range(5_000):
        memory.remember(f"made up {number}", "w", 7, "x", 1.0, "eve").weigh(1_000)
    assert memory.size < 110_000, "one source has its share and no more"
    memory.remember("after", "w", 7, "x", 2.0, "bob")
    assert memory.find("before", "w", 2.0)
    assert memory.find("after", "w", 2.0)


def test_bytes_are_bounded_over_all_and_nothing_is_left_of_what_is_forgotten() -> None:
    memory = Retries[str](Memory(total=100_000, age=10.0))
    for number in range(1_000):
        memory.remember(f"client {number}", "w", 7, "x", 0.0, f"source {number}").weigh(1_000)
        assert memory.size <= 100_000 + 1_000
    assert memory.find("client 0", "w", 0.0)
    write = memory.remember("client 0", "v", 7, "x", 20.0, "source 0")
    assert len(memory) == 1
    write.forget()
    memory.remember("client 1", "v", 7, "x", 40.0, "source 1").forget()
    assert memory.size == CLIENT_COST
    assert len(memory._sources) == 1


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ann", "bob"]),
            st.integers(0, 6),
            st.sampled_from([0.0, 0.0, 1.0, 4.0]),
            st.sampled_from([0, 1, 40, 200]),
            st.booleans(),
        ),
        max_size=60,
    )
)
def test_what_is_found_is_what_a_list_of_all_writes_says(steps: Sequence[tuple[str, int, float, int, bool]]) -> None:
    memory, now = retries(), 0.0
    lists: dict[str, list[Remembered[str]]] = {"ann": [], "bob": []}
    for client, id, pause, size, fails in steps:
        now += pause
        said = lists[client]
        young = [write for write in said if now - write.at <= MEMORY.age]
        known = memory.find(client, id, now)
        assert known is next((write for write in young if write.id == id), None)
        if known is not None:
            continue
        said[:] = young
        while said and (len(said) >= MEMORY.writes or (sum(it.size for it in said) > MEMORY.size and len(said) > 1)):
            said.pop(0)
        said.append(remember(memory, client, id, now, size))
        if fails:
            said.pop().forget()


def test_the_same_request_is_known_however_it_is_spelled() -> None:
    def request(data: object, **more: object) -> Request:
        return Request(1, "Todo:upsert", "Todo", "upsert", data, more)

    said = digest(request({"id": 1, "title": "a"}))
    assert said == digest(request({"title": "a", "id": 1}))
    others = [request({"id": 1, "title": "b"}), request({"id": 1, "title": "a"}, version=1), request(None)]
    assert said not in map(digest, others)
