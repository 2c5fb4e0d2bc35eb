"""Spike-and-slab sparse coding, GSC (arXiv:1908.06843), with the density of a Gaussian.

The library of the paper leaves out the 1/2 of the Gaussian's exponent and takes <z><z>^T for
<z z^T>; here log p(y | b) integrates to 1, and the M-step is that of the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from ...core.errors import DataError
from .bsc import best, coding, fit_of, gram_of, linear_maximise, linear_start, second_moments
from .samples import Samples
from .states import Array, States
from .truncated import At, Joint, Truncated

FLOOR = 1e-6  # least variance of a slab


class Slab(NamedTuple):
    """Of the active sets of one size g: the posterior of z, and what it adds to log p(y).

    mean: (n, K, g); cov: (n, K, g, g); gain: (n, K).
    """

    mean: Array
    cov: Array
    gain: Array


class Parts(NamedTuple):
    """single: mean, variance and gain of each component alone, (n, H) each; sets: 2 ... gamma."""

    single: tuple[Array, Array, Array]
    sets: list[Slab]


def joined(before: Slab, precision: Array, eta: Array, members: Array, parent: Array) -> Slab:
    """The posterior of sets that have one more member than those before, by the Schur complement.

    precision: Lambda of a sample's candidates, (n, H', H'); eta: Lambda kappa of each, (n, H');
    gain: (eta^T Lambda^-1 eta - log det Lambda) / 2.
    """
    rest, last = members[:, :-1], members[:, -1]
    cov, mean = before.cov[:, parent], before.mean[:, parent]
    across = precision[:, rest, last[:, None]]  # (n, K, g - 1)
    u = np.einsum("nkij,nkj->nki", cov, across)
    s = precision[:, last, last] - (across * u).sum(axis=2)
    if not (s > 0).all():  # of components that double precision cannot tell apart
        got, want = "a mean far above what varies, so that components are one", "a smaller mean"
        raise DataError("X", got=got, want=want, fix="Subtract it: X - X.mean(axis=0).")
    t = (eta[:, last] - (across * mean).sum(axis=2)) / s
    gain = before.gain[:, parent] + 0.5 * (s * t * t - np.log(s))
    wide = u / s[..., None]
    top = cov + u[..., :, None] * wide[..., None, :]
    top = np.concatenate([top, -wide[..., None]], axis=3)
    low = np.concatenate([-wide, 1 / s[..., None]], axis=2)
    mean = np.concatenate([mean - u * t[..., None], t[..., None]], axis=2)
    return Slab(mean, np.concatenate([top, low[..., None, :]], axis=2), gain)


@dataclass(repr=False)
class GSC(Truncated):
    """Spike-and-slab sparse coding: y ~ N(sum_h b_h z_h W_h, sigma^2), b_h on or off, z_h Gaussian.

    p(b_h = 1) = pi_h, z_h ~ N(mu_h, psi_h).  Of an active set b, with Lambda = W_b W_b^T / sigma^2
    + diag(1 / psi_b) and eta = W_b y / sigma^2 + mu_b / psi_b:
    log p(y | b) = -1/2 [D log(2 pi sigma^2) + ||y||^2 / sigma^2 + sum mu_b^2 / psi_b
    - eta^T Lambda^-1 eta + log det Lambda + sum log psi_b].

    n_components, n_candidates (7 if None), max_active (4 if None), n_iter, temperature, data_cut,
    reseed, random_state: as in `BSC`; the temperature divides the prior, too. `transform` gives
    <b z>.

    Fitted: as in `BSC`, and prior_ (pi_h), slab_mean_ (mu_h), slab_variance_ (psi_h), (H,) each.
    Raises: as in `BSC`, and DataError for data whose mean is far above what varies.
    Source: arXiv:1908.06843; Sheikh, Shelton and Luecke, JMLR 15, 2014.
    A component's scale is shared with mu_h and sqrt(psi_h): compare components by direction.
    Not for data that are masked by the largest cause (MCA).
    """

    _usual: ClassVar[tuple[int, int, float]] = (7, 4, 0.8)
    _anneals_prior: ClassVar[bool] = True
    _fitted: ClassVar[Mapping[str, str]] = {
        **Truncated._fitted,
        "mean": "slab_mean_",
        "slab": "slab_variance_",
    }

    def _cells(self, states: States) -> int:
        matrices = (level.members.size * level.members.shape[1] for level in states.levels)
        return max([super()._cells(states), *matrices])

    def _start(self, mean: Array, spread: float, random: np.random.RandomState) -> At:
        at = linear_start(mean, spread, self.n_components, random)
        at["prior"] = np.full(self.n_components, min(0.5, 1 / self.n_components))
        at["mean"] = random.standard_normal(self.n_components) * 0.3 + 1
        return at | {"slab": np.ones(self.n_components)}

    def _shares(self, at: At) -> Array:
        return at["prior"]

    def _joint(self, at: At, block: Samples, states: States) -> Joint:
        fit, noise, mu, psi = fit_of(at, block), at["noise"], at["mean"], at["slab"]
        n, atoms = fit.fit.shape
        eta = fit.fit / noise + mu / psi
        own = np.broadcast_to(fit.norm / noise + 1 / psi, eta.shape)  # Lambda of one cause
        gain = 0.5 * (np.square(eta) / own - np.log(own))
        rest = -0.5 * (np.square(mu) / psi + np.log(psi))
        odds = np.log(at["prior"]) - np.log1p(-at["prior"])
        chosen = best(gain + rest + odds, states.width)
        precision = gram_of(at, block, chosen) / noise
        diagonal = np.arange(states.width)
        precision[:, diagonal, diagonal] += 1 / psi[chosen]
        eta_of = np.take_along_axis(eta, chosen, axis=1)
        lone = [np.take_along_axis(a, chosen, axis=1) for a in (eta / own, 1 / own, gain)]
        level, sets = Slab(lone[0][..., None], lone[1][..., None, None], lone[2]), []
        for members, parent in states.levels:
            level = joined(level, precision, eta_of, members, parent)
            sets.append(level)
        member = states.table.T  # (H', K)
        likelihood = [np.zeros((n, 1)), gain + rest]
        if sets:
            multi = np.concatenate([s.gain for s in sets], axis=1)
            likelihood.append(multi + rest[chosen] @ member)
        zero = -0.5 * (fit.power / noise + block.dims() * np.log(2 * math.pi * noise))
        prior = [np.zeros((n, 1)), np.broadcast_to(odds, (n, atoms)), odds[chosen] @ member]
        return Joint(
            zero[:, None] + np.concatenate(likelihood, axis=1),
            np.log1p(-at["prior"]).sum() + np.concatenate(prior, axis=1),
            chosen,
            Parts((eta / own, 1 / own, gain), sets),
        )

    def _sums(
        self, at: At, block: Samples, joint: Joint, q: Array, states: States, heat: float
    ) -> At:
        n, atoms = len(q), len(at["W"])
        mean, variance, _ = joint.parts.single
        single, width, start = q[:, 1 : 1 + atoms], states.width, 1 + atoms
        pairs = np.zeros((n, width * width))
        for level, slab in zip(states.levels, joint.parts.sets, strict=True):
            k, g = level.members.shape
            share = q[:, start : start + k, None, None]
            second = share * (slab.mean[..., :, None] * slab.mean[..., None, :] + slab.cov)
            place = level.members[:, :, None] * width + level.members[:, None]
            pairs += second.reshape(n, -1) @ _incidence(place, width * width)
            start += k
        first = self._code(at, joint, q, states)
        pairs = pairs.reshape(n, width, width)
        lone = single * (np.square(mean) + variance)
        sums = second_moments(first, lone, pairs, joint.candidates, block)
        flat = joint.candidates.ravel()
        on = q[:, 1 + atoms :] @ states.table
        own = pairs[:, np.arange(width), np.arange(width)]
        sums["usage"] = single.sum(0) + np.bincount(flat, on.ravel(), atoms)
        sums["square"] = lone.sum(0) + np.bincount(flat, own.ravel(), atoms)
        return sums | {"first": first.sum(0)}

    def _maximise(self, at: At, sums: At) -> At:
        used = sums["usage"] + 1e-300
        alive = sums["usage"] > 1e-6
        mu = np.where(alive, sums["first"] / used, at["mean"])
        psi = np.where(alive, sums["square"] / used - np.square(mu), at["slab"])
        share = np.clip(self._lift(at) * sums["usage"] / sums["samples"], 1e-6, 1 - 1e-6)
        found = {"prior": share, "mean": mu, "slab": np.maximum(psi, FLOOR)}
        return linear_maximise(sums) | found

    def _code(self, at: At, joint: Joint, q: Array, states: States) -> Array:
        n, atoms = len(q), len(at["W"])
        mean = joint.parts.single[0]
        code, start = q[:, 1 : 1 + atoms] * mean, 1 + atoms
        of = np.zeros((n, states.width))
        for level, slab in zip(states.levels, joint.parts.sets, strict=True):
            k = len(level.members)
            part = q[:, start : start + k, None] * slab.mean
            of += part.reshape(n, -1) @ _incidence(level.members, states.width)
            start += k
        code[np.arange(n)[:, None], joint.candidates] += of
        return code

    def _reborn(self, at: At, atom: int, row: Array, residual: Array) -> None:
        super()._reborn(at, atom, row, residual)
        at["prior"][atom], at["mean"][atom], at["slab"][atom] = at["prior"].mean(), 1.0, 1.0


def _incidence(place: Array, width: int) -> Array:
    """Places (K, ...) as a matrix of 0 and 1 that sums what is there.  -> (K * ..., width)."""
    found = np.zeros((place.size, width))
    found[np.arange(place.size), place.ravel()] = 1.0
    return found


CARD = coding(
    "gsc",
    config=GSC,
    summary="Sparse coding with causes that are off, or on with a Gaussian strength.",
    names=("Gaussian sparse coding", "Spike-and-slab sparse coding"),
)
