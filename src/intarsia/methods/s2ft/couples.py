"""Which matrices of a host share their inner channels: up with down, values with the projection."""

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
        return (*(path for path, _, _ in self.into), self.out[0])

    def rows(self, order: Tensor) -> dict[str, Tensor]:
        """The rows of each layer of `into` when its units come in an order (units,)."""
        return {path: _spread(order, width, parts) for path, width, parts in self.into}

    def columns(self, order: Tensor) -> dict[str, Tensor]:
        """The columns of `out` likewise."""
        return {self.out[0]: _spread(order, self.out[1])}


def _spread(order: Tensor, width: int, parts: int = 1) -> Tensor:
    """Channels (width,) in the order of their units (units,), in each part of a layer."""
    each = width // parts // len(order)
    one = (order[:, None] * each + torch.arange(each)).flatten()
    return torch.cat([part * (width // parts) + one for part in range(parts)])


def couples(model: nn.Module) -> Iterator[Couple]:
    """The couples of a host's MLPs and attentions, in order, as far as their layers are known."""
    for path, block in blocks(model):
        name = next((n for n in ATTENTION if n in block._modules), None)
        if name is not None:
            yield from _attention(f"{path}.{name}", block.get_submodule(name))
        if "mlp" in block._modules:
            yield from _mlp(f"{path}.mlp", block.get_submodule("mlp"))
        elif "intermediate" in block._modules:
            both = nn.ModuleDict({n: block.get_submodule(n) for n in ("intermediate", "output")})
            yield from _mlp(path, both)


def _found(module: nn.Module, names: tuple[str, ...]) -> dict[str, Layer]:
    """The linear layers inside that have one of the names, by path."""
    inside = {p: unwrapped(m) for p, m in walk(module) if p}
    return {
        p: m
        for p, m in inside.items()
        if isinstance(m, (nn.Linear, nn.Conv2d)) and f".{p}".endswith(tuple(f".{n}" for n in names))
    }


def _strays(module: nn.Module, layers: tuple[str, ...], out: str, free: int = 0) -> tuple[str, ...]:
    """Parameters that are in none of the layers, nor behind `out`, nor the same for all heads."""
    behind = out.rpartition(".")[0]
    return tuple(
        f"{p}.{name}".lstrip(".")
        for p, m in walk(module)
        for name, parameter in unwrapped(m).named_parameters(recurse=False)
        if p not in layers
        and not (behind and p.startswith(f"{behind}."))
        and not ("norm" in p and parameter.shape == (free,))
    )


def _couple(
    root: str, module: nn.Module, into: dict[str, Layer], out: str, units: int, *sizes: int
) -> Couple:
    parts, free = sizes
    strays = _strays(module, (*into, out), out, free)
    named = tuple((f"{root}.{p}", _outputs(m), parts) for p, m in into.items())
    inputs = unwrapped(dict(walk(module))[out]).get_parameter("weight").shape[1]
    return Couple(units, named, (f"{root}.{out}", inputs), tuple(f"{root}.{s}" for s in strays))


def _attention(root: str, module: nn.Module) -> Iterator[Couple]:
    into, out = _found(module, QKV), _found(module, (*PROJECTION, "output.dense"))
    inside = [unwrapped(m) for _, m in walk(module)]
    said = [getattr(m, n, None) for m in inside for n in ("head_dim", "attention_head_size")]
    width = next((w for w in said if isinstance(w, int)), 0)
    names = {p.rpartition(".")[2] for p in into}
    fused = names == {"qkv"}
    if len(out) != 1 or not (fused or len(names) == len(into) == 3):
        return
    # the values are the last of them, as the names are listed
    value = max(into, key=lambda p: QKV.index(p.rpartition(".")[2]))
    (path, layer), rows = next(iter(out.items())), _outputs(into[value])
    heads = next((h for m in inside if isinstance(h := getattr(m, "num_heads", None), int)), 0)
    inputs = layer.weight.shape[1]
    width = width or (inputs // heads if heads else 0)
    parts = 3 if fused else 1
    if not width or rows % (parts * width):
        return
    units = rows // parts // width
    if inputs % units or any(_outputs(m) % (parts * units) for m in into.values()):
        return
    if fused and inputs != rows // parts:  # shared keys: the parts are not thirds
        return
    yield _couple(root, module, into, path, units, parts, width)


def _mlp(root: str, module: nn.Module) -> Iterator[Couple]:
    into, out = _found(module, UP), _found(module, DOWN)
    if len(out) != 1 or not into:
        return
    path, layer = next(iter(out.items()))
    units = layer.weight.shape[1]
    widths = {_outputs(m) for m in into.values()}
    # a gate and its values in one layer are two parts of it
    if len(widths) != 1 or (width := widths.pop()) not in (units, 2 * units):
        return
    yield _couple(root, module, into, path, units, width // units, 0)


def _outputs(layer: Layer) -> int:
    return layer.weight.shape[0]
