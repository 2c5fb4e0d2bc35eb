"""Claims on random search and Sparse-IFT in their smallest form: their tests, and nets in step."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset

from intarsia_lab.claims import random_search, sparse_ift
from intarsia_lab.claims.random_search import (
    Nets,
    SearchedNet,
    interval,
    mlp,
    of_control,
    together,
)
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


def test_an_interval_of_a_correlation_holds_it() -> None:
    rho, low, high = interval([1, 2, 3, 4, 5, 6], [2, 1, 4, 3, 6, 5])
    assert low < rho < high and rho == pytest.approx(1 - 6 * 6 / (6 * 35))


def test_nets_that_are_trained_side_by_side_end_as_each_alone() -> None:
    both = together([mlp(0), mlp(1)], None, seed=3)
    for i in range(2):
        alone = together([mlp(i)], None, seed=3)
        assert both.first[i] == pytest.approx(alone.first[0], rel=1e-5)
        assert both.epoch[i] == pytest.approx(alone.epoch[0], rel=1e-3)
        assert both.steps[i] in range(1, 5)


def test_the_control_is_judged_by_the_loss_after_an_epoch() -> None:
    up, down = [1.0, 2.0, 3.0, 4.0, 5.0], [5.0, 4.0, 3.0, 2.0, 1.0]
    half = Nets(up, down, up, up)
    nets = [SearchedNet(half, half, half)] * 2
    (low, high), _, _ = of_control(nets)
    assert low <= high < 0 < random_search.of_ranks(nets)[0][0]


def test_every_way_of_sparse_ift_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide_resnets, "EPOCHS", 1)
    for name, way in sparse_ift.ARMS.items():
        trained = sparse_ift.run(way, 0)
        assert 0 <= trained.accuracy <= 100
        assert trained.macs == (0.25 if name.startswith("as wide") else 1.0)
