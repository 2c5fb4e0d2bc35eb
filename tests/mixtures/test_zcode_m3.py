"""Merging gives the experts of both, pruning takes some away; the rest is what it was."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from intarsia import TopK
from intarsia.core.errors import ConfigError, ShapeError
from intarsia.gating import learned_routers
from intarsia.gating.load import counting, loads
from intarsia.mixtures import Capacity, ExpertList, Mixture, StackedExperts, ZCodeM3, merged, prune
from intarsia.routers import (
    Comet,
    EvoMoe,
    ExpertChoice,
    Hash,
    NoisyTopK,
    RandomRouter,
    Recurrent,
    Switch,
    TopP,
    Transport,
)

from ..refusals import refused
from ..toys import seeded

D = 6
ROUTERS: dict[str, Any] = {
    "topk": TopK(experts=4, bias=True), "switch": Switch(experts=4), "topp": TopP(experts=4),
    "noisy": NoisyTopK(experts=4, std=1.0), "choice": ExpertChoice(experts=4, capacity=1.0),
    "transport": Transport(experts=4), "recurrent": Recurrent(experts=4, hidden=3),
    "dts": EvoMoe(experts=4), "hash": Hash(experts=4, by="row"), "all": TopK(experts=4, active=4),
}  # fmt: skip


def mixture(config: Any, seed: int = 0, *, form: str = "stack", shared: bool = False) -> Mixture:
    """Experts and a gate that differ; buffers of one seed."""
    stacked = StackedExperts(config.experts, D, 5, bias=True, generator=seeded())
    experts: Any = stacked
    if form == "list":
        experts = ExpertList([nn.utils.skip_init(nn.Linear, D, D) for _ in range(config.experts)])
    router = config.build(D, generator=seeded())
    layer = Mixture(experts, router, nn.utils.skip_init(nn.Linear, D, D) if shared else None)
    draw = seeded(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=draw)
    return layer.double().eval()


def batch(rows: int = 12, seed: int = 1) -> Tensor:
    return torch.randn(rows, D, dtype=torch.float64, generator=seeded(seed))


def kinds(layer: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in layer.state_dict().items()}


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("form", ["stack", "list"])
def test_merging_stacks_gate_rows_and_experts_and_averages_the_rest(name: str, form: str) -> None:
    a, b = (mixture(ROUTERS[name], seed, form=form, shared=True) for seed in (1, 2))
    before = copy.deepcopy((a.state_dict(), b.state_dict()))
    layer = merged(a, b)
    assert isinstance(layer, Mixture)
    assert layer.router.experts == layer.experts.experts == layer.router.config.experts == 8
    rows = {f"router.{n}" for n in a.router.by_expert}
    first, second, both = a.state_dict(), b.state_dict(), layer.state_dict()
    for key in first:
        if key == "router.salt":  # a hash that both have
            assert torch.equal(both[key][:4], first[key]) and len(both[key].unique()) == 8
        elif key in rows or (key.startswith("experts.") and form == "stack"):
            assert torch.equal(both[key], torch.cat([first[key], second[key]])), key
        elif key.startswith("experts."):
            number = int(key.split(".")[2])
            assert torch.equal(both[key], first[key])
            moved = key.replace(f"each.{number}.", f"each.{number + 4}.")
            assert torch.equal(both[moved], second[key])
        elif first[key].is_floating_point():
            assert_close(both[key], (first[key] + second[key]) / 2)
        else:
            assert torch.equal(both[key], first[key])
    assert layer(batch()).isfinite().all()
    for layer, old in zip((a, b), before, strict=True):
        assert all(torch.equal(t, old[n]) for n, t in layer.state_dict().items())


def test_merged_with_itself_switch_weights_halve() -> None:
    """p is a softmax over twice as many experts, and a token goes to one of two equal ones."""
    for config in (Switch(experts=4), TopK(experts=4, active=1, scale="prob")):
        a, x = mixture(config), batch()
        assert_close(merged(a, a)(x), a(x) / 2)


def test_merged_with_itself_a_renormalised_gate_is_the_parent_if_k_doubles() -> None:
    """Two equal experts share what one had, since both are among the 2 k."""
    a, x = mixture(TopK(experts=4, active=2)), batch()
    layer = merged(a, a)
    assert not torch.allclose(layer(x), a(x))  # both of its 2 are copies of the best one
    layer.router.config = replace(layer.router.config, active=4)
    assert_close(layer(x), a(x))
    a = mixture(TopK(experts=4, active=1, scale="none"))
    assert_close(merged(a, a)(x), a(x))  # whichever of the two it is


def test_noise_and_losses_are_those_of_all_experts() -> None:
    layer = merged(*(mixture(NoisyTopK(experts=3), seed) for seed in (1, 2))).train()
    layer(batch()).sum().backward()
    assert layer.router.gate.grad.shape == (6, D) and layer.router.last.experts == 6
    assert layer.router.received.shape == (2, 6)


def test_frozen_experts_stay_frozen_and_others_learn() -> None:
    a, b = mixture(TopK(experts=2)), mixture(TopK(experts=2), 1)
    a.experts.up.requires_grad_(False)
    flags = {n: p.requires_grad for n, p in merged(a, b).named_parameters()}
    assert flags == {n: p.requires_grad for n, p in a.named_parameters()}
    prune(a, [1, 0])
    assert flags == {n: p.requires_grad for n, p in a.named_parameters()}


def test_a_tied_weight_is_averaged_once() -> None:
    class Tied(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.layer, self.a = mixture(TopK(experts=2), seed), nn.Linear(D, D)
            self.b = nn.Linear(D, D)
            self.b.weight = self.a.weight

    first, second = Tied(0), Tied(1)
    both = merged(first, second)
    assert both.b.weight is both.a.weight
    assert_close(both.a.weight, (first.a.weight + second.a.weight) / 2)


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("form", ["stack", "list"])
def test_pruning_to_all_is_the_identity(name: str, form: str) -> None:
    layer, x = mixture(ROUTERS[name], form=form), batch()
    want, shapes = layer(x), kinds(layer)
    prune(layer, range(4))
    assert torch.equal(layer(x), want) and kinds(layer) == shapes


@given(
    st.sampled_from([n for n in ROUTERS if n not in ("all", "recurrent")]),
    st.permutations(range(4)),
    st.integers(2, 4),
)
def test_a_pruned_gate_is_the_gate_of_the_kept_rows(name: str, order: list[int], m: int) -> None:
    """A fresh mixture of m experts with the kept rows says the same."""
    layer, experts = mixture(ROUTERS[name]), order[:m]
    fresh = mixture(replace(ROUTERS[name], experts=m), 5)
    state = layer.state_dict()
    rows = {f"router.{n}" for n in layer.router.by_expert}
    pruned = {
        n: t[experts] if n in rows or n.startswith("experts.") else t for n, t in state.items()
    }
    fresh.load_state_dict(pruned)
    prune(layer, experts)
    assert torch.equal(layer(batch()), fresh(batch()))


def test_pruned_experts_that_nobody_had_are_not_missed() -> None:
    layer, x = mixture(TopK(experts=6, active=2, scale="none")), batch(5)
    used = layer.router(x).load().nonzero().flatten().tolist()
    want = layer(x)
    assert len(used) < 6
    prune(layer, used)
    assert_close(layer(x), want)


def test_what_was_counted_and_drawn_is_forgotten() -> None:
    config = ZCodeM3(experts=4, factor=0.5, least=1)
    layer = config.build(D, 5, generator=seeded()).train()
    layer.draws.context.hold = True
    layer(batch().float()).sum().backward()
    prune(layer, [2, 0, 1])
    assert layer.router.last is None and layer.taken is None
    assert layer.router.received.tolist() == [[0] * 3] * 2
    noisy = mixture(NoisyTopK(experts=4)).train()
    noisy.router.context.hold = True
    noisy(batch())
    prune(noisy, [2, 0, 1])
    assert noisy(batch()).shape == (12, D), "noise of four experts is no noise of three"
    y = layer(batch().float())
    assert y.shape == (12, D) and layer.taken.load().tolist() <= [2, 2, 2]


@pytest.mark.parametrize("training", [True, False])
def test_counting_is_of_every_mode_and_puts_back(training: bool) -> None:
    layer = mixture(TopK(experts=4, active=2)).train()
    layer(batch())
    before = layer.router.received.clone()
    layer.train(training)
    layer.router.context.valid = torch.arange(12)[None] < 9  # the rest is padding
    with torch.no_grad(), counting(layer):
        counted = layer(batch()[None])
        pairs = layer.router.received[0]
        assert loads(layer).keys() == {"router"}
    assert counted.shape == (1, 12, D)
    assert torch.equal(pairs.long(), layer.router(batch()[None]).load()) and pairs.sum() == 18
    if not training:
        assert torch.equal(layer.router.received, before)
    assert not any(r.context.counting for r in learned_routers(layer).values())


def test_the_layer_of_the_paper() -> None:
    config = ZCodeM3(experts=8)
    assert (config.router.active, config.router.scale) == (1, "prob")
    assert config.capacity == Capacity(1.0, "random", 4, 2.0)
    layer = config.build(D, 5, generator=seeded()).eval()
    assert ZCodeM3(experts=8, balance=0.5, jitter=0.1).router == TopK(
        8, 1, "prob", jitter=0.1, balance=0.5
    )
    shapes = {n: tuple(p.shape) for n, p in layer.experts.named_parameters()}
    assert shapes == dict(up=(8, 5, D), up_bias=(8, 5), down=(8, D, 5), down_bias=(8, D))
    assert torch.equal(layer(batch().float()), layer(batch().float())), "no lots in evaluation"
    with refused(ConfigError, what="experts", got=0):
        ZCodeM3(experts=0)
    with refused(ConfigError, what="factor", got=0):
        ZCodeM3(factor=0)


def hashes(seed: int) -> Mixture:
    layer = mixture(Hash(experts=2, by="row"))
    layer.router.factors = layer.router.factors + seed
    return layer


def test_what_cannot_merge_is_refused() -> None:
    a = mixture(TopK(experts=3))
    comet = mixture(Comet(experts=3))
    with refused(ConfigError, what="router", got="a CometRouter, built for its number of experts"):
        merged(comet, comet)
    lots = Mixture(a.experts, RandomRouter(3, 1, "batch", generator=seeded()))
    with refused(ConfigError, what="router", got="a RandomRouter, built for its number of experts"):
        merged(lots, lots)
    with refused(ConfigError, what="routers of ''"):
        merged(a, mixture(TopK(experts=3, active=1, scale="prob")))
    with refused(ConfigError, what="routers of ''"):
        merged(a, mixture(Switch(experts=3)))
    with refused(
        ShapeError, what="experts of ''", got="({'weight': (6,)}, ('ExpertList', '', {}))"
    ):
        merged(a, mixture(TopK(experts=3), form="list"))
    with refused(ShapeError, what="weights", got="{}"):
        merged(a, mixture(TopK(experts=3), shared=True))
    gelu = mixture(TopK(experts=3))
    gelu.experts.act = nn.Tanh()
    with refused(ShapeError, what="experts of ''"):
        merged(a, gelu)
    with refused(ConfigError, what="mixtures to merge"):
        merged(a, nn.Linear(3, 3))
    with refused(ConfigError, what="mixtures to merge"):
        merged(nn.Linear(3, 3), nn.Linear(3, 3))
    with refused(ConfigError, what="'router.factors'"):
        merged(hashes(0), hashes(1))
    assert merged(hashes(0), hashes(0)).router.experts == 4


def test_hashes_of_many_merged_mixtures_are_all_different() -> None:
    a, b, c, d = (hashes(0) for _ in range(4))
    for module in (
        merged(merged(a, b), c), merged(a, merged(b, c)), merged(merged(a, b), merged(c, d)),
        merged(merged(a, a), merged(merged(a, a), merged(a, a))),
    ):  # fmt: skip
        salts = module.router.salt
        assert len(salts.unique()) == len(salts) == module.router.experts
        assert torch.equal(salts[:2], a.router.salt)


@pytest.mark.parametrize("keep", [[], [0, 0], [4], [-1, 0]])
def test_experts_that_are_not_there_are_refused(keep: list[int]) -> None:
    layer = mixture(TopK(experts=4))
    with refused(ConfigError, what="experts to keep"):
        prune(layer, keep)
    assert layer.experts.experts == 4


def test_fewer_experts_than_a_token_has_are_refused() -> None:
    layer = mixture(TopK(experts=4, active=2))
    with refused(ConfigError, what="active", got=2):
        prune(layer, [1])
    with refused(ConfigError, what="router", got="a CometRouter, built for its number of experts"):
        prune(mixture(Comet(experts=3)), [1])
    assert layer.experts.experts == layer.router.experts == 4
