"""Whether several worker processes serve one application without knowing of each other; it knows no Backsync.

Workers of one server have the same parent. The first one of an application locks a place of a file, which the system
frees when the process ends; the others find it taken. Where that cannot be done, nothing is found out.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

_places: dict[int, int] = {}  # that this process holds: its id, to tell those of a process that has forked it
_files: dict[int, int] = {}  # the open file, by the id of the process: closing it would free the places


def is_worker() -> bool:
    """Whether a server has started this process beside others, or may: uvicorn, hypercorn and granian by
    multiprocessing, gunicorn by a fork."""
    return multiprocessing.parent_process() is not None or "gunicorn.arbiter" in sys.modules


def take(application: str, number: int, *, again: bool = True) -> bool:
    """Hold a numbered place among the workers of one parent. False: another process has it.

    application: what tells it from others of the same parent. again: the answer if this process has it already.
    """
    name = f"{os.getppid()} {number} {application}"
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7])
    if _places.get(place) == os.getpid():
        return again
    try:
        file = _file()
    except OSError:
        return True
    if not _lock(file, place):
        return False
    _places[place] = os.getpid()
    return True


def _file() -> int:
    file = _files.get(os.getpid())
    if file is None:
        user = os.getuid() if hasattr(os, "getuid") else ""
        path = Path(tempfile.gettempdir()) / f"backsync-{user}.lock"
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        file = _files[os.getpid()] = os.open(path, flags, 0o600)
    return file


def _lock(file: int, place: int) -> bool:
    """Lock one byte, which need not be there."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(file, place, os.SEEK_SET)
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import errno
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place, os.SEEK_SET)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def where_made(depth: int) -> str:
    """The place in the program that calls so many functions above this one."""
    with suppress(ValueError):
        frame = sys._getframe(depth + 1)
        return f"{frame.f_code.co_filename}:{frame.f_lineno}"
    return ""
