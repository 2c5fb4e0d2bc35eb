"""A study runs each cell once, on the same images for every arm, and never selects on test."""

import numpy as np
import pytest
import timm
import torch

from intarsia.adapters import Bottleneck
from intarsia.core.errors import TrainingError
from intarsia.runs.pool import Arm
from intarsia.train import Training
from intarsia_lab.experiments import mosa
from intarsia_lab.kit import arms
from intarsia_lab.materials import picture_cells

TINY = picture_cells.Budget("tiny", images=12, epochs=2)


@pytest.fixture
def small(monkeypatch, tmp_path):
    def trunk(classes):
        torch.manual_seed(0)
        return timm.create_model(
            "vit_small_patch14_dinov2", img_size=28, embed_dim=24, num_heads=2, depth=8,
            num_classes=classes,
        )  # fmt: skip

    def prepare(name, count, first):
        generator = torch.Generator().manual_seed(len(name))
        tokens = torch.randn(40, 5, 24, generator=generator)
        labels = torch.arange(40) % 2
        order = np.arange(40)
        return tokens, labels, order[:24], order[24:], 2

    monkeypatch.setattr(picture_cells, "_trunk", trunk)
    monkeypatch.setattr(picture_cells, "prepare", prepare)
    return tmp_path / "cells.jsonl"


def arm(name="adapter", **options):
    return Arm(
        name, picture_cells.StudyRecipe(lambda _: Bottleneck(4, activation="gelu"), **options)
    )


BASE = Training(lr=1e-2, batch_size=6)


def test_a_cell_runs_once_and_is_read_afterwards(small, monkeypatch):
    first = picture_cells.PictureCells(base=BASE, file=small).cell("set", TINY, arm(), 0)
    monkeypatch.setattr(picture_cells, "fit", None)
    again = picture_cells.PictureCells(base=BASE, file=small)
    assert again.cell("set", TINY, arm(), 0) == first
    with pytest.raises(TypeError):
        again.cell("set", TINY, arm(), 1)


def test_a_line_cut_short_is_run_again(small):
    first = picture_cells.PictureCells(base=BASE, file=small).cell("set", TINY, arm(), 0)
    small.write_text(small.read_text()[:-20])
    again = picture_cells.PictureCells(base=BASE, file=small).cell("set", TINY, arm(), 0)
    assert (again.accuracy, again.loss) == (first.accuracy, first.loss)


def test_half_the_epochs_are_half_the_steps(small, monkeypatch):
    epochs = []
    real = picture_cells.fit
    monkeypatch.setattr(
        picture_cells, "fit", lambda *a, **k: (epochs.append(k["training"].epochs), real(*a, **k))
    )
    picture_cells.PictureCells(base=BASE, file=small).cell("set", TINY, arm(epochs=0.5), 0)
    assert epochs == [1]


def test_it_compares_in_pairs(small, monkeypatch):
    monkeypatch.setattr(picture_cells.packages, "cache_dir", lambda: small.parent)
    result = mosa.gain(
        (0, 1), lambda _: None, arms=mosa.ARMS[:2], budgets=(mosa.SCARCE,), sets=("a",)
    )
    assert len(result.values) == 2
    assert [r["method"] for r in result.table] == ["adapter", "MoSA"]


def test_every_arm_runs(small, monkeypatch):
    monkeypatch.setattr(picture_cells.packages, "cache_dir", lambda: small.parent)
    budget = picture_cells.Budget(mosa.SCARCE.name, images=12, epochs=2)
    result = mosa.gain((0,), lambda _: None, arms=mosa.ARMS, budgets=(budget,), sets=("a",))
    assert [r["method"] for r in result.table] == [arm.name for arm in mosa.ARMS]
    assert len({arm.name for arm in mosa.ARMS}) == len(mosa.ARMS)


def test_the_released_recipe_is_held_against_its_own_adapter(small, monkeypatch):
    monkeypatch.setattr(picture_cells.packages, "cache_dir", lambda: small.parent)
    budget = picture_cells.Budget(mosa.SCARCE.name, images=12, epochs=2)
    result = mosa.published_gain((0, 1), lambda _: None, budget=budget, sets=("a",), first=6)
    unsplit, split = (row["method"] for row in result.table)
    assert unsplit.startswith("adapter") and split.startswith("MoSA") and len(result.values) == 2
    assert "pairs" in result.note and result.value == np.mean(result.values)
    single, four = (mosa.official(budget, experts=n).method for n in (1, 4))
    assert (single.over, single.experts, four.experts) == (four.over, 1, 4)


def test_a_failed_cell_stops_no_other_and_is_an_error_in_the_end():
    def work(settings, task, seed):
        if settings == "bad":
            raise ValueError("no such thing")
        done.append((task, seed))
        return picture_cells.StudyScore(50.0, 1.0, 0.1)

    done, lines = [], []
    both = [Arm("a", "bad"), Arm("b", "good")]
    with pytest.raises(TrainingError, match=r"2 of 4 .*no such thing"):
        arms.each(both, (0, 1), work, lines.append, tasks=("x",), describe=lambda s: f"{s.loss}")
    assert done == [("x", 0), ("x", 1)]
    assert len(lines) == 4 and "x, seed 0, a: FAILED" in lines[0] and "b: 1.0" in lines[1]


def test_the_sheet_has_a_value_for_each_arm_task_and_seed():
    def work(settings, task, seed):
        return picture_cells.StudyScore(settings + len(task) + seed, 0.0, 0.0)

    sheet = arms.each(
        [Arm("a", 10), Arm("b", 20)], (0, 3), work, lambda _: None, tasks=("x", "xx"), describe=str
    )
    assert sheet.of("b", "accuracy").tolist() == [[21, 24], [22, 25]]
    gain = sheet.minus("b", "a", "accuracy")
    assert (gain.mean, gain.n, gain.record) == (10, 4, (2, 0, 0))


def test_what_chooses_sees_neither_training_nor_test_images(small):
    judging = picture_cells.PictureCells(base=BASE, file=small)
    choosing = picture_cells.PictureCells(base=BASE, part="val", file=small)
    train, test, _ = judging._data("set", 12, 0)
    learning, val, _ = choosing._data("set", 12, 0)
    rows = [
        {tuple(x.flatten().tolist()) for x in s.tensors[0]} for s in (train, test, learning, val)
    ]
    assert len(val) == 6 and not rows[3] & (rows[1] | rows[2])
    assert judging.cell("set", TINY, arm(), 0) != choosing.cell("set", TINY, arm(), 0)


def test_an_option_is_called_the_same_in_every_process():
    assert picture_cells._stable_text(arm) == "arm" and "0x" not in picture_cells._stable_text(
        mosa.official(TINY).optimizer
    )
