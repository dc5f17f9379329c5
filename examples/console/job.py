"""A background job that has something to tell: it indexes Python sources. It knows nothing of who reads.

Worker threads take files from a queue and count what is in them; an asyncio task then checks that the index still
describes the files. Some of the files are drafts of the job's own, in a temporary folder, written anew each round, and
not all of them are Python: real files with real errors in them.
"""

import ast
import asyncio
import hashlib
import logging
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

log = logging.getLogger("indexer")

PAUSE = 0.5  # seconds that a worker rests after each file: the job must not be felt by the server beside it
GLANCE = 0.05  # seconds, after one that has not changed
REST = 4.0  # seconds between two rounds
LONG_FUNCTION = 60  # lines
SKIPPED = {"node_modules", "__pycache__", "build", "dist"}
DRAFTS = (
    "def greet(name):\n    return f'Hello, {name}'\n",
    "class Basket:\n    def __init__(self):\n        self.things = []\n",
    "PI = 3.14159\n",
)
BROKEN_DRAFTS = (
    "def greet(name:\n    return f'Hello, {name}'\n",
    "total = 3 +\n",
    "name = 'caf\xe9'\n",  # written as Latin-1 below: fine in Python 2, an error today
)
BROKEN_EVERY = 4  # rounds: a log has an error now and then, and one that is all errors looks broken itself


@dataclass(frozen=True)
class Entry:
    digest: str
    lines: int
    functions: int
    classes: int


class Indexer:
    """Indexes the Python files below `root`, round after round, with so many threads."""

    def __init__(self, root: Path, threads: int = 2) -> None:
        self.root = root
        self.threads = threads
        self.index: dict[Path, Entry] = {}
        self.rounds = 0
        self.unchanged: list[Path] = []  # in this round
        self.todo: Queue[Path | None] = Queue()
        self.stopping = threading.Event()

    async def run(self) -> None:
        """Works until it is cancelled; the threads are gone when it returns."""
        workers = [threading.Thread(target=self.work, name=f"worker-{n + 1}") for n in range(self.threads)]
        for worker in workers:
            worker.start()
        log.info("Indexing %s with %d workers", self.root.name, self.threads)
        try:
            with tempfile.TemporaryDirectory(prefix="drafts-") as folder:
                while True:
                    await self.round(Path(folder))
                    await asyncio.sleep(REST)
        finally:
            self.stopping.set()
            for _ in workers:
                self.todo.put(None)
            for worker in workers:
                worker.join()  # at most one file's time: the pause ends with `stopping`

    async def round(self, drafts: Path) -> None:
        started = time.monotonic()
        written = random.sample(DRAFTS, 2)
        if self.rounds % BROKEN_EVERY == 0:
            written.append(random.choice(BROKEN_DRAFTS))
        self.rounds += 1
        for stale in drafts.iterdir():  # noqa: ASYNC240
            stale.unlink()
        for number, draft in enumerate(written, start=1):
            (drafts / f"draft_{number}.py").write_bytes(draft.encode("latin-1"))
        paths = [*python_files(self.root), *python_files(drafts)]
        random.shuffle(paths)
        self.unchanged = []
        for path in paths:
            self.todo.put(path)
        await asyncio.to_thread(self.todo.join)
        if self.unchanged:
            log.debug("%d files are unchanged", len(self.unchanged))
        await self.check()
        lines = sum(entry.lines for entry in self.index.values())
        log.info("Round done: %d files, %d lines, %.1f s", len(self.index), lines, time.monotonic() - started)

    def work(self) -> None:
        """One worker's life: a file that cannot be indexed is told and forgotten, the next one waits already."""
        while True:
            path = self.todo.get()
            try:
                if path is None:
                    return
                if not self.stopping.is_set():
                    self.stopping.wait(PAUSE if self.read(path) else GLANCE)
            except Exception:  # the root of this thread: whatever one file does to us, the others want indexing
                log.exception("Cannot index %s", path and self.label(path))
            finally:
                self.todo.task_done()

    def label(self, path: Path) -> str:
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else path.name

    def read(self, path: Path) -> bool:
        """Indexes one file. False: there was nothing to do."""
        name, source = self.label(path), path.read_bytes()
        digest = hashlib.sha256(source).hexdigest()
        known = self.index.get(path)
        if known is not None and known.digest == digest:
            self.unchanged.append(path)
            return False
        self.index.pop(path, None)  # it describes another text, whatever comes of this one
        tree = ast.parse(source.decode(), filename=str(path))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        classes = sum(isinstance(node, ast.ClassDef) for node in ast.walk(tree))
        entry = self.index[path] = Entry(digest, source.count(b"\n"), len(functions), classes)
        counts = (
            (entry.lines, "line", "lines"),
            (entry.functions, "function", "functions"),
            (entry.classes, "class", "classes"),
        )
        log.info("%s: %s", name, ", ".join(f"{count} {one if count == 1 else many}" for count, one, many in counts))
        for function in functions:
            length = (function.end_lineno or function.lineno) - function.lineno + 1
            if length > LONG_FUNCTION:
                log.warning("%s:%d: %s is %d lines long", name, function.lineno, function.name, length)
        return True

    async def check(self) -> None:
        """Compares the index with the disk: what changed meanwhile is told, what is gone is dropped."""
        changed = 0
        for path, entry in list(self.index.items()):
            if not path.is_relative_to(self.root) and not path.exists():
                del self.index[path]  # a draft of an earlier round
                continue
            try:
                source = await asyncio.to_thread(path.read_bytes)
            except FileNotFoundError:
                log.warning("%s is gone", self.label(path))
                del self.index[path]
                continue
            if hashlib.sha256(source).hexdigest() != entry.digest:
                changed += 1
                log.warning("%s changed since it was indexed", self.label(path))
        if not self.index:
            log.critical("The index is empty: is %s the right folder?", self.root)
        log.debug("Checked %d files, %d changed", len(self.index), changed)


def python_files(root: Path) -> Iterator[Path]:
    """All Python files below `root`, hidden folders and what others installed left out."""
    for path in sorted(root.iterdir()):
        if path.name.startswith(".") or path.name in SKIPPED:
            continue
        if path.is_dir() and not path.is_symlink():
            yield from python_files(path)
        elif path.suffix == ".py":
            yield path
