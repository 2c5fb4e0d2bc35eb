"""Which expert a text belongs to: the mean probability that routers give each, and its lift."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.checks import one_of
from ..core.errors import ConfigError, DataError
from ..placement.trace import Trace
from .tracing import trace

BY = ("affinity", "lift")
FEW = 10_000  # tokens; the paper has 100,000 and more
FLAT = 0.95  # of log E


@dataclass(frozen=True)
class Attribution:
    """affinity s_le: the mean over sequences of the mean over tokens of the probability p_le.

    affinity: (L, E) float64, each layer sums to 1;  others: the same of another text, or None;
    names: paths of the layers;  tokens: how many were seen.
    lift = affinity / others: how much more often the text has an expert than other text has.

    Source: arXiv:2411.18797, expert attribution; lift is not of the paper.
    """

    affinity: Tensor
    names: tuple[str, ...]
    tokens: int
    others: Tensor | None = None

    @classmethod
    def of(cls, text: Trace, others: Trace | None = None) -> Attribution:
        """From traces: best recorded with probabilities=True, else from the weights of k experts.

        Raises: DataError for traces of different models, or without weights.
        """
        if others is not None and (others.layers, others.experts) != (text.layers, text.experts):
            got = f"{others.layers} layers of {others.experts} experts"
            want, fix = f"{text.layers} of {text.experts}", "Trace both texts with one model."
            raise DataError("the other trace", got=got, want=want, fix=fix)
        beside = None if others is None else affinity(others)
        return cls(affinity(text), text.names, len(text), beside)

    @property
    def lift(self) -> Tensor:
        """(L, E).  Raises: ConfigError without another text."""
        if self.others is None:
            fix = "Give the text that is to stay, too."
            raise ConfigError("lift", got="one text", want="another beside it", fix=fix)
        return self.affinity / self.others.clamp(min=1e-12)

    @property
    def entropy(self) -> Tensor:
        """Of each layer, over log E: 1 where all experts are alike.  (L,)"""
        p = self.affinity.clamp(min=1e-12)
        return -(p * p.log()).sum(1) / math.log(max(2, p.shape[1]))

    def best(self, by: str = "affinity") -> tuple[int, int]:
        """(layer, expert) of the largest affinity, or lift, of all layers.

        Raises: ConfigError for another way.
        """
        one_of("by", by, BY)
        score = self.affinity if by == "affinity" else self.lift
        at = int(score.argmax())
        return at // score.shape[1], at % score.shape[1]

    def doubts(self, at: tuple[int, int]) -> tuple[str, ...]:
        """Reasons not to trust the choice of (layer, expert); none if there is none."""
        found: list[str] = []
        if self.tokens < FEW:
            found.append(f"experts are attributed from {self.tokens} tokens; give {FEW} or more")
        entropy, share = float(self.entropy[at[0]]), float(self.affinity[at])
        if entropy > FLAT:
            found.append(
                f"layer {at[0]} gives its experts nearly equal shares of this text (entropy "
                f"{entropy:.2f} of 1, its expert {at[1]} has {share:.2f}): one expert holds little"
            )
        return tuple(found)


def affinity(of: Trace) -> Tensor:
    """Mean over sequences of the mean over tokens of each expert's weight.  -> (L, E) float64.

    Raises: DataError for a trace without weights.
    """
    if of.weight is None:
        fix = "Record it with trace(model, texts, probabilities=True)."
        raise DataError("trace", got="no weights", want="probabilities", fix=fix)
    names, row, counts = of.sequence.unique(return_inverse=True, return_counts=True)
    share = 1.0 / (len(names) * counts.double())[row]  # (N,)
    total = torch.zeros(of.layers, of.experts + 1, dtype=torch.float64)
    weight = of.weight.double()
    weight = weight / weight.sum(2, keepdim=True).clamp(min=1e-12)
    for layer in range(of.layers):
        expert = of.expert[:, layer].long()  # (N, k)
        where = torch.where(expert < 0, of.experts, expert)
        total[layer].index_add_(0, where.flatten(), (weight[:, layer] * share[:, None]).flatten())
    return total[:, : of.experts]


def attribute_experts(
    model: nn.Module, forget: Iterable[Any], retain: Iterable[Any] | None = None
) -> Attribution:
    """Which experts a sparse model has for a text.  forget, retain: rows, as of `trace`.

    The paper uses 100,000 tokens and more. Shared experts, which every token passes, do not count.
    Raises: TargetError for a model without experts; DataError for no texts.
    Source: arXiv:2411.18797.
    """
    return Attribution.of(
        trace(model, forget, probabilities=True),
        None if retain is None else trace(model, retain, probabilities=True),
    )
