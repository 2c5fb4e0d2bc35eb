"""The definitions of kernels/native/postings.c and words.c in numpy and Python."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Array = np.ndarray
Terms = Sequence[tuple[int, int, float]]  # group of lists, token, weight above 0
BLOCK = 64  # scores in a block; `best` first takes each block's maximum
WORD = re.compile(r"(?u)\b\w\w+\b")


class PostingLists(NamedTuple):
    """Posting lists of all tokens: list j is [starts[j], starts[j + 1]) of `docs` and `weights`.

    starts: (V + 1,) int64; docs: (n,) int32, ascending in each list; weights: (n,) float32 or
    float16; norm: (documents,) float32 where a weight c stands for BM25's c / (c + norm[d]).
    """

    starts: Array
    docs: Array
    weights: Array
    norm: Array | None = None


def weights_of(lists: PostingLists, part: slice) -> Array:
    """Return the weights of some postings in float32.  part: which of all postings."""
    weights = lists.weights[part].astype(np.float32)
    return weights if lists.norm is None else weights / (weights + lists.norm[lists.docs[part]])


def search(
    groups: Sequence[PostingLists], count: int, terms: Terms, k: int, mask: Array | None = None
) -> tuple[Array, Array]:
    """Return the k documents of the largest score sum_t q_t w_t(d) above 0, and their scores.

    groups: lists over the same documents; count: of documents; terms: (group, token, q_t); mask:
      (count,) bool, False = left out.  -> (found,) int32 and float32, largest first, equal scores
      by document.
    """
    scores = np.zeros(count, np.float32)
    for group, token, weight in sorted(terms, key=lambda term: -term[2]):
        lists = groups[group]
        part = slice(int(lists.starts[token]), int(lists.starts[token + 1]))
        # a document is once in a list
        scores[lists.docs[part]] += np.float32(weight) * weights_of(lists, part)
    if mask is not None:
        scores[~mask] = 0
    docs = best(scores, k)
    return docs.astype(np.int32), scores[docs]


def best(scores: Array, k: int) -> Array:
    """Return the indices of the k largest scores above 0, largest first, ties by index."""
    blocks, least = len(scores) // BLOCK, np.finfo(np.float32).smallest_subnormal
    if blocks > k:
        # the k-th largest of the blocks' maxima: at least k scores reach it, others cannot win
        tops = scores[: blocks * BLOCK].reshape(BLOCK, blocks).max(0)
        least = max(least, np.partition(tops, blocks - k)[blocks - k])
    candidates = np.flatnonzero(scores >= least)
    if k < len(candidates):
        candidate_scores = scores[candidates]
        # all that tie with the last one, so that the choice among them is by index, not by chance
        candidates = candidates[
            candidate_scores
            >= np.partition(candidate_scores, len(candidate_scores) - k)[len(candidate_scores) - k]
        ]
    return candidates[np.argsort(-scores[candidates], kind="stable")][:k]


def count(numbers: Array, ends: Array, size: int) -> PostingLists:
    """Count how often each text has each number.

    numbers: (n,) int32, below size, those below 0 are left out; ends: (texts,), where each text's
      numbers end. The weights are counts, float32.
    """
    texts = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    valid = numbers >= 0
    # sorted by number, then by text
    pairs = numbers[valid].astype(np.int64) * max(1, len(ends)) + texts[valid]
    pairs, counts = np.unique(pairs, return_counts=True)
    listed, docs = np.divmod(pairs, max(1, len(ends)))
    starts = np.zeros(size + 1, np.int64)
    np.cumsum(np.bincount(listed, minlength=size), out=starts[1:])
    return PostingLists(starts, docs.astype(np.int32), counts.astype(np.float32))


class WordNumbers:
    """Numbers of the words of texts, as they come: runs of two letters or more, in lower case."""

    def __init__(self) -> None:
        self._numbers = dict[str, int]()

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, texts: Sequence[str]) -> tuple[Array, Array]:
        """Return the numbers of all words of texts, (n,) int32, and where each text's end."""
        numbers, so_far = self._numbers, list[int]()
        ends = np.zeros(len(texts), np.int64)
        for i, text in enumerate(texts):
            so_far += [numbers.setdefault(w, len(numbers)) for w in WORD.findall(text.lower())]
            ends[i] = len(so_far)
        return np.array(so_far, np.int32), ends

    def since(self, first: int) -> list[str]:
        """Return the words from a number on.  first: that number."""
        return list(self._numbers)[first:]
