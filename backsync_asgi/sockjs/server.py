"""The SockJS server as an ASGI app: URLs, requests, sessions and their sweep; it knows no models.

Every receiving request runs through the same pump: find the session, attach a receiver, wait for its end. What a
transport does differently stands in the table of transports.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import functools
import hashlib
import logging
import os
import re
import secrets
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from types import FrameType
from typing import Any, Literal
from urllib.parse import parse_qs

import orjson

from .frames import FrameError, parse_form, parse_upload, parse_websocket
from .origins import YEAR, Headers, Origins, preflight
from .receivers import Direct, HttpReceiver, Receive, Scope, Send, SocketReceiver, Writer, is_protocol_error
from .session import Endpoint, Receiver, Session, Timing
from .transports import TRANSPORTS, Transport, check_callback, iframe_page

logger = logging.getLogger("backsync.sockjs")

GONE_WITHIN = 10.0  # seconds in which a server says that a client is gone whose connection it has closed
MAX_KINDS = 1_000  # of log lines, counted one by one
SWEEP = 1.0  # seconds between two looks at all sessions
LOG_EVERY = 10.0  # seconds between two lines about too many sessions
_SEGMENT = re.compile(r"[^./;%\x00-\x1f\x7f\ufffd]{1,255}")
_IFRAME = re.compile(r"iframe[^/]*\.html")
_COOKIE = re.compile(rb"[A-Za-z0-9!#$%&'()*+\-./:<=>?@\[\]^_`{|}~]{1,256}")
_HOST = re.compile(rb"(?:[A-Za-z0-9._~\-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_TEXT = (b"content-type", b"text/plain; charset=UTF-8")
_HTML = (b"content-type", b"text/html; charset=UTF-8")
_JSON = (b"content-type", b"application/json; charset=UTF-8")
_NOSNIFF = (b"x-content-type-options", b"nosniff")
_NOT_CACHED = (b"cache-control", b"no-store, no-cache, no-transform, must-revalidate, max-age=0")
_DEFAULTS = {"scheme": "http", "http_version": "1.1", "root_path": "", "query_string": b"", "extensions": {}}
_UNCHANGING = b"public, max-age=%d" % YEAR


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be set about a SockJS server. Sizes are in bytes, times in seconds.

    websocket: offer the WebSocket transports.
    jsonp, htmlfile, iframe: offer the transports of browsers without CORS; off, since they carry messages to pages of
        other origins by means that ask no permission.
    allowed_origins: None for the server's own origin, a list of exact origins, or "*".
    cookies: set and echo JSESSIONID, for load balancers that route by it.
    any_origin_with_cookies: needed with `allowed_origins="*"` and `cookies=True`, which lets every page on the web
        act with its visitor's cookies.
    sockjs_url: the client that the iframe page loads.
    base_url: told to clients by /info: the URL that the transports of the session are to go to instead.
    message_limit: one incoming message. body_limit: one upload; a form may be half as large again, for its escapes.
    response_limit: one streaming response; then the client asks again, so that proxies and pages need not grow.
    session_limit: open sessions; further ones get 503.
    body_deadline: an upload's body must have come by then.
    header_limit, header_count: of a request; more gets 431.
    principal: who makes a request, from its scope: a session answers only to the principal that opened it. By default
        the user's identity that an authentication middleware has put into the scope.
    timing: see `Timing`.
    """

    websocket: bool = True
    jsonp: bool = False
    htmlfile: bool = False
    iframe: bool = False
    allowed_origins: str | Sequence[str] | None = None
    cookies: bool = False
    any_origin_with_cookies: bool = False
    sockjs_url: str = "sockjs.js"
    base_url: str | None = None
    message_limit: int = 65_536
    body_limit: int = 131_072
    response_limit: int = 131_072
    session_limit: int = 10_000
    body_deadline: float = 10.0
    header_limit: int = 16_384
    header_count: int = 128
    principal: Callable[[Scope], Hashable] | None = None
    timing: Timing = field(default_factory=Timing)

    def __post_init__(self) -> None:
        for name in ("message_limit", "body_limit", "response_limit", "session_limit", "header_limit", "header_count"):
            value = getattr(self, name)
            if type(value) is not int or value <= 0:
                raise ValueError(f"{name} got {value!r}, expected a positive number.")
        for name in ("websocket", "jsonp", "htmlfile", "iframe", "cookies", "any_origin_with_cookies"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} got {getattr(self, name)!r}, expected True or False.")
        if not isinstance(self.timing, Timing):
            raise TypeError(f"timing got {self.timing!r}, expected Timing(…).")
        if self.principal is not None and not callable(self.principal):
            raise TypeError(f"principal got {self.principal!r}, expected a function that takes a scope.")
        deadline: Any = self.body_deadline
        if isinstance(deadline, bool) or not isinstance(deadline, (int, float)) or not deadline > 0:
            raise ValueError(f"body_deadline got {self.body_deadline!r}, expected a positive number of seconds.")
        if Origins(self.allowed_origins).any and self.cookies and not self.any_origin_with_cookies:
            raise ValueError(
                'allowed_origins="*" with cookies=True lets every page on the web act with its visitor\'s cookies. '
                "Name the origins, or say any_origin_with_cookies=True if that is meant."
            )


