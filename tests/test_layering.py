"""Imports go down; the rules of import-linter hold, and would be seen to fail."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "intarsia"


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


def _lint_imports(folder: Path, source: Path) -> subprocess.CompletedProcess[str]:
    # grimp finds the package on sys.path, so the first entry decides which tree is read
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from importlinter.cli import lint_imports; "
        "sys.exit(lint_imports(no_cache=True))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, str(source)],
        cwd=folder, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def _copy(to: Path) -> Path:
    """The package's tree without its contents but the imports that a test plants."""
    shutil.copy(ROOT / "pyproject.toml", to)
    package = to / "src" / "intarsia"
    for path in _sources():
        copy = package / path.relative_to(SRC)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.touch()
    return package


def test_every_contract_is_kept() -> None:
    pytest.importorskip("importlinter", reason="import-linter comes with intarsia[dev]")
    run = _lint_imports(ROOT, SRC.parent)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    ("files", "broken"),
    [
        ({"core/x.py": "import intarsia.scores.y", "scores/y.py": ""}, "imports go down"),
        ({"train/x.py": "from ..methods import y", "methods/y.py": ""}, "imports go down"),
        ({"surprise/x.py": ""}, "imports go down"),
        ({"routers/topk.py": "from .topp import z", "routers/topp.py": "z = 1"}, "a router knows"),
        ({"methods/x.py": "from . import y", "methods/y.py": ""}, "a method knows no other"),
        ({"scores/x.py": "from . import y", "scores/y.py": ""}, "a score knows no other"),
        ({"adapters/x.py": "import peft"}, "stay at the edge"),
        ({"train/x.py": "def f():\n    from transformers import Trainer"}, "stay at the edge"),
    ],
    ids=[
        "up", "sideways", "unplaced", "routers", "methods", "scores", "peft", "in a function",
    ],
)  # fmt: skip
def test_a_planted_violation_is_found(tmp_path: Path, files: dict[str, str], broken: str) -> None:
    pytest.importorskip("importlinter", reason="import-linter comes with intarsia[dev]")
    package = _copy(tmp_path)
    for name, text in files.items():
        path = package / name
        path.parent.mkdir(exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text + "\n")
    run = _lint_imports(tmp_path, package.parent)
    assert run.returncode == 1, run.stdout + run.stderr
    assert [line for line in run.stdout.splitlines() if broken in line and "BROKEN" in line]


@pytest.mark.parametrize("path", sorted((SRC / "core").rglob("*.py")), ids=lambda p: p.name)
def test_core_imports_torch_only(path: Path) -> None:
    # filelock locks files, and torch needs it itself
    allowed = sys.stdlib_module_names | {"torch", "filelock", "intarsia"}
    outside = {name for name, dots in _imports(ast.parse(path.read_text())) if not dots}
    assert {name.partition(".")[0] for name in outside} <= allowed


def test_only_the_host_touches_the_inside_of_peft() -> None:
    inside = {
        path.relative_to(SRC).as_posix()
        for path in _sources()
        for name, dots in _imports(ast.parse(path.read_text()))
        if not dots and name.startswith("peft.")
    }
    assert inside <= {"hosts/attach/peft.py"}


def test_no_import_of_our_own_hides_in_a_function() -> None:
    # nothing imports the command line: there a late import hides no cycle, it saves start-up time
    hidden = []
    for path in _sources("cli"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                ours = [n for n, dots in _imports(function) if dots or n.startswith("intarsia")]
                hidden += [f"{path.relative_to(SRC)}::{function.name}: {name}" for name in ours]
    assert not hidden
