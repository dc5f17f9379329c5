"""Clients are notified of changes whatever carries the bytes: TLS, Unix sockets, each event loop, each protocol."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect, unix_connect

from tests.servers import HTTP_PARSERS, HTTPParser, Server, hypercorn_server, uvicorn_server

APP = "tests.notified_app:app"
OURS = "backsync_asgi.uvicorn:WebSocketProtocol"
LARGE = "x" * 60_000  # bytes in one record: some TLS records, and less than a message may have
RECORDS, ROUNDS = 8, 20  # of them: more in all than the buffers between two processes hold


Certificate = tuple[Path, Path]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """The key and the certificate of a server on this machine."""
    folder = tmp_path_factory.mktemp("certificate")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*command, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return key, certificate


@dataclass
class Door:
    """A server, and how a client gets to it."""

    server: Server
    context: ssl.SSLContext | None = None
    path: Path | None = None

    def open(self, receive_buffer: int | None = None) -> ClientConnection:
        """A WebSocket that carries Backsync's messages. receive_buffer: bytes that the system may take for it."""
        if self.path is not None:
            return unix_connect(str(self.path), "ws://localhost/backsync/websocket", compression=None)
        plain = socket.socket()
        if receive_buffer is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        plain.connect(("127.0.0.1", self.server.port))
        scheme = "ws" if self.context is None else "wss"
        uri = f"{scheme}://localhost:{self.server.port}/backsync/websocket"
        return connect(uri, sock=plain, ssl=self.context, compression=None, max_size=None, max_queue=1)


class Client:
    """One that subscribes and writes by a WebSocket of its own."""

    def __init__(self, door: Door, **options: Any) -> None:
        self._opening = door.open(**options)
        self._number = 0

    def __enter__(self) -> Client:
        self._socket = self._opening.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._opening.__exit__(*error)

    def ask(self, event: str, data: Any) -> Any:
        """The data of the reply."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "event": event, "data": data}))
        while True:
            for message in self.receive():
                if message.get("id") == self._number:
                    assert message.get("error") is None, message
                    return message["data"]

    def receive(self) -> list[dict[str, Any]]:
        """The messages of the next frame."""
        said = json.loads(self._socket.recv(timeout=10))
        return said if isinstance(said, list) else [said]

    def states(self, until: Callable[[dict[Any, Any]], bool]) -> dict[Any, Any]:
        """What is known of each record once `until` says that it is enough."""
        known: dict[Any, Any] = {}
        while not until(known):
            for message in self.receive():
                if message["event"] == "Note:upsert":
                    known[message["data"]["id"]] = message["data"]
                elif message["event"] == "Note:snapshot":
                    known = {record["id"]: record for record in message["data"]["records"]}
        return known


@contextmanager
def plain_door(options: Sequence[str]) -> Iterator[Door]:
    with uvicorn_server(APP, options=options) as server:
        yield Door(server)


@contextmanager
def tls_door(options: Sequence[str], certificate: Certificate) -> Iterator[Door]:
    """uvicorn's own TLS."""
    key, public = map(str, certificate)
    with uvicorn_server(APP, options=[*options, "--ssl-keyfile", key, "--ssl-certfile", public]) as server:
        yield Door(server, ssl.create_default_context(cafile=public))


@contextmanager
def unix_door(options: Sequence[str], folder: Path) -> Iterator[Door]:
    path = folder / "server"
    with uvicorn_server(APP, options=[*options, "--uds", str(path)]) as server:
        yield Door(server, path=path)


@contextmanager
def hypercorn_door(certificate: Certificate) -> Iterator[Door]:
    """hypercorn's own TLS."""
    key, public = map(str, certificate)
    options = ["--workers", "0", "--keyfile", key, "--certfile", public]
    with hypercorn_server(APP, options=options) as server:
        yield Door(server, ssl.create_default_context(cafile=public))


UVICORNS = [(loop, ws) for loop in ("asyncio", "uvloop") for ws in (OURS, "auto")]


