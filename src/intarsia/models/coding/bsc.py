"""Causes that add up and take a few values: BSC, TSC and DSC (arXiv:1908.06843, section 2)."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np

from ...core import Card, Paper
from ...core.checks import one_of
from ...core.errors import ConfigError
from .annealed import At, Joint
from .samples import Samples
from .shards import RowShards
from .states import Array, States
from .truncated import Truncated

coding = partial(
    Card,
    kind="model",
    paper=Paper("1908.06843", 2019, "ProSper -- A Python Library for Probabilistic Sparse Coding"),
    tiny={"n_components": 2, "n_iter": 8, "random_state": 0},
    family="sparse coding",
)


def linear_start(mean: Array, spread: float, atoms: int, random: np.random.RandomState) -> At:
    """W = mean + N(0, sd / 4), sigma^2 = the mean variance."""
    noise = random.standard_normal((atoms, len(mean))) * spread / 4
    return {"W": mean + noise, "noise": np.array(spread**2)}


class Projections(NamedTuple):
    """fit: W y, (n, H); norm: sum_d W_hd^2, (n, H) or (H,); power: ||y||^2, (n,).

    Where values are missing, of those that are there.
    """

    fit: Array
    norm: Array
    power: Array


def fit_of(at: At, block: Samples) -> Projections:
    w = at["W"]
    norm = np.square(w).sum(1) if block.seen is None else block.seen @ np.square(w).T
    return Projections(block.x @ w.T, norm, np.square(block.x).sum(1))


def gram_of(at: At, block: Samples, candidates: Array) -> Array:
    """W_i . W_j of each sample's candidates over the values that are there.  -> (n, H', H')."""
    w = at["W"]
    if block.seen is None:
        return (w @ w.T)[candidates[:, :, None], candidates[:, None]]
    own = w[candidates] * block.seen[:, None]
    return own @ own.transpose(0, 2, 1)


def best(score: Array, width: int) -> Array:
    """The places of the `width` largest of each row, in rising order.  (n, H) -> (n, width)."""
    if width == score.shape[1]:
        return np.broadcast_to(np.arange(width), score.shape)
    return np.sort(np.argpartition(-score, width - 1, axis=1)[:, :width], axis=1)


def scattered(pairs: Array, candidates: Array, atoms: int) -> Array:
    """The sum over samples of what their candidates have in pairs.  (n, H', H') -> (H, H)."""
    place = candidates[:, :, None] * atoms + candidates[:, None]
    return np.bincount(place.ravel(), pairs.ravel(), atoms * atoms).reshape(atoms, atoms)


def second_moments(
    first: Array, diagonal: Array, pairs: Array, candidates: Array, block: Samples
) -> At:
    """The sums of a linear M-step.

    first: <s>, (n, H); diagonal: <s^2> of states of one cause, (n, H); pairs: <s s^T> of the others
    among candidates, (n, H', H').  -> "ys" (H, D); "ss" (H, H), or (D, H, H) where values are
    missing; "power", the sum of y^2; "values", how many there are.
    """
    n, atoms = first.shape
    sums = {"ys": first.T @ block.x, "power": np.square(block.x).sum()}
    sums["values"] = np.sum(block.dims() * np.ones(n))
    if block.seen is None:
        return sums | {"ss": scattered(pairs, candidates, atoms) + np.diag(diagonal.sum(0))}
    each = np.zeros((n, atoms, atoms))
    each[np.arange(n)[:, None, None], candidates[:, :, None], candidates[:, None]] = pairs
    each[:, np.arange(atoms), np.arange(atoms)] += diagonal
    return sums | {"ss": np.tensordot(block.seen.astype(np.float64), each, axes=(0, 0))}


