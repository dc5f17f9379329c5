"""Models: names on the wire, their handlers and stores, and what a request to them does; it knows no transport.

A handler table is made at decoration, from what the developer registered. A name from the wire is looked up in it and
nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import inspect
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar, overload

from starlette.requests import HTTPConnection

from . import messages
from .commits import Doubts, Handed, Told, TypedStore
from .ephemeral import Lives
from .errors import EncodeError, Reject
from .gone import Gone
from .handlers import Caller, HandlerFunction, HandlerTimeout, check_signature
from .hub import Hub, Topic
from .messages import ALIASES, Request, check_integers, check_query, check_record, check_unset, is_id
from .places import Place, Places
from .rights import Permit, Rights
from .schemas import Schema, Unknown, data_annotation, schema_of
from .shown import read_shown
from .sockjs.frames import loads
from .soon import Line, Soon, sparing
from .stores.base import CHUNK, Id, Reader, Record, Skipped, Store, Unsure, paced
from .stores.memory import MemoryStore
from .turns import Turns
from .visibility import Visibility, copied

logger = logging.getLogger("backsync")

Decorated = TypeVar("Decorated", bound=HandlerFunction)
Result = TypeVar("Result")

WRITES_AT_ONCE = 20  # of an array, then others have their turn
ATTEMPTS = 3  # at a write that the rule allowed and another process overtook
KEY_LOOKS = 20  # empty channels of a model for which it is looked whether a key has been mistyped
REFRESH_EVERY = 1.0  # seconds at least between having everybody read anew because of writes that have failed
_WRITES = frozenset({"upsert", "patch", "delete"})
_STATE_METHODS = _WRITES | {"read"}
_RESERVED = frozenset({"unsubscribe", *ALIASES})
_NO_EVENTS = frozenset({"read", "patch", "subscribe", "unsubscribe", "snapshot"})  # clients know them as something else
_SIGNALS = f"{__package__}.signals"
_HOOKS = frozenset({"on_open", "on_close"})
_BUILT_IN = _STATE_METHODS | {"subscribe"}
_SYNONYMS = {"destroy": "delete", "remove": "delete"}  # of those for `upsert`, such as `save`, the log warns anyway


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is said once about a model; see `Backsync.model`. key: the names of the key fields. Times in seconds."""

    store: Store | None = None
    key: tuple[str, ...] = ()
    version: str | None = None
    ephemeral: bool = False
    grace: float = 3.0
    ttl: float | None = None
    schema: Any = None
    unknown: Unknown = "drop"
    readonly: bool = False


class Connection(Protocol):
    """One client, as handlers see it: `ctx.connection`. Hashable, so that it can be a key."""

    id: str
    user: Any

    @property
    def client(self) -> Hashable: ...

    @property
    def client_id(self) -> str: ...

    @property
    def state(self) -> Any: ...

    @property
    def request(self) -> HTTPConnection: ...

    def close(self, code: int = 1000, reason: str = "") -> None: ...

    def refresh(self) -> None: ...


NOW: Any = object()  # who the client is at this moment


class Context:
    """What a handler is told about the request beside its data.

    connection: the client; hashable, with an `id` that lives as long as it.
    model, method: what was called; None in hooks of the whole app.
    id: of the record that is written or deleted; None for a new one and where no record is.
    unset: the fields that a patch removes.
    user: who the client was when it sent the request, for reads and subscriptions who it is as they are answered: from
        the auth hook, else from the host app's authentication middleware, else None. `connection.user` is who it is
        now.
    """

    __slots__ = ("_handed", "_is_over", "_model", "_permit", "_sent", "connection", "id", "method", "unset", "user")

    def __init__(
        self, connection: Connection, model: Model | None = None, method: str | None = None, user: Any = NOW
    ) -> None:
        self.connection = connection
        self.user: Any = connection.user if user is NOW else user
        self.method = method
        self.id: Id | None = None
        self.unset: Sequence[str] = ()
        self._model = model
        self._handed: Handed | None = None
        self._is_over = False  # the handler has ended
        self._permit: Permit | None = None  # what the model's rule has allowed
        self._sent: Mapping[str, Any] | None = None  # the record of which the handler gets what its type has

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
    def store(self) -> TypedStore:
        """The model's store. It takes typed objects, too, and returns what is stored as one.

        What is written here is broadcast as the handler returns or publishes it; all else, or if it fails, as it is
        stored, once the handler has ended. A write that has begun is brought to its end, also where the handler's time
        limit is over.
        """
        if self._handed is None:
            self._handed = self.model.handed(self)
            if self._is_over:  # a task asks for it that has outlived its handler
                self._handed.end()
            _writing.set(self)
        store: Any = self._handed
        return store  # type: ignore[no-any-return]

    @property
    def has_typed(self) -> bool:
        """Whether the handler has written typed objects."""
        return self._handed is not None and self._handed.has_typed

    def stored_as(self, result: object) -> Record | None:
        """The record of a typed object that the handler has written and returned."""
        return None if self._handed is None else self._handed.stored_as(result)

    def _told(self, model: Model, id: Id, place: Hashable) -> None:
        """A record is broadcast, in what the handler does or by what it returns. place: of a keyed model."""
        if self._handed is not None and model is self._model:
            self._handed.told(id, place)

    def end(self) -> None:
        """The handler has ended: what it has written is broadcast by now, or is so soon."""
        self._is_over = True
        if self._handed is not None:
            self._handed.end()
            self._handed = None

    def returned_late(self, result: Any) -> None:
        """A plain handler has returned after its time limit."""
        if self._model is not None and self.method in _WRITES:
            self._model.finished_late(self, result)


# Whose handler has written with its store, in this context.
_writing: ContextVar[Context | None] = ContextVar("backsync_writing", default=None)


class BrokenOff(Exception):
    """A write of several records failed, by the error that is its cause, after `done` of them."""

    def __init__(self, done: int) -> None:
        self.done = done
        super().__init__(f"after {done} records")


