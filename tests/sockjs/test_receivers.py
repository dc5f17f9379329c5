"""Receivers: a `send` that is stepped in place, or waited for in one task; runs no server."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from backsync_asgi.sockjs.frames import HEARTBEAT, OPEN, Close, Frame, Message, batch
from backsync_asgi.sockjs.receivers import Event, HttpReceiver, Send, SocketReceiver, Writer, unsent
from backsync_asgi.sockjs.transports import TRANSPORTS

DEADLINE = 5.0  # seconds; only a failing test waits so long


def event(number: int) -> Event:
    return {"type": "test", "number": number}


def numbers(events: list[Event]) -> list[int]:
    return [each["number"] for each in events]


class Peer:
    """A server's `send`: it finishes at once, or waits while the peer does not read."""

    def __init__(self) -> None:
        self.sent: list[Event] = []
        self.started: list[Event] = []
        self.fails: dict[int, BaseException] = {}
        self.reads = asyncio.Event()
        self.reads.set()

    async def send(self, event: Event) -> None:
        self.started.append(event)
        await self.wait()
        if (error := self.fails.get(len(self.sent))) is not None:
            raise error
        self.sent.append(event)

    async def wait(self) -> None:
        if not self.reads.is_set():
            await self.reads.wait()


async def settle(writer: Writer, peer: Peer) -> None:
    """Let the peer read, and wait until the writer says that it can be written to again."""
    peer.reads.set()
    await until_writable(writer)


async def until_writable(writer: Writer) -> None:
    changed = asyncio.Event()
    writer.on_writability(changed.set)
    async with asyncio.timeout(DEADLINE):
        await changed.wait()
    assert writer.writable


def tasks() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks()


async def test_a_send_that_does_not_wait_is_done_at_once_and_without_a_task() -> None:
    peer = Peer()
    writer = Writer(peer.send)
    before = tasks()
    writer.write([event(1), event(2)])
    writer.write([event(3)])
    assert numbers(peer.sent) == [1, 2, 3]
    assert tasks() == before
    assert writer.writable


async def test_a_send_that_waits_gets_one_task_and_what_comes_later_stands_behind_it() -> None:
    peer = Peer()
    writer = Writer(peer.send)
    before = tasks()
    peer.reads.clear()
    writer.write([event(1), event(2)])
    writer.write([event(3)])
    assert not writer.writable
    assert numbers(peer.started) == [1]
    assert len(tasks() - before) == 1
    await settle(writer, peer)
    assert numbers(peer.sent) == [1, 2, 3]
    assert writer.writable


async def test_who_waits_for_a_writable_writer_is_called_each_time_and_may_write_right_then() -> None:
    peer = Peer()
    writer = Writer(peer.send)
    done = asyncio.Event()
    calls: list[bool] = []

    def changed() -> None:
        calls.append(writer.writable)
        if writer.writable:
            writer.write([event(10 + len(calls))])
            done.set()

    writer.on_writability(changed)
    for _ in range(2):
        done.clear()
        peer.reads.clear()
        writer.write([event(1)])
        peer.reads.set()
        async with asyncio.timeout(DEADLINE):
            await done.wait()
    assert calls == [False, True, False, True]
    assert numbers(peer.sent) == [1, 12, 1, 14]


async def test_a_bare_pause_inside_send_is_waited_for_too() -> None:
    sent: list[Event] = []

    async def send(event: Event) -> None:
        await asyncio.sleep(0)
        sent.append(event)
        await asyncio.sleep(0)

    writer = Writer(send)
    writer.write([event(1), event(2)])
    await until_writable(writer)
    assert numbers(sent) == [1, 2]


CLOSED = RuntimeError(
    "Unexpected ASGI message 'websocket.send', after sending 'websocket.close'."
)  # as uvicorn says it


