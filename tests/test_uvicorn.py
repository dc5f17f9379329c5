"""Our WebSocket protocol for uvicorn, on a transport that only notes; tests/sockjs has it on real sockets."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import socket
import ssl
import tomllib
from collections.abc import AsyncIterator, Callable, MutableMapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from itertools import accumulate, pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from uvicorn import Config
from uvicorn.server import ServerState

import backsync_asgi.uvicorn as ours
from backsync_asgi import Backsync, Context
from backsync_asgi.connection import HEARD_AT_ONCE
from backsync_asgi.sockjs.app import ASGIApp
from backsync_asgi.sockjs.receivers import Direct, Receive, Scope, Send
from backsync_asgi.stores import MemoryStore
from backsync_asgi.uvicorn import FRAMES_AT_ONCE, MAX_PARTS, Gate, Inbox, WebSocketProtocol, fd_of
from tests.servers import ROOT

HANDSHAKE = (
    b"GET /websocket HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
TEXT, BYTES, CLOSE = 1, 2, 8
Event = MutableMapping[str, Any]


class FakeTransport(asyncio.Transport):
    """Notes what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closing = False
        self.aborted = False
        self.reading = True
        self.waiting = 0  # bytes in the buffer
        self.extra: dict[str, Any] = {}
        self.before: Any = None  # the protocol that has the connection before ours

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def get_protocol(self) -> Any:
        return self.before

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.extra.get(name, default)

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True

    def is_closing(self) -> bool:
        return self.closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class App:
    """Accepts, then takes messages directly where `takes` says so, and all others by `receive` once it may."""

    def __init__(self, takes: Callable[[str | bytes], bool] | None) -> None:
        self.takes = takes
        self.got: list[Any] = []
        self.scope: Scope = {}
        self.may_receive = asyncio.Event()
        self.may_receive.set()

    @property
    def direct(self) -> Direct:
        direct: Direct = self.scope["extensions"]["backsync.frames"]
        return direct

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        await receive()
        await send({"type": "websocket.accept"})
        if self.takes is not None:
            self.direct.on_message(self.take)
        while True:
            await self.may_receive.wait()
            event = await receive()
            if event["type"] == "websocket.disconnect":
                self.got.append(event["code"])
                return
            self.got.append(event.get("text") or event.get("bytes"))
            if self.takes is not None:
                self.direct.heard()

    def take(self, message: str | bytes) -> bool:
        assert self.takes is not None
        if self.takes(message):
            self.got.append(message)
            return True
        return False


def accepted(
    app: ASGIApp, max_size: int = 1 << 24, waiting: int = 0, tls: bool = False
) -> tuple[WebSocketProtocol, FakeTransport]:
    """A connection before its handshake. waiting: bytes that are in the transport's buffer already."""
    config = Config(app, ws_ping_interval=None, log_level="critical", proxy_headers=False, ws_max_size=max_size)
    config.load()
    protocol, transport = WebSocketProtocol(config, ServerState(), {}), FakeTransport()
    transport.waiting = waiting
    if tls:
        transport.extra["sslcontext"] = ssl.create_default_context()
    protocol.connection_made(transport)
    return protocol, transport


@asynccontextmanager
async def connection(
    app: ASGIApp, more: bytes = b"", path: bytes = b"/websocket", max_size: int = 1 << 24
) -> AsyncIterator[tuple[WebSocketProtocol, FakeTransport]]:
    """A connection after its handshake, with which `more` has come."""
    protocol, transport = accepted(app, max_size)
    protocol.data_received(HANDSHAKE.replace(b"/websocket", path) + more)
    await settle()
    assert transport.written.startswith(b"HTTP/1.1 101 ")
    transport.written = b""
    yield protocol, transport
    if not protocol.disconnected:
        protocol.connection_lost(None)
    if isinstance(app, App):
        app.may_receive.set()
    await settle()


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


