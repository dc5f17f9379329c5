"""The console example in a real browser; knows the page's `data-testid`s, not its code."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.async_api import Locator, Page, expect

from tests.browser import PHONE, Visitors
from tests.e2e.pages import expect_in_window, expect_to_fit, tab_to
from tests.servers import Server

KEPT = 1000  # lines, by the example's store

# Whether a <select> is as wide as its longest option wants it to be.
IS_WHOLE = """(select) => {
    const width = select.offsetWidth;
    select.style.width = "max-content";
    const wanted = select.offsetWidth;
    select.style.width = "";
    return width >= wanted;
}"""


@pytest.fixture
def console(serve: Callable[..., Server]) -> Server:
    """The console with a program that says what it is told, and nothing else."""
    return serve("tests.e2e.console_app:app")


async def log(page: Page, *lines: dict[str, Any]) -> None:
    """Let the page's server log these lines; see console_app.py."""
    response = await page.request.post(page.url + "say", data=list(lines))
    assert response.ok


def line(level: str, message: str, **more: Any) -> dict[str, Any]:
    return {"level": level, "message": message, **more}


def lines(page: Page) -> Locator:
    return page.get_by_test_id("line").filter(visible=True)


def said(page: Page) -> Locator:
    return lines(page).locator(".said")


DAY = (
    line("DEBUG", "Looking for orders"),
    line("INFO", "Order 1 is paid"),
    line("WARNING", "Order 2 is late"),
    line("ERROR", "Order 3 is lost", error="no such parcel"),
    line("CRITICAL", "The shop is on fire"),
)


async def test_lines_appear_live_and_a_late_reader_sees_those_before(console: Server, visitors: Visitors) -> None:
    page = await visitors.new_page(console.url)
    await expect(page.get_by_test_id("status")).to_have_text("Live")
    await expect(page.get_by_test_id("empty")).to_have_text("Waiting for the next line…")
    await log(page, *DAY)
    late = await visitors.new_page(console.url)
    for reader in (page, late):
        await expect(said(reader)).to_have_text([each["message"] for each in DAY])
        await expect(lines(reader).locator(".level")).to_have_text([each["level"] for each in DAY])
        await expect(reader.get_by_test_id("shown")).to_have_text("5 lines")
        await expect(reader.get_by_test_id("empty")).to_be_hidden()
    colours = {
        await lines(page).locator(".level").nth(number).evaluate("(level) => getComputedStyle(level).color")
        for number in range(4)
    }
    assert len(colours) == 4


async def test_a_line_opens_to_show_where_it_comes_from(console: Server, visitors: Visitors) -> None:
    page = await visitors.new_page(console.url)
    await log(page, DAY[3], line("INFO", "From afar", thread="courier-7"))
    await lines(page).nth(1).locator("summary").click()
    details = lines(page).nth(1).get_by_test_id("details")
    await expect(details).to_contain_text("courier-7")
    await expect(details).to_contain_text(re.compile(r"console_app\.py:\d+, in log"))
    await expect(details.get_by_test_id("trace")).to_have_count(0)
    await lines(page).first.locator("summary").click()
    await expect(lines(page).first.get_by_test_id("trace")).to_contain_text("LookupError: no such parcel")
    await expect(lines(page).first.get_by_test_id("details")).to_contain_text("MainThread")


async def test_level_and_text_decide_what_is_shown(console: Server, visitors: Visitors) -> None:
    page = await visitors.new_page(console.url)
    await log(page, *DAY)
    await expect(lines(page)).to_have_count(5)
    await page.get_by_test_id("level").select_option("Warning and up")
    await expect(said(page)).to_have_text(["Order 2 is late", "Order 3 is lost", "The shop is on fire"])
    await expect(page.get_by_test_id("shown")).to_have_text("3 of 5 lines")
    await page.get_by_test_id("filter").fill("ORDER")
    await expect(said(page)).to_have_text(["Order 2 is late", "Order 3 is lost"])
    await log(page, line("INFO", "Order 4 is paid"), line("ERROR", "Order 5 is lost"), line("ERROR", "No paper"))
    await expect(said(page)).to_have_text(["Order 2 is late", "Order 3 is lost", "Order 5 is lost"])
    await expect(page.get_by_test_id("shown")).to_have_text("3 of 8 lines")
    await page.get_by_test_id("filter").fill("no such parcel")  # in a traceback
    await expect(said(page)).to_have_text(["Order 3 is lost"])
    await page.get_by_test_id("filter").fill("nowhere")
    await expect(page.get_by_test_id("empty")).to_have_text("No line matches the filter.")
    await page.get_by_test_id("filter").fill("")
    await page.get_by_test_id("level").select_option("All levels")
    await expect(lines(page)).to_have_count(8)


