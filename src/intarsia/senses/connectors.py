"""Connectors: from what a frozen encoder gives to vectors that a language model reads as tokens."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import ConfigError, ShapeError

BY = ("mlp", "queries")


@dataclass(frozen=True)
class AskedTokens:
    """Question about each of P pictures: token embeddings of its row, and which of them ask.

    embeds: (P, T, d); mask: (P, T) bool, True for tokens of the question.
    """

    embeds: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Vectors:
    """Output of a connector: vectors that the language model reads, in the order of their places.

    rows: (N, d), of all pictures one after the other; counts: (P,) int64, vectors of each picture;
    keep: (N,) bool, False = not to be read; None = all are read.  chosen: for pages that show which
    vectors were selected.
    """

    rows: Tensor
    counts: Tensor
    keep: Tensor | None = None
    chosen: Tensor | None = None


class Connector(nn.Module, abc.ABC):
    """Module that makes the vectors of one modality."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.width, self.outputs = width, outputs

    @abc.abstractmethod
    def count(self, views: int) -> int:
        """Return how many vectors a picture of so many views, or a sound, becomes."""

    @abc.abstractmethod
    def forward(self, features: Tensor, views: Tensor, asked: AskedTokens | None) -> Vectors:
        """Make vectors.  features: (all views, vectors, width); views: (P,) of each picture."""

    def describe(self, views: int) -> str:
        """Describe in words what a picture of `views` views becomes; "" where all are one view."""
        return ""

    def check(self, features: Tensor) -> None:
        """Check the shape of an encoder's features, (views, n, width).  Raises: ShapeError."""
        if features.dim() != 3 or features.shape[-1] != self.width:
            got = f"features of shape {tuple(features.shape)}"
            fix = "Use the encoder that the connector was made for."
            raise ShapeError("connector", got=got, want=f"(views, n, {self.width})", fix=fix)


