"""The four paths of docs/tour.md name what is there, and climb back up at most three times."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "intarsia"
LAB = ROOT / "lab" / "src" / "intarsia_lab"  # a file of it is written with lab/ before
TOUR = (ROOT / "docs" / "tour.md").read_text()
PATHS = dict(re.findall(r"^## (Path \d)[^\n]*\n(.*?)(?=^## |\Z)", TOUR, re.M | re.S))
STEP = re.compile(r"^\| `([\w/]+\.py)`( ↑)? \| `(\w+)` \|", re.M)
MOST = 3


def _height(file: str) -> int:
    """The layer of a file, 0 at the top; folders of one layer are as high as each other."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    by_id = {c["id"]: c.get("layers", []) for c in contracts["contracts"]}
    layers = [*(f"lab-{layer}" for layer in by_id["laboratory-layers"]), *by_id["layers"]]
    room = file.replace("lab/", "lab-", 1).partition("/")[0].removesuffix(".py")
    return next(i for i, layer in enumerate(layers) if room in re.findall(r"[\w-]+", layer))


def climbs(steps: list[str]) -> list[bool]:
    """Tell for each step whether its folder is above that of the step before."""
    heights = [_height(file) for file in steps]
    return [False, *(b < a for a, b in zip(heights, heights[1:], strict=False))]


def test_there_are_four_paths() -> None:
    assert sorted(PATHS) == ["Path 1", "Path 2", "Path 3", "Path 4"]


@pytest.mark.parametrize("title", sorted(PATHS))
def test_a_path_names_what_is_there(title: str) -> None:
    steps = STEP.findall(PATHS[title])
    assert len(steps) == PATHS[title].count("\n| `") >= 10
    for file, _, name in steps:
        path = LAB / file[4:] if file.startswith("lab/") else SRC / file
        tree = ast.parse(path.read_text())
        kinds = ast.FunctionDef | ast.ClassDef
        assert name in {n.name for n in tree.body if isinstance(n, kinds)}, f"{file}: {name}"


@pytest.mark.parametrize("title", sorted(PATHS))
def test_a_path_climbs_at_most_three_times_and_says_where(title: str) -> None:
    steps = STEP.findall(PATHS[title])
    marks = climbs([file for file, _, _ in steps])
    assert [bool(mark) for _, mark, _ in steps] == marks
    assert sum(marks) <= MOST


def test_a_climb_is_seen() -> None:
    assert climbs(["fitting.py", "core/files.py", "folders/saved.py"]) == [False, False, True]
