"""Which origins may talk to a server, and the CORS headers that tell browsers so; pure, it knows only headers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

Headers = list[tuple[bytes, bytes]]

YEAR = 31_536_000  # seconds
_TOKEN = rb"[A-Za-z0-9!#$%&'*+.^_`|~\-]+"
_TOKENS = re.compile(rb"%b(?: *, *%b)*" % (_TOKEN, _TOKEN))
_TOKENS_MAX = 1024  # bytes
_ORIGIN = re.compile(r"(?:https?|[a-z][a-z0-9+.-]*)://[a-z0-9.\-_\[\]:]+", re.ASCII)
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_SECURE = {"https": True, "wss": True, "http": False, "ws": False}


class Origins:
    """The rule: the host's own origin only (None), a list of exact origins, or every one ("*").

    Raises TypeError for what is no list of texts; ValueError for an entry that is not an origin
    (`https://example.com:8443`), so that a slash at the end or a path is found at start and not when a browser is
    refused.
    """

    def __init__(self, allowed: str | Sequence[str] | None) -> None:
        entries: Any = [allowed] if isinstance(allowed, str) else allowed or []
        if not isinstance(entries, Iterable) or not all(isinstance(entry, str) for entry in entries):
            raise TypeError(f"allowed_origins got {allowed!r}, expected '*' or a list of origins.")
        self.any = "*" in entries
        self.same = allowed is None
        self._allowed = frozenset(entries)
        for entry in entries:
            if entry not in ("*", "null") and _ORIGIN.fullmatch(entry) is None:
                raise ValueError(
                    f"allowed_origins got {entry!r}, expected '*' or origins in lower case without a path, "
                    "such as 'https://example.com' or 'http://localhost:3000'."
                )

    def allows(self, headers: Iterable[tuple[bytes, bytes]], scheme: str) -> bool:
        """Whether a request with these headers may talk to us. One without an Origin does not come from a foreign page.

        scheme: the request's own, http, https, ws or wss.
        """
        origins = [value for name, value in headers if name == b"origin"]
        if not origins or self.any:
            return True
        if len(origins) > 1 or not origins[0].isascii():
            return False
        origin = origins[0].decode("ascii")
        if self.same:
            host = next((value for name, value in headers if name == b"host"), b"")
            return same_origin(origin, host.decode("latin-1"), scheme)
        return origin in self._allowed

    def cors(self, headers: Iterable[tuple[bytes, bytes]], scheme: str) -> Headers:
        """The CORS headers of an answer; none for an origin that is not allowed."""
        origin = next((value for name, value in headers if name == b"origin"), None)
        if origin is None:
            return [(b"access-control-allow-origin", b"*")] if self.any else []
        if not self.allows(headers, scheme) or not _printable(origin):
            return []
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-allow-credentials", b"true"),
            (b"vary", b"Origin"),
        ]


def preflight(headers: Iterable[tuple[bytes, bytes]], methods: bytes) -> Headers:
    """What an allowed preflight is told besides the CORS headers."""
    answer = [
        (b"access-control-allow-methods", methods),
        (b"access-control-max-age", b"%d" % YEAR),
    ]
    for name, value in headers:
        if name == b"access-control-request-headers" and len(value) <= _TOKENS_MAX and _TOKENS.fullmatch(value):
            answer.append((b"access-control-allow-headers", value))
            break
    return answer


def same_origin(origin: str, host: str, scheme: str) -> bool:
    """Whether an Origin header names the very host (and port) that the request came to.

    Behind a proxy that ends TLS the request looks like plain HTTP, so a secure origin may stand against a plain
    request; the other way round it may not.
    """
    if _ORIGIN.fullmatch(origin.lower()) is None:
        return False
    try:
        theirs = urlsplit(origin)
        secure = _SECURE[theirs.scheme]
        ours = urlsplit(f"{theirs.scheme}://{host}")
        if theirs.netloc != theirs.netloc.strip() or "@" in theirs.netloc or "@" in host or theirs.path or theirs.query:
            return False
        default = _DEFAULT_PORTS[theirs.scheme]
        same = (theirs.hostname, theirs.port or default) == (ours.hostname, ours.port or default)
    except (ValueError, KeyError):
        return False
    return same and theirs.hostname is not None and (secure or not _SECURE.get(scheme, False))


def _printable(value: bytes) -> bool:
    return all(0x20 <= byte < 0x7F for byte in value)
