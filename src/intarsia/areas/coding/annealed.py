"""EM with a falling temperature, the base of all sparse coding models (arXiv:1908.06843)."""

from __future__ import annotations

import abc
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from ...core.checks import at_least
from ...core.errors import CheckpointError, ConfigError, DataError, IntarsiaError
from ...core.schema import check, setting
from ...models.saved import SavedEstimators
from .pictures import tiles
from .samples import Samples, block_of, moments
from .shards import ALONE, RowShards
from .states import Array, Joint, Posterior, States

Params = dict[str, Array]  # of a model, such as "W" (H, D) components and "noise" sigma^2
Progress = Callable[[int, int, float], None]
RESEED_UNTIL = 0.8  # share of the run after which no component is given to another sample
BLOCK_NUMBERS = 1 << 18  # of a block's largest array, so that it stays in the CPU's cache


class FittedComponents(SavedEstimators):
    """Fitted attributes that every model has: components W (H, D), and how often each is used."""

    components_: Array
    usage_: Array
    n_features_in_: int


@dataclass(repr=False)
class Annealed(
    FittedComponents, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator, abc.ABC
):
    """Estimator by annealed EM over states: base of sparse coding (`Truncated`) and mixtures."""

    n_components: int = setting(16, "The number H of components.", least=1)
    n_iter: int = setting(100, "The number of EM steps.", least=1)
    temperature: float = setting(
        4.0,
        "The temperature T at the start, which divides the log-likelihood and falls to 1 in the "
        "first 80 % of the steps.",
        least=1,
    )
    reseed: bool = setting(
        True, "Restart a component that no sample uses at the sample that is explained worst."
    )
    random_state: int | np.random.RandomState | None = setting(
        None, "The seed of the start, or a RandomState; None = another start each time."
    )

    _cooled: ClassVar[float] = 0.8  # share of the run at which the temperature reaches 1
    _missing: ClassVar[bool] = True  # whether NaN may mark missing values
    # parameter -> fitted attribute
    _fitted: ClassVar[Mapping[str, str]] = {
        "W": "components_",
        "noise": "noise_variance_",
        "prior": "prior_",
    }

    # the model: what each subclass defines

    @abc.abstractmethod
    def _start(self, mean: Array, spread: float, random: np.random.RandomState) -> Params:
        """Draw initial parameters.  mean: (D,) of the data."""

    @abc.abstractmethod
    def _states(self) -> States:
        """Build the states that the posterior ranges over."""

    @abc.abstractmethod
    def _joint(
        self, params: Params, block: Samples, states: States, temperature: float = 1.0
    ) -> Joint:
        """Compute log p(y | s) and log p(s) of each sample y and state s, a set of components."""

    @abc.abstractmethod
    def _sums(
        self,
        params: Params,
        block: Samples,
        joint: Joint,
        q: Array,
        states: States,
        temperature: float,
    ) -> Params:
        """Sum the statistics of the M-step over a block; q: (n, S), each state's probability."""

    @abc.abstractmethod
    def _maximise(self, params: Params, sums: Params) -> Params:
        """Do the M-step: return the parameters that maximise the expected log-likelihood."""

    @abc.abstractmethod
    def _code(self, params: Params, joint: Joint, q: Array, states: States) -> Array:
        """Return the posterior mean of the code, (n, H): how much each component is on."""

    def _means(
        self, params: Params, block: Samples, joint: Joint, q: Array, states: States
    ) -> Array:
        """Compute the posterior mean of the data without noise, (n, D)."""
        return self._code(params, joint, q, states) @ params["W"]

    def _block_numbers(self, states: States) -> int:
        """Return the size for one sample of the largest array of `_joint` and `_sums`."""
        return len(states.table) + states.width**2 + self.n_components * len(states.values)

    def _restart(self, params: Params, atom: int, row: Array, residual: Array) -> None:
        """Restart a component that is not used at the unexplained part of a sample, in place."""
        params["W"][atom] = residual

    # the estimator: what users call

    def fit(
        self, X: Any, y: Any = None, *, shards: RowShards = ALONE, progress: Progress | None = None
    ) -> Self:
        """Fit the model to data by EM, with a temperature that falls to 1.

        X: (n, D); NaN = a missing value; y: unused, scikit-learn's pipelines pass it; shards:
          `intarsia.train.DataShards()` where each process that torchrun or accelerate started
          passes rows of its own, and all get the parameters of all rows; progress: called with
          (step, steps, mean log evidence).
        Raises: ConfigError for an impossible setting; DataError for constant data, a row or column
          without values, and fewer samples than components.
        """
        x = self._read(X, first=True, least=1 if shards.count > 1 else 2)
        self._check(shards)
        # missing values in any process make all of them use masks
        states = self._states()
        data = block_of(x, bool(shards.sum(np.array(float(np.isnan(x).any())))))
        count = shards.sum(np.array(float(len(x))))
        mean, spread = moments(data, shards)
        if count < self.n_components:
            got = f"{int(count)} samples for n_components={self.n_components}"
            fix = "Lower n_components, or give more samples."
            raise DataError("X", got=got, want="a sample for each component, or more", fix=fix)
        random = check_random_state(self.random_state)
        params = self._start(mean, spread, random)
        evidences: list[float] = []
        self.reseeded_ = 0
        for step in range(self.n_iter):
            params, evidence = self._step(params, data, states, shards, step)
            evidences.append(evidence)
            if progress is not None:
                progress(step + 1, self.n_iter, evidence)
        # scikit-learn's fitted attributes end in an underscore
        for name, attribute in self._fitted.items():
            setattr(self, attribute, params[name])
        self.evidences_ = np.array(evidences)
        self.n_iter_ = self.n_iter
        if not np.isfinite(evidences[-1]):
            warnings.warn("the evidence is not finite", ConvergenceWarning, stacklevel=2)
        return self

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Load what `save` wrote.  Raises: CheckpointError for other kinds, or bad arrays."""
        model = super().load(folder)
        try:
            with np.errstate(all="ignore"):
                model.transform(np.zeros((1, model.n_features_in_)))
        except IntarsiaError:
            raise
        except Exception as error:  # numpy has many for arrays of wrong shapes
            want, fix = "arrays of one model", "Copy it again, or fit and save anew."
            raise CheckpointError(f"folder {folder}", got=error, want=want, fix=fix) from error
        return model

    def transform(self, X: Any) -> Array:
        """Return the posterior mean of the code.  X: (n, D), NaN = missing value -> (n, H)."""
        return self._per_sample(X, self._code_of)

    def inverse_transform(self, X: Any) -> Array:
        """Return the data of codes, without noise.  X: codes, (n, H) -> (n, D)."""
        check_is_fitted(self)
        codes = np.asarray(X, dtype=np.float64)
        if codes.ndim != 2 or codes.shape[1] != len(self.components_):
            want = f"(n, {len(self.components_)})"
            raise DataError("codes", got=codes.shape, want=want, fix="Pass what transform gave.")
        return self._decode(codes)

    def score_samples(self, X: Any) -> Array:
        """Compute a lower bound of each sample's log p(y), in nats.  X: (n, D) -> (n,)."""
        return self._per_sample(
            X, lambda params, block, joint, q, states: self._e_step(joint, 1.0)[1]
        )

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean of `score_samples`."""
        return float(self.score_samples(X).mean())

    def posterior(self, X: Any, n_states: int = 10) -> Posterior:
        """Return each sample's most probable states, with their probabilities.  X: (n, D)."""
        at_least("n_states", n_states, 1)

        def top(params: Params, block: Samples, joint: Joint, q: Array, states: States) -> Array:
            """Return each sample's most probable states with probabilities, (n, k, H + 1).

            q: (n, S), the probability of each state.
            """
            best = np.argsort(-q, axis=1, kind="stable")[:, :n_states]
            rows = states.rows(best, joint.candidates, len(params["W"]))
            # the probability is put behind the H numbers of a state, so that one array holds both
            shares = np.take_along_axis(q, best, axis=1)
            return np.concatenate([rows, shares[:, :, None]], axis=2)

        by_sample = self._per_sample(X, top)
        return Posterior(by_sample[:, :, :-1], by_sample[:, :, -1])

    def denoise(self, X: Any) -> Array:
        """Return the posterior mean of the data without noise.  (n, D) -> (n, D)."""
        return self._per_sample(X, self._means)

    def inpaint(self, X: Any) -> Array:
        """Replace missing values (NaN) by their posterior mean.  (n, D) -> (n, D)."""
        x = self._read(X)
        return np.where(np.isnan(x), self.denoise(x), x)

    def plot_components(self, path: str | Path | None = None, shape: tuple[int, int] | None = None):
        """Draw the components as tiles of a Pillow picture, the most used first.

        path: a PNG to write, None = none; shape: of a tile, (height, width), a square by default.
        """
        check_is_fitted(self)
        order = np.argsort(-self.usage_, kind="stable")
        return tiles(self.components_[order], path, shape)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self._missing
        tags.transformer_tags.preserves_dtype = ["float64"]
        return tags

    # the algorithm: EM with a falling temperature

    @property
    def _anneals_prior(self) -> bool:
        """Flag whether the temperature divides log p(s) as well as log p(y | s)."""
        return False

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def _decode(self, codes: Array) -> Array:
        return codes @ self.components_

    def _code_of(
        self, params: Params, block: Samples, joint: Joint, q: Array, states: States
    ) -> Array:
        """Return the posterior mean of the code, (n, H), by `_code`."""
        return self._code(params, joint, q, states)

    def _read(self, X: Any, first: bool = False, least: int = 1) -> Array:
        """Validate data as scikit-learn does, and return them as float64.  X: (n, D)."""
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
        # a row without any value says nothing of its causes
        if len(bad := np.flatnonzero(np.isnan(x).all(axis=1))):
            got = f"no value in {len(bad)} rows, the first of them {bad[0]}"
            raise DataError("X", got=got, want="a value in each row", fix="Leave such rows out.")
        return x

    def _check(self, shards: RowShards) -> None:
        """Raise ConfigError for an impossible setting, or shards without a common random_state."""
        check(self)
        if shards.count > 1 and not isinstance(self.random_state, int):
            got, fix = self.random_state, "Pass random_state=0."
            raise ConfigError("random_state", got=got, want="one number for all processes", fix=fix)

    @property
    def cooled_at(self) -> int:
        """Step from which the temperature is 1; only evidences from it on are comparable."""
        return math.ceil(self._cooled * self.n_iter)

    def _temperature(self, step: int) -> float:
        """Return the temperature of a step, which falls linearly to 1."""
        share = step / max(1.0, self._cooled * self.n_iter)
        return max(1.0, self.temperature - (self.temperature - 1) * share)

    def _blocks(self, data: Samples, states: States) -> Iterator[tuple[slice, Samples]]:
        """Yield consecutive samples in blocks with arrays that fit into the cache."""
        # as many samples at a time as their largest array fits
        size = max(1, min(4096, BLOCK_NUMBERS // self._block_numbers(states)))
        for start in range(0, len(data.x), size):
            rows = slice(start, start + size)
            yield rows, data.take(rows)

    def _e_step(self, joint: Joint, temperature: float) -> tuple[Array, Array]:
        """Compute the posterior q of each sample's states, (n, S), and its log evidence, (n,)."""
        log = joint.likelihood / temperature
        log += joint.prior / temperature if self._anneals_prior else joint.prior
        largest = log.max(axis=1, keepdims=True)
        # subtract the largest before exp: log-sum-exp without overflow
        log -= largest
        q = np.exp(log, out=log)
        total = q.sum(axis=1, keepdims=True)
        q /= total
        return q, (largest + np.log(total))[:, 0]

    def _step(
        self, params: Params, data: Samples, states: States, shards: RowShards, step: int
    ) -> tuple[Params, float]:
        """Do an EM step; return the parameters and the mean log evidence before it."""
        temperature, cut = self._temperature(step), self._cut(params, step)
        evidence, selected = np.empty(len(data.x)), slice(None)
        if cut > 0:  # eq. 16: samples that more causes explain than a state has are left out
            for rows, block in self._blocks(data, states):
                evidence[rows] = self._e_step(
                    self._joint(params, block, states, temperature), temperature
                )[1]
            all_evidences = np.sort(shards.gather(evidence))
            selected = np.flatnonzero(
                evidence
                >= all_evidences[min(int(len(all_evidences) * cut), len(all_evidences) - 2)]
            )
        used = data.take(selected)
        # E-step: sums over this process's samples
        sums, evidence[selected] = self._add_up(params, used, states, temperature)
        if not len(used.x):  # all of its samples were left out: contribute zeros
            sums = self._add_up(params, data.take(slice(1)), states, temperature)[0]
            sums = {name: np.zeros_like(value) for name, value in sums.items()}
        sums["samples"] = np.array(float(len(used.x)))
        sums["evidence"] = np.array([evidence.sum(), len(evidence)])
        sums = {name: shards.sum(value) for name, value in sorted(sums.items())}
        # M-step, on the sums of all processes, so that all get the same parameters
        after = self._maximise(params, sums)
        self.usage_ = sums["usage"] / sums["samples"]
        # restarts disturb convergence, so that the last steps have none
        if self.reseed and step < RESEED_UNTIL * self.n_iter - 1:
            self._restart_unused(after, sums, data, evidence, states, shards)
        total, count = sums["evidence"]
        return after, float(total / count)

    def _add_up(
        self, params: Params, data: Samples, states: States, temperature: float
    ) -> tuple[Params, Array]:
        """Return the M-step's sums over this process's n samples, and their log-evidence, (n,)."""
        sums, evidence = Params(), np.empty(len(data.x))
        for rows, block in self._blocks(data, states):
            joint = self._joint(params, block, states, temperature)
            q, evidence[rows] = self._e_step(joint, temperature)
            of_block = self._sums(params, block, joint, q, states, temperature)
            sums = {name: sums.get(name, 0.0) + value for name, value in of_block.items()}
        return sums, evidence

    def _cut(self, params: Params, step: int) -> float:
        """Return the share of samples that a step leaves out; here none."""
        return 0.0

    def _restart_unused(
        self,
        params: Params,
        sums: Params,
        data: Samples,
        evidence: Array,
        states: States,
        shards: RowShards,
    ) -> None:
        """Restart components that no sample uses at the samples explained worst, in place."""
        dead = np.flatnonzero(sums["usage"] < 0.5)
        if not len(dead):
            return
        # every process offers its worst samples; the worst of all are chosen
        worst = np.argsort(evidence, kind="stable")[: len(dead)]
        block = data.take(worst)
        joint = self._joint(params, block, states)
        # the part of the worst samples that the present model does not explain
        off = block.x - self._means(params, block, joint, self._e_step(joint, 1.0)[0], states)
        if block.observed is not None:
            off = off * block.observed
        rows = np.column_stack([evidence[worst], block.x, off])
        rows = shards.gather(rows)
        rows = rows[np.argsort(rows[:, 0], kind="stable")]
        for atom, row in zip(dead, rows, strict=False):
            x, residual = np.split(row[1:], 2)
            self._restart(params, int(atom), x, residual)
            self.reseeded_ += 1

    def _per_sample(
        self, X: Any, compute: Callable[[Params, Samples, Joint, Array, States], Array]
    ) -> Array:
        x = self._read(X)
        params = {name: np.asarray(getattr(self, a)) for name, a in self._fitted.items()}
        states = self._states()
        results = []
        for _, block in self._blocks(block_of(x, bool(np.isnan(x).any())), states):
            joint = self._joint(params, block, states)
            results.append(compute(params, block, joint, self._e_step(joint, 1.0)[0], states))
        return np.concatenate(results)
