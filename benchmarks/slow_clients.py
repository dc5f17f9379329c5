"""1 000 clients, of which 100 do not read and one reads a byte a second, over a minute of 1 000 changes a second.

    python -m benchmarks.slow_clients [CLIENTS] [CHANGES A SECOND] [SECONDS]

Prints what `tests/convergence/test_slow_clients.py` judges on a smaller scale. Needs 2 files for each client.
"""

from __future__ import annotations

import asyncio
import statistics
import sys

from tests.convergence.slow import RECORDS, Findings, measure

PAD = 200  # bytes of each record beside its numbers


def table(clients: int, rate: int, seconds: float, found: Findings) -> list[tuple[str, str]]:
    mebibytes = [size / 1_048_576 for size in found.memory]
    third = max(1, len(mebibytes) // 3)
    return [
        ("clients, not reading, at 1 byte/s", f"{clients}, {clients // 10}, 1"),
        ("changes, on records", f"{found.changes} ({rate}/s for {seconds:g} s), {RECORDS}"),
        ("server's memory, first third", f"{statistics.fmean(mebibytes[:third]):.1f} MiB"),
        ("server's memory, last third", f"{statistics.fmean(mebibytes[-third:]):.1f} MiB"),
        ("p99 of the others, all reading", f"{found.p99_before * 1000:.1f} ms"),
        ("p99 of the others, some stalled", f"{found.p99_meanwhile * 1000:.1f} ms"),
        ("changes to each stalled one as it reads again", f"{min(found.caught_up)}-{max(found.caught_up)}"),
        ("of these after what was in buffers", f"{min(map(len, found.tails))}-{max(map(len, found.tails))}"),
        ("all equal in the end", "yes" if found.equal else "NO"),
        ("connections lost", str(found.lost)),
    ]


def main(arguments: list[str]) -> None:
    clients = int(arguments[0]) if arguments else 1_000
    rate = int(arguments[1]) if len(arguments) > 1 else 1_000
    seconds = float(arguments[2]) if len(arguments) > 2 else 60.0
    rows = table(clients, rate, seconds, asyncio.run(measure(clients, rate, seconds, PAD)))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:{width}}  {value}")


if __name__ == "__main__":
    main(sys.argv[1:])