async def test_a_paused_page_holds_lines_and_shows_them_when_resumed(console: Server, visitors: Visitors) -> None:
    page = await visitors.new_page(console.url)
    await log(page, line("INFO", "First"))
    await expect(lines(page)).to_have_count(1)
    await page.get_by_test_id("pause").click()
    await log(page, line("INFO", "Held #", times=3))
    await expect(page.get_by_test_id("pause")).to_have_text("Resume (3 held)")
    await expect(said(page)).to_have_text(["First"])
    await page.get_by_test_id("pause").click()
    await expect(said(page)).to_have_text(["First", "Held 1", "Held 2", "Held 3"])
    await expect(page.get_by_test_id("pause")).to_have_text("Pause")


async def test_clear_takes_away_what_is_there_for_this_reader_only(console: Server, visitors: Visitors) -> None:
    page, other = await visitors.new_page(console.url), await visitors.new_page(console.url)
    await log(page, *DAY)
    for reader in (page, other):
        await expect(lines(reader)).to_have_count(5)
    await page.get_by_test_id("clear").click()
    await expect(lines(page)).to_have_count(0)
    await expect(page.get_by_test_id("empty")).to_be_visible()
    await log(page, line("INFO", "Next day"))
    await expect(said(page)).to_have_text(["Next day"])
    await expect(lines(other)).to_have_count(6)


async def test_only_the_newest_thousand_are_kept(console: Server, visitors: Visitors) -> None:
    page = await visitors.new_page(console.url)
    await log(page, line("INFO", "Line #", times=700, thread="printer"))
    await expect(lines(page)).to_have_count(700)
    await log(page, line("INFO", "More #", times=500, thread="printer"))
    late = await visitors.new_page(console.url)
    for reader in (page, late):
        await expect(lines(reader)).to_have_count(KEPT)
        await expect(said(reader).first).to_have_text("Line 201")
        await expect(said(reader).last).to_have_text("More 500")
        await expect(said(reader).last).to_be_in_viewport()
        await expect(reader.get_by_test_id("shown")).to_have_text(f"{KEPT} lines")


async def test_the_page_follows_the_newest_line_until_its_reader_looks_back(
    console: Server, visitors: Visitors
) -> None:
    page = await visitors.new_page(console.url)
    await log(page, line("INFO", "Line #", times=100))
    await expect(said(page).last).to_be_in_viewport()
    await said(page).first.scroll_into_view_if_needed()
    await expect(page.get_by_test_id("newest")).to_be_visible()
    await log(page, line("INFO", "One more"))
    await expect(lines(page)).to_have_count(101)
    await expect(said(page).first).to_be_in_viewport()
    await page.get_by_test_id("newest").click()
    await expect(said(page).last).to_be_in_viewport()
    await expect(page.get_by_test_id("newest")).to_be_hidden()


async def test_an_opened_last_line_comes_into_view_and_stays_there(console: Server, visitors: Visitors) -> None:
    page = await visitors.new_page(console.url)
    await log(page, line("INFO", "Line #", times=100), line("ERROR", "Broken", error="no such parcel"))
    await expect(said(page).last).to_be_in_viewport()
    await said(page).get_by_text("Broken").click()
    trace = page.get_by_test_id("trace")
    await expect(trace).to_be_in_viewport(ratio=1)
    await expect(page.get_by_test_id("newest")).to_be_hidden()
    await log(page, line("INFO", "Later #", times=50))
    await expect(lines(page)).to_have_count(151)
    await expect(page.get_by_test_id("newest")).to_be_visible()
    await expect(trace).to_be_in_viewport(ratio=1)
    await page.get_by_test_id("newest").click()
    await log(page, line("INFO", "The end"))
    await expect(said(page).get_by_text("The end")).to_be_in_viewport()


