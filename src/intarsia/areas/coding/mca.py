"""Sparse coding in which the largest cause wins: MCA and MMCA (arXiv:1908.06843, section 2)."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.sparse import csr_array

from ...core.schema import setting
from .annealed import Params
from .bsc import coding, top_indices
from .samples import Samples, not_negative
from .states import Array, Joint, States
from .truncated import Truncated

FLOOR = 1e-4  # least magnitude of a component's entry, since 0 would stay 0; see `least_entry`
NEGLIGIBLE = 1e-12  # posterior probability of a state that the M-step leaves out


def least_entry(w: Array) -> float:
    """Return the least magnitude of entries, smaller than FLOOR where all of w are below 1."""
    return FLOOR * min(1.0, float(np.abs(w).max()) or 1.0)


@dataclass(repr=False)
class Maximal(Truncated, abc.ABC):
    """Model y_d ~ N(the largest s_h W_hd, sigma^2), s_h = 1 with probability pi, else 0."""

    maximum: str = setting(
        "hard",
        'The maximum in the E-step: "hard", which is the model\'s, or "soft" as in the released '
        "code, Wbar_d = (sum_h (s_h W_hd)^rho)^(1 / rho) with rho = 1 / (1 - 1 / T), bounded.",
        choices=("hard", "soft"),
    )
    anneal_prior: bool = setting(
        False,
        "Whether the temperature divides the prior, too, as in the released code, which finds "
        "fewer causes in few samples.",
    )

    _least_temperature: ClassVar[float]  # below it the exponent rho stays constant

    @property
    def _anneals_prior(self) -> bool:
        return self.anneal_prior

    def _rho(self, temperature: float) -> float:
        """Return the exponent of the soft maximum, which grows as the temperature falls."""
        return 1 / (1 - 1 / max(temperature, self._least_temperature))

    @abc.abstractmethod
    def _larger(self, first: Array, second: Array) -> Array:
        """Return, entry by entry, the one of two that determines the value."""

    @abc.abstractmethod
    def _misfit(self, w: Array, x: Array) -> Array:
        """Return how badly components w explain values x, entry by entry; less is better."""

    @abc.abstractmethod
    def _raise_to_floor(self, w: Array) -> Array:
        """Raise the magnitude of entries to `least_entry`."""

    def _block_numbers(self, states: States) -> int:
        return self.n_features_in_ * max(len(states.table), self.n_components)

    def _start(self, mean: Array, spread: float, random: np.random.RandomState) -> Params:
        w = mean + random.standard_normal((self.n_components, len(mean))) * spread / 4
        prior = np.full(1, min(0.5, 1 / self.n_components))
        return {"W": self._raise_to_floor(w), "noise": np.array(spread**2), "prior": prior}

    def _joint(
        self, params: Params, block: Samples, states: States, temperature: float = 1.0
    ) -> Joint:
        """Compute log p(y | s) and log p(s) of no cause, each alone, and sets of candidates."""
        # "W" (H, D), "noise" sigma^2, "prior" pi (1,)
        x, observed, w = block.x, block.observed, params["W"]
        n, atoms = len(x), len(w)
        mask = np.ones(1) if observed is None else observed[:, None].astype(np.float64)
        # candidates: the components that alone fit the sample best
        off = self._misfit(w[None], x[:, None])
        candidates = top_indices(-(off * mask).sum(axis=2), states.width)
        # noise-free data of all states: no cause, one cause, and several
        means = [np.zeros((n, 1, x.shape[1])), np.broadcast_to(w, (n, *w.shape))]
        means += self._state_means(w, candidates, states, temperature)
        squares = [(np.square(x[:, None] - mean) * mask).sum(axis=2) for mean in means]
        far, noise = np.concatenate(squares, axis=1), params["noise"]
        rest = np.asarray(block.dims() * np.log(2 * math.pi * noise))
        pi = float(params["prior"][0])
        sizes = np.concatenate([[0.0], np.ones(atoms), states.counts[:, 0]])
        prior = atoms * math.log1p(-pi) + sizes * (math.log(pi) - math.log1p(-pi))
        # parts: the squared errors (n, S) and the noise-free data of all states
        return Joint(-0.5 * (far / noise + rest.reshape(-1, 1)), prior, candidates, (far, means))

    def _state_means(
        self, w: Array, candidates: Array, states: States, temperature: float
    ) -> list[Array]:
        """Compute the data without noise if several components are on: their maximum."""
        # w: (H, D); candidates: (n, H'), those that may be on in each of n samples
        soft, rho, largest = self.maximum == "soft", self._rho(temperature), np.abs(w).max()
        if soft:  # Wbar = (sum_h (s_h W_hd)^rho)^(1 / rho), of magnitudes that keep their sign
            w = np.sign(w) * (np.abs(w) / largest) ** rho
        # for each size an array (n, K, D) of its K sets
        level, means = w[candidates], []
        for members, parent in states.levels:
            before, last = level[:, parent], w[candidates[:, members[:, -1]]]
            # a set's data: its parent's data joined with its last member
            level = before + last if soft else self._larger(before, last)
            means.append(largest * np.sign(level) * np.abs(level) ** (1 / rho) if soft else level)
        return means

    def _sums(
        self,
        params: Params,
        block: Samples,
        joint: Joint,
        q: Array,
        states: States,
        temperature: float,
    ) -> Params:
        atoms, (far, _) = len(params["W"]), joint.parts
        single, multi = q[:, 1 : 1 + atoms], q[:, 1 + atoms :]
        on = (multi @ states.table).ravel()
        sums = {"usage": single.sum(0) + np.bincount(joint.candidates.ravel(), on, atoms)}
        # expected squared error, and number of values, for sigma^2
        sums["off"], sums["values"] = (q * far).sum(), np.sum(block.dims() * np.ones(len(q)))
        observed = (
            np.ones_like(block.x) if block.observed is None else block.observed.astype(np.float64)
        )
        # <A_hd> = <(|s_h W_hd| / Wbar_d)^(rho - 1)>, Wbar = (sum_h |s_h W_hd|^rho)^(1 / rho)
        rho = self._rho(temperature)
        size = np.abs(params["W"]) / np.abs(params["W"]).max()
        power = size ** (rho - 1)
        # only states that matter: pairs of a sample and a state, (pairs,), and their members
        n, k = np.nonzero(multi > NEGLIGIBLE)
        pair, place = np.nonzero(states.table[k])
        entries = (pair, joint.candidates[n[pair], place])
        membership = csr_array((np.ones(len(pair)), entries), shape=(len(n), atoms))
        wbar = (membership @ (power * size)) ** (1 / rho)  # (pairs, D)
        weight = multi[n, k, None] * wbar ** (1 - rho) * observed[n]
        # <A> and <A y>, (H, D): A_hd is the influence of cause h on value d
        sums["a"] = single.T @ observed + power * (membership.T @ weight)  # of one cause A = 1
        return sums | {"ay": single.T @ block.x + power * (membership.T @ (weight * block.x[n]))}

    def _maximise(self, params: Params, sums: Params) -> Params:
        """Compute W = sum <A y> / sum <A>, sigma^2 and pi from the sums over all samples."""
        used = sums["a"] > 1e-10
        # W = sum <A y> / sum <A>
        w = np.where(used, sums["ay"] / np.where(used, sums["a"], 1), params["W"])
        pi = self._prior_correction(params) * sums["usage"].sum() / sums["samples"] / len(w)
        # the floor also bounds sigma^2 from below
        w = self._raise_to_floor(w)
        noise = np.maximum(sums["off"] / sums["values"], 1e-4 * least_entry(w) ** 2)
        return {"W": w, "noise": noise, "prior": np.clip([pi], 1e-8, 0.95)}

    def _code(self, params: Params, joint: Joint, q: Array, states: States) -> Array:
        # q: (n, S), posterior of the states
        atoms = len(params["W"])
        code = q[:, 1 : 1 + atoms].copy()
        code[np.arange(len(q))[:, None], joint.candidates] += q[:, 1 + atoms :] @ states.table
        return code

    def _means(
        self, params: Params, block: Samples, joint: Joint, q: Array, states: States
    ) -> Array:
        return np.einsum("ns,nsd->nd", q, np.concatenate(joint.parts[1], axis=1))

    def _decode(self, codes: Array) -> Array:
        """Join components by the maximum, hard or soft, weighted by codes: (n, H) -> (n, D)."""
        soft, rho, data = self.maximum == "soft", self._rho(1.0), np.zeros(1)
        for code, w in zip(codes.T, self.components_, strict=True):
            part = code[:, None] * w
            data = data + np.sign(part) * np.abs(part) ** rho if soft else self._larger(data, part)
        return np.sign(data) * np.abs(data) ** (1 / rho) if soft else data

    def _restart(self, params: Params, atom: int, row: Array, residual: Array) -> None:
        params["W"][atom] = row
        params["W"] = self._raise_to_floor(params["W"])


@dataclass(repr=False)
class MCA(Maximal):
    """Maximal causes analysis: y_d ~ N(max_h s_h W_hd, sigma^2), W >= 0, s_h = 1 or 0.

    Usually a sample has 8 candidates, at most 5 of them on; the soft maximum's rho is at most
    21. The M-step is a fixed-point step with the soft maximum in both: the evidence may fall in a
    step. `inverse_transform` takes the maximum, too. Fitted: as in `BSC`.
    The released M-step weighs samples of one cause by W^2, which the paper's equation does not.
    Raises: as in `BSC`, and DataError for negative data.
    Source: arXiv:1908.06843; Luecke and Sahani, JMLR 9, 2008.
    Not for data without a natural zero, such as patches less their mean: MMCA.
    """

    temperature: float = setting(
        4.0,
        "The temperature T at the start, which divides the log-likelihood and falls to 1 in the "
        "first 80 % of the steps.",
        least=1,
    )

    _least_temperature: ClassVar[float] = 1.05

    def _larger(self, first: Array, second: Array) -> Array:
        return np.maximum(first, second)

    def _misfit(self, w: Array, x: Array) -> Array:
        return np.maximum(w, x) - x

    def _raise_to_floor(self, w: Array) -> Array:
        return np.maximum(w, least_entry(w))

    def _read(self, X: Any, first: bool = False, least: int = 1) -> Array:
        return not_negative(super()._read(X, first, least), "MMCA, whose components have signs")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        return tags


@dataclass(repr=False)
class MMCA(Maximal):
    """Maximal magnitude causes analysis: as MCA, with the s_h W_hd of largest magnitude.

    Usually a sample has 7 candidates, at most 5 of them on; the soft maximum's rho is at most
    6. Fitted and raised: as in `BSC`; the M-step: as in `MCA`.
    Source: arXiv:1908.06843; Bornschein, Henniges and Luecke, PLOS Comput. Biol. 9, 2013.
    Not where causes add up (BSC, GSC).
    """

    anneal_prior: bool = setting(
        True, "Whether the temperature divides the prior, too, as in the released code."
    )

    _usual: ClassVar[tuple[int, int]] = (7, 5)
    _least_temperature: ClassVar[float] = 1.2

    def _larger(self, first: Array, second: Array) -> Array:
        return np.where(np.abs(first) >= np.abs(second), first, second)

    def _misfit(self, w: Array, x: Array) -> Array:
        return np.square(w - x)

    def _raise_to_floor(self, w: Array) -> Array:
        """Return components with entries of at least a least size, signs kept."""
        low = least_entry(w)
        return np.where(np.abs(w) < low, np.where(w < 0, -low, low), w)


CARDS = (
    coding(
        "mca",
        config=MCA,
        summary="Sparse coding with causes; the largest one hides the others.",
        names=("Maximal causes analysis",),
    ),
    coding(
        "mmca",
        config=MMCA,
        summary="Sparse coding with signed causes; the one with the largest magnitude is seen.",
        names=("Maximal magnitude causes analysis",),
    ),
)
