"""Hierarchies of macs over the parts of a picture (arXiv:1710.07829)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self, cast

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from ...core import Card
from ...core.errors import ConfigError, DataError, ShapeError
from ...core.schema import check, setting
from ...models.saved import SavedEstimators
from .mac import PAPER, active_inputs, draw, learn_item, pack_bits, seed_of, subtract_baseline
from .overlap import Array

EXPANSION, FLOOR, SATURATION = (1e4, 7.0), 1.0, 0.5  # as a mac's defaults


class LearnedNet(SavedEstimators):
    """Fitted attributes of a net."""

    seed_: int
    n_items_: int
    codes_: Array


@dataclass(repr=False)
class SparseyNet(LearnedNet, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Net of macs on a grid over a binary picture; upper levels have macs over the codes below.

    The inputs of a mac lie within `radius` of its place, in pixels on the first level and in macs
    above. It is active only if at least `least` of its inputs are; an inactive mac has no code.

    Fitted: weights_0_, weights_1_, ..., bits of (macs, Q, K, inputs) of each level in bytes;
    codes_ (n, macs Q), winners of the last level in learning, -1 where a mac is inactive;
    n_items_.  `transform` gives the codes of all levels as zeros and ones.

    Raises: ConfigError for an impossible setting; ShapeError for pictures of another size;
    DataError for values other than 0 and 1.
    Source: arXiv:1710.07829.
    Not for pictures other than thin lines: code overlap is then not informative.
    """

    shape: tuple[int, int] = setting(
        (28, 28), "The height and the width of the picture, in pixels."
    )
    grid: tuple[int, ...] = setting(
        (5,), "The macs on a side, of each level.", least=1, fix="For example: grid=(5, 2)."
    )
    radius: float = setting(
        4.0,
        "The distance within which a mac has inputs, in pixels, and above the first level in macs.",
        above=0,
        fix="Try 4.",
    )
    least: int = setting(2, "The inputs that are active at least where a mac is.", least=1)
    n_modules: int = setting(24, "The number Q of modules of a mac.", least=1)
    n_units: int = setting(8, "The number K of units of a module.", least=2)
    baseline: float = setting(
        0.0, "The overlap v0 that all items of a mac have, see `Mac`.", least=0, most=0.999
    )
    random_state: int | None = setting(
        None, "The seed of the draws; None = another one each time.", fix="Pass random_state=0."
    )

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn pictures from scratch, in an order drawn from random_state.

        X: (n, height * width), zeros and ones; y: unused, scikit-learn's pipelines pass it.
        """
        x = self._read(X, reset=True)
        self._check()
        self.seed_, self.n_items_ = seed_of(self.random_state), 0
        size = x.shape[1]
        for level, side in enumerate(self.grid):
            shape = side * side, self.n_modules, self.n_units, (size + 7) // 8
            setattr(self, f"weights_{level}_", np.zeros(shape, np.uint8))
            size = side * side * self.n_modules * self.n_units
        # a random order, after which codes are put back in the order of the pictures
        order = np.random.default_rng([self.seed_, 0]).permutation(len(x))
        codes = np.stack([self._codes_of(x[i], learn=True)[-1] for i in order])
        self.codes_ = codes[np.argsort(order)].reshape(len(x), -1)
        return self

    def code(self, X: Any) -> Array:
        """Return the last level's winners in retrieval, (n, macs Q), -1 where a mac is inactive.

        X: (n, height * width).
        """
        codes = [self._codes_of(row, learn=False)[-1] for row in self._read(X)]
        return np.stack(codes).reshape(len(codes), -1)

    def transform(self, X: Any) -> Array:
        """Return codes of all levels as zeros and ones.  X: (n, height * width) -> (n, units)."""
        by_picture = [self._codes_of(row, learn=False) for row in self._read(X)]
        rows = [np.concatenate([self._bits(codes) for codes in levels]) for levels in by_picture]
        return np.stack(rows).astype(float)

    @property
    def _n_features_out(self) -> int:
        return sum(side * side for side in self.grid) * self.n_modules * self.n_units

    def _codes_of(self, row: Array, learn: bool) -> list[Array]:
        """Compute the codes of one picture, for each level the numbers of winners, (macs, Q)."""
        levels, below = [], row
        for level in range(len(self.grid)):
            weights, fields = getattr(self, f"weights_{level}_"), self._fields(level)
            codes = np.full((len(weights), self.n_modules), -1)
            for mac, (mac_weights, field) in enumerate(zip(weights, fields, strict=True)):
                inputs = below & field
                # too little input: the mac stays inactive, and its code -1
                if inputs.sum() < self.least:
                    continue
                bits = pack_bits(inputs)
                evidence = subtract_baseline(
                    active_inputs(mac_weights, bits) / inputs.sum(), self.baseline
                )
                if learn:
                    seed = [self.seed_, self.n_items_ + 1, level, mac]
                    codes[mac] = draw(evidence, EXPANSION, FLOOR, seed)
                    learn_item(mac_weights, codes[mac], bits, SATURATION * field.sum())
                else:
                    codes[mac] = evidence.argmax(axis=1)
            levels.append(codes)
            # the units of this level are the inputs of the next
            below = self._bits(codes)
        self.n_items_ += learn
        return levels

    def _bits(self, codes: Array) -> Array:
        """Convert winners to bits of units.  (macs, Q) -> (macs Q K,) bool."""
        return (codes[:, :, None] == np.arange(self.n_units)).ravel()

    def _fields(self, level: int) -> Array:
        """Return which inputs within `radius` each mac of a level sees, (macs, inputs) bool."""
        side = self.grid[level]
        shape = self.shape if level == 0 else (self.grid[level - 1],) * 2
        places = [np.arange(length) for length in shape]
        centres = [(np.arange(side) + 0.5) * length / side - 0.5 for length in shape]
        # squared distances of centres and inputs, by axis and then in the plane
        near = [np.square(c[:, None] - p) for c, p in zip(centres, places, strict=True)]
        far = near[0][:, None, :, None] + near[1][None, :, None, :]  # (side, side, H, W)
        within = (far <= self.radius**2).reshape(side * side, -1)
        return within if level == 0 else within.repeat(self.n_modules * self.n_units, axis=1)

    def _check(self) -> None:
        """Raise ConfigError for an impossible setting, or a mac (group of units) without inputs."""
        check(self)
        if not self.grid:
            raise ConfigError("grid", got="none", want="one level", fix="For example: grid=(5, 2).")
        for level in range(len(self.grid)):
            # a mac without inputs would never be active
            if not self._fields(level).any(axis=1).all():
                got = f"{self.radius} with grid={self.grid}"
                want, fix = "one with which every mac sees something", "Raise radius."
                raise ConfigError("radius", got=got, want=want, fix=fix)

    def _read(self, X: Any, reset: bool = False) -> Array:
        """Validate pictures, and convert them to bits.  Raises: ShapeError, DataError."""
        if not reset:
            check_is_fitted(self, "weights_0_")
        x = cast(Array, validate_data(self, X, reset=reset, dtype=np.float64))
        if x.shape[1] != self.shape[0] * self.shape[1]:
            got, want = f"{x.shape[1]} values", f"{self.shape[0]} x {self.shape[1]}"
            side = math.isqrt(x.shape[1])
            is_square = side**2 == x.shape[1]
            fix = f"Set shape=({side}, {side})." if is_square else "Set shape=(height, width)."
            raise ShapeError("picture", got=got, want=want, fix=fix)
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