@pytest.fixture(scope="module", params=[*UVICORNS, None], ids=str)
def options(request: pytest.FixtureRequest) -> list[str] | None:
    """Of uvicorn; None for hypercorn."""
    if request.param is None:
        return None
    loop, ws = request.param
    return ["--loop", loop, "--ws", ws, "--ws-per-message-deflate", "false"]


@pytest.fixture(scope="module", params=["plain", "tls", "unix"])
def door(
    request: pytest.FixtureRequest,
    options: list[str] | None,
    certificate: Certificate,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Door]:
    """A server, once for each event loop, protocol class and carrier."""
    if options is None:
        if request.param != "tls":
            pytest.skip("the conformance suite has it")
        opened: AbstractContextManager[Door] = hypercorn_door(certificate)
    elif request.param == "plain":
        opened = plain_door(options)
    elif request.param == "tls":
        opened = tls_door(options, certificate)
    else:
        opened = unix_door(options, tmp_path_factory.mktemp("socket"))
    with opened as door:
        yield door


def test_a_change_reaches_a_client_that_says_nothing(door: Door) -> None:
    with Client(door) as subscriber, Client(door) as author:
        subscriber.ask("Note:subscribe", {})
        for number in range(10):
            author.ask("Note:upsert", {"id": "one", "number": number})
            seen = subscriber.states(lambda known: "one" in known)
            assert seen["one"]["number"] == number


def test_large_changes_arrive_whole(door: Door) -> None:
    with Client(door) as subscriber, Client(door) as author:
        subscriber.ask("Note:subscribe", {})
        for number in range(10):
            author.ask("Note:upsert", {"id": number, "text": LARGE})
        seen = subscriber.states(lambda known: len(known) == 10)
        assert all(record["text"] == LARGE for record in seen.values())


def test_a_slow_reader_gets_the_newest_state_of_all(door: Door) -> None:
    """What a transport holds back while it is paused comes once it goes on."""
    with Client(door, receive_buffer=4096) as slow, Client(door) as author:
        slow.ask("Note:subscribe", {})
        for number in range(ROUNDS):
            for id in range(RECORDS):
                author.ask("Note:upsert", {"id": f"slow {id}", "number": number, "text": LARGE})

        def is_last(known: dict[Any, Any]) -> bool:
            return [known.get(f"slow {id}", {}).get("number") for id in range(RECORDS)] == [ROUNDS - 1] * RECORDS

        slow.states(is_last)
        author.ask("Note:upsert", {"id": "after", "number": 0})
        slow.states(lambda known: "after" in known)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_clients_behind_tls_are_let_go_as_the_server_ends(loop: str, certificate: Certificate) -> None:
    """One that reads gets its close frame at once; one that does not is given up at the write deadline."""
    with tls_door(["--loop", loop, "--ws", OURS], certificate) as door:
        with Client(door) as reader, Client(door, receive_buffer=4096) as deaf, Client(door) as author:
            for client in (reader, deaf):
                client.ask("Note:subscribe", {})
            for number in range(ROUNDS * RECORDS):
                author.ask("Note:upsert", {"id": number % RECORDS, "text": LARGE})
                reader.states(lambda known: bool(known))
            door.server.stop()
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    reader.receive()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012


@pytest.mark.parametrize("http", HTTP_PARSERS)
def test_a_peer_behind_tls_that_does_not_read_does_not_hold_up_the_end(
    certificate: Certificate, http: HTTPParser
) -> None:
    """A transport that is closed waits for its peer's goodbye, for 30 s in asyncio's own TLS."""
    key, public = map(str, certificate)
    options = ["--ssl-keyfile", key, "--ssl-certfile", public]
    with uvicorn_server("tests.test_shutdown:impatient", http=http, options=options) as server:
        context = ssl.create_default_context(cafile=public)
        plain = socket.create_connection(("127.0.0.1", server.port))
        with context.wrap_socket(plain, server_hostname="localhost") as peer:
            peer.settimeout(5.0)
            peer.sendall(b"POST /0/s/xhr_streaming HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
            said = b""
            while b"o\n" not in said:
                said += peer.recv(4096)
            server.stop()
