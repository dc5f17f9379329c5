"""What a visibility rule hides cannot be found out by queries, and what it shows is found by them.

The kind of fault: an answer that depends on stored values which the client may not see.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from backsync_asgi import Backsync, Context, Reject, testing
from backsync_asgi.messages import encode
from backsync_asgi.stores import MemoryStore, SQLStore, Store, table_of
from tests.postgres import PostgreSQL

Record = dict[str, Any]

numbers = itertools.count()


@dataclass
class Person:
    """A row of the table that the rule is about."""

    id: int
    room: str = "x"
    name: str = ""
    salary: int | None = None
    secret: bool = False


@pytest.fixture(params=["memory", "sqlite", "sqlite-table", "postgresql", "postgresql-table"])
def make(request: pytest.FixtureRequest, tmp_path: Any) -> Callable[[], Store]:
    """A function that makes empty stores of a kind."""

    def store() -> Store:
        kind, _, form = request.param.partition("-")
        if kind == "memory":
            return MemoryStore()
        name = f"shown_{next(numbers)}"
        if kind == "sqlite":
            url = f"sqlite:///{tmp_path}/{name}.db"
        else:
            server: PostgreSQL = request.getfixturevalue("postgresql")
            url = server.url
        if not form:
            return SQLStore(url, table=name, pool=1)
        return SQLStore(url, table=table_of(Person, name), pool=1)

    return store


def redacting(ctx: Context, record: Record) -> Any:
    """Nobody sees secret records, nor salaries but of those who are named `open`."""
    if record["secret"]:
        return False
    return True if record["name"] == "open" else {**record, "salary": None}


async def world(store: Store, hidden: list[int | None], rule: Any = redacting, **options: Any) -> Backsync:
    """A server whose records differ from another's in the values alone that the rule hides."""
    sync = Backsync()
    model = sync.model("Person", store=store, **options)
    model.visible(rule)
    for id, salary in enumerate(hidden):
        await model.upsert({"id": id, "room": "x", "name": "p", "salary": salary, "secret": id % 3 == 2})
    for id, salary in ((20, 6000), (21, None), (22, 100)):
        await model.upsert({"id": id, "room": "x", "name": "open", "salary": salary, "secret": False})
    return sync


def queries() -> Iterator[Record]:
    yield {}
    for order in ("salary", "-salary", ["name", "salary"], ["-salary", "id"], "secret", "id", "-id"):
        yield {"$order": order}
        yield {"$order": order, "$limit": 2}
        for salary in (None, 0, 5000, 7000):
            yield {"$order": order, "$limit": 1, "$after": {"salary": salary, "name": "p", "secret": False, "id": 1}}
    yield {"$limit": 1}
    yield {"$limit": 2, "$after": {"id": 1}}
    for salary in (None, 100, 5000):
        yield {"salary": salary}
        yield {"salary": salary, "$limit": 1}
        yield {"id": 0, "salary": salary}
    yield {"secret": True}
    yield {"secret": False, "$limit": 3}
    yield {"room": "x", "$order": "-salary", "$limit": 2}


async def test_two_servers_that_differ_in_what_is_hidden_answer_alike(make: Callable[[], Store]) -> None:
    """Order, limit, place of a page and filters go by what is shown, over the wire and over REST."""
    worlds = [
        await world(make(), [4000, 1, None, None]),
        await world(make(), [5500, 7000, 5000, 8000]),
        await world(make(), [None, 100, 6000, 5000]),
    ]
    answers: list[list[Any]] = []
    for sync in worlds:
        given: list[Any] = []
        app = Starlette(routes=[Mount("/api", app=sync.rest())])
        async with (
            testing.connect(sync) as client,
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://testserver") as http,
        ):
            for query in queries():
                rows = await client.read("Person", query)
                parameters = {name: encode(value) for name, value in query.items()}
                assert (await http.get("/api/Person", params=parameters)).json() == rows, query
                view = await client.subscribe("Person", query)
                assert sorted(view) == sorted(row["id"] for row in rows), query
                given.append((query, rows))
        answers.append(given)
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("order", ["id", "-id", "salary", "-salary", ["name", "-salary"]])
@pytest.mark.parametrize("redacts", [None, (), ("salary",)], ids=repr)
async def test_pages_find_all_that_is_shown(make: Callable[[], Store], order: Any, redacts: Any) -> None:
    """A page is as long as its limit while there is more to see, however many records between are hidden."""
    sync = Backsync()
    model = sync.model("Person", store=make())
    model.visible(redacts=redacts)(lambda ctx, record: not record["secret"])
    for id in range(60):
        await model.upsert({"id": id, "room": "x", "name": "n", "salary": id % 7, "secret": id % 20 != 0 and id < 55})
    async with testing.connect(sync) as client:
        found: list[Record] = []
        after: Any = None
        while page := await client.read("Person", {"$order": order, "$limit": 3, "$after": after}):
            assert len(page) == 3 or len(found) + len(page) == 8
            found += page
            after = page[-1]
    assert {row["id"] for row in found} == {0, 20, 40, 55, 56, 57, 58, 59}
    assert len(found) == 8


