"""S2FT against LoRA at SmolLM2's real weights: what is forgotten of texts nobody trains on."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..adapters import Lora
from ..core import Claim, Result
from ..core.change import Change
from ..core.claim import Report
from ..data import corpora
from ..data.packages import building, cache_dir
from ..experiments.pool import Arm
from ..fitting import evaluate, fit
from ..hosts import apply
from ..hosts.attach.adapt import Adapt
from ..methods import S2ft
from ..results.store import key_of
from ..train import Training
from ..train.order import IGNORED
from ..train.tasks.tokens import Tokens
from . import small_trunk
from .kept import kept
from .s2ft import LORA, OURS, RATES, TUNED, Track
from .study import each, result_of, threads

LAYERS, LENGTH = 3, 48  # the last blocks are adapted; tokens of a row
POOL, TRAIN, VAL, TEST = 600, 400, 100, 150  # glosses; TRAIN of the pool for each seed
HELD = {"novels": "austen", "help pages": "python-docs"}
ROWS = 30  # of each text that nobody trains on
EPOCHS, BATCH, EVERY = 3, 16, 15  # 75 steps
CHANNELS, RANK = 44, 12  # 25,344 weights for each block, of down_proj
VERSION = 1
METHODS: Mapping[str, Change] = {
    OURS: Adapt(S2ft(down=CHANNELS / 1536), targets=("down_proj",), head=None),
    LORA: Adapt(Lora(RANK), targets=("down_proj",), head=None),
}
Rows = list[dict[str, Tensor]]  # inputs_embeds (T, 576), labels (T,)


@dataclass(frozen=True)
class Glosses:
    """Rows that the adapted blocks read, of the new task and of texts nobody trains on."""

    pool: Rows
    val: Rows
    test: Rows
    held: dict[str, Rows]
    said: tuple[str, ...]  # all texts, whose words the model can say


def asked() -> list[tuple[str, str]]:
    """Glosses of WordNet as questions and what kind of thing each is, in one fixed order."""
    quiet: Report = lambda _: None  # noqa: E731
    rows = corpora.read("wordnet", quiet)
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return [(f"{rows[i]['prompt']}\n", rows[i]["response"]) for i in drawn[:2000].tolist()]


def texts() -> dict[str, str]:
    """The beginnings of the texts that nobody trains on."""
    quiet: Report = lambda _: None  # noqa: E731
    return {name: corpora.read(corpus, quiet)[:20_000] for name, corpus in HELD.items()}


@lru_cache(maxsize=1)
def glosses() -> Glosses:
    """Made once and kept: what the frozen blocks say of every row."""
    pairs, others = asked(), texts()
    said = (*(text for pair in pairs for text in pair), *others.values())
    _, words = small_trunk.last_blocks(said, LAYERS)
    ids, labels = list[Tensor](), list[Tensor]()
    for question, answer in pairs:
        q, a = (words(text)["input_ids"] for text in (question, answer))
        if len(q) + len(a) <= LENGTH and len(ids) < POOL + VAL + TEST:
            rest = LENGTH - len(q) - len(a)
            ids.append(torch.tensor([*q, *a, *(words.eos_token_id for _ in range(rest))]))
            labels.append(torch.tensor([*(IGNORED for _ in q), *a, *(IGNORED,) * rest]))
    for text in others.values():
        found = torch.tensor(words(text)["input_ids"])[: ROWS * LENGTH].view(-1, LENGTH)
        ids += list(found)
        labels += list(found)
    states = _states(torch.tensor(words.kept)[torch.stack(ids)])
    rows = [{"inputs_embeds": x, "labels": y} for x, y in zip(states, labels, strict=True)]
    at = [0, POOL, POOL + VAL, POOL + VAL + TEST]
    pool, val, test = (rows[a:b] for a, b in zip(at, at[1:], strict=False))
    behind = rows[at[-1] :]
    each_text = len(behind) // len(others)
    held = {n: behind[i * each_text : (i + 1) * each_text] for i, n in enumerate(others)}
    return Glosses(pool, val, test, held, said)


def _states(ids: Tensor) -> Tensor:
    key = key_of({"ids": ids.tolist(), "layers": LAYERS})
    file = cache_dir() / "claims" / f"s2ft-text-{key}.safetensors"
    with building(file) as scratch:
        if scratch is not None:
            save_file({"states": small_trunk.below(ids, LAYERS)}, str(scratch))
    return load_file(str(file))["states"]


def fitted(arm: str, rate: float, seed: int, **options: Any) -> nn.Module:
    """The last blocks with one arm's cells, trained on glosses at a constant rate."""
    found = glosses()
    model, _ = small_trunk.last_blocks(found.said, LAYERS)
    drawn = torch.randperm(len(found.pool), generator=torch.Generator().manual_seed(seed))
    rows: Any = [found.pool[i] for i in drawn[:TRAIN].tolist()]
    model = apply(model, METHODS[arm], seed=seed)
    training = Training(EPOCHS, BATCH, rate, 0.0, precision="bf16", seed=seed)
    given: dict[str, Any] = {"lr_factor": lambda *_: 1.0, "trackers": (), **options}
    fit(model, rows, task=Tokens(), training=training, **given)
    return model


