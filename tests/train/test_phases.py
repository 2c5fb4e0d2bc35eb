"""One fit for each phase; a folder that can be killed in any of them."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from intarsia.core.errors import TrainingError
from intarsia.fitting import fit, fit_as, fit_in_phases
from intarsia.schedules import Phase
from intarsia.train import adamw

OPTIONS: dict[str, Any] = {"epochs": 4, "batch_size": 4, "trackers": ()}


class Twice:
    """Two phases; in between the weights are halved."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def phases(self, model: nn.Module, *, seed: int = 0) -> Generator[Phase, None, str]:
        try:
            yield Phase("first", length=0.5)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(0.5)
            yield Phase("second", last=True, optimizer=self._noted)
            return f"seed {seed}"
        finally:
            self.seen.append("closed")

    def _noted(self, make: Any) -> Any:
        self.seen.append("second's optimiser")
        return make


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def rows() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, generator=generator)
    return TensorDataset(x, (x[:, 0] > 0).long())


def test_phases_run_one_after_the_other() -> None:
    method, model = Twice(), net()
    done = fit_in_phases(model, method, rows(), rows(), test=rows(), seed=5, **OPTIONS)
    assert done.found == "seed 5"
    assert [name for name, _ in done.runs] == ["first", "second"]
    assert [run.record["training"]["epochs"] for _, run in done.runs] == [2, 4]
    assert done.runs[0][1].test is None and done.run.test is not None
    assert done.run is done.runs[1][1]
    assert method.seen == ["second's optimiser", "closed"]


def test_the_last_phase_is_the_folders_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    fit_in_phases(net(), Twice(), rows(), test=rows(), out=out, **OPTIONS)
    assert (out / "run.json").is_file() and (out / "phases" / "1-first" / "run.json").is_file()


def test_a_stopped_training_goes_on_in_the_phase_it_was_in(tmp_path: Path) -> None:
    unstopped = net()
    fit_in_phases(unstopped, Twice(), rows(), **OPTIONS)
    for stop in (2, 9):  # steps: 6 in the first phase, 12 in the second
        out, steps_taken = tmp_path / str(stop), [0]

        def dies(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
            optimizer = adamw(model, lr, weight_decay)

            def count(*_: Any) -> None:
                steps_taken[0] += 1  # noqa: B023
                if steps_taken[0] == stop:  # noqa: B023
                    raise TrainingError("step", got="a stop", want="none", fix="Go on.")

            optimizer.register_step_pre_hook(count)
            return optimizer

        options: Any = OPTIONS | {"out": out, "checkpoint_steps": 1}
        with pytest.raises(TrainingError):
            fit_in_phases(net(), Twice(), rows(), optimizer=dies, **options)
        again = net()
        steps_taken[0] = -1000  # the settings of a run that goes on must be the same
        fit_in_phases(again, Twice(), rows(), optimizer=dies, resume=True, **options)
        for a, b in zip(again.parameters(), unstopped.parameters(), strict=True):
            assert torch.equal(a, b)


def test_a_method_that_fails_is_closed() -> None:
    method = Twice()
    with pytest.raises(TrainingError):
        fit_in_phases(net(), method, rows(), lr=1e38, **OPTIONS)
    assert method.seen[-1] == "closed"


def test_only_a_method_of_phases_is_trained_in_phases() -> None:
    assert fit_as("full") is fit
    run = fit_as(Twice())(net(), rows(), rows(), test=rows(), **OPTIONS)
    assert run.record["training"]["epochs"] == 4 and run.test is not None
