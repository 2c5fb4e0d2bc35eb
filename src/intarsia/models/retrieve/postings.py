"""Posting lists: for each token the documents that have it, and how much it weighs in each.

score(q, d) = sum_j q_j d_j over the distinct tokens j of the query: a walk over the lists of those
tokens alone. numpy and no torch, for a query takes a tenth of a millisecond.
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
BLOCK = 64  # scores of which the largest is taken, when the best are looked for
STORED = ("float16", "float32", "uint8")
Query = Sequence[tuple[int, float]]  # distinct tokens and their weights


@dataclass(frozen=True)
class Postings:
    """Lists by token in one array each, as a sparse matrix in columns has them.

    starts: (V + 1,) int64, list j is [starts[j], starts[j + 1]); docs: (n,) int64, ascending in
    each list; weights: (n,) float32, above 0; count: the documents, those without a token too.
    """

    starts: Array
    docs: Array
    weights: Array
    count: int

    @classmethod
    def of(cls, rows: Any) -> Postings:
        """The lists of a sparse matrix (documents, V) of weights; what is not above 0 is left out.

        A weight that is no number is left out, too.
        """
        matrix: Any = sp.csr_matrix(rows, dtype=np.float32)
        matrix.sum_duplicates()
        matrix.data[~(matrix.data > 0)] = 0
        matrix.eliminate_zeros()
        columns = matrix.tocsc()
        columns.sort_indices()
        starts, docs = columns.indptr.astype(np.int64), columns.indices.astype(np.int64)
        return cls(starts, docs, columns.data, matrix.shape[0])

    @property
    def tokens(self) -> int:
        """V, the size of the vocabulary."""
        return len(self.starts) - 1

    def matrix(self) -> Any:
        """The weights as a sparse matrix (documents, V) in columns."""
        shape = self.count, self.tokens
        return sp.csc_matrix((self.weights, self.docs, self.starts), shape=shape)

    def rows(self, kept: Array | None = None) -> Any:
        """The weights as a sparse matrix in rows, of all documents or of those that are kept."""
        rows = self.matrix().tocsr()
        return rows if kept is None else rows[kept]

    def frequencies(self) -> Array:
        """In how many documents each token is.  (V,)."""
        return np.diff(self.starts)

    def scores(self, query: Query) -> Array:
        """sum_j q_j d_j of every document.  (documents,) float32."""
        return added([(self, query)], self.count)

    @cached_property
    def edges(self) -> list[int]:
        """starts as Python's own numbers, which cut a list out in half the time."""
        return self.starts.tolist()

    def scores_of(self, query: Query, chosen: Array) -> Array:
        """The scores of some documents, given in ascending order.  (chosen,)."""
        found = np.zeros(len(chosen), np.float32)
        chosen = chosen.astype(self.docs.dtype)  # a search among another type copies whole lists
        for token, weight in query:
            part = slice(self.starts[token], self.starts[token + 1])
            docs = self.docs[part]
            if len(docs):
                place = np.minimum(np.searchsorted(docs, chosen), len(docs) - 1)
                hit = docs[place] == chosen
                found[hit] += np.float32(weight) * self.weights[part][place[hit]]
        return found

    def encode(self, stored: str = "float16") -> dict[str, Array]:
        """The arrays that are written.  stored: of the weights, one of STORED.

        uint8 has one scale for each token: the weights of its list are k / 255 of their largest.
        """
        one_of("weights", stored, STORED)
        arrays = {"starts": self.starts, "docs": self.docs.astype(np.int32)}
        if stored != "uint8":
            range_ = np.finfo(stored)  # half floats end at 65,504 and have nothing below 6e-8
            within = np.clip(self.weights, range_.smallest_subnormal, range_.max)
            return arrays | {"weights": within.astype(stored)}
        lists = np.repeat(np.arange(self.tokens), self.frequencies())
        scales = np.zeros(self.tokens, np.float32)
        np.maximum.at(scales, lists, self.weights)
        codes = np.rint(255 * self.weights / scales[lists]) if len(lists) else self.weights
        return arrays | {"weights": np.maximum(codes, 1).astype(np.uint8), "scales": scales}

    @classmethod
    def decode(cls, arrays: dict[str, Array], count: int) -> Postings:
        """The lists that `encode` wrote.  Raises: CheckpointError where they cannot be lists."""
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
        inner = np.ones(max(0, len(docs) - 1), bool)
        first = starts[1:-1]
        inner[first[(first > 0) & (first < len(docs))] - 1] = False  # from one list to the next
        if (np.diff(docs)[inner] <= 0).any():
            raise _damaged("a list that does not ascend")
        if weights.dtype == np.uint8:
            scales = arrays.get("scales")
            if scales is None or scales.shape != (len(starts) - 1,):
                raise _damaged("codes without a scale for each token")
            weights = weights.astype(np.float32) * np.repeat(scales / 255, np.diff(starts))
        weights = weights.astype(np.float32)
        if not (np.isfinite(weights).all() and (weights > 0).all()):
            raise _damaged("weights that are not above 0")
        return cls(starts, docs.astype(np.int64), weights, count)


