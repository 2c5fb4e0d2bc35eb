"""LT-SFT on SmolLM2: the places that drift most, and a task and a domain added (2110.07560).

Tasks: the kind of noun that a gloss of WordNet defines, the group of an emoji by its name. Domain:
the English of GCIDE, a dictionary of 1913, as plain text. Nobody trains on the task in that domain.
"""

from __future__ import annotations

import statistics
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import nn

from intarsia.adapters import Bottleneck, Lora
from intarsia.core import Method
from intarsia.fitting import evaluate, fit, fit_in_phases
from intarsia.folders.verbs import adapt
from intarsia.hosts.delta.sparse_delta import SparseDelta
from intarsia.methods import LtSft

from ..kit import (
    ArmRate,
    Control,
    Rates,
    Report,
    Result,
    Study,
    UnknownEffect,
    above,
    numbers,
    worst_of,
)
from ..kit.arms import result_of, shown, threads
from ..kit.stored import StoredResults
from ..materials import short_texts
from ..materials.last_blocks import LanguageRows, Row, StateTokens

stored = StoredResults(__file__)

TRAIN, TEST = 400, 384  # rows
# of a phase: 200 steps; after 50 every sparse arm had one or two of a hundred answers right
EPOCHS, BATCH = 8, 16
TUNED = 99  # the seed of the runs that choose rates
# the paper's sizes for tasks and languages lie at 4 to 8 % of a model; fewer make places matter
DENSITY = 0.02
CHOSEN = ("model.layers.*",)  # of two blocks with 7,077,888 weights: 141,558 places
TASKS = ("kinds", "emoji")
DOMAIN, IN_DOMAIN = "old texts", "old kinds"
LINEAR = ("qkv", "projection", "mlp_linear")


@dataclass(frozen=True)
class TuningWay:
    """A way to train the last blocks: its method, and epochs as a multiple of a phase's."""

    method: Method | None
    times: int = 1


def places(support: str) -> LtSft:
    """Return LT-SFT at a density of 2 %: training of a sparse set of weights of the last blocks.

    support: how the trained weights are chosen: "drift", those that move most in a full training
    that is then undone, or "random".
    """
    return LtSft(DENSITY, support=support, maskable=CHOSEN, head="frozen")


