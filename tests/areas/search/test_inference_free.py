"""The encoder's vectors are their definition; the penalty and the ensemble keep their laws."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from intarsia.areas.search import engines
from intarsia.areas.search.inference_free import InferenceFree, WeightedFlops, ensemble, prune_rows
from intarsia.areas.search.learning import (
    LearnedRetrieval,
    draw_pairs,
    fit_retriever,
    penalty_weights,
)
from intarsia.areas.search.query_weights import idf
from intarsia.areas.search.sparse_index import SparseIndex
from intarsia.areas.search.teachers import Bm25, teachers_of
from intarsia.cli import app
from intarsia.core.errors import AssetError, ConfigError, DataError

from ...refusals import refused
from .conftest import masked_language_model

WORDS = [
    "the",
    "cat",
    "sleeps",
    "dog",
    "bark",
    "house",
    "tree",
    "mouse",
    "runs",
    "under",
    "over",
    "a",
    "old",
    "garden",
]
TEXTS = [
    "the cat sleeps under the old tree",
    "the dog runs over the garden",
    "a mouse runs under the house",
    "the old dog sleeps",
    "the cat runs the mouse runs the dog runs over the house",
]
NAMED = [(f"d{i}", text) for i, text in enumerate(TEXTS)]
# of libraries that this one calls
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked language model of random weights, as transformers saves it."""
    pytest.importorskip("sentence_transformers")
    return masked_language_model(tmp_path_factory.mktemp("bert"), WORDS)


@pytest.fixture
def model(folder: Path) -> Iterator[InferenceFree]:
    yield InferenceFree.from_pretrained(str(folder), TEXTS)


def _by_hand(model: InferenceFree, text: str) -> np.ndarray:
    transformer = model.documents[0]
    read = model.tokenizer([text], return_tensors="pt", truncation=True)
    with torch.no_grad():
        logits = transformer.auto_model(**read).logits[0]
    vector = torch.log1p(torch.relu(logits.amax(0))).numpy()
    vector[model.tokenizer.all_special_ids] = 0
    return vector


def test_a_document_is_its_definition(model: InferenceFree) -> None:
    got = np.asarray(model.encode(TEXTS[:3]).todense())
    want = np.stack([_by_hand(model, text) for text in TEXTS[:3]])
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    assert got.any() and not got[:, model.tokenizer.all_special_ids].any()


def test_a_query_is_the_idf_of_its_tokens(model: InferenceFree) -> None:
    counts, total = model.queries.frequencies(TEXTS)
    number = model.tokenizer.convert_tokens_to_ids
    assert dict(model.queries.of("the cat cat zzz")) == pytest.approx(
        {number(w): idf(counts, total)[number(w)] for w in ("the", "cat")}
    )
    assert model.queries.of("zzz [CLS]") == []
    flat = InferenceFree.from_pretrained(model.name, TEXTS, flat=True)
    assert {w for _, w in flat.queries.of("the cat")} == {1.0}


def test_the_library_s_own_encoder_gives_the_same_scores(
    model: InferenceFree, tmp_path: Path
) -> None:
    from sentence_transformers import SparseEncoder

    plain = SparseEncoder(str(model.save(tmp_path / "enc")), device="cpu")
    short = TEXTS[:4]  # which the model reads whole
    query = plain.encode_query(["the cat runs"]).to_dense()
    scores = (query @ plain.encode_document(short).to_dense().T)[0].numpy()
    index = SparseIndex.build(model, [(str(i), text) for i, text in enumerate(short)],
                              stored="float32", lexical=None)  # fmt: skip
    got = {hit.id: hit.score for hit in index.search("the cat runs", 9)}
    assert got == pytest.approx({str(i): s for i, s in enumerate(scores) if s > 0}, rel=1e-4)
    table = json.loads((tmp_path / "enc" / "idf.json").read_text())
    again = InferenceFree.from_pretrained(str(tmp_path / "enc"))
    assert table == again.queries.table() == model.queries.table()
    assert again.digest == model.digest


