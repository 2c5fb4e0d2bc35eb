"""`intarsia components`: tiles of a saved model, or of one that is learned from pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from intarsia.areas.coding import BSC
from intarsia.cli import app


def pictures(folder: Path) -> Path:
    random = np.random.default_rng(0)
    folder.mkdir()
    for name in ("a", "b"):
        Image.fromarray(random.integers(0, 255, (20, 24, 3), np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.mark.parametrize("model", ["gsc", "mca", "mop"])
def test_a_model_is_learned_saved_and_drawn(model: str, tmp_path: Path) -> None:
    run, source = str(tmp_path / "run"), str(pictures(tmp_path / "p"))
    words = ["--model", model, "--atoms", "3", "--side", "4", "--patches", "40", "--steps", "3"]
    first = CliRunner().invoke(app, ["components", run, "--fit", source, *words, "--json"])
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout)["components"] == 3
    assert "a temperature that falls to 1 by step 3 of 3" in " ".join(first.stderr.split())
    before = (tmp_path / "run.png").read_bytes()
    again = CliRunner().invoke(app, ["components", run, "-o", str(tmp_path / "w.png")])
    assert "3 components of 16 values" in again.stdout
    assert (tmp_path / "w.png").read_bytes() == before


def test_a_folder_of_other_files_is_refused_before_the_fit(tmp_path: Path) -> None:
    run, source = tmp_path / "run", str(pictures(tmp_path / "p"))
    run.mkdir()
    (run / "letter.txt").write_text("")
    words = ["components", str(run), "--fit", source, "--side", "4", "--steps", str(10**9)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and "other files" in result.output


def test_components_that_are_no_squares_are_for_python(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((9, 6))
    run = BSC(2, n_iter=1, random_state=0).fit(x).save(tmp_path / "run")
    result = CliRunner().invoke(app, ["components", str(run)])
    words = " ".join(result.output.replace("│", "").split())
    assert result.exit_code == 2 and "BSC.load" in words and "shape=(height, width)" in words


def test_bad_words_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for words, says in (
        (["--fit", str(tmp_path / "none")], "Check the path"),
        (["--fit", str(tmp_path / "empty")], "no picture"),
        (["--model", "pca"], "one of"),
        (["--side", "1"], "--side"),
        ([], "no such folder"),
    ):
        result = CliRunner().invoke(app, ["components", str(tmp_path / "run"), *words])
        assert result.exit_code == 2 and says in " ".join(result.output.split())
