"""Scores of an index's documents for a query: learned tokens and BM25, joined.

s(q, d) = (1 - share) L(q, d) / max_d L + share B(q, d) / max_d B, see `Lexical`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ...kernels.postings import Searcher
from .lexical import Bm25Lists, Lexical, stems
from .postings import Array, Postings, Query, best, sum_scores
from .query_weights import QueryWeights
from .segment import Segment

HEAVY = 0.4  # share of the heaviest token's weight: tokens of phase one (OpenSearch's default)


@dataclass(frozen=True)
class JoinedQuery:
    """Query of both scores: its tokens with weights, and its stems for each segment."""

    tokens: Query
    stems: Sequence[Query] = ()


class Scorer:
    """Scorer of all documents of some segments.

    lexical: settings of BM25, None = learned scores alone.
    """

    def __init__(
        self, segments: Sequence[Segment], queries: QueryWeights, lexical: Lexical | None
    ) -> None:
        """Prepare the scores that `lexical.share` needs: BM25 above 0, learned ones below 1."""
        self.segments, self.queries, self.lexical = segments, queries, lexical
        all_stems = [s.stems for s in segments if s.stems is not None]
        self.bm25 = None if lexical is None or not lexical.share else Bm25Lists(all_stems, lexical)
        self.learned = lexical is None or lexical.share < 1

    def joined(self, texts: Sequence[str], *, prune: float, max_df: float) -> Iterator[JoinedQuery]:
        """Yield the tokens and stems of each query, with their weights.

        prune: leave out weights below this share of the query's heaviest; max_df: leave out tokens
          and stems that are in more than this share of the documents.
        """
        tokens: Any = [[] for _ in texts]
        if self.learned:
            tokens = self.queries.of_many(texts, prune=prune)
        if max_df < 1:
            limit = max_df * sum(segment.postings.count for segment in self.segments)
            # very frequent tokens have long lists and say little
            counts = frequencies(self.segments, len(self.queries.weights))
            tokens = [[(t, w) for t, w in query if counts[t] <= limit] for query in tokens]
        if self.bm25 is None or self.lexical is None:
            yield from map(JoinedQuery, tokens)
            return
        words: Any = stems(texts, self.lexical.language)
        for query, query_stems in zip(tokens, words, strict=True):
            yield JoinedQuery(query, self.bm25.queries(query_stems, prune=prune, max_df=max_df))

    def best(
        self,
        query: JoinedQuery,
        k: int,
        masks: Sequence[Array] | None = None,
        two_phase: float | None = None,
    ) -> list[tuple[Array, Array]]:
        """Return each segment's k documents of the largest score above 0, and their scores.

        masks: (documents,) bool of each segment, False = left out; None = all; two_phase: as
          `scores`, which it is equal to but for rounding: here only lists that can change the k
          best are read.
        """
        if two_phase is not None:
            return self._best_of_all(self.scores(query, k, two_phase)[0], k, masks)
        of_tokens = [(0, token, weight) for token, weight in query.tokens] if self.learned else []
        of_stems = [[(1, stem, weight) for stem, weight in stems_] for stems_ in query.stems]
        both: list[Any] = [
            [*of_tokens, *(of_stems[i] if of_stems else [])] for i in range(len(self.segments))
        ]
        masks_alive = self._alive(masks)
        if self.lexical is None or self.bm25 is None:
            return self._search(both, k, masks_alive)
        if not self.learned:
            hits = self._search(both, k, masks_alive)
            top = self._top(hits if masks is None else self._search(both, 1, self._alive(None)))
            return [(docs, scores / top if top else scores) for docs, scores in hits]
        # both scores are divided by their maxima over all documents
        alive, shares = self._alive(None), (1 - self.lexical.share, self.lexical.share)
        kinds = [[[t for t in terms if t[0] == g] for terms in both] for g in (0, 1)]
        tops = [self._top(self._search(of_kind, 1, alive)) for of_kind in kinds]
        factors = [share / top if top else 0.0 for share, top in zip(shares, tops, strict=True)]
        joined = [[(g, t, factors[g] * w) for g, t, w in terms] for terms in both]
        return self._search(joined, k, masks_alive)

    @cached_property
    def _searchers(self) -> list[Searcher]:
        """Searchers of the segments: group 0 are the learned tokens, group 1 the stems."""
        stems_: list[Any] = [None] * len(self.segments) if self.bm25 is None else self.bm25.lists
        return [
            Searcher([part.lists for part in (s.postings, of_stems) if part], s.postings.count)
            for s, of_stems in zip(self.segments, stems_, strict=True)
        ]

    def _search(
        self, terms: Sequence[Any], k: int, masks: Sequence[Array | None]
    ) -> list[tuple[Array, Array]]:
        """Return the best of each segment.  terms, masks: of each segment."""
        rows = zip(self._searchers, terms, masks, strict=True)
        return [searcher.search(of_segment, k, mask) for searcher, of_segment, mask in rows]

    def _alive(self, masks: Sequence[Array] | None) -> list[Array | None]:
        """Return masks of each segment without its deleted documents; None for all of them."""
        alive = [segment.alive if segment.deleted else None for segment in self.segments]
        if masks is None:
            return alive
        return [m if a is None else m & a for m, a in zip(masks, alive, strict=True)]

    @staticmethod
    def _top(hits: Sequence[tuple[Array, Array]]) -> float:
        """Return the largest score of all segments, 0 for none."""
        return max((float(scores[0]) for _, scores in hits if len(scores)), default=0.0)

    @staticmethod
    def _best_of_all(
        scores: Sequence[Array], k: int, masks: Sequence[Array] | None
    ) -> list[tuple[Array, Array]]:
        """Return the k best of scores of all documents, of each segment."""
        if masks is not None:
            scores = [
                np.where(m, of_segment, 0) for m, of_segment in zip(masks, scores, strict=True)
            ]
        numbers = [best(of_segment, k) for of_segment in scores]
        return [(docs, of_segment[docs]) for docs, of_segment in zip(numbers, scores, strict=True)]

    def scores(
        self, query: JoinedQuery, k: int = 10, two_phase: float | None = None
    ) -> tuple[list[Array], tuple[float, float]]:
        """Score each segment's documents; return the scores and the two factors of the sum.

        A score is factors[0] L + factors[1] B, L the learned score, B BM25's score.  Deleted
        documents have 0. two_phase: None = exact learned scores; else only the best two_phase * k
        documents by the heaviest tokens have one, see `SparseIndex.search`.
        """
        if self.bm25 is None or self.lexical is None:
            pairs = [(s, self._learned(s, query.tokens, k, two_phase)) for s in self.segments]
            return [_without_deleted(s, sum_scores(pair, s.postings.count)) for s, pair in pairs], (
                1.0,
                0.0,
            )
        both: list[Array] = []  # (2, documents) of each segment, or (1, documents) by BM25 alone
        for segment, lists, stem in zip(self.segments, self.bm25.lists, query.stems, strict=True):
            kinds = [self._learned(segment, query.tokens, k, two_phase)] if self.learned else []
            scores = np.stack([sum_scores(kind, lists.count) for kind in (*kinds, [(lists, stem)])])
            both.append(_without_deleted(segment, scores))
        # divide both scores by their maxima over all segments; a maximum of 0 gives factor 0
        tops = np.max([pair.max(1, initial=0) for pair in both], axis=0, initial=0)
        learned_share = [1 - self.lexical.share] if self.learned else []
        share = np.array([*learned_share, self.lexical.share], np.float32)
        factors = np.divide(share, tops, out=np.zeros_like(share), where=tops > 0)
        learned_factor = float(factors[0]) if self.learned else 0.0
        return [factors @ pair for pair in both], (learned_factor, float(factors[-1]))

    def _learned(
        self, segment: Segment, query: Query, k: int, two_phase: float | None
    ) -> list[tuple[Postings, Query]]:
        """Return posting lists with query weights that sum to a segment's learned score."""
        lists = segment.postings
        if two_phase is None or not query:
            return [(lists, query)]
        # phase one: heavy tokens alone, which have short lists; query[0] is the heaviest
        first = lists.scores([(t, w) for t, w in query if w >= HEAVY * query[0][1]])
        # phase two: the full score of the candidates, as a list of one token with weight 1
        selected = np.sort(best(_without_deleted(segment, first), int(k * two_phase)))
        return [
            (
                Postings(
                    np.array([0, len(selected)]),
                    selected,
                    lists.scores_of(query, selected),
                    lists.count,
                ),
                [(0, 1.0)],
            )
        ]


def frequencies(segments: Sequence[Segment], size: int) -> Array:
    """Count the documents, deleted ones too, with each of V tokens in their vectors: (V,)."""
    return sum((s.postings.frequencies() for s in segments), np.zeros(size, np.int64))


def _without_deleted(segment: Segment, scores: Array) -> Array:
    """Set a segment's scores (..., documents) of deleted documents to 0, in place."""
    if segment.deleted:
        scores[..., list(segment.deleted)] = 0
    return scores
