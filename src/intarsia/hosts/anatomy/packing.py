"""Frozen linear maps of the blocks, packed once for the processor during a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from timm.layers import Attention
from torch import nn

from ...core.modes import forward_as
from ...kernels.frozen_linear import Packed, packs
from .blocks import base_of, blocks

SMALLEST = 2**16  # weights, below which a layout does not matter
ROWS = 1632  # 96 pictures of 17 tokens


@contextmanager
def packing(model: nn.Module) -> Iterator[int]:
    """Pack the large frozen linear layers of a model's blocks for the processor, inside the `with`.

    For plain `nn.Linear` in bfloat16 on a CPU with such kernels; other layers are left as they are.
    Outputs and gradients are the same to rounding. The weights must not change inside.
    Yields the number of packed layers.
    """
    layers = list(_packable_layers(model))
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(forward_as(layer, Packed(layer.weight, layer.bias, ROWS)))
        yield len(layers)


def _packable_layers(model: nn.Module) -> Iterator[nn.Linear]:
    """Yield the large frozen linear layers that are computed in every training step."""
    host = base_of(model)
    all_blocks = [block for _, block in blocks(host)]
    # an attention of the last block reads the weight of its qkv, see `class_token`
    read = {
        id(m.qkv) for last in all_blocks[-1:] for m in last.modules() if isinstance(m, Attention)
    }
    for block in all_blocks:
        if not any(p.requires_grad for p in block.parameters()):
            continue  # blocks below the first trained one are not computed in a step
        for layer in block.modules():
            if type(layer) is not nn.Linear or "forward" in vars(layer) or id(layer) in read:
                continue
            hooked = layer._forward_hooks or layer._forward_pre_hooks
            learns = any(p.requires_grad for p in layer.parameters())
            large = layer.weight.numel() >= SMALLEST and packs(layer.weight)
            if large and not learns and not hooked:
                yield layer
