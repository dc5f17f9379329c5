"""What the tests in a browser start from; the browser comes from tests/conftest.py, for README's test uses it too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.async_api import expect

from tests.servers import Server

# Milliseconds; Playwright's own 5 s are little where a person leaves two seconds after their page, on a busy machine.
expect.set_options(timeout=15_000)


@pytest.fixture
def examples(serve: Callable[..., Server]) -> Server:
    """The example pages on a server of this test's own, so that nobody else is in the chat."""
    return serve("examples.app:app")
