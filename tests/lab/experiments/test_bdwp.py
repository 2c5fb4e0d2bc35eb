"""The experiment on BDWP, in their smallest form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from intarsia.core import NofM
from intarsia.schedules import masked_weights
from intarsia.schedules.bdwp import n_of_m_mask
from intarsia_lab.experiments import bdwp
from intarsia_lab.materials import thin_resnets


def test_it_trains_the_arms_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []

    def accuracy(arm: str, seed: int) -> float:
        trained.append(arm)
        return 90.0 - (arm == bdwp.BOTH)

    monkeypatch.setattr(bdwp, "accuracy", accuracy)
    assert bdwp.STUDIES[0].measure((0,), lambda _: None).value == -1.0
    assert trained == [bdwp.DENSE, bdwp.BOTH]


@pytest.mark.parametrize("arm", [bdwp.BOTH, bdwp.ONE_SHOT])
def test_a_net_ends_with_two_of_eight_weights(
    arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = torch.Generator().manual_seed(0)
    pictures = torch.randn(128, 1, 14, 14, generator=random), torch.arange(128) % 10
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path))
    monkeypatch.setattr(thin_resnets, "halved", lambda _: TensorDataset(*pictures))
    monkeypatch.setattr(bdwp, "WIDTHS", (8, 8, 16))
    monkeypatch.setattr(bdwp, "EPOCHS", 1)
    nets: list[torch.nn.Module] = []

    def score(model: torch.nn.Module, _: object) -> float:
        nets.append(model)
        return 50.0

    monkeypatch.setattr(thin_resnets, "accuracy", score)
    assert bdwp.accuracy(arm, 0) == 50.0
    for weight in masked_weights(nets[0], bdwp.LAYERS).values():
        assert (weight[~n_of_m_mask(weight, NofM.read(bdwp.PATTERN, 1))] == 0).all()
        assert weight.count_nonzero() == weight.numel() / 4
