"""Posting lists: for each token the documents that have it, and its weight in each.

score(q, d) = sum_j q_j d_j over the distinct tokens j of the query reads the lists of those tokens
alone. The code is numpy, not torch, since a query takes a tenth of a millisecond.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp

from ...core.checks import one_of
from ...core.errors import CheckpointError

Array = np.ndarray
BLOCK = 64  # scores in a block; `best` first takes each block's maximum
STORED = ("float16", "float32", "uint8")
Query = Sequence[tuple[int, float]]  # distinct tokens and their weights


@dataclass(frozen=True)
class Postings:
    """Posting lists of all tokens in flat arrays, as a sparse matrix in column order.

    starts: (V + 1,) int64, list j is [starts[j], starts[j + 1]); docs: (n,) int64, ascending in
    each list; weights: (n,) float32, above 0; count: number of documents, also without a token.
    """

    starts: Array
    docs: Array
    weights: Array
    count: int

    @classmethod
    def of(cls, rows: Any) -> Postings:
        """Build the posting lists of a sparse matrix (documents, V) of weights.

        rows: the matrix. Weights that are not above 0, NaN among them, are left out.
        """
        matrix: Any = sp.csr_matrix(rows, dtype=np.float32)
        matrix.sum_duplicates()
        # the negated comparison catches NaN, too
        matrix.data[~(matrix.data > 0)] = 0
        matrix.eliminate_zeros()
        columns = matrix.tocsc()
        columns.sort_indices()
        starts, docs = columns.indptr.astype(np.int64), columns.indices.astype(np.int64)
        return cls(starts, docs, columns.data, matrix.shape[0])

    @property
    def tokens(self) -> int:
        """Size V of the vocabulary."""
        return len(self.starts) - 1

    def matrix(self) -> Any:
        """Return the weights as a sparse matrix (documents, V) in column order."""
        shape = self.count, self.tokens
        return sp.csc_matrix((self.weights, self.docs, self.starts), shape=shape)

    def rows(self, mask: Array | None = None) -> Any:
        """Return the weights in row order.  mask: (documents,) bool, None = all of them."""
        rows = self.matrix().tocsr()
        return rows if mask is None else rows[mask]

    def frequencies(self) -> Array:
        """Return the number of documents that have each token, (V,)."""
        return np.diff(self.starts)

    def scores(self, query: Query) -> Array:
        """Return sum_j q_j d_j of every document, (documents,) float32."""
        return sum_scores([(self, query)], self.count)

    @cached_property
    def edges(self) -> list[int]:
        """List of `starts` as Python integers, which slice arrays in half the time."""
        return self.starts.tolist()

    def scores_of(self, query: Query, docs: Array) -> Array:
        """Compute the scores sum_j q_j d_j of some documents.

        query: (token, weight) pairs; docs: (n,), numbers of documents, ascending.  -> (n,).
        """
        scores = np.zeros(len(docs), np.float32)
        docs = docs.astype(self.docs.dtype)  # a search among another type copies whole lists
        for token, weight in query:
            part = slice(self.starts[token], self.starts[token + 1])
            listed = self.docs[part]
            if len(listed):
                # both are sorted: a binary search finds each document in the list
                place = np.minimum(np.searchsorted(listed, docs), len(listed) - 1)
                hit = listed[place] == docs
                scores[hit] += np.float32(weight) * self.weights[part][place[hit]]
        return scores

    def encode(self, stored: str = "float16") -> dict[str, Array]:
        """Return the arrays to write into a file, by name.

        stored: type of the weights, one of STORED. uint8 has one scale for each token: the weights
          of its list are k / 255 of their largest.
        """
        one_of("weights", stored, STORED)
        arrays = {"starts": self.starts, "docs": self.docs.astype(np.int32)}
        if stored != "uint8":
            range_ = np.finfo(stored)  # clip: half floats end at 65,504, the smallest is 6e-8
            within = np.clip(self.weights, range_.smallest_subnormal, range_.max)
            return arrays | {"weights": within.astype(stored)}
        lists = np.repeat(np.arange(self.tokens), self.frequencies())
        # the largest weight of each list is its scale; code 0 would delete a posting, so 1 is least
        scales = np.zeros(self.tokens, np.float32)
        np.maximum.at(scales, lists, self.weights)
        codes = np.rint(255 * self.weights / scales[lists]) if len(lists) else self.weights
        return arrays | {"weights": np.maximum(codes, 1).astype(np.uint8), "scales": scales}

    @classmethod
    def decode(cls, arrays: dict[str, Array], count: int) -> Postings:
        """Read and check the arrays of `encode`.

        arrays: by name; count: of documents.  Raises: CheckpointError for arrays that do not fit
          together.
        """
        try:
            starts, docs, weights = arrays["starts"], arrays["docs"], arrays["weights"]
        except KeyError as error:
            raise _damaged(f"no {error}") from error
        if starts.ndim != 1 or starts.dtype != np.int64 or not len(starts) or starts[0] != 0:
            raise _damaged("starts that do not begin at 0")
        if (np.diff(starts) < 0).any() or starts[-1] != len(docs) or len(docs) != len(weights):
            raise _damaged("lists whose lengths do not fit")
        if docs.dtype != np.int32 or (len(docs) and not 0 <= docs.min() <= docs.max() < count):
            raise _damaged(f"documents outside 0 ... {count - 1}")
        # documents must ascend inside a list, but not from the end of one list to the next
        inner = np.ones(max(0, len(docs) - 1), bool)
        first = starts[1:-1]
        inner[first[(first > 0) & (first < len(docs))] - 1] = False  # steps to the next list
        if (np.diff(docs)[inner] <= 0).any():
            raise _damaged("a list that does not ascend")
        if weights.dtype == np.uint8:
            scales = arrays.get("scales")
            if scales is None or scales.shape != (len(starts) - 1,):
                raise _damaged("codes without a scale for each token")
            # uint8 codes: multiples of a 255th of the list's largest weight
            weights = weights.astype(np.float32) * np.repeat(scales / 255, np.diff(starts))
        weights = weights.astype(np.float32)
        if not (np.isfinite(weights).all() and (weights > 0).all()):
            raise _damaged("weights that are not above 0")
        return cls(starts, docs.astype(np.int64), weights, count)


def _damaged(got: str) -> CheckpointError:
    """Return the error for arrays that are no posting lists."""
    fix = "Copy the index again from its source, or build it anew."
    return CheckpointError("posting lists", got=got, want="what an index writes", fix=fix)


def sum_scores(parts: Sequence[tuple[Postings, Query]], count: int) -> Array:
    """Add up the scores of queries on their posting lists, over the same documents.

    parts: (posting lists, query) pairs; count: number of documents.  -> (count,).
    """
    total = np.zeros(count, np.float32)
    docs, weights, sizes, query_weights = list[Array](), list[Array](), list[int](), list[float]()
    # collect the slices of all lists first, then add them in one call
    for lists, query in parts:
        edges = lists.edges
        for token, weight in query:
            first, last = edges[token], edges[token + 1]
            docs.append(lists.docs[first:last])
            weights.append(lists.weights[first:last])
            sizes.append(last - first)
            query_weights.append(weight)
    if docs:
        adds = np.concatenate(weights)
        adds *= np.repeat(np.array(query_weights, np.float32), sizes)
        # one call for all lists, and of int64: a fifth of the time of total[docs] += ... for each
        np.add.at(total, np.concatenate(docs), adds)
    return total


def merge_postings(parts: Sequence[Postings], alive: Sequence[Array | None]) -> Postings:
    """Join posting lists, without deleted documents, in the documents' order.

    parts: lists of several segments; alive: (documents,) bool of each, False = deleted; None = all.
    """
    # in rows documents can be dropped and stacked; `of` sorts them by token again
    rows = [part.rows(mask) for part, mask in zip(parts, alive, strict=True)]
    return Postings.of(sp.vstack(rows, format="csr"))


def best(scores: Array, k: int) -> Array:
    """Return the indices of the k largest scores above 0, largest first, ties by index.

    scores: (documents,) float32; k: how many at most.
    """
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


def search_naive(rows: Any, query: Query, k: int) -> list[tuple[int, float]]:
    """Search by the definition, over every document and every token of the query.

    rows: a sparse matrix (documents, V); query: (token, weight) pairs; k: how many.  Returns
      (index, score) of the k best, as `best`.
    """
    dense = np.asarray(rows.todense())
    scores = {i: sum(q * float(row[j]) for j, q in query) for i, row in enumerate(dense)}
    positive = sorted((i for i, s in scores.items() if s > 0), key=lambda i: (-scores[i], i))
    return [(i, scores[i]) for i in positive[:k]]
