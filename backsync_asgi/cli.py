"""The command `backsync`: runs an application under uvicorn with the settings that suit it; it knows no application."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. `arguments` are those after the command's name."""
    parser = argparse.ArgumentParser(prog="backsync", description="Backsync's command line.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run an ASGI application with Backsync's WebSocket protocol")
    run.add_argument("app", help="where the application is: module:attribute, such as app:app")
    run.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    run.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    run.add_argument("--reload", action="store_true", help="start again when a Python file changes")
    run.add_argument("--compress", action="store_true", help="permessage-deflate, at about 50 KiB for each connection")
    run.add_argument("--log-level", default="info", help="uvicorn's log level (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        import uvicorn
    except ImportError:
        print('backsync run needs uvicorn: pip install "backsync-asgi[server]"', file=sys.stderr)  # noqa: T201
        return 1
    protocol = "CompressingWebSocketProtocol" if options.compress else "WebSocketProtocol"
    uvicorn.run(
        options.app,
        app_dir=".",
        host=options.host,
        port=options.port,
        reload=options.reload,
        log_level=options.log_level,
        ws=f"backsync_asgi.uvicorn:{protocol}",
        timeout_graceful_shutdown=15,
    )
    return 0
