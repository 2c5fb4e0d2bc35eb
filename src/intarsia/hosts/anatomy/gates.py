"""Replace the router alone in sparse models of transformers: Mixtral, Qwen-MoE, OLMoE and all
with a gate that gives logits, weights and experts."""

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

NAMES = ("gate", "router")  # names of the gate in a block that has `experts`
SIGMOIDS = "e_score_correction_bias"  # attribute of gates that choose by sigmoids


@dataclass(frozen=True)
class OwnGate:
    """Properties of the gate in a sparse model's block.

    experts: E; active: k, experts of a token; scale: of the weights of these k, "renormalised" to
    sum 1, "prob" for probabilities, or None for others; factor: by which the gate multiplies them;
    bias: True if the gate has one.
    """

    experts: int
    active: int
    scale: str | None
    factor: float
    bias: bool


class HostedRouter(nn.Module):
    """Router in the place of a sparse block's own gate: (B T, d) -> logits, weights, experts.

    The host wants k experts for every token: k is the most that any token of the batch has, and
    tokens with fewer get others at weight 0. Logits are log weights, which the host only passes on;
    weights are multiplied by the factor of the replaced gate.
    """

    def __init__(self, router: Router, factor: float = 1.0) -> None:
        super().__init__()
        self.router, self.factor = router, factor

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Route tokens, and return what the replaced gate returned: logits, weights, experts.

        hidden_states: (B T, d) or (B, T, d). Returns log weights (B T, E), weights and experts (B
        T, k).
        """
        rows, valid = hidden_states.reshape(-1, hidden_states.shape[-1]), self.router.context.valid
        if valid is not None and len(rows) % len(valid) == 0:
            # (B, T, d), as the padding mask is; the mask may be longer than the rows
            rows = rows.view(len(valid), -1, rows.shape[-1])
        gates = self.router(rows).dense()  # (B T, E)
        k = max(1, int((gates > 0).sum(1).max())) if len(gates) else 1
        weight, expert = gates.topk(k)
        return gates.clamp(min=torch.finfo(gates.dtype).tiny).log(), self.factor * weight, expert

    def refuse_others(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Refuse the weights of the replaced gate.

        state_dict, prefix: as torch passes them to hooks before a module is loaded.
        Raises: CheckpointError.
        """
        if f"{prefix}weight" in state_dict:
            subject, got = f"weights of {prefix.rstrip('.')!r}", "those of the host's own gate"
            fix = "Load them into the model as it was, then call intarsia.upcycle."
            raise CheckpointError(subject, got=got, want="those of a router in its place", fix=fix)


def gate_name(block: nn.Module) -> str | None:
    """Return the name of the gate in a block that has experts of its own; None for a dense MLP."""
    children = dict(block.named_children())
    # a Router there is ours already, and no gate of the host's
    names = (n for n in NAMES if n in children and not isinstance(children[n], Router))
    return next(names, None) if "experts" in children else None


def own_gate(block: nn.Module) -> nn.Module | None:
    """Return the gate of a block that has experts of its own; None for a dense MLP."""
    return None if (name := gate_name(block)) is None else block.get_submodule(name)


def probabilities(gate: nn.Module, output: Any) -> Tensor:
    """Compute the probability of every expert, (T, E) float32, from the output of a host's gate.

    The softmax of its logits; for a gate that scores by sigmoids (DeepSeek-V3) sigmoid / sum;
    probabilities stay as they are. Has a gradient.
    """
    logits = (output[0] if isinstance(output, tuple) else output).float()
    if hasattr(gate, SIGMOIDS):
        scores = logits.sigmoid()
        return scores / scores.sum(-1, keepdim=True)
    values = logits.detach()
    # the gate has returned probabilities, not logits
    if bool((values >= 0).all()) and torch.allclose(values.sum(-1), values.new_ones(()), atol=1e-3):
        return logits
    return logits.softmax(-1)


