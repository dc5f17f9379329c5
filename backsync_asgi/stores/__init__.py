"""Where records live: the contract and its implementations."""

from typing import TYPE_CHECKING, Any

from .base import Store
from .memory import MemoryStore

if TYPE_CHECKING:
    from .sql import SQLStore
    from .tables import table_of

__all__ = ["MemoryStore", "SQLStore", "Store", "table_of"]


def __getattr__(name: str) -> Any:
    """`SQLStore` and `table_of` need SQLAlchemy, an extra, so they are imported where they are asked for."""
    if name in ("SQLStore", "table_of"):
        from . import sql, tables

        return sql.SQLStore if name == "SQLStore" else tables.table_of
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
