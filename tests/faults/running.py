"""Plant faults in copies of the tree, and run the tests of their systems there.

Each run is a fork of this process, which has imported the libraries and nothing of the project.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .planting import ROOT, Fault

# compiled modules go along: each process would compile the whole library again
LEFT_OUT = shutil.ignore_patterns(".*", "site", "build", "dist")
HEAVY = ("torch", "timm", "transformers", "peft", "scipy.optimize", "sklearn.base", "hypothesis")
SAID = "said.txt"  # what the tests of a tree have written
UNUSABLE = 70  # the exit status of a process in which pytest could not begin
WORDS = [
    *("-q", "-x", "-n", "0", "-p", "no:cacheprovider"),
    # what kills processes is of no paper, takes long, and may turn on a loaded machine
    *("-k", "not killed"),
    # what HEAVY has imported may be a plugin of pytest's, too
    *("-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"),
]
PLACE = ("system", "file", "line", "fault")  # what a fault is known by in a file of answers
LONGEST = 900  # seconds until tests that a fault keeps from ending are stopped


@dataclass(frozen=True)
class Seen:
    """Answer of the tests to a fault: the first that failed, "" if it survived."""

    fault: Fault
    by: str


def look_for(some: Sequence[Fault], jobs: int = 1, seen: Sequence[Seen] = ()) -> Iterator[Seen]:
    """Run the tests with each fault; yield what they say, as they end.

    seen: answers of an earlier run, whose faults are not planted again.
    Raises: RuntimeError if a test that failed does so without a fault, ValueError for a fault that
    does not fit.
    """
    failed = {answer.by: None for answer in seen if "::" in answer.by}
    answered = {answer.fault for answer in seen}
    some = [fault for fault in some if fault not in answered]
    for fault in some:
        fault.planted((ROOT / fault.file).read_text())
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for name in HEAVY:
        importlib.import_module(name)
    with TemporaryDirectory(prefix="intarsia-faults-") as place:
        trees = [Path(place, str(number)) for number in range(max(1, min(jobs, len(some))))]
        for tree in trees:
            shutil.copytree(ROOT, tree, ignore=LEFT_OUT)
        for outcome in _each(some, [*trees]):
            if "::" in outcome.by:
                failed[outcome.by] = None
            yield outcome
        if failed and (output := ended(begun(trees[0], failed), trees[0])):
            raise RuntimeError(f"{output} fails without a fault, too: mend it first.")


def answers(file: Path, some: Iterable[Fault]) -> list[Seen]:
    """Return those of these faults that a file has answers to, by `note`; none if it is not there.

    A fault that was changed since counts as a new one, as does one that survived other tests.
    """
    lines = file.read_text().splitlines() if file.exists() else []
    records = {tuple(row[name] for name in PLACE): row for row in map(json.loads, lines)}
    answered: list[Seen] = []
    for fault in some:
        record = records.get(tuple(_record(fault)[name] for name in PLACE))
        if record and (record["by"] or record["tests"] == [*fault.tests]):
            answered.append(Seen(fault, record["by"]))
    return answered


def note(file: Path, answer: Seen) -> None:
    """Append an answer to a file, so that a run that is cut off goes on after it."""
    with file.open("a") as lines:
        lines.write(json.dumps(_record(answer.fault) | {"by": answer.by}) + "\n")


def _record(fault: Fault) -> dict[str, Any]:
    return asdict(fault) | {"file": str(fault.file)}


def _each(some: Sequence[Fault], free: list[Path]) -> Iterator[Seen]:
    """Plant a fault in each tree that is free, until all were planted."""
    waiting, running = list(some), dict[int, tuple[Fault, Path, str]]()
    while waiting or running:
        while waiting and free:
            fault, tree = waiting.pop(0), free.pop()
            original = (tree / fault.file).read_text()
            (tree / fault.file).write_text(fault.planted(original))
            running[begun(tree, fault.tests)] = fault, tree, original
        pid, status = os.wait()
        fault, tree, original = running.pop(pid)
        (tree / fault.file).write_text(original)
        free.append(tree)
        yield Seen(fault, words_of(tree, os.waitstatus_to_exitcode(status)))


def begun(tree: Path, tests: Iterable[str]) -> int:
    """Begin to run tests in a tree, up to the first that fails; return the process."""
    # what its process cannot even write, this one finds
    (tree / SAID).write_text("")
    child = os.fork()
    if child:
        return child
    # nothing of the parent's, as its folder, is ended by a child that fails
    code = UNUSABLE
    try:
        code = _tested(tree, tests)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _tested(tree: Path, tests: Iterable[str]) -> int:
    """Run tests with a tree's modules, all words to its file."""
    sys.stdout = sys.stderr = file = (tree / SAID).open("w", buffering=1)
    for stream in (1, 2):
        os.dup2(file.fileno(), stream)
    paths = [str(tree), str(tree / "src"), str(tree / "lab" / "src")]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths[1:])
    os.chdir(tree)
    # its modules are those of the copy
    sys.path[:0] = paths
    for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
        del sys.modules[name]
    signal.alarm(LONGEST)
    import pytest

    return int(pytest.main([*WORDS, *tests]))


def ended(pid: int, tree: Path) -> str:
    """Wait for a tree's tests, and return which failed."""
    return words_of(tree, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def words_of(tree: Path, code: int) -> str:
    """Return which test failed, "" if none did.  code: what the process ended with.

    Raises: RuntimeError if pytest could not run them.
    """
    text = (tree / SAID).read_text()
    if not code:
        return ""
    if code < 0:
        return f"a process that ended by signal {-code}"
    failed = re.search(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", text, re.MULTILINE)
    if failed is None:
        raise RuntimeError(f"pytest ended with {code}:\n{text[-3000:]}")
    return failed[1]
