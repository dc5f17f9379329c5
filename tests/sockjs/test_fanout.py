"""One frame to many sockets: real ones, on which somebody reads, or nobody, or nobody is there any more."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from backsync_asgi.sockjs import fanout
from backsync_asgi.sockjs.fanout import Lane


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


@pytest.fixture
def peers() -> Iterator[list[Peer]]:
    with ExitStack() as stack:
        made = []
        for _ in range(5):
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            theirs.setblocking(False)
            made.append(Peer(stack.enter_context(ours), stack.enter_context(theirs)))
        yield made


def lane_of(peers: list[Peer]) -> Lane:
    lane = Lane()
    for peer in peers:
        lane.add(peer.ours.fileno(), peer.left.append)
    return lane


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
