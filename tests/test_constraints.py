"""The tested versions fit what pyproject.toml asks for, and what may change has an upper bound."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TESTED = {
    name: Version(version)
    for name, version in (
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()
    )
}
# a module or a name of another package that it may change without a word; all of transformers.cli
PRIVATE = re.compile(
    r"^\s*from (\w+)(?:\.\w+)*(?:\._\w+\S* import|\.cli\.\S+ import|\S* import .*\b_[a-zA-Z])", re.M
)
STABLE = ("intarsia", "torch")  # torch is the user's choice; constraints.txt has the tested one
BOUNDED = ("peft", "timm", "transformers")


def requirements(*extras: str) -> Iterator[Requirement]:
    """Yield the requirements of the project and of its extras, those of others among them."""
    optional = PROJECT["optional-dependencies"]
    texts = [*PROJECT["dependencies"], *(text for extra in extras for text in optional[extra])]
    for requirement in map(Requirement, texts):
        if requirement.name != PROJECT["name"]:
            yield requirement
        elif inner := requirement.extras - {*extras}:
            yield from requirements(*extras, *inner)


def test_the_tested_versions_are_those_that_pyproject_takes() -> None:
    versions = {canonicalize_name(r.name): r for r in requirements("dev")}
    assert versions.keys() <= TESTED.keys()
    for r in requirements("dev"):
        assert r.specifier.contains(TESTED[canonicalize_name(r.name)]), r


@pytest.mark.parametrize("name", BOUNDED)
def test_an_upper_bound_is_the_next_minor_version(name: str) -> None:
    tested = TESTED[name]
    after = Version(f"{tested.major}.{tested.minor + 1}")
    for r in requirements("dev"):
        if r.name == name:
            assert not r.specifier.contains(after), r
            assert r.specifier.contains(f"{tested.major}.{tested.minor}.999"), r


def test_packages_whose_private_parts_are_imported_have_an_upper_bound() -> None:
    used = {
        package
        for folder in ("src", "lab/src")
        for path in (ROOT / folder).rglob("*.py")
        for package in PRIVATE.findall(path.read_text())
    }
    assert {"timm", "transformers"} <= used
    assert used - {*STABLE} <= {*BOUNDED}


def test_versions_are_public_so_that_every_build_of_torch_fits() -> None:
    assert not [name for name, version in TESTED.items() if version.local]
    assert not [name for name in TESTED if name.startswith(("nvidia-", "triton", "cuda-"))]
    assert [*TESTED] == sorted(TESTED)


def test_make_sets_up_with_the_tested_versions() -> None:
    make = (ROOT / "Makefile").read_text()
    assert "CONSTRAINTS ?= constraints.txt" in make and "$(addprefix -c ,$(CONSTRAINTS))" in make
