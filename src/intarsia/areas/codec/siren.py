"""Networks from coordinates to values, one for each row of a batch of weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .recombiner import DIMENSIONS, STEP, RecombinerSettings

OMEGA = 30.0  # of the sines
FLOAT = torch.float32  # type of all that is trained and stored, whatever torch's default
FEATURES = 16  # Fourier features of a point, at least two for each axis
HIGHEST = 1024.0  # largest frequency, in half waves for each patch
UP = 4, 2, 2  # factors of upsampling the latents; their product is STEP


def fourier(patch: Sequence[int]) -> Tensor:
    """Compute Fourier features of the points of a patch: cos and sin of pi w x, x in (-1, 1).

    -> (points, features), with frequencies w from 1 to HIGHEST.
    """
    axes = [(torch.arange(side, dtype=torch.float64) + 0.5) / side * 2 - 1 for side in patch]
    coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(-1, len(patch), 1)
    count = max(1, FEATURES // (2 * len(patch)))
    # name the device: transformers leaves torch.linspace out of `with torch.device(...)`
    steps = torch.linspace(
        0, math.log(HIGHEST), count, dtype=torch.float64, device=coordinates.device
    )
    w = torch.exp(steps) * math.pi
    return torch.cat([torch.cos(coordinates * w), torch.sin(coordinates * w)], -1).flatten(1)


def siren(x: Tensor, weights: Tensor, sizes: Sequence[int], omega: float = OMEGA) -> Tensor:
    """Apply an MLP with sines (SIREN) for each row: sin(omega (b + x W)), linear at the last.

    x: (rows, points, sizes[0]); weights: (rows, p) with bias b, then W, of each layer; sizes:
      widths of all layers, inputs and outputs among them; omega: factor inside the sines.  ->
      (rows, points, sizes[-1]).  Sitzmann et al., arXiv:2006.09661.
    """
    offset = 0
    for layer, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
        bias = weights[:, None, offset : offset + fan_out]
        offset += fan_out
        matrix = weights[:, offset : offset + fan_in * fan_out].view(-1, fan_in, fan_out)
        offset += fan_in * fan_out
        x = torch.baddbmm(bias, x, matrix)
        if layer < len(sizes) - 2:
            x = torch.sin(omega * x)
    return x


def layer_sizes(sizes: Sequence[int]) -> list[int]:
    """Return the number of weights of each layer, biases included."""
    return [(a + 1) * b for a, b in zip(sizes, sizes[1:], strict=False)]


class SignalDecoder(nn.Module):
    """Decoder that all signals of a prior share: the maps A and the convolution of the positions.

    forward: latents h (rows, width_of_weights + width_of_positions) of the patches of signals with
    `tiles` patches along each axis, row-major -> (rows, points, channels).
    """

    points: Tensor

    def __init__(
        self, settings: RecombinerSettings, *, generator: torch.Generator | None = None
    ) -> None:
        """Build the shared decoder; without `generator` it draws from torch's global one."""
        super().__init__()
        self.settings = settings
        # positions: channels of the latents that a convolution spreads over the patches, 0 = none
        axes, z = DIMENSIONS[settings.kind], settings.positions
        out = max(8, z // 8) if z else 0
        middle = max(16, z // 2)
        # Fourier features of the points of a patch, equal for all patches
        features = fourier(settings.patch)
        self.register_buffer("points", features.float(), persistent=False)
        hidden = [settings.width] * settings.depth
        self.sizes = [features.shape[1] + out, *hidden, settings.channels]
        self.weights = sum(layer_sizes(self.sizes))
        self.grid = tuple(side // STEP for side in settings.patch)
        self.latents = z * math.prod(self.grid)
        self.maps = nn.ParameterList()
        # weights of a layer = A h, where A starts near the identity
        if settings.reparametrise:
            for p in layer_sizes(self.sizes):
                drawn = (torch.rand(p, p, generator=generator, dtype=FLOAT) * 2 - 1) / p
                self.maps.append(nn.Parameter(torch.eye(p, dtype=FLOAT) + drawn))
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        self.convolutions = nn.ModuleList()
        # from a grid of latents to channels of every point
        if z:
            shapes = (z, middle, 5), (middle, middle, 3), (middle, out, 3)
            for a, b, side in shapes:
                self.convolutions.append(convolution(a, b, side, padding=side // 2, dtype=FLOAT))
            for parameter in self.convolutions.parameters():
                fan = parameter[0].numel() if parameter.ndim > 1 else len(parameter)
                bound = 1 / math.sqrt(fan)
                nn.init.uniform_(parameter, -bound, bound, generator=generator)

    @property
    def columns(self) -> int:
        """Number of latents of a patch."""
        return self.weights + self.latents

    def start(self, generator: torch.Generator) -> Tensor:
        """Draw initial latents of a patch, (columns,): SIREN's first weights, small positions."""
        parts: list[Tensor] = []
        for layer, (fan_in, fan_out) in enumerate(zip(self.sizes, self.sizes[1:], strict=False)):
            # The bounds of SIREN's initialisation, wider in the first layer.
            bound = 1 / fan_in if layer == 0 else math.sqrt(6 / fan_in) / OMEGA
            drawn = torch.rand((fan_in + 1) * fan_out, generator=generator, dtype=FLOAT) * 2 - 1
            parts.append(drawn * bound)
        parts.append(torch.randn(self.latents, generator=generator, dtype=FLOAT) * 0.1)
        return torch.cat(parts)

    def forward(self, h: Tensor, tiles: Sequence[int]) -> Tensor:
        """Compute the values of patches from their latents.

        h: (rows, columns), of the patches of whole signals, row-major; tiles: patches along each
          axis of a signal.  -> (rows, points, channels).
        """
        x = self.points.expand(len(h), -1, -1)
        if self.latents:
            x = torch.cat([x, self._positions(h[:, self.weights :], tiles)], -1)
        return siren(x, self.reparametrise(h[:, : self.weights]), self.sizes) + 0.5

    def reparametrise(self, h: Tensor) -> Tensor:
        """Compute the network's weights w = h A, layer by layer (3.1).  h: (rows, weights)."""
        if not len(self.maps):
            return h
        parts = h.split(layer_sizes(self.sizes), -1)
        return torch.cat([part @ a for part, a in zip(parts, self.maps, strict=True)], -1)

    def _positions(self, latents: Tensor, tiles: Sequence[int]) -> Tensor:
        """Compute further inputs of each point by convolutions over whole signals (3.2)."""
        # convolve whole signals, so that neighbouring patches see each other
        x = stitch(latents.reshape(len(latents), -1, *self.grid), tiles)
        for index, (convolution, scale) in enumerate(zip(self.convolutions, UP, strict=True)):
            x = convolution(F.interpolate(x, scale_factor=scale, mode="nearest"))
            if index < len(UP) - 1:
                x = F.leaky_relu(x)
        return cut(x, tiles).flatten(2).transpose(1, 2)


def stitch(x: Tensor, tiles: Sequence[int]) -> Tensor:
    """Join patches to whole signals, (signals, C, *(tiles * side)).

    x: (signals * patches, C, *side), row-major.
    """
    n, side = len(tiles), x.shape[2:]
    x = x.reshape(-1, *tiles, x.shape[1], *side)  # signal, tiles, C, side
    order = [0, n + 1, *(axis for i in range(n) for axis in (1 + i, n + 2 + i))]
    full = [a * b for a, b in zip(tiles, side, strict=True)]
    return x.permute(order).reshape(len(x), -1, *full)


def cut(x: Tensor, tiles: Sequence[int]) -> Tensor:
    """Cut whole signals into patches, the inverse of `stitch`."""
    n = len(tiles)
    side = [full // count for full, count in zip(x.shape[2:], tiles, strict=True)]
    pairs = [size for pair in zip(tiles, side, strict=True) for size in pair]
    # split each axis into (tile, side), then bring the tiles to the front
    x = x.reshape(*x.shape[:2], *pairs)  # signal, C, tile, side, tile, side ...
    order = [0, *(2 + 2 * i for i in range(n)), 1, *(3 + 2 * i for i in range(n))]
    return x.permute(order).reshape(-1, x.shape[1], *side)
