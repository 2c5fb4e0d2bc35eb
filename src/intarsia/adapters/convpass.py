"""Convpass: a convolution over the patches, next to attention and MLP (arXiv:2207.07039)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Card, Cell, Method, Paper, Site
from ..core.errors import ConfigError, ShapeError
from ..core.schema import check, setting

Linear = Callable[[Tensor], Tensor]
SLOPE = 1.702  # of QuickGELU, x sigmoid(1.702 x)
SIDE = 3  # of the kernel


@dataclass(frozen=True)
class Convpass(Method):
    """s * up(act(conv(act(down(x))))), the convolution 3 x 3 over the grid of patches.

    A token that is no patch, as the class token, is an image of one pixel: only the middle of the
    kernel reads it.

    Raises: ConfigError on a setting that cannot be.
    Source: paper, section 3.2, and its released code (zero up, kernel the identity, QuickGELU).
    Not for folding: it mixes tokens, as no weight of the host does.
    """

    width: int = setting(
        8, "The channels h of the down-projection and of the convolution.", least=1, fix="Try 8."
    )
    scale: float = setting(
        1.0, "The factor s of the output; the paper chooses 0.01, 0.1, 1, 10 or 100 for each task."
    )
    dropout: float = setting(
        0.1,
        "The share of units that is zeroed before the up-projection, in training.",
        least=0,
        below=1,
    )
    roles: tuple[str, ...] = setting(
        ("attention", "mlp"),
        'The host\'s modules that get a cell: "attention" and "mlp"; the paper\'s Convpass-attn '
        "has the first alone.",
    )
    grid: tuple[int, ...] | None = setting(
        None,
        "The rows and columns of patches; None = the largest square that the tokens hold, the "
        "tokens before it being no patches.",
        least=1,
        fix="Try grid=(7, 7), or leave it out.",
    )

    position = "parallel"

    def __post_init__(self) -> None:
        check(self)
        object.__setattr__(self, "roles", tuple(self.roles))
        if self.grid is None:
            return
        object.__setattr__(self, "grid", tuple(self.grid))
        if len(self.grid) != 2:
            want, fix = "rows and columns", "Try grid=(7, 7), or leave it out."
            raise ConfigError("grid", got=self.grid, want=want, fix=fix)

    def build(self, site: Site, *, generator: torch.Generator) -> ConvpassCell:
        return ConvpassCell(self, site, generator=generator)


class ConvpassCell(Cell):
    """The addition of all tokens.  x: (B, T, d), or (B, rows, columns, d) -> the same, d' wide."""

    def __init__(self, config: Convpass, site: Site, *, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):  # overwritten below
            self.down = nn.Linear(site.reads, config.width)
            self.conv = nn.Conv2d(config.width, config.width, SIDE, padding=SIDE // 2)
            self.up = nn.Linear(config.width, site.outputs)
        self.dropout = nn.Dropout(config.dropout)
        self.zero_sides, self.scale = frozenset({"up"}), config.scale
        # the convolution begins as the identity, up as zero
        nn.init.xavier_uniform_(self.down.weight, generator=generator)
        nn.init.dirac_(self.conv.weight)
        for zero in (self.down.bias, self.conv.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self.cast(x), self.down, self.up)

    def compute(self, x: Tensor, down: Linear, up: Linear) -> Tensor:
        """Return the output for x, with these two projections instead of the module's own.

        x: (B, T, d) or (B, rows, columns, d). down: any map d -> h; up: any map h -> d'. A mixture
        of adapters passes the projections of an expert here.
        """
        return self.scale * up(self.dropout(_act(self._convolved(_act(down(x))))))

    def _convolved(self, x: Tensor) -> Tensor:
        """Convolve the patches as an image; apply the kernel's middle alone to other tokens."""
        # x: (B, T, h), the patches last, or an image (B, rows, columns, h)
        if x.dim() == 4:  # a map, as of Swin
            return self._patches(x)
        if x.dim() != 3:  # single tokens, which lie on no grid
            return self._pixelwise(x)
        rows, columns = self._grid(x.shape[1])
        if not rows:  # no patches: the class token alone
            return self._pixelwise(x)
        # the tokens before the patches, such as the class token
        prefix = x.shape[1] - rows * columns
        patches = self._patches(x[:, prefix:].unflatten(1, (rows, columns))).flatten(1, 2)
        return torch.cat([self._pixelwise(x[:, :prefix]), patches], 1) if prefix else patches

    def _patches(self, x: Tensor) -> Tensor:
        """Convolve a grid of patches.  (B, rows, columns, h) -> the same shape."""
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def _pixelwise(self, x: Tensor) -> Tensor:
        """Apply only the kernel's middle weight to each token, as to an image of one pixel."""
        # around a single pixel there is padding alone: the rest of the kernel would add nothing
        middle = self.conv.weight[:, :, SIDE // 2, SIDE // 2]
        return F.linear(x, middle, self.conv.bias)

    def _grid(self, tokens: int) -> tuple[int, int]:
        """Return rows and columns of the patches among so many tokens; (0, 0) = no patches."""
        side = isqrt(tokens)
        if self.config.grid is None:
            return side, side
        rows, columns = self.config.grid
        if rows * columns <= tokens:
            return rows, columns
        if tokens == 1:  # the class token alone, where no other is read
            return 0, 0
        got, want = f"{tokens} tokens", f"{rows} x {columns} patches and what is before them"
        fix = "Set grid to that of the model at this size, or leave it out."
        raise ShapeError("grid of Convpass", got=got, want=want, fix=fix)


def _act(x: Tensor) -> Tensor:
    """Apply QuickGELU."""
    return x * torch.sigmoid(SLOPE * x)


CARD = Card(
    "convpass",
    kind="adapter",
    config=Convpass,
    paper=Paper(
        "2207.07039",
        2022,
        "Convolutional Bypasses Are Better Vision Transformer Adapters",
    ),
    tags=frozenset({"zero_start"}),
    tiny={"width": 4, "dropout": 0.0},
    summary="A small convolution over the patches, next to attention and MLP.",
    family="adapters",
    names=("Convolutional bypass",),
    exceptions={
        "trains_every_parameter": "three tokens hold one patch, which has no neighbour for the "
        "kernel's other entries"
    },
)
