"""Runs a PostgreSQL server of the tests' own, on a free port and in a folder that ends with it; knows no tables."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

READY_WITHIN = 30.0  # seconds; a second on an idle machine
STOP_WITHIN = 20.0

# What the server need not do for data that nobody keeps, and where it listens.
SETTINGS = ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "listen_addresses=127.0.0.1")


class PostgreSQL:
    """A running server. `url` names its database `postgres` and a superuser who needs no password.

    `stop`, `kill` and `start` keep data and port, so that a client sees a server that comes back.
    """

    def __init__(self, folder: Path) -> None:
        self._data = folder / "data"
        self._log = folder / "log"
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        # Sorted by the language's rules, not by code points: whoever needs an order of code points must ask for it.
        locale = ["--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US"]
        run("initdb", "--no-sync", "--auth=trust", "--username=tests", "--encoding=UTF8", *locale, str(self._data))

    @property
    def url(self) -> str:
        """`postgresql://user@host:port/database`, as libpq and asyncpg read it."""
        return f"postgresql://tests@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        """Start it and wait until it takes connections; AssertionError with its log if it does not."""
        assert self._process is None, "it is running already"
        settings = [word for setting in SETTINGS for word in ("-c", setting)]
        command = command_of("postgres", "-D", str(self._data), "-p", str(self._port), "-k", "", *settings)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until = time.monotonic() + READY_WITHIN
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise AssertionError(f"PostgreSQL did not start:\n{self._log.read_text()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it in good order: clients are cut off, what they had not committed is rolled back."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it at once, as a crash does; what was committed is there after the next start."""
        self._end(signal.SIGQUIT)

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        process.send_signal(how)
        try:
            process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"PostgreSQL was running {STOP_WITHIN} s after {how.name}") from None

    def _answers(self) -> bool:
        done = subprocess.run(
            [binaries() / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self._port)], check=False, timeout=10
        )
        return done.returncode == 0


@contextmanager
def postgres() -> Iterator[PostgreSQL]:
    """A server that runs while the block does; AssertionError where none is installed."""
    binaries()
    with tempfile.TemporaryDirectory(prefix="backsync-postgres-") as name:
        folder = Path(name)
        if os.getuid() == 0:
            os.chown(folder, *account())
        server = PostgreSQL(folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def binaries() -> Path:
    """The folder of the newest installed server's programs."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    found = str(installed[-1]) if installed else shutil.which("initdb")
    assert found is not None, "There is no PostgreSQL server: `make setup` installs one, or put initdb on the PATH."
    return Path(found).resolve().parent


def command_of(program: str, *words: str) -> list[str]:
    """The command that runs a program of the server, not as root, which it refuses, and no longer than this process."""
    command = ["setpriv", "--pdeathsig", "INT"]
    if os.getuid() == 0:
        uid, gid = account()
        command += [f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
    return [*command, str(binaries() / program), *words]


def run(program: str, *words: str) -> None:
    done = subprocess.run(command_of(program, *words), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def account() -> Sequence[int]:
    """The user and group that the server runs as where the tests run as root."""
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise AssertionError("PostgreSQL refuses to run as root, and there is neither a user `postgres` nor `nobody`.")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
