"""Relative-entropy coding by A* sampling: a sample of q costs about KL(q || p) bits.

Coder and decoder draw the same candidates z_1, z_2, ... of the prior p. With decreasing Gumbels
G_1 > G_2 > ..., the index n = argmax log q(z_n) / p(z_n) + G_n has z_n distributed as q, exactly
over all candidates and nearly over the first 2^bits. Maddison, Tarlow and Minka (A* sampling,
2014); Flamich, Markou and Hernandez-Lobato (2201.12857); the decoder uses its global bound.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...core.checks import between
from .philox import exponentials, normals

Array = np.ndarray[Any, Any]


def gumbels(key: int, count: int, group: int) -> Array:
    """Draw standard Gumbel numbers in decreasing order: G_n = -log(E_1 + ... + E_n).

    E_i: exponential numbers. key: the prior's random key; group: the number of a group of latents;
    each group has its own draws.  -> (count,).
    """
    return -np.log(np.cumsum(exponentials(key, count, group)))


def choose(log_ratio: Array, order: Array) -> int:
    """Choose one of n samples of the prior p so that it is a sample of the posterior q.

    log_ratio: log q / p of each candidate, up to a constant, (n,); order: n Gumbel numbers,
    falling. Returns the index of the largest log q / p plus Gumbel number.
    """
    return int(np.argmax(log_ratio + order))


def choose_naive(log_ratio: Array, order: Array) -> int:
    """Compute `choose` one candidate after the other, ending when no later one can win.

    log_ratio: log q / p of each of n candidates, (n,), of posterior q and prior p; order: n Gumbel
    numbers, falling. Returns the index of the chosen candidate.
    """
    best, index_of_best, bound = -np.inf, 0, log_ratio.max()
    for index, (ratio, gumbel) in enumerate(zip(log_ratio, order, strict=True)):
        # Gumbels fall from here on, and no ratio is above the bound
        if gumbel + bound < best:
            break
        if ratio + gumbel > best:
            best, index_of_best = ratio + gumbel, index
    return index_of_best


def candidates(key: int, group: int, width: int, bits: int) -> Array:
    """Draw the 2^bits candidates of a group of latents: rows of normal deviates.

    key: the prior's random key.  -> (2^bits, width) int32, in units of 1 / UNIT.
    """
    return normals(key, np.arange(1 << bits), width, group)


def candidate(key: int, group: int, width: int, index: int) -> Array:
    """Draw the candidate of one index without drawing the others.  -> (width,) int32."""
    return normals(key, np.array([index]), width, group)[0]


def pack(indices: Array, bits: int) -> bytes:
    """Pack numbers into bytes, lowest bit first, without gaps; zeros fill the last byte.

    indices: the numbers; bits: of each, at most 24.
    """
    between("bits", bits, 1, 24)
    # One row of bits for each number.
    parts = (np.asarray(indices, np.uint32)[:, None] >> np.arange(bits, dtype=np.uint32)) & 1
    return np.packbits(parts.astype(np.uint8).ravel(), bitorder="little").tobytes()


def unpack(payload: bytes, bits: int, count: int) -> Array:
    """Unpack the numbers that `pack` wrote.

    payload: the bytes; bits: of a number; count: of numbers.  -> (count,) int64.
    """
    flat = np.unpackbits(np.frombuffer(payload, np.uint8), bitorder="little")[: count * bits]
    return flat.reshape(count, bits).astype(np.int64) @ (1 << np.arange(bits, dtype=np.int64))


def packed_bytes(count: int, bits: int) -> int:
    """Return the number of bytes of `count` packed numbers."""
    return -(-count * bits // 8)
