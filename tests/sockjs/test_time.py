"""What happens by the clock: sessions that nobody asks for, bodies that stop coming, sockets that fall silent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.servers import Server
from tests.sockjs.client import PING, Wire, head, read_response
from tests.sockjs.conftest import ECHO_APP, Control, OpenService
from tests.sockjs.speech import JSONP, STREAMING, XHR, XHR_STREAMING, Service, SocketConversation


def abandoned(open_service: OpenService) -> tuple[dict[str, tuple[Service, str]], dict[str, tuple[Service, str]]]:
    """Sessions without a receiver: those that answer uploads until they go, and those that are closed already."""
    echo, close, broadcast = open_service("/echo"), open_service("/close"), open_service("/broadcast")
    interrupted, stream = echo.open(XHR_STREAMING)
    stream.wire.reset()
    closed = {"closed": (close, close.open(XHR)[0]), "interrupted": (echo, interrupted)}
    idle = {transport.name: (echo, echo.open(transport)[0]) for transport in (XHR, JSONP)}
    filler = "x" * 4096
    for transport in STREAMING:
        session, stream = echo.open(transport)
        echo.upload(transport, session, [filler])
        stream.expect(f'a["{filler}"]')
        stream.expect_end()
        idle[transport.name] = (echo, session)
    idle["fed by broadcasts"] = (broadcast, broadcast.open(XHR)[0])
    return idle, closed


def test_sessions_without_a_receiver_go_after_five_seconds(both: list[OpenService]) -> None:
    """Uploads and broadcasts do not keep a session alive; polls do."""
    controls, living = [], []
    idle: dict[str, tuple[Service, str]] = {}
    closed: dict[str, tuple[Service, str]] = {}
    for number, open_service in enumerate(both):
        conversation = open_service("/broadcast").converse("websocket")
        assert isinstance(conversation, SocketConversation)
        controls.append(Control(conversation))
        some_idle, some_closed = abandoned(open_service)
        idle |= {f"{name} {number}": place for name, place in some_idle.items()}
        closed |= {f"{name} {number}": place for name, place in some_closed.items()}
        living.append((open_service("/echo"), open_service("/echo").open(XHR)[0]))
    began = time.monotonic()
    lived: dict[str, float] = {}
    while len(lived) < len(idle):
        assert time.monotonic() - began < 8, f"still there: {set(idle) - set(lived)}"
        for name, (service, session) in idle.items():
            if name not in lived and service.send(XHR, session, "[]").status == 404:
                lived[name] = time.monotonic() - began
        for control in controls:
            control.check()
        for service, session in living:
            service.upload(XHR, session, ["x"])
            service.receive(XHR, session).expect('a["x"]')
        time.sleep(0.1)  # the pace of the observation
    assert all(4 < seconds < 7.5 for seconds in lived.values()), lived
    # The closed ones cannot be watched: a request to one would be its receiver.
    time.sleep(max(0.0, began + 7.5 - time.monotonic()))
    for service, session in [*closed.values(), *idle.values()]:
        service.receive(XHR, session).expect("o")


def test_a_body_that_stops_coming(both: list[OpenService]) -> None:
    """408 after 10 s by us. A request whose head does not end is kept open by uvicorn for as long as the client likes:
    it has no deadline for it, so a proxy in front must have one."""
    stalled: list[tuple[Wire, Wire]] = []
    for open_service in both:
        echo = open_service("/echo")
        session, _ = echo.open(XHR)
        # Some receiver, for the session to live on.
        echo.receive(XHR_STREAMING, session)
        wire, headless = echo.wire(), echo.wire()
        wire.deadline = 15.0
        wire.send(head("POST", f"/echo/0/{session}/xhr_send", [("Content-Length", "100")]) + b'["x"')
        headless.send(b"POST /echo/0/s/xhr_send HTTP/1.1\r\nHost: a\r\nX: ")
        stalled.append((wire, headless))
    began = time.monotonic()
    for wire, headless in stalled:
        assert read_response(wire).status == 408
        assert 9 < time.monotonic() - began < 13
        headless.deadline = 0.2
        with pytest.raises(TimeoutError):
            headless.read_some()


@pytest.mark.parametrize("path", ["/0/s/websocket", "/websocket"])
def test_a_socket_that_never_answers_a_ping(
    shared_server: Callable[..., Server], closing: ExitStack, path: str
) -> None:
    """The pings are uvicorn's, every 20 s with 20 s to answer unless it is told otherwise, as it is here.

    The healthy client answers in a thread of its own: it must not miss a ping while this one waits for the silent one.
    """
    options = ("--ws-ping-interval", "0.2", "--ws-ping-timeout", "2")
    server = shared_server(ECHO_APP, options=options)
    healthy = Control(SocketConversation(Service(server.port, "/broadcast", closing)))
    over = threading.Event()

    def live() -> int:
        checks = 0
        while not over.is_set():
            healthy.check()
            checks += 1
        return checks

    with ThreadPoolExecutor() as threads:
        living = threads.submit(live)
        try:
            silent = Service(server.port, "/echo", closing).websocket(path)
            pings = 0
            while (frame := silent.read_frame())[0] == PING or frame[1] == b"o":
                pings += frame[0] == PING
            cut = time.monotonic()
            assert pings
            assert silent.wire.read_to_end() == b""
            while time.monotonic() < cut + 2.2 and not living.done():  # longer than a ping may stay unanswered
                time.sleep(0.05)
        finally:
            over.set()
        assert living.result() > 1
