"""Train in phases: one `fit` for each, with a fresh optimiser, order and schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Unpack

from torch import nn
from torch.utils.data import Dataset

from ..schedules import Phased
from .fit import Run, fit, fit_once
from .objectives import Objective, Staged, plain
from .settings import Options, Training, settle

PHASES = "phases"  # the folder of those before the last, in a run's own


@dataclass(frozen=True)
class PhasedRun:
    """What a training in phases gave: what the method found, and the run of each phase, by name.

    `run` is that of the last phase, whose scores are those of the result.
    """

    found: Any
    runs: tuple[tuple[str, Run], ...]

    @property
    def run(self) -> Run:
        return self.runs[-1][1]


def fit_in_phases(
    model: nn.Module,
    method: Phased,
    train: Dataset[Any],
    val: Dataset[Any] | None = None,
    *,
    test: Dataset[Any] | None = None,
    objective: Objective | Staged = plain,
    training: Training | None = None,
    record: Mapping[str, Any] | None = None,
    evaluate_every: int = 1,
    **options: Unpack[Options],
) -> PhasedRun:
    """Train a model as a method of several phases says, in place: see `fit` for the arguments.

    Each phase is a `fit` of its own: the same seed, a fresh optimiser, schedule and order, and the
    epochs that were asked for times the phase's own length. With out="folder" the last phase is the
    folder's run, and those before it are runs in `phases/` inside; resume=True goes on in the
    phase that was interrupted. Only the last one is scored on `test`.

    Raises: as `fit` and the method do; the model is then where the phase in question left it.
    """
    settings, recipe, running = settle(training, options)
    runs: list[tuple[str, Run]] = []
    steps = method.phases(model, seed=settings.seed)
    try:
        while True:
            phase = next(steps)
            own: Any = dict(options) | {"optimizer": phase.optimizer(recipe.optimizer)}
            own["epochs"] = max(1, round(settings.epochs * phase.length))
            if running.out is not None and not phase.last:
                own["out"] = running.out / PHASES / f"{len(runs) + 1}-{phase.name}"
            sets = train, val, test if phase.last else None
            run = fit_once(model, sets, objective, settle(training, own), record, evaluate_every)
            runs.append((phase.name, run))
    except StopIteration as end:
        return PhasedRun(end.value, tuple(runs))
    finally:
        steps.close()


def fit_as(method: object) -> Callable[..., Run]:
    """How a method is trained: `fit`, or `fit_in_phases` with the last run as what it gave."""
    if not isinstance(method, Phased):
        return fit
    phased: Phased = method

    def train_in_phases(model: nn.Module, *sets: Any, **options: Any) -> Run:
        return fit_in_phases(model, phased, *sets, **options).run

    return train_in_phases
