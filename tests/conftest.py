"""Fixtures for all tests: the loop, real servers, a real browser; the work is done in servers.py and browser.py."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, Page

from tests.browser import PHONE, Visitors, chromium
from tests.postgres import PostgreSQL, postgres
from tests.servers import HTTP_PARSERS, HTTPParser, Server, uvicorn_server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that uses the browser is marked so, wherever it is: `pytest -m "not browser"` leaves those out."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """All async tests and fixtures run in one asyncio loop (trio is not supported by what we build on)."""
    return "asyncio"


@pytest.fixture(scope="session", params=HTTP_PARSERS)
def http(request: pytest.FixtureRequest) -> HTTPParser:
    """A test that asks for it runs once with each of uvicorn's HTTP parsers."""
    parser: HTTPParser = request.param
    return parser


@pytest.fixture
def database_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SQLite file of this test's own, which is not there yet."""
    return f"sqlite:///{tmp_path_factory.mktemp('database')}/test.db"


@pytest.fixture
def serve(database_url: str) -> Iterator[Callable[..., Server]]:
    """`serve("module:app", **options of uvicorn_server)` starts a server that ends with the test.

    Its environment names a database that only this test has.
    """
    with ExitStack() as servers:

        def start(app: str, env: Mapping[str, str] | None = None, **options: Any) -> Server:
            environment = {"DATABASE_URL": database_url, **(env or {})}
            return servers.enter_context(uvicorn_server(app, env=environment, **options))

        yield start


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Callable[..., Server]]:
    """As `serve`, but all tests that ask with the same arguments get the same server; it ends with the session."""
    with ExitStack() as servers:
        yield functools.cache(lambda app, **options: servers.enter_context(uvicorn_server(app, **options)))


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """One PostgreSQL server for the session; tests take tables of their own. Who stops it runs `postgres()` instead."""
    with postgres() as server:
        yield server


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    """One Chromium for the session; what tests share is only its process."""
    async with chromium() as browser:
        yield browser


@pytest.fixture
async def visitors(browser: Browser) -> AsyncIterator[Visitors]:
    """The contexts and pages of this test; problems in their consoles fail it. `visitors.expect_problem(pattern)`."""
    visitors = Visitors(browser)
    yield visitors
    await visitors.leave()


@pytest.fixture
def new_context(visitors: Visitors) -> Callable[..., Awaitable[BrowserContext]]:
    """`await new_context(viewport=PHONE)`: another person's browser."""
    return visitors.new_context


@pytest.fixture
def new_page(visitors: Visitors) -> Callable[..., Awaitable[Page]]:
    """`await new_page(url, viewport=PHONE, context=...)`: a tab, of another person unless a context is given."""
    return visitors.new_page


@pytest.fixture
async def page(visitors: Visitors) -> Page:
    """An empty tab of 1280 x 800 pixels."""
    return await visitors.new_page()


@pytest.fixture
async def phone(visitors: Visitors) -> Page:
    """An empty tab of 390 x 844 pixels."""
    return await visitors.new_page(viewport=PHONE)