@pytest.mark.parametrize(
    "error",
    [OSError("gone"), ConnectionResetError(), CLOSED, RuntimeError("refused"), asyncio.CancelledError()],
    ids=repr,
)
@pytest.mark.parametrize("waits", [False, True], ids=["at once", "after waiting"])
async def test_after_a_failure_nothing_more_is_written(
    error: BaseException, waits: bool, caplog: pytest.LogCaptureFixture
) -> None:
    peer = Peer()
    writer = Writer(peer.send)
    changes: list[bool] = []
    writer.on_writability(lambda: changes.append(writer.writable))
    peer.fails[1] = error
    if waits:
        peer.reads.clear()
    before = tasks()
    with caplog.at_level(logging.WARNING, "backsync.sockjs"):
        writer.write([event(1), event(2), event(3)])
        if waits:
            (task,) = tasks() - before
            peer.reads.set()
            async with asyncio.timeout(DEADLINE):
                await asyncio.wait([task])
    writer.write([event(4)])
    assert numbers(peer.sent) == [1]
    assert writer.failed
    assert not writer.writable
    assert changes, "who writes past the writer must hear of it"
    assert not any(changes)
    # A peer that is gone is no news; anything else is a mistake, and somebody's to see.
    assert len(caplog.records) == (not isinstance(error, OSError) and error is not CLOSED)


async def test_the_error_of_what_send_waits_for_reaches_send() -> None:
    """`send` is a coroutine like any other: it may catch what it awaits, and clean up."""
    waited_for: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    seen: list[str] = []

    async def send(event: Event) -> None:
        try:
            await waited_for
        except ConnectionResetError:
            seen.append("caught")
        await asyncio.sleep(0)
        seen.append("went on")

    writer = Writer(send)
    writer.write([event(1)])
    waited_for.set_exception(ConnectionResetError())
    await until_writable(writer)
    assert seen == ["caught", "went on"]


async def test_an_abort_ends_the_wait_and_tells_send() -> None:
    cleaned_up = asyncio.Event()
    changes: list[bool] = []

    async def send(event: Event) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned_up.set()

    writer = Writer(send)
    writer.on_writability(lambda: changes.append(writer.writable))
    writer.write([event(1), event(2)])
    await asyncio.sleep(0)  # the task has begun to wait
    writer.abort()
    writer.write([event(3)])
    assert not writer.writable
    async with asyncio.timeout(DEADLINE):
        await cleaned_up.wait()
    assert not any(changes)


