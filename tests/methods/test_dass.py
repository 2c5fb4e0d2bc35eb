"""DASS: scores learn through the mask, operations on validation data, and few weights are kept."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.testing import assert_close
from torch.utils.data import TensorDataset, default_collate

from intarsia import fit_in_phases
from intarsia.core.errors import ConfigError, DataError
from intarsia.methods import Dass
from intarsia.models import dass
from intarsia.models.dass import (
    OPERATIONS,
    CellSizes,
    ChosenNet,
    Genotype,
    Supernet,
    architecture_gradient,
    operation,
    summary,
)
from intarsia.partitions.topk import keep_top
from intarsia.schedules import masked_weights
from intarsia.schedules.scored import Scored, mask_of, put_scores, take_scores
from intarsia.train.precision import cast_frozen

from ..refusals import refused

SIZES = CellSizes(classes=3, inputs=1, channels=2, cells=2, nodes=2)
QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 8, "lr": 0.05, "trackers": ()}


def pictures(count: int = 8) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(count, 1, 8, 8, generator=draw), torch.arange(count) % 3


def supernet(**settings: Any) -> Supernet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Supernet(SIZES, pictures(), batch_size=4, **settings)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


@pytest.mark.parametrize("count", [0, 1, 3, 4, 6])
def test_of_equal_scores_the_first_are_kept(count: int) -> None:
    scores = torch.tensor([[1.0, -2.0, 1.0], [2.0, -1.0, 0.5]])
    assert torch.equal(mask_of(scores, count), keep_top({"": scores.abs()}, count).mask("", 0))


@given(density=st.floats(0.0, 1.0), seed=st.integers(0, 20))
def test_a_layer_uses_the_round_k_n_largest_scores(density: float, seed: int) -> None:
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed))
    scored = Scored(weight, density)
    with torch.no_grad():
        scored.scores.copy_(torch.randn(5, 7, generator=torch.Generator().manual_seed(seed + 1)))
        used = scored(weight)
    mask = used != 0
    assert int(mask.sum()) == round(density * 35)
    if mask.any() and not mask.all():
        size = scored.scores.detach().abs()
        assert size[mask].min() >= size[~mask].max()
    assert torch.equal(used, weight * mask)


def test_scores_start_in_the_order_of_the_weights() -> None:
    weight = torch.tensor([[0.5, -2.0, 1.0]])
    assert_close(Scored(weight, 0.5).scores, (6 / 3) ** 0.5 * weight / 2)
    assert not Scored(torch.zeros(2, 3), 0.5).scores.any()


def test_at_density_1_gradients_are_those_of_darts() -> None:
    plain, scored = supernet(), supernet()
    put_scores(scored, 1.0)
    x, y = pictures(4)
    for net in (plain, scored):
        net.alpha.requires_grad_(True)
        F.cross_entropy(net(x), y).backward()
    assert_close(scored.alpha.grad, plain.alpha.grad)
    inside = scored.cells[0].project[0][1].parametrizations.weight.original
    assert_close(inside.grad, plain.cells[0].project[0][1].weight.grad)


def test_taking_scores_leaves_the_used_weights() -> None:
    net, x = small(), torch.randn(2, 4)
    paths = put_scores(net, 0.5, alone=True)
    assert {n for n, p in net.named_parameters() if p.requires_grad} == {
        f"{path}.parametrizations.weight.0.scores" for path in paths
    }
    with torch.no_grad():
        want = net(x)
    masks = take_scores(net, paths)
    assert torch.equal(net(x), want) and not any(map(parametrize.is_parametrized, net.modules()))
    for name, weight in masked_weights(net).items():
        assert torch.equal(weight != 0, masks.mask(name, 0))


def test_a_step_on_the_operations_is_adam_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Betas .5 and .999, decay 1e-3, from gradients so small that the decay shows."""
    net, draw = supernet(lr=0.01), torch.Generator().manual_seed(5)
    net.alpha.normal_(generator=draw)
    twin = nn.Parameter(net.alpha.clone())
    adam = torch.optim.Adam([twin], lr=0.01, betas=(0.5, 0.999), weight_decay=1e-3)
    gradients = list(1e-3 * torch.randn(5, *twin.shape, generator=draw))
    given = iter(gradients)
    monkeypatch.setattr(dass, "architecture_gradient", lambda *_: (next(given),))
    net.searching = True
    for step, gradient in enumerate(gradients):
        net.before_step(step, len(gradients))
        twin.grad = gradient.clone()
        adam.step()
        assert_close(net.alpha, twin.detach(), rtol=1e-4, atol=1e-5)


