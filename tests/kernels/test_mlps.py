"""The mixture in one operator is the loop over experts: values, gradients, layouts, precision."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from intarsia.core import Routing
from intarsia.kernels import native
from intarsia.kernels.experts import blocks as laid
from intarsia.kernels.experts import fused, mixed_mlps, mlps_naive
from intarsia.kernels.experts.acts import ACTS
from intarsia.kernels.experts.blocks import FEW, LARGE, SOME, Layout, blocks, roomy
from intarsia.mixtures import Experts, StackedExperts

LOADS = {
    "none": (0, 0, 0), "one": (0, 7, 0), "few": (2, 0, 5, 3, 1), "alike": (20, 21, 19, 20, 22, 20),
    "unlike": (40, 1, 0, 25, 3), "many": (SOME + 2, SOME + 1),
}  # fmt: skip


def routed(load: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> Routing:
    """Pairs in no order, some tokens without one and some with several."""
    generator = torch.Generator().manual_seed(seed)
    expert = torch.arange(len(load)).repeat_interleave(torch.tensor(load))
    expert = expert[torch.randperm(len(expert), generator=generator)]
    tokens = 3 + len(expert) // 2
    token = torch.randint(tokens, expert.shape, generator=generator)
    weight = torch.rand(expert.shape, dtype=dtype, generator=generator).requires_grad_()
    return Routing(token, expert, weight, tokens, len(load))


def inputs(load: tuple[int, ...], gated: bool, dtype: torch.dtype = torch.float64) -> tuple:
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, generator=generator).requires_grad_()

    routing, e = routed(load, dtype), len(load)
    gate = drawn(e, 7, 5) if gated else None
    return (drawn(routing.tokens, 5), routing.token, routing.expert, routing.weight,
            drawn(e, 7, 5), gate, drawn(e, 3, 7))  # fmt: skip


def test_the_loads_take_every_way() -> None:
    shapes = {
        name: [(b.count, b.rows_each) for b in blocks(list(load))] for name, load in LOADS.items()
    }
    assert shapes["few"] == [(5, 5)]  # all at once
    assert shapes["alike"] == [(6, 22)]
    assert shapes["unlike"] == [(1, n) for n in LOADS["unlike"]]
    assert shapes["many"] == [(1, n) for n in LOADS["many"]]
    assert max(LOADS["few"]) <= FEW < max(LOADS["alike"])
    cut = {
        name: [(b.count, b.loads) for b in blocks(list(load), True)] for name, load in LOADS.items()
    }
    assert cut["few"] == [(5, LOADS["few"])]  # each has its own rows, none of zeros
    assert all(not loads for _, loads in cut["many"])


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("gated", [True, False])
def test_it_is_the_loop(load: tuple[int, ...], act: str, gated: bool) -> None:
    case = inputs(load, gated)
    leaves = [t for t in case if t is not None and t.requires_grad]
    results = []
    for y in (mixed_mlps(*case, act, True)[0], mlps_naive(*case, act)):
        scale = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        grads = torch.autograd.grad(y, leaves, scale, materialize_grads=True)
        results.append((y, *grads))
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs)
    assert_close(mixed_mlps(*case, act, False)[0], results[1][0])


@pytest.mark.parametrize("build", ["native", "avx2", "portable", "off"])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("load", [*LOADS.values(), (*(3, 0, 1, 32) * 2, 40, 0, 1, 33)], ids=str)
def test_experts_with_few_rows_in_float32_are_the_loop(
    load: tuple[int, ...], gated: bool, build: str
) -> None:
    case = inputs(load, gated, torch.float32)
    leaves = [t for t in case if t is not None and t.requires_grad]
    results = []
    with native.using(build):
        for y in (mixed_mlps(*case, "silu", True)[0], mlps_naive(*case, "silu")):
            grads = torch.autograd.grad(y.sum(), leaves, materialize_grads=True)
            results.append((y, *grads))
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=9), st.integers(0, 99), st.booleans())
def test_every_pair_has_a_row_of_its_expert(load: list[int], seed: int, kernel: bool) -> None:
    routing = routed(tuple(load), seed=seed)
    layout = Layout.of(routing.token, routing.expert, routing.tokens, len(load), kernel)
    assert len(layout.place.unique()) == len(layout.place)
    assert_close(layout.source[layout.place], routing.token)
    assert sum(b.count for b in layout.blocks) == len(load)
    rows_of = {
        b.experts.start + e: range(b.rows.start + rows.start, b.rows.start + rows.stop)
        for b in layout.blocks
        for e, rows in b.expert_rows()
    }
    for row, e in zip(layout.place.tolist(), routing.expert.tolist(), strict=True):
        assert row in rows_of[e]
    empty = torch.ones(layout.rows, dtype=torch.bool)
    empty[layout.place] = False
    assert (layout.source[empty] == routing.tokens).all()


@pytest.mark.parametrize("frozen", ["x", "weight", "up", "gate", "down"])
def test_only_the_gradients_asked_for_are_there(frozen: str) -> None:
    case = inputs(LOADS["few"], True)
    named = dict(zip(("x", "token", "expert", "weight", "up", "gate", "down"), case, strict=True))
    named[frozen].requires_grad_(False)
    leaves = [t for n, t in named.items() if t.requires_grad and n != frozen]
    ours, theirs = (
        torch.autograd.grad(y.sum(), leaves)
        for y in (mixed_mlps(*case, "silu", True)[0], mlps_naive(*case, "silu"))
    )
    assert_close(ours, theirs)


def test_the_gradient_of_a_gradient_is_the_loops() -> None:
    case = inputs(LOADS["few"], True)
    leaves = [t for t in case if t is not None and t.requires_grad]
    results = []
    for y in (mixed_mlps(*case, "silu", True)[0], mlps_naive(*case, "silu")):
        slopes = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        results.append(torch.autograd.grad(sum(s.square().sum() for s in slopes), leaves))
    assert_close(*results)


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_bfloat16_is_near(load: tuple[int, ...]) -> None:
    wide = inputs(load, True, torch.float32)
    near = [t if t is None or not t.is_floating_point() else t.detach().bfloat16().requires_grad_()
            for t in wide]  # fmt: skip
    results = []
    for case in (wide, near):
        y = mixed_mlps(*case, "silu", True)[0]
        leaves = [t for t in case if t is not None and t.requires_grad]
        results.append([t.float() for t in (y, *torch.autograd.grad(y.sum(), leaves))])
    for exact, rounded in zip(*results, strict=True):
        assert (exact - rounded).norm() <= 0.03 * exact.norm() + 1e-6


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_stacked_experts_mix_as_sorted_rows_do(
    load: tuple[int, ...], autocast: bool, generator: torch.Generator
) -> None:
    experts = StackedExperts(len(load), 8, 16, act="silu", gated=True, generator=generator)
    routing = routed(load, torch.float32)
    x = torch.randn(routing.tokens, 8, generator=generator).requires_grad_()
    leaves, results = (x, routing.weight, *experts.parameters()), []
    for mix in (experts.mix, lambda x, r: Experts.mix(experts, x, r)):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = mix(x, routing)
        results.append((y, *torch.autograd.grad(y.float().sum(), leaves, materialize_grads=True)))
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours - theirs).norm() <= (0.03 if autocast else 1e-5) * theirs.norm() + 1e-6


def test_what_has_no_operator_goes_the_slow_way(generator: torch.Generator) -> None:
    routing = routed((3, 2), torch.float32)
    x = torch.randn(routing.tokens, 4, generator=generator)
    for act, bias in itertools.product((nn.SiLU(), nn.Tanh(), nn.GELU(approximate="tanh")), (0, 1)):
        experts = StackedExperts(2, 4, 6, act=act, bias=bool(bias), generator=generator)
        assert_close(experts.mix(x, routing), Experts.mix(experts, x, routing))
    acts = (nn.Tanh(), nn.GELU(), nn.GELU("tanh"), nn.ReLU())
    names = [fused(act, x, learned=True) for act in acts]
    assert names == [None, "gelu", "gelu_tanh", "relu"]
    assert fused(nn.ReLU(), x.to("meta"), learned=False) is None


def test_large_tensors_are_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(laid, "LARGE", 1)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        tensor = roomy((3, 5), torch.empty(1, dtype=dtype))
        assert tensor.shape == (3, 5) and tensor.dtype == dtype and tensor.is_contiguous()
        assert tensor.data_ptr() % 64 == 0
        assert_close(tensor.fill_(2).sum().item(), 30.0)
    assert roomy((0, 5), torch.empty(1)).shape == (0, 5)
    assert LARGE > 1


def test_the_operator_obeys_the_rules_of_its_kind() -> None:
    case = inputs(LOADS["few"], True)
    torch.library.opcheck(
        mixed_mlps, (*case, "silu", True), test_utils=("test_schema", "test_faketensor")
    )
    y, *saved = mixed_mlps(*case, "silu", False)
    assert all(not t.numel() for t in saved) and y.requires_grad
