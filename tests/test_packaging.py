"""What is handed to others is whole: builds the real wheel and sdist, installs and serves; knows no file's content."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

from tests.servers import ROOT, Server

CLIENT_FILES = {"backsync.js", "backsync.mjs", "backsync.d.ts", "sockjs.js"}

PROGRAM = """
from backsync_asgi import Backsync
from starlette.applications import Starlette
from starlette.routing import Mount

app = Starlette(routes=[Mount("/backsync", app=Backsync())])
"""


def run(command: Sequence[str | Path], cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=100, check=False)


def build(target: str, into: Path, source: Path = ROOT) -> Path:
    """Build a distribution from `source`; the path of the one file that it made."""
    done = run([sys.executable, "-m", "hatchling", "build", "-t", target, "-d", into], cwd=source)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = into.iterdir()
    return made


def copy_of_the_sources(into: Path) -> Path:
    """What a build reads, the built client left out."""
    into.mkdir()
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        (into / name).write_bytes((ROOT / name).read_bytes())
    (into / "backsync_asgi").mkdir()
    (into / "backsync_asgi" / "__init__.py").write_bytes((ROOT / "backsync_asgi" / "__init__.py").read_bytes())
    return into


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(files.read(name).decode())


def test_the_wheel_is_for_every_python_and_machine(wheel: Path) -> None:
    assert wheel.name.startswith("backsync_asgi-")
    assert wheel.name.endswith("-py3-none-any.whl")


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    sources = {file.relative_to(ROOT).as_posix() for file in (ROOT / "backsync_asgi").rglob("*.py")}
    with zipfile.ZipFile(wheel) as files:
        names = {name for name in files.namelist() if ".dist-info/" not in name}
        empty = [name for name in names if "/static/" in name and files.getinfo(name).file_size == 0]
    static = {name for name in names if name.startswith("backsync_asgi/static/")}
    assert names - static == sources | {"backsync_asgi/py.typed"}
    assert static >= {f"backsync_asgi/static/{name}" for name in CLIENT_FILES}
    assert not empty


def test_the_package_and_its_client_are_of_one_version(metadata: Message) -> None:
    assert json.loads((ROOT / "client" / "package.json").read_text())["version"] == metadata["Version"]


def test_the_core_needs_starlette_and_orjson_and_nothing_else(metadata: Message) -> None:
    required = metadata.get_all("Requires-Dist", [])
    core = {name.split(">=")[0] for name in required if "extra ==" not in name}
    assert core == {"starlette", "orjson"}
    assert [name for name in required if "extra ==" in name and "uvicorn[standard]" in name]
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"


def test_an_installed_wheel_serves_its_client(wheel: Path, tmp_path: Path, serve: Callable[..., Server]) -> None:
    site = tmp_path / "site"
    done = run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel])
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "app.py").write_text(PROGRAM)
    environment = {"PYTHONPATH": str(site)}
    where = subprocess.run(
        [sys.executable, "-c", "import backsync_asgi; print(backsync_asgi.__file__)"],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert Path(where).is_relative_to(site), "this would test the checkout, not the wheel"

    server = serve("app:app", cwd=tmp_path, env=environment)
    for name in ("backsync.js", "backsync.mjs", "sockjs.js"):
        with urllib.request.urlopen(f"{server.url}/backsync/{name}", timeout=10) as response:
            assert "javascript" in response.headers["content-type"]
            assert response.read() == (site / "backsync_asgi" / "static" / name).read_bytes()


def test_a_wheel_can_be_built_from_the_sdist_without_node(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    assert run(["tar", "-xf", sdist, "-C", tmp_path]).returncode == 0
    (unpacked,) = tmp_path.iterdir()
    again = build("wheel", tmp_path / "dist", source=unpacked)
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())


def test_the_sdist_holds_what_its_checks_need_and_no_leavings(sdist: Path) -> None:
    with tarfile.open(sdist) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    assert {"pyproject.toml", "Makefile", "tests/conftest.py", "client/package-lock.json", "LICENSE"} <= names
    assert not [name for name in names if "node_modules" in name or "__pycache__" in name or name.startswith(".venv")]


def test_without_the_built_client_there_is_no_wheel_but_a_remedy(tmp_path: Path) -> None:
    sources = copy_of_the_sources(tmp_path / "sources")
    done = run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "dist"], cwd=sources)
    assert done.returncode != 0
    assert "make client" in done.stdout + done.stderr
    assert "backsync.js" in done.stdout + done.stderr
    assert not list(tmp_path.glob("dist/*.whl"))


@pytest.mark.parametrize("name", sorted(CLIENT_FILES))
def test_each_file_of_the_client_is_missed(tmp_path: Path, name: str) -> None:
    sources = copy_of_the_sources(tmp_path / "sources")
    (sources / "backsync_asgi" / "static").mkdir()
    for other in CLIENT_FILES - {name}:
        (sources / "backsync_asgi" / "static" / other).write_text("built")
    done = run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "dist"], cwd=sources)
    assert done.returncode != 0
    assert f"lacks {name}." in done.stdout + done.stderr
