"""The experiment on DASS: as many weights for every net, and no arm that is not compared."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset

from intarsia.models.dass import ChosenNet, Genotype
from intarsia_lab.experiments import dass
from intarsia_lab.materials import thin_resnets


def test_it_chooses_the_cells_that_it_compares(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def cell(arm: str, number: int, seed: int) -> dass.ChosenCells:
        ran.append(arm)
        return dass.ChosenCells(70.0 + 2 * (arm == dass.OURS), dass.BUDGET, "cells")

    monkeypatch.setattr(dass, "cell", cell)
    assert dass.STUDIES[0].measure((0,), lambda _: None).value == 2.0
    assert ran == [dass.OURS, dass.HAND]


def test_nets_that_are_compared_have_as_many_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    pictures = torch.randn(64, 1, 14, 14, generator=random), torch.arange(64) % 10
    monkeypatch.setattr(thin_resnets, "halved", lambda _: TensorDataset(*pictures))
    monkeypatch.setitem(dass.OPTIONS, "epochs", 3)
    by_cells = ChosenNet(Genotype.drawn(dass.SIZES.nodes, random), dass.SIZES)
    for net in (dass.by_hand(), by_cells):
        accuracy, weights = dass.trained(net, 0)
        assert 0 <= accuracy <= 100 and weights == pytest.approx(dass.BUDGET, abs=12)
