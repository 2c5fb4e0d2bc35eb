"""Couples of matrices that share their inner channels: up with down, values with the projection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...hosts.anatomy.blocks import ATTENTION, PROJECTION, QKV, blocks, unwrapped, walk

UP = ("gate_proj", "up_proj", "fc1", "fc1_g", "fc1_x", "intermediate.dense")
DOWN = ("down_proj", "fc2", "output.dense")
Layer = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class Couple:
    """Matrices with common inner channels: the rows of `into` make what `out`'s columns read.

    units: what can change places: channels of an MLP, KV groups of an attention (queries follow the
      key and value that they share). into: (path, outputs, parts) each; a fused layer holds its
      units in every part. out: (path, inputs). stray: other parameters that would have to follow.
    """

    units: int
    into: tuple[tuple[str, int, int], ...]
    out: tuple[str, int]
    stray: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of all layers of the couple."""
        return (*(path for path, _, _ in self.into), self.out[0])

    def rows(self, order: Tensor) -> dict[str, Tensor]:
        """Return the row order of each layer of `into` for an order of the units, (units,)."""
        return {path: _channel_order(order, width, parts) for path, width, parts in self.into}

    def columns(self, order: Tensor) -> dict[str, Tensor]:
        """Return the column order of `out` for an order of the units, (units,)."""
        return {self.out[0]: _channel_order(order, self.out[1])}


def _channel_order(order: Tensor, width: int, parts: int = 1) -> Tensor:
    """Expand an order of units (units,) to one of channels (width,), in each part of a layer."""
    unit_width = width // parts // len(order)
    # A unit's channels move together and keep their order.
    channels = (order[:, None] * unit_width + torch.arange(unit_width)).flatten()
    return torch.cat([part * (width // parts) + channels for part in range(parts)])


def couples(model: nn.Module) -> Iterator[Couple]:
    """Yield the pairs of coupled layers in each block's MLP and attention.

    Layers are coupled if the rows of one and the columns of the other can be reordered together
    without a change of the function: up and down of an MLP, values and projection of an attention.
    model: a transformer; blocks with layers of unknown names are left out.
    """
    for path, block in blocks(model):
        attention_name = next((n for n in ATTENTION if n in block._modules), None)
        if attention_name is not None:
            yield from _attention_couples(
                f"{path}.{attention_name}", block.get_submodule(attention_name)
            )
        if "mlp" in block._modules:
            yield from _mlp_couples(f"{path}.mlp", block.get_submodule("mlp"))
        # BERT's MLP is two modules of the block
        elif "intermediate" in block._modules:
            mlp = nn.ModuleDict({n: block.get_submodule(n) for n in ("intermediate", "output")})
            yield from _mlp_couples(path, mlp)


def _layers_named(module: nn.Module, names: tuple[str, ...]) -> dict[str, Layer]:
    inside = {p: unwrapped(m) for p, m in walk(module) if p}
    return {
        p: m
        for p, m in inside.items()
        if isinstance(m, (nn.Linear, nn.Conv2d)) and f".{p}".endswith(tuple(f".{n}" for n in names))
    }


def _stray_parameters(
    module: nn.Module, layers: tuple[str, ...], out: str, free: int = 0
) -> tuple[str, ...]:
    """Return the names of parameters that a reordering of channels would leave behind."""
    # free: width of a head; a norm of that width is shared by all heads, which their order leaves
    # Modules behind `out` see its output, which no order of inner channels changes.
    behind = out.rpartition(".")[0]
    return tuple(
        f"{p}.{name}".lstrip(".")
        for p, m in walk(module)
        for name, parameter in unwrapped(m).named_parameters(recurse=False)
        if p not in layers
        and not (behind and p.startswith(f"{behind}."))
        and not ("norm" in p and parameter.shape == (free,))
    )


def _make_couple(
    root: str, module: nn.Module, into: dict[str, Layer], out: str, units: int, *sizes: int
) -> Couple:
    """Make a `Couple`, layers with rows and columns that are reordered together, by path."""
    parts, free = sizes
    strays = _stray_parameters(module, (*into, out), out, free)
    into_layers = tuple((f"{root}.{p}", _output_width(m), parts) for p, m in into.items())
    inputs = unwrapped(dict(walk(module))[out]).get_parameter("weight").shape[1]
    return Couple(
        units, into_layers, (f"{root}.{out}", inputs), tuple(f"{root}.{s}" for s in strays)
    )


def _attention_couples(root: str, module: nn.Module) -> Iterator[Couple]:
    """Yield the couple of an attention: value (or fused qkv) rows and projection columns."""
    into, out = _layers_named(module, QKV), _layers_named(module, (*PROJECTION, "output.dense"))
    inside = [unwrapped(m) for _, m in walk(module)]
    head_widths = [getattr(m, n, None) for m in inside for n in ("head_dim", "attention_head_size")]
    head_width = next((w for w in head_widths if isinstance(w, int)), 0)
    names = {p.rpartition(".")[2] for p in into}
    # timm's attention has one layer for queries, keys and values.
    fused = names == {"qkv"}
    if len(out) != 1 or not (fused or len(names) == len(into) == 3):
        return
    # the values are the last of them, as the names are listed
    value = max(into, key=lambda p: QKV.index(p.rpartition(".")[2]))
    (path, layer), rows = next(iter(out.items())), _output_width(into[value])
    heads = next((h for m in inside if isinstance(h := getattr(m, "num_heads", None), int)), 0)
    inputs = layer.weight.shape[1]
    head_width = head_width or (inputs // heads if heads else 0)
    parts = 3 if fused else 1
    # Heads of unequal width cannot change places.
    if not head_width or rows % (parts * head_width):
        return
    # KV groups: queries that share a key and value move with them.
    units = rows // parts // head_width
    if inputs % units or any(_output_width(m) % (parts * units) for m in into.values()):
        return
    if fused and inputs != rows // parts:  # shared keys: the parts are not thirds
        return
    yield _make_couple(root, module, into, path, units, parts, head_width)


def _mlp_couples(root: str, module: nn.Module) -> Iterator[Couple]:
    """Yield the couple of an MLP: gate and up rows and down columns."""
    into, outputs = _layers_named(module, UP), _layers_named(module, DOWN)
    if len(outputs) != 1 or not into:
        return
    path, layer = next(iter(outputs.items()))
    units = layer.weight.shape[1]
    widths = {_output_width(m) for m in into.values()}
    # a gate and its values in one layer are two parts of it
    if len(widths) != 1 or (width := widths.pop()) not in (units, 2 * units):
        return
    yield _make_couple(root, module, into, path, units, width // units, 0)


def _output_width(layer: Layer) -> int:
    return layer.weight.shape[0]
