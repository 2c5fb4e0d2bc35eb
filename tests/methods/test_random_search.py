"""Random search: masks are dropped rows and columns; more draws never end worse."""

from __future__ import annotations

import copy
import statistics
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import TensorDataset
from transformers import LlamaConfig, LlamaForCausalLM

import intarsia
from intarsia import fit
from intarsia.core.errors import ConfigError, DataError, TargetError
from intarsia.core.seeds import mix
from intarsia.methods.random_search import (
    SCORES,
    _mean_loss,
    cut,
    draw_units,
    hidden_layers,
    search,
    units_masked,
)
from intarsia.sparse import RandomSearch

from ..refusals import refused


def mlp(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(5, 12), nn.Linear(12, 8), nn.Linear(8, 3)]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.Tanh(), layers[2])


def vit() -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, in_chans=1, **sizes)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))


def batch(count: int = 16) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(count, 5, generator=draw), torch.arange(count) % 3


@torch.no_grad()
def logits(model: nn.Module, x: Any) -> Tensor:
    out = model.eval()(x)
    return out if isinstance(out, Tensor) else out.logits


@given(density=st.floats(0.15, 1.0), seed=st.integers(0, 50))
def test_a_mask_is_dropped_rows_and_columns(density: float, seed: int) -> None:
    net, (x, _) = mlp(), batch()
    units = draw_units(hidden_layers(net), density, seed)
    dense, zeros, small = logits(net, x), copy.deepcopy(net), copy.deepcopy(net)
    with units_masked(net, units):
        got = logits(net, x)
    for writes, reads, path in ((0, 2, "2"), (2, 4, "4")):
        gone = torch.ones(zeros[writes].out_features, dtype=torch.bool)
        gone[units[path]] = False
        zeros[writes].weight.data[gone], zeros[reads].weight.data[:, gone] = 0, 0
    cut(small, units)
    assert_close(logits(zeros, x), got)
    assert_close(logits(small, x), got)
    assert [m.out_features for m in (small[0], small[2])] == [round(density * n) for n in (12, 8)]
    assert torch.equal(logits(net, x), dense)


@pytest.mark.parametrize("make", [vit, llama])
def test_the_mlps_of_transformers_become_narrower(make: Any, tmp_path: Path) -> None:
    model, of_text = make(), make is llama
    x = torch.arange(6)[None] if of_text else torch.randn(2, 1, 16, 16)
    units = draw_units(hidden_layers(model), 0.5, 3)
    with units_masked(model, units):
        want = logits(model, x)
    labelled = {"input_ids": x, "labels": x} if of_text else (x, torch.tensor([0, 2]))
    candidates = search(model, RandomSearch(0.5, 3), [labelled], seed=3)
    assert [candidate.score for candidate in candidates] == sorted(
        candidate.score for candidate in candidates
    )
    cut(model, units)
    assert_close(logits(model, x), want)
    if of_text:
        model.save_pretrained(tmp_path)
        assert_close(logits(LlamaForCausalLM.from_pretrained(tmp_path), x), want)


def test_one_draw_is_the_random_choice() -> None:
    alone = search(mlp(), RandomSearch(0.5, 1), seed=4)
    first = draw_units(hidden_layers(mlp()), 0.5, mix(4, 0))
    assert all(torch.equal(units, first[path]) for path, units in alone[0].units.items())
    several = search(mlp(), RandomSearch(0.5, 5), [batch()], seed=4)
    assert any(all(torch.equal(o.units[p], u) for p, u in first.items()) for o in several)


def test_a_plan_has_the_units_of_the_rank_that_was_asked_for() -> None:
    ranked = search(mlp(), RandomSearch(0.5, 4), [batch()], seed=4)
    for rank, candidate in enumerate(ranked):
        plan = RandomSearch(0.5, 4, rank=rank).plan(mlp(), [batch()], seed=4)
        assert plan.decided["score"] == candidate.score
        assert plan.decided["kept"] == {p: u.tolist() for p, u in candidate.units.items()}


@pytest.mark.parametrize("score", SCORES)
def test_more_draws_end_no_worse(score: str) -> None:
    best = [
        search(mlp(), RandomSearch(0.5, draws, score), [batch()], seed=4)[0].score
        for draws in (2, 4, 8)
    ]
    assert best == sorted(best, reverse=True)


def test_the_best_of_k_is_where_order_statistics_say() -> None:
    scores = [
        candidate.score for candidate in search(mlp(), RandomSearch(0.4, 400), [batch()], seed=1)
    ]
    draw = torch.Generator().manual_seed(0)
    for k in (2, 10, 50):
        best = [
            min(scores[i] for i in torch.randint(400, (k,), generator=draw).tolist())
            for _ in range(200)
        ]
        rank = statistics.mean(sum(s < b for s in scores) for b in best)
        assert abs(rank / 400 - 1 / (k + 1)) < 0.3 / (k + 1)  # the mean of the least of k uniforms


