"""What was measured, and what the targets say of it; pure, it measures nothing.

A measure has a name ("A", "H.fanout.100"), and for each competitor the values of its rounds. Medians are compared,
and only within one run.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .peers import PYTHON_PEERS

# Names of measures, or of families of them ("H.fanout." is all that begin so), with what is shown.
TITLES: Mapping[str, tuple[str, str]] = {
    "A": ("A  fan-out, one change at a time", "µs CPU/delivery"),
    "B": ("B  fan-out, bursts of 50", "µs CPU/message"),
    "C": ("C  request → reply, 64 in closed loop", "µs CPU/request"),
    "D": ("D  idle connection", "KiB"),
    "E": ("E  fan-out over streams", "µs CPU/delivery"),
    "F.reading": ("F  p99 of a record, all read", "ms"),
    "F.stalled": ("F  p99 of the others, 1 in 10 does not read", "ms"),
    "F.growth": ("F  memory grown meanwhile", "MiB"),
    "G.seconds": ("G  all cut, until all are live", "s"),
    "G.resume": ("G  one resume of 100 changes", "µs CPU"),
    "G.handshake": ("G  one bare handshake", "µs CPU"),
    "H.fanout.": ("H  fan-out to {} clients", "µs CPU/delivery"),
    "H.publish.": ("H  publishing to {} channels", "µs CPU/change"),
    "H.resume.": ("H  resume in a channel of {} records", "µs CPU"),
    "I": ("I  p99 to the last client at 20 % load", "ms"),
    "J": ("J  fan-out by a visibility rule", "µs CPU/delivery"),
}


@dataclass
class Results:
    """values: by measure, then by competitor, one for each round. percentiles: 101 of the latencies in µs, of I."""

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    percentiles: dict[str, list[int]] = field(default_factory=dict)

    def add(self, measure: str, competitor: str, value: float) -> None:
        self.values.setdefault(measure, {}).setdefault(competitor, []).append(value)

    def median(self, measure: str, competitor: str) -> float | None:
        """The median of the rounds; None if it did not take part."""
        rounds = self.values.get(measure, {}).get(competitor)
        return statistics.median(rounds) if rounds else None


@dataclass(frozen=True)
class Term:
    """A measure of a competitor, or the best of several. over: divided by the same competitor's other measure."""

    measure: str
    competitors: tuple[str, ...]
    over: str | None = None

    def value(self, results: Results) -> float | None:
        found = []
        for competitor in self.competitors:
            median = results.median(self.measure, competitor)
            base = 1.0 if self.over is None else results.median(self.over, competitor)
            if median is not None and base:
                found.append(median / base)
        return min(found, default=None)


@dataclass(frozen=True)
class Target:
    """`what` is at most `limit` times `against`, or `limit` more than it (is_difference), or `limit` (against None)."""

    scenario: str
    what: Term
    against: Term | None
    limit: float
    is_difference: bool = False

    def reached(self, results: Results) -> float | None:
        """The ratio, difference or value that the limit is for; None if it was not measured."""
        value = self.what.value(results)
        if value is None or self.against is None:
            return value
        base = self.against.value(results)
        if base is None or (not self.is_difference and base <= 0):
            return None
        return value - base if self.is_difference else value / base

    def __str__(self) -> str:
        def name(term: Term) -> str:
            who = "/".join(term.competitors) if len(term.competitors) == 1 else "best Python peer"
            return f"{who} {term.measure}" + (f" ÷ {term.over}" if term.over else "")

        if self.against is None:
            return f"{name(self.what)} ≤ {self.limit:g}"
        sign = "+" if self.is_difference else "×"
        return f"{name(self.what)} ≤ {self.limit:g} {sign} {name(self.against)}"


def _versus(measure: str, ours: str, theirs: str | tuple[str, ...], limit: float) -> Target:
    names = (theirs,) if isinstance(theirs, str) else theirs
    return Target(measure[0], Term(measure, (ours,)), Term(measure, names), limit)


