"""The page of `simulate` says if placing helps, on one scale, in units that can be read."""

from __future__ import annotations

import pytest
import torch

from intarsia.placement.timeline import Span, Timeline
from intarsia.reports.numbers import prefixed
from intarsia.reports.simulated import EXPERTS, IN_ORDER, PLACED, Simulated, report_of


def simulated(before: float, after: float, plan: str = "ep", placed: bool = True) -> Simulated:
    sent = torch.tensor([[0, 4000], [5000, 0]])
    uneven, even = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 2.0]])
    loads = {EXPERTS: torch.tensor([[0.0, 1.0, 3.0, 0.0]]), IN_ORDER: uneven}
    loads |= {PLACED: even} if placed else {}
    line = Timeline((Span("expert 0", "compute", 0, 0.0, after),))
    return Simulated(plan, 64, sent, sent, line, before, loads)


def words_of(simulated: Simulated) -> str:
    return " ".join(report_of(simulated).sentences)


LESS = "helps: 64 tokens on 2 devices take 25.0 % less time than with experts in order, 30.0 µs"


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (4e-5, 3e-5, f"{LESS} instead of 40.0 µs."),
        (3e-5, 4e-5, "does not help: 64 tokens on 2 devices take 33.3 % more time"),
        (3e-5, 3e-5, "does not help: 64 tokens on 2 devices take as long as"),
        (0.0, 0.0, "does not help: 64 tokens on 2 devices take as long as"),
    ],
)
def test_the_headline_says_if_placing_helps_and_by_how_much(
    before: float, after: float, words: str
) -> None:
    text = words_of(simulated(before, after))
    assert f"The placement {words}" in text
    assert "1.00 times the mean, with experts in order 1.50 times" in text
    assert "9.00 kB are sent between devices" in text
    assert f"The plan stay with this placement {words}" in words_of(
        simulated(before, after, "stay")
    )
    assert f"The plan tutel {words}" in words_of(simulated(before, after, "tutel", placed=False))


def test_without_a_placement_nothing_is_compared() -> None:
    assert "64 tokens on 2 devices, experts in order: 30.0" in words_of(
        simulated(3e-5, 3e-5, placed=False)
    )


def test_loads_of_devices_before_and_after_have_one_scale() -> None:
    drawn = report_of(simulated(4e-5, 3e-5)).figures()
    tops = [drawn[f"loads-{i}"].scale for i in range(3)]
    assert tops == [("0", "3.00"), ("0", "1.50"), ("0", "1.50")]
    assert drawn["before"].scale == drawn["after"].scale == ("0", "5 kB")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (5.55e-8, "s", "55.5 ns"),
        (9.9996e-4, "s", "1.00 ms"),
        (0, "s", "0 s"),
        (303_000, "B", "303 kB"),
        (1.5, "B", "1.50 B"),
    ],
)
def test_a_number_has_three_digits_and_the_prefix_of_its_size(
    value: float, unit: str, text: str
) -> None:
    assert prefixed(value, unit) == text
