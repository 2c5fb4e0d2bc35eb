"""S2FT against LoRA at SmolLM2's real weights: forgetting of texts nobody trains on."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from intarsia.adapters import Lora
from intarsia.core.change import Change
from intarsia.data import corpora
from intarsia.fitting import evaluate, fit
from intarsia.folders.verbs import apply
from intarsia.hosts.attach.adapt import Adapt
from intarsia.methods import S2ft
from intarsia.runs.pool import Arm
from intarsia.train import Training

from ..kit import ArmRate, Rates, Report, Result, Study, above
from ..kit.arms import each, result_of, threads
from ..kit.stored import StoredResults
from ..materials import last_blocks
from ..materials.last_blocks import LanguageRows, Row, StateTokens
from ..materials.short_texts import QuestionAnswer, kinds, quiet
from ..materials.task_tracks import GRID, LORA, OURS, TUNED, Track, matched

stored = StoredResults(__file__)

POOL, TRAIN, VAL, TEST = 800, 480, 100, 200  # glosses; TRAIN of the pool for each seed
# texts that have nothing to do with glosses, and that nobody trains on
HELD = {"novels": "austen", "help pages": "python-docs"}
ROWS, WORDS = 40, 30  # of each text that nobody trains on; words of a row
EPOCHS, BATCH, EVERY = 3, 16, 15  # 90 steps
CHANNELS, RANK = 44, 12  # 25,344 weights for each block, of down_proj
METHODS: Mapping[str, Change] = {
    OURS: Adapt(S2ft(down=CHANNELS / 1536), targets=("down_proj",), head=None),
    LORA: Adapt(Lora(RANK), targets=("down_proj",), head=None),
}
RATES = Rates(GRID, dict.fromkeys(METHODS, EPOCHS * TRAIN // BATCH))


@dataclass(frozen=True)
class Glosses:
    """Rows of states of the new task, which of 24 kinds of thing a gloss means, and of the texts
    that nobody trains on.  made: what has the blocks that read them.
    """

    made: LanguageRows
    pool: list[Row]
    val: list[Row]
    test: list[Row]
    held: dict[str, list[Row]]


def texts() -> dict[str, list[QuestionAnswer]]:
    """Return rows of 30 words from the middle of the texts that nobody trains on, by text."""
    rows_by_corpus = dict[str, list[QuestionAnswer]]()
    for name, corpus in HELD.items():
        words = corpora.read(corpus, quiet)[100_000:].split()[: ROWS * WORDS]
        rows = [words[i : i + WORDS] for i in range(0, len(words), WORDS)]
        rows_by_corpus[name] = [QuestionAnswer("", " ".join(row)) for row in rows]
    return rows_by_corpus


@lru_cache(maxsize=1)
def glosses() -> Glosses:
    """Return the rows of all data as states of SmolLM2's frozen blocks; computed once."""
    language_rows = LanguageRows({"glosses": kinds()[: POOL + VAL + TEST], **texts()})
    rows = language_rows.rows["glosses"]
    parts = rows[:POOL], rows[POOL : POOL + VAL], rows[POOL + VAL :]
    return Glosses(language_rows, *parts, {name: language_rows.rows[name] for name in HELD})


def fitted(arm: str, rate: float, seed: int, **options: Any) -> nn.Module:
    """Train SmolLM2's last blocks to name what kind of thing a gloss means; return them.

    arm: key of METHODS; rate: learning rate, the same in all steps; seed: of the glosses drawn and
    the training; options: of `fit`.
    """
    data = glosses()
    drawn = torch.randperm(len(data.pool), generator=torch.Generator().manual_seed(seed))
    # other glosses with each seed, of one pool
    rows: Any = [data.pool[i] for i in drawn[:TRAIN].tolist()]
    model = apply(data.made.model(), METHODS[arm], seed=seed)
    training = Training(EPOCHS, BATCH, rate, 0.0, precision="bf16", seed=seed)
    loop_options: dict[str, Any] = {"lr_factor": lambda *_: 1.0, "trackers": (), **options}
    fit(model, rows, task=StateTokens(), training=training, **loop_options)
    return model


def scores(model: nn.Module, rows: Any) -> Any:
    """Return loss and accuracy of a model on the answers' tokens of rows."""
    return evaluate(model, rows, task=StateTokens(), batch_size=30)


def inputs(arm: str, seed: int, rate: float) -> dict[str, Any]:
    """Return what a run's stored result depends on.  arm: key of METHODS; rate: learning rate."""
    sizes = [last_blocks.LAST, POOL, TRAIN, VAL, TEST, ROWS, WORDS, EPOCHS, BATCH, EVERY]
    cell_inputs = {"arm": arm, "method": repr(METHODS[arm]), "seed": seed, "rate": rate}
    return cell_inputs | {"sizes": sizes, "held": HELD}


