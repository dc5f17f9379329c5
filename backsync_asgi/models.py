"""Models: names on the wire, their handlers and stores, and what a request to them does; it knows no transport.

A handler table is made at decoration, from what the developer registered. A name from the wire is looked up in it and
nowhere else.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import itertools
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

from starlette.requests import HTTPConnection

from . import messages
from .errors import Reject
from .hub import Acting, Hub, Topic
from .messages import ALIASES, MAX_FIELDS, MAX_KEY, Request, is_id
from .stores.base import Id, Record, Store

logger = logging.getLogger("backsync")

HandlerFunction = Callable[..., Any]
Decorated = TypeVar("Decorated", bound=HandlerFunction)

SOON_LIMIT = 10_000  # changes that may wait for the event loop; then the oldest go
_STATE_METHODS = frozenset({"read", "upsert", "patch", "delete"})
_RESERVED = frozenset({"unsubscribe", *ALIASES})
_HOOKS = frozenset({"on_open", "on_close"})


class Connection(Protocol):
    """One client, as handlers see it: `ctx.connection`. Hashable, so that it can be a key."""

    id: str
    user: Any

    @property
    def state(self) -> Any: ...

    @property
    def request(self) -> HTTPConnection: ...

    def close(self, code: int = 1000, reason: str = "") -> None: ...


class Context:
    """What a handler is told about the request beside its data.

    connection: the client; hashable, with an `id` that lives as long as it.
    model, method: what was called; None in hooks of the whole app.
    """

    __slots__ = ("_model", "connection", "method")

    def __init__(self, connection: Connection, model: Model | None = None, method: str | None = None) -> None:
        self.connection = connection
        self.method = method
        self._model = model

    @property
    def user(self) -> Any:
        """Who the client is: from the auth hook, else from the host app's authentication middleware, else None."""
        return self.connection.user

    @property
    def state(self) -> Any:
        """A namespace of the connection's own, for the application's attributes."""
        return self.connection.state

    @property
    def request(self) -> HTTPConnection:
        """The request that opened the connection: headers, cookies, query_params, client."""
        return self.connection.request

    @property
    def model(self) -> Model:
        """The model that was called."""
        if self._model is None:
            raise AttributeError("This context belongs to a hook of the whole app; it has no model.")
        return self._model

    @property
    def store(self) -> Store:
        """The model's store."""
        store = self.model.store
        if store is None:
            raise AttributeError(
                f"The model {self.model.name!r} has no store. Give it one, such as store=MemoryStore()."
            )
        return store


class HandlerTimeout(Exception):
    """A handler took longer than it may."""


class Caller:
    """Calls handlers: async ones on the loop, plain ones in worker threads, all within a time limit and the middleware.

    timeout: seconds. A plain function that takes longer is answered for, but its thread cannot be stopped.
    threads: how many plain functions run at once.
    """

    def __init__(self, timeout: float, threads: int) -> None:
        self.middleware: list[Callable[..., Awaitable[Any]]] = []
        self._timeout = timeout
        self._thread_limit = threads
        self._threads: ThreadPoolExecutor | None = None

    async def __call__(self, function: HandlerFunction, ctx: Context, *args: Any) -> Any:
        """What the function returns. Raises HandlerTimeout, or what the function raises."""
        call: Callable[..., Awaitable[Any]] = functools.partial(self._call, function)
        for layer in reversed(self.middleware):
            call = functools.partial(layer, call_next=call)
        limit = asyncio.timeout(self._timeout)
        try:
            async with limit:
                return await call(ctx, *args)
        except TimeoutError:
            if limit.expired():
                raise HandlerTimeout(f"the limit is {self._timeout:g} s") from None
            raise

    async def _call(self, function: HandlerFunction, ctx: Context, *args: Any) -> Any:
        if is_async(function):
            return await function(ctx, *args)
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._thread_limit, thread_name_prefix="backsync")
        run = functools.partial(contextvars.copy_context().run, _call_plain, function, ctx, *args)
        return await asyncio.get_running_loop().run_in_executor(self._threads, run)

    def shutdown(self) -> None:
        """Let the worker threads go; running functions end by themselves."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None


def _call_plain(function: HandlerFunction, *args: Any) -> Any:
    try:
        return function(*args)
    except StopIteration as error:  # no future can carry it: whoever waits for the thread would wait for ever
        raise RuntimeError("a plain handler raised StopIteration") from error


class Turns:
    """One at a time per record: whoever writes a record waits for the writer before it."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, list[int]]] = {}

    @asynccontextmanager
    async def turn(self, key: str | None) -> AsyncIterator[None]:
        """Hold the record's turn. No key: a new record, which nobody else can mean. Reentrant within a request."""
        acting = Acting.current.get()
        mark = (self, key)
        if key is None or (acting is not None and mark in acting.locks):
            yield
            return
        lock, users = self._locks.setdefault(key, (asyncio.Lock(), [0]))
        users[0] += 1
        try:
            async with lock:
                if acting is not None:
                    acting.locks.add(mark)
                try:
                    yield
                finally:
                    if acting is not None:
                        acting.locks.discard(mark)
        finally:
            users[0] -= 1
            if not users[0]:
                del self._locks[key]


