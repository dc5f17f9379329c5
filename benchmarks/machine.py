"""What the kernel tells of a process, and where processes run; it knows no server."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all of its threads, in seconds: nanoseconds where the kernel counts them."""
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    try:
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except FileNotFoundError:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> int:
    """Bytes of memory that a process has for itself."""
    return private_bytes(Path(f"/proc/{pid}/smaps_rollup").read_text())


def private_bytes(rollup: str) -> int:
    """The same, from the text of `smaps_rollup`."""
    sizes = {line.split(":")[0]: line.split() for line in rollup.splitlines()[1:]}
    return 1024 * (int(sizes["Private_Clean"][1]) + int(sizes["Private_Dirty"][1]))


def cores() -> tuple[int, int] | None:
    """The core for servers and the one for the load; None where there is only one."""
    allowed = sorted(os.sched_getaffinity(0))
    return (allowed[0], allowed[1]) if len(allowed) > 1 else None


def pinned(core: int | None) -> Callable[[], None]:
    """What a child does before it runs: it stays on that core."""

    def pin() -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})

    return pin


def raise_file_limit() -> int:
    """Allow as many open files as can be allowed; returns how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
