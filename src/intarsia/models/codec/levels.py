"""Where the latents of a signal lie: rows of patches, of blocks of patches, and of the whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .philox import words
from .recombiner import RecombinerSettings

Array = np.ndarray[Any, Any]
BLOCK = 4  # patches of a block along each axis


@dataclass(frozen=True)
class LatentLevel:
    """Rows of latents with one prior.  of: the row that each patch reads, (patches,)."""

    rows: int
    of: Array


def levels_of(settings: RecombinerSettings, tiles: Sequence[int]) -> tuple[LatentLevel, ...]:
    """The levels of a signal with `tiles` patches along each axis: patches first, then wider."""
    patches = math.prod(tiles)
    found = [LatentLevel(patches, np.arange(patches))]
    if settings.levels == 3:
        blocks = [-(-count // BLOCK) for count in tiles]
        where = np.indices(tuple(tiles)).reshape(len(tiles), -1) // BLOCK
        found.append(
            LatentLevel(math.prod(blocks), np.ravel_multi_index(tuple(where), tuple(blocks)))
        )
    if settings.levels > 1:
        found.append(LatentLevel(1, np.zeros(patches, np.int64)))
    return tuple(found)


def groups_by_mean(bits: Array, count: int, random: np.random.Generator) -> Array:
    """Columns in random order, cut into `count` groups of about equal mean divergence.

    bits: (columns,) mean divergence of each.  -> (columns,) int32, the group of each; fewer groups
    where single columns need more than a group's share.
    """
    order = random.permutation(len(bits))
    ends = np.cumsum(np.maximum(bits[order], 1e-9))  # a dead column lies somewhere, too
    found = np.empty(len(bits), np.int64)
    found[order] = np.minimum((ends - ends[0] / 2) / ends[-1] * count, count - 1).astype(np.int64)
    return np.unique(found, return_inverse=True)[1].astype(np.int32)


def numbered(groups: Array, rows: int, key: int, level: int) -> Array:
    """The group of every latent of a level, numbered from 0.

    Each column is turned by a number of rows of its own, so that rows share their budgets.
    groups: (columns,).  -> (rows, columns).
    """
    turns = words(key, np.array([level]), len(groups), 0, domain=3)[0].astype(np.int64) % rows
    row = (np.arange(rows)[:, None] + turns) % rows
    return row * (int(groups.max()) + 1) + groups
