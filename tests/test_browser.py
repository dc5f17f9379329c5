"""The browser fixtures themselves: what they are there to notice, they notice."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser, Page, expect

from tests.browser import DESKTOP, PHONE, Visitors

PAGE = "data:text/html,<title>page</title>"


SAY_DONE = "setTimeout(() => console.log('done'))"
# What nobody catches is reported when the browser comes to it, after this event, and perhaps after any timer.
REJECTED = f"addEventListener('unhandledrejection', () => {SAY_DONE}); Promise.reject(new Error('boom')); 0"


async def said(page: Page, script: str) -> None:
    """Run a script and wait until its message has gone through the page's console."""
    async with page.expect_console_message(lambda message: message.text == "done"):
        await page.evaluate(script if SAY_DONE in script else f"{script}; {SAY_DONE}")


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("console.error('boom')", "error: boom"),
        ("setTimeout(() => { throw new Error('boom') })", "uncaught: Error: boom"),
        (REJECTED, "uncaught: Error: boom"),
    ],
)
async def test_a_problem_in_a_page_fails_the_test_unless_it_was_expected(
    browser: Browser, script: str, problem: str
) -> None:
    visitors = Visitors(browser)
    await said(await visitors.new_page(PAGE), script)
    with pytest.raises(AssertionError, match=problem):
        await visitors.leave()

    visitors = Visitors(browser)
    visitors.expect_problem("bo+m")
    await said(await visitors.new_page(PAGE), script)
    await visitors.leave()


async def test_what_is_no_error_is_no_problem(browser: Browser) -> None:
    visitors = Visitors(browser)
    await said(await visitors.new_page(PAGE), "console.warn('hm'); console.info('hello')")
    await visitors.leave()


async def test_pages_are_of_different_people_unless_a_context_is_given(visitors: Visitors) -> None:
    one = await visitors.new_page(PAGE)
    another_tab = await visitors.new_page(PAGE, context=one.context)
    somebody_else = await visitors.new_page(PAGE)
    assert another_tab.context is one.context
    assert somebody_else.context is not one.context


async def test_the_two_sizes_are_those_of_a_desktop_and_a_phone(page: Page, phone: Page) -> None:
    for tab, size in ((page, DESKTOP), (phone, PHONE)):
        await tab.goto(PAGE)
        assert await tab.evaluate("[innerWidth, innerHeight]") == [size["width"], size["height"]]
        await expect(tab).to_have_title("page")