@pytest.mark.parametrize(
    ("error", "is_gone", "cuts"),
    [
        (ValueError("of middleware's"), False, True),
        (ConnectionResetError("a service of middleware's"), False, True),
        (ConnectionResetError("the peer's"), True, False),
        (CLOSED, False, False),
    ],
    ids=repr,
)
async def test_a_failure_of_which_the_server_does_not_know_cuts_the_connection(
    error: Exception, is_gone: bool, cuts: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Else its peer stays, and nothing comes any more."""

    class Server:
        def __init__(self) -> None:
            self.transport = self
            self.aborted = False

        def is_closing(self) -> bool:
            return is_gone

        def abort(self) -> None:
            self.aborted = True

        async def send(self, event: Event) -> None:
            pass

    server = Server()
    send = server.send

    async def middleware(event: Event) -> None:
        if event["number"] == 2:
            raise error
        await send(event)

    writer = Writer(middleware)
    writer.write([event(1)])
    assert not server.aborted
    writer.write([event(2)])
    assert server.aborted is cuts
    assert len(caplog.records) == cuts


@pytest.mark.parametrize("layers", [0, 1, 3])
async def test_an_abort_cuts_the_connection_of_a_real_server_through_middleware(layers: int) -> None:
    class Transport:
        aborted = False

        def abort(self) -> None:
            self.aborted = True

    class Cycle:
        def __init__(self) -> None:
            self.transport = Transport()

        async def send(self, event: Event) -> None:
            pass

    def wrapped(send: Send) -> Send:
        async def layer(event: Event) -> None:
            await send(event)

        return layer

    cycle = Cycle()
    send: Send = cycle.send
    for _ in range(layers):
        send = wrapped(send)
    Writer(send).abort()
    assert cycle.transport.aborted


@pytest.mark.parametrize("closes", [True, False])
async def test_what_the_server_closes_already_is_cut_where_it_takes_too_long(closes: bool) -> None:
    """A connection that is still open may carry somebody else's next request."""

    class Cycle:
        def __init__(self) -> None:
            self.transport = self
            self.aborted = False

        def is_closing(self) -> bool:
            return closes

        def abort(self) -> None:
            self.aborted = True

        async def send(self, event: Event) -> None:
            pass

    cycle = Cycle()
    Writer(cycle.send).finish()
    assert cycle.aborted is closes


async def test_an_abort_of_a_connection_that_is_closed_already_is_harmless() -> None:
    """It may come seconds later. A transport of asyncio that was closed with a full buffer fails then."""
    closed = asyncio.Event()

    class Cycle(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport = transport
            transport.write(bytes(16 * 2**20))
            transport.close()

        def connection_lost(self, error: Exception | None) -> None:
            closed.set()

        async def send(self, event: Event) -> None:
            pass

    cycle = Cycle()
    async with (
        asyncio.timeout(DEADLINE),
        await asyncio.get_running_loop().create_server(lambda: cycle, "127.0.0.1", 0) as server,
    ):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        await reader.read()
        await closed.wait()
        Writer(cycle.send).abort()
        writer.close()


async def test_an_abort_before_anything_was_written_is_harmless() -> None:
    peer = Peer()
    writer = Writer(peer.send)
    writer.abort()
    writer.write([event(1)])
    assert peer.started == []


# What the receivers write


def http(name: str, send: Send, limit: int = 100) -> HttpReceiver:
    return HttpReceiver(Writer(send), TRANSPORTS[name], "cb", [(b"x", b"y")], limit, 25.0)


async def test_middleware_that_changes_an_event_changes_it_for_its_own_client_only() -> None:
    """As Starlette's GZipMiddleware does."""

    class Compressing(Peer):
        async def send(self, event: Event) -> None:
            for key in event.keys() & {"body", "text"}:
                event[key] = "changed"
            await super().send(event)

    frame = batch([Message("shared")])
    for peer in (Compressing(), Peer()):
        stream = http("xhr_streaming", peer.send)
        stream.start()
        assert not stream.declines(frame)
        assert peer.sent[-1]["body"] == ("changed" if isinstance(peer, Compressing) else b'a["shared"]\n')
        socket = SocketReceiver(Writer(peer.send), raw=False)
        socket.write(OPEN, last=False)
        assert not socket.declines(frame.framed_events)
        peer.reads.clear()
        socket.write(frame, last=False)
        socket.write(frame, last=False)
        await settle(socket._writer, peer)
        assert peer.sent[-1]["text"] == ("changed" if isinstance(peer, Compressing) else 'a["shared"]')
        assert frame.framed_events[0]["text"] == 'a["shared"]'


async def test_a_poll_is_one_complete_response() -> None:
    peer = Peer()
    receiver = http("xhr", peer.send)
    receiver.start()
    assert peer.sent == [], "nothing is told before there is something to tell"
    assert receiver.fills(OPEN)
    receiver.write(OPEN, last=True)
    start, body = peer.sent
    assert start["status"] == 200
    assert dict(start["headers"])[b"content-length"] == b"2"
    assert dict(start["headers"])[b"x"] == b"y"
    assert (body["body"], body["more_body"]) == (b"o\n", False)


async def test_a_stream_starts_with_its_prelude_and_ends_at_its_limit() -> None:
    peer = Peer()
    receiver = http("xhr_streaming", peer.send, limit=20)
    receiver.start()
    assert peer.sent[-1]["body"] == b"h" * 2048 + b"\n"
    message = batch([Message("x" * 5)])  # 11 bytes with its line feed
    assert not receiver.fills(message)
    receiver.write(message, last=False)
    assert receiver.fills(message)
    receiver.write(message, last=True)
    assert [each["more_body"] for each in peer.sent[1:]] == [True, True, False]
    assert b"content-length" not in dict(peer.sent[0]["headers"])


@pytest.mark.parametrize(
    ("raw", "texts"), [(False, ["o", "h", 'a["1","2"]', 'c[3000,"Go"]']), (True, ["1", "2"])], ids=["framed", "raw"]
)
async def test_a_socket_is_accepted_with_the_open_frame(raw: bool, texts: list[str]) -> None:
    peer = Peer()
    receiver = SocketReceiver(Writer(peer.send), raw)
    receiver.subprotocol = "chat"
    frames: list[Frame] = [OPEN, HEARTBEAT, batch([Message("1"), Message("2")])]
    for frame in frames:
        assert not receiver.fills(frame)
        receiver.write(frame, last=False)
    receiver.write(Close(3000, "Go"), last=True)
    await asyncio.sleep(0)
    accept, *sent, close = peer.sent
    assert (accept["type"], accept["subprotocol"]) == ("websocket.accept", "chat")
    assert [each["text"] for each in sent] == texts
    assert (close["type"], close["code"], close["reason"]) == ("websocket.close", 3000, "Go")


async def test_a_socket_that_was_refused_is_closed_without_being_accepted() -> None:
    peer = Peer()
    receiver = SocketReceiver(Writer(peer.send), raw=False)
    receiver.write(Close(4503, "No"), last=True)
    await asyncio.sleep(0)
    assert [each["type"] for each in peer.sent] == ["websocket.close"]


async def test_a_socket_is_closed_in_a_task_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    """A server's `send` that needs a task (uvicorn's `websockets` has a timeout for closing), called from a callback of
    the event loop: a signal, a timer."""
    codes: list[int] = []
    closed = asyncio.Event()

    async def send(event: Event) -> None:
        async with asyncio.timeout(DEADLINE):
            await asyncio.sleep(0)
        codes.append(event["code"])
        closed.set()

    receiver = SocketReceiver(Writer(send), raw=True)
    asyncio.get_running_loop().call_soon(receiver.write, Close(1012, "Service restart"), True)
    async with asyncio.timeout(DEADLINE):
        await closed.wait()
    assert codes == [1012]
    assert not caplog.records


async def test_a_close_waits_for_what_is_written_before_it() -> None:
    peer = Peer()
    receiver = SocketReceiver(Writer(peer.send), raw=True)
    receiver.write(OPEN, last=False)
    peer.reads.clear()
    receiver.write(batch([Message("1")]), last=False)
    receiver.write(Close(3000, "Go"), last=True)
    assert [each["type"] for each in peer.sent] == ["websocket.accept"]
    await settle(receiver._writer, peer)
    assert [each["type"] for each in peer.sent] == ["websocket.accept", "websocket.send", "websocket.close"]


async def test_a_close_code_that_the_server_does_not_take_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    """daphne takes 1000 and those from 3000 on only."""
    codes: list[int] = []

    async def send(event: Event) -> None:
        if 1000 < event["code"] < 3000:
            raise Exception(f"invalid close code {event['code']} (must be 1000 or from [3000, 4999])")
        codes.append(event["code"])

    for code in (1000, 1012, 3000, 4501):
        Writer(send).write([{"type": "websocket.close", "code": code, "reason": ""}])
    assert codes == [1000, 3012, 3000, 4501]
    assert not caplog.records


@pytest.mark.parametrize(
    "text",
    [
        "TaskGroup <TaskGroup entered> is finished",
        "unable to perform operation on <TCPTransport closed=True reading=False 0x55>; the handler is closed",
    ],
    ids=["hypercorn", "uvloop"],
)
async def test_a_server_or_connection_that_ends_is_no_news(text: str, caplog: pytest.LogCaptureFixture) -> None:
    """Else each slow reader that resets its connection while it is written to costs a line of the log."""

    async def send(event: Event) -> None:
        raise RuntimeError(text)

    writer = Writer(send)
    writer.write([event(1)])
    assert writer.failed
    assert not caplog.records


async def measure_unsent() -> list[tuple[int, int] | None]:
    """What `unsent` says of a peer that reads nothing, then reads, and of one whose connection is closed."""
    peer = socket.socket()
    listener = socket.create_server(("127.0.0.1", 0))
    peer.connect(listener.getsockname())
    accepted, _ = listener.accept()
    accepted.setblocking(False)
    transport, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, accepted)
    transport.write(bytes(16 * 2**20))
    seen = [unsent(transport)]
    peer.setblocking(False)
    for _ in range(100):
        await asyncio.get_running_loop().sock_recv(peer, 2**16)
        seen.append(unsent(transport))
    transport.abort()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    seen.append(unsent(transport))
    peer.close()
    listener.close()
    return seen


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_what_a_peer_has_not_taken_changes_as_it_takes_it(run: Callable[[Any], list[tuple[int, int] | None]]) -> None:
    seen = run(measure_unsent())
    assert seen[0] is not None
    assert sum(seen[0]) > 2**20
    assert len(set(seen)) > 2
    assert seen[-1] is None
