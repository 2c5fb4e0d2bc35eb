"""An index is one however it was built, finds what it should, and refuses what is not its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from intarsia.areas.search.query_weights import QueryWeights, idf
from intarsia.areas.search.showing import mark_parts, search_results
from intarsia.areas.search.sparse_index import SparseIndex
from intarsia.core.errors import CheckpointError, ConfigError, DataError

from ...refusals import refused

Docs = list[tuple[str, str]]


def _same(first: SparseIndex, second: SparseIndex) -> bool:
    queries = ["cat dog", "the", "animal tree", "a mouse", ""]
    return first.search_many(queries) == second.search_many(queries) and len(first) == len(second)


def test_a_query_finds_its_documents_by_score(toy: Any, docs: Docs) -> None:
    index = SparseIndex.build(toy, docs, stored="float32", lexical=None)
    hits = index.search("cat dog cat")
    # cat is word 3 and dog word 4: 1.3 and 1.4; that cat stands there twice changes nothing
    assert [(h.id, round(h.score, 5)) for h in hits] == [("d", 2.7), ("b", 1.4), ("a", 1.3)]
    assert [h.id for h in index.search("cat dog", 1)] == ["d"]
    assert hits[1].text == "the dog bark"


def test_halves_that_are_appended_are_one_build(toy: Any, docs: Docs) -> None:
    built = SparseIndex.build(toy, docs)
    halves = SparseIndex.build(toy, docs[:2]).append(toy, docs[2:])
    assert len(halves.segments) == 2 and _same(halves, built)
    assert _same(halves.merge(), built) and len(halves.segments) == 1
    assert _same(SparseIndex.build(toy, docs, block=1), built)
    two = SparseIndex.build(toy, docs[:3]).merge(SparseIndex.build(toy, docs[3:]))
    assert _same(two, built)


def test_deleted_documents_are_found_no_more(toy: Any, docs: Docs, tmp_path: Path) -> None:
    index = SparseIndex.build(toy, docs).delete(["d"])
    assert len(index) == len(docs) - 1
    assert [h.id for h in index.search("cat dog", two_phase=2)] == ["b", "a"]
    again = SparseIndex.load(index.save(tmp_path / "i"))
    assert _same(again, index) and "d" not in again
    assert [name for name, _ in index.documents()] == [name for name, _ in docs if name != "d"]
    without = SparseIndex.build(toy, [row for row in docs if row[0] != "d"])
    assert [h.id for h in again.merge().search("cat dog")] == ["b", "a"]
    assert _same(again, without)
    again.append(toy, [("d", "tree")])
    with refused(DataError, what="document id", got="'zz'"):
        again.delete(["a", "zz"])
    assert "a" in again


def test_a_saved_index_is_the_same_and_only_what_is_new_is_written(
    toy: Any, docs: Docs, tmp_path: Path
) -> None:
    index = SparseIndex.build(toy, docs[:3], stored="float32")
    folder = index.save(tmp_path / "i")
    first = {p.name: p.stat().st_mtime_ns for p in folder.glob("[0-9a-f]*.safetensors")}
    again = SparseIndex.load(folder).append(toy, docs[3:])
    again.save(folder)
    after = {p.name: p.stat().st_mtime_ns for p in folder.glob("[0-9a-f]*.safetensors")}
    assert len(first) == 1 and len(after) == 2 and first.items() <= after.items()
    assert _same(SparseIndex.load(folder), SparseIndex.build(toy, docs, stored="float32"))
    again.merge().save(folder)
    files_left = sorted(p.name for p in folder.iterdir())
    assert len(files_left) == 4 and files_left[1:] == [
        "meta.json",
        "queries.safetensors",
        "tokenizer.json",
    ]


def test_an_index_without_texts_says_no_text(toy: Any, docs: Docs, tmp_path: Path) -> None:
    index = SparseIndex.build(toy, docs, texts=False)
    again = SparseIndex.load(index.save(tmp_path / "i"))
    assert again.search("tree")[0].text == "" and not again.explain("tree", "d")[0].expanded


def test_what_each_token_added_is_the_score(toy: Any, docs: Docs) -> None:
    index = SparseIndex.build(toy, docs)
    hit = index.search("the animal cat")[0]
    terms = index.explain("the animal cat", hit.id)
    assert sum(term.score for term in terms) == pytest.approx(hit.score, rel=1e-5)
    assert {t.token: t.expanded for t in terms} == {"cat": False, "animal": True, "the": False}
    with refused(DataError, what="document id", got="'nobody'"):
        index.explain("cat", "nobody")


def test_no_known_token_and_empty_documents_are_no_error(toy: Any, docs: Docs) -> None:
    index = SparseIndex.build(toy, docs)
    assert index.search("zzz qqq") == [] == index.search("") == index.search("runs", two_phase=3)
    assert "c" in index and all(h.id != "c" for h in index.search("the a cat dog house"))
    nothing = SparseIndex.build(toy, [])
    assert nothing.search("cat") == [] and len(nothing) == 0
    assert nothing.sizes()["mean"] == 0


def test_options_that_leave_nothing_out_change_nothing(toy: Any, docs: Docs) -> None:
    index = SparseIndex.build(toy, docs)
    plain = index.search("the cat")
    assert plain == index.search("the cat", max_df=1.0) == index.search("the cat", prune=0.1)
    heavy = [hit for hit in plain if "cat" in hit.text]
    two_phase = index.search("the cat", two_phase=100)  # the same sums in another order
    assert [hit.id for hit in two_phase] == [hit.id for hit in heavy] and heavy != plain
    assert [hit.score for hit in two_phase] == pytest.approx([hit.score for hit in heavy])
    assert [h.id for h in index.search("the cat", prune=0.5)] == ["a", "d"]  # without "the"
    assert index.search("the", max_df=0.5) == []  # in three of five


@pytest.mark.parametrize(
    ("options", "field"),
    [({"k": 0}, "k"), ({"prune": 2.0}, "prune"), ({"two_phase": 0.5}, "two_phase"),
     ({"max_df": 0.0}, "max_df")],
)  # fmt: skip
def test_impossible_options_are_refused(toy: Any, options: dict[str, Any], field: str) -> None:
    with refused(ConfigError, what=field):
        SparseIndex.build(toy, []).search("cat", **options)


def test_a_megabyte_is_no_query(toy: Any, docs: Docs) -> None:
    index = SparseIndex.build(toy, docs)
    with refused(ConfigError, what="query"):
        index.search("cat " * 250_000)
    assert index.search("cat " * 20_000)[0].id == "a"


def test_an_id_occurs_once(toy: Any, docs: Docs) -> None:
    index = SparseIndex.build(toy, docs)
    with refused(DataError, what="document id", got="'a' again"):
        index.append(toy, [("f", "tree"), ("a", "mouse")])
    with refused(DataError, what="document id", got="'f' again"):
        index.append(toy, [("f", "tree"), ("f", "mouse")])
    assert len(index) == 5 and not index.search("mouse")
    with refused(DataError, what="document id", got="'a' in both"):
        index.merge(SparseIndex.build(toy, docs[:1]))


def test_another_model_is_refused(toy: Any, docs: Docs) -> None:
    index, another = SparseIndex.build(toy, docs), type(toy)("1" * 64)
    with refused(ConfigError, what="model of added documents"):
        index.append(another, [("f", "tree")])
    with refused(ConfigError, what="index to merge"):
        index.merge(SparseIndex.build(another, [("f", "tree")]))
    swapped = "the a dog cat house sleeps runs bark mouse tree animal"
    words = type(toy)(words=swapped.split())
    with refused(ConfigError, what="model of added documents"):
        index.append(words, [("f", "tree")])  # the same numbers mean other words


def _damage(folder: Path, pattern: str) -> None:
    path = next(iter(sorted(folder.glob(pattern))))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    "pattern", ["[0-9a-f]*.safetensors", "queries.safetensors", "tokenizer.json", "meta.json"]
)
def test_one_changed_bit_is_found(toy: Any, docs: Docs, tmp_path: Path, pattern: str) -> None:
    folder = SparseIndex.build(toy, docs).save(tmp_path / "i")
    assert SparseIndex.load(folder).search("cat")
    _damage(folder, pattern)
    if pattern == "meta.json":
        (folder / pattern).write_text((folder / pattern).read_text()[:-20])
    with pytest.raises(CheckpointError):
        SparseIndex.load(folder)


def test_foreign_folders_are_refused(toy: Any, docs: Docs, tmp_path: Path) -> None:
    with refused(CheckpointError, got="an empty folder"):
        SparseIndex.load(tmp_path)
    (tmp_path / "meta.json").write_text(json.dumps({"kind": "another", "version": 1}))
    with refused(CheckpointError, got="ValueError: 'another', version 1"):
        SparseIndex.load(tmp_path)
    foreign = tmp_path / "other"
    foreign.mkdir()
    (foreign / "thesis.tex").touch()
    with refused(ConfigError, got="a file, or other files in it"):
        SparseIndex.build(toy, docs).save(foreign)


def test_a_path_in_meta_leads_nowhere_else(toy: Any, docs: Docs, tmp_path: Path) -> None:
    folder = SparseIndex.build(toy, docs).save(tmp_path / "i")
    record = json.loads((folder / "meta.json").read_text())
    file = record["segments"][0]["file"]
    (folder / file).rename(tmp_path / file)
    record["segments"][0]["file"] = f"../{file}"
    (folder / "meta.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError):
        SparseIndex.load(folder)


def test_half_written_files_do_not_count(toy: Any, docs: Docs, tmp_path: Path) -> None:
    folder = SparseIndex.build(toy, docs[:3]).save(tmp_path / "i")
    meta = (folder / "meta.json").read_bytes()
    SparseIndex.load(folder).append(toy, docs[3:]).save(folder)
    (folder / "meta.json").write_bytes(meta)  # killed before the last file was replaced
    assert _same(SparseIndex.load(folder), SparseIndex.build(toy, docs[:3]))


def test_idf_is_its_formula_and_rises_with_rarity(toy: Any) -> None:
    got = idf(np.array([0, 1, 5, 10]), 10)
    assert got[1] == pytest.approx(np.log(1 + 9.5 / 1.5)) and (np.diff(got) < 0).all()
    assert (got > 0).all()
    counts, total = toy.queries.frequencies(["cat cat dog", "", "dog"], batch=2)
    assert total == 3 and counts[[3, 4]].tolist() == [1, 2]


def test_query_weights_that_do_not_fit_are_refused(toy: Any) -> None:
    for weights in (np.ones(3), -np.ones(12), np.full(12, np.nan)):
        with refused(ConfigError, what="query weights"):
            QueryWeights(toy.queries.json, weights)
    with refused(CheckpointError, what="tokenizer"):
        QueryWeights("{}", np.ones(3))


def test_what_is_shown_marks_the_query_s_words(toy: Any, docs: Docs) -> None:
    index = SparseIndex.build(toy, docs)
    results = search_results(index, "cat animal")
    assert results["hits"][0]["parts"] == [("the ", False), ("cat", True), (" sleeps", False)]
    assert results["documents"] == 5 and set(results["tokens"]) == {"cat", "animal"}
    long = "the " * 500 + "cat" + " dog" * 500
    pieces = mark_parts(index, long, {3}, width=100)
    assert pieces[0] == ("… ", False) and pieces[-1] == (" …", False) and ("cat", True) in pieces
    assert sum(len(text) for text, _ in pieces) <= 104


def test_a_word_that_did_not_score_is_not_marked(toy: Any, docs: Docs) -> None:
    class Forgetful(type(toy)):
        """Drops "the" from documents, as an encoder does with what says little."""

        def encode(self, texts: Sequence[str]) -> Any:
            rows = super().encode(texts).toarray()
            rows[:, self.queries.tokenizer.token_to_id("the")] = 0
            return sp.csr_matrix(rows)

    hit = search_results(SparseIndex.build(Forgetful(), docs), "the cat")["hits"][0]
    assert {term["token"] for term in hit["terms"]} == {"cat"}
    assert hit["parts"] == [("the ", False), ("cat", True), (" sleeps", False)]


def test_an_empty_index_takes_in_another(toy: Any, docs: Docs) -> None:
    built = SparseIndex.build(toy, docs)
    for indexes in ([built], [SparseIndex.build(toy, []), built]):
        merged = SparseIndex.build(toy, []).merge(*indexes)
        assert len(merged) == 5 and merged.search("cat") == built.search("cat")


def test_a_meta_json_of_something_else_is_no_index(toy: Any, docs: Docs, tmp_path: Path) -> None:
    for text in ('{"kind": "another"}', "[]", "{"):
        (tmp_path / "meta.json").write_text(text)
        (tmp_path / "model.safetensors").write_bytes(b"weights")
        with refused(ConfigError, got="a file, or other files in it"):
            SparseIndex.build(toy, docs).save(tmp_path)
        assert (tmp_path / "model.safetensors").read_bytes() == b"weights"


def test_an_encoder_gives_each_text_a_row(toy: Any, docs: Docs) -> None:
    class Shorter:
        name, digest, queries = toy.name, toy.digest, toy.queries

        def encode(self, texts: list[str]) -> Any:
            return toy.encode([text for text in texts if text])

    with refused(ConfigError, what="document vectors"):
        SparseIndex.build(Shorter(), docs)  # pyright: ignore


@pytest.mark.parametrize("deleted", [None, [0.5], ["0"], [True], [9]])
def test_deleted_documents_are_numbers(
    toy: Any, docs: Docs, tmp_path: Path, deleted: object
) -> None:
    folder = SparseIndex.build(toy, docs).save(tmp_path / "i")
    record = json.loads((folder / "meta.json").read_text())
    record["segments"][0]["deleted"] = deleted
    (folder / "meta.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError):
        SparseIndex.load(folder)