OURS, RANDOM, TWICE = "drift, 2 %", "random, 2 %", "random, 2 %, twice the steps"
LORA, ADAPTER = "LoRA, r = 7, twice the steps", "adapters, b = 31, twice the steps"
FULL = "full fine-tuning"
ARMS: dict[str, TuningWay] = {
    FULL: TuningWay(None),
    OURS: TuningWay(places("drift")),
    RANDOM: TuningWay(places("random")),
    # the harder rival: drift spends a whole phase on choosing, which this one trains in
    TWICE: TuningWay(places("random"), 2),
    # adapters next to the weights have the steps of both phases, and as many parameters
    LORA: TuningWay(Lora(7, roles=LINEAR), 2),
    ADAPTER: TuningWay(Bottleneck(31, placement="houlsby"), 2),
}
SUMS = {OURS: places("drift"), RANDOM: places("random")}
# a phase of an LtSft is followed by another one, so that it has twice the steps in all
PHASE = EPOCHS * -(-TRAIN // BATCH)
SUM, TASK_ALONE, DOMAIN_ALONE, AT_HOME = "sum", "task alone", "domain alone", "task at home"


def grid(names: Sequence[str]) -> Rates:
    """Return the learning rates that each of some arms chooses from.  names: of ARMS."""
    steps = {name: PHASE * ARMS[name].times * (1 + (name == OURS)) for name in names}
    return Rates((1e-3, 3e-3, 1e-2), steps)


@lru_cache(maxsize=1)
def bench() -> LanguageRows:
    """Return the rows of all texts, by set: TEST are tested, as many validate, the rest trains.

    "kinds" and "emoji" are tasks; the other two are the same task in English of 1913, and text of
    that domain.
    """
    count = TRAIN + 2 * TEST
    sets = {
        "kinds": short_texts.kinds()[:count],
        "emoji": short_texts.emoji()[:count],
        IN_DOMAIN: short_texts.old_kinds()[: 2 * TEST],
        DOMAIN: short_texts.old_texts()[2 * TEST : 2 * TEST + TRAIN],
    }
    return LanguageRows(sets)


def rows(name: str, part: str) -> list[Row]:
    """Return the rows of a set of texts.

    name: of the set, a key of `bench`'s; part: "train", "test", or "val", which chooses rates and
    judges no claim.
    """
    all_rows = bench().rows[name]
    if name == DOMAIN:
        return all_rows
    return {
        "test": all_rows[:TEST],
        "val": all_rows[TEST : 2 * TEST],
        "train": all_rows[2 * TEST :],
    }[part]


def options(seed: int, rate: float, times: int = 1) -> dict[str, Any]:
    """Return the options of `fit`.

    seed: of the training; rate: learning rate; times: factor on the number of epochs.
    """
    return {
        "epochs": EPOCHS * times,
        "batch_size": BATCH,
        "lr": rate,
        "weight_decay": 0.0,
        "seed": seed,
        "task": StateTokens(),
        "trackers": (),
    }


def delta(method: LtSft, name: str, seed: int, lr: float, times: int = 1) -> SparseDelta:
    """Train a sparse set of weights on a set of texts; return their change.

    method: LT-SFT with its way to choose weights; name: of the set; lr: learning rate; times:
    factor on the epochs. Random places differ from set to set.
    """
    training_rows: Any = rows(name, "train")
    # a seed of its own for each set, or random places of two sets would be the same
    drawn = zlib.crc32(f"{name}, {seed}".encode())
    return fit_in_phases(bench().model(), method, training_rows, **options(drawn, lr, times)).found


def right(model: nn.Module, name: str, part: str = "test") -> float:
    """Return the share of answers that a model has right in all tokens, 0 to 1.

    name: of the set of questions; part: "test" or "val".
    """
    scored_rows: Any = rows(name, part)
    return float(
        evaluate(model, scored_rows, task=StateTokens(), batch_size=32).scores()["exact_match"]
    )


def trained(way: TuningWay, name: str, seed: int, lr: float) -> nn.Module:
    """Train SmolLM2's last two blocks on a set of texts in one way; return them.

    way: full training, LT-SFT, LoRA or bottleneck adapters, and a factor on the epochs; name: of
    the set; lr: learning rate.
    """
    model, training_rows = bench().model(), rows(name, "train")
    data: Any = training_rows
    if isinstance(way.method, LtSft):
        # LT-SFT: the change is trained on another copy and added here
        delta(way.method, name, seed, lr, way.times).apply(model)
        return model
    if way.method is None:
        # full training: the last blocks, without the embedding that the head shares
        for parameter_name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter_name.startswith("model.layers."))
        fit(model, data, **options(seed, lr, way.times))
        return model
    model = adapt(model, way.method, head=None, seed=seed)
    fit(model, data, **options(seed, lr, way.times))
    return model


def inputs_of(**extra: Any) -> dict[str, Any]:
    """Return what every stored result depends on: sizes of data and training, and `extra`."""
    return {"rows": [TRAIN, TEST], "training": [EPOCHS, BATCH]} | extra


def validated(arm: str, lr: float) -> float:
    """Return the share of right answers of an arm on validation rows of the first task.

    arm: key of ARMS; lr: the learning rate that is tried.
    """
    return right(trained(ARMS[arm], TASKS[0], TUNED, lr), TASKS[0], "val")


def rates(names: Sequence[str], report: Report) -> tuple[ArmRate, ...]:
    """Return the learning rate that each arm chooses on validation rows, chosen once and stored.

    names: of ARMS; all of them try the same rates.
    """
    return stored.choose("lt_sft", grid(names), inputs_of(), validated, report)


def cell(arm: str, lr: float, task: str, seed: int, report: Report) -> float:
    """Train an arm on a task; return the share of wrong test answers, stored or computed now.

    arm: key of ARMS; lr: learning rate; task: one of TASKS.
    """

    def run() -> float:
        """Train the arm on the task with one thread; return the share of wrong test answers."""
        with threads(1):
            wrong = 1 - right(trained(ARMS[arm], task, seed, lr), task)
        report(f"  seed {seed}, {task}, {arm}: {wrong:.3f} wrong")
        return wrong

    return stored("lt_sft", inputs_of(arm=arm, task=task, seed=seed, rate=lr), run)