def linear_maximise(sums: At, before: Array | None = None) -> At:
    """W = (sum y <s>^T) (sum <s s^T>)^-1, sigma^2 = mean <||y - W s||^2> / D.

    before: the W that sigma^2 is of, (H, D), in place of the new one.
    """
    ys, ss = sums["ys"], sums["ss"]
    if ss.ndim == 2:
        w = np.linalg.lstsq(ss, ys, rcond=None)[0]
    else:
        each = zip(ss, ys.T, strict=True)
        w = np.stack([np.linalg.lstsq(s, y, rcond=None)[0] for s, y in each], axis=1)
    used = w if before is None else before
    of = np.sum(used * (ss @ used)) if ss.ndim == 2 else np.einsum("hd,dhk,kd->", used, ss, used)
    noise = (sums["power"] - 2 * np.sum(used * ys) + of) / sums["values"]
    least = 1e-9 * sums["power"] / sums["values"]
    return {"W": w, "noise": np.maximum(noise, np.maximum(least, 1e-200))}


@dataclass(repr=False)
class Discrete(Truncated, abc.ABC):
    """y ~ N(sum_h s_h W_h, sigma^2), where s_h is 0 or one of a few values."""

    noise_from: str = "new"

    def _check(self, shards: RowShards) -> None:
        super()._check(shards)
        one_of("noise_from", self.noise_from, ("new", "old"))

    def _prior(self, counts: Array) -> Array:
        """Shares of the values of a cause, by how often each was taken."""
        return counts

    def _affinity(self, at: At, fit: Projections, gain: Array) -> Array:
        """What candidates are chosen by.  gain: log p(y, one cause) less a constant, (n, H, m)."""
        return gain.max(axis=2)

    def _start(self, mean: Array, spread: float, random: np.random.RandomState) -> At:
        m = len(self._values())
        prior = np.full(m, min(0.5, 1 / self.n_components) / m)
        return linear_start(mean, spread, self.n_components, random) | {"prior": prior}

    def _joint(self, at: At, block: Samples, states: States, heat: float = 1.0) -> Joint:
        fit, noise, values = fit_of(at, block), at["noise"], states.values
        atoms, n, none = len(at["W"]), len(block.x), math.log1p(-float(at["prior"].sum()))
        odds = np.log(at["prior"]) - none
        single = fit.fit[:, :, None] * values
        single = (single - np.square(values) / 2 * fit.norm[..., None]) / noise  # (n, H, m)
        chosen = best(self._affinity(at, fit, single + odds), states.width)
        gram = gram_of(at, block, chosen).reshape(n, -1)
        own = np.take_along_axis(fit.fit, chosen, axis=1)
        multi = (own @ states.table.T - gram @ states.squares.T / 2) / noise  # (n, K)
        zero = -0.5 * (fit.power / noise + block.dims() * np.log(2 * math.pi * noise))
        gains = np.concatenate([np.zeros((n, 1)), single.reshape(n, -1), multi], axis=1)
        prior = np.concatenate([[0.0], np.tile(odds, atoms), states.counts @ odds])
        return Joint(zero[:, None] + gains, atoms * none + prior, chosen)

    def _sums(
        self, at: At, block: Samples, joint: Joint, q: Array, states: States, heat: float
    ) -> At:
        single, multi = _parted(at, q, states)
        pairs = (multi @ states.squares).reshape(len(q), states.width, states.width)
        first = self._code(at, joint, q, states)
        diagonal = single @ np.square(states.values)
        sums = second_moments(first, diagonal, pairs, joint.candidates, block)
        on = (multi @ (states.table != 0)).ravel()
        others = np.bincount(joint.candidates.ravel(), on, len(at["W"]))
        sums["usage"] = single.sum(axis=(0, 2)) + others
        return sums | {"counts": single.sum(axis=(0, 1)) + multi.sum(axis=0) @ states.counts}

    def _maximise(self, at: At, sums: At) -> At:
        share = self._lift(at) * self._prior(sums["counts"]) / sums["samples"] / len(at["W"])
        share = np.maximum(share, 1e-8)
        share *= min(1.0, 0.95 / float(share.sum()))
        before = at["W"] if self.noise_from == "old" else None
        return linear_maximise(sums, before) | {"prior": share}

    def _code(self, at: At, joint: Joint, q: Array, states: States) -> Array:
        single, multi = _parted(at, q, states)
        code = single @ states.values
        code[np.arange(len(q))[:, None], joint.candidates] += multi @ states.table
        return code