Connect = Callable[[Session, Scope], Endpoint]


class Server:
    """An ASGI app that speaks SockJS below wherever it is mounted.

    connect: called with each new session and the scope of the request that opened it; returns the application's end.
        It calls `session.accept()`, now or later, or `session.close()` to refuse.
    """

    def __init__(self, connect: Connect, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.draining = False
        self._connect = connect
        self._origins = Origins(self.settings.allowed_origins)
        self._principal = self.settings.principal or _identity
        self._sessions: dict[str, Session] = {}  # of the HTTP transports, by the id in their URL
        self._sockets: set[Session] = set()
        self._answers: set[Writer] = set()  # of HTTP requests that are being answered
        self._iframe = iframe_page(self.settings.sockjs_url)
        self._etag = b'"%b"' % hashlib.sha256(self._iframe).hexdigest()[:32].encode()
        self._full_until = 0.0  # until then it is not logged again that there are too many sessions
        self._clock = StallProofClock()
        self._sweeping: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._refusals_logged: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._loop is not asyncio.get_running_loop():
            self.start()
        scope = complete(scope)
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        elif scope["type"] == "http":
            request = Request(scope, receive, send)
            # Only what still has to be done is kept: many requests wait here for long.
            answer = await self._admit(request)
            if answer is not None:
                await answer
        else:
            raise ValueError(f"A SockJS server got a scope of type {scope['type']!r}, expected 'http' or 'websocket'.")

    @property
    def sessions(self) -> int:
        """How many sessions are open or still remembered."""
        return len(self._sessions) + len(self._sockets)

    # Coming and going away

    def start(self) -> None:
        """Begin, or begin anew, on the event loop that runs now; after a drain too: tests start an app more than once.

        What an earlier loop has left is forgotten.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            for session in [*self._sockets, *self._sessions.values()]:
                session.abandon()
        self._loop = loop
        self.draining = False
        self._sessions.clear()
        self._sockets.clear()
        self._answers.clear()
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        self._hook_signals(self._loop)
        logging.getLogger("uvicorn.error").addFilter(invalid_text)  # once, however often it is said
        quiet_accept(self._loop)

    def _hook_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        """Drain when the process is told to end: a mounted app hears of it in no other way before its requests end.

        Chains to the handlers that the server in front has installed; does nothing outside the main thread or where
        nobody has installed any.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            previous = signal.getsignal(number)
            if callable(previous) and previous is not signal.default_int_handler:
                signal.signal(number, self._signal_handler(loop, previous))

    def _signal_handler(
        self, loop: asyncio.AbstractEventLoop, previous: Callable[[int, FrameType | None], Any]
    ) -> Callable[[int, FrameType | None], None]:
        def drain_and_pass_on(number: int, frame: FrameType | None) -> None:
            self.drain()
            previous(number, frame)

        def handle(number: int, frame: FrameType | None) -> None:
            # The server in front hears of it after the drain: once it has, it may close the sockets before we do.
            if loop.is_running() and loop is self._loop:
                loop.call_soon_threadsafe(drain_and_pass_on, number, frame)
            else:
                previous(number, frame)

        return handle

    def drain(self) -> None:
        """Tell every client that the server goes away: polls and streams end, sockets close, new ones are refused.

        What waits is still written. Idempotent; call it on the event loop.
        """
        if self.draining:
            return
        self.draining = True
        for session in [*self._sockets, *self._sessions.values()]:
            session.go_away()
        for writer in self._answers:
            asyncio.get_running_loop().call_later(self.settings.timing.write_deadline, writer.finish)

    # HTTP

    def fault_of(self, scope: Scope) -> tuple[int, str, str] | None:
        """What is wrong with the headers of an HTTP request: the status, a code and a text; None: nothing."""
        headers = scope["headers"]
        size = sum(len(name) + len(value) for name, value in headers)
        if size > self.settings.header_limit or len(headers) > self.settings.header_count:
            return 431, "headers_too_large", "Request header fields too large."
        hosts = [value for name, value in headers if name == b"host"]
        if not hosts and scope.get("http_version") not in ("1.0", "2", "3"):
            return 400, "host_missing", "A request needs a Host header."
        if len(hosts) > 1 or (hosts and _HOST.fullmatch(hosts[0]) is None):
            return 400, "bad_host", "The Host header is not a host."
        return None

    async def _admit(self, request: Request) -> Awaitable[Any] | None:
        """What is to handle the request, to be awaited. None: it is answered already."""
        fault = self.fault_of(request.scope)
        if fault is not None:
            await request.refuse(*fault)
            return None
        route = self._route(split_path(route_path(request.scope)))
        if route is None:
            await request.respond(404, [_TEXT], b"Not found.")
            return None
        allowed = self._origins.allows(request.headers, request.scheme)
        if route.cors:
            request.extra += self._origins.cors(request.headers, request.scheme)
        if route.session is not None and not allowed:
            await self._refuse_origin(request)
        elif request.method == "OPTIONS" and route.preflight:
            await self._preflight(request, route, allowed)
        elif request.method != route.method:
            await request.respond(405, [(b"allow", route.allow)])
        else:
            if route.session is not None and self.settings.cookies:
                request.extra.append((b"set-cookie", b"JSESSIONID=%b; Path=/" % session_cookie(request.headers)))
            return route.handle(request)
        return None

    def _route(self, path: tuple[str, ...] | None) -> Route | None:
        settings = self.settings
        match path:
            case ():
                return Route("GET", self._greeting)
            case ("info",):
                return Route("GET", self._info, cors=True, preflight=True)
            case ("websocket",) if settings.websocket:
                return Route("GET", self._not_upgraded)
            case (page,) if settings.iframe and _IFRAME.fullmatch(page):
                return Route("GET", self._iframe_page)
            case (_, session, "websocket") if settings.websocket:
                return Route("GET", self._not_upgraded, session=session)
            case (_, session, "xhr_send"):
                return Route("POST", lambda request: self._upload(request, session), session, cors=True, preflight=True)
            case (_, session, "jsonp_send") if settings.jsonp:
                return Route("POST", lambda request: self._upload_form(request, session), session=session)
            case (_, session, name) if name in TRANSPORTS:
                transport = TRANSPORTS[name]
                if transport.optional and not getattr(settings, name):
                    return None
                return Route(
                    transport.method,
                    lambda request: self._receive(request, session, transport),
                    session,
                    cors=transport.cors,
                    preflight=transport.cors and transport.method == "POST",
                )
        return None

    async def _preflight(self, request: Request, route: Route, allowed: bool) -> None:
        if not allowed:
            await self._refuse_origin(request)
            return
        headers = [(b"cache-control", _UNCHANGING), (b"expires", in_a_year()), *preflight(request.headers, route.allow)]
        await request.respond(204, headers)

    async def _refuse_origin(self, request: Request) -> None:
        self.log_refusal(request.headers)
        await request.refuse(403, "origin_not_allowed", "Origin not allowed.")

    def log_refusal(self, headers: Headers) -> None:
        """Log that a request's origin is not allowed: once for each origin, and not without a bound."""
        names = {name: value[:256].decode("latin-1") for name, value in reversed(list(headers))}
        origin, host = names.get(b"origin", ""), names.get(b"host", "")
        if origin in self._refusals_logged or len(self._refusals_logged) >= 100:
            return
        self._refusals_logged.add(origin)
        setting = self.settings.allowed_origins
        if setting is None:
            logger.warning(
                "Refused a request from the origin %r, since this server was called by the Host %r: by default only "
                "pages of its own may connect. Behind a proxy, have it pass the Host header on as the browser sent it, "
                "port included (docs/deploying.md). For pages of another site: allowed_origins=[%r].",
                origin,
                host,
                origin,
            )
        else:
            logger.warning(
                "Refused a request from the origin %r: allowed_origins is %r. To allow it, add it there.",
                origin,
                setting,
            )

    def _log_full(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._full_until:  # not for each request that is refused
            self._full_until = now + LOG_EVERY
            logger.warning("session_limit=%d is reached: new sessions are refused.", self.settings.session_limit)

    async def _greeting(self, request: Request) -> None:
        await request.respond(200, [_TEXT], b"Welcome to SockJS!\n")

    async def _info(self, request: Request) -> None:
        if not self._origins.allows(request.headers, request.scheme):
            self.log_refusal(request.headers)  # the page gets no further
        info: dict[str, Any] = {
            "websocket": self.settings.websocket,
            "cookie_needed": self.settings.cookies,
            "origins": ["*:*"],
            "entropy": secrets.randbits(32),
        }
        if self.settings.base_url is not None:
            info["base_url"] = self.settings.base_url
        await request.respond(200, [_JSON, _NOT_CACHED], orjson.dumps(info))

    async def _iframe_page(self, request: Request) -> None:
        headers = [(b"cache-control", _UNCHANGING), (b"expires", in_a_year()), (b"etag", self._etag)]
        tags = (request.header(b"if-none-match") or b"").split(b",")
        if any(tag.strip().removeprefix(b"W/") in (self._etag, b"*") for tag in tags):
            await request.respond(304, headers)
        else:
            await request.respond(200, [_HTML, *headers], self._iframe)

    async def _not_upgraded(self, request: Request) -> None:
        upgrade = (request.header(b"upgrade") or b"").lower()
        text = b'"Connection" must be "Upgrade".' if upgrade == b"websocket" else b'Can "Upgrade" only to "WebSocket".'
        await request.respond(400, [_TEXT], text)

    async def _receive(self, request: Request, session_id: str, transport: Transport) -> None:
        """The pump of all receiving transports."""
        if transport.callback:
            request.extra.append(_NOSNIFF)
        headers = [_NOT_CACHED, *request.extra]
        callback = ""
        if transport.callback:
            try:
                callback = check_callback(request.query("c"))
            except FrameError as error:
                await request.refuse(500, error.code, str(error))
                return
        if not transport.polling:
            headers.append((b"x-accel-buffering", b"no"))  # asks nginx not to hold the stream back
        session = await self._find_or_open(request, session_id)
        if session is None:
            return
        writer = Writer(request.send, request.receive)
        timing = self.settings.timing
        receiver = HttpReceiver(
            writer,
            transport,
            callback,
            headers,
            self.settings.response_limit,
            timing.poll_duration if transport.polling else timing.stream_duration,
        )
        writer.on_writability(session.writability_changed)
        receiver.start()
        self._answers.add(writer)
        session.attach(receiver)
        try:
            # Ends when the client goes and also when the response is complete, so nothing needs to race it.
            while (await request.receive())["type"] != "http.disconnect":
                pass
        finally:
            session.detach(receiver)
            self._answers.discard(writer)

    async def _find_or_open(self, request: Request, session_id: str) -> Session | None:
        """The session of that id, a new one if there is none. None: the request is answered already."""
        principal = self._principal(request.scope)
        session = self._sessions.get(session_id)
        if session is not None:
            if session.principal == principal:
                return session
            await request.refuse(404, "unknown_session", "Not found.")
            return None
        session = Session(self.settings.timing, principal)
        if self.draining:
            session.go_away()
        elif self.sessions >= self.settings.session_limit:
            self._log_full()
            await request.refuse(503, "too_many_sessions", "Too many sessions.")
            return None
        else:
            self._sessions[session_id] = session
            self._open(session, request.scope)
        return session

    def _open(self, session: Session, scope: Scope) -> None:
        if self._sweeping is None:
            self._clock.restart(asyncio.get_running_loop().time())
            self._sweeping = asyncio.get_running_loop().call_later(SWEEP, self._sweep)
        logger.debug("Session %x begins, of %s.", id(session), address_of(scope))
        session.endpoint = self._connect(session, scope)

    async def _upload(self, request: Request, session_id: str) -> None:
        if await self._take_upload(request, session_id, parse_upload, self.settings.body_limit):
            await request.respond(204, [_TEXT, _NOT_CACHED])

    async def _upload_form(self, request: Request, session_id: str) -> None:
        content_type = (request.header(b"content-type") or b"").split(b";")[0].strip().lower()
        limit = self.settings.body_limit
        if content_type == b"application/x-www-form-urlencoded":
            taken = await self._take_upload(
                request, session_id, lambda body: parse_upload(parse_form(body)), limit * 3 // 2
            )
        else:
            taken = await self._take_upload(request, session_id, parse_upload, limit)
        if taken:
            await request.respond(200, [_TEXT, _NOT_CACHED], b"ok")

    async def _take_upload(
        self, request: Request, session_id: str, parse: Callable[[bytes], list[str]], limit: int
    ) -> bool:
        """Hand an upload's messages to its session, all or none. False: the request is answered already, or gone."""
        if self._open_session(request, session_id) is None:
            return await request.refuse(404, "unknown_session", "Not found.")
        if (request.header(b"content-encoding") or b"identity").lower() != b"identity":
            return await request.refuse(415, "unsupported_encoding", "Send the body without Content-Encoding.")
        body = await request.body(limit, self.settings.body_deadline)
        if body is None:
            return False
        try:
            messages = parse(body)
        except FrameError as error:
            return await request.refuse(500, error.code, str(error))
        largest = self.settings.message_limit
        if any(too_big(message, largest) for message in messages):
            return await request.refuse(413, "message_too_big", f"A message may have {largest} bytes.")
        session = self._open_session(request, session_id)
        if session is None:  # it ended while the body was on its way
            return await request.refuse(404, "unknown_session", "Not found.")
        for message in messages:
            session.received(message)
            if session.behind:
                await session.caught_up()
        return True

    def _open_session(self, request: Request, session_id: str) -> Session | None:
        session = self._sessions.get(session_id)
        if session is None or session.close_frame is not None or not session.accepted:
            return None
        return session if session.principal == self._principal(request.scope) else None

    # WebSocket

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = split_path(route_path(scope))
        raw = path == ("websocket",)
        framed = path is not None and len(path) == 3 and path[2] == "websocket"
        await receive()  # websocket.connect
        if not self.settings.websocket or not (raw or framed):
            await deny(scope, receive, send, 404, b"Not found.")
            return
        headers: Headers = scope["headers"]
        if not self._origins.allows(headers, scope["scheme"]):
            self.log_refusal(headers)
            await deny(scope, receive, send, 403, b"Origin not allowed.")
            return
        if self.draining or self.sessions >= self.settings.session_limit:
            if not self.draining:
                self._log_full()
            await deny(scope, receive, send, 503, b"No more sessions.")
            return
        session = Session(self.settings.timing)
        writer = Writer(send, receive)
        direct: Direct | None = scope.get("extensions", {}).get("backsync.frames")
        receiver = SocketReceiver(writer, raw, direct)
        if framed and self.settings.cookies:
            receiver.accept_headers.append((b"set-cookie", b"JSESSIONID=%b; Path=/" % session_cookie(headers)))
        writer.on_writability(session.writability_changed)
        if direct is not None:
            direct.on_writability(session.writability_changed)
        self._sockets.add(session)
        try:
            self._open(session, scope)
            session.attach(receiver)
            end = await self._read_socket(session, receiver, receive, direct)
            if end["code"] != 1005:  # which servers also say where the connection was lost
                session.detach(receiver, end["code"], end.get("reason") or "")
        finally:
            session.detach(receiver)
            self._forget_socket(session, writer)

    @contextmanager
    def carried(self, receiver: Receiver, writer: Writer, scope: Scope) -> Iterator[Session]:
        """A session for a receiver of the caller's, until the block ends; it is looked after and drained as the others.

        writer: what the receiver writes to.
        """
        session = Session(self.settings.timing)
        writer.on_writability(session.writability_changed)
        self._sockets.add(session)
        self._answers.add(writer)
        try:
            self._open(session, scope)
            session.attach(receiver)
            yield session
        finally:
            session.detach(receiver)
            session.close()  # where the receiver has had its time
            self._answers.discard(writer)
            self._forget_socket(session, writer)

    def _forget_socket(self, session: Session, writer: Writer) -> None:
        self._sockets.discard(session)
        log_end(session)
        if self.draining:
            # A server that ends waits until its peers have taken everything. One that does not read never does.
            asyncio.get_running_loop().call_later(self.settings.timing.write_deadline, writer.abort)

    async def _read_socket(
        self, session: Session, receiver: SocketReceiver, receive: Receive, direct: Direct | None
    ) -> MutableMapping[str, Any]:
        """Pass on what comes, until the end. Returns the event that says how it ended."""
        if direct is not None:
            # In this request's context: handlers are to find there what middleware has put into it.
            run: Callable[..., bool] = contextvars.copy_context().run
            direct.on_message(functools.partial(run, self._take, session, receiver))
        while (event := await receive())["type"] != "websocket.disconnect":
            if session.behind:
                await session.caught_up()
            self._hear(session, receiver, event["bytes"] if event.get("text") is None else event["text"])
            del event  # else the last message is kept as long as its client is idle
            if direct is not None:
                direct.heard()
        return event

    def _take(self, session: Session, receiver: SocketReceiver, message: str | bytes) -> bool:
        """Take a message at once; False where it has to wait until there is room, and come by `receive`."""
        if session.behind:
            return False
        self._hear(session, receiver, message)
        return True

    def _hear(self, session: Session, receiver: SocketReceiver, heard: str | bytes) -> None:
        """Take what a WebSocket's peer has sent."""
        largest = self.settings.message_limit
        messages: Sequence[str | bytes] = [heard]
        if not receiver.raw:
            if isinstance(heard, bytes):
                self._drop(session, receiver, 1003, "binary_not_supported")
                return
            if len(heard) <= self.settings.body_limit:  # else it is not worth parsing
                try:
                    messages = parse_websocket(heard)
                except FrameError as error:
                    self._drop(session, receiver, 3000, str(error))
                    return
        for message in messages:
            if too_big(message, largest):
                session.close(1009, f"A message may have {largest} bytes")
                return
        for message in messages:
            session.received(message)

    def _drop(self, session: Session, receiver: SocketReceiver, code: int, reason: str) -> None:
        """End a WebSocket whose peer does not speak the protocol."""
        if session.close_frame is None:  # else it is ended already, and waits only for a peer that may not read
            receiver.drop(code, reason)
            session.detach(receiver, code, reason)

    # Time

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = self._clock.advance(loop.time())
        for session_id, session in list(self._sessions.items()):
            if not ticked(session, now):
                del self._sessions[session_id]
                log_end(session)
        for session in list(self._sockets):
            ticked(session, now)
        for writer in list(self._answers):
            writer.notice_end()
        check_files()
        self._sweeping = loop.call_later(SWEEP, self._sweep) if self.sessions or self._answers else None


class Seldom:
    """Whether a line may be logged: one of a kind in `every` seconds. Clients choose how often there would be one."""

    def __init__(self, every: float) -> None:
        self._every = every
        self._next: dict[Hashable, float] = {}

    def allows(self, kind: Hashable) -> bool:
        now = time.monotonic()
        if now < self._next.get(kind, 0.0):
            return False
        if len(self._next) >= MAX_KINDS:
            self._next.clear()
        self._next[kind] = now + self._every
        return True


class StallProofClock:
    """A monotonic clock that does not count the time in which the event loop stood still.

    After a stall (a stopped process, a blocking call) requests wait in the sockets that no one had a chance to read;
    sessions must not expire for that.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._seen = 0.0

    def restart(self, real: float) -> None:
        self._seen = real

    def advance(self, real: float) -> float:
        """The clock's time, in seconds, given the loop's."""
        self._now += min(real - self._seen, 2 * SWEEP)
        self._seen = real
        return self._now


@dataclass(frozen=True, slots=True)
class Route:
    """What a URL offers: its one method (and OPTIONS where it is shared across origins)."""

    method: str
    handle: Callable[[Request], Awaitable[Any]]
    session: str | None = None
    cors: bool = False
    preflight: bool = False  # browsers ask before they send

    @property
    def allow(self) -> bytes:
        return f"OPTIONS, {self.method}".encode() if self.preflight else self.method.encode()


refusals, full = Seldom(LOG_EVERY), Seldom(1.0)


class InvalidText(logging.Filter):
    """Bounds what uvicorn's own WebSocket protocol logs of text that is no UTF-8: a traceback each time, so that any
    client could fill the log. One line a second is left, without traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.msg != "Invalid UTF-8 sequence received from client.":
            return True
        record.exc_info, record.levelno, record.levelname = None, logging.WARNING, "WARNING"
        return full.allows("text")


invalid_text = InvalidText()


class Request:
    """One HTTP request and the ways to answer it."""

    __slots__ = ("extra", "headers", "method", "receive", "scheme", "scope", "send")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.method: str = scope["method"]
        self.scheme: str = scope.get("scheme", "http")
        self.headers: Headers = scope["headers"]
        self.extra: Headers = []  # headers that go with any answer

    def header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key == name), None)

    def query(self, name: str) -> str | None:
        """A query parameter; several values are joined by commas, which no check lets pass."""
        values = parse_qs(self.scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True).get(name)
        return ",".join(values) if values else None

    async def respond(self, status: int, headers: Headers, body: bytes = b"") -> None:
        headers = [*headers, *self.extra]
        if status not in (204, 304):
            headers.append((b"content-length", b"%d" % len(body)))
        await respond(self.send, self.receive, status, headers, body)

    async def refuse(self, status: int, code: str, text: str) -> Literal[False]:
        """Answer with an error: the text in the body, the code in X-Backsync-Error."""
        headers = [_TEXT, _NOT_CACHED, (b"x-backsync-error", code.encode())]
        if logger.isEnabledFor(logging.INFO):
            host = (self.scope.get("client") or ("",))[0]
            if refusals.allows((code, host)):
                logger.info("Refused %s: %d %s.", address_of(self.scope), status, code)
        await self.respond(status, headers, text.encode())
        return False

    async def body(self, limit: int, deadline: float) -> bytes | None:
        """The whole body. None: refused as too large or too slow, or the client has gone; nothing is to be applied."""
        if announces_more(self.headers, limit):
            await self._too_large(limit)
            return None
        body = bytearray()
        try:
            async with asyncio.timeout(deadline):
                while True:
                    event = await self.receive()
                    if event["type"] == "http.disconnect":
                        return None
                    body += event.get("body", b"")
                    if len(body) > limit or not event.get("more_body", False):
                        break
        except TimeoutError:
            await self.refuse(408, "body_too_slow", f"The body did not come within {deadline:g} seconds.")
            return None
        if len(body) > limit:
            await self._too_large(limit)
            return None
        return bytes(body)

    async def _too_large(self, limit: int) -> None:
        await self.refuse(413, "body_too_large", f"A body may have {limit} bytes.")


