"""A list of 100 000 rows in a real browser: it opens page by page, and what is open stays live."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Awaitable, Callable

from playwright.async_api import Page

from backsync_asgi.stores import SQLStore
from tests.browser import Visitors
from tests.e2e.pages import LOST_CONNECTION
from tests.servers import Server

ROWS = 100_000
FIRST_PAGE_WITHIN = 5.0  # seconds; half a second on an idle machine
FILL = """
WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)
INSERT INTO row (id, data)
SELECT n, json_object('id', n, 'at', n, 'text', 'Row ' || n, 'rev', 1) FROM numbers
"""

SHOWN = "[...list.children].map((item) => item.textContent)"


async def fill(url: str) -> None:
    store = SQLStore(url, table="row", index=["at"])
    await store.open()
    await store.close()
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        connection.execute(FILL, [ROWS])


def numbered(first: int, last: int) -> list[str]:
    return [f"Row {number}" for number in range(first, last + 1)]


async def until_shown(page: Page, expected: list[str]) -> None:
    await page.wait_for_function(
        f"(expected) => JSON.stringify({SHOWN}) === expected", arg=await page.evaluate("JSON.stringify", expected)
    )


async def write(page: Page, event: str, data: object) -> None:
    await page.evaluate("([event, data]) => Backsync.connection.call(event, data)", [event, data])


async def test_a_list_of_100_000_rows_opens_page_by_page_and_stays_live(
    serve: Callable[..., Server], new_page: Callable[..., Awaitable[Page]], database_url: str
) -> None:
    await fill(database_url)
    server = serve("tests.e2e.long_list_app:app")
    began = time.monotonic()
    page = await new_page(server.url)
    await until_shown(page, numbered(1, 100))
    assert time.monotonic() - began < FIRST_PAGE_WITHIN
    for last in (200, 300):
        await page.locator("#more").scroll_into_view_if_needed()
        await until_shown(page, numbered(1, last))

    other = await new_page(server.url)
    await until_shown(other, numbered(1, 100))
    await write(other, "Row:patch", {"id": 50_000, "text": "changed far away"})
    await write(other, "Row:patch", {"id": 250, "text": "changed on page 3"})
    expected = [*numbered(1, 249), "changed on page 3", *numbered(251, 300)]
    await until_shown(page, expected)
    await until_shown(other, numbered(1, 100))
    await write(other, "Row:upsert", {"id": "new", "at": 150.5, "text": "new on page 2"})
    await write(other, "Row:upsert", {"at": ROWS + 1, "text": "new at the end"})
    await write(other, "Row:patch", {"id": 90_000, "at": 0.5})
    await write(other, "Row:patch", {"id": 20, "at": 70_000.5})
    await write(other, "Row:delete", {"id": 300})
    expected = ["Row 90000", *numbered(1, 19), *numbered(21, 150), "new on page 2", *expected[150:299]]
    await until_shown(page, expected)
    await page.evaluate("scrollTo(0, 0)")
    await page.locator("#more").scroll_into_view_if_needed()
    expected += numbered(301, 400)
    await until_shown(page, expected)
    assert await page.evaluate("rows.records.length") == len(expected), "the page has what it shows, and no more"


async def test_after_a_restart_all_that_was_open_is_there_again(
    serve: Callable[..., Server],
    new_page: Callable[..., Awaitable[Page]],
    database_url: str,
    visitors: Visitors,
) -> None:
    visitors.expect_problem(LOST_CONNECTION)
    await fill(database_url)
    server = serve("tests.e2e.long_list_app:app")
    page = await new_page(server.url)
    await until_shown(page, numbered(1, 100))
    await page.evaluate("rows.more().then(() => rows.more())")
    await until_shown(page, numbered(1, 300))
    server.stop()
    with sqlite3.connect(database_url.removeprefix("sqlite:///")) as connection:
        connection.execute("DELETE FROM row WHERE id IN ('5', '150')")
    serve("tests.e2e.long_list_app:app", port=server.port)
    await until_shown(page, [text for text in numbered(1, 302) if text not in ("Row 5", "Row 150")])


async def test_the_browser_orders_values_of_all_kinds_as_the_server_does(
    serve: Callable[..., Server], new_page: Callable[..., Awaitable[Page]]
) -> None:
    page = await new_page(serve("tests.e2e.long_list_app:app").url)
    for order in (["value"], ["-value"], ["kind", "-value"], "id"):
        told = await page.evaluate(
            """async (order) => {
                const values = [null, true, false, 0, 1, -2.5, 10, 9, "", "10", "9", "a", "B", "é", "\\uffff", "😀"];
                const records = [...values, [2], { a: 1 }].map((value, id) => ({ id, value, kind: typeof value }));
                await Backsync.connection.call("Mixed:upsert", [...records, { id: "none" }]);
                const list = new Backsync.LiveCollection(Backsync.connection, "Mixed", { page: 7, order });
                await list.ready;
                while (list.hasMore) await list.more();
                const server = await Backsync.connection.call("Mixed:read", { $order: order });
                list.close();
                return [list.records.map(({ id }) => id), server.map(({ id }) => id)];
            }""",
            order,
        )
        assert told[0] == told[1]
        assert len(told[0]) == 19
