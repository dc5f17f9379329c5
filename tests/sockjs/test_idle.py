"""Idle polling sessions, a small number of them: all hear a broadcast, and nothing of them stays when they leave."""

from __future__ import annotations

from benchmarks.sockjs_idle import measure

MEMORY = 24.0  # KiB; where few share what is paid once, each seems to take more than the 16 of 9 000


async def test_nothing_stays_of_idle_sessions() -> None:
    """That sessions and tasks go back to what they were is what `measure` waits for, and fails without."""
    result = await measure(300)
    assert (result.base.sessions, result.after.sessions) == (0, 0)
    assert result.full.sessions == 300
    assert result.full.tasks - result.base.tasks == 600, "one task for a request and one for its application"
    assert result.after.tasks == result.base.tasks
    assert result.reached < 2.0
    assert result.each < MEMORY
    # What the allocator keeps is used again.
    assert result.again.resident < result.full.resident * 1.1