def sums(arm: str, lr: float, seed: int, report: Report) -> Mapping[str, float]:
    """Train a task's delta and a domain's delta; return right answers with each and their sum.

    A delta is the sparse change of weights that a training leaves. The task is to name the kind of
    noun of a definition; the domain is the English of a dictionary of 1913, which the task's
    training never saw. Shares are 0 to 1, of the task in that domain, and "task at home" outside of
    it; "shared places" is the share of weights that both deltas change. arm: key of SUMS, how
    weights are chosen; lr: learning rate. Run once and stored.
    """

    def run() -> Mapping[str, float]:
        """Train a task's and a domain's sparse delta; return right answers with each and both."""
        with threads(1):
            task, domain = (delta(SUMS[arm], name, seed, lr) for name in (TASKS[0], DOMAIN))
            figures = {
                # the paper's composition: deltas are added, nothing is trained on the task in the
                # domain
                SUM: with_delta(task + domain, IN_DOMAIN),
                TASK_ALONE: with_delta(task, IN_DOMAIN),
                DOMAIN_ALONE: with_delta(domain, IN_DOMAIN),
                AT_HOME: with_delta(task, TASKS[0]),
            }
        figures["shared places"] = shared(task, domain)
        report(f"  seed {seed}, {arm}: {figures}")
        return figures

    return stored("lt_sft", inputs_of(sum=arm, seed=seed, rate=lr), run)


def with_delta(change: SparseDelta, name: str) -> float:
    """Return the share of right test answers of SmolLM2 with a change of weights.

    change: the sparse delta; name: of the set of questions.
    """
    model = bench().model()
    change.apply(model)
    return right(model, name)


def of_places(seeds: Sequence[int], report: Report, *, over: Sequence[str]) -> Result:
    """Return the error of LT-SFT over the least error of other arms, at the worse of two tasks.

    SmolLM2's last blocks learn to answer short questions; LT-SFT trains the 2 % of weights that
    move most in a full training. over: keys of ARMS, the rivals; full training stands next to them.
    The values are one ratio for each seed, of the task with the larger mean. Errors are shares of
    wrong answers.
    """
    arm_rates = rates((FULL, OURS, *over), report)
    errors = {
        (rate.arm, task): [cell(rate.arm, rate.rate, task, seed, report) for seed in seeds]
        for task in TASKS
        for rate in arm_rates
    }
    ratios = {
        task: [
            # the better of the rivals, seed by seed
            ours / min(rivals)
            for ours, *rivals in zip(*(errors[a, task] for a in (OURS, *over)), strict=True)
        ]
        for task in TASKS
    }
    table = [
        {"arm": arm} | {f"error, {task}": shown(errors[arm, task], ".3f") for task in TASKS}
        for arm in (FULL, OURS, *over)
    ]
    note = f"Ratios of errors, {len(seeds)} seeds. {WORK}"
    return worst_of(ratios, "<=", table, note, arm_rates)


def compose(seeds: Sequence[int], report: Report, *, over: tuple[str, str]) -> Result:
    """Return the points by which the sum of two sparse deltas beats a rival, by seed.

    One delta is a task's, the other a domain's, see `sums`; each changes the 2 % of weights that
    moved most. over: the rival, as key of SUMS and key of its results: the sum at random places, or
    one delta alone. In percentage points of right answers; the figure is the median.
    """
    arm_rates = rates(tuple(SUMS), report)
    by_arm = {
        rate.arm: [sums(rate.arm, rate.rate, seed, report) for seed in seeds] for rate in arm_rates
    }
    arm, part = over
    # 100: shares become percentage points
    gains = [
        100 * (ours[SUM] - theirs[part])
        for ours, theirs in zip(by_arm[OURS], by_arm[arm], strict=True)
    ]
    table = [
        {"places": name}
        | {
            title: shown([figures_of_seed[title] for figures_of_seed in figures], ".3f")
            for title in figures[0]
        }
        for name, figures in by_arm.items()
    ]
    # 'shared places' tells how often both deltas change the same weight, and so may disturb each
    # other
    note = (
        f"Right answers to the kind of noun in definitions of GCIDE, which no delta saw with its "
        f"answer, median of {len(seeds)} seeds. The domain's delta is next-token training on "
        f"{TRAIN} other definitions. 'shared places': of the sparser delta's entries, those that "
        f"the other has too. {WORK}"
    )
    return result_of(gains, table, note, statistics.median, rates=arm_rates)