class Model:
    """One kind of record: a name, the handlers or store behind it, and the channel that its subscribers listen to.

    Made by `Backsync.model`. Use it as a decorator on a class for the class form, or `.on(method)` on functions.
    """

    def __init__(self, name: str, hub: Hub, caller: Caller, soon: Soon, store: Store | None) -> None:
        self.name = name
        self.store = store
        self.open_hooks: list[HandlerFunction] = []
        self.close_hooks: list[HandlerFunction] = []
        self._handlers: dict[str, HandlerFunction] = {}
        self._hub = hub
        self._call = caller
        self._soon = soon
        self._turns = Turns()

    def __repr__(self) -> str:
        return f"<Model {self.name!r}>"

    # Decorators

    def on(self, method: str) -> Callable[[Decorated], Decorated]:
        """Register a handler `(ctx, data)` for a method.

        method: `read`, `upsert`, `patch`, `delete`, `subscribe` (a guard: raise Reject to refuse), or any other name
            for a method of your own, called as `Model:name`.
        An async function runs on the event loop, a plain one in a worker thread.

        Raises ValueError for a name that is taken, reserved or not a name; TypeError for a function that cannot be
        called with `(ctx, data)`.
        """

        def decorate(function: Decorated) -> Decorated:
            self._register(method, function, "a handler takes (ctx, data)")
            return function

        return decorate

    def __call__(self, cls: type[Any]) -> type[Any]:
        """Register the public methods that the class itself defines, each `(self, ctx, data)`.

        `on_open(self, ctx)` and `on_close(self, ctx)` are called as connections come and go. One instance serves all.
        Inherited and private names are never reachable from the wire.
        """
        if not inspect.isclass(cls):
            raise TypeError(
                f"sync.model({self.name!r}) got {cls!r}, expected a class; decorate functions with .on(method)."
            )
        instance = cls()
        for name, member in vars(cls).items():
            if name.startswith("_") or not inspect.isfunction(member):
                continue
            bound = getattr(instance, name)
            if name in _HOOKS:
                check_signature(bound, 1, f"{cls.__name__}.{name} takes (self, ctx)")
                (self.open_hooks if name == "on_open" else self.close_hooks).append(bound)
            else:
                self._register(name, bound, f"{cls.__name__}.{name} takes (self, ctx, data)")
        return cls

    def _register(self, method: str, function: HandlerFunction, expected: str) -> None:
        if method in _RESERVED:
            instead = f"use {ALIASES[method]!r}, of which it is an alias" if method in ALIASES else "it is built in"
            raise ValueError(f"{self.name}.on got {method!r}: {instead}.")
        if not messages.is_method_name(method):
            raise ValueError(f"{self.name}.on got the method {method!r}, expected letters, digits and underscores.")
        if method in self._handlers:
            raise ValueError(f"{self.name}.on got {method!r} twice; a method has one handler.")
        check_signature(function, 2, expected)
        self._handlers[method] = function

    # From anywhere in the program

    async def upsert(self, record: Mapping[str, Any]) -> Record:
        """Store the record, if the model has a store, and broadcast it. Returns it as stored.

        Does not call the model's `upsert` handler: inside one, this is how to write.
        Raises Reject where the store refuses, EncodeError where JSON cannot carry the record, ValueError without an id
        and a store that could give one.
        """
        check_record(record)
        messages.encode(record)  # what cannot be sent must not get into the store: no snapshot could leave it any more
        async with self._turns.turn(turn_key(record)):
            stored = dict(record) if self.store is None else await self.store.upsert(record)
            self.publish("upsert", stored)
        return stored

    async def patch(self, id: Id, fields: Mapping[str, Any], unset: Sequence[str] = ()) -> Record:
        """Change some fields of a stored record, remove those named by `unset`, and broadcast it whole.

        Raises Reject("not_found"); ValueError for a model without a store.
        """
        if self.store is None:
            raise ValueError(f"{self.name}.patch needs a store that knows the other fields; use upsert.")
        messages.encode(fields)
        async with self._turns.turn(str(id)):
            stored = await self.store.patch(id, fields, unset)
            self.publish("upsert", stored)
        return stored

    async def delete(self, id: Id) -> bool:
        """Remove the record from the store and broadcast that. False: the store had none, nothing is broadcast."""
        async with self._turns.turn(str(id)):
            deleted = self.store is None or await self.store.delete(id)
            if deleted:
                self.publish("delete", {"id": id})
        return deleted

    def publish(self, method: str, data: Any) -> None:
        """Broadcast without storing: `upsert` with a record, `delete` with `{"id": …}`, or a transient event of any
        other name, which is not part of the state and not resumed. In another thread than the event loop's it is
        checked and encoded at once and goes out soon.

        Raises ValueError for a record without an id, EncodeError for what JSON cannot carry.
        """
        method = ALIASES.get(method, method)
        if method not in ("upsert", "delete"):
            if not messages.is_method_name(method):
                raise ValueError(
                    f"{self.name}.publish got the method {method!r}, expected letters, digits, underscores."
                )
            body = messages.encode(data)
            self._soon.run(lambda: self.topic.publish_event(method, body))
            return
        id = data.get("id") if isinstance(data, Mapping) else None
        if not is_id(id):
            raise ValueError(f"{self.name}.publish got {messages.shorten(data)}, expected a record with an id.")
        self._announce(method, data if method == "upsert" else {"id": id})

    def publish_soon(self, method: str, data: Any) -> None:
        """`publish` from any thread, at any time: never waits and never raises; what fails is logged.

        Before the event loop runs, changes wait. At most 10 000 wait; then the oldest are dropped, with a warning.
        """
        self._soon.put(lambda: self.publish(method, data))

    def upsert_soon(self, record: Mapping[str, Any]) -> None:
        """`upsert` from any thread, at any time: never waits and never raises; as `publish_soon`."""
        self._soon.put(lambda: self.upsert(record))

    @property
    def topic(self) -> Topic:
        """The channel of this model and who listens to it."""
        return self._hub.topic(self.name)

    def _announce(self, method: str, data: Mapping[str, Any]) -> str:
        """Encode once and broadcast. Returns the JSON text, for the reply."""
        body = messages.encode(data)
        self._soon.run(lambda: self._publish(method, str(data["id"]), body))
        return body

    def _publish(self, method: str, key: str, body: str) -> None:
        self.topic.publish(method, key, body)
        if self.store is not None:
            for id in self.store.take_evicted():
                self.topic.publish("delete", str(id), messages.encode({"id": id}))

    # From the wire

    @property
    def guard(self) -> HandlerFunction | None:
        """The handler that decides who may subscribe."""
        return self._handlers.get("subscribe")

    async def perform(self, ctx: Context, request: Request) -> str:
        """Carry out a request and return its reply's data as JSON text.

        Raises Reject, HandlerTimeout, EncodeError or what a handler raises.
        """
        method = request.method
        if method == "read":
            query = check_query(request.data)
            return messages.encode(await self.read(ctx, query))
        if method in _STATE_METHODS:
            if not isinstance(request.data, list):
                return await self._write(ctx, request, request.data)
            replies: list[str] = []
            for record in request.data:
                try:
                    replies.append(await self._write(ctx, request, record))
                except Reject as error:
                    done = {"done": len(replies)}
                    details = {**error.details, **done} if isinstance(error.details, dict) else done
                    raise Reject(error.code, error.message, details) from error
            return "[" + ",".join(replies) + "]"
        handler = self._handlers.get(method)
        if handler is None or method == "subscribe":
            raise Reject("unknown_method", f"{self.name} has no method {method!r}.")
        return messages.encode(await self._call(handler, ctx, request.data))

    async def read(self, ctx: Context, query: Mapping[str, Any]) -> Any:
        """The records that a query asks for: a list, or one record for a query by id alone."""
        handler = self._handlers.get("read")
        if handler is not None:
            return self._check_rows(await self._call(handler, ctx, dict(query)), query)
        if self.store is None:
            raise Reject("unknown_method", f"{self.name} has neither a read handler nor a store.")
        if set(query) != {"id"}:
            return await self.store.read(query)
        record = await self.store.get(query["id"]) if is_id(query["id"]) else None
        if record is None:
            raise Reject("not_found", f"{self.name} has no record with the id {messages.shorten(query['id'])}.")
        return record

    @property
    def readable(self) -> bool:
        """Whether there is anything that can read records: a handler or a store."""
        return self.store is not None or "read" in self._handlers

    def _check_rows(self, rows: Any, query: Mapping[str, Any]) -> Any:
        if rows is None and set(query) == {"id"}:
            raise Reject("not_found", f"{self.name} has no record with the id {messages.shorten(query['id'])}.")
        if isinstance(rows, Mapping):
            return rows
        if rows is None or isinstance(rows, (str, bytes)) or not isinstance(rows, Iterable):
            raise TypeError(
                f"The read handler of {self.name} returned {messages.shorten(rows)}, expected a list of records."
            )
        return rows if isinstance(rows, list) else list(rows)

    async def _write(self, ctx: Context, request: Request, data: Any) -> str:
        method = request.method
        if not isinstance(data, dict):
            raise Reject("invalid", f"{request.event} got {messages.shorten(data)}, expected a record.")
        check_record(data)
        if method != "upsert" and not is_id(data.get("id")):
            raise Reject("invalid", f"{request.event} needs the record's id.", [{"field": "id", "message": "missing"}])
        async with self._turns.turn(turn_key(data)):
            match method:
                case "upsert":
                    return self._finish(await self._upsert(ctx, data))
                case "patch":
                    return self._finish(await self._patch(ctx, data, check_unset(request.message.get("unset"))))
                case _:
                    await self._delete(ctx, data["id"])
                    return "{}"

    def _finish(self, record: Any) -> str:
        if not isinstance(record, Mapping) or not is_id(record.get("id")):
            raise TypeError(
                f"The upsert handler of {self.name} returned {messages.shorten(record)}, expected the stored record: "
                "a dict with an id (a string of 1-128 characters or an integer). Return what you have stored."
            )
        return self._announce("upsert", record)

    async def _upsert(self, ctx: Context, data: Record) -> Any:
        handler = self._handlers.get("upsert")
        if handler is not None:
            return await self._call(handler, ctx, data)
        if self.store is None:
            raise Reject("unknown_method", f"{self.name} has neither an upsert handler nor a store.")
        return await self.store.upsert(data)

    async def _patch(self, ctx: Context, data: Record, unset: Sequence[str]) -> Any:
        handler = self._handlers.get("patch")
        if handler is not None:
            return await self._call(handler, ctx, data)
        if self.store is None:
            raise Reject("unknown_method", f"{self.name} has neither a patch handler nor a store.")
        if "upsert" not in self._handlers:
            return await self.store.patch(data["id"], data, unset)
        # A patch is an upsert of some fields: it passes the same handler, which may be there to refuse.
        current = await self.store.get(data["id"])
        if current is None:
            raise Reject("not_found", f"{self.name} has no record with the id {data['id']!r}.")
        merged = {field: value for field, value in {**current, **data}.items() if field == "id" or field not in unset}
        return await self._upsert(ctx, merged)

    async def _delete(self, ctx: Context, id: Id) -> None:
        handler = self._handlers.get("delete")
        if handler is not None:
            deleted = await self._call(handler, ctx, {"id": id}) is not False
        elif self.store is not None:
            deleted = await self.store.delete(id)
        else:
            raise Reject("unknown_method", f"{self.name} has neither a delete handler nor a store.")
        if deleted:
            self._announce("delete", {"id": id})


