"""A bottleneck parallel to an MLP is a wider MLP: the closed form, and padding to one width.

fc2(act(fc1 x)) + s * up(act(down(g * x + b))) is, for one activation, an MLP with a hidden layer of
the two side by side: the cell's units are appended to the host's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...core.cell import Units
from ...core.errors import FoldError
from ...core.foreign import tensor_of

KEEP = "Keep the adapter attached: export_onnx and export_program take the adapted model as it is."
ACTS = ("act", "activation_fn", "activation")
# float64: both sides are the same sum in another order
EXACT = 1e-12


@dataclass(frozen=True)
class PlainMlp:
    """Parts of a module known to be fc2(act(fc1(x))) in evaluation."""

    fc1: nn.Linear | nn.Conv2d
    act: nn.Module
    fc2: nn.Linear | nn.Conv2d

    @property
    def inputs(self) -> int:
        """Width of the inputs."""
        return self.fc1.weight.shape[1]

    @property
    def hidden(self) -> int:
        """Number of hidden units."""
        return self.fc1.weight.shape[0]


def is_pointwise(module: nn.Module | None) -> bool:
    """Return True for a Linear, or a convolution that is a Linear at each position."""
    if not isinstance(module, (nn.Linear, nn.Conv2d)) or not module.weight.is_floating_point():
        return False
    if isinstance(module, nn.Linear):
        return True
    size = (module.kernel_size, module.stride, module.groups)
    return size == ((1, 1), (1, 1), 1) and module.padding in ((0, 0), "valid", "same")


def plain_mlp(module: nn.Module) -> PlainMlp | None:
    """Return the parts of a module that is fc2(act(fc1(x))); None for any other.

    An MLP with a gate or a norm inside is another function.
    """
    children = dict(module.named_children())
    fc1, fc2 = children.pop("fc1", None), children.pop("fc2", None)
    act = next((children.pop(name) for name in ACTS if name in children), None)
    if not (is_pointwise(fc1) and is_pointwise(fc2)) or act is None or type(fc1) is not type(fc2):
        return None
    inert = all(isinstance(m, (nn.Dropout, nn.Identity)) for m in children.values())
    if not inert or any(True for _ in module.parameters(recurse=False)):
        return None
    mlp = PlainMlp(fc1, act, fc2)  # pyright: ignore[reportArgumentType]
    # a gated MLP has twice as many units before the gate as after it
    return mlp if mlp.hidden == mlp.fc2.weight.shape[1] else None


def same_function(a: nn.Module, b: nn.Module) -> bool:
    """Return True if two activations are one function, up to rounding in float64.

    They are compared on a grid, since names differ between libraries.
    """
    # activations differ most around 0, and are straight lines beyond 12
    grid = torch.linspace(-12, 12, 4097, dtype=torch.float64)
    try:
        with torch.no_grad():
            ya, yb = (copy.deepcopy(act).cpu().double().eval()(grid.clone()) for act in (a, b))
    except (RuntimeError, TypeError, ValueError):  # not an elementwise map
        return False
    return ya.shape == yb.shape == grid.shape and torch.allclose(ya, yb, rtol=0, atol=EXACT)


def exact(module: nn.Module, memo: Mapping[int, Any] | None = None) -> nn.Module:
    """Copy a module in float64 on the CPU, in evaluation, to compute almost without rounding.

    memo: objects that are shared with the copy, or replaced in it: id -> object.
    """
    return copy.deepcopy(module, dict(memo or {})).cpu().double().eval()


def widen(module: nn.Module, units: Units, path: str) -> None:
    """Append the hidden units of a parallel bottleneck to an MLP, in place.

    fc1' = [fc1; rows], b1' = [b1; bias], fc2' = [fc2 | columns], b2' = b2 + shift, where units are
    (rows (r, in), bias (r,), columns (out, r), shift (out,)).
    Raises: FoldError if the module is no plain MLP, or of another activation or width.
    """
    mlp = plain_mlp(module)
    if mlp is None:
        got = f"a bottleneck beside {type(module).__name__}"
        want = "an MLP that is fc2(act(fc1(x))), without gate or norm inside"
        raise FoldError(f"fold {path!r}", got=got, want=want, fix=KEEP)
    if not same_function(mlp.act, units.act):
        subject, got = f"fold {path!r}", f"{units.act} in the adapter beside {mlp.act} in the MLP"
        raise FoldError(subject, got=got, want="one activation, to the last digit", fix=KEEP)
    cell_sizes, mlp_sizes = (
        (units.rows.shape[1], len(units.columns)),
        (mlp.inputs, len(mlp.fc2.weight)),
    )
    if cell_sizes != mlp_sizes:
        subject, got = f"fold {path!r}", f"an adapter {cell_sizes[0]} -> {cell_sizes[1]}"
        raise FoldError(
            subject, got=got, want=f"the MLP's {mlp_sizes[0]} -> {mlp_sizes[1]}", fix=KEEP
        )
    # sizes and activation agree: the cell's hidden units become the MLP's
    append_units(mlp, units.rows, units.bias, units.columns, path)
    add_bias(mlp.fc2, units.shift, f"{path}.fc2")


def append_units(mlp: PlainMlp, rows: Tensor, bias: Tensor, columns: Tensor, path: str) -> None:
    """Append r hidden units to an MLP, in place; columns of zeros leave its output unchanged.

    rows: (r, in), of fc1; bias: (r,); columns: (out, r), of fc2.
    Raises: FoldError if fc1 has no bias and needs one.
    """
    fc1, fc2 = mlp.fc1, mlp.fc2
    # a pointwise convolution is a Linear with two more axes of size 1
    tail = fc1.weight.shape[2:]  # () or (1, 1)
    with torch.no_grad():
        rows = rows.reshape(*rows.shape, *tail).to(fc1.weight)
        columns = columns.reshape(*columns.shape, *tail).to(fc2.weight)
        set_weights(fc1, weight=torch.cat([fc1.weight, rows]))
        set_weights(fc2, weight=torch.cat([fc2.weight, columns], dim=1))
        if fc1.bias is not None:
            set_weights(fc1, bias=torch.cat([fc1.bias, bias.to(fc1.bias)]))
        elif bool((bias != 0).any()):
            raise _no_bias(f"{path}.fc1")
    unit = "features" if isinstance(fc1, nn.Linear) else "channels"
    # the attributes that constructors and printers read
    setattr(fc1, f"out_{unit}", mlp.hidden)
    setattr(fc2, f"in_{unit}", mlp.hidden)


def add_bias(layer: nn.Module, bias: Tensor, path: str) -> None:
    """Add a tensor (out,) to a layer's bias, in place.  Raises: FoldError if it has none."""
    current = tensor_of(layer, "bias")
    if isinstance(current, Tensor):
        set_weights(layer, bias=current + bias.to(current))
    elif bool((bias != 0).any()):
        raise _no_bias(path)


