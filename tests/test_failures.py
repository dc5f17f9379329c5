"""What clients get of exceptions that the application raises.

The kind of fault: an exception that means something, of which neither the browser nor its developer gets to know.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal

import httpx
import pytest
from fastapi import HTTPException as FastAPIError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Mount

from backsync_asgi import Backsync, Context, Reject
from backsync_asgi.errors import CODES
from backsync_asgi.stores import MemoryStore
from tests.inprocess import Closed, Socket, connect


async def end_of(client: Socket) -> Closed:
    """How the server has closed the socket."""
    with pytest.raises(Closed) as caught:
        while True:
            await client.receive()
    return caught.value


def failing(*, debug: bool, error: Callable[[], Exception]) -> Backsync:
    """An app all of whose functions fail."""
    sync = Backsync(debug=debug)
    model = sync.model("M")

    async def fail(ctx: Context, data: Any) -> Any:
        raise error()

    for method in ("read", "upsert", "delete", "subscribe", "own"):
        model.on(method)(fail)

    ruled = sync.model("Ruled", store=MemoryStore())

    @ruled.allow
    def never(ctx: Context, method: str, old: Any, new: Any) -> bool:
        raise error()

    return sync


CALLS = [
    ("M:read", {}),
    ("M:upsert", {}),
    ("M:upsert", [{}]),
    ("M:delete", {"id": 1}),
    ("M:subscribe", {}),
    ("M:own", 1),
]


@pytest.mark.parametrize("debug", [True, False])
@pytest.mark.parametrize(("event", "data"), [*CALLS, ("Ruled:upsert", {})])
async def test_the_text_of_an_exception_reaches_the_client_in_debug_alone(event: str, data: Any, debug: bool) -> None:
    async with connect(failing(debug=debug, error=lambda: RuntimeError("a detail"))) as client:
        error = await client.error(event, data)
    assert error["code"] == "handler_error"
    assert ("a detail" in error["message"]) is debug


@pytest.mark.parametrize("debug", [True, False])
@pytest.mark.parametrize("hook", ["auth", "open"])
async def test_a_hook_that_fails_closes_with_a_reason(hook: Literal["auth", "open"], debug: bool) -> None:
    sync = Backsync(debug=debug)

    def fail(*arguments: Any) -> None:
        raise RuntimeError("a detail")

    @sync.on(hook)
    def called(ctx: Context, token: str | None = None) -> None:
        fail()

    async with connect(sync) as client:
        client.send({"id": 1, "event": "$:hello", "data": {"version": 1}})
        closed = await end_of(client)
    assert closed.code == 1011
    assert "hook failed" in closed.reason
    assert ("a detail" in closed.reason) is debug


@pytest.mark.parametrize("debug", [True, False])
async def test_a_token_that_the_hook_fails_on_is_answered(debug: bool) -> None:
    sync = Backsync(debug=debug)

    @sync.on("auth")
    async def auth(ctx: Context, token: str | None) -> str:
        if token == "bad":
            raise RuntimeError("a detail")
        return "ann"

    async with connect(sync) as client:
        await client.call("$:hello", {"version": 1})
        error = await client.error("$:auth", {"token": "bad"})
    assert error["code"] == "handler_error"
    assert ("a detail" in error["message"]) is debug


@pytest.mark.parametrize(
    ("status", "code"),
    [
        *((400, "invalid"), (401, "unauthorized"), (403, "forbidden"), (404, "not_found"), (409, "conflict")),
        *((422, "invalid"), (429, "rate_limited"), (503, "unavailable")),
    ],
)
@pytest.mark.parametrize(("event", "data"), [*CALLS, ("Ruled:upsert", {})])
async def test_a_web_frameworks_refusal_is_a_refusal(
    event: str, data: Any, status: int, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with connect(failing(debug=False, error=lambda: HTTPException(status, "Not for you."))) as client:
        error = await client.error(event, data)
    assert (error["code"], error["message"]) == (code, "Not for you.")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(("event", "data"), [*CALLS, ("Ruled:upsert", {})])
async def test_a_refusal_in_a_task_group_is_a_refusal(event: str, data: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What wraps a refusal does not make it a failure, unless something else failed, too."""
    group = ExceptionGroup("tasks", [ExceptionGroup("inner", [Reject("full", "Come back later.")]), HTTPException(404)])
    async with connect(failing(debug=False, error=lambda: group)) as client:
        error = await client.error(event, data)
    assert (error["code"], error["message"]) == ("full", "Come back later.")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    both = ExceptionGroup("tasks", [Reject("full"), RuntimeError("planted")])
    async with connect(failing(debug=False, error=lambda: both)) as client:
        assert (await client.error(event, data))["code"] == "handler_error"


async def test_a_web_frameworks_failure_is_a_failure_and_its_details_are_details() -> None:
    async with connect(failing(debug=False, error=lambda: HTTPException(500, "secret"))) as client:
        assert (await client.error("M:own"))["message"] == CODES["handler_error"]
    problem = {"field": "text"}
    async with connect(failing(debug=False, error=lambda: FastAPIError(422, problem))) as client:
        error = await client.error("M:own")
        assert (error["code"], error["details"]) == ("invalid", problem)
    async with connect(failing(debug=False, error=lambda: HTTPException(404))) as client:
        assert (await client.error("M:own"))["message"] == CODES["not_found"]


async def test_a_web_frameworks_refusal_by_the_auth_hook_is_final() -> None:
    sync = Backsync()

    @sync.on("auth")
    def auth(ctx: Context, token: str | None) -> None:
        raise HTTPException(401, "Sign in.")

    async with connect(sync) as client:
        client.send({"id": 1, "event": "$:hello", "data": {"version": 1}})
        closed = await end_of(client)
    assert (closed.code, closed.reason) == (4501, "Sign in.")


@pytest.mark.parametrize("debug", [True, False])
async def test_rest_answers_as_the_socket_does(debug: bool) -> None:
    async def ask(error: Exception) -> httpx.Response:
        app = Starlette(routes=[Mount("/api", app=failing(debug=debug, error=lambda: error).rest())])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.get("/api/M")

    answer = await ask(RuntimeError("a detail"))
    assert answer.status_code == 500
    assert ("a detail" in answer.text) is debug
    assert (await ask(HTTPException(403))).status_code == 403
