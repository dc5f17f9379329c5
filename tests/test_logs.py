"""What clients can do to the log.

The kinds of fault: text of a client's own that begins a line of the log; as many lines as a client likes.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
from sqlalchemy.exc import IntegrityError, OperationalError

from backsync_asgi import Backsync, Context, Reject, testing
from backsync_asgi.logs import BURST, MAX_KINDS, MAX_LINE, PERIOD, Sparing, escaped, protect
from backsync_asgi.stores import MemoryStore
from backsync_asgi.stores.sql import explained
from tests.inprocess import Closed, connect

Record = dict[str, Any]

FORGED = "ERROR:root:admin logged in"
EVILS = [f"x{end}{FORGED}" for end in ("\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\x1b[2K")]


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What a program's log has, in the format of `basicConfig`."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(logging.Formatter(logging.BASIC_FORMAT))
    root, level = logging.getLogger(), logging.getLogger("backsync").level
    root.addHandler(handler)
    logging.getLogger("backsync").setLevel(logging.DEBUG)
    yield out
    logging.getLogger("backsync").setLevel(level)
    root.removeHandler(handler)


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    name: str = ""


@pytest.mark.parametrize("evil", EVILS, ids=ascii)
async def test_a_client_writes_no_line_of_its_own(evil: str, log: io.StringIO) -> None:
    sync = Backsync()
    sync.model("Free", store=MemoryStore(), key="room")
    sync.model("Strict", store=MemoryStore(), schema=Strict)

    @sync.model("Own").on("fail")
    async def fail(ctx: Context, data: Any) -> None:
        try:
            raise KeyError(data)
        except KeyError:
            raise ValueError(f"cannot take {data}") from ExceptionGroup(str(data), [OSError(data)])

    @sync.model("Own").on("refuse")
    def refuse(ctx: Context, data: Any) -> None:
        raise Reject("invalid", str(data))

    @sync.model("Own").on("subscribe")
    def guard(ctx: Context, data: Any) -> None:
        raise Reject("forbidden", str(data))

    free = {"id": 1, "room": "a"}
    said: list[tuple[str, Any, dict[str, Any]]] = [
        (f"Free:{evil}", {}, {}),
        (f"{evil}:read", {}, {}),
        (evil, {}, {}),
        ("Nobody:read", {evil: 1}, {}),
        ("Free:read", {f"${evil}": 1}, {}),
        ("Free:read", {"$order": evil}, {}),
        ("Free:read", {"$limit": evil}, {}),
        ("Free:read", {evil: 2**70}, {}),
        ("Free:upsert", {evil * 100: 1, **free}, {}),
        ("Free:upsert", {"id": [evil], "room": "a"}, {}),
        ("Free:upsert", {"id": 1, "room": [evil]}, {}),
        ("Free:upsert", evil, {}),
        ("Free:patch", {"id": evil}, {}),
        ("Free:patch", free, {"unset": evil}),
        ("Free:subscribe", {"room": [evil]}, {}),
        ("Strict:upsert", {evil: 1}, {}),
        ("Strict:upsert", {"name": {evil: 1}}, {}),
        ("Own:fail", evil, {}),
        ("Own:refuse", evil, {}),
        ("Own:subscribe", {evil: 1}, {}),
        ("$:auth", {"token": evil}, {}),
    ]
    async with connect(sync, "/websocket") as client:
        for event, data, more in said:
            client.send({"event": event, "data": data, **more})
            client.send({"id": evil, "event": event, "data": data, **more})
        client.send_text(evil)
        waiting = {client.ask(f"{name}:read") for name in ("Nobody", "Free", "Strict", "Own")}
        while waiting:  # what was sent before to a model is answered before
            waiting.discard((await client.receive()).get("id"))
    transport = httpx.ASGITransport(app=sync.rest())
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as rest:
        await rest.get("/Free", params={evil: evil, "$limit": evil})
        await rest.get(f"/Free/{evil!a}")
    lines = log.getvalue().splitlines()
    assert any("Own:fail failed" in line for line in lines)
    assert not [line for line in lines if line.lstrip().startswith(FORGED) and not line.startswith("    ")]
    assert "\x1b" not in log.getvalue()


async def test_error_texts_of_ours_are_one_line() -> None:
    sync = Backsync()
    sync.model("Free", store=MemoryStore())
    sync.model("Strict", store=MemoryStore(), schema=Strict)
    async with testing.connect(sync) as client:
        for event, data in [
            ("Strict:upsert", {EVILS[0]: 1}),
            ("Free:upsert", {EVILS[0] * 100: 1}),
            ("Free:read", {EVILS[0]: 2**63}),
            ("Free:read", {f"${EVILS[0]}": 1}),
            ("Free:read", {"$order": EVILS[0]}),
            ("Free:patch", {"id": EVILS[0]}),
        ]:
            with pytest.raises(Reject) as refusal:
                await client.call(event, data)
            assert refusal.value.message.isprintable(), event


def test_a_message_is_cut() -> None:
    assert escaped("a" * MAX_LINE) == "a" * MAX_LINE
    assert escaped("a\n\ud800") == "a\\n\\ud800"
    assert len(escaped("\n" * 2 * MAX_LINE)) <= 2 * MAX_LINE + 8


def test_a_logger_that_is_protected_twice_has_one_filter() -> None:
    protect("backsync", "backsync")
    assert len(logging.getLogger("backsync").filters) == 1


def test_a_message_that_does_not_fit_its_arguments_is_the_handlers_affair(caplog: pytest.LogCaptureFixture) -> None:
    logging.raiseExceptions, before = False, logging.raiseExceptions
    try:
        with caplog.at_level(logging.INFO, "backsync"):
            logging.getLogger("backsync").info("%d", "no number")
    except TypeError:
        pass  # caplog's own handler formats it
    finally:
        logging.raiseExceptions = before


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_of_one_kind_a_few_are_logged_and_the_others_counted(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    sparing = Sparing(logging.getLogger("backsync"), clock)
    for number in range(100):
        sparing.log(logging.ERROR, "one", "line %d", number)
    sparing.log(logging.ERROR, "other", "another line")
    assert [record.getMessage() for record in caplog.records] == ["line 0", "line 1", "line 2", "another line"]
    clock.now += PERIOD
    sparing.log(logging.ERROR, "one", "line %d", 100)
    assert caplog.records[-1].getMessage() == f"line 100 ({100 - BURST} more of these were left out.)"
    clock.now += PERIOD
    sparing.log(logging.ERROR, "one", "line %d", 101)
    assert caplog.records[-1].getMessage() == "line 101"


def test_kinds_are_not_remembered_without_a_bound() -> None:
    sparing = Sparing(logging.getLogger("backsync.nobody"), Clock())
    for number in range(2 * MAX_KINDS):
        sparing.log(logging.ERROR, number, "line")
    assert len(sparing._kinds) == MAX_KINDS


async def test_a_client_cannot_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    sync = Backsync()
    notes = sync.model("Note", store=MemoryStore())

    @notes.on("fail")
    async def fail(ctx: Context, data: Any) -> None:
        raise ValueError(data)

    @notes.allow
    async def unsure(ctx: Context, method: str, old: Record | None, new: Record | None) -> Any:
        return None

    for _ in range(3):  # connections of one address
        async with testing.connect(sync) as client:
            for number in range(50):
                for event in ("Note:fail", "Note:upsert", f"Nobody{number}:read", f"Note:nothing{number}"):
                    with pytest.raises(Reject):
                        await client.call(event, {"id": number})
        async with connect(sync, "/websocket") as raw:
            for number in range(50):
                for event in ("Note:fail", f"Nobody{number}:read", f"Note:nothing{number}", "Note:patch"):
                    raw.send({"event": event, "data": {"id": number}})
                raw.send_text("nonsense")
            await raw.reply(raw.ask("Note:read"))
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert 5 < len(warnings) < 40


def test_a_database_that_is_down_is_not_logged_for_each_request(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(50):
        with pytest.raises(Reject, match="unavailable"), explained("note", at="a test"):
            raise OperationalError("SELECT", {}, OSError("no route to host"))
        with pytest.raises(Reject, match="invalid"), explained("note", at="a test"):
            raise IntegrityError("INSERT", {}, OSError("must not be null"))
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 2 * BURST


async def test_who_comes_and_who_is_refused_is_logged_without_secrets(log: io.StringIO) -> None:
    sync = Backsync()
    notes = sync.model("Note", store=MemoryStore())

    @sync.on("auth")
    async def who(ctx: Context, token: str | None) -> str:
        if token != "s3cret":
            raise Reject("unauthorized", "Sign in first.")
        return token

    @notes.on("subscribe")
    async def guard(ctx: Context, query: Record) -> bool:
        return False

    async with connect(sync, "/websocket") as stranger:
        stranger.send({"event": "$:hello", "data": {"token": "wr0ng"}})
        with pytest.raises(Closed):
            await stranger.receive()
    async with testing.connect(sync, token="s3cret") as client:
        with pytest.raises(Reject):
            await client.subscribe("Note")
        with pytest.raises(Reject):
            await client.auth("wr0ng")
        id = next(iter(sync.connections)).id
    text = log.getvalue()
    assert "was refused: unauthorized: Sign in first." in text
    assert f"The guard of Note refused the connection {id}: forbidden" in text
    assert f"A token of the connection {id} was refused" in text
    assert f"The connection {id} from testclient is open." in text
    assert f"The connection {id} is closed." in text
    assert "s3cret" not in text
    assert "wr0ng" not in text