def announces_more(headers: Headers, limit: int) -> bool:
    """Whether a request's Content-Length is above the limit, or no number."""
    length = next((value for name, value in headers if name == b"content-length"), b"0")
    digits = length.lstrip(b"0")
    return not length.isdigit() or len(digits) > 18 or int(digits or b"0") > limit


async def respond(send: Send, receive: Receive, status: int, headers: Headers, body: bytes) -> None:
    """Send a whole HTTP response, unless the client has broken HTTP meanwhile and the server has answered that."""
    if status in (408, 413, 415, 431):
        headers = [*headers, (b"connection", b"close")]  # the rest of the request is not going to be read
    try:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
    except Exception as error:
        if not is_protocol_error(error):
            raise
        # uvicorn logs an error for an application that returns before it says that the client is gone.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GONE_WITHIN):
                while (await receive())["type"] != "http.disconnect":
                    pass


async def deny(scope: Scope, receive: Receive, send: Send, status: int, text: bytes) -> None:
    """Refuse a WebSocket handshake; with the status where the server can send it, else with its 403."""
    if "websocket.http.response" in scope.get("extensions", {}):
        headers = [_TEXT, (b"content-length", b"%d" % len(text))]
        await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": text})
        # uvicorn logs an error for an app that returns before the connection is gone, of which it tells twice.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await receive()
                await receive()
    else:
        await send({"type": "websocket.close", "code": 1008})


