"""Experts over one frozen MLP: equal to MLPs of their own, in both dialects, gradients included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import GatedMlp, GlobalResponseNormMlp, GluMlp, Mlp
from torch import Tensor, nn
from torch.testing import assert_close

from intarsia.adapters import Bottleneck, Lora
from intarsia.core import Routing, Site
from intarsia.core.errors import ConfigError, TargetError
from intarsia.mixtures.lora_experts import DeltaExperts, MlpExperts, OutputExperts
from intarsia.routers import Switch, TopK, TopP

from ..refusals import refused

WIDTH, HIDDEN = 6, 9


class Gated(nn.Module):
    """Llama's MLP."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(WIDTH, HIDDEN, bias=bias)
        self.up_proj = nn.Linear(WIDTH, HIDDEN, bias=bias)
        self.down_proj = nn.Linear(HIDDEN, WIDTH, bias=bias)
        self.act_fn = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


HOSTS: dict[str, Callable[[], nn.Module]] = {
    "gated": Gated,
    "gated with biases": lambda: Gated(True),
    "plain": lambda: Mlp(WIDTH, HIDDEN),
    "plain with a norm": lambda: Mlp(WIDTH, HIDDEN, norm_layer=nn.LayerNorm),
}
ROUTERS = {
    "two": TopK(4, 2),
    "all": TopK(4, 4),
    "one": TopK(4, 1, "prob", bias=True),
    "one, straight through": TopK(4, 1, "ste"),
    "top-p": TopP(4, 0.5),
    "switch": Switch(4, 0.6),
    "single": TopK(1, 1),
}


def site_of(module: nn.Module, path: str = "b.mlp") -> Site:
    layers = tuple(
        (n, m.in_features, m.out_features)
        for n, m in module.named_modules()
        if isinstance(m, nn.Linear)
    )
    return Site(path, WIDTH, WIDTH, layers=layers)


def build(kind: type[MlpExperts], host: nn.Module, router: Any, over: Any = None) -> Any:
    generator = torch.Generator().manual_seed(0)
    gate = router.build(WIDTH, generator=generator)
    cell = kind(gate, over or Lora(2, 4.0), site_of(host), generator=generator).double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return cell


def adapted_mlp(cell: MlpExperts, host: Any, expert: int, x: Tensor, weight: Any = 1.0) -> Tensor:
    """An MLP with one expert's LoRAs, written out; weight scales what they add."""

    def linear(name: str, x: Tensor) -> Tensor:
        body = cell.experts[name][expert]  # pyright: ignore
        added = x @ body.down.weight.T @ body.up.weight.T * body.scale
        return getattr(host, name)(x) + weight * added

    if hasattr(host, "gate_proj"):
        a = host.act_fn(linear("gate_proj", x)) * linear("up_proj", x)
        return linear("down_proj", a)
    return host.drop2(linear("fc2", host.norm(host.drop1(host.act(linear("fc1", x))))))


def outputs_naive(cell: MlpExperts, host: Any, x: Tensor, routing: Routing) -> Tensor:
    """Token by token, expert by expert: whole MLPs, and the bare one for what is left of 1."""
    gates, rows = routing.dense(), []
    for t, row in enumerate(x.reshape(-1, WIDTH)):
        y = (1 - gates[t].sum()) * host(row)
        for e in range(routing.experts):
            y = y + gates[t, e] * adapted_mlp(cell, host, e, row)
        rows.append(y)
    return torch.stack(rows).view(x.shape)


def deltas_naive(cell: MlpExperts, host: Any, x: Tensor, routing: Routing) -> Tensor:
    """Compute, for at most one expert a token, an MLP whose LoRAs are scaled by its weight."""
    gates, rows = routing.dense(), []
    for t, row in enumerate(x.reshape(-1, WIDTH)):
        e = int(gates[t].argmax())
        rows.append(adapted_mlp(cell, host, e, row, gates[t, e]))
    return torch.stack(rows).view(x.shape)


