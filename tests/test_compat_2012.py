"""The 2012 mode, spoken to as the browser code of 2012 speaks: objects in frames, no subscriptions, errors as text."""

from __future__ import annotations

import asyncio
import itertools
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from backsync_asgi import Backsync, Context, Reject
from backsync_asgi.gone import Gone
from backsync_asgi.limits import Horizon
from backsync_asgi.stores import MemoryStore
from tests.inprocess import Closed, Socket, connect, fetch

Record = dict[str, Any]


class OldClient:
    """The client of 2012: it tells a message that answers it, by its id, from one that is for its collections."""

    def __init__(self, socket: Socket) -> None:
        self.socket = socket
        self.heard: list[Record] = []
        self._waiting: list[Record] = []

    def send(self, event: str, **data: Any) -> str:
        id = str(uuid.uuid4())
        text = json.dumps({"id": id, **data, "event": event})
        self.socket.send_text(json.dumps([text]))  # clients send strings, then as now
        return id

    async def message(self) -> Record:
        """The next message, whatever it is."""
        while not self._waiting:
            frame = await self.socket.text()
            assert frame[0] == "a", frame
            self._waiting = json.loads(frame[1:])
        message = self._waiting.pop(0)
        assert isinstance(message, dict), "messages stand in the frame as objects"
        return message

    async def answer(self, id: str) -> Record:
        while (message := await self.message()).get("id") != id:
            assert "id" not in message
            self.heard.append(message)
        return message

    async def ask(self, event: str, **data: Any) -> Any:
        answer = await self.answer(self.send(event, **data))
        assert "error" not in answer, answer
        return answer["data"]

    async def hear(self) -> Record:
        message = self.heard.pop(0) if self.heard else await self.message()
        assert "id" not in message
        return message


@asynccontextmanager
async def visit(sync: Backsync) -> AsyncIterator[OldClient]:
    async with connect(sync, f"/000/{uuid.uuid4().hex}/websocket") as socket:
        assert await socket.text() == "o"
        yield OldClient(socket)


async def apply(client: OldClient, mine: dict[Any, Record]) -> None:
    """Do with a copy of the records what a message says."""
    message = await client.hear()
    if message["event"].endswith(":delete"):
        mine.pop(message["data"]["id"], None)
    else:
        mine[message["data"]["id"]] = message["data"]


@pytest.fixture
def chat() -> Backsync:
    """A server as it was written in 2012: classes, a list in memory, hooks."""
    sync = Backsync(compat="2012")

    @sync.model("ChatMessage")
    class ChatMessages:
        def __init__(self) -> None:
            self.messages: list[Record] = []

        def read(self, ctx: Context, data: Any) -> list[Record]:
            return self.messages

        def upsert(self, ctx: Context, data: Record) -> Record:
            if not data.get("message"):
                raise Reject("invalid", "Say something.")
            data["id"] = data.get("id") or len(self.messages) + 1
            self.messages.append(data)
            return data

        def delete(self, ctx: Context, data: Record) -> None:
            self.messages = [message for message in self.messages if message["id"] != data["id"]]

    @sync.model("User")
    class Users:
        def __init__(self) -> None:
            self.users: dict[str, Record] = {}
            self.numbers = itertools.count(1)

        async def read(self, ctx: Context, data: Any) -> list[Record]:
            return list(self.users.values())

        async def upsert(self, ctx: Context, data: Record) -> Record:
            user = {**data, "id": data.get("id") or next(self.numbers)}
            self.users[ctx.connection.id] = user
            return user

        async def on_close(self, ctx: Context) -> None:
            user = self.users.pop(ctx.connection.id, None)
            if user is not None:
                ctx.model.publish("delete", user)

        async def on_open(self, ctx: Context) -> None:
            ctx.state.opened = True

    return sync


async def test_messages_are_objects_inside_the_frame(chat: Backsync) -> None:
    async with visit(chat) as client:
        id = client.send("ChatMessage:read")
        frame = await client.socket.text()
        assert json.loads(frame[1:]) == [{"id": id, "event": "ChatMessage:read", "data": []}]


async def test_everybody_hears_every_change_without_asking_the_author_after_its_reply(chat: Backsync) -> None:
    async with visit(chat) as author, visit(chat) as other:
        id = author.send("ChatMessage:upsert", data={"message": "hi", "username": "ann"})
        record = {"message": "hi", "username": "ann", "id": 1}
        assert await author.message() == {"id": id, "event": "ChatMessage:upsert", "data": record}
        for client in (author, other):
            heard = await client.hear()
            assert (heard["event"], heard["data"]) == ("ChatMessage:upsert", record)
        assert await other.ask("ChatMessage:read") == [record]


