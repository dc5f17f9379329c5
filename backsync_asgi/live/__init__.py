"""Database hooks: what an application commits to a database that it has already is broadcast by its models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .feed import UnseenWrite

if TYPE_CHECKING:
    from backsync_asgi.models import Model

    from .sqlalchemy import LiveMapping

__all__ = ["UnseenWrite", "live"]


def live(
    model: Model,
    mapped: type[Any],
    *,
    session: Any = None,
    fields: Sequence[str] | None = None,
    to_record: Callable[[Any], dict[str, Any]] | None = None,
    bulk: str = "publish",
) -> LiveMapping:
    """Broadcast every committed insert, update and delete of a mapped class, wherever in this process it happens.

    mapped: a class that SQLAlchemy maps.
    session: a `sessionmaker`, `async_sessionmaker`, `Engine` or `AsyncEngine`. With it the model reads from the
        database, unless it has a `read` handler already.
    fields: the attributes that make a record; by default all columns that are not deferred. **All**: name them where
        a column is nobody's business.
    to_record: `(object)` to a record, instead. It may use relationships; it is called in a session.
    bulk: "publish" covers statements that go past the unit of work, or refuses them with UnseenWrite where their rows
        cannot be known; "ignore" lets them pass unseen.

    A record's `id` is the primary key. Raises TypeError or ValueError for a class that cannot be live, saying why.
    """
    if hasattr(mapped, "__mapper__"):
        from .sqlalchemy import LiveMapping

        return LiveMapping(model, mapped, session=session, fields=fields, to_record=to_record, bulk=bulk)
    raise TypeError(f"live({model.name}) got {mapped!r}, expected a class that SQLAlchemy maps.")
