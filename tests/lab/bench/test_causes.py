"""The page of sparse coding next to a Gaussian and NMF."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from ...pages import ROOT


@pytest.fixture
def causes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return pytest.importorskip("causes")


def test_a_gaussian_fills_holes_as_least_squares_of_the_same_rows_does(causes: ModuleType) -> None:
    random = np.random.default_rng(0)
    x = random.normal(3, 1, (200, 9)) @ random.normal(0, 1, (9, 9))
    holes = x[:20].copy()
    holes[:, ::3] = np.nan
    filled = causes.by_gaussian(x, holes)
    gone = np.isnan(holes[0])
    known = np.column_stack([np.ones(len(x)), x[:, ~gone]])
    weights = np.linalg.lstsq(known, x[:, gone], rcond=None)[0]
    np.testing.assert_allclose(filled[:, gone], known[:20] @ weights)
    np.testing.assert_array_equal(filled[:, ~gone], holes[:, ~gone])


def test_each_kind_of_bars_has_a_row_with_ours_from_the_record(
    causes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causes, "learned", lambda name, kind, seed: {"bars": 8 + seed, "cpu": 0.25})
    rows = causes.bars_found(range(2))
    assert [row[0] for row in rows] == [*causes.KINDS]
    assert rows[0][1:] == ["23 of 24", "0.7", "1 of 2", "0.25"]