class Model:
    """One kind of record: a name, the handlers or store behind it, and the channel that its subscribers listen to.

    Made by `Backsync.model`. Use it as a decorator on a class for the class form, or `.on(method)` on functions.
    """

    def __init__(self, name: str, hub: Hub, caller: Caller, soon: Soon, turns: Turns) -> None:
        self.name = name
        self.options = Options()
        self.open_hooks: list[HandlerFunction] = []
        self.close_hooks: list[HandlerFunction] = []
        self.concurrent: set[str] = set()  # the methods whose handlers do not ask for an order
        self._handlers: dict[str, HandlerFunction] = {}
        self._annotations: dict[str, Any] = {}  # by method: what its handler says of the data
        self._schemas: dict[str, Schema] = {}  # by method, where that says anything
        self._schema: Schema | None = None  # of all records
        self.leaves_out = False  # whether the upsert handler's type leaves out fields that the framework sets
        self._schemas_of_types: dict[type, Schema | None] = {}  # by the type of what handlers have stored
        self._configured = False
        self.visibility = Visibility(name, lambda connection: Context(connection, self, "visible"))
        self.rights = Rights(name, caller)
        self._hub = hub
        self._call = caller
        self._soon = soon
        self._turns = turns
        self.places = Places(name, (), hub)
        self._watched: Any = None  # the store, where somebody may listen to signals
        self._doubts = Doubts(self._look)
        self._told = Told()
        self._skipped = Skipped(name)
        self._reader: Reader | None = None
        self._key_looks = KEY_LOOKS
        self.hears_others = False  # what other processes write is broadcast here too
        self.lives: Lives | None = None
        self.gone: Gone | None = None  # set by the app, whose clients may be of 2012
        self.on_refresh: Callable[[str], None] = lambda name: None  # set by the app, which knows who has subscribed

    def __repr__(self) -> str:
        return f"<Model {self.name!r}>"

    def configure(self, options: Mapping[str, Any]) -> None:
        """Take the options, as `Options` names them. Raises ValueError where others were given before."""
        now = {name: value for name, value in options.items() if value != getattr(self.options, name)}
        if not now:
            return
        if self._configured:
            raise ValueError(
                f"sync.model({self.name!r}) got {now}, but has {self.options}. Options are given once, together."
            )
        self._check_readonly(bool(options.get("readonly")), self._handlers)
        self._configured = True
        if options.get("ephemeral") and "store" not in options:
            options = {**options, "store": MemoryStore()}
        self._set_options(Options(**options))
        if self.options.ephemeral:
            self.lives = Lives(self.name, self.options.grace, self.options.ttl, self._delete_if)
        store = self.options.store
        if store is not None:
            if store.version not in (None, self.options.version):
                raise ValueError(f"The store of {self.name} counts {store.version!r} already: a store is one model's.")
            store.bind(self.name, self.options.version)

    def infer(self, *, version: str) -> None:
        """Count versions in that field, as what the records are read from does; no other option can be given after it.

        For a model whose options name none.
        """
        self._configured = True
        self._set_options(replace(self.options, version=version))

    def _set_options(self, options: Options) -> None:
        self.options = options
        self.places = Places(self.name, options.key, self._hub)
        self._schema = self._schema_of(options.schema or dict)
        for method, annotation in self._annotations.items():  # of handlers that were there before the options
            self._set_schema(method, annotation)

    @property
    def store(self) -> Store | None:
        """Where the records live, if the model has a store."""
        store = self.options.store
        signals = sys.modules.get(_SIGNALS)  # where that was never imported, nobody can listen
        if store is None or signals is None or not signals.is_heard(self):
            return store
        if self._watched is None:
            self._watched = signals.Watched(self, store)
        watched: Store = self._watched
        return watched

    @property
    def reader(self) -> Reader | None:
        """What records are read from where there is no handler for it: the store, or what `read_from` was given."""
        return self._reader if self.store is None else self.store

    def read_from(self, reader: Reader) -> None:
        """Read the records from there, unless there is a `read` handler: for records that something else writes.

        Raises ValueError where they are read from somewhere already.
        """
        if self.reader is not None:
            raise ValueError(f"{self.name}.read_from got {reader!r}, but reads from {self.reader!r}: one is enough.")
        self._reader = reader

    def start(self) -> None:
        """Another event loop runs."""
        if self.lives is not None:
            self.lives.start()

    def soon(self, act: Callable[[], None]) -> None:
        """Call the function on the event loop: at once where this is it, else soon."""
        self._soon.run(act)

    async def in_thread(self, work: Callable[[], Result]) -> Result:
        """What the function returns or raises, called in one of the threads of plain handlers."""
        return await self._call.in_thread(work)

    # Before the first client comes

    def open_methods(self) -> list[str]:
        """By which methods every client may write any record: no handler and no rule comes before the store."""
        if self.options.store is None or self.options.readonly or self.options.ephemeral or self.rights.asks:
            return []
        closed = set(self._handlers) | ({"patch"} if "upsert" in self._handlers else set())
        return [method for method in ("upsert", "patch", "delete") if method not in closed]

    def suspicions(self) -> list[str]:
        """What is probably not meant, a sentence each: a handler that nothing calls opens what it was to close."""
        own = [method for method in self._handlers if method not in _BUILT_IN]
        missing = _BUILT_IN - self._handlers.keys()
        found = []
        for method in own:
            meant = _SYNONYMS.get(method.lower())
            if meant not in self.open_methods():
                close = difflib.get_close_matches(method.lower(), missing, n=1, cutoff=0.75)
                meant = close[0] if close else None
            is_extended = meant is not None and meant in method and len(method) > len(meant) + 1  # such as `undelete`
            if meant is not None and not is_extended:
                found.append(f"{self.name} has a handler for {method!r}, a method of your own. Did you mean {meant!r}?")
        if own and "upsert" in self.open_methods():
            names = ", ".join(repr(method) for method in own)
            found.append(
                f"{self.name} has a store and a handler for {names}, but none for 'upsert': clients write to the store "
                "without a check. If a handler was to check that, name it 'upsert'. Else close the model by "
                "readonly=True, or say who may write by @model.allow."
            )
        if self.rights.asks and self.reader is None:
            found.append(
                f"{self.name} has a rule of who may write, but neither a store nor live records: its `old` is None "
                "for each record."
            )
        return found

    # Decorators

    def on(self, method: str, *, concurrent: bool = False) -> Callable[[Decorated], Decorated]:
        """Register a handler `(ctx, data)` for a method.

        method: `read`, `upsert`, `patch`, `delete`, `subscribe` (a guard: raise Reject to refuse), or any other name
            for a method of your own, called as `Model:name`.
        concurrent: a client's calls of this method wait neither for its earlier requests to the model nor for each
            other. Writes of one record still take turns.
        An async function runs on the event loop, a plain one in a worker thread.

        Raises ValueError for a name that is taken, reserved or not a name; TypeError for a function that cannot be
        called with `(ctx, data)`, and for `@model.on` without a method.
        """
        if not isinstance(method, str):
            raise TypeError(f'{self.name}.on got {method!r}, expected a method: @model.on("upsert").')

        def decorate(function: Decorated) -> Decorated:
            self._register(method, function, "a handler takes (ctx, data)")
            if concurrent:
                self.concurrent.add(method)
            return function

        return decorate

    @overload
    def visible(
        self,
        function: Decorated,
        *,
        audience: Callable[[Context], Hashable] | None = None,
        redacts: Iterable[str] | None = None,
    ) -> Decorated: ...

    @overload
    def visible(
        self, *, audience: Callable[[Context], Hashable] | None = None, redacts: Iterable[str] | None = None
    ) -> Callable[[Decorated], Decorated]: ...

    def visible(
        self,
        function: Any = None,
        *,
        audience: Callable[[Context], Hashable] | None = None,
        redacts: Iterable[str] | None = None,
    ) -> Any:
        """Register the rule of who sees what: `@model.visible`, a plain function `(ctx, record)`.

        It returns True (seen), False or None (not there for this client) or a redacted record. It holds for every way
        out: pushes, snapshots, reads, resumes, replies, conflicts. A changed record that is not visible arrives as a
        delete. It is asked as each change is delivered, so keep it quick and without I/O; one that fails hides.

        audience: `(ctx)` to a hashable value, such as the user's role: who has the same value sees the same, and the
            rule is asked once for all of them: `@model.visible(audience=lambda ctx: ctx.user.role)`.

        redacts: the fields that the rule may change in a record that it shows; `()` where it shows whole records or
            nothing. Queries are answered from what is shown, so a query by a field that may be redacted reads all
            records (of a keyed model: of a channel); not said, that is every field but `id`.

        Transient events are not records and are not filtered.
        """

        def decorate(function: Decorated) -> Decorated:
            self.visibility.set_rule(function, audience, redacts)
            return function

        return decorate if function is None else decorate(function)

    def allow(self, function: Decorated) -> Decorated:
        """Register the rule of who may write what: `@model.allow`, `(ctx, method, old, new)`, async or plain.

        It is asked for each upsert, patch and delete of a client, before a handler or the store sees it and while no
        other write of the record runs. method: "upsert", "patch" or "delete". old: the stored record, None for a new
        one. new: the record as it would be stored, None for a delete. True allows; False, and a Reject that it
        raises, refuse. Everything else, an error included, refuses and is logged.

        An async rule runs on the event loop, a plain one in a worker thread. It is called without the middleware.

        Raises TypeError for a function with other parameters, ValueError for a second rule.
        """
        self.rights.set_rule(function)
        return function

    def __call__(self, cls: type[Any]) -> type[Any]:
        """Register the public methods that the class itself defines, each `(self, ctx, data)`.

        `on_open(self, ctx)` and `on_close(self, ctx)` are called as connections come and go. One instance serves all.
        Inherited and private names are never reachable from the wire.
        """
        if not inspect.isclass(cls):
            raise TypeError(
                f"sync.model({self.name!r}) got {cls!r}, expected a class; decorate functions with .on(method)."
            )
        try:
            inspect.signature(cls).bind()
        except TypeError as error:
            raise TypeError(
                f"{cls.__name__} does not fit: one instance, made without arguments, serves all ({error})."
            ) from None
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
        self._check_readonly(self.options.readonly, {method})
        check_signature(function, 2, expected)
        self._set_schema(method, data_annotation(function))
        self._handlers[method] = function

    def _check_readonly(self, readonly: bool, methods: Iterable[str]) -> None:
        """Raises ValueError for a handler that no client could call."""
        closed = sorted(_WRITES.intersection(methods)) if readonly else []
        if closed:
            raise ValueError(
                f"{self.name} got readonly=True and a handler for {', '.join(closed)}, which clients cannot call then. "
                "Leave one of the two out."
            )

    def _schema_of(self, annotation: Any) -> Schema | None:
        owned = {"id", *self.options.key, self.options.version or "id"}
        return schema_of(annotation, owned=owned, unknown=self.options.unknown)

    def _set_schema(self, method: str, annotation: Any) -> None:
        self._annotations[method] = annotation
        schema = self._schema_of(annotation)
        if schema is not None:
            self._schemas[method] = schema
            if method == "upsert":
                self.leaves_out = schema.leaves_out

    def loaded(self, method: str, data: Any) -> Any:
        """The data as the method's handler has annotated it. Raises Reject("invalid")."""
        schema = self._schemas.get(method)
        return data if schema is None else schema.load(data)

    # From anywhere in the program

    async def upsert(self, record: Any) -> Record:
        """Store the record, if the model has a store, and broadcast it. Returns it as stored.

        Does not call the model's `upsert` handler. (Inside that, write with `ctx.store`: what it returns is broadcast.)
        Raises Reject where the store refuses, EncodeError where JSON cannot carry the record, ValueError without an id
        and a store that could give one.
        """
        record = messages.record_of(record)
        check_record(record)
        messages.encode(record)  # what cannot be sent must not get into the store: no snapshot could leave it any more
        async with self._turn(record.get("id")):
            await self._find_place(record.get("id"))
            store = self.store
            if store is not None:
                return await self._commit(record.get("id"), lambda: store.upsert(record), self._tell_stored)
            self.publish("upsert", record)
        return dict(record)

    async def patch(self, id: Id, fields: Mapping[str, Any], unset: Sequence[str] = ()) -> Record:
        """Change some fields of a stored record, remove those named by `unset`, and broadcast it whole.

        Raises Reject("not_found"); ValueError for a model without a store.
        """
        store = self.store
        if store is None:
            raise ValueError(f"{self.name}.patch needs a store that knows the other fields; use upsert.")
        messages.encode(fields)
        self.places.check_patch(fields, unset)
        async with self._turn(id):
            await self._find_place(id)
            return await self._commit(id, lambda: store.patch(id, fields, unset), self._tell_stored)

    async def delete(self, id: Id) -> bool:
        """Remove the record from the store and broadcast that. False: the store had none, nothing is broadcast."""
        return await self._delete_if(id, lambda: True)

    async def _delete_if(self, id: Id, is_due: Callable[[], bool]) -> bool:
        """The same, if it is still to be deleted when it is the record's turn."""
        async with self._turn(id):
            if not is_due():
                return False
            await self._find_place(id)
            store = self.store
            if store is not None:
                return await self._commit(id, lambda: store.delete(id), lambda deleted: self._tell_deleted(id, deleted))
            self._tell_deleted(id, True)
        return True

    def _tell_stored(self, record: Record) -> None:
        self._announce("upsert", record)

    def _tell_deleted(self, id: Id, deleted: bool) -> None:
        """deleted: False where the store had no such record."""
        if deleted:
            self.publish("delete", {"id": id})
        else:
            self._note_gone(id)

    def _note_gone(self, id: Id) -> None:
        """The store has no such record any more, which nobody has announced here."""
        if self.lives is not None:
            self.lives.note("delete", id)

    def publish(self, method: str, data: Any, *, key: Mapping[str, Any] | None = None) -> None:
        """Broadcast without storing: `upsert` with a record, `delete` with `{"id": …}`, or a transient event of any
        other name, which is not part of the state and not resumed; `key`, as `{"room": "bar"}`, names the channel of a
        keyed model that gets it, none means all. In another thread than the event loop's it is checked and encoded at
        once and goes out soon.

        Raises ValueError for a record without an id, and for a key that is not the model's (TypeError: not a mapping);
        Reject("invalid") for a record without its key fields, EncodeError for what JSON cannot carry.
        """
        self._soon.run(self._prepare(method, data, key), self._on_lost(method))

    def publish_present(self, method: str, data: Any) -> None:
        """`publish` what a database has now: of a record that was deleted and added again that is a lower version."""
        self._soon.run(self._prepare(method, data, is_present=True), self._on_lost(method))

    def withdraw(self, id: Id) -> None:
        """The record is still there, but cannot be sent any more: whoever has its older state gets a delete."""
        self._soon.run(lambda: self._delete_in(self.places.withdraw(id), id), self.changes_lost)

    def _on_lost(self, method: str) -> Callable[[], None] | None:
        """Whom to tell of a change that is dropped on its way to the event loop."""
        return self.changes_lost if ALIASES.get(method, method) in ("upsert", "delete") else None

    def _prepare(
        self, method: str, data: Any, key: Mapping[str, Any] | None = None, is_present: bool = False
    ) -> Callable[[], None]:
        """Check and encode what is to be published; the rest is for the event loop."""
        method = ALIASES.get(method, method)
        if method not in ("upsert", "delete"):
            if not messages.is_method_name(method) or method in _NO_EVENTS:
                raise ValueError(
                    f"{self.name}.publish got {method!r}, expected upsert, delete or an event's name of your own: "
                    f"letters, digits and underscores, none of {sorted(_NO_EVENTS)}."
                )
            body = messages.encode(data)
            place = None if key is None else self.places.of_key(key)
            return lambda: self._publish_event(method, body, place)
        if key is not None:
            raise ValueError(f"{self.name}.publish({method!r}) got a key, which a record has in its own fields.")
        data = messages.record_of(data) if messages.is_typed(data) else data
        id = data.get("id") if isinstance(data, Mapping) else None
        if not is_id(id):
            raise ValueError(f"{self.name}.publish got {messages.shorten(data)}, expected a record with an id.")
        record = data if method == "upsert" else {"id": id}
        return self._prepare_change(method, record, messages.encode(record), is_known=False, is_present=is_present)

    def publish_soon(self, method: str, data: Any) -> None:
        """`publish` from any thread, at any time: never waits and never raises; what fails is logged.

        Before the event loop runs, changes wait. At most 10 000 wait; then the oldest are dropped, with a warning.
        """
        try:
            act = self._prepare(method, data)
        except Exception as error:  # noqa: BLE001 - the caller may be a logging handler: it must not fail
            self._refuse_soon("publish_soon", error)
        else:
            self._soon.put(act, self._on_lost(method))

    def upsert_soon(self, record: Any) -> None:
        """`upsert` from any thread, at any time: never waits and never raises; as `publish_soon`."""
        try:
            kept = copied(record)  # the caller may go on with its own
        except Exception as error:  # noqa: BLE001 - as above
            self._refuse_soon("upsert_soon", error)
        else:
            self._soon.put(lambda: self.upsert(kept))

    def _refuse_soon(self, method: str, error: Exception) -> None:
        what = "%s.%s was given what cannot be published: %s"
        sparing.log(logging.ERROR, (method, self.name, type(error)), what, self.name, method, error)

    def refresh(self) -> None:
        """Have every subscriber read anew: the records have changed in a way that nobody has told, as by a migration.

        The channels begin a new epoch: each subscriber gets a snapshot in place of what it has, who is away gets it
        when it comes back. In another thread than the event loop's it is done soon.
        """
        self._soon.run(self._refresh)

    def _refresh(self) -> None:
        self.places.forget(self._being_written())
        self.on_refresh(self.name)

    def changes_lost(self) -> None:
        """Changes that have happened could not be told: have everybody read anew, where there is anything to read."""
        if self.readable:
            self.refresh()

    # Commits

    def handed(self, ctx: Context) -> Handed:
        """The store for one request's handler. Raises AttributeError where there is none."""
        store = self.store
        if store is None:
            raise AttributeError(f"The model {self.name!r} has no store. Give it one, such as store=MemoryStore().")
        permitting = partial(self._permitting, ctx) if self.rights.asks and ctx.method in _WRITES else None
        types = _Types(self, ctx)
        return Handed(store, self._commit, self._doubt, self._told, self._is_instant, self._place_of, types, permitting)

    def _place_of(self, record: Mapping[str, Any]) -> Hashable:
        return self.places.find(record) if self.options.key else None

    def is_done_at_once(self, method: str) -> bool:
        """Whether that is a write which has nothing to wait for: no handlers are to be called, no other store."""
        if method not in _WRITES or (self._handlers and _WRITES & self._handlers.keys()) or self.rights.asks:
            return False
        return type(self.store) is MemoryStore

    @property
    def _is_instant(self) -> bool:
        """Whether the store never waits once it has begun to write, so that nobody can come in between."""
        return type(self.options.store) is MemoryStore

    def _limited(self, work: Awaitable[Result]) -> Awaitable[Result]:
        """What the store does, within the time limit where that may take time."""
        return work if type(self.store) is MemoryStore else self._call.limited(work)

    async def _commit(
        self, id: Id | None, write: Callable[[], Awaitable[Result]], told: Callable[[Result], object]
    ) -> Result:
        """What a write of the store returns, once `told` of it: nobody who goes away can come between the two."""
        if self._is_instant:
            result = await write()
            told(result)
            return result
        return await self._call.to_the_end(self._write_and_tell(id, write, told), lambda: self._doubt(id))

    async def _write_and_tell(
        self, id: Id | None, write: Callable[[], Awaitable[Result]], told: Callable[[Result], object]
    ) -> Result:
        """Keeps the turn of a writer that may leave before the store has answered."""
        async with self._turn(id if id is not None and self._turns.holds(self._record_of(id)) else None):
            begun = self._told.now
            try:
                result = await write()
            except Unsure:
                self._doubt(id)
                raise
            if isinstance(result, Mapping):  # the store may have given the id
                id = result["id"]
            if id is not None and self._told.since(id, begun):
                self._doubt(id)
            told(result)
            return result

    def finished_late(self, ctx: Context, result: Any) -> None:
        """A handler has written when its request was answered already, and others may have written since."""
        if self.readable:
            self._doubt(ctx.id)
        elif ctx.method != "delete":
            self.publish_soon("upsert", result)
        elif result is not False:
            self.publish_soon("delete", {"id": ctx.id})

    def _doubt(self, id: Id | None) -> None:
        """It is not known whether everybody is told of a record: look at it soon. None: of any."""
        self._doubts.add(None if "read" in self._handlers else id)  # what that shows, only it knows

    async def _look(self, id: Id | None) -> None:
        """Have everybody see what there is of a record; None: of any."""
        # It is nobody's part: who writes the record ends before, and what he has not told yet stays so.
        Turns.held.set({})
        _writing.set(None)
        if self.store is None or id is None:
            if self.store is not None:
                await self._call.limited(self.store.read({"$limit": 1}))  # once the store answers, and not sooner
            for name in self._being_written():
                async with self._turn(name):  # who writes just now may tell an older state, which must come before
                    self.places.forget_one(name)
            self.refresh()
            await asyncio.sleep(REFRESH_EVERY)
            return
        async with self._turn(id):
            begun = self._told.now
            record = await self._call.limited(self.store.get(id))
            if self._told.since(id, begun):
                self._doubt(id)
            if record is None:
                self.places.leave(id)  # it may have been elsewhere meanwhile, which nobody was told
                self.publish("delete", {"id": id})
            elif self.places.settle(record) and not self._is_told(record):
                self._announce("upsert", record, is_present=True)

    def _is_told(self, record: Record) -> bool:
        """Whether this very state of a record was the last one that was broadcast. A version alone does not tell: that
        of a record which was deleted and added again unheard may be the same."""
        counts = self._version_of(record) is not None
        topic = self._hub.find(self.name, self.places.of(record)[0]) if counts else None
        return topic is not None and topic.shows(record["id"], messages.encode(record))

    def _version_of(self, record: Mapping[str, Any]) -> int | None:
        version = None if self.options.version is None else record.get(self.options.version)
        return version if type(version) is int else None

    # Channels

    def topic_of(self, fields: Mapping[str, Any]) -> Topic:
        """The channel that these fields belong to, of a record or a query; as `Places.of`."""
        return self._hub.topic(self.name, *self.places.of(fields))

    def _turn(self, id: Id | None) -> AbstractAsyncContextManager[None]:
        """The turn of a record's writers; a new record has no others."""
        return self._turns.turn(None if id is None else self._record_of(id))

    def _record_of(self, id: Id) -> Hashable:
        """The record as turns know it."""
        return self.name, str(id)

    def subscription_turn(self, connection: Connection, query: Mapping[str, Any]) -> AbstractAsyncContextManager[None]:
        """A client's subscriptions to one channel come one after the other, also where it need not wait for others."""
        asks_for_no_order = "subscribe" in self.concurrent
        return self._turns.turn((connection.id, self.name, self.places.of(query)[0]) if asks_for_no_order else None)

    def _seeks_place(self, id: Id | None) -> bool:
        """Whether a record may be somewhere of which only the store knows."""
        return id is not None and not self.places.knows(id) and self.options.store is not None

    async def _find_place(self, id: Id | None) -> None:
        """Learn where a record of a keyed model is before it is written, since the write may move it."""
        store = self.store
        if id is None or store is None or not self._seeks_place(id):
            return
        current = await store.get(id)
        if current is not None:
            self.places.learn(current)

    async def _read_rows(self, query: Mapping[str, Any], rows: Awaitable[list[Any]]) -> list[Any]:
        """The rows of the reader, records or their JSON texts."""
        if not self._may_be_shared:
            return await self._read_places(query, rows)
        place = self.places.find(query)  # a read need not name a channel
        topic = None if place is None else self._hub.find(self.name, place[0])
        since = 0 if topic is None else topic.channel.seq
        read = await self._read_places(query, rows)
        changed = None if topic is None else topic.channel.since(since)
        await self._catch_up({str(change.body.id) for change in changed or ()} | self._being_written())
        return read

    @property
    def _may_be_shared(self) -> bool:
        """Whether other processes may write the records, and versions tell which state is the newer one."""
        return self.options.version is not None and self.options.store is not None and not self._is_instant

    def _being_written(self) -> set[str]:
        return {key[1] for key in self._turns.taken() if isinstance(key, tuple) and key[0] == self.name}

    async def _catch_up(self, names: set[str]) -> None:
        """Broadcast what other processes have made of the records that were written here while the store was read.

        Who has read that must not get the older state that was written here after it. names: ids, as text.
        """
        assert self.store is not None
        for name in names:
            begun = self._told.now
            record = await self._call.limited(self.store.get(name))
            if self._told.since(name, begun):  # whichever of the two is newer
                self._doubt(name)
            elif record is not None and not self._is_told(record):
                self._announce("upsert", record)

    async def _read_places(self, query: Mapping[str, Any], rows: Awaitable[list[Any]]) -> list[Any]:
        """A publisher does not ask the reader where a record was: it is noted as somebody reads."""
        if not self.options.key:
            return await self._call.limited(rows)
        with self.places.reading():
            read = await self._call.limited(rows)
            self.places.learn_query(query, read)
        return read

    def _announce(self, method: str, data: Mapping[str, Any], *, is_present: bool = False) -> str:
        """Encode once and broadcast. Returns the JSON text, for the reply."""
        body = messages.encode(data)
        act = self._prepare_change(method, data, body, self.options.store is not None, is_present)
        self._soon.run(act, self.changes_lost)
        return body

    def _prepare_change(
        self, method: str, data: Mapping[str, Any], body: str, is_known: bool, is_present: bool = False
    ) -> Callable[[], None]:
        place = self.places.of(data) if method == "upsert" else None
        record = dict(data)  # the caller may go on with its own
        return lambda: self._publish(method, record, body, place, is_known, is_present)

    def _publish(
        self,
        method: str,
        data: Mapping[str, Any],
        body: str,
        place: Place | None,
        is_known: bool,
        is_present: bool,
    ) -> None:
        id: Id = data["id"]
        writing = _writing.get()
        if writing is not None:
            writing._told(self, id, place if self.options.key else None)
        store = self.options.store
        if store is not None:
            self._told.note(id)
        if self.lives is not None:
            self.lives.note(method, id)
        if place is None:
            self._publish_delete(id, body)
        else:
            if self.gone is not None:
                self.gone.note(method, id)
            self.places.move(id, place, is_known)
            record = copied(data) if self.visibility.hides else None  # nested values may be the caller's own
            topic, version = self._hub.topic(self.name, *place), self._version_of(data)
            if not topic.publish("upsert", id, body, record, version, is_present) and store is not None:
                self._doubt(id)  # it was deleted and added again, by another process, or this comes late
        if store is not None:
            for evicted in store.take_evicted():
                self._note_gone(evicted)
                self._told.note(evicted)
                self._publish_delete(evicted, messages.encode({"id": evicted}))

    def _publish_delete(self, id: Id, body: str) -> None:
        self._delete_in(self.places.leave(id), id, body)

    def _delete_in(self, topics: Sequence[Topic], id: Id, body: str | None = None) -> None:
        if self.gone is not None:
            self.gone.note("delete", id)
        for topic in topics:
            topic.publish("delete", id, messages.encode({"id": id}) if body is None else body)

    def _publish_event(self, method: str, body: str, place: Place | None) -> None:
        everywhere = bool(self.options.key) and place is None
        for topic in self._hub.topics_of(self.name) if everywhere else [self._hub.topic(self.name, *(place or ()))]:
            topic.publish_event(method, body)

    # From the wire

    @property
    def guard(self) -> HandlerFunction | None:
        """The handler that decides who may subscribe."""
        return self._handlers.get("subscribe")

    @property
    def tells_apart(self) -> bool:
        """Whether one client may be shown something else than another."""
        return self.visibility.hides or "read" in self._handlers or "subscribe" in self._handlers

    async def perform(self, ctx: Context, request: Request) -> str:
        """Carry out a request and return its reply's data as JSON text.

        Raises Reject, HandlerTimeout, EncodeError or what a handler raises.
        """
        method = request.method
        try:
            if method == "read":
                text = await self.read_text(ctx, check_query(request.data))
            elif method in _STATE_METHODS:
                if self.options.readonly:
                    raise Reject("forbidden", f"{self.name} is read-only: clients cannot {method} its records.")
                several = isinstance(request.data, list)
                text = await (self._write_all(ctx, request) if several else self._write(ctx, request, request.data))
            else:
                handler = self._handlers.get(method)
                if handler is None or method == "subscribe":
                    raise Reject("unknown_method", f"{self.name} has no method {method!r}.")
                result = await self._ask(handler, ctx, self.loaded(method, request.data))
                text = messages.encode(self._with_owned(ctx, result))
            return text
        except Reject as error:
            raise self.visibility.hide_current(ctx, error) from None
        finally:
            ctx.end()

    async def _ask(self, handler: HandlerFunction, ctx: Context, data: Any) -> Any:
        """What a handler returns, once that is done which it has said to be done soon: its result is what it said
        last."""
        line = Line()
        token = Line.current.set(line)
        try:
            result = await self._call(handler, ctx, data)
            if line.soon is not None:
                with contextlib.suppress(HandlerTimeout):  # a store that hangs: what the handler has done is told
                    await self._call.limited(line.drained())
            return result
        finally:
            line.is_over = True
            Line.current.reset(token)

    async def _write_all(self, ctx: Context, request: Request) -> str:
        replies: list[str] = []
        for record in request.data:
            if len(replies) % WRITES_AT_ONCE == WRITES_AT_ONCE - 1:
                await asyncio.sleep(0)
            each = Context(ctx.connection, self, ctx.method, ctx.user)  # a task of one handler's may outlive it
            try:
                replies.append(await self._write(each, request, record))
            except Reject as error:
                done = {"done": len(replies)}
                details = {**error.details, **done} if isinstance(error.details, dict) else done
                raise Reject(error.code, error.message, details) from error
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                raise BrokenOff(len(replies)) from error
            finally:
                each.end()
        return "[" + ",".join(replies) + "]"

    async def read(self, ctx: Context, query: Mapping[str, Any]) -> Any:
        """The records that a query asks for, as this client may see them: a list, or one record for one id alone."""
        rows = await self._read(ctx, query)
        if not self.visibility.hides:
            return rows
        if isinstance(rows, Mapping):
            seen = self.visibility.show(ctx, rows)
            if seen is None:
                if "id" in query:  # in the client's spelling: the stored one would tell that the record is there
                    raise self._not_found(query["id"])
                raise Reject("not_found", f"{self.name} has no such record.")
            return seen
        return [dict(seen) async for row in paced(rows) if (seen := self.visibility.show(ctx, row)) is not None]

    async def _read_shown(self, ctx: Context, reader: Reader, query: Mapping[str, Any]) -> list[str]:
        """The JSON texts of what this client may see."""
        texts: list[str] = []
        fields = ("id", *self.options.key) if self.options.key else ()  # by which places are learned

        async def work() -> list[Record]:
            found = await read_shown(reader, query, partial(self._sent_of, ctx), self._is_whole(query), fields)
            texts.extend(shown.text for shown in found)
            return [shown.row for shown in found]

        await self._read_rows(query, work())
        return texts

    def _sent_of(self, ctx: Context, row: Mapping[str, Any], text: str | None) -> tuple[Mapping[str, Any], str] | None:
        """What this client gets of a record, as JSON has it, so that it compares as the client would compare it."""
        seen = self.visibility.show(ctx, row)
        if seen is None:
            return None
        if seen is row and text is not None:
            return row, text
        try:
            text = messages.encode(seen)
        except EncodeError as error:
            self._skipped.note(_id_of(row), error)
            return None
        return row if seen is row else messages.record_of(loads(text)), text

    def _is_whole(self, query: Mapping[str, Any]) -> Callable[[str], bool]:
        """Whether a field may be compared by the reader, which compares what is stored. A channel's key may."""
        key = () if self.places.find(query) is None else self.options.key
        return lambda field: field == "id" or field in key or self.visibility.keeps(field)

    def seeks_other_key(self, query: Mapping[str, Any]) -> bool:
        """Whether to look for the reason why a channel is empty, which a developer would miss: a few times."""
        if self._key_looks <= 0 or self.reader is None or not self.options.key:
            return False
        return any(_other_kind(query.get(name)) is not None for name in self.options.key)

    async def look_for_other_key(self, query: Mapping[str, Any]) -> None:
        """Warn, once, where the records' key has the same values as the query's but for their type."""
        self._key_looks -= 1
        reader = self.reader
        asked = {name: query.get(name) for name in self.options.key}
        other = {name: value if (it := _other_kind(value)) is None else it for name, value in asked.items()}
        try:
            found = await self._limited(reader.read({**other, "$limit": 1})) if reader is not None else []
        except Exception:  # noqa: BLE001 - such as a column that can hold no such value
            return
        if found and self._key_looks > -KEY_LOOKS:
            self._key_looks = -KEY_LOOKS
            logger.warning(
                "%s: a client has subscribed to %s, where there is no record, but there are records of %s. Values are "
                "compared with their type: convert the one that the page sends, or store the other.",
                self.name,
                messages.shorten(asked),
                messages.shorten(other),
            )

    async def hidden(self, ctx: Context, query: Mapping[str, Any]) -> list[Id]:
        """The ids of the records in a query's channel that this client may not see, whatever else the query says."""
        if not self.visibility.hides or not self.readable:
            return []
        if "read" not in self._handlers:
            query = {field: query[field] for field in self.options.key if field in query}
        rows = await self._read(ctx, query)
        rows = [rows] if isinstance(rows, Mapping) else rows
        return [row["id"] async for row in paced(rows) if self.visibility.show(ctx, row) is None]

    async def read_text(self, ctx: Context, query: Mapping[str, Any]) -> str:
        """The same as JSON text. What the reader has encoded already is not decoded on the way."""
        if self.reader is None or "read" in self._handlers or set(query) == {"id"}:
            rows = await self.read(ctx, query)
            texts = None if isinstance(rows, Mapping) else await self._texts_of(rows)
            if texts is None:
                return messages.encode(rows)
        elif self.visibility.hides:
            texts = await self._read_shown(ctx, self.reader, query)
        else:
            texts = await self._read_rows(query, _collect(self.reader.snapshot(query)))
        return "[" + ",".join(texts) + "]"

    async def _texts_of(self, rows: Sequence[Any]) -> list[str]:
        """Records as JSON texts, many in one. One that JSON cannot carry is logged and left out."""
        texts: list[str] = []
        for start in range(0, len(rows), CHUNK):
            some = rows[start : start + CHUNK]
            try:
                texts.append(messages.encode(some)[1:-1])
            except EncodeError:
                for row in some:
                    try:
                        texts.append(messages.encode(row))
                    except EncodeError as error:
                        self._skipped.note(_id_of(row), error)
            if len(rows) > CHUNK:
                await asyncio.sleep(0)
        return texts

    def _not_found(self, id: object) -> Reject:
        return Reject("not_found", f"{self.name} has no record with the id {messages.shorten(id)}.")

    async def _read(self, ctx: Context, query: Mapping[str, Any]) -> Any:
        handler = self._handlers.get("read")
        if handler is not None:
            with self.places.reading():
                rows = self._check_rows(await self._call(handler, ctx, self.loaded("read", dict(query))), query)
                self.places.learn(rows)
            return rows
        if self.reader is None:
            raise Reject("unknown_method", f"{self.name} has neither a read handler nor a store.")
        if set(query) != {"id"}:
            return await self._read_rows(query, self.reader.read(query))
        record = await self._call.limited(self.reader.get(query["id"])) if is_id(query["id"]) else None
        if record is None:
            raise self._not_found(query["id"])
        if self._may_be_shared:
            await self._catch_up({str(record["id"])} & self._being_written())
        return record

    @property
    def readable(self) -> bool:
        """Whether there is anything that can read records: a handler, a store or another reader."""
        return self.reader is not None or "read" in self._handlers

    def _check_rows(self, rows: Any, query: Mapping[str, Any]) -> Any:
        """The records in what a read handler has returned: one, or a list. What is no record is logged and left out.

        Raises TypeError where there is none among them, Reject("not_found").
        """
        if rows is None and set(query) == {"id"}:
            raise self._not_found(query["id"])
        expected = "a dict with an id (a string of 1-128 characters or an integer)"
        if isinstance(rows, Mapping) or messages.is_typed(rows):
            record = messages.record_of(rows)
            if not is_id(record.get("id")):
                raise TypeError(
                    f"The read handler of {self.name} returned {messages.shorten(rows)}, expected a list of records or "
                    f"one record: {expected}. Return a list: of a dict of records, list(records.values())."
                )
            return record
        if rows is None or isinstance(rows, (str, bytes)) or not isinstance(rows, Iterable):
            remedy = " Await it first." if inspect.iscoroutine(rows) else ""
            raise TypeError(
                f"The read handler of {self.name} returned {messages.shorten(rows)}, expected a list of "
                f"records.{remedy}"
            )
        rows = rows if isinstance(rows, list) else list(rows)
        is_looked_into = self.visibility.hides or bool(self.options.key)
        kept = []
        problem = None
        for row in rows:
            try:
                record = (
                    messages.record_of(row) if messages.is_typed(row) and (is_looked_into or not _has_id(row)) else row
                )
            except EncodeError as error:
                problem = str(error)
            else:
                if _has_id(record):
                    kept.append(record)
                    continue
                problem = f"The read handler returned {messages.shorten(row)}, expected each row to be {expected}."
            self._skipped.note(_id_of(row), problem)
        if problem is not None and not kept:
            raise TypeError(f"The read handler of {self.name} returned no row that can be sent. {problem}")
        return kept

    def _write(self, ctx: Context, request: Request, data: Any) -> Awaitable[str]:
        """What writes one record and returns its reply's data. Raises Reject for what cannot be one."""
        method = request.method
        if not isinstance(data, dict):
            raise Reject("invalid", f"{request.event} got {messages.shorten(data)}, expected a record.")
        check_record(data)
        check_integers(data)
        if method != "upsert" and not is_id(data.get("id")):
            raise Reject("invalid", f"{request.event} needs the record's id.", [{"field": "id", "message": "missing"}])
        # Refuse a record without its key fields before the rule is asked and before anything is stored.
        if method == "upsert":
            self.places.of(data)
        elif method == "patch" and self.options.key:
            self.places.check_patch(data, check_unset(request.message.get("unset")))
        ctx.id = id = data.get("id")
        # What is done at once needs no turn while nobody else has it.
        if id is None or (self.is_done_at_once(method) and not self._turns.is_taken(self._record_of(id))):
            return self._write_in_turn(ctx, request, data)
        return self._write_taking_turns(ctx, request, data)

    async def _write_taking_turns(self, ctx: Context, request: Request, data: Record) -> str:
        async with self._turn(ctx.id):
            return await self._write_in_turn(ctx, request, data)

    def _write_in_turn(self, ctx: Context, request: Request, data: Record) -> Awaitable[str]:
        unset = check_unset(request.message.get("unset")) if request.method == "patch" else ()
        is_guarded = self.rights.asks or (self.lives is not None and self.visibility.hides)
        if is_guarded and self._serves(request.method):
            return self._write_permitted(ctx, request, data, unset)
        if self.lives is not None:
            self.lives.check(ctx.connection, data.get("id"))
        return self._carry_out(ctx, request, data, unset)

    def _serves(self, method: str) -> bool:
        """Returns whether a handler or the store carries out this kind of write."""
        if method in self._handlers or self.options.store is not None:
            return True
        return method == "patch" and "upsert" in self._handlers and self.reader is not None  # merged, then upserted

    async def _carry_out(self, ctx: Context, request: Request, data: Record, unset: Sequence[str]) -> str:
        if self._seeks_place(ctx.id):
            await self._limited(self._find_place(ctx.id))
        begun = self._told.now
        match request.method:
            case "upsert":
                return self._finish(ctx, await self._upsert(ctx, data), begun)
            case "patch":
                return self._finish(ctx, await self._patch(ctx, data, unset), begun)
            case _:
                await self._delete(ctx, data["id"], request.message.get("version"))
                return "{}"

    # Rights

    async def _write_permitted(self, ctx: Context, request: Request, data: Record, unset: Sequence[str]) -> str:
        """Write what the rule allows. Where another process writes the record in between, the rule is asked again."""
        for _ in range(ATTEMPTS):
            permit = ctx._permit = await self._permit(ctx, request.method, data, unset)
            if permit is None:
                return "{}"
            try:
                return await self._carry_out(ctx, request, data, unset)
            except Reject as error:
                if error.code != "conflict" or not permit.has_named or _WRITES & self._handlers.keys():
                    raise
                if self._names_version(request, data):
                    raise
        raise Reject("unavailable", "Other processes write this record all the time. Try again.")

    def _names_version(self, request: Request, data: Record) -> bool:
        if request.method == "delete":
            return request.message.get("version") is not None
        return data.get(self.options.version or "") is not None

    async def _permit(self, ctx: Context, method: str, data: Record, unset: Sequence[str]) -> Permit | None:
        """Ask the rule. None: there is nothing that the client could delete.

        Raises what refuses. A record that the client may not see is answered for as if there were none.
        """
        old = await self._stored(ctx.id)
        if old is None and self.reader is not None and method != "upsert":
            if method == "patch":
                raise self._not_found(ctx.id)
            self._note_gone(data["id"])
            return None
        new, fault = self._as_stored(method, data, old, unset)
        try:
            if self.lives is not None:
                self.lives.check(ctx.connection, ctx.id)
            await self.rights.ask(ctx, method, old, new)
        except Exception as error:
            if old is None or self.visibility.show(ctx, old) is not None:
                raise
            if not isinstance(error, Reject):
                what = "The rule of %s failed; the write is refused."
                self.rights.sparing.log(logging.ERROR, (type(error),), what, self.name, exc_info=error)
            if method == "delete":
                return None
            raise (self._not_found(ctx.id) if method == "patch" else self.rights.refusal(method)) from None
        if fault is not None:
            raise fault
        places = [self._place_of(record) for record in (old, new) if record is not None]
        return Permit(method, ctx.id, places, self._version_to_name(old))

    def _version_to_name(self, old: Mapping[str, Any] | None) -> int | None:
        """The version that the next write must find, where another process may write the record meanwhile."""
        return None if old is None or not self._may_be_shared else self._version_of(old)

    async def _stored(self, id: Id | None) -> Record | None:
        """The record that is there, as far as it can be read."""
        if id is None or self.reader is None:
            return None
        stored = await self._limited(self.reader.get(id))
        if stored is None and self.store is None and (number := _number_in(id)) is not None:
            # The handler of a live table may hand "05" to its database, which takes it for 5.
            stored = await self._limited(self.reader.get(number))
        return stored

    def _as_stored(
        self, method: str, data: Record, old: Record | None, unset: Sequence[str]
    ) -> tuple[Record | None, Reject | None]:
        """The record that the request would leave, and what the schema has against it."""
        if method == "delete":
            return None, None
        schema, fault = self._schemas.get("upsert") or self._schema, None
        if method == "upsert":
            new = dict(data) if schema is None else schema.record(schema.load(data), data)
            if new.get("id") is None:
                new.pop("id", None)
        else:
            new = _merged(old or {}, data, unset)
            if schema is not None and old is not None and "patch" not in self._handlers:
                try:
                    checked = schema.record(schema.load(data, old, unset), new)
                except Reject as error:
                    fault = error  # which may tell of the record: not before it is known who asks
                else:
                    is_whole = "upsert" in self._handlers
                    changed = {field: checked[field] for field in data if field in checked}
                    new = checked if is_whole else _merged(old, changed, unset)
            new["id"] = data["id"] if old is None else old["id"]
        if self.options.version is not None and self.store is not None:
            new[self.options.version] = ((self._version_of(old) if old else None) or 0) + 1
        return loads(messages.encode(new)), fault  # values as JSON has them, as in the old one

    @contextlib.asynccontextmanager
    async def _permitting(
        self,
        ctx: Context,
        method: str,
        id: Id | None,
        fields: Mapping[str, Any],
        unset: Sequence[str] = (),
    ) -> AsyncIterator[Mapping[str, Any]]:
        """Ask the rule about what a handler writes by `ctx.store`, if its client was not allowed just that: it is
        another record, it is deleted, or it goes to another channel."""
        permit = ctx._permit
        if permit is None:  # the rule itself writes
            yield {}
            return
        place = None if method == "delete" else await self._place_after(method, id, fields, unset, permit)
        if permit.covers(method, id, place):
            named, permit.version = permit.version, None  # after this write it is another one
            permit.has_named = permit.has_named or named is not None
            yield self._naming(named)
            return
        async with self._turn(id):
            old = await self._stored(id)
            if old is not None or method == "upsert":
                written = fields if method == "upsert" else _merged(old or {}, fields, unset)
                await self._ask_again(ctx, method, old, None if method == "delete" else written)
            yield self._naming(self._version_to_name(old))

    def _naming(self, version: int | None) -> Mapping[str, int]:
        """The field that makes a write fail where the record has another version."""
        return {} if version is None or self.options.version is None else {self.options.version: version}

    async def _place_after(
        self, method: str, id: Id | None, fields: Mapping[str, Any], unset: Sequence[str], permit: Permit
    ) -> Hashable:
        if method == "upsert":
            return self._place_of(fields)
        if not any(name in fields or name in unset for name in self.options.key):
            return next(iter(permit.places), None)  # it stays where it is
        return self._place_of(_merged(await self._stored(id) or {}, fields, unset))

    async def _ask_again(self, ctx: Context, method: str, old: Record | None, new: Mapping[str, Any] | None) -> None:
        try:
            await self.rights.ask(ctx, method, old, new)
        except Exception:
            if old is None or self.visibility.show(ctx, old) is not None:
                raise
            raise self.rights.refusal(method) from None

    def _finish(self, ctx: Context, record: Any, begun: int) -> str:
        """begun: what had been told when the handler began."""
        id: Any = record.get("id") if isinstance(record, (dict, Mapping)) else None
        if not is_id(id):
            id = str(id) if type(id) is int else None  # of 64 bits, which browsers have as text
            if not is_id(id):
                remedy = "Await it first." if inspect.iscoroutine(record) else "Return what you have stored."
                raise TypeError(
                    f"The upsert handler of {self.name} returned {messages.shorten(record)}, expected the stored "
                    f"record: a dict with an id (a string of 1-128 characters or an integer). {remedy}"
                )
            record = {**record, "id": id}
        in_its_turn = ctx.id is not None and str(ctx.id) == str(id)
        if self.options.store is not None and not in_its_turn and self._told.since(id, begun):
            self._doubt(id)
        body = self._announce("upsert", record)
        seen = self.visibility.show(ctx, record)
        if seen is record:
            return body
        return messages.encode({"id": record["id"]} if seen is None else seen)

    async def _upsert(
        self, ctx: Context, data: Record, stored: Mapping[str, Any] | None = None, unset: Sequence[str] = ()
    ) -> Any:
        """stored: the record that a patch changes by `data` and `unset`."""
        handler, store = self._handlers.get("upsert"), self.store
        if handler is None and store is None:
            raise Reject("unknown_method", f"{self.name} has neither an upsert handler nor a store.")
        schema = self._schemas.get("upsert") or self._schema
        value: Any = data
        if stored is not None:
            value = _merged(stored, data, unset)
            check_record(value)
        if schema is not None:
            typed = schema.load(data, stored, unset)
            value = typed if "upsert" in self._schemas else schema.record(typed, value)
        if handler is None:
            own = store if store is not None and self._is_instant else ctx.store
            return await self._limited(own.upsert(value))
        ctx._sent = data if stored is None else _merged(stored, data, unset)
        result = await self._ask(handler, ctx, value)
        if schema is None and type(result) is dict:  # nearly always
            return result
        return self._completed("upsert", self._with_owned(ctx, result), data)

    @property
    def owned(self) -> tuple[str, ...]:
        """The fields that the framework sets, which a type may leave out."""
        version = self.options.version
        return ("id", *self.options.key, *(() if version is None else (version,)))

    def _with_owned(self, ctx: Context, result: Any) -> Any:
        """A handler's result. A typed object that it has stored gets the id, key and version that its type lacks."""
        if isinstance(result, dict):
            return result
        if isinstance(result, list):
            return [self._with_owned(ctx, item) for item in result] if ctx.has_typed else result
        stored = ctx.stored_as(result)
        if stored is None:
            return result
        record = dict(messages.record_of(result))
        return record | {name: stored[name] for name in self.owned if name in stored and record.get(name) is None}

    def schema_for(self, value: object) -> Schema | None:
        """The schema of a typed object: the one of handlers or records if that is its type, else its own."""
        kind = type(value)
        for schema in (self._schemas.get("upsert"), self._schema):
            if schema is not None and schema.type is kind:
                return schema
        if kind not in self._schemas_of_types:
            try:
                self._schemas_of_types[kind] = self._schema_of(kind)
            except TypeError:  # a type that no library checks: it can be written all the same
                self._schemas_of_types[kind] = None
        return self._schemas_of_types[kind]

    def completed(self, ctx: Context, value: Any) -> Mapping[str, Any]:
        """The record that a handler stores. What its type leaves out of the request's own record is as it was sent."""
        record = messages.record_of(value)
        sent, schema = ctx._sent, self._schemas.get("upsert")
        if sent is None or schema is None or not schema.leaves_out or not schema.is_like(value):
            return record
        ctx._sent = None  # what else the handler writes are other records
        return {**record, **{it: sent[it] for it in self.owned if it in sent and record.get(it) is None}}

    def _completed(self, method: str, result: Any, sent: Record) -> Any:
        """The record that a handler has returned. A schema may leave the id and the key to us."""
        schema = self._schemas.get(method) or self._schema
        if not messages.is_typed(result) and (schema is None or not isinstance(result, Mapping)):
            return result
        if schema is None:
            return messages.record_of(result)
        return schema.record(result, {name: it for name, it in sent.items() if name != self.options.version})

    async def _patch(self, ctx: Context, data: Record, unset: Sequence[str]) -> Any:
        handler = self._handlers.get("patch")
        if handler is not None:
            ctx.unset = unset
            result = await self._ask(handler, ctx, self.loaded("patch", data))
            return self._completed("patch", self._with_owned(ctx, result), data)
        if self.reader is None or (self.store is None and "upsert" not in self._handlers):
            raise Reject("unknown_method", f"{self.name} has neither a patch handler nor a store.")
        if "upsert" not in self._handlers and self._schema is None:
            return await self._limited(ctx.store.patch(data["id"], data, unset))
        # A patch is an upsert of some fields: it passes the same handler, which may be there to refuse.
        current = await self._limited(self.reader.get(data["id"]))
        if current is None:
            raise self._not_found(data["id"])
        if "upsert" in self._handlers or self._schema is None:
            return await self._upsert(ctx, data, current, unset)
        record = self._schema.record(self._schema.load(data, current, unset), data)
        changed = {field: record[field] for field in data if field in record}
        return await self._limited(ctx.store.patch(data["id"], changed, unset))

    async def _delete(self, ctx: Context, id: Id, expected: Any) -> None:
        """expected: the version that the message names for it to be deleted only as that. A record that it sends along
        is none, since clients send whole records that they have long had."""
        version = self.options.version
        named = {} if version is None or expected is None else {version: expected}
        handler = self._handlers.get("delete")
        if handler is not None:
            deleted = await self._ask(handler, ctx, self.loaded("delete", {"id": id, **named})) is not False
        elif self.store is not None:
            deleted = await self._limited(ctx.store.delete(id, *named.values()))
            if not deleted:
                self._note_gone(id)
        else:
            raise Reject("unknown_method", f"{self.name} has neither a delete handler nor a store.")
        if deleted:
            self._announce("delete", {"id": id})


