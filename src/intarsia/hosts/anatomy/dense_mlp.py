"""An MLP of a host in its parts, and experts that come from it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...core.errors import ConfigError, TargetError
from ...mixtures.experts import StackedExperts
from ..out.widen import plain_mlp

GATED = {"gate_proj", "up_proj", "down_proj", "act_fn"}


@dataclass(frozen=True)
class Dense:
    """The parts of down(act(up x)), or of down(act(gate x) * up x)."""

    up: nn.Linear
    gate: nn.Linear | None
    down: nn.Linear
    act: nn.Module


def dense_mlp(path: str, module: nn.Module) -> Dense:
    """The parts of an MLP.

    Raises: TargetError for one that computes otherwise, or drops out.
    """
    children: dict[str, Any] = dict(module.named_children())
    found = None
    if children.keys() == GATED:
        found = Dense(*(children[n] for n in ("up_proj", "gate_proj", "down_proj", "act_fn")))
    elif (plain := plain_mlp(module)) is not None:
        found = Dense(cast(Any, plain.fc1), None, cast(Any, plain.fc2), plain.act)
    linears = [] if found is None else [found.up, found.gate, found.down]
    exact = all(m is None or type(m) is nn.Linear for m in linears)
    drops = [m.p for m in module.modules() if isinstance(m, nn.Dropout) and m.p]
    if found is None or not exact or drops:
        raise TargetError(
            f"MLP {path!r}",
            got=f"{type(module).__name__} of {', '.join(children)}"
            + (f", with dropout {drops[0]}" if drops else ""),
            want="fc1, act, fc2 (timm's Mlp) or gate_proj, up_proj, act_fn, down_proj (Llama), "
            "without dropout",
            fix="Choose layers=[...] without it, or set its dropout to 0.",
        )
    return found


def drawn(
    dense: Dense, experts: int, parts: int, path: str, draws: torch.Generator
) -> StackedExperts:
    """New experts, each of the size of one of so many parts of an MLP.

    Raises: ConfigError for units that do not divide among the parts.
    """
    (hidden, width), outputs = dense.up.weight.shape, dense.down.out_features
    if experts < 1 or hidden % parts:
        want = f"a divisor of the {hidden} hidden units of {path!r}"
        fix = "Slices are of one size; choose another number."
        raise ConfigError("experts", got=parts, want=want, fix=fix)
    linears = [m for m in (dense.up, dense.gate, dense.down) if m is not None]
    bias = any(m.bias is not None for m in linears)
    act, gated = copy.deepcopy(dense.act), dense.gate is not None
    return StackedExperts(
        experts, width, hidden // parts, outputs, act=act, gated=gated, bias=bias, generator=draws
    ).to(dense.up.weight)


@torch.no_grad()
def stacked(
    dense: Dense, experts: int, parts: int, path: str, draws: torch.Generator
) -> StackedExperts:
    """The experts that an MLP becomes: one of its parts each, in turn; whole copies if parts = 1.

    Raises: as `drawn` does.
    """
    made = drawn(dense, experts, parts, path, draws)
    hidden = dense.up.out_features

    def dealt(matrix: Tensor) -> Tensor:  # (hidden, ...) -> (experts, hidden / parts, ...)
        pieces = matrix.view(parts, hidden // parts, *matrix.shape[1:])
        return pieces[torch.arange(experts, device=pieces.device) % parts]

    for name, layer in (("up", dense.up), ("gate", dense.gate)):
        if layer is not None:
            getattr(made, name).copy_(dealt(layer.weight))
            if layer.bias is not None:
                getattr(made, f"{name}_bias").copy_(dealt(layer.bias))
    made.down.copy_(dealt(dense.down.weight.t().contiguous()).transpose(1, 2))
    if dense.down.bias is not None and made.down_bias is not None:
        made.down_bias.copy_(dense.down.bias / parts)  # slices are summed
    return made


@torch.no_grad()
def check_output(mlp: nn.Module, made: StackedExperts, parts: int, path: str) -> None:
    """Raises: TargetError if the MLP's forward is not what its parts say."""
    weight = made.up
    if weight.is_meta or made.experts < parts:  # some were taken away since
        return
    x = torch.linspace(-1, 1, 2 * weight.shape[2]).to(weight).view(2, -1)
    every = made.every(x)  # (2, E, out)
    y = every[:, :parts].sum(1)
    close = 1e-4 if weight.dtype in (torch.float32, torch.float64) else 0.1
    if not torch.allclose(y, mlp(x), rtol=close, atol=close, equal_nan=True):
        what, want = f"MLP {path!r}", "down(act(up(x))), or down(act(gate(x)) * up(x))"
        got = f"a {type(mlp).__name__} with a forward of its own"
        raise TargetError(what, got=got, want=want, fix="Choose layers=[...] without it.")
