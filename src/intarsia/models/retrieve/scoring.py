"""The scores of an index's documents for a query: learned tokens and stems, joined.

s(q, d) = (1 - share) L(q, d) / max_d L + share B(q, d) / max_d B, as `Lexical` says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .lexical import Bm25Lists, Lexical, stems
from .postings import Array, Postings, Query, added, best
from .query_weights import QueryWeights
from .segment import Segment

HEAVY = 0.4  # of the heaviest token's weight: the first of two phases (OpenSearch's default)


@dataclass(frozen=True)
class JoinedQuery:
    """A query: its tokens and weights, and its stems as each segment numbers them."""

    tokens: Query
    stems: Sequence[Query] = ()


class Scorer:
    """Scores all documents of some segments.

    lexical: None = the learned scores as they are.
    """

    def __init__(
        self, segments: Sequence[Segment], queries: QueryWeights, lexical: Lexical | None
    ) -> None:
        self.segments, self.queries, self.lexical = segments, queries, lexical
        own = [s.stems for s in segments if s.stems is not None]
        self.bm25 = None if lexical is None or not lexical.share else Bm25Lists(own, lexical)
        self.learned = lexical is None or lexical.share < 1

    def joined(self, texts: Sequence[str], *, prune: float, max_df: float) -> Iterator[JoinedQuery]:
        """Yield the queries as they are looked up.

        prune: of its weights those below this share of the heaviest are left out; max_df: so are
        tokens and stems that are in more than this share of the documents.
        """
        tokens: Any = [[] for _ in texts]
        if self.learned:
            tokens = self.queries.of_many(texts, prune=prune)
        if max_df < 1:
            most = max_df * sum(segment.postings.count for segment in self.segments)
            counts = frequencies(self.segments, len(self.queries.weights))
            tokens = [[(t, w) for t, w in query if counts[t] <= most] for query in tokens]
        if self.bm25 is None or self.lexical is None:
            yield from map(JoinedQuery, tokens)
            return
        words: Any = stems(texts, self.lexical.language)
        for query, own in zip(tokens, words, strict=True):
            yield JoinedQuery(query, self.bm25.queries(own, prune=prune, max_df=max_df))

    def scores(
        self, query: JoinedQuery, k: int = 10, two_phase: float | None = None
    ) -> tuple[list[Array], tuple[float, float]]:
        """The scores of each segment's documents, and what learned and BM25's were multiplied with.

        Deleted documents have 0.  two_phase: see `SparseIndex.search`.
        """
        if self.bm25 is None or self.lexical is None:
            pairs = [(s, self._learned(s, query.tokens, k, two_phase)) for s in self.segments]
            return [_alive(s, added(own, s.postings.count)) for s, own in pairs], (1.0, 0.0)
        both: list[Array] = []  # (2, documents) of each segment
        for segment, lists, stem in zip(self.segments, self.bm25.lists, query.stems, strict=True):
            parts = [*self._learned(segment, query.tokens, k, two_phase), (lists, stem)]
            scores = added(parts, lists.count).reshape(2, segment.postings.count)
            both.append(_alive(segment, scores))
        tops = np.max([own.max(1, initial=0) for own in both], axis=0, initial=0)
        share = np.array([1 - self.lexical.share, self.lexical.share], np.float32)
        factors = np.divide(share, tops, out=np.zeros_like(share), where=tops > 0)
        return [factors @ own for own in both], (float(factors[0]), float(factors[1]))

    def _learned(
        self, segment: Segment, query: Query, k: int, two_phase: float | None
    ) -> list[tuple[Postings, Query]]:
        """The lists of a query's tokens; of two phases those of the first phase's best alone."""
        lists = segment.postings
        if two_phase is None or not query:
            return [(lists, query)]
        first = lists.scores([(t, w) for t, w in query if w >= HEAVY * query[0][1]])
        chosen = np.sort(best(_alive(segment, first), int(k * two_phase)))
        return [
            (
                Postings(
                    np.array([0, len(chosen)]), chosen, lists.scores_of(query, chosen), lists.count
                ),
                [(0, 1.0)],
            )
        ]


def frequencies(segments: Sequence[Segment], size: int) -> Array:
    """In how many documents' vectors each of the tokens is, deleted ones too.  (V,)."""
    return sum((s.postings.frequencies() for s in segments), np.zeros(size, np.int64))


def _alive(segment: Segment, scores: Array) -> Array:
    """Scores, (documents,) or (..., documents), of deleted documents 0."""
    if segment.deleted:
        scores[..., list(segment.deleted)] = 0
    return scores
