"""Figures that a claim's sentence names are those of its record's table."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from intarsia_lab.claims.ledger import claim, claims, read

RECORDS = Path(__file__).parents[3] / "docs" / "claims"
Rows = Sequence[Mapping[str, Any]]


def the(rows: Rows, name: str, text: str) -> Mapping[str, Any]:
    """Return the row that has this text in that column."""
    return next(row for row in rows if row[name] == text)


def figures(text: Any) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.?\d*", str(text))]


def one_stream(rows: Rows) -> list[str]:
    best, one_step = (
        figures(the(rows, "cache", name)["1 streams"]) for name in ("Belady", "one step known")
    )
    gap = statistics.mean(a - b for a, b in zip(best, one_step, strict=True))
    return [f"the gap is {gap:.2f}".replace("0.", ".")]


def bars_found(rows: Rows) -> list[str]:
    found_by = [figures(row["bars"]) for row in rows if row["bars of"] == row["model"]]
    good = [sum(count >= 9 for count in counts) for counts in found_by]
    together = sum(min(counts) >= 9 for counts in zip(*found_by, strict=True))
    return [f"in {min(good)} to {max(good)} of {len(found_by[0])} seeds", f"at once in {together}"]


def smaller(rows: Rows) -> list[str]:
    times = [float(r["times smaller than bf16"]) for r in rows if "SmolLM2" in r["weights"]]
    return [" and ".join(f"{value:.0f}" for value in times) + " times smaller"]


def cycles(rows: Rows) -> list[str]:
    both = [row["both"] for row in rows if row["pattern"] == "2:8"]
    return [f"{both[0]} with ResNet-18 and {both[1]} with ViT-S"]


@pytest.mark.parametrize(
    ("key", "words_of"),
    [
        ("expertflow-step", one_stream),
        ("prosper-bars", bars_found),
        ("qmoe-size", smaller),
        ("sat", cycles),
    ],
)
def test_a_sentence_has_its_table_s_figures(
    key: str, words_of: Callable[[Rows], list[str]]
) -> None:
    for words in words_of(read(RECORDS / f"{key}.json").table):
        assert words in claim(key).sentence


def test_no_sentence_says_how_long_a_claim_takes() -> None:
    # its page does, by its record
    timed = [s.key for s in claims() if re.search(r"-\w+, \d+ CPU minutes", s.scale)]
    assert not timed
