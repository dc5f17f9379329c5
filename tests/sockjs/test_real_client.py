"""The SockJS client that browsers really use, against our server: over every transport that Chromium and Node have."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page

from tests.browser import Visitors
from tests.servers import ROOT, Server, hypercorn_server, uvicorn_server

APP = "tests.sockjs.real_client_app:app"
HERE = Path(__file__).parent
NODE_MODULES = ROOT / "client" / "node_modules"

# The client's name of a transport, and the last segment of the URL that its traffic must go to.
IN_BROWSER = {
    "websocket": "websocket",
    "xhr-streaming": "xhr_streaming",
    "eventsource": "eventsource",
    "htmlfile": "htmlfile",
    "xhr-polling": "xhr",
    "jsonp-polling": "jsonp",
    "iframe-eventsource": "eventsource",
    "iframe-htmlfile": "htmlfile",
    "iframe-xhr-polling": "xhr",
}
IN_NODE = ("websocket", "xhr-streaming", "eventsource", "xhr-polling")
ALL_RIGHT = {"difficult": None, "order": None, "megabyte": None}
CLOSED_BY_USER = {"code": 3001, "reason": "Done", "wasClean": True}
CLOSED_BY_SERVER = {"code": 3000, "reason": "Go away!", "wasClean": True}

OpenPage = Callable[[Server], Awaitable[Page]]


@pytest.fixture
def open_page(visitors: Visitors) -> OpenPage:
    """`await open_page(server)`: a page of that server's, with the client in it."""
    return lambda server: visitors.new_page(f"{server.url}/page")


async def talk(page: Page, function: str, url: str, transport: str) -> Any:
    """Run one of the functions of conversation.js in the page; returns what it found."""
    return await page.evaluate(
        "([name, url, transport]) => conversations[name](SockJS, url, transport)", [function, url, transport]
    )


class Traffic:
    """The last URL segments of all that a page, its iframes included, asks the server for."""

    def __init__(self, page: Page) -> None:
        self.seen: set[str] = set()
        page.on("request", lambda request: self._note(request.url))
        page.on("websocket", lambda socket: self._note(socket.url))

    def _note(self, url: str) -> None:
        self.seen.add(url.split("?")[0].rsplit("/", 1)[-1])


async def check_transport(page: Page, server: Server, transport: str) -> None:
    traffic = Traffic(page)
    found = await talk(page, "everything", f"{server.url}/echo", transport)
    assert found["wrong"] == ALL_RIGHT
    assert found["surrogates"] == "\ufffd alone \ufffd", "halves of surrogate pairs are replaced, not refused"
    assert found["used"] == transport
    assert found["end"] == CLOSED_BY_USER
    assert await talk(page, "ended", f"{server.url}/close", transport) == {"used": transport, "end": CLOSED_BY_SERVER}
    receiving = {*IN_BROWSER.values()} & traffic.seen
    assert receiving == {IN_BROWSER[transport]}, f"{transport} went over {receiving}"


@pytest.mark.parametrize("transport", IN_BROWSER)
async def test_chromium(shared_server: Callable[..., Server], open_page: OpenPage, transport: str) -> None:
    """Any text, in order, in messages of any allowed size, and how it ended."""
    server = shared_server(APP)
    await check_transport(await open_page(server), server, transport)


@pytest.mark.parametrize("transport", ["websocket", "xhr-streaming", "jsonp-polling"])
async def test_chromium_with_h11(shared_server: Callable[..., Server], open_page: OpenPage, transport: str) -> None:
    server = shared_server(APP, http="h11")
    await check_transport(await open_page(server), server, transport)


async def test_chromium_with_hypercorn(open_page: OpenPage) -> None:
    with hypercorn_server(APP) as server:
        page = await open_page(server)
        for transport in ("websocket", "xhr-streaming", "eventsource", "xhr-polling"):
            await check_transport(page, server, transport)
            page = await open_page(server)
        await page.close()


@pytest.mark.parametrize("transport", ["websocket", "xhr-streaming", "eventsource", "xhr-polling", "iframe-htmlfile"])
async def test_a_page_of_another_origin(
    shared_server: Callable[..., Server], visitors: Visitors, open_page: OpenPage, transport: str
) -> None:
    """A foreign page, here one from another port, is let in where every origin is allowed and nowhere else."""
    visitors.expect_problem("blocked by CORS policy|ERR_FAILED|403")
    server, other = shared_server(APP), shared_server(APP, http="h11")
    page = await open_page(other)
    allowed = {"used": transport, "wrong": None, "end": CLOSED_BY_USER}
    assert await talk(page, "words", f"{server.url}/echo", transport) == allowed
    refusal = await talk(page, "refused", f"{server.url}/own", transport)
    assert refusal == {"code": 1002, "reason": "Cannot connect to server", "wasClean": False}
    home = await open_page(server)
    assert await talk(home, "words", f"{server.url}/own", transport) == allowed


