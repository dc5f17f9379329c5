"""The house's plan as a test: which room stands on which floor, and that imports point down; runs none of it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "backsync_asgi"
ROOT = Path(__file__).resolve().parent.parent

# From the ground up. A module may import from its own floor and from those below; a pattern ending in `*` is a room.
FLOORS: tuple[tuple[str, ...], ...] = (
    (
        "errors",
        "limits",
        "logs",
        "messages",
        "channel",
        "gone",
        "retries",
        "schemas",
        "sockjs.frames",
        "sockjs.session",
    ),
    ("sockjs", "sockjs.*", "brokers", "brokers.*", "stores", "stores.*", "signals", "workers", "clientfiles"),
    ("commits", "hub", "handlers", "turns", "soon", "ephemeral", "places", "rights", "visibility", "shown", "models"),
    ("connection", "rest", "app"),
    ("", "client", "testing", "hosts", "cli", "uvicorn", "live", "live.*"),  # "": __init__.py, the front door
)

# No clock, no loop, no I/O: time comes in as `now`, bytes come in and go out.
PURE = FLOORS[0]
IMPURE = {"anyio", "asyncio", "concurrent", "ctypes", "datetime", "multiprocessing", "os", "pathlib", "select"} | {
    *("selectors", "signal", "socket", "sqlite3", "ssl", "starlette", "subprocess", "threading", "time", "uvicorn")
}

# Rooms that deal with one outside thing each, and know nothing of each other.
SEPARATE_ROOMS = ("sockjs", "brokers", "stores")

# What a module may import beside: inside a function, for a user's own type, or because users alone import it.
OPTIONAL: dict[str, set[str]] = {
    "schemas": {"msgspec", "pydantic"},
    "signals": {"blinker"},
    "stores.sql": {"sqlalchemy"},
    "stores.tables": {"sqlalchemy"},
}

# The names that users build on. Adding one is a decision; so is this line.
DOORS: dict[str, set[str]] = {
    "": {"Backsync", "Context", "Reject"},
    "live": {"UnseenWrite", "listen", "live"},
    "signals": {"post_delete", "post_save", "pre_delete", "pre_save"},
    "stores": {"MemoryStore", "SQLStore", "Store", "table_of"},
    "sockjs": {"Settings", "SockJS", "Timing"},
    "testing": {"chaos", "connect"},
    "uvicorn": {"CompressingWebSocketProtocol", "WebSocketProtocol"},
}
DOORS_TO_COME = {"brokers"}


def is_in(module: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(module, pattern) for pattern in patterns)


def floor_of(module: str) -> int | None:
    """The lowest floor that names it: `sockjs.frames` is at the ground although `sockjs.*` is above."""
    return next((number for number, patterns in enumerate(FLOORS) if is_in(module, patterns)), None)


def room_of(module: str) -> str:
    return module.partition(".")[0]


def imports_of(module: str, is_package: bool, source: str, ours: set[str]) -> tuple[set[str], set[str]]:
    """Our modules that it imports (named without the package), and the top names of everybody else's.

    Imports inside functions and under `if TYPE_CHECKING:` count: knowing a type is knowing.
    """
    package = [PACKAGE, *module.split(".")] if module else [PACKAGE]
    if not is_package:
        package.pop()
    absolute: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            absolute.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            # `from .stores import memory` imports a module where there is one of that name, else a name of `stores`.
            for alias in node.names:
                name = f"{origin}.{alias.name}"
                absolute.add(name if name.removeprefix(PACKAGE + ".") in ours else origin)
    inside = {name for name in absolute if name == PACKAGE or name.startswith(PACKAGE + ".")}
    return {name[len(PACKAGE) + 1 :] for name in inside}, {name.partition(".")[0] for name in absolute - inside}


def faults(
    tree: Mapping[str, str], packages: frozenset[str] = frozenset({"", "sockjs", "brokers", "stores"})
) -> list[str]:
    """What is wrong with a package given as {module: source}, where "" is its `__init__`; one sentence per fault."""
    found: list[str] = []
    graph: dict[str, set[str]] = {}
    for module, source in sorted(tree.items()):
        ours, theirs = imports_of(module, module in packages, source, set(tree))
        graph[module] = ours
        floor = floor_of(module)
        if ast.get_docstring(ast.parse(source)) is None:
            found.append(f"{module} does not open with a sentence")
        if floor is None:
            found.append(f"{module} stands on no floor: name it in FLOORS")
            continue
        if is_in(module, PURE):
            found += [f"{module} is pure, but imports {name}" for name in sorted(theirs & IMPURE)]
        for other in sorted(ours):
            if (other_floor := floor_of(other)) is not None and other_floor > floor:
                found.append(f"{module} imports {other}, which is above it")
            if room_of(module) == "sockjs" != room_of(other):
                found.append(f"{module} imports {other}: sockjs could be a package of its own")
            elif room_of(module) != room_of(other) and {room_of(module), room_of(other)} <= set(SEPARATE_ROOMS):
                found.append(f"{module} imports {other}: these rooms know nothing of each other")
        if {"sockjs", "models"} <= {room_of(other) for other in ours} and module not in ("app", "connection"):
            found.append(f"{module} knows both SockJS and models, as only app and connection may")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append("imports run in a circle: " + " → ".join(error.args[1]))
    return found


def exports_of(source: str) -> set[str] | None:
    """The names in a module's `__all__`; None if it has none."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return set(ast.literal_eval(node.value))
    return None


