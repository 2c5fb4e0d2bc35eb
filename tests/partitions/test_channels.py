"""Budgets of units: global over layers, exact counts, and refusals."""

from __future__ import annotations

import time

import torch
from hypothesis import given
from hypothesis import strategies as st

from intarsia.core.errors import ConfigError, DataError
from intarsia.partitions import top_units

from ..refusals import refused


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=5),
    st.floats(0.1, 1.0),
    st.integers(0, 2**31),
)
def test_the_best_of_all_layers_are_selected(sizes: list[int], share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = {f"l{i}": torch.rand(n, generator=generator) for i, n in enumerate(sizes)}
    count = int(share * sum(sizes) + 0.5)
    if not count:
        with refused(ConfigError, what="share of channels"):
            top_units(scores, share)
        return
    found = top_units(scores, share)
    assert found.parts == 1 and int(found.sizes()) == count
    # naive twin: sort (score, layer, unit) in a list
    ranked = sorted(
        ((-float(s), name, i) for name, v in scores.items() for i, s in enumerate(v)),
    )  # fmt: skip
    best = {(name, i) for _, name, i in ranked[:count]}
    assert best == {(n, i) for n in scores for i in found.mask(n, 0).nonzero()[:, 0].tolist()}


def test_layers_get_uneven_counts() -> None:
    found = top_units({"a": torch.tensor([1.0, 5, 6]), "b": torch.tensor([2.0, 3, 4])}, 1 / 3)
    assert found["a"].tolist() == [-1, 0, 0] and found["b"].tolist() == [-1, -1, -1]


def test_ties_go_to_the_earlier_and_infinity_is_never_selected() -> None:
    even = torch.zeros(4)
    assert top_units({"a": even}, 0.5)["a"].tolist() == [0, 0, -1, -1]
    held = even.clone()
    held[:2] = -torch.inf
    assert top_units({"a": held}, 0.5)["a"].tolist() == [-1, -1, 0, 0]
    with refused(ConfigError, what="share of channels", got="0.75, 3 of 4"):
        top_units({"a": held}, 0.75)


def test_bad_shares_and_scores_are_refused() -> None:
    for share in (-0.1, 1.5, float("nan")):
        with refused(ConfigError, what="share of channels", want="0 ... 1"):
            top_units({"a": torch.ones(3)}, share)
    with refused(ConfigError, what="share of channels", got="0.1 of 3, which selects nothing"):
        top_units({"a": torch.ones(3)}, 0.1)
    with refused(DataError, what="scores of channels", got="NaN"):
        top_units({"a": torch.tensor([1.0, float("nan")])}, 0.5)


def test_a_large_model_takes_no_quadratic_scan() -> None:
    scores = {f"l{i}": torch.rand(20_000) for i in range(30)}
    start = time.process_time()
    top_units(scores, 0.5)
    assert time.process_time() - start < 3  # 300,000 look-ups in a list of as many take minutes