async def test_a_foreign_page_that_knows_better_than_to_ask_first(
    shared_server: Callable[..., Server], visitors: Visitors, open_page: OpenPage
) -> None:
    """The refusal does not rest on the client's asking /info: session URLs refuse, too."""
    visitors.expect_problem("blocked by CORS policy|ERR_FAILED|403")
    server, other = shared_server(APP), shared_server(APP, http="h11")
    page = await open_page(other)
    socket = await page.evaluate(
        """url => new Promise((resolve) => {
            const socket = new WebSocket(url);
            socket.onopen = () => resolve("open");
            socket.onclose = (event) => resolve(event.code);
        })""",
        server.url.replace("http", "ws") + "/own/0/s/websocket",
    )
    assert socket == 1006
    status = await page.evaluate(
        "url => fetch(url, {method: 'POST', mode: 'no-cors'}).then((response) => response.type)",
        server.url + "/own/0/sneaked/xhr",
    )
    assert status == "opaque", "the page learns nothing"
    # Nothing was opened by it: a page of the origin itself gets the first frame of a new session.
    home = await open_page(server)
    opened = await home.evaluate("url => fetch(url, {method: 'POST'}).then((r) => r.text())", "/own/0/sneaked/xhr")
    assert opened == "o\n"


RECONNECTING = ["websocket", "xhr-streaming", "eventsource", "xhr-polling"]  # all at once: six connections are a page's


async def test_a_restart_and_a_crash(visitors: Visitors, open_page: OpenPage) -> None:
    """A restart is announced, a crash is noticed, and in both cases a new connection carries on."""
    visitors.expect_problem("ERR_|WebSocket connection")
    with uvicorn_server(APP) as server:
        page = await open_page(server)
        await connect_all(page, server)
        await asyncio.to_thread(server.stop)
        restarted = {"code": 1012, "reason": "Service restart", "wasClean": True}
        assert await ends(page) == dict.fromkeys(RECONNECTING, restarted)
    with uvicorn_server(APP, port=server.port) as server:
        await connect_all(page, server)
        await asyncio.to_thread(server.kill)
    with uvicorn_server(APP, port=server.port) as server:
        # Only now: an EventSource asks again until it is told that its session is another one.
        for transport, end in (await ends(page)).items():
            assert (end["code"], end["wasClean"]) == (1006, False), (transport, end)
        await connect_all(page, server)
        await page.close()


async def connect_all(page: Page, server: Server) -> None:
    """Open one conversation per transport in the page, as `talks`, and see that each echoes."""
    wrong = await page.evaluate(
        """async ([url, transports]) => {
            window.talks = {};
            for (const name of transports) talks[name] = await conversations.Conversation.open(SockJS, url, name);
            const answers = await Promise.all(Object.values(talks).map((talk) => talk.pingPong(["one", "two"])));
            return answers.filter((answer) => answer !== null);
        }""",
        [f"{server.url}/echo", RECONNECTING],
    )
    assert wrong == []


async def ends(page: Page) -> dict[str, dict[str, Any]]:
    """How the page's conversations have ended, by their transport."""
    ends: dict[str, dict[str, Any]] = await page.evaluate(
        """async () => {
            const ends = {};
            for (const [name, talk] of Object.entries(talks)) {
                ends[name] = await conversations.within(talk.closed, `end of ${name}`);
            }
            return ends;
        }"""
    )
    return ends


def in_node(server: Server, transport: str) -> dict[str, Any]:
    node = shutil.which("node")
    assert node is not None, "Node is missing; see `make setup`."
    assert (NODE_MODULES / "sockjs-client").is_dir(), "The client's packages are missing: run `make setup`."
    done = subprocess.run(
        [node, str(HERE / "in_node.cjs"), server.url, transport],
        env={**os.environ, "NODE_PATH": str(NODE_MODULES)},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def check_node(server: Server, transport: str) -> None:
    found = in_node(server, transport)
    assert found["version"] == "1.6.1"
    carried = found["carried"]
    assert carried["wrong"] == ALL_RIGHT
    assert carried["used"] == transport
    assert carried["end"] == CLOSED_BY_USER
    assert found["closed"] == {"used": transport, "end": CLOSED_BY_SERVER}


@pytest.mark.parametrize("transport", IN_NODE)
def test_node(shared_server: Callable[..., Server], transport: str) -> None:
    check_node(shared_server(APP), transport)


def test_node_with_hypercorn() -> None:
    with hypercorn_server(APP) as server:
        for transport in ("websocket", "xhr-streaming"):
            check_node(server, transport)
