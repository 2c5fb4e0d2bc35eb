"""The experiment on SquareHead in its smallest form."""

from __future__ import annotations

from pathlib import Path

import pytest

from intarsia.data import corpora
from intarsia.data.small_models import SmallModel
from intarsia_lab.experiments import squarehead

from ...toys import quiet


def test_each_objective_has_its_own_rate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path))
    monkeypatch.setattr(corpora, "read", lambda *_: "A cat sat on a mat. " * 400)
    monkeypatch.setattr(squarehead, "SmallModel", lambda *_: SmallModel(8, 2, 2, 8))
    sizes = {"STEPS": 1, "BATCH": 4, "LENGTH": 32, "HELD_OUT": 4, "CALIBRATION": 8}
    for name, value in {**sizes, "DENSE_STEPS": 4}.items():
        monkeypatch.setattr(squarehead, name, value)
    result = squarehead.STUDIES[0].measure((0, 1), quiet)
    assert [rate.arm for rate in result.rates] == list(squarehead.OBJECTIVES)
    assert len(result.values) == 2 and "Zeros filled: 0" in result.note
    assert all(len(rate.grid) >= 3 for rate in result.rates)
