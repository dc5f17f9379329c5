"""Clients that do not read cost an integer each: a small edition of benchmarks/slow_clients.py, with a verdict."""

from __future__ import annotations

from tests.convergence.slow import RECORDS, measure


async def test_clients_that_do_not_read_cost_nothing_and_get_the_newest_states_once() -> None:
    found = await measure(clients=60, rate=500, seconds=4.0, pad=1_000)
    assert found.changes > 1_000
    assert found.lost == 0, "nobody is disconnected for reading slowly"
    assert found.equal, "in the end all have the same"
    for got, tail in zip(found.caught_up, found.tails, strict=True):
        assert len(tail) <= RECORDS, "each changed record once"
        # Beside that, what was on its way in the buffers of sockets and server: 100 kB, whatever the time.
        assert got < RECORDS + 300, "not the whole history"
    growth = max(found.memory[len(found.memory) // 2 :]) - max(found.memory[: len(found.memory) // 2])
    assert growth < 4_000_000, f"memory grew by {growth} bytes: {found.memory}"
    assert found.p99_meanwhile < found.p99_before + 1.0, "the others notice nothing"
