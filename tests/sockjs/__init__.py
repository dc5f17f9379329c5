"""Black-box tests of the SockJS server: over sockets, against real uvicorn, knowing nothing of the code under test."""

import pytest

# Before anything imports them: their assertions are to tell what they compared, as those of the tests do.
pytest.register_assert_rewrite("tests.sockjs.client", "tests.sockjs.speech")
