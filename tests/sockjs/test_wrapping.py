"""SockJS around applications of every kind, and inside of them: what the inner application sees, and may do wrong."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.servers import Server, hypercorn_server, uvicorn_server
from tests.sockjs.client import WebSocket, handshake, request
from tests.sockjs.conftest import OpenService
from tests.sockjs.speech import TRANSPORTS, XHR, XHR_STREAMING, Service, Transport, new_session

APP = "tests.sockjs.wrapping_app"
WAYS: list[str | Transport] = ["raw", "websocket", *TRANSPORTS]
ECHOES = ["bare", "endpoint", "starlette", "fastapi"]
BUFFERED = 24 * 2**20  # bytes that queue, buffers and the kernel may hold for a client that does not read
STILL = 0.5  # seconds without change after which something is taken to stand still

Serve = Callable[[str], Server]


@pytest.fixture(scope="module", params=["httptools", "h11", "hypercorn"])
def serve_app(request: pytest.FixtureRequest) -> Iterator[Serve]:
    """`serve_app("name")` serves one of the applications, once for all tests of this file."""
    running: dict[str, Server] = {}
    with ExitStack() as servers:

        def serve(name: str) -> Server:
            if name not in running:
                server = (
                    hypercorn_server(f"{APP}:{name}", errors_expected=True)
                    if request.param == "hypercorn"
                    else uvicorn_server(f"{APP}:{name}", http=request.param, errors_expected=True)
                )
                running[name] = servers.enter_context(server)
            return running[name]

        yield serve


@pytest.fixture
def open_service(serve_app: Serve, closing: ExitStack) -> OpenService:
    return lambda prefix: Service(serve_app("app").port, prefix, closing)


# ── Around ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_echo(service: Service, way: str | Transport, greeting: list[str]) -> None:
    conversation = service.converse(way)
    if greeting:
        assert conversation.receive(len(greeting)) == greeting
    conversation.send("one")
    conversation.send("zwölf")
    assert conversation.receive(2) == ["one", "zwölf"]


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("echo", ECHOES)
def test_any_asgi_websocket_application(open_service: OpenService, echo: str, way: str | Transport) -> None:
    """A bare callable, a WebSocketEndpoint, a Starlette and a FastAPI app with a route: over each transport."""
    # The query of a callback is the client's own; the dependency's default shows that the rest is empty.
    check_echo(open_service(f"/{echo}"), way, ["hello nobody"] if echo == "fastapi" else [])


@pytest.mark.parametrize("echo", ECHOES)
def test_inside_fastapi(serve_app: Serve, closing: ExitStack, echo: str) -> None:
    service = Service(serve_app("inside_fastapi").port, f"/{echo}", closing)
    for way in ("raw", "websocket", XHR):
        check_echo(service, way, ["hello nobody"] if echo == "fastapi" else [])


def test_alone_with_the_inner_lifespan(serve_app: Serve, closing: ExitStack) -> None:
    """Without an application around it, start and end are the inner application's to know."""
    server = serve_app("alone")
    for way in WAYS:
        check_echo(Service(server.port, "", closing), way, [])
    server.stop()
    assert "the inner application has shut down" in server.log


# ── What the inner application sees ──────────────────────────────────────────────────────────────────────────────────


def look(service: Service, way: str, query: str, headers: list[tuple[str, str]]) -> dict[str, object]:
    """What `mirror` says of a session that is opened by a request with this query and these headers."""
    if way == "raw":
        message = service.websocket(f"/websocket{query}", headers).receive()
    elif way == "websocket":
        socket = service.websocket(f"/000/{new_session()}/websocket{query}", headers)
        assert socket.receive() == "o"
        (message,) = json.loads(socket.receive()[1:])
    else:
        session = new_session()
        assert service.request("POST", f"/000/{session}/xhr{query}", headers=headers).body() == b"o\n"
        (message,) = json.loads(service.request("POST", f"/000/{session}/xhr").body()[1:])
    seen: dict[str, object] = json.loads(message)
    return seen


