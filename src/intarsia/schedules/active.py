"""Schedules of the number of active experts, k."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..core import Card, Paper
from ..core.checks import at_least, between, one_of
from ..core.errors import ConfigError
from ..core.schema import check, setting
from ..routers import random_routers

SHAPES = ("constant", "linear", "step")


def active_at(step: int, total: int, *, first: int, last: int, shape: str = "linear") -> int:
    """Return k, the number of active experts, at a training step.

    step: counted from 0; total: number of steps; first, last: k at the first and at the last step.
      shape: "constant", first = last throughout; "linear", every k from first to last for an equal
      share of the steps; "step", first in the first half of the steps and last in the second.
    Raises: ConfigError on a shape that is none of these, k < 1, or a step that is not in the run.
    """
    one_of("shape", shape, SHAPES)
    at_least("active", min(first, last), 1, fix="k = 1 is the paper.")
    if shape == "constant" and first != last:
        name, fix = "shape='constant'", "Use shape='linear' or 'step' to change k."
        raise ConfigError(name, got=f"first={first}, last={last}", want="the same k", fix=fix)
    between("step", step, 0, total - 1, fix="Steps count from 0 to total - 1.")
    # two halves; the first one has the middle step of an odd number
    if shape == "step":
        return first if 2 * step < total else last
    changed = (abs(last - first) + 1) * step // total  # every value for an equal number of steps
    return first + changed if first <= last else first - changed


def set_active(model: nn.Module, k: int) -> None:
    """Set the number k of experts that every random router of a model draws.

    All routers are checked before the first one changes. Raises: ConfigError if the model has no
    random router, a router has fewer than k experts, or its mixture's merge depends on k
    (scaling="paper").
    """
    routers = random_routers(model)
    if not routers:
        want, fix = "MoSA or AdaMix", "Leave the schedule out, or adapt the model first."
        raise ConfigError("active", got="a model without a random router", want=want, fix=fix)
    for router in routers.values():
        router.check_active(k)
    for router in routers.values():
        router.active = k


@dataclass(frozen=True)
class ActiveSchedule:
    """`set_active` by `active_at`, as a training loop calls it: (model, step, steps) -> None.

    From many to one active expert: the whole adapter is trained first, its parts differ later.
    Depends on the step only, so that a resumed run sees the same.

    Not with routers that learn: it sets those that draw at random.
    Raises: ConfigError on a setting that `active_at` refuses.
    """

    first: int = setting(
        4, "The number k of active experts at the first step.", least=1, fix="k = 1 is the paper."
    )
    last: int = setting(
        1, "The number k of active experts at the last step.", least=1, fix="k = 1 is the paper."
    )
    shape: str = setting(
        "linear",
        'The way from first to last: "constant", first = last throughout; "linear", every k '
        'between them for an equal share of the steps; "step", first in the first half of the '
        "steps and last in the second.",
        choices=SHAPES,
    )

    def __post_init__(self) -> None:
        check(self)
        active_at(0, 1, first=self.first, last=self.last, shape=self.shape)

    def __call__(self, model: nn.Module, step: int, steps: int) -> None:
        k = active_at(step, steps, first=self.first, last=self.last, shape=self.shape)
        set_active(model, k)


CARD = Card(
    "active",
    kind="schedule",
    config=ActiveSchedule,
    paper=Paper(
        "2312.02923",
        2023,
        "Split & Merge: Unlocking the Potential of Visual Adapters via Sparse Training",
    ),
    summary="How many experts are active, as a function of the step.",
    family="schedules",
)
