"""BM25 in an index: as bm25s has it, however it was built, and joined as it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intarsia.areas.search.lexical import Lexical, Stems, StemsAlone, stems
from intarsia.areas.search.postings import best
from intarsia.areas.search.query_weights import QueryWeights
from intarsia.areas.search.showing import search_results
from intarsia.areas.search.sparse_index import SparseIndex
from intarsia.areas.search.tuning import tune_lexical
from intarsia.core.errors import CheckpointError, ConfigError, DataError

from ...refusals import refused
from .conftest import WORDS, word_tokenizer

pytest.importorskip("bm25s")
ALONE = Lexical(share=1.0)
TEXTS = [
    ("a", "The cats were sleeping in the house"),
    ("b", "the dog barks; dogs bark and bark"),
    ("c", ""),
    ("d", "a cat, a dog, a tree"),
    ("e", "trees and houses, mice and more trees"),
]
QUERIES = ["cat tree", "barking dogs", "houses of mice", "the and", "cats cats dog", "zzz"]


def _scores(index: SparseIndex, query: str) -> dict[str, float]:
    return {hit.id: hit.score for hit in index.search(query, 9)}


@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.5, 0.75)])
def test_alone_it_is_bm25s(toy: Any, k1: float, b: float) -> None:
    from intarsia.areas.search.teachers import Bm25

    index = SparseIndex.build(toy, TEXTS, lexical=replace(ALONE, k1=k1, b=b))
    oracle = Bm25([text for _, text in TEXTS], k1=k1, b=b)
    for query in QUERIES:
        expected = oracle.scores([query], np.arange(len(TEXTS))[None])[0]
        expected = expected / expected.max() if expected.any() else expected
        got = _scores(index, query)
        assert got == pytest.approx({TEXTS[i][0]: s for i, s in enumerate(expected) if s > 0})


def test_an_index_keeps_the_settings_that_it_was_saved_with(tmp_path: Path) -> None:
    assert (Lexical().k1, Lexical().b) == (1.5, 0.75)
    earlier = Lexical(share=1.0, k1=0.9, b=0.4)  # the defaults of 0.1.0
    built = SparseIndex.build(StemsAlone(), TEXTS, lexical=earlier)
    again = SparseIndex.load(built.save(tmp_path / "index"))
    again.append(StemsAlone(), [("f", "a cat among cats")])
    assert again.lexical == earlier
    whole = SparseIndex.build(StemsAlone(), [*TEXTS, ("f", "a cat among cats")], lexical=earlier)
    assert _scores(again, "cat tree") == pytest.approx(_scores(whole, "cat tree"))


def test_without_a_model_it_is_bm25s(tmp_path: Path) -> None:
    from intarsia.areas.search.teachers import Bm25

    index = SparseIndex.build(StemsAlone(), TEXTS[:3], lexical=ALONE)
    index.append(StemsAlone(), TEXTS[3:])  # a segment of its own
    index.save(tmp_path / "index")
    oracle = Bm25([text for _, text in TEXTS])
    for searchable in (index, SparseIndex.load(tmp_path / "index"), index.merge()):
        for query in QUERIES:
            expected = oracle.scores([query], np.arange(len(TEXTS))[None])[0]
            expected = expected / expected.max() if expected.any() else expected
            got = _scores(searchable, query)
            assert got == pytest.approx({TEXTS[i][0]: s for i, s in enumerate(expected) if s > 0})
            for name, score in got.items():
                terms = searchable.explain(query, name)
                assert all(term.stem for term in terms)
                assert sum(term.score for term in terms) == pytest.approx(score)
    qrels = {"q": {"d": 1}}
    assert tune_lexical(index, {"q": "cat tree"}, qrels).share == 1  # there is no learned score


def test_the_score_is_the_sum_of_both_shares(toy: Any) -> None:
    learned = SparseIndex.build(toy, TEXTS, lexical=None, stored="float32")
    index = SparseIndex.build(toy, TEXTS, lexical=Lexical(share=0.25), stored="float32")
    learned_scores, both = _scores(learned, "cat tree"), _scores(index, "cat tree")
    index.lexical = ALONE
    lexical_scores = _scores(index, "cat tree")
    for name, score in both.items():
        expected = 0.75 * learned_scores.get(name, 0) / max(
            learned_scores.values()
        ) + 0.25 * lexical_scores.get(name, 0)
        assert score == pytest.approx(expected)
    assert both.keys() == learned_scores.keys() | lexical_scores.keys()
    index.lexical = Lexical(share=0.0)
    assert _scores(index, "cat tree") == pytest.approx(
        learned_scores
    )  # the learned scores as they are


def test_however_it_was_built_it_is_one_index(toy: Any, tmp_path: Path) -> None:
    built = SparseIndex.build(toy, TEXTS)
    halves = SparseIndex.build(toy, TEXTS[:2]).append(toy, TEXTS[2:])
    again = SparseIndex.load(halves.save(tmp_path / "i"))
    two = SparseIndex.build(toy, TEXTS[:3]).merge(SparseIndex.build(toy, TEXTS[3:]))
    for index in (halves, again, two, SparseIndex.build(toy, TEXTS, block=1)):
        assert index.lexical == Lexical()
        for query in QUERIES:
            assert _scores(index, query) == pytest.approx(_scores(built, query), rel=1e-5)
    assert len(again.merge().segments) == 1 and again.sizes() == built.sizes()
    for query in QUERIES:
        assert _scores(again, query) == pytest.approx(_scores(built, query), rel=1e-5)
    less = SparseIndex.build(toy, [row for row in TEXTS if row[0] != "d"])
    remaining = SparseIndex.load(again.delete(["d"]).save(tmp_path / "i"))
    assert "d" not in _scores(remaining, "cat")
    assert max(_scores(remaining, "house").values()) == pytest.approx(1)  # of those that are left
    for query in QUERIES:  # frequencies count deleted documents until they are gone
        assert _scores(remaining.merge(), query) == pytest.approx(_scores(less, query), rel=1e-5)


def test_terms_of_both_kinds_add_up_to_the_score(toy: Any) -> None:
    index = SparseIndex.build(toy, TEXTS).append(toy, [("f", "a barking cat")])
    for hit in index.search("cats bark animal", 9):
        terms = index.explain("cats bark animal", hit.id)
        assert sum(term.score for term in terms) == pytest.approx(hit.score, rel=1e-5)
    (term,) = [t for t in index.explain("cats", "f") if t.stem]
    assert (term.token, term.expanded) == ("cat", False)
    results = search_results(index, "barked")  # the model has no such token
    assert [hit["id"] for hit in results["hits"]] == ["b", "f"] and (
        results["tokens"],
        results["stems"],
    ) == ([], ["bark"])
    assert ("barks", True) in results["hits"][0]["parts"]


def test_languages_have_their_own_stems(toy: Any) -> None:
    assert stems(["die Häuser der Hunde"], "german") == [["haus", "hund"]]
    index = SparseIndex.build(toy, [("x", "viele Häuser")], lexical=Lexical("german"))
    assert [hit.id for hit in index.search("ein Haus")] == ["x"]
    with pytest.raises(ConfigError) as caught:
        index.lexical = Lexical("english")
    assert (caught.value.got, caught.value.want) == ("english", "german")
    with pytest.raises(ConfigError):
        index.lexical = None
    with refused(
        ConfigError,
        what="BM25 of an index to merge",
        got="Lexical(language='german', share=0.6, k1=2.0, b=0.75)",
    ):
        index.merge(SparseIndex.build(toy, [("y", "Hund")], lexical=Lexical("german", k1=2.0)))


@pytest.mark.parametrize(
    "wrong", [{"language": "klingon"}, {"share": 1.1}, {"k1": -1.0}, {"b": 2.0}]
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Lexical(**wrong)
    assert caught.value.got in (*wrong.values(), *map(repr, wrong.values()))


def test_stems_that_do_not_fit_are_damage(toy: Any, tmp_path: Path) -> None:
    part = Stems.of(["cats and dogs", ""], "english")
    again = Stems.decode(part.encode(), part.names, 2)
    assert again.names == part.names and again.lengths.tolist() == [2, 0]
    with pytest.raises(CheckpointError) as caught:
        Stems.decode(part.encode(), part.names[1:], 2)
    assert caught.value.got == "1 names"
    folder = SparseIndex.build(toy, TEXTS).save(tmp_path / "i")
    record = json.loads((folder / "meta.json").read_text())
    for lexical in (None, {"language": "klingon"}, {"strange": 1}):
        (folder / "meta.json").write_text(json.dumps(record | {"lexical": lexical}))
        with pytest.raises(CheckpointError):
            SparseIndex.load(folder)


class Noise:
    """An encoder whose vectors say nothing of the texts."""

    name, digest = "noise", "2" * 64

    def __init__(self) -> None:
        weights = np.ones(len(WORDS) + 1, np.float32)
        self.queries = QueryWeights(word_tokenizer(), weights)

    def encode(self, texts: list[str]) -> Any:
        return np.random.default_rng(0).random((len(texts), len(WORDS) + 1), np.float32)


def test_tuning_leaves_out_what_finds_nothing(toy: Any) -> None:
    docs = [(str(i), f"{WORDS[2 + i % 8]} number w{i}") for i in range(40)]
    queries = {str(i): f"{WORDS[2 + i % 8]} w{i}" for i in range(40)}
    judged = {name: {name: 1} for name in queries}
    index = SparseIndex.build(Noise(), docs, lexical=Lexical(share=0.1))
    tuned = tune_lexical(index, queries, judged)
    assert index.lexical is tuned and tuned.share >= 0.5
    assert all(index.search(text, 1)[0].id == name for name, text in queries.items())
    with pytest.raises(DataError) as caught:
        tune_lexical(index, queries, {"0": {"another": 1}})
    assert caught.value.got == "no query with a document of the index"
    with pytest.raises(ConfigError) as refused:
        tune_lexical(SparseIndex.build(toy, TEXTS, lexical=None), queries, judged)
    assert refused.value.got == "one without BM25"


@settings(deadline=None)
@given(st.integers(0, 400), st.integers(1, 12), st.integers(0, 2**31))
def test_the_best_of_many_are_those_of_a_sort(count: int, k: int, seed: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 9, count).astype(np.float32)
    order = sorted(np.flatnonzero(scores).tolist(), key=lambda i: (-scores[i], i))
    assert best(scores, k).tolist() == order[:k]


@settings(deadline=None)
@given(st.lists(st.text("ab ,.\t\u00e9É-", max_size=12), max_size=4))
def test_remembered_words_have_the_tokens_of_the_text(texts: list[str]) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    letters = ["[UNK]", "a", "b", "##a", "##b", "e", "##e", ",", ".", "-", "ab"]
    tokenizer = Tokenizer(
        models.WordPiece({w: i for i, w in enumerate(letters)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer()
    for splitter in (pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Metaspace()):
        tokenizer.pre_tokenizer = splitter
        weights = QueryWeights(tokenizer.to_str(), np.ones(len(letters)))
        expected = [
            encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)
        ]
        assert weights.tokens(texts) == weights.tokens(texts) == expected
