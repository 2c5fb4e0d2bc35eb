"""65,536 words of pairs of ternary digits, the most probable ones (QMoE, section 4.2)."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

WORDS, PAIRS = 2**16, 14  # as a code of 16 bits tells apart; pairs of a word at most
DIGITS = 2 * PAIRS
ROOT = WORDS  # the empty word, in `next`


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Words by their code, the most probable first; every beginning of a word is a word.

    digits: (65536, 28) uint8, 0 behind the end; lengths: (65536,) int64, digits of each.
    next: (65537, 9) int64, the word that is one pair longer, -1 = none; row 65536: the empty word.
    table: (65536, 2) int32, as the kernel reads it: 16 digits of 2 bits | 12 digits, and the length
    in the top byte.
    """

    digits: Tensor
    lengths: Tensor
    next: Tensor
    table: Tensor

    @property
    def hash(self) -> str:
        """SHA-256 of the table: two builds that agree decode each other's files."""
        return hashlib.sha256(self.table.numpy().tobytes()).hexdigest()


@lru_cache(maxsize=4)
def dictionary(zeros: float = 0.885) -> Dictionary:
    """Build the dictionary of the 65,536 most probable words, runs of digits 0, 1 and 2.

    zeros: p0, the probability of a digit 0; 1 and 2 are equally probable. A word of n pairs of
      digits, with k of them not 0, has probability p0^(2n - k) ((1 - p0) / 2)^k. Words are ordered
      by falling probability, equal ones lexicographically. Built once in a process, in 0.3 s.
    """
    words: list[tuple[int, ...]] = []
    # take the most probable classes whole, and the last one in the order of its words
    for pairs, nonzeros in _classes(zeros):
        room = WORDS - len(words)
        if not room:
            break
        if math.comb(2 * pairs, nonzeros) * 2**nonzeros <= room:
            words += sorted(_of_class(pairs, nonzeros))
        else:  # a class too large for the room: its first words alone
            words += itertools.islice(_in_order(2 * pairs, nonzeros), room)
    digits = np.zeros((WORDS, DIGITS), np.uint8)
    lengths = np.array([len(word) for word in words], np.int64)
    code = {word: number for number, word in enumerate(words)}
    following = np.full((WORDS + 1, 9), -1, np.int64)
    # a word is found by its beginning and its last pair of digits
    for number, word in enumerate(words):
        digits[number, : len(word)] = word
        *start, a, b = word
        following[code[tuple(start)] if start else ROOT, 3 * a + b] = number
    # The kernel's table has 2 bits for a digit, and the length behind them.
    place = np.arange(16, dtype=np.uint64) * 2
    # 64 bits, so that shifts do not overflow.
    wide = digits.astype(np.uint64)
    first = (wide[:, :16] << place).sum(1)
    second = (wide[:, 16:] << place[:12]).sum(1) | lengths.astype(np.uint64) << np.uint64(24)
    table = np.stack([first, second], 1).astype(np.uint32).view(np.int32)
    parts = (torch.from_numpy(part) for part in (digits, lengths, following, table))
    return Dictionary(*parts)


def _classes(zeros: float) -> list[tuple[int, int]]:
    """Return all classes (n, k), words of n pairs of digits with k not 0, most probable first."""

    # The log-probability of a word of the class.
    def log(pairs: int, nonzeros: int) -> float:
        return (2 * pairs - nonzeros) * math.log(zeros) + nonzeros * math.log((1 - zeros) / 2)

    classes = [(n, k) for n in range(1, PAIRS + 1) for k in range(2 * n + 1)]
    return sorted(classes, key=lambda c: (-log(*c), c))


def _of_class(pairs: int, nonzeros: int) -> Iterator[tuple[int, ...]]:
    """Yield all words of one length with one number of non-zero digits, in no special order."""
    for places in itertools.combinations(range(2 * pairs), nonzeros):
        for values in itertools.product((1, 2), repeat=nonzeros):
            word = [0] * (2 * pairs)
            for place, value in zip(places, values, strict=True):
                word[place] = value
            yield tuple(word)


def _in_order(count: int, nonzeros: int) -> Iterator[tuple[int, ...]]:
    """Yield all words of one length with one number of non-zero digits, in lexicographic order."""
    if not count:
        yield ()
        return
    for digit in range(3):
        # The other digits must be able to hold the non-zero ones that remain.
        remaining = nonzeros - (digit > 0)
        if 0 <= remaining < count:
            yield from ((digit, *rest) for rest in _in_order(count - 1, remaining))
