"""Macs over the parts of a picture, in levels (arXiv:1710.07829)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self, cast

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from ...core import Card
from ...core.checks import above, at_least, between
from ...core.errors import ConfigError, DataError, ShapeError
from ..saved import SavedEstimators
from .mac import PAPER, draw, hits, packed, scaled, seed_of, write
from .overlap import Array

EXPANSION, FLOOR, SATURATION = (1e4, 7.0), 1.0, 0.5  # as a mac's defaults


class LearnedNet(SavedEstimators):
    """What a net has learned."""

    seed_: int
    n_items_: int
    codes_: Array


@dataclass(repr=False)
class SparseyNet(LearnedNet, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Macs on a grid over a binary picture; an upper level has macs over the codes below.

    A mac sees what lies within `radius` of its place, in px on the first level and in macs above.
    It acts only where at least `least` of its inputs are active; one that does not act has no code.

    shape: (height, width) of the picture; grid: macs on a side, of each level; n_modules, n_units,
    baseline: of each mac, see `Mac`; random_state: a number, or None.

    Fitted: weights_0_, weights_1_, ..., bits of (macs, Q, K, inputs) of each level in bytes;
    codes_ (n, macs Q), winners of the last level in learning, -1 where a mac does not act;
    n_items_.  `transform` gives the codes of all levels as zeros and ones.

    Raises: ConfigError for an impossible setting; ShapeError for pictures of another size;
    DataError for values other than 0 and 1.
    Source: arXiv:1710.07829.
    Not for pictures that are not thin lines: code overlap then says little.
    """

    shape: tuple[int, int] = (28, 28)
    grid: tuple[int, ...] = (5,)
    radius: float = 4.0
    least: int = 2
    n_modules: int = 24
    n_units: int = 8
    baseline: float = 0.0
    random_state: int | None = None

    def fit(self, X: Any, y: Any = None) -> Self:
        """Forget all and learn pictures (n, height * width) in an order drawn from random_state."""
        x = self._read(X, reset=True)
        self._check()
        self.seed_, self.n_items_ = seed_of(self.random_state), 0
        size = x.shape[1]
        for level, side in enumerate(self.grid):
            shape = side * side, self.n_modules, self.n_units, (size + 7) // 8
            setattr(self, f"weights_{level}_", np.zeros(shape, np.uint8))
            size = side * side * self.n_modules * self.n_units
        order = np.random.default_rng([self.seed_, 0]).permutation(len(x))
        codes = np.stack([self._one(x[i], learn=True)[-1] for i in order])
        self.codes_ = codes[np.argsort(order)].reshape(len(x), -1)
        return self

    def code(self, X: Any) -> Array:
        """Winners of the last level in retrieval, -1 where a mac does not act.  -> (n, macs Q)."""
        found = [self._one(row, learn=False)[-1] for row in self._read(X)]
        return np.stack(found).reshape(len(found), -1)

    def transform(self, X: Any) -> Array:
        """Codes of all levels as zeros and ones.  (n, height * width) -> (n, units)."""
        found = [self._one(row, learn=False) for row in self._read(X)]
        rows = [np.concatenate([self._bits(codes) for codes in levels]) for levels in found]
        return np.stack(rows).astype(float)

    @property
    def _n_features_out(self) -> int:
        return sum(side * side for side in self.grid) * self.n_modules * self.n_units

    def _one(self, row: Array, learn: bool) -> list[Array]:
        """The codes of each level, (macs, Q), -1 where a mac does not act."""
        found, below = [], row
        for level in range(len(self.grid)):
            weights, fields = getattr(self, f"weights_{level}_"), self._fields(level)
            codes = np.full((len(weights), self.n_modules), -1)
            for mac, (own, field) in enumerate(zip(weights, fields, strict=True)):
                seen = below & field
                if seen.sum() < self.least:
                    continue
                bits = packed(seen)
                reach = scaled(hits(own, bits) / seen.sum(), self.baseline)
                if learn:
                    seed = [self.seed_, self.n_items_ + 1, level, mac]
                    codes[mac] = draw(reach, EXPANSION, FLOOR, seed)
                    write(own, codes[mac], bits, SATURATION * field.sum())
                else:
                    codes[mac] = reach.argmax(axis=1)
            found.append(codes)
            below = self._bits(codes)
        self.n_items_ += learn
        return found

    def _bits(self, codes: Array) -> Array:
        """(macs, Q) winners -> (macs Q K,) bool."""
        return (codes[:, :, None] == np.arange(self.n_units)).ravel()

    def _fields(self, level: int) -> Array:
        """What each mac sees.  -> (macs, inputs) bool."""
        side = self.grid[level]
        shape = self.shape if level == 0 else (self.grid[level - 1],) * 2
        places = [np.arange(length) for length in shape]
        centres = [(np.arange(side) + 0.5) * length / side - 0.5 for length in shape]
        near = [np.square(c[:, None] - p) for c, p in zip(centres, places, strict=True)]
        far = near[0][:, None, :, None] + near[1][None, :, None, :]  # (side, side, H, W)
        seen = (far <= self.radius**2).reshape(side * side, -1)
        return seen if level == 0 else seen.repeat(self.n_modules * self.n_units, axis=1)

    def _check(self) -> None:
        for what in ("n_modules", "least"):
            at_least(what, getattr(self, what), 1)
        at_least("n_units", self.n_units, 2)
        above("radius", self.radius, 0, "Try 4.")
        for side in (*self.grid, len(self.grid)):
            at_least("macs on a side of grid", side, 1, "For example: grid=(5, 2).")
        between("baseline", self.baseline, 0, 0.999)
        for level in range(len(self.grid)):
            if not self._fields(level).any(axis=1).all():
                got = f"{self.radius} with grid={self.grid}"
                want, fix = "one with which every mac sees something", "Raise radius."
                raise ConfigError("radius", got=got, want=want, fix=fix)

    def _read(self, X: Any, reset: bool = False) -> Array:
        if not reset:
            check_is_fitted(self, "weights_0_")
        x = cast(Array, validate_data(self, X, reset=reset, dtype=np.float64))
        if x.shape[1] != self.shape[0] * self.shape[1]:
            got, want = f"{x.shape[1]} values", f"{self.shape[0]} x {self.shape[1]}"
            raise ShapeError("picture", got=got, want=want, fix="Set shape=(height, width).")
        if not np.isin(x, (0, 1)).all():
            got, fix = f"values up to {x.max():.3g}", "Pass X > threshold."
            raise DataError("X", got=got, want="0 and 1", fix=fix)
        return x > 0


CARD = Card(
    "sparsey_net",
    kind="model",
    config=SparseyNet,
    paper=PAPER,
    tiny={"shape": (4, 4), "grid": (2, 1), "radius": 2.0, "n_modules": 3, "n_units": 3},
    summary="Macs over the parts of a binary picture, in levels.",
    family="memories",
    names=("Sparsey hierarchy",),
    exceptions={"is_an_estimator": "its pictures are binary and all of one size"},
)
