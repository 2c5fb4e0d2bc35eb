"""Parts of the experiments on retrieval: equal terms, intervals, and values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from intarsia.areas.search.postings import Postings
from intarsia.areas.search.query_weights import QueryWeights
from intarsia.areas.search.segment import Segment
from intarsia_lab.experiments import lsr


class _Index:
    """The attributes of an index that `thinned` reads."""

    model, digest = "toy", "0"

    def __init__(self, rows: Any, weights: Any) -> None:
        words = {f"w{number}": number for number in range(len(weights))}
        tokenizer = Tokenizer(WordLevel(words, unk_token="w0")).to_str()
        self.queries = QueryWeights(tokenizer, np.asarray(weights, np.float32))
        lists = Postings.of(sp.csr_matrix(np.asarray(rows, np.float32)))
        self.segments = [Segment(lists, [str(i) for i in range(lists.count)], [])]

    def sizes(self) -> dict[str, float]:
        return {"mean": len(self.segments[0].postings.docs) / self.segments[0].postings.count}


def test_a_thinned_index_keeps_what_scores_most() -> None:
    index: Any = _Index([[1, 5, 1], [3, 1, 4]], [1, 0.1, 1])
    less = lsr.thinned(index, 1.5)  # scores 1 .5 1 / 3 .1 4: three of them stay
    dense = np.asarray(less.segments[0].postings.matrix().todense())
    assert dense[1].tolist() == [3, 0, 4] and dense[0, 1] == 0
    assert lsr.thinned(index, 9) is index


def test_what_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    base = random.random(300)
    gain = {"n": 0.02}

    def figures(arm: str, seed: int, terms: float | None = None) -> dict[str, Any]:
        bonus = gain["n"] if arm == lsr.IDF else 0.0
        return {"values": (base + bonus).tolist(), "terms": 40.0}

    monkeypatch.setattr(lsr, "figures", figures)
    result = lsr.idf_over_flat((0, 1), lambda _: None)
    assert result.value == pytest.approx(0.02) and len(result.values) == 2
    gain["n"] = -0.01
    assert lsr.idf_over_flat((0,), lambda _: None).value < 0
    assert lsr.ensemble_over_single((0,), lambda _: None).value == pytest.approx(-0.01)
    monkeypatch.setattr(lsr, "tuned_bm25", lambda: {"values": base, "k1": 1, "b": 0})
    assert lsr.over_bm25((0,), lambda _: None).value < 1
