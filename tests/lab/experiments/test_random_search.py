"""Random search and Sparse-IFT in their smallest form."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset

from intarsia_lab.experiments import random_search, sparse_ift
from intarsia_lab.experiments.random_search import mlp, together
from intarsia_lab.materials import thin_resnets, wide_resnets


@pytest.fixture(autouse=True)
def smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty pictures, the same to learn and to test."""
    draw = torch.Generator().manual_seed(0)
    rows = TensorDataset(torch.randn(40, 1, 28, 28, generator=draw), torch.arange(40) % 10)
    monkeypatch.setattr(thin_resnets, "rows", lambda *_: rows)
    monkeypatch.setattr(random_search, "BATCH", 20)
    monkeypatch.setattr(random_search, "EPOCHS", 2)
    monkeypatch.setattr(random_search, "LOOK", 1)


def test_nets_that_are_trained_side_by_side_end_as_each_alone() -> None:
    both = together([mlp(0), mlp(1)], None, seed=3)
    for i in range(2):
        alone = together([mlp(i)], None, seed=3)
        assert both.first[i] == pytest.approx(alone.first[0], rel=1e-5)
        assert both.epoch[i] == pytest.approx(alone.epoch[0], rel=1e-3)
        assert both.steps[i] in range(1, 5)


def test_every_way_of_sparse_ift_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide_resnets, "EPOCHS", 1)
    for name, way in sparse_ift.ARMS.items():
        trained = sparse_ift.run(way, 0)
        assert 0 <= trained.accuracy <= 100
        assert trained.macs == (0.25 if name.startswith("as wide") else 1.0)
