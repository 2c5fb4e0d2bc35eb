"""Laws of trainings in phases; each is seen to fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from intarsia.conformance import check
from intarsia.conformance.cards import CARD_LAWS
from intarsia.core import Card, Paper, Partition
from intarsia.core.errors import ConformanceError
from intarsia.core.schema import setting
from intarsia.schedules import FixedMask, masked_weights, prune
from intarsia.schedules.phases import Phase


@dataclass(frozen=True)
class Once:
    """Prune, train, train again; or something else by its `fault`.  density: at the end."""

    density: float = setting(0.4, "The share that is kept.")
    fault: str = setting("", "The fault that is planted.")

    def phases(self, model: nn.Module, *, seed: int = 0) -> Generator[Phase, None, Partition]:
        if self.fault == "chance":
            for weight in masked_weights(model).values():
                weight.data.add_(torch.rand(weight.shape))
        density = self.density / 2 if self.fault == "half" else self.density
        pruned = prune(model, density * 0.9 if self.fault == "always" else density)
        schedule = None if self.fault == "fills" or density == 1 else FixedMask()
        schedule = None if self.fault == "always" and self.density == 1 else schedule
        for number in range(2):
            yield Phase(str(number), last=number == 1, schedule=schedule)
        if self.fault == "always" and self.density == 1:
            prune(model, 0.9)
        return pruned


PAPER = Paper("1506.02626", 2015, "A paper")
GOOD = Card("toy", kind="training", config=Once, paper=PAPER, summary="A toy.", family="toys")
FAULTS = [
    ("ends_as_dense_as_it_says", "half"),
    ("never_fills_a_zero", "fills"),
    ("is_one_training_for_one_seed", "chance"),
    ("prunes_nothing_at_density_1", "always"),
]


def test_a_training_from_outside_passes() -> None:
    for law in check(GOOD):
        law()


@pytest.mark.parametrize(("law", "fault"), FAULTS)
def test_a_planted_fault_is_found(law: str, fault: str) -> None:
    card = dataclasses.replace(GOOD, tiny={"fault": fault})
    (law_check,) = [c for c in check(card) if c.name == law]
    with pytest.raises(ConformanceError):
        law_check()


def test_every_law_is_seen_to_fail() -> None:
    of_any = {"names_its_exceptions", *(law.__name__ for law in CARD_LAWS)}
    assert {c.name for c in check(GOOD)} - of_any == {law for law, _ in FAULTS}
