"""What the tests in a browser start from; the browser comes from tests/conftest.py, for README's test uses it too."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.servers import Server


@pytest.fixture
def examples(serve: Callable[..., Server]) -> Server:
    """The example pages on a server of this test's own, so that nobody else is in the chat."""
    return serve("examples.app:app")
