"""Whole until it fits, split from then on: by the accuracies alone, through any interruption."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import host, pictures
from torch import Tensor, nn

from intarsia.adapters import Bottleneck
from intarsia.core import Site
from intarsia.core.errors import ConfigError
from intarsia.fitting import fit
from intarsia.methods import Mosa
from intarsia.routers import random_routers
from intarsia.schedules import ByFit, OnceFitted, set_active
from intarsia.train import Interrupted, Outcome, plain
from intarsia.train.precision import learned_state

from ..refusals import refused

EPOCHS, STEPS = 4, 5  # of each epoch
QUICK: dict[str, Any] = {"epochs": EPOCHS, "batch_size": 8, "lr": 0.03, "trackers": ()}


def mosa(active: int = 1, **settings: Any) -> Mosa:
    over = Bottleneck(4, activation="gelu", norm="none")
    return Mosa(over, active=active, **settings)


def learned(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in learned_state(model).items()}


def trained(method: Mosa, schedule: Any = None, **options: Any) -> dict[str, Tensor]:
    model = host(method=method)
    fit(model, pictures(40), schedule=schedule, **QUICK | options)
    return learned(model)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


@given(
    st.lists(st.floats(0, 1), max_size=6), st.floats(0.01, 1), st.integers(1, 4), st.integers(1, 4)
)
def test_k_depends_on_the_best_epoch_alone(
    accuracies: list[float], share: float, built: int, active: int
) -> None:
    cell = mosa(built).build(Site("b", 6, 6), generator=torch.Generator().manual_seed(0))
    schedule = OnceFitted(active, share)
    assert isinstance(schedule, ByFit)
    schedule.follow(cell, accuracies)
    fits = max(accuracies, default=0.0) >= share
    assert {r.active for r in random_routers(cell).values()} == {active if fits else 4}


def test_what_never_fits_is_the_adapter_left_whole() -> None:
    never = trained(mosa(), OnceFitted(1, share=1.0), lr=1e-4)
    assert same(never, trained(mosa(active=4), lr=1e-4))
    assert not same(never, trained(mosa(), lr=1e-4))


def test_what_fits_at_once_is_split_from_the_second_epoch_on() -> None:
    def second(model: nn.Module, step: int, _steps: int) -> None:
        set_active(model, 1 if step >= STEPS else 4)

    assert same(trained(mosa(), OnceFitted(1, share=0.01)), trained(mosa(), second))


def test_it_follows_the_accuracies_of_whole_epochs() -> None:
    rows: list[list[float]] = []
    hits: list[float] = []

    class Watch:
        def follow(self, model: nn.Module, accuracies: list[float]) -> None:
            rows.append([*accuracies])

    def objective(model: nn.Module, x: Tensor, loss_of: Any) -> Outcome:
        logged = plain(model, x, loss_of)
        answers = pictures(40).tensors
        indices = [int((answers[0] == picture).flatten(1).all(1).nonzero()) for picture in x]
        hits.append(float((logged.logits.argmax(1) == answers[1][indices]).float().mean()))
        return logged

    fit(host(method=mosa()), pictures(40), schedule=Watch(), objective=objective, **QUICK)
    means = [sum(hits[i : i + STEPS]) / STEPS for i in range(0, len(hits), STEPS)]
    for step, logged in enumerate(rows):
        assert logged == pytest.approx(means[: step // STEPS])


@pytest.mark.thorough
@pytest.mark.parametrize("stop", [2, STEPS - 1, STEPS + 2, 3 * STEPS + 1])
def test_a_resumed_run_sees_the_same(tmp_path: Path, stop: int) -> None:
    schedule, calls = OnceFitted(1, share=0.7), [-1]

    def objective(model: nn.Module, x: Tensor, loss_of: Any) -> Outcome:
        calls[0] += 1
        if calls[0] == stop:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(model, x, loss_of)

    options: dict[str, Any] = QUICK | {"schedule": schedule, "objective": objective}
    calls[0] = -1000
    unstopped = host(method=mosa())
    fit(unstopped, pictures(40), **options)
    assert {r.active for r in random_routers(unstopped).values()} == {1}, "it never came to fit"
    calls[0] = -1
    with pytest.raises(Interrupted, match=f"after step {stop + 1} of {EPOCHS * STEPS}"):
        fit(host(method=mosa()), pictures(40), out=tmp_path, **options)
    model = host(method=mosa())
    fit(model, pictures(40), out=tmp_path, resume=True, **options)
    assert same(learned(model), learned(unstopped))


@pytest.mark.parametrize(
    ("method", "options", "got"),
    [
        (mosa(), {"mixup": 0.2}, "OnceFitted with mixed images"),
        (mosa(scaling="paper"), {}, "4"),
        (mosa(experts=2), {"schedule": OnceFitted(3)}, "3"),
        (Bottleneck(4, norm="none"), {}, "a model without a random router"),
    ],
)
def test_what_cannot_be_followed(method: Any, options: dict[str, Any], got: str) -> None:
    with refused(ConfigError, got=got):
        fit(host(method=method), pictures(16), **QUICK | {"schedule": OnceFitted(1)} | options)


@pytest.mark.parametrize("settings", [{"active": 0}, {"share": 0.0}, {"share": 1.1}])
def test_settings_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        OnceFitted(**{"active": 1} | settings)
