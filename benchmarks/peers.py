"""Who takes part: how each server is started, and which dialect the load generator speaks with it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build"
ENVIRONMENT = HERE / ".venv"
OURS = "backsync_asgi.uvicorn:WebSocketProtocol"
PLAIN = "websockets-sansio"


@dataclass(frozen=True)
class Competitor:
    """One server in one dialect.

    kind: "asgi", "python", "node" or "c". module: what runs. protocol: uvicorn's WebSocket class.
    replies: how many records answer one request: ours are the reply and the own push.
    """

    name: str
    kind: str
    module: str
    dialect: str
    prefix: str = ""
    protocol: str = PLAIN
    replies: int = 1

    def command(self, descriptor: int) -> list[str]:
        """The command that serves on an inherited listening socket."""
        match self.kind:
            case "asgi":
                return [python(), "-m", "benchmarks.servers.asgi", self.module, str(descriptor), self.protocol]
            case "python":
                return [python(), "-m", f"benchmarks.servers.{self.module}", str(descriptor)]
            case "node":
                return ["node", "--expose-gc", str(HERE / "node" / f"{self.module}.js"), str(descriptor)]
            case _:
                return [str(BUILD / self.module), str(descriptor)]


def _table() -> dict[str, Competitor]:
    rows = [
        Competitor("ours", "asgi", "ours", "backsync", protocol=OURS, replies=2),
        Competitor("ours-handler", "asgi", "ours_handler", "backsync", protocol=OURS, replies=2),
        Competitor("ours-rule", "asgi", "ours_rule", "backsync", protocol=OURS, replies=2),
        Competitor("ours-roles", "asgi", "ours_roles", "backsync", protocol=OURS, replies=2),
        Competitor("ours-sockjs", "asgi", "ours", "backsync-sockjs", protocol=OURS, replies=2),
        Competitor("ours-plain", "asgi", "ours", "backsync", replies=2),
        Competitor("ours-xhr", "asgi", "ours", "backsync-xhr-streaming", protocol=OURS),
        Competitor("ours-eventsource", "asgi", "ours", "backsync-eventsource", protocol=OURS),
        Competitor("c", "c", "server", "ws"),
        Competitor("bare", "asgi", "bare", "ws"),
        Competitor("prebuilt", "asgi", "prebuilt", "ws", protocol=OURS),
        Competitor("starlette", "asgi", "starlette_loop", "ws"),
        Competitor("ws", "node", "ws", "ws"),
        Competitor("socket.io", "node", "socketio", "socketio"),
        Competitor("python-socketio", "asgi", "python_socketio", "socketio"),
    ]
    for name, kind, module in (
        ("sockjs-node", "node", "sockjs"),
        ("sockjs-tornado", "python", "sockjs_tornado"),
        ("aiohttp-sockjs", "python", "aiohttp_sockjs"),
    ):
        rows.append(Competitor(name, kind, module, "sockjs", "/sockjs"))
        rows.append(Competitor(f"{name}-xhr", kind, module, "xhr-streaming", "/sockjs"))
        rows.append(Competitor(f"{name}-eventsource", kind, module, "eventsource", "/sockjs"))
    return {row.name: row for row in rows}


COMPETITORS = _table()
PYTHON_PEERS = ("starlette", "python-socketio", "sockjs-tornado", "aiohttp-sockjs")
WEBSOCKETS = (
    *("ours", "ours-sockjs", "ours-plain", "c", "bare", "ws", "sockjs-node", "socket.io"),
    *PYTHON_PEERS,
)
STREAMS = tuple(name for name in COMPETITORS if name.endswith(("-xhr", "-eventsource")))


def python() -> str:
    """The benchmarks' own Python; this one where that has not been set up."""
    own = ENVIRONMENT / "bin" / "python"
    return str(own) if own.exists() else sys.executable


def missing(competitor: Competitor) -> str | None:
    """What has to be installed before it can take part."""
    if competitor.kind == "node" and not (HERE / "node_modules").exists():
        return "node_modules"
    own = ("ours", "ours_handler", "ours_rule", "ours_roles", "bare", "prebuilt", "starlette_loop")
    if competitor.kind == "c" or competitor.module in own:
        return None
    if competitor.kind in ("asgi", "python") and not ENVIRONMENT.exists():
        return ".venv"
    return None


def build() -> None:
    """Compile the C programs whose sources are newer. Raises RuntimeError with the compiler's words."""
    BUILD.mkdir(exist_ok=True)
    header = HERE / "c" / "common.h"
    for name in ("load", "server"):
        source, program = HERE / "c" / f"{name}.c", BUILD / name
        if program.exists() and program.stat().st_mtime > max(source.stat().st_mtime, header.stat().st_mtime):
            continue
        command = ["cc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(source)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            raise RuntimeError("The benchmarks need a C compiler, and there is no cc.") from None
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")


_PYTHON_VERSIONS = """
import json, platform
from importlib.metadata import PackageNotFoundError, version
found = {"python": platform.python_version()}
for name in ("uvicorn", "uvloop", "httptools", "websockets", "starlette", "orjson", "python-socketio", "tornado",
             "sockjs-tornado", "aiohttp", "sockjs"):
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def versions() -> dict[str, str]:
    """What is compared, each with its version."""
    found: dict[str, str] = json.loads(
        subprocess.run(
            [python(), "-c", _PYTHON_VERSIONS],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": str(ENVIRONMENT / "tornado")},
        ).stdout
    )
    for name in ("sockjs", "ws", "socket.io"):
        file = HERE / "node_modules" / name / "package.json"
        if file.exists():
            label = "sockjs-node" if name == "sockjs" else name
            found[label] = json.loads(file.read_text())["version"]
    if (HERE / "node_modules").exists():
        found["node"] = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout.strip()
    return found


def has_plots() -> bool:
    """Whether the plots can be drawn by the benchmarks' Python."""
    return (ENVIRONMENT / "bin" / "python").exists() or importlib.util.find_spec("matplotlib") is not None
