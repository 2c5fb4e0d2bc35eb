"""What a newcomer is told to type, in a shell and in Python, as it stands on the page.

The pretrained models are replaced by tiny untrained ones, which need no network.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import intarsia
from intarsia.cli import app
from intarsia.experiments import matrix

from .test_real_pages import language_model

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", *(f"docs/start/{name}.md" for name in ("vision", "language", "deploy")))
PYTHON = (*PAGES, "docs/start/mixtures.md")  # whose commands take a corpus from a registry
PICTURES = ("--model", "test_vit", "--untrained", "--size", "32", "--epochs", "1")
TEXTS = ("--model", "tiny", "--epochs", "1", "--precision", "fp32")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)


def photos(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), n: int = 12) -> Path:
    """n grey pictures of each class, told apart by their brightness."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            noise = np.random.default_rng(100 * label + i).integers(-20, 20, (40, 40, 3))
            picture = Image.fromarray((50 + 140 * label + noise).astype(np.uint8))
            picture.save(folder / name / f"{i}.png")
    return folder


def desk(folder: Path) -> None:
    """A newcomer's data: photos/, answers.jsonl; and a language model of four small layers."""
    photos(folder / "photos")
    rows = [{"prompt": f"{n} and one", "response": str(n + 1)} for n in range(24)]
    (folder / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model, tokenizer = language_model("smollm2")
    model.save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")


def typed(line: str) -> list[str]:
    """A line's words, file names filled in as a shell does, with the small model."""
    words = [name for word in shlex.split(line)[1:] for name in (sorted(glob(word)) or [word])]
    if words[0] in ("fit", "compare"):
        words += TEXTS if words[1].endswith(".jsonl") else PICTURES
    if words[0] == "compare":
        words += ("--seeds", "0")
    return words


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(matrix, "EXECUTOR", "here")
    desk(tmp_path)
    lines = "".join(blocks(page, "sh")).replace("\\\n", "").splitlines()
    assert lines
    for line in lines:
        assert line.startswith("intarsia ")
        said = CliRunner().invoke(app, typed(line))
        assert said.exit_code == 0, f"{line}: {said.output}"
    if page == "docs/start/vision.md":  # whose Python reads what its commands trained
        monkeypatch.setattr(intarsia, "backbone", stand_in())
        python(page, tmp_path)


@pytest.mark.parametrize("page", [page for page in PYTHON if page != "docs/start/vision.md"])
def test_the_python_of_a_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(intarsia, "backbone", stand_in())
    photos(tmp_path / "photos")
    python(page, tmp_path)


def stand_in() -> Any:
    backbone = intarsia.backbone

    def small(name: str, **given: Any) -> Any:
        return backbone("test_vit", **{**given, "size": 32, "pretrained": False})

    return small


def python(page: str, folder: Path) -> None:
    found = blocks(page, "python")
    assert found
    for number, block in enumerate(found):
        file = folder / f"block_{number}.py"
        file.write_text(block)
        runpy.run_path(str(file))


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 90