def test_scores_are_those_of_the_smaller_net() -> None:
    net, (x, y) = mlp(), batch()
    units = draw_units(hidden_layers(net), 0.5, 7)
    small = copy.deepcopy(net)
    cut(small, units)
    loss = nn.functional.cross_entropy(small(x), y)
    assert SCORES["loss"](net, units, [(x, y)]) == pytest.approx(float(loss.detach()), rel=1e-5)
    weights = [p for p in small.parameters() if p.dim() > 1]
    gradients = torch.autograd.grad(loss, weights)
    want = -sum(
        float((w.detach() * g).abs().sum()) for w, g in zip(weights, gradients, strict=True)
    )
    assert SCORES["snip"](net, units, [(x, y)]) == pytest.approx(want, rel=1e-4)
    assert SCORES["epoch"](net, units, [(x, y)]) < float(loss.detach())


def test_the_loss_after_an_epoch_is_the_one_of_the_smaller_net() -> None:
    net, (x, y) = mlp(), batch()
    batches = [(x[:8], y[:8]), (x[8:], y[8:])]
    units = draw_units(hidden_layers(net), 0.5, 7)
    small = copy.deepcopy(net)
    cut(small, units)
    optimizer = torch.optim.Adam(small.parameters(), lr=1e-3)
    for part in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(small(part[0]), part[1]).backward()
        optimizer.step()
    want = nn.functional.cross_entropy(small(x), y)
    assert SCORES["epoch"](net, units, batches) == pytest.approx(float(want.detach()), rel=1e-5)


def test_in_three_lines(tmp_path: Path) -> None:
    x, y = batch(24)
    net = intarsia.apply(mlp(), RandomSearch(0.25, draws=6), [(x, y)], seed=2)
    fit(net, TensorDataset(x, y), epochs=1, batch_size=8, trackers=())
    intarsia.save(net, tmp_path / "saved")
    assert torch.equal(logits(intarsia.load(mlp(), tmp_path / "saved"), x), logits(net, x))
    assert net[0].out_features == 3


def test_a_search_leaves_the_host_as_it_was() -> None:
    net = mlp().train()
    before = copy.deepcopy(net.state_dict())
    for score in SCORES:
        search(net, RandomSearch(0.5, 2, score), [batch()])
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert all(m.training for m in net.modules())
    assert not any(m._forward_pre_hooks for m in net.modules())
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"density": 0}, "density"),
        ({"draws": 0}, "draws"),
        ({"score": "luck"}, "score"),
        ({"draws": 3, "rank": 3}, "rank"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], field: str) -> None:
    with refused(ConfigError, what=field):
        RandomSearch(**settings)


def test_what_cannot_be_searched_is_refused() -> None:
    with refused(ConfigError, what="density", got="0.05 of 8 units before '4'"):
        search(mlp(), RandomSearch(0.05, 1))
    for batches in ([], [batch()[0]]):
        with refused(DataError, what="batches of a search"):
            search(mlp(), RandomSearch(0.5, 2), batches)
    for score in ("snip", "epoch"):
        with refused(ConfigError, got="no parameter that is trained"):
            search(mlp().requires_grad_(False), RandomSearch(0.5, 2, score), [batch()])
    assert search(mlp().requires_grad_(False), RandomSearch(0.5, 2), [batch()])
    for net in (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Linear(4, 2)), nn.Linear(3, 2)):
        with refused(TargetError, what="hidden layers"):
            search(net, RandomSearch(0.5, 1))
    with refused(TargetError, what="model", got="one with adapters"):
        search(intarsia.adapt(vit(), "lora"), RandomSearch(0.5, 1))


def test_a_loss_is_the_mean_of_samples_not_of_batches() -> None:
    draw = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).requires_grad_(False)
    x, y = torch.randn(5, 3, generator=draw), torch.tensor([0, 1, 1, 0, 1])
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    want = float(nn.functional.cross_entropy(net(x), y))
    assert _mean_loss(net, batches) == pytest.approx(want)


def test_a_score_by_hand() -> None:
    """The loss of the untrained network, with the hidden units that a mask keeps.

    x = 1, hidden units relu(1 x) and relu(2 x), logits equal to them, label 0. With the first unit
    the logits are (1, 0), the loss is ln(1 + e^-1) = 0.3133; with the second (0, 2), ln(1 + e^2) =
    2.1269. The best of several draws is the first.
    """
    net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    for layer, weight in ((net[0], [[1.0], [2.0]]), (net[2], [[1.0, 0.0], [0.0, 1.0]])):
        layer.weight.data = torch.tensor(weight)
    candidates = search(net, RandomSearch(0.5, 16), [(torch.ones(1, 1), torch.tensor([0]))])
    assert [candidates[0].score, candidates[-1].score] == pytest.approx([0.3133, 2.1269], abs=1e-4)
    assert [
        u.tolist() for u in (*candidates[0].units.values(), *candidates[-1].units.values())
    ] == [[0], [1]]
