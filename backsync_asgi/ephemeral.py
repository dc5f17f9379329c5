"""How long the records of an ephemeral model live: who owns them, and their `ttl`; it knows no store and no channel."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Protocol

from .errors import Reject
from .handlers import contain
from .hub import Acting
from .stores.base import Id

logger = logging.getLogger("backsync")

RETRY, RETRY_MAX = 1.0, 60.0  # seconds until a delete that has failed is tried again, doubled each time
MAX_FAILED = 10_000  # deletes that wait to be tried again, per model; then the oldest are given up

DELETES_AT_ONCE = 20  # then others have their turn

# A record that is to go, and whether it still is as it is its turn.
Due = tuple[Id, Callable[[], bool]]


class Owner(Protocol):
    """A connection, as far as it can own records."""

    user: Any

    @property
    def client(self) -> Hashable: ...


class _Holding:
    """Records that the same clients own: one, or several that have shared a name. user: who wrote them.

    A client that is renamed takes its holding along, however many records are in it.
    """

    __slots__ = ("clients", "records", "user")

    def __init__(self, client: Hashable, user: Any) -> None:
        self.clients: set[Hashable] = {client}
        self.records: dict[str, Id] = {}
        self.user = user


class Lives:
    """How long the records of an ephemeral model live: as long as a client that wrote them, and their `ttl`.

    Only who wrote a record may write it again, from the same client or as the same user from another. A client that
    comes back within the grace period keeps its records. A record that the program wrote by itself belongs to nobody
    and lives by its ttl alone.

    name: the model's. grace, ttl: seconds. delete: removes a record and tells everybody, if it is still due when it is
    the record's turn: a write that was under way may have renewed it. What it fails at is tried again.
    """

    def __init__(
        self, name: str, grace: float, ttl: float | None, delete: Callable[[Id, Callable[[], bool]], Awaitable[object]]
    ) -> None:
        self._name = name
        self._grace = grace
        self._ttl = ttl
        self._delete_record = delete
        self._owners: dict[str, set[_Holding]] = {}  # by record
        self._owned: dict[Hashable, list[_Holding]] = {}  # by client
        self._leaves: dict[Hashable, asyncio.TimerHandle] = {}  # the last leave of a client that owns records
        self._expiry: OrderedDict[str, tuple[float, Id]] = OrderedDict()  # soonest first, since the ttl is one for all
        self._timer: asyncio.TimerHandle | None = None
        self._failed: deque[Due] = deque(maxlen=MAX_FAILED)
        self._retry_timer: asyncio.TimerHandle | None = None
        self._retry_delay = RETRY
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Another event loop runs: what was to happen on the last one happens on this one."""
        self._timer = None
        self._set_timer()
        if self._retry_timer is not None:
            self._retry()

    def check(self, connection: Owner, id: Id | None) -> None:
        """Raises Reject("forbidden") for a record that somebody else wrote."""
        owners = self._owners.get(str(id))
        if not owners or any(connection.client in holding.clients for holding in owners):
            return
        if connection.user is None or all(holding.user != connection.user for holding in owners):
            raise Reject("forbidden", f"This record of {self._name} belongs to somebody else.")

    def note(self, method: str, id: Id) -> None:
        """A record was written or deleted, by whoever acts now."""
        key = str(id)
        if method == "delete":
            for holding in self._owners.pop(key, ()):
                self._take_out(holding, key)
            self._expiry.pop(key, None)
            return
        acting = Acting.current.get()
        if acting is not None:
            connection = acting.subscriber.owner
            holding = self._holding_of(connection.client, connection.user)
            holding.records[key] = id
            self._owners.setdefault(key, set()).add(holding)
            if not connection.is_open:  # it wrote this behind its own back
                self.client_left(connection.client, connection.is_back)
        if self._ttl is not None:
            self._expiry[key] = (asyncio.get_running_loop().time() + self._ttl, id)
            self._expiry.move_to_end(key)
            self._set_timer()

    def client_left(self, client: Hashable, is_back: Callable[[], bool]) -> None:
        """A client's last connection has gone; its records follow after the grace period unless it is back by then."""
        if client in self._owned:
            self._forget_leave(client)  # it has been back since
            loop = asyncio.get_running_loop()
            self._leaves[client] = loop.call_later(self._grace, self._release, client, is_back)

    def renamed(self, old: Hashable, new: Hashable, user: Any, stays: bool) -> None:
        """A connection has told the name of its client, or is another user's: what it wrote before goes with it.

        stays: the old client has other connections, which may have written it: then the records are both clients'.
        """
        held = () if old == new else tuple(self._owned.get(old, ()))
        for holding in held:
            if not stays:
                self._part(holding, old)
            if not stays and not holding.clients:
                self._give(holding, new, user)
            elif new not in holding.clients:
                holding.clients.add(new)
                self._owned.setdefault(new, []).append(holding)

    def _holding_of(self, client: Hashable, user: Any) -> _Holding:
        """What a client holds alone: what it writes goes there."""
        held = self._owned.setdefault(client, [])
        for holding in held:
            if len(holding.clients) == 1:
                return holding
        holding = _Holding(client, user)
        held.append(holding)
        return holding

    def _give(self, holding: _Holding, client: Hashable, user: Any) -> None:
        """A holding that no client has becomes one's own. Takes time for the smaller one of two, and none for one."""
        own = self._holding_of(client, user)
        if len(own.records) < len(holding.records):  # the larger one stays, since its records know it
            held = self._owned[client]
            held[held.index(own)] = holding
            holding.clients, own.clients = own.clients, set()
            own, holding = holding, own
        own.user = user
        for key, id in holding.records.items():
            own.records[key] = id
            self._owners[key].discard(holding)
            self._owners[key].add(own)

    def _part(self, holding: _Holding, client: Hashable) -> None:
        """A client has a holding no more."""
        holding.clients.discard(client)
        held = self._owned[client]
        held.remove(holding)
        if not held:
            del self._owned[client]
            self._forget_leave(client)

    def _take_out(self, holding: _Holding, key: str) -> None:
        """A record is in a holding no more; an empty one is forgotten."""
        del holding.records[key]
        if not holding.records:
            for client in list(holding.clients):
                self._part(holding, client)

    def _forget_leave(self, client: Hashable) -> None:
        leave = self._leaves.pop(client, None)
        if leave is not None:
            leave.cancel()

    def _release(self, client: Hashable, is_back: Callable[[], bool]) -> None:
        if is_back():
            del self._leaves[client]
            return
        leave = self._leaves[client]
        held = list(self._owned[client])
        for holding in held:
            if len(holding.clients) > 1:  # the records stay with the others
                self._part(holding, client)

        def goes(key: str) -> bool:
            if self._leaves.get(client) is not leave or is_back():
                return False
            owners = self._owners.get(key, set())
            mine = [holding for holding in owners if holding.clients == {client}]
            if len(mine) == len(owners):
                return bool(owners)  # its owners go with the record
            for holding in mine:
                owners.discard(holding)
                self._take_out(holding, key)
            return False

        self._delete([id for holding in held if holding.clients == {client} for id in holding.records.values()], goes)

    def _set_timer(self) -> None:
        if self._timer is None and self._expiry:
            soonest, _ = next(iter(self._expiry.values()))
            self._timer = asyncio.get_running_loop().call_at(soonest, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        due: list[Id] = []
        while self._expiry:
            key, (at, id) = next(iter(self._expiry.items()))
            if at > now:
                break
            del self._expiry[key]
            due.append(id)
        self._delete(due, lambda key: key not in self._expiry)
        self._set_timer()

    def _delete(self, ids: list[Id], is_due: Callable[[str], bool]) -> None:
        self._start([(id, functools.partial(is_due, str(id))) for id in ids])

    def _start(self, due: list[Due]) -> None:
        task = asyncio.get_running_loop().create_task(self._delete_all(due))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _delete_all(self, due: list[Due]) -> None:
        Acting.current.set(None)
        failed: list[Due] = []
        error: Exception | None = None
        for count, (id, is_due) in enumerate(due, 1):
            if count % DELETES_AT_ONCE == 0:
                await asyncio.sleep(0)
            try:
                await contain(self._delete_record(id, is_due))
            except Exception as caught:  # noqa: BLE001 - whatever a store raises, the others' turn comes
                failed.append((id, is_due))
                error = caught
        if not failed:
            if not self._failed:
                self._retry_delay = RETRY
            return
        self._failed.extend(failed)
        logger.error(
            "%d ephemeral records of %s could not be deleted; that is tried again (for %d at most).",
            len(failed),
            self._name,
            MAX_FAILED,
            exc_info=error,
        )
        if self._retry_timer is None:
            self._retry_timer = asyncio.get_running_loop().call_later(self._retry_delay, self._retry)
            self._retry_delay = min(2 * self._retry_delay, RETRY_MAX)

    def _retry(self) -> None:
        self._retry_timer = None
        due = list(self._failed)
        self._failed.clear()
        self._start(due)