async def test_what_is_logged_is_never_html_and_readers_do_not_write(console: Server, visitors: Visitors) -> None:
    page = await visitors.new_page(console.url)
    hostile = ["<img src=x onerror='window.hacked = true'>", "</script><b>bold</b>", "\x1b[31mred\x1b[0m"]
    await log(page, *(line("ERROR", text, error=text, thread=text) for text in hostile))
    for number in range(len(hostile)):
        await lines(page).nth(number).locator("summary").click()
    await expect(page.get_by_test_id("trace")).to_have_count(len(hostile))
    assert await said(page).all_text_contents() == hostile
    await expect(page.get_by_test_id("lines").locator("img, script, b")).to_have_count(0)
    assert await page.evaluate("typeof hacked") == "undefined"

    refused = await page.evaluate(
        """async () => {
            const [{ id }] = await Backsync.connection.call("LogLine:read");
            const write = (method) => Backsync.connection.call(`LogLine:${method}`, { id, message: "forged" });
            return Promise.all(["upsert", "patch", "delete"].map((method) => write(method).catch(({ code }) => code)));
        }"""
    )
    assert refused == ["forbidden"] * 3
    await expect(lines(page)).to_have_count(len(hostile))


async def test_on_a_phone_everything_fits(console: Server, visitors: Visitors) -> None:
    page = await visitors.new_page(console.url, viewport=PHONE)
    await log(page, *DAY, line("ERROR", "A" * 300, error="B" * 300), line("INFO", "Line #", times=30))
    await expect(lines(page)).to_have_count(36)
    controls = [page.get_by_test_id(name) for name in ("status", "level", "filter", "pause", "clear")]
    await expect_in_window(page, *controls)
    assert await page.get_by_test_id("level").evaluate(IS_WHOLE), "a level's name is cut off"
    box = await page.get_by_test_id("shown").bounding_box()
    assert box is not None
    assert box["height"] < 36, "the number of lines is broken in two"
    await lines(page).nth(5).locator("summary").click()
    await expect(page.get_by_test_id("trace")).to_be_visible()
    await expect_to_fit(page)


async def test_everything_can_be_done_with_the_keyboard_alone(console: Server, visitors: Visitors) -> None:
    page = await visitors.new_page(console.url)
    await log(page, *DAY)
    await expect(lines(page)).to_have_count(5)
    await tab_to(page, page.get_by_test_id("level"))
    await page.keyboard.type("Error")
    await expect(lines(page)).to_have_count(2)
    await tab_to(page, page.get_by_test_id("filter"))
    await page.keyboard.type("lost")
    await expect(lines(page)).to_have_count(1)
    await tab_to(page, page.get_by_test_id("pause"))
    await page.keyboard.press("Space")
    await expect(page.get_by_test_id("pause")).to_have_attribute("aria-pressed", "true")
    summary = lines(page).first.locator("summary")
    await tab_to(page, summary)
    await page.keyboard.press("Enter")
    await expect(page.get_by_test_id("trace")).to_be_visible()
    await tab_to(page, page.get_by_test_id("clear"), "Shift+Tab")
    await page.keyboard.press("Enter")
    await expect(lines(page)).to_have_count(0)


async def test_the_example_s_own_job_is_heard_from_its_threads_and_tasks(examples: Server, visitors: Visitors) -> None:
    page = await visitors.new_page(examples.url + "/console/")
    await expect(said(page).filter(has_text=re.compile(r"^Indexing .* with 2 workers$"))).to_have_count(1)
    about_files = lines(page).filter(has_text=re.compile(r"\d+ lines, \d+ functions"))
    for number in (0, 1):
        await about_files.nth(number).locator("summary").click()
    details = about_files.get_by_test_id("details")
    await expect(details).to_have_count(2)
    await expect(details.locator("dt:text-is('Thread') + dd")).to_have_text([re.compile(r"^worker-[12]$")] * 2)