def in_a_year() -> bytes:
    """The HTTP date a year ahead; the wall clock's, since it is for the other side."""
    return formatdate(time.time() + YEAR, usegmt=True).encode()


def address_of(scope: Scope) -> str:
    """The client's address as the log shows it."""
    client = scope.get("client")
    return f"{client[0]}:{client[1]}" if client else "a client without an address"


def log_end(session: Session) -> None:
    """Log at DEBUG how a session has ended."""
    if logger.isEnabledFor(logging.DEBUG):
        frame = session.close_frame
        code, reason = (1006, "") if frame is None else (frame.code, frame.reason)
        logger.debug("Session %x has ended: %d %.200r.", id(session), code, reason)


def check_files() -> None:
    """Log that the process can open no more files, so that no client gets in: event loops do not say so readably."""
    try:
        os.close(os.dup(0))
    except OSError as error:
        log_files(error)


def log_files(error: object) -> None:
    """Log it if that error says that no more files can be opened, once a second."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE) and full.allows("files"):
        logger.error(
            "No more files can be opened, so no client can connect: raise the limit (ulimit -n, LimitNOFILE). %s", error
        )


def quiet_accept(loop: asyncio.AbstractEventLoop) -> None:
    """Have asyncio's own loop log no traceback for each client that it cannot accept: they are thousands a second."""
    before = loop.get_exception_handler()
    if isinstance(before, Accepts) or not type(loop).__module__.startswith("asyncio."):
        return
    loop.set_exception_handler(Accepts(before))


