"""Database hooks: what an application commits to a database that it has already is broadcast by its models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from backsync_asgi.handlers import check_signature, is_async
from backsync_asgi.messages import shorten

from .feed import UnseenWrite

if TYPE_CHECKING:
    from backsync_asgi.models import Model

    from .django import LiveModel
    from .postgres import Listener
    from .sqlalchemy import LiveMapping

__all__ = ["UnseenWrite", "listen", "live"]


def live(
    model: Model,
    mapped: type[Any],
    *,
    session: Any = None,
    fields: Sequence[str] | None = None,
    to_record: Callable[[Any], dict[str, Any]] | None = None,
    bulk: str = "publish",
) -> LiveMapping | LiveModel:
    """Broadcast every committed insert, update and delete of a mapped class, wherever in this process it happens.

    mapped: a class that SQLAlchemy maps, or a Django model.
    session: for SQLAlchemy, a `sessionmaker`, `async_sessionmaker`, `Engine` or `AsyncEngine`: with it the model reads
        from the table, as stores are read, unless it has a `read` handler. A Django model needs none.
    fields: the attributes that make a record; by default all columns that are not deferred.
    to_record: `(object)` to a record, instead. It may use relationships; it is called where they can be loaded.
    bulk: "publish" covers statements over many rows, too, and refuses with UnseenWrite those whose rows cannot be
        known, such as SQL given as text; "ignore" lets all that goes past `session.add` or `object.save()` pass unseen.

    A record's `id` is the primary key. Raises TypeError or ValueError for a class that cannot be live, saying why, and
    for an async engine with one connection for all sessions: a client that reads would roll back others.
    """
    _check_model(model, "live")
    _check_options(f"live({model.name})", fields, to_record)
    is_class = isinstance(mapped, type)
    if is_class and hasattr(mapped, "__mapper__"):
        from .sqlalchemy import LiveMapping

        return LiveMapping(model, mapped, session=session, fields=fields, to_record=to_record, bulk=bulk)
    if is_class and hasattr(mapped, "_meta") and hasattr(mapped, "_base_manager"):
        if session is not None:
            raise TypeError(f"live({model.name}) got session={session!r}; a Django model needs none.")
        from .django import LiveModel

        return LiveModel(model, mapped, fields=fields, to_record=to_record, bulk=bulk)
    raise TypeError(f"live({model.name}) got {mapped!r}, expected a class that SQLAlchemy maps, or a Django model.")


def listen(
    model: Model,
    dsn: str,
    *,
    table: str,
    fields: Sequence[str] | None = None,
    to_record: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    install: bool = True,
) -> Listener:
    """Broadcast every committed change of a PostgreSQL table, whichever program makes it: `async with listen(…):`.

    Entering connects, installs triggers on the table if they are missing, and reads the keys of all rows: each costs
    some 150 bytes of memory. Raises there what asyncpg raises, and TypeError or ValueError for a table that cannot be
    live. Later a lost connection is made again, a table that was made anew gets its triggers, and what has changed
    meanwhile is found and broadcast.

    dsn: `postgresql://user:password@host:port/database`, with or without a driver's name.
    table: its name as in SQL, such as `message` or `app."Order"`.
    fields: the columns that make a record; by default all. to_record: `(row)` to a record, instead; the row as the
        database makes JSON of it (`to_jsonb`).
    install: False leaves the triggers to you, where the program may not make them (`live.postgres.install` does): they
        have to be there.

    The model reads from the table, as stores are read, unless it has a `read` handler.
    """
    _check_model(model, "listen")
    _check_database(f"listen({model.name})", dsn, table, install)
    _check_options(f"listen({model.name})", fields, to_record)
    from .postgres import Listener

    return Listener(model, dsn, table=table, fields=fields, to_record=to_record, install=install)


def _check_model(model: object, function: str) -> None:
    if not hasattr(model, "read_from"):
        raise TypeError(f'{function} got {model!r} as its model, expected one such as sync.model("Message").')


def _check_database(start: str, dsn: Any, table: Any, install: Any) -> None:
    """Raises TypeError for what is no URL of PostgreSQL, no table's name, no flag."""
    if not isinstance(dsn, str) or not dsn.startswith(("postgresql:", "postgres:", "postgresql+", "postgres+")):
        got = shorten(dsn.partition(":")[0]) + " before the first colon" if isinstance(dsn, str) else shorten(dsn)
        expected = "the URL of a PostgreSQL database, such as 'postgresql://user@host/database'"
        raise TypeError(f"{start} got a dsn with {got}, expected {expected}.")
    if not isinstance(table, str) or not table:
        raise TypeError(f"{start} got table={shorten(table)}, expected the table's name as in SQL, such as 'message'.")
    if not isinstance(install, bool):
        raise TypeError(f"{start} got install={shorten(install)}, expected True or False.")


def _check_options(start: str, fields: Any, to_record: Any) -> None:
    """Raises TypeError for options of the wrong kind."""
    if fields is not None and (
        isinstance(fields, str) or not isinstance(fields, Iterable) or not all(isinstance(it, str) for it in fields)
    ):
        raise TypeError(f"{start} got fields={shorten(fields)}, expected a list of names, such as ['title', 'done'].")
    if to_record is None:
        return
    expected = "a plain function that takes the row and returns a record"
    if not callable(to_record) or is_async(to_record):
        raise TypeError(f"{start} got to_record={shorten(to_record)}, expected {expected}.")
    with suppress(ValueError):  # a class or function of C tells no signature
        check_signature(to_record, 1, f"{start} expects {expected}")
