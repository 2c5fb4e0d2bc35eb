"""Tuning of BM25 in an index, by queries with known answers."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

from ...core.errors import ConfigError, DataError
from ...train.ranked import Qrels, score_run
from .lexical import Lexical
from .sparse_index import SparseIndex

MEASURE, DEPTH = "nDCG@10", 10
MOST_QUERIES = 500  # more change the choice little, and take longer
K1S, BS = (0.6, 0.9, 1.2, 1.5), (0.2, 0.4, 0.75)
SHARES = tuple(i / 10 for i in range(11))


def tune_lexical(
    index: SparseIndex, queries: Mapping[str, str], qrels: Qrels, *, seed: int = 0
) -> Lexical:
    """Tune BM25 by nDCG@10, first k1 and b without the learned score, then its share; return it.

    index: it uses the new settings afterwards; queries: of validation; at most 500 of them are
      drawn (do not test on them); qrels: relevance by query and document.
    Raises: ConfigError for an index without BM25; DataError where no query is judged.
    """
    if index.lexical is None:
        fix = "Build it with lexical=Lexical()."
        raise ConfigError("index to tune", got="one without BM25", want="one with it", fix=fix)
    judged = [q for q in qrels if q in queries and any(d in index for d in qrels[q])]
    if not judged:
        got, want = "no query with a document of the index", "one at least"
        fix = "Give it judgements of these documents."
        raise DataError("judged queries", got=got, want=want, fix=fix)
    drawn = random.Random(seed).sample(judged, min(MOST_QUERIES, len(judged)))
    texts = {q: queries[q] for q in drawn}
    truth = {q: qrels[q] for q in drawn}

    def measure(lexical: Lexical) -> float:
        """Return the mean score of the validation queries with these settings of BM25."""
        index.lexical = lexical
        return score_run(truth, index.run(texts, DEPTH), [MEASURE])[MEASURE]

    # two searches of one dimension each instead of a grid over all three settings
    alone = replace(index.lexical, share=1.0)
    best = max((replace(alone, k1=k1, b=b) for k1 in K1S for b in BS), key=measure)
    # without a learned token there is nothing to share with
    shares = SHARES if any(len(s.postings.docs) for s in index.segments) else (1.0,)
    best = max((replace(best, share=share) for share in shares), key=measure)
    index.lexical = best
    return best
