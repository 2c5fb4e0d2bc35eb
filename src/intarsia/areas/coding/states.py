"""States of a truncated posterior: subsets of a sample's candidates, by size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ...core.errors import ConfigError

Array = np.ndarray
MOST_STATES = 1 << 16  # of a sample


class Joint(NamedTuple):
    """Joint log density of samples and states, in the order of `States`.

    likelihood: log p(y | s), (n, S); prior: log p(s), (S,) or (n, S); candidates: (n, H'), the
    components that may be on together; parts: further results that the M-step reuses.
    """

    likelihood: Array
    prior: Array
    candidates: Array
    parts: Any = None


class Posterior(NamedTuple):
    """Most probable states of each sample (n, k, H), best first, and probabilities (n, k)."""

    states: Array
    probabilities: Array


class Subsets(NamedTuple):
    """Subsets of one size g.  members: (K, g); parent: (K,), index in subsets of size g - 1.

    The parent is the subset without its last member; subsets of size 1 are the single candidates.
    """

    members: Array
    parent: Array


class States:
    """States of 2 ... `active` causes among `width` candidates, each with one of `values`.

    levels: subsets of sizes 2, 3, ...; table: values of the candidates in each state, (K, width);
    counts: causes with each value, (K, m); squares: products of the table's rows with themselves,
    (K, width * width). The state without a cause and the H m states of one cause come before
    them: a sample has 1 + H m + K states.

    Raises: ConfigError for more than 2^16 of them.
    """

    def __init__(self, width: int, active: int, values: Sequence[float] = (1.0,)) -> None:
        """List the states: subsets of 2 to `active` candidates, with a value for each member."""
        # a set of g causes has m^g assignments of values
        sizes = range(2, active + 1)
        self.values = np.asarray(values, dtype=np.float64)
        m = len(self.values)
        count = sum(math.comb(width, g) * m**g for g in sizes)
        if count > MOST_STATES:
            fix = f"Lower max_active={active} or n_candidates={width}: "
            fix += f"max_active={active - 1} has {count - math.comb(width, active) * m**active:,}."
            raise ConfigError(
                "states of a sample", got=f"{count:,}", want=f"at most {MOST_STATES:,}", fix=fix
            )
        self.width = width
        self.levels = _levels(width, active)
        # for each subset all m^g assignments of values to its members
        rows, counts = [np.zeros((0, width))], [np.zeros((0, m))]
        for level in self.levels:
            g = level.members.shape[1]
            assignments = np.array(list(itertools.product(range(m), repeat=g)))  # (m^g, g)
            row = np.zeros((len(level.members), len(assignments), width))
            places = np.broadcast_to(level.members[:, None], (len(row), len(assignments), g))
            np.put_along_axis(row, places, self.values[assignments][None], axis=2)
            # candidates outside the subset keep 0
            rows.append(row.reshape(-1, width))
            value_counts = (assignments[:, :, None] == np.arange(m)).sum(1).astype(np.float64)
            counts.append(np.tile(value_counts, (len(level.members), 1)))
        self.table, self.counts = np.concatenate(rows), np.concatenate(counts)
        self.squares = (self.table[:, :, None] * self.table[:, None]).reshape(-1, width * width)

    def rows(self, index: Array, candidates: Array, causes: int) -> Array:
        """Expand numbers of states to the values of all causes, 0 = off: (n, k, causes).

        index: (n, k), the numbers of k states of each of n samples; candidates: (n, width), numbers
          of the causes that may be on in each sample.
        """
        m = len(self.values)
        states = np.zeros((len(index), index.shape[1], causes))
        # index 0: no cause; 1 ... H m: one cause with a value; beyond: rows of the table
        n, k = np.nonzero((index > 0) & (index <= causes * m))
        single = index[n, k] - 1
        states[n, k, single // m] = self.values[single % m]
        n, k = np.nonzero(index > causes * m)
        of_table = self.table[index[n, k] - 1 - causes * m]
        states[n[:, None], k[:, None], candidates[n]] = of_table
        return states


def _levels(width: int, active: int) -> list[Subsets]:
    """List the subsets of sizes 2 ... active, each with its parent: itself less its last member."""
    place: dict[tuple[int, ...], int] = {(i,): i for i in range(width)}
    levels = []
    for g in range(2, active + 1):
        sets = list(itertools.combinations(range(width), g))
        parent = np.array([place[s[:-1]] for s in sets], dtype=np.int64)
        levels.append(Subsets(np.array(sets, dtype=np.int64).reshape(-1, g), parent))
        # The subsets of this size are the parents of the next.
        place = {s: i for i, s in enumerate(sets)}
    return levels