@torch.no_grad()
def read_gate(path: str, gate: nn.Module) -> OwnGate:
    """Determine a gate's properties from its outputs for a few random tokens.

    Raises: TargetError for one that returns anything but logits, weights and experts.
    """
    if isinstance(gate, HostedRouter):
        subject, fix = f"gate {path!r}", "Start from a fresh copy of the model."
        raise TargetError(subject, got="a router put there before", want="the host's own", fix=fix)
    weight = tensor_of(gate)
    output: Any = None
    if isinstance(weight, Tensor) and weight.dim() == 2:
        draws = torch.Generator().manual_seed(0)
        # four tokens are enough to tell what the weights are
        x = torch.randn(4, weight.shape[1], generator=draws).to(weight.device, weight.dtype)
        output = gate(x)
    kinds = [(t.dim(), t.is_floating_point()) for t in output] if isinstance(output, tuple) else []
    if kinds != [(2, True), (2, True), (2, False)] or output[0].shape != (4, len(weight)):  # pyright: ignore
        fix = "Other sparse models call their gates in other ways; choose layers=[...] without."
        want = "a gate that gives (logits (T, E), weights (T, k), experts (T, k))"
        raise TargetError(f"gate {path!r}", got=type(gate).__name__, want=want, fix=fix)
    logits, weights, experts = output
    # DeepSeek's gates scale the weights of the chosen experts
    factor = float(getattr(gate, "routed_scaling_factor", 1.0))
    p = logits.float().softmax(-1).gather(1, experts)
    scale = None
    if not weights.is_meta:
        candidates = {"renormalised": p / p.sum(-1, keepdim=True), "prob": p}
        near = {
            n: torch.allclose(weights.float(), factor * w, atol=1e-3) for n, w in candidates.items()
        }
        scale = next((n for n, is_near in near.items() if is_near), None)
    bias = tensor_of(gate, "bias") is not None
    return OwnGate(logits.shape[1], weights.shape[1], scale, factor, bias)


def followed(router: RouterConfig, gates: Sequence[OwnGate], path: str) -> RouterConfig:
    """Return the settings of a router that routes like the gates that it replaces.

    router: settings; `TopK()` gets everything from the gates, `TopK(...)` without a scale only
    scale and bias, other settings are returned as they are.
    Raises: ConfigError for gates that differ, or have weights that no `scale` gives.
    """
    if not isinstance(router, TopK) or router.scale is not None:
        return router
    # no settings at all: the router is to do what the gates do
    if router == TopK():
        router = replace(router, experts=gates[0].experts, active=gates[0].active, scale="prob")
    kinds = {(gate.scale, gate.bias) for gate in gates}
    scale, bias = gates[0].scale, gates[0].bias
    if len(kinds) > 1 or scale is None:
        want = "gates of one kind, whose weights are probabilities, renormalised or not"
        fix = "Say TopK(..., scale='renormalised') or 'prob'; outputs will be others."
        raise ConfigError(f"scale of the gates, as at {path!r}", got=kinds, want=want, fix=fix)
    return replace(router, scale=scale, bias=bias)


def hosted(path: str, gate: nn.Module, router: nn.Module, experts: int) -> HostedRouter:
    """Wrap a router so that it can replace a gate; it starts with the gate's weights if they fit.

    path, gate: the gate and its place; router: new, over `experts` experts.
    Raises: TargetError for a gate that is called otherwise; ConfigError for another number of
    experts, or a router that is not one of tokens, or reads its experts.
    """
    properties, host_gate = read_gate(path, gate), gate
    if expert_readers(router):
        subject, want = f"router of {path!r}", "a router that reads tokens alone"
        got = "one that reads its experts, which are the host's own"
        raise ConfigError(
            subject, got=got, want=want, fix="Use TopK(...), or upcycle a dense model."
        )
    if not isinstance(router, Router):
        raise ConfigError(
            "router", got=type(router).__name__, want="a router of tokens", fix="Use TopK(...)."
        )
    if properties.experts != experts:
        want = f"{properties.experts}, as the block at {path!r} has"
        fix = f"Call upcycle(..., experts={properties.experts})."
        raise ConfigError("experts", got=experts, want=want, fix=fix)
    # a router of the gate's form starts as the pretrained gate
    for name in ("weight", "bias"):
        parameter, host_parameter = getattr(router, name, None), getattr(host_gate, name, None)
        if (
            isinstance(parameter, nn.Parameter)
            and host_parameter is not None
            and parameter.shape == host_parameter.shape
        ):
            with torch.no_grad():
                parameter.copy_(host_parameter)
    return HostedRouter(router, properties.factor)
