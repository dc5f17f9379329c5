"""Where a write of Django went, whether it was committed, and what becomes of the connections of handlers."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

import tests.live.django_project.settings  # noqa: F401 - sets Django up, which the imports below need

# isort: split
from asgiref.sync import sync_to_async
from django.core.signals import request_started
from django.db import connections, models, transaction
from django.db.models.signals import post_save
from django.test.utils import override_settings

from backsync_asgi import Backsync, Reject
from backsync_asgi.live import UnseenWrite, live
from backsync_asgi.live.django import LiveModel
from backsync_asgi.testing import connect
from tests.live.django_project.models import Big
from tests.live.heard import Heard
from tests.postgres import PostgreSQL


@pytest.fixture(autouse=True)
def tables() -> Iterator[None]:
    """Empty tables in both databases."""
    for alias in ("default", "other"):
        with connections[alias].schema_editor() as editor:
            editor.create_model(Big)
    yield
    for alias in ("default", "other"):
        with connections[alias].schema_editor() as editor:
            editor.delete_model(Big)
    connections.close_all()


@contextmanager
def made_live(sync: Backsync, mapped: type[Any] = Big, **options: Any) -> Iterator[LiveModel]:
    """Live for the block only: the receivers are Django's, of the whole process."""
    feed = live(sync.model("Big"), mapped, **options)
    assert isinstance(feed, LiveModel)
    try:
        yield feed
    finally:
        feed.close()


@pytest.fixture
def sync() -> Backsync:
    return Backsync()


@pytest.fixture
def heard(sync: Backsync, monkeypatch: pytest.MonkeyPatch) -> Heard:
    return Heard(sync, monkeypatch, "Big")


def write_in_every_way(alias: str) -> None:
    objects = Big.objects.using(alias)
    objects.create(id=1)
    objects.bulk_create([Big(id=2), Big(id=3)])
    objects.filter(id__gt=1).update(room=5)
    objects.get(id=2).delete()
    with transaction.atomic(alias), connections[alias].cursor() as cursor:
        if alias == "other":
            cursor.execute("update django_project_big set room = 6")


# ── Another database ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_written_to_another_database_is_no_record_of_this_one(
    sync: Backsync, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    """A write is compared with where the model reads."""
    with made_live(sync) as feed:
        write_in_every_way("other")
        assert heard.take() == []
        assert caplog.text.count("is written in the database 'other'") == 1, "logged once"
        write_in_every_way("again")
        assert ("delete", 2) in heard.ids(), "an alias of the same database"
        write_in_every_way("default") if not Big.objects.exists() else Big.objects.filter(id=1).update(room=7)
        assert heard.ids() == [("upsert", 1)]
        with pytest.raises(ValueError, match="got using='other', but has its records in 'default'"):
            feed.changed([1], using="other")


class ByTenant:
    """A router that chooses by context."""

    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="default")

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return self.tenant.get()

    db_for_write = db_for_read