@pytest.mark.parametrize("way", ["raw", "websocket", "xhr"])
@pytest.mark.parametrize(("url", "path"), [("/mirror", "/mirror"), ("/a%20b/%C3%BC", "/a b/ü")])
def test_an_ordinary_websocket_scope(open_service: OpenService, way: str, url: str, path: str) -> None:
    """Path and root path lead to the mount, whatever the transport's own URL is; the rest is the opening request's."""
    headers = [("Cookie", "a=1; b=2"), ("X-Test", "yes")]
    if way != "xhr":
        headers.append(("Sec-WebSocket-Protocol", "chat, other"))
    seen = look(open_service(url), way, "?token=%C3%A4%26&x=", headers)
    assert seen == {
        "type": "websocket",
        "scheme": "ws",
        "path": f"{path}/",
        "raw_path": f"{url}/",
        "root_path": path,
        "query": {"token": "ä&", "x": ""},
        "cookie": "a=1; b=2",
        "x-test": "yes",
        "subprotocols": [] if way == "xhr" else ["chat", "other"],
        "client": "127.0.0.1",
        "method": False,
        "started": ["up"],  # once: a mounted application gets no lifespan, so the one around it has been started
    }


def test_a_dependency_of_fastapi(open_service: OpenService) -> None:
    socket = open_service("/fastapi").websocket("/websocket?name=you")
    assert socket.receive() == "hello you"


@pytest.mark.parametrize("path", ["/websocket", "/000/s/websocket"])
def test_subprotocol_and_headers_of_the_accept(open_service: OpenService, path: str) -> None:
    """They are the handshake's answer on both kinds of WebSocket."""
    service = open_service("/choosy")
    answer = service.websocket(path, [("Sec-WebSocket-Protocol", "chat, other")]).response
    assert (answer.header("sec-websocket-protocol"), answer.header("x-seen")) == ("other", "yes")
    plain = service.websocket(path).response
    assert (plain.header("sec-websocket-protocol"), plain.header("x-seen")) == (None, "yes")


# ── What it may do wrong ─────────────────────────────────────────────────────────────────────────────────────────────

# How a session of each ends: whether it was open before, and the close frame.
ENDS = {
    "rejecting": (False, 'c[4403,"Not you"]'),
    "raising_before": (False, 'c[1011,"Internal error"]'),
    "raising_after": (True, 'c[1011,"Internal error"]'),
    "leaving_before": (False, 'c[1000,""]'),
    "leaving_after": (True, 'c[1000,""]'),
    "talking_too_early": (False, 'c[1011,"Internal error"]'),
}


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("application", ENDS)
def test_how_it_ends_over_http(open_service: OpenService, application: str, transport: Transport) -> None:
    service = open_service(f"/{application}")
    opened, close = ENDS[application]
    session = new_session()
    frames: list[str] = []
    while not frames or frames[-1] != close:
        receiver = service.receive(transport, session)
        while (frame := receiver.frame()) is not None:
            frames.append(frame)
        assert len(frames) < 5, frames
    assert frames == (["o", 'a["last words"]', close] if opened else [close])


@pytest.mark.parametrize("place", ["/websocket", "/000/s/websocket"])
@pytest.mark.parametrize("application", ENDS)
def test_how_it_ends_over_websockets(open_service: OpenService, application: str, place: str) -> None:
    """Without an accept the handshake is refused."""
    service = open_service(f"/{application}")
    opened, close = ENDS[application]
    if not opened:
        assert request(service.wire(), "GET", service.prefix + place, headers=handshake()).status == 403
        return
    socket = service.websocket(place)
    raw = place == "/websocket"
    for frame in ["last words"] if raw else ["o", 'a["last words"]', close]:
        assert socket.receive() == frame
    assert socket.read_close() == tuple(json.loads(close[1:]))