def frame(payload: bytes, opcode: int = TEXT, final: bool = True, mask: bytes | None = bytes(4)) -> bytes:
    """A client's frame. mask: zeros change nothing; with None it is none."""
    size, masked = len(payload), 0x80 * (mask is not None)
    head = bytes([0x80 * final | opcode, masked | min(size, 126)])
    if size > 125:
        head = head + size.to_bytes(2, "big") if size < 65_536 else head[:1] + bytes([masked | 127]) + size.to_bytes(8)
    if mask is None:
        return head + payload
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


async def test_messages_are_handed_over_as_they_come() -> None:
    app = App(lambda message: True)
    async with connection(app) as (protocol, transport):
        protocol.data_received(frame(b"1") + frame(b"2", BYTES) + frame(b"3", final=False) + frame(b"4", 0))
        assert app.got == ["1", b"2", "34"], "without a turn of the event loop"
        assert transport.reading
    assert app.got[3:] == [1005]


async def test_without_a_taker_everything_comes_by_receive() -> None:
    app = App(None)
    async with connection(app) as (protocol, _):
        protocol.data_received(frame(b"1") + frame(b"2", BYTES))
        await settle()
        assert app.got == ["1", b"2"]


async def test_messages_that_came_with_the_handshake_come_first() -> None:
    app = App(lambda message: True)
    async with connection(app, frame(b"1") + frame(b"2")) as (protocol, _):
        protocol.data_received(frame(b"3"))
        assert app.got == ["1", "2", "3"]


def opcodes_in(written: bytes) -> list[int]:
    """Of a server's frames, none of which is long."""
    opcodes, at = [], 0
    while at < len(written):
        opcodes.append(written[at] & 0x0F)
        at += 2 + written[at + 1]
    return opcodes


PING = 9
FRAMES = st.one_of(
    st.builds(
        frame,
        st.one_of(
            st.text(max_size=5).map(str.encode),
            st.sampled_from([125, 126, 127, 128, 1000, 1001]).map(lambda size: b"x" * size),
            st.binary(max_size=3),
        ),
        st.sampled_from([TEXT, TEXT, TEXT, BYTES, 0, PING]),
        st.sampled_from([True, True, False]),
        st.binary(min_size=4, max_size=4),
    ),
    st.sampled_from([frame(b"\x03\xe8bye", CLOSE), frame(b"x", mask=None), frame(b"", 3), frame(b"x" * 70_000)]),
)


async def test_no_message_may_stand_between_the_parts_of_another() -> None:
    app = App(lambda message: True)
    async with connection(app) as (protocol, transport):
        protocol.data_received(frame(b"part", final=False))
        protocol.data_received(frame(b"another"))
        await settle()
        assert app.got == [1002]
        assert transport.closing


async def test_a_message_that_came_in_part_with_the_handshake_is_put_together() -> None:
    said = frame(b"one\r\n\r\ntwo")
    app = App(lambda message: True)
    async with connection(app, said[:-3]) as (protocol, _):
        protocol.data_received(said[-3:] + frame(b"three"))
        await settle()
        assert app.got == ["one\r\n\r\ntwo", "three"]


CUTS = st.tuples(st.integers(0, 8), st.sampled_from([0, 0, 0, 1, 2, 3, 7, 100]))  # so many bytes into a frame


@given(st.lists(FRAMES, max_size=8), st.lists(CUTS, max_size=4))
async def test_what_is_taken_at_once_is_what_the_parser_would_take(
    frames: Sequence[bytes], cuts: Sequence[tuple[int, int]]
) -> None:
    data = b"".join(frames)
    begins = [*accumulate(map(len, frames), initial=0)]
    at = [0, *sorted(min(begins[frame % len(begins)] + more, len(data)) for frame, more in cuts), len(data)]
    cut_up = [data[start:end] for start, end in pairwise(at) if start < end]
    results = []
    for parses, parts in (True, frames), (False, cut_up):
        app = App(lambda message: True)
        async with connection(app, max_size=1000) as (protocol, transport):
            if parses:
                protocol._take_text = lambda data, at: at  # type: ignore[method-assign]
            for part in parts:
                if not transport.closing:
                    protocol.data_received(part)
            await settle()
            results.append((app.got, transport.written, transport.closing))
    (expected, _, closing), (got, written, closing_too) = results
    assert closing_too == closing
    if expected[-1] in (1000, 1005):
        assert results[1] == results[0]
    else:  # what came in one go with it may be heard or not
        assert got[:-1] == expected[: len(got) - 1]
        assert got[-1] in (1000, 1002, 1007, 1009)
        opcodes = opcodes_in(written)
        assert opcodes.index(CLOSE) == len(opcodes) - 1


