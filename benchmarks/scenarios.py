"""The scenarios A to I: what is done with servers and loads, and what of it is measured; see README.md.

In each, the competitors take turns round by round, so that a machine that becomes slower does so for all of them.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import machine
from .peers import COMPETITORS, PYTHON_PEERS, STREAMS, WEBSOCKETS, Competitor, missing
from .results import Results
from .rig import Answer, Load, Server

BURST = 50  # changes back to back, in B
CALLERS = 64  # clients in closed loop, in C
SMALL_BUFFER = 16_384  # bytes of each socket's send buffer in F: else a stalled client costs the kernel megabytes
RECORDS = 100  # distinct records
LOAD_SHARE = 0.2  # of saturation, in F and I
LATE = 60  # seconds until a trial is given up
UNMEASURED = (RuntimeError, OSError, TimeoutError)


@dataclass(frozen=True)
class Plan:
    """How much is done. seconds: of one trial. idle: connections of D and G. until: monotonic time at which no further
    round is begun. only: competitors; all if empty. brief: H has its ends only."""

    clients: int
    idle: int
    rounds: int
    seconds: float
    until: float
    only: frozenset[str] = frozenset()
    brief: bool = False

    def field(self, names: Iterable[str]) -> list[Competitor]:
        """Those that take part."""
        chosen = [COMPETITORS[name] for name in names if not self.only or name in self.only]
        return [competitor for competitor in chosen if missing(competitor) is None]

    def turns(self, scenario: str, field: list[Competitor], rounds: int | None = None) -> Iterator[Competitor]:
        """All competitors in each round; every second round backwards, so that none always follows the same one."""
        for number in range(rounds or self.rounds):
            for competitor in field if number % 2 == 0 else field[::-1]:
                if number and time.monotonic() > self.until:
                    say(scenario, "", "out of time, further rounds are left out")
                    return
                yield competitor


def say(scenario: str, competitor: str, text: str) -> None:
    print(f"{scenario}  {competitor:24} {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def tolerated(scenario: str, competitor: Competitor) -> Iterator[None]:
    """A trial that fails is told and left out; the others go on."""
    try:
        yield
    except UNMEASURED as error:
        say(scenario, competitor.name, f"left out: {error}")


# ── Trials ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def published(server: Server, load: Load, count: int, burst: int, interval: float) -> tuple[float, Answer]:
    """Publish; returns the server's seconds of CPU until all clients that read have all of it. TimeoutError if not."""
    load.do("arm")
    before = server.cpu()
    server.publish(count, burst, interval)
    answer = load.do(f"expect {count} {LATE}")
    used = server.cpu() - before
    if answer.late or answer.missing or answer.lost:
        raise TimeoutError(f"{answer.missing} records are missing, {answer.lost} connections lost.")
    return used, answer


def step_cost(server: Server, load: Load, burst: int) -> float:
    """Seconds of CPU for one change, or one burst: to know how fast changes may follow each other. Warms up as well."""
    published(server, load, 3 * burst, burst, 0.05)
    used, _ = published(server, load, 4 * burst, burst, 0.05)
    return used / 4


def fan_out(server: Server, load: Load, burst: int, seconds: float, clients: int) -> float:
    """Microseconds of CPU for each record that is delivered."""
    interval = max(0.002, 1.5 * step_cost(server, load, burst))
    steps = max(8, min(400, int(seconds / interval)))
    used, _ = published(server, load, steps * burst, burst, interval)
    return used * 1e6 / (steps * burst * clients)


def on_each(
    scenario: str, field: list[Competitor], plan: Plan, trial: Callable[[Competitor, Server], float], results: Results
) -> None:
    """A trial for each competitor in each round, all servers running from the first round to the last."""
    with contextlib.ExitStack() as stack:
        servers: dict[str, Server] = {}
        for competitor in plan.turns(scenario, field):
            with tolerated(scenario, competitor):
                if competitor.name not in servers:
                    servers[competitor.name] = stack.enter_context(Server(competitor))
                value = trial(competitor, servers[competitor.name])
                results.add(scenario, competitor.name, value)
                say(scenario, competitor.name, f"{value:.2f}")


