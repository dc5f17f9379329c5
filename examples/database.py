"""Where the examples keep what must outlive them: SQLite, or what `DATABASE_URL` says. It knows none of them."""

import os
from collections.abc import Sequence

from backsync_asgi.stores import SQLStore

FILE = "examples.db"  # in the folder in which the server is started


def database(*, index: Sequence[str] = ()) -> SQLStore:
    """A store for one model, in a table of the model's name. index: the fields by which it is ordered."""
    return SQLStore(os.environ.get("DATABASE_URL") or f"sqlite:///{FILE}", index=index)
