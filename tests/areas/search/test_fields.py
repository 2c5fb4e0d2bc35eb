"""Documents keep their fields; updated, an index is as one that is built from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intarsia.areas.search.filters import Condition, parse_filters
from intarsia.areas.search.lexical import Lexical, StemsAlone
from intarsia.areas.search.showing import search_results
from intarsia.areas.search.sparse_index import SparseIndex
from intarsia.core.errors import CheckpointError, ConfigError, DataError, UnknownName

from ...refusals import refused

pytest.importorskip("bm25s")
SHOP = [
    {"id": 1, "title": "Red lamp", "text": "a lamp of red glass", "price": 19.5, "tags": ["new"]},
    {"id": 2, "title": "Oil lamp", "text": "an old lamp", "price": 40, "url": "x.org/2"},
    {"id": 3, "text": "a chair", "price": 8, "sold": True, "day": "2024-05-01"},
    {"id": 4, "text": "a lamp without a price", "colour": None},
]


def _ids(index: SparseIndex, query: str, *where: str) -> list[str]:
    return sorted(hit.id for hit in index.search(query, 9, where=where))


def test_fields_come_back_with_hits_also_from_disk(tmp_path: Path) -> None:
    index = SparseIndex.build(SHOP)
    again = SparseIndex.load(index.save(tmp_path / "idx"))
    for one in (index, again):
        (hit,) = one.search("chair", 1)
        assert hit.fields == {"price": 8, "sold": True, "day": "2024-05-01"}
        (best, *_) = search_results(one, "red glass", 1)["hits"]
        assert best["fields"] == {"title": "Red lamp", "price": 19.5, "tags": ["new"]}
        assert best["text"] == "Red lamp a lamp of red glass"  # the title is searched, too
    assert not SparseIndex.build(["a lamp"]).segments[0].fields


def test_texts_alone_are_an_index() -> None:
    index = SparseIndex.build(["the cat sleeps", "dogs bark", "a cat and a dog"])
    assert [hit.id for hit in index.search("sleeping cats")] == ["0", "2"]
    assert index.model == "none" and index.lexical == Lexical(share=1.0)
    german = SparseIndex.build(["die Katze"], lexical=Lexical("german", share=0.3))
    assert german.lexical == Lexical("german", share=1.0), "there is no learned score to share with"
    index.append(StemsAlone(), ["an owl"])
    assert [hit.id for hit in index.search("owl")] == ["3"]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("price<20", ["1"]), ("price <= 40", ["1", "2"]), ("price>19.5", ["2"]),
        ("price>=19.50", ["1", "2"]), ("price=40.0", ["2"]), ("price!=40", ["1"]),
        ("tags=new", ["1"]), ("title=Oil lamp", ["2"]), ("url!=x.org/2", []), ("sold=true", []),
        ("day<2024-06-01", []),
    ],
)  # fmt: skip
def test_a_filter_keeps_what_meets_it(condition: str, expected: list[str]) -> None:
    assert _ids(SparseIndex.build(SHOP), "lamp", condition) == expected


def test_filters_are_joined_and_change_no_score() -> None:
    index = SparseIndex.build(SHOP)
    assert _ids(index, "lamp", "price>10", "tags=new") == ["1"]
    assert _ids(index, "chair", "sold=true", "day<2024-06-01") == ["3"]
    whole = {hit.id: hit.score for hit in index.search("lamp")}
    assert {h.id: h.score for h in index.search("lamp", where=["price>20"])} == {"2": whole["2"]}
    assert index.run({"q": "lamp"}, 5, ["price>20"]) == {"q": {"2": whole["2"]}}


@given(
    st.lists(st.floats(-50, 50) | st.integers(-9, 9), min_size=1, max_size=6), st.integers(-9, 9)
)
@settings(max_examples=25)
def test_numbers_compare_as_numbers_also_as_text(values: list[float], bound: int) -> None:
    for sign, holds in (("<", lambda v: v < bound), (">=", lambda v: v >= bound)):
        condition = Condition("x", sign, str(bound))
        for value in values:
            assert condition.holds({"x": value}) == holds(value)
            assert condition.holds({"x": repr(value)}) == holds(value)


def test_a_filter_that_cannot_be_is_refused() -> None:
    index = SparseIndex.build(SHOP)
    with refused(UnknownName, what="unknown field of the documents", got="'prize'"):
        index.search("lamp", where=["prize<3"])
    with refused(ConfigError, what="--filter", got="'price'"):
        parse_filters(["price"])
    with refused(DataError, what="--filter title<3", got="the value 'Red lamp' of a document"):
        index.search("lamp", where=["title<3"])
    index.segments[0].fields[0] = "[1]"
    with refused(CheckpointError, what="fields of a document"):
        index.search("red", 1)


def _answers(index: SparseIndex) -> Any:
    found = {q: index.search(q, 9) for q in ("lamp", "red lamp", "chair of glass", "owl")}
    return {q: {h.id: (pytest.approx(h.score), h.text, h.fields) for h in hits}
            for q, hits in found.items()}  # fmt: skip


@pytest.mark.parametrize("merged", [False, True])
def test_updated_it_answers_as_one_built_from_scratch(
    toy: Any, tmp_path: Path, merged: bool
) -> None:
    changed = [{"id": 2, "text": "an owl of glass", "price": 5}, {"id": 5, "text": "a red chair"}]
    expected = [SHOP[0], SHOP[3], *changed]
    for encoder, lexical in ((StemsAlone(), Lexical(share=1.0)), (toy, Lexical()), (toy, None)):
        index = SparseIndex.build(encoder, SHOP, stored="float32", lexical=lexical)
        index.update(encoder, changed).delete(["3"])
        index.merge()
        folder = tmp_path / f"{merged}{type(encoder).__name__}{lexical is None}"
        index = SparseIndex.load(index.save(folder)) if merged else index
        scratch = SparseIndex.build(encoder, expected, stored="float32", lexical=lexical)
        assert _answers(index) == _answers(scratch) and len(index) == 4
        assert _ids(index, "glass owl chair", "price<10") == _ids(
            scratch, "glass owl chair", "price<10"
        )


def test_an_update_that_fails_changes_nothing(toy: Any) -> None:
    index = SparseIndex.build(SHOP)
    before = _answers(index)
    with refused(ConfigError, what="model of added documents"):
        index.update(toy, [{"id": 2, "text": "an owl"}])
    with refused(DataError, what="document id", got="'2' again"):
        index.update(StemsAlone(), [("2", "an owl"), ("2", "a cat")])
    with refused(DataError, what="document 4", got="3"):
        index.update(StemsAlone(), [3])
    assert _answers(index) == before
