"""The limits: what a client may ask for, how much of the past is kept; pure, time comes in as `now`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one client may ask for. Times in seconds, sizes in bytes.

    handler_timeout: one handler call; then the caller gets `timeout`.
    threads: plain handlers that run at once, in the whole process.
    replies: replies that wait for one client; more closes it. A single reply may be larger.
    requests, requests_size: requests of one client that wait for their turn, and their bytes; while there are more,
        nothing is read from it.
    subscriptions: channels of one client.
    greeting: where there is an auth hook, a client that says nothing for so long is closed.
    rate: requests a second of one client, off by default; further ones get `rate_limited` and are not handled.
    burst: requests that may come at once where there is a rate.
    """

    handler_timeout: float = 30.0
    threads: int = 64
    replies: int = 1_048_576
    requests: int = 1_000
    requests_size: int = 262_144
    subscriptions: int = 128
    greeting: float = 10.0
    rate: float | None = None
    burst: int = 100

    def __post_init__(self) -> None:
        check_positive(self, "rate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Horizon:
    """How far back a channel remembers: beyond it a client gets a snapshot.

    records: distinct changed records. size: bytes of their messages. age: seconds.
    """

    records: int = 1_000
    size: int = 1_048_576
    age: float = 120.0

    def __post_init__(self) -> None:
        check_positive(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """How much is remembered for each client: its last writes, for so long (seconds), up to so many bytes of replies.

    clients: how many (client, user) pairs are remembered. total: bytes over all. user_size: bytes of one user, or of
    one address where there is no user. Beyond these the newest clients are forgotten first, of the same user or of
    all: a stranger with many names cannot push others out.
    """

    writes: int = 1_000
    age: float = 120.0
    size: int = 1_048_576
    clients: int = 10_000
    user_size: int = 16_777_216
    total: int = 134_217_728

    def __post_init__(self) -> None:
        check_positive(self)


def check_positive(limits: Any, *optional: str) -> None:
    """Raises ValueError for a field that is no positive number; the optional ones may be None."""
    for field in fields(limits):
        value = getattr(limits, field.name)
        if value is None and field.name in optional:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise ValueError(f"{type(limits).__name__} got {field.name}={value!r}, expected a positive number.")
        if field.type == "int" and not isinstance(value, int):
            raise ValueError(f"{type(limits).__name__} got {field.name}={value!r}, expected a whole number.")


class Bucket:
    """A token bucket: so many at once, refilled at a rate."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, now: float, count: int = 1) -> float:
        """Take tokens. Returns 0, or the seconds until there is one to take.

        count: may be more than there are; what is missing must be refilled before the next one is given.
        """
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens >= 1:
            self._tokens -= count
            return 0.0
        return (1 - self._tokens) / self._rate