class Replicated:
    """A router that reads from a replica."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return "other"

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "default"


def test_a_router_that_chooses_by_context_is_asked_without_one(sync: Backsync, heard: Heard) -> None:
    with override_settings(DATABASE_ROUTERS=[f"{__name__}.ByTenant"]):
        token = ByTenant.tenant.set("other")
        with made_live(sync):
            Big.objects.create(id=1)
            ByTenant.tenant.reset(token)
            Big.objects.create(id=2)
    assert heard.ids() == [("upsert", 2)]


def test_a_model_that_is_read_from_a_replica_is_written_to_its_leader(sync: Backsync, heard: Heard) -> None:
    with override_settings(DATABASE_ROUTERS=[f"{__name__}.Replicated"]), made_live(sync):
        Big.objects.create(id=1)
    assert heard.ids() == [("upsert", 1)]


# ── Ways to commit ───────────────────────────────────────────────────────────────────────────────────────────────────


class Planted(Exception):
    """What a hook of another program raises."""


def fail() -> None:
    raise Planted


def test_a_hook_of_another_program_that_fails_does_not_keep_a_commit_back(sync: Backsync, heard: Heard) -> None:
    """The hooks after one that fails are not called."""
    with made_live(sync):
        with pytest.raises(Planted), transaction.atomic():
            transaction.on_commit(fail)
            Big.objects.create(id=1)
            Big.objects.create(id=2)
            transaction.on_commit(fail)
            Big.objects.create(id=3)
        assert heard.ids() == [("upsert", 1), ("upsert", 2), ("upsert", 3)]
        with pytest.raises(Planted), transaction.atomic():
            Big.objects.create(id=4)
            with pytest.raises(Planted), transaction.atomic():
                Big.objects.create(id=5)
                raise Planted
            fail()
        assert heard.take() == []


def test_a_receiver_or_wrapper_of_another_program_that_fails_keeps_nothing_back(sync: Backsync, heard: Heard) -> None:
    def receive(**_: Any) -> None:
        raise Planted

    def wrap(execute: Any, sql: str, *arguments: Any) -> Any:
        result = execute(sql, *arguments)
        if sql.startswith("UPDATE"):
            raise Planted
        return result

    post_save.connect(receive, Big)
    try:
        with made_live(sync):
            with pytest.raises(Planted):
                Big.objects.create(id=1)
            assert heard.ids() == [("upsert", 1)]
            with pytest.raises(Planted), connections["default"].execute_wrapper(wrap):
                Big.objects.update(room=5)
            assert heard.take() == [("upsert", {"id": 1, "room": 5, "size": None, "tags": None})]
    finally:
        post_save.disconnect(receive, Big)


def test_a_connection_from_before_is_heard_from_the_next_request_on(sync: Backsync, heard: Heard) -> None:
    is_live, updates = threading.Event(), threading.Event()

    def work() -> None:
        Big.objects.create(id=1)
        updates.set()
        assert is_live.wait(10)
        request_started.send(sender=None)
        Big.objects.update(room=1)
        connections.close_all()

    thread = threading.Thread(target=work)
    # A request closes connections that are old; one that is kept was made before.
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(connections.settings["default"], "CONN_MAX_AGE", None)
        thread.start()
        assert updates.wait(10)
        with made_live(sync):
            is_live.set()
            thread.join(10)
    assert heard.ids() == [("upsert", 1)]


def test_a_commit_by_hand_is_refused(sync: Backsync, heard: Heard) -> None:
    with made_live(sync):
        transaction.set_autocommit(False)
        try:
            with pytest.raises(UnseenWrite, match=r"while autocommit is off. Use transaction.atomic\(\)"):
                Big.objects.create(id=1)
            transaction.rollback()
        finally:
            transaction.set_autocommit(True)
    assert heard.take() == []


def test_a_primary_key_that_an_update_changes_is_a_delete_and_an_upsert(sync: Backsync, heard: Heard) -> None:
    with made_live(sync):
        Big.objects.create(id=1)
        Big.objects.update(id=2)
        assert heard.ids()[-2:] == [("delete", 1), ("upsert", 2)]
        with pytest.raises(UnseenWrite):
            Big.objects.update(id=models.F("id") + 1)


# ── Connections of handlers ──────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def alias_of(server: PostgreSQL, **options: Any) -> AsyncIterator[str]:
    """An alias of a PostgreSQL database, with the table."""
    pytest.importorskip("psycopg")
    host, port = server.url.split("@")[1].split("/")[0].split(":")
    connections.settings["postgres"] = {
        **connections.settings["default"],
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "postgres",
        "USER": "tests",
        "HOST": host,
        "PORT": port,
        "OPTIONS": {},
        **options,
    }

    def make() -> None:
        with connections["postgres"].cursor() as cursor:
            cursor.execute("DROP TABLE IF EXISTS django_project_big")
        with connections["postgres"].schema_editor() as editor:
            editor.create_model(Big)

    try:
        await sync_to_async(make)()
        yield "postgres"
    finally:
        await sync_to_async(connections.close_all)()
        del connections.settings["postgres"]


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_handler_gets_over_a_database_that_was_away(
    sync: Backsync, postgresql: PostgreSQL, is_async: bool
) -> None:
    """Connections of threads that no request of Django's looks after: dead ones are made again."""
    threads: set[int] = set()
    async with alias_of(postgresql, CONN_MAX_AGE=None) as alias:
        if is_async:

            @sync.model("Big").on("count")
            async def count(ctx: Any, data: Any) -> int:
                return int(await Big.objects.using(alias).acount())

        else:

            @sync.model("Big").on("count")
            def count_plain(ctx: Any, data: Any) -> int:
                threads.add(threading.get_ident())
                return int(Big.objects.using(alias).count())

        async with connect(sync) as client:
            assert [await client.call("Big:count") for _ in range(3)] == [0, 0, 0]
            postgresql.restart()
            answers: list[Any] = []
            while answers[-4:] != [0] * 4:
                try:
                    answers.append(await client.call("Big:count"))
                except Reject as refused:
                    answers.append(refused.code)
                assert answers.count("handler_error") <= max(1, len(threads)), "at most once in each thread"


async def test_plain_handlers_leave_no_idle_connections(sync: Backsync) -> None:
    """By Django's CONN_MAX_AGE, 0 by itself, a connection is closed as the handler that opened it has ended."""
    held: set[Any] = set()
    all_there = threading.Barrier(5, timeout=10)

    @sync.model("Big").on("count")
    def count(ctx: Any, data: Any) -> int:
        found: int = Big.objects.count()
        held.add(connections["default"])
        all_there.wait()
        return found

    clients = [connect(sync) for _ in range(5)]
    try:
        async with asyncio.TaskGroup() as group:
            for client in clients:
                await client.__aenter__()
                group.create_task(client.call("Big:count"))
    finally:
        for client in clients:
            await client.__aexit__(None, None, None)
    assert [connection.connection for connection in held] == [None] * 5


# ── Another schema ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_schemas_by_search_path_are_kept_apart(sync: Backsync, postgresql: PostgreSQL) -> None:
    class InPostgres:
        def db_for_read(self, model: Any, **hints: Any) -> str:
            return "postgres"

        db_for_write = db_for_read

    def write(schema: str, id: int) -> None:
        connection = connections["postgres"]
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}; SET search_path TO {schema}")
            cursor.execute("CREATE TABLE IF NOT EXISTS django_project_big (LIKE public.django_project_big)")
        Big.objects.create(id=id)
        with connection.cursor() as cursor:
            cursor.execute("SET search_path TO public")

    async with alias_of(postgresql):
        with override_settings(DATABASE_ROUTERS=[InPostgres()]), made_live(sync) as feed:
            async with connect(sync) as client:
                seen = await client.subscribe("Big")
                await sync_to_async(write)("tenant_b", 1)
                await sync_to_async(write)("public", 2)
                await client.until(lambda: 2 in seen and not feed._again._tasks)
                assert seen.keys() == {2}
