"""Imports go down; the rules of import-linter hold, and would be seen to fail."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "intarsia"
LAB = ROOT / "lab" / "src" / "intarsia_lab"


def _sources(*but: str) -> list[Path]:
    paths = sorted(SRC.rglob("*.py"))
    return [p for p in paths if p.relative_to(SRC).parts[0] not in but]


def _imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every imported module as written: (name, leading dots)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level


@pytest.mark.thorough
def test_a_class_name_means_one_thing() -> None:
    named: dict[str, list[str]] = {}
    for path in (*_sources(), *sorted(LAB.rglob("*.py"))):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                named.setdefault(node.name, []).append(path.relative_to(ROOT).as_posix())
    twice = {name: places for name, places in named.items() if len(places) > 1}
    assert named and not twice, "give all but one of each another name"


# grimp finds the packages on sys.path, so the first entries decide which tree is read
LINTED = """
import os, sys
from importlinter.cli import lint_imports
for folder in sys.argv[1:]:
    os.chdir(folder)
    sources = [os.path.join(folder, "src"), os.path.join(folder, "lab", "src")]
    sys.path[:0] = sources
    print("TREE", flush=True)
    print("EXIT", lint_imports(no_cache=True), flush=True)
    del sys.path[:2]
"""


@pytest.fixture(scope="module")
def linted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run import-linter on this tree, "", and on each with a violation, in one process."""
    pytest.importorskip("importlinter", reason="import-linter comes with intarsia[dev]")
    trees = {"": ROOT}
    for name, (files, _) in PLANTED.items():
        folder = tmp_path_factory.mktemp("tree")
        package = _copy(folder)
        for path, text in files.items():
            (package / path).parent.mkdir(exist_ok=True)
            ((package / path).parent / "__init__.py").touch()
            (package / path).write_text(text + "\n")
        trees[name] = folder
    words = [sys.executable, "-c", LINTED, *map(str, trees.values())]
    run = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    outputs = run.stdout.split("TREE\n")[1:]
    assert len(outputs) == len(trees), run.stdout + run.stderr
    return dict(zip(trees, outputs, strict=True))


def _copy(target: Path) -> Path:
    """The package's tree without its contents but the imports that a test plants."""
    shutil.copy(ROOT / "pyproject.toml", target)
    package = target / "src" / "intarsia"
    for path in (*_sources(), *LAB.rglob("*.py")):
        copy = target / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.touch()
    return package


