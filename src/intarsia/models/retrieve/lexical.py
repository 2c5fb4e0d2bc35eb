"""BM25 over stems, which an index holds beside its learned vectors and adds to their score.

    index = SparseIndex.build(model, docs, lexical=Lexical(language="german"))

A segment keeps how often each document has each stem; k1, b and the mean length are put in when one
searches, so that an index of appended documents ranks as one that was built at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from ...core.checks import at_least, between, one_of
from ...core.errors import CheckpointError, MissingExtra
from .postings import Array, Postings, Query
from .query_weights import idf

# with a stemmer of Snowball's and a list of stop words
LANGUAGES = (
    *("danish", "dutch", "english", "french", "german", "italian", "norwegian", "portuguese"),
    *("russian", "spanish", "swedish", "turkish"),
)
COUNTS = "float16"  # how counts are stored: exact up to 2,048


@dataclass(frozen=True)
class Lexical:
    """BM25 in the score of an index: (1 - share) L(q, d) / max_d L + share B(q, d) / max_d B.

    L is the learned score, B = sum_w idf_w tf / (tf + k1 (1 - b + b |d| / mean |d|)) over the stems
    w of the query that are no stop words, as Lucene has it; maxima are over all documents.
    language: one of LANGUAGES.  share: 0 ranks by L alone, 1 by B alone; the default is what finds
    most by 600 topics of Nave's that nothing else is measured on.  `tuned` finds the settings of a
    collection by its own queries.  Raises: ConfigError.
    """

    language: str = "english"
    share: float = 0.6
    k1: float = 0.9
    b: float = 0.4

    def __post_init__(self) -> None:
        one_of("language", self.language, LANGUAGES)
        between("share", self.share, 0, 1, fix="Try 0.5.")
        at_least("k1", self.k1, 0, fix="Try 0.9.")
        between("b", self.b, 0, 1, fix="Try 0.4.")


def stems(texts: Sequence[str], language: str, *, numbered: bool = False) -> Any:
    """The stems of each text in their order, without stop words, by bm25s and Snowball.

    numbered: as numbers, and the numbers by stem.
    Raises: MissingExtra without bm25s and PyStemmer.
    """
    tokenize, stemmer = _stemmer(language)
    how: dict[str, Any] = {"stopwords": language, "stemmer": stemmer, "show_progress": False}
    return tokenize(list(texts), return_ids=numbered, **how)


@lru_cache
def _stemmer(language: str) -> tuple[Any, Any]:
    """The function of bm25s, and the stemmer, which takes longer to make than a query."""
    try:
        import bm25s
        import Stemmer
    except ImportError as error:
        raise MissingExtra("bm25s", "search") from error
    return bm25s.tokenize, Stemmer.Stemmer(language)


@dataclass(frozen=True)
class Stems:
    """The stems of a segment's documents: their names, and how often each document has each."""

    names: list[str]
    counts: Postings

    @classmethod
    def of(cls, texts: Sequence[str], language: str) -> Stems:
        """The stems of texts."""
        found = stems(texts, language, numbered=True)
        names = [name for name, _ in sorted(found.vocab.items(), key=lambda pair: pair[1])]
        lengths = [len(own) for own in found.ids]
        rows = np.repeat(np.arange(len(texts)), lengths)
        columns = np.fromiter((n for own in found.ids for n in own), np.int64, sum(lengths))
        shape = len(texts), len(names)
        return cls(names, Postings.of(sp.csr_matrix((np.ones(len(rows)), (rows, columns)), shape)))

    @classmethod
    def merged(cls, parts: Sequence[Stems], alive: Sequence[Array]) -> Stems:
        """One of all documents that are alive, in their order."""
        names = list(dict.fromkeys(name for part in parts for name in part.names))
        place = {name: i for i, name in enumerate(names)}
        blocks: list[Any] = []
        for part, kept in zip(parts, alive, strict=True):
            rows = part.counts.rows(kept).tocoo()
            own = np.array([place[name] for name in part.names], np.int64)
            shape = rows.shape[0], len(names)
            blocks.append(sp.csr_matrix((rows.data, (rows.row, own[rows.col])), shape))
        return cls(names, Postings.of(sp.vstack(blocks, format="csr")))

    def encode(self) -> dict[str, Array]:
        """The arrays that are written, without the names."""
        return {f"stems.{n}": array for n, array in self.counts.encode(COUNTS).items()}

    @classmethod
    def decode(cls, arrays: dict[str, Array], names: list[str], count: int) -> Stems:
        """What `encode` wrote.  Raises: CheckpointError."""
        own = {n.removeprefix("stems."): a for n, a in arrays.items() if n.startswith("stems.")}
        lists = Postings.decode(own, count)
        if lists.tokens != len(names):
            fix = "Copy the index again from its source, or build it anew."
            got, want = f"{len(names)} names", f"{lists.tokens}, one for each list"
            raise CheckpointError("stems", got=got, want=want, fix=fix)
        return cls(names, lists)

    @cached_property
    def place(self) -> dict[str, int]:
        """The number of each stem."""
        return {name: i for i, name in enumerate(self.names)}

    @cached_property
    def lengths(self) -> Array:
        """Stems of each document.  (documents,)."""
        own, count = self.counts, self.counts.count
        return np.bincount(own.docs, own.weights, count).astype(np.float32)


