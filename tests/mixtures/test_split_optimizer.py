"""SplitAdamW: who is stepped, resuming, groups, and AdamW where nothing is split."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from intarsia.adapters import Bottleneck
from intarsia.core import Site
from intarsia.core.errors import ConfigError
from intarsia.methods import Mosa, MosaCell
from intarsia.mixtures import SplitLinear, StackedExperts
from intarsia.mixtures.split_optimizer import SplitAdamW, decay_groups, split_adamw
from intarsia.partitions import random_disjoint

from ..refusals import refused


def mosa(split: str) -> MosaCell:
    over = Bottleneck(5, activation="gelu", norm="layer")
    config = Mosa(over, split=split, draw="batch", scaling="paper", decay="official")
    return config.build(Site("b", 6, 6), generator=torch.Generator().manual_seed(0)).double()


def train_step(cell: MosaCell, optimizer: torch.optim.Optimizer, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 3, 6, generator=generator, dtype=torch.float64)
    optimizer.zero_grad()
    (cell(x) - x).square().mean().backward()
    optimizer.step()


def test_dense_and_lazy_updates_are_different_methods() -> None:
    finals = {}
    for update in ("dense", "lazy"):
        model = mosa("up")
        optimizer = split_adamw(model, 1e-2, 0.0, update=update)
        for step in range(10):
            train_step(model, optimizer, step)
        finals[update] = torch.cat([p.flatten() for p in model.parameters()])
    assert not torch.allclose(finals["dense"], finals["lazy"], atol=1e-4)


def one_layer(decay: str = "owned", scaling: str = "paper", **settings: Any) -> SplitLinear:
    generator = torch.Generator().manual_seed(0)
    base = nn.Linear(3, 5, dtype=torch.float64)
    for parameter in base.parameters():
        nn.init.normal_(parameter, generator=generator)
    partition = random_disjoint({"weight": (5, 3)}, 4, generator=generator)
    return SplitLinear(base, partition, decay=decay, scaling=scaling, **settings)


@pytest.mark.parametrize("decay", ["owned", "delta"])
def test_inverted_scaling_with_scaled_settings_is_the_published_one(decay: str) -> None:
    """V / N is stored: exact if that tensor has lr / N, N eps and N wd."""
    n, lr, eps, wd = 4, 1e-2, 1e-3, 0.1
    zero_start = decay == "owned"
    paper = one_layer(decay, "paper", zero_start=zero_start)
    inverted = one_layer(decay, "inverted", zero_start=zero_start)
    inverted.weight.data /= n
    assert paper.biases is not None
    assert inverted.biases is not None
    published = SplitAdamW(decay_groups(paper, wd), paper, lr=lr, eps=eps)
    groups = [
        {"params": [inverted.weight], "lr": lr / n, "eps": eps * n, "weight_decay": wd * n},
        {"params": [inverted.biases], "lr": lr, "eps": eps, "weight_decay": 0.0},
    ]
    two = SplitAdamW(groups, inverted)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        x = torch.randn(8, 3, generator=generator, dtype=torch.float64)
        gates = torch.eye(n, dtype=torch.float64)[torch.randint(n, (8,), generator=generator)]
        losses = []
        for layer, optimizer in ((paper, published), (inverted, two)):
            loss = (layer(x, gates) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        assert_close(*losses, atol=1e-12, rtol=0)
        assert_close(inverted.weight.data, paper.weight.data / n, atol=1e-13, rtol=0)
        assert_close(inverted.merged().weight, paper.merged().weight, atol=1e-13, rtol=0)


@pytest.mark.parametrize("update", ["dense", "lazy"])
def test_without_split_layers_it_is_adamw(update: str) -> None:
    models = [nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    settings = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-4}
    ours = SplitAdamW(decay_groups(models[0], 0.3), models[0], update=update, **settings)
    theirs = torch.optim.AdamW(decay_groups(models[1], 0.3), **settings)
    for step in range(20):
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
        for model, optimizer in zip(models, (ours, theirs), strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    assert_close(list(models[0].parameters()), list(models[1].parameters()), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("active", [1, 4])
def test_with_every_expert_drawn_it_is_adamw_on_the_one_tensor(active: int) -> None:
    layers = [one_layer(active=active, decay="delta") for _ in range(2)]
    ours = SplitAdamW(decay_groups(layers[0], 0.1), layers[0], lr=1e-2, update="lazy")
    theirs = torch.optim.AdamW(decay_groups(layers[1], 0.1), lr=1e-2)
    gates = torch.eye(4, dtype=torch.float64) if active == 1 else torch.ones(4, 4).double()
    for step in range(10):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        for layer, optimizer in zip(layers, (ours, theirs), strict=True):
            optimizer.zero_grad()
            layer(x, gates).square().mean().backward()
            optimizer.step()
    assert_close(list(layers[0].parameters()), list(layers[1].parameters()))


def gates_of(expert: int) -> Tensor:
    return torch.eye(4, dtype=torch.float64)[expert : expert + 1]


@pytest.mark.parametrize("update", ["dense", "lazy"])
def test_only_experts_that_were_drawn_are_stepped(update: str) -> None:
    layer = one_layer("official", "paper")
    optimizer = SplitAdamW(decay_groups(layer, 0.5), layer, lr=0.1, update=update)
    x = torch.randn(2, 3, dtype=torch.float64)
    history = []
    for expert in (0, 1, 1):
        before = layer.weight.detach().clone()
        layer(x, gates_of(expert)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        moved = (layer.weight.detach() != before).flatten()
        history.append(sorted(set(layer.owner.flatten()[moved].tolist())))
    assert layer.rho is not None
    assert optimizer.state[layer.weight]["step"].dtype == torch.int64
    steps = optimizer.state[layer.weight]["step"].tolist()
    assert steps == optimizer.state[layer.biases]["step"].tolist()
    if update == "dense":
        assert history == [[0], [0, 1], [0, 1]]
        assert steps == [3, 2, 0, 0]
    else:
        assert history == [[0], [1], [1]]
        assert steps == [1, 2, 0, 0]
    assert_close(layer.rho, torch.tensor([0.95**t for t in steps], dtype=layer.rho.dtype))


def test_accumulated_draws_count_and_unused_forwards_do_not() -> None:
    layer = one_layer()
    optimizer = SplitAdamW(decay_groups(layer, 0.0), layer, update="lazy")
    x = torch.randn(2, 3, dtype=torch.float64)
    loss = layer(x, gates_of(2)).square().sum()
    layer(x, gates_of(3))  # drawn, but without a loss
    optimizer.zero_grad()  # after the forward, as is common
    loss.backward()
    layer(x, gates_of(0)).square().sum().backward()
    optimizer.step()
    assert optimizer.state[layer.weight]["step"].tolist() == [1, 0, 1, 0]
    assert not layer.seen.any()


def test_gradients_that_were_dropped_step_nobody() -> None:
    layer = one_layer()
    optimizer = SplitAdamW(decay_groups(layer, 0.0), layer, update="lazy")
    x = torch.randn(2, 3, dtype=torch.float64)
    layer(x, gates_of(0)).sum().backward()
    optimizer.zero_grad()  # as a loss scaler does after an overflow
    layer(x, gates_of(1)).sum().backward()
    optimizer.step()
    assert optimizer.state[layer.weight]["step"].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("update", ["dense", "lazy"])
@pytest.mark.parametrize("variant", ["torch", "huggingface"])
def test_a_run_that_is_resumed_ends_with_the_same_bits(update: str, variant: str) -> None:
    full = mosa("both")
    optimizer = split_adamw(full, 1e-2, 0.1, update=update, variant=variant)
    for step in range(12):
        if step == 6:
            resumed = copy.deepcopy(full)
            saved = copy.deepcopy(optimizer.state_dict())
        train_step(full, optimizer, step)
    second = split_adamw(resumed, lr=5.0, weight_decay=9.0)
    second.load_state_dict(saved)
    for step in range(6, 12):
        train_step(resumed, second, step)
    for (name, a), b in zip(full.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_the_state_is_tensors_and_plain_values() -> None:
    model = mosa("both")
    optimizer = split_adamw(model, 1e-2, 0.1)
    train_step(model, optimizer, 0)

    def leaves(tree: object) -> list[object]:
        if isinstance(tree, dict):
            return [leaf for value in tree.values() for leaf in leaves(value)]
        if isinstance(tree, list | tuple):
            return [leaf for value in tree for leaf in leaves(value)]
        return [tree]

    values = leaves(optimizer.state_dict())
    assert {type(leaf) for leaf in values} <= {Tensor, int, float, bool, str, type(None)}
    assert {g["update"] for g in optimizer.param_groups} == {"dense"}


def test_decay_spares_biases_norms_and_scales() -> None:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.split, self.norm = one_layer(), nn.LayerNorm(5)
            self.scale = nn.Parameter(torch.ones(5))
            self.frozen = nn.Linear(2, 2).requires_grad_(False)

    model = Adapted()
    names = {id(p): name for name, p in model.named_parameters()}

    def named(groups: list[dict[str, Any]]) -> list[tuple[float, set[str]]]:
        return [(g["weight_decay"], {names[id(p)] for p in g["params"]}) for g in groups]

    rest = {"split.biases", "norm.bias", "scale"}
    assert named(decay_groups(model, 0.1)) == [
        (0.1, {"split.weight"}),
        (0.0, rest | {"norm.weight"}),
    ]
    assert named(decay_groups(model, 0.1, norm_decays=True)) == [
        (0.1, {"split.weight", "norm.weight"}),
        (0.0, rest),
    ]
    assert decay_groups(nn.Identity(), 0.1) == []


def test_a_closure_is_evaluated() -> None:
    layer = one_layer()
    optimizer = SplitAdamW(layer.parameters(), layer)
    x = torch.randn(2, 3, dtype=torch.float64)

    def closure() -> float:
        optimizer.zero_grad()
        loss = layer(x, gates_of(0)).square().sum()
        loss.backward()
        return loss.item()

    first, second = optimizer.step(closure), optimizer.step(closure)
    assert second < first


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"update": "sparse"}, "update"),
        ({"variant": "keras"}, "variant"),
        ({"lr": -1.0}, "lr"),
        ({"eps": -1.0}, "eps"),
        ({"weight_decay": float("nan")}, "weight_decay"),
        ({"betas": (0.9, 1.0)}, "betas"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], field: str) -> None:
    layer = one_layer()
    with refused(ConfigError, what=field):
        SplitAdamW(layer.parameters(), layer, **settings)


def test_biases_of_stacked_experts_are_not_decayed() -> None:
    experts = StackedExperts(3, 4, 8, bias=True, gated=True, generator=torch.Generator())
    decayed, free = (group["params"] for group in decay_groups(experts, 0.1))
    assert {p.ndim for p in decayed} == {3} and {p.ndim for p in free} == {2}
    assert len(decayed) == len(free) == 3
