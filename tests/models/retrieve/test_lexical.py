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

from intarsia.core.errors import CheckpointError, ConfigError, DataError
from intarsia.models.retrieve.lexical import Lexical, Stems, stems
from intarsia.models.retrieve.postings import best
from intarsia.models.retrieve.query_weights import QueryWeights
from intarsia.models.retrieve.showing import found
from intarsia.models.retrieve.sparse_index import SparseIndex
from intarsia.models.retrieve.tuning import tuned

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
    from intarsia.models.retrieve.teachers import Bm25

    index = SparseIndex.build(toy, TEXTS, lexical=replace(ALONE, k1=k1, b=b))
    oracle = Bm25([text for _, text in TEXTS], k1=k1, b=b)
    for query in QUERIES:
        wanted = oracle.scores([query], np.arange(len(TEXTS))[None])[0]
        wanted = wanted / wanted.max() if wanted.any() else wanted
        got = _scores(index, query)
        assert got == pytest.approx({TEXTS[i][0]: s for i, s in enumerate(wanted) if s > 0})


def test_the_score_is_the_sum_of_both_shares(toy: Any) -> None:
    learned = SparseIndex.build(toy, TEXTS, lexical=None, stored="float32")
    index = SparseIndex.build(toy, TEXTS, lexical=Lexical(share=0.25), stored="float32")
    one, both = _scores(learned, "cat tree"), _scores(index, "cat tree")
    index.lexical = ALONE
    other = _scores(index, "cat tree")
    for name, score in both.items():
        wanted = 0.75 * one.get(name, 0) / max(one.values()) + 0.25 * other.get(name, 0)
        assert score == pytest.approx(wanted)
    assert both.keys() == one.keys() | other.keys()
    index.lexical = Lexical(share=0.0)
    assert _scores(index, "cat tree") == pytest.approx(one)  # the learned scores as they are


def test_however_it_was_built_it_is_one_index(toy: Any, tmp_path: Path) -> None:
    whole = SparseIndex.build(toy, TEXTS)
    halves = SparseIndex.build(toy, TEXTS[:2]).append(toy, TEXTS[2:])
    again = SparseIndex.load(halves.save(tmp_path / "i"))
    two = SparseIndex.build(toy, TEXTS[:3]).merge(SparseIndex.build(toy, TEXTS[3:]))
    for index in (halves, again, two, SparseIndex.build(toy, TEXTS, block=1)):
        assert index.lexical == Lexical()
        for query in QUERIES:
            assert _scores(index, query) == pytest.approx(_scores(whole, query), rel=1e-5)
    assert len(again.merge().segments) == 1 and again.sizes() == whole.sizes()
    for query in QUERIES:
        assert _scores(again, query) == pytest.approx(_scores(whole, query), rel=1e-5)
    less = SparseIndex.build(toy, [row for row in TEXTS if row[0] != "d"])
    left = SparseIndex.load(again.delete(["d"]).save(tmp_path / "i"))
    assert "d" not in _scores(left, "cat")
    assert max(_scores(left, "house").values()) == pytest.approx(1)  # of those that are left
    for query in QUERIES:  # frequencies count deleted documents until they are gone
        assert _scores(left.merge(), query) == pytest.approx(_scores(less, query), rel=1e-5)


def test_terms_of_both_kinds_add_up_to_the_score(toy: Any) -> None:
    index = SparseIndex.build(toy, TEXTS).append(toy, [("f", "a barking cat")])
    for hit in index.search("cats bark animal", 9):
        terms = index.explain("cats bark animal", hit.id)
        assert sum(term.score for term in terms) == pytest.approx(hit.score, rel=1e-5)
    (term,) = [t for t in index.explain("cats", "f") if t.stem]
    assert (term.token, term.expanded) == ("cat", False)
    shown = found(index, "barked")  # the model has no such token
    assert [hit["id"] for hit in shown["hits"]] == ["b", "f"] and (
        shown["tokens"],
        shown["stems"],
    ) == ([], ["bark"])
    assert ("barks", True) in shown["hits"][0]["parts"]


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
        got="Lexical(language='german', share=0.6, k1=2.0, b=0.4)",
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
    about = json.loads((folder / "meta.json").read_text())
    for lexical in (None, {"language": "klingon"}, {"strange": 1}):
        (folder / "meta.json").write_text(json.dumps(about | {"lexical": lexical}))
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
    how = tuned(index, queries, judged)
    assert index.lexical is how and how.share >= 0.5
    assert all(index.search(text, 1)[0].id == name for name, text in queries.items())
    with pytest.raises(DataError) as caught:
        tuned(index, queries, {"0": {"another": 1}})
    assert caught.value.got == "no query with a document of the index"
    with pytest.raises(ConfigError) as refused:
        tuned(SparseIndex.build(toy, TEXTS, lexical=None), queries, judged)
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
    made = Tokenizer(models.WordPiece({w: i for i, w in enumerate(letters)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    for splitter in (pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Metaspace()):
        made.pre_tokenizer = splitter
        known = QueryWeights(made.to_str(), np.ones(len(letters)))
        wanted = [one.ids for one in made.encode_batch(texts, add_special_tokens=False)]
        assert known.tokens(texts) == known.tokens(texts) == wanted
