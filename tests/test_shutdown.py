"""The end of a real server with everything open: quick, complete, and without an error that anybody sees."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from backsync_asgi import Backsync, Context
from backsync_asgi.sockjs import Settings, Timing
from backsync_asgi.stores import MemoryStore
from tests.servers import HTTPParser, Server
from tests.sockjs.client import WebSocket, Wire, head, read_response
from tests.sockjs.speech import XHR, XHR_STREAMING, Receiver, Service

WITHIN = 2.0  # seconds from the signal to the end of the process
BYE = "Service restart"

# The apps, as uvicorn imports them in a process of its own.

alone = Backsync()
alone.model("Todo", store=MemoryStore())


@alone.model("Slow").on("wait")
async def wait(ctx: Context, data: Any) -> None:
    await asyncio.sleep(60)


mounted = Starlette(routes=[Mount("/backsync", app=alone)])
mounted_with_lifespan = Starlette(routes=[Mount("/backsync", app=alone)], lifespan=alone.lifespan)

of_2012 = Backsync(compat="2012")
impatient = Backsync(sockjs=Settings(timing=Timing(write_deadline=0.5)))
impatient.model("Todo", store=MemoryStore())

PLACES = {"alone": "", "mounted": "/backsync", "mounted_with_lifespan": "/backsync"}


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as closing:
        yield closing


def end(server: Server, number: signal.Signals, within: float = WITHIN) -> None:
    """Send the signal; the process must end in time, of the signal alone, and leave a log without errors."""
    started = time.monotonic()
    server.process.send_signal(number)
    server.process.wait(10.0)
    took = time.monotonic() - started
    server.kill()  # nothing is left to kill; the server is not to be stopped once more
    assert server.process.returncode in (0, -number, 128 + number), server.log
    assert took < within, f"the server took {took:.1f} s to end:\n{server.log}"
    server.check_log()


def waiting_poll(service: Service) -> Wire:
    """A poll that waits at the server, which has read it when it answers anybody who connects later."""
    session, _ = service.open(XHR)
    wire = service.wire()
    service.request("GET", "/info", on=wire).body()
    wire.send(head("POST", service.prefix + XHR.path(session), [("Content-Length", "0")]))
    return wire


def subscribed(socket: WebSocket, framed: bool) -> WebSocket:
    text = '{"id":1,"event":"Todo:subscribe"}'
    if framed:
        assert socket.receive() == "o"
    socket.send(json.dumps([text]) if framed else text)
    assert '"mode' in socket.receive() or framed
    return socket


def check_bye(message: str) -> None:
    bye = json.loads(message)
    assert (bye["event"], bye["data"]["code"]) == ("$:bye", 1012)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("place", PLACES)
def test_a_signal_ends_everything_properly_and_at_once(
    place: str, number: signal.Signals, serve: Callable[..., Server], closing: ExitStack
) -> None:
    http: HTTPParser = "httptools" if number is signal.SIGTERM else "h11"
    server = serve(f"tests.test_shutdown:{place}", http=http)
    service = Service(server.port, PLACES[place], closing)
    raw = [subscribed(service.websocket("/websocket"), framed=False) for _ in range(5)]
    framed = [subscribed(service.websocket(), framed=True) for _ in range(5)]
    streams = [service.open(XHR_STREAMING)[1] for _ in range(5)]
    polls = [waiting_poll(service) for _ in range(5)]
    kept_alive = service.wire()
    service.request("GET", "/info", on=kept_alive).body()

    end(server, number)

    for socket in raw:
        check_bye(socket.receive())
        assert socket.read_close() == (1012, BYE)
    for socket in framed:
        check_bye(json.loads(socket.receive()[1:])[0])
        assert socket.receive() == f'c[1012,"{BYE}"]'
        assert socket.read_close() == (1012, BYE)
    for stream in streams:
        frame = stream.frame()
        assert frame is not None
        check_bye(json.loads(frame[1:])[0])
        stream.expect(f'c[1012,"{BYE}"]')
        stream.expect_end()
    for wire in polls:
        # One poll, one frame: the goodbye itself. Its status and its end are what a proxy would complain of.
        poll = Receiver(XHR, read_response(wire))
        frame = poll.frame()
        assert frame is not None
        check_bye(json.loads(frame[1:])[0])
        poll.expect_end()


def test_polls_of_the_2012_mode_end_with_the_close_frame(serve: Callable[..., Server], closing: ExitStack) -> None:
    server = serve("tests.test_shutdown:of_2012")
    service = Service(server.port, "", closing)
    polls = [waiting_poll(service) for _ in range(3)]
    stream = service.open(XHR_STREAMING)[1]
    service.request("GET", "/info").body()
    end(server, signal.SIGTERM)
    for wire in polls:
        poll = Receiver(XHR, read_response(wire))
        poll.expect(f'c[1012,"{BYE}"]')
        poll.expect_end()
    stream.expect(f'c[1012,"{BYE}"]')
    stream.expect_end()


def test_a_handler_that_still_runs_does_not_hold_up_the_end(serve: Callable[..., Server], closing: ExitStack) -> None:
    server = serve("tests.test_shutdown:alone")
    socket = Service(server.port, "", closing).websocket("/websocket")
    for id in (1, 2):
        socket.send(json.dumps({"id": id, "event": "Slow:wait"}))
    socket.send('{"id":3,"event":"$:ping"}')
    assert json.loads(socket.receive())["id"] == 3
    end(server, signal.SIGTERM)
    check_bye(socket.receive())
    assert socket.read_close() == (1012, BYE)


def test_a_client_that_does_not_read_holds_up_the_end_for_its_write_deadline_only(
    serve: Callable[..., Server], closing: ExitStack
) -> None:
    server = serve("tests.test_shutdown:impatient")
    service = Service(server.port, "", closing)
    deaf, writer = (subscribed(service.websocket("/websocket"), framed=False) for _ in range(2))
    text = "x" * 60_000
    for number in range(200):  # 12 MB: more than the buffers between us hold
        writer.send(json.dumps({"id": number, "event": "Todo:upsert", "data": {"id": number, "text": text}}))
        while json.loads(writer.receive()).get("id") != number:
            pass
    # The deadline is looked at once a second, from the first look that finds the client stuck.
    end(server, signal.SIGTERM, within=WITHIN + 2.0)
    deaf.wire.close()
