"""Plants known faults into a copy of the package, one at a time, and expects the tests to notice each of them.

    python scripts/mutants.py [--why] [WORD...]

With words, only the mutants whose names have one of them; --why tells which test failed and how.

A mutant is a replacement in the source. One that no longer fits its source, or that no test notices, is a failure.
Each one is run against the state machine, where its rules can meet it, and against the examples that should notice.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MACHINE = ("tests/convergence/test_machine.py", "-k", "Core or Asgi")
FAULTS = ("tests/convergence/test_faults.py",)
COMMITS = ("tests/test_commits.py",)
LIMIT = 180  # seconds for one run; a fault may well show as a standstill


@dataclass(frozen=True)
class Mutant:
    """A fault: `changes` are (old, new) texts in `file`, each of which must be there exactly once.

    examples: the tests that notice it by an example. machine: whether the state machine must notice it, too.
    """

    name: str
    file: str
    changes: tuple[tuple[str, str], ...]
    examples: tuple[str, ...] = FAULTS
    machine: bool = True


MUTANTS = (
    Mutant("resume off by one", "channel.py", (("if change.seq <= seq:", "if change.seq <= seq + 1:"),)),
    Mutant("gap accepted", "channel.py", (("return self.floor <= seq <= self.seq", "return seq <= self.seq"),)),
    Mutant(
        "epoch not changed",
        "hub.py",
        (("Channel(secrets.token_hex(8), hub.horizon)", 'Channel("the epoch", hub.horizon)'),),
    ),
    Mutant("no dedup", "connection.py", (("known = retries.find(client, id, now)", "known = None"),)),
    Mutant(
        "delete ignored",
        "models.py",
        (('topic.publish("delete", id, messages.encode({"id": id}) if body is None else body)', "pass"),),
    ),
    Mutant("drop on full", "hub.py", (("subscriber.behind[self] = start", "self.live[subscriber] = None"),)),
    Mutant(
        "snapshot then subscribe",
        "connection.py",
        (
            (
                '        self._attach(ctx, topic, query, answer["seq"] if present is None else min('
                'present, answer["seq"]))\n'
                "        acting.hold(topic)",
                "        pass",
            ),
            (
                '        self._subscriber.catch_up(topic, answer["seq"])',
                '        if seq is None:\n            answer["seq"] = topic.channel.seq\n'
                '        self._attach(ctx, topic, query, answer["seq"])\n'
                "        acting.hold(topic)\n"
                '        self._subscriber.catch_up(topic, answer["seq"])',
            ),
        ),
    ),
    Mutant(
        "snapshot merged",
        "client.py",
        (("self._records = {str(record", "self._records |= {str(record"),),
    ),
    Mutant(
        "two receivers",
        "sockjs/session.py",
        (("if self.receiver is not None:\n            receiver", "if False:\n            receiver"),),
        examples=("tests/sockjs/test_session.py",),
        machine=False,
    ),
    Mutant("operation id not checked", "connection.py", (("if known.digest != said:", "if False:"),), machine=False),
    Mutant(
        "escape set without U+2028",
        "sockjs/frames.py",
        ((r"\u2028-\u202f", r"\u2029-\u202f"),),
        examples=("tests/sockjs/test_frames.py",),
        machine=False,
    ),
    Mutant(
        "expiry by the wall clock",
        "hub.py",
        (("now: Callable[[], float] = time.monotonic", "now: Callable[[], float] = lambda: time.time()"),),
        machine=False,
    ),
    Mutant(
        "permission checked at subscribe only",
        "connection.py",
        (
            (
                "await self._check_guard(ctx, model, query)\n            records",
                "records",
            ),
        ),
    ),
    Mutant(
        "position good for another user",
        "connection.py",
        (("        if not ctx.model.tells_apart:", "        if True:"),),
        machine=False,
    ),
    Mutant(
        "a partial body applied",
        "sockjs/server.py",
        (
            (
                '"http.disconnect":\n                        return None',
                '"http.disconnect":\n                        break',
            ),
        ),
        machine=False,
    ),
    Mutant("echo before the reply", "hub.py", (("            acting.hold(self)", "            pass"),)),
    Mutant(
        "bytes of an invisible record pushed",
        "visibility.py",
        (("if seen is None:\n            return push.gone", "if seen is None:\n            return push.message"),),
    ),
    Mutant("hold not released", "hub.py", (("            self.subscriber.release(topic)", "            pass"),)),
    Mutant(
        "moved record stays in its old room",
        "places.py",
        (('topic.publish("delete", id, messages.encode({"id": id}))', "pass"),),
    ),
    Mutant("ephemeral record outlives its client", "ephemeral.py", (("        if is_back():", "        if True:"),)),
    Mutant(
        "commit broken off",
        "handlers.py",
        (("await asyncio.shield(task)", "await task"),),
        examples=COMMITS,
        machine=False,
    ),
    Mutant(
        "commit of a handler untold",
        "commits.py",
        (("for write in (writes or {}).values():", "for write in ():"),),
        examples=COMMITS,
        machine=False,
    ),
    Mutant(
        "channel that a record has passed untold",
        "commits.py",
        (("_Write(id, begun, place, has_moved)", "_Write(id, begun, place, False)"),),
        examples=COMMITS,
        machine=False,
    ),
    Mutant(
        "older state told last",
        "commits.py",
        (("return self._last.get(str(id), self._forgotten) > number", "return False"),),
        examples=COMMITS,
        machine=False,
    ),
    Mutant(
        "writers not waited for before all read anew",
        "models.py",
        (("            for name in self._being_written():", "            for name in ():"),),
        examples=COMMITS,
        machine=False,
    ),
    Mutant(
        "doubtful commit forgotten",
        "models.py",
        (("            except Unsure:\n                self._doubt(id)", "            except Unsure:"),),
        examples=COMMITS,
        machine=False,
    ),
    Mutant(
        "older version after a snapshot",
        "models.py",
        (("await self._catch_up({str(change.body.id) for", "set({str(change.body.id) for"),),
        examples=COMMITS,
        machine=False,
    ),
    Mutant(
        "record that is added again not followed",
        "models.py",
        (("                self._doubt(id)  # it was deleted", "                pass  # it was deleted"),),
        examples=COMMITS,
        machine=False,
    ),
    Mutant(
        "closed socket written to",
        "sockjs/session.py",
        (("            changed.append(self)", "            pass"),),
        examples=("tests/test_hub.py",),
        machine=False,
    ),
    Mutant(
        "who waits is written to",
        "sockjs/receivers.py",
        (("waits_for))\n        self._set_writable(False)", "waits_for))\n        self.writable = False"),),
        examples=("tests/test_hub.py",),
        machine=False,
    ),
    Mutant(
        "burst within a broadcast",
        "hub.py",
        (("        if hub.is_delivering:\n            return", "        if False:\n            return"),),
        examples=("tests/test_hub.py",),
        machine=False,
    ),
    Mutant(
        "changes of links that were not read",
        "hub.py",
        (("if self._epoch is changed.epoch and", "if self._epoch is not None and"),),
        examples=("tests/test_hub.py",),
        machine=False,
    ),
    Mutant(
        "who has left is written to",
        "hub.py",
        (("            self._displace(link)\n        return link", "            pass\n        return link"),),
        examples=("tests/test_hub.py",),
        machine=False,
    ),
    Mutant(
        "part of a message taken for a whole one",
        "uvicorn.py",
        (("self._parts = 0 if head[0] & FINAL else self._parts + 1", "self._parts = 0"),),
        examples=("tests/test_uvicorn.py",),
        machine=False,
    ),
    Mutant(
        "write of long ago found",
        "retries.py",
        (("or now - write.at > self._memory.age else write", "else write"),),
        examples=("tests/test_retries.py",),
        machine=False,
    ),
)


def plant(mutant: Mutant, package: Path) -> str | None:
    """Change the copy. Returns what is wrong if the mutant does not fit."""
    file = package / mutant.file
    text = file.read_text()
    for old, new in mutant.changes:
        if text.count(old) != 1:
            return f"{old!r} is {text.count(old)} times in {mutant.file}, expected once"
        text = text.replace(old, new)
    file.write_text(text)
    return None


def run(place: Path, tests: tuple[str, ...]) -> tuple[str, float, str]:
    """What the tests say in the copy: "red", "green" or "broken"; how many seconds they took; what has failed first."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *tests]
    begin = time.monotonic()
    why = ""
    try:
        done = subprocess.run(
            command,
            cwd=place,
            env={**os.environ, "BACKSYNC_EFFORT": "mutants", "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        verdict = {0: "green", 1: "red"}.get(done.returncode, "broken")
        why = next((line for line in done.stdout.splitlines() if line.startswith("FAILED ")), "")
        if verdict == "broken":
            print(done.stdout[-2_000:], done.stderr[-2_000:])
    except subprocess.TimeoutExpired:
        verdict, why = "red", f"no end after {LIMIT} s"
    return verdict, time.monotonic() - begin, why.removeprefix("FAILED ")


def copy(place: Path) -> None:
    """The package, its tests and their settings, without what was built."""
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for name in ("backsync_asgi", "tests"):
        shutil.copytree(ROOT / name, place / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", place)


def main(words: list[str]) -> int:
    explain = "--why" in words
    words = [word for word in words if word != "--why"]
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    failed = 0
    width = max(len(mutant.name) for mutant in chosen)
    print(f"{'mutant':{width}}  {'state machine':16}  {'examples':16}")
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) / "copy"
        copy(place)
        tests = dict.fromkeys((MACHINE, *(mutant.examples for mutant in chosen)))
        healthy = {suite: run(place, suite)[0] for suite in tests}
        for suite, verdict in healthy.items():
            if verdict != "green":
                print(f"{suite[0]} is {verdict} without a mutant")
                return 1
        for mutant in chosen:
            shutil.rmtree(place)
            copy(place)
            wrong = plant(mutant, place / "backsync_asgi")
            if wrong is not None:
                print(f"{mutant.name:{width}}  does not apply: {wrong}")
                failed += 1
                continue
            verdicts = [run(place, MACHINE) if mutant.machine else ("—", 0.0, ""), run(place, mutant.examples)]
            cells = [f"{verdict} {seconds:5.1f} s" if seconds else verdict for verdict, seconds, _ in verdicts]
            caught = all(verdict in ("red", "—") for verdict, _, _ in verdicts)
            failed += not caught
            print(f"{mutant.name:{width}}  {cells[0]:16}  {cells[1]:16}{'' if caught else '  NOT CAUGHT'}", flush=True)
            if explain:
                print(*(f"    {why}" for _, _, why in verdicts if why), sep="\n", flush=True)
    print(f"{len(chosen) - failed} of {len(chosen)} mutants were caught")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