class Accepts:
    """A loop's exception handler that logs a failed `accept` once a second, and passes on all else."""

    def __init__(self, before: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None) -> None:
        self._before = before

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if context.get("message") == "socket.accept() out of system resource":
            log_files(context.get("exception"))
        elif self._before is not None:
            self._before(loop, context)
        else:
            loop.default_exception_handler(context)


def ticked(session: Session, now: float) -> bool:
    """What the session's `tick` says. One that fails must not end the sweep, and with it the heartbeats of all."""
    try:
        return session.tick(now)
    except Exception:
        logger.exception("A session failed as time went on.")
        return False


def too_big(message: str | bytes, limit: int) -> bool:
    """Whether a message has more bytes than it may."""
    if isinstance(message, bytes):
        return len(message) > limit
    return len(message) * 4 > limit and len(message.encode()) > limit  # a character has at most four bytes


def complete(scope: Scope) -> Scope:
    """The scope with all keys that are optional in ASGI and that applications look at; servers may leave them out."""
    defaults = {**_DEFAULTS, "scheme": "ws"} if scope["type"] == "websocket" else _DEFAULTS
    missing = {key: value for key, value in defaults.items() if scope.get(key) is None}
    if type(scope.get("headers")) is not list:  # any iterable will do
        missing["headers"] = [(name, value) for name, value in scope.get("headers") or ()]
    return {**scope, **missing} if missing else scope


