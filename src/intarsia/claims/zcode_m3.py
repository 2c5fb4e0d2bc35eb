"""Lots where an expert is full, trained mixtures merged, and experts pruned by use (Z-code M3)."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ..core import Claim, Result
from ..core.claim import Report
from ..fitting import fit
from ..hosts import expert_loads
from ..mixtures import Capacity, merged, prune
from ..mixtures.zcode_m3 import mixtures_in
from ..routers import TopK
from ..train import evaluate
from . import mix6
from .study import by_arm, by_seed, judge, row_of

EXPERTS, LR = 8, 1e-3
IN_ORDER, BY_LOT = "in order", "by lot"
POLICIES = {"order": IN_ORDER, "random": BY_LOT}
TIGHT = 0.75  # capacity factor where the batch is laid out by task
STEPS, SHARED, MORE = 600, 200, 100  # on MIX6: all of a parent's, those before they part, after
OTHERS = 10  # random choices of experts to keep


class ByTask(nn.Module):
    """A net that meets its batch task by task.  x: (B, 65), last the place of the row's task."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, -1].argsort(stable=True)
        made = self.net(x[order, :-1])
        return torch.empty_like(made).index_copy(0, order, made)


def placed(part: str, seed: int) -> TensorDataset:
    """MIX6 with the place of each row's task; which task is last depends on the seed."""
    x, y = mix6.data(part).tensors
    place = (mix6.task_ids(part) + seed) % len(mix6.TASKS)
    return TensorDataset(torch.cat([x, place[:, None]], 1), y)


class Late(NamedTuple):
    """Test losses: of the last two tasks, and of all six."""

    last: float
    whole: float


def of_policy(policy: str, seed: int, steps: int) -> Late:
    """A net whose experts are full, with what stands late in every batch always the same."""
    full = Capacity(TIGHT, policy)
    net = mix6.of_experts(TopK(EXPERTS, 1, "prob"), seed=seed, capacity=full)
    model, test, count = ByTask(net), placed("test", seed), mix6.epochs(steps)
    fit(model, placed("train", seed), epochs=count, lr=LR, seed=seed, batch_size=mix6.BATCH)
    x, y = test.tensors
    behind = x[:, -1] >= len(mix6.TASKS) - 2
    parts = TensorDataset(x[behind], y[behind]), test
    return Late(*(evaluate(model, part, batch_size=1024).loss for part in parts))


def late(seeds: Sequence[int], report: Report, *, steps: int = STEPS) -> Result:
    """Loss on the last two tasks of six, lots over order, the mean of the seeds."""
    arms = {name: key for key, name in POLICIES.items()}
    found = by_arm(arms, seeds, lambda policy, seed: of_policy(policy, seed, steps), report)
    note = (
        f"MIX6, mixtures in all blocks, top-1 of {EXPERTS}, capacity factor {TIGHT} while "
        f"training, nothing dropped in the test; {steps} steps. Each batch stands task by task, "
        "so that order drops the last tasks; which are last goes round with the seed."
    )
    row = row_of(
        "policy", {"loss of the last two tasks": ("last", ".3f"), "of all six": ("whole", ".3f")}
    )
    return judge(found, lambda made: made[BY_LOT].last / made[IN_ORDER].last, row, note)


def train(net: nn.Module, steps: int, seed: int) -> None:
    fit(net, mix6.data("train"), epochs=mix6.epochs(steps), batch_size=mix6.BATCH, lr=LR, seed=seed)


def loss(net: nn.Module) -> float:
    """On the test digits."""
    return evaluate(net, mix6.data("test"), batch_size=1024).loss