def test_an_application_that_goes_on_after_its_close(open_service: OpenService) -> None:
    """It hears of the end, its send fails as at a client that has gone, and it does not wait for ever in receive."""
    open_service("/talking_on").websocket("/websocket").read_close()
    notes = open_service("/noted").converse("raw")
    until = time.monotonic() + 5.0
    seen: list[str] = []
    while len(seen) < 3:
        assert time.monotonic() < until, seen
        notes.send("?")
        seen = json.loads(notes.receive(1)[0])
    assert seen[:3] == ["websocket.disconnect", "OSError", "RuntimeError"]


# ── Backpressure ─────────────────────────────────────────────────────────────────────────────────────────────────────


def settled(look: Callable[[], int]) -> int:
    """The value once it has stopped changing."""
    until = time.monotonic() + 20.0
    value, since = look(), time.monotonic()
    while time.monotonic() - since < STILL:
        assert time.monotonic() < until, f"still changing: {value}"
        if (now := look()) != value:
            value, since = now, time.monotonic()
    return value


@pytest.mark.parametrize("way", ["raw", "websocket", "xhr_streaming", "xhr"])
def test_a_client_that_does_not_read_makes_send_wait(open_service: OpenService, way: str) -> None:
    """The application stands still with a bounded number of bytes unread, and goes on when the client does; nothing
    is lost on the way."""
    service = open_service("/flood")
    control = open_service("/control").converse("raw")
    name = new_session()

    def sent() -> int:
        control.send("?")
        count: int = json.loads(control.receive(1)[0]).get(name, 0)
        return count

    headers = [("X-Test", name)]
    session = new_session()
    if way in ("raw", "websocket"):
        place = "/websocket" if way == "raw" else f"/000/{session}/websocket"
        messages = socket_messages(service.websocket(place, headers), raw=way == "raw")
    else:
        messages = http_messages(service, XHR if way == "xhr" else XHR_STREAMING, session, headers)
    assert next(messages) == "0"
    standing = settled(sent)
    assert 0 < standing * 50_000 < BUFFERED
    goal = standing + 20
    assert [next(messages) for _ in range(goal)] == [str(number) for number in range(1, goal + 1)]
    assert settled(sent) > standing


def socket_messages(socket: WebSocket, *, raw: bool) -> Iterator[str]:
    """The numbers of a flood's messages, read as they are asked for."""
    if not raw:
        assert socket.receive() == "o"
    while True:
        text = socket.receive()
        for message in [text] if raw else json.loads(text[1:]):
            yield message.split(":")[0]


def http_messages(
    service: Service, transport: Transport, session: str, headers: list[tuple[str, str]]
) -> Iterator[str]:
    """The same over HTTP."""
    response = service.request(transport.method, transport.path(session), headers=headers)
    if transport.streaming:
        assert response.chunk() is not None  # the prelude
    while True:
        while (data := response.chunk()) is not None:
            frame = transport.decode(data)
            if frame != "o":
                for message in json.loads(frame[1:]):
                    yield message.split(":")[0]
        response = service.request(transport.method, transport.path(session), headers=headers)


def test_an_application_that_does_not_receive_makes_uploads_wait(open_service: OpenService) -> None:
    """An upload is answered when there is room; until then the client has to keep what it has. Nothing is lost."""
    service = open_service("/not_listening")
    session, _ = service.open(XHR)
    receiver = service.receive(XHR_STREAMING, session)
    body = "x" * 60_000
    answered = 0
    wire = service.wire()
    wire.deadline = STILL
    while True:
        upload = json.dumps([f"{answered}:{body}"]).encode()
        try:
            response = service.request("POST", f"/000/{session}/xhr_send", body=upload, on=wire)
        except TimeoutError:
            break
        assert response.status == 204
        response.body()
        answered += 1
        assert answered < 100, "nothing holds the client back"
    assert 2**20 <= (answered + 1) * 60_010 < 2**21
    control = open_service("/control").converse("raw")
    control.send("read")
    control.receive(1)
    wire.deadline = 5.0
    assert wire.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 204")
    service.upload(XHR, session, ["last:"])
    frame = receiver.frame()
    assert frame is not None
    assert json.loads(json.loads(frame[1:])[0]) == [*map(str, range(answered + 1)), "last"]
