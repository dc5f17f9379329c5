"""Typed handlers that write with their store: they work, and `mypy --strict` agrees.

The kind of fault: a program that follows the documents, which a type checker refuses, or which loses what the framework
sets (id, key, version) because the type does not have it.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backsync_asgi import Backsync, Context
from backsync_asgi.stores import SQLStore
from tests.inprocess import connect

ROOT = Path(__file__).parent.parent

KINDS = {
    "dataclass": "from dataclasses import dataclass\n\n@dataclass\nclass Todo:",
    "frozen dataclass": "from dataclasses import dataclass\n\n@dataclass(frozen=True, slots=True)\nclass Todo:",
    "TypedDict": "from typing_extensions import NotRequired, TypedDict\n\nclass Todo(TypedDict):",
    "Struct": "from msgspec import Struct\n\nclass Todo(Struct):",
    "pydantic": "from pydantic import BaseModel\n\nclass Todo(BaseModel):",
}
PROGRAM = """
from collections.abc import Mapping
from typing import Any

from backsync_asgi import Backsync, Context
from backsync_asgi.stores import MemoryStore
{kind}
    title: str
{more}

sync = Backsync()
todos = sync.model("Todo", store=MemoryStore(), key="room", version="rev")

@todos.on("upsert")
async def save(ctx: Context, todo: Todo) -> Todo:
    return await ctx.store.upsert(todo)

@todos.on("double")
async def double(ctx: Context, todo: Todo) -> str:
    stored = await ctx.store.upsert(todo)
    return {title} * 2

@todos.on("copy")
async def copy(ctx: Context, record: dict[str, Any]) -> Mapping[str, Any]:
    return await ctx.store.upsert(record)

@todos.on("rename")
async def rename(ctx: Context, id: str) -> str:
    record = await ctx.store.patch(id, {{"title": "Milk"}})
    title: str = record["title"]
    added = await ctx.store.upsert({{"title": title, "room": "b"}})
    return str(added["id"])
