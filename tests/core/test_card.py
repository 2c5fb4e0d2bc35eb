"""What a method says of itself, and when a claim holds."""

from __future__ import annotations

import pytest

from intarsia.core import Card, Paper
from intarsia.core.errors import ConfigError

PAPER = Paper("2312.02923", 2023, "Split & Merge")


def test_a_paper_has_an_address() -> None:
    assert PAPER.url == "https://arxiv.org/abs/2312.02923"


def test_a_kind_outside_the_list_is_refused() -> None:
    with pytest.raises(ConfigError, match="kind of 'x': got gadget"):
        Card("x", kind="gadget", config=dict, paper=PAPER)


def test_cards_do_not_share_their_settings() -> None:
    a, b = (Card(key, kind="adapter", config=dict, paper=PAPER) for key in "ab")
    assert a.tiny is not b.tiny
