"""The experiment on sparse coding, in their smallest form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from intarsia.data import packages
from intarsia_lab.experiments import prosper

from ...toys import quiet as said


@pytest.fixture(autouse=True)
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(prosper, "SAMPLES", 60)
    monkeypatch.setattr(prosper, "STEPS", 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_bars_are_counted_of_every_model_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    result = prosper.find_bars((0,), said)
    assert len(result.table) == 24 and 0 <= result.value <= 10
    monkeypatch.setattr(prosper, "bar_data", lambda *_: pytest.fail("run a second time"))
    assert prosper.find_bars((0,), said) == result


@pytest.mark.parametrize("signed", [False, True])
def test_nmf_has_parts_of_both_signs_where_bars_have_signs(signed: bool) -> None:
    truth = prosper.bars(np.array([1.0, -1.0] * 5))
    x = (np.random.default_rng(0).random((60, 10)) < 0.2) @ truth
    model = prosper.SignedNmf(signed).set_params(random_state=0)
    model.fit(x)
    assert model.components_.shape == truth.shape
    assert bool((model.components_ < 0).any()) is signed


def test_a_bar_is_found_in_either_direction() -> None:
    truth = prosper.bars()
    assert prosper.bars_in(-truth[:4], truth) == 4
    assert prosper.bars_in(np.ones((3, 25)), truth) == 0
