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

from ...core.checks import one_of
from ...core.errors import DataError
from .annealed import At, Joint
from .bsc import (
    best,
    coding,
    fit_of,
    gram_of,
    linear_maximise,
    linear_start,
    scattered,
    second_moments,
)
from .samples import Samples
from .shards import RowShards
from .states import Array, States
from .truncated import Truncated

FLOOR = 1e-6  # least variance of a slab
ALIVE = 1e-6  # samples that a component is on in, below which its slab stays as it is


class Slab(NamedTuple):
    """Of the active sets of one size g: the posterior of z, and what it adds to log p(y).

    mean: (n, K, g); cov: (n, K, g, g); gain: (n, K); of a full psi also slope, u = psi_b^-1 (mean -
    mu_b), (n, K, g), and curve, psi_b^-1 (psi_b - cov) psi_b^-1, (n, K, g, g).
    """

    mean: Array
    cov: Array
    gain: Array
    slope: Array = np.empty(0)
    curve: Array = np.empty(0)


class Parts(NamedTuple):
    """single: each component alone, mean, cov and gain (n, H) each; sets: of 2 ... gamma."""

    single: Slab
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


def independent(
    single: Slab, precision: Array, eta: Array, rest: Array, states: States
) -> list[Slab]:
    """The posteriors of the sets of each size under a diagonal psi, one member after the other.

    single: of each candidate alone; rest: what the prior of each adds to log p(y), (n, H').
    """
    level, sets = single, []
    for members, parent in states.levels:
        level = joined(level, precision, eta, members, parent)
        sets.append(level._replace(gain=level.gain + rest[:, members].sum(axis=2)))
    return sets


def covaried(gram: Array, fit: Array, mu: Array, psi: Array, members: Array) -> Slab:
    """The posterior of the sets of one size under a full psi; its gain has the prior's terms.

    gram: W_i . W_j / sigma^2 of a sample's candidates, (n, H', H'); fit: W y / sigma^2 and mu,
    (n, H') each; psi: (n, H', H').  Without psi's inverse, which may be nearly singular: with
    R = (I + gram psi)^-1 and u = R (fit - gram mu) of a set, Lambda^-1 = psi R, mean = mu + psi u,
    gain = mu^T fit - mu^T gram mu / 2 + ((fit - gram mu)^T psi u + log det R) / 2.
    """
    i, j = members[:, :, None], members[:, None]
    gram, psi, mu, fit = gram[:, i, j], psi[:, i, j], mu[:, members], fit[:, members]
    ratio = np.linalg.inv(np.eye(members.shape[1]) + gram @ psi)
    across = np.einsum("nkij,nkj->nki", gram, mu)
    slope = np.einsum("nkij,nkj->nki", ratio, fit - across)
    pull = np.einsum("nkij,nkj->nki", psi, slope)
    explained = (mu * (2 * fit - across)).sum(axis=2) + ((fit - across) * pull).sum(axis=2)
    gain = (explained + np.linalg.slogdet(ratio)[1]) / 2
    return Slab(mu + pull, psi @ ratio, gain, slope, ratio @ gram)


