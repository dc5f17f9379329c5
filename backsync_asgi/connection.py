"""One client's conversation: its set-up, requests, replies and subscriptions. It knows SockJS and models, no HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import hashlib
import itertools
import logging
import secrets
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Literal

from starlette.requests import HTTPConnection

from . import messages
from .errors import CODES, BadMessage, Contained, EncodeError, Reject
from .handlers import Caller, HandlerFunction, HandlerTimeout, contain
from .hub import Acting, Hub, Subscriber, Topic, discard
from .limits import Bucket, Limits, Memory
from .logs import Sparing
from .messages import CONTROL, MAX_ID, Request, check_query
from .models import NOW, BrokenOff, Context, Model
from .retries import Retries, digest
from .sockjs.frames import Frame, loads
from .sockjs.receivers import Scope, go_on
from .sockjs.server import Settings
from .sockjs.session import Session
from .stores.base import Id

logger = logging.getLogger("backsync")

PROTOCOL_VERSION = 1
# Close codes from 4500 on tell clients not to come back.
REFUSED = {"unauthorized": 4501, "forbidden": 4503}
REFUSED_OTHERWISE = 4500
OVERFLOW, SNAPSHOT_FAILED, STALE = 4413, 4411, 4408  # these may come back

WRITES = frozenset({"upsert", "patch", "delete"})
NOT_WRITES = frozenset({"read", "subscribe", "unsubscribe"})  # these may be done again
SNAPSHOT_TRIES = 10  # of a subscription whose user changes while it is answered
HOOK_FAILED = "The auth or open hook failed; the server's log says why"
MAX_DEBUG = 1_000  # characters of an exception's text that clients get
TOO_FAST = "Who you are, or what you may see, changes too fast. Try again."
READS = frozenset({"read", "subscribe"})  # these may have large answers
LITTLE = 65_536  # bytes of replies that may wait before a large one
MAX_VIEWS = 10_000  # of users and audiences, by which positions are told apart
MAX_NAMES = 4  # of clients, that one connection may say: each is remembered by itself
MAX_WAITING_CONTROL = 8  # greetings and tokens of one client that wait
MAX_RIGHTS = 10_000  # users whose changes of rights are remembered one by one
HEARD_AT_ONCE = 64  # messages of one client, or as many KiB of them; then others have their turn
HANDLED_AT_ONCE = 128  # requests in one tick without a task for each: some 4 ms of work
TURN = 0.02  # seconds in one tick for requests; those that have not begun then have their turn in the next one
NOT_REMEMBERED = frozenset({"unavailable", "timeout", "rate_limited"})  # these say: try again


class Site:
    """What all connections of one app have in common.

    clients: open connections of each client. bad_messages: those that were not of the protocol's form and had no id
    to reply to. is_draining: whether the program ends.
    """

    def __init__(
        self,
        *,
        hub: Hub,
        caller: Caller,
        limits: Limits,
        memory: Memory,
        settings: Settings,
        is_draining: Callable[[], bool],
        is_2012: bool,
        debug: bool,
    ) -> None:
        self.hub = hub
        self.caller = caller
        self.limits = limits
        self.settings = settings
        self.is_draining = is_draining
        self.is_2012 = is_2012
        self.debug = debug
        self.models: dict[str, Model] = {}
        self.hooks: dict[str, list[HandlerFunction]] = {"open": [], "close": []}
        self.auth: HandlerFunction | None = None
        self.retries: Retries[asyncio.Future[str]] = Retries(memory)
        self.sparing = Sparing(logger, hub.now)
        self.connections: set[Connection] = set()
        self.clients: Counter[Hashable] = Counter()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.bad_messages = 0
        self._leaving = 0  # the most connections that were open as one was told to come back
        self._numbers = itertools.count(1)  # of rights and views: none is used again
        self._rights: dict[Hashable, int] = {}
        self._rights_of_all = 0
        self._views: dict[Hashable, int] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self._flushes = -1  # of the hub, when the number of requests was counted that were handled as they came
        self._now = 0
        self._until = 0.0

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop, which Python 3.11 makes a system call to find out."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    @loop.setter
    def loop(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def has_time(self) -> bool:
        """Whether a request may be handled as it comes; after so many in one tick others have their turn."""
        if self._flushes != self.hub.flushes:
            self._flushes, self._now, self._until = self.hub.flushes, 1, self.hub.now() + TURN
            return True
        self._now += 1
        return self._now <= HANDLED_AT_ONCE and self.hub.now() < self._until

    async def turn(self) -> None:
        """Wait until a request may begin: a client that asks for much must not keep the event loop."""
        while self._flushes == self.hub.flushes and self.hub.now() >= self._until:
            self.hub.schedule()
            await asyncio.sleep(0)
        if self._flushes != self.hub.flushes:
            self._flushes, self._now, self._until = self.hub.flushes, 0, self.hub.now() + TURN

    def text_of(self, error: BaseException) -> str:
        """What clients get to know of a failure of the application's: its text only if `debug` is set."""
        return repr(error)[:MAX_DEBUG] if self.debug else CODES["handler_error"]

    def connect(self, session: Session, scope: Scope) -> Connection:
        """The application's end of a new session."""
        connection = Connection(self, session, scope)
        self.connections.add(connection)
        return connection

    def number_of_view(self, user: Any, audience: Hashable) -> int:
        """A number for what a user may see as one of an audience: another one once its rights have changed."""
        key = user_key(user)
        view = key, audience, self._rights.get(key, self._rights_of_all)
        number = self._views.get(view)
        if number is None:
            if len(self._views) >= MAX_VIEWS:
                self._views.clear()  # numbers are not used again: who comes back gets a snapshot
            number = self._views[view] = next(self._numbers)
        return number

    def rights_changed(self, user: Any) -> None:
        """A user may see something else from now on."""
        if len(self._rights) >= MAX_RIGHTS:
            self._rights.clear()
            self._rights_of_all = next(self._numbers)
        self._rights[user_key(user)] = next(self._numbers)

    def refresh(self) -> None:
        """Everybody may see something else from now on."""
        self._rights.clear()
        self._rights_of_all = next(self._numbers)
        for connection in list(self.connections):
            connection._look_anew()

    def refresh_model(self, name: str) -> None:
        """The records of a model have changed unheard: its channels begin anew, and so does everybody with them."""
        gone = self.models[name].gone
        for topic in self.hub.topics_of(name):
            if gone is not None:  # any of those that it remembers may be
                for change in topic.channel.since(topic.channel.floor) or []:
                    gone.note("delete", change.body.id)
            topic.restart()
        for connection in list(self.connections):
            connection._subscriber.begin_anew(name)
            connection._read_anew(name)

    def window_to_return(self) -> float:
        """Seconds in which clients of a server that goes away come back: the more there are, the longer.

        Connections close one after the other, so the number that were open at first counts for all.
        """
        self._leaving = max(self._leaving, len(self.connections) + 1)
        return round(min(max(0.5, self._leaving / 200), 5.0 + self._leaving / 1000, 30.0), 1)

    def client_came(self, client: Hashable) -> None:
        """One more connection of a client."""
        self.clients[client] += 1

    def client_left(self, client: Hashable) -> None:
        """One connection of a client less."""
        self.clients[client] -= 1
        if not self.clients[client]:
            del self.clients[client]

    def is_here(self, client: Hashable) -> bool:
        """Whether a client has a connection."""
        return client in self.clients

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a task that the app owns; what it raises is logged."""
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("A task of Backsync failed.", exc_info=task.exception())


class Connection:
    """One client: the application's end of its session.

    Its requests are handled one at a time per model, in the order sent; control messages never wait.
    What only some connections need is made when it is needed: most are idle, and there may be many.
    """

    __slots__ = (
        "__weakref__",
        "_authenticating",
        "_bucket",
        "_client",
        "_drained",
        "_greetings",
        "_heard",
        "_later",
        "_names",
        "_offered",
        "_opened",
        "_queries",
        "_queues",
        "_reading",
        "_request",
        "_room",
        "_scope",
        "_session",
        "_setup",
        "_since",
        "_site",
        "_snapshots",
        "_snapshotting",
        "_source",
        "_state",
        "_subscriber",
        "_tokens",
        "_unanswered",
        "_users",
        "_waiting",
        "_waiting_size",
        "_warned",
        "_workers",
        "id",
        "user",
    )

    def __init__(self, site: Site, session: Session, scope: Scope) -> None:
        self.id = secrets.token_hex(8)
        self.user: Any = scope.get("user")
        self._state: SimpleNamespace | None = None
        self._site = site
        self._session = session
        self._scope = scope
        self._request: HTTPConnection | None = None
        self._subscriber = Subscriber(site.hub, session, site.limits.replies, self._lost, self._overflown, self)
        self._queries: dict[Topic, tuple[Model, Mapping[str, Any]]] = {}
        self._client: tuple[Hashable, str] | None = None
        self._source: Hashable = None  # whose writes are remembered: the user's, else those that come from one address
        self._authenticating: asyncio.Task[Any] | None = None
        self._tokens = 0  # that wait to be looked at
        self._users = 0  # how often the user, or what it may see, has changed
        self._snapshots: dict[Topic, object] = {}  # by channel: the mark of the one that was begun last
        self._unanswered: frozenset[Topic] = frozenset()  # whose first subscription has no reply yet
        self._greetings: list[Request] = []  # that wait for the set-up
        self._names: frozenset[str] = frozenset()  # of the client, as `$:hello` has said
        self._bucket: Bucket | None = None
        self._warned = False
        self._heard = 0  # messages, and KiB of them, since others had their turn
        self._later: deque[str | bytes] | None = None  # what came since then; None: what comes is taken at once
        self._queues: dict[str, deque[tuple[Request, Any, int]]] = {}
        self._workers: dict[object, asyncio.Task[None]] = {}  # by model, or by request where these ask for no order
        self._waiting = 0
        self._waiting_size = 0
        self._drained: asyncio.Event | None = None
        self._snapshotting: asyncio.Lock | None = None
        self._reading: asyncio.Lock | None = None
        self._room: asyncio.Event | None = None
        self._setup: asyncio.Task[None] | None = None
        self._opened = False
        self._offered = 0  # shared frames, at the last tick
        self._since: float | None = None
        session.accept()
        if site.auth is None or site.is_2012:
            self._begin(None)

    @property
    def client(self) -> Hashable:
        """Whose connection it is: the client that `$:hello` has named, with its user; else the connection itself."""
        return self if self._client is None else self._client

    @property
    def is_open(self) -> bool:
        """Whether the client is there."""
        return self._session.close_frame is None

    def is_back(self) -> bool:
        """Whether the client has another connection by now."""
        return self._site.is_here(self._client)

    @property
    def client_id(self) -> str:
        """A public name of the client: the same over its reconnects, and no secret of its own. 16 characters."""
        return hashlib.sha256(repr(self._client or self.id).encode()).hexdigest()[:16]

    @property
    def state(self) -> SimpleNamespace:
        """A namespace for the application's attributes."""
        if self._state is None:
            self._state = SimpleNamespace()
        return self._state

    @property
    def request(self) -> HTTPConnection:
        """The request that opened the connection."""
        if self._request is None:
            self._request = HTTPConnection(self._scope)
        return self._request

    def close(self, code: int = 1000, reason: str = "") -> None:
        """End the connection; what waits is still written. Clients come back by themselves unless the code is 1000,
        3500-3999 or 4500-4999. Raises ValueError for a code that must not be sent."""
        self._session.close(code, reason)

    def refresh(self) -> None:
        """Look anew at what this client may see, because its user, or what that user may see, has changed.

        Guards, read handlers and visibility rules are asked again: each subscription gets a snapshot in place of what
        the client has, or ends. Call it on the event loop.
        """
        self._site.rights_changed(self.user)
        self._look_anew()

    def _look_anew(self) -> None:
        if self._client is not None:
            self._set_client(self._client[1])
        self._users += 1
        self._read_anew()

    def _read_anew(self, name: str | None = None) -> None:
        """Send snapshots of all channels that the client is subscribed to, or of those of one model."""
        for topic in list(self._queries):
            if name is None or topic.name == name:
                self._subscriber.hold(topic)
                self._renew(topic)

    # As the session sees it

    def received(self, message: str | bytes) -> None:
        if self._later is not None:
            self._later.append(message)
            return
        size = len(message)
        self._heard += 1 + (size >> 10)
        if self._heard >= HEARD_AT_ONCE:  # this one is taken still
            self._later = deque()
            self._site.loop.call_soon(self._hear_later)
        try:
            request = messages.decode(message)
        except BadMessage as error:
            self._bad_message(error)
            return
        if not self._within_rate(request):
            return
        if request.model == CONTROL and request.method == "hello" and not self._opened:
            if len(self._greetings) >= MAX_WAITING_CONTROL:
                self._fail(request, "rate_limited", "Say $:hello once.", {"retry_after": 1})
                return
            self._greetings.append(request)
        if self._setup is None and not self._opened:
            self._begin(self._token(request))
        if request.model == CONTROL:
            self._control(request)
            return
        self._waiting += 1
        self._waiting_size += size
        model = self._site.models.get(request.model)
        if model is not None and request.method in model.concurrent:
            self._add_worker(id(request), self._work_apart(request, self._user_now, size))
            return
        queue = self._queues.get(request.model)
        if queue is not None:
            queue.append((request, self._user_now, size))
        elif model is not None and self._opened and model.is_done_at_once(request.method) and self._site.has_time():
            self._work_now(request, size)
        else:
            queue = self._queues[request.model] = deque([(request, self._user_now, size)])
            self._add_worker(request.model, self._work(request.model, queue))

    def _hear_later(self) -> None:
        """Go on with what has come, after others had their turn."""
        later, self._later, self._heard = self._later, None, 0
        while later:
            self.received(later.popleft())
            if self._heard >= HEARD_AT_ONCE:
                self._later = later
                return
        self._make_room()

    @property
    def _user_now(self) -> Any:
        """Whose requests come now; before the set-up is done, that is for it to say."""
        return self.user if self._opened else NOW

    def _within_rate(self, request: Request) -> bool:
        rate = self._site.limits.rate
        if rate is None:
            return True
        several = isinstance(request.data, list) and request.method in WRITES
        count = max(1, len(request.data)) if several else 1
        now = self._site.hub.now()
        if self._bucket is None:
            self._bucket = Bucket(rate, self._site.limits.burst, now)
        wait = self._bucket.take(now, count)
        if wait:
            details = {"retry_after": round(wait, 3)}
            self._fail(request, "rate_limited", f"At most {rate:g} requests a second, please.", details)
        return not wait

    def _add_worker(
        self, name: object, work: Coroutine[Any, Any, None], context: contextvars.Context | None = None
    ) -> None:
        worker = self._workers[name] = self._site.loop.create_task(work, context=context)
        self._site.tasks.add(worker)

    def _work_now(self, request: Request, size: int) -> None:
        """Handle a request that hardly ever has to wait, without a task and a turn of the event loop for it."""
        steps, context = self._handle(request, self.user, size).__await__(), contextvars.copy_context()
        try:
            waits_for = context.run(next, steps)
        except StopIteration:
            return
        queue = self._queues[request.model] = deque()  # those behind it wait with it
        self._add_worker(request.model, self._work(request.model, queue, go_on(steps, waits_for)), context)

    def _worker_done(self, name: object) -> None:
        """For the end of a worker, which would otherwise cost the event loop a callback for each request."""
        self._site.tasks.discard(self._workers[name])
        discard(self._workers, name)

    @property
    def behind(self) -> bool:
        limits = self._site.limits
        is_full = self._waiting >= limits.requests or self._waiting_size >= limits.requests_size
        return is_full or self._later is not None

    async def caught_up(self) -> None:
        while self.behind and self.is_open:
            await self._until_room()

    async def _until_room(self) -> None:
        self._room = self._room or asyncio.Event()
        await self._room.wait()

    def _make_room(self) -> None:
        """There may be room for more messages."""
        if self._room is not None:
            self._room.set()
            self._room = None

    def pull(self) -> Frame | None:
        frame = self._subscriber.pull()
        if self._drained is not None:
            self._drained.set()
            self._drained = None
        return frame

    def closed(self, code: int, reason: str) -> None:
        self._site.connections.discard(self)
        self._make_room()  # a closed connection takes whatever comes
        if self._drained is not None:
            self._drained.set()
        for topic in self._queries:
            self._subscriber.detach(topic)
        self._queries.clear()
        if code == 1012 and not self._site.is_2012:
            bye = {"code": code, "reason": reason, "retry": [0, self._site.window_to_return()]}
            self._subscriber.send(messages.push("$:bye", messages.encode(bye)))
        if self._client is not None:
            self._site.client_left(self._client)
        if self._opened or self._setup is not None:
            self._site.spawn(self._end())

    @property
    def urgent(self) -> bool:
        return bool(self._subscriber.outbox)

    def tick(self, now: float) -> bool:
        if self._since is None:
            self._since = now
        if self._setup is None and not self._opened and now - self._since >= self._site.limits.greeting:
            self._session.close(STALE, "Say $:hello first")
        before, self._offered = self._offered, self._subscriber.offered
        return self._offered > before  # it is less where the client has ceased to keep up with a channel

    # Coming and going

    def _begin(self, token: str | None) -> None:
        """Find out who the client is, then run the open hooks; requests wait for it."""
        hooks = self._hooks("open")
        if self._site.auth is None and not hooks:
            self._open()
        else:
            self._setup = self._site.spawn(self._set_up(token, hooks))

    async def _set_up(self, token: str | None, hooks: list[tuple[HandlerFunction, Model | None]]) -> None:
        try:
            if self._site.auth is not None:
                self.user = await self._site.caller(self._site.auth, Context(self), token)
            for function, model in hooks:
                await self._run_hook(function, model)
        except Reject as error:
            self._log(logging.INFO, "refused", "The connection %s was refused: %s", self.id, error)
            self._session.close(REFUSED.get(error.code, REFUSED_OTHERWISE), error.message)
        except Exception as error:  # noqa: BLE001
            what = "A hook failed as a client connected; the client is closed."
            self._log(logging.ERROR, "hook", what, exc_info=error)
            self._close_failed(1011, HOOK_FAILED, error)
        else:
            self._open()
        finally:
            self._setup = None
            if not self._opened:  # a hook has cancelled itself; if one has refused or failed, this changes nothing
                self._session.close(1011, HOOK_FAILED)

    def _close_failed(self, code: int, reason: str, error: BaseException) -> None:
        """Close after a failure of the application's, which only the log names unless `debug` is set."""
        self._session.close(code, f"{reason}: {error!r}" if self._site.debug else reason)

    def _open(self) -> None:
        self._opened = True
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("The connection %s from %s is open.", self.id, self._address)
        if self._site.is_2012:
            for model in self._site.models.values():
                if model.guard is None and not model.options.key:
                    topic = model.topic_of({})
                    self._attach(Context(self, model), topic, {}, topic.channel.seq)
        for greeting in self._greetings:
            self._welcome(greeting)
        self._greetings.clear()

    async def _until_set_up(self) -> None:
        if self._setup is not None:
            await asyncio.wait([self._setup])

    async def _end(self) -> None:
        """Run the close hooks, after everything that the client has sent is done."""
        await self._until_set_up()
        while self._later is not None:
            await self._until_room()
        if self._workers:
            await asyncio.wait(list(self._workers.values()))
        if not self._opened:
            return
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("The connection %s is closed.", self.id)
        for model in self._site.models.values():
            if model.lives is not None:
                model.lives.client_left(self.client, self.is_back)
        for function, owner in self._hooks("close"):
            try:
                await self._run_hook(function, owner)
            except Exception as error:  # noqa: BLE001
                self._log(logging.ERROR, ("close hook", type(error)), "A close hook failed.", exc_info=error)

    async def _run_hook(self, function: HandlerFunction, model: Model | None) -> None:
        ctx = Context(self, model)
        try:
            await self._site.caller(function, ctx)
        finally:
            ctx.end()

    def _hooks(self, event: Literal["open", "close"]) -> list[tuple[HandlerFunction, Model | None]]:
        hooks: list[tuple[HandlerFunction, Model | None]] = [(function, None) for function in self._site.hooks[event]]
        for model in self._site.models.values():
            functions = model.open_hooks if event == "open" else model.close_hooks
            hooks += [(function, model) for function in functions]
        return hooks

    # Requests

    async def _work(
        self, name: str, queue: deque[tuple[Request, Any, int]], first: Awaitable[None] | None = None
    ) -> None:
        """Handle what is in the queue, one after the other. first: a request that was begun already."""
        try:
            if self._setup is not None:
                await self._until_set_up()
            if first is not None:
                await first
            while queue:
                await self._site.turn()
                await self._handle(*queue.popleft())
        finally:
            discard(self._queues, name)
            self._worker_done(name)

    async def _work_apart(self, request: Request, user: Any, size: int) -> None:
        """Handle a request whose handler does not ask for an order."""
        try:
            await self._until_set_up()
            await self._site.turn()
            await self._handle(request, user, size)
        finally:
            self._worker_done(id(request))

    async def _until_drained(self) -> None:
        """Wait until the replies that wait for the client have been written: more would only fill the memory."""
        while self._subscriber.is_full and self.is_open:
            await self._until_pulled()

    async def _until_pulled(self) -> None:
        self._drained = self._drained or asyncio.Event()
        await self._drained.wait()

    async def _until_read(self) -> None:
        """Wait until the client takes what is written: records that it does not read would only fill the memory.

        One turn at reading is enough, since a client that polls does not read all the time.
        """
        if self._takes_at_once:
            return
        self._reading = self._reading or asyncio.Lock()
        async with self._reading:
            if self.is_open and not self._takes_at_once:
                await self._until_pulled()

    @property
    def _takes_at_once(self) -> bool:
        """Whether what is sent now is written at once, behind little else."""
        receiver = self._session.receiver
        return receiver is not None and receiver.writable and self._subscriber.outbox_size <= LITTLE

    async def _handle(self, request: Request, user: Any, size: int) -> None:
        if self._subscriber.is_full:
            await self._until_drained()
        if request.method in READS:
            await self._until_read()
        acting = Acting(self._subscriber, user)
        Acting.current.set(acting)
        try:
            if not self._opened:
                return
            remembers = self._client is not None and request.method not in NOT_WRITES
            if request.id is not None and remembers:
                text = await self._run_once(request, request.id, acting)
            else:
                text, _ = await self._run(request, acting)
            if text is not None:
                self._subscriber.send(text)
        except Exception as error:  # noqa: BLE001
            kind = "no answer", type(error)
            what = "%s could not be answered; those behind it are."
            self._log(logging.ERROR, kind, what, request.event, exc_info=error)
            self._fail(request, "handler_error", self._site.text_of(error))
        finally:
            acting.finish()
            self._waiting -= 1
            self._waiting_size -= size
            if self._room is not None:
                self._make_room()

    async def _run_once(self, request: Request, id: str | int, acting: Acting) -> str | None:
        """Carry out a request, or answer it again as before if it was sent before."""
        retries, now = self._site.retries, self._site.hub.now()
        client: Hashable = self._client
        if self._client is not None and acting.user is not NOW and acting.user is not self.user:
            client = (user_key(acting.user), self._client[1])  # it was sent as another user
        said = digest(request)
        known = retries.find(client, id, now)
        if known is not None:
            if known.digest != said:
                return self._error(id, request.event, "bad_message", f"The id {id!r} was used for another request.")
            text = await asyncio.shield(known.outcome)
            model = self._site.models[request.model]  # it was carried out, so there is one
            return model.visibility.show_reply(Context(self, model, request.method), text)
        if request.model not in self._site.models:
            return (await self._run(request, acting))[0]
        outcome: asyncio.Future[str] = self._site.loop.create_future()
        write = retries.remember(client, id, said, outcome, now, self._source)
        code: str | None = "unavailable"
        try:
            reply, code = await self._run(request, acting)
            if reply is not None:
                outcome.set_result(reply)
                write.weigh(len(reply))
            return reply
        finally:
            if not outcome.done():
                outcome.cancel()
            if code in NOT_REMEMBERED:
                write.forget()

    async def _run(self, request: Request, acting: Acting) -> tuple[str | None, str | None]:
        """Carry out a request. Returns its reply, if it asked for one, and the code of its error, if it failed."""
        try:
            data = await self._perform(request, acting)
        except Reject as error:
            return self._failure(request, error.code, error.message, error.details), remedy(error.code, error.details)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever a handler does, its client gets an answer
            code, message, details = self._explain(request, error)
            return self._failure(request, code, message, details), remedy(code, details)
        return None if request.id is None else messages.reply(request.id, request.event, data), None

    def _explain(self, request: Request, error: BaseException) -> tuple[str, str, Any]:
        """Log what went wrong in a handler. Returns what its client is told: code, message and details."""
        details = None
        if isinstance(error, BrokenOff) and error.__cause__ is not None:
            details = {"done": error.done}
            error = error.__cause__
        if isinstance(error, Contained) and error.__cause__ is not None:
            error = error.__cause__
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            if self._site.is_draining():
                raise error  # the program ends
            while task.uncancel():  # the handler has cancelled itself; who asks next needs this task
                pass
        kind = type(error), request.event
        if isinstance(error, HandlerTimeout):
            self._log(logging.ERROR, kind, "The handler of %s took too long: %s.", request.event, error)
            return "timeout", CODES["timeout"], details
        if isinstance(error, EncodeError):
            self._log(logging.ERROR, kind, "The result of %s cannot be sent: %s", request.event, error)
        else:
            self._log(logging.ERROR, kind, "The handler of %s failed.", request.event, exc_info=error)
        return "handler_error", self._site.text_of(error), details

    def _perform(self, request: Request, acting: Acting) -> Awaitable[str]:
        """What carries out a request and returns its reply's data. Raises Reject where there is no such model."""
        model = self._site.models.get(request.model)
        if model is None:
            raise Reject("unknown_model", f"There is no model {request.model!r}.")
        match request.method:
            case "subscribe":
                return self._subscribe(model, request, acting)
            case "unsubscribe":
                return self._unsubscribe(model, check_query(request.data))
            case "read":
                return self._read(model, request)
            case method:
                return model.perform(Context(self, model, method, acting.user), request)

    def _failure(self, request: Request, code: str, message: str, details: Any = None) -> str | None:
        if request.id is not None:
            return self._error(request.id, request.event, code, message, details)
        kind = "no reply", code, request.model if request.model in self._site.models else None
        what = "%s failed and its sender did not ask for a reply: %s: %s"
        self._log(logging.WARNING, kind, what, request.event, code, message)
        return None

    def _log(
        self, level: int, kind: Hashable, message: str, *args: object, exc_info: BaseException | None = None
    ) -> None:
        """Log what this client has caused. kind: what is counted together of what comes from its address."""
        self._site.sparing.log(level, (kind, self._address), message, *args, exc_info=exc_info)

    @property
    def _address(self) -> str:
        """Where the client is, as far as the server knows."""
        return str((self._scope.get("client") or ("",))[0])

    def _error(self, id: str | int, event: str | None, code: str, message: str, details: Any = None) -> str:
        try:
            if self._site.is_2012:
                return messages.error_reply_2012(id, event, message)
            return messages.error_reply(id, event, code, message, details)
        except EncodeError as error:
            what = "The message or details of a refusal of %s cannot be sent: %s"
            self._log(logging.ERROR, "refusal", what, event, error)
            return self._error(id, event, code, CODES.get(code, "The request was refused."))

    def _fail(self, request: Request, code: str, message: str, details: Any = None) -> None:
        text = self._failure(request, code, message, details)
        if text is not None:
            self._subscriber.send(text, bounded=True)

    def _bad_message(self, error: BadMessage) -> None:
        if error.id is None:
            self._site.bad_messages += 1
            # Once for each client: who sends nothing but nonsense must not fill the log.
            what = "A client sent a message that is not of the protocol's form. %s"
            if self._warned:
                logger.debug(what, error)
            else:
                self._log(logging.WARNING, "form", what, error)
            self._warned = True
        else:
            self._subscriber.send(self._error(error.id, error.event, "bad_message", str(error)), bounded=True)

    # Control messages

    def _control(self, request: Request) -> None:
        match request.method:
            case "ping":
                self._reply(request, "{}")
            case "hello":
                if self._opened:
                    self._welcome(request)
            case "auth":
                if self._tokens >= MAX_WAITING_CONTROL:
                    self._fail(request, "rate_limited", "Wait until a token is answered.", {"retry_after": 1})
                else:
                    self._tokens += 1
                    self._site.spawn(self._authenticate(request))
            case other:
                self._fail(request, "unknown_method", f"There is no control message '$:{other}'.")

    def _reply(self, request: Request, data: str) -> None:
        if request.id is not None:
            self._subscriber.send(messages.reply(request.id, request.event, data), bounded=True)

    @staticmethod
    def _token(request: Request) -> str | None:
        if request.model != CONTROL or not isinstance(request.data, dict):
            return None
        token = request.data.get("token")
        return token if isinstance(token, str) else None

    def _welcome(self, request: Request) -> None:
        name = request.data.get("client") if isinstance(request.data, dict) else None
        if isinstance(name, str) and 0 < len(name) <= MAX_ID:
            if name not in self._names and len(self._names) >= MAX_NAMES:
                message = f"A connection may name {MAX_NAMES} clients. Open another one."
                self._fail(request, "too_large", message, {"limit": MAX_NAMES})
                return
            self._names |= {name}
            self._set_client(name)
        settings = self._site.settings
        welcome: dict[str, Any] = {
            "version": PROTOCOL_VERSION,
            "heartbeat": settings.timing.heartbeat,
            "limits": {
                "message": settings.message_limit,
                "body": settings.body_limit,
                "subscriptions": self._site.limits.subscriptions,
            },
        }
        with contextlib.suppress(Exception):  # a user that cannot be written as text
            welcome["id"] = self.client_id
        self._reply(request, messages.encode(welcome))

    def _set_client(self, name: str) -> None:
        """The client has said its name: it is the same one whose connections had that name and user before."""
        old, self._client = self.client, (user_key(self.user), name)
        self._source = self._address if self.user is None else self._client[0]
        if self.is_open:  # one that has left in the meantime does not count
            self._site.client_came(self._client)
            if old is not self:
                self._site.client_left(old)
        for model in self._site.models.values():
            if model.lives is not None:
                model.lives.renamed(old, self._client, self.user, self._site.is_here(old))

    async def _authenticate(self, request: Request) -> None:
        """One after the other: the last token that was sent decides."""
        try:
            await self._take_token(request)
        finally:
            self._tokens -= 1

    async def _take_token(self, request: Request) -> None:
        before, self._authenticating = self._authenticating, asyncio.current_task()
        if before is not None:
            await asyncio.wait([before])
        await self._until_set_up()
        if not self._opened:
            return
        if self._site.auth is None:
            self._fail(request, "unknown_method", "This server has no auth hook.")
            return
        try:
            user = await self._site.caller(self._site.auth, Context(self), self._token(request))
            changed = await contain(_differ(user, self.user))
        except Reject as error:
            self._log(logging.INFO, "token", "A token of the connection %s was refused: %s", self.id, error)
            self._fail(request, error.code, error.message, error.details)
            return
        except Exception as error:  # noqa: BLE001
            self._log(logging.ERROR, "token", "The auth hook failed.", exc_info=error)
            self._fail(request, "handler_error", self._site.text_of(error))
            return
        if not self.is_open:
            return
        self.user = user
        self._reply(request, "{}")
        if changed:
            self.refresh()

    # What is shown to a client is for who it is as it is shown, not for who it was when it asked.

    async def _read(self, model: Model, request: Request) -> str:
        for _ in range(SNAPSHOT_TRIES):
            user = self._users
            text = await model.perform(Context(self, model, "read"), request)
            if user == self._users:
                return text
        raise Reject("unavailable", TOO_FAST)

    # Subscriptions

    async def _subscribe(self, model: Model, request: Request, acting: Acting) -> str:
        query = check_query(request.data)
        async with model.subscription_turn(self, query):
            return await self._subscribe_now(model, request, query, acting)

    async def _subscribe_now(self, model: Model, request: Request, query: dict[str, Any], acting: Acting) -> str:
        topic = self._site.hub.find(model.name, model.places.of(query)[0])
        before = None if topic is None else self._queries.get(topic)
        try:
            for _ in range(SNAPSHOT_TRIES):
                answer = await self._try_subscribe(Context(self, model, "subscribe"), request, query, acting)
                if answer is not None:
                    return answer
            raise Reject("unavailable", TOO_FAST)
        except BaseException as error:
            self._subscription_failed(model, query, before, error)
            raise
        finally:
            self._unanswered -= {self._site.hub.find(model.name, model.places.of(query)[0])}

    def _subscription_failed(
        self,
        model: Model,
        query: Mapping[str, Any],
        before: tuple[Model, Mapping[str, Any]] | None,
        error: BaseException,
    ) -> None:
        """Undo a subscription. One that was there before goes on as it was, unless the right to it is gone."""
        topic = model.topic_of(query)
        if topic not in self._queries:
            return
        if before is None:
            self._detach(topic)
        elif isinstance(error, Reject) and error.code in REFUSED:
            self._detach(topic)
            self._send_snapshot(topic, topic.channel.epoch, topic.channel.seq, "[]")
        else:
            self._queries[topic] = before

    async def _unsubscribe(self, model: Model, query: Mapping[str, Any]) -> str:
        self._detach(model.topic_of(query))
        return "{}"

    async def _try_subscribe(
        self, ctx: Context, request: Request, query: Mapping[str, Any], acting: Acting
    ) -> str | None:
        """The answer to a subscription; None if the user or a newer snapshot has made it stale meanwhile."""
        user, model = self._users, ctx.model
        await self._check_guard(ctx, model, query)
        if user != self._users:
            return None
        topic = model.topic_of(query)  # only now: one that nobody listens to may be forgotten at any time
        if topic not in self._queries and len(self._queries) >= self._site.limits.subscriptions:
            limit = self._site.limits.subscriptions
            raise Reject("too_large", f"A client may subscribe to {limit} channels.", {"limit": limit})
        since = request.message.get("since")
        wants_records = request.message.get("snapshot") is not False
        epoch = self._epoch(ctx, topic)
        seq = position(since, epoch, topic)
        if since is None and not wants_records:
            seq = topic.channel.seq
        answer: dict[str, Any] = {"mode": "snapshot" if seq is None else "resume", "epoch": epoch}
        # Another subscription of this connection to the channel may be behind, and must not miss anything.
        present = self._subscriber.position(topic)
        answer["seq"] = topic.channel.seq if seq is None else seq
        if seq is None and present is not None and self._subscriber.is_held(topic):
            answer["seq"] = present  # what has come since then cannot be sent before another request is answered
        if topic.key:
            answer["key"] = {name: query[name] for name in model.options.key}
        if present is None:
            self._unanswered |= {topic}
        self._attach(ctx, topic, query, answer["seq"] if present is None else min(present, answer["seq"]))
        acting.hold(topic)  # until the reply
        records = None
        if seq is None and wants_records:
            snapshot = self._begin_snapshot(topic)
            records = await self._records(ctx, topic, query)
            if user != self._users or not self._end_snapshot(topic, snapshot):
                return None
        self._subscriber.catch_up(topic, answer["seq"])
        if records is None:
            return messages.encode(answer)
        # What another request holds back, whose handler has published meanwhile, comes after this.
        reached = self._subscriber.position(topic)
        answer["seq"] = answer["seq"] if reached is None else min(answer["seq"], reached)
        return messages.with_records(answer, records)

    def _epoch(self, ctx: Context, topic: Topic) -> str:
        """The channel's epoch as this client is told it.

        Where clients see different things it is another one for each user and audience, and after a right has changed:
        nobody can resume from what somebody else has seen.
        """
        if not ctx.model.tells_apart:
            return topic.channel.epoch
        kind, _ = ctx.model.visibility.audience_of(ctx)
        view = self._site.number_of_view(self.user, kind if isinstance(kind, tuple) else None)
        return f"{topic.channel.epoch}.{view:x}"

    def _begin_snapshot(self, topic: Topic) -> object:
        """Mark the snapshot of a channel that was begun last: it alone may be delivered."""
        mark = self._snapshots[topic] = object()
        return mark

    def _end_snapshot(self, topic: Topic, mark: object) -> bool:
        """Whether a snapshot may be delivered: no newer one was begun, and the client is still subscribed."""
        if mark is not self._snapshots.get(topic):
            return False
        discard(self._snapshots, topic)
        return True

    def _attach(self, ctx: Context, topic: Topic, query: Mapping[str, Any], seq: int) -> None:
        if self.is_open:
            kind, view = ctx.model.visibility.audience_of(ctx)
            self._queries[topic] = (ctx.model, query)
            self._subscriber.attach(topic, seq, kind, view)

    def _detach(self, topic: Topic) -> None:
        self._queries.pop(topic, None)
        discard(self._snapshots, topic)
        self._subscriber.detach(topic)

    async def _check_guard(self, ctx: Context, model: Model, query: Mapping[str, Any]) -> None:
        if model.guard is None:
            return
        try:
            if await self._site.caller(model.guard, ctx, model.loaded("subscribe", dict(query))) is False:
                raise Reject("forbidden", f"You may not subscribe to {model.name}.")
        except Reject as error:
            what = "The guard of %s refused the connection %s: %s"
            self._log(logging.INFO, ("guard", model.name), what, model.name, self.id, error)
            raise

    async def _records(self, ctx: Context, topic: Topic, query: Mapping[str, Any]) -> str:
        """The rows of a snapshot as JSON text. A model that nobody can read has at least what its channel remembers."""
        model = ctx.model
        if model.readable:
            text = await model.read_text(ctx, query)
            if text == "[]" and model.seeks_other_key(query):
                self._site.spawn(model.look_for_other_key(query))
            return text if text.startswith("[") else f"[{text}]"
        changes = topic.channel.since(topic.channel.floor) or []
        rows = [loads(change.body.data) for change in changes if change.body.method == "upsert"]
        return messages.encode([seen for row in rows if (seen := model.visibility.show(ctx, row)) is not None])

    def _lost(self, topic: Topic) -> None:
        self._renew(topic)

    def _renew(self, topic: Topic) -> None:
        """Replace what the client has of a topic, which is held until then."""
        self._site.spawn(self._snapshot_again(topic, (self._users, topic.channel)))

    async def _snapshot_again(self, topic: Topic, asked: object) -> None:
        """asked: how often the user had changed, and the channel, when that was asked; if either has again, this is
        for the newer one to do."""
        Acting.current.set(None)  # whoever has published as the client was found to be too late
        try:
            self._snapshotting = self._snapshotting or asyncio.Lock()
            async with self._snapshotting:  # one after the other, as the client takes them
                await self._until_drained()
                await self._until_read()
                if asked == (self._users, topic.channel):
                    await contain(self._replace(topic))
        except Exception as error:  # noqa: BLE001
            what = "A snapshot of %s failed; its client is closed, to come back."
            self._log(logging.ERROR, ("snapshot", topic.name), what, topic.name, exc_info=error)
            self._close_failed(SNAPSHOT_FAILED, "A snapshot failed", error)
        finally:
            self._subscriber.release(topic)

    async def _replace(self, topic: Topic) -> None:
        wanted = self._queries.get(topic)
        if wanted is None:
            return
        if topic in self._unanswered:  # nothing may come before the reply: that is made anew instead
            self._begin_snapshot(topic)
            return
        model, query = wanted  # now: the client may have asked for something else since this was begun
        snapshot, user, channel = self._begin_snapshot(topic), self._users, topic.channel
        ctx = Context(self, model, "subscribe")
        seq = channel.seq
        records = "[]"
        hidden: list[Id] = []
        is_over = False
        try:
            await self._check_guard(ctx, model, query)
            records = await self._records(ctx, topic, query)
            hidden = [] if model.gone is None else await model.hidden(ctx, query)
        except Reject as error:
            if error.code in ("forbidden", "unauthorized"):  # not this user's any more: the client's copy goes
                is_over = True
                self._log(logging.INFO, ("ended", model.name), "A subscription to %s ended: %s", model.name, error)
            elif error.code != "not_found":  # the one record that it asks for is not there, or not to be seen
                raise
        is_stale = user != self._users or channel is not topic.channel
        if not self._end_snapshot(topic, snapshot) or is_stale or self._queries.get(topic) is not wanted:
            return  # a newer one is under way, or nobody wants it any more
        if is_over:
            self._detach(topic)
        else:
            self._attach(ctx, topic, query, seq)
        self._send_snapshot(topic, self._epoch(ctx, topic), seq, records, hidden)

    def _send_snapshot(self, topic: Topic, epoch: str, seq: int, records: str, hidden: Sequence[Id] = ()) -> None:
        """hidden: ids of records that the client may not see, for one of 2012, which cannot replace what it has."""
        gone = self._site.models[topic.name].gone
        if gone is not None:
            rows = loads(records)
            there = [row["id"] for row in rows if isinstance(row, dict) and "id" in row]
            for id in [*hidden, *gone.without([*there, *hidden])]:
                self._subscriber.send(messages.push(f"{topic.name}:delete", messages.encode({"id": id})))
            for row in rows:
                self._subscriber.send(messages.push(f"{topic.name}:upsert", messages.encode(row)))
        else:
            snapshot = messages.with_records({"epoch": epoch, "seq": seq}, records)
            self._subscriber.send(messages.push(f"{topic.name}:snapshot", snapshot, topic.key_text))

    def _overflown(self) -> None:
        limit = self._site.limits.replies
        what = "A client does not read its replies: over %d bytes wait (Limits.replies); it is closed."
        self._log(logging.WARNING, "replies", what, limit)
        self._session.close(OVERFLOW, "Too many replies are waiting")


