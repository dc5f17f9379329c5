"""REST beside the wire: one HTTP request is one short connection with one request; it knows HTTP, and no models inside.

Because it speaks to a `Connection` as a browser does, handlers, guards, middleware, validation, visibility, versions
and turns are the same by construction.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

import orjson

from . import messages
from .connection import Site
from .errors import Reject
from .limits import Bucket
from .messages import MAX_DEPTH, MAX_KEY, is_id
from .sockjs.frames import HEARTBEAT, Close, Frame, loads
from .sockjs.loops import answer_on
from .sockjs.origins import Origins, preflight
from .sockjs.receivers import Event, Headers, Receive, Scope, Send, Writer
from .sockjs.server import Server, announces_more, complete, respond, route_path
from .sockjs.session import Session
from .stores.base import invalid

STATUS: Mapping[str, int] = {
    "bad_message": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "unknown_model": 404,
    "unknown_method": 405,
    "conflict": 409,
    "too_large": 413,
    "invalid": 422,
    "rate_limited": 429,
    "handler_error": 500,
    "unavailable": 503,
    "timeout": 504,
}
OTHERWISE = 400  # for codes of the application's own
CLOSED = {4501: "unauthorized", 4503: "forbidden", 4500: "forbidden", 1012: "unavailable"}
WRITES = {"POST": "upsert", "PUT": "upsert", "PATCH": "patch", "DELETE": "delete"}
COLLECTION, RECORD = ("GET", "HEAD", "POST"), ("GET", "HEAD", "PUT", "PATCH", "DELETE")
UNHEEDED = (
    "If-None-Match",
    "If-Unmodified-Since",
)  # conditions of a write: to pass one over could lose somebody's data
SINGLE = (b"authorization", b"content-type", b"if-match", b"origin")  # of which a second one could be overlooked
METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE"
RETRY = 1.0  # seconds, where an error that passes does not say how long it takes
PARSED_DEPTH = 1_000  # brackets of a parameter beyond which no JSON is read
MAX_BUCKETS = 10_000  # hosts whose rates are known

_INTEGER = re.compile(r"-?[0-9]{1,16}")
_ETAG = re.compile(r'"([0-9]{1,16})"')
_SINCE = re.compile(r"([^:]+):(\d{1,16})")


class Refusal(Reject):
    """A refusal that has a status of its own."""

    def __init__(self, status: int, code: str, message: str, details: Any = None) -> None:
        self.status = status
        super().__init__(code, message, details)


class Exchange:
    """One HTTP request as its session's receiver: the reply, and after it a stream of lines if there is a writer.

    closed: how the session has ended, if it did before the reply.
    """

    def __init__(
        self, writer: Writer | None = None, head: Headers | None = None, lifetime: float | None = None
    ) -> None:
        self.lifetime = lifetime
        self.replied = asyncio.Event()
        self.reply: str | None = None
        self.closed: Close | None = None
        self.streams = False
        self._writer = writer
        self._head = head or []

    @property
    def writable(self) -> bool:
        return self._writer is None or self._writer.writable

    def unsent(self) -> object:
        return None if self._writer is None else self._writer.unsent()

    def fills(self, frame: Frame) -> bool:
        return False

    form = "frame"
    way = None

    def declines(self, frame: Frame) -> bool:
        if not self.writable:
            return True
        self.write(frame, last=False)
        return False

    def write(self, frame: Frame, last: bool) -> None:
        if isinstance(frame, Close):
            self.closed = frame
            self.replied.set()
        lines: list[str] = []
        for message in frame.messages:
            if self.streams:
                lines.append(message.text)
            elif not self.replied.is_set() and message.text.startswith('{"id":1,'):
                self._take_reply(message.text, lines)
        if self.streams and self._writer is not None:
            text = "".join(line + "\n" for line in lines) or ("\n" if frame is HEARTBEAT else "")
            if text or last:
                body = {"type": "http.response.body", "body": text.encode(), "more_body": not last}
                self._writer.write([body])

    def _take_reply(self, text: str, lines: list[str]) -> None:
        self.reply = text
        self.replied.set()
        if self._writer is not None and error_of(text) is None:
            self.streams = True
            self._writer.write([{"type": "http.response.start", "status": 200, "headers": self._head}])
            lines.append(data_of(text))

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.abort()


class Rest:
    """An ASGI app to mount: `GET`, `POST`, `PUT`, `PATCH`, `DELETE` on the records of each model; see docs/rest.md.

    start: called at each request, on its event loop. elsewhere: the loop that is to answer in its place, if any.
    """

    def __init__(
        self,
        server: Server,
        site: Site,
        start: Callable[[], None],
        elsewhere: Callable[[], asyncio.AbstractEventLoop | None],
    ) -> None:
        self._server = server
        self._site = site
        self._start = start
        self._elsewhere = elsewhere
        self._origins = Origins(server.settings.allowed_origins)
        self._buckets: dict[str, Bucket] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            raise ValueError(f"sync.rest() got a scope of type {scope['type']!r}, expected 'http': mount it.")
        if (loop := self._elsewhere()) is not None:
            await answer_on(loop, self, scope, receive, send)
            return
        self._start()
        scope = complete(scope)
        await Call(self._server, self._site, scope, receive, send).answer(self._origins, self._admit)

    def _admit(self, scope: Scope) -> None:
        """Raises Reject("rate_limited"): each request is a connection, so the rate is counted for each host."""
        rate = self._site.limits.rate
        if rate is None:
            return
        host, now = (scope.get("client") or ("",))[0], self._site.hub.now()
        if host not in self._buckets and len(self._buckets) >= MAX_BUCKETS:
            self._buckets.clear()
        bucket = self._buckets.setdefault(host, Bucket(rate, self._site.limits.burst, now))
        wait = bucket.take(now)
        if wait:
            raise Reject(
                "rate_limited", f"At most {rate:g} requests a second, please.", {"retry_after": round(wait, 3)}
            )


class Call:
    """One HTTP request, from its head to its answer."""

    def __init__(self, server: Server, site: Site, scope: Scope, receive: Receive, send: Send) -> None:
        self._server = server
        self._site = site
        self._scope = scope
        self._receive = receive
        self._send = send
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        self._extra: Headers = []
        self._method: str = scope["method"]

    async def answer(self, origins: Origins, admit: Callable[[Scope], None]) -> None:
        """Answer it, whatever it is."""
        headers, scheme = self._scope["headers"], self._scope.get("scheme", "http")
        self._extra = origins.cors(headers, scheme)
        if self._extra:
            self._extra.append((b"access-control-expose-headers", b"ETag, Location, Retry-After"))
        try:
            self._check_headers()
            if not origins.allows(headers, scheme):
                self._server.log_refusal(headers)
                raise Reject("forbidden", "The page's origin is not allowed. Name it in allowed_origins.")
            if self._method == "OPTIONS":
                self._extra = [*self._extra, *preflight(headers, METHODS)]
                await self._respond(204)
                return
            admit(self._scope)
            if self._server.draining:
                raise Reject("unavailable", "The server goes away. Try again.")
            await self._route()
        except Reject as error:
            await self._refuse(error)

    def _check_headers(self) -> None:
        """Raises Refusal where the headers are too large, name no host, or twice what there is once."""
        fault = self._server.fault_of(self._scope)
        if fault is not None:
            status, _, text = fault
            raise Refusal(status, "too_large" if status == 431 else "bad_message", text)
        names = [name for name, _ in self._scope["headers"]]
        for name in SINGLE:
            if names.count(name) > 1:
                raise Refusal(400, "bad_message", f"Got several headers {name.decode().title()}, expected one.")

    async def _route(self) -> None:
        segments = segments_of(self._scope)
        model = segments[0]
        if model not in self._site.models:
            raise Reject("unknown_model", f"There is no model {messages.shorten(model)}.")
        if len(segments) > 2:
            raise Reject("not_found", f"Got {len(segments)} parts of a path, expected /{model} or /{model}/ID.")
        id = segments[1] if len(segments) == 2 and segments[1] else None
        allowed = COLLECTION if id is None else RECORD
        if self._method not in allowed:
            raise Refusal(405, "unknown_method", f"Got {self._method}, expected {', '.join(allowed)}.", list(allowed))
        query = self._query()
        if self._method in WRITES:
            await self._write(model, id, query)
        elif id is not None:
            await self._read_one(model, id)
        elif "since" in query:
            await self._tail(model, query)
        else:
            text = await self._ask(model, "read", query)
            await self._respond(200, text if text.startswith("[") else f"[{text}]")

    def _parameters(self) -> list[tuple[str, str]]:
        """The parameters but `_`, by which jQuery's `cache: false` makes each URL another one."""
        text = self._scope.get("query_string", b"").decode("latin-1")
        return [(name, value) for name, value in parse_qsl(text, keep_blank_values=True) if name != "_"]

    def _query(self) -> dict[str, Any]:
        query: dict[str, Any] = {}
        for name, value in self._parameters():
            if name in query:
                raise invalid(_shown(name), "is given twice")
            query[name] = parsed(name, value)
        return query

    # Reads

    async def _read_one(self, model: str, id: str) -> None:
        record = loads(await self._ask(model, "read", {"id": id}))
        if isinstance(record, list):  # a read handler may know lists only
            if not record:
                raise Reject("not_found", f"{model} has no record with the id {messages.shorten(id)}.")
            record = record[0]
        await self._respond(200, messages.encode(record), self._etag(model, record))

    async def _tail(self, model: str, query: dict[str, Any]) -> None:
        if self._method == "HEAD":
            raise Refusal(405, "unknown_method", "Got HEAD, expected GET for ?since=.", ["GET"])
        since = position(dict(self._parameters())["since"])
        data = {name: value for name, value in query.items() if name != "since"}
        if self._server.sessions >= self._server.settings.session_limit:
            raise Reject("unavailable", "Too many sessions.")
        writer = Writer(self._send, self._receive)
        kind = (b"content-type", b"application/x-ndjson")
        # HTTP cannot tell a client that is gone from one that is silent: so the stream ends, and the client asks again.
        lifetime = self._server.settings.timing.stream_duration
        exchange = Exchange(writer, [kind, (b"x-accel-buffering", b"no"), *SAFE, *self._extra], lifetime)
        with self._server.carried(exchange, writer, self._scope) as session:
            self._greet(session)
            event = f"{model}:subscribe"
            request = {"id": 1, "event": event, "data": data, **({} if since is None else {"since": since})}
            await said(exchange, session, messages.encode(request))
            while exchange.streams and (await self._receive())["type"] != "http.disconnect":
                pass
        if not exchange.streams:
            outcome(exchange)

    # Writes

    async def _write(self, model: str, id: str | None, query: Mapping[str, Any]) -> None:
        if self._method == "DELETE":
            expected = self._expected_version(model)
            await self._ask_if_match(model, "delete", {"id": id}, None if expected is None else {"version": expected})
            await self._respond(204)
            return
        record = await self._record()
        expected = self._expected_version(model)
        if expected is not None:
            record[str(self._site.models[model].options.version)] = expected
        if id is not None:
            if record.get("id") is None:
                record["id"] = await self._id_as_stored(model, id)
            elif str(record["id"]) != id:
                got = messages.shorten(record["id"])
                raise Reject("invalid", f"The record's id is {got}, the URL's {messages.shorten(id)}.")
        unset = query.get("$unset")
        unset = unset.split(",") if isinstance(unset, str) else unset
        more = None if unset is None else {"unset": unset}
        text = await self._ask_if_match(model, WRITES[self._method], record, more)
        stored = loads(text)
        headers = self._etag(model, stored)
        if id is None:
            path = self._scope["path"].rstrip("/")
            headers.append((b"location", f"{quote(path)}/{quote(str(stored['id']), safe='')}".encode()))
        await self._respond(201 if id is None else 200, text, headers)

    async def _ask_if_match(
        self, model: str, method: str, record: dict[str, Any], more: Mapping[str, Any] | None = None
    ) -> str:
        try:
            return await self._ask(model, method, record, more)
        except Reject as error:
            if error.code == "conflict" and b"if-match" in self._headers:
                raise Refusal(412, error.code, error.message, error.details) from None
            raise

    async def _id_as_stored(self, model: str, id: str) -> str | int:
        """The id that a URL names: of a record that is there, as it is there, since 5 and "5" are one id."""
        if _INTEGER.fullmatch(id) is not None:
            try:
                found = loads(await self._ask(model, "read", {"id": id}))
            except Reject:
                return id  # whatever it is, the write will meet it
            if isinstance(found, dict) and is_id(found.get("id")) and str(found["id"]) == id:
                stored: str | int = found["id"]
                return stored
        return id

    def _expected_version(self, model: str) -> int | None:
        for name in UNHEEDED:
            if name.lower().encode() in self._headers:
                raise Reject("invalid", f"Got {name}, which no write looks at; expected If-Match, or none of them.")
        header = self._headers.get(b"if-match")
        if header is None:
            return None
        if self._site.models[model].options.version is None:
            raise Reject("invalid", f"Got If-Match, but {model} does not count versions: leave it out.")
        expected = header.decode("latin-1").strip()
        found = _ETAG.fullmatch(expected)
        if found is None:
            got = messages.shorten(expected)
            raise Reject("invalid", f"Got If-Match: {got}, expected the ETag of one version, with its quotes.")
        return int(found[1])

    def _etag(self, model: str, record: Any) -> Headers:
        version = self._site.models[model].options.version
        counted = record.get(version) if version is not None and isinstance(record, dict) else None
        return [(b"etag", b'"%d"' % counted)] if type(counted) is int else []

    async def _record(self) -> dict[str, Any]:
        kind = self._headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if kind != b"application/json":
            got = messages.shorten(kind.decode("latin-1"))
            raise Refusal(415, "invalid", f"Got the content type {got}, expected application/json.")
        body = await self._body()
        try:
            record = loads(body)
        except ValueError as error:
            got = messages.shorten(body.decode(errors="replace"))
            raise Reject("bad_message", f"Got {got}, expected a JSON object: {error}") from None
        if not isinstance(record, dict):
            raise Reject("invalid", f"Got {messages.shorten(record)}, expected a record: a JSON object.")
        if messages.too_deep(body, record):
            raise Reject("bad_message", f"Got JSON nested deeper than {MAX_DEPTH}.")
        return record

    async def _body(self) -> bytes:
        limit, body = self._server.settings.message_limit, bytearray()
        too_large = Reject("too_large", f"A body may have {limit} bytes.", {"limit": limit})
        if announces_more(self._scope["headers"], limit):
            raise too_large
        try:
            async with asyncio.timeout(self._server.settings.body_deadline):
                while True:
                    event: Event = await self._receive()
                    if event["type"] == "http.disconnect":
                        raise Reject("bad_message", "The client has gone.")  # nobody hears it; nothing is applied
                    body += event.get("body", b"")
                    if len(body) > limit:
                        raise too_large
                    if not event.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise Refusal(408, "timeout", "The body took too long.") from None

    # As a client of the models

    async def _ask(self, model: str, method: str, data: Any, more: Mapping[str, Any] | None = None) -> str:
        """The reply's data as JSON text. Raises Reject."""
        session, exchange = Session(self._server.settings.timing), Exchange()
        session.endpoint = self._site.connect(session, self._scope)
        try:
            session.attach(exchange)
            self._greet(session)
            request = {"id": 1, "event": f"{model}:{method}", "data": data, **(more or {})}
            await said(exchange, session, messages.encode(request))
            return outcome(exchange)
        finally:
            session.close(1000)
            session.detach(exchange)

    def _greet(self, session: Session) -> None:
        scheme, _, token = self._headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if scheme.lower() == "bearer":
            session.received(messages.encode({"event": "$:hello", "data": {"token": token.strip()}}))

    # Answers

    async def _refuse(self, error: Reject) -> None:
        status = error.status if isinstance(error, Refusal) else STATUS.get(error.code, OTHERWISE)
        headers: Headers = []
        if status in (429, 503):
            wait = error.details.get("retry_after", RETRY) if isinstance(error.details, dict) else RETRY
            headers.append((b"retry-after", b"%d" % max(1, -int(-wait // 1))))
        elif status == 405:
            allowed = error.details if isinstance(error, Refusal) else []
            headers.append((b"allow", ", ".join(allowed).encode()))
        elif status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        told = {"code": error.code, "message": error.message}
        if error.details is not None and status != 405:
            told["details"] = error.details
        await self._respond(status, messages.encode({"error": told}), headers)

    async def _respond(self, status: int, text: str | None = None, headers: Headers | None = None) -> None:
        body = b"" if text is None else text.encode()
        about: Headers = [] if text is None else [JSON, (b"content-length", b"%d" % len(body))]
        all_headers = [*about, *(headers or []), *SAFE, *self._extra]
        body = b"" if self._method == "HEAD" else body
        await respond(self._send, self._receive, status, all_headers, body)


JSON = (b"content-type", b"application/json")
SAFE: Headers = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]


async def said(exchange: Exchange, session: Session, request: str) -> None:
    """Send a request and wait for its reply, or the end of the session."""
    session.received(request)
    await exchange.replied.wait()


def outcome(exchange: Exchange) -> str:
    """The data of the reply as JSON text. Raises Reject."""
    if exchange.reply is None:
        frame = exchange.closed
        code, reason = (1006, "") if frame is None else (frame.code, frame.reason)
        raise Reject(CLOSED.get(code, "handler_error"), reason)
    error = error_of(exchange.reply)
    if error is not None:
        raise Reject(error["code"], error["message"], error.get("details"))
    return data_of(exchange.reply)


def data_of(reply: str) -> str:
    """The data of a reply that is no error, cut out as it stands: the reply was put together the same way."""
    return reply[reply.index('"data":') + 7 : -1]


def error_of(reply: str) -> Any:
    """The error of a reply; None if it is none."""
    return orjson.loads(reply)["error"] if data_of(reply).startswith('null,"error":') else None


def segments_of(scope: Scope) -> list[str]:
    """The parts of the path below the mount, each decoded by itself, so that an id may have a slash in it."""
    path, below = scope["path"], route_path(scope)
    raw = (scope.get("raw_path") or b"").partition(b"?")[0].decode("latin-1")
    if unquote(raw) != path:  # there is none, or somebody has rewritten the path
        return below.removeprefix("/").split("/")
    mount = path.removesuffix(below)
    return [unquote(segment) for segment in raw.split("/")[mount.count("/") + 1 :]] or [""]


def _shown(name: str) -> str:
    return name if name.isprintable() and len(name) <= MAX_KEY else messages.shorten(name)


def parsed(name: str, value: str) -> Any:
    """A query parameter: JSON where it is JSON, else text. Raises Reject("invalid") for JSON that is too deep."""
    try:
        found = loads(value)
    except ValueError:  # which may be said of JSON that is deeper still
        if value[:1] in "[{" and value.count("[") + value.count("{") > PARSED_DEPTH:
            raise invalid(_shown(name), f"is nested deeper than {MAX_DEPTH - 2}") from None
        return value
    if messages.too_deep(f"[[{value}", [[found]]):  # as it stands in the request
        raise invalid(_shown(name), f"is nested deeper than {MAX_DEPTH - 2}")
    return found


def position(text: str) -> dict[str, Any] | None:
    """The position that `?since=` names; None for none. Raises Reject("invalid")."""
    if not text:
        return None
    found = _SINCE.fullmatch(text)
    if found is None:
        raise Reject("invalid", f"since got {messages.shorten(text)}, expected EPOCH:SEQ or nothing.")
    return {"epoch": found[1], "seq": int(found[2])}
