"""The databases of these tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from tests.postgres import PostgreSQL


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """A database in which the app's table is not there yet."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/rows.db"
        return
    server: PostgreSQL = request.getfixturevalue("postgresql")
    yield server.url
    connection = await asyncpg.connect(server.url)
    await connection.execute("DROP TABLE IF EXISTS rows")
    await connection.close()
