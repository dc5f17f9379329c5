"""What happens in a PostgreSQL table reaches the model, whoever does it and whatever happens to the connection."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from backsync_asgi import Backsync, Reject
from backsync_asgi.live import listen
from backsync_asgi.live.postgres import uninstall
from backsync_asgi.stores import MemoryStore
from backsync_asgi.testing import connect
from tests.live.documents import py_blocks
from tests.postgres import PostgreSQL, postgres

LISTENERS = "FROM pg_stat_activity WHERE application_name = 'backsync Message'"
DEADLINE = 20.0  # seconds; only a failing test waits so long

Execute = Callable[..., Awaitable[Any]]


@pytest.fixture
def sync() -> Backsync:
    return Backsync()


@pytest.fixture
async def execute(postgresql: PostgreSQL) -> AsyncIterator[Execute]:
    """Another program: a connection of its own, and an empty table `message`."""
    connection = await asyncpg.connect(postgresql.url)
    await connection.execute(
        """
        DROP TABLE IF EXISTS message; DROP SCHEMA IF EXISTS app CASCADE;
        CREATE TABLE message (id int PRIMARY KEY, text text, done bool DEFAULT false, at timestamptz);
        """
    )
    yield connection.execute
    await connection.close()


class Seen(list[tuple[str, Any]]):
    """What a model has published, in order."""

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition():  # noqa: ASYNC110 - there is nothing to be woken by
                await asyncio.sleep(0.01)

    @property
    def rows(self) -> dict[Any, Any]:
        """The state that they lead to."""
        rows: dict[Any, Any] = {}
        for method, data in self:
            if method == "upsert":
                rows[data["id"]] = data
            else:
                rows.pop(data["id"], None)
        return rows


@pytest.fixture
def seen(sync: Backsync, monkeypatch: pytest.MonkeyPatch) -> Seen:
    seen = Seen()
    monkeypatch.setattr(sync.model("Message"), "publish_present", lambda method, data: seen.append((method, data)))
    return seen


def message(id: int, text: str | None, done: bool = False) -> dict[str, Any]:
    return {"id": id, "text": text, "done": done, "at": None}


async def test_what_another_program_does_is_published(
    sync: Backsync, postgresql: PostgreSQL, execute: Execute, seen: Seen
) -> None:
    await execute("INSERT INTO message VALUES (1, 'there before')")
    async with listen(sync.model("Message"), postgresql.url, table="message"):
        await execute("INSERT INTO message VALUES (2, 'a'), (3, 'b')")
        await seen.until(lambda: len(seen) == 2)
        await execute("UPDATE message SET done = true WHERE id = 2")
        await seen.until(lambda: len(seen) == 3)
        await execute("DELETE FROM message WHERE id < 3")
        await seen.until(lambda: len(seen) == 5)
        await execute("UPDATE message SET id = 9")
        await seen.until(lambda: len(seen) == 7)
    assert seen[:3] == [("upsert", message(2, "a")), ("upsert", message(3, "b")), ("upsert", message(2, "a", True))]
    assert sorted(data["id"] for method, data in seen[3:5] if method == "delete") == [1, 2]
    assert seen.rows == {9: message(9, "b")}


async def test_what_is_rolled_back_is_not_published(
    sync: Backsync, postgresql: PostgreSQL, execute: Execute, seen: Seen
) -> None:
    async with listen(sync.model("Message"), postgresql.url, table="message"):
        await execute("BEGIN; INSERT INTO message VALUES (1, 'a'); ROLLBACK")
        await execute(
            "BEGIN; INSERT INTO message VALUES (2); SAVEPOINT s; INSERT INTO message VALUES (3); ROLLBACK TO s; COMMIT"
        )
        await seen.until(lambda: bool(seen))
        await execute("INSERT INTO message VALUES (4)")
        await seen.until(lambda: 4 in seen.rows)
    assert seen.rows.keys() == {2, 4}


async def test_every_kind_of_statement_is_seen(
    sync: Backsync, postgresql: PostgreSQL, execute: Execute, seen: Seen
) -> None:
    async with listen(sync.model("Message"), postgresql.url, table="message"):
        upsert = "ON CONFLICT (id) DO UPDATE SET text = excluded.text"
        await execute(f"INSERT INTO message VALUES (1, 'a') {upsert}")
        await execute(f"INSERT INTO message VALUES (1, 'b'), (2, 'c') {upsert}")
        await execute(
            "WITH gone AS (DELETE FROM message WHERE id = 2 RETURNING *) INSERT INTO message SELECT 3, text FROM gone"
        )
        await execute(
            "MERGE INTO message USING (VALUES (1), (4)) AS new (id) ON message.id = new.id "
            "WHEN MATCHED THEN UPDATE SET text = 'm' WHEN NOT MATCHED THEN INSERT VALUES (new.id, 'n')"
        )
        await seen.until(lambda: seen.rows == {1: message(1, "m"), 3: message(3, "c"), 4: message(4, "n")})
        await execute("TRUNCATE message")
        await seen.until(lambda: seen.rows == {})


async def test_a_subscriber_starts_with_the_table_and_follows_it(
    sync: Backsync, postgresql: PostgreSQL, execute: Execute
) -> None:
    await execute(
        "INSERT INTO message VALUES (2, 'b'); INSERT INTO message VALUES (1, 'a', true, '2012-01-02T03:04:05Z')"
    )
    async with listen(sync.model("Message"), postgresql.url, table="message"), connect(sync) as ann:
        seen = await ann.subscribe("Message")
        assert seen.keys() == {1, 2}
        assert seen[1]["at"].startswith("2012-01-02T03:04:05")
        await execute("UPDATE message SET text = 'c' WHERE id = 2")
        await ann.until(lambda: seen[2] == message(2, "c"))
        queries: list[tuple[dict[str, Any], list[int]]] = [
            ({"done": True}, [1]),
            ({"text": "c"}, [2]),
            ({"text": None}, []),
            ({"done": "true"}, []),
            ({"at": "once"}, []),
            ({"text": ["a"]}, []),
            ({"id": "01", "text": "a"}, []),
        ]
        for query, ids in [*queries, ({"id": 1, "done": True}, [1])]:
            assert [row["id"] for row in await ann.read("Message", query)] == ids
        assert (await ann.read("Message", {"id": "1"}))["id"] == 1
        for query, code in (
            ({"id": 7}, "not_found"),
            ({"id": "x"}, "not_found"),
            ({"nothing": 1}, "invalid"),
            ({"$order": "nothing"}, "invalid"),
            ({"$after": {"id": "x"}}, "invalid"),
            ({"$order": "done", "$after": {"done": "perhaps", "id": 1}}, "invalid"),
            ({"$order": "at", "$after": {"at": "once", "id": 1}}, "invalid"),
        ):
            with pytest.raises(Reject) as refused:
                await ann.read("Message", query)
            assert refused.value.code == code, query


async def test_pages_go_by_every_type_that_has_an_order(
    sync: Backsync, postgresql: PostgreSQL, execute: Execute
) -> None:
    await execute(
        """
        DROP TABLE IF EXISTS every; DROP TYPE IF EXISTS mood; CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
        CREATE TABLE every (key uuid PRIMARY KEY, small smallint NOT NULL, big bigint, real real, exact numeric,
            rounded numeric(6, 2), word varchar(3), padded char(5), mood mood, day date, "At" timestamp, span interval,
            bytes bytea, net inet, spans int4range, flag bool, json json, jsonb jsonb, list int[], point point);
        INSERT INTO every SELECT gen_random_uuid(), n % 3, n * 10000000000 % 7, n / 7.0,
            1.0000000000000000001 * (n % 4), n % 5 / 3.0, chr(97 + n % 4), 'p' || n % 2,
            (ARRAY['sad', 'ok', 'happy'])[1 + n % 3]::mood, '2012-01-01',
            timestamp '2012-01-01' + n % 4 * interval '1.000001 s', n * interval '1 day 1.5 s',
            decode(lpad(to_hex(n), 2, '0'), 'hex'), ('10.0.0.' || n % 5)::inet, int4range(n % 4, 10), n % 2 = 0,
            '{}', '{}', ARRAY[n], point(n, n) FROM generate_series(1, 12) n;
        INSERT INTO every (key, small) VALUES (gen_random_uuid(), 1), (gen_random_uuid(), 2);
        """
    )
    connection = await asyncpg.connect(postgresql.url)
    without_order = {"json", "jsonb", "list", "point"}
    async with listen(sync.model("Every"), postgresql.url, table="every"), connect(sync) as ann:
        row = (await ann.read("Every"))[0]
        assert row["id"] == row["key"]
        for field in [*row.keys() - without_order]:
            column = "key" if field == "id" else f'"{field}"'
            if field in ("mood", "span", "padded"):  # as their text sorts in a browser
                column = f"""(to_jsonb("{field}") #>> '{{}}') COLLATE "C\""""
            for sign, direction, nulls in (("", "ASC", "FIRST"), ("-", "DESC", "LAST")):
                query = {"$order": sign + field, "$limit": 3}
                expected = f"SELECT key::text FROM every ORDER BY {column} {direction} NULLS {nulls}, key {direction}"
                found = page = await ann.read("Every", query)
                while page := await ann.read("Every", {**query, "$after": page[-1]}):
                    found += page
                    assert len(found) <= 14, query
                rows = await connection.fetch(expected)
                if field == "exact":  # equal as a browser has it
                    assert sorted(row["id"] for row in found) == sorted(row["key"] for row in rows)
                else:
                    assert [row["id"] for row in found] == [row["key"] for row in rows], query
            value = found[0][field]
            same = await ann.read("Every", {field: value, "$limit": 20})
            assert found[0] in same or field == "exact", (field, value)
        for field in without_order:
            with pytest.raises(Reject, match="invalid"):
                await ann.read("Every", {"$order": field})
        assert len(await ann.read("Every", {"list": [3]})) == 1
        assert await ann.read("Every", {"word": "abcd"}) == [], "a cast would cut it"
        with pytest.raises(Reject, match="invalid"):
            await ann.read("Every", {"point": "(1,1)"})
    await connection.close()


DIFFICULT = 'app."Order ""é"""'


async def test_names_and_keys_may_be_difficult(
    sync: Backsync, postgresql: PostgreSQL, execute: Execute, seen: Seen
) -> None:
    await execute(
        f'CREATE SCHEMA app; CREATE TABLE {DIFFICULT} ("the Key" text PRIMARY KEY, "Selected" numeric, raw bytea)'
    )
    keys = ["a", "it's", 'say "é"', "{1,2}", "back\\slash", "NULL", "x" * 128]
    async with listen(sync.model("Message"), postgresql.url, table=DIFFICULT, fields=["Selected"]):
        for key in keys:
            await execute(f"INSERT INTO {DIFFICULT} VALUES ($1, 1.5)", key)
        await execute(f"INSERT INTO {DIFFICULT} VALUES ($1, 2)", "y" * 2000)  # no record has such an id
        await execute(f"INSERT INTO {DIFFICULT} VALUES ('end', 3)")
        await seen.until(lambda: "end" in seen.rows)
        assert seen.rows == {key: {"id": key, "Selected": 1.5} for key in keys} | {"end": {"id": "end", "Selected": 3}}
        await execute(f"DELETE FROM {DIFFICULT}")
        await seen.until(lambda: seen.rows == {})


async def test_a_large_row_and_many_rows_need_no_way_of_their_own(
    sync: Backsync, postgresql: PostgreSQL, execute: Execute, seen: Seen
) -> None:
    async with listen(sync.model("Message"), postgresql.url, table="message"):
        await execute("INSERT INTO message VALUES (1, repeat('x', 100000))")
        await seen.until(lambda: bool(seen) and len(seen[0][1]["text"]) == 100_000)
        await execute("INSERT INTO message SELECT n, 'n' || n FROM generate_series(2, 10001) n")
        await seen.until(lambda: len(seen.rows) == 10_001)
        assert [data["id"] for _, data in seen[1:]] == list(range(2, 10_002))
        await execute("DELETE FROM message")
        await seen.until(lambda: seen.rows == {})


async def test_many_changes_of_one_row_end_with_its_last_state(
    sync: Backsync, postgresql: PostgreSQL, execute: Execute, seen: Seen
) -> None:
    async with listen(sync.model("Message"), postgresql.url, table="message"):
        await execute("INSERT INTO message VALUES (1)")
        for number in range(200):
            await execute(f"UPDATE message SET text = '{number}' WHERE id = 1")
        await seen.until(lambda: seen.rows.get(1) == message(1, "199"))
        assert [int(data["text"] or 0) for _, data in seen] == sorted(int(data["text"] or 0) for _, data in seen)


async def test_two_programs_that_write_the_same_rows_leave_no_older_state(
    sync: Backsync, postgresql: PostgreSQL, execute: Execute, seen: Seen
) -> None:
    await execute("INSERT INTO message SELECT n FROM generate_series(1, 5) n")

    async def write(name: str) -> None:
        connection = await asyncpg.connect(postgresql.url)
        for number, id in zip(range(100), itertools.cycle(range(1, 6)), strict=False):
            await connection.execute("UPDATE message SET text = $1 WHERE id = $2", f"{name}{number}", id)
        await connection.close()

    async with listen(sync.model("Message"), postgresql.url, table="message"):
        await asyncio.gather(write("a"), write("b"))
        connection = await asyncpg.connect(postgresql.url)
        rows = {row["id"]: row["text"] for row in await connection.fetch("SELECT id, text FROM message")}
        await connection.close()
        await seen.until(lambda: {id: row["text"] for id, row in seen.rows.items()} == rows)


async def test_a_row_that_is_deleted_and_added_again_begins_anew_also_where_versions_are_counted(
    postgresql: PostgreSQL, execute: Execute
) -> None:
    sync = Backsync()
    model = sync.model("Message", version="rev")
    await execute("ALTER TABLE message ADD rev int; INSERT INTO message (id, rev) VALUES (1, 6)")
    async with listen(model, postgresql.url, table="message"), connect(sync) as client:
        view = await client.subscribe("Message")
        await execute("UPDATE message SET rev = 7")
        await client.until(lambda: view[1]["rev"] == 7)
        await execute("BEGIN; DELETE FROM message; INSERT INTO message (id, rev) VALUES (1, 1); COMMIT")
        await client.until(lambda: view[1]["rev"] == 1)


# ── Installing ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def triggers(postgresql: PostgreSQL) -> list[tuple[str, int]]:
    connection = await asyncpg.connect(postgresql.url)
    rows = await connection.fetch(
        "SELECT tgname, oid::int8 FROM pg_trigger "
        "WHERE tgrelid = 'message'::regclass AND tgname LIKE 'backsync%' ORDER BY 1"
    )
    await connection.close()
    return [tuple(row) for row in rows]


@pytest.mark.usefixtures("execute")
async def test_installing_twice_changes_nothing_and_uninstalling_leaves_nothing(
    sync: Backsync, postgresql: PostgreSQL, seen: Seen
) -> None:
    async with listen(sync.model("Message"), postgresql.url, table="message"):
        first = await triggers(postgresql)
        async with listen(Backsync().model("Message"), postgresql.url, table="public.message"):
            assert await triggers(postgresql) == first
    assert len(first) == 4
    await uninstall(postgresql.url, "message")
    await uninstall(postgresql.url.replace("://", "+asyncpg://"), "message")  # as SQLAlchemy has it
    assert await triggers(postgresql) == []


@pytest.fixture
def checked_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backsync_asgi.live.postgres.CHECK_EVERY", 0.05)


@pytest.mark.usefixtures("checked_often")
async def test_a_table_that_is_made_anew_is_followed(
    sync: Backsync, postgresql: PostgreSQL, execute: Execute, caplog: pytest.LogCaptureFixture
) -> None:
    await execute("INSERT INTO message VALUES (1, 'a'), (2, 'b')")
    async with listen(sync.model("Message"), postgresql.url, table="message"), connect(sync) as ann:
        seen = await ann.subscribe("Message")
        await execute(
            "BEGIN; DROP TABLE message; CREATE TABLE message (id int PRIMARY KEY, text text, color text);"
            "INSERT INTO message VALUES (2, 'c', 'red'); COMMIT"
        )
        await ann.until(lambda: seen == {2: {"id": 2, "text": "c", "color": "red"}})
        await execute("INSERT INTO message VALUES (3)")  # by triggers again
        await ann.until(lambda: 3 in seen)
        assert await ann.read("Message", {"color": "red"}) == [{"id": 2, "text": "c", "color": "red"}]
    assert "public.message was made anew or altered" in caplog.text


@pytest.mark.usefixtures("checked_often")
async def test_a_table_that_is_gone_for_a_while_is_followed_as_it_is_back(
    sync: Backsync, postgresql: PostgreSQL, execute: Execute, caplog: pytest.LogCaptureFixture
) -> None:
    await execute("INSERT INTO message VALUES (1, 'a'), (2, 'b')")
    async with listen(sync.model("Message"), postgresql.url, table="message"), connect(sync) as ann:
        seen = await ann.subscribe("Message")
        await execute("ALTER TABLE message RENAME TO letter")
        await ann.until(lambda: "which the database has not" in caplog.text)
        with pytest.raises(Reject, match="unavailable"):
            await ann.read("Message")
        await execute("DELETE FROM letter WHERE id = 1; ALTER TABLE letter ADD COLUMN color text DEFAULT 'red'")
        await execute("ALTER TABLE letter RENAME TO message")
        await ann.until(lambda: seen == {2: {**message(2, "b"), "color": "red"}}, within=DEADLINE)
        await execute("UPDATE message SET text = 'c'")
        await ann.until(lambda: seen[2]["text"] == "c")


@pytest.mark.usefixtures("checked_often")
@pytest.mark.parametrize(
    "statement", ["ALTER TABLE message DISABLE TRIGGER ALL", "DROP TRIGGER backsync_update ON message"]
)
async def test_triggers_that_are_gone_are_made_again(
    sync: Backsync, postgresql: PostgreSQL, execute: Execute, statement: str
) -> None:
    await execute("INSERT INTO message VALUES (1, 'a')")
    async with listen(sync.model("Message"), postgresql.url, table="message"), connect(sync) as ann:
        seen = await ann.subscribe("Message")
        await execute(f"BEGIN; {statement}; UPDATE message SET text = 'unheard'; COMMIT")
        await ann.until(lambda: seen[1]["text"] == "unheard")
        assert len(await triggers(postgresql)) == 4
        await execute("UPDATE message SET text = 'heard'")
        await ann.until(lambda: seen[1]["text"] == "heard")


@pytest.mark.usefixtures("checked_often")
async def test_a_column_that_is_added_reaches_everybody(
    sync: Backsync, postgresql: PostgreSQL, execute: Execute
) -> None:
    await execute("INSERT INTO message VALUES (1, 'a')")
    async with listen(sync.model("Message"), postgresql.url, table="message"), connect(sync) as ann:
        seen = await ann.subscribe("Message")
        await execute("ALTER TABLE message ADD COLUMN color text DEFAULT 'red'")
        await ann.until(lambda: seen == {1: {**message(1, "a"), "color": "red"}})
        await execute("UPDATE message SET text = 'b'")
        await ann.until(lambda: seen[1]["text"] == "b")


@pytest.mark.usefixtures("execute")
async def test_triggers_that_somebody_else_has_to_install_must_be_there(sync: Backsync, postgresql: PostgreSQL) -> None:
    with pytest.raises(ValueError, match=r"install=False, but public\.message lacks backsync_delete, backsync_insert"):
        async with listen(sync.model("Message"), postgresql.url, table="message", install=False):
            pytest.fail("it is live")
    async with listen(sync.model("Message"), postgresql.url, table="message"):
        pass
    async with listen(sync.model("Message"), postgresql.url, table="message", install=False):
        pass


async def test_a_column_that_is_renamed_or_added_does_not_stop_those_who_write(
    sync: Backsync, postgresql: PostgreSQL, execute: Execute, seen: Seen
) -> None:
    async with listen(sync.model("Message"), postgresql.url, table="message"):
        await execute("ALTER TABLE message ADD COLUMN color text")
        await execute("INSERT INTO message VALUES (1, 'a', false, NULL, 'red')")
        await seen.until(lambda: seen.rows == {1: {**message(1, "a"), "color": "red"}})
        await execute("ALTER TABLE message RENAME COLUMN id TO number")
        await execute("INSERT INTO message VALUES (2, 'b')")  # the trigger's key is gone; it must not fail


@pytest.mark.parametrize(
    ("table", "options", "error", "text"),
    [
        ("nothing", {}, ValueError, "table='nothing', which the database has not"),
        ("two words", {}, ValueError, "table='two words', which the database has not"),
        ("grade", {}, TypeError, "whose primary key is pupil, subject; a record has one id"),
        ("heap", {}, TypeError, "whose primary key is missing"),
        ("looks", {}, TypeError, "which is no table"),
        ("login", {}, ValueError, "would send password of public.login"),
        ("message", {"fields": ["nothing"]}, ValueError, r"got the fields \['nothing'\]"),
    ],
)
async def test_what_cannot_be_live_says_why(
    sync: Backsync,
    postgresql: PostgreSQL,
    execute: Execute,
    table: str,
    options: dict[str, Any],
    error: type[Exception],
    text: str,
) -> None:
    await execute(
        """
        CREATE TABLE IF NOT EXISTS grade (pupil int, subject text, PRIMARY KEY (pupil, subject));
        CREATE TABLE IF NOT EXISTS heap (text text);
        CREATE TABLE IF NOT EXISTS login (id int PRIMARY KEY, password text);
        CREATE OR REPLACE VIEW looks AS SELECT 1 AS id
        """
    )
    with pytest.raises(error, match=text):
        async with listen(sync.model("Message"), postgresql.url, table=table, **options):
            pytest.fail("it is live")


async def test_a_wrong_address_shows_at_once(sync: Backsync) -> None:
    with pytest.raises(OSError, match="1"):
        async with listen(sync.model("Message"), "postgresql://tests@127.0.0.1:1/postgres", table="message"):
            pytest.fail("it is live")


def test_records_have_one_home(sync: Backsync) -> None:
    with pytest.raises(ValueError, match="records have one home"):
        listen(sync.model("Message", store=MemoryStore()), "postgresql://", table="message")


async def test_a_record_that_cannot_be_made_does_not_stop_the_others(
    sync: Backsync, postgresql: PostgreSQL, execute: Execute, seen: Seen, caplog: pytest.LogCaptureFixture
) -> None:
    def to_record(row: dict[str, Any]) -> dict[str, Any]:
        return {"shout": row["text"].upper()}

    async with listen(sync.model("Message"), postgresql.url, table="message", to_record=to_record):
        await execute("INSERT INTO message VALUES (1, NULL), (2, 'b')")
        await seen.until(lambda: bool(seen))
    assert seen == [("upsert", {"id": 2, "shout": "B"})]
    assert "The change of Message 1 cannot be broadcast" in caplog.text


# ── Faults ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_connection_that_is_cut_is_made_again_and_the_gap_is_closed(
    sync: Backsync, postgresql: PostgreSQL, execute: Execute, seen: Seen, caplog: pytest.LogCaptureFixture
) -> None:
    await execute("INSERT INTO message SELECT n, 'same' FROM generate_series(1, 20) n")
    async with listen(sync.model("Message"), postgresql.url, table="message"):
        for round in range(3):
            # In one transaction with the cut, so that the listener cannot have heard of the change.
            last = 100 + round
            await execute(  # without triggers: as if the listener had been cut off before
                "BEGIN; SET LOCAL session_replication_role = replica;"  # no triggers
                f"UPDATE message SET text = 'new' WHERE id = 20; DELETE FROM message WHERE id = {round + 1};"
                f"INSERT INTO message VALUES ({last});"
                "COMMIT"
            )
            await execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'backsync Message'"
            )
            await seen.until(functools.partial(lambda last: last in seen.rows, last))
        await execute("INSERT INTO message VALUES (200)")
        await seen.until(lambda: 200 in seen.rows)
    assert {data["id"] for method, data in seen if method == "delete"} == {1, 2, 3}
    assert {data["id"] for method, data in seen if method == "upsert"} == {20, 100, 101, 102, 200}, "only differences"
    assert caplog.text.count("has lost its connection") >= 3


