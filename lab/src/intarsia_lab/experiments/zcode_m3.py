"""Lots where an expert is full, trained mixtures merged, and experts pruned by use (Z-code M3)."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from intarsia.mixtures import merged, prune
from intarsia.mixtures.zcode_m3 import mixtures_in
from intarsia.routers import TopK
from intarsia.sparse.swap.experts import expert_loads
from intarsia.train import evaluate

from ..kit import Effect, Report, Result, Study
from ..kit.arms import by_seed, judge, row_of, threads
from ..kit.stored import StoredResults
from ..routing.kinds_of_text import BATCH, TextKinds, decoder_of_experts, kinds, learn

stored = StoredResults(__file__)

EXPERTS = 8
STEPS, PARENT, SHARED, MORE = 400, 600, 200, 400  # of `late`; all of a parent's, shared, after
OTHERS = 10  # random choices of experts to keep


def loss(model: nn.Module, texts: TextKinds, names: Sequence[str] | None = None) -> float:
    """Return the mean loss of a token on test rows of these kinds, in nats, nothing dropped."""
    return evaluate(model, texts.parts(names), batch_size=64).loss


def router() -> TopK:
    """Return a top-1 router over eight experts."""
    return TopK(EXPERTS, 1, "prob")


class Further(NamedTuple):
    """Test loss before and after a few more steps."""

    before: float
    after: float


@stored.cell
def family(seed: int, steps: int) -> dict[str, Any]:
    """Train two mixtures, merge them, and prune the first; return the losses of all.

    steps: of each parent's training. "further": model -> loss before and after some more steps;
    "pruned": way to choose experts -> loss. In nats per token of test rows; stored and read if it
    was computed before.
    """
    with threads(1):
        texts = kinds()
        a, b = parents(texts, seed, steps)
        further: dict[str, list[float]] = {}
        # each learns as many steps more, on the same rows
        for name, net in {"first parent": a, "second parent": b, "merged": merged(a, b)}.items():
            copied = copy.deepcopy(net)
            learn(copied, texts.stream(list(texts.train), steps, part(steps, MORE), seed), seed)
            further[name] = [loss(net, texts), loss(copied, texts)]
        return {"further": further, "pruned": pruned(a, texts, seed)}


def part(steps: int, parent_steps: int) -> int:
    """Return a number of steps, scaled for parents of `steps` steps instead of PARENT."""
    return max(1, steps * parent_steps // PARENT)


def parents(texts: TextKinds, seed: int, steps: int) -> tuple[nn.Module, nn.Module]:
    """Train two mixtures that share the first third of their steps and then meet other rows.

    texts: rows of four kinds of text; seed: of the start and the rows; steps: of each.
    """
    order, shared = list(texts.train), part(steps, SHARED)
    first = decoder_of_experts(router(), seed)
    learn(first, texts.stream(order, 0, shared, seed), seed)
    # parents share their first third, or merged experts would not fit one trunk
    both = first, copy.deepcopy(first)
    for i, net in enumerate(both):
        stream_seed = 1000 + 2 * seed + i
        learn(net, texts.stream(order, shared, max(1, steps - shared), stream_seed), stream_seed)
    return both


def merging(seeds: Sequence[int], report: Report, *, steps: int = PARENT) -> Result:
    """Return the loss of a merged mixture over its two parents' mean loss, by seed.

    The merged model has the experts of both; all three learn as many steps more before they are
    compared. steps: of each parent's training. Losses are of test rows, in nats per token.
    """

    def run(seed: int) -> dict[str, Further]:
        """Return a seed's losses by model."""
        return {name: Further(*pair) for name, pair in family(seed, steps)["further"].items()}

    def of(by_model: Mapping[str, Further]) -> float:
        """Return the merged model's loss over the mean of its parents'."""
        first, second, ours = (net.after for net in by_model.values())
        return ours / ((first + second) / 2)

    # all three learn as many steps more before they are compared
    results = by_seed(seeds, run, report)
    note = (
        f"{SETTING} Parents of {steps} steps, the first third together; merged, {2 * EXPERTS} "
        f"experts. All three then learn {part(steps, MORE)} more steps, on one course of the rate, "
        "the merged model's start being its parents' mean."
    )
    columns = {"loss before": ("before", ".3f"), "after the further steps": ("after", ".3f")}
    return judge(results, of, row_of("model", columns), note)


def kept_experts(net: nn.Module, scores: Mapping[str, Tensor], experts: int) -> nn.Module:
    """Return a copy of a mixture with the experts of the largest scores in each layer.

    net: the mixture; scores: router's path -> a score for each expert; experts: how many stay.
    """
    small = copy.deepcopy(net)
    for path, mixture in mixtures_in(small).items():
        best = scores[f"{path}.router"].argsort(descending=True, stable=True)
        prune(mixture, sorted(best[:experts].tolist()))
    return small


def pruned(net: nn.Module, texts: TextKinds, seed: int) -> dict[str, float]:
    """Return the test loss with half of the experts, for three ways to choose them.

    By how often they are used, by lot (the mean of ten draws), and the least used ones; "whole" has
    all. In nats per token; nothing is trained afterwards. net: the trained mixture; texts: rows of
    four kinds of text.
    """
    rows = texts.stream(list(texts.train), 0, 8, seed).tensors[0]
    use = expert_loads(net, list(rows.split(64)))
    draws = torch.Generator().manual_seed(seed)
    # ten lots: the mean of random choices, not a lucky one
    lots = [{p: torch.rand(EXPERTS, generator=draws) for p in use} for _ in range(OTHERS)]
    # the opposite choice shows that use is a reason at all
    rare = {path: -load for path, load in use.items()}

    def half(scores: Mapping[str, Tensor]) -> float:
        """Return the loss with the better half of the experts by these scores."""
        return loss(kept_experts(net, scores, EXPERTS // 2), texts)

    return {
        "whole": loss(net, texts),
        "by use": half(use),
        "by lot": statistics.mean(map(half, lots)),
        "least used": half(rare),
    }


SETTING = (
    "Four kinds of real text (code, glosses, help pages, novels), as many rows of each in a batch "
    f"of {BATCH} rows of 64 tokens; a decoder from scratch, four layers of {EXPERTS} experts, "
    "top-1, trained as the routers' comparisons are. Losses are in nats of a token of text that "
    "nobody trained on."
)


STUDIES = (
    Study(
        "zcode-m3-merge",
        system="Z-code M3",
        arxiv="2109.10465",
        question="Are two merged mixtures as good as their mean after more training?",
        effect=Effect(
            "models 8 times larger on the same hardware; merging without a figure",
            "10 billion weights, 64 experts",
            "abstract",
            sign=0,
            null=1.0,
        ),
        work="decoders of experts from scratch, four kinds of text",
        baseline="the mean of both parents after as many steps more",
        unit="times the test loss",
        differs="Merging alone, after 400 steps.",
        measure=merging,
        minutes=42,
    ),
)
