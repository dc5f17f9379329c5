"""`Backsync`, the ASGI app: what a developer says of it, and its way into a server. Connections do the talking."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from . import clientfiles, messages, workers
from .connection import Connection, Site
from .gone import Gone
from .handlers import Caller, HandlerFunction, check_signature, located
from .hub import Hub
from .limits import Horizon, Limits, Memory
from .logs import protect
from .models import Model
from .rest import Rest
from .schemas import Unknown
from .sockjs.frames import Message, ObjectMessage
from .sockjs.loops import answer_on
from .sockjs.receivers import Receive, Scope, Send
from .sockjs.server import Server, Settings, complete, route_path
from .soon import Soon
from .stores.base import Store
from .turns import Turns

logger = logging.getLogger("backsync")
protect("backsync", "backsync.sockjs")

MAX_NAMED = 10  # models that one warning names
STATIC = Path(__file__).parent / "static"
Decorated = TypeVar("Decorated", bound=HandlerFunction)


class Backsync:
    """An ASGI app that keeps collections of records in every browser equal to the server's.

    Mount it (`Mount("/backsync", app=sync)`) or run it alone (`uvicorn module:sync`). It serves its browser client
    beside the protocol: `backsync.js` and `backsync.mjs` below the mount.

    allowed_origins: origins of pages that may connect. By default the server's own only; a list takes its place, so
        name your own as well; "*" is every one.
    compat: "2012" serves the browser code of the project's first version.
    debug: tell clients the text of exceptions in handlers.
    horizon: how much of the past a channel remembers for clients that were away.
    limits: what one client may ask for.
    memory: how many writes of a client are remembered, so that one that is sent again is applied once.
    sockjs: settings of the transports.

    Raises ValueError for settings that contradict each other, TypeError for values of another type.
    """

    def __init__(
        self,
        *,
        allowed_origins: str | list[str] | tuple[str, ...] | None = None,
        compat: Literal["2012"] | None = None,
        debug: bool = False,
        horizon: Horizon | None = None,
        limits: Limits | None = None,
        memory: Memory | None = None,
        sockjs: Settings | None = None,
    ) -> None:
        if compat not in (None, "2012"):
            raise ValueError(f"Backsync got compat={compat!r}, expected '2012' or nothing.")
        kinds: dict[str, tuple[Any, type]] = {
            "debug": (debug, bool),
            "horizon": (horizon, Horizon),
            "limits": (limits, Limits),
            "memory": (memory, Memory),
            "sockjs": (sockjs, Settings),
        }
        for setting, (value, kind) in kinds.items():
            if value is not None and not isinstance(value, kind):
                expected = "True or False" if kind is bool else f"{kind.__name__}(…)"
                raise TypeError(f"Backsync got {setting}={messages.shorten(value)}, expected {expected}.")
        settings = sockjs or Settings()
        if allowed_origins is not None:
            settings = dataclasses.replace(settings, allowed_origins=allowed_origins)
        self.limits = limits or Limits()
        self._hub = Hub(horizon or Horizon(), Message if compat is None else ObjectMessage)
        self._caller = Caller(self.limits.handler_timeout, self.limits.threads)
        self._soon = Soon()
        self._turns = Turns()
        self._site = Site(
            hub=self._hub,
            caller=self._caller,
            limits=self.limits,
            memory=memory or Memory(),
            settings=settings,
            is_draining=lambda: self._server.draining,
            is_2012=compat == "2012",
            debug=debug,
        )
        self._server = Server(self._site.connect, settings)
        self._client_files = clientfiles.ClientFiles(STATIC)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_checked = False
        self._made_at = workers.where_made(1)

    @property
    def connections(self) -> set[Connection]:
        """All connections that are open."""
        return self._site.connections

    @property
    def bad_messages(self) -> int:
        """How many messages were not of the protocol's form and had no id to reply to."""
        return self._site.bad_messages

    # What the application's developer uses

    def model(
        self,
        name: str,
        *,
        store: Store | None = None,
        key: str | tuple[str, ...] = (),
        version: str | None = None,
        ephemeral: bool = False,
        grace: float | None = None,
        ttl: float | None = None,
        schema: Any = None,
        unknown: Unknown = "drop",
        readonly: bool = False,
    ) -> Model:
        """The model of that name; the same one each time. Options are given once, the first time.

        store: where the model's records live; without handlers, it answers reads and writes by itself.
        key: the field, or fields, that say to which channel a record belongs: `key="room"` makes one for each room,
            and clients subscribe to `{"room": "lobby"}`. A record whose key changes leaves one and enters the other.
        version: the field in which the store counts the writes of a record; one that names an older one is refused
            with `conflict`. Without a store it is for what your program publishes, and counts: an older version of a
            record never takes the place of a newer one.
        ephemeral: a record lives as long as the client that wrote it, which alone may change it; it has a MemoryStore
            unless you give another store. grace: seconds in which a client that was cut off may come back (3).
        ttl: seconds that a record of an ephemeral model lives after its last write.
        schema: what records are like: a dataclass, TypedDict, msgspec.Struct or pydantic model.
        unknown: "drop" or "refuse" fields that the schema, or a handler's annotation, does not have.
        readonly: refuse each upsert, patch and delete of clients (`forbidden`). The program writes as before.

        Raises ValueError for a name that is not one, and for options that contradict each other or earlier ones,
        TypeError for a key that is no field's name.
        """
        if not isinstance(name, str):
            raise TypeError(f"sync.model got {name!r}, expected a name, such as sync.model('Todo', …).")
        if not messages.is_model_name(name):
            raise ValueError(
                f"sync.model got the name {name!r}, expected a letter or '_', then letters, digits, '_', '.', '-'."
            )
        if not ephemeral and (grace is not None or ttl is not None):
            raise ValueError(f"sync.model({name!r}) got grace or ttl, which are for ephemeral=True.")
        fields: Any = key
        if not isinstance(fields, (str, tuple, list)) or not all(isinstance(field, str) for field in fields):
            raise TypeError(f"sync.model({name!r}) got key={key!r}, expected a field's name, or several in a tuple.")
        check_store(name, store)
        names = (key,) if isinstance(key, str) and key else tuple(key)
        check_options(name, names, version, schema, unknown)
        for option, flag in (("ephemeral", ephemeral), ("readonly", readonly)):
            if not isinstance(flag, bool):
                raise TypeError(f"sync.model({name!r}) got {option}={flag!r}, expected True or False.")
        for option, seconds in (("grace", grace), ("ttl", ttl)):
            check_seconds(name, option, seconds)
        given = {
            "store": store,
            "version": version,
            "ttl": ttl,
            "grace": grace,
            "ephemeral": ephemeral or None,
            "schema": schema,
            "unknown": unknown if unknown != "drop" else None,
            "readonly": readonly or None,
        }
        options: dict[str, Any] = {option: value for option, value in given.items() if value is not None}
        if names:
            options["key"] = names
        model = self._site.models.get(name)
        if model is None:
            model = self._site.models[name] = Model(name, self._hub, self._caller, self._soon, self._turns)
            model.on_refresh = self._site.refresh_model
            model.gone = Gone(self._hub.horizon.records) if self._site.is_2012 else None
        model.configure(options)
        return model

    def on(self, event: Literal["open", "close", "auth"]) -> Callable[[Decorated], Decorated]:
        """Register a hook.

        `open`, `close`: `(ctx)`, as connections come and go; a Reject from `open` refuses the connection.
        `auth`: `(ctx, token)`, called with the client's token, or None where it sent none: cookies and headers are in
        `ctx.request`. It returns the user, or raises Reject: then the client is closed and does not come back by
        itself. Until it has returned, no request of the client is handled.

        Raises ValueError for another name or a second auth hook, TypeError for a function with other parameters.
        """
        if event not in ("open", "close", "auth"):
            raise ValueError(
                f"sync.on got {event!r}, expected 'open', 'close' or 'auth'; handlers are sync.model(name).on(…)."
            )

        def decorate(function: Decorated) -> Decorated:
            if event == "auth":
                check_signature(function, 2, "the auth hook takes (ctx, token)")
                if self._site.auth is not None:
                    raise ValueError("sync.on('auth') was given twice; there is one auth hook.")
                self._site.auth = function
            else:
                check_signature(function, 1, f"the {event} hook takes (ctx)")
                self._site.hooks[event].append(function)
            return function

        return decorate

    def middleware(self, function: Decorated) -> Decorated:
        """Register a layer around every handler and hook: async `(ctx, *args, call_next)`; it awaits
        `call_next(ctx, *args)` and returns the result. The first registered is the outermost.

        Raises TypeError for a function that takes no `call_next`.
        """
        if "call_next" not in _parameters_of(function):
            raise TypeError(f"{located(function)} does not fit: middleware is async (ctx, *args, call_next).")
        self._caller.middleware.append(function)
        return function

    def rest(self) -> Rest:
        """An ASGI app with the same records over REST: `Mount("/api", app=sync.rest())`; see docs/rest.md.

        Raises ValueError with compat="2012", whose messages it does not speak.
        """
        if self._site.is_2012:
            raise ValueError("sync.rest() got an app with compat='2012', expected one without.")
        return Rest(self._server, self._site, self._start, self._elsewhere)

    def drain(self) -> None:
        """Tell every client that the server goes away. On SIGTERM and SIGINT this happens by itself."""
        self._server.drain()

    def refresh(self) -> None:
        """Look anew at what every client may see: a rule has changed, or who has which right.

        As `connection.refresh()` for all, those included that are away and come back. Call it on the event loop.
        """
        self._site.refresh()

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """For the host app: `Starlette(lifespan=sync.lifespan)`. Without it Backsync starts at its first request.

        Opens the stores that have an `open`, and closes them at the end. Raises RuntimeError for one that cannot be
        opened: a wrong URL is found before the first client comes.
        """
        self._start()
        if self._server.draining:
            self._server.start()  # it has run before
        async with AsyncExitStack() as stores:
            try:
                await self._open_stores(stores)
                yield
            finally:
                self._server.drain()
                self._caller.shutdown()

    async def _open_stores(self, stack: AsyncExitStack) -> None:
        """Open each store once, also one of several models; what is opened is closed with the stack."""
        stores = {id(model.options.store): (model.name, model.options.store) for model in self._site.models.values()}
        for name, store in stores.values():
            opens, closes = getattr(store, "open", None), getattr(store, "close", None)
            if closes is not None:
                stack.push_async_callback(closes)
            try:
                if opens is not None:
                    await opens()
            except Exception as error:
                raise RuntimeError(f"The store of {name} could not be opened: {error}") from error

    # ASGI

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._run_lifespan(receive, send)
            return
        if (loop := self._elsewhere()) is not None:
            await answer_on(loop, self, scope, receive, send)
            return
        self._start()
        scope = complete(scope)
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            name = route_path(scope).removeprefix("/")
            if name in clientfiles.NAMES:
                response = await self._client_files.respond(name, scope)
                await response(scope, receive, send)
                return
        await self._server(scope, receive, send)

    def _elsewhere(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that serves, if that is another one than this and still runs."""
        loop = self._loop
        return loop if loop is not None and loop is not asyncio.get_running_loop() and loop.is_running() else None

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._elsewhere() is not None:
                raise RuntimeError(
                    "Backsync runs on another event loop of this process: its lifespan is for one at a time. Make a "
                    "Backsync for each."
                )
            is_new = self._loop is not None  # in place of one that has ended
            self._loop = self._site.loop = self._caller.loop = loop
            self._hub.start()
            if is_new:
                self._turns.start()
                for model in self._site.models.values():
                    model.start()
            self._soon.start(loop)
            self._server.start()
            if not self._is_checked:
                self._is_checked = True
                self._check()
                if workers.is_worker():
                    self._look_for_other_workers(loop)

    def _check(self) -> None:
        """Log what is probably not meant, once, before the first client comes."""
        models = self._site.models.values()
        for model in models:
            for suspicion in model.suspicions():
                logger.warning("%s", suspicion)
        opened = [f"{model.name} ({', '.join(methods)})" for model in models if (methods := model.open_methods())]
        if opened and self._site.auth is not None:
            logger.warning(
                "There is an auth hook, but everybody who may connect may write each record of %s. Say who may by "
                "@model.allow or handlers, or close a model by readonly=True: docs/rights.md.",
                ", ".join(opened[:MAX_NAMED]) + (", …" if len(opened) > MAX_NAMED else ""),
            )

    def _look_for_other_workers(self, loop: asyncio.AbstractEventLoop, tries: int = 3) -> None:
        """Warn, once for all workers, if there are others. Not at once: the worker before this one may be ending."""
        models = self._site.models.values()
        if models and all(model.hears_others for model in models):
            return
        # Several applications of one program may be made by the same function.
        if workers.take(" ".join([self._made_at, *sorted(self._site.models)]), 0):
            return
        if tries:
            loop.call_later(1.0, self._look_for_other_workers, loop, tries - 1)
        elif workers.take("the warning", 1, again=False):
            logger.warning(
                "Several worker processes serve this application and do not know of each other: what is written at one "
                "does not reach the clients of the others. Run one process (--workers 1; mind WEB_CONCURRENCY), see "
                "docs/deploying.md."
            )

    async def _run_lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        started = False
        try:
            async with self.lifespan():
                started = True
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except Exception as error:
            kind = "shutdown" if started else "startup"
            await send({"type": f"lifespan.{kind}.failed", "message": str(error)})
            raise
        await send({"type": "lifespan.shutdown.complete"})


def _parameters_of(function: Any) -> set[str]:
    """The names by which it takes arguments; `call_next` too, where it takes all."""
    if not callable(function):
        return set()
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(it.kind is inspect.Parameter.VAR_KEYWORD for it in parameters)
    return {it.name for it in parameters} | ({"call_next"} if takes_all else set())


def check_store(name: str, store: Any) -> None:
    """Raises TypeError for what is no store: its class, a URL."""
    if store is None:
        return
    start = f"sync.model({name!r}) got store={messages.shorten(store)}"
    if isinstance(store, type):
        raise TypeError(f"{start}, a class; expected an instance: store={store.__name__}(…).")
    if isinstance(store, str):
        raise TypeError(f"{start}; expected a store: store=SQLStore(…) takes a database's URL.")
    missing = [method for method in ("read", "get", "upsert", "delete") if not callable(getattr(store, method, None))]
    if missing:
        raise TypeError(f"{start}, which has no method {missing[0]!r}; expected a store, such as MemoryStore().")


def check_options(name: str, key: tuple[str, ...], version: Any, schema: Any, unknown: Any) -> None:
    """Raises TypeError or ValueError for names that no field can have, and for what is no schema."""
    for field in key:
        if not field or field.startswith("$"):
            raise ValueError(f"sync.model({name!r}) got key={key!r}, expected names of fields; '$' is reserved.")
    if len(set(key)) < len(key):
        raise ValueError(f"sync.model({name!r}) got key={key!r}, which names a field twice.")
    if version is not None:
        if not isinstance(version, str):
            raise TypeError(f"sync.model({name!r}) got version={version!r}, expected a field's name, such as 'rev'.")
        if not version or version.startswith("$") or version == "id" or version in key:
            raise ValueError(
                f"sync.model({name!r}) got version={version!r}, expected a field of its own that counts writes, such "
                "as 'rev'."
            )
    if unknown not in ("drop", "refuse"):
        raise ValueError(f"sync.model({name!r}) got unknown={unknown!r}, expected 'drop' or 'refuse'.")
    if isinstance(schema, (str, bytes, bool, int, float, dict, list, set)) or messages.is_typed(schema):
        expected = "the class of the records: a dataclass, TypedDict, msgspec.Struct or pydantic model"
        raise TypeError(f"sync.model({name!r}) got schema={messages.shorten(schema)}, expected {expected}.")


def check_seconds(name: str, option: str, seconds: Any) -> None:
    """Raises TypeError or ValueError for what is no time: a grace may be 0."""
    if seconds is None:
        return
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"sync.model({name!r}) got {option}={seconds!r}, expected positive seconds.")
    if not 0 <= seconds < math.inf or (seconds == 0 and option == "ttl"):
        raise ValueError(f"sync.model({name!r}) got {option}={seconds!r}, expected positive seconds.")