@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_server_that_starts_again_is_followed(
    sync: Backsync, seen: Seen, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "backsync")
    with postgres() as server:
        connection = await asyncpg.connect(server.url)
        await connection.execute("SET synchronous_commit = on; CREATE TABLE message (id int PRIMARY KEY, text text)")
        await connection.execute("INSERT INTO message VALUES (1, 'a')")
        async with listen(sync.model("Message"), server.url, table="message"):
            await connection.execute("UPDATE message SET text = 'b'")
            await seen.until(lambda: seen.rows == {1: {"id": 1, "text": "b"}})
            await connection.close()
            await asyncio.to_thread(getattr(server, how))
            await seen.until(lambda: "has lost its connection" in caplog.text)
            async with connect(sync) as ann:
                with pytest.raises(Reject) as refused:
                    await ann.read("Message")
                assert refused.value.code == "unavailable"
                await asyncio.to_thread(server.start)
                connection = await asyncpg.connect(server.url)
                await connection.execute("INSERT INTO message VALUES (2, 'c')")
                await seen.until(lambda: 2 in seen.rows)
                assert len(await ann.read("Message")) == 2
                await connection.close()


async def test_a_fault_in_the_listener_is_logged_and_it_goes_on(
    sync: Backsync,
    postgresql: PostgreSQL,
    execute: Execute,
    seen: Seen,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with listen(sync.model("Message"), postgresql.url, table="message") as listener:
        broadcast = listener._broadcast

        async def fail(*_: Any) -> None:
            monkeypatch.setattr(listener, "_broadcast", broadcast)
            raise RuntimeError("planted")

        monkeypatch.setattr(listener, "_broadcast", fail)
        await execute("INSERT INTO message VALUES (1, 'a')")
        await seen.until(lambda: seen.rows == {1: message(1, "a")})
    assert "failed and starts again" in caplog.text


async def test_leaving_ends_it(sync: Backsync, postgresql: PostgreSQL, execute: Execute, seen: Seen) -> None:
    async with listen(sync.model("Message"), postgresql.url, table="message"):
        pass
    await execute("INSERT INTO message VALUES (1)")
    assert not [task for task in asyncio.all_tasks() if "backsync listens" in task.get_name()]
    connection = await asyncpg.connect(postgresql.url)
    async with asyncio.timeout(DEADLINE):
        listening = f"SELECT count(*) {LISTENERS}"
        while await connection.fetchval(listening):  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.01)
    await connection.close()
    assert seen == []


async def test_the_program_in_the_documents_runs(
    postgresql: PostgreSQL, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = next(block for block in py_blocks() if "DATABASE_URL" in block)
    monkeypatch.setenv("DATABASE_URL", postgresql.url)
    names: dict[str, Any] = {"__name__": "app"}
    exec(compile(program, "<docs/databases.md>", "exec", dont_inherit=True), names)
    app = names["app"]
    async with app.router.lifespan_context(app), connect(app, "/backsync") as ann:
        seen = await ann.subscribe("Message")
        await execute("INSERT INTO message VALUES (1, 'from psql')")
        await ann.until(lambda: seen == {1: message(1, "from psql")})
