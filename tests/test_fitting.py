"""`fit` on what `load_data` and `load_texts` give; what a run says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import intarsia
from intarsia.core.errors import ConfigError
from intarsia.data.splits import Splits
from intarsia.data.texts import Texts, TextSplits
from intarsia.data.transforms import eval_transform, input_config
from intarsia.train import Metrics, TokenMetrics

from .refusals import refused

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 8, "trackers": ()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures of two classes, told apart by their brightness."""
    root = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    for label, name in enumerate(("dark", "light")):
        (root / name).mkdir()
        for i in range(12):
            pixels = draw.integers(40, 90, (40, 30, 3)) + 120 * label
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def vit(classes: int) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=24, num_heads=2, num_classes=classes
    )


def counted(splits: Splits) -> dict[str, dict[str, int]]:
    return {part: record["counts"] for part, record in splits.record["parts"].items()}


def test_a_folder_is_three_lines(folder: Path, tmp_path: Path) -> None:
    splits = intarsia.load_data(str(folder))
    model = intarsia.adapt(vit(len(splits.classes)), intarsia.Mosa())
    run = intarsia.fit(model, splits, out=tmp_path / "run", lr=0.03, **QUICK | {"epochs": 6})
    assert isinstance(run.test, Metrics) and run.test.accuracy == 1
    assert isinstance(run.val, Metrics) and len(run.test.labels) == len(splits.test)
    # the pictures as the model's configuration wants them
    look = eval_transform(input_config(model))
    first = look(splits.test.image(0))[None]
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(first)[0], run.test.logits[0], rtol=1e-4, atol=1e-5)
    assert run.record["record"]["data"] == splits.record
    assert run.record["record"]["inputs"]["size"] == [32, 32]
    seconds, counts = run.record["results"]["seconds"], run.record["parameters"]
    run_folder = tmp_path / "run"
    chance = {part: max(n.values()) / sum(n.values()) for part, n in counted(splits).items()}
    assert str(run).splitlines() == [
        f"mosa in VisionTransformer on {folder}, {len(splits.train)} samples",
        *(
            f"{part:<6}accuracy 100.0 %, balanced accuracy 100.0 %, loss {metrics.loss:.4g} on "
            f"{len(metrics.labels)} samples (the commonest class alone: accuracy "
            f"{100 * chance[part]:.1f} %)"
            for part, metrics in (("val", run.val), ("test", run.test))
        ),
        f"{counts['trained']:,} of {counts['all']:,} parameters trained "
        f"({counts['trained_without_head']:,} without the head)",
        f"6 epochs, {seconds:.1f} s of training",
        f"Saved in {run_folder}. Next: intarsia.load(PRETRAINED, {str(run_folder)!r}), or in a "
        f"shell: intarsia report {run_folder}",
    ]
    assert repr(run) == str(run)


def test_sets_of_pictures_may_be_given_one_by_one(folder: Path) -> None:
    splits = intarsia.load_data(str(folder))
    runs = [
        intarsia.fit(vit(2), splits, **QUICK),
        intarsia.fit(vit(2), splits.train, splits.val, test=splits.test, **QUICK),
    ]
    assert runs[0].test is not None and runs[1].test is not None
    assert runs[0].test.scores() == runs[1].test.scores()
    model = vit(2)
    run = intarsia.fit(model, splits, **QUICK)
    assert run.test is not None
    scores = intarsia.evaluate(model, splits.test).scores()
    assert scores == pytest.approx(run.test.scores(), rel=1e-5)
    with refused(ConfigError, what="val, test"):
        intarsia.fit(vit(2), splits, splits.val)


def test_texts_are_read_alike() -> None:
    def rows(name: str, seed: int) -> Texts:
        ids = torch.randint(9, (6, 5), generator=torch.Generator().manual_seed(seed))
        return Texts(name, [(row, row) for row in ids])

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, 9)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.table(input_ids)

    splits = TextSplits(rows("train", 0), None, rows("test", 1), {"name": "rows"})
    run = intarsia.fit(Words(), splits, **QUICK)
    assert isinstance(run.test, TokenMetrics) and run.val is None
    assert run.record["record"] == {"data": {"name": "rows"}}
    assert "training in Words on rows, 6 samples" in str(run) and "Nothing was written" in str(run)
    assert f"perplexity {run.test.perplexity:.4g}" in str(run)


def test_the_epoch_that_was_chosen_is_said() -> None:
    x, y = torch.randn(16, 4), torch.arange(16) % 2
    sets = TensorDataset(x[:8], y[:8]), TensorDataset(x[8:], y[8:])
    run = intarsia.fit(nn.Linear(4, 2), *sets, select="val", lr=3.0, **QUICK | {"epochs": 4})
    epoch = run.record["results"]["selection"]["epoch"]
    assert (f"epoch {epoch} chosen on val" in str(run)) == (epoch < 4)


def test_modules_are_told_each_step() -> None:
    class Told(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 2)
            self.steps: list[tuple[int, int]] = []

        def before_step(self, step: int, steps: int) -> None:
            self.steps.append((step, steps))

    order: list[int] = []
    model = nn.Sequential(Told(), Told())
    x, y = torch.randn(16, 4), torch.arange(16) % 2
    intarsia.fit(
        nn.Sequential(model[0]), TensorDataset(x, y), **QUICK,
        schedule=lambda _m, step, _steps: order.append(len(model[0].steps) - step),  # pyright: ignore
    )  # fmt: skip
    assert model[0].steps == [(step, 4) for step in range(4)] and model[1].steps == []
    assert order == [1, 1, 1, 1]  # the schedule comes after, and may overrule them