def _damaged(got: str) -> CheckpointError:
    fix = "Copy the index again from its source, or build it anew."
    return CheckpointError("posting lists", got=got, want="what an index writes", fix=fix)


def added(parts: Sequence[tuple[Postings, Query]], count: int) -> Array:
    """The scores of queries for lists over the same `count` documents, added up.  (count,)."""
    total = np.zeros(count, np.float32)
    docs, weights, sizes, asked = list[Array](), list[Array](), list[int](), list[float]()
    for lists, query in parts:
        edges = lists.edges
        for token, weight in query:
            first, last = edges[token], edges[token + 1]
            docs.append(lists.docs[first:last])
            weights.append(lists.weights[first:last])
            sizes.append(last - first)
            asked.append(weight)
    if docs:
        adds = np.concatenate(weights)
        adds *= np.repeat(np.array(asked, np.float32), sizes)
        # one call for all lists, and of int64: a fifth of the time of total[docs] += ... for each
        np.add.at(total, np.concatenate(docs), adds)
    return total


def merged(parts: Sequence[Postings], kept: Sequence[Array | None]) -> Postings:
    """One set of lists, of the documents that are kept, in their order.

    kept: (documents,) bool of each part; None = all.
    """
    rows = [part.rows(own) for part, own in zip(parts, kept, strict=True)]
    return Postings.of(sp.vstack(rows, format="csr"))


def best(scores: Array, k: int) -> Array:
    """The numbers of the k largest scores above 0, largest first, ties by number.  (<= k,)."""
    blocks, least = len(scores) // BLOCK, np.finfo(np.float32).smallest_subnormal
    if blocks > k:
        # k blocks have a score of this and more, so that fewer are looked at than are above 0
        tops = scores[: blocks * BLOCK].reshape(BLOCK, blocks).max(0)
        least = max(least, np.partition(tops, blocks - k)[blocks - k])
    found = np.flatnonzero(scores >= least)
    if k < len(found):
        own = scores[found]
        # all that tie with the last one, so that which of them is kept does not depend on chance
        found = found[own >= np.partition(own, len(own) - k)[len(own) - k]]
    return found[np.argsort(-scores[found], kind="stable")][:k]


def search_naive(rows: Any, query: Query, k: int) -> list[tuple[int, float]]:
    """The same by the definition: every document, every token of the query.

    rows: a sparse matrix (documents, V).
    """
    dense = np.asarray(rows.todense())
    scores = {i: sum(q * float(row[j]) for j, q in query) for i, row in enumerate(dense)}
    found = sorted((i for i, s in scores.items() if s > 0), key=lambda i: (-scores[i], i))
    return [(i, scores[i]) for i in found[:k]]
