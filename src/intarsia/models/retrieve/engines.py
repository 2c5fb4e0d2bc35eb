"""Export of an index's vectors to other search engines.

OpenSearch, Elasticsearch and Qdrant take files; Seismic, an approximate engine in this process, has
an index of its own. All score a query as `SparseIndex` does, Seismic approximately.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...core.checks import one_of
from ...core.errors import MissingExtra
from ...core.files import writing
from .query_weights import QueryWeights
from .sparse_index import SparseIndex

FORMS = ("opensearch", "elasticsearch", "qdrant", "trec")
FIELD = {"opensearch": "rank_features", "elasticsearch": "sparse_vector"}  # field types
VECTOR, TEXT = "vector", "text"


def export(index: SparseIndex, form: str, path: str | Path) -> Path:
    """Write an index's documents for another search engine, one JSON object a line.

    index: the index; form: "opensearch" or "elasticsearch", the body of a _bulk request; the
      mapping is `mapping(form)`, a query is `engine_query(form, ...)`; "qdrant", points with a
      sparse vector "text", whose payload has id and text; "trec", id and vector, token -> weight
      (Anserini's and PISA's JSON of vectors); path: of the file.
    Raises: ConfigError for another form; TrainingError if it cannot be written.
    """
    one_of("form", form, FORMS, fix="Seismic has no file: see seismic_index.")
    with writing(path) as scratch, scratch.open("w", encoding="utf-8") as out:
        for row in _rows(index, form):
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    return Path(path)


def _rows(index: SparseIndex, form: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of `export`, one or two for each document.

    index: the index; form: the engine's name, one of FORMS.
    """
    texts = {name: text for s in index.segments for name, text in zip(s.ids, s.texts, strict=False)}
    # Qdrant takes numbers of tokens, the other engines their texts
    numbers = {index.queries.word(j): j for j in range(len(index.queries.weights))}
    for place, (name, vector) in enumerate(index.documents()):
        text = texts.get(name, "")
        if form == "trec":
            yield {"id": name, "contents": text, "vector": vector}
        elif form == "qdrant":
            sparse = {"indices": [numbers[t] for t in vector], "values": list(vector.values())}
            yield {"id": place, "vector": {TEXT: sparse}, "payload": {"id": name, "text": text}}
        else:
            # a _bulk request has two lines for each document: the action, and the document
            yield {"index": {"_id": name}}
            yield {TEXT: text, VECTOR: vector}


def mapping(form: str) -> dict[str, Any]:
    """Return the mapping of an engine's index that takes `export`'s file.

    form: "opensearch" or "elasticsearch".  Raises: ConfigError.
    """
    one_of("form", form, tuple(FIELD))
    properties = {TEXT: {"type": "text"}, VECTOR: {"type": FIELD[form]}}
    return {"mappings": {"properties": properties}}


def engine_query(form: str, queries: QueryWeights, text: str, k: int = 10) -> dict[str, Any]:
    """Return a query's body for an engine: tokens and their weights, computed without a model.

    form: "opensearch", "elasticsearch" or "qdrant"; queries: weights of query tokens; text: the
      query; k: number of hits. Raises: ConfigError.
    """
    one_of("form", form, ("opensearch", "elasticsearch", "qdrant"))
    pairs = queries.of(text)
    if form == "qdrant":
        sparse = {"indices": [j for j, _ in pairs], "values": [w for _, w in pairs]}
        return {"query": sparse, "using": TEXT, "limit": k, "with_payload": True}
    tokens = {queries.word(j): w for j, w in pairs}
    if form == "opensearch":
        return {"size": k, "query": {"neural_sparse": {VECTOR: {"query_tokens": tokens}}}}
    return {"size": k, "query": {"sparse_vector": {"field": VECTOR, "query_vector": tokens}}}


def seismic_index(index: SparseIndex, **settings: Any) -> Any:
    """Build an index of pyseismic-lsr, an approximate engine, from the same vectors.

    index: ours; settings: of `build_from_dataset`. Raises: MissingExtra.
    """
    library = _seismic()
    data, word = library.SeismicDataset(), library.get_seismic_string()
    for name, vector in index.documents():
        tokens = np.array(list(vector), dtype=word)
        data.add_document(name, tokens, np.array(list(vector.values()), np.float32))
    return library.SeismicIndex.build_from_dataset(data, **({"num_threads": 1} | settings))


def seismic_search(
    seismic: Any, queries: QueryWeights, texts: Sequence[str], k: int = 10, *,
    query_cut: int = 10, heap_factor: float = 0.8,
) -> list[list[tuple[str, float]]]:  # fmt: skip
    """Search a Seismic index; return (id, score) pairs of each query, largest first.

    seismic: of `seismic_index`; queries: weights of query tokens; texts: the queries; k: number of
      hits; query_cut: number of the heaviest tokens to look up; heap_factor: below 1 the search
      stops later and finds more of the exact answer.
    """
    word = _seismic().get_seismic_string()
    hits: list[list[tuple[str, float]]] = []
    for number, pairs in enumerate(queries.of_many(texts)):
        tokens = np.array([queries.word(j) for j, _ in pairs], dtype=word)
        weights = np.array([w for _, w in pairs], np.float32)
        rows = (
            seismic.search(str(number), tokens, weights, k=k, query_cut=query_cut,
                         heap_factor=heap_factor)
            if pairs
            else []
        )  # fmt: skip
        hits.append([(str(name), float(score)) for _, score, name in rows])
    return hits


def _seismic() -> Any:
    """Import pyseismic-lsr.  Raises: MissingExtra."""
    try:
        import seismic
    except ImportError as error:
        raise MissingExtra("pyseismic-lsr", "engines") from error
    return seismic