class Stem(NamedTuple):
    """A stem of a query: its number in each segment, the documents that have it, and its idf."""

    numbers: list[int | None]
    frequency: int
    idf: float


class Bm25Lists:
    """Posting lists of BM25 for the segments of an index together.

    parts: one for each segment; their documents and lengths count as one collection's.
    lists: of each segment, with document i of n at n + i: both scores are added up in one array.
    """

    def __init__(self, parts: Sequence[Stems], how: Lexical) -> None:
        self.parts, self.count = parts, sum(part.counts.count for part in parts)
        self._known = dict[str, Stem]()
        words = sum(float(part.lengths.sum()) for part in parts)
        self.lists = [_saturated(part, how, words / max(1, self.count)) for part in parts]

    def queries(self, words: Sequence[str], *, prune: float, max_df: float) -> list[Query]:
        """A query's stems as each segment numbers them, with their idf, once for each time.

        prune: stems below this share of the heaviest are left out; max_df: those that are in more
        than this share of the documents.
        """
        times = Counter(words)
        found = [(self._looked_up(word), number) for word, number in times.items()]
        kept = [(own, number * own.idf) for own, number in found
                if 0 < own.frequency <= max_df * self.count]  # fmt: skip
        least = prune * max((weight for _, weight in kept), default=0.0)
        return [
            [(n, weight) for own, weight in kept
             if weight >= least and (n := own.numbers[i]) is not None]
            for i in range(len(self.parts))
        ]  # fmt: skip

    def _looked_up(self, word: str) -> Stem:
        """A stem's number in each segment and its idf; remembered."""
        if (known := self._known.get(word)) is None:
            numbers = [part.place.get(word) for part in self.parts]
            pairs = zip(self.lists, numbers, strict=True)
            frequency = sum(int(s.starts[n + 1] - s.starts[n]) for s, n in pairs if n is not None)
            known = Stem(numbers, frequency, float(idf(np.array(frequency), self.count)))
            if frequency:  # as many as there are stems, not as many as there are queries
                self._known[word] = known
        return known


def _saturated(part: Stems, how: Lexical, mean: float) -> Postings:
    """tf / (tf + k1 (1 - b + b |d| / mean)) in the place of counts, behind all learned scores."""
    lists = part.counts
    norm = how.k1 * (1 - how.b + how.b * part.lengths / max(mean, 1e-9))
    weights = lists.weights / (lists.weights + norm[lists.docs])
    return Postings(
        lists.starts, lists.docs + lists.count, weights.astype(np.float32), 2 * lists.count
    )
