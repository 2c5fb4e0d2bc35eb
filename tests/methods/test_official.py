"""The published recipe is what the released code does, quirks included."""

from __future__ import annotations

import math
from functools import partial
from typing import cast

import pytest
import timm
import torch
from torch import nn
from torch.utils.data import TensorDataset

from intarsia.core.errors import ConfigError, TargetError
from intarsia.fitting import fit
from intarsia.folders.verbs import adapt
from intarsia.hosts.attach.prepare import reset_head, set_dropout
from intarsia.methods import Mosa, Official
from intarsia.methods.mosa import PUBLISHED
from intarsia.mixtures import SplitAdamW, SplitLinear
from intarsia.train.objectives import two_pass

from ..refusals import refused


def tiny() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=12, num_heads=2, num_classes=3
    )


def test_the_rate_is_set_once_per_epoch_and_epoch_zero_has_none() -> None:
    recipe, per_epoch = Official(), 8
    steps = recipe.epochs * per_epoch
    factors = [recipe.lr_factor(step, steps) for step in range(steps)]
    by_epoch = [factors[i : i + per_epoch] for i in range(0, steps, per_epoch)]
    assert all(len(set(epoch)) == 1 for epoch in by_epoch)
    assert by_epoch[0][0] == 0
    assert by_epoch[5][0] == pytest.approx(0.5)
    assert by_epoch[10][0] == 1
    assert by_epoch[55][0] == pytest.approx(0.5)
    assert by_epoch[99][0] == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))


def test_the_cells_are_the_released_ones() -> None:
    method = Official().method
    over = method.over
    assert (method.experts, method.active, method.split, method.draw) == (4, 1, "up", "batch")
    assert (method.scaling, method.decay, method.unit) == ("paper", "official", "element")
    resolved = {n: over.resolved(n) for n in ("activation", "norm", "scale", "init")}
    assert resolved == {"activation": "gelu", "norm": "residual", "scale": 0.1, "init": "zero"}
    assert (over.dropout, over.placement, over.bottleneck) == (0.1, "adaptformer", 64)
    assert PUBLISHED["vtab"].method.over.bottleneck == 16


def test_sets_differ_as_published() -> None:
    assert {r.lr for r in PUBLISHED.values()} == {5e-4, 1e-3, 5e-3}
    cars = PUBLISHED["cars"]
    assert (cars.experts, cars.split, cars.lr) == (2, "down", 5e-3)
    assert cars.objective["deep"] == pytest.approx(0.01 / 12)
    assert PUBLISHED["multi-task"].method.split == "both"
    assert Official().objective == {"add": 0.0, "reg": 1.0, "detach": True, "deep": 0.0}


def test_the_optimiser_decays_the_gain_of_the_adapters_norm_but_no_bias() -> None:
    cell = cast(Mosa, Official(4).method)
    model = adapt(tiny(), cell)
    optimizer = Official().optimizer(model, 1e-3, 0.01)
    assert isinstance(optimizer, SplitAdamW)
    names = {id(p): n for n, p in model.named_parameters()}
    decayed, free = ({names[id(p)] for p in g["params"]} for g in optimizer.param_groups)
    assert any(n.endswith("norm.weight") for n in decayed)
    assert all("bias" in n for n in free)
    group = optimizer.param_groups[0]
    settings = {k: group[k] for k in ("lr", "betas", "eps", "weight_decay", "update", "variant")}
    assert settings == {
        "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01, "update": "dense",
        "variant": "huggingface",
    }  # fmt: skip


@pytest.mark.parametrize("split", ["up", "down", "both"])
def test_the_recipe_runs_in_the_training_loop(split: str) -> None:
    recipe = Official(4, split=split, epochs=3, warmup_epochs=1, batch_size=4, deep=True)
    generator = torch.Generator().manual_seed(0)
    model = tiny()
    set_dropout(model, recipe.dropout)
    reset_head(cast(nn.Linear, model.head), generator=generator)
    model = adapt(model, recipe.method)
    x = torch.randn(12, 3, 32, 32, generator=generator)
    data = TensorDataset(x, torch.arange(12) % 3)
    objective = partial(two_pass, **recipe.objective)
    run = fit(model, data, objective=objective, **recipe.settings)  # pyright: ignore
    assert run.record
    layers = [m for m in model.modules() if isinstance(m, SplitLinear)]
    assert len(layers) == (4 if split == "both" else 2)
    assert all(layer.change().any() for layer in layers)
    starts = [layer.rho for layer in layers if layer.rho is not None]
    assert len(starts) == (0 if split == "up" else 2)
    assert all(bool((rho < 1).any()) for rho in starts)


def test_an_epoch_at_rate_zero_trains_nothing() -> None:
    recipe = Official(4, epochs=1, warmup_epochs=1, batch_size=4)
    model = adapt(tiny(), recipe.method)
    before = {n: p.clone() for n, p in model.named_parameters()}
    data = TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8) % 3)
    fit(model, data, objective=partial(two_pass, **recipe.objective), **recipe.settings)  # pyright: ignore
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_the_backbone_gets_dropout_in_its_embedding_and_mlps() -> None:
    model = tiny()
    set_dropout(model, 0.1)
    rates = {n: m.p for n, m in model.named_modules() if isinstance(m, nn.Dropout) and m.p}
    assert rates == dict.fromkeys(
        ["pos_drop", *(f"blocks.{i}.mlp.drop{j}" for i in (0, 1) for j in (1, 2))], 0.1
    )
    with refused(TargetError, what="dropout of Linear"):
        set_dropout(nn.Linear(2, 2), 0.1)
    with refused(ConfigError, what="dropout", got=1.0):
        set_dropout(model, 1.0)


def test_every_class_starts_unlikely() -> None:
    head = nn.Linear(300, 200)
    reset_head(head, generator=torch.Generator().manual_seed(0))
    assert head.weight.std().item() == pytest.approx(math.sqrt(2 / 200), rel=0.02)
    assert (head.bias == -math.log(99)).all()
    again = nn.Linear(300, 200)
    reset_head(again, generator=torch.Generator().manual_seed(0))
    assert torch.equal(head.weight, again.weight)
