"""Unlearning in one expert, on small mixtures that were trained on four kinds of text."""

from __future__ import annotations

import copy
import math
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from intarsia.methods.seuf.seuf import Seuf, Unlearned, unlearn

from ..kit import Effect, Report, Result, Study
from ..kit.arms import judged, threads
from ..kit.stored import StoredResults
from ..materials import held_out_rows
from ..materials.routing_traces import made

stored = StoredResults(__file__)

FORGOTTEN = ("code", "glosses", "help")
# a few rows are forgotten within 80 steps; the path is judged at equal forgetting, not at its end
TRAINED, JUDGED, STEPS = 64, 16, 80
RATE, TARGETS = 1e-3, (0.5, 1.0)
RANDOM = 4  # experts of the attributed one's layer
ALL, TOP, LIFT, FREE = "all weights", "top affinity", "top lift", "without anchor"
WAYS, ATTRIBUTED = (TOP, FREE, LIFT, ALL), (TOP, LIFT)
NEVER = 99.0  # nats: the text has not risen so far
Cell = Mapping[str, Any]
ByKind = Mapping[str, Mapping[str, Cell]]


def cells(kind: str, seed: int, ways: Sequence[str], report: Report) -> dict[str, Cell]:
    """Make a mixture forget one kind of text in several ways; return each way's result.

    Ways: train the expert to which the router sends most of the text (TOP), with an anchor that
    keeps the router so, and without it (FREE); the expert that has more of this text than of others
    (LIFT); all weights, at a tenth of the rate (ALL). TOP and LIFT are compared with four random
    experts of the layer of either expert. kind: of the text to forget; ways: those to run.
    """
    by_arm: dict[str, Cell] = {}
    for way in ways:
        by_arm[way] = _cell(kind, seed, way, report)
        if way not in ATTRIBUTED:
            continue
        layer, best = by_arm[way]["at"]
        draws = torch.Generator().manual_seed(100 * seed + layer)
        # rivals of the same layer: the layer matters more than the expert, and is no merit of it
        rivals = [e for e in torch.randperm(16, generator=draws).tolist() if e != best][:RANDOM]
        for number, expert in enumerate(rivals):
            name = f"random {number} beside {way}"
            by_arm[name] = _cell(kind, seed, name, report, (layer, expert))
    return by_arm


def _cell(
    kind: str, seed: int, arm: str, report: Report, site: tuple[int, int] | None = None
) -> Cell:
    """Return the result of one unlearning, stored or computed now.

    kind: of the text to forget; arm: the way; site: (layer, expert) to train, None where the way
    chooses it. "damage" is the rise of the other texts' loss where the forgotten one's has risen by
    each of TARGETS, in nats per token; "share": of the router's probability that the expert has of
    the text, before and after; "trained", "total": parameters.
    """
    inputs = {"kind": kind, "seed": seed, "arm": arm, "at": site}
    inputs |= {
        "steps": STEPS,
        "rate": RATE,
        "rows": [TRAINED, JUDGED, held_out_rows.LENGTH],
    }

    def run() -> Cell:
        """Unlearn one kind of text; return the damage to other texts at equal forgetting."""
        with threads(1):
            out = _run(kind, seed, arm, site, report)
        # at equal forgetting: ways that forget at unlike speeds can be compared
        damage = {str(t): _or_none(rise(out.path, t)) for t in TARGETS}
        report(f"  {kind}, seed {seed}, {arm}: {damage}")
        return {
            "at": list(out.at) if out.at else None,
            "trained": out.trained,
            "total": out.total,
            "share": [out.path[0].get("share"), out.path[-1].get("share")],
            "damage": damage,
            "last": out.path[-1]["forget"] - out.path[0]["forget"],
        }

    return stored("seuf", inputs, run)