@pytest.mark.parametrize("shape", [(7, 3), (1, 1), (5,)])
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("router", ROUTERS)
def test_shared_products_are_the_naive_ones(host: str, router: str, shape: Any) -> None:
    torch.manual_seed(0)
    mlp = HOSTS[host]().double()
    x = torch.randn(*shape, WIDTH, dtype=torch.float64, requires_grad=True)
    scale = torch.randn(*shape, WIDTH, dtype=torch.float64)
    twins: list[tuple[type[MlpExperts], Any]] = [(OutputExperts, outputs_naive)]
    if ROUTERS[router].__dict__.get("active") == 1:
        twins.append((DeltaExperts, deltas_naive))
    for kind, naive in twins:
        cell = build(kind, mlp, ROUTERS[router])
        fast = cell.around(mlp, x)
        slow = naive(cell, mlp, x, cell.router.last)
        assert_close(fast, slow, rtol=1e-9, atol=1e-9)
        leaves = (x, *cell.parameters())
        ours = torch.autograd.grad((fast * scale).sum(), leaves, materialize_grads=True,
                                   allow_unused=True, retain_graph=True)  # fmt: skip
        theirs = torch.autograd.grad((slow * scale).sum(), leaves, materialize_grads=True,
                                     allow_unused=True)  # fmt: skip
        for a, b in zip(ours, theirs, strict=True):
            assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_the_products_of_the_frozen_mlp_are_computed_once() -> None:
    mlp, counted = Gated().double(), []
    cell = build(OutputExperts, mlp, TopK(4, 3))
    for name, layer in mlp.named_children():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda _m, a, _y, n=name: counted.append((n, len(a[0]))))
    cell.around(mlp, torch.randn(5, WIDTH, dtype=torch.float64))
    assert counted == [("gate_proj", 5), ("up_proj", 5), ("down_proj", 5)]


@pytest.mark.parametrize("kind", [DeltaExperts, OutputExperts])
@pytest.mark.parametrize("host", HOSTS)
def test_one_expert_is_plain_lora_to_the_bit(kind: type[MlpExperts], host: str) -> None:
    mlp = HOSTS[host]().double()
    cell = build(kind, mlp, TopK(1, 1), Lora(2, 4.0, dropout=0.3))
    x = torch.randn(4, 5, WIDTH, dtype=torch.float64)
    torch.manual_seed(1)
    got = cell.around(mlp, x)
    torch.manual_seed(1)
    rows = x.view(-1, WIDTH)  # the dropout of a plain LoRA is drawn in this order, too
    want = cell.dialect.compute(mlp, rows, lambda name, y, x: y + cell.experts[name][0](x))
    assert torch.equal(got, want.view(x.shape))


