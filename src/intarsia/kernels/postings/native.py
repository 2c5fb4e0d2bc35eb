"""The kernels of postings.c: their signatures, and numpy where there are none."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_int64, c_void_p

import numpy as np

from ..native import function
from . import naive
from .naive import Array, PostingLists, Terms

P, N = c_void_p, c_int64
SEARCH, MAXIMA, CHECK = (P, P, P, N, N, P, N, P, P), (P, N), (P, N, P)
COUNT = (P, P, N, N, P, P, P, P)
KINDS = {np.dtype(np.float32): 0, np.dtype(np.float16): 1}
BLOCK = 128  # postings with one maximum, of postings.c
AT_ONCE = 2**20  # postings that numpy works on together


class Searcher:
    """Searcher of groups of posting lists over the same documents, by blocks' largest weights."""

    def __init__(self, groups: Sequence[PostingLists], count: int) -> None:
        """Compute the largest weight of each block of postings."""
        # learned tokens, stems; the number of documents
        self.groups, self.count = [_contiguous(lists) for lists in groups], count
        self._maxima = [
            np.zeros(len(lists.docs) // BLOCK + len(lists.starts), np.float32)
            for lists in self.groups
        ]
        pairs = zip(self.groups, self._maxima, strict=True)
        self._numbers = np.array([_numbers(*pair) for pair in pairs], np.int64).reshape(-1, 8)
        if (maxima := function("postings_maxima", *MAXIMA)) is not None:
            for row in self._numbers:
                maxima(_place(row), count)

    def search(self, terms: Terms, k: int, mask: Array | None = None) -> tuple[Array, Array]:
        """Return the k documents of the largest score, as `naive.search`, and their scores.

        terms: (group, token, weight) of the query; mask: (count,) bool, False = left out.
        """
        kernel = function("postings_search", *SEARCH)
        terms = sorted((term for term in terms if term[2] > 0), key=lambda term: -term[2])
        if kernel is None or not self._numbers.size:
            return naive.search(self.groups, self.count, terms, k, mask)
        k = min(k, self.count)
        numbers = np.array([term[:2] for term in terms], np.int64)
        weights = np.array([term[2] for term in terms], np.float32)
        docs, scores = np.empty(k, np.int32), np.empty(k, np.float32)
        out = None if mask is None else np.ascontiguousarray(mask, np.bool_)
        places = _place(self._numbers), _place(numbers), _place(weights)
        masked = None if out is None else _place(out)
        count_or_fault = kernel(
            *places, len(terms), self.count, masked, k, _place(docs), _place(scores)
        )
        if count_or_fault == -1:
            raise IndexError("a token that has no list")
        if count_or_fault < 0:
            raise MemoryError("no memory for the terms of a query")
        return docs[:count_or_fault], scores[:count_or_fault]


def damaged(lists: PostingLists, count: int) -> bool:
    """Return True for lists with documents that do not ascend or are not there, or weights <= 0."""
    kernel, ready = function("postings_check", *CHECK), _contiguous(lists)
    if kernel is not None:
        return bool(kernel(_place(_numbers(ready)), count, None))
    starts, docs, weights = lists.starts, lists.docs, lists.weights
    for first in range(0, len(docs), AT_ONCE):
        part = docs[first : first + AT_ONCE + 1]  # and the first of the next part
        block = weights[first : first + AT_ONCE]
        if part.min() < 0 or part.max() >= count or not ((block > 0) & np.isfinite(block)).all():
            return True
        # documents must ascend inside a list, but not from the end of one list to the next
        falls = np.flatnonzero(np.diff(part) <= 0) + first + 1
        if not np.isin(falls, starts).all():
            return True
    return False


def lengths(lists: PostingLists, count: int) -> Array:
    """Add up the weights of each document, (count,) float32.  lists: as `damaged` finds whole."""
    kernel, total = function("postings_check", *CHECK), np.zeros(count, np.float32)
    ready = _contiguous(lists)
    if kernel is not None:
        kernel(_place(_numbers(ready)), count, _place(total))
        return total
    sums = np.zeros(count)
    for first in range(0, len(lists.docs), AT_ONCE):
        part = slice(first, first + AT_ONCE)
        sums += np.bincount(lists.docs[part], lists.weights[part], count)
    return sums.astype(np.float32)


def count(numbers: Array, ends: Array, size: int) -> PostingLists:
    """Count how often each text has each number, as `naive.count`."""
    kernel = function("postings_count", *COUNT)
    if kernel is None:
        return naive.count(numbers, ends, size)
    numbers, ends = np.ascontiguousarray(numbers, np.int32), np.ascontiguousarray(ends, np.int64)
    if len(ends) and ends[-1] > len(numbers):
        raise IndexError("texts that end after the last number")
    starts, last = np.empty(size + 1, np.int64), np.empty(size, np.int32)
    docs, counts = np.empty(len(numbers), np.int32), np.empty(len(numbers), np.float32)
    of_texts = _place(numbers), _place(ends), len(ends), size
    count_or_fault = kernel(*of_texts, *map(_place, (starts, last, docs, counts)))
    if count_or_fault < 0:
        raise IndexError("a number outside the vocabulary")
    return PostingLists(starts, docs[:count_or_fault].copy(), counts[:count_or_fault].copy())


def _contiguous(lists: PostingLists) -> PostingLists:
    """Return lists whose arrays C can read: contiguous, of the types that it knows."""
    kind = lists.weights.dtype if lists.weights.dtype in KINDS else np.dtype(np.float32)
    norm = None if lists.norm is None else np.ascontiguousarray(lists.norm, np.float32)
    return PostingLists(
        np.ascontiguousarray(lists.starts, np.int64),
        np.ascontiguousarray(lists.docs, np.int32),
        np.ascontiguousarray(lists.weights, kind),
        norm,
    )


def _numbers(lists: PostingLists, maxima: Array | None = None) -> Array:
    """Return lists as the eight numbers that C reads: sizes and addresses."""
    starts, docs, weights, norm = lists
    sizes = KINDS[weights.dtype], len(starts) - 1, len(docs)
    places = [0 if a is None else _place(a) for a in (starts, docs, weights, norm, maxima)]
    return np.array([*sizes, *places], np.int64)


def _place(array: Array) -> int:
    """Return the address of an array, in a third of the time that `array.ctypes` takes."""
    return array.__array_interface__["data"][0]