def _run(kind: str, seed: int, arm: str, site: tuple[int, int] | None, report: Report) -> Unlearned:
    """Make a mixture model forget one kind of text, and return the course of its losses.

    kind: of the text; arm: how the expert is chosen; site: (layer, expert), None to choose it.
    """
    from transformers import MixtralForCausalLM

    model: Any = MixtralForCausalLM.from_pretrained(made(seed, report), dtype=torch.float32)
    model.config.use_cache = False
    blocks = held_out_rows.rows(seed)
    per = TRAINED // (len(blocks) - 1)
    # as much text to keep as to forget, of all other kinds alike
    keep = torch.cat([r[:per] for name, r in blocks.items() if name != kind])
    judged = torch.cat([r[-JUDGED // 2 :] for name, r in blocks.items() if name != kind])
    judge = list(blocks[kind][-JUDGED:]), list(judged)
    forget = blocks[kind][:TRAINED]
    # the paper's alpha: without it the router sends the text elsewhere
    anchor = 0.0 if arm == FREE else 1.0
    every_weight = arm == ALL
    method = Seuf(
        "ga", "lift" if LIFT in arm else "affinity", anchor, lr=RATE / 10 if every_weight else RATE
    )
    chosen_site: Any = "all" if every_weight else site
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # few tokens: the table has the shares
        return unlearn(
            copy.deepcopy(model),
            method,
            list(forget),
            list(keep),
            at=chosen_site,
            steps=STEPS,
            until=max(TARGETS) + 0.2,
            judge=judge,
            # scored after each step, or the point of equal forgetting would be guessed
            every=1,
            seed=seed,
        )


def _or_none(value: float) -> float | None:
    """Return a number that JSON can hold: None for NaN and infinity."""
    return value if math.isfinite(value) else None


def rise(path: Sequence[Mapping[str, float]], amount: float, field: str = "retain") -> float:
    """Interpolate the rise of one loss where the loss of the text to forget has risen by `amount`.

    path: losses at each step, in nats per token; field: the loss to interpolate. NaN where the path
    does not come so far.
    """
    first = path[0]
    for a, b in zip(path, path[1:], strict=False):
        x, y = (point["forget"] - first["forget"] for point in (a, b))
        # the first step at which the text has risen so far
        if x <= amount <= y:
            part = (amount - x) / (y - x) if y > x else 0.0
            return a[field] + part * (b[field] - a[field]) - first[field]
    return math.nan


def damage(cell: Cell, target: float = 1.0) -> float:
    """Return the rise of the other texts' loss where the forgotten one's has risen by `target`.

    In nats per token; NEVER if it has not risen so far.

    cell: result of one unlearning, see `_cell`.
    """
    value = cell["damage"][str(target)]
    return NEVER if value is None else float(value)


def against_random(by_arm: Mapping[str, Cell], attributed: str) -> float:
    """Return the damage of the chosen expert over the mean of random ones, the larger ratio.

    Damage is the rise of the other texts' loss where the forgotten one's has risen by a given
    amount; the ratio is taken at two amounts. by_arm: results of a seed and kind of text;
    attributed: the way of the chosen expert, TOP or LIFT. Random experts are of the same layer; the
    ones that never forget so far are left out, and the ratio is 1 where all are.
    """
    ratios: list[float] = []
    for target in TARGETS:
        rivals = [
            damage(c, target) for n, c in by_arm.items() if n.endswith(f"beside {attributed}")
        ]
        # a rival that never forgets has no damage at equal forgetting
        finite = [value for value in rivals if value < NEVER]
        ours = damage(by_arm[attributed], target)
        ratios.append(ours / max(statistics.mean(finite), 1e-9) if finite else 1.0)
    return max(ratios)


def run(
    seeds: tuple[int, ...],
    report: Report,
    *,
    figure: Callable[[Mapping[str, Cell]], float],
    ways: Sequence[str] = WAYS,
) -> Result:
    """Unlearn three kinds of text in several ways; return a figure of the results, by seed.

    figure: results of one kind of text, by way -> the number; its mean over the kinds is judged;
    ways: those to run, see `cells`.
    """

    def by_kind(seed: int) -> ByKind:
        """Return a seed's results for every text to forget."""
        return {kind: cells(kind, seed, ways, report) for kind in FORGOTTEN}

    def over_kinds(by_arm: ByKind) -> float:
        """Return the mean of `figure` over the texts to forget."""
        return statistics.mean(figure(arms) for arms in by_arm.values())

    # one value for each seed: the kinds of text are no sample
    return judged(seeds, by_kind, figure=over_kinds, rows=_rows, note=NOTE)


def _rows(seed: int, by_kind: ByKind) -> Iterator[dict[str, Any]]:
    """Yield the table rows of one seed: every way to unlearn, for every text to forget."""
    for kind, by_arm in by_kind.items():
        for arm in filter(by_arm.__contains__, WAYS):
            yield _row(seed, kind, arm, by_arm[arm])
        for attributed in filter(by_arm.__contains__, ATTRIBUTED):
            rivals = [c for n, c in by_arm.items() if n.endswith(f"beside {attributed}")]
            yield _mean_row(seed, kind, attributed, rivals)


def _row(seed: int, kind: str, arm: str, cell: Cell) -> dict[str, Any]:
    """Return an arm's row: the damage to other text at two amounts of forgetting."""
    before, after = cell["share"]
    share = "" if before is None else f"{before:.2f} -> {after:.2f}"
    location = "" if cell["at"] is None else "{}, {}".format(*cell["at"])
    row = {"seed": seed, "forgotten": kind, "arm": arm, "layer, expert": location}
    return row | {f"at +{t}": f"{damage(cell, t):.3f}" for t in TARGETS} | {"share": share}


def _mean_row(seed: int, kind: str, attributed: str, rivals: list[Cell]) -> dict[str, Any]:
    """Return the mean row of randomly chosen experts in the layer of the attributed one."""
    arm = f"{RANDOM} random of the layer of {attributed}"
    damages = {f"at +{t}": f"{statistics.mean(damage(c, t) for c in rivals):.3f}" for t in TARGETS}
    return (
        {"seed": seed, "forgotten": kind, "arm": arm, "layer, expert": ""} | damages | {"share": ""}
    )


NOTE = (
    "Gradient ascent on one of four kinds of text; the figures are the rise of the other kinds' "
    "cross-entropy (nats a token, held-out rows) when that of the forgotten kind has risen by 0.5 "
    "and by 1.0, interpolated on the path; 99: it never rose so far. Small mixtures trained for "
    "each seed, whose routers spread every text over many experts. share: the target's part of the "
    "probability of the tokens to forget."
)


study = partial(
    Study,
    system="SEUF",
    arxiv="2411.18797",
    work="mixtures trained on four kinds of text",
    baseline="mean of four random experts of the same layer, at equal forgetting; the worse of two "
    "targets",
    unit="times the damage to other text",
)

STUDIES = (
    study(
        "seuf-expert",
        question="Does unlearning in the attributed expert do less damage elsewhere?",
        effect=Effect(
            "utility .5485 by the first expert, .544 by the 13th, .4262 by the 23rd, of .5548",
            "DeepSeek-V2-Lite, equal forgetting of RWKU",
            "tables 2 to 5",
            sign=-1,
            null=1.0,
        ),
        differs="Routers of small mixtures spread every text over many experts.",
        measure=partial(run, figure=lambda arms: against_random(arms, TOP), ways=(TOP,)),
        minutes=10,
    ),
    study(
        "seuf-lift",
        question="Does unlearning in the expert of the largest lift?",
        effect=None,
        differs="Lift is this library's measure, not the paper's.",
        measure=partial(run, figure=lambda arms: against_random(arms, LIFT)),
        minutes=20,
    ),
)
