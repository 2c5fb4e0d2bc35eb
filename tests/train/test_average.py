"""The moving average of the weights: its sum, what is scored, exact resume, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from intarsia import evaluate, fit
from intarsia.core.errors import ConfigError
from intarsia.schedules import FixedMask
from intarsia.train import Recipe
from intarsia.train.learner import Average

from ..refusals import refused
from .tiny import host, pictures

SETTINGS: dict[str, Any] = {"epochs": 4, "batch_size": 8, "lr": 0.05, "trackers": ()}
TRAIN, VAL = pictures(36), pictures(30, seed=1)


def test_it_is_the_weighted_mean_of_the_steps() -> None:
    w = torch.zeros(3)
    average, want = Average([w], 0.5), torch.zeros(3, dtype=torch.float64)
    for step in range(12):
        w += torch.arange(3.0) + step
        average.add()
        decay = min(0.5, (1 + step) / (10 + step))
        want = decay * want + (1 - decay) * w.double()
    assert_close(average.values[0].double(), want, rtol=1e-5, atol=1e-5)
    with average.in_place():
        assert torch.equal(w, average.values[0])
    assert not torch.equal(w, average.values[0])


def trained(**settings: Any) -> tuple[Any, Any, dict[int, dict[str, torch.Tensor]]]:
    """The model, its run, and its trained weights after each step."""
    weights_by_step: dict[int, dict[str, torch.Tensor]] = {}

    def watch(model: Any, step: int, _steps: int) -> None:
        learns = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        weights_by_step[step] = learns  # before this step, that is after the one before

    model = host()
    return model, fit(model, TRAIN, VAL, schedule=watch, **(SETTINGS | settings)), weights_by_step


def test_the_steps_are_those_without_and_the_average_is_scored_and_kept() -> None:
    plain, _, before = trained()
    model, run, by_step = trained(ema=0.9)
    for step, weights in before.items():  # the average changes no step
        assert all(torch.equal(value, by_step[step][name]) for name, value in weights.items())
    steps = [by_step[i] for i in range(1, len(by_step))]
    steps.append({n: p.detach() for n, p in plain.named_parameters() if p.requires_grad})
    average = {name: value.double() for name, value in by_step[0].items()}
    for step, weights in enumerate(steps):
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in weights.items():
            average[name] = decay * average[name] + (1 - decay) * value.double()
    for name, value in model.named_parameters():
        if value.requires_grad:
            assert_close(value.double(), average[name], rtol=1e-4, atol=1e-5)
    assert run.val is not None and run.record["recipe"]["ema"] == 0.9
    assert evaluate(model, VAL).scores() == pytest.approx(run.val.scores())


def test_the_best_epoch_has_the_averaged_weights() -> None:
    model, run, _ = trained(ema=0.9, select="val", lr=0.3)
    assert run.val is not None
    assert evaluate(model, VAL).scores() == pytest.approx(run.val.scores())


@pytest.mark.parametrize("select", ["last", "val"])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, select: str) -> None:
    def stop(_model: object, step: int, _steps: int) -> None:
        if step == 13 and not done:
            done.append(step)
            raise EOFError

    settings = SETTINGS | {"ema": 0.9, "select": select, "schedule": stop, "checkpoint_steps": 3}
    unstopped, again, done = host(), host(), [0]
    fit(unstopped, TRAIN, VAL, **settings)
    done.clear()
    with pytest.raises(EOFError):
        fit(host(), TRAIN, VAL, out=tmp_path, **settings)
    fit(again, TRAIN, VAL, out=tmp_path, resume=True, **settings)
    for name, value in unstopped.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize("ema", [0.0, 1.0, -1.0, float("nan")])
def test_a_decay_that_cannot_be(ema: float) -> None:
    with refused(ConfigError, what="ema"):
        Recipe(ema=ema)


def test_not_with_masks() -> None:
    with refused(ConfigError, what="ema", got="0.9 with FixedMask"):
        Recipe(ema=0.9, schedule=FixedMask())
