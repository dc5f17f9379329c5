"""The pure parts of the benchmarks: arguments, medians, targets and tables. Nothing is timed, started or compiled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import peers, scenarios
from benchmarks.machine import private_bytes
from benchmarks.results import (
    TARGETS,
    Results,
    Target,
    Term,
    from_json,
    missed,
    table,
    title,
    to_json,
    verdicts,
)
from benchmarks.servers import records


def results(**measures: dict[str, list[float]]) -> Results:
    return Results({name.replace("_", "."): competitors for name, competitors in measures.items()})


def test_a_median_is_of_the_rounds_and_none_for_who_did_not_take_part() -> None:
    found = Results()
    for value in (3.0, 1.0, 2.0):
        found.add("A", "c", value)
    assert found.median("A", "c") == 2.0
    assert found.median("A", "ours") is None
    assert found.median("B", "c") is None


@pytest.mark.parametrize(
    ("target", "reached"),
    [
        (Target("A", Term("A", ("ours",)), Term("A", ("c",)), 1.25), 1.5),
        (Target("A", Term("A", ("ours",)), Term("A", ("ws", "c")), 1.25), 1.5),
        (Target("A", Term("A", ("ours",)), Term("A", ("c",)), 4.0, is_difference=True), 4.0),
        (Target("A", Term("A", ("ours",)), None, 10.0), 12.0),
        (Target("A", Term("A", ("ours",), over="B"), None, 1.1), 4.0),
        (Target("A", Term("A", ("ours",), over="B"), Term("A", ("c",), over="B"), 1.1), 2.0),
    ],
)
def test_a_target_is_a_ratio_a_difference_or_a_value(target: Target, reached: float) -> None:
    found = results(A={"ours": [12.0], "c": [8.0], "ws": [10.0]}, B={"ours": [3.0], "c": [4.0]})
    assert target.reached(found) == reached


def test_a_target_that_was_not_measured_is_neither_met_nor_missed() -> None:
    target = Target("A", Term("A", ("ours",)), Term("A", ("c",)), 1.25)
    for found in (
        results(),
        results(A={"ours": [1.0]}),
        results(A={"c": [1.0]}),
        results(A={"ours": [1.0], "c": [0.0]}),
    ):
        assert target.reached(found) is None
        assert verdicts(found, [target]) == missed(found, [target]) == []


def test_what_is_at_the_limit_is_met_and_what_is_over_it_is_missed() -> None:
    target = Target("A", Term("A", ("ours",)), Term("A", ("c",)), 1.25)
    assert missed(results(A={"ours": [10.0], "c": [8.0]}), [target]) == []
    assert missed(results(A={"ours": [11.0], "c": [8.0]}), [target]) == [(target, 1.375)]


def test_every_target_names_measures_and_competitors_that_there_are() -> None:
    for target in TARGETS:
        for term in filter(None, (target.what, target.against)):
            assert set(term.competitors) <= set(peers.COMPETITORS)
            assert title(term.measure)[0].startswith(target.scenario)
            assert term.over is None or title(term.over)[0].startswith(target.scenario)
        assert target.scenario in scenarios.SCENARIOS


def test_a_table_shows_medians_spreads_ratios_and_misses() -> None:
    text = table(results(A={"ours": [10.0, 12.0, 14.0], "c": [8.0]}, H_fanout_100={"ours": [9.0]}))
    assert "ours                          12.00  (10.00-14.00)     1.50 × c" in text
    assert "MISSED A     1.500  ours A ≤ 1.25 × c A" in text
    assert "H  fan-out to 100 clients (µs CPU/delivery)" in text


def test_results_come_back_from_json_as_they_were() -> None:
    found = results(A={"ours": [1.0]})
    found.percentiles["ours"] = [1, 2]
    assert from_json(json.loads(json.dumps(to_json(found, at="now")))) == found


def test_options_that_are_not_given_depend_on_the_length_of_the_run() -> None:
    full, quick = command.parse([]), command.parse(["--quick"])
    assert (full.rounds, quick.rounds) == (5, 2)
    assert full.scenarios == list("ABCDEFGHIJ")
    assert full.only == frozenset()
    assert "ours" in quick.only
    assert "python-socketio" not in quick.only
    assert command.parse(["a", "BC", "--only", "ours,c"]).scenarios == ["A", "B", "C"]


@pytest.mark.parametrize("arguments", [["X"], ["--only", "nobody"], ["--rounds", "0"], ["--seconds", "-1"]])
def test_options_that_make_no_sense_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.parse(arguments)
    assert "python -m benchmarks: error:" in capsys.readouterr().err


def test_a_quick_run_has_all_competitors_that_targets_name_but_peers() -> None:
    named = {name for target in TARGETS for term in (target.what, target.against) if term for name in term.competitors}
    assert named - set(peers.PYTHON_PEERS) <= command.QUICK <= set(peers.COMPETITORS)


def test_competitors_take_turns_backwards_in_every_second_round() -> None:
    plan = scenarios.Plan(clients=1, idle=1, rounds=3, seconds=1, until=float("inf"), only=frozenset({"c", "bare"}))
    field = plan.field(("ours", "bare", "c"))
    assert [competitor.name for competitor in plan.turns("A", field)] == ["bare", "c", "c", "bare", "bare", "c"]


def test_each_competitor_takes_part_once_at_least_when_there_is_no_time(capsys: pytest.CaptureFixture[str]) -> None:
    plan = scenarios.Plan(clients=1, idle=1, rounds=3, seconds=1, until=0.0, only=frozenset({"c", "bare"}))
    assert [competitor.name for competitor in plan.turns("A", plan.field(("bare", "c")))] == ["bare", "c"]
    assert "out of time" in capsys.readouterr().err


def test_a_record_has_the_size_that_all_have_and_its_mark() -> None:
    one = records.record(7)
    text = json.dumps(one, separators=(",", ":"))
    assert len(text) == records.RECORD_SIZE
    assert text.count("@") == 1
    assert one["mark"].startswith("@000007")
    assert len(one["mark"]) == 26


def test_memory_is_what_a_process_has_for_itself() -> None:
    rollup = "1-2 ---p 0 00:00 0 [rollup]\nRss: 99 kB\nPrivate_Clean: 3 kB\nPrivate_Dirty: 4 kB\nSwap: 1 kB\n"
    assert private_bytes(rollup) == 7 * 1024


def test_lock_files_name_no_place_to_load_from() -> None:
    here = Path(peers.HERE)
    for name in ("requirements.txt", "requirements-tornado.txt", "package-lock.json"):
        text = (here / name).read_text()
        assert "resolved" not in text
        assert "--index-url" not in text
