"""An index in other engines: tokens and stems in one vector rank there as they do here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from intarsia.areas.search.engines import EngineQueries, engine_query, export, mapping, queries_file
from intarsia.areas.search.lexical import Lexical, StemsAlone
from intarsia.areas.search.sparse_index import SparseIndex
from intarsia.core.errors import CheckpointError

from ...refusals import refused

pytest.importorskip("bm25s")
WORDS = ["cat", "dog", "tree", "house", "mouse", "garden", "sleeps", "barks", "green", "old"]
DOCS = [(f"d{i}", " ".join(WORDS[(i * j) % (7 + i % 4)] for j in range(1, 4 + i % 9)))
        for i in range(40)]  # fmt: skip
QUERIES = ["cat in the garden", "old dog barks, dog", "green houses", "zzz"]


def _found(client: Any, kinds: Any, body: dict[str, Any]) -> list[tuple[str, float]]:
    body["query"] = kinds.SparseVector(**body["query"])
    return [(p.payload["id"], p.score) for p in client.query_points("c", **body).points]


@pytest.mark.parametrize("kind", ["stems", "tokens", "both"])
def test_qdrant_s_local_mode_answers_alike(toy: Any, tmp_path: Path, kind: str) -> None:
    qdrant = pytest.importorskip("qdrant_client")
    kinds = qdrant.models
    lexical = {"stems": Lexical(share=1.0), "tokens": None, "both": Lexical()}[kind]
    encoder = StemsAlone() if kind == "stems" else toy
    index = SparseIndex.build(encoder, DOCS[:25], stored="float32", lexical=lexical)
    # a segment with stems of other numbers, and documents that are gone
    index.append(encoder, [*reversed(DOCS[25:])]).delete(["d3", "d30"])
    index.save(tmp_path / "idx")
    path = export(index, "qdrant", tmp_path / "points.jsonl")
    client = qdrant.QdrantClient(":memory:")
    client.create_collection("c", sparse_vectors_config={"text": kinds.SparseVectorParams()})
    points = [json.loads(line) for line in path.read_text().splitlines()]
    client.upsert("c", [kinds.PointStruct(**point) for point in points])
    queries = EngineQueries.load(queries_file(path), tmp_path / "idx")
    for query in QUERIES:
        tops = [
            next(iter(_found(client, kinds, engine_query("qdrant", queries, query, 1, factors=f))),
                 ("", 0.0))[1]
            for f in ((1.0, 0.0), (0.0, 1.0))
        ]  # fmt: skip
        body = engine_query("qdrant", queries, query, 40, factors=queries.factors(*tops))
        got = {name: score for name, score in _found(client, kinds, body) if score > 0}
        hits = index.search(query, 40)
        scale = 1.0
        if kind == "stems" and hits:  # ours are over the largest
            scale = max(got.values())
        expected = {hit.id: scale * hit.score for hit in hits}
        assert got == pytest.approx(expected, rel=1e-4, abs=1e-6)
        ranked = sorted(expected.values(), reverse=True)[:10]
        assert sorted(got.values(), reverse=True)[:10] == pytest.approx(ranked, rel=1e-4)
    client.close()


@pytest.mark.parametrize("form", ["opensearch", "elasticsearch"])
def test_a_bulk_request_scores_alike_by_hand(toy: Any, tmp_path: Path, form: str) -> None:
    docs = [{"id": name, "text": text, "price": n} for n, (name, text) in enumerate(DOCS)]
    index = SparseIndex.build(toy, docs)
    path = export(index, form, tmp_path / "bulk.ndjson")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    bodies = {action["index"]["_id"]: body
              for action, body in zip(lines[::2], lines[1::2], strict=True)}  # fmt: skip
    assert set(mapping(form)["mappings"]["properties"]) == {"text", "vector"}
    assert bodies["d7"]["fields"] == {"price": 7} and bodies["d7"]["text"] == DOCS[7][1]
    queries = EngineQueries.of(index)

    def scores(factors: tuple[float, float]) -> dict[str, float]:
        body = engine_query(form, queries, "old dog barks", factors=factors)["query"]
        if form == "opensearch":
            tokens = body["neural_sparse"]["vector"]["query_tokens"]
        else:
            tokens = body["sparse_vector"]["query_vector"]
        return {name: sum(tokens.get(t, 0) * w for t, w in one["vector"].items())
                for name, one in bodies.items()}  # fmt: skip

    tops = [max(scores(factors).values()) for factors in ((1.0, 0.0), (0.0, 1.0))]
    got = {name: score for name, score in scores(queries.factors(*tops)).items() if score > 0}
    expected = {hit.id: hit.score for hit in index.search("old dog barks", 99)}
    assert got == pytest.approx(expected, rel=1e-3)


def test_a_damaged_file_of_queries_is_refused(toy: Any, tmp_path: Path) -> None:
    index = SparseIndex.build(toy, DOCS)
    index.save(tmp_path / "idx")
    path = export(index, "trec", tmp_path / "docs.jsonl")
    assert (
        EngineQueries.load(queries_file(path), tmp_path / "idx").stems
        == EngineQueries.of(index).stems
    )
    for text in ("[]", "{", '{"lexical": null}', '{"lexical": null, "stems": {"a": 1}}'):
        queries_file(path).write_text(text)
        with refused(CheckpointError, want="what an export wrote"):
            EngineQueries.load(queries_file(path), tmp_path / "idx")
