"""A few bits for each weight, by the quantiles of a normal distribution (arXiv:2307.16867)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..core import Card, Format, Paper
from ..core.errors import ConfigError
from ..core.schema import check, setting
from .bits import pack_bits, unpack_bits

CODEBOOKS = ("median", "lloyd")
ROUNDS = 500
EPS = 1e-5


@dataclass(frozen=True)
class Gaussian(Format):
    """w = q(z) std + mean with z = (W - mean) / (std + 1e-5); q: to the nearest of 2^b levels.

    mean, std: of all entries of W, the std with n - 1, as released.
    Stored: the codes, b bits each, one after the other, and mean and std in float32.

    Not for sparse weights: no level is 0, and a mask is refused.
    Raises: ConfigError on a setting that is none of these; ShapeError where bytes do not fit.
    Source: paper, section 3.3.  A constant tensor is kept as its mean.
    """

    bits: int = setting(1, "The bits b of a code.", least=1, most=8, fix="Try 1, 2 or 4.")
    codebook: str = setting(
        "median",
        'The levels for N(0, 1), the same for every tensor: "median" (the paper: each level the '
        'median of the values that fall to it; 1 bit: +-0.6745) or "lloyd" (their mean; '
        "+-0.7979).",
        choices=CODEBOOKS,
    )

    def __post_init__(self) -> None:
        check(self)

    def quantise(self, weight: Tensor) -> Tensor:
        """Return the weight rounded to 2^b levels, for training: gradients ignore the rounding.

        weight: any shape. The levels are those for a normal distribution with the weight's mean and
        standard deviation, through which gradients pass. Computed in float32 at least.
        """
        w = weight if weight.dtype == torch.float64 else weight.float()
        mean, std = _moments(w)
        z = (w - mean) / (std + EPS)
        q = self._levels(z)[self._codes(z)] + (z - z.detach())  # adds nothing but the gradient
        return (q * std + mean).to(weight.dtype)

    def encode(
        self, weight: Tensor, keep: Tensor | None = None, moments: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Round each entry to one of 2^b levels, and encode the level's number in b bits.

        Returns "codes" (ceil(n b / 8),) uint8, of n entries, and "moments" (2,) float32: mean,
        standard deviation. Raises: ConfigError for a mask: no level is 0.
        """
        if keep is not None:
            fix = "Use Bitmask, or encode the weight without a mask."
            raise ConfigError("keep", got="a mask", want="None: no level is 0", fix=fix)
        w = weight.detach().float()
        mean, std = _moments(w)
        codes = self._codes((w - mean) / (std + EPS)).flatten()
        return {"codes": pack_bits(codes, self.bits), "moments": torch.stack([mean, std])}

    def decode(self, stored: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        """Return the encoded weight in float32."""
        mean, std = stored["moments"]
        codes = unpack_bits(stored["codes"], self.bits, math.prod(shape))
        # the level of each code, moved and scaled to the weight's distribution
        return (self._levels(mean)[codes] * std + mean).view(*shape)

    def size(self, shape: Sequence[int]) -> int:
        """Return the bytes of any tensor of that shape: here they do not depend on the data."""
        return -(-math.prod(shape) * self.bits // 8) + 8

    def _levels(self, like: Tensor) -> Tensor:
        """Return the 2^b levels in the dtype and on the device of `like`."""
        return like.new_tensor(codebook(self.bits, self.codebook)[0])

    def _codes(self, z: Tensor) -> Tensor:
        """Return the number of the nearest level for each standardised weight z."""
        # the nearest level: thresholds lie half-way between levels
        return torch.bucketize(z.detach(), z.new_tensor(codebook(self.bits, self.codebook)[1]))


def _moments(w: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of all entries, 0 for none."""
    if not w.numel():
        return w.new_zeros(()), w.new_zeros(())
    return w.mean(), w.std(correction=int(w.numel() > 1))  # a single entry has a spread, too: 0


@lru_cache
def codebook(bits: int, kind: str = "median") -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the 2^b levels to which normal numbers are rounded, and the thresholds between them.

    bits: b. kind: "median" (each level is the median of the numbers that are rounded to it) or
    "lloyd" (their mean). Both are sorted; the numbers are distributed as N(0, 1).
    """
    count = 2**bits
    share = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    levels = torch.special.ndtri(share)
    for _ in range(ROUNDS):
        # Lloyd's iteration: cut half-way between levels, then move each to the middle of its cell
        cuts = (levels[1:] + levels[:-1]) / 2
        ends = torch.cat([cuts.new_tensor([-math.inf]), cuts, cuts.new_tensor([math.inf])])
        below = torch.special.ndtr(ends)
        if kind == "median":
            levels = torch.special.ndtri((below[1:] + below[:-1]) / 2)
        else:
            density = torch.exp(-ends.square() / 2) / math.sqrt(2 * math.pi)
            levels = (density[:-1] - density[1:]) / below.diff()
        levels = (levels - levels.flip(0)) / 2  # symmetric to the last digit
    return tuple(levels.tolist()), tuple(((levels[1:] + levels[:-1]) / 2).tolist())


CARD = Card(
    "gaussian",
    kind="format",
    config=Gaussian,
    paper=Paper(
        "2307.16867",
        2023,
        "Revisiting the Parameter Efficiency of Adapters from the Perspective "
        "of Precision Redundancy",
    ),
    summary="A few bits for each weight, by the quantiles of a normal distribution.",
    family="quantised",
    exceptions={"keeps_shape_and_dtype": "it decodes to float32, in which its moments are"},
)
