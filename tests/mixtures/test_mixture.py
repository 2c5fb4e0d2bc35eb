"""The layer is the dense mixture: values, gradients, dropped tokens, padding, precision, graphs."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import intarsia
from intarsia import TopK
from intarsia.core import Routing
from intarsia.core.errors import CheckpointError, ConfigError, ShapeError
from intarsia.gating import Router
from intarsia.mixtures import Capacity, ExpertList, Mixture, ResidualMixture, StackedExperts
from intarsia.routers import RandomRouter, Switch, TaskRouter, TopP

from ..refusals import refused
from ..toys import seeded

D = 6
ROUTERS = {
    "topk": TopK(experts=4), "one": TopK(experts=1, active=1), "all": TopK(experts=3, active=3),
    "topp": TopP(experts=4, p=0.6), "switch": Switch(experts=4, capacity=0.6),
}  # fmt: skip


class Given(Router):
    """Routes as it is told."""

    def __init__(self, index: Tensor, experts: int) -> None:
        super().__init__(experts)
        self.index = index

    def route(self, rows: Tensor, valid: Tensor | None) -> Routing:
        weight = torch.ones_like(self.index, dtype=rows.dtype)
        return Routing.from_topk(self.index, weight, self.experts)


def mixture(name: str = "topk", capacity: Capacity | None = None) -> Mixture:
    generator, config = seeded(), ROUTERS[name]
    experts = StackedExperts(config.experts, D, 9, act="silu", gated=True, generator=generator)
    router = config.build(D, generator=generator)
    with torch.no_grad():
        router.weight.normal_(generator=generator)
    return Mixture(experts, router, capacity=capacity, generator=generator).double()


def batch(*shape: int) -> Tensor:
    return torch.randn(*shape, D, dtype=torch.float64, generator=seeded(1), requires_grad=True)


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("shape", [(0,), (1,), (13,), (2, 5), (2, 3, 2)])
def test_dispatch_is_the_dense_einsum(name: str, shape: tuple[int, ...]) -> None:
    layer, x = mixture(name), batch(*shape)
    scale = torch.randn_like(x)
    rows = x.reshape(-1, D)
    results = []
    for y in (layer(x), layer.naive(rows, layer.routing(x)).view_as(x)):
        leaves = (x, *layer.parameters())
        results.append((y, *torch.autograd.grad((y * scale).sum(), leaves, allow_unused=True)))
    for ours, theirs in zip(*results, strict=True):
        if ours is not None and theirs is not None:
            assert_close(ours, theirs)
        else:
            assert not any(g is not None and g.any() for g in (ours, theirs))


@pytest.mark.parametrize("expert", [0, 2])
def test_all_to_one_expert(expert: int) -> None:
    experts = StackedExperts(3, D, 4, generator=seeded()).double()
    x = batch(7)
    y = Mixture(experts, Given(torch.full((7, 1), expert), 3))(x)
    assert_close(y, experts.every(x)[:, expert])
    y.sum().backward()
    assert experts.up.grad is not None
    assert [bool(g.any()) for g in experts.up.grad] == [e == expert for e in range(3)]


@pytest.mark.parametrize("name", ROUTERS)
def test_equal_experts_are_one_times_the_sum_of_weights(name: str) -> None:
    layer, x = mixture(name).eval(), batch(2, 5)
    with torch.no_grad():
        for weight in layer.experts.parameters():
            weight.copy_(weight[:1].expand_as(weight))
    total = layer.routing(x).dense().sum(1, keepdim=True)
    single = layer.experts.every(x.view(-1, D))[:, 0]
    assert_close(layer(x).view(-1, D), total * single)


def test_experts_of_different_kinds_and_a_shared_one() -> None:
    kinds = [nn.Linear(D, D), nn.Sequential(nn.Linear(D, 3), nn.GELU(), nn.Linear(3, D))]
    shared = nn.Linear(D, D)
    router = TopK(experts=2).build(D, generator=seeded())
    layer = Mixture(kinds, router, shared).double()
    x = batch(2, 4)
    gates = layer.routing(x).dense().view(2, 4, 2)
    want = gates[..., :1] * kinds[0](x) + gates[..., 1:] * kinds[1](x) + shared(x)
    assert isinstance(layer.experts, ExpertList)
    assert_close(layer(x), want)


@pytest.mark.parametrize("policy", ["order", "random", "score"])
def test_a_dropped_token_gets_nothing_from_the_experts(policy: str) -> None:
    layer, x = mixture("topk", Capacity(0.5, policy, least=1)), batch(2, 20)
    y = layer(x).view(-1, D)
    assert layer.taken is not None and layer.router.last is not None
    room = math.ceil(0.5 * 80 / 4)
    assert layer.taken.load().tolist() == layer.router.last.load().clamp(max=room).tolist()
    gone = torch.ones(40, dtype=torch.bool)
    gone[layer.taken.token] = False
    assert gone.any() and not y[gone].any() and y[~gone].any(1).all()


def test_evaluation_with_lots_says_the_same_twice() -> None:
    layer, x = mixture("topk", Capacity(0.5, "random", evaluation=0.5)).eval(), batch(2, 20)
    assert_close(layer(x), layer(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["topk", "topp", "switch"])
@pytest.mark.parametrize("capacity", [None, Capacity(0.7, least=1)])
def test_padding_is_inert(name: str, capacity: Capacity | None) -> None:
    layer, x = mixture(name, capacity), batch(2, 5).detach()
    valid = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]).bool()
    layer.router.context.valid = valid
    y, losses = layer(x), intarsia.gating.aux_loss(layer)
    assert not y[~valid].any() and y[valid].any()
    changed = x.clone()
    changed[~valid] = 1e6
    assert_close(layer(changed), y, rtol=0, atol=0)
    layer.router.context.valid = None
    assert_close(layer(x[valid]), y[valid])
    assert_close(intarsia.gating.aux_loss(layer), losses)


def test_a_batch_of_padding_alone() -> None:
    layer, x = mixture(capacity=Capacity()), batch(2, 3)
    layer.router.context.valid = torch.zeros(2, 3, dtype=torch.bool)
    y = layer(x)
    assert not y.any()
    (y.sum() + intarsia.gating.aux_loss(layer)).backward()
    assert not any(p.grad is not None and p.grad.any() for p in layer.parameters())


def test_a_nan_stays_in_its_row() -> None:
    layer, x = mixture(), batch(5).detach()
    want = layer(x)
    x[2, 0] = math.nan
    y = layer(x)
    assert y[2].isnan().all()
    keep = torch.arange(5) != 2
    assert_close(y[keep], want[keep])


def test_extreme_logits_are_finite() -> None:
    layer, x = mixture(), batch(5)
    with torch.no_grad():
        layer.router.weight.mul_(1e6)
    y = layer(x)
    y.sum().backward()
    assert y.isfinite().all() and all(p.grad.isfinite().all() for p in layer.parameters())  # pyright: ignore


def test_the_router_stays_in_float32_under_autocast() -> None:
    layer, x = mixture().float().eval(), batch(2, 5).float()
    want = layer.routing(x)
    with torch.autocast("cpu", torch.bfloat16):
        routing, y = layer.routing(x), layer(x)
    assert routing.weight.dtype == torch.float32
    assert_close(routing.dense(), want.dense(), rtol=0, atol=0)
    assert_close(y.float(), layer(x), rtol=0.05, atol=0.01)
    assert (y.float() - layer(x)).abs().max() > 1e-6, "the experts do run in bfloat16"
    y.float().sum().backward()


def test_a_router_of_samples_sends_all_tokens_of_a_sample_one_way() -> None:
    experts = StackedExperts(3, D, 4, generator=seeded()).double()
    x = batch(4, 5)
    for router in (
        RandomRouter(3, 1, "sample", generator=seeded()), TaskRouter(1, 3, generator=seeded()),
    ):  # fmt: skip
        gates = Mixture(experts, router).double().eval().routing(x).dense().view(4, 5, 3)
        assert (gates == gates[:, :1]).all()
    with refused(ShapeError, what="routing", got="4 rows for 9 tokens"):
        Mixture(experts, Given(torch.zeros(4, 1, dtype=torch.long), 3))(batch(9))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_graph_holds_all_of_it(training: bool, dtype: torch.dtype) -> None:
    layer, x = mixture().to(dtype).train(training), batch(2, 8).to(dtype).detach()
    torch.compiler.reset()
    y = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    assert_close(y, layer(x))
    leaves = tuple(layer.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(y.sum(), leaves), torch.autograd.grad(layer(x).sum(), leaves),
        strict=True,
    ):  # fmt: skip
        assert_close(ours, theirs)


def test_shapes_are_known_without_values() -> None:
    layer = mixture().to("meta")
    assert layer(torch.empty(2, 3, D, device="meta", dtype=torch.float64)).shape == (2, 3, D)


def test_memory_is_linear_in_tokens() -> None:
    """Count the numbers kept for the backward by token; an S x E x S tensor would double them."""

    def kept(tokens: int) -> float:
        layer, total = mixture(), 0

        def count(t: Tensor) -> Tensor:
            nonlocal total
            total += t.numel() if tokens in t.shape or 2 * tokens in t.shape else 0
            return t

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            layer(batch(tokens))
        return total / tokens

    assert 0 < kept(1000) <= 1.05 * kept(250)


@pytest.mark.parametrize("policy", [None, "order", "random", "score"])
def test_the_largest_tensor_is_linear_in_tokens(policy: str | None) -> None:
    """Compare the largest tensors; S x E x S, or S x E x C, would grow by four."""

    class Largest(TorchDispatchMode):
        bytes = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else (result,):
                if isinstance(tensor, Tensor):
                    self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
            return result

    def largest(tokens: int) -> int:
        capacity = None if policy is None else Capacity(1.0, policy)
        layer, x = mixture(capacity=capacity), batch(tokens)
        with Largest() as watch:
            layer(x).sum().backward()
        return watch.bytes

    assert 0 < largest(1000) <= 2.1 * largest(500)


def test_it_copies_after_a_forward() -> None:
    layer = mixture(capacity=Capacity())
    layer(batch(4))
    assert layer.taken is not None and copy.deepcopy(layer).taken is None


def test_bad_mixtures_are_refused() -> None:
    experts = StackedExperts(3, D, 4, generator=seeded())
    with refused(ConfigError, what="router", got="4 experts to choose from"):
        Mixture(experts, TopK(experts=4).build(D, generator=seeded()))
    router = TopK(experts=3).build(D, generator=seeded())
    with refused(ConfigError, what="capacity", got="policy='random' without a generator"):
        Mixture(experts, router, capacity=Capacity(policy="random"))
    wide = TopK(experts=3).build(D + 1, generator=seeded())
    with refused(ShapeError, what="router"):
        Mixture(experts, wide)(batch(2).float())


def test_weights_of_a_dense_mlp_are_refused() -> None:
    for name in ("fc1.weight", "up_proj.weight"):
        with refused(CheckpointError, what="weights of 'the mixture'"):
            mixture().load_state_dict({name: torch.zeros(1)})


class Fixed(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def residual(mix: str = "learned") -> ResidualMixture:
    layer = ResidualMixture(mixture(), Fixed(3.0), width=D, mix=mix, generator=seeded())
    return layer.double()


def test_residual_experts_are_weighed_by_a_softmax() -> None:
    layer, x = residual(), batch(2, 5)
    assert layer.coefficient is not None
    c = layer.coefficient(x).softmax(-1)
    assert_close(layer(x), c[..., :1] * layer.mixture(x) + c[..., 1:] * 3 * x)
    nn.init.zeros_(layer.coefficient.weight)
    assert_close(layer(x), (layer.mixture(x) + 3 * x) / 2)
    assert_close(residual("sum")(x), layer.mixture(x) + 3 * x)
    with refused(ConfigError, what="mix", got="'paper'"):
        residual("paper")


def test_without_the_experts_the_mlp_is_left() -> None:
    layer, x = residual(), batch(2, 5)
    assert layer.coefficient is not None
    layer.mixture.router.context.valid = torch.zeros(2, 5, dtype=torch.bool)
    assert_close(layer(x), layer.coefficient(x).softmax(-1)[..., 1:] * 3 * x)


def test_a_routing_of_neither_tokens_nor_samples_is_refused() -> None:
    experts = StackedExperts(3, D, 4, generator=seeded())
    layer = Mixture(experts, TaskRouter(1, 3, 2, generator=seeded()))
    with refused(ShapeError, what="routing", got="4 rows for 8 tokens"):
        layer(torch.randn(2, 4, D))  # two heads a sample, which are no parts of the sequence


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_what_weighs_in_float32_gives_the_dtype_of_its_input(dtype: torch.dtype) -> None:
    experts = StackedExperts(3, D, 4, generator=seeded())
    layer = Mixture(experts, TaskRouter(1, 3, generator=seeded())).to(dtype)
    assert layer(torch.randn(2, 4, D, dtype=dtype)).dtype == dtype


@pytest.mark.thorough
def test_random_experts_are_their_expectation_in_evaluation() -> None:
    experts = StackedExperts(4, D, 9, generator=seeded()).double()
    layer = Mixture(experts, RandomRouter(4, 2, "batch", generator=seeded())).train()
    x = batch(3, 5).detach()
    with torch.no_grad():
        mean = torch.stack([layer(x) for _ in range(4000)]).mean(0)
        layer.eval()
        assert torch.equal(layer(x), layer(x))
        assert_close(layer(x), experts.every(x.view(-1, D)).sum(1).view_as(x) / 2)
        assert_close(layer(x), mean, atol=0.03, rtol=0.1)


def test_the_coefficients_stay_in_float32_under_autocast() -> None:
    full = residual().float()
    x = batch(2, 5).float().detach()
    dtypes: list[torch.dtype] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.aten._softmax.default and out.shape[-1] == 2:
                dtypes.extend((args[0].dtype, out.dtype))
            return out

    with torch.autocast("cpu", torch.bfloat16), Watch():
        full(x)
    assert dtypes == [torch.float32, torch.float32]


def test_a_number_of_experts_is_that_many_mlps_of_four_widths() -> None:
    mixture = Mixture(3, width=5, generator=seeded(0))
    up, down = mixture.experts.up, mixture.experts.down
    assert isinstance(mixture.experts, StackedExperts)
    assert {3, 5, 20} == set(up.shape) == set(down.shape)
    assert mixture.router.experts == 3 and mixture(torch.randn(2, 7, 5)).shape == (2, 7, 5)
    # torch's own seed decides where there is no generator
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(Mixture(3, width=5).experts.up)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    with refused(ConfigError, what="width", got="3 experts of no width"):
        Mixture(3)
