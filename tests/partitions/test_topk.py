"""Exactly K, the largest, whatever the ties; the twin sorts a list."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from intarsia.core.errors import ConfigError
from intarsia.partitions import entries, keep_random, keep_top, topk

from ..refusals import refused


def keep_top_naive(scores: dict[str, Tensor], count: int) -> dict[str, list[int]]:
    order = [(n, i, v) for n, s in scores.items() for i, v in enumerate(s.flatten().tolist())]
    best = sorted(range(len(order)), key=lambda j: (-order[j][2], j))[:count]
    found: dict[str, list[int]] = {name: [] for name in scores}
    for j in sorted(best):
        found[order[j][0]].append(order[j][1])
    return found


values = st.sampled_from([0.0, -0.0, 1.0, 1.0000001, -1.0, 3.5, 1e-40, -2e-39, float("inf"), -3e38])


@given(st.lists(st.lists(values, max_size=9), min_size=1, max_size=4), st.floats(0, 1))
def test_it_is_what_sorting_gives(lists: list[list[float]], share: float) -> None:
    scores = {f"w{i}": torch.tensor(v) for i, v in enumerate(lists)}
    count = round(share * sum(map(len, lists)))
    part = keep_top(scores, count)
    got = {name: places.tolist() for name, places in entries(part).items()}
    assert got == keep_top_naive(scores, count)
    assert int(part.sizes()[0]) == count


@given(st.integers(0, 200), st.integers(0, 2**31))
def test_random_scores_over_tensors_of_odd_shapes(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (7, 11), "b": (), "c": (0, 3), "d": (5, 5, 5)}
    scores = {n: torch.randn(s, generator=generator) for n, s in shapes.items()}
    part = keep_top(scores, count)
    assert {n: part[n].shape for n in shapes} == {n: torch.Size(s) for n, s in shapes.items()}
    got = {name: places.tolist() for name, places in entries(part).items()}
    assert got == keep_top_naive(scores, count)


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_chunks_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {"a": torch.arange(20) % 4 / 4, "b": torch.tensor([[0.5, 0.75], [0.75, 0.0]])}
    want = {n: p.tolist() for n, p in entries(keep_top(scores, 7)).items()}
    monkeypatch.setattr(topk, "CHUNK", chunk)
    assert {n: p.tolist() for n, p in entries(keep_top(scores, 7)).items()} == want


def test_all_equal_scores_still_give_exactly_k() -> None:
    # the released code takes all that reach the threshold
    part = keep_top({"a": torch.zeros(10), "b": torch.zeros(10)}, 13)
    assert int(part.sizes()[0]) == 13
    assert entries(part)["b"].tolist() == [0, 1, 2]
    assert entries(part)["a"].dtype == torch.int64


def test_a_strided_score_is_read_in_its_own_order() -> None:
    score = torch.arange(6.0).view(2, 3).T
    assert entries(keep_top({"a": score}, 1))["a"].tolist() == [5]
    assert entries(keep_top({"a": score}, 2))["a"].tolist() == [3, 5]


@pytest.mark.parametrize("count", [-1, 7])
def test_a_count_that_cannot_be_is_refused(count: int) -> None:
    with refused(ConfigError, what="count", want="0 ... 6"):
        keep_top({"a": torch.zeros(2, 3)}, count)


def test_a_nan_is_refused() -> None:
    with refused(ConfigError, what="scores", got="NaN"):
        keep_top({"a": torch.tensor([0.0, float("nan")])}, 1)


def test_random_places_are_as_likely_as_each_other() -> None:
    seen = torch.zeros(12)
    for seed in range(600):
        generator = torch.Generator().manual_seed(seed)
        part = keep_random({"a": (2, 3), "b": (6,)}, 3, generator=generator)
        assert int(part.sizes()[0]) == 3
        seen += torch.cat([part["a"].flatten(), part["b"]]) + 1
    # binomial(600, 1/4): 150, standard deviation 10.6
    assert ((seen - 150).abs() < 5 * 10.6).all()
    same = [
        keep_random({"a": (50,)}, 9, generator=torch.Generator().manual_seed(1))["a"].tolist()
        for _ in range(2)
    ]
    assert same[0] == same[1]


def test_labels_of_large_selections_are_not_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    # the released code collects all drifts with .tolist(): 30 bytes for a number
    def refuse(self: Tensor) -> list[float]:
        raise AssertionError("a list of scores")

    monkeypatch.setattr(Tensor, "tolist", refuse)
    part = keep_top({"a": torch.rand(1000)}, 10)
    assert sum(map(len, itertools.chain(entries(part).values()))) == 10