PLANTED: dict[str, tuple[dict[str, str], str]] = {
    "up": ({"core/x.py": "import intarsia.scores.y", "scores/y.py": ""}, "imports go down"),
    "sideways": ({"train/x.py": "from ..methods import y", "methods/y.py": ""}, "imports go down"),
    "strategies": (
        {"train/x.py": "from ..parallel import y", "parallel/y.py": ""},
        "imports go down",
    ),
    "unplaced": ({"surprise/x.py": ""}, "imports go down"),
    "laboratory": ({"core/x.py": "import intarsia_lab.experiments"}, "nothing of its laboratory"),
    "routers": (
        {"routers/topk.py": "from .topp import z", "routers/topp.py": "z = 1"},
        "a router knows",
    ),
    "methods": (
        {"methods/x.py": "from . import y", "methods/y.py": ""},
        "a method knows no other",
    ),
    "scores": ({"scores/x.py": "from . import y", "scores/y.py": ""}, "a score knows no other"),
    "peft": ({"adapters/x.py": "import peft"}, "stay at the edge"),
    "in a function": (
        {"train/x.py": "def f():\n    from transformers import Trainer"},
        "stay at the edge",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_found(name: str, linted: dict[str, str]) -> None:
    output, broken = linted[name], PLANTED[name][1]
    assert "EXIT 1" in output, output
    assert [line for line in output.splitlines() if broken in line and "BROKEN" in line]


@pytest.mark.parametrize("path", sorted((SRC / "core").rglob("*.py")), ids=lambda p: p.name)
def test_core_imports_torch_only(path: Path) -> None:
    # filelock locks files, and torch needs it itself; safetensors is what every file of tensors is
    allowed = sys.stdlib_module_names | {"torch", "filelock", "safetensors", "intarsia"}
    # where caches are, and the columns of a Parquet file, which only such a file imports
    allowed |= {"platformdirs", "pyarrow"}
    outside = {name for name, dots in _imports(ast.parse(path.read_text())) if not dots}
    assert {name.partition(".")[0] for name in outside} <= allowed


def test_only_the_host_touches_the_inside_of_peft() -> None:
    inside = {
        path.relative_to(SRC).as_posix()
        for path in _sources()
        if "peft." in (text := path.read_text())
        for name, dots in _imports(ast.parse(text))
        if not dots and name.startswith("peft.")
    }
    assert inside <= {"hosts/attach/peft.py"}


def test_no_import_of_our_own_hides_in_a_function() -> None:
    # nothing imports the command line: there a late import hides no cycle, it saves start-up time
    hidden = []
    for path in _sources("cli"):
        if not re.search(r"^[ \t]+(from|import)\b", text := path.read_text(), re.M):
            continue
        for function in ast.walk(ast.parse(text)):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                ours = [n for n, dots in _imports(function) if dots or n.startswith("intarsia")]
                hidden += [f"{path.relative_to(SRC)}::{function.name}: {name}" for name in ours]
    assert not hidden


# the files that do not open what a user hands over, or cannot go through core/reading.py
OWN_READERS = {
    "core/reading.py": "is that place",
    "core/sealing.py": "writes a digest into a file that was written just before",
    # files of the package itself, of the system, and of this process
    "catalog.py": "", "cli/completing.py": "", "core/exports.py": "",
    "core/registry.py": "", "runs/one_run.py": "", "serve/app.py": "",
    "kernels/native/building.py": "", "reports/page.py": "", 
    "train/record.py": "", "sparse/prune/tables.py": "",
    # packages that were downloaded and compared with their digests
    "data/conversions.py": "", "data/corpora.py": "", "data/naves.py": "",
    "data/packages.py": "", "data/readers.py": "", "data/reverse_dictionary.py": "",
    "senses/data/hearing.py": "", "data/sounds.py": "",
    "data/decode.py": "Pillow opens by name, so that its errors have the name; checked before",
    "folders/out/preprocessing.py": "is copied into exported folders and stands alone there",
    "data/labelled.py": "Parquet and npz, after check_regular",
    "runs/labelled_release.py": "a module of the library, copied into the export",
    "hosts/in_memory.py": "the maps of this process",
    "models/classify/standalone.py": "is copied into exported folders and stands alone there",
    "train/progress.py": "its own lines of a run that goes on; checked before",
}  # fmt: skip
OPENERS = {
    "read_text", "read_bytes", "safe_open", "from_file", "fromfile", "memmap",
    "shutil.copy", "shutil.copy2", "shutil.copyfile", "shutil.copytree",
    "np.load", "numpy.load", "torch.load", "wave.open", "Image.open", "gzip.open", "tarfile.open",
    "json.load", "wavfile.read", "soundfile.read",
}  # fmt: skip


def _opens(call: ast.Call) -> bool:
    """Tell whether a call opens a file for reading by its name."""
    words = ast.unparse(call.func)
    name = words.rpartition(".")[2]
    if name == "load_file":  # our own classes have it, too: Trace.load_file(path)
        return words == name or words.startswith("safetensors.")
    if name == "open" and words not in OPENERS:
        mode = [k.value for k in call.keywords if k.arg == "mode"]
        mode += call.args[1:2] if words == "open" else call.args[:1]
        modes = [m.value for m in mode if isinstance(m, ast.Constant)]
        # others have a method of that name, too
        return not (mode or words.startswith("os.")) or any(str(m).startswith("r") for m in modes)
    if words in ("read_text", "read_bytes"):
        return False  # those of core/reading.py
    # what it has opened is called raw
    return (name in OPENERS or words in OPENERS) and "raw" not in map(ast.unparse, call.args)


def test_files_of_others_are_opened_in_one_place() -> None:
    calls: dict[str, list[str]] = {}
    for path in _sources():
        if not re.search(r"(open|load|_file|fromfile|memmap|read_\w+|copy\w*)\b", path.read_text()):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("safetensors"):
                names = {alias.name for alias in node.names} & {"load_file", "safe_open"}
                calls.setdefault(path.relative_to(SRC).as_posix(), []).extend(names)
            if isinstance(node, ast.Call) and _opens(node):
                calls.setdefault(path.relative_to(SRC).as_posix(), []).append(ast.unparse(node))
    calls = {path: callers for path, callers in calls.items() if callers}
    assert calls.keys() - OWN_READERS == set(), "use core/reading.py, or say in OWN_READERS why not"
    assert OWN_READERS.keys() - calls == set(), "the list only shrinks"