async def test_whole_messages_do_not_pass_through_the_parser() -> None:
    app = App(lambda message: True)
    async with connection(app) as (protocol, _):
        parsed: list[bytes | bytearray] = []
        parse = protocol.conn.receive_data

        def noted(data: bytes | bytearray) -> None:
            parsed.append(data)
            parse(data)

        protocol.conn.receive_data = noted  # type: ignore[method-assign]
        one, large, ping, part = frame(b"one"), frame(b"x" * 30_000), frame(b"", PING), frame(b"par", final=False)
        protocol.data_received(one + large + one)
        assert parsed == []
        protocol.data_received(one + ping + one)
        protocol.data_received(large[:100])
        protocol.data_received(large[100:])
        assert parsed == [ping, large[:100], large[100:]], "since they are no text, or not whole"
        protocol.data_received(part)
        protocol.data_received(frame(b"t", 0))
        protocol.data_received(one)
        assert parsed[3:] == [part, frame(b"t", 0)]
        assert app.got == ["one", "x" * 30_000, *["one"] * 3, "x" * 30_000, "part", "one"]


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans())))
async def test_messages_keep_their_order_whoever_takes_them(steps: Sequence[tuple[bool, bool, bool]]) -> None:
    taking = True
    app = App(lambda message: taking)
    async with connection(app) as (protocol, _):
        for number, (taking, receiving, settling) in enumerate(steps):  # noqa: B007 - the app looks at `taking`
            if receiving:
                app.may_receive.set()
            else:
                app.may_receive.clear()
            protocol.data_received(frame(b"%d" % number))
            if settling:
                await settle()
    assert app.got == [*map(str, range(len(steps))), 1005]


@pytest.mark.parametrize("takes", [True, False])
async def test_nothing_overtakes_a_message_that_middleware_holds_back(takes: bool) -> None:
    app = App(lambda message: takes)
    may_pass = asyncio.Event()

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        async def held_back() -> Event:
            event = await receive()
            if event["type"] == "websocket.receive":
                await may_pass.wait()
            return event

        await app(scope, held_back, send)

    async with connection(middleware, frame(b"1")) as (protocol, _):
        protocol.data_received(frame(b"2"))
        await settle()
        takes = True
        protocol.data_received(frame(b"3"))
        assert app.got == []
        may_pass.set()
        await settle()
        protocol.data_received(frame(b"4"))
        assert app.got == ["1", "2", "3", "4"], "the last one at once"


async def test_a_peer_that_talks_nonsense_and_does_not_read_is_closed_once() -> None:
    sync, sent = Backsync(), []

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        async def noted(event: Event) -> None:
            sent.append(event["type"])
            await send(event)

        await sync(scope, receive, noted)

    async with connection(middleware, path=b"/a/b/websocket") as (protocol, transport):
        protocol.pause_writing()
        protocol.data_received(frame(b"nonsense") * 1000)
        await settle()
        protocol.resume_writing()
        await settle()
        assert sent[1:] == ["websocket.send", "websocket.close"], "what waits for the peer does not grow"
        assert transport.written == bytes([0x80 | CLOSE, 17]) + (3000).to_bytes(2, "big") + b"Broken framing."


async def test_handlers_find_the_context_of_their_connection() -> None:
    said: ContextVar[str] = ContextVar("said", default="nothing")
    heard: list[str] = []
    sync = Backsync()

    @sync.model("Thing").on("ask")
    async def ask(ctx: Context, data: None) -> None:
        heard.append(said.get())

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        said.set("something")
        await sync(scope, receive, send)

    async with connection(middleware) as (protocol, _):
        for _ in range(2):
            protocol.data_received(frame(b'{"event":"Thing:ask"}'))
            await settle()
    assert heard == ["something"] * 2