async def test_a_read_comes_without_data_and_a_delete_with_the_whole_record(chat: Backsync) -> None:
    async with visit(chat) as author, visit(chat) as other:
        record = await author.ask("ChatMessage:upsert", data={"message": "hi"})
        assert await author.ask("ChatMessage:delete", data=record) == {}
        assert [(await other.hear())["event"] for _ in range(2)] in (
            ["ChatMessage:upsert", "ChatMessage:delete"],
            ["ChatMessage:delete"],
        )
        assert await other.ask("ChatMessage:read") == []


async def test_create_update_and_the_keys_in_any_order_are_understood(chat: Backsync) -> None:
    async with visit(chat) as client:
        assert (await client.ask("User:create", data={"name": "ann"}))["id"] == 1
        assert (await client.ask("User:update", data={"name": "eve", "id": 1})) == {"name": "eve", "id": 1}


async def test_an_error_is_a_text(chat: Backsync) -> None:
    async with visit(chat) as client:
        for event, text in [
            ("ChatMessage:upsert", "Say something."),
            ("Nothing:read", "There is no model 'Nothing'."),
            ("ChatMessage:fly", "ChatMessage has no method 'fly'."),
        ]:
            answer = await client.answer(client.send(event, data={}))
            assert (answer["event"], answer["data"], answer["error"]) == (event, None, text)
        answer = await client.answer(client.send("nonsense"))
        assert isinstance(answer["error"], str)


@pytest.mark.parametrize("name", ["__init__", "on_open", "on_close", "notify", "users", "numbers", "_x"])
async def test_names_that_are_not_handlers_cannot_be_called(chat: Backsync, name: str) -> None:
    async with visit(chat) as client:
        answer = await client.answer(client.send(f"User:{name}", data={}))
        assert "has no method" in answer["error"]


async def test_who_leaves_is_deleted_from_the_others(chat: Backsync) -> None:
    async with visit(chat) as stays:
        async with visit(chat) as leaves:
            user = await leaves.ask("User:upsert", data={"name": "eve"})
            assert (await stays.hear())["data"] == user
        departure = await stays.hear()
        assert (departure["event"], departure["data"]) == ("User:delete", {"id": user["id"]})


async def test_nobody_is_told_of_what_was_before(chat: Backsync) -> None:
    async with visit(chat) as author:
        await author.ask("ChatMessage:upsert", data={"message": "before"})
        async with visit(chat) as late:
            await author.ask("ChatMessage:upsert", data={"message": "after"})
            assert (await late.hear())["data"]["message"] == "after"


async def test_a_guarded_model_is_not_for_everybody() -> None:
    sync = Backsync(compat="2012")
    secret, public = sync.model("Secret"), sync.model("Public")
    secret.on("subscribe")(lambda ctx, data: None)
    async with visit(sync) as client:
        await secret.upsert({"id": 1})
        await public.upsert({"id": 2})
        assert (await client.hear())["event"] == "Public:upsert"


async def test_a_raw_websocket_speaks_the_protocol_of_today(chat: Backsync) -> None:
    async with connect(chat) as client:
        assert await client.call("ChatMessage:read") == []
        await chat.model("User").upsert({"id": 1})
        assert [push["event"] for push in await client.pushes()] == ["User:upsert"]


async def test_a_goodbye_is_the_close_frame_alone(chat: Backsync) -> None:
    async with visit(chat) as client:
        chat.drain()
        assert await client.socket.text() == 'c[1012,"Service restart"]'
        with pytest.raises(Closed):
            await client.socket.text()


async def test_a_client_beyond_the_horizon_gets_the_records_again() -> None:
    sync = Backsync(compat="2012", horizon=Horizon(records=2))
    todo = sync.model("Todo", store=MemoryStore())
    async with visit(sync) as client:
        await client.ask("Todo:read")
        client.socket.stall()
        for number in range(10):
            await todo.upsert({"id": number})
            await asyncio.sleep(0)
        client.socket.read_again()
        seen: set[int] = set()
        while len(seen) < 10:
            message = await client.hear()
            assert message["event"] == "Todo:upsert"
            seen.add(message["data"]["id"])


async def test_a_client_beyond_the_horizon_hears_what_was_deleted_meanwhile() -> None:
    sync = Backsync(compat="2012", horizon=Horizon(records=4))
    todo = sync.model("Todo", store=MemoryStore())
    for number in range(3):
        await todo.upsert({"id": number})
    async with visit(sync) as client:
        mine = {record["id"]: record for record in await client.ask("Todo:read")}
        client.socket.stall()
        await todo.upsert({"id": "first"})  # which the stalled write takes with it
        await asyncio.sleep(0)
        await todo.delete(0)
        await todo.delete(1)
        await todo.upsert({"id": 1, "again": True})
        for number in range(10, 20):
            await todo.upsert({"id": number})
            await asyncio.sleep(0)
        client.socket.read_again()
        while len(mine) != 13 or 0 in mine:
            await apply(client, mine)
    assert mine[1] == {"id": 1, "again": True}
    assert todo.store is not None
    assert sorted(map(str, mine)) == sorted(str(record["id"]) for record in await todo.store.read({}))


