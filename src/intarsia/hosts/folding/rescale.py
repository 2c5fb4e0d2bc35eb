"""A scale and a shift of what a layer says are weights of that layer: W' = (1 + s) W."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.errors import FoldError
from ...core.foreign import tensor_of
from ..anatomy.blocks import NORMS
from ..anatomy.compare import difference
from .widen import EXACT, KEEP, add_bias, exact, set_weights


def rescale(layer: nn.Module, scale: Tensor, shift: Tensor, path: str, channels: str) -> None:
    """Change a layer's weights so that it computes y + scale * y + shift, in place.

    layer: a Linear, a convolution or a norm, in float64; scale, shift: (out,); channels: axis of
    its features, "last" or "first". The changed layer is compared with the formula on random
    inputs.
    Raises: FoldError for another module, one without the weights it would need (patch merging in
    Swin has no bias), or one that does not scale with its weights.
    """
    weight, bias = tensor_of(layer), tensor_of(layer, "bias")
    if not isinstance(layer, (nn.Linear, nn.Conv2d, *NORMS)) or not isinstance(weight, Tensor):
        subject, want = f"fold {path!r}", "a Linear, a convolution or a norm with weights"
        raise FoldError(subject, got=f"a scale behind {type(layer).__name__}", want=want, fix=KEEP)
    original = exact(layer)
    # y (1 + s) + t = W' x + b' with W' = (1 + s) W, b' = (1 + s) b + t
    gain = (1 + scale.detach()).to(weight)
    # weights are (out, ...), a norm's (..., out)
    by_row = isinstance(layer, (nn.Linear, nn.Conv2d))
    rows = gain.view(-1, *[1] * (weight.dim() - 1)) if by_row else gain
    set_weights(layer, weight=weight * rows)
    if isinstance(bias, Tensor):
        set_weights(layer, bias=bias * gain)
    add_bias(layer, shift.detach(), path)
    # the old layer with scale and shift behind it, against the new one
    x = _random_features(layer, channels)
    with torch.no_grad():
        y = original(x)
        if channels == "first":
            scale, shift = scale[:, None, None], shift[:, None, None]
        deviation = difference([layer(x)], [y + scale * y + shift])
    deviation.check(f"fold {path!r}", 1e3 * EXACT, FoldError, KEEP)


def _random_features(layer: nn.Module, channels: str) -> Tensor:
    """Return random float64 inputs of the shape that the layer reads."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(layer, nn.Conv2d):
        sides = [k + s for k, s in zip(layer.kernel_size, layer.stride, strict=True)]
        shape = (4, layer.in_channels, *sides)
    elif isinstance(layer, nn.Linear):
        shape = (64, layer.in_features)
    elif channels == "first":
        shape = (64, len(layer.get_parameter("weight")), 2, 2)
    else:
        shape = (64, *layer.get_parameter("weight").shape)
    return torch.randn(shape, dtype=torch.float64, generator=generator)
