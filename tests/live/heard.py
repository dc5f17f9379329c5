"""What the hooks hand to a model, caught before it gets to a channel."""

from __future__ import annotations

from typing import Any

import pytest

from backsync_asgi import Backsync


class Heard:
    """What a model publishes, noted where it leaves the hook; the channel itself is the hub's matter."""

    def __init__(self, sync: Backsync, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self._all: list[tuple[str, Any]] = []
        for name in names:
            monkeypatch.setattr(sync.model(name), "publish", self._note)

    def _note(self, method: str, data: Any) -> None:
        self._all.append((method, data))

    def take(self) -> list[tuple[str, Any]]:
        """What has come since the last call."""
        taken, self._all = self._all, []
        return taken

    def ids(self) -> list[tuple[str, Any]]:
        return [(method, data["id"]) for method, data in self.take()]
