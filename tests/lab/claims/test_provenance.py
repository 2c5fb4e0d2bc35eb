"""A claim's digest is of the code that it depends on: no less, and not of words."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from intarsia.claims import provenance
from intarsia.claims.provenance import NATIVE, PACKAGE, code_digest, commit, dependencies

FILES = {
    "claims/toy.py": "from ..parts import Twice, third\nfrom ..deep import inner\n",
    "parts/__init__.py": "",
    "parts/__init__.pyi": "from .twice import Twice as Twice\nfrom .other import other as other\n",
    "parts/twice.py": "class Twice:\n    def run(self):\n        from ..late import late\n",
    "parts/third.py": "import math\n",
    "parts/other.py": "other = 1\n",
    "deep/__init__.py": "from .inner import inner\n",
    "deep/inner.py": "from toy.named import (  # a comment\n    first,\n)\n",
    "late.py": "late = 2\n",
    "named.py": "first = 3\n",
    "core/errors.py": "",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of a claim that depends on six of its files."""
    folder = tmp_path / "toy"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setattr(provenance, "PACKAGE", folder)
    return folder


def digest(package: Path) -> str:
    for cached in (provenance.code_digest, provenance._code, provenance._imported):
        cached.cache_clear()
    return code_digest(package / "claims" / "toy.py")


def test_imports_are_followed_through_stubs_functions_and_packages(package: Path) -> None:
    reached = dependencies(package / "claims" / "toy.py")
    assert {path.relative_to(package).as_posix() for path in reached} == {
        *("claims/toy.py", "parts/twice.py", "parts/third.py", "deep/inner.py", "late.py"),
        "named.py",
    }


@pytest.mark.parametrize("name", ["claims/toy.py", "parts/twice.py", "late.py", "named.py"])
def test_a_file_that_counts_changes_the_digest(name: str, package: Path) -> None:
    before = digest(package)
    (package / name).write_text((package / name).read_text() + "x = 1\n")
    assert digest(package) != before


def test_words_and_other_files_do_not_change_the_digest(package: Path) -> None:
    before = digest(package)
    (package / "parts" / "other.py").write_text("other = 2\n")
    late = package / "late.py"
    late.write_text(f'"""Words,\n\nmore words."""\n\n# a comment\n\n{late.read_text()}')
    assert digest(package) == before
    late.write_text("late = 3\n")
    assert digest(package) != before


def test_the_claims_of_this_package_depend_on_what_they_measure() -> None:
    reached = {
        path.relative_to(PACKAGE).as_posix()
        for name in ("moa", "gqsa", "slime")
        for path in dependencies(PACKAGE / "claims" / f"{name}.py")
    }
    assert reached >= {"methods/moa.py", "methods/slime.py", "methods/gqsa/gqsa.py", "fitting.py"}
    assert f"{NATIVE}/gqsa.c" in reached
    assert not [name for name in reached if name.startswith(("cli/", "conformance/"))]


def test_the_commit_is_that_of_this_checkout_or_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert commit() == "" or len(commit().rstrip("+")) == 12
    shutil.copytree(PACKAGE / "core", tmp_path / "core")
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path / "core")
    assert commit() == ""  # no repository
    try:
        subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    except FileNotFoundError:
        return
    assert commit() == ""  # another one, in which the package is installed