async def test_a_write_that_has_nothing_to_wait_for_is_done_as_it_comes() -> None:
    sync, stored, said = Backsync(), MemoryStore(), MemoryStore()
    sync.model("Stored", store=stored)

    @sync.model("Said", store=said).on("upsert")
    async def save(ctx: Context, data: Any) -> Any:
        assert asyncio.current_task() is not None, "a handler has a task of its own"
        return await ctx.store.upsert(data)

    async with connection(sync) as (protocol, transport):
        for name in ("Stored", "Said"):
            protocol.data_received(frame(b'{"id":1,"event":"%s:upsert","data":{"id":1}}' % name.encode()))
        assert await stored.get(1) == {"id": 1}, "without a turn of the event loop"
        assert await said.get(1) is None
        await settle()
        assert await said.get(1) == {"id": 1}
        assert transport.written.count(b'"data":{"id":1}') == 2


async def test_who_writes_very_much_in_one_go_lets_others_have_their_turn() -> None:
    sync, store = Backsync(), MemoryStore()
    sync.model("Note", store=store)
    flood = b"".join(
        frame(b'{"id":%d,"event":"Note:upsert","data":{"id":%d}}' % (id, id)) for id in range(2 * HEARD_AT_ONCE)
    )
    async with connection(sync) as (protocol, transport):
        protocol.data_received(flood)
        assert len(store) == HEARD_AT_ONCE
        await settle()
        assert len(store) == 2 * HEARD_AT_ONCE
        replied = re.findall(rb'{"id":(\d+),"event"', transport.written)
        assert [*map(int, replied)] == [*range(2 * HEARD_AT_ONCE)]


async def test_a_message_that_has_to_wait_stops_the_reading() -> None:
    app = App(lambda message: False)
    async with connection(app) as (protocol, transport):
        app.may_receive.clear()
        protocol.data_received(frame(b"1"))  # which the `receive` takes that waits already
        await settle()
        protocol.data_received(frame(b"2"))
        assert not transport.reading
        app.may_receive.set()
        await settle()
        assert app.got == ["1", "2"]
        assert transport.reading


@pytest.mark.parametrize("takes", [True, False])
async def test_a_flood_lets_others_have_their_turn(takes: bool) -> None:
    app = App(lambda message: takes)
    async with connection(app) as (protocol, transport):
        app.may_receive.clear()
        flood = frame(b"x" * 100) * 700
        protocol.data_received(flood)
        assert not transport.reading
        await settle()
        assert transport.reading is takes
        app.may_receive.set()
        while len(app.got) < 700:
            await settle()
        assert transport.reading
        protocol.data_received(flood + frame(b"", CLOSE))
        await settle()
        assert app.got[-2:] == ["x" * 100, 1005]


def cost_of(protocol: WebSocketProtocol) -> list[bytes]:
    """What the parser gets from now on."""
    parsed: list[bytes] = []
    parse = protocol.conn.receive_data

    def noted(data: bytes | bytearray) -> None:
        parsed.append(bytes(data))
        parse(data)

    protocol.conn.receive_data = noted  # type: ignore[method-assign]
    return parsed


PONG, CONTINUATION = 10, 0
FLOODS = {
    "pings": frame(b"", PING),
    "long pings": frame(b"x" * 125, PING),
    "pongs": frame(b"", PONG),
    "empty fragments": frame(b"", CONTINUATION, final=False),
    "fragments of one byte": frame(b"x", CONTINUATION, final=False),
}


