"""The table of HTTP transports: what differs between them is data; pure, it knows no session and no socket.

A transport is a way to carry frames to the client in one response. Polling is streaming that ends after one frame.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import orjson

from .frames import Frame, FrameError

CALLBACK_MAX = 32  # characters; longer names are nobody's real callback
_CALLBACK = re.compile(rf"[a-zA-Z0-9\-_.]{{1,{CALLBACK_MAX}}}")

_HTMLFILE = """<!doctype html>
<html><head>
  <meta http-equiv="X-UA-Compatible" content="IE=edge" />
  <meta http-equiv="Content-Type" content="text/html; charset=UTF-8" />
</head><body><h2>Don't panic!</h2>
  <script>
    document.domain = document.domain;
    var c = parent.CALLBACK;
    c.start();
    function p(d) {c.message(d);};
    window.onload = function() {c.stop();};
  </script>"""
_HTMLFILE_MIN = 1024  # bytes before some browsers begin to run scripts

_IFRAME = """<!DOCTYPE html>
<html>
<head>
  <meta http-equiv="X-UA-Compatible" content="IE=edge" />
  <meta http-equiv="Content-Type" content="text/html; charset=UTF-8" />
  <script src="{url}"></script>
  <script>
    document.domain = document.domain;
    SockJS.bootstrap_iframe();
  </script>
</head>
<body>
  <h2>Don't panic!</h2>
  <p>This is a SockJS hidden iframe. It's used for cross domain magic.</p>
</body>
</html>"""


@dataclass(frozen=True, slots=True)
class Transport:
    """One row: how a receiving HTTP transport is reached and how it writes.

    wrap: a frame's bytes to the bytes of one write. The functions are few and module-level, since frames remember
        their encodings by them.
    prelude: what is written before the first frame, given the callback's name; it does not count towards limits.
    polling: the response ends after one frame.
    callback: the URL must name a JavaScript callback (`?c=`).
    cors: cross-origin requests are answered with CORS headers.
    optional: off unless asked for, for its reach across origins.
    """

    name: str
    method: str
    content_type: bytes
    wrap: Callable[[bytes], bytes]
    prelude: Callable[[str], bytes] | None = None
    polling: bool = False
    callback: bool = False
    cors: bool = False
    optional: bool = False

    def encode(self, frame: Frame, callback: str) -> bytes:
        """The bytes of one write; `callback` is the page's, checked by `check_callback`."""
        wire = frame.wire(self.wrap)
        if self.polling and self.callback:
            return b"/**/%b(%b);\r\n" % (callback.encode(), wire)
        return wire


def _line(frame: bytes) -> bytes:
    return frame + b"\n"


def _event(frame: bytes) -> bytes:
    # Frames are JSON, so CR, LF and NUL are escaped already; clients decode percent signs.
    return b"data: " + frame.replace(b"%", b"%25") + b"\r\n\r\n"


def script_string(frame: bytes) -> bytes:
    """The frame as a JavaScript string literal that cannot end the script element it stands in."""
    return orjson.dumps(frame.decode()).replace(b"<", b"\\u003c")


def _script(frame: bytes) -> bytes:
    return b"<script>\np(" + script_string(frame) + b");\n</script>\r\n"


def _htmlfile_prelude(callback: str) -> bytes:
    page = _HTMLFILE.replace("CALLBACK", callback).encode()
    return page.ljust(_HTMLFILE_MIN + 1) + b"\r\n\r\n"


_JAVASCRIPT = b"application/javascript; charset=UTF-8"

TRANSPORTS = {
    transport.name: transport
    for transport in (
        Transport("xhr", "POST", _JAVASCRIPT, _line, polling=True, cors=True),
        Transport("xhr_streaming", "POST", _JAVASCRIPT, _line, prelude=lambda _: b"h" * 2048 + b"\n", cors=True),
        Transport("eventsource", "GET", b"text/event-stream", _event, prelude=lambda _: b"\r\n", cors=True),
        Transport(
            "htmlfile", "GET", b"text/html; charset=UTF-8", _script, _htmlfile_prelude, callback=True, optional=True
        ),
        Transport("jsonp", "GET", _JAVASCRIPT, script_string, polling=True, callback=True, optional=True),
    )
}


def check_callback(callback: str | None) -> str:
    """The name of the page's callback, validated before any of it is written.

    Raises FrameError with the fixed texts that SockJS clients know.
    """
    if not callback:
        raise FrameError("callback_required", '"callback" parameter required')
    if _CALLBACK.fullmatch(callback) is None:
        raise FrameError("invalid_callback", 'invalid "callback" parameter')
    return callback


def iframe_page(sockjs_url: str) -> bytes:
    """The page of the cross-domain iframe, which loads the SockJS client from `sockjs_url`."""
    attribute = sockjs_url.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return _IFRAME.replace("{url}", attribute).encode()
