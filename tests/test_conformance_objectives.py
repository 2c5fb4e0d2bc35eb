"""Laws of objectives; each is seen to fail."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from intarsia.conformance import check
from intarsia.conformance.cards import CARD_LAWS
from intarsia.core import Card, Paper
from intarsia.core.errors import ConformanceError
from intarsia.core.modes import evaluating
from intarsia.core.schema import setting
from intarsia.train import Outcome, plain
from intarsia.train.order import Inputs
from intarsia.train.outcome import LossOf
from intarsia.train.squarehead import block_outputs


@dataclass(frozen=True)
class Follow:
    """The squared distance of blocks from a teacher's, or something else by its `fault`."""

    teacher: nn.Module | None = setting(None, "The model that is followed.")
    fault: str = setting("", "The fault that is planted.")

    def __call__(self, model: nn.Module, x: Inputs, loss_of: LossOf) -> Outcome:
        assert self.teacher is not None and not isinstance(x, torch.Tensor)
        keep = x["attention_mask"].bool()
        loss = plain(model, x, loss_of)
        if self.fault == "alone":
            return loss
        if self.fault == "fills":
            for layer in (m for m in model.modules() if isinstance(m, nn.Linear)):
                layer.weight = nn.Parameter(layer.weight.detach() + 1e-3)
        with torch.set_grad_enabled(self.fault == "gradient"), block_outputs(self.teacher) as want:
            if self.fault == "mode":
                self.teacher(**x)
            else:
                with evaluating(self.teacher):
                    self.teacher(**x)
        with block_outputs(model) as outputs:
            model(**x)
        far = loss_of(loss.logits) * 0
        for i, (s, t) in enumerate(zip(outputs, want, strict=True)):
            apart = (s - t).square().mean(-1)
            apart = apart if self.fault == "padding" else apart[keep]
            far = far + apart.mean() * (i + 1 if self.fault == "order" else 1)
        far = far + 1 if self.fault == "more" else far
        return Outcome(loss.loss + far, loss.logits)


PAPER = Paper("2310.06927", 2023, "A paper")
GOOD = Card("toy", kind="objective", config=Follow, paper=PAPER, summary="A toy.", family="toys")
FAULTS = [
    ("asks_nothing_of_its_teacher_s_copy", "more"),
    ("follows_another_teacher", "alone"),
    ("ignores_padding", "padding"),
    ("counts_blocks_in_any_order", "order"),
    ("leaves_its_teacher_alone", "mode"),
    ("leaves_its_teacher_alone", "gradient"),
    ("keeps_zeros", "fills"),
]


def test_an_objective_from_outside_passes() -> None:
    for law in check(GOOD):
        law()


@pytest.mark.parametrize(("law", "fault"), FAULTS)
def test_a_planted_fault_is_found(law: str, fault: str) -> None:
    (law_check,) = [
        c for c in check(dataclasses.replace(GOOD, tiny={"fault": fault})) if c.name == law
    ]
    with pytest.raises(ConformanceError):
        law_check()


def test_every_law_is_seen_to_fail() -> None:
    of_any = {"names_its_exceptions", *(law.__name__ for law in CARD_LAWS)}
    assert {c.name for c in check(GOOD)} - of_any == {law for law, _ in FAULTS}
