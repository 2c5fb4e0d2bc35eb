"""Spike-and-slab sparse coding, GSC (arXiv:1908.06843), with the density of a Gaussian.

The library of the paper leaves out the 1/2 of the Gaussian's exponent and takes <z><z>^T for
<z z^T>; here log p(y | b) integrates to 1, and the M-step is the model's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from ...core.errors import DataError
from ...core.schema import setting
from .annealed import Params
from .bsc import (
    candidate_gram,
    coding,
    linear_maximise,
    linear_start,
    project,
    scatter_pairs,
    second_moments,
    top_indices,
)
from .samples import Samples
from .states import Array, Joint, States
from .truncated import Truncated

FLOOR = 1e-6  # least variance of a slab
ALIVE = 1e-6  # expected uses of a component below which its slab is not updated


class SlabPosterior(NamedTuple):
    """Posterior of the strengths z for active sets of one size g, and their gain in log p(y).

    mean: (n, K, g); cov: (n, K, g, g); gain: (n, K); for a full psi also slope, u = psi_b^-1 (mean
    - mu_b), (n, K, g), and curve, psi_b^-1 (psi_b - cov) psi_b^-1, (n, K, g, g).
    """

    mean: Array
    cov: Array
    gain: Array
    slope: Array = np.empty(0)
    curve: Array = np.empty(0)


class Parts(NamedTuple):
    """Posteriors of z.  single: of one component, (n, H) each; sets: of 2 ... gamma components."""

    single: SlabPosterior
    sets: list[SlabPosterior]


def extend_sets(
    before: SlabPosterior, precision: Array, eta: Array, members: Array, parent: Array
) -> SlabPosterior:
    """Compute the posteriors of sets of g components from the posteriors of sets of g - 1.

    A set's posterior is the posterior of its components' strengths, if these alone are on: a normal
    distribution with precision Lambda and mean Lambda^-1 eta, and the gain (eta^T Lambda^-1 eta -
    log det Lambda) / 2 in log-likelihood. The inverse is extended by the Schur complement.
    before: posteriors of the smaller sets, for n samples; precision: Lambda of all H' candidates of
      a sample, (n, H', H'); eta: (n, H'); members: (K, g), the K new sets, as numbers of
      candidates; parent: (K,), the number in `before` of each set without its last member.
    """
    rest, last = members[:, :-1], members[:, -1]
    cov, mean = before.cov[:, parent], before.mean[:, parent]
    across = precision[:, rest, last[:, None]]  # (n, K, g - 1)
    # s = Lambda_ll - a^T Lambda_rest^-1 a: the new member's precision given the rest
    u = np.einsum("nkij,nkj->nki", cov, across)
    s = precision[:, last, last] - (across * u).sum(axis=2)
    if not (s > 0).all():  # two components are equal in double precision
        got, want = "a mean far above what varies, so that components are one", "a smaller mean"
        raise DataError("X", got=got, want=want, fix="Subtract it: X - X.mean(axis=0).")
    t = (eta[:, last] - (across * mean).sum(axis=2)) / s
    gain = before.gain[:, parent] + 0.5 * (s * t * t - np.log(s))
    # the inverse of the extended matrix, in blocks
    wide = u / s[..., None]
    top = cov + u[..., :, None] * wide[..., None, :]
    top = np.concatenate([top, -wide[..., None]], axis=3)
    low = np.concatenate([-wide, 1 / s[..., None]], axis=2)
    mean = np.concatenate([mean - u * t[..., None], t[..., None]], axis=2)
    return SlabPosterior(mean, np.concatenate([top, low[..., None, :]], axis=2), gain)


def diagonal_posteriors(
    single: SlabPosterior, precision: Array, eta: Array, rest: Array, states: States
) -> list[SlabPosterior]:
    """Compute the posteriors of sets of 2, 3, ... components, adding member by member.

    For a diagonal prior covariance psi of the strengths; see `extend_sets` for a set's posterior.
    single: posteriors of each of a sample's H' candidates alone; precision: (n, H', H'), and eta:
    (n, H'), of all candidates of n samples; rest: (n, H'), the terms of log p(y) that a candidate's
    prior adds. Returns a posterior of all sets for each size.
    """
    level, sets = single, []
    for members, parent in states.levels:
        level = extend_sets(level, precision, eta, members, parent)
        sets.append(level._replace(gain=level.gain + rest[:, members].sum(axis=2)))
    return sets


def full_posterior(gram: Array, fit: Array, mu: Array, psi: Array, members: Array) -> SlabPosterior:
    """Compute the posteriors of the strengths of K sets of components, for a full prior covariance.

    gram: W_i . W_j / sigma^2 of the H' candidates of n samples, (n, H', H'); fit: W y / sigma^2,
      (n, H'); mu: (n, H'), and psi: (n, H', H'), the prior's mean and covariance of the strengths;
      members: (K, g), the sets, as numbers of candidates. The gain has the prior's terms. Avoids
      the inverse of psi, which may be nearly singular: with R = (I + gram psi)^-1 and u = R (fit -
      gram mu) of a set, Lambda^-1 = psi R, mean = mu + psi u, gain = mu^T fit - mu^T gram mu / 2 +
      ((fit - gram mu)^T psi u + log det R) / 2.
    """
    i, j = members[:, :, None], members[:, None]
    gram, psi, mu, fit = gram[:, i, j], psi[:, i, j], mu[:, members], fit[:, members]
    ratio = np.linalg.inv(np.eye(members.shape[1]) + gram @ psi)
    across = np.einsum("nkij,nkj->nki", gram, mu)
    slope = np.einsum("nkij,nkj->nki", ratio, fit - across)
    pull = np.einsum("nkij,nkj->nki", psi, slope)
    explained = (mu * (2 * fit - across)).sum(axis=2) + ((fit - across) * pull).sum(axis=2)
    gain = (explained + np.linalg.slogdet(ratio)[1]) / 2
    return SlabPosterior(mu + pull, psi @ ratio, gain, slope, ratio @ gram)


@dataclass(repr=False)
class GSC(Truncated):
    """Spike-and-slab sparse coding: y ~ N(sum_h b_h z_h W_h, sigma^2), b_h on or off, z_h Gaussian.

    p(b_h = 1) = pi_h, z_h ~ N(mu_h, psi_h).  Of an active set b, with Lambda = W_b W_b^T / sigma^2
    + diag(1 / psi_b) and eta = W_b y / sigma^2 + mu_b / psi_b:
    log p(y | b) = -1/2 [D log(2 pi sigma^2) + ||y||^2 / sigma^2 + sum mu_b^2 / psi_b
    - eta^T Lambda^-1 eta + log det Lambda + sum log psi_b].

    Usually a sample has 7 candidates, at most 4 of them on. The temperature divides the prior,
    too. `transform` gives <b z>.

    Fitted: as in `BSC`, and prior_ (pi_h), slab_mean_ (mu_h), slab_variance_ (psi_h), (H,) each;
    slab_variance_ is (H, H) of a full slab.
    Raises: as in `BSC`, and DataError for data with a mean far above their variation.
    Source: arXiv:1908.06843; Sheikh, Shelton and Luecke, JMLR 15, 2014.
    A component's scale is shared with mu_h and sqrt(psi_h): compare components by direction.
    Not for data that are masked by the largest cause (MCA).
    """

    slab: str = setting(
        "diagonal",
        'The covariance of the strengths z: "diagonal", or "full" as in the paper, z ~ N(mu, '
        'Psi) with the rows and columns of Psi that are on. The M-step of "full" moves mu and '
        "Psi along the gradient of the evidence, as far as a diagonal psi goes, so that the "
        "evidence may fall in a step; the released one, a product with the inverse of the "
        "matrix <s s^T>, has another fixed point.",
        choices=("diagonal", "full"),
    )

    _usual: ClassVar[tuple[int, int]] = (7, 4)
    _fitted: ClassVar[Mapping[str, str]] = {
        **Truncated._fitted,
        "mean": "slab_mean_",
        "slab": "slab_variance_",
    }

    @property
    def _anneals_prior(self) -> bool:
        return True  # the whole log p(s, y) is divided by the temperature

    def _block_numbers(self, states: States) -> int:
        """Return how many numbers the largest array of one sample has.  states: the sets."""
        # a covariance matrix for each set of components
        matrices = (level.members.size * level.members.shape[1] for level in states.levels)
        return max([super()._block_numbers(states), *matrices])

    def _start(self, mean: Array, spread: float, random: np.random.RandomState) -> Params:
        params = linear_start(mean, spread, self.n_components, random)
        params["prior"] = np.full(self.n_components, min(0.5, 1 / self.n_components))
        params["mean"] = random.standard_normal(self.n_components) * 0.3 + 1
        ones = np.ones(self.n_components)
        return params | {"slab": np.diag(ones) if self.slab == "full" else ones}

    def _shares(self, params: Params) -> Array:
        return params["prior"]

    def _joint(
        self, params: Params, block: Samples, states: States, temperature: float = 1.0
    ) -> Joint:
        """Compute log p(y | b) and log p(b) of no component, each alone, and sets of candidates."""
        # "W" (H, D), "noise" sigma^2, "prior" pi (H,), "mean" mu (H,), "slab" (H,) or (H, H)
        fit, noise, mu = project(params, block), params["noise"], params["mean"]
        psi = (
            np.diag(params["slab"]) if self.slab == "full" else params["slab"]
        )  # of one cause alone
        n, atoms = fit.fit.shape
        eta = fit.fit / noise + mu / psi
        precision = np.broadcast_to(fit.norm / noise + 1 / psi, eta.shape)  # Lambda of one cause
        gain = 0.5 * (np.square(eta) / precision - np.log(precision))
        rest = -0.5 * (np.square(mu) / psi + np.log(psi))
        # candidates: the components that explain the sample best alone, prior included
        odds = np.log(params["prior"]) - np.log1p(-params["prior"])
        candidates = top_indices(gain + rest + odds, states.width)
        slope = (fit.fit / noise - fit.norm / noise * mu) / (precision * psi)
        single = SlabPosterior(
            eta / precision, 1 / precision, gain, slope, fit.norm / noise / (precision * psi)
        )
        gram, member = candidate_gram(params, block, candidates) / noise, states.table.T  # (H', K)
        mean, cov, alone, fits, etas = (
            np.take_along_axis(a, candidates, axis=1) for a in (*single[:3], fit.fit / noise, eta)
        )
        if self.slab == "full":
            covariance = params["slab"][candidates[:, :, None], candidates[:, None]]
            slabs = (gram, fits, mu[candidates], covariance)
            sets = [full_posterior(*slabs, members) for members, _ in states.levels]
        else:
            # Lambda of the candidates
            gram += np.eye(states.width) / psi[candidates][:, None]
            lone = SlabPosterior(mean[..., None], cov[..., None, None], alone)
            sets = diagonal_posteriors(lone, gram, etas, rest[candidates], states)
        likelihood = [np.zeros((n, 1)), gain + rest, *(s.gain for s in sets)]
        zero = -0.5 * (fit.power / noise + block.dims() * np.log(2 * math.pi * noise))
        prior = [np.zeros((n, 1)), np.broadcast_to(odds, (n, atoms)), odds[candidates] @ member]
        return Joint(
            zero[:, None] + np.concatenate(likelihood, axis=1),
            np.log1p(-params["prior"]).sum() + np.concatenate(prior, axis=1),
            candidates,
            Parts(single, sets),
        )

    def _sums(
        self,
        params: Params,
        block: Samples,
        joint: Joint,
        q: Array,
        states: States,
        temperature: float,
    ) -> Params:
        """Sum over a block's samples what the M-step needs."""
        # q: (n, 1 + H + K), posterior of no component, of each alone, of K sets of candidates
        # lone: (n, H), <b z^2> from each component alone; on: (n, H'), how often sets hold each
        # candidate; squares: (n, H'), <b z^2> from the sets
        atoms, width, candidates = len(params["W"]), states.width, joint.candidates
        alone, sets, single = joint.parts.single, joint.parts.sets, q[:, 1 : 1 + atoms]
        first = self._code(params, joint, q, states)
        lone = single * (np.square(alone.mean) + alone.cov)
        # <z z^T> of the candidates: mean mean^T + cov of each set
        pairs = _over_sets(q, states, [_outer(s.mean) + s.cov for s in sets], axes=2)
        sums = second_moments(first, lone, pairs, candidates, block)
        flat = candidates.ravel()
        on = q[:, 1 + atoms :] @ states.table
        squares = pairs[:, np.arange(width), np.arange(width)]
        # (H,), how often each component is on
        sums["usage"] = single.sum(0) + np.bincount(flat, on.ravel(), atoms)
        if self.slab == "diagonal":
            # (H,), sums of strengths and of their squares, for the slab's mu and psi
            sums["first"] = first.sum(0)
            sums["square"] = lone.sum(0) + np.bincount(flat, squares.ravel(), atoms)
            return sums
        slope = _over_sets(q, states, [s.slope for s in sets])
        # gradient of the evidence in mu and Psi, for the full slab's step
        curve = _over_sets(q, states, [_outer(s.slope) - s.curve for s in sets], axes=2)
        # (H,) and (H, H), derivatives of the evidence
        sums["slope"] = (single * alone.slope).sum(0) + np.bincount(flat, slope.ravel(), atoms)
        sums["curve"] = scatter_pairs(curve, candidates, atoms)
        sums["curve"] += np.diag((single * (np.square(alone.slope) - alone.curve)).sum(0))
        return sums

    def _maximise(self, params: Params, sums: Params) -> Params:
        """Do the M-step: return W, sigma^2, pi, mu and psi."""
        mu, psi = (self._full_slab if self.slab == "full" else self._diagonal_slab)(params, sums)
        share = np.clip(
            self._prior_correction(params) * sums["usage"] / sums["samples"], 1e-6, 1 - 1e-6
        )
        return linear_maximise(sums) | {"prior": share, "mean": mu, "slab": psi}

    def _diagonal_slab(self, params: Params, sums: Params) -> tuple[Array, Array]:
        """Compute mu = sum <b z> / sum <b> and psi = sum <b z^2> / sum <b> - mu^2, for each h."""
        alive, used = sums["usage"] > ALIVE, sums["usage"] + 1e-300
        mu = np.where(alive, sums["first"] / used, params["mean"])
        psi = np.where(alive, sums["square"] / used - np.square(mu), params["slab"])
        return mu, np.maximum(psi, FLOOR)

    def _full_slab(self, params: Params, sums: Params) -> tuple[Array, Array]:
        """Update the mean mu and the full covariance Psi of the components' strengths by a step."""
        psi, alive = params["slab"], sums["usage"] > ALIVE
        root = np.where(alive, 1 / np.sqrt(sums["usage"] + 1e-300), 0)
        step = psi @ (sums["slope"] * root**2)
        wide = psi @ (sums["curve"] * np.outer(root, root)) @ psi
        # keep Psi positive definite: no eigenvalue below FLOOR
        values, vectors = np.linalg.eigh(psi + wide - np.outer(step, step))
        return params["mean"] + step, (vectors * np.maximum(values, FLOOR)) @ vectors.T

    def _code(self, params: Params, joint: Joint, q: Array, states: States) -> Array:
        """Compute the posterior mean <b z> of each sample, (n, H)."""
        # q: (n, S), posterior of the states
        code = q[:, 1 : 1 + len(params["W"])] * joint.parts.single.mean
        by_sets = _over_sets(q, states, [s.mean for s in joint.parts.sets])
        code[np.arange(len(q))[:, None], joint.candidates] += by_sets
        return code

    def _restart(self, params: Params, atom: int, row: Array, residual: Array) -> None:
        """Restart an unused component in place, with the average pi, mu = 1 and psi = 1."""
        super()._restart(params, atom, row, residual)
        params["prior"][atom], params["mean"][atom] = params["prior"].mean(), 1.0
        if self.slab == "full":
            params["slab"][atom], params["slab"][:, atom] = 0.0, 0.0
        params["slab"][(atom, atom) if self.slab == "full" else atom] = 1.0


def _outer(vectors: Array) -> Array:
    """Return v v^T of each vector, (..., g) -> (..., g, g)."""
    return vectors[..., :, None] * vectors[..., None, :]


def _over_sets(q: Array, states: States, values: list[Array], axes: int = 1) -> Array:
    """Compute the posterior mean, over active sets, of values of the sets' members."""
    # values: for each size g of sets (n, K, g) of members, or with axes = 2 (n, K, g, g) of pairs;
    # candidates outside a set count 0: (n, H') or (n, H', H')
    n, width = len(q), states.width
    total, start = np.zeros((n, width**axes)), q.shape[1] - len(states.table)
    for level, value in zip(states.levels, values, strict=True):
        members, k = level.members, len(level.members)
        place = members if axes == 1 else members[:, :, None] * width + members[:, None]
        # q: (n, S), the sets behind the states of at most one component
        share = q[:, start : start + k].reshape(n, k, *[1] * axes)
        total += (share * value).reshape(n, -1) @ _incidence(place, width**axes)
        start += k
    return total.reshape(n, *[width] * axes)


def _incidence(place: Array, width: int) -> Array:
    """Return the 0/1 matrix (entries, width) that sums a row of entries by their places."""
    # place: (K, ...), the place of each entry
    matrix = np.zeros((place.size, width))
    matrix[np.arange(place.size), place.ravel()] = 1.0
    return matrix


CARD = coding(
    "gsc",
    config=GSC,
    summary="Sparse coding with causes that are off, or on with a Gaussian strength.",
    names=("Gaussian sparse coding", "Spike-and-slab sparse coding"),
)
