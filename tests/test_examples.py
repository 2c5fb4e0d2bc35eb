"""The examples do their job on small models, from the first line to the last."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from intarsia.cli import app

from .pages import desk

EXAMPLES = Path(__file__).parents[1] / "examples"
SAYS = {
    "own_folder": ("accuracy", "Adapter, head, scores and mistakes"),
    "compare_and_fold": (
        "Learning rates:",
        "MoSA minus bottleneck",
        "Chosen on the validation part",
        "local-dir:",
    ),
    "language_model": ("perplexity of the test rows", "PEFT adapter: adapter"),
    "upcycle_and_route": ("food:", "town:"),
    "stamps": ("animals 3, food 3",),
}


def test_every_example_is_listed_and_tried() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SAYS, "plain_peft"}
    listed = (EXAMPLES / "README.md").read_text()
    for path in (*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.ipynb")):
        assert f"({path.name})" in listed


@pytest.mark.parametrize("name", SAYS)
@pytest.mark.thorough
def test_an_example_does_its_job(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    desk(tmp_path)
    words = ["answers.jsonl", "--model", "tiny"] if name == "language_model" else ["photos"]
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words, "--tiny"])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    output = capsys.readouterr().out
    assert all(text in output for text in SAYS[name])


@pytest.mark.thorough
def test_plain_peft_opens_a_run_without_this_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk(tmp_path)
    words = ["fit", "photos", "--method", "lora", "--model", "test_vit", "--untrained"]
    words += ["--size", "32", "--epochs", "1", "--batch-size", "8", "--out", "run", "--lr", "2e-3"]
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, words).exit_code == 0
    command = [sys.executable, str(EXAMPLES / "plain_peft.py"), "run", "--tiny"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "trainable params" in done.stdout and "step 2: loss" in done.stdout
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.thorough
def test_the_notebook_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    desk(tmp_path)
    book = json.loads((EXAMPLES / "first_hour.ipynb").read_text())
    code = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    printed = [cell["outputs"] for cell in book["cells"] if cell["cell_type"] == "code"]
    assert printed[-1], "run scripts/front_pages.py --run"
    file = tmp_path / "book.py"
    file.write_text("\n\n".join(code).replace("TINY = False", "TINY = True"))
    runpy.run_path(str(file))
    assert "LoRA minus bottleneck" in capsys.readouterr().out
