"""Which host names a server answers to, as an ASGI middleware; it knows no models and no sessions.

Without the check any web page can use a server on its visitor's machine: the page's own name, once it resolves to
127.0.0.1 (DNS rebinding), is both the Origin and the Host of its requests, so they look like those of a page of ours.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
from collections.abc import Iterable
from contextlib import suppress

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from .sockjs.server import deny

logger = logging.getLogger("backsync")

MAX_NAMED = 100  # refused names that are logged, each once
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_](?:[a-z0-9_.-]*))(?::[0-9]{0,5})?", re.ASCII)
_PATTERN = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_.-]*)", re.ASCII)


class Hosts:
    """Answers 400 to requests and WebSockets whose Host header names another host than these.

    Always allowed: `localhost` and names below it, loopback addresses. names: further ones; `*.example.com` is each
    name below `example.com`. Ports do not count, nor does the case or one dot at the end. X-Forwarded-Host is not
    looked at: a proxy must pass Host on, or its name for the server be allowed.

    Raises ValueError for what is no host name.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str] = ()) -> None:
        self._app = app
        self._names = frozenset(name_of(name) for name in names)
        self._refused: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) == 1 and self.allows(hosts[0]):
            await self._app(scope, receive, send)
            return
        got = _shown(hosts[0]) if len(hosts) == 1 else f"{len(hosts)} Host headers"
        self._log(got)
        text = f"Got {got}, expected a host name that this server is run for. To allow one: --allow-host NAME.\n"
        if scope["type"] == "websocket":
            await receive()
            await deny(scope, receive, send, 400, text.encode())
            return
        headers = {"x-content-type-options": "nosniff"}
        await PlainTextResponse(text, status_code=400, headers=headers)(scope, receive, send)

    def allows(self, host: str) -> bool:
        """Whether a Host header's value is one of the names."""
        found = _HOST.fullmatch(host.lower())
        if found is None:
            return False
        name = found[1].removesuffix(".")
        if name == "localhost" or name.endswith(".localhost") or name in self._names:
            return True
        with suppress(ValueError):
            address = ipaddress.ip_address(name.strip("[]"))
            return address.is_loopback or str(address) in self._names
        return any(pattern.startswith("*.") and name.endswith(pattern[1:]) for pattern in self._names)

    def _log(self, got: str) -> None:
        if got in self._refused or len(self._refused) >= MAX_NAMED:
            return
        self._refused.add(got)
        logger.warning(
            "Refused a request: got %s, expected a host name that this server is run for. To allow one: "
            "backsync run --allow-host NAME.",
            got,
        )


def name_of(name: str) -> str:
    """A host name as it is compared. Raises ValueError for what is none: a URL, a name with a port."""
    plain = name.lower().removesuffix(".")
    with suppress(ValueError):
        return str(ipaddress.ip_address(plain.strip("[]")))
    if _PATTERN.fullmatch(plain) is None:
        raise ValueError(f"got {name!r}, expected a host name without scheme and port, such as app.example.com")
    return plain


def is_loopback(host: str) -> bool:
    """Whether a server that listens on that address can be reached from its own machine alone."""
    if not host:
        return False  # every address
    try:
        found = socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return False
    addresses = [ipaddress.ip_address(str(address[0]).partition("%")[0]) for *_, address in found]
    return all(address.is_loopback for address in addresses)


def _shown(host: str) -> str:
    text = repr(host)
    return f"the host name {text if len(text) <= 100 else text[:100] + '…'}"
