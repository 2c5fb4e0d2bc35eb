"""Sparse models of transformers, whose router alone is replaced: Mixtral, Qwen2-MoE, Qwen3-MoE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import CheckpointError, ConfigError, TargetError
from ...gating import Router, expert_readers

# these return (logits, weights, experts), the latter two of shape (T, k)
GATES = frozenset({"MixtralTopKRouter", "Qwen2MoeTopKRouter", "Qwen3MoeTopKRouter"})


class HostedRouter(nn.Module):
    """A router in the place of a sparse block's own gate.  (B T, d) -> logits, weights, experts.

    The host wants k experts of every token: k is the most that any token has, and who has fewer
    gets others at weight 0. Logits are log weights, which the host only hands on.
    """

    def __init__(self, router: Router) -> None:
        super().__init__()
        self.router = router

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, valid = hidden_states.reshape(-1, hidden_states.shape[-1]), self.router.context.valid
        if valid is not None and len(rows) % len(valid) == 0:
            rows = rows.view(len(valid), -1, rows.shape[-1])  # as the mask is, which may be longer
        gates = self.router(rows).dense()  # (B T, E)
        k = max(1, int((gates > 0).sum(1).max())) if len(gates) else 1
        weight, expert = gates.topk(k)
        return gates.clamp(min=torch.finfo(gates.dtype).tiny).log(), weight, expert

    def refuse_others(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Raise CheckpointError for the weights of the gate that was here."""
        if f"{prefix}weight" in state_dict:
            what, got = f"weights of {prefix.rstrip('.')!r}", "those of the host's own gate"
            fix = "Load them into the model as it was, then call intarsia.upcycle."
            raise CheckpointError(what, got=got, want="those of a router in its place", fix=fix)


def own_gate(block: nn.Module) -> nn.Module | None:
    """The gate of a block that has experts of its own; None for a dense MLP."""
    children: dict[str, Any] = dict(block.named_children())
    return children.get("gate") if {"gate", "experts"} <= children.keys() else None


def hosted(path: str, gate: nn.Module, router: nn.Module, experts: int) -> HostedRouter:
    """The router for a gate's place; one with a matrix of the gate's shape begins with the gate's.

    Raises: TargetError for a gate that is called otherwise; ConfigError for another number of
    experts, or a router that is not one of tokens, or reads its experts.
    """
    if isinstance(gate, HostedRouter):
        what, fix = f"gate {path!r}", "Start from a fresh copy of the model."
        raise TargetError(what, got="a router put there before", want="the host's own", fix=fix)
    if type(gate).__name__ not in GATES:
        what = f"gate {path!r}"
        fix = "Other sparse models call their gates in other ways; choose layers=[...] without."
        raise TargetError(what, got=type(gate).__name__, want=f"one of {sorted(GATES)}", fix=fix)
    own: Any = gate
    if expert_readers(router):
        what, want = f"router of {path!r}", "a router that reads tokens alone"
        got = "one that reads its experts, which are the host's own"
        raise ConfigError(what, got=got, want=want, fix="Use TopK(...), or upcycle a dense model.")
    if not isinstance(router, Router):
        raise ConfigError(
            "router", got=type(router).__name__, want="a router of tokens", fix="Use TopK(...)."
        )
    if len(own.weight) != experts:
        want = f"{len(own.weight)}, as the block at {path!r} has"
        fix = f"Call upcycle(..., experts={len(own.weight)})."
        raise ConfigError("experts", got=experts, want=want, fix=fix)
    mine = getattr(router, "weight", None)
    if isinstance(mine, nn.Parameter) and mine.shape == own.weight.shape:
        with torch.no_grad():
            mine.copy_(own.weight)
    return HostedRouter(router)
