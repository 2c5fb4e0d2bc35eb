"""compressed-tensors' `pack-quantized`: symmetric int4 in groups of 16, which transformers opens.

A code q is -8 ... 7 and stands for q s, s = max |w| / 7.5 of its group; a zero is the code 0, so
that pruned weights stay 0. Others are rounded: the folder holds another model, see `rounded`.
Layers that `Gqsa(symmetric=True)` has packed keep their codes and scales: nothing is rounded twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import MissingExtra, TargetError
from ...formats import GroupSparse
from ...formats.bits import unpack_bits
from ...formats.packed_linear import PackedLinear
from ...kernels.gqsa import spread
from .pruner import stops_of

BITS, GROUP = 4, 16


def packable(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers inside the blocks with inputs in whole groups of 16, by path.

    Raises: TargetError for none, for stacked experts, which transformers cannot unpack, and for
    layers that were packed in another format.
    """
    coded = {n: m for n, m in model.named_modules() if isinstance(m, PackedLinear)}
    for name, layer in coded.items():
        _check_coded(name, layer)
    matrices = {n: m for stop in stops_of(model, ()) for n, m in stop.layers.items()}
    # transformers unpacks layers, not parameters of a stack
    stacked = [n for n, m in matrices.items() if m.index is not None]
    layers = {
        n: m.owner
        for n, m in matrices.items()
        if isinstance(m.owner, nn.Linear) and m.owner.in_features % GROUP == 0
    }
    layers |= {n: m for n, m in coded.items() if isinstance(m, nn.Linear)}
    if stacked or not layers:
        got = f"experts in stacks, such as {stacked[0]!r}" if stacked else "none"
        want, fix = f"linear layers with whole groups of {GROUP} inputs", "Use layout='dense'."
        raise TargetError("layers to pack", got=got, want=want, fix=fix)
    return layers


def packed(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Pack the layers' weights as int4; return tensors by name, and the quantisation config.

    Raises: MissingExtra without compressed-tensors; TargetError as `packable`.
    """
    try:
        import compressed_tensors.compressors as compressors  # pyright: ignore[reportMissingImports]
        import compressed_tensors.quantization as made_of  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtra("compressed-tensors", "hf-int4") from error
    args = made_of.QuantizationArgs(
        num_bits=BITS, strategy="group", group_size=GROUP, symmetric=True
    )
    scheme: Any = made_of.QuantizationScheme(targets=["Linear"], weights=args)
    layers = packable(model)
    compressor = compressors.BaseCompressor.get_value_from_registry("pack-quantized")
    stored: dict[str, Tensor] = {}
    for path, layer in layers.items():
        weight = layer.weight.detach()
        scale = scales_of(layer) if isinstance(layer, PackedLinear) else scales(weight)
        inputs = {"weight": weight, "weight_scale": scale}
        parts: Mapping[str, Tensor] = compressor.compress(inputs, scheme)
        stored |= {f"{path}.{name}": value.cpu().contiguous() for name, value in parts.items()}
    # named as ignored, or transformers would expect packed weights there
    ignored = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n not in layers]
    config = made_of.QuantizationConfig(
        config_groups={"group_0": scheme},
        format="pack-quantized",
        quantization_status="compressed",
        ignore=ignored,
    )
    return stored, config.to_dict()


def scales(weight: Tensor) -> Tensor:
    """Return max |w| / 7.5 of each group of 16 weights, 1 where the group is 0.

    weight: (out, in). Returns (out, in / 16).
    """
    largest = weight.detach().float().unflatten(1, (-1, GROUP)).abs().amax(-1)
    # the range -7.5 ... 7.5 of 16 codes, as compressed-tensors computes it
    scale = (largest / (2**BITS - 1) * 2).to(weight.dtype)
    return torch.where(scale > 0, scale, 1).to(weight.dtype)


def scales_of(layer: Any) -> Tensor:
    """Return the scale of each group of a layer that is packed as `GroupSparse`.

    Returns (out, in / 16), 1 where a group is pruned.
    """
    stored, groups = layer.stored, layer.in_features // GROUP
    stored_scales = stored["scales"].float().view(-1, layer.form.rows, 1)
    scale = spread(stored_scales, stored["row_offsets"], stored["columns"], groups)
    scale = scale[: layer.out_features]  # a last block may be shorter
    return torch.where(scale > 0, scale, 1)


def _check_coded(name: str, layer: Any) -> None:
    """Check that a packed layer has symmetric codes of 4 bits in groups of 16 inputs."""
    form, zero_code = layer.form, 2 ** (BITS - 1)
    fits = isinstance(form, GroupSparse) and (form.bits, form.group) == (BITS, GROUP)
    if fits and layer.in_features % GROUP == 0:
        stored = layer.stored
        # symmetric: the code of 0 is the same in each group, which pack-quantized takes for granted
        zeros = unpack_bits(stored["zeros"], BITS, len(stored["scales"]))
        # of a group with scale 0 the code does not matter, as in rows that fill up a block
        fits = bool(((zeros == zero_code) | (stored["scales"] == 0)).all())
    else:
        fits = False
    if not fits:
        want = f"Gqsa(symmetric=True) on whole groups of {GROUP} inputs"
        fix = "Pack it so, or save the plain model: intarsia.fold(model)."
        raise TargetError(f"packed layer {name!r}", got=str(form), want=want, fix=fix)


def rounded(weight: Tensor) -> Tensor:
    """Return a weight (out, in) as a "pack-quantized" folder gives it back, rounded to int4."""
    scale = scales(weight)[..., None]
    # codes -8 ... 7
    code = (weight.detach().unflatten(1, (-1, GROUP)) / scale).round().clamp(-8, 7)
    return (code * scale).flatten(1)
