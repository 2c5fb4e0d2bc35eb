"""Several labels a picture, from a table to the report and the exported script."""

from __future__ import annotations

import csv
import io
import runpy
import sys
from pathlib import Path

import pytest
import torch

from intarsia import fit, load_data, open_run
from intarsia.data import backbone
from intarsia.runs import matrix
from intarsia.train import MultiLabel

from .conftest import TINY, Intarsia, picture

SETS = ("dark", "light;bright", "light", "dark;old")
HOW = ("--epochs", "3", "--batch-size", "8", "--lr", "1e-2", "--tracker", "csv")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pictures: dark ones, light ones, and what else is said of them."""
    folder = tmp_path_factory.mktemp("labels")
    lines = ["image,labels"]
    for i in range(40):
        labels = SETS[i % 4]
        picture(folder / f"{i}.png", 190 if "light" in labels else 50, i)
        lines.append(f"{i}.png,{labels}")
    (folder / "pictures.csv").write_text("\n".join(lines) + "\n")
    return folder / "pictures.csv"


@pytest.fixture(scope="module")
def trained(intarsia: Intarsia, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "labels"
    result = intarsia("fit", table, *TINY, *HOW, "--method", "mosa", "--out", out)
    assert result.code == 0, result.err
    assert "mean average precision" in result.out and "F1" in result.out
    return out


def test_evaluate_and_predict_see_each_label_by_itself(
    intarsia: Intarsia, table: Path, trained: Path
) -> None:
    scores = intarsia("evaluate", trained, "--json").json
    assert {"mean_average_precision", "f1", "loss"} <= scores.keys()
    assert scores["classes"].keys() == {"bright", "dark", "light", "old"}
    assert "recall" in intarsia("evaluate", trained).out
    run = open_run(trained)
    predictions = run.predict(table.parent)
    logits = torch.tensor([[dict(p.classes)[c] for c in run.classes] for p in predictions]).logit()
    for row, prediction in zip(logits, predictions, strict=True):
        labels = {name for name, z in zip(run.classes, row.tolist(), strict=True) if z > 0}
        assert set(prediction.labels or ()) == labels
    assert (logits.sigmoid().sum(1) - 1).abs().max() > 1e-3  # no softmax
    rows = list(
        csv.DictReader(io.StringIO(intarsia("predict", trained, table.parent, "--csv").out))
    )
    assert rows[0]["labels"] == ";".join(predictions[0].labels or ())
    assert intarsia("predict", trained, table.parent / "0.png").code == 0


def test_the_report_names_the_score_and_why_there_is_no_matrix(
    intarsia: Intarsia, trained: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    result = intarsia("report", trained, "--out", page)
    assert result.code == 0, result.err
    text = page.read_text()
    assert "may have several labels, so there is no confusion matrix" in text
    assert "Average precision" in text and "F1" in text


def test_the_exported_script_uses_a_sigmoid(
    intarsia: Intarsia,
    table: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The test in hosts/test_preprocessing.py tries it without this library."""
    result = intarsia("export", trained, "--format", "torch", "--out", tmp_path / "m.pt2")
    assert result.code == 0, result.err
    files = [str(table.parent / f"{i}.png") for i in range(4)]
    script = str(tmp_path / "m.pt2.predict.py")
    monkeypatch.setattr(sys, "argv", [script, *files])
    capsys.readouterr()
    runpy.run_path(script, run_name="__main__")
    printed = capsys.readouterr().out.splitlines()
    for line, want in zip(printed, open_run(trained).predict(files), strict=True):
        words = line.split()[1:]
        share = dict(want.classes)
        assert set(words[::2]) == set(want.labels or ())
        for name, p in zip(words[::2], words[1::2], strict=True):
            assert float(p) == pytest.approx(share[name], abs=2e-3)


@pytest.mark.thorough
def test_compare_pairs_by_average_precision(
    intarsia: Intarsia, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "EXECUTOR", "here")
    words = ("--methods", "linear,lora", "--seeds", "0,1", "--epochs", "1", "--lr", "1e-2")
    options = ("--out", tmp_path / "c", "--json")
    result = intarsia("compare", table, *TINY, *words, "--batch-size", "8", *options)
    assert result.code == 0, result.err
    assert {row["measure"] for row in result.json["rows"]} == {"mean_average_precision"}


def test_bad_settings_are_refused(intarsia: Intarsia, table: Path, tmp_path: Path) -> None:
    result = intarsia("fit", table, *TINY, *HOW, "--class-weights", "balanced", "--out", tmp_path)
    assert result.code == 2 and "class_weights" in result.words


def test_python_works_alike(table: Path, trained: Path) -> None:
    data = load_data(str(table), seed=0, progress=lambda _: None)
    model = backbone("test_vit", classes=len(data.classes), size=32, seed=0, pretrained=False)
    run = fit(model, data, epochs=1, batch_size=8, trackers=())
    assert isinstance(run.test.scores()["mean_average_precision"], float)  # pyright: ignore
    assert MultiLabel().scores(*run.test.predictions.values()).scores() == run.test.scores()  # pyright: ignore