async def test_at_a_refresh_what_may_not_be_seen_any_more_is_deleted() -> None:
    sync = Backsync(compat="2012")
    todo = sync.model("Todo", store=MemoryStore())
    hidden: set[int] = set()
    todo.visible(lambda ctx, record: record["id"] not in hidden)
    for number in range(3):
        await todo.upsert({"id": number})
    async with visit(sync) as client:
        mine = {record["id"]: record for record in await client.ask("Todo:read")}
        hidden.add(1)
        sync.refresh()
        while set(mine) != {0, 2}:
            await apply(client, mine)
        hidden.clear()
        sync.refresh()
        while set(mine) != {0, 1, 2}:
            await apply(client, mine)


async def test_what_is_gone_unheard_is_deleted_at_a_refresh_if_it_was_changed_lately() -> None:
    sync = Backsync(compat="2012")
    store = MemoryStore()
    todo = sync.model("Todo", store=store)
    for number in range(3):
        await todo.upsert({"id": number})
    async with visit(sync) as client:
        mine = {record["id"]: record for record in await client.ask("Todo:read")}
        await store.delete(1)
        todo.refresh()
        while set(mine) != {0, 2}:
            await apply(client, mine)
        await client.ask("Todo:read")
        assert "Todo:delete" not in [message["event"] for message in client.heard], "what is there stays"


def test_so_many_ids_are_remembered_and_what_has_come_again_is_not_gone() -> None:
    gone = Gone(3)
    for id in ("a", 1, "b", "c"):
        gone.note("delete", id)
    assert gone.without([]) == [1, "b", "c"]
    gone.note("upsert", "1")
    gone.note("delete", "d")
    assert gone.without(["c", 5]) == ["b", "d"]


def test_for_the_clients_of_today_nothing_is_remembered() -> None:
    assert Backsync().model("Todo").gone is None


async def test_fragile_characters_are_escaped_in_objects_too(chat: Backsync) -> None:
    async with visit(chat) as client:
        id = client.send("User:upsert", data={"name": "\u2028\u200d\uffff é"})
        frame = await client.socket.text()
        assert not {"\u2028", "\u200d", "\uffff"} & set(frame)
        answer = json.loads(frame[1:])[0]
        assert (answer["id"], answer["data"]["name"]) == (id, "\u2028\u200d\uffff é")


# Over the other transports of its time, as the client of SockJS 0.3 asks


@pytest.mark.parametrize("root", ["", "/backsync"])
async def test_the_old_client_finds_the_server_by_its_prefix_without_a_slash(chat: Backsync, root: str) -> None:
    answer = await fetch(chat, f"{root}/info", root_path=root)
    info = json.loads(answer.body)
    assert answer.status == 200
    assert set(info) >= {"websocket", "cookie_needed", "origins", "entropy"}
    assert info["websocket"] is True
    greeting = await fetch(chat, root or "/", root_path=root)
    assert greeting.text == "Welcome to SockJS!\n"


async def poll(sync: Backsync, session: str) -> Any:
    answer = await fetch(sync, f"/000/{session}/xhr", "POST")
    assert answer.status == 200
    assert answer.text.endswith("\n")
    return answer.text[:-1]


async def test_the_chat_goes_over_polling(chat: Backsync) -> None:
    assert await poll(chat, "ann") == "o"
    assert await poll(chat, "eve") == "o"
    id = str(uuid.uuid4())
    message = json.dumps({"id": id, "data": {"message": "hi"}, "event": "ChatMessage:upsert"})
    answer = await fetch(chat, "/000/ann/xhr_send", "POST", json.dumps([message]).encode())
    assert answer.status == 204
    heard: list[Record] = []
    while len(heard) < 2:
        heard += json.loads((await poll(chat, "ann"))[1:])
    reply, echo = heard
    assert reply == {"id": id, "event": "ChatMessage:upsert", "data": {"message": "hi", "id": 1}}
    assert (echo["event"], echo["data"]) == ("ChatMessage:upsert", {"message": "hi", "id": 1})
    assert "id" not in echo
    assert json.loads((await poll(chat, "eve"))[1:])[0]["data"] == {"message": "hi", "id": 1}
    chat.drain()
    assert await poll(chat, "ann") == 'c[1012,"Service restart"]'