@pytest.mark.parametrize("one", FLOODS.values(), ids=FLOODS)
async def test_frames_that_are_no_messages_are_taken_a_few_at_a_time(
    one: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kind: work for one client between two turns of the event loop. It is bounded by frames, not by bytes alone."""
    monkeypatch.setattr(ours, "REST", 0.0)
    app = App(lambda message: True)
    async with connection(app) as (protocol, transport):
        parsed = cost_of(protocol)
        begun = frame(b"x", final=False) if one[0] & 0x0F == CONTINUATION else b""
        protocol.data_received(begun + one * 500)
        assert len(parsed) == FRAMES_AT_ONCE
        assert not transport.reading
        await asyncio.sleep(0)
        assert len(parsed) <= 2 * FRAMES_AT_ONCE
        await settle()
        assert len(parsed) >= 500
        assert transport.reading


async def test_a_client_that_sends_no_messages_has_to_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pings cost their sender nothing, so the next ones are taken later."""
    app = App(lambda message: True)
    async with connection(app) as (protocol, _):
        delays: list[float] = []
        loop = SimpleNamespace(
            call_soon=lambda *args: delays.append(0.0), call_later=lambda delay, *args: delays.append(delay)
        )
        real, protocol.loop = protocol.loop, loop  # type: ignore[assignment]
        protocol.data_received(frame(b"", PING) * 500)
        protocol._turn, protocol._held = None, b""
        protocol.data_received(frame(b"x") * 500)
        protocol.loop = real
        assert delays == [ours.REST, 0.0]


async def test_a_message_has_a_bounded_number_of_fragments() -> None:
    """Kind: what one client may have held without end: a message that never ends, a byte at a time."""
    app = App(lambda message: True)
    async with connection(app) as (protocol, transport):
        protocol.data_received(frame(b"", final=False))
        for _ in range(MAX_PARTS - 1):
            protocol.data_received(frame(b"x", CONTINUATION, final=False))
        assert not transport.closing
        protocol.data_received(frame(b"x", CONTINUATION, final=False))
        await settle()
        assert app.got == [1009]
        assert transport.closing


@pytest.mark.parametrize(
    "begun",
    [
        frame(b"x", final=False),
        frame(b"x" * 100)[:50],
        frame(b"x")[:1],
        frame(b"x" * 300)[:3],
        frame(b"x", final=False) + frame(b"", PING),
    ],
)
async def test_a_message_must_come_in_time(begun: bytes) -> None:
    app = App(lambda message: True)
    async with connection(app) as (protocol, transport):
        protocol.data_received(frame(b"whole"))
        assert protocol._message_timer is None, "no message has begun"
        protocol.data_received(begun)
        timer = protocol._message_timer
        assert timer is not None
        assert timer.when() <= protocol.loop.time() + ours.MESSAGE_DEADLINE
        protocol._message_overdue()
        await settle()
        assert app.got == ["whole", 1008]
        assert transport.closing


async def test_a_message_that_came_in_time_is_not_waited_for() -> None:
    app = App(lambda message: True)
    async with connection(app) as (protocol, _):
        said = frame(b"x" * 300)
        for byte in said[:-1]:
            protocol.data_received(bytes([byte]))
        timer = protocol._message_timer
        assert timer is not None
        protocol.data_received(said[-1:])
        assert timer.cancelled()
        assert protocol._message_timer is None
        assert app.got == ["x" * 300]


async def test_answers_to_pings_do_not_pile_up_for_a_peer_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "REST", 0.0)
    app = App(lambda message: True)
    async with connection(app) as (protocol, transport):
        protocol.pause_writing()
        for number in range(1000):
            protocol.data_received(frame(b"%03d" % number, PING))
        assert transport.written == b""
        protocol.resume_writing()
        await settle()
        assert transport.written == bytes([0x80 | PONG, 3]) + b"999", "the last one answers all"


async def test_text_that_is_no_utf8_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    app = App(lambda message: True)
    async with connection(app) as (protocol, transport):
        protocol.data_received(frame(b"\xff"))
        await settle()
        assert app.got == [1007]
        assert transport.written == b"\x88\x02" + (1007).to_bytes(2, "big")
        assert transport.closing
    assert not caplog.records


async def test_text_that_is_no_utf8_may_come_together_with_the_goodbye(caplog: pytest.LogCaptureFixture) -> None:
    app = App(lambda message: True)
    async with connection(app) as (protocol, transport):
        protocol.data_received(frame(b"", BYTES) + frame(b"\xff") + frame(b"late") + frame(b"\x03\xe8", CLOSE))
        await settle()
        assert app.got == [b"", 1007]
        assert transport.closing
    assert not caplog.records