class Toy(nn.Module):
    """A loss that mixes weights and alpha, so that the Hessian's term is not 0."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.w = nn.Parameter(torch.randn(4, 3, generator=draw, dtype=torch.float64))
        self.alpha = nn.Parameter(torch.randn(3, generator=draw, dtype=torch.float64))


def toy_loss(w: Tensor, alpha: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(batch[0] @ w * alpha.softmax(0), batch[1])


@pytest.mark.parametrize("xi", [0.0, 0.3])
def test_the_unrolled_gradient_is_that_of_double_backward(xi: float) -> None:
    net, draw = Toy(), torch.Generator().manual_seed(4)
    train, val = (
        (torch.randn(6, 4, generator=draw, dtype=torch.float64), torch.arange(6) % 3)
        for _ in range(2)
    )
    inner = torch.autograd.grad(toy_loss(net.w, net.alpha, train), net.w, create_graph=True)[0]
    outer = toy_loss(net.w - xi * inner, net.alpha, val)
    want = torch.autograd.grad(outer, net.alpha)[0]
    before = net.w.detach().clone()
    got = architecture_gradient(
        net, [net.alpha], train, val, xi, 1e-4, lambda m, b: toy_loss(m.w, m.alpha, b)
    )
    assert_close(got[0], want, rtol=1e-5, atol=1e-8)
    assert torch.equal(net.w, before)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("stride", [1, 2])
def test_operations_keep_the_width_and_follow_the_stride(name: str, stride: int) -> None:
    y = operation(name, 4, stride, True)(torch.randn(2, 4, 7, 7))
    assert y.shape == (2, 4, -(-7 // stride), -(-7 // stride))
    assert name != "none" or not y.any()


def test_a_mixed_edge_is_the_weighed_sum_of_its_operations() -> None:
    net = supernet()
    rows = net.weights(True)
    assert_close(rows.sum(-1), torch.ones(len(rows)))
    edge, x = net.cells[0].edges[0], torch.randn(2, 2, 8, 8)
    want = sum(w * o(x) for w, o in zip(rows[0], edge.operations, strict=True))
    assert_close(edge(x, rows[0]), want)


def test_the_choice_is_of_the_largest_weights_and_never_none() -> None:
    net = supernet()
    with torch.no_grad():
        net.alpha.zero_()
        net.alpha[..., 0] = 9  # none
        net.alpha[0, 3, 4], net.alpha[0, 4, 1], net.alpha[0, 2, 2] = 2.0, 1.0, 0.5
    genotype = net.genotype()
    assert genotype.normal[1] == ((1, "sep3"), (2, "skip"))
    assert all(
        o != "none" for cell in (genotype.normal, genotype.reduce) for n in cell for _, o in n
    )
    assert Genotype(**json.loads(json.dumps(genotype.to_dict()))) == genotype
    assert "normal 3: sep3 of 1, skip of 2" in summary(genotype)


def test_a_search_moves_alpha_only_while_it_searches_and_ends_sparse() -> None:
    net = supernet(lr=0.01)
    start = net.alpha.clone()
    method = Dass(0.2)
    steps = method.phases(net)
    assert next(steps).name == "dense" and not net.searching
    net.before_step(0, 1)
    assert torch.equal(net.alpha, start)
    steps.close()
    searched = fit_in_phases(net, method, TensorDataset(*pictures(16)), **QUICK).found
    assert not torch.equal(net.alpha, start) and not net.alpha.requires_grad
    assert searched.genotype == net.genotype()
    for name, weight in masked_weights(net).items():
        mask = searched.partition.mask(name, 0)
        assert int(mask.sum()) == round(0.2 * weight.numel()) and not weight[~mask].any()
    small_net = ChosenNet(searched.genotype, SIZES)
    run = fit_in_phases(small_net, Dass(0.5), TensorDataset(*pictures(16)), **QUICK)
    assert [name for name, _ in run.runs] == ["dense", "scores", "fine"]
    for name, weight in masked_weights(small_net).items():
        assert torch.equal(weight != 0, run.found.partition.mask(name, 0)), name
    assert all(p.requires_grad for p in small_net.parameters())


def test_equal_seeds_give_equal_searches() -> None:
    alphas: list[Tensor] = []
    for _ in range(2):
        net = supernet(seed=3)
        fit_in_phases(net, Dass(0.2, (0, 1, 1)), TensorDataset(*pictures()), **QUICK)
        alphas.append(net.alpha.clone())
    assert torch.equal(*alphas)


def test_a_killed_search_ends_in_the_same_alpha(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, rows = Dass(0.3, (0, 1, 1)), TensorDataset(*pictures())
    options = QUICK | {"batch_size": 4, "checkpoint_steps": 1}
    sizes, nets = CellSizes(classes=3, inputs=1, channels=1, cells=1, nodes=1), list[Supernet]()
    for _ in range(3):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            nets.append(Supernet(sizes, pictures(), batch_size=2, lr=0.05))
    uninterrupted, killed, again = nets
    want = fit_in_phases(uninterrupted, method, rows, **options).found
    step = Supernet.before_step

    def stops(self: Supernet, round_number: int, steps: int) -> None:
        if round_number == 1:
            raise KeyboardInterrupt
        step(self, round_number, steps)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Supernet, "before_step", stops)
        fit_in_phases(killed, method, rows, out=tmp_path / "run", **options)
    searched = fit_in_phases(
        again, method, rows, out=tmp_path / "run", resume=True, **options
    ).found
    assert torch.equal(again.alpha, uninterrupted.alpha) and searched.genotype == want.genotype


def test_a_search_in_half_precision_holds_alpha_in_float32() -> None:
    net = supernet()
    fit_in_phases(net, Dass(0.3, (0, 1, 1)), TensorDataset(*pictures()), precision="bf16", **QUICK)
    assert net.alpha.dtype == torch.float32


def test_scores_alone_leave_the_weights_as_they_were() -> None:
    net = small()
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    rows = TensorDataset(x, torch.arange(16) % 3)
    steps = Dass(0.5).phases(net)
    next(steps)
    before = copy.deepcopy(net.state_dict())
    assert next(steps).name == "scores"
    layer: Any = net[0]
    layer.parametrizations.weight[0].scores.data.normal_()
    assert torch.equal(layer.parametrizations.weight.original, before["0.weight"])
    phase = next(steps)
    assert phase.last and phase.schedule is not None
    assert all(p.requires_grad for p in net.parameters()) and len(rows) == 16


def test_in_half_precision_weights_come_back_in_float32_and_unrounded() -> None:
    net = small()
    before = net[2].bias.detach().clone() + 2**-20  # pyright: ignore
    net[2].bias.data.copy_(before)  # pyright: ignore
    steps = Dass(0.5).phases(net)
    next(steps), next(steps)
    cast_frozen(net, "bf16")
    next(steps)
    assert torch.equal(net[2].bias, before)  # pyright: ignore
    rows = TensorDataset(torch.randn(8, 4), torch.arange(8) % 3)
    fit_in_phases(net := small(), Dass(0.5), rows, precision="bf16", **QUICK)
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert net(torch.randn(2, 4)).dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Dass(0.0), "density"),
        (lambda: Dass(lengths=(1, 1)), "lengths"),  # pyright: ignore
        (lambda: Dass(lengths=(1, 0, 1)), "lengths"),
        (lambda: CellSizes(nodes=0), "nodes"),
        (lambda: Genotype((((0, "max3"), (2, "skip")),), ()), "edge of node 0"),
        (lambda: Genotype((((0, "conv"),),), ()), "edge of node 0"),
        (lambda: supernet(xi=0.1), "xi"),
        (lambda: ChosenNet(Genotype.drawn(3, torch.Generator()), SIZES), "nodes"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, field: str) -> None:
    with refused(ConfigError, what=field):
        make()


def test_validation_data_are_looked_at_before_a_training() -> None:
    x, y = pictures()
    for val in (TensorDataset(x, y), (x, y[:-1]), (x[:0], y[:0]), (x,), None):
        with refused(DataError, what="val of a supernet"):
            Supernet(SIZES, val)  # pyright: ignore
    Supernet(SIZES, default_collate([*TensorDataset(x, y)]))


def test_a_picture_names_every_edge_of_both_cells(tmp_path: Path) -> None:
    genotype = Genotype.drawn(3, torch.Generator().manual_seed(0))
    text = genotype.draw(tmp_path / "cells.svg")
    assert (tmp_path / "cells.svg").read_text() == text
    names = [e.text for e in ElementTree.fromstring(text).iter() if e.tag.endswith("text")]
    for cell in (genotype.normal, genotype.reduce):
        for _, name in (edge for node in cell for edge in node):
            names.remove(name)  # as often as there are edges
    assert sum(name in OPERATIONS for name in names) == 0