def route_path(scope: Scope) -> str:
    """The path below the mount, whatever the mounts and proxies above made of `root_path`."""
    path: str = scope["path"]
    root: str = (scope.get("root_path") or "").rstrip("/")
    # Where a proxy has stripped the outer root path, the path begins with the mount alone (`app_root_path` is
    # Starlette's note of what was there before its mounts).
    mount = root.removeprefix((scope.get("app_root_path") or "").rstrip("/"))
    for prefix in (root, mount):
        if prefix and path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in ("", "/"):
            return path[len(prefix) :]
    return path


def split_path(path: str) -> tuple[str, ...] | None:
    """The segments of a path: none for the mount itself, one for a page, three for a session. None: no such URL."""
    if path in ("", "/"):
        return ()
    if not path.startswith("/"):
        return None
    segments = tuple(path[1:].split("/"))
    if len(segments) == 1:
        return segments
    if len(segments) == 3 and all(_SEGMENT.fullmatch(segment) for segment in segments):
        return segments
    return None


def session_cookie(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The value that the request's JSESSIONID cookie has, or `dummy`; never text that could break the header."""
    for name, value in headers:
        if name != b"cookie":
            continue
        for pair in value.split(b";"):
            key, _, content = pair.strip().partition(b"=")
            if key == b"JSESSIONID":
                return content if _COOKIE.fullmatch(content) else b"dummy"
    return b"dummy"


def _identity(scope: Scope) -> Hashable:
    user = scope.get("user")
    if user is None:
        return None
    try:
        return str(user.identity)
    except (AttributeError, NotImplementedError):
        return str(getattr(user, "display_name", user))