@pytest.mark.parametrize("said", [frame(b"x", mask=None), frame(b"", 3), frame(b"", 0), frame(b"x" * 300_000)])
async def test_what_is_no_frame_may_come_before_the_handshake_is_answered(said: bytes) -> None:
    protocol, transport = accepted(App(None))
    protocol.data_received(HANDSHAKE)
    protocol.data_received(said)
    assert transport.aborted
    protocol.connection_lost(None)
    await settle()


async def test_text_that_is_no_utf8_may_come_before_the_handshake_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    protocol, transport = accepted(App(None))
    protocol.data_received(HANDSHAKE + frame(b"\xff"))
    assert transport.aborted
    protocol.connection_lost(None)
    await settle()
    assert not caplog.records


async def test_nothing_is_handed_over_once_the_application_has_closed() -> None:
    app = App(lambda message: True)
    async with connection(app) as (protocol, transport):
        await protocol.send({"type": "websocket.close", "code": 3000})
        protocol.data_received(frame(b"late"))
        protocol.data_received(frame((3000).to_bytes(2, "big"), CLOSE))
        await settle()
        assert app.got == [3000]
        assert transport.closing


async def test_it_tells_whether_the_peer_keeps_up() -> None:
    app = App(lambda message: True)
    async with connection(app) as (protocol, transport):
        said: list[bool] = []
        app.direct.on_writability(lambda: said.append(app.direct.frames_writable))
        assert app.direct.frames_writable
        app.direct.write_frame(b"\x81\x01x")
        assert transport.written == b"\x81\x01x"
        protocol.pause_writing()
        protocol.resume_writing()
        assert said == [False], "asyncio's transport must not be written to while it calls this: it would close twice"
        await settle()
        protocol.connection_lost(None)
        assert said == [False, True, False], "a transport that is closed must not be written to"


@pytest.mark.parametrize("then", ["pause_writing", "shutdown"])
async def test_a_peer_may_stop_to_keep_up_at_once(then: str) -> None:
    app = App(lambda message: True)
    async with connection(app) as (protocol, _):
        protocol.pause_writing()
        protocol.resume_writing()
        getattr(protocol, then)()
        await settle()
        assert not app.direct.frames_writable


async def test_a_peer_that_resets_the_connection_as_it_is_written_to_leaves_no_traceback() -> None:
    """On asyncio's own transport, as it tells that its buffer is low: what was written then closed it twice."""
    errors: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: errors.append(context))
    app = App(lambda message: True)
    config = Config(app, ws_ping_interval=None, log_level="critical", proxy_headers=False)
    config.load()
    protocol = WebSocketProtocol(config, ServerState(), {})
    here, there = socket.socketpair()
    transport: Any
    transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, here)
    protocol.connection_made(transport)
    transport.set_protocol(protocol)
    protocol.data_received(HANDSHAKE)
    await settle()
    lost = asyncio.Event()

    def write_or_end() -> None:
        if app.direct.frames_writable:
            app.direct.write_frame(b"next")
        elif transport.is_closing():
            lost.set()

    app.direct.on_writability(write_or_end)
    real = transport._sock

    class Reset:
        """A socket that takes all, then says that its peer has reset the connection."""

        sent = False

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def send(self, data: bytes) -> int:
            if self.sent:
                raise ConnectionResetError
            self.sent = True
            return len(data)

    transport.write(bytes(8 * 2**20))
    assert not protocol.frames_writable
    transport._sock = Reset()
    there.recv(2**20)
    async with asyncio.timeout(5.0):
        await lost.wait()
    await settle()
    loop.set_exception_handler(None)
    there.close()
    assert errors == []


async def test_what_was_not_read_of_an_earlier_answer_goes_first() -> None:
    """Requests may be pipelined. That the transport is paused it told the HTTP protocol, and tells it once."""
    app = App(lambda message: True)
    protocol, transport = accepted(app, waiting=1)
    protocol.data_received(HANDSHAKE)
    await settle()
    assert not protocol.frames_writable
    assert transport.written == b""
    transport.waiting = 0
    protocol.resume_writing()
    await settle()
    assert protocol.frames_writable
    assert transport.written.startswith(b"HTTP/1.1 101 ")
    protocol.connection_lost(None)
    await settle()


