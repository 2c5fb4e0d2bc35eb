"""The claim on SquareHead in its smallest form."""

from __future__ import annotations

from pathlib import Path

import pytest

from intarsia.data import corpora
from intarsia.data.small_models import SmallModel
from intarsia_lab.claims import squarehead

from ...toys import quiet


def test_each_objective_has_its_own_rate_and_the_teacher_is_judged_by_the_control(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path))
    monkeypatch.setattr(corpora, "read", lambda *_: "A cat sat on a mat. " * 400)
    monkeypatch.setattr(squarehead, "SmallModel", lambda *_: SmallModel(8, 2, 2, 8))
    sizes = {"STEPS": 1, "BATCH": 4, "LENGTH": 32, "HELD_OUT": 4, "CALIBRATION": 8}
    for name, value in {**sizes, "DENSE_STEPS": 4}.items():
        monkeypatch.setattr(squarehead, name, value)
    (study, _) = squarehead.CLAIMS
    result = study.measure((0, 1), quiet)
    assert [rate.arm for rate in result.rates] == list(squarehead.OBJECTIVES)
    assert len(result.values) == 2 and "Zeros filled: 0" in result.note
    assert all(len(rate.grid) >= 3 for rate in result.rates)
    better = [{"dense": "1.0", "after": "1.2 ± 0.1"}, {"dense": "1.0", "after": "1.1"}]
    assert study.control.passes(better)  # pyright: ignore
    assert not study.control.passes([*better, {"dense": "1.0", "after": "0.9"}])  # pyright: ignore