def _parted(at: At, q: Array, states: States) -> tuple[Array, Array]:
    """Probabilities of states of one cause, (n, H, m), and of more, (n, K)."""
    atoms, m = len(at["W"]), len(states.values)
    return q[:, 1 : 1 + atoms * m].reshape(len(q), atoms, m), q[:, 1 + atoms * m :]


@dataclass(repr=False)
class BSC(Discrete):
    """Binary sparse coding: y ~ N(sum_h s_h W_h, sigma^2), s_h = 1 with probability pi, else 0.

    n_components: H; n_candidates: H', the components of a sample among which more than one may be
    on, 8 if None; max_active: gamma, how many are on at most, 5 if None; n_iter: EM steps;
    temperature: T at the start, by which the log-likelihood is divided, and which falls to 1 in the
    first 80 % of the steps; data_cut: in the last third leave samples out that more than gamma
    causes explain; reseed: give a component that no sample uses to the sample that is explained
    worst; random_state: of the start; noise_from: the components whose residual sigma^2 is, "new",
    which is the maximum of the M-step, or "old", those before the step, as in the released code.

    Fitted: components_ (H, D), noise_variance_ (sigma^2), prior_ (pi), usage_ (H,), how often each
    is on; evidences_ (n_iter,), the mean log evidence before each step, at its temperature;
    reseeded_, how often that happened. In double precision.

    Raises: ConfigError by `fit` for an impossible setting, such as more candidates than components;
    DataError for constant data and for fewer samples than components.
    Source: arXiv:1908.06843; expectation truncation: Luecke and Eggert, JMLR 11, 2010.
    Not where causes have strengths (GSC) or hide each other (MCA).
    """

    temperature: float = 5.0

    def _affinity(self, at: At, fit: Projections, gain: Array) -> Array:
        return fit.fit / np.sqrt(np.maximum(fit.norm, 1e-300))


@dataclass(repr=False)
class TSC(Discrete):
    """Ternary sparse coding: as BSC, s_h = 1 or -1 with probability pi / 2 each, else 0.

    n_components, n_candidates (7 if None), max_active (5 if None), n_iter, temperature (1 after
    70 % of the steps), data_cut, reseed, random_state, noise_from, what is fitted and raised: as in
    `BSC`; prior_ has the shares of -1 and 1.
    Source: arXiv:1908.06843.
    Not for data that are never negative: MCA.
    """

    temperature: float = 2.0
    _usual: ClassVar[tuple[int, int]] = (7, 5)
    _cooled: ClassVar[float] = 0.7

    def _values(self) -> tuple[float, ...]:
        return -1.0, 1.0

    def _prior(self, counts: Array) -> Array:
        return np.full(2, counts.mean())


@dataclass(repr=False)
class DSC(Discrete):
    """Discrete sparse coding: as BSC, s_h is 0 or one of `values`, each with a share of its own.

    values: what a cause is when it is on; n_components, n_candidates (7 if None), max_active (4 if
    None), n_iter, temperature (1 after 70 % of the steps), data_cut, reseed, random_state,
    noise_from, what is fitted and raised: as in `BSC`; prior_ has the share of each value.
    Raises: ConfigError by `fit` for 0 among the values, or one twice.
    Source: arXiv:1908.06843.
    Not with many values: their number to the power of max_active multiplies the states.
    """

    temperature: float = 2.0
    values: tuple[float, ...] = (-1.0, 1.0, 2.0)
    _usual: ClassVar[tuple[int, int]] = (7, 4)
    _cooled: ClassVar[float] = 0.7

    def _values(self) -> tuple[float, ...]:
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