def shared(a: SparseDelta, b: SparseDelta) -> float:
    """Return the share of the smaller delta's weights that the other changes too, 0 to 1.

    a, b: sparse changes of the same model, with the places that each changes.
    """
    # entries that both change, which is where sums interfere
    both = 0
    for name in a.entries.keys() & b.entries.keys():
        both += int(torch.isin(a.entries[name][0], b.entries[name][0]).sum())
    return both / max(1, min(len(a), len(b)))


WORK = (
    f"SmolLM2's last two blocks on states of the other 28; {TRAIN} rows of at most 12 words, "
    f"{EPOCHS * -(-TRAIN // BATCH)} steps of {BATCH} a phase, {TEST} rows tested; an answer is "
    "right if all of its tokens are. LoRA and adapters have at least as many trained parameters "
    "as places."
)
PAPER = "(arXiv:2110.07560)"


def learned(*arms: str) -> Control:
    """Return the control that arms have learned a task, by full training's share of right answers.

    arms: in the table. An arm with two right answers of 192 has learned nothing, and no ratio of
    errors says so.
    """
    return Control(
        "The arms on trial reach 30 % of what full training gains, in error.",
        lambda rows: all(
            1 - numbers(rows, "error, kinds", {"arm": arm})[0]
            > 0.3 * (1 - numbers(rows, "error, kinds", {"arm": FULL})[0])
            for arm in arms
        ),
    )


ANSWERED = above("The task's delta answers a tenth of its own task.", "task at home", 0.1)
study = partial(
    Study,
    needs="long",
    minutes=80,
    work="SmolLM2; glosses of WordNet, emoji, definitions of GCIDE",
)

CLAIMS = (
    study(
        "lt-sft",
        system="LT-SFT",
        unit="times the errors",
        scale=(
            "A multilingual model on the paper's languages, where a phase has thousands of steps."
        ),
        effect=UnknownEffect("The paper's table of random places was not reachable."),
        sentence="Weights chosen by how far they move in a full training, rewound and trained "
        f"alone, solve a task better than as many weights chosen at random {PAPER}.",
        baseline="error at random places, equal density, as many sparse steps; the worse of two "
        "tasks",
        target=1.0,
        sense="<=",
        control=learned(OURS, RANDOM),
        rates=grid((FULL, OURS, RANDOM)),
        measure=partial(of_places, over=(RANDOM,)),
        # eight seeds of the worse task: .979 with a spread of .041, which 34 see
        seeds=tuple(range(34)),
        minutes=170,
    ),
    study(
        "lt-sft-twice",
        sentence="They solve it better, too, than random places that are trained for as many steps "
        f"as both phases have {PAPER}.",
        baseline="error at random places, equal density, twice the steps; the worse of two tasks",
        target=1.0,
        sense="<=",
        control=learned(OURS, TWICE),
        rates=grid((FULL, OURS, TWICE)),
        measure=partial(of_places, over=(TWICE,)),
    ),
    study(
        "lt-sft-lora",
        sentence="They solve it at least as well as adapters with as many trained parameters, "
        f"trained for as many steps in all {PAPER}.",
        baseline="the smaller error of LoRA and of adapters after attention and MLP; worse task",
        target=1.0,
        sense="<=",
        control=learned(OURS, LORA, ADAPTER),
        rates=grid((FULL, OURS, LORA, ADAPTER)),
        measure=partial(of_places, over=(LORA, ADAPTER)),
    ),
    study(
        "lt-sft-composition",
        sentence="Deltas of a domain and of a task at the places that drifted most add up better "
        f"than those of the same density at random places {PAPER}.",
        baseline="the same sum at random places, 2 % each; accuracy in points",
        target=0.0,
        sense=">=",
        control=ANSWERED,
        rates=grid(tuple(SUMS)),
        measure=partial(compose, over=(RANDOM, SUM)),
    ),
    study(
        "lt-sft-composition-task",
        sentence=f"Adding the domain's delta makes the task's delta better in the domain {PAPER}.",
        baseline="the task's delta at drifted places, 2 %, without the domain's; points",
        target=0.0,
        sense=">=",
        control=ANSWERED,
        rates=grid(tuple(SUMS)),
        measure=partial(compose, over=(OURS, TASK_ALONE)),
    ),
)