def test_a_long_document_is_read_in_parts(model: InferenceFree) -> None:
    long = " ".join(TEXTS)
    assert model.longest == 8
    got = np.asarray(model.encode([long, "", TEXTS[3]]).todense())
    cut = model._cut(long)
    assert "".join(cut) == long and len(cut) == 5
    np.testing.assert_allclose(
        got[0], np.max([_by_hand(model, part) for part in cut], axis=0), rtol=1e-4, atol=1e-5
    )
    assert not got[1].any()
    np.testing.assert_allclose(got[2], _by_hand(model, TEXTS[3]), rtol=1e-4, atol=1e-5)


def test_pruned_vectors_keep_their_largest(model: InferenceFree) -> None:
    rows = model.encode(TEXTS)
    less = prune_rows(rows, 0.5)
    nonzero = np.asarray((less > 0).todense())
    dense = np.asarray(rows.todense())
    assert (nonzero == (dense >= 0.5 * dense.max(1, keepdims=True))).all() and less.nnz < rows.nnz
    assert prune_rows(rows, 0.0) is rows


def test_other_models_are_refused(folder: Path, tmp_path: Path) -> None:
    with refused(ConfigError, what="model of documents"):
        InferenceFree.from_pretrained("minilm")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(Exception, match="model") as caught:
        InferenceFree.from_pretrained(str(tmp_path))
    assert hasattr(caught.value, "fix")
    with pytest.raises(AssetError, match="teacher"):
        teachers_of([str(tmp_path)], TEXTS)
    for names in ((), ("bm25", "bm25")):
        with refused(ConfigError, what="teachers", want="one or more, each once"):
            teachers_of(names, TEXTS)


batches = st.lists(
    st.lists(st.floats(0, 3, width=32), min_size=4, max_size=4), min_size=1, max_size=5
)


@settings(deadline=None)
@given(batches, st.lists(st.floats(0.125, 4, width=32), min_size=4, max_size=4))
def test_idf_in_the_match_is_a_weight_in_the_penalty(rows: Any, weights: Any) -> None:
    d, q = torch.tensor(rows), torch.tensor(weights)
    e = q * d  # documents that hold the idf themselves
    assert torch.allclose(d @ q, e @ torch.ones(4), rtol=1e-5)
    plain = WeightedFlops(torch.ones(4)).compute_loss_from_embeddings(d)
    weighted = WeightedFlops(q.pow(-2)).compute_loss_from_embeddings(e)
    assert torch.allclose(plain, weighted, rtol=1e-4, atol=1e-6)


def test_a_weight_of_1_is_the_library_s_flops() -> None:
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.sparse_encoder.losses import FlopsLoss

    rows = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))
    theirs = FlopsLoss(None).compute_loss_from_embeddings(rows)  # pyright: ignore
    assert torch.allclose(WeightedFlops(torch.ones(7)).compute_loss_from_embeddings(rows), theirs)
    two = torch.tensor([[1.0, 0.0], [3.0, 2.0]])  # means 2 and 1
    assert WeightedFlops(torch.tensor([1.0, 10.0])).compute_loss_from_embeddings(two) == 14


def test_the_penalty_is_a_sum_over_the_places_of_a_query() -> None:
    """Two queries with an answer and a negative each: means 2, 1 at place 0 and 0, 3 at place 1."""
    answers = torch.tensor([[1.0, 0.0], [3.0, 2.0]])
    negatives = torch.tensor([[0.0, 5.0], [0.0, 1.0]])
    penalty = WeightedFlops(torch.tensor([1.0, 10.0]), places=2)
    got = penalty.compute_loss_from_embeddings(torch.cat([answers, negatives]))
    assert got == 2**2 + 10 * 1**2 + 10 * 3**2
    with pytest.raises(ConfigError) as caught:
        WeightedFlops(torch.ones(2), places=0)
    assert caught.value.got == 0


scores = st.lists(st.lists(st.floats(-50, 50), min_size=3, max_size=3), min_size=1, max_size=4)


