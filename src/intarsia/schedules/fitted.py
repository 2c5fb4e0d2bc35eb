"""Train the whole adapter until it fits, and split it from then on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn

from ..core import Card, Paper
from ..core.schema import check, setting
from ..routers import random_routers
from .active import set_active


@runtime_checkable
class ByFit(Protocol):
    """A schedule that depends on how well the model fits its training samples."""

    def follow(self, model: nn.Module, accuracies: Sequence[float]) -> None:
        """Change the model before a step.  accuracies: the training accuracy of each past epoch."""
        ...


@dataclass(frozen=True)
class OnceFitted:
    """k = N until an epoch's training accuracy is `share`, and k = `active` from the next one on.

    fit(model, train, schedule=OnceFitted(1)): an adapter that never comes to fit stays whole.
    Splitting regularises, which has nothing to give before the adapter fits.

    Raises: ConfigError on a share that is none, k < 1; when it is followed, what `set_active` does.
    Source: ours.  Not with mixed images, where accuracy is not known.
    """

    active: int = setting(
        1,
        "The number k of active experts once the training samples are fitted.",
        least=1,
        fix="k = 1 is the paper.",
    )
    share: float = setting(
        0.9,
        "The share of training samples that are right, as a mean over the epoch's batches.",
        above=0,
        most=1,
        fix="Try 0.9.",
    )

    def __post_init__(self) -> None:
        check(self)

    def follow(self, model: nn.Module, accuracies: Sequence[float]) -> None:
        """Activate all experts until the model fits the training data, then `active` of them.

        model: the model with the routers to set; accuracies: the training accuracy of each past
          epoch, 0 ... 1. It fits from the first epoch on with an accuracy of at least `share`.
        """
        set_active(model, self.active)  # at the first step already, so that a wrong k is refused
        # no epoch has fitted yet: every expert is active
        if not any(accuracy >= self.share for accuracy in accuracies):
            for router in random_routers(model).values():
                router.active = router.experts


CARD = Card(
    "fitted",
    kind="schedule",
    config=OnceFitted,
    paper=Paper(
        "2312.02923",
        2023,
        "Split & Merge: Unlocking the Potential of Visual Adapters via Sparse Training",
    ),
    summary="All experts until the adapter fits its training samples, few from then on.",
    family="schedules",
)
