"""Sparsey's macrocolumn: a memory that learns an item at once (arXiv:1710.07829)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Self, cast

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from ...core import Card, Paper
from ...core.checks import above, at_least, between
from ...core.errors import ConfigError, DataError
from ..saved import SavedEstimators
from .overlap import Array, adherence, basis_set_size, mean_overlap

LAMBDA, PHI = 26.0, -13.0  # of the sigmoid, which V in 0 ... 1 spans
FEW = 20  # items from which a collapse is told
COLLAPSED = 0.75  # distinct codes an item: what has fewer has collapsed
MEASURED = 1000  # items at most of which each pair is compared then
PAPER = Paper("1710.07829", 2017, "A Radically New Theory of how the Brain Represents and Computes")


def packed(bits: Array) -> Array:
    """Bits as bytes.  (..., D) bool -> (..., ceil(D / 8)) uint8."""
    return np.packbits(bits, axis=-1)


def hits(weights: Array, row: Array) -> Array:
    """u = W x: active inputs that a unit knows.  (..., B), (B,) -> (...)."""
    return np.bitwise_count(weights & row).sum(axis=-1, dtype=np.int64)


def seed_of(random_state: int | None) -> int:
    """A seed that can be saved: the one given, or one that is drawn.

    Raises: ConfigError for anything else, such as a RandomState.
    """
    if not (random_state is None or isinstance(random_state, (int, np.integer))):
        got, fix = type(random_state).__name__, "Pass random_state=0."
        raise ConfigError("random_state", got=got, want="a number or None", fix=fix)
    drawn = np.random.SeedSequence().entropy if random_state is None else random_state
    return int(cast(int, drawn)) % (1 << 63)


def scaled(reach: Array, baseline: float) -> Array:
    """V less what all items share, 0 ... 1."""
    return np.maximum(0, (reach - baseline) / (1 - baseline))


def draw(reach: Array, expansion: tuple[float, float], floor: float, seed: list[int]) -> Array:
    """Winners of a new item.  (Q, K) -> (Q,)."""
    a, b = expansion
    eta = a * reach.max(axis=1).mean() ** b  # of G
    psi = eta / (1 + np.exp(-(LAMBDA * reach + PHI))) + floor
    edges = psi.cumsum(axis=1)
    drawn = np.random.default_rng(seed).random((len(psi), 1)) * edges[:, -1:]
    return (drawn >= edges).sum(axis=1).clip(max=psi.shape[1] - 1)


def write(weights: Array, winners: Array, bits: Array, most: float) -> None:
    """Set the winners' weights from active bits, of units that know fewer than `most`; in place."""
    q = np.arange(len(weights))
    own = weights[q, winners]
    full = np.bitwise_count(own).sum(axis=1) >= most
    weights[q, winners] = np.where(full[:, None], own, own | bits)


class LearnedCodes(SavedEstimators):
    """What a mac has learned."""

    weights_: Array
    previous_: Array
    codes_: Array
    seed_: int
    n_items_: int
    n_active_: int
    n_features_in_: int