class Projector(nn.Module):
    """MLP y = W_2 gelu(W_1 norm(x)), as LLaVA-1.5's but for the norm.

    x: (..., width) -> (..., outputs).
    The norm is ours: features of encoders differ in their scale by a factor of a hundred.
    """

    def __init__(self, width: int, outputs: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = draw_linear(width, outputs, generator)
        self.outer = draw_linear(outputs, outputs, generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(F.gelu(self.inner(self.norm(x.to(self.inner.weight.dtype)))))


class Resampler(nn.Module):
    """Cross-attention in which `count` learned queries read n vectors.  (P, n, w) -> (P, count, w).

    Sine and cosine positions are added to queries and keys, in two dimensions where both numbers
    are squares: the queries' positions are whole numbers, and their table is resized to the keys.
    Layer norms on queries, on the vectors that are read and on the result; heads of width 128.
    Source: Qwen-VL's and SliME's resampler (arXiv:2406.08487, released code).
    """

    def __init__(self, width: int, count: int, *, generator: torch.Generator) -> None:
        """Draw the queries (count, width) and the projections of the attention."""
        super().__init__()
        # heads of 128 channels, or the nearest number that divides the width
        self.heads = next(h for h in range(max(1, width // 128), 0, -1) if width % h == 0)
        self.queries = nn.Parameter(torch.empty(count, width))
        nn.init.trunc_normal_(self.queries, std=0.02, generator=generator)
        self.q, self.k, self.v, self.o = (draw_linear(width, width, generator) for _ in range(4))
        self.norm_q, self.norm_kv, self.norm_o = (nn.LayerNorm(width, eps=1e-6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Let the queries read (P, n, w) by cross-attention; return (P, count, w)."""
        # 1. positions on queries and keys, as in the released code
        x = self.norm_kv(x.to(self.q.weight.dtype))
        place_q, place_k = (p.to(x) for p in positions(len(self.queries), *x.shape[1:]))
        query = (self.norm_q(self.queries) + place_q).expand(len(x), -1, -1)
        q, k, v = self.q(query), self.k(x + place_k), self.v(x)
        # 2. one cross-attention, 3. output projection and norm
        parts = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(*parts)  # (P, heads, count, w / heads)
        return self.norm_o(self.o(mixed.transpose(1, 2).flatten(2)))


def positions(queries: int, keys: int, width: int) -> tuple[Tensor, Tensor]:
    """Return position encodings of queries and keys, of sines and cosines.

    If both numbers are squares, places are columns and rows of a grid, each encoded in half of the
    width; else they are numbers in a row. The keys have the queries' table, resized as a picture
    is.
    Returns (queries, width), (keys, width).
    """
    side, key_side = math.isqrt(queries), math.isqrt(keys)
    if side * side != queries or key_side * key_side != keys:
        table = _sines_and_cosines(torch.arange(queries), width)
        resized = F.interpolate(table.T[None], size=keys, mode="linear")[0].T
        return table, resized
    # half of the channels have the column, the others the row
    half, line = width // 2, torch.arange(side)
    column, row = _sines_and_cosines(line, half), _sines_and_cosines(line, width - half)
    table = torch.cat([column.repeat(side, 1), row.repeat_interleave(side, 0)], -1)
    # the keys are a finer grid over the same picture
    grid = table.T.reshape(1, width, side, side)
    return table, F.interpolate(grid, size=(key_side, key_side), mode="bicubic").flatten(2)[0].T


def _sines_and_cosines(place: Tensor, width: int) -> Tensor:
    """Return sines, then cosines, of wavelengths from 2 pi to 2 pi 10,000: (n,) -> (n, width)."""
    half = -(-width // 2)
    angle = place[:, None] * 10_000 ** -(torch.arange(half) / half)
    return torch.cat([angle.sin(), angle.cos()], -1)[:, :width]


def draw_linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """Build a linear layer with random weights: U(-v, v), v = inputs^-1/2, and biases of 0."""
    # without torch's own draw, which would use the global generator
    layer = cast(nn.Linear, nn.utils.skip_init(nn.Linear, inputs, outputs))
    bound = inputs**-0.5
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


class PlainConnector(Connector):
    """Connector that gives each picture or sound `vectors` vectors, by averages or by queries.

    by: "mlp", averages over neighbours and then the projector (LLaVA); "queries", the resampler and
    then the projector.  reads: number of the encoder's vectors; grid: they are a square of patches.

    Raises: ConfigError where averages of neighbours cannot make so many vectors.
    """

    def __init__(
        self,
        width: int,
        outputs: int,
        *,
        reads: int,
        vectors: int,
        by: str,
        grid: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__(width, outputs)
        self.vectors, self.grid = vectors, grid
        if by == "mlp":
            check_pooled(reads, vectors, grid)
        self.resampler = Resampler(width, vectors, generator=generator) if by == "queries" else None
        self.projector = Projector(width, outputs, generator=generator)

    def count(self, views: int) -> int:
        return self.vectors * views

    def forward(self, features: Tensor, views: Tensor, asked: AskedTokens | None) -> Vectors:
        """Compute the vectors of pictures or sounds that the language model reads."""
        self.check(features)
        x = features.to(self.projector.inner.weight.dtype)
        # both ways leave `vectors` rows for each view, in the encoder's width
        x = pooled(x, self.vectors, self.grid) if self.resampler is None else self.resampler(x)
        return Vectors(self.projector(x).flatten(0, 1), views * self.vectors)


def pooled(x: Tensor, vectors: int, grid: bool) -> Tensor:
    """Average neighbouring vectors: (P, n, w) -> (P, vectors, w).

    grid: the n vectors are a square of patches, otherwise a row in time.
    """
    if x.shape[1] == vectors:
        return x
    rows = x.transpose(1, 2)
    if not grid:
        # sounds: neighbours in time
        return F.adaptive_avg_pool1d(rows, vectors).transpose(1, 2)
    side, new_side = math.isqrt(x.shape[1]), math.isqrt(vectors)
    return (
        F.adaptive_avg_pool2d(rows.unflatten(2, (side, side)), new_side).flatten(2).transpose(1, 2)
    )


def check_pooled(reads: int, vectors: int, grid: bool) -> None:
    """Check that averaging neighbours can turn `reads` vectors into `vectors`.

    grid: they are a square of patches, so that `vectors` must be a square number.
    Raises: ConfigError.
    """
    side = math.isqrt(vectors)
    if not 1 <= vectors <= reads or (grid and side * side != vectors):
        want = f"a square number up to {reads}" if grid else f"1 ... {reads}"
        fix = "Try 16, or by='queries', which makes any number."
        raise ConfigError("vectors", got=vectors, want=want, fix=fix)
