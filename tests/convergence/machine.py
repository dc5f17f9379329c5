"""The rules: what clients, the network, time and the server may do in any order, and what holds all along.

Written once, for every world. The names I1, I2, … are those of the list of invariants in docs/testing.md.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Coroutine
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backsync_asgi import Reject
from backsync_asgi.client import View
from backsync_asgi.testing import Client, Transport
from tests.convergence.world import ROOMS, SECRET, USERS, World, seen

DEADLINE = 10.0
IDS = (1, 2, "3", "é", 5)

whos = st.integers(0, 2)
ids = st.sampled_from(IDS)
rooms = st.sampled_from(ROOMS)
users = st.sampled_from(USERS)


class Person:
    """A client beside what it is known to have done."""

    def __init__(self, client: Client, user: str) -> None:
        self.client = client
        self.user = user
        self.work: set[asyncio.Task[Any]] = set()
        self.acked: list[str] = []
        self.asked: dict[str, object] = {}  # texts of writes without a reply, and the connection that they went out by
        client.on_text = self.look

    def look(self, text: str) -> None:
        """I17: not a byte of what is not for this user's eyes. And the author of a change has its reply first."""
        message = json.loads(text)
        data = message["data"]
        if isinstance(data, dict) and "text" in data:
            if "id" in message:
                self.asked.pop(data["text"], None)
            else:
                by = self.asked.get(data["text"])
                assert by is None or by is not self.client._line, f"this came before the reply: {text}"
        if SECRET in text and self.user != "admin":
            for user in USERS:
                assert user == self.user or SECRET + user not in text, f"{self.user} was sent {text}"