@pytest.mark.parametrize("kind", [DeltaExperts, OutputExperts])
@pytest.mark.parametrize("expert", [0, 2])
def test_all_tokens_to_one_expert_is_its_lora(kind: type[MlpExperts], expert: int) -> None:
    mlp = Gated().double()
    cell = build(kind, mlp, TopK(3, 1, "ste", bias=True, balance=0.0))
    with torch.no_grad():
        cell.router.bias[expert] = 1e4
    x = torch.randn(7, WIDTH, dtype=torch.float64)
    assert_close(cell.around(mlp, x), adapted_mlp(cell, mlp, expert, x))
    cell.around(mlp, x).sum().backward()
    for name in ("gate_proj", "up_proj", "down_proj"):
        for e in range(3):
            gradients = [p.grad for p in cell.experts[name][e].parameters()]
            assert all((g is not None and bool(g.any())) == (e == expert) for g in gradients)


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("kind", [DeltaExperts, OutputExperts])
def test_experts_that_add_nothing_leave_the_mlp(kind: type[MlpExperts], router: str) -> None:
    mlp = Mlp(WIDTH, HIDDEN).double()
    generator = torch.Generator().manual_seed(0)
    gate = ROUTERS[router].build(WIDTH, generator=generator)
    cell = kind(gate, Lora(2), site_of(mlp), generator=generator).double()
    x = torch.randn(7, WIDTH, dtype=torch.float64)
    assert_close(cell.around(mlp, x), mlp(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [DeltaExperts, OutputExperts])
def test_equal_experts_are_one_lora(kind: type[MlpExperts]) -> None:
    mlp = Gated().double()
    cell = build(kind, mlp, TopK(4, 2))
    with torch.no_grad():
        for group in cell.experts.values():
            for expert in group:
                expert.load_state_dict(group[0].state_dict())
    x = torch.randn(7, WIDTH, dtype=torch.float64)
    assert_close(cell.around(mlp, x), adapted_mlp(cell, mlp, 0, x))


@pytest.mark.parametrize("kind", [DeltaExperts, OutputExperts])
@pytest.mark.parametrize("router", ["two", "one", "top-p", "switch"])
def test_padding_gets_the_bare_mlp_and_changes_nothing(kind: type[MlpExperts], router: str) -> None:
    mlp = Gated().double()
    cell = build(kind, mlp, ROUTERS[router]).eval()
    x = torch.randn(2, 4, WIDTH, dtype=torch.float64)
    valid = torch.tensor([[True, True, True, False], [True, False, False, False]])
    alone = cell.around(mlp, x[valid])
    cell.router.context.valid = valid
    for padded in (x, torch.where(valid[..., None], x, 9 * torch.randn_like(x))):
        y = cell.around(mlp, padded)
        assert_close(y[valid], alone)
        assert_close(y[~valid], mlp(padded[~valid]))


def test_the_graph_without_values_says_the_same() -> None:
    mlp, x = Gated().double(), torch.randn(3, 5, WIDTH, dtype=torch.float64)
    for kind, router in ((OutputExperts, TopK(4, 2)), (DeltaExperts, TopK(4, 1, "prob"))):
        cell = build(kind, mlp, router).eval()

        class Alone(nn.Module):
            def __init__(self, cell: Any = cell) -> None:
                super().__init__()
                self.cell, self.mlp = cell, mlp

            def forward(self, x: Tensor) -> Tensor:
                return self.cell.around(self.mlp, x)

        exported = torch.export.export(Alone().eval(), (x,)).module()
        assert_close(exported(x), cell.around(mlp, x))


WRONG: list[tuple[Any, str]] = [
    (nn.Linear(WIDTH, WIDTH), "a linear layer"),
    (GluMlp(WIDTH, 2 * HIDDEN), r"fc1 \(6 -> 18\), fc2 \(9 -> 6\)"),
    (nn.Sequential(nn.Linear(WIDTH, WIDTH)), r"0 \(6 -> 6\)"),
]


@pytest.mark.parametrize(("host", "message"), WRONG, ids=lambda v: type(v).__name__)
def test_another_kind_of_mlp_is_named(host: nn.Module, message: str) -> None:
    site = Site("b.mlp", WIDTH, WIDTH) if isinstance(host, nn.Linear) else site_of(host)
    router = TopK(2).build(WIDTH, generator=torch.Generator())
    with refused(TargetError, what="target 'b.mlp'"):
        OutputExperts(router, Lora(2), site, generator=torch.Generator())


class Scaled(Mlp):
    """Computes something else with the same parts."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "host",
    [GlobalResponseNormMlp(WIDTH, HIDDEN), Scaled(WIDTH, HIDDEN), GatedMlp(WIDTH, HIDDEN)],
    ids=lambda m: type(m).__name__,
)
def test_the_same_linear_maps_used_otherwise_are_refused(host: nn.Module) -> None:
    router = TopK(2).build(WIDTH, generator=torch.Generator())
    with refused(TargetError, what="target 'b.mlp'"):
        OutputExperts(router, Lora(2), site_of(host), generator=torch.Generator()).check(host)


@pytest.mark.parametrize("host", HOSTS)
def test_the_mlps_it_knows_pass_its_check(host: str) -> None:
    mlp = HOSTS[host]()
    build(OutputExperts, mlp, TopK(2)).check(mlp)


def test_an_mlp_that_drops_is_not_compared_while_it_does() -> None:
    mlp = Mlp(WIDTH, HIDDEN, drop=0.5).train()
    build(OutputExperts, mlp, TopK(2)).check(mlp)


def test_channels_in_front_are_refused() -> None:
    mlp = Mlp(WIDTH, HIDDEN)
    site = Site("b.mlp", WIDTH, WIDTH, channels="first", layers=site_of(mlp).layers)
    router = TopK(2).build(WIDTH, generator=torch.Generator())
    with refused(TargetError, what="target 'b.mlp'"):
        OutputExperts(router, Lora(2), site, generator=torch.Generator())


def test_bad_experts_are_refused() -> None:
    mlp = Mlp(WIDTH, HIDDEN)
    with refused(ConfigError, what="rank", got=7):
        build(OutputExperts, mlp, TopK(2), Lora(7))
    with refused(ConfigError, what="over", got="Bottleneck"):
        build(OutputExperts, mlp, TopK(2), Bottleneck(2, placement="pfeiffer", norm="none"))
    with refused(TargetError, what="experts at 'b.mlp'"):
        build(OutputExperts, mlp, TopK(2))(torch.zeros(2, WIDTH).double())


def test_experts_live_in_the_state_dict() -> None:
    names = set(build(OutputExperts, Gated(), TopK(2)).state_dict())
    expert = "experts.gate_proj.1."
    assert {"router.weight", f"{expert}down.weight", f"{expert}up.weight"} <= names
    assert len(names) == 1 + 3 * 2 * 2
