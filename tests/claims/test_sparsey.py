"""The experiments of Sparsey's claims, in their smallest form."""

from __future__ import annotations

import numpy as np
import pytest

from intarsia.claims import sparsey


def test_items_are_members_of_families() -> None:
    x = sparsey.family_items(20, 0)
    assert (x.sum(axis=1) == sparsey.ACTIVE).all()
    shared = (x @ x.T)[np.triu_indices(20, 1)]
    assert shared.max() >= 8 and shared.min() == 0


def test_figures_of_a_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparsey, "COUNTS", (10, 30))
    for of in ("recall", "control"):
        found = sparsey.judged((0,), lambda _: None, of=of, over=min)
        assert 0 <= found.got <= 1 and len(found.table) == 2


def test_a_thin_stroke_is_a_line() -> None:
    picture = np.zeros((28, 28))
    picture[4:24, 10:17] = 255
    line = sparsey.thin(picture)
    assert 8 <= line.sum() <= 45 and line[14].sum() == 1