class Convergence(RuleBasedStateMachine):
    """Three clients, of which any may be cut off, stalled or on its way at any time."""

    world_class: ClassVar[type[World]]

    @initialize(first=st.tuples(users, users, users), polling=st.booleans())
    def begin(self, first: tuple[str, str, str], polling: bool) -> None:
        self.world = self.world_class()
        self.numbers = itertools.count(1)
        self.people: list[Person] = []
        for user in first:
            transport = self.world.transports[2 % len(self.world.transports)] if polling else self.world.transports[0]
            person = Person(self.world.connect(user, transport), user)
            self.people.append(person)
            self.do(self.subscribe_all(person))

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self.do(self.settle())
            self.do(self.leave())
        finally:
            self.world.close()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(DEADLINE * 10):
                return await work

        return self.world.run(bounded())

    def spin(self, turns: int = 3) -> None:
        """Let the loop turn a few times: some of what is under way happens."""

        async def turn() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.do(turn())

    # Writes

    def ask(self, who: int, event: str, data: Any, tokens: tuple[str, ...] = (), **more: Any) -> None:
        """Begin a request; nobody waits for its reply here."""
        person = self.people[who]

        async def call() -> None:
            try:
                await person.client.call(event, data, within=1_000.0, **more)
            except Reject:
                return
            person.acked += tokens

        async def start() -> None:
            task = asyncio.ensure_future(call())
            person.work.add(task)
            await asyncio.sleep(0)

        self.do(start())

    def token(self, who: int, model: str = "Note") -> str:
        return f"{model} of {who}-{next(self.numbers)}"

    def note_of(self, who: int, id: Any, room: str, secret: bool) -> dict[str, Any]:
        owner = self.people[who].user
        text = SECRET + owner if secret else f"said {next(self.numbers)}"
        return {"id": id, "room": room, "owner": owner, "secret": secret, "text": text, "token": self.token(who)}

    @rule(who=whos, id=ids, room=rooms, secret=st.booleans(), slow=st.booleans())
    def upsert(self, who: int, id: Any, room: str, secret: bool, slow: bool) -> None:
        """Also moves records between rooms, and flips who may see them."""
        note = self.note_of(who, id, room, secret) | ({"slow": True} if slow else {})
        self.ask(who, "Note:upsert", note, (note["token"],))

    @rule(who=whos, id=ids)
    def patch(self, who: int, id: Any) -> None:
        token = self.token(who)
        self.ask(who, "Note:patch", {"id": id, "slow": True, "token": token}, (token,), unset=["slow"])

    @rule(who=whos, id=ids)
    def delete(self, who: int, id: Any) -> None:
        self.ask(who, "Note:delete", {"id": id})

    @rule(who=whos, which=st.lists(ids, min_size=2, max_size=4), room=rooms)
    def write_many(self, who: int, which: list[Any], room: str) -> None:
        notes = [self.note_of(who, id, room, False) for id in which]
        self.ask(who, "Note:upsert", notes, tuple(note["token"] for note in notes))

    @rule(who=whos, id=ids, rev=st.integers(1, 4), room=rooms)
    def write_on_a_version(self, who: int, id: Any, rev: int, room: str) -> None:
        """Refused unless it is the current one."""
        note = self.note_of(who, id, room, False)
        self.ask(who, "Note:upsert", {**note, "rev": rev}, (note["token"],))

    @rule(who=whos, id=ids)
    def write_plain(self, who: int, id: Any) -> None:
        token = self.token(who, "Plain")
        self.ask(who, "Plain:upsert", {"id": id, "text": token, "token": token}, (token,))

    @rule(who=whos, id=ids)
    def say(self, who: int, id: Any) -> None:
        """A method whose handler writes first and takes its time then."""
        token = self.token(who, "Plain")
        self.ask(who, "Plain:say", {"id": id, "text": token, "token": token}, (token,))
        person = self.people[who]
        if person.client.connected:
            person.asked[token] = person.client._line

    @rule(who=whos)
    def point(self, who: int) -> None:
        """An ephemeral record, which goes when its client has been away for too long."""
        self.ask(who, "Cursor:upsert", {"id": who, "at": next(self.numbers)})

    @rule(who=whos, id=ids)
    def write_twice(self, who: int, id: Any) -> None:
        """A proxy sends the request again."""
        self.people[who].client.send_twice()
        self.write_plain(who, id)

    # The server's own doings

    @rule(id=ids)
    def job(self, id: Any) -> None:
        self.do(self.world.sync.model("Plain").upsert({"id": id, "text": f"job {next(self.numbers)}"}))

    @rule(count=st.integers(2, 30))
    def burst(self, count: int) -> None:
        """Perhaps more than the horizon."""

        async def publish() -> None:
            for number in range(count):
                await self.world.sync.model("Plain").upsert({"id": f"burst {number}", "text": next(self.numbers)})

        self.do(publish())

    @rule()
    def event(self) -> None:
        async def publish() -> None:
            self.world.sync.model("Plain").publish("typing", {"number": next(self.numbers)})

        self.do(publish())

    @rule()
    def restart(self) -> None:
        """History is lost. What was written and not answered might be written again, so that is waited for."""
        self.do(self.settle())
        self.do(self.world.restart())
        for id in list(range(3)):
            self.do(self.world.sync.model("Plain").upsert({"id": id, "text": "after the restart"}))

    # The network

    @rule(who=whos)
    def cut(self, who: int) -> None:
        self.people[who].client.disconnect()

    @rule(who=whos, up=st.integers(0, 600) | st.none(), down=st.integers(0, 1_500) | st.none())
    def cut_at_a_byte(self, who: int, up: int | None, down: int | None) -> None:
        self.people[who].client.cut_after(up=up, down=down)

    @rule(who=whos, id=ids)
    def lose_a_reply(self, who: int, id: Any) -> None:
        self.people[who].client.cut_after(down=0)
        self.write_plain(who, id)

    @rule(who=whos, way=st.sampled_from(("up", "down")))
    def stall(self, who: int, way: Any) -> None:
        self.people[who].client.stall(way)

    @rule(who=whos)
    def flow(self, who: int) -> None:
        self.people[who].client.flow()

    @rule(who=whos, number=st.integers(0, 4))
    def come_back(self, who: int, number: int) -> None:
        self.do(self.return_of(self.people[who], number))
        self.spin()

    @rule(who=whos, token=st.sampled_from(("old", "ancient", "future", "another epoch", "none")))
    def tamper(self, who: int, token: str) -> None:
        """A position that is not the client's own: what comes is complete all the same."""
        client = self.people[who].client
        if client.connected:
            return
        for view in client.views:
            match token:
                case "old":  # the copy is newer than the position that is told: it is only told more again
                    view.seq = max(0, view.seq - 2)
                case "ancient":
                    view.seq = 0
                case "future":
                    view.seq += 1_000
                case "another epoch":
                    view.epoch = "of another time"
                case _:
                    view.forget_position()

    # Users and time

    @rule(who=whos, user=users)
    def change_user(self, who: int, user: str) -> None:
        self.do(self.become(self.people[who], user))

    @rule(seconds=st.sampled_from((0.004, 1.0, 2.5, 6.0, 70.0)))
    def elapse(self, seconds: float) -> None:
        self.world.run(self.world.elapse(seconds))

    @rule(turns=st.integers(1, 10))
    def turn(self, turns: int) -> None:
        self.spin(turns)

    @rule(who=whos)
    def leave_a_room_and_return(self, who: int) -> None:
        person = self.people[who]
        client = person.client

        async def change() -> None:
            await self.heal(person)
            for view in client.views:
                await client.unsubscribe(view)
            await self.subscribe_all(person)

        self.do(change())

    @rule()
    def quiet(self) -> None:
        self.do(self.settle())

    # What the rules are made of

    async def subscribe_all(self, person: Person) -> None:
        client = person.client
        await client.subscribe("Plain")
        await client.subscribe("Cursor")
        for room in ROOMS:
            try:
                await client.subscribe("Note", {"room": room})
            except Reject as error:
                assert (error.code, person.user) == ("forbidden", "banned")

    async def return_of(self, person: Person, number: int) -> None:
        if not person.client.connected:
            transport: Transport = self.world.transports[number % len(self.world.transports)]
            person.client.transport = transport
            person.client._away = False
            person.client._open()

    async def heal(self, person: Person) -> None:
        """The client is back, and all that it has asked is answered."""
        await person.client.reconnect()
        work, person.work = person.work, set()
        if work:
            async with asyncio.timeout(DEADLINE):
                await asyncio.gather(*work)

    async def become(self, person: Person, user: str) -> None:
        await self.heal(person)
        client = person.client
        views = client.views
        before = [len(view.events) for view in views]
        old, person.user = person.user, user if user == person.user else "admin"  # until the answer, both may come
        await client.auth(user)
        if user != old:
            await client.until(
                lambda: all(
                    any(event.method == "snapshot" for event in view.events[count:])
                    for view, count in zip(views, before, strict=True)
                )
            )
        person.user = user
        if old == "banned":
            await self.subscribe_all(person)

    async def settle(self) -> None:
        """All faults are over: everything is answered, and everybody equals what they may see (I1, I11, I12, I22)."""
        for person in self.people:
            await self.heal(person)
        for person in self.people:
            for view in person.client.views:
                expected = self.expected(person, view)
                if view.model == "Cursor":  # those of clients that are away still may go
                    continue
                try:
                    await person.client.until(lambda view=view, expected=expected: view == expected)  # type: ignore[misc]
                except TimeoutError as error:
                    raise AssertionError(f"{person.user} should have {expected}") from error
        cursors = [view for person in self.people for view in person.client.views if view.model == "Cursor"]
        for person in self.people:
            await person.client.until(lambda: all(view == cursors[0] for view in cursors))
        for person in self.people:
            for token in person.acked:
                assert self.world.log.applied[token] == 1, f"{token} was acknowledged and must be applied once"

    async def leave(self) -> None:
        """I24: nothing is left of clients that have gone."""
        sync = self.world.sync
        await self.world.leave()
        if self.world.real_time:
            return
        await self.world.elapse(10.0)
        assert not sync.connections
        assert sync._server.sessions == 0
        assert not sync._site.tasks
        assert not sync._site.clients
        assert not any(topic.audiences for topic in sync._hub._topics.values())
        assert len(sync.model("Cursor").store or ()) == 0  # type: ignore[arg-type]

    def expected(self, person: Person, view: View) -> dict[Any, Any]:
        """What the view should hold, by the store and the rule of who sees what."""
        store = self.world.sync.model(view.model).store
        records: list[dict[str, Any]] = [dict(row.record) for row in store._rows.values()]  # type: ignore[union-attr]
        if view.model != "Note":
            return {record["id"]: record for record in records}
        shown = {}
        if person.user == "banned":  # whom the guard bars, and nothing else
            return {}
        for record in records:
            may = seen(person.user, record)
            if record["room"] == view.query["room"] and may is not False:
                shown[record["id"]] = record if may is True else may
        return shown

    # What always holds

    @precondition(lambda self: hasattr(self, "world"))
    @invariant()
    def what_a_client_holds_at_a_position_is_the_state_there(self) -> None:
        """I3, I5: every record that has not changed since the position is as it may be seen, or not there."""
        hub = self.world.sync._hub
        for person in self.people:
            for view in person.client.views:
                key = () if view.key is None else (json.dumps(view.key["room"]),)
                topic = hub.find(view.model, key)
                if (
                    topic is None
                    or (view.epoch or "").partition(".")[0] != topic.channel.epoch
                    or not topic.channel.reaches(view.seq)
                ):
                    continue
                expected = self.expected(person, view)
                for id in {*expected, *view}:
                    change = topic.channel.get(str(id))
                    if change is None or change.seq <= view.seq:
                        assert view.get(id) == expected.get(id), f"{person.user}, {id!r} at {view.seq}: {view}"

    @precondition(lambda self: hasattr(self, "world"))
    @invariant()
    def nobody_complains(self) -> None:
        """I2, I4, I8, I18: the clients themselves look at what they get."""
        for person in self.people:
            person.client._check()
            for view in person.client.views:
                numbers = [event.data["number"] for event in view.events if event.method == "typing"]
                assert numbers == sorted(set(numbers)), "a transient event comes once, in order"

    @precondition(lambda self: hasattr(self, "world"))
    @invariant()
    def writes_are_applied_once_and_in_order(self) -> None:
        """I12, I16."""
        log = self.world.log
        assert not [token for token, times in log.applied.items() if times > 1]
        for numbers in log.order.values():
            assert numbers == sorted(numbers)

    @precondition(lambda self: hasattr(self, "world"))
    @invariant()
    def a_client_that_does_not_read_costs_little(self) -> None:
        """I14."""
        for connection in self.world.sync.connections:
            assert connection._subscriber.outbox_size <= self.world.sync.limits.replies
