"""Export of an index to other search engines, where one machine is too small for its documents.

    path = export(index, "qdrant", "points.jsonl")          # documents, and what queries need
    queries = EngineQueries.load(queries_file(path), "idx")
    engine_query("qdrant", queries, "printer is loud", factors=queries.factors(top, top_stems))

OpenSearch, Elasticsearch and Qdrant take files; Seismic, an approximate engine in this process, has
an index of its own. All score a query as `SparseIndex` does, Seismic approximately.

A document is one sparse vector: weights of the model's tokens, and BM25's weights of its stems. A
query of both needs the largest score of either kind, which two queries of one hit each tell.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from ...core.checks import one_of
from ...core.errors import CheckpointError, MissingExtra
from ...core.files import read_json, write_json, writing
from .lexical import Bm25Lists, Lexical, stems
from .postings import Postings
from .query_weights import QueryWeights, idf
from .sparse_index import SparseIndex

FORMS = ("opensearch", "elasticsearch", "qdrant", "trec")
FIELD = {"opensearch": "rank_features", "elasticsearch": "sparse_vector"}  # field types
VECTOR, TEXT, STEM = "vector", "text", "~"  # the last one before the name of a stem


@dataclass(frozen=True)
class EngineQueries:
    """Queries of an index for another engine, without its documents.

    queries: weights of the model's tokens; lexical: settings of BM25, None = without; stems: number
    and idf of each. Stem s is at V + s of a vector, after the V tokens, and is called "~cat".
    """

    queries: QueryWeights
    lexical: Lexical | None
    stems: Mapping[str, tuple[int, float]]

    @classmethod
    def of(cls, index: SparseIndex) -> EngineQueries:
        """Take the queries of an index; the idf of a stem is over all its segments."""
        parts = [s.stems for s in index.segments if s.stems is not None]
        lexical = index.lexical if index.lexical and index.lexical.share else None
        if lexical is None:
            return cls(index.queries, None, {})
        frequencies: Counter[str] = Counter()
        for part in parts:
            frequencies.update(dict(zip(part.names, part.counts.frequencies(), strict=True)))
        counts = np.array(list(frequencies.values()))
        weights = idf(counts, sum(part.counts.count for part in parts)).tolist()
        numbered = {
            name: (n, w) for n, (name, w) in enumerate(zip(frequencies, weights, strict=True))
        }
        return cls(index.queries, lexical, numbered)

    @cached_property
    def names(self) -> list[str]:
        """Stems by number."""
        return list(self.stems)

    def save(self, path: str | Path) -> Path:
        """Write stems and settings as JSON; the weights of tokens are in the index's folder."""
        lexical = None if self.lexical is None else asdict(self.lexical)
        return write_json(Path(path), {"lexical": lexical, "stems": self.stems}, indent=None)

    @classmethod
    def load(cls, path: str | Path, folder: str | Path) -> EngineQueries:
        """Read what `save` wrote.

        folder: of the index; only its weights of tokens are read.
        Raises: CheckpointError.
        """
        try:
            record = read_json(Path(path))
            lexical = None if record["lexical"] is None else Lexical(**record["lexical"])
            numbered = {str(n): (int(i), float(w)) for n, (i, w) in record["stems"].items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            want, fix = "what an export wrote", "Export the index again."
            raise CheckpointError(f"file {path}", got=error, want=want, fix=fix) from error
        return cls(QueryWeights.load(Path(folder)), lexical, numbered)

    def factors(self, top: float = 0.0, top_stems: float = 0.0) -> tuple[float, float]:
        """Return the factors of both scores, as `Lexical` joins them.

        top, top_stems: largest score of a query of tokens alone, and of stems alone; an index of
          one kind needs neither.
        """
        share = 0.0 if self.lexical is None else self.lexical.share
        if share in (0.0, 1.0):
            return 1.0 - share, share
        return (1 - share) / top if top > 0 else 0.0, share / top_stems if top_stems > 0 else 0.0

    def weights(self, text: str, factors: tuple[float, float]) -> list[tuple[int, str, float]]:
        """Return (number, name, weight) of each token and stem of a query.

        factors: of tokens and of stems, 0 = leave them out.
        """
        of_tokens, of_stems = factors
        pairs = self.queries.of(text) if of_tokens else []
        rows = [(j, self.queries.word(j), of_tokens * w) for j, w in pairs]
        if of_stems and self.lexical is not None:
            size, times = (
                len(self.queries.weights),
                Counter(stems([text], self.lexical.language)[0]),
            )
            for word, count in times.items():
                if word in self.stems:
                    number, weight = self.stems[word]
                    rows.append((size + number, STEM + word, of_stems * count * weight))
        return rows


def export(index: SparseIndex, form: str, path: str | Path) -> Path:
    """Write an index's documents for another search engine, one JSON object a line.

    form: "opensearch" or "elasticsearch", the body of a _bulk request; the mapping is
      `mapping(form)`, a query is `engine_query(form, ...)`; "qdrant", points with a sparse vector
      "text" and a payload of id, text and fields; "trec", id and vector, token -> weight
      (Anserini's and PISA's JSON of vectors).
    What queries need is written next to it, see `queries_file`.  Returns the path.
    Raises: ConfigError for another form; TrainingError if it cannot be written.
    """
    one_of("form", form, FORMS, fix="Seismic has no file: see seismic_index.")
    queries = EngineQueries.of(index)
    with writing(path) as scratch, scratch.open("w", encoding="utf-8") as out:
        for row in _rows(index, queries, form):
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    queries.save(queries_file(path))
    return Path(path)


def queries_file(path: str | Path) -> Path:
    """Return the file next to an export that has what its queries need."""
    return Path(f"{path}.queries.json")


def _rows(index: SparseIndex, queries: EngineQueries, form: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of `export`, one or two for each document."""
    place = 0
    for segment, vectors in zip(index.segments, _vectors(index, queries), strict=True):
        for number in np.flatnonzero(segment.alive).tolist():
            name, text = segment.ids[number], segment.texts[number] if segment.texts else ""
            fields = dict(segment.fields_of(number))
            part = slice(vectors.indptr[number], vectors.indptr[number + 1])
            indices, values = vectors.indices[part].tolist(), vectors.data[part].tolist()
            names = (_name(queries, j) for j in indices)
            vector = dict(zip(names, values, strict=True))
            known = {"fields": fields} if fields else {}
            if form == "trec":
                yield {"id": name, "contents": text, "vector": vector}
            elif form == "qdrant":
                # Qdrant takes numbers of tokens, the other engines their texts
                sparse = {"indices": indices, "values": values}
                payload = {"id": name, "text": text} | known
                yield {"id": place, "vector": {TEXT: sparse}, "payload": payload}
            else:
                # a _bulk request has two lines for each document: the action, and the document
                yield {"index": {"_id": name}}
                yield {TEXT: text, VECTOR: vector} | known
            place += 1


def _vectors(index: SparseIndex, queries: EngineQueries) -> Iterator[Any]:
    """Yield each segment's documents as rows (documents, V + stems): tokens, then BM25's stems."""
    lists: Sequence[Postings | None] = [None] * len(index.segments)
    if queries.lexical is not None:
        parts = [s.stems for s in index.segments if s.stems is not None]
        # share=1: the lists then count documents from 0, see `Bm25Lists`
        lists = Bm25Lists(parts, replace(queries.lexical, share=1.0)).lists
    for segment, bm25 in zip(index.segments, lists, strict=True):
        learned = segment.postings.rows()
        if bm25 is None or segment.stems is None:
            yield learned
            continue
        rows, numbers = bm25.rows().tocoo(), queries.stems
        column = np.array([numbers[name][0] for name in segment.stems.names], np.int64)
        shape = rows.shape[0], len(numbers)
        yield sp.hstack(
            [learned, sp.csr_matrix((rows.data, (rows.row, column[rows.col])), shape)], format="csr"
        )


def _name(queries: EngineQueries, number: int) -> str:
    """Return the name of a token or stem in a vector.  number: its place there."""
    size = len(queries.queries.weights)
    return queries.queries.word(number) if number < size else STEM + queries.names[number - size]


def mapping(form: str) -> dict[str, Any]:
    """Return the mapping of an engine's index that takes `export`'s file.

    form: "opensearch" or "elasticsearch".  Raises: ConfigError.
    """
    one_of("form", form, tuple(FIELD))
    properties = {TEXT: {"type": "text"}, VECTOR: {"type": FIELD[form]}}
    return {"mappings": {"properties": properties}}


def engine_query(
    form: str,
    queries: QueryWeights | EngineQueries,
    text: str,
    k: int = 10,
    *,
    factors: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Return a query's body for an engine: tokens and their weights, computed without a model.

    form: "opensearch", "elasticsearch" or "qdrant"; queries: weights of query tokens, or the ones
      from `export`; factors: of tokens and of stems: (1, 0) and (0, 1) ask by one kind,
      `queries.factors` joins both; None = tokens alone, or stems alone where the index has no
      model. Raises: ConfigError.
    """
    one_of("form", form, ("opensearch", "elasticsearch", "qdrant"))
    if isinstance(queries, QueryWeights):
        queries = EngineQueries(queries, None, {})
    if factors is None:
        factors = (0.0, 1.0) if queries.lexical and queries.lexical.share == 1 else (1.0, 0.0)
    rows = queries.weights(text, factors)
    if form == "qdrant":
        sparse = {"indices": [j for j, _, _ in rows], "values": [w for _, _, w in rows]}
        return {"query": sparse, "using": TEXT, "limit": k, "with_payload": True}
    tokens = {name: w for _, name, w in rows}
    if form == "opensearch":
        return {"size": k, "query": {"neural_sparse": {VECTOR: {"query_tokens": tokens}}}}
    return {"size": k, "query": {"sparse_vector": {"field": VECTOR, "query_vector": tokens}}}


def seismic_index(index: SparseIndex, **settings: Any) -> Any:
    """Build an index of pyseismic-lsr, an approximate engine, from the same vectors.

    settings: of `build_from_dataset`. Raises: MissingExtra.
    """
    library = _seismic()
    data, word = library.SeismicDataset(), library.get_seismic_string()
    for name, vector in index.documents():
        tokens = np.array(list(vector), dtype=word)
        data.add_document(name, tokens, np.array(list(vector.values()), np.float32))
    return library.SeismicIndex.build_from_dataset(data, **({"num_threads": 1} | settings))


def seismic_search(
    seismic: Any,
    queries: QueryWeights,
    texts: Sequence[str],
    k: int = 10,
    *,
    query_cut: int = 10,
    heap_factor: float = 0.8,
) -> list[list[tuple[str, float]]]:
    """Search a Seismic index; return (id, score) pairs of each query, largest first.

    seismic: of `seismic_index`; query_cut: number of the heaviest tokens to look up; heap_factor:
      below 1 the search stops later and finds more of the exact answer.
    """
    word = _seismic().get_seismic_string()
    hits: list[list[tuple[str, float]]] = []
    for number, pairs in enumerate(queries.of_many(texts)):
        tokens = np.array([queries.word(j) for j, _ in pairs], dtype=word)
        weights = np.array([w for _, w in pairs], np.float32)
        rows = (
            seismic.search(
                str(number), tokens, weights, k=k, query_cut=query_cut, heap_factor=heap_factor
            )
            if pairs
            else []
        )
        hits.append([(str(name), float(score)) for _, score, name in rows])
    return hits


def _seismic() -> Any:
    """Import pyseismic-lsr.  Raises: MissingExtra."""
    try:
        import seismic
    except ImportError as error:
        raise MissingExtra("pyseismic-lsr", "engines") from error
    return seismic
