"""Index of sparse document vectors and stems in a folder; a search runs no model.

    index = SparseIndex(docs)                         # docs: texts, (id, text) pairs, or records
    index = SparseIndex.build(encoder, docs)          # with learned vectors
    index.save("idx"); index = SparseIndex.load("idx")
    index.search("forgiveness of enemies", k=10, where=["year>1600"])

Added documents are a segment of their own; `merge` joins all segments. For its files see
`index_folder`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...core.checks import above, at_least
from ...core.errors import ConfigError, DataError
from ...core.files import writing
from ...data.documents import Document, as_documents, duplicate_id, in_blocks
from .filters import masks_of
from .index_folder import check_folder, read_index, write_index
from .lexical import (
    DEFAULT,
    DocumentEncoder,
    Lexical,
    Stems,
    StemsAlone,
    by_stems_alone,
    read_by,
    stems,
)
from .postings import Array, Postings, merge_postings
from .query_weights import QueryWeights
from .scoring import Scorer, frequencies
from .segment import Segment, alive_texts, joined_fields, packed_fields
from .stemming import StemNumbers


@dataclass(frozen=True)
class Hit:
    """Document of a search's result: its id, its score, its text if the index stores texts.

    fields: the rest of its record, such as its title and price.
    """

    id: str
    score: float
    text: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Term:
    """Contribution of a query's token to a score.  expanded: the text does not contain the token.

    stem: it is a stem of BM25, not a token of the model.
    """

    token: str
    score: float
    expanded: bool
    stem: bool = False


class SparseIndex:
    """Index of documents: posting lists by segment, of learned tokens and stems, and query weights.

    docs: documents, which are ranked by BM25 alone, see `build`; or weights of query tokens, for an
    index without documents; model, digest: name and digest of the model that encodes documents;
    stored: type of weights on disk, "float16", "float32" or "uint8" (a scale for each token);
    lexical: BM25 next to the learned vectors, None = without: no stems are stored.
    Raises: DataError for an id that occurs twice.
    """

    def __init__(
        self,
        docs: Iterable[Any] | QueryWeights = (),
        *,
        model: str = StemsAlone.name,
        digest: str = StemsAlone.digest,
        stored: str = "float16",
        lexical: Lexical | None = DEFAULT,
    ) -> None:
        """Build an index of documents for BM25 alone, or with query weights an empty one."""
        reader = StemsAlone()
        if isinstance(docs, QueryWeights):
            queries, texts = docs, ()
        else:
            queries, texts = reader.queries, docs
            lexical = by_stems_alone(lexical)
        self.queries, self.model, self.digest, self.stored = queries, model, digest, stored
        self._lexical, self._scorer = lexical, None
        self._numbers: StemNumbers | None = None  # until the next `merge`
        self.segments: list[Segment] = []
        self._known: dict[str, tuple[int, int]] | None = None  # made when an id is looked up
        self._append_in_blocks(reader, texts)

    @classmethod
    def build(
        cls,
        encoder: DocumentEncoder | Iterable[Any],
        docs: Iterable[Any] | None = None,
        *,
        stored: str = "float16",
        lexical: Lexical | None = DEFAULT,
        texts: bool = True,
        block: int = 4096,
    ) -> SparseIndex:
        """Build an index of documents, read and encoded `block` at a time.

        encoder: turns texts into sparse vectors; without it, build(docs), documents are ranked by
          BM25 alone; docs: texts, (id, text) pairs, or records with an id and a text; their other
          fields are stored, too; stored: type of the weights on disk, "float16", "float32" or
          "uint8"; lexical: settings of BM25, None = without; texts: store them, to display with
          hits; block: documents at a time.  Raises: DataError for an id that occurs twice.
        """
        reader, documents = read_by(encoder, docs)
        if docs is None:
            lexical = by_stems_alone(lexical)
        metadata = {"model": reader.name, "digest": reader.digest, "stored": stored}
        index = cls(reader.queries, **metadata, lexical=lexical)
        index._append_in_blocks(reader, documents, texts=texts, block=block)
        return index

    def _append_in_blocks(
        self, encoder: Any, docs: Any, *, texts: bool = True, block: int = 4096
    ) -> None:
        """Add documents, `block` at a time, and merge them; see `build`."""
        for part in in_blocks(as_documents(docs), block):
            self.append(encoder, part, texts=texts)
        self.merge()

    @property
    def lexical(self) -> Lexical | None:
        """Settings of BM25; None for an index that does not rank by words."""
        return self._lexical

    @lexical.setter
    def lexical(self, settings: Lexical | None) -> None:
        """Set how BM25 is joined with the learned scores in later searches; None = not at all.

        settings: share, k1 and b. Raises: ConfigError for another language of the stems.
        """
        present, wanted_language = (
            None if x is None else x.language for x in (self._lexical, settings)
        )
        if present != wanted_language:
            fix = "Build the index anew: lexical=..."
            raise ConfigError("language of the stems", got=wanted_language, want=present, fix=fix)
        self._lexical, self._scorer = settings, None

    def __len__(self) -> int:
        """Return the number of documents that are not deleted."""
        return sum(len(segment.ids) - len(segment.deleted) for segment in self.segments)

    @property
    def _place(self) -> dict[str, tuple[int, int]]:
        """Segment and number of each document, by its id."""
        if self._known is None:
            self._known = {}
            for place, segment in enumerate(self.segments):
                self._known |= _places(segment, place)
        return self._known

    def __contains__(self, name: str) -> bool:
        return name in self._place

    def append(
        self,
        encoder: DocumentEncoder | Iterable[Any],
        docs: Iterable[Any] | None = None,
        *,
        texts: bool = True,
    ) -> SparseIndex:
        """Add documents as a segment; the query weights do not change.

        encoder: of the same model as before; append(docs) where documents are ranked by BM25 alone;
          docs: as of `build`; texts: store them.
        Raises: ConfigError for another model than the index's; DataError for an existing id.
        """
        reader, given = read_by(encoder, docs)
        documents = list(as_documents(given, len(self)))
        if existing := next((d.id for d in documents if d.id in self._place), None):
            raise duplicate_id(existing)
        if documents:
            self._add(self._encoded(reader, documents, texts))
        return self

    def update(
        self,
        encoder: DocumentEncoder | Iterable[Any],
        docs: Iterable[Any] | None = None,
        *,
        texts: bool = True,
    ) -> SparseIndex:
        """Replace documents that have the same id, and add the others; see `append`."""
        reader, given = read_by(encoder, docs)
        documents = list(as_documents(given, len(self)))
        if documents:
            # nothing is deleted before the new ones are encoded
            segment = self._encoded(reader, documents, texts)
            self.delete(d.id for d in documents if d.id in self._place)
            self._add(segment)
        return self

    def _encoded(
        self, encoder: DocumentEncoder, documents: Sequence[Document], texts: bool
    ) -> Segment:
        """Encode documents as a segment of their own; texts: whether it stores their texts."""
        if encoder.digest != self.digest or encoder.queries.digest != self.queries.digest:
            got = f"{encoder.name} ({encoder.digest[:12]})"
            fix = "Encode with that model, or build an index of its own."
            want = f"{self.model} ({self.digest[:12]})"
            raise ConfigError("model of added documents", got=got, want=want, fix=fix)
        # nothing is encoded before all ids are known to be distinct
        ids, all_texts, records = map(list, zip(*documents, strict=True))
        before = set[str]()
        for name in ids:
            if name in before:
                raise duplicate_id(name)
            before.add(name)
        lists = Postings.of(encoder.encode(all_texts))
        if lists.count != len(ids):
            got, want = f"{lists.count} for {len(ids)} texts", "one for each"
            fix = "Give a text without a token a row of zeros."
            raise ConfigError("document vectors", got=got, want=want, fix=fix)
        words = self._stems_of(all_texts)
        return Segment(
            self._as_stored(lists),
            ids,
            all_texts if texts else [],
            words,
            fields=packed_fields(records),
        )

    def _stems_of(self, texts: Sequence[str]) -> Stems | None:
        """Count the stems of texts, if the index has BM25; words of earlier ones are known."""
        if self.lexical is None:
            return None
        if self._numbers is None:
            self._numbers = StemNumbers(self.lexical.language)
        return Stems.of(texts, self.lexical.language, self._numbers)

    def _as_stored(self, lists: Postings) -> Postings:
        """Round weights as storing does, so that a search finds the same after saving."""
        return Postings.decode(lists.encode(self.stored), lists.count)

    def _add(self, segment: Segment) -> None:
        """Put a segment behind the others, and its ids among the known ones."""
        if segment.postings.tokens != len(self.queries.weights):
            got, want = segment.postings.tokens, f"{len(self.queries.weights)} tokens"
            raise ConfigError("document vectors", got=got, want=want, fix="Use one vocabulary.")
        place, self._scorer = len(self.segments), None
        self.segments.append(segment)
        if self._known is not None:
            self._known |= _places(segment, place)

    def delete(self, ids: Iterable[str]) -> SparseIndex:
        """Delete documents: they are marked now, and removed at the next `merge`.

        ids: of the documents. Raises: DataError for an id that is not there.
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

    def merge(self, *indexes: SparseIndex) -> SparseIndex:
        """Join all segments, and other indexes' segments, into one without deleted documents.

        indexes: of the same model. Weights stored as uint8 get a common scale, which adds half a
          step of rounding error.
        Raises: ConfigError for an index of another model; DataError for an id that both have.
        """
        for index in indexes:
            same_model = index.digest == self.digest and index.queries.digest == self.queries.digest
            if not same_model or not np.array_equal(index.queries.weights, self.queries.weights):
                got, fix = f"one of {index.model}", "Build both with one saved encoder."
                want = f"{self.model} with the same weights of queries"
                raise ConfigError("index to merge", got=got, want=want, fix=fix)
            if index.lexical != self.lexical:
                fix = "Set lexical of one of them to that of the other, or build it anew."
                got, want = index.lexical, self.lexical
                raise ConfigError("BM25 of an index to merge", got=got, want=want, fix=fix)
            if both := next((name for name in index._place if name in self._place), None):
                fix = "Delete it from one of them."
                raise DataError("document id", got=f"{both!r} in both", want="each once", fix=fix)
        self._numbers = None
        parts = [*self.segments, *(segment for index in indexes for segment in index.segments)]
        if len(self.segments) == len(parts) == 1 and not parts[0].deleted:
            return self
        # rebuild from the parts; texts are kept only if every part has them
        self.segments, self._known = [], None
        if parts:
            alive = [part.alive for part in parts]
            ids = alive_texts([part.ids for part in parts], alive)
            texts = alive_texts([part.texts for part in parts], alive)
            with_texts = all(part.texts or not part.ids for part in parts)
            lists = self._as_stored(merge_postings([part.postings for part in parts], alive))
            all_stems = [part.stems for part in parts if part.stems is not None]
            words = Stems.merged(all_stems, alive) if all_stems else None
            fields = alive_texts(joined_fields(parts), alive)
            self._add(Segment(lists, ids, texts if with_texts else [], words, fields=fields))
        return self

    def search(
        self,
        query: str,
        k: int = 10,
        *,
        prune: float = 0.0,
        two_phase: float | None = None,
        max_df: float = 1.0,
        where: Sequence[str] = (),
    ) -> list[Hit]:
        """Return the k documents of largest score, largest first, only with scores above 0.

        query: a text. The score is `Lexical`'s, or without BM25 sum_j q_j d_j. prune: leave
          out tokens below this share of the heaviest; max_df: leave out tokens in more than this
          share of the documents; two_phase: compute the learned score first by tokens of at least
          0.4 of the heaviest weight, then by all tokens for the best k times this number of
          documents; it misses documents without heavy tokens, and is faster only where the lists of
          light tokens are very long; where: conditions on documents' fields, which must all hold,
          such as "price<20". Empty for a query without a known token.
        Raises: ConfigError; UnknownName for a field that no document has.
        """
        options: Any = {"prune": prune, "two_phase": two_phase, "max_df": max_df, "where": where}
        return self.search_many([query], k, **options)[0]

    def search_many(
        self,
        queries: Sequence[str],
        k: int = 10,
        *,
        prune: float = 0.0,
        two_phase: float | None = None,
        max_df: float = 1.0,
        where: Sequence[str] = (),
    ) -> list[list[Hit]]:
        """Return the hits of several queries, which are tokenized together.

        queries: texts; k: hits of each; prune: leave out a query's tokens below this share of its
          heaviest; two_phase: None = exact scores; else scores by heavy tokens alone, then exact
          ones for the best k times this number of documents; max_df: leave out tokens in more than
          this share of documents; where: conditions on fields, see `search`.
        """
        at_least("k", k, 1, fix="Try 10.")
        above("max_df", max_df, 0, fix="Try 0.5; 1 keeps all.")
        if two_phase is not None:
            at_least("two_phase", two_phase, 1, fix="Try 5.")
        scorer = self._scorer_of_segments()
        joined = scorer.joined(queries, prune=prune, max_df=max_df)
        masks = masks_of(self.segments, where)
        return [self._hits(scorer.best(query, k, masks, two_phase), k) for query in joined]

    def stems_of(self, query: str) -> list[str]:
        """Return the stems of a query that some document has, each once; [] without BM25.

        query: a text.
        """
        if self.lexical is None or not self.lexical.share:
            return []
        numbers = [s.stems.place for s in self.segments if s.stems is not None]
        query_stems = dict.fromkeys(stems([query], self.lexical.language)[0])
        return [word for word in query_stems if any(word in place for place in numbers)]

    def prepare(self) -> None:
        """Compute BM25's weights now, which the first search would do."""
        self._scorer_of_segments()

    def _scorer_of_segments(self) -> Scorer:
        if self._scorer is None:
            self._scorer = Scorer(self.segments, self.queries, self.lexical)
        return self._scorer

    def frequencies(self) -> np.ndarray:
        """Count the documents, deleted ones too, with each token in their vectors, (V,)."""
        return frequencies(self.segments, len(self.queries.weights))

    def _hits(self, best_of: Sequence[tuple[Array, Array]], k: int) -> list[Hit]:
        """Return the k best hits; best_of: (numbers, scores) of each segment's best documents."""
        hits = list[Hit]()
        for segment, (numbers, scores) in zip(self.segments, best_of, strict=True):
            for number, score in zip(map(int, numbers), scores.tolist(), strict=True):
                text = segment.texts[number] if segment.texts else ""
                hits.append(Hit(segment.ids[number], score, text, segment.fields_of(number)))
        if len(self.segments) > 1:
            hits.sort(key=lambda hit: -hit.score)  # stable: ties stay in the order of documents
        return hits[:k]

    def explain(self, query: str, name: str) -> list[Term]:
        """Return how much each token of a query adds to a document's score, largest first.

        query: a text; name: id of the document. The contributions add up to the score. Raises:
          DataError for an id that is not there.
        """
        if name not in self._place:
            fix = "Take an id that a search returned."
            raise DataError("document id", got=repr(name), want="one of the index", fix=fix)
        place, number = self._place[name]
        segment, in_text, row = self.segments[place], set[int](), np.array([number])
        if segment.texts:
            in_text = {token for token, _, _ in self.queries.places(segment.texts[number])}
        scorer = self._scorer_of_segments()
        (joined,) = scorer.joined([query], prune=0.0, max_df=1.0)
        _, (learned_factor, bm25_factor) = scorer.scores(joined)
        # each token's share of the score, times the factor of its kind
        terms: list[Term] = []
        for token, weight in joined.tokens:
            score = float(segment.postings.scores_of([(token, weight)], row)[0])
            expanded = bool(segment.texts) and token not in in_text
            terms.append(Term(self.queries.word(token), learned_factor * score, expanded))
        if scorer.bm25 is not None and segment.stems is not None:
            lists = scorer.bm25.lists[place]
            for stem, weight in joined.stems[place]:
                score = bm25_factor * lists.scores_of([(stem, weight)], row)[0]
                terms.append(Term(segment.stems.names[stem], float(score), False, stem=True))
        return sorted((t for t in terms if t.score > 0), key=lambda term: -term.score)

    def run(
        self, queries: Mapping[str, str], k: int = 100, where: Sequence[str] = ()
    ) -> dict[str, dict[str, float]]:
        """Return scores by query and document, as `train.ranked` and TREC's tools read them.

        queries: name -> text; k: documents of each query; where: conditions, see `search`.
        """
        hits = self.search_many(list(queries.values()), k, where=where)
        results = zip(queries, hits, strict=True)
        return {name: {hit.id: hit.score for hit in hits} for name, hits in results}

    def documents(self) -> Iterator[tuple[str, dict[str, float]]]:
        """Yield ids and their vectors as token -> weight, for other engines."""
        for segment in self.segments:
            rows, alive = segment.postings.rows(), segment.alive
            for number in np.flatnonzero(alive).tolist():
                part = slice(rows.indptr[number], rows.indptr[number + 1])
                pairs = zip(rows.indices[part].tolist(), rows.data[part].tolist(), strict=True)
                yield segment.ids[number], {self.queries.word(j): w for j, w in pairs}

    def sizes(self) -> dict[str, Any]:
        """Return how many documents and postings there are, and the bytes of the lists on disk."""
        postings = sum(len(segment.postings.docs) for segment in self.segments)
        arrays = [segment.postings.encode(self.stored) for segment in self.segments]
        arrays += [s.stems.encode() for s in self.segments if s.stems is not None]
        size = sum(array.nbytes for encoded in arrays for array in encoded.values())
        mean = postings / max(1, sum(segment.postings.count for segment in self.segments))
        return {"documents": len(self), "postings": postings, "mean": mean, "bytes": size}

    def save(self, folder: str | Path) -> Path:
        """Write the index; into its own folder only new segments.

        Raises: ConfigError for a folder with other files in it; TrainingError if it cannot be
        written.
        """
        folder = Path(folder)
        metadata = {"model": self.model, "digest": self.digest, "stored": self.stored}
        parts = self.queries, self.segments, metadata, self.lexical
        # an index of this folder is updated in place, a new folder appears at once or not at all
        if check_folder(folder):
            write_index(folder, *parts)
            return folder
        with writing(folder) as scratch:
            scratch.mkdir()
            write_index(scratch, *parts)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> SparseIndex:
        """Read the index that `save` wrote.

        Raises: CheckpointError for a folder that is damaged, or has no index.
        """
        saved = read_index(Path(folder))
        index = cls(saved.queries, **saved.metadata, lexical=saved.lexical)
        for segment in saved.segments:
            index._add(segment)
        return index


def _places(segment: Segment, place: int) -> dict[str, tuple[int, int]]:
    """Return where the documents of a segment are, by id.  place: of the segment."""
    return {name: (place, i) for i, name in enumerate(segment.ids) if i not in segment.deleted}
