"""Distillation of a student, for a part of its training (Mixture-of-Students, arXiv:2201.05596)."""

from __future__ import annotations

from functools import partial
from typing import overload

import torch
from torch import Tensor, nn

from ..core.checks import above, at_least
from ..core.errors import ConfigError
from ..core.modes import evaluating
from ..mixtures import undropped
from .objectives import Objective, Staged, logits_of, plain
from .order import Inputs
from .outcome import LossOf, Outcome, counted, divergence_of

TEACHER = "For example: fit(student, train, objective=distill(teacher))."


@overload
def distill(
    model: nn.Module,
    x: Inputs,
    loss_of: LossOf,
    *,
    teacher: nn.Module,
    beta: float = 1.0,
    temperature: float = 1.0,
) -> Outcome: ...


@overload
def distill(*, teacher: nn.Module, beta: float = 1.0, temperature: float = 1.0) -> Objective: ...


@overload
def distill(
    model: nn.Module, *, teacher: None = None, beta: float = 1.0, temperature: float = 1.0
) -> Objective: ...


def distill(
    model: nn.Module | None = None,
    x: Inputs | None = None,
    loss_of: LossOf | None = None,
    *,
    teacher: nn.Module | None = None,
    beta: float = 1.0,
    temperature: float = 1.0,
) -> Outcome | Objective:
    """Compute L = CE + beta T^2 KL(softmax(t / T) || softmax(s / T)) of teacher and student.

    t are the teacher's logits, s the student's. The mean is over samples, or, with `fit`, over the
    tokens that have a label. T^2 keeps the size of the gradient (arXiv:1503.02531). The teacher is
    in evaluation mode, without a gradient, and its mixtures drop no token; it is moved to the
    batch's device, and is otherwise as before.

    loss_of: logits -> the task's loss; teacher: has the model's classes or vocabulary, as given to
    `intarsia.experts.student_of`; beta: 0 or more; temperature: T above 0.
    Without a batch, distill(teacher), it is the objective of that teacher:
    `intarsia.fit(student, train, objective=distill(teacher, temperature=2.0))`.
    Costs one forward of the teacher more than `plain`. Not for labels that a teacher never saw.
    Raises: ConfigError for settings that cannot be, and a teacher with logits of another shape.
    Source: arXiv:2201.05596, section 4.2.
    """
    _check(beta, temperature)
    if x is None or loss_of is None:
        return partial(distill, teacher=_only(teacher, model), beta=beta, temperature=temperature)
    if model is None or teacher is None:
        raise ConfigError("teacher", got=None, want="a model", fix=TEACHER)
    target, logits = taught(teacher, x), logits_of(model, x)
    check_logits(target, logits)
    task = loss_of(logits)
    # both at temperature T, only the rows that have a label
    soft, student = (counted(part, loss_of) / temperature for part in (target, logits))
    divergence = temperature**2 * divergence_of(loss_of)(soft, student)
    return Outcome(task + beta * divergence, logits, {"task": task, "divergence": divergence})


def _only(teacher: nn.Module | None, model: nn.Module | None) -> nn.Module:
    if (teacher is None) == (model is None):
        got = "none" if teacher is None else "two models and no batch"
        raise ConfigError("teacher", got=got, want="a model", fix=TEACHER)
    only = model if teacher is None else teacher
    assert only is not None
    return only


def taught(teacher: nn.Module, x: Inputs) -> Tensor:
    """Return the logits of a teacher for a batch.

    The teacher is in evaluation mode, without a gradient, and its mixtures drop no token; it is
    moved to the inputs' device.
    """
    # the loop knows the student only, and does not move the teacher
    teacher.to((x if isinstance(x, Tensor) else next(iter(x.values()))).device)
    with torch.no_grad(), evaluating(teacher), undropped(teacher):
        return logits_of(teacher, x)


def check_logits(target: Tensor, logits: Tensor) -> None:
    """Raise ConfigError unless the teacher's logits `target` have the shape of the student's."""
    if target.shape != logits.shape:
        got, want = f"logits {tuple(target.shape)}", f"{tuple(logits.shape)}, as the model's"
        raise ConfigError("teacher", got=got, want=want, fix="Give the student the teacher's head.")


def _check(beta: float, temperature: float) -> None:
    at_least("beta", beta, 0, fix="The paper has 1.")
    above("temperature", temperature, 0, fix="The paper has 1.")


def staged_distillation(
    teacher: nn.Module, *, until: float = 0.6, beta: float = 1.0, temperature: float = 1.0
) -> Staged:
    """Return an objective that distils from a teacher at first, and then uses labels alone.

    fit(student, train, objective=staged_distillation(teacher, until=0.6))

    teacher, beta, temperature: as in `distill`; until: share of the steps with the teacher. A
      student that is shallower than its teacher fits both for a while, and not to the end, where
      the teacher's targets lower its accuracy (arXiv:2201.05596, section 4.2).
    Raises: ConfigError for settings that cannot be.
    """
    _check(beta, temperature)
    first = partial(distill, teacher=teacher, beta=beta, temperature=temperature)
    return Staged(first, until, plain)
