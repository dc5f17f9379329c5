"""One frame to many: real sockets, read or not, or without a peer; `send`s that wait or fail."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backsync_asgi.sockjs import fanout
from backsync_asgi.sockjs.fanout import Sockets, Writers, lane_for
from backsync_asgi.sockjs.receivers import Event, Writer


@dataclass
class Peer:
    """Both ends of a socket, and what is left to the transport."""

    ours: socket.socket
    theirs: socket.socket
    left: list[bytes] = field(default_factory=list)

    def read(self) -> bytes:
        """All that waits."""
        got = b""
        while True:
            try:
                got += self.theirs.recv(1 << 20)
            except BlockingIOError:
                return got


@contextmanager
def connected() -> Iterator[Peer]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        yield Peer(ours, theirs)


@pytest.fixture
def peers() -> Iterator[list[Peer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(connected()) for _ in range(5)]


def lane_of(peers: list[Peer]) -> Sockets:
    lane = Sockets()
    for peer in peers:
        lane.add(peer.theirs, peer.ours.fileno(), peer.left.append)
    return lane


@given(st.lists(st.integers(0, 4), max_size=30))
def test_whoever_is_taken_out_gets_nothing_and_all_others_do(toggled: list[int]) -> None:
    lane, inside = Sockets(), set[int]()
    with ExitStack() as stack:
        peers = [stack.enter_context(connected()) for _ in range(5)]
        for at in toggled:
            peer = peers[at]
            if at in inside:
                inside.remove(at)
                assert lane.discard(peer.theirs)
            else:
                assert not lane.discard(peer.theirs)
                lane.add(peer.theirs, peer.ours.fileno(), peer.left.append)
                inside.add(at)
            lane.write(b"frame")
            assert [peer.read() for peer in peers] == [b"frame" * (number in inside) for number in range(5)]
        assert not any(peer.left for peer in peers)


@pytest.mark.parametrize("in_one_go", [1, 2, 4, 5, 512])
def test_all_get_it(peers: list[Peer], in_one_go: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "IN_ONE_GO", in_one_go)
    lane = lane_of(peers)
    lane.write(b"\x81\x03one")
    lane.write("\0 und ü".encode())
    for peer in peers:
        assert peer.read() == b"\x81\x03one" + "\0 und ü".encode()
        assert peer.left == []


def test_what_a_full_socket_does_not_take_is_left_to_its_transport(peers: list[Peer]) -> None:
    stalled = peers[2]
    already = 0
    try:
        while True:
            already += stalled.ours.send(b"x" * 65_536)
    except BlockingIOError:
        pass
    lane_of(peers).write(b"frame")
    assert stalled.left == [b"frame"]
    assert [peer.read() for peer in peers if peer is not stalled] == [b"frame"] * 4
    assert len(stalled.read()) == already


def test_of_what_a_socket_takes_in_part_its_transport_gets_the_rest(peers: list[Peer]) -> None:
    frame = bytes(range(256)) * 40_000
    lane_of(peers).write(frame)
    for peer in peers:
        [rest] = peer.left
        assert 0 < len(rest) < len(frame)
        assert peer.read() + rest == frame


def test_a_socket_whose_peer_is_gone_is_left_to_its_transport(peers: list[Peer]) -> None:
    gone = peers[0]
    gone.theirs.close()
    lane_of(peers).write(b"frame")
    assert gone.left == [b"frame"]
    assert [peer.read() for peer in peers[1:]] == [b"frame"] * 4
    assert all(peer.left == [] for peer in peers[1:])


def test_without_a_write_of_the_system_all_is_left_to_the_transports(
    peers: list[Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "_send", None)
    lane_of(peers).write(b"frame")
    assert [(peer.left, peer.read()) for peer in peers] == [([b"frame"], b"")] * 5


def test_the_interpreter_is_held_meanwhile(peers: list[Peer]) -> None:
    """Else a thread that computes would keep it for 5 ms at each client."""
    counted, stopped = 0, threading.Event()

    def compute() -> None:
        nonlocal counted
        while not stopped.is_set():
            counted += 1

    lane = lane_of(peers)
    thread = threading.Thread(target=compute)
    interval = sys.getswitchinterval()
    thread.start()
    try:
        sys.setswitchinterval(5)  # seconds: other threads run where they are let
        before = counted
        lane.write(b"frame")
        after = counted
    finally:
        sys.setswitchinterval(interval)
        stopped.set()
        thread.join()
    assert after == before
    assert [peer.read() for peer in peers] == [b"frame"] * 5


class Client:
    """A client that only `send` reaches, which waits while it does not read."""

    def __init__(self) -> None:
        self.got: list[object] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.fails: BaseException | None = None
        self.writer = Writer(self.send)
        self.changed = asyncio.Event()
        self.writer.on_writability(self.changed.set)

    async def send(self, event: Event) -> None:
        if self.fails is not None:
            raise self.fails
        if not self.reads.is_set():
            await self.reads.wait()
        self.got.append(event["text"])
        event["text"] = "what middleware makes of it"

    async def read_again(self) -> None:
        self.changed.clear()
        self.reads.set()
        async with asyncio.timeout(5):
            await self.changed.wait()


def writers_of(clients: list[Client]) -> Writers:
    lane = Writers()
    for client in clients:
        lane.add(client, client.writer, client.writer.declines)
    return lane


def events(*texts: str) -> tuple[Event, ...]:
    return tuple({"type": "websocket.send", "text": text} for text in texts)


@pytest.mark.parametrize("texts", [("one",), ("one", "two")])
async def test_each_writer_gets_its_own_copy_of_what_all_get(texts: tuple[str, ...]) -> None:
    clients = [Client() for _ in range(3)]
    sent = events(*texts)
    before = asyncio.all_tasks()
    writers_of(clients).write(sent)
    assert [client.got for client in clients] == [list(texts)] * 3
    assert sent == events(*texts)
    assert asyncio.all_tasks() == before
    assert not any(client.changed.is_set() for client in clients)


@pytest.mark.parametrize("texts", [("one",), ("one", "two")])
async def test_a_writer_that_waits_keeps_nobody_waiting_and_tells_its_owner(texts: tuple[str, ...]) -> None:
    clients = [Client() for _ in range(3)]
    slow = clients[1]
    slow.reads.clear()
    writers_of(clients).write(events(*texts))
    assert [client.got for client in clients] == [list(texts), [], list(texts)]
    assert [client.changed.is_set() for client in clients] == [False, True, False]
    assert not slow.writer.writable
    await slow.read_again()
    assert slow.writer.writable
    assert slow.got == list(texts)


@pytest.mark.parametrize("texts", [("one",), ("one", "two")])
@pytest.mark.parametrize("error", [OSError("gone"), asyncio.CancelledError()], ids=repr)
async def test_a_writer_that_fails_keeps_nobody_waiting_and_tells_its_owner(
    texts: tuple[str, ...], error: BaseException
) -> None:
    clients = [Client() for _ in range(3)]
    clients[0].fails = error
    writers_of(clients).write(events(*texts))
    assert [client.got for client in clients] == [[], list(texts), list(texts)]
    assert [client.changed.is_set() for client in clients] == [True, False, False]
    assert clients[0].writer.failed


async def test_there_is_a_lane_for_each_kind_of_way() -> None:
    assert isinstance(lane_for(7), Sockets)
    assert isinstance(lane_for(Client().writer), Writers)
