"""The server fixtures themselves: what they are there to notice, they notice."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.servers import HTTPParser, Server, hypercorn_server, uvicorn_server

APP = """
import asyncio, logging, os

async def app(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("only http")
    if scope["path"] == "/log":
        logging.getLogger("uvicorn.error").error("something went wrong")
    if scope["path"] == "/crash":
        os._exit(3)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(scope["server"][1]).encode()})

async def deaf(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await asyncio.Event().wait()
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "sample.py").write_text(APP)
    return tmp_path


def get(server: Server, path: str = "/") -> str:
    with urllib.request.urlopen(server.url + path, timeout=10) as response:
        body: bytes = response.read()
        return body.decode()


def test_uvicorn_answers_on_its_own_port_as_soon_as_the_block_is_entered(here: Path, http: HTTPParser) -> None:
    with uvicorn_server("sample:app", http=http, cwd=here) as server:
        assert get(server) == str(server.port)
    assert "Finished server process" in server.log


def test_hypercorn_answers_on_its_own_port_as_soon_as_the_block_is_entered(here: Path) -> None:
    with hypercorn_server("sample:app", cwd=here) as server:
        assert get(server) == str(server.port)


def test_a_server_can_be_ended_and_started_again_on_the_same_port(here: Path) -> None:
    with uvicorn_server("sample:app", cwd=here) as first:
        first.kill()
        with uvicorn_server("sample:app", cwd=here, port=first.port) as second:
            assert get(second) == str(first.port)


@pytest.mark.parametrize("start", [uvicorn_server, hypercorn_server])
def test_a_server_that_cannot_start_fails_with_its_log(
    here: Path, start: Callable[..., AbstractContextManager[Server]]
) -> None:
    with pytest.raises(AssertionError, match="Could not import|No module"), start("missing:app", cwd=here):
        pass


def test_a_logged_error_fails_the_test_unless_it_was_expected(here: Path) -> None:
    with pytest.raises(AssertionError, match="something went wrong"), uvicorn_server("sample:app", cwd=here) as server:
        get(server, "/log")
    with uvicorn_server("sample:app", cwd=here, errors_expected=True) as server:
        get(server, "/log")


def test_a_server_that_ends_by_itself_fails_the_test(here: Path) -> None:
    with pytest.raises(AssertionError, match="status 3"), uvicorn_server("sample:app", cwd=here) as server:
        with pytest.raises(OSError, match="closed|reset"):
            get(server, "/crash")
        server.process.wait(10)


def test_a_server_that_does_not_end_is_killed_and_fails_the_test(here: Path) -> None:
    with pytest.raises(AssertionError, match=re.escape("still running 0.5 s after SIGTERM")):
        with uvicorn_server("sample:deaf", cwd=here, stop_within=0.5) as server:
            pass
    assert server.process.returncode is not None


def test_a_failure_in_the_block_comes_with_the_log(here: Path) -> None:
    with pytest.raises(ZeroDivisionError) as failure, uvicorn_server("sample:app", cwd=here):
        raise ZeroDivisionError
    assert "Uvicorn running on" in failure.value.__notes__[0]
