"""Laws of what is told of a routing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from intarsia.core import Routing
from intarsia_lab.routing import measures

labels = st.lists(st.integers(0, 4), min_size=2, max_size=60)


def _table(a: list[int], b: list[int]) -> torch.Tensor:
    return measures.contingency(torch.tensor(a), torch.tensor(b), 5, 5)


@given(labels, st.permutations(range(5)), st.randoms())
def test_information_knows_no_names(a: list[int], names: list[int], random: object) -> None:
    b = [(x * x + i) % 5 for i, x in enumerate(a)]
    renamed = _table(a, [names[x] for x in b])
    for measure in (measures.mutual_information, measures.normalised_information):
        assert measure(renamed) == pytest.approx(measure(_table(a, b)), abs=1e-12)
        assert measure(_table(b, a)) == pytest.approx(measure(_table(a, b)), abs=1e-12)


@given(labels)
def test_information_of_a_choice_with_itself_is_its_entropy(a: list[int]) -> None:
    table = _table(a, a)
    assert measures.mutual_information(table) == pytest.approx(measures.entropy(table.sum(0)))
    expected = 1.0 if len(set(a)) > 1 else 0.0
    assert measures.normalised_information(table) == pytest.approx(expected)


@given(st.lists(st.integers(1, 9), min_size=2, max_size=6),
       st.lists(st.integers(1, 9), min_size=2, max_size=6))  # fmt: skip
def test_independent_choices_know_nothing(rows: list[int], columns: list[int]) -> None:
    table = torch.outer(torch.tensor(rows), torch.tensor(columns))
    assert measures.mutual_information(table) == pytest.approx(0, abs=1e-12)
    assert measures.normalised_information(table) == pytest.approx(0, abs=1e-12)


def test_first_choice_and_gate_entropy() -> None:
    gates = torch.tensor([[0.0, 0.5, 0.5, 0.0], [0.1, 0.0, 0.0, 0.9], [0.0] * 4])
    routing = Routing.from_dense(gates)
    assert measures.first_choice(routing).tolist() == [1, 3, 4]
    second = -(0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    assert measures.gate_entropy(routing) == pytest.approx((math.log(2) + second) / 3)


def test_drops_by_place() -> None:
    """Eight tokens ask two experts each; the second half loses one pair, the last one both."""
    index = torch.tensor([[0, 1]] * 8)
    routing = Routing.from_topk(index, torch.ones(8, 2), 4)
    keep = torch.tensor([True, True] * 4 + [True, False] * 3 + [False, False])
    routed = Routing(routing.token[keep], routing.expert[keep], routing.weight[keep], 8, 4)
    lost = measures.dropped(routing, routed)
    assert lost.tolist() == [0, 0, 0, 0, 0.5, 0.5, 0.5, 1]
    assert measures.by_quarter(lost) == [0, 0, 0.5, 0.75]


@given(st.lists(st.permutations(range(6)), min_size=1, max_size=4))
def test_rank_correlation_sees_order_alone(rows: list[list[int]]) -> None:
    a = torch.tensor(rows, dtype=torch.float64)
    assert measures.rank_correlation(a, a.exp()) == pytest.approx(1)
    assert measures.rank_correlation(a, -a) == pytest.approx(-1)
    assert measures.rank_correlation(a, torch.zeros_like(a)) == 0


def test_variation_of_even_and_of_one() -> None:
    assert measures.variation(torch.tensor([3, 3, 3, 3])) == 0
    assert measures.variation(torch.tensor([8, 0, 0, 0])) == pytest.approx(math.sqrt(3))
