"""Tiny copies of published layouts, and suites with the counts of these copies."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

from intarsia_lab.materials import suites

Picture = Callable[..., Image.Image]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`$INTARSIA_DATA`, an empty folder."""
    folder = tmp_path / "data"
    monkeypatch.setenv("INTARSIA_DATA", str(folder))
    return folder


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Change the published numbers of "suite/task": counts, classes."""

    def change(spec: str, **numbers: object) -> None:
        head, name = spec.split("/")
        module = import_module(f"intarsia_lab.materials.suites.{suites.MODULES[head]}")
        tasks = module.SUITE.tasks
        tasks = tuple(replace(t, **numbers) if t.name == name else t for t in tasks)  # pyright: ignore
        monkeypatch.setattr(module, "SUITE", replace(module.SUITE, tasks=tasks))

    return change


@pytest.fixture
def draw(picture: Picture) -> Callable[..., None]:
    """Save another small picture of noise at each path."""

    def save(paths: Iterable[Path], *, seed: int = 0) -> None:
        for i, path in enumerate(paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(1000 * seed + i, (4, 4)).save(path)

    return save


@pytest.fixture
def noah(draw: Callable[..., None]) -> Callable[..., Path]:
    """Make `folder/{train800,val200,train800val200,test}.txt` and its pictures as NOAH has them.

    counts: part -> images; labels go round the classes.
    """
    files = {"train": "train800", "val": "val200", "test": "test"}

    def make(folder: Path, counts: dict[str, int], *, classes: int) -> Path:
        lines: dict[str, list[str]] = {}
        for seed, (part, n) in enumerate(counts.items()):
            names = [f"images/{files[part]}/{i:06}.png" for i in range(n)]
            draw((folder / name for name in names), seed=seed)
            lines[files[part]] = [f"{name} {i % classes}" for i, name in enumerate(names)]
        lines["train800val200"] = lines["train800"] + lines["val200"]
        for name, rows in lines.items():
            (folder / f"{name}.txt").write_text("\n".join(rows) + "\n")
        return folder

    return make