def tried(arm: str, rate: float) -> float:
    """Return a method's accuracy on validation glosses at a learning rate, 0 to 1.

    arm: key of METHODS; rate: learning rate. Stored and read if it was computed before.
    """

    def run() -> float:
        with threads(1):
            return float(scores(fitted(arm, rate, TUNED), glosses().val).accuracy)

    return stored("s2ft-text", inputs(arm, TUNED, rate), run)


@lru_cache
def rates() -> tuple[ArmRate, ...]:
    """Return the rate at which each arm is best on validation glosses."""
    return RATES.choose(tried)


def train(arm: str, seed: int) -> dict[str, Track]:
    """Train a method on glosses; return the course of the new accuracy with each old text's loss.

    The scores are taken every 15 steps. A track has the accuracy on test glosses and minus the loss
    on the old text, so that more is better in both. arm: key of METHODS. Stored and read if it was
    computed before.
    """
    lr = {rate.arm: rate.rate for rate in rates()}[arm]

    def run() -> dict[str, list[float]]:
        """Train on glosses; return the accuracy and minus the loss of each old text, by step."""
        data, curves = glosses(), {name: list[float]() for name in ("target", *HELD)}

        def look(model: nn.Module, step: int, steps: int) -> None:
            """Record scores on the new and on the old texts, at every EVERY-th of `steps` steps."""
            if step % EVERY == 0 or step == steps:
                curves["target"].append(float(scores(model, data.test).accuracy))
                # minus the loss, so that more is better, as for the target
                for name, rows in data.held.items():
                    curves[name].append(-float(scores(model, rows).loss))
                model.train()

        model = fitted(arm, lr, seed, schedule=look)
        steps = EPOCHS * -(-min(TRAIN, len(data.pool)) // BATCH)
        look(model, steps, steps)
        return curves

    with threads(1):
        stored_curves = stored("s2ft-text", inputs(arm, seed, lr), run)
    return {name: Track(stored_curves["target"], stored_curves[name]) for name in HELD}


def forgetting(seeds: Sequence[int], report: Report) -> Result:
    """Return how much less S2FT forgets of other texts than LoRA, in nats per token, by seed.

    It is LoRA's loss on texts that nobody trains on, minus S2FT's, each read where it first reaches
    the highest accuracy on the glosses that both reach; the mean over two texts.
    """
    arms = [Arm(name, name) for name in METHODS]
    sheet = each(arms, seeds, lambda arm, _, seed: train(arm, seed), report, describe=_in_words)
    pairs = list(zip(sheet.by_seed(OURS, ""), sheet.by_seed(LORA, ""), strict=True))
    matches = {name: [matched(ours[name], lora[name]) for ours, lora in pairs] for name in HELD}
    # a track has minus the loss, so that more is better, as of an accuracy
    values = [
        statistics.mean(matches[name][i][1] - matches[name][i][2] for name in HELD)
        for i in range(len(seeds))
    ]
    rows: list[dict[str, Any]] = []
    for name in HELD:
        level, ours, lora = (statistics.mean(column) for column in zip(*matches[name], strict=True))
        before = -statistics.mean(lora[name].source[0] for _, lora in pairs)
        columns = ("matched accuracy", "loss before", "loss, S2FT", "loss, LoRA")
        figures = (level, before, -ours, -lora)
        rows.append({"text": name} | {c: f"{f:.3f}" for c, f in zip(columns, figures, strict=True)})
    note = (
        f"SmolLM2-135M, down_proj of its last {last_blocks.LAST} blocks, as many parameters for "
        f"both; {TRAIN} glosses of WordNet, which of 24 kinds of thing is it, {EPOCHS} epochs at a "
        "constant rate. Both are read where they first reach the highest accuracy that both reach. "
        "Losses are in nats of a token, among the tokens that occur here."
    )
    return result_of(values, rows, note, rates=rates())


def _in_words(tracks_by_text: Mapping[str, Track]) -> str:
    """Return the final loss of each old text, and the accuracy on glosses, in words."""
    return ", ".join(
        f"{n} {-t.source[-1]:.3f} at {t.target[-1]:.3f}" for n, t in tracks_by_text.items()
    )


CLAIMS = (
    Study(
        "s2ft-text",
        sentence="S2FT forgets less than LoRA, each at its own best rate: at the same accuracy on "
        "glosses, SmolLM2 loses less on texts that nobody trains on (arXiv:2412.06289, abstract).",
        baseline="LoRA of the same size, where both first reach the same accuracy on the glosses; "
        "its loss less S2FT's, in nats of a token",
        target=0.0,
        sense=">=",
        control=above(
            "The question is learned: above chance, 4 %, by 10 points.", "matched accuracy", 0.14
        ),
        measure=forgetting,
        rates=RATES,
        needs="long",
        minutes=12,
    ),
)
