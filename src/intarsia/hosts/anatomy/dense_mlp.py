"""An MLP of a host in its parts, and experts that come from it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import Identity
from transformers.pytorch_utils import Conv1D

from ...core.errors import ConfigError, TargetError
from ...mixtures.dialects import DIALECTS
from ...mixtures.experts import StackedExperts
from .blocks import mlp_of, split_mlp_of

# names of the activation next to the first layer of an MLP that is two layers
ACTS = ("activation_fn", "intermediate_act_fn", "act")


@dataclass(frozen=True)
class DenseMlp:
    """Linear layers of an MLP: down(act(up x)), or down(act(gate x) * up x) with a gate."""

    up: nn.Linear
    gate: nn.Linear | None
    down: nn.Linear
    act: nn.Module


class SplitMlp(nn.Module):
    """MLP down(act(up x)) made of two layers that a block holds itself: (..., d) -> (..., d)."""

    def __init__(self, fc1: nn.Module, act: nn.Module, fc2: nn.Module) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = fc1, act, fc2

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


@dataclass(frozen=True)
class MlpPlace:
    """Place of a block's MLP, where another module can replace it.

    path: in the block, of the module to replace; mlp: the MLP as a module; emptied: paths in the
    block of further modules of the MLP, which then become identities.
    """

    path: str
    mlp: nn.Module
    emptied: tuple[str, ...] = ()


def mlp_place(block: nn.Module) -> MlpPlace | None:
    """Return the place of the MLP in a block of tokens; None for a block without one.

    An MLP of two layers of the block (BERT, BART) is joined to a module, which takes the place of
    the second layer.
    """
    if (name := mlp_of(block)) is not None:
        return MlpPlace(name, block.get_submodule(name))
    # the paths of the two layers
    if (both := split_mlp_of(block)) is None:
        return None
    owner = both[0].rpartition(".")[0]
    inside = block.get_submodule(owner)
    act = next((n for n in ACTS if isinstance(getattr(inside, n, None), nn.Module)), None)
    # dropout between the layers has no place in a mixture
    if act is None or getattr(block, "activation_dropout", 0):
        return None
    # first layer and activation move into the joined module, which stands where the second was
    emptied = (both[0], f"{owner}.{act}".lstrip("."))
    parts = (block.get_submodule(p) for p in (*emptied, both[1]))
    return MlpPlace(both[1], SplitMlp(*parts), emptied)


def dense_mlp(path: str, module: nn.Module) -> DenseMlp:
    """Return the linear layers and the activation of an MLP.

    Raises: TargetError for one that computes something else, or has dropout.
    """
    children: dict[str, Any] = {n: m for n, m in module.named_children() if type(m) is not Identity}
    dialect = next((d for d in DIALECTS if d.fits(children)), None)
    drops = [m.p for m in module.modules() if isinstance(m, nn.Dropout) and m.p]
    if dialect is not None and not drops:
        linears = [m for n in dialect.linears if (m := _as_linear(children[n])) is not None]
        act, *between = (children[n] for n in dialect.between if n in children)
        inert = all(isinstance(m, nn.Dropout) for m in between)
        if inert and len(linears) == len(dialect.linears):
            # `linears` is gate, up, down; or both halves in one layer, down; or up, down
            *reads, down = linears
            reads = _gate_and_up(reads[0]) if dialect.halves else reads
            # otherwise the MLP multiplies two halves
            if reads[-1].out_features == down.in_features:
                return DenseMlp(reads[-1], reads[0] if len(reads) > 1 else None, down, act)
    raise TargetError(
        f"MLP {path!r}",
        got=f"{type(module).__name__} of {', '.join(children)}"
        + (f", with dropout {drops[0]}" if drops else ""),
        want="fc1, act, fc2 (timm's Mlp), gate_proj, up_proj, act_fn, down_proj (Llama), or the "
        "MLP of BERT, GPT-2, T5, Phi-3 or GPT-NeoX, of linear layers over tokens, without dropout",
        fix="Choose layers=[...] without it, or set its dropout to 0.",
    )


def _as_linear(module: nn.Module) -> nn.Linear | None:
    """Return a module as nn.Linear, if it is one or GPT-2's Conv1D; None for others."""
    # Falcon's linear layer computes the same by another product
    if type(module) is nn.Linear or type(module).__name__ == "FalconLinear":
        return cast(nn.Linear, module)
    return _linear_on(module.weight.T, module.bias) if type(module) is Conv1D else None


