"""Sparse models of transformers, whose router alone is replaced: Mixtral, Qwen-MoE, OLMoE and all
whose gate gives logits, weights and experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import CheckpointError, ConfigError, TargetError
from ...core.foreign import tensor_of
from ...gating import Router, RouterConfig, expert_readers
from ...routers import TopK

NAMES = ("gate", "router")  # in a block that has `experts`
SIGMOIDS = "e_score_correction_bias"  # what gates have that choose by sigmoids


@dataclass(frozen=True)
class OwnGate:
    """What a host's gate does.

    experts: E; active: k; scale: the weights of the k, "renormalised", "prob" or None for others;
    factor: by which the gate multiplies them; bias: whether it has one.
    """

    experts: int
    active: int
    scale: str | None
    factor: float
    bias: bool


class HostedRouter(nn.Module):
    """A router in the place of a sparse block's own gate.  (B T, d) -> logits, weights, experts.

    The host wants k experts of every token: k is the most that any token has, and who has fewer
    gets others at weight 0. Logits are log weights, which the host only hands on; weights are
    multiplied by the factor of the gate that was here.
    """

    def __init__(self, router: Router, factor: float = 1.0) -> None:
        super().__init__()
        self.router, self.factor = router, factor

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, valid = hidden_states.reshape(-1, hidden_states.shape[-1]), self.router.context.valid
        if valid is not None and len(rows) % len(valid) == 0:
            rows = rows.view(len(valid), -1, rows.shape[-1])  # as the mask is, which may be longer
        gates = self.router(rows).dense()  # (B T, E)
        k = max(1, int((gates > 0).sum(1).max())) if len(gates) else 1
        weight, expert = gates.topk(k)
        return gates.clamp(min=torch.finfo(gates.dtype).tiny).log(), self.factor * weight, expert

    def refuse_others(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Raise CheckpointError for the weights of the gate that was here."""
        if f"{prefix}weight" in state_dict:
            what, got = f"weights of {prefix.rstrip('.')!r}", "those of the host's own gate"
            fix = "Load them into the model as it was, then call intarsia.upcycle."
            raise CheckpointError(what, got=got, want="those of a router in its place", fix=fix)


def gate_name(block: nn.Module) -> str | None:
    """The name of the gate in a block that has experts of its own; None for a dense MLP."""
    children = dict(block.named_children())
    own = (n for n in NAMES if n in children and not isinstance(children[n], Router))
    return next(own, None) if "experts" in children else None


def own_gate(block: nn.Module) -> nn.Module | None:
    """The gate of a block that has experts of its own; None for a dense MLP."""
    return None if (name := gate_name(block)) is None else block.get_submodule(name)


def probabilities(gate: nn.Module, output: Any) -> Tensor:
    """A router's probability of every expert, from what the host's gate returned.  -> (T, E).

    softmax of its logits; of a gate that scores by sigmoids (DeepSeek-V3) sigmoid / sum; what are
    probabilities already is left alone. Float32, with its gradient.
    """
    logits = (output[0] if isinstance(output, tuple) else output).float()
    if hasattr(gate, SIGMOIDS):
        scores = logits.sigmoid()
        return scores / scores.sum(-1, keepdim=True)
    seen = logits.detach()
    if bool((seen >= 0).all()) and torch.allclose(seen.sum(-1), seen.new_ones(()), atol=1e-3):
        return logits
    return logits.softmax(-1)


@torch.no_grad()
def read_gate(path: str, gate: nn.Module) -> OwnGate:
    """What a gate does, read off its outputs for a few tokens.

    Raises: TargetError for one that gives anything but logits, weights and experts.
    """
    if isinstance(gate, HostedRouter):
        what, fix = f"gate {path!r}", "Start from a fresh copy of the model."
        raise TargetError(what, got="a router put there before", want="the host's own", fix=fix)
    weight = tensor_of(gate)
    found: Any = None
    if isinstance(weight, Tensor) and weight.dim() == 2:
        draws = torch.Generator().manual_seed(0)
        x = torch.randn(4, weight.shape[1], generator=draws).to(weight.device, weight.dtype)
        found = gate(x)
    of = [(t.dim(), t.is_floating_point()) for t in found] if isinstance(found, tuple) else []
    if of != [(2, True), (2, True), (2, False)] or found[0].shape != (4, len(weight)):  # pyright: ignore
        fix = "Other sparse models call their gates in other ways; choose layers=[...] without."
        want = "a gate that gives (logits (T, E), weights (T, k), experts (T, k))"
        raise TargetError(f"gate {path!r}", got=type(gate).__name__, want=want, fix=fix)
    logits, weights, experts = found
    factor = float(getattr(gate, "routed_scaling_factor", 1.0))
    p = logits.float().softmax(-1).gather(1, experts)
    scale = None
    if not weights.is_meta:
        ways = {"renormalised": p / p.sum(-1, keepdim=True), "prob": p}
        near = {n: torch.allclose(weights.float(), factor * w, atol=1e-3) for n, w in ways.items()}
        scale = next((n for n, same in near.items() if same), None)
    bias = tensor_of(gate, "bias") is not None
    return OwnGate(logits.shape[1], weights.shape[1], scale, factor, bias)


def followed(router: RouterConfig, gates: Sequence[OwnGate], where: str) -> RouterConfig:
    """The router with what it leaves open as the gates have it, whose places it takes.

    Raises: ConfigError for gates that differ, or have weights that no `scale` gives.
    """
    if not isinstance(router, TopK) or router.scale is not None:
        return router
    if router == TopK():
        router = replace(router, experts=gates[0].experts, active=gates[0].active, scale="prob")
    kinds = {(gate.scale, gate.bias) for gate in gates}
    scale, bias = gates[0].scale, gates[0].bias
    if len(kinds) > 1 or scale is None:
        want = "gates of one kind, whose weights are probabilities, renormalised or not"
        fix = "Say TopK(..., scale='renormalised') or 'prob'; outputs will be others."
        raise ConfigError(f"scale of the gates, as at {where!r}", got=kinds, want=want, fix=fix)
    return replace(router, scale=scale, bias=bias)


def hosted(path: str, gate: nn.Module, router: nn.Module, experts: int) -> HostedRouter:
    """The router for a gate's place; one with a matrix of the gate's shape begins with the gate's.

    Raises: TargetError for a gate that is called otherwise; ConfigError for another number of
    experts, or a router that is not one of tokens, or reads its experts.
    """
    of, own = read_gate(path, gate), gate
    if expert_readers(router):
        what, want = f"router of {path!r}", "a router that reads tokens alone"
        got = "one that reads its experts, which are the host's own"
        raise ConfigError(what, got=got, want=want, fix="Use TopK(...), or upcycle a dense model.")
    if not isinstance(router, Router):
        raise ConfigError(
            "router", got=type(router).__name__, want="a router of tokens", fix="Use TopK(...)."
        )
    if of.experts != experts:
        want = f"{of.experts}, as the block at {path!r} has"
        fix = f"Call upcycle(..., experts={of.experts})."
        raise ConfigError("experts", got=experts, want=want, fix=fix)
    for name in ("weight", "bias"):
        mine, its = getattr(router, name, None), getattr(own, name, None)
        if isinstance(mine, nn.Parameter) and its is not None and mine.shape == its.shape:
            with torch.no_grad():
                mine.copy_(its)
    return HostedRouter(router, of.factor)
