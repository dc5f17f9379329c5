"""Errors: one tree, and codes that the reader at the other end knows."""

from __future__ import annotations

import pytest

from backsync_asgi import Reject
from backsync_asgi.errors import CODES, BacksyncError, BadMessage, EncodeError


def test_all_errors_have_one_root() -> None:
    for error in (Reject, BadMessage, EncodeError):
        assert issubclass(error, BacksyncError)


def test_a_reject_carries_code_message_and_details() -> None:
    error = Reject("forbidden", "Sign in to post.", {"why": 1})
    assert (error.code, error.message, error.details) == ("forbidden", "Sign in to post.", {"why": 1})
    assert str(error) == "forbidden: Sign in to post."


def test_the_codes_of_the_protocol_have_a_message_of_their_own() -> None:
    for code, message in CODES.items():
        assert Reject(code).message == message


def test_an_application_may_have_codes_of_its_own() -> None:
    assert Reject("out_of_stock").message == "out_of_stock"


@pytest.mark.parametrize("code", ["", "Forbidden", "not found", "a-b", "1a", "_a", "a\n", "x" * 65, "é"])
def test_a_code_is_a_name(code: str) -> None:
    with pytest.raises(ValueError, match="Reject got the code .*, expected lower-case letters"):
        Reject(code)


def test_a_bad_message_remembers_whom_to_tell() -> None:
    error = BadMessage("No.", id=1, event="M:x")
    assert (error.id, error.event, str(error)) == (1, "M:x", "No.")
