"""The documents in docs/ are true to the code: programs run, conversations happen as printed, tables name each setting.

How blocks are marked: a `python` block is a whole program; it is run, and the `test_…` functions in it too. A `wire`
block is a conversation over a WebSocket with the `app` (else `sync`) of the program above it, which is run anew for
each; the fence may name another path than /websocket. An `http` block is the same for HTTP requests. In both, a JSON
string with an ellipsis stands for any string, and for the same one each time. Knows no prose.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from uvicorn.main import main as uvicorn_command

from backsync_asgi import Backsync
from backsync_asgi.connection import OVERFLOW, REFUSED, REFUSED_OTHERWISE, SNAPSHOT_FAILED, STALE
from backsync_asgi.errors import CODES
from backsync_asgi.limits import Horizon, Limits, Memory
from backsync_asgi.rest import STATUS
from backsync_asgi.sockjs import Settings, Timing
from backsync_asgi.sockjs.session import GOING_AWAY, INTERRUPTED, OCCUPIED, TIMED_OUT
from backsync_asgi.stores import SQLStore
from tests.inprocess import ASGIApp, Closed, Socket, fetch, websocket_scope
from tests.servers import ROOT

DOCS = sorted((ROOT / "docs").glob("*.md"))
NAMES = [path.name for path in DOCS]


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block; `program` is the Python block that it belongs to, itself for a Python block."""

    place: str
    language: str
    path: str
    text: str
    program: str


