"""The kernels of posting lists and words against their twins, and damaged lists."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intarsia.kernels import native, postings
from intarsia.kernels.postings import PostingLists, WordNumbers

pytestmark = pytest.mark.skipif(native.load() is None, reason="no C compiler here, or off")


@dataclass
class DrawnLists:
    """Lists over `count` documents, and a query of them."""

    lists: PostingLists
    count: int
    terms: list[tuple[int, int, float]]
    mask: np.ndarray | None


def drawn(seed: int, count: int, kind: str) -> DrawnLists:
    """Lists of any density, with few distinct weights, so that scores tie."""
    rng, tokens = np.random.default_rng(seed), seed % 9 + 1
    of_token = [np.flatnonzero(rng.random(count) < rng.random() ** 3) for _ in range(tokens)]
    starts = np.cumsum([0, *map(len, of_token)], dtype=np.int64)
    docs = np.concatenate(of_token).astype(np.int32)
    weights = rng.integers(1, 6, len(docs)).astype(np.float32 if kind == "float32" else np.float16)
    norm = rng.choice([0.5, 1, 3], count).astype(np.float32) if kind == "bm25" else None
    asked = rng.permutation(tokens)[: 1 + seed % tokens]
    terms = [(int(rng.integers(2)), int(t), float(rng.choice([0.25, 0.5, 1, 8]))) for t in asked]
    mask = rng.random(count) < 0.5 if seed % 3 == 0 else None
    return DrawnLists(PostingLists(starts, docs, weights, norm), count, terms, mask)


@pytest.mark.parametrize("kind", ["float32", "float16", "bm25"])
def test_the_best_are_those_of_the_twin(build: str, kind: str) -> None:
    for seed, count in enumerate((0, 1, 31, 127, 8191, 8192, 8193, 20_000, 40_000, 33_333) * 3):
        case = drawn(seed, count, kind)
        groups = [case.lists, case.lists]
        searcher = postings.Searcher(groups, count)
        for k in (1, 10, 300):
            want = postings.naive_search(groups, count, case.terms, k, case.mask)
            docs, scores = searcher.search(case.terms, k, case.mask)
            np.testing.assert_allclose(scores, want[1], rtol=1e-5)
            if kind != "bm25":  # sums of few bits are exact: the same documents where scores tie
                assert docs.tolist() == want[0].tolist()


def test_lists_that_are_not_read_change_nothing(build: str) -> None:
    # a rare heavy token and lists of nearly every document: these are looked up, not read
    rng, count = np.random.default_rng(0), 50_000
    of_token = [np.sort(rng.choice(count, size, replace=False)) for size in (40, 30_000, 45_000)]
    starts = np.cumsum([0, *map(len, of_token)], dtype=np.int64)
    docs = np.concatenate(of_token).astype(np.int32)
    lists = PostingLists(starts, docs, rng.random(len(docs)).astype(np.float32) + 0.5)
    terms = [(0, 2, 0.1), (0, 0, 9.0), (0, 1, 0.2)]
    want = postings.naive_search([lists], count, terms, 10)
    docs, scores = postings.Searcher([lists], count).search(terms, 10)
    assert docs.tolist() == want[0].tolist()
    np.testing.assert_allclose(scores, want[1], rtol=1e-5)


def test_lists_that_change_after_they_were_checked_read_nothing_else(build: str) -> None:
    case = drawn(17, 20_000, "bm25")
    searcher = postings.Searcher([case.lists, case.lists], case.count)
    rng = np.random.default_rng(1)
    for value in (-1, -(2**31), 2**31 - 1, case.count, 0):
        case.lists.docs[rng.integers(len(case.lists.docs), size=50)] = value
        docs, _ = searcher.search(case.terms, 10)
        assert ((docs >= 0) & (docs < case.count)).all()
    case.lists.starts[1] = 2**40
    with pytest.raises(IndexError):
        searcher.search([(0, 0, 1.0)], 10)
    with pytest.raises(IndexError):
        searcher.search([(0, 99, 1.0)], 10)


def test_damage_is_found_and_lengths_are_sums(build: str) -> None:
    good = drawn(8, 300, "float16")
    for which in (build, "off"):
        with native.using(which):
            assert not postings.damaged(good.lists, good.count)
            want = np.bincount(good.lists.docs, good.lists.weights, good.count)
            assert (postings.lengths(good.lists, good.count) == want).all()
            for value in (-1, good.count, good.lists.docs[0]):
                docs = good.lists.docs.copy()
                docs[1] = value
                assert postings.damaged(good.lists._replace(docs=docs), good.count)
            for weight in (0, -1, np.nan, np.inf):
                weights = good.lists.weights.copy()
                weights[3] = weight
                assert postings.damaged(good.lists._replace(weights=weights), good.count)


def test_counts_are_those_of_the_twin(build: str) -> None:
    rng = np.random.default_rng(0)
    for texts, size in ((0, 3), (1, 1), (40, 7), (300, 50)):
        ends = np.cumsum(rng.integers(0, 9, texts))
        numbers = rng.integers(-1, size, int(ends[-1]) if texts else 0).astype(np.int32)
        got, want = (f(numbers, ends, size) for f in (postings.count, postings.naive_count))
        assert all((a == b).all() for a, b in zip(got[:3], want[:3], strict=True))
    with pytest.raises(IndexError):
        postings.count(np.array([5], np.int32), np.array([1]), 5)


@settings(deadline=None)
@given(st.lists(st.text("aB1_ .-\t\u00e9É\u0130\u212a\u05d0\n", max_size=20), max_size=6))
def test_words_are_those_of_the_twin(texts: list[str]) -> None:
    compiled, naive = postings.CompiledWordNumbers(), WordNumbers()
    for part in (texts, texts[::-1], ["two words"]):
        got, want = compiled.add(part), naive.add(part)
        assert [a.tolist() for a in got] == [a.tolist() for a in want]
    assert compiled.since(0) == naive.since(0) and compiled.since(len(naive)) == []


def test_a_dictionary_grows(build: str) -> None:
    compiled, naive = postings.CompiledWordNumbers(), WordNumbers()
    texts = [" ".join(f"word{i * j}" for j in range(100)) for i in range(400)]
    assert compiled.add(texts)[0].tolist() == naive.add(texts)[0].tolist()
    assert compiled.since(9000) == naive.since(9000)
