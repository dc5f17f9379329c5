"""The page that leads to the examples, in a real browser; knows nothing of the examples but their headings."""

from __future__ import annotations

import pytest
from playwright.async_api import ViewportSize, expect

from tests.browser import DESKTOP, PHONE, Visitors
from tests.e2e.pages import expect_to_fit, tab_to
from tests.servers import Server


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
async def test_it_leads_to_each_example_and_each_leads_back(
    examples: Server, visitors: Visitors, viewport: ViewportSize
) -> None:
    page = await visitors.new_page(examples.url, viewport=viewport)
    await expect_to_fit(page)
    for example in ("Chat", "Todo", "Console"):
        await page.get_by_role("link", name=example).click()
        await expect(page).to_have_url(f"{examples.url}/{example.lower()}/")
        await expect(page.get_by_role("heading", level=1, include_hidden=True)).to_have_text(f"Backsync {example}")
        await expect(page.get_by_test_id("status")).to_have_text("Live")
        if example == "Chat":
            await page.get_by_test_id("name-join").click()
        await page.get_by_role("link", name="Backsync").click()
        await expect(page).to_have_url(examples.url + "/")


@pytest.mark.parametrize("example", ["chat", "todo", "console"])
async def test_an_example_is_found_without_its_last_slash(examples: Server, visitors: Visitors, example: str) -> None:
    page = await visitors.new_page(f"{examples.url}/{example}")
    await expect(page).to_have_url(f"{examples.url}/{example}/")
    await expect(page.get_by_test_id("status")).to_have_text("Live")


async def test_the_keyboard_reaches_each_example(examples: Server, visitors: Visitors) -> None:
    page = await visitors.new_page(examples.url)
    for example in ("Chat", "Todo", "Console"):
        await tab_to(page, page.get_by_role("link", name=example))
    await page.keyboard.press("Enter")
    await expect(page).to_have_url(examples.url + "/console/")
