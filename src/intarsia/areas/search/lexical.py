"""BM25 over stems, which an index stores next to its learned vectors and adds to their score.

    index = SparseIndex.build(model, docs, lexical=Lexical(language="german"))

A segment stores how often each document has each stem; k1, b and the mean length are applied at
search time, so that an index of appended documents ranks as one that was built at once.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import scipy.sparse as sp

from ...core.checks import at_least, between, one_of
from ...core.errors import CheckpointError
from ...kernels.postings import lengths
from .postings import Array, Postings, Query, merge_postings
from .query_weights import QueryWeights, idf
from .stemming import StemNumbers
from .stemming import stems as stems

# languages with a Snowball stemmer and a list of stop words
LANGUAGES = (
    *("danish", "dutch", "english", "french", "german", "italian", "norwegian", "portuguese"),
    *("russian", "spanish", "swedish", "turkish"),
)
NO_MODEL = "none"  # name of the encoder without a model
NO_TOKENS = '{"model": {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"}}'
COUNTS = "float16"  # how counts are stored, see `StemNumbers`


@dataclass(frozen=True)
class Lexical:
    """Settings of BM25 in an index's score (1 - share) L(q, d) / max_d L + share B(q, d) / max_d B.

    L is the learned score, B = sum_w idf_w tf / (tf + k1 (1 - b + b |d| / mean |d|)) over the stems
    w of the query that are no stop words, as in Lucene; maxima are over all documents.
    language: one of LANGUAGES.  share: 0 ranks by L alone, 1 by B alone; the default was best on
    600 topics of Nave's that nothing else is measured on.  `tune_lexical` finds the settings of a
    collection by its own queries.  Raises: ConfigError.
    """

    language: str = "english"
    share: float = 0.6
    k1: float = 1.5
    b: float = 0.75

    def __post_init__(self) -> None:
        one_of("language", self.language, LANGUAGES)
        between("share", self.share, 0, 1, fix="Try 0.5.")
        at_least("k1", self.k1, 0, fix="Try 1.5.")
        between("b", self.b, 0, 1, fix="Try 0.75.")


@dataclass(frozen=True)
class Stems:
    """Stems of a segment's documents.  counts: how often each document has each stem of `names`."""

    names: list[str]
    counts: Postings

    @classmethod
    def of(cls, texts: Sequence[str], language: str, numbers: StemNumbers | None = None) -> Stems:
        """Count how often each text has each stem.

        language: one of LANGUAGES; numbers: of stems of earlier texts in that language, which then
          are not stemmed again.
        """
        names, counts = (numbers or StemNumbers(language)).counts(texts)
        return cls(names, Postings(*counts[:3], len(texts)))

    @classmethod
    def merged(cls, parts: Sequence[Stems], alive: Sequence[Array]) -> Stems:
        """Join the stems of several segments of an index, without deleted documents' stems."""
        names = list(dict.fromkeys(name for part in parts for name in part.names))
        place = {name: i for i, name in enumerate(names)}
        # a stem may have different numbers in two segments
        numbers = [np.array([place[name] for name in part.names], np.int64) for part in parts]
        counts = [part.counts for part in parts]
        return cls(names, merge_postings(counts, alive, numbers, len(names)))

    def encode(self) -> dict[str, Array]:
        """Return the arrays of `counts` to write into a file; `names` are written elsewhere."""
        return {f"stems.{n}": array for n, array in self.counts.encode(COUNTS).items()}

    @classmethod
    def decode(cls, arrays: dict[str, Array], names: list[str], count: int) -> Stems:
        """Read the arrays of `encode`.  Raises: CheckpointError."""
        of_stems = {
            n.removeprefix("stems."): a for n, a in arrays.items() if n.startswith("stems.")
        }
        lists = Postings.decode(of_stems, count)
        if lists.tokens != len(names):
            fix = "Copy the index again from its source, or build it anew."
            got, want = f"{len(names)} names", f"{lists.tokens}, one for each list"
            raise CheckpointError("stems", got=got, want=want, fix=fix)
        return cls(names, lists)

    @cached_property
    def place(self) -> dict[str, int]:
        """Number of each stem."""
        return {name: i for i, name in enumerate(self.names)}

    @cached_property
    def lengths(self) -> Array:
        """Number of stems of each document, (documents,)."""
        return lengths(self.counts.lists, self.counts.count)


