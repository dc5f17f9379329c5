"""The server's own affairs, in process: what one session does must not reach the others."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

import pytest

from backsync_asgi.sockjs.server import Server, Settings
from backsync_asgi.sockjs.session import Session


class Endpoint:
    """An application's end that fails as time goes on, or waits to be asked."""

    urgent = False
    behind = False

    def __init__(self, fails: bool) -> None:
        self.fails = fails
        self.ticked = asyncio.Event()

    def pull(self) -> None:
        return None

    def tick(self, now: float) -> bool:
        self.ticked.set()
        if self.fails:
            raise TypeError("a bug")
        return False


async def sweep_with(server: Server, endpoints: list[Endpoint]) -> None:
    """Carry a session for each, and wait until the sweep has come by all of them, twice."""

    class Silent:
        """A receiver that nobody writes to."""

        lifetime = None
        writable = True
        form = "frame"
        way = None

        def declines(self, frame: object) -> bool:
            return True

        def fills(self, frame: object) -> bool:
            return False

        def write(self, frame: object, last: bool) -> None:
            """Nobody reads it."""

        def abort(self) -> None:
            """Nobody is there."""

    server.start()
    sessions = []
    for endpoint in endpoints:
        session = Session(server.settings.timing)
        session.endpoint = cast(Any, endpoint)
        session.accept()
        session.attach(cast(Any, Silent()))
        server._sockets.add(session)
        sessions.append(session)
    for _ in range(2):
        for endpoint in endpoints:
            endpoint.ticked.clear()
        server._sweep()
        assert all(endpoint.ticked.is_set() for endpoint in endpoints)
        assert server._sweeping is not None, "it goes on"
        server._sweeping.cancel()


async def test_a_session_that_fails_does_not_end_the_sweep(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(lambda session, scope: cast(Any, None), Settings())
    with caplog.at_level(logging.ERROR, "backsync.sockjs"):
        await sweep_with(server, [Endpoint(fails=fails) for fails in (False, True, True, False)])
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["a bug"] * 4
