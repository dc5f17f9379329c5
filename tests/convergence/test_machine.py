"""State converges in any order of events: the same rules over the core, the ASGI app and a real server.

`BACKSYNC_NIGHTLY=1` runs many more examples.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from tests.convergence.machine import Convergence
from tests.convergence.world import AsgiWorld, CoreWorld, NetWorld

NIGHTLY = os.environ.get("BACKSYNC_NIGHTLY") == "1"


def effort(usual: int, nightly: int, steps: int) -> settings:
    return settings(
        max_examples=nightly if NIGHTLY else usual,
        stateful_step_count=2 * steps if NIGHTLY else steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


class CoreMachine(Convergence):
    world_class = CoreWorld


class AsgiMachine(Convergence):
    world_class = AsgiWorld


class NetMachine(Convergence):
    world_class = NetWorld


CoreMachine.TestCase.settings = effort(60, 10_000, 30)
AsgiMachine.TestCase.settings = effort(60, 3_000, 30)
NetMachine.TestCase.settings = effort(8, 100, 20)

LONG = pytest.mark.timeout(36_000 if NIGHTLY else 120)

TestCore = LONG(CoreMachine.TestCase)
TestAsgi = LONG(AsgiMachine.TestCase)
TestNet = LONG(NetMachine.TestCase)