def scores(model: nn.Module, rows: Any) -> Any:
    """Loss and accuracy of the tokens that have a label."""
    return evaluate(model, rows, task=Tokens(), batch_size=30)


def inputs(arm: str, seed: int, rate: float) -> dict[str, Any]:
    """What a cell depends on."""
    sizes = [LAYERS, LENGTH, POOL, TRAIN, VAL, TEST, ROWS, EPOCHS, BATCH, EVERY]
    own = {"arm": arm, "method": repr(METHODS[arm]), "seed": seed, "rate": rate}
    return own | {"sizes": sizes, "held": HELD, "version": VERSION}


def tried(arm: str, rate: float) -> float:
    """Accuracy on validation glosses."""

    def run() -> float:
        with threads(1):
            return float(scores(fitted(arm, rate, TUNED), glosses().val).accuracy)

    return kept("s2ft-text", inputs(arm, TUNED, rate), run, "validation")


@lru_cache
def rate(arm: str) -> float:
    """The rate at which an arm is best on validation glosses."""
    return max(RATES, key=lambda lr: tried(arm, lr))


def train(arm: str, seed: int) -> dict[str, Track]:
    """Accuracy on the glosses, and minus the loss of each text, every few steps."""
    lr = rate(arm)

    def run() -> dict[str, list[float]]:
        found, seen = glosses(), {name: list[float]() for name in ("target", *HELD)}

        def look(model: nn.Module, step: int, steps: int) -> None:
            if step % EVERY == 0 or step == steps:
                seen["target"].append(float(scores(model, found.test).accuracy))
                for name, rows in found.held.items():
                    seen[name].append(-float(scores(model, rows).loss))
                model.train()

        model = fitted(arm, lr, seed, schedule=look)
        steps = EPOCHS * -(-min(TRAIN, len(found.pool)) // BATCH)
        look(model, steps, steps)
        return seen

    with threads(1):
        made = kept("s2ft-text", inputs(arm, seed, lr), run)
    return {name: Track(made["target"], made[name]) for name in HELD}


def forgetting(seeds: Sequence[int], report: Report) -> Result:
    """Share of texts of which S2FT forgets no more than LoRA, one value per seed."""
    arms = [Arm(name, name) for name in METHODS]
    found = each(
        arms, seeds, lambda arm, _, seed: train(arm, seed), report, said=lambda made: _said(made)
    )
    of = {arm.name: found.by_seed(arm.name, "") for arm in arms}
    rows: list[dict[str, Any]] = []
    wins: list[list[bool]] = [[] for _ in seeds]
    for name in HELD:
        at: list[tuple[float, float, float, float]] = []
        for i, (ours, lora) in enumerate(zip(of[OURS], of[LORA], strict=True)):
            level = min(max(made[name].target) for made in (ours, lora))
            kept_by = [made[name].kept(level) for made in (ours, lora)]
            wins[i].append(kept_by[0] >= kept_by[1])
            at.append((level, -lora[name].source[0], -kept_by[0], -kept_by[1]))
        columns = ("matched accuracy", "loss before", "loss, S2FT", "loss, LoRA")
        means = [f"{statistics.mean(column):.3f}" for column in zip(*at, strict=True)]
        rows.append({"text": name} | dict(zip(columns, means, strict=True)))
    rates = ", ".join(f"{arm} {rate(arm):g}" for arm in METHODS)
    note = (
        f"One value per seed: the share of {len(HELD)} texts. SmolLM2-135M, down_proj of its last "
        f"{LAYERS} blocks, as many parameters for both; {TRAIN} glosses of WordNet, which of 26 "
        f"kinds of thing is it, {EPOCHS} epochs at a constant rate, the best of {RATES} on "
        f"validation glosses: {rates}. Both are read where they first reach the highest accuracy "
        "that both reach. Losses are in nats of a token, among the words that occur here."
    )
    return result_of([statistics.mean(of_seed) for of_seed in wins], rows, note)


def _said(made: Mapping[str, Track]) -> str:
    return ", ".join(f"{n} {-t.source[-1]:.3f} at {t.target[-1]:.3f}" for n, t in made.items())


claim = partial(Claim, sense=">=", minutes=18, needs="long")

CLAIMS = (
    claim(
        "s2ft-text",
        sentence="S2FT forgets less than LoRA, each at its own best rate: at the same accuracy on "
        "glosses, SmolLM2 loses no more on texts that nobody trains on, in two thirds of the cases "
        "(arXiv:2412.06289, abstract).",
        baseline="LoRA of the same size, where both first reach the same accuracy on the glosses",
        bar=2 / 3,
        run=forgetting,
    ),
)