@settings(deadline=None)
@given(scores, st.floats(0.5, 100), st.floats(-5, 5))
def test_a_teacher_s_units_do_not_matter(margins: Any, factor: float, shift: float) -> None:
    rows = np.array(margins)
    second = np.sin(rows)
    wide = np.ptp(rows, axis=1) > 1  # where eps is small beside the range
    got, again = ensemble([rows, second]), ensemble([factor * rows + shift, second])
    np.testing.assert_allclose(got[wide], again[wide], rtol=1e-3, atol=1e-3)
    assert (got >= 0).all() and (got <= 30).all()
    np.testing.assert_allclose(ensemble([rows, rows]), ensemble([rows]))
    with pytest.raises(ConfigError):
        ensemble([])


def test_training_in_chunks_of_any_size_is_the_same(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("bm25s")
    recipe = LearnedRetrieval(teachers=("bm25",), steps=2, batch=2, negatives=2, lr=1e-2)
    vectors: list[np.ndarray] = []
    for megabytes in (1, 64):
        model = InferenceFree.from_pretrained(str(folder), TEXTS, megabytes=megabytes)
        pairs = draw_pairs(TEXTS, 6, seed=0)
        out = tmp_path / str(megabytes)
        fit_retriever(model, TEXTS, pairs, recipe, out=out, report=lambda _: None)
        vectors.append(np.asarray(model.encode(TEXTS).todense()))
    np.testing.assert_allclose(*vectors, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError) as caught:
        InferenceFree.from_pretrained(str(folder), TEXTS, megabytes=0)
    assert caught.value.got == 0


def test_training_moves_documents_and_leaves_queries(model: InferenceFree, tmp_path: Path) -> None:
    pytest.importorskip("bm25s")
    before, digest = model.encode(TEXTS), model.digest
    weights = model.encoder[0].sub_modules["query"][0].weight.clone()
    recipe = LearnedRetrieval(teachers=("bm25",), steps=3, batch=2, negatives=2, lr=1e-2)
    pairs = draw_pairs(TEXTS, 6, seed=0)
    assert all(query in TEXTS[answers[0]] for query, answers in pairs)
    fit_retriever(model, TEXTS, pairs, recipe, out=tmp_path / "run", report=lambda _: None)
    assert torch.equal(model.encoder[0].sub_modules["query"][0].weight, weights)
    assert model.digest != digest and (model.encode(TEXTS) != before).nnz > 0
    with refused(DataError, what="pairs of query and answer", got="none"):
        fit_retriever(model, TEXTS, [], recipe, out=tmp_path / "run")
    with refused(DataError, what="documents to draw queries from"):
        draw_pairs(["one two"], 3, seed=0)
    for wrong in ({"steps": 0}, {"penalty": "l1"}, {"lr": 0.0}):
        with pytest.raises(ConfigError):
            LearnedRetrieval(**wrong)


def test_the_penalty_of_common_tokens_is_the_larger(model: InferenceFree) -> None:
    weights = penalty_weights(model, "idf")
    the, cat = model.tokenizer.convert_tokens_to_ids(["the", "cat"])
    assert weights[the] > weights[cat] and float(weights.mean()) == pytest.approx(1)
    assert (penalty_weights(model, "flops") == 1).all()


def test_bm25_knows_its_own_documents() -> None:
    pytest.importorskip("bm25s")
    teacher = Bm25(TEXTS)
    numbers, _ = teacher.retrieve(["mouse house"], 2)
    assert set(numbers[0]) == {2, 4}
    got = teacher.scores(["cat", "zzz"], np.array([[0, 1], [2, 3]]))
    assert got[0, 0] > 0 == got[0, 1] and not got[1].any()


def test_other_engines_give_the_same_documents(model: InferenceFree, tmp_path: Path) -> None:
    index = SparseIndex.build(model, NAMED, lexical=None)
    hits = {hit.id: hit.score for hit in index.search("cat garden", 3)}
    rows = [
        json.loads(line)
        for line in engines.export(index, "opensearch", tmp_path / "bulk").read_text().splitlines()
    ]
    assert rows[0] == {"index": {"_id": "d0"}} and rows[1]["text"] == TEXTS[0]
    body = engines.engine_query("opensearch", index.queries, "cat garden")
    tokens = body["query"]["neural_sparse"]["vector"]["query_tokens"]
    vectors = {a["index"]["_id"]: b["vector"] for a, b in zip(rows[::2], rows[1::2], strict=True)}
    scores = {n: sum(w * v.get(t, 0) for t, w in tokens.items()) for n, v in vectors.items()}
    assert {n: scores[n] for n in hits} == pytest.approx(hits, rel=1e-3)
    assert engines.mapping("elasticsearch")["mappings"]["properties"]["vector"]["type"]
    with refused(ConfigError, what="form", got="'lucene'"):
        engines.export(index, "lucene", tmp_path / "x")


def test_seismic_finds_the_same(model: InferenceFree) -> None:
    pytest.importorskip("seismic")
    index = SparseIndex.build(model, NAMED, lexical=None)
    seismic = engines.seismic_index(index)
    got = engines.seismic_search(seismic, index.queries, ["cat garden", "zzz"], 3)
    hits = index.search("cat garden", 3)
    assert got[1] == [] and [name for name, _ in got[0]] == [hit.id for hit in hits]
    assert [s for _, s in got[0]] == pytest.approx([hit.score for hit in hits], rel=1e-2)


def test_a_local_qdrant_finds_the_same(model: InferenceFree, tmp_path: Path) -> None:
    qdrant = pytest.importorskip("qdrant_client")
    index = SparseIndex.build(model, NAMED, lexical=None)
    path = engines.export(index, "qdrant", tmp_path / "points.jsonl")
    points = [json.loads(line) for line in path.read_text().splitlines()]
    client = qdrant.QdrantClient(":memory:")
    kinds = qdrant.models
    client.create_collection("c", sparse_vectors_config={"text": kinds.SparseVectorParams()})
    client.upsert("c", [kinds.PointStruct(**point) for point in points])
    body = engines.engine_query("qdrant", index.queries, "cat garden", 3)
    body["query"] = kinds.SparseVector(**body["query"])
    got = client.query_points("c", **body).points
    hits = index.search("cat garden", 3)
    assert [p.payload["id"] for p in got] == [hit.id for hit in hits]
    assert [p.score for p in got] == pytest.approx([hit.score for hit in hits], rel=1e-3)
    client.close()


def test_from_documents_to_answers_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs.jsonl"
    long = [f"{text} {text}" for text in TEXTS]
    rows = [json.dumps({"id": f"d{i}", "text": text}) for i, text in enumerate(long)]
    docs.write_text("\n".join(rows[:4]))

    def call(*words: object) -> Any:
        done = CliRunner().invoke(app, [*map(str, words)])
        assert done.exit_code == 0, done.output
        return done

    settings = [f"--set={s}" for s in ("steps=2", "batch=2", "negatives=1")]
    encoder, idx = tmp_path / "enc", tmp_path / "idx"
    task = ("--task", "sparse-retrieval", "--teachers", "bm25", "--model", folder)
    call("fit", docs, *task, *settings, "--out", encoder)
    call("index", docs, "--model", encoder, "--out", idx)
    answer = json.loads(call("search", idx, "garden", "--json").stdout)
    assert answer["documents"] == 4 and answer["tokens"] == ["garden"]
    docs.write_text(rows[4])
    call("index", docs, "--model", encoder, "--append", idx)
    assert json.loads(call("search", idx, "garden", "--json").stdout)["documents"] == 5
    assert {path.name for path in tmp_path.iterdir()} == {"docs.jsonl", "enc", "idx"}


def test_a_model_of_bfloat16_is_indexed(model: InferenceFree) -> None:
    plain = model.digest
    model.documents.to(torch.bfloat16)
    assert model.digest != plain == InferenceFree.from_pretrained(model.name, TEXTS).digest
    index = SparseIndex.build(model, [(str(i), text) for i, text in enumerate(TEXTS)])
    assert index.digest == model.digest and index.search("cat garden")
