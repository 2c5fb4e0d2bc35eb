"""Levels of a signal's latents: rows for patches, for blocks of patches, and for the signal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .philox import ROTATIONS, words
from .recombiner import RecombinerSettings

Array = np.ndarray[Any, Any]
BLOCK = 4  # patches of a block along each axis


@dataclass(frozen=True)
class LatentLevel:
    """Level of latents with one prior.  rows: number; row_of_patch: (patches,), the row of each."""

    rows: int
    row_of_patch: Array


def levels_of(settings: RecombinerSettings, tiles: Sequence[int]) -> tuple[LatentLevel, ...]:
    """Return the levels at which a signal has latents: patches, blocks of patches, the whole."""
    patches = math.prod(tiles)
    levels = [LatentLevel(patches, np.arange(patches))]
    if settings.levels == 3:
        blocks = [-(-count // BLOCK) for count in tiles]
        # The block of each patch: its place along each axis, divided by BLOCK.
        block_of = np.indices(tuple(tiles)).reshape(len(tiles), -1) // BLOCK
        levels.append(
            LatentLevel(math.prod(blocks), np.ravel_multi_index(tuple(block_of), tuple(blocks)))
        )
    if settings.levels > 1:
        levels.append(LatentLevel(1, np.zeros(patches, np.int64)))
    return tuple(levels)


def groups_by_mean(bits: Array, count: int, random: np.random.Generator) -> Array:
    """Divide latents (columns) at random into groups that cost about equally many bits.

    bits: (columns,), the mean cost of each: its divergence from the prior. Returns (columns,)
      int32, the group of each; there are fewer groups where single columns need more than a group's
      share.
    """
    order = random.permutation(len(bits))
    # a column without divergence needs a group, too
    ends = np.cumsum(np.maximum(bits[order], 1e-9))
    group = np.empty(len(bits), np.int64)
    group[order] = np.minimum((ends - ends[0] / 2) / ends[-1] * count, count - 1).astype(np.int64)
    return np.unique(group, return_inverse=True)[1].astype(np.int32)


def number_groups(groups: Array, rows: int, key: int, level: int) -> Array:
    """Return the group of every latent of a level, numbered from 0.

    Each column is rotated by a random number of rows, so that a group's latents come from several
    rows, which thereby share their budgets.
    groups: (columns,), the group of each column; key: the prior's random key.  -> (rows, columns).
    """
    # The decoder draws the same rotations from the key.
    drawn = words(key, np.array([level]), len(groups), group=0, domain=ROTATIONS)[0]
    turns = drawn.astype(np.int64) % rows
    row = (np.arange(rows)[:, None] + turns) % rows
    return row * (int(groups.max()) + 1) + groups
