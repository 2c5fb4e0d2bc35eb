"""Put what a run has learned back into its pretrained model; and open a run's teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ..core.errors import CheckpointError
from ..data import trunk_fingerprint
from ..folders.saved import load
from ..reports.runs import read_run
from ..reports.runs.reading import need
from ..train import Objective, SquareHead
from . import experiment as experiments
from .experiment import Experiment


def restored(
    model: nn.Module,
    folder: Path,
    experiment: Experiment,
    record: Mapping[str, Any],
    classes: tuple[str, ...] | None = None,
) -> nn.Module:
    """Return the pretrained model of a run with what the run has learned.

    model: the pretrained model, changed in place. classes: names of the classes that the head must
    have, None = not checked.
    Raises: CheckpointError for another pretrained model, or damaged files.
    """
    check_backbone(model, folder, experiment, record)
    return load(model, folder, classes=classes)


def check_backbone(
    model: nn.Module, folder: Path, experiment: Experiment, record: Mapping[str, Any]
) -> None:
    """Check that a model has the weights with which a run began, at its training's picture size.

    folder, experiment, record: of the run; the record has their digest.
    Raises: CheckpointError.
    """
    if (fingerprint := trunk_fingerprint(model)) != (
        want := need(record, "record.trunk", str, folder)
    ):
        subject, got = (
            f"backbone {experiment.adapted.model!r} of {folder}",
            f"weights {fingerprint[:12]}",
        )
        fix = "Use the version of timm and of the weights that run.json names."
        raise CheckpointError(
            subject, got=got, want=f"{want[:12]}, those it was trained on", fix=fix
        )


def with_teacher(
    objective: Objective,
    name: str | None,
    start: Callable[[Experiment], nn.Module],
    named: Callable[[str], nn.Module],
    classes: tuple[str, ...] | None = None,
) -> Objective:
    """Return the objective with its teacher model, if it distils from one.

    objective: returned as it is unless it is a `SquareHead`. name: of the teacher, a run folder of
    `intarsia fit` or a pretrained model. classes: that the teacher must have.
    Raises: as `restored` does.
    """
    if not isinstance(objective, SquareHead) or name is None:
        return objective
    # a name is a run folder if it holds an experiment, else the name of a pretrained model
    folder = Path(name)
    if not (folder / experiments.FILE).is_file():
        # a pretrained model, which has learned nothing of this task
        return replace(objective, teacher=named(name))
    # a finished run: its learned tensors are put into its pretrained model
    teacher_experiment, record = experiments.read(folder), read_run(folder).record
    return replace(
        objective,
        teacher=restored(start(teacher_experiment), folder, teacher_experiment, record, classes),
    )
