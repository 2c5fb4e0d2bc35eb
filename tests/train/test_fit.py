"""The loop: what it learns, what it leaves alone, what it refuses."""

from __future__ import annotations

import pytest
import torch
from tiny import host, pictures

from intarsia.train import evaluate, fit


def test_it_learns_and_leaves_the_trunk_alone() -> None:
    model = host()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    run = fit(model, pictures(60), pictures(40, seed=1), epochs=8, batch_size=12, lr=1e-2)
    assert run.val is not None and run.val.accuracy > 0.8
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
        assert parameter.requires_grad or parameter.grad is None
    assert evaluate(model, pictures(40, seed=1)).scores() == run.val.scores()


@pytest.mark.parametrize("precision", ["bf16"])
def test_frozen_weights_are_held_once_in_the_compute_type(precision: str) -> None:
    model = host()
    run = fit(
        model, pictures(60), pictures(40, seed=1), epochs=8, batch_size=12, lr=1e-2,
        precision=precision,
    )  # fmt: skip
    assert run.val is not None and run.val.accuracy > 0.8
    for name, parameter in model.named_parameters():
        half = not parameter.requires_grad and "norm" not in name
        assert parameter.dtype == (torch.bfloat16 if half else torch.float32), name
