"""Philox4x32-10: random bits by counter, in integer arithmetic, the same on every machine.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). Normal
deviates come from a table of 2^16 quantiles in fixed point, so that no bit depends on a logarithm
or a sum of floats.
"""

from __future__ import annotations

import functools
import hashlib
from statistics import NormalDist
from typing import Any

import numpy as np

from ...core.errors import CheckpointError

Array = np.ndarray[Any, Any]

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
WORD = 0xFFFFFFFF
QUANTILE_BITS = 16
UNIT = 1 << 16  # a deviate of 1 in the table
TABLE = "ee46eda6"  # first bytes of the SHA-256 of the table
# kinds of draws, each with words of its own
NORMALS = 0
EXPONENTIALS = 1
ROTATIONS = 3


def philox(counter: Array, key: int) -> Array:
    """Generate four words of 32 random bits for each counter.

    counter: (..., 4) of words; key: 64 bits.  -> (..., 4) uint64, each below 2^32.
    """
    c0, c1, c2, c3 = np.moveaxis(counter.astype(np.uint64), -1, 0)
    k0, k1 = key & WORD, key >> 32 & WORD
    mask, half = np.uint64(WORD), np.uint64(32)
    for _ in range(ROUNDS):
        # 64-bit products: high halves are mixed with the key, low halves change places
        p0, p1 = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c2 = (p1 >> half) ^ c1 ^ np.uint64(k0), (p0 >> half) ^ c3 ^ np.uint64(k1)
        c1, c3 = p1 & mask, p0 & mask
        k0, k1 = (k0 + WEYL[0]) & WORD, (k1 + WEYL[1]) & WORD
    return np.stack((c0, c1, c2, c3), axis=-1)


def words(key: int, samples: Array, width: int, group: int, domain: int) -> Array:
    """Generate random words of 32 bits that depend on their numbers alone, not on earlier draws.

    key: 64 bits; samples: (n,), the numbers of the samples that are wanted; group: of latents;
      domain: the kind of draws, such as NORMALS. Other numbers give independent words.
    -> (n, width) uint64.
    """
    blocks = -(-width // 4)
    counter = np.empty((len(samples), blocks, 4), np.uint64)
    counter[..., 0] = samples[:, None]
    counter[..., 1] = np.arange(blocks)
    counter[..., 2], counter[..., 3] = group, domain
    return philox(counter, key).reshape(len(samples), -1)[:, :width]


@functools.cache
def quantiles() -> Array:
    """Compute normal quantiles at (i + 1/2) / 2^16 in units of 1 / UNIT.  -> (2^16,) int32.

    None of them is so near to half an integer that the error of a library could change its
    rounding.
    Raises: CheckpointError on a machine with a different table: it would decode other weights.
    """
    normal, count = NormalDist(), 1 << QUANTILE_BITS
    # The lower half mirrors the upper one, so that the table is exactly symmetric.
    upper = [
        round(normal.inv_cdf((2 * i + 1) / (2 * count)) * UNIT) for i in range(count // 2, count)
    ]
    half = np.array(upper, dtype="<i4")
    table = np.concatenate([-half[::-1], half])
    digest = hashlib.sha256(table.tobytes()).hexdigest()[:8]
    if digest != TABLE:
        fix = "Decode on another machine, and report this one's processor and Python."
        raise CheckpointError("table of normal quantiles", got=digest, want=TABLE, fix=fix)
    table.flags.writeable = False
    return table


def normals(key: int, samples: Array, width: int, group: int) -> Array:
    """Draw normal deviates in units of 1 / UNIT, two from each word.

    samples: (n,), numbers of samples; group: number of a group of latents; its draws are
      independent of other groups'.  -> (n, width) int32.
    """
    drawn = words(key, samples, -(-width // 2), group, domain=NORMALS)
    low, high = drawn & np.uint64(UNIT - 1), drawn >> np.uint64(QUANTILE_BITS)
    pairs = np.stack((low, high), axis=-1).reshape(len(samples), -1)[:, :width]
    return quantiles()[pairs.astype(np.int64)]


def exponentials(key: int, count: int, group: int) -> Array:
    """Draw exponential deviates as floats, which only the encoder needs.  -> (count,)."""
    drawn = words(key, np.zeros(1), count, group, domain=EXPONENTIALS)[0]
    return -np.log((drawn.astype(np.float64) + 0.5) / 2.0**32)
