"""The errors of Backsync and their codes on the wire; it knows nothing of how they travel."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# What each code tells the reader at the other end. Applications may raise codes of their own beside these.
CODES: Mapping[str, str] = {
    "bad_message": "The message is not of the protocol's form.",
    "unknown_model": "No model of that name is registered.",
    "unknown_method": "The model has no such method.",
    "invalid": "The data was refused; details name the fields.",
    "unauthorized": "Sign in first.",
    "forbidden": "The user may not do this.",
    "not_found": "There is no such record.",
    "conflict": "The record has changed; details hold the current one.",
    "too_large": "A size limit was exceeded; details name it.",
    "rate_limited": "Too many requests; details say when to retry.",
    "timeout": "The handler took too long.",
    "handler_error": "The handler failed; the server's log says why.",
    "unavailable": "A store or broker is down; retrying is safe.",
}

_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")


class BacksyncError(Exception):
    """The root of all errors of this package."""


class Reject(BacksyncError):
    """Raised by a handler, hook or store to refuse a request: the caller gets `code`, `message` and `details`.

    Nothing is logged as a failure: a refusal is an ordinary answer. Raise it before anything is stored: what a handler
    has committed is broadcast all the same.

    code: one of `CODES` or a code of your own (lower-case letters, digits, underscores, at most 64).
    message: for the person at the other end.
    details: any JSON value, for the program at the other end.
    """

    def __init__(self, code: str, message: str = "", details: Any = None) -> None:
        if _CODE.fullmatch(code) is None:
            expected = "lower-case letters, digits and underscores, such as 'forbidden'"
            raise ValueError(f"Reject got the code {code!r}, expected {expected}.")
        self.code = code
        self.message = message or CODES.get(code, code)
        self.details = details
        super().__init__(f"{code}: {self.message}")


class Contained(BacksyncError):
    """Raised in place of SystemExit, GeneratorExit or another exception of the application that is no `Exception`; its
    cause is the original. Let through, one of those ends the event loop or a task rather than one call."""

    def __init__(self, error: BaseException) -> None:
        self.__cause__ = error
        super().__init__(f"the application raised {type(error).__name__}, which is no Exception")


class EncodeError(BacksyncError):
    """A value that JSON cannot carry; the message names the field and the remedy."""


class BadMessage(BacksyncError):
    """A message that is not of the protocol's form. `id` and `event` are what could be read of it, else None."""

    def __init__(self, message: str, *, id: str | int | None = None, event: str | None = None) -> None:
        self.id = id
        self.event = event
        super().__init__(message)
