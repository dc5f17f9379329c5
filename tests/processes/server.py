"""One small app over a table, and a process that serves it by uvicorn until it is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import socket
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import sqlalchemy as sa
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from backsync_asgi import Backsync
from backsync_asgi.client import Conversation
from backsync_asgi.live import listen
from backsync_asgi.stores import SQLStore
from backsync_asgi.testing import Client, Transport
from tests.convergence.net import NetSocketLine
from tests.forks import processes

DEADLINE = 20.0  # seconds in which a server that was started must answer
ROWS = sa.Table("rows", sa.MetaData(), *(sa.Column(name, sa.Integer) for name in ("rev", "n")))
ROWS.append_column(sa.Column("id", sa.Text, primary_key=True))


def make_app(url: str, listens: bool) -> Starlette:
    """`Row` is in the store, `Live` are the same rows as PostgreSQL tells of them."""
    sync = Backsync()
    store = SQLStore(url, table=ROWS)
    sync.model("Row", store=store, version="rev")

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await store.open()
        if not listens:
            yield
            return
        async with listen(sync.model("Live"), url, table="rows"):
            yield

    return Starlette(routes=[Mount("/backsync", app=sync)], lifespan=lifespan)


def app() -> Starlette:
    """As uvicorn's command line finds it."""
    return make_app(os.environ["DATABASE_URL"], listens=False)


def client_of(port: int) -> Client:
    """A client of the server on a port, which keeps what has no reply until it comes back."""

    def dial(transport: Transport, ears: Any) -> NetSocketLine:
        return NetSocketLine(port, False, "reset", ears, path="/backsync")

    return Client(dial, Conversation(secrets.token_hex(8), None), "websocket", True)


def serve(url: str, port: int, listens: bool) -> None:
    """Serve the app, until the process is killed."""
    uvicorn.run(make_app(url, listens), host="127.0.0.1", port=port, log_level="error")


class Process:
    """A process that serves the app of a database, on a port that stays the same over restarts."""

    def __init__(self, url: str, *, listens: bool = False) -> None:
        self._arguments = (url, lasting_port(), listens)
        self._process: Any = None

    def start(self) -> None:
        self._process = processes.Process(target=serve, args=self._arguments, daemon=True)
        self._process.start()

    def kill(self) -> None:
        """End it at once, as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
            self._process = None

    def client(self) -> Client:
        """One of its clients."""
        return client_of(self._arguments[1])


def lasting_port() -> int:
    """A free port that no connection is given by the system while the server is away."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            port = random.randrange(20_000, 30_000)  # below those that systems give away
            probe.bind(("127.0.0.1", port))
            return port


async def come_back(client: Client) -> None:
    """Connect as soon as the server answers; what had no reply is sent again."""
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                await client.reconnect()
                await client.call("$:ping")
                return
            except (ConnectionError, TimeoutError):
                await asyncio.sleep(0.02)


async def rows_of(url: str) -> dict[str | int, dict[str, Any]]:
    """What is in the table, read by the test itself."""
    if url.startswith("sqlite"):
        with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
            connection.row_factory = sqlite3.Row
            return {row["id"]: dict(row) for row in connection.execute("SELECT id, rev, n FROM rows")}
    store = SQLStore(url, table=ROWS)
    try:
        return {row["id"]: row for row in await store.read({})}
    finally:
        await store.close()
