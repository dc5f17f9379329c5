"""Runs scenarios and prints, saves and judges what they measured: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from . import machine, peers, results, scenarios

HERE = Path(__file__).resolve().parent
QUICK = results.named() - (set(peers.PYTHON_PEERS) - {"starlette"})  # a quick run leaves out the slow ones
BUSY = 3.0  # load average over 5 minutes; a server and its load make two


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a run; unset ones depend on --quick."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Backsync and its peers, side by side.")
    parser.add_argument("scenarios", nargs="*", metavar="A…J", help="scenarios of README.md (default: all)")
    parser.add_argument("--only", default="", help=f"competitors, by commas: {', '.join(peers.COMPETITORS)}")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and peers, for a first look")
    parser.add_argument("--clients", type=int, help="clients of a fan-out (1000)")
    parser.add_argument("--idle", type=int, help="connections of D, G and the largest of H (5000, quick: 2000)")
    parser.add_argument("--rounds", type=int, help="rounds of each competitor (5, quick: 2)")
    parser.add_argument("--seconds", type=float, help="about how long a trial takes (1, quick: 0.3)")
    parser.add_argument("--minutes", type=float, help="then only first rounds are begun (20, quick: 3)")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "latest.json", help="where the JSON goes")
    parser.add_argument("--load", type=Path, metavar="FILE", help="measure nothing, show what an earlier run has saved")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw the plots there")
    options = parser.parse_args(arguments)
    quick = options.quick
    for name, full, short in (
        ("clients", 1000, 1000),
        ("idle", 5000, 2000),
        ("rounds", 5, 2),
        ("seconds", 1.0, 0.3),
        ("minutes", 20.0, 3.0),
    ):
        value = getattr(options, name)
        if value is None:
            setattr(options, name, short if quick else full)
        elif value <= 0:
            parser.error(f"--{name} got {value}, expected a positive number")
    options.scenarios = [letter for word in options.scenarios for letter in word.upper()] or list(scenarios.SCENARIOS)
    for letter in options.scenarios:
        if letter not in scenarios.SCENARIOS:
            parser.error(f"there is no scenario {letter!r}; there are {', '.join(scenarios.SCENARIOS)}")
    options.only = frozenset(filter(None, options.only.split(",")))
    if unknown := options.only - set(peers.COMPETITORS):
        parser.error(f"--only got {', '.join(sorted(unknown))}; there are {', '.join(peers.COMPETITORS)}")
    if quick and not options.only:
        options.only = QUICK
    return options


def measure(options: argparse.Namespace) -> results.Results:
    """Run the scenarios and save what they measured."""
    peers.build()
    for what in sorted({need for one in peers.COMPETITORS.values() if (need := peers.missing(one))}):
        print(
            f"benchmarks/{what} is missing: some peers are left out. `make bench-setup` installs it.", file=sys.stderr
        )
    began = time.monotonic()
    plan = scenarios.Plan(
        clients=scenarios.fitting(options.clients),
        idle=scenarios.fitting(options.idle),
        rounds=options.rounds,
        seconds=options.seconds,
        until=began + options.minutes * 60,
        only=options.only,
        brief=options.quick,
    )
    versions = peers.versions()
    found = results.Results()
    for letter in options.scenarios:
        scenarios.SCENARIOS[letter](plan, found)
    document = results.to_json(
        found,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - began),
        versions=versions,
        pinned=machine.cores() is not None,
        load_average=os.getloadavg()[1],
        plan={"clients": plan.clients, "idle": plan.idle, "rounds": plan.rounds, "seconds": plan.seconds},
    )
    scenarios.save(options.output, json.dumps(document, indent=1) + "\n")
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    if (busy := os.getloadavg()[1]) > BUSY:
        print(f"The load average is {busy:.1f}: something else runs here. Times on the clock (F, G, I) are noise.")
    return found


def main() -> int:
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # no server outlives the run
    if options.load is None:
        try:
            found = measure(options)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
    else:
        found = results.from_json(json.loads(options.load.read_text()))
    print(results.table(found))
    if options.plots is not None:
        file = options.load or options.output
        subprocess.run([peers.python(), "-m", "benchmarks.plots", str(file), str(options.plots)], check=True)
    if options.check and (misses := results.missed(found)):
        print(f"\n{len(misses)} targets are missed:", file=sys.stderr)
        for target, reached in misses:
            print(f"  {target.scenario}: {reached:.3f}, expected {target}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
