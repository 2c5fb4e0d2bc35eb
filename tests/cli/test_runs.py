"""A run folder as a model again: evaluate, predict, export; foreign ones are refused."""

from __future__ import annotations

import csv
import io
import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from intarsia import open_run
from intarsia.runs import runs
from intarsia.runs.runs import PictureRun, picture_files

from .conftest import QUICK, TINY, Intarsia, photos, picture


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A run that a test may damage."""
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def test_a_run_scores_what_it_scored(intarsia: Intarsia, run: Path) -> None:
    results = json.loads((run / "run.json").read_text())["results"]
    for part in ("test", "val"):
        scores = intarsia("evaluate", run, "--part", part, "--json").json
        assert scores["accuracy"] == results[part]["accuracy"]
        assert scores["loss"] == pytest.approx(results[part]["loss"], abs=1e-6)
    assert set(scores["classes"]) == {"dark", "light"}


def test_other_pictures_with_the_same_classes(
    intarsia: Intarsia, run: Path, tmp_path: Path
) -> None:
    result = intarsia("evaluate", run, photos(tmp_path / "more", n=3), "--json").json
    assert result["n"] == 6
    result = intarsia("evaluate", run, photos(tmp_path / "more", n=3))
    assert "6 pictures" in result.out and "dark" in result.out


def test_damaged_pictures_are_left_out_if_that_was_asked_for(
    intarsia: Intarsia, run: Path, tmp_path: Path
) -> None:
    new = photos(tmp_path / "more", n=3)
    (new / "dark" / "bad.png").write_text("no picture")
    result = intarsia("evaluate", run, new)
    assert result.code == 2 and "or pass --skip-unreadable" in result.words
    result = intarsia("evaluate", run, new, "--skip-unreadable", "--json")
    assert result.json["n"] == 6 and "1 of 7 pictures cannot be read" in result.words


def test_other_classes_are_refused(intarsia: Intarsia, run: Path, tmp_path: Path) -> None:
    result = intarsia("evaluate", run, photos(tmp_path / "x", classes=("dark", "bright")))
    assert result.code == 2
    assert "only in the run: ['light']; only in the data: ['bright']" in result.words


def test_a_part_that_is_not_there(intarsia: Intarsia, run: Path, tmp_path: Path) -> None:
    result = intarsia("evaluate", run, photos(tmp_path / "x"), "--part", "tets")
    assert result.code == 2 and "Did you mean test" in result.words


def test_predict_tells_pictures_apart(intarsia: Intarsia, run: Path, tmp_path: Path) -> None:
    picture(tmp_path / "new" / "a.png", 50, 1)
    picture(tmp_path / "new" / "b.jpg", 190, 2)
    result = intarsia("predict", run, tmp_path / "new", "--json")
    assert result.code == 0
    assert [Path(row["file"]).name for row in result.json] == ["a.png", "b.jpg"]
    for row in result.json:
        assert sum(row["classes"].values()) == pytest.approx(1, abs=1e-5)
        assert row["probability"] == max(row["classes"].values()) and row["error"] is None
    page = tmp_path / "page.html"
    table = intarsia("predict", run, tmp_path / "new", "--out", page)
    assert table.code == 0 and all(word in page.read_text() for word in ("a.png", "dark", "b.jpg"))
    assert "a.png" in table.out and "dark" in table.out


def test_pictures_of_every_kind(intarsia: Intarsia, run: Path, tmp_path: Path) -> None:
    grey = np.full((40, 40), 190, np.uint8)
    Image.fromarray(grey).convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    frames = [Image.fromarray(grey), Image.fromarray(grey // 4)]
    frames[0].save(tmp_path / "animated.gif", save_all=True, append_images=frames[1:])
    result = intarsia("predict", run, tmp_path, "--json")
    assert result.code == 0 and len(result.json) == 4
    shares = [row["classes"]["light"] for row in result.json]
    assert max(shares) - min(shares) < 0.05  # one grey, four ways to store it


def test_one_broken_picture_costs_no_other(intarsia: Intarsia, run: Path, tmp_path: Path) -> None:
    picture(tmp_path / "good.png", 50, 1)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no picture")
    result = intarsia("predict", run, tmp_path / "broken.png", tmp_path / "good.png", "--csv")
    assert result.code == 1 and "broken.png: cannot be read" in result.words
    rows = list(csv.DictReader(io.StringIO(result.out)))
    assert rows[0]["error"] and not rows[0]["class"]
    assert rows[1]["class"] in ("dark", "light") and not rows[1]["error"]


def test_every_batch_is_predicted(run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = picture_files([folder])
    opened = open_run(run)
    assert isinstance(opened, PictureRun)
    together = [p.classes for p in opened.predict(files)]
    monkeypatch.setattr(runs, "BATCH", 5)
    parts = [p.classes for p in opened.predict(files)]
    for a, b in zip(together, parts, strict=True):
        assert [n for n, _ in a] == [n for n, _ in b]
        assert [s for _, s in a] == pytest.approx([s for _, s in b], abs=1e-5)


def test_a_run_from_python(run: Path, folder: Path, tmp_path: Path) -> None:
    opened = open_run(run)
    assert isinstance(opened, PictureRun) and not opened.model.training
    record = json.loads((run / "run.json").read_text())
    assert opened.evaluate()["accuracy"] == record["results"]["test"]["accuracy"]
    assert opened.classes == ("dark", "light") and dict(opened.record) == record
    predictions = opened.predict(str(folder / "dark"))
    assert [p.file for p in predictions] == sorted((folder / "dark").iterdir())
    file = folder / "light" / "0.png"
    with Image.open(file) as image:
        repeated = opened.predict([file, image, np.asarray(image), file.read_bytes()])
    assert [p.file for p in repeated] == [file, None, None, None]
    for prediction in repeated[1:]:
        assert dict(prediction.classes) == pytest.approx(dict(repeated[0].classes), abs=1e-6)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert opened.predict(tmp_path / "broken.png")[0].error


def test_a_number_of_tokens_is_for_texts(intarsia: Intarsia, run: Path, folder: Path) -> None:
    result = intarsia("predict", run, folder, "--tokens", 3)
    assert result.code == 2 and "for a run on pictures" in result.words


def test_predict_on_nothing(intarsia: Intarsia, run: Path, tmp_path: Path) -> None:
    assert "no such file" in intarsia("predict", run, tmp_path / "none.png").words
    result = intarsia("predict", run, tmp_path)
    assert result.code == 2 and "got none" in result.words
    result = intarsia("predict", run, tmp_path, "--json", "--csv")
    assert result.code == 2 and "want one of them" in result.words


def test_a_folder_that_is_no_run(intarsia: Intarsia, tmp_path: Path) -> None:
    for verb in ("evaluate", "export"):
        assert "no such folder" in intarsia(verb, tmp_path / "none").words
        assert "the folder of a run of `intarsia fit`" in intarsia(verb, tmp_path).words


def test_a_run_that_is_not_finished(intarsia: Intarsia, copy: Path) -> None:
    (copy / "run.json").unlink()
    result = intarsia("evaluate", copy)
    assert result.code == 2 and "without run.json" in result.words and "--resume" in result.words


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone", "other backbone", "other size"])
def test_a_damaged_or_foreign_run(intarsia: Intarsia, copy: Path, damage: str) -> None:
    file = copy / "adapter" / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(data[:-100])
    elif damage == "flipped":
        data[-50] ^= 1
        file.write_bytes(data)
    elif damage == "gone":
        file.unlink()
    else:
        change = {"model": "test_vit2"} if damage == "other backbone" else {"seed": 5}
        path = copy / "experiment.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    result = intarsia("evaluate", copy)
    assert result.code == 2 and "CheckpointError" in result.err


def test_a_damaged_baseline(intarsia: Intarsia, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "linear"
    assert not intarsia("fit", folder, *TINY, *QUICK, "--method", "linear", "--out", out).code
    assert not intarsia("evaluate", out).code
    file = out / "adapter" / "host.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    result = intarsia("evaluate", out)
    assert result.code == 2 and "CheckpointError" in result.err


def test_a_folded_export_is_the_model(
    intarsia: Intarsia,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = intarsia("export", run, "--out", tmp_path / "stock", "--json")
    assert result.code == 0, result.err
    assert any("largest output difference" in line for line in result.json["checks"])
    stock = timm.create_model(f"local-dir:{tmp_path / 'stock'}", pretrained=True).eval()
    opened = open_run(run, as_trained=False)
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(stock(x), opened.model(x), atol=1e-4, rtol=1e-4)
    assert stock.pretrained_cfg["label_names"] == ["dark", "light"]
    # a transparent picture, by the script alone: black as stored, white as people see it
    pixels = np.zeros((40, 30, 4), np.uint8)
    pixels[:, :3, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    monkeypatch.setattr("sys.argv", ["predict.py", str(tmp_path / "clear.png")])
    capsys.readouterr()
    runpy.run_path(str(tmp_path / "stock" / "predict.py"))
    file, name, share = capsys.readouterr().out.split()
    (want,) = opened.predict(file)
    assert (name, float(share)) == (want.classes[0][0], pytest.approx(want.classes[0][1], abs=1e-3))
    assert name == "light"


def test_a_method_of_peft_s_own_is_merged_for_timm(
    intarsia: Intarsia, folder: Path, tmp_path: Path
) -> None:
    words = ("--method", "peft-dora", "--set", "r=2", "--out", tmp_path / "dora")
    assert intarsia("fit", folder, *TINY, *QUICK, *words).code == 0
    result = intarsia("export", tmp_path / "dora", "--out", tmp_path / "stock", "--json")
    assert result.code == 0, result.err
    assert "merged by PEFT" in result.json["checks"][0]
    stock = timm.create_model(f"local-dir:{tmp_path / 'stock'}", pretrained=True).eval()
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = open_run(tmp_path / "dora", as_trained=False).model(x)
        torch.testing.assert_close(stock(x), want, atol=1e-4, rtol=1e-4)


@pytest.mark.thorough
def test_export_as_a_program(intarsia: Intarsia, run: Path, tmp_path: Path) -> None:
    result = intarsia(
        "export", run, "--format", "torch", "--keep-adapter", "--out", tmp_path / "m.pt2"
    )
    assert result.code == 0 and (tmp_path / "m.pt2").is_file() and "difference" in result.out


@pytest.mark.thorough
def test_export_in_eight_bits(intarsia: Intarsia, run: Path, tmp_path: Path) -> None:
    """Ranges come from training pictures, the accuracy from those of validation."""
    pytest.importorskip("onnxruntime")
    out = tmp_path / "m.onnx"
    result = intarsia("export", run, "--format", "onnx", "--int8", "--out", out, "--json")
    assert result.code == 0, result.err
    assert "in int8 on" in result.json["checks"][-1] and (tmp_path / "m.onnx.predict.py").is_file()


def test_export_of_a_run_whose_pictures_are_gone(
    intarsia: Intarsia, folder: Path, tmp_path: Path
) -> None:
    data = photos(tmp_path / "photos")
    out = tmp_path / "r"
    assert not intarsia("fit", data, *TINY, *QUICK, "--method", "lora", "--out", out).code
    shutil.rmtree(data)
    result = intarsia("export", out)
    assert result.code == 0 and "compared on noise" in result.words


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--format tmm", "Did you mean timm"),
        ("--keep-adapter", "timm knows no adapters"),
        ("--format onnx --out x.pt", "a file *.onnx"),
        ("--format torch --int8", "--format onnx with it"),
    ],
)
def test_bad_exports(intarsia: Intarsia, run: Path, words: str, says: str) -> None:
    result = intarsia("export", run, *words.split())
    assert result.code == 2 and says in result.words


def test_what_cannot_be_folded_says_why(intarsia: Intarsia, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    assert not intarsia(
        "fit", folder, *TINY, *QUICK, "--method", "bottleneck", "--set", "placement=pfeiffer",
        "--out", out,
    ).code  # fmt: skip
    result = intarsia("export", out)
    assert result.code == 2 and "FoldError" in result.err and not (out / "export").exists()


def test_pictures_that_changed_since_are_not_scored(
    intarsia: Intarsia, folder: Path, run: Path, tmp_path: Path
) -> None:
    mine = shutil.copytree(folder, tmp_path / "photos")
    out = shutil.copytree(run, tmp_path / "run")
    record = json.loads((out / "experiment.json").read_text())
    (out / "experiment.json").write_text(json.dumps(record | {"data": str(mine)}))
    assert intarsia("evaluate", out).code == 0
    picture(mine / "dark" / "one-more.png", 50, 77)
    result = intarsia("evaluate", out)
    assert result.code == 2 and "other data than the run had" in result.words
    assert intarsia("evaluate", out, mine).code == 0  # asked for in words


def test_debug_adds_a_traceback_and_nothing_else_changes(intarsia: Intarsia) -> None:
    plain, traced = (intarsia(*options, "show", "nosuch") for options in ((), ("--debug",)))
    assert plain.code == traced.code == 2
    assert "Traceback" in traced.err and "Traceback" not in plain.err
