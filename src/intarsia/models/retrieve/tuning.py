"""How much BM25 counts in an index, by queries whose answers are known."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

from ...core.errors import ConfigError, DataError
from ...train.ranked import Qrels, score_run
from .lexical import Lexical
from .sparse_index import SparseIndex

MEASURE, DEPTH = "nDCG@10", 10
MOST = 500  # queries that are asked: more change the choice little, and take longer
K1S, BS = (0.6, 0.9, 1.2, 1.5), (0.2, 0.4, 0.75)
SHARES = tuple(i / 10 for i in range(11))


def tuned(
    index: SparseIndex, queries: Mapping[str, str], qrels: Qrels, *, seed: int = 0
) -> Lexical:
    """Return the settings of BM25 that find most, by nDCG@10: k1 and b of it alone, then its share.

    The index has them then.  queries: those of validation, of which at most 500 are drawn; a query
    that is judged again afterwards is no test.
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
    drawn = random.Random(seed).sample(judged, min(MOST, len(judged)))
    asked = {q: queries[q] for q in drawn}
    truth = {q: qrels[q] for q in drawn}

    def found(how: Lexical) -> float:
        index.lexical = how
        return score_run(truth, index.run(asked, DEPTH), [MEASURE])[MEASURE]

    alone = replace(index.lexical, share=1.0)
    best = max((replace(alone, k1=k1, b=b) for k1 in K1S for b in BS), key=found)
    best = max((replace(best, share=share) for share in SHARES), key=found)
    index.lexical = best
    return best
