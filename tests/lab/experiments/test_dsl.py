"""DSL with scores that are given: which model is judged, and which rate is none."""

from __future__ import annotations

import pytest

from intarsia.schedules import Dsl
from intarsia.train.learner import NotFinite
from intarsia_lab.experiments import dsl, study

Arm = tuple[str, str]


def test_the_recommender_with_the_lower_ratio_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {"LightGCN": {dsl.DENSE: 20.0, dsl.HALF: 18.0}}
    scores["MultVAE"] = {dsl.DENSE: 10.0, dsl.HALF: 9.9}

    def ranked(arm: Arm, seed: int, lr: float, validate: bool = False) -> dsl.Ranked:
        name, tables = arm
        # the best rate is an inner one of each model's own grid
        best = 3 * dsl.MODELS[name].lr
        return dsl.Ranked(scores[name][tables] - abs(lr - best), 0.0, 1, 0.0)

    monkeypatch.setattr(dsl, "ranked", ranked)
    result = study("dsl").measure((0, 1), lambda _: None)
    assert result.values == pytest.approx((0.9, 0.9))
    assert {rate.arm: rate.rate for rate in result.rates} == {
        arm: pytest.approx(3 * dsl.MODELS[name].lr) for arm, (name, _) in dsl.ARMS.items()
    }


def test_a_rate_at_which_the_training_diverges_wins_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ranked(arm: Arm, seed: int, lr: float, validate: bool = False) -> dsl.Ranked:
        if lr > dsl.MODELS[arm[0]].lr:
            raise NotFinite("loss", got="nan", want="a finite number", fix="Lower lr.")
        return dsl.Ranked(1.0, 0.0, 1, 0.0)

    monkeypatch.setattr(dsl, "ranked", ranked)
    assert dsl.validated("MultVAE, dense", 1e-3) == 1 and dsl.validated("MultVAE, dense", 3e-3) == 0


def test_masks_change_some_sixty_times() -> None:
    for name, model in dsl.MODELS.items():
        half = dsl.schedule(name, dsl.HALF)
        assert isinstance(half, Dsl)
        assert 50 < sum(half.due(step, model.steps) for step in range(model.steps)) < 70
        assert dsl.schedule(name, dsl.DENSE) is None
