"""EM with a falling temperature, which all models of causes share (arXiv:1908.06843)."""

from __future__ import annotations

import abc
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, cast

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from ...core.checks import at_least
from ...core.errors import CheckpointError, ConfigError, DataError, IntarsiaError
from ..saved import SavedEstimators
from .pictures import tiles
from .samples import Samples, block_of, moments
from .shards import ALONE, RowShards
from .states import Array, States

At = dict[str, Array]  # the parameters of a model: "W" (H, D) its components, "noise" sigma^2
Progress = Callable[[int, int, float], None]
RESEED_UNTIL = 0.8  # of the run: what follows is EM alone
CELLS = 1 << 18  # numbers of a block's largest array: it stays in the cache


class Joint(NamedTuple):
    """log p(y | s) (n, S) and log p(s), of the states of `States`; candidates (n, H').

    parts: what the model's M-step reads again.
    """

    likelihood: Array
    prior: Array
    candidates: Array
    parts: Any = None


class Posterior(NamedTuple):
    """States of each sample (n, k, H), the likeliest first, and their probabilities (n, k)."""

    states: Array
    probabilities: Array


class Causes(SavedEstimators):
    """What `fit` finds, of every model."""

    components_: Array
    usage_: Array
    n_features_in_: int


@dataclass(repr=False)
class Annealed(Causes, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator, abc.ABC):
    """EM over the states of a sample: the base of sparse coding (`Truncated`) and of mixtures.

    See `BSC` for the settings.
    """

    n_components: int = 16
    n_iter: int = 100
    temperature: float = 4.0
    reseed: bool = True
    random_state: int | np.random.RandomState | None = None

    _cooled: ClassVar[float] = 0.8  # share of the run at which the temperature is 1
    _missing: ClassVar[bool] = True  # NaN = a missing value
    # parameter -> fitted attribute
    _fitted: ClassVar[Mapping[str, str]] = {
        "W": "components_",
        "noise": "noise_variance_",
        "prior": "prior_",
    }

    # what a model is

    @abc.abstractmethod
    def _start(self, mean: Array, spread: float, random: np.random.RandomState) -> At: ...

    @abc.abstractmethod
    def _states(self) -> States: ...

    @abc.abstractmethod
    def _joint(self, at: At, block: Samples, states: States, heat: float = 1.0) -> Joint: ...

    @abc.abstractmethod
    def _sums(
        self, at: At, block: Samples, joint: Joint, q: Array, states: States, heat: float
    ) -> At: ...

    @abc.abstractmethod
    def _maximise(self, at: At, sums: At) -> At: ...

    @abc.abstractmethod
    def _code(self, at: At, joint: Joint, q: Array, states: States) -> Array: ...

    def _means(self, at: At, block: Samples, joint: Joint, q: Array, states: States) -> Array:
        """The posterior mean of the data without noise.  -> (n, D)."""
        return self._code(at, joint, q, states) @ at["W"]

    def _cells(self, states: States) -> int:
        """Numbers that the largest array of `_joint` and `_sums` has for one sample."""
        return len(states.table) + states.width**2 + self.n_components * len(states.values)

    def _reborn(self, at: At, atom: int, row: Array, residual: Array) -> None:
        """Give an atom that nothing uses to a sample, in place.  row, residual: (D,)."""
        at["W"][atom] = residual

    # what users call

    def fit(
        self, X: Any, y: Any = None, *, shards: RowShards = ALONE, progress: Progress | None = None
    ) -> Self:
        """Fit X (n, D); NaN = a missing value.

        shards: `intarsia.train.DataShards()` where each process that torchrun or accelerate started
        passes rows of its own, and all get the parameters of all rows; progress: called with
        (step, steps, mean log evidence).
        Raises: ConfigError for an impossible setting; DataError for constant data, a row or column
        without values, and fewer samples than components.
        """
        x = self._read(X, first=True, least=1 if shards.count > 1 else 2)
        self._check(shards)
        states = self._states()
        data = block_of(x, bool(shards.sum(np.array(float(np.isnan(x).any())))))
        count = shards.sum(np.array(float(len(x))))
        mean, spread = moments(data, shards)
        if count < self.n_components:
            got = f"{int(count)} samples for n_components={self.n_components}"
            fix = "Lower n_components, or give more samples."
            raise DataError("X", got=got, want="a sample for each component, or more", fix=fix)
        random = check_random_state(self.random_state)
        at = self._start(mean, spread, random)
        found: list[float] = []
        self.reseeded_ = 0
        for step in range(self.n_iter):
            at, evidence = self._step(at, data, states, shards, step)
            found.append(evidence)
            if progress is not None:
                progress(step + 1, self.n_iter, evidence)
        for name, attribute in self._fitted.items():
            setattr(self, attribute, at[name])
        self.evidences_ = np.array(found)
        self.n_iter_ = self.n_iter
        if not np.isfinite(found[-1]):
            warnings.warn("the evidence is not finite", ConvergenceWarning, stacklevel=2)
        return self

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """What `save` wrote.

        Raises: CheckpointError for a folder of something else, or arrays that do not fit together.
        """
        found = super().load(folder)
        try:
            with np.errstate(all="ignore"):
                found.transform(np.zeros((1, found.n_features_in_)))
        except IntarsiaError:
            raise
        except Exception as error:  # numpy has many for arrays of wrong shapes
            want, fix = "arrays of one model", "Copy it again, or fit and save anew."
            raise CheckpointError(f"folder {folder}", got=error, want=want, fix=fix) from error
        return found

    def transform(self, X: Any) -> Array:
        """The posterior mean of the code; NaN = a missing value.  (n, D) -> (n, H)."""
        return self._each(X, self._code_of)

    def inverse_transform(self, X: Any) -> Array:
        """Data of codes, without noise.  (n, H) -> (n, D)."""
        check_is_fitted(self)
        codes = np.asarray(X, dtype=np.float64)
        if codes.ndim != 2 or codes.shape[1] != len(self.components_):
            want = f"(n, {len(self.components_)})"
            raise DataError("codes", got=codes.shape, want=want, fix="Pass what transform gave.")
        return self._decode(codes)

    def score_samples(self, X: Any) -> Array:
        """log p(y) of each sample over its states, in nats; a lower bound.  (n, D) -> (n,)."""
        return self._each(X, lambda at, block, joint, q, states: self._weigh(joint, 1.0)[1])

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of `score_samples`."""
        return float(self.score_samples(X).mean())

    def posterior(self, X: Any, n_states: int = 10) -> Posterior:
        """The likeliest states of each sample and their probabilities among all its states."""
        at_least("n_states", n_states, 1)

        def top(at: At, block: Samples, joint: Joint, q: Array, states: States) -> Array:
            best = np.argsort(-q, axis=1, kind="stable")[:, :n_states]
            rows = states.rows(best, joint.candidates, len(at["W"]))
            shares = np.take_along_axis(q, best, axis=1)
            return np.concatenate([rows, shares[:, :, None]], axis=2)

        found = self._each(X, top)
        return Posterior(found[:, :, :-1], found[:, :, -1])

    def denoise(self, X: Any) -> Array:
        """The posterior mean of the data without noise.  (n, D) -> (n, D)."""
        return self._each(X, self._means)

    def inpaint(self, X: Any) -> Array:
        """X with the posterior mean where a value is missing (NaN).  (n, D) -> (n, D)."""
        x = self._read(X)
        return np.where(np.isnan(x), self.denoise(x), x)

    def plot_components(self, path: str | Path | None = None, shape: tuple[int, int] | None = None):
        """The components as tiles, those that are on most often first; a Pillow picture.

        path: a PNG to write; shape: of a tile, (height, width), if it is no square.
        """
        check_is_fitted(self)
        order = np.argsort(-self.usage_, kind="stable")
        return tiles(self.components_[order], path, shape)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self._missing
        tags.transformer_tags.preserves_dtype = ["float64"]
        return tags

    # how it is done

    @property
    def _anneals_prior(self) -> bool:
        """Whether the temperature divides log p(s), too."""
        return False

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def _decode(self, codes: Array) -> Array:
        return codes @ self.components_

    def _code_of(self, at: At, block: Samples, joint: Joint, q: Array, states: States) -> Array:
        return self._code(at, joint, q, states)

    def _read(self, X: Any, first: bool = False, least: int = 1) -> Array:
        if not first:
            check_is_fitted(self)
        x = validate_data(
            self,
            X,
            reset=first,
            dtype=np.float64,
            ensure_all_finite="allow-nan" if self._missing else True,
            ensure_min_samples=least,
        )
        x = cast(Array, x)
        if len(bad := np.flatnonzero(np.isnan(x).all(axis=1))):
            got = f"no value in {len(bad)} rows, the first of them {bad[0]}"
            raise DataError("X", got=got, want="a value in each row", fix="Leave such rows out.")
        return x

    def _check(self, shards: RowShards) -> None:
        at_least("n_components", self.n_components, 1)
        at_least("n_iter", self.n_iter, 1)
        at_least("temperature", self.temperature, 1)
        if shards.count > 1 and not isinstance(self.random_state, int):
            got, fix = self.random_state, "Pass random_state=0."
            raise ConfigError("random_state", got=got, want="one number for all processes", fix=fix)

    @property
    def cooled_at(self) -> int:
        """The step from which the temperature is 1: evidences before it do not compare."""
        return math.ceil(self._cooled * self.n_iter)

    def _heat(self, step: int) -> float:
        """The temperature, which falls in a straight line to 1."""
        share = step / max(1.0, self._cooled * self.n_iter)
        return max(1.0, self.temperature - (self.temperature - 1) * share)

    def _blocks(self, data: Samples, states: States) -> Iterator[tuple[slice, Samples]]:
        size = max(1, min(4096, CELLS // self._cells(states)))
        for start in range(0, len(data.x), size):
            rows = slice(start, start + size)
            yield rows, data.take(rows)

    def _weigh(self, joint: Joint, heat: float) -> tuple[Array, Array]:
        """Probabilities of a sample's states at a temperature, (n, S), and its log evidence, (n,).

        log q = log p(y | s) / T + log p(s), or with all of it over T, less the evidence.
        """
        log = joint.likelihood / heat
        log += joint.prior / heat if self._anneals_prior else joint.prior
        most = log.max(axis=1, keepdims=True)
        log -= most
        q = np.exp(log, out=log)
        total = q.sum(axis=1, keepdims=True)
        q /= total
        return q, (most + np.log(total))[:, 0]

    def _step(
        self, at: At, data: Samples, states: States, shards: RowShards, step: int
    ) -> tuple[At, float]:
        """One EM step: parameters, and the mean log evidence before it, at its temperature."""
        heat, cut = self._heat(step), self._cut(at, step)
        evidence, kept = np.empty(len(data.x)), slice(None)
        if cut > 0:  # eq. 16: samples that more causes explain than a state has are left out
            for rows, block in self._blocks(data, states):
                evidence[rows] = self._weigh(self._joint(at, block, states, heat), heat)[1]
            every = np.sort(shards.gather(evidence))
            kept = np.flatnonzero(evidence >= every[min(int(len(every) * cut), len(every) - 2)])
        used = data.take(kept)
        sums, evidence[kept] = self._add_up(at, used, states, heat)
        if not len(used.x):  # all of this process's: it takes part with zeros
            sums = self._add_up(at, data.take(slice(1)), states, heat)[0]
            sums = {name: np.zeros_like(value) for name, value in sums.items()}
        sums["samples"] = np.array(float(len(used.x)))
        sums["evidence"] = np.array([evidence.sum(), len(evidence)])
        sums = {name: shards.sum(value) for name, value in sorted(sums.items())}
        after = self._maximise(at, sums)
        self.usage_ = sums["usage"] / sums["samples"]
        if self.reseed and step < RESEED_UNTIL * self.n_iter - 1:
            self._revive(after, sums, data, evidence, states, shards)
        total, count = sums["evidence"]
        return after, float(total / count)

    def _add_up(self, at: At, data: Samples, states: States, heat: float) -> tuple[At, Array]:
        """Statistics of samples for the M-step, and the log evidence of each."""
        sums, evidence = At(), np.empty(len(data.x))
        for rows, block in self._blocks(data, states):
            joint = self._joint(at, block, states, heat)
            q, evidence[rows] = self._weigh(joint, heat)
            own = self._sums(at, block, joint, q, states, heat)
            sums = {name: sums.get(name, 0.0) + value for name, value in own.items()}
        return sums, evidence

    def _cut(self, at: At, step: int) -> float:
        """The share of samples that a step leaves out."""
        return 0.0

    def _revive(
        self, at: At, sums: At, data: Samples, evidence: Array, states: States, shards: RowShards
    ) -> None:
        """Give atoms that no sample uses to the samples that are explained worst, in place."""
        dead = np.flatnonzero(sums["usage"] < 0.5)
        if not len(dead):
            return
        worst = np.argsort(evidence, kind="stable")[: len(dead)]
        block = data.take(worst)
        joint = self._joint(at, block, states)
        off = block.x - self._means(at, block, joint, self._weigh(joint, 1.0)[0], states)
        if block.seen is not None:
            off = off * block.seen
        rows = np.column_stack([evidence[worst], block.x, off])
        rows = shards.gather(rows)
        rows = rows[np.argsort(rows[:, 0], kind="stable")]
        for atom, row in zip(dead, rows, strict=False):
            x, residual = np.split(row[1:], 2)
            self._reborn(at, int(atom), x, residual)
            self.reseeded_ += 1

    def _each(self, X: Any, of: Callable[[At, Samples, Joint, Array, States], Array]) -> Array:
        """A figure of each sample, block by block."""
        x = self._read(X)
        at = {name: np.asarray(getattr(self, a)) for name, a in self._fitted.items()}
        states = self._states()
        made = []
        for _, block in self._blocks(block_of(x, bool(np.isnan(x).any())), states):
            joint = self._joint(at, block, states)
            made.append(of(at, block, joint, self._weigh(joint, 1.0)[0], states))
        return np.concatenate(made)