def blocks_of(name: str, text: str) -> Iterator[Block]:
    """The blocks that can be run, in order."""
    program = ""
    for found in re.finditer(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        language, path, body = found[1], found[2] or "", found[3]
        if language == "python":
            program = body
        if language in ("python", "wire", "http"):
            line = text.count("\n", 0, found.start()) + 1
            yield Block(f"{name}:{line}", language, path, body, program)


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs leave files."""
    monkeypatch.chdir(tmp_path)


BLOCKS = [block for path in DOCS for block in blocks_of(path.name, path.read_text())]


def run_program(block: Block) -> dict[str, Any]:
    """The names that a program has made."""
    code = compile(block.program, f"<docs/{block.place}>", "exec", dont_inherit=True)  # not our annotations
    names: dict[str, Any] = {"__name__": "app"}
    exec(code, names)
    return names


def served(names: dict[str, Any]) -> ASGIApp:
    app: ASGIApp | None = names.get("app", names.get("sync"))
    assert app is not None, "the program above a conversation makes neither `app` nor `sync`"
    return app


class Placeholders:
    """What the strings with an ellipsis have stood for so far in one conversation."""

    def __init__(self) -> None:
        self._meant: dict[str, str] = {}

    def match(self, printed: Any, got: Any) -> bool:
        """Whether what came is what is printed."""
        if isinstance(printed, str) and "…" in printed:
            return isinstance(got, str) and self._meant.setdefault(printed, got) == got
        if isinstance(printed, dict):
            if not isinstance(got, dict) or printed.keys() != got.keys():
                return False
            return all(self.match(printed[key], got[key]) for key in printed)
        if isinstance(printed, list):
            return isinstance(got, list) and len(printed) == len(got) and all(map(self.match, printed, got))
        return type(printed) is type(got) and bool(printed == got)

    def fill(self, printed: str) -> str:
        """What is to be sent: each placeholder replaced by what it has stood for."""
        return re.sub(r'"[^"]*…[^"]*"', lambda found: json.dumps(self._meant[json.loads(found.group())]), printed)


def parsed(text: str) -> Any:
    """JSON where it is JSON, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


async def converse(app: ASGIApp, path: str, lines: list[str]) -> None:
    """Say what the lines with → say and expect what those with ← say, and nothing more at the end."""
    peers: dict[str, Socket] = {}
    meant = Placeholders()
    for line in lines:
        found = re.fullmatch(r"(\w*) ?([→←]) (.*)", line)
        assert found is not None, f"neither → nor ← in {line!r}"
        name, arrow, said = found[1], found[2], found[3].strip()
        if name not in peers:
            peers[name] = Socket(app, websocket_scope(path))
        if arrow == "→" and said == "close":
            await peers.pop(name).leave(1000)
        elif arrow == "→":
            peers[name].send_text(meant.fill(said))
        else:
            try:
                got = await peers[name].text()
            except Closed as error:
                got = f"close {error.code} {error.reason}"
                await peers.pop(name).leave()
            assert meant.match(parsed(said), parsed(got)), f"printed:  {line}\nreceived: {got}"
    for name, peer in peers.items():
        if isinstance(app, Backsync) and path == "/websocket":
            assert await peer.pushes() == [], f"{name} got more than is printed"
        elif isinstance(app, Backsync):
            peer.send_text(json.dumps([json.dumps({"id": "end", "event": "$:ping"})]))
            assert await peer.text() == 'a[{"id":"end","event":"$:ping","data":{}}]', f"{name} got more than is printed"
        await peer.leave()


async def request(app: ASGIApp, lines: list[str]) -> None:
    """Make each printed request (`METHOD path [body] → status [body]`) and compare its answer."""
    for line in lines:
        found = re.fullmatch(r"(\w+) (\S+)(?: (.+?))? +→ (\d+)(?: +(.+))?", line)
        assert found is not None, f"no request with its answer: {line!r}"
        method, path, body, status, expected = found.groups()
        path, _, query = path.partition("?")
        kind = [] if body is None else [(b"content-type", b"application/json")]
        answer = await fetch(app, path, method, (body or "").encode(), kind, query_string=query.encode())
        assert answer.status == int(status), line
        assert expected is None or Placeholders().match(parsed(expected), parsed(answer.text.strip())), (
            f"printed:  {line}\nreceived: {answer.text}"
        )


@pytest.fixture
def signals() -> Iterator[None]:
    """A server under asyncio.run chains itself to the loop's signal handlers; the tests' own come back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_a_block_does_what_is_printed(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # for the programs that keep a file
    names = run_program(block)
    lines = [line for line in block.text.splitlines() if line.strip() and not line.startswith("#")]
    match block.language:
        case "wire":
            asyncio.run(converse(served(names), block.path or "/websocket", lines))
        case "http":
            asyncio.run(request(served(names), lines))
        case _:
            for name, test in list(names.items()):
                if name.startswith("test_"):
                    outcome = test()
                    if inspect.iscoroutine(outcome):
                        asyncio.run(outcome)


# ── Tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def table(name: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    text = (ROOT / "docs" / name).read_text()
    section = re.search(rf"^#+ {re.escape(heading)}$(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None, f"docs/{name} has no heading {heading!r}"
    rows = re.findall(r"^\|(.+)\|$", section[1], re.MULTILINE)
    assert len(rows) > 2, f"docs/{name}, {heading}: no table"
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)] for row in rows[2:]]


def code(cell: str) -> str:
    """What stands in backticks."""
    found = re.fullmatch(r"`([^`]+)`", cell)
    assert found is not None, f"{cell!r} is not in backticks"
    return found[1]


def shown(default: Any) -> str:
    """A default as the documents write it."""
    if isinstance(default, bool) or default is None:
        return str(default)
    if isinstance(default, int):
        return f"{default:_}"
    return json.dumps(default) if isinstance(default, str) else str(default)


def fields_of(settings: type[Any]) -> dict[str, str]:
    fields = dataclasses.fields(settings)
    return {
        field.name: shown(field.default) if field.default is not dataclasses.MISSING else f"{field.type}()"
        for field in fields
    }


def parameters_of(function: Callable[..., Any]) -> dict[str, str]:
    """The parameters that have a default."""
    parameters = inspect.signature(function).parameters.values()
    return {it.name: shown(it.default) for it in parameters if it.default is not inspect.Parameter.empty}


SETTINGS = [
    ("server.md", "`Backsync(…)`", parameters_of(Backsync)),
    ("server.md", "`sync.model(name, …)`", parameters_of(Backsync.model)),
    ("stores.md", "`SQLStore`", parameters_of(SQLStore)),
    ("server.md", "`Limits`", fields_of(Limits)),
    ("server.md", "`Memory`", fields_of(Memory)),
    ("server.md", "`Horizon`", fields_of(Horizon)),
    ("sockjs.md", "`Settings`", fields_of(Settings)),
    ("sockjs.md", "`Timing`", fields_of(Timing)),
]


@pytest.mark.parametrize(("name", "heading", "fields"), SETTINGS, ids=[heading for _, heading, _ in SETTINGS])
def test_a_table_names_each_setting_with_its_default(name: str, heading: str, fields: dict[str, str]) -> None:
    assert {code(row[0]): code(row[1]) for row in table(name, heading)} == fields


@pytest.mark.parametrize(
    ("name", "heading", "settings"),
    [
        ("server.md", "`Limits`", Limits),
        ("server.md", "`Memory`", Memory),
        ("server.md", "`Horizon`", Horizon),
        ("sockjs.md", "`Settings`", Settings),
        ("sockjs.md", "`Timing`", Timing),
    ],
)
def test_a_table_gives_numbers_a_unit(name: str, heading: str, settings: type[Any]) -> None:
    """Times are floats and in seconds, other numbers are integers: bytes, or what is counted."""
    units = {code(row[0]): row[2] for row in table(name, heading)}
    for field in dataclasses.fields(settings):
        if type(field.default) in (int, float):
            assert units[field.name], f"{field.name} has no unit"
            assert (units[field.name] == "seconds") is (type(field.default) is float), field.name


def test_the_error_codes_are_those_of_the_code() -> None:
    assert {code(row[0]) for row in table("server.md", "Error codes")} == set(CODES)
    assert {code(row[0]) for row in table("protocol.md", "Error codes")} == set(CODES)


def test_the_close_codes_are_those_of_the_code() -> None:
    named = {code(row[0]) for row in table("protocol.md", "Close codes")}
    own = {*REFUSED.values(), REFUSED_OTHERWISE, OVERFLOW, SNAPSHOT_FAILED, STALE}
    frames = {frame.code for frame in (GOING_AWAY, INTERRUPTED, TIMED_OUT, OCCUPIED)}
    assert {str(number) for number in own | frames} <= named


# ── Links and commands ───────────────────────────────────────────────────────────────────────────────────────────────


def anchors(text: str) -> set[str]:
    """The names that headings have as targets of links."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    path = ROOT / "docs" / name
    for target in re.findall(r"\[[^\]]+\]\((?!https?:)([^)\s]+)\)", path.read_text()):
        file, _, anchor = target.partition("#")
        linked = path if not file else (path.parent / file).resolve()
        assert linked.exists(), f"docs/{name} links to {target}"
        assert not anchor or anchor in anchors(linked.read_text()), f"docs/{name} links to {target}"


@pytest.mark.parametrize("name", NAMES)
def test_the_options_of_uvicorn_exist(name: str) -> None:
    known = {option for it in uvicorn_command.params for option in (*it.opts, *it.secondary_opts)}
    for line in (ROOT / "docs" / name).read_text().splitlines():
        if re.match(r"uvicorn |ExecStart=\S+uvicorn |\| `--", line):
            assert set(re.findall(r"(?<=[ `])--[a-z0-9-]+", line)) <= known, line


def test_the_statuses_of_rest_are_those_of_the_code() -> None:
    assert {code(row[0]): int(row[1][:3]) for row in table("rest.md", "Errors")} == STATUS
