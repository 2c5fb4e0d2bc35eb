"""Whether a transport plan shares tokens out evenly at no cost in loss (MIX6, eight experts)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core import Claim, Result, Routing
from ..core.claim import Report
from ..fitting import fit
from ..gating import RouterConfig
from ..mixtures import Mixture
from ..routers import TopK, Transport
from ..routers.transport import TransportRouter
from . import mix6
from .study import by_arm, class_scores, judge, shown

EXPERTS, LAYER, STEPS, LR = 8, 3, 600, 1e-3
EPS, ROUNDS = 0.05, 50  # of Sinkhorn's plan: entropy, in units of p; rounds


@dataclass(frozen=True)
class Sinkhorn(Transport):
    """The C tokens of largest mass of each expert's column of a dense transport plan."""

    def build(self, width: int, *, generator: torch.Generator) -> SinkhornRouter:
        return SinkhornRouter(self, width, generator=generator)


class SinkhornRouter(TransportRouter):
    """`TransportRouter` with Sinkhorn's plan, cut off at C, in place of the sparse one."""

    def plan(self, p: Tensor) -> Tensor:
        plan = (p / EPS).softmax(-1)
        for _ in range(ROUNDS):
            plan = plan / plan.sum(0) * (len(p) / self.experts)
            plan = plan / plan.sum(1, keepdim=True)
        most = plan.topk(math.ceil(self.config.capacity * len(p) / self.experts), dim=0).indices
        return torch.zeros_like(plan).scatter(0, most, plan.gather(0, most))


def top_1(balance: float) -> TopK:
    return TopK(EXPERTS, 1, "prob", balance=balance)


PLAN, FREE = "sparse transport, k = T / E", "top-1, no balance loss"
EVEN = "top-1, balance loss 0.01"
ARMS: Mapping[str, RouterConfig] = {
    FREE: top_1(0.0),
    PLAN: Transport(EXPERTS, capacity=1.0),
    "sparse transport, k = 1.25 T / E": Transport(EXPERTS, capacity=1.25),
    "Sinkhorn, then top-C, C = T / E": Sinkhorn(EXPERTS, capacity=1.0),
    EVEN: top_1(0.01),
}


class Found(NamedTuple):
    """On the test digits: cross-entropy, accuracy; largest load over the mean, the share of tokens
    without an expert. pairs: the most of an expert over ceil(T / E), in any step and in the test.
    """

    loss: float
    accuracy: float
    load: float
    lost: float
    pairs: float


class Loads:
    """A forward hook of a router, that keeps its newest routing and the largest column there was.

    A column's size is told over ceil(T / E).
    """

    def __init__(self) -> None:
        self.last: Routing | None = None
        self.most = 0.0

    def __call__(self, _: nn.Module, __: Any, routing: Routing) -> None:
        self.last = routing
        room = math.ceil(routing.tokens / routing.experts)
        self.most = max(self.most, int(routing.load().max()) / room)


@lru_cache
def train(router: RouterConfig, seed: int, steps: int = STEPS) -> Found:
    """A classifier with one mixture, from scratch; all test digits are one batch."""
    net = mix6.of_experts(router, seed=seed, layers=[LAYER])
    seen = Loads()
    mixture: Any = net.blocks[LAYER].mlp
    assert isinstance(mixture, Mixture)
    mixture.router.register_forward_hook(seen)
    fit(net, mix6.data("train"), epochs=mix6.epochs(steps), batch_size=mix6.BATCH, lr=LR, seed=seed)
    test = mix6.data("test")
    scores = class_scores(net, test, len(test))
    routing = seen.last
    assert routing is not None and routing.tokens == len(test)
    load = routing.load().double()
    lost = 1 - len(routing.token.unique()) / routing.tokens
    return Found(scores.loss, scores.accuracy, float(load.max() / load.mean()), lost, seen.most)


def judged(
    seeds: Sequence[int],
    report: Report,
    *,
    of: Callable[[Mapping[str, Found]], float],
    over: Callable[[Sequence[float]], float],
    steps: int = STEPS,
) -> Result:
    """A figure of each seed's arms, and their mean, largest or smallest as the result."""
    found = by_arm(ARMS, seeds, lambda router, seed: train(router, seed, steps), report)
    note = (
        f"MIX6 without marks, an MLP of six blocks from scratch with eight experts in block "
        f"{LAYER}; {steps} steps of {mix6.BATCH}, lr {LR}; equal steps for all. Load, pairs and "
        f"loss on the {len(mix6.data('test'))} test digits as one batch, in which k = ceil(T / E). "
        "The largest column is of all steps of training, too. A token without an expert keeps what "
        "the residual brings it. Both transport claims judge the same runs."
    )
    return judge(found, of, _row, note, over)


def _row(name: str, made: Sequence[Found]) -> dict[str, Any]:
    return {
        "router": name,
        "test loss": shown([m.loss for m in made], ".3f"),
        "accuracy %": f"{100 * statistics.mean(m.accuracy for m in made):.1f}",
        "largest load / mean": shown([m.load for m in made], ".3f"),
        "without an expert %": f"{100 * statistics.mean(m.lost for m in made):.1f}",
        "largest column / ceil(T / E)": f"{max(m.pairs for m in made):.3f}",
    }


def _ratio(arms: Mapping[str, Found]) -> float:
    return arms[PLAN].loss / arms[EVEN].loss


PAPER = "(arXiv:2209.15466). "

claim = partial(Claim, sense="<=", minutes=4)

CLAIMS = (
    claim(
        "transport-unbalanced",
        sentence="Without a balance loss top-1 is uneven, so that there is something to even out "
        + PAPER
        + "The largest load over the mean, the smallest of the seeds.",
        baseline="1 is even",
        bar=1.3,
        sense=">=",
        run=partial(judged, of=lambda arms: arms[FREE].load, over=min),
    ),
    claim(
        "transport-loss",
        system="Sparse optimal transport",
        sentence="The plan costs no accuracy " + PAPER + "Test cross-entropy after equal steps.",
        baseline="top-1 whose load is evened out by a balance loss of 0.01",
        bar=1.02,
        run=partial(judged, of=_ratio, over=statistics.mean),
    ),
)
