"""Causes of which the largest wins: MCA and MMCA (arXiv:1908.06843, section 2)."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.sparse import csr_array

from ...core.errors import DataError
from .bsc import best, coding
from .samples import Samples
from .states import Array, States
from .truncated import At, Joint, Truncated

FLOOR = 1e-4  # least magnitude of a component's entry: 0 would stay 0; less where all are below 1
HOT = 1.05  # the temperature at which rho stops growing
NEGLIGIBLE = 1e-12  # posterior probability of a state that the M-step leaves out


def lowest(w: Array) -> float:
    """Of entries in their own unit, which may be a small one."""
    return FLOOR * min(1.0, float(np.abs(w).max()) or 1.0)


@dataclass(repr=False)
class Maximal(Truncated, abc.ABC):
    """y_d ~ N(the entry s_h W_hd that wins, sigma^2), s_h = 1 with probability pi, else 0."""

    _usual: ClassVar[tuple[int, int, float]] = (8, 5, 0.8)

    @abc.abstractmethod
    def _wins(self, one: Array, other: Array) -> Array:
        """Of two entries the one that is seen."""

    @abc.abstractmethod
    def _far(self, w: Array, x: Array) -> Array:
        """What a component explains badly, summed over features by `_joint`."""

    @abc.abstractmethod
    def _floored(self, w: Array) -> Array: ...

    def _cells(self, states: States) -> int:
        return self.n_features_in_ * max(len(states.table), self.n_components)

    def _start(self, mean: Array, spread: float, random: np.random.RandomState) -> At:
        w = mean + random.standard_normal((self.n_components, len(mean))) * spread / 4
        prior = np.full(1, min(0.5, 1 / self.n_components))
        return {"W": self._floored(w), "noise": np.array(spread**2), "prior": prior}

    def _joint(self, at: At, block: Samples, states: States) -> Joint:
        x, seen, w = block.x, block.seen, at["W"]
        n, atoms = len(x), len(w)
        there = np.ones(1) if seen is None else seen[:, None].astype(np.float64)
        off = self._far(w[None], x[:, None])
        chosen = best(-(off * there).sum(axis=2), states.width)
        means = [np.zeros((n, 1, x.shape[1])), np.broadcast_to(w, (n, *w.shape))]
        level = w[chosen]
        for members, parent in states.levels:
            level = self._wins(level[:, parent], w[chosen[:, members[:, -1]]])
            means.append(level)
        squares = [(np.square(x[:, None] - mean) * there).sum(axis=2) for mean in means]
        far, noise = np.concatenate(squares, axis=1), at["noise"]
        rest = np.asarray(block.dims() * np.log(2 * math.pi * noise))
        pi = float(at["prior"][0])
        sizes = np.concatenate([[0.0], np.ones(atoms), states.counts[:, 0]])
        prior = atoms * math.log1p(-pi) + sizes * (math.log(pi) - math.log1p(-pi))
        return Joint(-0.5 * (far / noise + rest.reshape(-1, 1)), prior, chosen, (far, means))

    def _sums(
        self, at: At, block: Samples, joint: Joint, q: Array, states: States, heat: float
    ) -> At:
        atoms, (far, _) = len(at["W"]), joint.parts
        single, multi = q[:, 1 : 1 + atoms], q[:, 1 + atoms :]
        on = (multi @ states.table).ravel()
        sums = {"usage": single.sum(0) + np.bincount(joint.candidates.ravel(), on, atoms)}
        sums["off"], sums["values"] = (q * far).sum(), np.sum(block.dims() * np.ones(len(q)))
        seen = np.ones_like(block.x) if block.seen is None else block.seen.astype(np.float64)
        # <A_hd> = <(|s_h W_hd| / Wbar_d)^(rho - 1)>, Wbar = (sum_h |s_h W_hd|^rho)^(1 / rho)
        rho = 1 / (1 - 1 / max(heat, HOT))
        size = np.abs(at["W"]) / np.abs(at["W"]).max()
        power = size ** (rho - 1)
        n, k = np.nonzero(multi > NEGLIGIBLE)
        pair, place = np.nonzero(states.table[k])
        where = (pair, joint.candidates[n[pair], place])
        who = csr_array((np.ones(len(pair)), where), shape=(len(n), atoms))
        wbar = (who @ (power * size)) ** (1 / rho)  # (pairs, D)
        each = multi[n, k, None] * wbar ** (1 - rho) * seen[n]
        sums["a"] = single.T @ seen + power * (who.T @ each)  # of one cause A = 1
        return sums | {"ay": single.T @ block.x + power * (who.T @ (each * block.x[n]))}

    def _maximise(self, at: At, sums: At) -> At:
        used = sums["a"] > 1e-10
        w = np.where(
            used, sums["ay"] / np.where(used, sums["a"], 1), at["W"]
        )  # sum <A y> / sum <A>
        pi = self._lift(at) * sums["usage"].sum() / sums["samples"] / len(w)
        w = self._floored(w)
        noise = np.maximum(sums["off"] / sums["values"], 1e-4 * lowest(w) ** 2)
        return {"W": w, "noise": noise, "prior": np.clip([pi], 1e-8, 0.95)}

    def _code(self, at: At, joint: Joint, q: Array, states: States) -> Array:
        atoms = len(at["W"])
        code = q[:, 1 : 1 + atoms].copy()
        code[np.arange(len(q))[:, None], joint.candidates] += q[:, 1 + atoms :] @ states.table
        return code

    def _means(self, at: At, block: Samples, joint: Joint, q: Array, states: States) -> Array:
        return np.einsum("ns,nsd->nd", q, np.concatenate(joint.parts[1], axis=1))

    def _decode(self, codes: Array) -> Array:
        found = np.zeros((len(codes), self.components_.shape[1]))
        for code, w in zip(codes.T, self.components_, strict=True):
            found = self._wins(found, code[:, None] * w)
        return found

    def _reborn(self, at: At, atom: int, row: Array, residual: Array) -> None:
        at["W"][atom] = row
        at["W"] = self._floored(at["W"])


@dataclass(repr=False)
class MCA(Maximal):
    """Maximal causes analysis: y_d ~ N(max_h s_h W_hd, sigma^2), W >= 0, s_h = 1 or 0.

    n_components, n_candidates (8 if None), max_active (5 if None), n_iter, temperature, data_cut,
    reseed, random_state, what is fitted: as in `BSC`. The M-step is a fixed-point step with a soft
    maximum, which nears the true one as the temperature falls: the evidence may fall in a step.
    `inverse_transform` takes the maximum, too.
    Raises: as in `BSC`, and DataError for negative data.
    Source: arXiv:1908.06843; Luecke and Sahani, JMLR 9, 2008.
    Not for data without a natural zero, such as patches less their mean: MMCA.
    """

    temperature: float = 4.0

    def _wins(self, one: Array, other: Array) -> Array:
        return np.maximum(one, other)

    def _far(self, w: Array, x: Array) -> Array:
        return np.maximum(w, x) - x

    def _floored(self, w: Array) -> Array:
        return np.maximum(w, lowest(w))

    def _read(self, X: Any, first: bool = False, least: int = 1) -> Array:
        x = super()._read(X, first, least)
        if np.nanmin(x) < 0:
            got, want = f"values down to {np.nanmin(x):.3g}", "values from 0 on"
            fix = "Add a constant, or use MMCA, whose components have signs."
            # scikit-learn's own words, which its checks look for
            raise DataError("Negative values in data", got=got, want=want, fix=fix)
        return x

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        return tags


@dataclass(repr=False)
class MMCA(Maximal):
    """Maximal magnitude causes analysis: as MCA; of s_h W_hd the largest magnitude is seen.

    n_components, n_candidates (7 if None), max_active (5 if None), n_iter, temperature, data_cut,
    reseed, random_state, what is fitted and raised: as in `BSC`; the M-step is that of `MCA`.
    Source: arXiv:1908.06843; Bornschein, Henniges and Luecke, PLOS Comput. Biol. 9, 2013.
    Not where causes add up (BSC, GSC).
    """

    _usual: ClassVar[tuple[int, int, float]] = (7, 5, 0.8)

    def _wins(self, one: Array, other: Array) -> Array:
        return np.where(np.abs(one) >= np.abs(other), one, other)

    def _far(self, w: Array, x: Array) -> Array:
        return np.square(w - x)

    def _floored(self, w: Array) -> Array:
        low = lowest(w)
        return np.where(np.abs(w) < low, np.where(w < 0, -low, low), w)


CARDS = (
    coding(
        "mca",
        config=MCA,
        summary="Sparse coding with causes of which the largest hides the others.",
        names=("Maximal causes analysis",),
    ),
    coding(
        "mmca",
        config=MMCA,
        summary="Sparse coding with signed causes of which the largest magnitude is seen.",
        names=("Maximal magnitude causes analysis",),
    ),
)
