"""The server's own affairs, in process: what one session does must not reach the others."""

from __future__ import annotations

import logging
from typing import Any, cast

import pytest

from backsync_asgi.sockjs.server import Server, Settings
from backsync_asgi.sockjs.session import Session
from tests.sockjs.test_session import FakeEndpoint, FakeReceiver


class Endpoint(FakeEndpoint):
    """An application's end that counts its ticks, and fails at each of them or not."""

    ticks = 0
    fails = False

    def tick(self, now: float) -> bool:
        self.ticks += 1
        if self.fails:
            raise TypeError("a bug")
        return False


async def test_a_session_that_fails_does_not_end_the_sweep(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(lambda session, scope: cast(Any, None), Settings())
    server.start()
    endpoints = []
    for fails in (False, True, True, False):
        session = Session(server.settings.timing)
        session.endpoint = endpoint = Endpoint(session)
        endpoint.fails = fails
        session.accept()
        session.attach(FakeReceiver())
        server._sockets.add(session)
        endpoints.append(endpoint)
    with caplog.at_level(logging.ERROR, "backsync.sockjs"):
        for count in (1, 2):
            server._sweep()
            assert [endpoint.ticks for endpoint in endpoints] == [count] * 4
            assert server._sweeping is not None, "it goes on"
            server._sweeping.cancel()
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["a bug"] * 4
