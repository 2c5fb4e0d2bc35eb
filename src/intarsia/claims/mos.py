"""MoS against LoRA of as many parameters, and against plainer ways to share (MIX6)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from peft import PeftModel

from ..adapters import Lora, Mos, MosCell
from ..core import Claim, Method, Result
from ..core.claim import Report
from ..experiments.pool import Arm
from ..fitting import fit
from ..hosts import adapt
from ..results.sheet import deviation
from . import mix6
from .study import each, result_of

STEPS, LR = 1500, 5e-3
RANKS = (1, 2, 4, 8, 16)


class MosArm(NamedTuple):
    """A method; tied: every layer has the same vectors, the first of the pool."""

    method: Method
    tied: bool = False


def _arm(name: str, method: Method, tied: bool = False) -> Arm[MosArm]:
    return Arm(name, MosArm(method, tied))


LORA = {rank: _arm(f"LoRA, rank {rank}", Lora(rank)) for rank in RANKS}
# the largest rank that six layers of a kind allow at e = 2 is 7; at e = 1 there is no private part
MOS = {
    1: _arm("MoS, e 1, rank 4", Mos(4, 1, 4, 0)),
    2: _arm("MoS, e 2, rank 7", Mos(7, 2, 4, 1)),
    4: _arm("MoS, e 4, rank 16", Mos(16, 4, 4, 1)),
}
SUBSET = _arm("subsets only, e 2, rank 7", Mos(7, 2, 1, 0, dissociate=False))
PURE = _arm("one LoRA for all layers, rank 2", Mos(2, 2, 1, 0, dissociate=False), tied=True)
POOL = _arm("one LoRA for all layers, rank 12", Mos(12, 2, 1, 0, dissociate=False))


def tie(model: PeftModel) -> None:
    """Let every layer read the first vectors of its pool."""
    for module in model.modules():
        if isinstance(module, MosCell):
            for rows in (module.a, module.b):
                rows.copy_(torch.arange(len(rows)))


class MosRun(NamedTuple):
    error: float


@lru_cache
def run(arm: MosArm, seed: int) -> MosRun:
    """Mean error over the six tasks' test digits after training on their mixture."""
    model = adapted(mix6.backbone(), arm, seed)
    rows, epochs = mix6.data("train"), mix6.epochs(STEPS)
    fit(model, rows, epochs=epochs, batch_size=mix6.BATCH, lr=LR, seed=seed)
    return MosRun(mix6.error(model))


def adapted(net: mix6.Net, arm: MosArm, seed: int = 0) -> PeftModel:
    """A net with an arm's cells on both layers of every MLP."""
    model = adapt(net, arm.method, targets=["fc1", "fc2"], head=None, seed=seed)
    if arm.tied:
        tie(model)
    return model


def measure(
    arms: Sequence[Arm[MosArm]], seeds: Sequence[int], report: Report
) -> dict[str, list[float]]:
    """The errors of every arm, in the order of the seeds."""
    found = each(arms, seeds, lambda arm, _, seed: run(arm, seed), report)
    return {arm.name: found.of(arm.name, "error")[0].tolist() for arm in arms}


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


def rows_of(
    arms: Sequence[Arm[MosArm]], errors: Mapping[str, Sequence[float]]
) -> tuple[dict[str, Any], ...]:
    """A line for each arm: trained parameters, error, and its range over the seeds."""
    return tuple(
        {
            "adapter": arm.name,
            "parameters": parameters(arm.settings),
            "error": f"{statistics.median(errors[arm.name]):.3f}",
            "range": f"{min(errors[arm.name]):.3f} ... {max(errors[arm.name]):.3f}",
        }
        for arm in arms
    )


def parameters(arm: MosArm) -> int:
    """What an arm trains and must store; tied pools use their first vectors only."""
    count = sum(p.numel() for p in adapted(mix6.Net(), arm).parameters() if p.requires_grad)
    return count // mix6.BLOCKS if arm.tied else count


def against_lora(seeds: tuple[int, ...], report: Report) -> Result:
    """The worst of e = 1, 2, 4: median error of MoS over that of LoRA of rank e."""
    arms = [*LORA.values(), *MOS.values()]
    errors = measure(arms, seeds, report)
    ratios = {
        e: [a / b for a, b in zip(errors[arm.name], errors[LORA[e].name], strict=True)]
        for e, arm in MOS.items()
    }
    worst = max(MOS, key=lambda e: statistics.median(ratios[e]))
    middle = {name: statistics.median(found) for name, found in errors.items()}
    lora = [middle[LORA[rank].name] for rank in RANKS]
    saved = {e: matching_rank(middle[arm.name], RANKS, lora) / e for e, arm in MOS.items()}
    note = (
        "Error over that of LoRA with as many parameters, medians: "
        + ", ".join(f"{statistics.median(r):.2f} at e = {e}" for e, r in ratios.items())
        + ". Saving factor, the LoRA rank of the same error over e: "
        + ", ".join(f"{f:.1f}x at e = {e}" for e, f in saved.items())
        + " (the paper: about 8x on a 7B model)."
    )
    return result_of(ratios[worst], rows_of(arms, errors), note, statistics.median)


def orders(seeds: tuple[int, ...], report: Report) -> Result:
    """The smaller of two gaps in median accuracy, in points, between three ways to share."""
    arms = (MOS[2], SUBSET, POOL, PURE)
    errors = measure(arms, seeds, report)

    def gaps(ours: float, subset: float, pool: float) -> tuple[float, float]:
        return 100 * (subset - ours), 100 * (pool - subset)

    three = [errors[arm.name] for arm in arms[:3]]
    first, second = gaps(*map(statistics.median, three))
    values = tuple(min(gaps(*of_seed)) for of_seed in zip(*three, strict=True))
    note = (
        f"MoS above subsets only: {first:+.2f} points; subsets only above one LoRA of as many "
        f"parameters for all layers: {second:+.2f} points (medians). One LoRA of rank 2, which "
        "stands beside them, has a sixth of the parameters."
    )
    return Result(min(first, second), deviation(values), values, rows_of(arms, errors), note)


CLAIMS = (
    Claim(
        "mos",
        system="MoS",
        sentence="Low-rank changes put together from shards of one pool need fewer parameters: "
        "MoS has at most 0.85 of the error of LoRA with as many (arXiv:2410.00938, abstract).",
        baseline="LoRA of rank e = 1, 2, 4; the worst ratio of errors",
        bar=0.85,
        sense="<=",
        run=against_lora,
        minutes=7,
    ),
    Claim(
        "mos-order",
        sentence="Each differentiation of what is shared helps: MoS is at least as accurate as "
        "subset selection, and that as one LoRA of as many parameters shared by all layers "
        "(arXiv:2410.00938, section on ablations).",
        baseline="the next plainer way to share, e = 2, 5,376 parameters each; the smaller gap",
        bar=0.0,
        sense=">=",
        run=orders,
        minutes=4,
    ),
)
