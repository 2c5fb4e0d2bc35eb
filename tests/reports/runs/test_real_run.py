"""What training really writes is what the report reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

import intarsia
from intarsia.reports.page import html
from intarsia.reports.runs import comparison_of, gather, report_of, save_mistakes
from intarsia.reports.runs.tables import table_of


class Tiny(nn.Module):
    """A frozen trunk and a head."""

    def __init__(self, train_trunk: bool) -> None:
        super().__init__()
        self.trunk, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.trunk.requires_grad_(train_trunk)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(x).relu())


def pictures(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 8, generator=generator)
    return TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Head only and everything, two seeds each."""
    root = tmp_path_factory.mktemp("real")
    for number, complete in enumerate((False, True)):
        for seed in range(2):
            torch.manual_seed(seed)
            out = root / f"{number}-{seed}"
            run = intarsia.fit(
                Tiny(complete), pictures(48, 0), pictures(16, 1), test=pictures(24, 2),
                epochs=2, seed=seed, lr=0.03, out=out, trackers=(), record={"data": "noise"},
            )  # fmt: skip
            assert run.test is not None
            blank = Image.fromarray(np.zeros((9, 9), dtype=np.uint8))
            names = ("a", "b", "c")
            save_mistakes(out, lambda _, p=blank: p, run.test.logits, run.test.labels, names)
    return root


def test_a_real_run_is_read(folder: Path) -> None:
    for run in gather([folder]):
        assert run.scores.split == "test" and run.answers is not None
        assert {(p.split, p.epoch) for p in run.curve} >= {("train", 1), ("val", 2)}
        assert run.mistakes is not None and run.mistakes.n == 24
        assert run.costs.peak_bytes and run.costs.seconds > 0


def test_real_runs_make_a_page(folder: Path) -> None:
    comparison = comparison_of(gather([folder]))
    assert [g.label for g in comparison.groups] == ["linear probe", "full fine-tuning"]
    assert [len(g.runs) for g in comparison.groups] == [2, 2]
    assert len(table_of(comparison).rows) == 2
    page = html(report_of(comparison))
    assert all(row[1].text in page for row in table_of(comparison).rows)
    assert "full fine-tuning" in page and "of the test pictures right" in page
