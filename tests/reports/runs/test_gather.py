"""A run folder is read whole, or refused with what is wrong."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from intarsia.core.errors import CheckpointError, DataError, IntarsiaError
from intarsia.core.sealing import OPEN, seal_file
from intarsia.reports.runs import gather, read_run

from ...refusals import refused

Make = Callable[..., Path]


def test_a_run_is_read_with_everything_in_it(make_run: Make, classes: tuple[str, ...]) -> None:
    run = read_run(make_run(label="mosa", seed=2))
    assert run.seed == 2
    assert run.scores.split == "test"
    assert (run.costs.trained, run.costs.trained_without_head) == (154_756, 153_216)
    assert run.costs.peak_kind == "resident"
    assert [p.epoch for p in run.curve if p.split == "val"] == list(range(1, 9))
    assert run.answers is not None and run.answers.classes == classes
    share = (run.answers.labels == run.answers.predicted).mean()
    assert math.isclose(share, run.scores.accuracy, abs_tol=1e-6)
    assert run.mistakes is not None and run.mistakes.wrong == round((1 - share) * 160)


def test_training_values_are_means_over_an_epoch(make_run: Make) -> None:
    folder = make_run()
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    losses = [e["loss"] for e in lines if e["split"] == "train" and e["epoch"] == 3]
    (point,) = (p for p in read_run(folder).curve if p.split == "train" and p.epoch == 3)
    assert len(losses) == 5
    assert math.isclose(point.values["loss"], sum(losses) / 5)
    assert "seconds" not in point.values


def write_predictions(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "predictions.safetensors", OPEN)
    seal_file(folder / "predictions.safetensors")


@pytest.mark.parametrize("name", ["metrics.jsonl", "predictions.safetensors", "mistakes"])
def test_what_is_optional_may_be_missing(make_run: Make, name: str) -> None:
    folder = make_run()
    (folder / name).rename(folder / f"{name}.gone")
    run = read_run(folder)
    missing = {
        "metrics.jsonl": run.curve == (),
        "predictions.safetensors": run.answers is None,
        "mistakes": run.mistakes is None,
    }
    assert [key for key, gone in missing.items() if gone] == [name]


def test_a_val_score_does_where_no_test_was_scored(make_run: Make) -> None:
    run = read_run(make_run(change={"results.test": None}))
    assert run.scores.split == "val" and run.scores.accuracy == 0.7
    assert run.answers is None  # its predictions are those of the test part


def test_an_unfinished_last_line_of_the_curve_is_left_out(make_run: Make) -> None:
    folder = make_run()
    curve = read_run(folder).curve
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "spl')
    assert read_run(folder).curve == curve


def test_class_names_may_come_from_the_caller(make_run: Make) -> None:
    change = {f"data.{part}": {"n": 1} for part in ("train", "val", "test")}
    named = change | {"record.data": {"classes": ["a", "b", "c", "d"]}}
    answers = [read_run(make_run(str(i), change=c)).answers for i, c in enumerate((named, change))]
    assert [a.classes[3] if a else None for a in answers] == ["d", "class 3"]


def test_a_folder_of_runs_gives_them_in_the_order_they_started(runs: Path) -> None:
    gathered = gather([runs])
    labels = [str(run.given["label"]) for run in gathered]
    assert list(dict.fromkeys(labels)) == ["linear probe", "plain adapter", "mosa"]
    assert [run.seed for run in gathered] == [0, 1, 2] * 3


def test_a_folder_named_twice_is_one_run(runs: Path) -> None:
    assert len(gather([runs, runs / "mosa-1", f"{runs}/./mosa-1"])) == 9


def broken(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("name", "content", "want"),
    [
        ("run.json", b"", "the file as intarsia fit wrote it"),
        ("run.json", b'{"command": ["x"', "the file as intarsia fit wrote it"),
        ("run.json", b"[1]", "the file as intarsia fit wrote it"),
        ("run.json", b"\xff\xfe", "the file as intarsia fit wrote it"),
        ("run.json", b"{}", "the file as intarsia fit wrote it"),
        ("run.json", b"[" * 100_000, "the file as intarsia fit wrote it"),
        (
            "metrics.jsonl",
            b'{"split": "val", "epoch": 1}\n{"split"\n',
            "one JSON object with split and epoch a line",
        ),
        ("metrics.jsonl", b'{"epoch": 1}\n', "one JSON object with split and epoch a line"),
        ("metrics.jsonl", b"7\n", "one JSON object with split and epoch a line"),
        ("metrics.jsonl", b"\xff\n", "one JSON object with split and epoch a line"),
        ("predictions.safetensors", b"", "what was written"),
        ("predictions.safetensors", b"\x00" * 64, "what was written"),
    ],
)
def test_a_damaged_file_is_named(make_run: Make, name: str, content: bytes, want: str) -> None:
    with refused(CheckpointError, want=want) as caught:
        read_run(broken(make_run(), name, content))
    assert name in caught.value.what and caught.value.fix


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"training.seed": "0"}, "training.seed = '0'"),
        ({"training.seed": None}, "no 'training.seed'"),
        ({"training": 3}, "no 'training.seed'"),
        ({"results.test.accuracy": 1.5}, "accuracy = 1.5"),
        ({"results.test.accuracy": math.nan}, "accuracy = nan"),
        ({"results.test": {}}, "no 'results.test.accuracy'"),
        ({"results.test.accuracy": 0.5}, "where run.json says 0.500000"),
        ({"results.seconds": True}, "results.seconds = True"),
        ({"results.peak_bytes.resident": "much"}, "resident = 'much'"),
        ({"parameters": None}, "no 'parameters.trained'"),
    ],
)
def test_a_wrong_value_is_named(make_run: Make, change: dict[str, object], says: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_run(make_run(change=change))
    assert says in str(caught.value.got)


def test_another_version_is_refused(make_run: Make) -> None:
    with refused(CheckpointError, got=2):
        read_run(make_run(change={"format": 2}))


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(3, 4), torch.full((3,), 4)),
        (torch.zeros(3, 4), torch.full((3,), -1)),
        (torch.zeros(3, 4), torch.zeros(3)),
        (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
    ],
    ids=["one axis", "lengths", "label too large", "label below 0", "float labels", "empty"],
)
def test_predictions_that_do_not_fit(
    make_run: Make, logits: torch.Tensor, labels: torch.Tensor
) -> None:
    folder = make_run()
    write_predictions(folder, {"logits": logits, "labels": labels})
    with pytest.raises(CheckpointError, match="predictions.safetensors"):
        read_run(folder)


def test_predictions_without_labels(make_run: Make) -> None:
    folder = make_run()
    write_predictions(folder, {"logits": torch.zeros(3, 4)})
    with refused(CheckpointError, got="no labels"):
        read_run(folder)


def test_no_run_there(tmp_path: Path, make_run: Make, runs: Path) -> None:
    empty, unfinished = tmp_path / "empty", make_run("unfinished")
    empty.mkdir()
    (unfinished / "run.json").unlink()
    cases = {
        "nothing there": [tmp_path / "nowhere"],
        "no run.json": [empty],
        "a run without run.json": [unfinished],
        "no folder": [],
    }
    for says, folders in cases.items():
        with pytest.raises(DataError, match=says):
            gather(folders)
    with refused(DataError, got="a folder of runs"):
        read_run(runs)


def test_a_run_without_a_score(make_run: Make) -> None:
    with refused(DataError, got="no score"):
        read_run(make_run(change={"results.test": None, "results.val": None}))


def test_a_damaged_run_among_others_is_not_passed_over(make_run: Make) -> None:
    good = make_run("many/good")
    broken(make_run("many/bad"), "run.json", b"{")
    with pytest.raises(IntarsiaError, match=r"bad.run\.json"):
        gather([good.parent])


def test_a_run_says_its_format_and_it_is_the_one_that_is_read() -> None:
    reading = importlib.import_module("intarsia.reports.runs.reading")
    folder = importlib.import_module("intarsia.train.folder")
    assert folder.FORMAT == reading.FORMAT and folder.RUN == reading.RUN
