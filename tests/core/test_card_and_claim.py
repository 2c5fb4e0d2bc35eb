"""What a method says of itself, and when a claim holds."""

from __future__ import annotations

import pytest

from intarsia.core import Card, Paper
from intarsia.core.errors import ConfigError
from intarsia_lab.kit import Claim, Result

from ..refusals import refused

PAPER = Paper("2312.02923", 2023, "Split & Merge")


def test_a_paper_has_an_address() -> None:
    assert PAPER.url == "https://arxiv.org/abs/2312.02923"


def test_a_kind_outside_the_list_is_refused() -> None:
    with refused(ConfigError, what="kind of 'x'", got="gadget"):
        Card("x", kind="gadget", config=dict, paper=PAPER)


def test_cards_do_not_share_their_settings() -> None:
    a, b = (Card(key, kind="adapter", config=dict, paper=PAPER) for key in "ab")
    assert a.tiny is not b.tiny


@pytest.mark.parametrize(
    ("sense", "got", "holds"),
    [
        ("<=", 0.9, True),
        ("<=", 1.0, True),
        ("<=", 1.1, False),
        (">=", 1.1, True),
        (">=", 0.9, False),
    ],
)
def test_a_claim_is_compared_with_its_bar(sense: str, got: float, holds: bool) -> None:
    result = Result(got, spread=0.0, values=(got,))
    claim = Claim("c", "s", "b", bar=1.0, sense=sense, run=lambda seeds, report: result)
    assert claim.holds(result) is holds


@pytest.mark.parametrize("sense", ["<=", ">="])
def test_a_claim_without_a_number_fails(sense: str) -> None:
    result = Result(float("nan"), spread=0.0, values=())
    claim = Claim("c", "s", "b", bar=1.0, sense=sense, run=lambda seeds, report: result)
    assert not claim.holds(result)