def _no_bias(path: str) -> FoldError:
    return FoldError(
        f"fold {path!r}",
        got="a layer without a bias, and an adapter with one",
        want="a layer that has a bias",
        fix=KEEP,
    )


def set_weights(layer: nn.Module, **tensors: Tensor) -> None:
    """Give a layer new parameters, by name; tensors tied to the old ones stay as they are."""
    # new parameters, never a write: a weight tied to another layer must not change there
    for name, value in tensors.items():
        setattr(layer, name, nn.Parameter(value.detach().contiguous()))


def add_weight(layer: nn.Module, delta: Tensor, path: str) -> None:
    """Add a change (out, in) to the weight of a Linear or a pointwise convolution, in place.

    Raises: FoldError for another layer or shape.
    """
    if isinstance(layer, Conv1D):  # its weight is (in, out)
        return set_weights(layer, weight=layer.weight.detach() + delta.T.to(layer.weight))
    if not isinstance(layer, (nn.Linear, nn.Conv2d)) or not is_pointwise(layer):
        subject, got = f"fold {path!r}", f"a linear adapter beside {type(layer).__name__}"
        raise FoldError(subject, got=got, want="a Linear or a 1x1 convolution", fix=KEEP)
    weight = layer.weight.detach()
    if delta.shape != weight.shape[:2]:
        subject, got = f"fold {path!r}", f"a weight change of shape {tuple(delta.shape)}"
        raise FoldError(subject, got=got, want=f"{tuple(weight.shape[:2])}", fix=KEEP)
    set_weights(layer, weight=weight + delta.reshape(weight.shape).to(weight))


def mlps(model: nn.Module) -> dict[str, PlainMlp]:
    """Return every plain MLP of a model, by path."""
    candidates = {path: plain_mlp(module) for path, module in model.named_modules()}
    return {path: mlp for path, mlp in candidates.items() if mlp is not None}


def pad(model: nn.Module, target: Callable[[int, int], int] | None = None) -> int:
    """Pad MLPs with zero hidden units, so that MLPs of one input width have one hidden width.

    model: changed in place; its outputs stay the same, since fc2 has zeros for the new units.
    target: (inputs, widest hidden) -> hidden, at least the widest; None = the widest.
    Returns the number of units that were added.
    """
    plain_mlps, padded = mlps(model), 0
    for width in {m.inputs for m in plain_mlps.values()}:
        group = {p: m for p, m in plain_mlps.items() if m.inputs == width}
        widest = max(m.hidden for m in group.values())
        # MLPs of one input width, which one constructor argument builds
        hidden = widest if target is None else target(width, widest)
        for path, mlp in group.items():
            if extra := hidden - mlp.hidden:
                zeros = torch.zeros(extra, width), torch.zeros(extra)
                append_units(mlp, *zeros, torch.zeros(mlp.fc2.weight.shape[0], extra), path)
                padded += extra
    return padded
