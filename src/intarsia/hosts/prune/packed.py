"""compressed-tensors' `pack-quantized`: symmetric int4 in groups of 16, which transformers opens.

A code q is -8 ... 7 and stands for q s, s = max |w| / 7.5 of its group; a zero is the code 0, so
that pruned weights stay 0. Others are rounded: the folder holds another model, see `rounded`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import MissingExtra, TargetError
from .pruner import stops_of

BITS, GROUP = 4, 16


def packable(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers inside the blocks whose inputs are whole groups, by path.

    Raises: TargetError for none, or a model with experts in stacks: transformers unpacks layers.
    """
    matrices = {n: m for stop in stops_of(model, ()) for n, m in stop.layers.items()}
    stacked = [n for n, m in matrices.items() if m.index is not None]
    found = {
        n: m.owner
        for n, m in matrices.items()
        if isinstance(m.owner, nn.Linear) and m.owner.in_features % GROUP == 0
    }
    if stacked or not found:
        got = f"experts in stacks, such as {stacked[0]!r}" if stacked else "none"
        want, fix = f"linear layers with whole groups of {GROUP} inputs", "Use layout='dense'."
        raise TargetError("layers to pack", got=got, want=want, fix=fix)
    return found


def packed(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What takes the place of the layers' weights, by name; and the config of quantisation.

    Raises: MissingExtra without the library; TargetError as `packable`.
    """
    try:
        import compressed_tensors.compressors as compressors  # pyright: ignore[reportMissingImports]
        import compressed_tensors.quantization as made_of  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtra("compressed-tensors", "hf-int4") from error
    args = made_of.QuantizationArgs(
        num_bits=BITS, strategy="group", group_size=GROUP, symmetric=True
    )
    how: Any = made_of.QuantizationScheme(targets=["Linear"], weights=args)
    layers = packable(model)
    compressor = compressors.BaseCompressor.get_value_from_registry("pack-quantized")
    stored: dict[str, Tensor] = {}
    for path, layer in layers.items():
        weight = layer.weight.detach()
        given = {"weight": weight, "weight_scale": scales(weight)}
        made: Mapping[str, Tensor] = compressor.compress(given, how)
        stored |= {f"{path}.{name}": value.cpu().contiguous() for name, value in made.items()}
    others = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n not in layers]
    config = made_of.QuantizationConfig(
        config_groups={"group_0": how},
        format="pack-quantized",
        quantization_status="compressed",
        ignore=others,
    )
    return stored, config.to_dict()


def scales(weight: Tensor) -> Tensor:
    """max |w| / 7.5 of each group, 1 where all of it is 0.  (out, in) -> (out, in / 16)."""
    largest = weight.detach().float().unflatten(1, (-1, GROUP)).abs().amax(-1)
    scale = (largest / (2**BITS - 1) * 2).to(weight.dtype)
    return torch.where(scale > 0, scale, 1).to(weight.dtype)


def rounded(weight: Tensor) -> Tensor:
    """The weight that a folder of `pack-quantized` gives back.  (out, in) -> (out, in)."""
    scale = scales(weight)[..., None]
    code = (weight.detach().unflatten(1, (-1, GROUP)) / scale).round().clamp(-8, 7)
    return (code * scale).flatten(1)
