"""The router of a union of experts against sequences that are gone through one by one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from intarsia.core import Routing
from intarsia.routers.union import UnionGate, UnionRouter

from ..toys import drawn, seeded

E, B, T, D = 4, 3, 5, 6


def router(**settings: Any) -> UnionRouter:
    layer = UnionGate(E, **{"std": 1.0, **settings}).build(D, generator=seeded())
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([0.5, -0.5, 0.2, 0.0]))
    return layer


def chosen(gate: UnionGate, p: Tensor, logits: Tensor, share: float) -> Tensor:
    """Return the pairs of one sequence without padding, (T, E) bool.  p, logits: (T, E)."""
    selected = torch.zeros_like(p, dtype=torch.bool)
    if gate.select == "data":
        for e in range(E):
            score = [2.0 if t < gate.always else float(p[t, e]) for t in range(len(p))]
            best = sorted(range(len(p)), key=lambda t: (-score[t], t))
            selected[best[: math.ceil(share * len(p) - 1e-9)], e] = True
        return selected
    k = max(1, math.floor(share * E + 1e-9))
    for t in range(len(p)):
        score = logits.mean(0) if gate.select == "experts" else logits[t]
        selected[t, score.topk(k).indices] = True
    selected[: gate.always] = True
    return selected


@pytest.mark.parametrize("select", ["data", "tokens", "experts"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("always", [0, 1])
@pytest.mark.parametrize("padded", [False, True])
def test_it_is_that_of_each_sequence_on_its_own(
    select: str, share: float, always: int, padded: bool
) -> None:
    layer, x = router(select=select, share=share, always=always).eval(), drawn(B, T, D)
    lengths = (5, 3, 1) if padded else (T,) * B
    if padded:
        layer.context.valid = torch.arange(T) < torch.tensor(lengths)[:, None]
    logits = x @ layer.weight.T + layer.bias
    want = torch.zeros(B, T, E)
    for i, n in enumerate(lengths):
        rows = logits[i, :n]
        want[i, :n] = chosen(layer.config, rows.softmax(-1), rows, share).float()
    assert_close(layer(x).dense(), want.view(B * T, E))


def test_a_matrix_is_one_sequence() -> None:
    layer, x = router(), drawn(T, D)
    want = layer(x[None]).dense()
    assert torch.equal(layer(x).dense(), want)
    assert torch.equal(layer.route(x, None).dense(), want)


def test_weights_of_pairs_are_scores_or_ones_with_the_gradient_of_p() -> None:
    layer, x = router(gate="straight-through"), drawn(T, D)
    p = (x @ layer.weight.T + layer.bias).softmax(-1)

    def loss(routing: Routing) -> Tensor:
        return (routing.weight * torch.arange(1.0, len(routing.weight) + 1)).sum()

    routing = layer(x)
    assert_close(routing.weight, torch.ones_like(routing.weight))
    pairs = p[routing.token, routing.expert]
    want = torch.autograd.grad((pairs * torch.arange(1.0, len(pairs) + 1)).sum(), layer.weight)
    assert_close(torch.autograd.grad(loss(routing), layer.weight), want)
    scored = router(gate="score")(x)
    assert_close(scored.weight, E * p[scored.token, scored.expert])
    assert layer.weighs and not router().weighs and not router(gate="sizes").weighs


def test_its_share_falls_from_one_in_the_warmup_and_is_the_setting_in_evaluation() -> None:
    layer = router(share=0.5, warmup=0.5)
    shares = []
    for step in (0, 1, 2, 3, 4, 7):
        layer.before_step(step, 8)
        shares.append(layer.share)
    assert shares == [1, 0.875, 0.75, 0.625, 0.5, 0.5]
    layer.before_step(0, 8)
    assert layer.eval().share == 0.5
    cold = router(share=0.5)
    cold.before_step(0, 8)
    assert cold.share == 0.5


@pytest.mark.parametrize("select", ["data", "tokens", "experts"])
def test_all_are_chosen_when_the_warmup_begins(select: str) -> None:
    layer, x = router(select=select, warmup=0.5), drawn(B, T, D)
    layer.before_step(0, 8)
    assert len(layer(x).token) == B * T * E > len(layer.eval()(x).token)


def test_it_teaches_in_training_with_gradients_if_the_gate_learns_from_sizes() -> None:
    layer = router(gate="sizes")
    assert layer.teaches and not router(gate="score").teaches
    with torch.no_grad():
        assert not layer.teaches
    assert not layer.eval().teaches
    frozen = {p.requires_grad for p in router().parameters()}
    assert frozen == {False} and {p.requires_grad for p in layer.parameters()} == {True}


def test_only_the_choice_by_tokens_is_causal() -> None:
    assert [UnionGate(select=s).non_causal for s in ("data", "tokens", "experts")] == [
        *(True, False, True)
    ]
