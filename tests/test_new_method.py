"""A new method of any kind is at most three files by hand; all else comes from one command."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from intarsia.core.card import KINDS
from intarsia.core.errors import ConfigError

from .refusals import refused

ROOT = Path(__file__).parents[1]
BY_HAND = 3
NEW: dict[str, Any] = runpy.run_path(str(ROOT / "scripts" / "new_method.py"))
FOLDERS: dict[str, str] = NEW["FOLDERS"]
TITLE = (
    r'A "long" title: it costs $5, has an \alpha, and is longer than a line of a hundred columns'
)
COPIED = (
    "src",
    "lab/src",
    "docs",
    "scripts",
    "CHANGELOG.md",
    "pyproject.toml",
    "tests/conftest.py",
    "tests/seeds.py",
    "tests/refusals.py",
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
from pathlib import Path
import intarsia_lab
from intarsia.catalog import card
from intarsia.conformance import check
assert Path(intarsia_lab.__file__).is_relative_to(Path.cwd())
for key in keys:
    for law in check(card(key)):
        assert law() is None, (key, law.name)
sys.exit(code)
"""


def copy_of_the_tree(folder: Path) -> Path:
    for name in (*COPIED, *(f"tests/{folder}" for folder in {*FOLDERS.values()})):
        source, copy = ROOT / name, folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    return folder


def contents(tree: Path) -> dict[str, bytes]:
    caches = {"__pycache__", ".hypothesis", ".ruff_cache"}
    files = (p for p in tree.rglob("*") if p.is_file() and caches.isdisjoint(p.parts))
    return {p.relative_to(tree).as_posix(): p.read_bytes() for p in files}


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def python(tree: Path, *args: str) -> None:
    """Run Python in a copy of the tree, with the copy's library and laboratory."""
    sources = os.pathsep.join(str(tree / name) for name in ("src", "lab/src"))
    run = subprocess.run(
        [sys.executable, *args],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": sources, "PYTHONDONTWRITEBYTECODE": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]


@pytest.mark.thorough
def test_a_card_of_any_kind_is_at_most_three_files_by_hand(tmp_path: Path) -> None:
    assert FOLDERS.keys() == set(KINDS)
    tree = copy_of_the_tree(tmp_path)
    before = contents(tree)
    toys = {f"toy_{kind}": kind for kind in FOLDERS}
    by_hand = [
        [
            path.relative_to(tree).as_posix()
            for path in NEW["write"](NEW["values"](kind, key, "2401.00001", TITLE), tree)
        ]
        for key, kind in toys.items()
    ]
    assert all(len(paths) <= BY_HAND for paths in by_hand)
    written = {path for paths in by_hand for path in paths}
    assert changed(before, contents(tree)) == written
    sources = [path for path in written if path.endswith(".py")]
    python(tree, "-m", "ruff", "check", "--no-cache", *sources)
    python(tree, "-m", "ruff", "format", "--check", "--no-cache", *sources)
    before = contents(tree)
    tests = [path for path in sources if path.startswith("tests/")]
    python(tree, "-c", GENERATE_AND_CHECK, " ".join(toys), *tests)
    pages = {f"docs/methods/{name}.md" for name in ("index", *toys)}
    stubs = {f"src/intarsia/{folder}/__init__.pyi" for folder in FOLDERS.values()}
    generated = {"src/intarsia/core/cards.json", "docs/reference.md", *pages, *stubs}
    assert changed(before, contents(tree)) == generated


LOG = "# Changelog\n\n## [Unreleased]\n{}\n## [0.1.0]\n\n### Added\n\n- Old.\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("\n### Added\n\n- Other.\n", "\n### Added\n\n- New.\n- Other.\n"),
        ("\n### Added\n", "\n### Added\n\n- New.\n"),
        ("", "\n### Added\n\n- New.\n"),
        (
            "\n### Fixed\n\n- Other.\n",
            "\n### Added\n\n- New.\n\n### Fixed\n\n- Other.\n",
        ),
        (
            "\n### Removed\n\n- One.\n\n### Added\n\n- Other.\n",
            "\n### Removed\n\n- One.\n\n### Added\n\n- New.\n- Other.\n",
        ),
    ],
)
def test_the_changelog_has_the_line_under_unreleased(before: str, after: str) -> None:
    assert NEW["with_change"](LOG.format(before), "- New.\n") == LOG.format(after)


@pytest.mark.parametrize(
    ("kind", "key", "paper", "subject", "got"),
    [
        ("gate", "toy", "2401.00001", "kind", "'gate'"),
        ("", "toy", "2401.00001", "kind", "''"),
        ("router", "topk", "2401.00001", "name", "'topk'"),
        ("router", "TopK2", "2401.00001", "name", "'TopK2'"),
        ("router", "lambda", "2401.00001", "name", "'lambda'"),
        ("cache", "", "2401.00001", "name", "''"),
        ("router", "toy", "arXiv 2401", "paper", "'arXiv 2401'"),
    ],
)
def test_a_kind_a_name_or_a_number_that_cannot_be_is_refused(
    kind: str, key: str, paper: str, subject: str, got: str
) -> None:
    with refused(ConfigError, what=subject, got=got) as error:
        NEW["values"](kind, key, paper)
    assert "make new KIND=router" in error.value.fix
    if subject == "kind":
        assert all(name in str(error.value) for name in KINDS)


@pytest.mark.parametrize(
    ("kind", "key", "got"),
    [
        ("placement", "place", "'place', a public name of intarsia.placement"),
        ("placement", "plan", "src/intarsia/placement/plan.py exists"),
        ("cache", "policy", "'policy'; src/intarsia/placement/cache.py has a class Policy"),
        ("adapter", "beside", "'beside'; src/intarsia/conformance/cells.py has a class Beside"),
    ],
)
def test_a_name_that_has_a_meaning_is_refused(kind: str, key: str, got: str) -> None:
    log = (ROOT / "CHANGELOG.md").read_text()
    with refused(ConfigError, what="name", got=got):
        NEW["write"](NEW["values"](kind, key, "2401.00001"))
    assert (ROOT / "CHANGELOG.md").read_text() == log


def test_a_file_that_exists_is_not_written_over(tmp_path: Path) -> None:
    old = tmp_path / "src" / "intarsia" / "routers" / "toy.py"
    old.parent.mkdir(parents=True)
    old.write_text("mine\n")
    with refused(ConfigError, what="name"):
        NEW["write"](NEW["values"]("router", "toy", "2401.00001"), tmp_path)
    assert old.read_text() == "mine\n"
