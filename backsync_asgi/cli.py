"""The command `backsync`: runs an application under uvicorn with the settings that suit it; it knows no application."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import Any

from .hosts import Hosts, is_loopback, name_of

APP, HOSTS = "BACKSYNC_RUN_APP", "BACKSYNC_RUN_HOSTS"  # for the process that a reloader starts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. `arguments` are those after the command's name."""
    parser = argparse.ArgumentParser(prog="backsync", description="Backsync's command line.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run an ASGI application with Backsync's WebSocket protocol")
    run.add_argument("app", help="where the application is: module:attribute, such as app:app")
    run.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    run.add_argument(
        "--port",
        type=_port,
        default=os.environ.get("PORT") or "8000",
        help="port to listen on, 0 for a free one (default: $PORT, else 8000)",
    )
    run.add_argument("--reload", action="store_true", help="start again when a Python file changes")
    run.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a further host name that browsers may use for it, *.NAME for all below; may be repeated",
    )
    run.add_argument("--compress", action="store_true", help="permessage-deflate, at about 50 KiB for each connection")
    run.add_argument("--log-level", default="info", help="uvicorn's log level (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        names = [name_of(name) for name in options.allow_host]
    except ValueError as error:
        run.error(f"argument --allow-host: {error}")
    for module in ("uvicorn", "websockets"):
        if not _is_installed(module):
            _say(f'backsync run needs {module}: pip install "backsync-asgi[server]"')
            return 1
    import uvicorn

    app: str = options.app
    checks = bool(names) or is_loopback(options.host)
    if checks:
        os.environ[APP], os.environ[HOSTS] = app, ",".join(names)
        app = f"{__name__}:checked_application"
    else:
        _say(
            f"Listening on {options.host}: every machine that reaches it may connect, by any host name. "
            "To allow only some names: --allow-host NAME."
        )
    if os.environ.get("WEB_CONCURRENCY", "1") not in ("", "1"):
        _say(
            f"WEB_CONCURRENCY={os.environ['WEB_CONCURRENCY']} is ignored: the application runs in one process, since "
            "several would not know of each other's records."
        )
    protocol = "CompressingWebSocketProtocol" if options.compress else "WebSocketProtocol"
    uvicorn.run(
        app,
        factory=checks,
        app_dir=".",
        host=options.host,
        port=options.port,
        reload=options.reload,
        workers=1,  # also where WEB_CONCURRENCY says otherwise: the state is in one process
        log_level=options.log_level,
        ws=f"backsync_asgi.uvicorn:{protocol}",
        timeout_graceful_shutdown=15,
    )
    return 0


def checked_application() -> Hosts:
    """The application behind the check of its host names. Ends the process, as uvicorn does, where there is none."""
    from uvicorn.importer import ImportFromStringError, import_from_string

    try:
        app: Any = import_from_string(os.environ[APP])
    except ImportFromStringError as error:
        _say(f"Error loading ASGI app. {error}")
        sys.exit(3)  # as uvicorn does
    with contextlib.suppress(TypeError):  # as uvicorn finds a factory out
        app = app()
    return Hosts(app, [name for name in os.environ[HOSTS].split(",") if name])


def _port(text: str) -> int:
    """For argparse, which names the option and the value where this raises ValueError."""
    port = int(text)
    if not 0 <= port <= 65_535:
        raise argparse.ArgumentTypeError(f"got {port}, expected 0 to 65535")
    return port


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # ValueError: something has taken it out of sys.modules
        return False


def _say(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201