@dataclass(repr=False)
class GSC(Truncated):
    """Spike-and-slab sparse coding: y ~ N(sum_h b_h z_h W_h, sigma^2), b_h on or off, z_h Gaussian.

    p(b_h = 1) = pi_h, z_h ~ N(mu_h, psi_h).  Of an active set b, with Lambda = W_b W_b^T / sigma^2
    + diag(1 / psi_b) and eta = W_b y / sigma^2 + mu_b / psi_b:
    log p(y | b) = -1/2 [D log(2 pi sigma^2) + ||y||^2 / sigma^2 + sum mu_b^2 / psi_b
    - eta^T Lambda^-1 eta + log det Lambda + sum log psi_b].

    n_components, n_candidates (7 if None), max_active (4 if None), n_iter, temperature, data_cut,
    reseed, random_state: as in `BSC`; the temperature divides the prior, too; slab: "diagonal", or
    "full" as in the paper, z ~ N(mu, Psi) with the rows and columns of Psi that are on in place of
    diag(psi_b). Its M-step moves mu and Psi along the gradient of the evidence, as far as a
    diagonal psi goes, so that the evidence may fall in a step; the released one, a product with
    the inverse of the matrix <s s^T>, has another fixed point. `transform` gives <b z>.

    Fitted: as in `BSC`, and prior_ (pi_h), slab_mean_ (mu_h), slab_variance_ (psi_h), (H,) each;
    slab_variance_ is (H, H) of a full slab.
    Raises: as in `BSC`, and DataError for data whose mean is far above what varies.
    Source: arXiv:1908.06843; Sheikh, Shelton and Luecke, JMLR 15, 2014.
    A component's scale is shared with mu_h and sqrt(psi_h): compare components by direction.
    Not for data that are masked by the largest cause (MCA).
    """

    slab: str = "diagonal"

    _usual: ClassVar[tuple[int, int]] = (7, 4)
    _fitted: ClassVar[Mapping[str, str]] = {
        **Truncated._fitted,
        "mean": "slab_mean_",
        "slab": "slab_variance_",
    }

    @property
    def _anneals_prior(self) -> bool:
        return True

    def _check(self, shards: RowShards) -> None:
        super()._check(shards)
        one_of("slab", self.slab, ("diagonal", "full"))

    def _cells(self, states: States) -> int:
        matrices = (level.members.size * level.members.shape[1] for level in states.levels)
        return max([super()._cells(states), *matrices])

    def _start(self, mean: Array, spread: float, random: np.random.RandomState) -> At:
        at = linear_start(mean, spread, self.n_components, random)
        at["prior"] = np.full(self.n_components, min(0.5, 1 / self.n_components))
        at["mean"] = random.standard_normal(self.n_components) * 0.3 + 1
        ones = np.ones(self.n_components)
        return at | {"slab": np.diag(ones) if self.slab == "full" else ones}

    def _shares(self, at: At) -> Array:
        return at["prior"]

    def _joint(self, at: At, block: Samples, states: States, heat: float = 1.0) -> Joint:
        fit, noise, mu = fit_of(at, block), at["noise"], at["mean"]
        psi = np.diag(at["slab"]) if self.slab == "full" else at["slab"]  # of one cause alone
        n, atoms = fit.fit.shape
        eta = fit.fit / noise + mu / psi
        own = np.broadcast_to(fit.norm / noise + 1 / psi, eta.shape)  # Lambda of one cause
        gain = 0.5 * (np.square(eta) / own - np.log(own))
        rest = -0.5 * (np.square(mu) / psi + np.log(psi))
        odds = np.log(at["prior"]) - np.log1p(-at["prior"])
        chosen = best(gain + rest + odds, states.width)
        slope = (fit.fit / noise - fit.norm / noise * mu) / (own * psi)
        single = Slab(eta / own, 1 / own, gain, slope, fit.norm / noise / (own * psi))
        gram, member = gram_of(at, block, chosen) / noise, states.table.T  # (H', K)
        mean, cov, alone, fits, etas = (
            np.take_along_axis(a, chosen, axis=1) for a in (*single[:3], fit.fit / noise, eta)
        )
        if self.slab == "full":
            covariance = at["slab"][chosen[:, :, None], chosen[:, None]]
            slabs = (gram, fits, mu[chosen], covariance)
            sets = [covaried(*slabs, members) for members, _ in states.levels]
        else:
            gram += np.eye(states.width) / psi[chosen][:, None]
            lone = Slab(mean[..., None], cov[..., None, None], alone)
            sets = independent(lone, gram, etas, rest[chosen], states)
        likelihood = [np.zeros((n, 1)), gain + rest, *(s.gain for s in sets)]
        zero = -0.5 * (fit.power / noise + block.dims() * np.log(2 * math.pi * noise))
        prior = [np.zeros((n, 1)), np.broadcast_to(odds, (n, atoms)), odds[chosen] @ member]
        return Joint(
            zero[:, None] + np.concatenate(likelihood, axis=1),
            np.log1p(-at["prior"]).sum() + np.concatenate(prior, axis=1),
            chosen,
            Parts(single, sets),
        )

    def _sums(
        self, at: At, block: Samples, joint: Joint, q: Array, states: States, heat: float
    ) -> At:
        atoms, width, candidates = len(at["W"]), states.width, joint.candidates
        one, sets, single = joint.parts.single, joint.parts.sets, q[:, 1 : 1 + atoms]
        first = self._code(at, joint, q, states)
        lone = single * (np.square(one.mean) + one.cov)
        pairs = _over_sets(q, states, [_outer(s.mean) + s.cov for s in sets], axes=2)
        sums = second_moments(first, lone, pairs, candidates, block)
        flat = candidates.ravel()
        on = q[:, 1 + atoms :] @ states.table
        own = pairs[:, np.arange(width), np.arange(width)]
        sums["usage"] = single.sum(0) + np.bincount(flat, on.ravel(), atoms)
        if self.slab == "diagonal":
            sums["first"] = first.sum(0)
            sums["square"] = lone.sum(0) + np.bincount(flat, own.ravel(), atoms)
            return sums
        slope = _over_sets(q, states, [s.slope for s in sets])
        curve = _over_sets(q, states, [_outer(s.slope) - s.curve for s in sets], axes=2)
        sums["slope"] = (single * one.slope).sum(0) + np.bincount(flat, slope.ravel(), atoms)
        sums["curve"] = scattered(curve, candidates, atoms)
        sums["curve"] += np.diag((single * (np.square(one.slope) - one.curve)).sum(0))
        return sums

    def _maximise(self, at: At, sums: At) -> At:
        mu, psi = (self._full_slab if self.slab == "full" else self._diagonal_slab)(at, sums)
        share = np.clip(self._lift(at) * sums["usage"] / sums["samples"], 1e-6, 1 - 1e-6)
        return linear_maximise(sums) | {"prior": share, "mean": mu, "slab": psi}

    def _diagonal_slab(self, at: At, sums: At) -> tuple[Array, Array]:
        """mu_h = sum <b_h z_h> / sum <b_h>, psi_h = sum <b_h z_h^2> / sum <b_h> - mu_h^2."""
        alive, used = sums["usage"] > ALIVE, sums["usage"] + 1e-300
        mu = np.where(alive, sums["first"] / used, at["mean"])
        psi = np.where(alive, sums["square"] / used - np.square(mu), at["slab"])
        return mu, np.maximum(psi, FLOOR)

    def _full_slab(self, at: At, sums: At) -> tuple[Array, Array]:
        """mu and Psi of a full slab, by steps that are those above where Psi is diagonal.

        With u = psi_b^-1 <z_b - mu_b> and M = sum (<u u^T> - psi_b^-1), which are 0 at the maximum,
        mu + Psi u / N and Psi + Psi M Psi / N, N being how often each component is on.
        """
        psi, alive = at["slab"], sums["usage"] > ALIVE
        root = np.where(alive, 1 / np.sqrt(sums["usage"] + 1e-300), 0)
        step = psi @ (sums["slope"] * root**2)
        wide = psi @ (sums["curve"] * np.outer(root, root)) @ psi
        values, vectors = np.linalg.eigh(psi + wide - np.outer(step, step))
        return at["mean"] + step, (vectors * np.maximum(values, FLOOR)) @ vectors.T

    def _code(self, at: At, joint: Joint, q: Array, states: States) -> Array:
        code = q[:, 1 : 1 + len(at["W"])] * joint.parts.single.mean
        of = _over_sets(q, states, [s.mean for s in joint.parts.sets])
        code[np.arange(len(q))[:, None], joint.candidates] += of
        return code

    def _reborn(self, at: At, atom: int, row: Array, residual: Array) -> None:
        super()._reborn(at, atom, row, residual)
        at["prior"][atom], at["mean"][atom] = at["prior"].mean(), 1.0
        if self.slab == "full":
            at["slab"][atom], at["slab"][:, atom] = 0.0, 0.0
        at["slab"][(atom, atom) if self.slab == "full" else atom] = 1.0


def _outer(vectors: Array) -> Array:
    return vectors[..., :, None] * vectors[..., None, :]


def _over_sets(q: Array, states: States, values: list[Array], axes: int = 1) -> Array:
    """Sums over the sets of a sample, at their members' places and weighted by q.

    values: of each size vectors (n, K, g), or matrices (n, K, g, g) with axes = 2.
    -> (n, H') or (n, H', H').
    """
    n, width = len(q), states.width
    total, start = np.zeros((n, width**axes)), q.shape[1] - len(states.table)
    for level, value in zip(states.levels, values, strict=True):
        members, k = level.members, len(level.members)
        place = members if axes == 1 else members[:, :, None] * width + members[:, None]
        share = q[:, start : start + k].reshape(n, k, *[1] * axes)
        total += (share * value).reshape(n, -1) @ _incidence(place, width**axes)
        start += k
    return total.reshape(n, *[width] * axes)


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