class Soon:
    """Changes on their way from other threads to the event loop, in order."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Callable[[], Awaitable[Any] | None], Acting | None]] = deque()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._scheduled = False
        self._dropped = 0

    def put(self, act: Callable[[], Awaitable[Any] | None]) -> None:
        """Queue something to do on the loop. Safe in any thread; never waits."""
        # A handler's own publishing, from its thread, is held back until its reply like any other.
        acting = Acting.current.get()
        with self._lock:
            if len(self._waiting) >= SOON_LIMIT:
                self._waiting.popleft()
                self._dropped += 1
            self._waiting.append((act, acting))
            self._schedule()

    def run(self, act: Callable[[], None]) -> None:
        """Do it now on the event loop, soon from anywhere else."""
        try:
            here = asyncio.get_running_loop() is (self._loop or asyncio.get_running_loop())
        except RuntimeError:
            here = False
        if here:
            act()
        else:
            self.put(act)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """The event loop is there: what waits is done now."""
        with self._lock:
            self._loop = loop
            self._scheduled = False
            if self._waiting:
                self._schedule()

    def _schedule(self) -> None:
        if self._loop is None or self._scheduled:
            return
        try:
            self._loop.call_soon_threadsafe(self._start_draining)
            self._scheduled = True
        except RuntimeError:  # the loop is closed: the program is ending, or another loop is to come
            self._loop = None

    def _start_draining(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        for count in itertools.count(1):
            with self._lock:
                if not self._waiting:
                    self._scheduled = False
                    return
                act, acting = self._waiting.popleft()
                dropped, self._dropped = self._dropped, 0
            Acting.current.set(acting)
            if count % 100 == 0:
                await asyncio.sleep(0)  # a long queue must not stop the loop
            if dropped:
                logger.warning("%d changes were dropped: more than %d waited for the event loop.", dropped, SOON_LIMIT)
            try:
                waiting = act()
                if waiting is not None:
                    await waiting
            except Exception as error:  # noqa: BLE001 - one bad change must not stop those behind it
                logger.error("A change that was published from another thread failed: %r", error)


def is_async(function: HandlerFunction) -> bool:
    """Whether calling it gives a coroutine; looks through partials and at objects with an async `__call__`."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def check_signature(function: HandlerFunction, arguments: int, expected: str) -> None:
    """Raises TypeError, at decoration, for a function that cannot be called with so many arguments."""
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError(f"{function!r} is a generator: {expected} and returns its result.")
    try:
        inspect.signature(function).bind(*range(arguments))
    except TypeError as error:
        raise TypeError(f"{function!r} does not fit: {expected} ({error}).") from None


