"""Early stopping: it stops when it says, gives the best epoch's weights, and resumes exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from intarsia import evaluate, fit
from intarsia.core.errors import ConfigError
from intarsia.train import Recipe, Run

from ..refusals import refused
from .tiny import host, pictures

SETTINGS: dict[str, Any] = {"epochs": 12, "batch_size": 8, "lr": 0.3, "trackers": ()}
VAL = pictures(40, seed=1)


def scores(run: Run) -> list[float]:
    return [line["accuracy"] for line in run.history if line["split"] == "val"]


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_it_stops_when_nothing_was_better_for_so_long(patience: int) -> None:
    accuracies = scores(fit(host(), pictures(40), VAL, **SETTINGS))
    model = host()
    run = fit(model, pictures(40), VAL, patience=patience, **SETTINGS)
    # what a reader would do with the scores of the whole run
    best = stop = 0
    for epoch, score in enumerate(accuracies, 1):
        best = epoch if not best or score > accuracies[best - 1] else best
        stop = epoch
        if epoch - best >= patience:
            break
    assert scores(run) == accuracies[:stop] and stop < 12
    selection = run.record["results"]["selection"]
    assert (selection["rule"], selection["epoch"]) == ("val", best)
    assert selection["stopped_after"] == stop and run.record["results"]["steps"] == stop * 5
    assert run.val is not None and run.val.scores()["accuracy"] == accuracies[best - 1]
    assert evaluate(model, VAL).scores() == pytest.approx(run.val.scores())
    assert f"{stop} of 12 epochs, epoch {best} chosen on val" in str(run)


def test_a_run_that_goes_on_getting_better_is_not_stopped() -> None:
    run = fit(host(), pictures(40), VAL, patience=12, **SETTINGS)
    assert run.record["results"]["selection"]["stopped_after"] is None


def test_scores_count_not_epochs() -> None:
    run = fit(host(), pictures(40), VAL, patience=1, evaluate_every=2, **SETTINGS)
    selection = run.record["results"]["selection"]
    assert selection["stopped_after"] == selection["epoch"] + 2


@pytest.mark.thorough
@pytest.mark.parametrize("killed", [3, 12, 17])
def test_a_killed_run_stops_at_the_same_epoch_with_the_same_bits(
    tmp_path: Path, killed: int
) -> None:
    def stop(_model: object, step: int, _steps: int) -> None:
        if step == killed and not done:
            done.append(step)
            raise EOFError

    model, again, done = host(), host(), list[int]()
    settings = SETTINGS | {"patience": 3, "schedule": stop, "checkpoint_steps": 2}
    done.append(0)
    unstopped = fit(model, pictures(40), VAL, **settings)
    assert killed < unstopped.record["results"]["steps"]
    done.clear()
    with pytest.raises(EOFError):
        fit(host(), pictures(40), VAL, out=tmp_path, **settings)
    run = fit(again, pictures(40), VAL, out=tmp_path, resume=True, **settings)
    assert scores(run) == scores(unstopped)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    # stopped, but killed before its results were written: nothing more is learned
    (tmp_path / "run.json").unlink()
    third = fit(host(), pictures(40), VAL, out=tmp_path, resume=True, **settings)
    assert third.record["results"]["steps"] == unstopped.record["results"]["steps"]


def test_patience_that_cannot_be() -> None:
    assert Recipe(patience=1).select == "val"
    with refused(ConfigError, what="patience", got=0):
        Recipe(patience=0)
    with refused(ConfigError, what="select='val'"):
        fit(host(), pictures(40), patience=1)