@lru_cache
def parents(seed: int, steps: int) -> tuple[nn.Module, nn.Module]:
    """Two trainings that part after a third of their steps, by the order of the digits."""
    first = mix6.of_experts(TopK(EXPERTS, 1, "prob"), seed=seed)
    train(first, steps * SHARED // STEPS, seed)
    both = first, copy.deepcopy(first)
    for i, net in enumerate(both):
        train(net, steps - steps * SHARED // STEPS, 1000 + 2 * seed + i)
    return both


class Further(NamedTuple):
    """Test loss before and after a few more steps."""

    before: float
    after: float


def merging(seeds: Sequence[int], report: Report, *, steps: int = STEPS) -> Result:
    """Loss of the merged net over the mean of its parents', after the same further steps."""

    def run(seed: int) -> dict[str, Further]:
        a, b = parents(seed, steps)
        found: dict[str, Further] = {}
        for name, net in {"first parent": a, "second parent": b, "merged": merged(a, b)}.items():
            more = copy.deepcopy(net)
            train(more, steps * MORE // STEPS, 2000 + seed)
            found[name] = Further(loss(net), loss(more))
        return found

    def of(made: Mapping[str, Further]) -> float:
        one, two, ours = (net.after for net in made.values())
        return ours / ((one + two) / 2)

    found = by_seed(seeds, run, report)
    passes = mix6.epochs(steps * MORE // STEPS)
    note = (
        f"MIX6, mixtures in all blocks, top-1 of {EXPERTS}; parents of {steps} steps, the first "
        f"third together; merged, {2 * EXPERTS} experts. All three then learn {passes} more "
        "passes, on one course of the rate, the merged net's start being its parents' mean."
    )
    columns = {"loss before": ("before", ".3f"), "after the further steps": ("after", ".3f")}
    return judge(found, of, row_of("net", columns), note)


def kept(net: nn.Module, scores: Mapping[str, Tensor], experts: int) -> nn.Module:
    """A copy with the experts of largest score in each layer."""
    small = copy.deepcopy(net)
    for path, mixture in mixtures_in(small).items():
        best = scores[f"{path}.router"].argsort(descending=True, stable=True)
        prune(mixture, sorted(best[:experts].tolist()))
    return small


def pruning(seeds: Sequence[int], report: Report, *, steps: int = STEPS) -> Result:
    """Loss after pruning by use over the mean after pruning by lot."""

    def run(seed: int) -> dict[str, float]:
        net, _ = parents(seed, steps)
        use = expert_loads(net, [mix6.data("train").tensors[0]])
        draws = torch.Generator().manual_seed(seed)
        lots = [{p: torch.rand(EXPERTS, generator=draws) for p in use} for _ in range(OTHERS)]
        rare = {path: -load for path, load in use.items()}

        def half(scores: Mapping[str, Tensor]) -> float:
            return loss(kept(net, scores, EXPERTS // 2))

        return {
            "whole": loss(net),
            "by use": half(use),
            "by lot": statistics.mean(map(half, lots)),
            "least used": half(rare),
        }

    found = by_seed(seeds, run, report)
    note = (
        f"MIX6, the first parent of zcode-m3-merge: {EXPERTS // 2} of {EXPERTS} experts stay in "
        f"each block, nothing is trained afterwards. Use is counted on the training digits; a lot "
        f"is the mean of {OTHERS}."
    )
    row = row_of("experts", {"test loss": ("", ".3f")})
    return judge(found, lambda losses: losses["by use"] / losses["by lot"], row, note)


PAPER = "(arXiv:2109.10465, "

claim = partial(Claim, sense="<=", minutes=0.02)

CLAIMS = (
    claim(
        "zcode-m3-late",
        sentence="With lots a model learns better what stands late in a batch " + PAPER + "random "
        "token selection). Test loss without drops of the last two of six tasks.",
        baseline="the same mixtures, the first tokens kept",
        bar=0.995,
        run=late,
        seeds=(0, 1, 2, 3, 4, 5),
        minutes=4,
    ),
    claim(
        "zcode-m3-merge",
        system="Z-code M3",
        sentence="Two trained mixtures merge into one that is as good after a few more steps "
        + PAPER
        + "aggregation of experts). Test loss.",
        baseline="the mean of both parents after as many steps more",
        bar=1.0,
        run=merging,
        minutes=3,
    ),
    claim(
        "zcode-m3-prune",
        sentence="Half the experts are better chosen by use than by lot " + PAPER + "expert "
        "pruning). Test loss.",
        baseline="the mean of ten random choices",
        bar=1.0,
        run=pruning,
        minutes=2,
    ),
)
