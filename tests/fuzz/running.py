"""Cases are carried out in forked processes with limits of time and memory, and counted."""

from __future__ import annotations

import gc
import json
import math
import os
import random
import resource
import select
import shutil
import signal
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from intarsia.core.errors import IntarsiaError

from .kinds import Kind, digest
from .mutations import BYTES, CANARY, INSTEAD, IRREGULAR, of_format, replace

OUTCOMES = {
    "clean": "an IntarsiaError",
    "same": "opened, with the same result",
    "other": "opened, with another result",
    "raw": "another exception",
    "hang": "over the limit of time",
    "died": "the process ended",
    "ran": "code out of the file was run",
}
BAD = ("raw", "hang", "died", "ran")
BATCH = 10  # cases of a process: forking takes longer than most of them
CPU_SECONDS = 10
SECONDS = 15  # without any time of the processor: something is waited for
MEMORY, FILE = 2**31, 2**28  # bytes beside what a process has at its start, and of a file it writes


@dataclass(frozen=True)
class Case:
    """A damaged file.

    number: with the seed, which damage is done; seed: None for the file of that number in the place
    of which stands no regular file, but a pipe, a device or a folder.
    """

    kind: Kind
    number: int
    seed: int | None = 0

    @property
    def name(self) -> str:
        return f"{self.kind.name}/{self.number}"

    def damage(self, folder: Path) -> str:
        """Damage one file in a folder.  Returns what was done."""
        draw, files = random.Random(f"{self.seed}/{self.name}"), _files(folder)
        path = files[self.number] if self.seed is None else draw.choice(files)
        place = path.relative_to(folder).as_posix()
        if self.seed is None or draw.random() < 0.1:
            irregular = IRREGULAR[self.number % len(IRREGULAR)]
            name = irregular if self.seed is None else draw.choice(INSTEAD)
            replace(path, name)
            return f"{place}: replaced by {name}"
        before = path.read_bytes()
        knowing = of_format(path, before)
        mutate = draw.choice(knowing if knowing and draw.random() < 0.7 else BYTES)
        after = mutate(before, draw)
        path.write_bytes(after)
        signed = draw.random() < 0.5 and _signed(folder, before, after)
        return f"{place}: {mutate.__name__.strip('_')}{', signed again' if signed else ''}"


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _signed(folder: Path, before: bytes, after: bytes) -> bool:
    """Write the new digest wherever the old one stands, so that what is behind it is looked at."""
    old, new = (sha256(raw).hexdigest().encode() for raw in (before, after))
    files = [p for p in folder.rglob("*.json") if p.is_file() and old in p.read_bytes()]
    for path in files if old != new else ():
        content = path.read_bytes()
        path.write_bytes(content.replace(old, new))
        _signed(folder, content, path.read_bytes())
    return bool(files)


@dataclass(frozen=True)
class Ended:
    """The end of a case.  error: type and text, or the traceback of a raw one."""

    case: Case
    outcome: str
    damage: str
    error: str = ""


class Fuzz:
    """Good files of each kind, made and opened once, and damaged copies of them.

    Opening them here loads what they need, so that a forked process starts with it.
    """

    def __init__(self, kinds: Iterable[Kind], work: Path) -> None:
        self.work, self.kinds = work, tuple(kinds)
        self.results: dict[str, str] = {}
        for kind in self.kinds:
            good = work / "good" / kind.name
            good.mkdir(parents=True)
            kind.make(good)
            self.results[kind.name] = digest(kind.open(self._copy(kind)))
        gc.collect()
        gc.freeze()

    def cases(self, count: int, seed: int = 0) -> Iterator[Case]:
        """Draw `count` cases, of all kinds in turn."""
        for i in range(count):
            yield Case(self.kinds[i % len(self.kinds)], i // len(self.kinds), seed)

    def irregular(self) -> Iterator[Case]:
        """A case for every good file, which is no regular one any more."""
        for kind in self.kinds:
            for number in range(len(_files(self.work / "good" / kind.name))):
                yield Case(kind, number, None)

    def run(self, cases: Iterable[Case]) -> Iterator[Ended]:
        """Carry cases out, some in each forked process; after a bad end begin another."""
        remaining = list(cases)
        while remaining:
            ends = self._forked(remaining[:BATCH])
            yield from ends
            remaining = remaining[len(ends) :]

    def _copy(self, kind: Kind) -> Path:
        folder = self.work / "case"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.work / "good" / kind.name, folder, symlinks=True)
        return folder

    def _forked(self, cases: Sequence[Case]) -> list[Ended]:
        """The ends of these cases, or of the first of them up to one that ends the process."""
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.close(read)
            self._child(cases, write)
        os.close(write)
        ends: list[Ended] = []
        damage, late = "", False
        # of each case two lines: what is done, and how that ended
        with open(read, "rb", buffering=0) as pipe:
            while len(ends) < len(cases):
                late = _is_late(child, pipe)
                if late or not (line := pipe.readline()):  # a byte at a time: none waits unseen
                    break
                kind, *rest = json.loads(line)
                if kind == "damage":
                    (damage,) = rest
                else:
                    ends.append(Ended(cases[len(ends)], kind, damage, *rest))
        if late:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if len(ends) < len(cases):
            slow = late or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU)
            outcome = "hang" if slow else "died"
            ends.append(Ended(cases[len(ends)], outcome, damage, f"status {status}"))
        return ends

    def _child(self, cases: Sequence[Case], write: int) -> None:
        """Damage and open them, one after the other; never returns."""
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1):
            os.dup2(nowhere, number)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with open(write, "w") as pipe:
            for case in cases:
                folder = self._copy(case.kind)
                print(json.dumps(("damage", case.damage(folder))), file=pipe, flush=True)
                os.chdir(folder)
                _limit(resource.RLIMIT_CPU, math.ceil(time.process_time()) + CPU_SECONDS)
                _limit(resource.RLIMIT_FSIZE, FILE)
                outcome, error = self._attempt(case.kind, folder)
                _limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
                os.chdir(self.work)
                if (folder / CANARY).exists():
                    outcome = "ran"
                print(json.dumps((outcome, error[-5000:])), file=pipe, flush=True)
            os._exit(0)

    def _attempt(self, kind: Kind, folder: Path) -> tuple[str, str]:
        """Open it.  Returns how that ended, and the error."""
        try:
            result = digest(kind.open(folder))
            return "same" if result == self.results[kind.name] else "other", ""
        except IntarsiaError as error:
            return "clean", f"{type(error).__name__}: {error}"
        except BaseException:
            return "raw", traceback.format_exc()


def _is_late(child: int, pipe: Any) -> bool:
    """Wait for a line; True for a process that has none and takes no time of the processor."""
    before = -1
    while not select.select([pipe], [], [], SECONDS)[0]:
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        if (ticks := int(fields[11]) + int(fields[12])) <= before + 1:
            return True
        before = ticks
    return False


def _limit(limit: int, value: int) -> None:
    """Set a limit that can be lifted again."""
    resource.setrlimit(limit, (value, resource.RLIM_INFINITY))


def counts(ends: Sequence[Ended]) -> dict[str, dict[str, int]]:
    """Count the cases with each outcome, by kind and over "all"."""
    counted: dict[str, dict[str, Any]] = {}
    for end in ends:
        for name in (end.case.kind.name, "all"):
            row = counted.setdefault(name, dict.fromkeys(OUTCOMES, 0))
            row[end.outcome] += 1
    return counted