TARGETS: tuple[Target, ...] = (
    _versus("A", "ours", "c", 1.25),
    _versus("A", "ours-sockjs", "c", 1.25),
    _versus("A", "ours-plain", "bare", 1.1),
    _versus("B", "ours", "c", 0.08),
    _versus("B", "ours-sockjs", "c", 0.08),
    _versus("C", "ours", "bare", 1.5),
    _versus("C", "ours-handler", "bare", 1.5),
    _versus("C", "ours", "sockjs-node", 1.0),
    _versus("C", "ours", "socket.io", 1.0),
    Target("D", Term("D", ("ours-plain",)), Term("D", ("bare",)), 4.0, is_difference=True),
    Target("D", Term("D", ("ours",)), Term("D", ("bare",)), 0.0, is_difference=True),
    Target("E", Term("E", ("ours-xhr",)), Term("E", ("sockjs-node-xhr",)), 1.0),
    Target("E", Term("E", ("ours-eventsource",)), Term("E", ("sockjs-node-eventsource",)), 1.0),
    Target("F", Term("F.stalled", ("ours",), over="F.reading"), None, 1.1),
    Target("F", Term("F.growth", ("ours",)), None, 1.0),
    Target("G", Term("G.seconds", ("ours",)), None, 10.0),
    Target("G", Term("G.resume", ("ours",)), Term("G.handshake", ("bare",)), 10.0),
    # The kernel's own part grows with the number of sockets, as the C program shows.
    Target(
        "H",
        Term("H.fanout.5000", ("ours",), over="H.fanout.100"),
        Term("H.fanout.5000", ("c",), over="H.fanout.100"),
        1.25,
    ),
    Target("H", Term("H.publish.10000", ("ours",), over="H.publish.1"), None, 1.5),
    Target("H", Term("H.resume.10000", ("ours",), over="H.resume.100"), None, 1.25),
    _versus("I", "ours", PYTHON_PEERS, 0.6),
)


def named() -> frozenset[str]:
    """The competitors that targets name."""
    terms = [term for target in TARGETS for term in (target.what, target.against) if term is not None]
    return frozenset(name for term in terms for name in term.competitors)


def verdicts(results: Results, targets: Iterable[Target] = TARGETS) -> list[tuple[Target, float]]:
    """The targets that could be looked at, each with what was reached."""
    return [(target, reached) for target in targets if (reached := target.reached(results)) is not None]


def missed(results: Results, targets: Iterable[Target] = TARGETS) -> list[tuple[Target, float]]:
    """Those of them that were missed."""
    return [(target, reached) for target, reached in verdicts(results, targets) if reached > target.limit]


def title(measure: str) -> tuple[str, str]:
    """What a measure is called, and its unit."""
    if measure in TITLES:
        return TITLES[measure]
    family, _, number = measure.rpartition(".")
    name, unit = TITLES[family + "."]
    return name.format(number), unit


def table(results: Results) -> str:
    """All measures as text: medians, the spread of the rounds, and ratios to the C program or else to the first."""
    lines = []
    for measure, competitors in results.values.items():
        name, unit = title(measure)
        base_name = next((one for one in ("c", "bare") if one in competitors), next(iter(competitors)))
        base = results.median(measure, base_name)
        lines.append(f"\n{name} ({unit})")
        rows = [(statistics.median(rounds), who, rounds) for who, rounds in competitors.items()]
        for median, who, rounds in sorted(rows):
            ratio = f"{median / base:8.2f} × {base_name}" if base else ""
            lines.append(f"  {who:24} {median:10.2f}  ({min(rounds):.2f}-{max(rounds):.2f}) {ratio}")
    found = verdicts(results)
    if found:
        lines.append("\nTargets")
        for target, reached in found:
            sign = "ok    " if reached <= target.limit else "MISSED"
            lines.append(f"  {sign} {target.scenario}  {reached:8.3f}  {target}")
    return "\n".join(lines)


def to_json(results: Results, **about: Any) -> dict[str, Any]:
    """What is written to a file; `about`: of the run."""
    return {**about, "values": results.values, "percentiles": results.percentiles}


def from_json(document: Mapping[str, Any]) -> Results:
    """What was read from one."""
    return Results(dict(document["values"]), dict(document["percentiles"]))
