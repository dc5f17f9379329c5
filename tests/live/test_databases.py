"""The first program of docs/databases.md does what it says, in process and in a browser; knows its shape only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import expect
from sqlalchemy import create_engine, text

from backsync_asgi.live import listen, live
from backsync_asgi.testing import connect
from tests.browser import Visitors
from tests.servers import ROOT, Server
from tests.test_docs import blocks_of, in_a_directory_of_its_own, run_program
from tests.test_readme import first_block

__all__ = ["in_a_directory_of_its_own"]

DOCUMENT = (ROOT / "docs" / "databases.md").read_text()


async def test_what_a_route_commits_reaches_a_subscriber() -> None:
    app = run_program(next(blocks_of("databases.md", DOCUMENT)))["app"]
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as browser,
        connect(app, "/backsync") as ann,
    ):
        await browser.post("/messages", params={"text": "before"})
        seen = await ann.subscribe("Message")
        assert seen == {1: {"id": 1, "text": "before"}}
        await browser.post("/messages", params={"text": "after"})
        await ann.until(lambda: seen.get(2) == {"id": 2, "text": "after"})


async def test_its_page_shows_what_is_saved(tmp_path: Path, serve: Callable[..., Server], visitors: Visitors) -> None:
    visitors.expect_problem(r"/favicon\.ico")
    for name, language in (("app.py", "python"), ("index.html", "html")):
        (tmp_path / name).write_text(first_block(DOCUMENT, language))
    server = serve("app:app", cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    first, second = await visitors.new_page(server.url), await visitors.new_page(server.url)
    await first.get_by_role("textbox").fill("Tea is ready")
    await first.get_by_role("textbox").press("Enter")
    for page in (first, second):
        await expect(page.locator("ul > li")).to_have_text(["Tea is ready"])


async def test_a_connection_that_is_lost_beside_live_models_can_be_rolled_back() -> None:
    program = run_program(next(blocks_of("databases.md", DOCUMENT)))  # which listens to every engine
    assert program["app"] is not None
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        connection.execute(text("select 1"))
        connection.invalidate()
        connection.rollback()
        assert connection.execute(text("select 2")).scalar() == 2
    engine.dispose()


def test_a_name_in_place_of_a_model_is_refused() -> None:
    name: Any = "Message"
    with pytest.raises(TypeError, match=r"live got 'Message' as its model, expected one such as sync\.model"):
        live(name, dict)
    with pytest.raises(TypeError, match="listen got 'Message' as its model"):
        listen(name, "postgresql://localhost", table="message")


def test_its_first_program_is_short() -> None:
    lines = [line for line in first_block(DOCUMENT, "python").splitlines() if line.strip()]
    assert len(lines) <= 40
    assert len([line for line in lines if "live(" in line]) == 1
