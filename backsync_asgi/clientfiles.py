"""The browser client's files over HTTP, compressed for browsers that take it. It knows no models and no sessions."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.staticfiles import NotModifiedResponse, StaticFiles

NAMES = frozenset({"backsync.js", "backsync.js.map", "backsync.mjs", "backsync.mjs.map", "backsync.d.ts", "sockjs.js"})
# The system's table of types may have others: a Qt translation is named `.ts`, too.
_TYPES = {".map": "application/json", ".ts": "text/plain; charset=utf-8"}


class ClientFiles:
    """Serves the files of NAMES. Each is compressed once, when it is first asked for, and kept in memory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._plain = StaticFiles(directory=directory, check_dir=False)
        self._compressed: dict[str, tuple[str, bytes]] = {}  # the ETag of the plain file, and its content compressed

    async def respond(self, name: str, scope: MutableMapping[str, Any]) -> Response:
        """Returns the response to a GET or HEAD request for the file."""
        path = self._directory / name
        if not path.is_file():
            text = f"{name} is not built. Run `make client` (or `npm ci && npm run build` in client/)."
            return Response(text, 404, media_type="text/plain; charset=UTF-8")
        response = await self._plain.get_response(name, scope)
        response.headers["cache-control"] = "no-cache"  # it may be kept, and is asked for again by its ETag
        response.headers["access-control-allow-origin"] = "*"
        response.headers["vary"] = "Accept-Encoding"
        if path.suffix in _TYPES and "content-type" in response.headers:
            response.headers["content-type"] = _TYPES[path.suffix]
        headers = Headers(scope=scope)
        if response.status_code == 200 and _takes_gzip(headers.get("accept-encoding", "")):
            return await self._compress(path, response, headers, is_head=scope["method"] == "HEAD")
        return response

    async def _compress(self, path: Path, plain: Response, headers: Headers, *, is_head: bool) -> Response:
        etag = plain.headers["etag"]
        kept = self._compressed.get(path.name)
        if kept is None or kept[0] != etag:
            kept = self._compressed[path.name] = (etag, await asyncio.to_thread(_compressed, path))
        shown = f'{etag[:-1]}-gzip"'
        headers_out = {
            **{name: value for name, value in plain.headers.items() if name not in ("accept-ranges", "content-length")},
            "content-encoding": "gzip",
            "etag": shown,
        }
        if shown in [tag.strip().removeprefix("W/") for tag in headers.get("if-none-match", "").split(",")]:
            return NotModifiedResponse(Headers(headers_out))
        headers_out["content-length"] = str(len(kept[1]))
        return Response(b"" if is_head else kept[1], headers=headers_out)


def _compressed(path: Path) -> bytes:
    return gzip.compress(path.read_bytes(), mtime=0)


def _takes_gzip(accepted: str) -> bool:
    """Whether an Accept-Encoding header names gzip, with a weight above zero if it has one."""
    for part in accepted.replace(" ", "").lower().split(","):
        coding, _, weight = part.partition(";q=")
        if coding == "gzip":
            return weight == "" or weight.strip("0.") != ""
    return False
