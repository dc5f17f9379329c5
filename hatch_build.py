"""Refuses to build a distribution that lacks the browser client; knows its file names, not how they are made."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CLIENT_FILES = ("backsync.js", "backsync.mjs", "backsync.d.ts", "sockjs.js")


class ClientIsBuilt(BuildHookInterface[Any]):
    """An editable install may come before the client is built; what is handed to others may not."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Stop the build, naming what is missing and how to get it. `version` is "editable" or "standard"."""
        if version == "editable":
            return
        static = Path(self.root, "backsync_asgi", "static")
        missing = [name for name in CLIENT_FILES if not (static / name).is_file()]
        if missing:
            self.app.abort(
                f"The browser client is not built: backsync_asgi/static/ lacks {', '.join(missing)}. "
                "Run `make client` (or `npm ci && npm run build` in client/) and build again."
            )