"""
OWNED = {
    True: "    room: str\n    id: {} | None = None\n    rev: int | None = None",
    False: "",
}


def program(kind: str, has_owned: bool) -> str:
    """A module with a typed handler; has_owned: the type has the fields that the framework sets."""
    more = OWNED[has_owned].format("str")
    if kind == "TypedDict":
        more = more.replace("str | None = None", "NotRequired[str]").replace("int | None = None", "NotRequired[int]")
    title = 'stored["title"]' if kind == "TypedDict" else "stored.title"
    text = PROGRAM.format(kind=KINDS[kind], more=more, title=title)
    return text if has_owned else text.replace("NotRequired, TypedDict", "TypedDict")


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("has_owned", [True, False])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_typed_record_is_stored_whole(kind: str, has_owned: bool, tmp_path: Path) -> None:
    path = tmp_path / f"typed_{kind.replace(' ', '_')}_{has_owned}.py"
    path.write_text(program(kind, has_owned))
    async with connect(load(path).sync) as client:
        assert "records" in await client.call("Todo:subscribe", {"room": "a"})
        first = await client.call("Todo:upsert", {"title": "Tea", "room": "a"})
        assert first == {"title": "Tea", "room": "a", "id": first["id"], "rev": 1}
        assert (await client.receive())["data"] == first
        second = await client.call("Todo:upsert", {**first, "title": "Coffee"})
        assert second == {**first, "title": "Coffee", "rev": 2}
        assert (await client.error("Todo:upsert", {**first, "title": "Late"}))["code"] == "conflict"
        third = await client.call("Todo:patch", {"id": first["id"], "title": "Soup"})
        assert third == {**first, "title": "Soup", "rev": 3}
        assert await client.call("Todo:read", {"room": "a"}) == [third]
        assert await client.call("Todo:rename", first["id"]) != first["id"]


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_stored_comes_back_as_an_object_of_its_type(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"again_{kind.replace(' ', '_')}.py"
    path.write_text(program(kind, True))
    async with connect(load(path).sync) as client:
        assert await client.call("Todo:double", {"title": "ab", "room": "a"}) == "abab"


async def test_only_the_requests_own_record_is_completed(tmp_path: Path) -> None:
    """A handler that writes a second record of a type without an id adds one."""
    module = tmp_path / "second.py"
    once = "    return await ctx.store.upsert(todo)"
    thrice = f"    await ctx.store.upsert(todo)\n    await ctx.store.upsert({{'title': 'log'}})\n{once}"
    text = program("dataclass", False).replace(once, thrice).replace('key="room", ', "")
    module.write_text(text)
    async with connect(load(module).sync) as client:
        stored = await client.call("Todo:upsert", {"id": "x", "title": "Tea"})
        assert stored["id"] != "x"
        assert {record["title"] for record in await client.call("Todo:read")} == {"Tea", "log"}
        assert len(await client.call("Todo:read")) == 3


async def test_a_database_keeps_what_a_type_leaves_out(tmp_path: Path) -> None:
    module = tmp_path / "kept.py"
    module.write_text(program("Struct", False))
    sync = Backsync()
    todo: Any = load(module).Todo

    async def save(ctx: Context, data: Any) -> Any:
        return await ctx.store.upsert(data)

    save.__annotations__["data"] = todo
    sync.model("Todo", store=SQLStore(f"sqlite:///{tmp_path / 'kept.db'}"), key="room", version="rev").on("upsert")(
        save
    )
    async with sync.lifespan(), connect(sync) as client:
        sent = {"id": 5, "room": "a", "title": "Tea"}
        assert await client.call("Todo:upsert", sent) == {**sent, "rev": 1}
        assert await client.call("Todo:upsert", sent) == {**sent, "rev": 2}


def test_mypy_agrees(tmp_path: Path) -> None:
    for number, kind in enumerate(KINDS):
        for has_owned in (True, False):
            (tmp_path / f"program_{number}_{has_owned}.py".lower()).write_text(program(kind, has_owned))
    for number, block in enumerate((ROOT / "docs" / "schemas.md").read_text().split("```python\n")[1:]):
        (tmp_path / f"document_{number}.py").write_text(block.split("```")[0])
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(tmp_path / "cache")]
    ran = subprocess.run([*command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_mypy_finds_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(program("dataclass", True).replace("-> Todo:", "-> int:"))
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(tmp_path / "cache")]
    ran = subprocess.run([*command, str(path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "error:" in ran.stdout


async def test_each_record_of_an_array_is_completed_by_its_own(tmp_path: Path) -> None:
    module = tmp_path / "several.py"
    module.write_text(program("dataclass", False))
    sync = load(module).sync
    asked: list[Any] = []

    @sync.model("Todo").allow
    def anybody(ctx: Context, method: str, old: Any, new: Any) -> bool:
        asked.append((method, new["id"]))
        return True

    async with connect(sync) as client:
        sent = [{"id": id, "room": "a", "title": id} for id in ("x", "y")]
        assert await client.call("Todo:upsert", sent) == [{**record, "rev": 1} for record in sent]
        assert await client.call("Todo:upsert", sent) == [{**record, "rev": 2} for record in sent]
        assert len(await client.call("Todo:read", {"room": "a"})) == 2
    assert asked == 2 * [("upsert", "x"), ("upsert", "y")]


async def test_methods_of_ones_own_and_lists_return_what_they_have_stored(tmp_path: Path) -> None:
    module = tmp_path / "own.py"
    module.write_text(
        program("dataclass", False)
        + """
@todos.on("add")
async def add(ctx: Context, todo: Todo) -> Todo:
    return await ctx.store.upsert(todo)

@todos.on("add_two")
async def add_two(ctx: Context, todo: Todo) -> list[Todo]:
    return [await ctx.store.upsert(todo), await ctx.store.upsert(todo)]
"""
    )
    module.write_text(module.read_text().replace('key="room", ', ""))
    async with connect(load(module).sync) as client:
        added = await client.call("Todo:add", {"title": "Tea"})
        assert added == {"title": "Tea", "id": added["id"], "rev": 1}
        two = await client.call("Todo:add_two", {"title": "Tea"})
        assert len({record["id"] for record in [added, *two]}) == 3
