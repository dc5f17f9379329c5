"""Opens pages in a real Chromium and listens to their consoles; knows nothing of what the pages show."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, ViewportSize, WebError, async_playwright

DESKTOP: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 390, "height": 844}

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
CHROMIUM_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A headless Chromium, for as long as the block lasts."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS)
        yield browser
        await browser.close()


class Visitors:
    """The contexts (a person's browser each) and pages (a tab each) of one test, and what their consoles say.

    An error in a console, an uncaught exception or a resource that does not load fails the test when `leave` is
    called, unless its text matches a pattern given to `expect_problem`.
    """

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._contexts: list[BrowserContext] = []
        self._problems: list[str] = []
        self._expected: list[str] = []

    async def new_context(self, viewport: ViewportSize = DESKTOP, **options: Any) -> BrowserContext:
        """Another person's browser, sharing no cookies or storage. `options` are those of Playwright's new_context."""
        context = await self._browser.new_context(viewport=viewport, **options)
        context.on("console", self._on_console)
        context.on("weberror", self._on_exception)
        self._contexts.append(context)
        return context

    async def new_page(
        self, url: str | None = None, *, viewport: ViewportSize = DESKTOP, context: BrowserContext | None = None
    ) -> Page:
        """A tab at `url`: a new person's, or a further one of the person whose `context` is given."""
        page = await (context or await self.new_context(viewport)).new_page()
        if url is not None:
            await page.goto(url)
        return page

    def expect_problem(self, pattern: str) -> None:
        """Problems whose text matches are part of this test, such as a lost connection while the server is down."""
        self._expected.append(pattern)

    async def leave(self) -> None:
        """Close everything; AssertionError if a page had a problem that was not expected."""
        for context in self._contexts:
            await context.close()
        unexpected = [text for text in self._problems if not any(re.search(p, text) for p in self._expected)]
        assert not unexpected, "in the browser's console:\n" + "\n".join(unexpected)

    def _on_console(self, message: ConsoleMessage) -> None:
        line = f"{message.type}: {message.text} ({message.location['url']})"
        print(line)  # shown with the test, should it fail
        if message.type == "error":
            self._problems.append(line)

    def _on_exception(self, error: WebError) -> None:
        line = f"uncaught: {error.error.stack or error.error.message}"
        print(line)
        self._problems.append(line)