async def test_a_filter_goes_by_what_a_rule_shows_in_place_of_a_value(make: Callable[[], Store]) -> None:
    """A mask is a value as any other: whoever sees it may ask for it, and learns nothing by that."""
    sync = await world(make(), [1, 2, 3], rule=lambda ctx, record: {**record, "name": "***"})
    async with testing.connect(sync) as client:
        assert [row["id"] for row in await client.read("Person", {"name": "***", "$limit": 2})] == [0, 1]
        assert await client.read("Person", {"name": "p"}) == []


async def test_a_rule_may_say_what_it_redacts(caplog: pytest.LogCaptureFixture) -> None:
    """A rule that changes more than it said shows nothing of such a record."""
    sync = Backsync()
    model = sync.model("Person", store=MemoryStore())

    @model.visible(redacts=["salary"])
    def rule(ctx: Context, record: Record) -> Record:
        return {name: value for name, value in record.items() if name not in ("salary", "pin")}

    await model.upsert({"id": 1, "salary": 5})
    await model.upsert({"id": 2, "pin": 5})
    async with testing.connect(sync) as client:
        assert await client.read("Person") == [{"id": 1}]
        assert await client.read("Person", {"pin": 5}) == []
    assert "changed 'pin', which redacts= does not name" in caplog.text
    with pytest.raises(TypeError, match="expected a list of fields"):
        sync.model("Other").visible(redacts="salary")(rule)


async def test_what_is_ordered_by_a_declared_field_is_read_page_by_page() -> None:
    """The database orders where the rule cannot have changed the field: not all records are read for a page."""
    asked: list[Any] = []

    class Noting(MemoryStore):
        async def read(self, query: Any) -> Any:
            asked.append(query)
            return await super().read(query)

    sync = Backsync()
    model = sync.model("Line", store=Noting())
    model.visible(redacts=())(lambda ctx, record: record["id"] % 4 == 0)
    for id in range(40):
        await model.upsert({"id": id, "at": id})
    async with testing.connect(sync) as client:
        assert [row["id"] for row in await client.read("Line", {"$order": "-at", "$limit": 3})] == [36, 32, 28]
    assert [(query["$order"], query["$limit"]) for query in asked] == [(["-at"], 3), (["-at"], 12)]


async def test_a_rule_that_returns_what_cannot_be_sent_hides_that_record_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One record that cannot be sent does not fail the read for all, and is logged once."""
    sync = Backsync()
    model = sync.model("M", store=MemoryStore())
    model.visible(lambda ctx, record: {**record, "tags": {1}} if record["id"] == 1 else True)
    for id in (0, 1, 2):
        await model.upsert({"id": id})
    async with testing.connect(sync) as client:
        for query in ({}, {"$order": "tags"}, {"$limit": 5}, {}):
            assert await client.read("M", query) == [{"id": 0}, {"id": 2}]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "The record 1 of M cannot be sent" in caplog.text


async def test_a_key_is_no_way_to_find_a_hidden_value(make: Callable[[], Store]) -> None:
    """A channel's key is compared where it is stored; a rule that hides it shows nothing by it."""
    sync = Backsync()
    model = sync.model("Person", store=make(), key="room")
    model.visible(lambda ctx, record: {"id": record["id"], "name": record["name"]})
    for id in range(3):
        await model.upsert({"id": id, "room": "x", "name": "n", "salary": id, "secret": False})
    async with testing.connect(sync) as client:
        assert await client.read("Person", {"room": "x"}) == []
        assert len(await client.read("Person", {"$order": "room"})) == 3
        with pytest.raises(Reject, match="room"):
            await client.subscribe("Person", {"room": None})


@pytest.mark.parametrize("as_one", [False, True], ids=["store", "handler"])
async def test_a_hidden_record_is_not_found_in_the_words_of_a_missing_one(as_one: bool) -> None:
    """The kind of fault: the text of a refusal depends on a record that the client may not see."""
    answers: list[Any] = []
    for there in ([], [{"id": 5}, {"id": "6"}]):
        sync, store = Backsync(), MemoryStore()
        model = sync.model("M", store=store)
        model.visible(lambda ctx, record: False)
        for record in there:
            await model.upsert(record)
        if as_one:

            async def read(ctx: Context, query: Record, store: Store = store) -> Record:
                return await store.get(query["id"]) or {"id": query["id"]}

            model.on("read")(read)
        given: list[Any] = []
        async with (
            testing.connect(sync) as client,
            httpx.AsyncClient(transport=httpx.ASGITransport(sync.rest()), base_url="http://testserver") as http,
        ):
            for id in (5, "5", 6, "6"):
                with pytest.raises(Reject) as refused:
                    await client.read("M", {"id": id})
                assert refused.value.code == "not_found"
                given.append((refused.value.message, (await http.get(f"/M/{id}")).text))
        answers.append(given)
    assert answers[0] == answers[1]