def spread_out(scenario: str, names: Iterable[str], burst: int, plan: Plan, results: Results, clients: int = 0) -> None:
    count = clients or plan.clients

    def trial(competitor: Competitor, server: Server) -> float:
        with Load(server) as load:
            load.open(count)
            return fan_out(server, load, burst, plan.seconds, count)

    on_each(scenario, plan.field(names), plan, trial, results)


# ── Scenarios ────────────────────────────────────────────────────────────────────────────────────────────────────────


def one_change(plan: Plan, results: Results) -> None:
    spread_out("A", (*WEBSOCKETS, "prebuilt"), 1, plan, results)


def bursts(plan: Plan, results: Results) -> None:
    spread_out("B", WEBSOCKETS, BURST, plan, results)


def requests(plan: Plan, results: Results) -> None:
    def trial(competitor: Competitor, server: Server) -> float:
        with Load(server, competitor.replies) as load:
            load.open(CALLERS)
            load.do("call 0.3")
            before = server.cpu()
            answer = load.do(f"call {plan.seconds:g}")
            used = server.cpu() - before
            if answer.late or answer.lost or not answer.calls:
                raise TimeoutError(f"{answer.calls} calls answered, {answer.lost} connections lost.")
            return used * 1e6 / answer.calls

    on_each("C", plan.field((*WEBSOCKETS, "ours-handler")), plan, trial, results)


def idle(plan: Plan, results: Results) -> None:
    for competitor in plan.turns("D", plan.field(WEBSOCKETS), min(plan.rounds, 2)):
        with tolerated("D", competitor), Server(competitor) as server:
            with Load(server) as load:  # for caches, and code that is imported late
                load.open(100)
            server.settle()
            base = server.memory()
            with Load(server) as load:
                load.open(plan.idle)
                server.settle()
                each = (server.memory() - base) / plan.idle / 1024
            results.add("D", competitor.name, each)
            say("D", competitor.name, f"{each:.2f} KiB")


def streams(plan: Plan, results: Results) -> None:
    spread_out("E", STREAMS, 1, plan, results)


def slow_readers(plan: Plan, results: Results) -> None:
    stalled = plan.clients // 10
    for competitor in plan.turns("F", plan.field(("ours", "ours-plain", "ws", "sockjs-node"))):
        for measure, unread in (("F.reading", 0), ("F.stalled", stalled)):
            with (
                tolerated("F", competitor),
                Server(competitor, send_buffer=SMALL_BUFFER) as server,
                Load(server) as load,
            ):
                load.do(f"stall {unread}")
                load.open(plan.clients)
                interval = step_cost(server, load, 1) / LOAD_SHARE
                published(server, load, 400, 10, 4 * interval)  # what fits into the buffers of who does not read
                before = server.memory()
                _, answer = published(server, load, max(50, int(2 * plan.seconds / interval)), 1, interval)
                p99 = answer.latency[99] / 1000
                results.add(measure, competitor.name, p99)
                say(measure, competitor.name, f"{p99:.2f} ms")
                if unread:
                    growth = (server.memory() - before) / 1_048_576
                    results.add("F.growth", competitor.name, growth)
                    say("F.growth", competitor.name, f"{growth:.2f} MiB")


