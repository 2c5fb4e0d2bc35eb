"""Linear sparse coding with discrete causes: BSC, TSC, DSC (arXiv:1908.06843, section 2)."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np

from ...core import Card, Paper
from ...core.errors import ConfigError
from ...core.schema import setting
from .annealed import Params
from .samples import Samples
from .states import Array, Joint, States
from .truncated import Truncated

coding = partial(
    Card,
    kind="model",
    paper=Paper("1908.06843", 2019, "ProSper -- A Python Library for Probabilistic Sparse Coding"),
    tiny={"n_components": 2, "n_iter": 8, "random_state": 0},
    family="sparse coding",
)


def linear_start(mean: Array, spread: float, atoms: int, random: np.random.RandomState) -> Params:
    """Draw the first components W = mean + N(0, sd / 4), and set sigma^2 to the mean variance.

    mean: (D,) of the data.
    """
    noise = random.standard_normal((atoms, len(mean))) * spread / 4
    return {"W": mean + noise, "noise": np.array(spread**2)}


class Projections(NamedTuple):
    """Products of samples y and components W.

    fit: W y, (n, H); norm: sum_d W_hd^2, (n, H) or (H,); power: ||y||^2, (n,). Sums are over the
    observed values.
    """

    fit: Array
    norm: Array
    power: Array


def project(params: Params, block: Samples) -> Projections:
    """Compute the products of samples and components that log p(y | s) is made of.

    params: "W" (H, D) is read; block: n samples y.
    """
    w = params["W"]
    norm = np.square(w).sum(1) if block.observed is None else block.observed @ np.square(w).T
    return Projections(block.x @ w.T, norm, np.square(block.x).sum(1))


def candidate_gram(params: Params, block: Samples, candidates: Array) -> Array:
    """Compute W_i . W_j of each sample's candidates over its observed values, (n, H', H').

    params: "W" (H, D) is read; block: n samples; candidates: (n, H'), numbers of components.
    """
    w = params["W"]
    if block.observed is None:
        return (w @ w.T)[candidates[:, :, None], candidates[:, None]]
    # (n, H', D): a sample's candidates, with 0 where its values are missing.
    observed_atoms = w[candidates] * block.observed[:, None]
    return observed_atoms @ observed_atoms.transpose(0, 2, 1)


def top_indices(score: Array, width: int) -> Array:
    """Return the indices of a row's largest scores, ascending: (n, H) -> (n, width)."""
    if width == score.shape[1]:
        return np.broadcast_to(np.arange(width), score.shape)
    return np.sort(np.argpartition(-score, width - 1, axis=1)[:, :width], axis=1)


def scatter_pairs(pairs: Array, candidates: Array, atoms: int) -> Array:
    """Sum values of pairs of components over samples: from pairs of candidates to all pairs.

    pairs: (n, H', H'), a value for each pair of a sample's H' candidates; candidates: (n, H'),
      which components they are; atoms: H, the number of components.  -> (H, H).
    """
    # One number for each pair of components, so that bincount adds equal pairs up.
    place = candidates[:, :, None] * atoms + candidates[:, None]
    return np.bincount(place.ravel(), pairs.ravel(), atoms * atoms).reshape(atoms, atoms)


def second_moments(
    first: Array, diagonal: Array, pairs: Array, candidates: Array, block: Samples
) -> Params:
    """Sum over samples what the M-step of a linear model y = W s + noise needs.

    first: <s>, the posterior mean of the H causes, (n, H); diagonal: the part of <s^2> from states
      with one cause, (n, H); pairs: the part of <s s^T> from states with several, (n, H', H'), for
      the H' candidates of each sample; candidates: (n, H'), which causes they are; block: the n
      samples y. Returns "ys" (H, D), the sum of <s> y^T; "ss" (H, H), of <s s^T>, or (D, H, H)
      where values are missing; "power", of y^2; "values", the number of observed values.
    """
    n, atoms = first.shape
    sums = {"ys": first.T @ block.x, "power": np.square(block.x).sum()}
    sums["values"] = np.sum(block.dims() * np.ones(n))
    if block.observed is None:
        return sums | {"ss": scatter_pairs(pairs, candidates, atoms) + np.diag(diagonal.sum(0))}
    # Where values are missing, each feature d sums <s s^T> over its own samples.
    per_sample = np.zeros((n, atoms, atoms))
    per_sample[np.arange(n)[:, None, None], candidates[:, :, None], candidates[:, None]] = pairs
    per_sample[:, np.arange(atoms), np.arange(atoms)] += diagonal
    return sums | {"ss": np.tensordot(block.observed.astype(np.float64), per_sample, axes=(0, 0))}


def linear_maximise(sums: Params, before: Array | None = None) -> Params:
    """Maximise W = (sum y <s>^T) (sum <s s^T>)^-1, sigma^2 = mean <||y - W s||^2> / D.

    sums: of `second_moments`, added up over all samples; before: (H, D), take the residuals of
      sigma^2 from this W instead of the new one; None = from the new one.
    """
    ys, ss = sums["ys"], sums["ss"]
    if ss.ndim == 2:
        w = np.linalg.lstsq(ss, ys, rcond=None)[0]
    else:
        systems = zip(ss, ys.T, strict=True)
        # with missing values each feature has a system of its own
        w = np.stack([np.linalg.lstsq(s, y, rcond=None)[0] for s, y in systems], axis=1)
    used = w if before is None else before
    reconstruction = (
        np.sum(used * (ss @ used)) if ss.ndim == 2 else np.einsum("hd,dhk,kd->", used, ss, used)
    )
    noise = (sums["power"] - 2 * np.sum(used * ys) + reconstruction) / sums["values"]
    # rounding may make the variance 0 or negative
    least = 1e-9 * sums["power"] / sums["values"]
    return {"W": w, "noise": np.maximum(noise, np.maximum(least, 1e-200))}


@dataclass(repr=False)
class Discrete(Truncated, abc.ABC):
    """Model y ~ N(sum_h s_h W_h, sigma^2), where s_h is 0 or one of a few values."""

    noise_from: str = setting(
        "new",
        'The components that leave the residuals of sigma^2: "new", the maximum of the M-step, '
        'or "old", those before the step, as in the released code.',
        choices=("new", "old"),
    )

    def _prior(self, counts: Array) -> Array:
        """Return the shares of a cause's values from the counts of each, (m,)."""
        return counts

    def _affinity(self, params: Params, fit: Projections, gain: Array) -> Array:
        """Score each component for each sample, (n, H): the best ones become its candidates."""
        # gain: (n, H, m), the log-probability if this component alone is on, with each of its m
        # values, up to a constant
        return gain.max(axis=2)

    def _start(self, mean: Array, spread: float, random: np.random.RandomState) -> Params:
        """Draw the first parameters: components, sigma^2, and small equal shares of the values."""
        m = len(self._values())
        prior = np.full(m, min(0.5, 1 / self.n_components) / m)
        return linear_start(mean, spread, self.n_components, random) | {"prior": prior}

    def _joint(
        self, params: Params, block: Samples, states: States, temperature: float = 1.0
    ) -> Joint:
        """Compute log p(y | s) and log p(s) of no cause, each alone, and sets of candidates."""
        fit, noise, values = project(params, block), params["noise"], states.values
        # "W" (H, D), "noise" sigma^2, "prior" (m,), the probability of each of a cause's m values
        atoms, n, none = len(params["W"]), len(block.x), math.log1p(-float(params["prior"].sum()))
        odds = np.log(params["prior"]) - none
        # states of one cause with value v: (v W y - v^2 ||W||^2 / 2) / sigma^2 more than no cause
        single = fit.fit[:, :, None] * values
        single = (single - np.square(values) / 2 * fit.norm[..., None]) / noise  # (n, H, m)
        candidates = top_indices(self._affinity(params, fit, single + odds), states.width)
        gram = candidate_gram(params, block, candidates).reshape(n, -1)
        projected = np.take_along_axis(fit.fit, candidates, axis=1)
        # several causes: s W y - s^T W W^T s / 2 of the states' values s, over sigma^2
        multi = (projected @ states.table.T - gram @ states.squares.T / 2) / noise  # (n, K)
        # log p(y | no cause), to which all states add their gains
        zero = -0.5 * (fit.power / noise + block.dims() * np.log(2 * math.pi * noise))
        gains = np.concatenate([np.zeros((n, 1)), single.reshape(n, -1), multi], axis=1)
        prior = np.concatenate([[0.0], np.tile(odds, atoms), states.counts @ odds])
        return Joint(zero[:, None] + gains, atoms * none + prior, candidates)

    def _sums(
        self,
        params: Params,
        block: Samples,
        joint: Joint,
        q: Array,
        states: States,
        temperature: float,
    ) -> Params:
        """Sum the statistics of the M-step over a block: `second_moments`, "usage", "counts"."""
        # q: (n, S), posterior of the states
        single, multi = _split_states(params, q, states)
        # moments <s> and <s s^T> of the posterior, of one cause and of several apart
        pairs = (multi @ states.squares).reshape(len(q), states.width, states.width)
        first = self._code(params, joint, q, states)
        diagonal = single @ np.square(states.values)
        sums = second_moments(first, diagonal, pairs, joint.candidates, block)
        on = (multi @ (states.table != 0)).ravel()
        by_several = np.bincount(joint.candidates.ravel(), on, len(params["W"]))
        # (H,) expected uses of each component; "counts": (m,) of each value
        sums["usage"] = single.sum(axis=(0, 2)) + by_several
        return sums | {"counts": single.sum(axis=(0, 1)) + multi.sum(axis=0) @ states.counts}

    def _maximise(self, params: Params, sums: Params) -> Params:
        """Compute W, sigma^2 and the prior of largest expected log-likelihood."""
        share = (
            self._prior_correction(params)
            * self._prior(sums["counts"])
            / sums["samples"]
            / len(params["W"])
        )
        # a value that is never used may come back in a later step
        share = np.maximum(share, 1e-8)
        # a cause stays off with at least 5 %
        share *= min(1.0, 0.95 / float(share.sum()))
        before = params["W"] if self.noise_from == "old" else None
        return linear_maximise(sums, before) | {"prior": share}

    def _code(self, params: Params, joint: Joint, q: Array, states: States) -> Array:
        """Compute the posterior mean <s> of each sample's causes s, (n, H)."""
        # q: (n, S), posterior of the states
        single, multi = _split_states(params, q, states)
        code = single @ states.values
        # each candidate has one entry in its sample's row, so that += adds them all
        code[np.arange(len(q))[:, None], joint.candidates] += multi @ states.table
        return code


def _split_states(params: Params, q: Array, states: States) -> tuple[Array, Array]:
    """Split q (n, S) into probabilities of one cause, (n, H, m), and of several, (n, K)."""
    atoms, m = len(params["W"]), len(states.values)
    return q[:, 1 : 1 + atoms * m].reshape(len(q), atoms, m), q[:, 1 + atoms * m :]


@dataclass(repr=False)
class BSC(Discrete):
    """Binary sparse coding: y ~ N(sum_h s_h W_h, sigma^2), s_h = 1 with probability pi, else 0.

    Usually a sample has 8 candidates, at most 5 of them on.

    Fitted: components_ (H, D), noise_variance_ (sigma^2), prior_ (pi), usage_ (H,), the share of
    samples in which each is on; evidences_ (n_iter,), the mean log evidence before each step, at
    its temperature; reseeded_, the number of restarts. In double precision.

    Raises: ConfigError by `fit` for an impossible setting, such as more candidates than components;
    DataError for constant data and for fewer samples than components.
    Source: arXiv:1908.06843; expectation truncation: Luecke and Eggert, JMLR 11, 2010.
    Not where causes have continuous strengths (GSC) or hide each other (MCA).
    """

    temperature: float = setting(
        5.0,
        "The temperature T at the start, which divides the log-likelihood and falls to 1 in the "
        "first 80 % of the steps.",
        least=1,
    )

    def _affinity(self, params: Params, fit: Projections, gain: Array) -> Array:
        return fit.fit / np.sqrt(np.maximum(fit.norm, 1e-300))


@dataclass(repr=False)
class TSC(Discrete):
    """Ternary sparse coding: as BSC, s_h = 1 or -1 with probability pi / 2 each, else 0.

    Usually a sample has 7 candidates, at most 5 of them on. Fitted and raised: as in `BSC`;
    prior_ has the shares of -1 and 1.
    Source: arXiv:1908.06843.
    Not for data that are never negative: MCA.
    """

    temperature: float = setting(
        2.0,
        "The temperature T at the start, which divides the log-likelihood and falls to 1 in the "
        "first 70 % of the steps.",
        least=1,
    )
    _usual: ClassVar[tuple[int, int]] = (7, 5)
    _cooled: ClassVar[float] = 0.7

    def _values(self) -> tuple[float, ...]:
        return -1.0, 1.0

    def _prior(self, counts: Array) -> Array:
        return np.full(2, counts.mean())


@dataclass(repr=False)
class DSC(Discrete):
    """Discrete sparse coding: as BSC, s_h is 0 or one of `values`, each with a share of its own.

    Usually a sample has 7 candidates, at most 4 of them on. Fitted and raised: as in `BSC`;
    prior_ has the share of each value.
    Raises: ConfigError by `fit` for 0 among the values, or one twice.
    Source: arXiv:1908.06843.
    Not with many values: their number to the power of max_active multiplies the states.
    """

    temperature: float = setting(
        2.0,
        "The temperature T at the start, which divides the log-likelihood and falls to 1 in the "
        "first 70 % of the steps.",
        least=1,
    )
    values: tuple[float, ...] = setting(
        (-1.0, 1.0, 2.0), "The values of a cause that is on, all different and none of them 0."
    )
    _usual: ClassVar[tuple[int, int]] = (7, 4)
    _cooled: ClassVar[float] = 0.7

    def _values(self) -> tuple[float, ...]:
        """Return the values of a cause that is on, checked."""
        values = tuple(float(v) for v in self.values)
        good = values and 0 not in values and len({*values}) == len(values)
        if not good or not np.isfinite(values).all():
            want, fix = "numbers that differ, none of them 0", "For example: values=(-1, 1)."
            raise ConfigError("values", got=self.values, want=want, fix=fix)
        return values


CARDS = (
    coding(
        "bsc",
        config=BSC,
        summary="Sparse coding with causes that are on or off and add up.",
        names=("Binary sparse coding",),
    ),
    coding(
        "tsc",
        config=TSC,
        summary="Sparse coding with causes that are -1, 0 or 1 and add up.",
        names=("Ternary sparse coding",),
    ),
    coding(
        "dsc",
        config=DSC,
        summary="Sparse coding with causes that take a few given values and add up.",
        names=("Discrete sparse coding",),
    ),
)
