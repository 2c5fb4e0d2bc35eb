"""The arms of RigL's claim train as many operations as they say."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset

from intarsia_lab.claims import rigl
from intarsia_lab.materials import thin_resnets


def test_arms_of_equal_cost() -> None:
    cost = {name: rigl.operations(way) for name, way in rigl.ARMS.items()}
    assert cost["dense"] == 1
    assert cost[rigl.STATIC] == cost["SET"] == rigl.DENSITY
    assert cost[rigl.GRADUAL] == pytest.approx(rigl.DENSITY, rel=0.05)
    assert rigl.DENSITY < cost[rigl.RIGL] < 1.06 * rigl.DENSITY
    assert rigl.operations(rigl.TENTH[rigl.STATIC]) == rigl.SPARSER


@pytest.mark.parametrize("name", [rigl.RIGL, rigl.STATIC, rigl.GRADUAL])
def test_an_arm_ends_at_its_density(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    images = torch.randn(256, 1, 28, 28, generator=random), torch.arange(256) % 10
    monkeypatch.setattr(thin_resnets, "rows", lambda *_: TensorDataset(*images))
    densities = []

    def scored(model: torch.nn.Module, _: TensorDataset) -> float:
        densities.append(thin_resnets.density_of(model))
        return 0.0

    monkeypatch.setattr(thin_resnets, "accuracy", scored)
    rigl.accuracy(rigl.ARMS[name]._replace(epochs=1), 0)
    assert densities[0] == pytest.approx(rigl.DENSITY, abs=0.02)  # the smallest layers keep more
