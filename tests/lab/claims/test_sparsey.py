"""The experiments of Sparsey's claims, in their smallest form."""

from __future__ import annotations

import numpy as np
import pytest

from intarsia_lab.claims import sparsey, sparsey_baselines
from intarsia_lab.materials import thin_digits


def test_items_are_members_of_families() -> None:
    x = sparsey.family_items(20, 0)
    assert (x.sum(axis=1) == sparsey.ACTIVE).all()
    shared = (x @ x.T)[np.triu_indices(20, 1)]
    assert shared.max() >= 8 and shared.min() == 0


def test_figures_of_a_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparsey, "COUNTS", (10, 30))
    result = sparsey.judged((0,), lambda _: None, figure="recall")
    assert 0 <= result.got <= 1 and len(result.table) == 2


def test_a_thin_stroke_is_a_line() -> None:
    picture = np.zeros((28, 28))
    picture[4:24, 10:17] = 255
    line = thin_digits.thin(picture)
    assert 8 <= line.sum() <= 45 and line[14].sum() == 1


def test_memories_of_equal_bits_complete_a_few_items_and_no_thousand() -> None:
    for name, memory in sparsey_baselines.MEMORIES.items():
        for n, remembers in ((10, True), (4000, False)):
            items, cues = sparsey_baselines.items_of(n, 0)
            assert (items.sum(axis=1) - cues.sum(axis=1) == sparsey_baselines.MISSING).all()
            recalled = memory(items, cues, 0)
            assert (recalled.sum(axis=1) == sparsey_baselines.ACTIVE).all()
            assert ((recalled * items).sum() / items.sum() >= 0.95) == remembers, (name, n)


def test_capacity_lies_where_the_curve_crosses() -> None:
    counts = sparsey_baselines.COUNTS
    halfway = sparsey_baselines.capacity((1.0, 0.9) + (0.0,) * (len(counts) - 2))
    assert halfway == pytest.approx((counts[0] + counts[1]) / 2)
    assert sparsey_baselines.capacity((0.5,) * len(counts)) == 0
    assert sparsey_baselines.capacity((1.0,) * len(counts)) == counts[-1]
