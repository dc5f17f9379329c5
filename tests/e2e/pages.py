"""What tests ask of any page: does it fit its width, what does the keyboard reach. Knows no page in particular."""

from __future__ import annotations

from playwright.async_api import Locator, Page, expect

# What a browser says of requests that a lost connection, or a server that is down, ends.
LOST_CONNECTION = r"net::ERR_|WebSocket connection to"

_MOST_STOPS = 40  # so many Tabs lead round any of our pages


async def expect_to_fit(page: Page) -> None:
    """Nothing is wider than the window: neither does the page scroll sideways, nor is anything cut off at its side."""
    too_wide = await page.evaluate(
        """() => [...document.querySelectorAll("body, body *")]
            .filter((element) => element.checkVisibility() && element.getBoundingClientRect().right > innerWidth + 0.5)
            .filter((element) => !element.closest("[data-testid=people], pre")) // these scroll by themselves
            .map((element) => element.outerHTML.slice(0, 100))"""
    )
    assert not too_wide, "wider than the window: " + "\n".join(too_wide)
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"


async def tab_to(page: Page, target: Locator, key: str = "Tab") -> None:
    """Press Tab (or `key`) until `target` has the focus, and shows it; AssertionError if it never gets it."""
    for _ in range(_MOST_STOPS):
        await page.keyboard.press(key)
        if await target.evaluate("(element) => element === document.activeElement"):
            assert await target.evaluate("(element) => element.matches(':focus-visible')")
            return
    raise AssertionError(f"{_MOST_STOPS} times {key} did not lead to {target}")


async def expect_in_window(page: Page, *targets: Locator) -> None:
    """Each can be seen as a whole without scrolling the page."""
    for target in targets:
        await expect(target).to_be_in_viewport(ratio=1)
