"""The SockJS servers under test, and a healthy client beside every test; how a service is spoken to is in speech.py."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from tests.servers import HTTP_PARSERS, TROUBLE, HTTPParser, Server
from tests.sockjs.client import DEADLINE, Wire, handshake, request
from tests.sockjs.speech import Service, SocketConversation

ECHO_APP = "examples.sockjs_echo:app"
# uvicorn 0.54 does not see that a handshake was answered by an HTTP response, and complains once the application ends.
REFUSED_HANDSHAKE = r"ERROR: +ASGI callable returned without completing handshake\."
CONTROL_WITHIN = 1.0  # seconds in which a healthy client gets its broadcast, whatever the others do

OpenService = Callable[[str], Service]


@dataclass
class Target:
    """The server that this test talks to, and uvicorn's HTTP parser in front of it."""

    server: Server
    http: HTTPParser
    allowed: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.server.port

    def allow_error(self, pattern: str) -> None:
        """In this test the server may log what matches. For what uvicorn logs of its own accord: say why."""
        self.allowed.append(pattern)

    @classmethod
    def watched(cls, server: Server, http: HTTPParser) -> Iterator[Target]:
        """The body of a fixture: errors in the log are looked for after each test, not when the server ends."""
        target = cls(server, http)
        before = len(server.log)
        yield target
        target.check_log(before)

    def open_files(self) -> int:
        """How many file descriptors the server has open."""
        return len(os.listdir(f"/proc/{self.server.process.pid}/fd"))

    def check_log(self, before: int) -> None:
        """No error was logged since the log was `before` characters long, but for those that are allowed."""
        if self.allowed:
            # What is allowed must not come late and be found by the next test: wait for a line that comes after it.
            mark = f"/mark/{uuid.uuid4().hex}"
            with Wire(self.port) as wire:
                request(wire, "GET", mark, headers=handshake())
                self.server.wait_for_log(mark, within=DEADLINE)
        news = self.server.log[before:]
        for pattern in self.allowed:
            news = re.sub(pattern, "", news)
        assert not TROUBLE.search(news), f"the server logged an error during this test:\n{news}"


@pytest.fixture
def target(shared_server: Callable[..., Server], http: HTTPParser) -> Iterator[Target]:
    """One server per HTTP parser for all tests. Whatever a test does, the server logs no error while it does it."""
    yield from Target.watched(shared_server(ECHO_APP, http=http, errors_expected=True), http)


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as closing:
        yield closing


@pytest.fixture
def open_service(target: Target, closing: ExitStack) -> OpenService:
    """`open_service("/close")`: a service of the server; all wires to it are closed when the test ends."""
    return lambda prefix: Service(target.port, prefix, closing)


@pytest.fixture
def echo(open_service: OpenService) -> Service:
    return open_service("/echo")


@pytest.fixture
def both(shared_server: Callable[..., Server], closing: ExitStack) -> list[OpenService]:
    """`open_service` of both servers, for tests that wait: they wait once."""

    def opener(port: int) -> OpenService:
        return lambda prefix: Service(port, prefix, closing)

    return [opener(shared_server(ECHO_APP, http=http, errors_expected=True).port) for http in HTTP_PARSERS]


class Control:
    """A healthy client on /broadcast, beside whatever else happens."""

    def __init__(self, conversation: SocketConversation) -> None:
        self._conversation = conversation

    def check(self) -> None:
        """It still gets its own broadcast, in time; what others broadcast on the way is passed over."""
        token = uuid.uuid4().hex
        started = time.monotonic()
        self._conversation.send(token)
        while self._conversation.receive(1) != [token]:
            pass
        took = time.monotonic() - started
        assert took < CONTROL_WITHIN, f"the control client's broadcast took {took:.2f} s"


@pytest.fixture
def control(open_service: OpenService) -> Iterator[Control]:
    """Connected before the test, checked after it; a test may check in between too."""
    control = Control(SocketConversation(open_service("/broadcast")))
    control.check()
    yield control
    control.check()