DEFAULT = Lexical()


class StemsAlone:
    """Encoder of an index that ranks by BM25 alone: no document or query has a learned token.

    SparseIndex.build(StemsAlone(), docs, lexical=Lexical(share=1)) reads documents without a model,
    in about the time that bm25s takes.
    """

    name, digest = NO_MODEL, hashlib.sha256(NO_TOKENS.encode()).hexdigest()

    def __init__(self) -> None:
        """Make query weights of a vocabulary without tokens."""
        self.queries = QueryWeights(NO_TOKENS, np.zeros(1, np.float32))

    def encode(self, texts: Sequence[str]) -> Any:
        """Return an empty sparse matrix (texts, 1)."""
        return sp.csr_matrix((len(texts), 1), dtype=np.float32)


class DocumentEncoder(Protocol):
    """Protocol of a model that encodes documents for an index.

    name: the model's name, for display; digest: its weights'; queries: tokens and their weights.
    """

    name: str
    queries: QueryWeights

    @property
    def digest(self) -> str: ...

    def encode(self, texts: Sequence[str]) -> Any:
        """Encode texts as a scipy sparse matrix (texts, V)."""
        ...


def by_stems_alone(lexical: Lexical | None) -> Lexical:
    """Return settings of BM25 without learned scores next to it."""
    return replace(lexical or DEFAULT, share=1.0)


def read_by(encoder: Any, docs: Any) -> tuple[Any, Any]:
    """Return the encoder and the documents; without one the documents stand in its place."""
    return (StemsAlone(), encoder) if docs is None else (encoder, docs)


class QueryStem(NamedTuple):
    """Stem of a query: its number in each segment, the documents that have it, and its idf."""

    numbers: list[int | None]
    frequency: int
    idf: float


class Bm25Lists:
    """Posting lists of BM25 over all segments of an index.

    parts: one for each segment; document frequencies and mean length are over all of them.
    lists: of each segment, the stored counts of stems with the norms that make weights of them.
    """

    def __init__(self, parts: Sequence[Stems], settings: Lexical) -> None:
        """Compute the norms of all documents, with the mean length over all segments."""
        self.parts, self.count = parts, sum(part.counts.count for part in parts)
        self._cached = dict[str, QueryStem]()
        words = sum(float(part.lengths.sum()) for part in parts)
        self.lists = [_bm25_lists(part, settings, words / max(1, self.count)) for part in parts]

    def queries(self, words: Sequence[str], *, prune: float, max_df: float) -> list[Query]:
        """Return a query's stems with their weights, once for each segment of the index.

        prune: leave out those below this share of the heaviest; max_df: leave out those in more
          than this share of the documents. Returns for each segment pairs (the stem's number there,
          its idf times its uses in the query).
        """
        times = Counter(words)
        looked_up = [(self._look_up(word), number) for word, number in times.items()]
        weighted = [
            (stem, number * stem.idf)
            for stem, number in looked_up
            if 0 < stem.frequency <= max_df * self.count
        ]
        least = prune * max((weight for _, weight in weighted), default=0.0)
        # a segment that lacks a stem has no number for it, and skips it
        return [
            [
                (n, weight)
                for stem, weight in weighted
                if weight >= least and (n := stem.numbers[i]) is not None
            ]
            for i in range(len(self.parts))
        ]

    def _look_up(self, word: str) -> QueryStem:
        """Look up a stem's number in each segment and its idf, and cache them."""
        if (stem := self._cached.get(word)) is None:
            numbers = [part.place.get(word) for part in self.parts]
            pairs = zip(self.lists, numbers, strict=True)
            frequency = sum(int(s.starts[n + 1] - s.starts[n]) for s, n in pairs if n is not None)
            stem = QueryStem(numbers, frequency, float(idf(np.array(frequency), self.count)))
            if frequency:  # cache known stems alone: queries may have any number of others
                self._cached[word] = stem
        return stem


def _bm25_lists(part: Stems, settings: Lexical, mean: float) -> Postings:
    """Return the posting lists of a segment with BM25's norm of each document."""
    lists = part.counts
    # length normalisation of each document
    norm = settings.k1 * (1 - settings.b + settings.b * part.lengths / max(mean, 1e-9))
    return replace(lists, norm=norm.astype(np.float32))