async def test_an_upgrade_while_an_earlier_request_is_answered_is_refused() -> None:
    """Kind: what is pipelined or upgraded while an earlier answer is under way. The bytes of both would be mixed."""
    app = App(lambda message: True)
    config = Config(app, ws_ping_interval=None, log_level="critical")
    config.load()
    protocol, transport = WebSocketProtocol(config, ServerState(), {}), FakeTransport()
    transport.before = SimpleNamespace(cycle=SimpleNamespace(response_complete=False))
    protocol.connection_made(transport)
    protocol.data_received(HANDSHAKE)
    await settle()
    assert transport.aborted
    assert transport.written == b""
    assert app.scope == {}, "the application does not see it"
    protocol.shutdown()
    protocol.connection_lost(None)
    assert not protocol.connections


def test_a_socket_has_a_number_where_what_is_written_is_what_goes_over_it() -> None:
    transport = FakeTransport()
    with socket.socket() as ours:
        transport.extra["socket"] = ours
        assert fd_of(transport) is None, "it may write something else than it is given"
        plain = type("_SelectorSocketTransport", (FakeTransport,), {"__module__": "asyncio.selector_events"})()
        assert fd_of(plain) is None
        plain.extra["socket"] = ours
        assert fd_of(plain) == ours.fileno()


async def measure_socket() -> int | None:
    """What `fd_of` says of a real connection."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    transport, _ = await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname())
    fd = fd_of(transport)
    transport.abort()
    server.close()
    return fd


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_the_sockets_of_both_event_loops_are_known(run: Callable[[Any], int | None]) -> None:
    """Their classes are known by name: a broadcast would be slower if a name changed."""
    assert run(measure_socket()) is not None


async def test_a_transport_behind_tls_is_paused_when_something_waits_only() -> None:
    """A TLS transport pauses when as much waits as its limit, so 0 would pause it for ever."""
    app = App(lambda message: True)
    protocol, transport = accepted(app)
    protocol.data_received(HANDSHAKE)
    assert transport.high == 1
    protocol.connection_lost(None)
    await settle()


async def test_a_transport_behind_tls_is_closed_once() -> None:
    """asyncio's forgets its connection at the second close, and could not be aborted after it."""
    app = App(lambda message: True)
    protocol, transport = accepted(app, tls=True)
    closes: list[None] = []
    close = transport.close
    transport.close = lambda: (closes.append(None), close())[1]  # type: ignore[method-assign, func-returns-value]
    protocol.data_received(HANDSHAKE)
    await settle()
    protocol.shutdown()
    protocol.transport.close()
    assert len(closes) == 1
    protocol.transport.abort()
    assert transport.aborted
    protocol.connection_lost(None)
    await settle()


async def test_the_number_is_withdrawn_before_anything_else_hears_of_the_end() -> None:
    app = App(lambda message: True)
    async with connection(app) as (protocol, _):
        protocol.frames_fd = 12_345
        told: list[tuple[bool, int | None]] = []
        app.direct.on_writability(lambda: told.append((app.direct.frames_writable, app.direct.frames_fd)))
        queue = protocol.queue
        protocol.queue = None  # type: ignore[assignment]  # so that what uvicorn does fails
        with pytest.raises(AttributeError):
            protocol.connection_lost(None)
        protocol.queue = queue
        assert told == [(False, None)]


async def close(protocol: WebSocketProtocol) -> None:
    await protocol.send({"type": "websocket.close", "code": 3000})