class _Types:
    """The types of one handler's records."""

    __slots__ = ("_ctx", "_model", "completes")

    def __init__(self, model: Model, ctx: Context) -> None:
        self._model = model
        self._ctx = ctx
        self.completes = model.leaves_out

    def record_of(self, value: Any) -> Mapping[str, Any]:
        return self._model.completed(self._ctx, value)

    def typed(self, value: Any, stored: Record) -> Any:
        """The value itself where what is stored cannot be read as its type."""
        schema = self._model.schema_for(value)
        try:
            return value if schema is None else schema.load(dict(stored))
        except Reject:
            return value


def _merged(stored: Mapping[str, Any], data: Mapping[str, Any], unset: Sequence[str]) -> Record:
    return {field: value for field, value in {**stored, **data}.items() if field == "id" or field not in unset}


def _number_in(id: Id) -> int | None:
    """The integer for which a database may take an id that is written in another way."""
    with contextlib.suppress(ValueError, OverflowError):
        is_plain = isinstance(id, int) or not {".", "e", "E"} & set(id)
        number = int(id) if is_plain else int(float(id))
        return None if str(number) == str(id) or (not is_plain and float(id) != number) else number
    return None


def _other_kind(value: object) -> str | int | None:
    """The number that a text writes, or the other way round; None: neither."""
    if isinstance(value, str) and len(value) < 16 and str(value).removeprefix("-").isdecimal() and value.isascii():
        return int(value) if str(int(value)) == value else None
    return str(value) if type(value) is int else None


def _has_id(row: Any) -> bool:
    """Whether that is a record with an id, a typed one included."""
    if isinstance(row, (dict, Mapping)):
        return is_id(row.get("id"))
    return messages.is_typed(row) and is_id(getattr(row, "id", None))


def _id_of(row: Any) -> Any:
    """The id of a record as far as it has one, for the log; else the row."""
    id = row.get("id") if isinstance(row, Mapping) else getattr(row, "id", None)
    return row if id is None else id


async def _collect(chunks: AsyncIterator[list[str]]) -> list[str]:
    texts: list[str] = []
    async for chunk in chunks:
        texts += chunk
    return texts