def _linear_on(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Build a linear layer with parameters that share the memory of given ones."""
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    plain.weight = nn.Parameter(weight.detach(), weight.requires_grad)
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach(), bias.requires_grad)
    return plain


def _gate_and_up(fused: nn.Linear) -> list[nn.Linear]:
    """Split a layer that computes a gate and its factor at once into two linear layers."""
    biases = (None, None) if fused.bias is None else fused.bias.chunk(2)
    return [_linear_on(w, b) for w, b in zip(fused.weight.chunk(2), biases, strict=True)]


def draw_experts(
    dense: DenseMlp, experts: int, parts: int, path: str, draws: torch.Generator
) -> StackedExperts:
    """Draw new experts, each with as many hidden units as one of the equal parts of an MLP.

    dense: the MLP; the experts get its sizes and activation, and biases if it has some; parts: into
    how many its hidden units are divided.
    Raises: ConfigError for units that cannot be divided into these parts.
    """
    (hidden, width), outputs = dense.up.weight.shape, dense.down.out_features
    if experts < 1 or hidden % parts:
        want = f"a divisor of the {hidden} hidden units of {path!r}"
        fix = "Slices are of one size; choose another number."
        raise ConfigError("experts", got=parts, want=want, fix=fix)
    linears = [m for m in (dense.up, dense.gate, dense.down) if m is not None]
    # all layers get a bias if one has it; the others' stay 0
    bias = any(m.bias is not None for m in linears)
    act, gated = copy.deepcopy(dense.act), dense.gate is not None
    return StackedExperts(
        experts, width, hidden // parts, outputs, act=act, gated=gated, bias=bias, generator=draws
    ).to(dense.up.weight)


@torch.no_grad()
def stack_experts(
    dense: DenseMlp, experts: int, parts: int, path: str, draws: torch.Generator
) -> StackedExperts:
    """Build experts from the weights of an MLP: copies of it, or equal parts of its hidden units.

    parts: into how many the hidden units are divided, 1 = each expert is a copy; expert e gets part
    e mod parts. draws: generator of weights that are replaced.
    Raises: as `draw_experts`.
    """
    stack = draw_experts(dense, experts, parts, path, draws)
    hidden = dense.up.out_features

    def dealt(matrix: Tensor) -> Tensor:  # (hidden, ...) -> (experts, hidden / parts, ...)
        # expert e has part e mod parts
        pieces = matrix.view(parts, hidden // parts, *matrix.shape[1:])
        return pieces[torch.arange(experts, device=pieces.device) % parts]

    for name, layer in (("up", dense.up), ("gate", dense.gate)):
        if layer is not None:
            getattr(stack, name).copy_(dealt(layer.weight))
            if layer.bias is not None:
                getattr(stack, f"{name}_bias").copy_(dealt(layer.bias))
    stack.down.copy_(dealt(dense.down.weight.t().contiguous()).transpose(1, 2))
    if dense.down.bias is not None and stack.down_bias is not None:
        stack.down_bias.copy_(dense.down.bias / parts)  # slices are summed
    return stack


@torch.no_grad()
def check_output(mlp: nn.Module, experts: StackedExperts, parts: int, path: str) -> None:
    """Check on a few inputs that the outputs of an MLP's slices sum to the MLP's output.

    experts: built from slices of it, perhaps of several copies; parts: the number of slices in a
    copy, the first experts.
    Raises: TargetError.
    """
    weight = experts.up
    if weight.is_meta or experts.experts < parts:  # experts may have been removed since
        return
    # on these inputs another activation or order of units gives other outputs
    x = torch.linspace(-1, 1, 2 * weight.shape[2]).to(weight).view(2, -1)
    outputs = experts.every(x)  # (2, E, out)
    # the slices of one copy sum to the dense output
    y = outputs[:, :parts].sum(1)
    close = 1e-4 if weight.dtype in (torch.float32, torch.float64) else 0.1
    if not torch.allclose(y, mlp(x), rtol=close, atol=close, equal_nan=True):
        subject, want = f"MLP {path!r}", "down(act(up(x))), or down(act(gate(x)) * up(x))"
        got = f"a {type(mlp).__name__} with a forward of its own"
        raise TargetError(subject, got=got, want=want, fix="Choose layers=[...] without it.")