ENDS: dict[str, Callable[[WebSocketProtocol], Any]] = {
    "the peer's close frame": lambda protocol: protocol.data_received(frame(b"", CLOSE)),
    "a frame that is none": lambda protocol: protocol.data_received(b"\xff\xff"),
    "the end of what the peer sends": lambda protocol: protocol.eof_received(),
    "the server's end": lambda protocol: protocol.shutdown(),
    "the application's close": close,
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("reads", [True, False])
async def test_no_frame_follows_a_close_frame(end: Callable[[WebSocketProtocol], Any], reads: bool) -> None:
    app = App(lambda message: True)
    async with connection(app) as (protocol, transport):
        said: list[bool] = []
        app.direct.on_writability(lambda: said.append(app.direct.frames_writable))
        protocol.close_timeout = 0.0
        if (ending := end(protocol)) is not None:
            await ending
        protocol.resume_writing()
        assert set(said) == {False}
        if reads:
            protocol.connection_lost(None)
        await settle()
        assert transport.aborted is not reads, "a peer that does not read is not waited for"


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
async def test_the_server_may_end_while_a_connection_does(end: Callable[[WebSocketProtocol], Any]) -> None:
    async with connection(App(lambda message: True)) as (protocol, transport):
        if (ending := end(protocol)) is not None:
            await ending
        said = transport.written
        protocol.shutdown()
        assert transport.closing or end is ENDS["the end of what the peer sends"], "which its transport sees to"
        assert transport.written == said, "no second close frame"


async def test_a_peer_that_answers_no_ping_is_gone_though_it_reads_nothing_either() -> None:
    async with connection(App(lambda message: True)) as (protocol, transport):
        protocol.keepalive_timeout()
        assert transport.written.startswith(b"\x88"), "a close frame, if it gets through"
        assert transport.aborted
        assert not protocol.frames_writable, "nothing follows a close frame"


def on_a_line_that_has(
    states: Sequence[tuple[int, int] | None], protocol: WebSocketProtocol, monkeypatch: pytest.MonkeyPatch
) -> list[bool]:
    """Whether the connection still lives at each look at its ping; so much has not been taken then."""
    looks = iter(states)
    monkeypatch.setattr(ours, "unsent", lambda transport: next(looks))
    protocol.ping_timeout = 100.0
    protocol.send_keepalive_ping()
    lives = []
    for _ in states[1:]:
        assert protocol.pong_timer is not None
        protocol.pong_timer.cancel()
        protocol.keepalive_timeout()
        lives.append(not protocol.transport.is_closing())
        if not lives[-1]:
            break
    return lives


MUCH = 1_000_000


@pytest.mark.parametrize(
    ("states", "lives"),
    [
        ([(MUCH, 9), (MUCH - 1, 9), (MUCH - 1, 8), (MUCH - 1, 8)], [True, True, False]),
        ([(0, MUCH), (0, MUCH - 1), (0, 0)], [True, False]),
        ([(MUCH, 9), (MUCH, 9)], [False]),
        ([(0, 6), (0, 0)], [False]),
        ([None, None], [False]),
    ],
    ids=["stops taking", "has taken the ping", "takes nothing", "is not slow", "unknown"],
)
async def test_a_peer_on_a_slow_line_is_given_time_for_what_stands_before_a_ping(
    states: Sequence[tuple[int, int] | None], lives: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kind: a deadline for something long counts the time in which nothing was taken."""
    async with connection(App(lambda message: True)) as (protocol, _):
        assert on_a_line_that_has(states, protocol, monkeypatch) == lives


async def test_an_idle_connection_keeps_nothing_of_its_handshake() -> None:
    async with connection(App(None)) as (protocol, _):
        assert protocol.request is None
        assert protocol.response is None


async def test_a_receive_that_is_cancelled_takes_nothing_with_it() -> None:
    inbox = Inbox()
    waiting = [asyncio.ensure_future(inbox.get()) for _ in range(2)]
    await settle()
    inbox.put_nowait({"type": "1"})
    waiting[0].cancel()
    await settle()
    assert waiting[1].result() == {"type": "1"}
    assert inbox.empty()


async def test_a_gate_lets_all_through_that_wait() -> None:
    gate = Gate()
    waiting = [asyncio.ensure_future(gate.wait()) for _ in range(3)]
    await settle()
    assert not any(task.done() for task in waiting)
    gate.set()
    await settle()
    assert all(task.done() for task in waiting)
    gate.clear()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(gate.wait(), 0.01)


# Which uvicorn


def test_an_older_uvicorn_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn, "__version__", "0.52.4")
    spec = importlib.util.spec_from_file_location("backsync_asgi.older", ours.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=r"got uvicorn 0\.52\.4, expected 0\.53 or later: pip install"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = ".".join(map(str, ours.OLDEST))
    assert project["optional-dependencies"]["server"] == [f"uvicorn[standard]>={oldest}"]
