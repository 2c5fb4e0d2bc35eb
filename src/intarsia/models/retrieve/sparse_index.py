"""An index of sparse document vectors and of stems in a folder; no model runs when it is searched.

    index = SparseIndex.build(encoder, docs)          # docs: (id, text) pairs
    index.save("idx"); index = SparseIndex.load("idx")
    index.search("forgiveness of enemies", k=10)

Added documents are a segment of their own; `merge` makes one of all. The files are those of
`index_folder`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...core.checks import above, at_least
from ...core.errors import ConfigError, DataError
from ...core.files import writing
from .index_folder import check_folder, read_index, write_index
from .lexical import Lexical, Stems, stems
from .postings import Array, Postings, best, merged
from .query_weights import QueryWeights
from .scoring import Scorer, frequencies
from .segment import Segment

DEFAULT = Lexical()


class DocumentEncoder(Protocol):
    """What an index asks of a model.

    name: of the model, for people; digest: of its weights; queries: tokens and their weights.
    """

    name: str
    queries: QueryWeights

    @property
    def digest(self) -> str: ...

    def encode(self, texts: Sequence[str]) -> Any:
        """Sparse vectors (texts, V), as scipy has them."""
        ...


@dataclass(frozen=True)
class Hit:
    """A document that was found: its id, its score, and its text if the index keeps texts."""

    id: str
    score: float
    text: str = ""


@dataclass(frozen=True)
class Term:
    """What a token of the query added to a score.  expanded: the text itself does not have it.

    stem: it is a stem that BM25 found, not a token of the model.
    """

    token: str
    score: float
    expanded: bool
    stem: bool = False


class SparseIndex:
    """Posting lists of documents by segment, of learned tokens and of stems, and queries' weights.

    stored: how weights are written, "float16", "float32" or "uint8" (a scale for each token).
    lexical: BM25 beside the learned vectors, None = without: no stems are kept.
    """

    def __init__(
        self,
        queries: QueryWeights,
        *,
        model: str,
        digest: str,
        stored: str = "float16",
        lexical: Lexical | None = DEFAULT,
    ) -> None:
        self.queries, self.model, self.digest, self.stored = queries, model, digest, stored
        self._lexical, self._scorer = lexical, None
        self.segments: list[Segment] = []
        self._place: dict[str, tuple[int, int]] = {}  # id -> segment, number

    @classmethod
    def build(
        cls,
        encoder: DocumentEncoder,
        docs: Iterable[tuple[str, str]],
        *,
        stored: str = "float16",
        lexical: Lexical | None = DEFAULT,
        texts: bool = True,
        block: int = 4096,
    ) -> SparseIndex:
        """An index of (id, text) pairs, read and encoded `block` at a time.

        texts: keep them, for what a search shows.  Raises: DataError for an id that occurs twice.
        """
        about = {"model": encoder.name, "digest": encoder.digest, "stored": stored}
        index = cls(encoder.queries, **about, lexical=lexical)
        for part in blocks(docs, block):
            index.append(encoder, part, texts=texts)
        return index.merge()

    @property
    def lexical(self) -> Lexical | None:
        """The settings of BM25; others rank at once, but for the language of the stems.

        Raises: ConfigError for another language, or to take BM25 out or in.
        """
        return self._lexical

    @lexical.setter
    def lexical(self, how: Lexical | None) -> None:
        one, other = (None if x is None else x.language for x in (self._lexical, how))
        if one != other:
            fix = "Build the index anew: lexical=..."
            raise ConfigError("language of the stems", got=other, want=one, fix=fix)
        self._lexical, self._scorer = how, None

    def __len__(self) -> int:
        """The documents that are not deleted."""
        return len(self._place)

    def __contains__(self, name: str) -> bool:
        return name in self._place

    def append(
        self, encoder: DocumentEncoder, docs: Iterable[tuple[str, str]], *, texts: bool = True
    ) -> SparseIndex:
        """Add documents as a segment; the weights of queries stay as they are.

        Raises: ConfigError for another model than the index's; DataError for an id that is there.
        """
        if encoder.digest != self.digest or encoder.queries.digest != self.queries.digest:
            got = f"{encoder.name} ({encoder.digest[:12]})"
            fix = "Encode with that model, or build an index of its own."
            want = f"{self.model} ({self.digest[:12]})"
            raise ConfigError("model of added documents", got=got, want=want, fix=fix)
        pairs = list(docs)
        ids = [name for name, _ in pairs]
        seen = set[str]()
        for name in ids:
            if name in self._place or name in seen:
                fix = "Give it another id, or delete the old one first."
                raise DataError("document id", got=f"{name!r} again", want="each once", fix=fix)
            seen.add(name)
        if pairs:
            lists = Postings.of(encoder.encode([text for _, text in pairs]))
            if lists.count != len(pairs):
                got, want = f"{lists.count} for {len(pairs)} texts", "one for each"
                fix = "Give a text without a token a row of zeros."
                raise ConfigError("document vectors", got=got, want=want, fix=fix)
            all_texts = [text for _, text in pairs]
            how = self.lexical
            words = None if how is None else Stems.of(all_texts, how.language)
            self._add(Segment(self._rounded(lists), ids, all_texts if texts else [], words))
        return self

    def _rounded(self, lists: Postings) -> Postings:
        """As they are stored: an index finds the same before and after it was saved."""
        return Postings.decode(lists.encode(self.stored), lists.count)

    def _add(self, segment: Segment) -> None:
        if segment.postings.tokens != len(self.queries.weights):
            got, want = segment.postings.tokens, f"{len(self.queries.weights)} tokens"
            raise ConfigError("document vectors", got=got, want=want, fix="Use one vocabulary.")
        place, self._scorer = len(self.segments), None
        self.segments.append(segment)
        self._place |= {
            name: (place, i) for i, name in enumerate(segment.ids) if i not in segment.deleted
        }

    def delete(self, ids: Iterable[str]) -> SparseIndex:
        """Take documents out: marked now, gone at the next `merge`.

        Raises: DataError for an id that is not there.
        """
        names = list(ids)
        if unknown := next((name for name in names if name not in self._place), None):
            fix = "Look it up: name in index."
            raise DataError("document id", got=repr(unknown), want="one of the index", fix=fix)
        for name in names:
            if name in self._place:
                segment, number = self._place.pop(name)
                self.segments[segment].deleted.add(number)
        return self

    def merge(self, *others: SparseIndex) -> SparseIndex:
        """One segment of all documents that are left, with those of other indexes behind them.

        Weights that are stored as uint8 get one scale of both, which adds half a step of error.
        Raises: ConfigError for an index of another model; DataError for an id of both.
        """
        for other in others:
            same = other.digest == self.digest and other.queries.digest == self.queries.digest
            if not same or not np.array_equal(other.queries.weights, self.queries.weights):
                got, fix = f"one of {other.model}", "Build both with one saved encoder."
                want = f"{self.model} with the same weights of queries"
                raise ConfigError("index to merge", got=got, want=want, fix=fix)
            if other.lexical != self.lexical:
                fix = "Set lexical of one of them to that of the other, or build it anew."
                got, want = other.lexical, self.lexical
                raise ConfigError("BM25 of an index to merge", got=got, want=want, fix=fix)
            if both := next((name for name in other._place if name in self._place), None):
                fix = "Delete it from one of them."
                raise DataError("document id", got=f"{both!r} in both", want="each once", fix=fix)
        parts = [*self.segments, *(segment for other in others for segment in other.segments)]
        if len(self.segments) == len(parts) == 1 and not parts[0].deleted:
            return self
        self.segments, self._place = [], {}
        if parts:
            alive = [part.alive for part in parts]
            ids = _left([part.ids for part in parts], alive)
            texts = _left([part.texts for part in parts], alive)
            whole = all(part.texts or not part.ids for part in parts)
            lists = self._rounded(merged([part.postings for part in parts], alive))
            own = [part.stems for part in parts if part.stems is not None]
            words = Stems.merged(own, alive) if own else None
            self._add(Segment(lists, ids, texts if whole else [], words))
        return self

    def search(
        self,
        query: str,
        k: int = 10,
        *,
        prune: float = 0.0,
        two_phase: float | None = None,
        max_df: float = 1.0,
    ) -> list[Hit]:
        """The k documents of largest score, largest first; only scores above 0.

        The score is that of `Lexical`, or without BM25 sum_j q_j d_j.
        prune: leave out tokens below this share of the heaviest. max_df: leave out tokens in more
        than this share of the documents. two_phase: the learned score by the tokens of 0.4 of the
        heaviest and more, then of the best k times this number by all; blind to documents with
        none, and faster only where the lists of light tokens are very long.
        Empty for a query without a known token.  Raises: ConfigError.
        """
        return self.search_many(
            [query], k, prune=prune, two_phase=two_phase, max_df=max_df
        )[0]  # fmt: skip

    def search_many(
        self,
        queries: Sequence[str],
        k: int = 10,
        *,
        prune: float = 0.0,
        two_phase: float | None = None,
        max_df: float = 1.0,
    ) -> list[list[Hit]]:
        """`search` for each query: they are tokenized together."""
        at_least("k", k, 1, fix="Try 10.")
        above("max_df", max_df, 0, fix="Try 0.5; 1 keeps all.")
        if two_phase is not None:
            at_least("two_phase", two_phase, 1, fix="Try 5.")
        scorer = self._ready()
        joined = scorer.joined(queries, prune=prune, max_df=max_df)
        return [self._found(scorer.scores(query, k, two_phase)[0], k) for query in joined]

    def stems_of(self, query: str) -> list[str]:
        """The stems of a query that a document has, each once; none without BM25."""
        if self.lexical is None or not self.lexical.share:
            return []
        known = [s.stems.place for s in self.segments if s.stems is not None]
        own = dict.fromkeys(stems([query], self.lexical.language)[0])
        return [word for word in own if any(word in place for place in known)]

    def _ready(self) -> Scorer:
        """What scores the segments as they are now."""
        if self._scorer is None:
            self._scorer = Scorer(self.segments, self.queries, self.lexical)
        return self._scorer

    def frequencies(self) -> np.ndarray:
        """In how many documents' vectors each token is, deleted ones too.  (V,)."""
        return frequencies(self.segments, len(self.queries.weights))

    def _found(self, scores: Sequence[Array], k: int) -> list[Hit]:
        found: list[Hit] = []
        for segment, own in zip(self.segments, scores, strict=True):
            for number in best(own, k).tolist():
                text = segment.texts[number] if segment.texts else ""
                found.append(Hit(segment.ids[number], float(own[number]), text))
        if len(self.segments) > 1:
            found.sort(key=lambda hit: -hit.score)  # stable: ties stay in the order of documents
        return found[:k]

    def explain(self, query: str, name: str) -> list[Term]:
        """What each token of a query adds to a document's score, most first; they add up to it.

        Raises: DataError for an id that is not there.
        """
        if name not in self._place:
            fix = "Take an id that a search returned."
            raise DataError("document id", got=repr(name), want="one of the index", fix=fix)
        place, number = self._place[name]
        segment, own, here = self.segments[place], set[int](), np.array([number])
        if segment.texts:
            own = {token for token, _, _ in self.queries.places(segment.texts[number])}
        scorer = self._ready()
        (joined,) = scorer.joined([query], prune=0.0, max_df=1.0)
        _, (one, other) = scorer.scores(joined)
        terms: list[Term] = []
        for token, weight in joined.tokens:
            score = one * float(segment.postings.scores_of([(token, weight)], here)[0])
            expanded = bool(segment.texts) and token not in own
            terms.append(Term(self.queries.word(token), float(score), expanded))
        if scorer.bm25 is not None and segment.stems is not None:
            behind = here + segment.postings.count
            for stem, weight in joined.stems[place]:
                score = other * scorer.bm25.lists[place].scores_of([(stem, weight)], behind)[0]
                terms.append(Term(segment.stems.names[stem], float(score), False, stem=True))
        return sorted((t for t in terms if t.score > 0), key=lambda term: -term.score)

    def run(self, queries: Mapping[str, str], k: int = 100) -> dict[str, dict[str, float]]:
        """Scores by query and document, as `train.ranked` and TREC's tools take them."""
        found = zip(queries, self.search_many(list(queries.values()), k), strict=True)
        return {name: {hit.id: hit.score for hit in hits} for name, hits in found}

    def documents(self) -> Iterator[tuple[str, dict[str, float]]]:
        """Ids and their vectors as token -> weight, for other engines."""
        for segment in self.segments:
            rows, alive = segment.postings.rows(), segment.alive
            for number in np.flatnonzero(alive).tolist():
                part = slice(rows.indptr[number], rows.indptr[number + 1])
                pairs = zip(rows.indices[part].tolist(), rows.data[part].tolist(), strict=True)
                yield segment.ids[number], {self.queries.word(j): w for j, w in pairs}

    def sizes(self) -> dict[str, Any]:
        """Documents, postings, postings a document, and bytes of the lists on the disk."""
        postings = sum(len(segment.postings.docs) for segment in self.segments)
        arrays = [segment.postings.encode(self.stored) for segment in self.segments]
        arrays += [s.stems.encode() for s in self.segments if s.stems is not None]
        size = sum(array.nbytes for one in arrays for array in one.values())
        mean = postings / max(1, sum(segment.postings.count for segment in self.segments))
        return {"documents": len(self), "postings": postings, "mean": mean, "bytes": size}

    def save(self, folder: str | Path) -> Path:
        """Write the index; into its own folder only what is new.

        Raises: ConfigError for a folder with something else in it; TrainingError if it cannot be
        written.
        """
        folder = Path(folder)
        about = {"model": self.model, "digest": self.digest, "stored": self.stored}
        parts = self.queries, self.segments, about, self.lexical
        if check_folder(folder):
            write_index(folder, *parts)
            return folder
        with writing(folder) as scratch:
            scratch.mkdir()
            write_index(scratch, *parts)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> SparseIndex:
        """The index that `save` wrote.

        Raises: CheckpointError for a folder that is damaged, or of something else.
        """
        saved = read_index(Path(folder))
        index = cls(saved.queries, **saved.about, lexical=saved.lexical)
        for segment in saved.segments:
            index._add(segment)
        return index


def blocks(docs: Iterable[tuple[str, str]], size: int) -> Iterator[list[tuple[str, str]]]:
    """Consecutive documents, `size` at a time."""
    at_least("block", size, 1, fix="Try 4096.")
    rest = iter(docs)
    while part := list(islice(rest, size)):
        yield part


def _left(texts: Sequence[list[str]], alive: Sequence[np.ndarray]) -> list[str]:
    pairs = zip(texts, alive, strict=True)
    return [one for own, kept in pairs for one, left in zip(own, kept, strict=bool(own)) if left]
