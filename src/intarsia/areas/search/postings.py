"""Posting lists: for each token the documents that have it, and its weight in each.

score(q, d) = sum_j q_j d_j over the distinct tokens j of the query reads the lists of those tokens
alone. The code is C and numpy, not torch, since a query takes a tenth of a millisecond.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from ...core.checks import one_of
from ...core.errors import CheckpointError
from ...kernels.postings import PostingLists, damaged, weights_of
from ...kernels.postings import best as best

Array = np.ndarray
STORED = ("float16", "float32", "uint8")
Query = Sequence[tuple[int, float]]  # distinct tokens and their weights


@dataclass(frozen=True)
class Postings:
    """Posting lists of all tokens in flat arrays, as a sparse matrix in column order.

    starts: (V + 1,) int64, list j is [starts[j], starts[j + 1]); docs: (n,) int32, ascending in
    each list; weights: (n,) float32 or float16, above 0, all three possibly mapped from a file;
    count: number of documents, also without a token; norm: (count,) float32 where a weight c stands
    for BM25's c / (c + norm[d]).
    """

    starts: Array
    docs: Array
    weights: Array
    count: int
    norm: Array | None = None

    @classmethod
    def of(cls, rows: Any) -> Postings:
        """Build the posting lists of a sparse matrix (documents, V) of weights.

        Weights that are not above 0, NaN among them, are left out.
        """
        matrix: Any = sp.csr_matrix(rows, dtype=np.float32)
        matrix.sum_duplicates()
        # the negated comparison catches NaN, too
        matrix.data[~(matrix.data > 0)] = 0
        matrix.eliminate_zeros()
        columns = matrix.tocsc()
        columns.sort_indices()
        starts, docs = columns.indptr.astype(np.int64), columns.indices.astype(np.int32)
        return cls(starts, docs, columns.data, matrix.shape[0])

    @property
    def tokens(self) -> int:
        """Size V of the vocabulary."""
        return len(self.starts) - 1

    def matrix(self) -> Any:
        """Return the weights as a sparse matrix (documents, V) in column order."""
        shape = self.count, self.tokens
        weights = weights_of(self.lists, slice(None))
        return sp.csc_matrix((weights, self.docs, self.starts), shape=shape)

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

    @property
    def lists(self) -> PostingLists:
        """The arrays, as the kernels take them."""
        return PostingLists(self.starts, self.docs, self.weights, self.norm)

    def scores_of(self, query: Query, docs: Array) -> Array:
        """Compute the scores sum_j q_j d_j of some documents.

        query: (token, weight) pairs; docs: (n,), numbers of documents, ascending.  -> (n,).
        """
        scores = np.zeros(len(docs), np.float32)
        docs = docs.astype(self.docs.dtype)  # a search among another type copies whole lists
        for token, weight in query:
            part = slice(int(self.starts[token]), int(self.starts[token + 1]))
            listed = self.docs[part]
            if len(listed):
                # both are sorted: a binary search finds each document in the list
                place = np.minimum(np.searchsorted(listed, docs), len(listed) - 1)
                hit = listed[place] == docs
                scores[hit] += np.float32(weight) * weights_of(self.lists, part)[place[hit]]
        return scores

    def encode(self, stored: str = "float16") -> dict[str, Array]:
        """Return the arrays to write into a file, by name.

        stored: type of the weights, one of STORED. uint8 has one scale for each token: the weights
          of its list are k / 255 of their largest.
        """
        one_of("weights", stored, STORED)
        arrays = {"starts": self.starts, "docs": self.docs}
        if self.weights.dtype == stored:
            return arrays | {"weights": self.weights}
        if stored != "uint8":
            range_ = np.finfo(stored)  # clip: half floats end at 65,504, the smallest is 6e-8
            within = np.clip(self.weights, range_.smallest_subnormal, range_.max)
            return arrays | {"weights": within.astype(stored)}
        lists = np.repeat(np.arange(self.tokens), self.frequencies())
        # the largest weight of each list is its scale; code 0 would delete a posting, so 1 is least
        scales = np.zeros(self.tokens, np.float32)
        np.maximum.at(scales, lists, self.weights.astype(np.float32))
        codes = np.rint(255 * self.weights / scales[lists]) if len(lists) else self.weights
        return arrays | {"weights": np.maximum(codes, 1).astype(np.uint8), "scales": scales}

    @classmethod
    def decode(cls, arrays: dict[str, Array], count: int) -> Postings:
        """Read and check the arrays of `encode`.  Raises: CheckpointError for misfits."""
        try:
            starts, docs, weights = arrays["starts"], arrays["docs"], arrays["weights"]
        except KeyError as error:
            raise _damaged(f"no {error}") from error
        if starts.ndim != 1 or starts.dtype != np.int64 or not len(starts) or starts[0] != 0:
            raise _damaged("starts that do not begin at 0")
        if (np.diff(starts) < 0).any() or starts[-1] != len(docs) or len(docs) != len(weights):
            raise _damaged("lists whose lengths do not fit")
        if docs.dtype != np.int32:
            raise _damaged(f"documents of {docs.dtype}")
        if weights.dtype == np.uint8:
            scales = arrays.get("scales")
            if scales is None or scales.shape != (len(starts) - 1,):
                raise _damaged("codes without a scale for each token")
            # uint8 codes: multiples of a 255th of the list's largest weight
            weights = weights.astype(np.float32) * np.repeat(scales / 255, np.diff(starts))
        if weights.dtype not in (np.float16, np.float32):
            weights = weights.astype(np.float32)
        postings = cls(starts, docs, weights, count)
        if damaged(postings.lists, count):
            raise _damaged("a list that does not ascend, or weights that are not above 0")
        return postings


def _damaged(got: str) -> CheckpointError:
    fix = "Copy the index again from its source, or build it anew."
    return CheckpointError("posting lists", got=got, want="what an index writes", fix=fix)


def sum_scores(parts: Sequence[tuple[Postings, Query]], count: int) -> Array:
    """Add up the scores of queries on their posting lists, over the same documents.

    parts: (posting lists, query) pairs.  -> (count,).
    """
    total = np.zeros(count, np.float32)
    for lists, query in parts:
        for token, weight in query:
            part = slice(int(lists.starts[token]), int(lists.starts[token + 1]))
            # a document is once in a list
            total[lists.docs[part]] += np.float32(weight) * weights_of(lists.lists, part)
    return total


def merge_postings(
    parts: Sequence[Postings],
    alive: Sequence[Array | None],
    numbers: Sequence[Array] | None = None,
    size: int | None = None,
) -> Postings:
    """Join posting lists, without deleted documents, in the documents' order.

    alive: (documents,) bool of each, False = deleted; None = all; numbers: (tokens,) int64 of each,
    its tokens' numbers among all `size` of them; None = the same.
    """
    size = parts[0].tokens if size is None else size
    masks = [None if m is None or m.all() else m for m in alive]
    remaining = [_without_deleted(part, mask) for part, mask in zip(parts, masks, strict=True)]
    ways = numbers or [np.arange(part.tokens) for part in parts]
    starts = np.zeros(size + 1, np.int64)
    for part, new in zip(remaining, ways, strict=True):
        starts[1 + new] += part.frequencies()
    np.cumsum(starts, out=starts)
    kind = np.result_type(*(part.weights.dtype for part in remaining))
    docs, weights = np.empty(starts[-1], np.int32), np.empty(starts[-1], kind)
    after, before = starts[:-1].copy(), 0
    for part, new in zip(remaining, ways, strict=True):
        # each list goes behind those of the same token of earlier parts
        lengths = part.frequencies()
        place = np.repeat(after[new] - part.starts[:-1], lengths) + np.arange(len(part.docs))
        docs[place], weights[place] = part.docs + np.int32(before), part.weights
        after[new] += lengths
        before += part.count
    return Postings(starts, docs, weights, before)


def _without_deleted(part: Postings, mask: Array | None) -> Postings:
    """Return lists without the documents whose `mask`, (documents,) bool, is False; None = all."""
    if mask is None:
        return part
    is_alive = mask[part.docs]
    before = np.concatenate([[0], np.cumsum(is_alive)])
    number = np.cumsum(mask, dtype=np.int32) - 1
    docs = number[part.docs[is_alive]].astype(np.int32)
    return Postings(before[part.starts], docs, part.weights[is_alive], int(mask.sum()))


def search_naive(rows: Any, query: Query, k: int) -> list[tuple[int, float]]:
    """Search by the definition, over every document and every token of the query.

    rows: a sparse matrix (documents, V); query: (token, weight) pairs.  Returns (index, score) of
      the k best, as `best`.
    """
    dense = np.asarray(rows.todense())
    scores = {i: sum(q * float(row[j]) for j, q in query) for i, row in enumerate(dense)}
    positive = sorted((i for i, s in scores.items() if s > 0), key=lambda i: (-scores[i], i))
    return [(i, scores[i]) for i in positive[:k]]
