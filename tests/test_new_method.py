"""A new method is at most four files by hand; all else comes from one command."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from intarsia.core.errors import ConfigError

from .refusals import refused

ROOT = Path(__file__).parents[1]
BY_HAND = 4
STUBS = ("adapters/__init__.pyi", "routers/__init__.pyi")
GENERATED = (
    *("src/intarsia/core/cards.json", "docs/reference.md"),
    *(f"src/intarsia/{stub}" for stub in STUBS),
)
NEW: dict[str, Any] = runpy.run_path(str(ROOT / "scripts" / "new_method.py"))
TOYS = {"router": "toy_gate", "adapter": "toy_change"}
COPIED = (
    "src",
    "docs",
    "scripts",
    "CHANGELOG.md",
    "pyproject.toml",
    "tests/conftest.py",
    "tests/reference",
)
GENERATE_AND_CHECK = """
import runpy
import sys
import pytest
keys, tests = sys.argv[1].split(), sys.argv[2:]
class Pages:
    def pytest_sessionstart(self):  # pytest wants to import its plugins first
        sys.argv[1:] = []
        runpy.run_module("intarsia_lab.pages.methods", run_name="__main__")
code = pytest.main(["-q", "-p", "no:cacheprovider", *tests], plugins=[Pages()])
from intarsia.catalog import card
from intarsia.conformance import check
for key in keys:
    for law in check(card(key)):
        assert law() is None, law.name
sys.exit(code)
"""


def copy_of_the_tree(to: Path) -> Path:
    for name in (*COPIED, *(f"tests/{folder}" for folder in NEW["FOLDERS"].values())):
        source, copy = ROOT / name, to / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    return to


def contents(tree: Path) -> dict[str, bytes]:
    made = {"__pycache__", ".hypothesis"}
    files = (p for p in tree.rglob("*") if p.is_file() and made.isdisjoint(p.parts))
    return {p.relative_to(tree).as_posix(): p.read_bytes() for p in files}


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def python(tree: Path, *args: str) -> None:
    run = subprocess.run(
        [sys.executable, *args],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]


def test_a_router_and_an_adapter_are_at_most_four_files_by_hand(tmp_path: Path) -> None:
    tree = copy_of_the_tree(tmp_path)
    for kind, key in TOYS.items():
        before = contents(tree)
        python(tree, "scripts/new_method.py", kind, key, "--paper", "2401.00001")
        by_hand = changed(before, contents(tree))
        assert f"tests/{kind}s/test_{key}.py" in by_hand and len(by_hand) <= BY_HAND
    before = contents(tree)
    tests = [f"tests/{kind}s/test_{key}.py" for kind, key in TOYS.items()]
    python(tree, "-c", GENERATE_AND_CHECK, " ".join(TOYS.values()), *tests)
    pages = {f"docs/methods/{name}.md" for name in ("index", *TOYS.values())}
    stubs = {f"src/intarsia/{folder}/__init__.pyi" for folder in NEW["FOLDERS"].values()}
    assert changed(before, contents(tree)) == {*GENERATED, *pages, *stubs}


@pytest.mark.parametrize(
    ("key", "paper", "got"),
    [
        ("topk", "2401.00001", "'topk'"),
        ("TopK2", "2401.00001", "'TopK2'"),
        ("toy", "arXiv 2401", "'arXiv 2401'"),
    ],
)
def test_a_name_that_is_taken_or_no_number_is_refused(key: str, paper: str, got: str) -> None:
    with refused(ConfigError, got=got):
        NEW["values"](key, paper, "")


def test_a_file_that_exists_is_not_written_over(tmp_path: Path) -> None:
    old = tmp_path / "src" / "intarsia" / "routers" / "toy.py"
    old.parent.mkdir(parents=True)
    old.write_text("mine\n")
    with refused(ConfigError, what="new file"):
        NEW["write"]("router", NEW["values"]("toy", "2401.00001", ""), tmp_path)
    assert old.read_text() == "mine\n"