def reconnects(plan: Plan, results: Results) -> None:
    for competitor in plan.turns("G", plan.field(("ours", "ours-sockjs", "ours-plain", "bare")), min(plan.rounds, 3)):
        with tolerated("G", competitor), Server(competitor) as server, Load(server) as load:
            if competitor.name == "bare":
                load.open(100)
                server.settle()
                before = server.cpu()
                load.open(plan.idle + 100)
                cost = (server.cpu() - before) * 1e6 / plan.idle
                results.add("G.handshake", competitor.name, cost)
                say("G.handshake", competitor.name, f"{cost:.1f} µs")
                continue
            load.open(plan.idle)
            load.do("cut")
            server.settle()
            server.publish(RECORDS, RECORDS, 0.01)
            server.settle()
            before = server.cpu()
            answer = load.do(f"resume {RECORDS} 0 1 {LATE}")
            cost = (server.cpu() - before) * 1e6 / plan.idle
            if answer.late:
                raise TimeoutError(f"{answer.live} of {plan.idle} are live, {answer.missing} records are missing.")
            results.add("G.seconds", competitor.name, answer.seconds)
            results.add("G.resume", competitor.name, cost)
            say("G", competitor.name, f"{answer.seconds:.2f} s, {cost:.1f} µs each")


def sizes(plan: Plan, results: Results) -> None:
    for clients in (100, plan.idle) if plan.brief else (10, 100, 1000, plan.idle):
        names = ("ours", "ours-plain", "c", "ws", "sockjs-node", "starlette")
        spread_out(f"H.fanout.{clients}", names, 1, plan, results, clients)
    field = plan.field(("ours",))
    for channels in (1, 10_000) if plan.brief else (1, 10, 100, 1000, 10_000):
        for competitor in plan.turns("H", field):
            scenario = f"H.publish.{channels}"
            with (
                tolerated(scenario, competitor),
                Server(competitor, environment={"BENCH_ROOMS": str(channels)}) as server,
            ):
                server.publish(max(channels, 1000), 50, 0.001)
                server.settle()
                costs = []
                for _ in range(5):  # each takes a fifth of a second, in which a neighbour is soon noticed
                    before = server.cpu()
                    server.publish(10_000, 50, 0.001)
                    server.settle()
                    costs.append((server.cpu() - before) * 1e6 / 10_000)
                cost = statistics.median(costs)
                results.add(scenario, competitor.name, cost)
                say(scenario, competitor.name, f"{cost:.2f} µs")
    for records in (100, 10_000) if plan.brief else (100, 1000, 10_000):
        for competitor in plan.turns("H", field):
            scenario = f"H.resume.{records}"
            environment = {"BENCH_RECORDS": str(records)}
            with (
                tolerated(scenario, competitor),
                Server(competitor, environment=environment) as server,
                Load(server) as load,
            ):
                server.publish(records, 50, 0.001)
                server.settle()
                load.open(1000)
                load.do("cut")
                server.settle()
                before = server.cpu()
                answer = load.do(f"resume 0 10 80 {LATE}")  # from 80 positions: no tail is remembered for all
                cost = (server.cpu() - before) * 1e6 / 1000
                if answer.late:
                    raise TimeoutError(f"{answer.missing} records are missing.")
                results.add(scenario, competitor.name, cost)
                say(scenario, competitor.name, f"{cost:.1f} µs")


def latency(plan: Plan, results: Results) -> None:
    names = ("ours", "ours-sockjs", "ours-plain", "c", "bare", "ws", "sockjs-node", *PYTHON_PEERS)

    def trial(competitor: Competitor, server: Server) -> float:
        with Load(server) as load:
            load.open(plan.clients)
            interval = step_cost(server, load, 1) / LOAD_SHARE
            _, answer = published(server, load, max(30, min(200, int(4 * plan.seconds / interval))), 1, interval)
            results.percentiles[competitor.name] = answer.latency
            return answer.last[99] / 1000

    on_each("I", plan.field(names), plan, trial, results)


def rules(plan: Plan, results: Results) -> None:
    spread_out("J", ("ours", "ours-roles", "ours-rule"), 1, plan, results)


SCENARIOS: dict[str, Callable[[Plan, Results], None]] = {
    "A": one_change,
    "B": bursts,
    "C": requests,
    "D": idle,
    "E": streams,
    "F": slow_readers,
    "G": reconnects,
    "H": sizes,
    "I": latency,
    "J": rules,
}


def fitting(clients: int) -> int:
    """So many clients as the limit of open files allows, each process having one for each."""
    return min(clients, machine.raise_file_limit() - 200)


def save(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
