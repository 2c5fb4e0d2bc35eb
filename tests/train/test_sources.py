"""Rows of several sources in one batch learn as if each had been alone with its delta."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from intarsia.core.errors import ConfigError
from intarsia.fitting import fit_in_phases
from intarsia.folders.sources import from_sources
from intarsia.hosts.delta.sparse_delta import SparseDelta
from intarsia.methods import LtSft
from intarsia.train import TargetLoss

from ..refusals import refused

WIDTH, CLASSES = 6, 3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).tanh())


def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


def deltas(count: int = 3) -> list[SparseDelta]:
    start = {"body.weight": net().body.weight.detach()}
    generator = torch.Generator().manual_seed(1)
    changes = []
    for _ in range(count):
        index = torch.randperm(WIDTH * WIDTH, generator=generator)[:9].sort().values
        values = torch.randn(9, generator=generator).double()
        changes.append(SparseDelta.of({"body.weight": (index, values)}, start, {}))
    return changes


def batch() -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(7, WIDTH, generator=generator).double()
    return {"x": x, "task_ids": torch.tensor([2, 0, 0, 2, 1, 2, 0])}, torch.arange(7) % CLASSES


def test_it_is_the_mean_over_rows_each_with_its_delta_in_place() -> None:
    model, twin, phis = net(), net(), deltas()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    x, y = batch()
    outcome = from_sources(model, x, TargetLoss(nn.CrossEntropyLoss(), y), deltas=phis)
    outcome.loss.backward()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    for row in range(7):
        with phis[int(x["task_ids"][row])].applied(twin):
            logits = twin(x["x"][row : row + 1])
            assert_close(outcome.logits[row : row + 1], logits)
            (nn.functional.cross_entropy(logits, y[row : row + 1]) / 7).backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert_close(a.grad, b.grad)


def test_both_phases_can_learn_from_several_sources() -> None:
    generator = torch.Generator().manual_seed(3)
    rows: Any = [
        {
            "x": torch.randn(WIDTH, generator=generator), "task_ids": torch.tensor(i % 3),
            "labels": torch.tensor(i % CLASSES),
        }
        for i in range(24)
    ]  # fmt: skip
    model, phis = net().float(), deltas()
    start = model.body.weight.detach().clone()
    phi = fit_in_phases(
        model, LtSft(count=8), rows, objective=partial(from_sources, deltas=phis), epochs=2,
        batch_size=6,
    ).found  # fmt: skip
    assert 0 < len(phi) <= 8
    assert int((model.body.weight != start).sum()) <= 8


@pytest.mark.parametrize(
    ("x", "got"),
    [
        (torch.ones(2, WIDTH), "no 'task_ids' in it"),
        ({"x": torch.ones(2, WIDTH), "task_ids": torch.tensor([0, 3])}, "0 ... 3"),
        ({"x": torch.ones(2, WIDTH), "task_ids": torch.tensor([-1, 0])}, "-1 ... 0"),
    ],
)
def test_rows_without_a_source_are_refused(x: Any, got: str) -> None:
    with refused(ConfigError, got=got):
        from_sources(net(), x, lambda logits: logits.sum(), deltas=deltas())