def remedy(code: str, details: Any) -> str | None:
    """The code of an error that a client may try again; None for a write of several of which some are done."""
    return None if isinstance(details, dict) and details.get("done") else code


def position(since: Any, epoch: str, topic: Topic) -> int | None:
    """The position to resume from; None where only a snapshot can help."""
    if not isinstance(since, dict) or since.get("epoch") != epoch:
        return None
    seq = since.get("seq")
    topic.channel.evict(topic.now())
    return seq if type(seq) is int and topic.channel.reaches(seq) else None


async def _differ(one: Any, other: Any) -> bool:
    """Whether two users are not the same, as they themselves say; async, so that `contain` can await it."""
    return bool(one != other)


def user_key(user: Any) -> Hashable:
    """What tells users apart, the same at each connection: the `identity` of a user of Starlette's; of an object that
    knows no equality of its own, as a database's row, its `id`, `pk` or `display_name`; else the user itself."""
    kind = type(user).__qualname__
    is_opaque = getattr(type(user), "__hash__", None) == object.__hash__
    try:
        for name in ("identity", "id", "pk", "display_name") if is_opaque else ("identity",):
            try:
                return kind, str(getattr(user, name))
            except (AttributeError, NotImplementedError):
                continue
        try:
            hash(user)
        except TypeError:  # also a tuple, or a frozen dataclass, with a list in it
            return kind, repr(user)
    except KeyboardInterrupt:
        raise
    except BaseException:
        logger.exception("A user of type %s cannot be told from others; it counts as a new one each time.", kind)
        return kind, object()
    return kind, user
