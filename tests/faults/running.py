"""Plant faults in copies of the tree, and run the tests of their systems there.

Each run is a fork of this process, which has imported the libraries and nothing of the project.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from .planting import ROOT, Fault

LEFT_OUT = shutil.ignore_patterns(".*", "site", "build", "dist", "__pycache__")
HEAVY = ("torch", "timm", "transformers", "peft", "scipy.optimize", "sklearn.base", "hypothesis")
LONGEST = 900  # seconds until tests that a fault keeps from ending are stopped


@dataclass(frozen=True)
class Seen:
    """Answer of the tests to a fault: the first that failed, "" if it survived."""

    fault: Fault
    by: str


def look_for(some: Sequence[Fault], jobs: int = 1) -> Iterator[Seen]:
    """Run the tests without a fault, then with each; yield what they say, as they end.

    Raises: RuntimeError if they fail without one, ValueError for a fault that does not fit.
    """
    for fault in some:
        fault.planted((ROOT / fault.file).read_text())
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for name in HEAVY:
        importlib.import_module(name)
    with TemporaryDirectory(prefix="intarsia-faults-") as place:
        trees = [Path(place, str(number)) for number in range(max(1, min(jobs, len(some))))]
        for tree in trees:
            shutil.copytree(ROOT, tree, ignore=LEFT_OUT)
        whole = begun(trees[0], dict.fromkeys(t for fault in some for t in fault.tests))
        if said := words_of(trees[0], os.waitstatus_to_exitcode(os.waitpid(whole, 0)[1])):
            raise RuntimeError(f"{said} fails without a fault: mend it first.")
        yield from _each(some, trees)


def _each(some: Sequence[Fault], free: list[Path]) -> Iterator[Seen]:
    """Plant a fault in each tree that is free, until all were planted."""
    waiting, running = list(some), dict[int, tuple[Fault, Path, str]]()
    while waiting or running:
        while waiting and free:
            fault, tree = waiting.pop(0), free.pop()
            whole = (tree / fault.file).read_text()
            (tree / fault.file).write_text(fault.planted(whole))
            running[begun(tree, fault.tests)] = fault, tree, whole
        pid, status = os.wait()
        fault, tree, whole = running.pop(pid)
        (tree / fault.file).write_text(whole)
        free.append(tree)
        yield Seen(fault, words_of(tree, os.waitstatus_to_exitcode(status)))


def begun(tree: Path, tests: Iterable[str]) -> int:
    """Begin to run tests in a tree, up to the first that fails; return the process."""
    child = os.fork()
    if child:
        return child
    paths = [str(tree), str(tree / "src"), str(tree / "lab" / "src")]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths[1:])
    os.chdir(tree)
    with (tree / "said.txt").open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    # its modules are those of the copy
    sys.path[:0] = paths
    for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
        del sys.modules[name]
    signal.alarm(LONGEST)
    import pytest

    code = pytest.main(["-q", "-x", "-n", "0", "-p", "no:cacheprovider", *tests])
    sys.stdout.flush()
    os._exit(int(code))


def words_of(tree: Path, code: int) -> str:
    """Return which test failed, "" if none did.  code: what the process ended with.

    Raises: RuntimeError if pytest could not run them.
    """
    text = (tree / "said.txt").read_text()
    if not code:
        return ""
    if code < 0:
        return f"a process that ended by signal {-code}"
    failed = re.search(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", text, re.MULTILINE)
    if failed is None:
        raise RuntimeError(f"pytest ended with {code}:\n{text[-3000:]}")
    return failed[1]