@dataclass(repr=False)
class Mac(LearnedCodes, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Q modules of K binary units; a code is one winner a module, and like items get like codes.

    Of a binary item x with A active bits: V = W x / A; G = mean_q max_k V, its familiarity;
    eta = a G^b; psi = eta / (1 + exp(-(26 V - 13))) + floor.  A new item's winners are drawn by
    psi / sum_k psi, and the winners' weights from active bits become 1: once, without a gradient.
    In retrieval the largest V wins.  Time and memory do not depend on how many items are stored.

    n_modules: Q; n_units: K; expansion: (a, b); floor: what an unknown unit counts; saturation: a
    unit with this share of its weights at 1 learns no more; baseline: the overlap v0 that all items
    have, V becomes (V - v0) / (1 - v0) and not less than 0; binarize: values above it are 1, None
    = the data are 0 and 1; random_state: a number, or None = another one each time.

    Fitted: weights_, bits of (Q, K, D) in bytes; codes_ (n, Q), winners of the last items learned;
    n_items_, and n_active_, their active bits in all.  `transform` gives codes as (n, Q K) zeros
    and ones.

    Raises: ConfigError for an impossible setting; DataError for data that are not binary, and for
    an item without an active bit.  Warns where items collapse into few codes, and says a cure.
    Source: arXiv:1710.07829; the equations as in Rinkus, Frontiers Comput. Neurosci. 4, 2010.
    Not for more than about Q items of this size: later items overwrite what earlier ones meant.
    """

    n_modules: int = 24
    n_units: int = 8
    expansion: tuple[float, float] = (1e4, 7.0)
    floor: float = 1.0
    saturation: float = 0.5
    baseline: float = 0.0
    binarize: float | None = None
    random_state: int | None = None

    def fit(self, X: Any, y: Any = None) -> Self:
        """Forget all and learn items (n, D) in an order drawn from random_state."""
        x = self._read(X, reset=True)
        self._begin(x.shape[1])
        order = np.random.default_rng([self.seed_, 0]).permutation(len(x))
        self._learn(x[order])
        self.codes_ = self.codes_[np.argsort(order)]
        self._tell(x)
        return self

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Learn items in their order, after those learned before.  (n, D), or one of (D,)."""
        first = "weights_" not in vars(self)
        x = self._read(_rows(X), reset=first)
        if first:
            self._begin(x.shape[1])
        self._learn(x)
        self._tell(x)
        return self

    def learn_sequence(self, X: Any) -> Self:
        """Learn items one after another; each code depends on the one before it, too.  (T, D)."""
        first = "weights_" not in vars(self)
        x = self._read(X, reset=first)
        if first:
            self._begin(x.shape[1])
        self._learn(x, chained=True)
        return self

    def code(self, X: Any) -> Array:
        """The winner of each module in retrieval.  (n, D) -> (n, Q)."""
        return self._reach(X).argmax(axis=2)

    def familiarity(self, X: Any) -> Array:
        """G: 1 for a stored item.  (n, D) -> (n,)."""
        return self._reach(X).max(axis=2).mean(axis=1)

    def recall(self, X: Any, active: int | None = None) -> Array:
        """The stored item that an item leads to: the bits that most winners know.  (n, D) -> (n, D)
        of 0 and 1.

        active: how many bits of each, None = as many as the items learned have, on average: a cue
        that lost some of its bits gets them back.  Raises: ConfigError.
        """
        check_is_fitted(self, "weights_")
        if active is None:
            active = self._usual_active()
        between("active", active, 1, self.n_features_in_, "Pass the active bits of an item.")
        return self._bits_of(self.code(X), active)

    def replay(self, X: Any, steps: int) -> Array:
        """The sequence that follows an item: it and what comes after.  (D,) -> (steps, D).

        Beyond the end of what was learned it goes on somewhere else.
        Raises: DataError where no sequence was learned.
        """
        at_least("steps", steps, 1)
        codes = [self.code(X)[0]]
        if steps > 1 and not self.previous_.any():
            got, want = "none", "two items of one, or more"
            raise DataError("sequence learned", got=got, want=want, fix="Call learn_sequence.")
        for _ in range(steps - 1):
            codes.append(hits(self.previous_, self._one_hot(codes[-1])).argmax(axis=1))
        return self._bits_of(np.array(codes), self._usual_active())

    def transform(self, X: Any) -> Array:
        """Codes as zeros and ones.  (n, D) -> (n, Q K)."""
        found = self._reach(X, rows=False).argmax(axis=2)
        return (found[:, :, None] == np.arange(self.n_units)).reshape(len(found), -1).astype(float)

    @property
    def _n_features_out(self) -> int:
        return self.n_modules * self.n_units

    def _begin(self, features: int) -> None:
        at_least("n_modules", self.n_modules, 1)
        at_least("n_units", self.n_units, 2)
        above("floor", self.floor, 0)
        between("saturation", self.saturation, 1e-9, 1)
        between("baseline", self.baseline, 0, 0.999)
        if np.shape(self.expansion) != (2,) or not all(one >= 0 for one in self.expansion):
            got, want = self.expansion, "(a, b), two numbers from 0 on"
            raise ConfigError("expansion", got=got, want=want, fix="Try (1e4, 7.0).")
        self.seed_ = seed_of(self.random_state)
        shape = self.n_modules, self.n_units
        self.weights_ = np.zeros((*shape, (features + 7) // 8), np.uint8)
        self.previous_ = np.zeros((*shape, (self.n_modules * self.n_units + 7) // 8), np.uint8)
        self.n_items_ = self.n_active_ = 0

    def _learn(self, x: Array, chained: bool = False) -> None:
        """Learn rows of bits; chained: a row's code is an input of the next one."""
        made = np.empty((len(x), self.n_modules), np.int64)
        before: Array | None = None
        for index, row in enumerate(x):
            bits = packed(row)
            reach = scaled(hits(self.weights_, bits) / row.sum(), self.baseline)
            if before is not None:  # channels that are there multiply
                reach = reach * (hits(self.previous_, before) / self.n_modules)
            seed = [self.seed_, self.n_items_ + 1]
            made[index] = draw(reach, self.expansion, self.floor, seed)
            write(self.weights_, made[index], bits, self.saturation * len(row))
            if before is not None:
                units = self.saturation * self.n_modules * self.n_units
                write(self.previous_, made[index], before, units)
            before = self._one_hot(made[index]) if chained else None
            self.n_items_ += 1
            self.n_active_ += int(row.sum())
        self.codes_ = made

    def _one_hot(self, winners: Array) -> Array:
        return packed((winners[:, None] == np.arange(self.n_units)).ravel())

    def _reach(self, X: Any, rows: bool = True) -> Array:
        """V of every unit.  (n, D) -> (n, Q, K)."""
        x = self._read(_rows(X) if rows else X)
        return np.stack(
            [scaled(hits(self.weights_, packed(r)) / r.sum(), self.baseline) for r in x]
        )

    def _usual_active(self) -> int:
        """Active bits of an item learned, on average."""
        return round(self.n_active_ / self.n_items_)

    def _bits_of(self, codes: Array, active: int) -> Array:
        """The `active` bits that most winners of a code know.  (n, Q) -> (n, D)."""
        q, width = np.arange(self.n_modules), self.n_features_in_
        bits = np.zeros((len(codes), width), np.int64)
        for row, winners in zip(bits, codes, strict=True):
            known = np.unpackbits(self.weights_[q, winners], axis=1, count=width).sum(
                axis=0, dtype=int
            )
            row[np.argsort(-known, kind="stable")[:active]] = 1
        return bits

    def _read(self, X: Any, reset: bool = False) -> Array:
        """Items as bits.  -> (n, D) bool."""
        if not reset:
            check_is_fitted(self, "weights_")
        x = cast(Array, validate_data(self, X, reset=reset, dtype=np.float64))
        if self.binarize is None and not np.isin(x, (0, 1)).all():
            got = f"values such as {x[~np.isin(x, (0, 1))][0]:.3g}"
            fix = "Pass binarize=0.5: values above it are 1."
            raise DataError("X", got=got, want="0 and 1", fix=fix)
        bits = x > (0.5 if self.binarize is None else self.binarize)
        if len(bad := np.flatnonzero(~bits.any(axis=1))):
            got = f"no active bit in {len(bad)} items, the first of them {bad[0]}"
            fix = "Leave such items out, or lower binarize."
            raise DataError("X", got=got, want="an active bit in each", fix=fix)
        return bits

    def _tell(self, x: Array) -> None:
        """Warn where different items got the same code."""
        items, seen = len(np.unique(x, axis=0)), self.codes_
        codes = basis_set_size(seen)
        if items < FEW or codes >= COLLAPSED * items:
            return
        if len(x) > MEASURED:  # in memory that does not grow with them
            some = np.random.default_rng([self.seed_, 0]).choice(len(x), MEASURED, replace=False)
            x, seen = x[some], seen[some]
        shared = mean_overlap(x)
        warnings.warn(
            f"{items} different items got {codes} codes (adherence {adherence(x, seen):.2f})"
            f": they share {shared:.0%} of their bits on average, and recall says nothing. Make "
            f"them sparser, or set baseline={min(0.95, round((1 + shared) / 2, 2)):g}.",
            stacklevel=3,
        )


def _rows(X: Any) -> Any:
    """One item as a row."""
    return [X] if np.ndim(X) == 1 else X


CARD = Card(
    "mac",
    kind="model",
    config=Mac,
    paper=PAPER,
    tiny={"n_modules": 4, "n_units": 3, "binarize": -1e6, "random_state": 0},
    summary="A memory of sparse binary codes that learns an item at once and in fixed time.",
    family="memories",
    names=("Sparsey", "Sparsey macrocolumn"),
)