@pytest.fixture(scope="module")
def house() -> dict[str, str]:
    """The real package, as {module: source}."""
    sources = {}
    for file in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = file.relative_to(ROOT / PACKAGE).with_suffix("").parts
        sources[".".join(parts).removesuffix("__init__").removesuffix(".")] = file.read_text()
    return sources


def test_the_package_is_built_to_plan(house: dict[str, str]) -> None:
    packages = frozenset(
        ".".join(file.parent.relative_to(ROOT / PACKAGE).parts) for file in (ROOT / PACKAGE).rglob("__init__.py")
    )
    assert faults(house, packages) == []


def test_the_rooms_that_the_plan_is_about_exist(house: dict[str, str]) -> None:
    assert {"", "app", "hub", "models", *PURE} <= set(house)


@pytest.mark.parametrize("door", DOORS)
def test_a_door_shows_exactly_the_names_that_users_build_on(house: dict[str, str], door: str) -> None:
    assert exports_of(house[door]) == DOORS[door]


def test_a_door_that_has_come_is_pinned(house: dict[str, str]) -> None:
    arrived = DOORS_TO_COME & set(house)
    assert not arrived, "move these from DOORS_TO_COME to DOORS, with their names"


@pytest.mark.parametrize(
    ("tree", "fault"),
    [
        ({"errors": "import re"}, "errors does not open with a sentence"),
        ({"cellar": "'''A.'''"}, "cellar stands on no floor: name it in FLOORS"),
        ({"channel": "'''A.'''\nimport asyncio"}, "channel is pure, but imports asyncio"),
        ({"messages": "'''A.'''\nfrom time import monotonic"}, "messages is pure, but imports time"),
        ({"sockjs.session": "'''A.'''\ndef f():\n    import socket"}, "sockjs.session is pure, but imports socket"),
        ({"errors": "'''A.'''\nfrom .hub import Hub"}, "errors imports hub, which is above it"),
        ({"hub": "'''A.'''\nfrom . import app", "app": "'''A.'''"}, "hub imports app, which is above it"),
        ({"hub": "'''A.'''\nimport backsync_asgi.app"}, "hub imports app, which is above it"),
        ({"models": "'''A.'''\nfrom . import Backsync"}, "models imports , which is above it"),
        (
            {"hub": "'''A.'''\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .app import Backsync"},
            "hub imports app, which is above it",
        ),
        (
            {"sockjs.transports": "'''A.'''\nfrom ..errors import Reject"},
            "sockjs.transports imports errors: sockjs could be a package of its own",
        ),
        (
            {"sockjs": "'''A.'''\nfrom ..stores import MemoryStore"},
            "sockjs imports stores: sockjs could be a package of its own",
        ),
        (
            {"stores.memory": "'''A.'''\nfrom ..brokers.memory import MemoryBroker"},
            "stores.memory imports brokers.memory: these rooms know nothing of each other",
        ),
        (
            {"testing": "'''A.'''\nfrom .sockjs.session import Session\nfrom .models import Model"},
            "testing knows both SockJS and models, as only app and connection may",
        ),
        (
            {"hub": "'''A.'''\nfrom .models import Model", "models": "'''A.'''\nfrom .hub import Hub"},
            "imports run in a circle",
        ),
    ],
)
def test_a_breach_of_the_plan_is_noticed(tree: dict[str, str], fault: str) -> None:
    assert any(found.startswith(fault) for found in faults(tree)), faults(tree)


def test_what_the_plan_allows_is_no_fault() -> None:
    assert (
        faults(
            {
                "": "'''The door.'''\nfrom .app import Backsync",
                "errors": "'''A.'''\nimport re",
                "sockjs": "'''A.'''\nfrom .app import SockJS",
                "sockjs.app": "'''A.'''\nimport asyncio\nfrom .session import Session\nfrom . import frames",
                "sockjs.frames": "'''A.'''\nimport orjson",
                "sockjs.session": "'''A.'''\nfrom .frames import OPEN",
                "models": "'''A.'''\nfrom .hub import Hub\nfrom .stores import MemoryStore",
                "hub": "'''A.'''\nfrom . import errors",
                "app": "'''A.'''\nfrom .models import Model\nfrom .sockjs import SockJS",
            }
        )
        == []
    )


def test_exports_are_read_from_all() -> None:
    assert exports_of("__all__ = ['A', 'B']") == {"A", "B"}
    assert exports_of("from .app import Backsync") is None


def test_core_needs_nothing_but_starlette_and_orjson(house: dict[str, str]) -> None:
    allowed = {"starlette", "orjson", *sys.stdlib_module_names}
    packages = frozenset(name for name in house if any(other.startswith(name + ".") for other in house)) | {""}
    core = {module for module in house if (floor_of(module) or 0) < len(FLOORS) - 1}
    foreign = {
        module: sorted(theirs)
        for module in core
        if (
            theirs := imports_of(module, module in packages, house[module], set(house))[1]
            - allowed
            - OPTIONAL.get(module, set())
        )
    }
    assert foreign == {}
