"""Sparsey's macrocolumn (mac): a memory that learns an item in one step (arXiv:1710.07829)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Self, cast

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from ...core import Card, Paper
from ...core.checks import at_least, between
from ...core.errors import ConfigError, DataError
from ...core.schema import check, setting
from ...models.saved import SavedEstimators
from .overlap import Array, adherence, basis_set_size, mean_overlap

LAMBDA, PHI = 26.0, -13.0  # slope and offset of the sigmoid over V in 0 ... 1
FEW = 20  # items from which `_warn_of_collapse` checks
COLLAPSED = 0.75  # distinct codes an item: fewer are a collapse
MEASURED = 1000  # items at most that are compared in pairs
PAPER = Paper("1710.07829", 2017, "A Radically New Theory of how the Brain Represents and Computes")


def pack_bits(bits: Array) -> Array:
    """Pack bits into bytes.  (..., D) bool -> (..., ceil(D / 8)) uint8."""
    return np.packbits(bits, axis=-1)


def active_inputs(weights: Array, row: Array) -> Array:
    """Count how many active inputs each unit has weight 1 for, u = W x with W and x of bits.

    weights: (..., B), the bits of W packed into B bytes for each unit; row: (B,) bytes, the bits of
      x.  -> (...), a count for each unit.
    """
    return np.bitwise_count(weights & row).sum(axis=-1, dtype=np.int64)


def seed_of(random_state: int | None) -> int:
    """Return a seed that can be saved: `random_state`, or a random one for None."""
    # entropy of the system for None; the seed is stored, so that a saved mac continues alike
    drawn = np.random.SeedSequence().entropy if random_state is None else random_state
    return int(cast(int, drawn)) % (1 << 63)


def subtract_baseline(evidence: Array, baseline: float) -> Array:
    """Correct evidence for the overlap that all items share: (V - v0) / (1 - v0), at least 0.

    evidence: V, any shape; baseline: v0, the share of bits that two different items have in common.
    """
    return np.maximum(0, (evidence - baseline) / (1 - baseline))


def draw(evidence: Array, expansion: tuple[float, float], floor: float, seed: list[int]) -> Array:
    """Draw the winning unit of each module for a new item; the more evidence, the more probable.

    A unit's probability is psi / sum psi, psi a sigmoid of its evidence V plus a floor. The
    sigmoid is the higher, the more familiar the item is: a G^b, G the mean of the modules' largest
    evidence.
    evidence: V of each unit, (Q, K), Q modules of K units; expansion: (a, b); floor: psi of a unit
      without evidence. Returns the number of the winner in each module, (Q,).
    """
    a, b = expansion
    eta = a * evidence.max(axis=1).mean() ** b  # a G^b: the more familiar, the steeper
    psi = eta / (1 + np.exp(-(LAMBDA * evidence + PHI))) + floor
    # one draw for each module by its cumulated psi
    edges = psi.cumsum(axis=1)
    drawn = np.random.default_rng(seed).random((len(psi), 1)) * edges[:, -1:]
    return (drawn >= edges).sum(axis=1).clip(max=psi.shape[1] - 1)


def learn_item(weights: Array, winners: Array, bits: Array, limit: float) -> None:
    """Let the winning units learn an item: their weights from its active bits become 1, in place.

    weights: (Q, K, B), the bits of weights packed into B bytes, for K units in each of Q modules;
    winners: (Q,), the winning unit of each module; bits: (B,) bytes of the item; limit: a unit with
    so many weights at 1 learns no more.
    """
    q = np.arange(len(weights))
    # a saturated unit is frozen: it would soon respond to everything
    present = weights[q, winners]
    full = np.bitwise_count(present).sum(axis=1) >= limit
    weights[q, winners] = np.where(full[:, None], present, present | bits)


class LearnedCodes(SavedEstimators):
    """Fitted attributes of a mac."""

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

    Fitted: weights_, bits of (Q, K, D) in bytes; codes_ (n, Q), winners of the last items learned;
    n_items_, and n_active_, their active bits in all.  `transform` gives codes as (n, Q K) zeros
    and ones.

    Raises: ConfigError for an impossible setting; DataError for data that are not binary, and for
    an item without an active bit.  Warns where items collapse into few codes, and suggests a cure.
    Source: arXiv:1710.07829; the equations as in Rinkus, Frontiers Comput. Neurosci. 4, 2010.
    Not for more than about Q items of this size: later items overwrite what earlier ones meant.
    """

    n_modules: int = setting(24, "The number Q of modules.", least=1)
    n_units: int = setting(8, "The number K of units of a module.", least=2)
    expansion: tuple[float, float] = setting(
        (1e4, 7.0),
        "The factor and the power (a, b) of eta = a G^b.",
        least=0,
        fix="Try (1e4, 7.0).",
    )
    floor: float = setting(1.0, "The evidence psi that a unit has without any.", above=0)
    saturation: float = setting(
        0.5,
        "The share of a unit's weights at 1 from which on it learns no more.",
        least=1e-9,
        most=1,
    )
    baseline: float = setting(
        0.0,
        "The overlap v0 that all items have; V becomes (V - v0) / (1 - v0), and not less than 0.",
        least=0,
        most=0.999,
    )
    binarize: float | None = setting(
        None, "The threshold above which a value is 1; None = the data are 0 and 1."
    )
    random_state: int | None = setting(
        None, "The seed of the draws; None = another one each time.", fix="Pass random_state=0."
    )

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn items from scratch, in an order drawn from random_state.

        X: (n, D), zeros and ones; y: unused, scikit-learn's pipelines pass it.
        """
        # a random order, after which codes are put back in the order of the items
        x = self._read(X, reset=True)
        self._begin(x.shape[1])
        order = np.random.default_rng([self.seed_, 0]).permutation(len(x))
        self._learn(x[order])
        self.codes_ = self.codes_[np.argsort(order)]
        self._warn_of_collapse(x)
        return self

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Learn more items in their order.

        X: (n, D), or one item (D,); y: unused, scikit-learn's pipelines pass it.
        """
        first = "weights_" not in vars(self)
        x = self._read(_rows(X), reset=first)
        if first:
            self._begin(x.shape[1])
        self._learn(x)
        self._warn_of_collapse(x)
        return self

    def learn_sequence(self, X: Any) -> Self:
        """Learn a sequence of items; each code depends on the one before it, too.  X: (T, D)."""
        first = "weights_" not in vars(self)
        x = self._read(X, reset=first)
        if first:
            self._begin(x.shape[1])
        self._learn(x, chained=True)
        return self

    def code(self, X: Any) -> Array:
        """Return the winner of each module in retrieval.  (n, D) -> (n, Q)."""
        return self._evidence(X).argmax(axis=2)

    def familiarity(self, X: Any) -> Array:
        """Return the familiarity G, which is 1 for a stored item.  (n, D) -> (n,)."""
        return self._evidence(X).max(axis=2).mean(axis=1)

    def recall(self, X: Any, active: int | None = None) -> Array:
        """Recall the stored item that a cue leads to: the bits that most winners have learned.

        X: cues, (n, D) -> (n, D) of 0 and 1; active: number of bits of each result, None = the mean
          number of the learned items, so that a cue that lost some bits gets them back.  Raises:
          ConfigError.
        """
        check_is_fitted(self, "weights_")
        if active is None:
            active = self._usual_active()
        between("active", active, 1, self.n_features_in_, "Pass the active bits of an item.")
        return self._bits_of(self.code(X), active)

    def replay(self, X: Any, steps: int) -> Array:
        """Replay the learned sequence from an item on.

        X: the item, (D,); steps: the number of items to return.  -> (steps, D). Beyond the end of
          the learned sequence the result is arbitrary.
        Raises: DataError where no sequence was learned.
        """
        at_least("steps", steps, 1)
        codes = [self.code(X)[0]]
        if steps > 1 and not self.previous_.any():
            got, want = "none", "two items of one, or more"
            raise DataError("sequence learned", got=got, want=want, fix="Call learn_sequence.")
        for _ in range(steps - 1):
            # the next code: the units with most connections from the present one
            codes.append(active_inputs(self.previous_, self._one_hot(codes[-1])).argmax(axis=1))
        return self._bits_of(np.array(codes), self._usual_active())

    def transform(self, X: Any) -> Array:
        """Return codes as zeros and ones, 1 = the unit that won.  X: (n, D) -> (n, Q K)."""
        winners = self._evidence(X, rows=False).argmax(axis=2)
        return (
            (winners[:, :, None] == np.arange(self.n_units)).reshape(len(winners), -1).astype(float)
        )

    @property
    def _n_features_out(self) -> int:
        return self.n_modules * self.n_units

    def _begin(self, features: int) -> None:
        """Check the settings, and create empty weights for items of some number of bits."""
        check(self)
        if len(self.expansion) != 2:
            got, want = self.expansion, "(a, b), two numbers from 0 on"
            raise ConfigError("expansion", got=got, want=want, fix="Try (1e4, 7.0).")
        self.seed_ = seed_of(self.random_state)
        shape = self.n_modules, self.n_units
        # weights are 0 or 1: eight in a byte
        self.weights_ = np.zeros((*shape, (features + 7) // 8), np.uint8)
        self.previous_ = np.zeros((*shape, (self.n_modules * self.n_units + 7) // 8), np.uint8)
        self.n_items_ = self.n_active_ = 0

    def _learn(self, x: Array, chained: bool = False) -> None:
        """Learn items (n, D) one by one; chained: a row's code is an input of the next one."""
        # the algorithm of one item: V, then the winners, then their weights
        codes = np.empty((len(x), self.n_modules), np.int64)
        before: Array | None = None
        for index, row in enumerate(x):
            bits = pack_bits(row)
            evidence = subtract_baseline(
                active_inputs(self.weights_, bits) / row.sum(), self.baseline
            )
            if before is not None:  # evidence from the item and from the code before multiplies
                evidence = evidence * (active_inputs(self.previous_, before) / self.n_modules)
            # a seed for each item, so that learning in parts equals learning at once
            seed = [self.seed_, self.n_items_ + 1]
            codes[index] = draw(evidence, self.expansion, self.floor, seed)
            learn_item(self.weights_, codes[index], bits, self.saturation * len(row))
            if before is not None:
                # weights from the code before have a limit of their own, a share of all units
                units = self.saturation * self.n_modules * self.n_units
                learn_item(self.previous_, codes[index], before, units)
            before = self._one_hot(codes[index]) if chained else None
            self.n_items_ += 1
            self.n_active_ += int(row.sum())
        self.codes_ = codes

    def _one_hot(self, winners: Array) -> Array:
        """Return a code as packed bits of all units.  (Q,) -> bytes."""
        return pack_bits((winners[:, None] == np.arange(self.n_units)).ravel())

    def _evidence(self, X: Any, rows: bool = True) -> Array:
        """Compute the evidence V of every unit, (n, Q, K).  rows: let one item (D,) be a row."""
        # without `rows` a single item is refused, as scikit-learn wants it of `transform`
        x = self._read(_rows(X) if rows else X)
        return np.stack(
            [
                subtract_baseline(
                    active_inputs(self.weights_, pack_bits(r)) / r.sum(), self.baseline
                )
                for r in x
            ]
        )

    def _usual_active(self) -> int:
        """Return the mean number of active bits of the learned items, rounded."""
        return round(self.n_active_ / self.n_items_)

    def _bits_of(self, codes: Array, active: int) -> Array:
        """Return the bits that most winners of a code (n, Q) have learned, (n, D)."""
        q, width = np.arange(self.n_modules), self.n_features_in_
        bits = np.zeros((len(codes), width), np.int64)
        for row, winners in zip(bits, codes, strict=True):
            votes = np.unpackbits(self.weights_[q, winners], axis=1, count=width).sum(
                axis=0, dtype=int
            )
            # the bits with most votes; ties go to lower indices
            row[np.argsort(-votes, kind="stable")[:active]] = 1
        return bits

    def _read(self, X: Any, reset: bool = False) -> Array:
        """Validate items and convert them to bits, (n, D) bool.  Raises: DataError."""
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

    def _warn_of_collapse(self, x: Array) -> None:
        """Warn where many different items got the same code, and suggest a baseline."""
        items, winners = len(np.unique(x, axis=0)), self.codes_
        codes = basis_set_size(winners)
        if items < FEW or codes >= COLLAPSED * items:
            return
        if len(x) > MEASURED:  # a sample, so that memory does not grow with the items
            sample = np.random.default_rng([self.seed_, 0]).choice(len(x), MEASURED, replace=False)
            x, winners = x[sample], winners[sample]
        # the cure: a baseline half way from the mean overlap, which all items share, to 1; evidence
        # counts only above it
        shared = mean_overlap(x)
        warnings.warn(
            f"{items} different items got {codes} codes (adherence {adherence(x, winners):.2f})"
            f": they share {shared:.0%} of their bits on average, and recall says nothing. Make "
            f"them sparser, or set baseline={min(0.95, round((1 + shared) / 2, 2)):g}.",
            stacklevel=3,
        )


def _rows(X: Any) -> Any:
    """Return a single item (D,) as a row (1, D), and rows as they are."""
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
