"""State converges in any order of events: the same rules over the core, the ASGI app and a real server.

`BACKSYNC_EFFORT=nightly` runs many more examples; `mutants`, for scripts/mutants.py, stops at the first failure.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.convergence.machine import Convergence
from tests.convergence.world import AsgiWorld, CoreWorld, NetWorld

EFFORT = os.environ.get("BACKSYNC_EFFORT", "usual")


def effort(usual: int, nightly: int, steps: int) -> settings:
    times = {"usual": usual, "nightly": nightly, "mutants": 5 * usual}
    return settings(
        max_examples=times[EFFORT],
        stateful_step_count=2 * steps if EFFORT == "nightly" else steps,
        phases=[Phase.generate] if EFFORT == "mutants" else list(Phase),
        database=None if EFFORT == "mutants" else settings().database,
        derandomize=EFFORT == "mutants",
        report_multiple_bugs=False,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


class CoreMachine(Convergence):
    world_class = CoreWorld


class AsgiMachine(Convergence):
    world_class = AsgiWorld


class NetMachine(Convergence):
    world_class = NetWorld


CoreMachine.TestCase.settings = effort(100, 10_000, 30)
AsgiMachine.TestCase.settings = effort(100, 3_000, 30)
NetMachine.TestCase.settings = effort(6, 100, 20)

LONG = pytest.mark.timeout(36_000 if EFFORT == "nightly" else 300)

TestCore = LONG(CoreMachine.TestCase)
TestAsgi = LONG(AsgiMachine.TestCase)
TestNet = LONG(NetMachine.TestCase)
