"""The states of a truncated posterior: subsets of a sample's candidates, level by level."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ...core.errors import ConfigError

Array = np.ndarray
MOST = 1 << 16  # states of a sample


class Subsets(NamedTuple):
    """All subsets of one size g: members (K, g), the parent's place one level down, (K,).

    A parent is the subset without its last member; level 1 are the single candidates.
    """

    members: Array
    parent: Array


class States:
    """Subsets of 2 ... `active` of `width` candidates; each member takes one of `values`.

    levels: those of sizes 2, 3, ...; table: the values, (K, width); counts: how often each value
    is taken, (K, m); squares: table's products, (K, width * width). The state without a cause and
    the H single causes stand before them: a sample has 1 + H m + K states.

    Raises: ConfigError for more than 2^16 of them.
    """

    def __init__(self, width: int, active: int, values: Sequence[float] = (1.0,)) -> None:
        sizes = range(2, active + 1)
        self.values = np.asarray(values, dtype=np.float64)
        m = len(self.values)
        count = sum(math.comb(width, g) * m**g for g in sizes)
        if count > MOST:
            fix = f"Lower max_active={active} or n_candidates={width}: "
            fix += f"max_active={active - 1} has {count - math.comb(width, active) * m**active:,}."
            raise ConfigError(
                "states of a sample", got=f"{count:,}", want=f"at most {MOST:,}", fix=fix
            )
        self.width = width
        self.levels = _levels(width, active)
        rows, counts = [np.zeros((0, width))], [np.zeros((0, m))]
        for level in self.levels:
            g = level.members.shape[1]
            taken = np.array(list(itertools.product(range(m), repeat=g)))  # (m^g, g)
            row = np.zeros((len(level.members), len(taken), width))
            places = np.broadcast_to(level.members[:, None], (len(row), len(taken), g))
            np.put_along_axis(row, places, self.values[taken][None], axis=2)
            rows.append(row.reshape(-1, width))
            each = (taken[:, :, None] == np.arange(m)).sum(1).astype(np.float64)
            counts.append(np.tile(each, (len(level.members), 1)))
        self.table, self.counts = np.concatenate(rows), np.concatenate(counts)
        self.squares = (self.table[:, :, None] * self.table[:, None]).reshape(-1, width * width)

    def rows(self, index: Array, candidates: Array, causes: int) -> Array:
        """States by their places among all.  (n, k), (n, width) -> (n, k, causes)."""
        m = len(self.values)
        found = np.zeros((len(index), index.shape[1], causes))
        n, k = np.nonzero((index > 0) & (index <= causes * m))
        single = index[n, k] - 1
        found[n, k, single // m] = self.values[single % m]
        n, k = np.nonzero(index > causes * m)
        of = self.table[index[n, k] - 1 - causes * m]
        found[n[:, None], k[:, None], candidates[n]] = of
        return found


def _levels(width: int, active: int) -> list[Subsets]:
    place: dict[tuple[int, ...], int] = {(i,): i for i in range(width)}
    found = []
    for g in range(2, active + 1):
        sets = list(itertools.combinations(range(width), g))
        parent = np.array([place[s[:-1]] for s in sets], dtype=np.int64)
        found.append(Subsets(np.array(sets, dtype=np.int64).reshape(-1, g), parent))
        place = {s: i for i, s in enumerate(sets)}
    return found
