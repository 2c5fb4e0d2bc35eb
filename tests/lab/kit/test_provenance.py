"""A claim's digest is of the code that it depends on: no less, and not of words."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from intarsia_lab.kit import provenance
from intarsia_lab.kit.provenance import LABORATORY, LIBRARY, code_digest, commit, dependencies

FILES = {
    "toy_lab/claims/toy.py": "from toy.parts import Twice, third\nfrom ..deep import inner\n",
    "toy_lab/deep/__init__.py": "from .inner import inner\n",
    "toy_lab/deep/inner.py": "def f():\n    from toy.named import first, second\n",
    "toy/parts/__init__.py": "",
    "toy/parts/__init__.pyi": "from .twice import Twice as Twice\nfrom .other import other\n",
    "toy/parts/twice.py": "from ..ground import ground\n",
    "toy/parts/third.py": "import math\n",
    "toy/parts/other.py": "other = 1\n",
    "toy/named.py": "first = second = 3\n",
    "toy/ground.py": "ground = 4\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a package of claims, and a library."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(provenance, "LABORATORY", tmp_path / "toy_lab")
    monkeypatch.setattr(provenance, "LIBRARY", tmp_path / "toy")
    return tmp_path


def digest(folder: Path) -> str:
    for cached in (provenance.code_digest, provenance._code, provenance._named):
        cached.cache_clear()
    return code_digest(folder / "toy_lab" / "claims" / "toy.py")


def test_imports_are_followed_in_the_laboratory_and_one_step_into_the_library(folder: Path) -> None:
    reached = dependencies(folder / "toy_lab" / "claims" / "toy.py")
    assert {path.relative_to(folder).as_posix() for path in reached} == {
        *("toy_lab/claims/toy.py", "toy_lab/deep/inner.py"),
        *("toy/parts/twice.py", "toy/parts/third.py", "toy/named.py"),
    }


def test_a_deep_digest_follows_the_imports_of_the_library(folder: Path) -> None:
    claim, ground = folder / "toy_lab" / "claims" / "toy.py", folder / "toy" / "ground.py"
    assert {*dependencies(claim, deep=True)} == {*dependencies(claim), ground}
    part = folder / "toy" / "parts" / "other.py"
    assert {*dependencies(claim, part)} == {*dependencies(claim), part}


@pytest.mark.parametrize(
    "name", ["toy_lab/claims/toy.py", "toy_lab/deep/inner.py", "toy/parts/twice.py", "toy/named.py"]
)
def test_a_file_that_counts_changes_the_digest(name: str, folder: Path) -> None:
    before = digest(folder)
    (folder / name).write_text((folder / name).read_text() + "x = 1\n")
    assert digest(folder) != before


def test_words_and_other_files_do_not_change_the_digest(folder: Path) -> None:
    before = digest(folder)
    (folder / "toy" / "parts" / "other.py").write_text("other = 2\n")
    (folder / "toy" / "ground.py").write_text("ground = 5\n")
    claims = folder / "toy_lab" / "claims" / "toy.py"
    claims.write_text(claims.read_text() + "CLAIMS = (\n    Study(target=2),\n)\n")
    named = folder / "toy" / "named.py"
    named.write_text(f'"""Words,\n\nmore words."""\n\n# a comment\n\n{named.read_text()}')
    assert digest(folder) == before


def test_a_file_that_moves_does_not_change_the_digest(folder: Path) -> None:
    before = digest(folder)
    (folder / "toy" / "named.py").rename(folder / "toy" / "moved.py")
    inner = folder / "toy_lab" / "deep" / "inner.py"
    inner.write_text(inner.read_text().replace("toy.named", "toy.moved"))
    assert digest(folder) == before


def test_the_claims_of_this_package_depend_on_what_they_measure() -> None:
    reached = {
        provenance._name(path)
        for name in ("moa", "gqsa", "slime")
        for path in dependencies(LABORATORY / "claims" / f"{name}.py")
    }
    methods = {
        f"intarsia/{name}.py" for name in ("methods/moa", "senses/slime", "methods/gqsa/gqsa")
    }
    assert reached >= methods | {"intarsia/kernels/native/gqsa.c"}
    assert not [name for name in reached if name.startswith(("intarsia/cli", "intarsia/conform"))]


def test_the_commit_is_that_of_this_checkout_or_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert commit() == "" or len(commit().rstrip("+")) == 12
    shutil.copytree(LIBRARY / "core", tmp_path / "core")
    monkeypatch.setattr(provenance, "LABORATORY", tmp_path / "core")
    assert commit() == ""  # no repository
    try:
        subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    except FileNotFoundError:
        return
    assert commit() == ""  # another one, in which the package is installed
