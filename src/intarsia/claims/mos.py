"""MoS against LoRA of as many parameters, and against plainer ways to share (MIX6)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from peft import PeftModel

from ..adapters import Lora, Mos, MosCell
from ..core import Claim, Method, Result
from ..fitting import fit
from ..hosts import adapt
from . import mix6
from .study import threads

STEPS, LR = 1500, 5e-3
RANKS = (1, 2, 4, 8, 16)


class Arm(NamedTuple):
    """One contender; tied: every layer has the same vectors, the first of the pool."""

    name: str
    method: Method
    tied: bool = False


LORA = {rank: Arm(f"LoRA, rank {rank}", Lora(rank)) for rank in RANKS}
# the largest rank that six layers of a kind allow at e = 2 is 7; at e = 1 there is no private part
MOS = {
    1: Arm("MoS, e 1, rank 4", Mos(4, 1, 4, 0)),
    2: Arm("MoS, e 2, rank 7", Mos(7, 2, 4, 1)),
    4: Arm("MoS, e 4, rank 16", Mos(16, 4, 4, 1)),
}
SUBSET = Arm("subsets only, e 2, rank 7", Mos(7, 2, 1, 0, dissociate=False))
PURE = Arm("one LoRA for all layers, rank 2", Mos(2, 2, 1, 0, dissociate=False), tied=True)
POOL = Arm("the whole pool in every layer, rank 12", Mos(12, 2, 1, 0, dissociate=False))


def tie(model: PeftModel) -> None:
    """Let every layer read the first vectors of its pool."""
    for module in model.modules():
        if isinstance(module, MosCell):
            for rows in (module.a, module.b):
                rows.copy_(torch.arange(len(rows)))


@lru_cache
def run(arm: Arm, seed: int) -> float:
    """Mean error over the six tasks' test digits after training on their mixture."""
    model = adapt(mix6.backbone(), arm.method, targets=["fc1", "fc2"], head=None, seed=seed)
    if arm.tied:
        tie(model)
    fit(
        model, mix6.data("train"), epochs=mix6.epochs(STEPS), batch_size=mix6.BATCH, lr=LR,
        seed=seed,
    )  # fmt: skip
    return mix6.error(model)


Errors = Mapping[tuple[str, int], float]


def measure(
    arms: Sequence[Arm], seeds: Sequence[int], report: Callable[[str], None]
) -> dict[tuple[str, int], float]:
    """The error of every arm at every seed."""
    errors: dict[tuple[str, int], float] = {}
    with threads(1):
        for seed in seeds:
            for arm in arms:
                errors[arm.name, seed] = run(arm, seed)
                report(f"seed {seed}, {arm.name}: error {errors[arm.name, seed]:.3f}")
    return errors


def median(errors: Errors, arm: Arm, seeds: Sequence[int]) -> float:
    return statistics.median(errors[arm.name, s] for s in seeds)


def matching_rank(error: float, ranks: Sequence[int], errors: Sequence[float]) -> float:
    """The LoRA rank of that error, linear in log rank between those measured; else the nearest.

    ranks rise; where errors do not fall, the first crossing counts.
    """
    points = list(zip(ranks, errors, strict=True))
    if error >= points[0][1]:
        return float(points[0][0])
    for (low, above), (high, below) in zip(points, points[1:], strict=False):
        if above >= error >= below and above > below:
            share = (above - error) / (above - below)
            return low * (high / low) ** share
    return float(ranks[-1])


def row(arm: Arm, errors: Errors, seeds: Sequence[int]) -> dict[str, Any]:
    """One line of the table: trained parameters, error, and its range over the seeds."""
    found = sorted(errors[arm.name, s] for s in seeds)
    return {
        "adapter": arm.name,
        "parameters": parameters(arm),
        "error": f"{statistics.median(found):.3f}",
        "range": f"{found[0]:.3f} ... {found[-1]:.3f}",
    }


def parameters(arm: Arm) -> int:
    """What an arm trains and must store; tied pools use their first vectors only."""
    model = adapt(mix6.Net(), arm.method, targets=["fc1", "fc2"], head=None)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return count // mix6.BLOCKS if arm.tied else count


def against_lora(seeds: tuple[int, ...], report: Callable[[str], None]) -> Result:
    """The worst of e = 1, 2, 4: median error of MoS over that of LoRA of rank e."""
    arms = [*LORA.values(), *MOS.values()]
    errors = measure(arms, seeds, report)
    ratios = {
        e: [errors[a.name, s] / errors[LORA[e].name, s] for s in seeds] for e, a in MOS.items()
    }
    worst = max(MOS, key=lambda e: statistics.median(ratios[e]))
    lora = [median(errors, LORA[r], seeds) for r in RANKS]
    saved = {e: matching_rank(median(errors, a, seeds), RANKS, lora) / e for e, a in MOS.items()}
    note = (
        "Error over that of LoRA with as many parameters, medians: "
        + ", ".join(f"{statistics.median(r):.2f} at e = {e}" for e, r in ratios.items())
        + ". Saving factor, the LoRA rank of the same error over e: "
        + ", ".join(f"{f:.1f}x at e = {e}" for e, f in saved.items())
        + " (the paper: about 8x on a 7B model)."
    )
    values = tuple(ratios[worst])
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    rows = tuple(row(arm, errors, seeds) for arm in arms)
    return Result(statistics.median(values), spread, values, rows, note)


def orders(seeds: tuple[int, ...], report: Callable[[str], None]) -> Result:
    """The smaller of two gaps in median accuracy, in points, between three ways to share."""
    arms = (MOS[2], SUBSET, PURE, POOL)
    errors = measure(arms, seeds, report)

    def gaps(values: Callable[[Arm], float]) -> tuple[float, float]:
        return tuple(100 * (values(b) - values(a)) for a, b in ((MOS[2], SUBSET), (SUBSET, PURE)))  # pyright: ignore[reportReturnType]

    first, second = gaps(lambda arm: median(errors, arm, seeds))
    each = tuple(min(gaps(lambda arm, s=s: errors[arm.name, s])) for s in seeds)
    note = (
        f"MoS above subsets only: {first:+.2f} points; subsets only above one LoRA for all layers: "
        f"{second:+.2f} points (medians)."
    )
    spread = statistics.stdev(each) if len(each) > 1 else 0.0
    rows = tuple(row(arm, errors, seeds) for arm in arms)
    return Result(min(first, second), spread, each, rows, note)


CLAIMS = (
    Claim(
        "mos",
        sentence="Low-rank changes put together from shards of one pool need fewer parameters: "
        "MoS has at most 0.85 of the error of LoRA with as many (arXiv:2410.00938, abstract).",
        baseline="LoRA of rank e = 1, 2, 4; the worst ratio of errors",
        bar=0.85,
        sense="<=",
        run=against_lora,
        seeds=(0, 1, 2),
        minutes=7,
    ),
    Claim(
        "mos-order",
        sentence="Each differentiation of what is shared helps: MoS is at least as accurate as "
        "subset selection, and that as one LoRA shared by all layers (arXiv:2410.00938, section "
        "on ablations).",
        baseline="the next plainer way to share, e = 2; the smaller gap, in points",
        bar=0.0,
        sense=">=",
        run=orders,
        seeds=(0, 1, 2),
        minutes=4,
    ),
)