def check_query(data: Any) -> dict[str, Any]:
    """The query of a read or subscribe; nothing is an empty one. Raises Reject("invalid")."""
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise Reject("invalid", f"A query got {messages.shorten(data)}, expected an object or nothing.")
    return data


def check_record(record: Mapping[Any, Any]) -> None:
    """Raises Reject("invalid") for an id that is none, too many fields, or a field name that is too long or empty."""
    id = record.get("id")
    faults = []
    if id is not None and not is_id(id):
        faults.append({"field": "id", "message": "expected a string of 1-128 characters or an integer"})
    if len(record) > MAX_FIELDS:
        raise Reject("too_large", f"A record may have {MAX_FIELDS} fields.", {"limit": MAX_FIELDS})
    faults += [
        {"field": messages.shorten(str(key)), "message": f"a field's name has at most {MAX_KEY} characters"}
        for key in record
        if not isinstance(key, str) or len(key) > MAX_KEY
    ]
    if faults:
        raise Reject(
            "invalid",
            "The record was refused: " + "; ".join(f"{it['field']}: {it['message']}" for it in faults),
            faults,
        )


def check_unset(unset: Any) -> list[str]:
    """The fields that a patch removes. Raises Reject("invalid")."""
    if unset is None:
        return []
    if not isinstance(unset, list) or not all(isinstance(field, str) for field in unset):
        raise Reject("invalid", f"unset got {messages.shorten(unset)}, expected a list of field names.")
    return unset


def turn_key(record: Mapping[str, Any]) -> str | None:
    """What a record's writers take turns by; None for a new record."""
    id = record.get("id")
    return None if id is None else str(id)
