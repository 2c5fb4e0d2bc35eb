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
FLAT = 0.95  # share of log E above which a layer's affinities count as equal


@dataclass(frozen=True)
class Attribution:
    """Affinity of a text to the experts of every layer, and its lift over another text.

    affinity: (L, E) float64, L layers of E experts. Entry (l, e) is the mean over sequences of the
    mean over tokens of the probability that the router of layer l gives to expert e; each layer
    sums to 1.
    reference: the same for another text, or None; lift = affinity / reference: how much more often
    the text is routed to an expert than the reference text is.
    names: paths of the layers;  tokens: number of tokens of the text.

    Source: arXiv:2411.18797, expert attribution; lift is not of the paper.
    """

    affinity: Tensor
    names: tuple[str, ...]
    tokens: int
    reference: Tensor | None = None

    @classmethod
    def of(cls, text: Trace, reference: Trace | None = None) -> Attribution:
        """Compute the affinities of a text, and of a reference text, from recorded routings.

        text, reference: best recorded with probabilities=True; otherwise the weights of the k
        experts of each token stand for the probabilities.
        Raises: DataError for traces of different models, or without weights.
        """
        if reference is not None and (reference.layers, reference.experts) != (
            text.layers,
            text.experts,
        ):
            got = f"{reference.layers} layers of {reference.experts} experts"
            want, fix = f"{text.layers} of {text.experts}", "Trace both texts with one model."
            raise DataError("the other trace", got=got, want=want, fix=fix)
        reference_affinity = None if reference is None else affinity(reference)
        return cls(affinity(text), text.names, len(text), reference_affinity)

    @property
    def lift(self) -> Tensor:
        """Ratio of the text's affinity to the reference's, (L, E).

        Raises: ConfigError without a reference.
        """
        if self.reference is None:
            fix = "Give the text that is to stay, too."
            raise ConfigError("lift", got="one text", want="another beside it", fix=fix)
        # an expert that the reference text never reaches must not divide by zero
        return self.affinity / self.reference.clamp(min=1e-12)

    @property
    def entropy(self) -> Tensor:
        """Entropy of each layer's affinities over log E, (L,): 1 where all experts are alike."""
        p = self.affinity.clamp(min=1e-12)
        return -(p * p.log()).sum(1) / math.log(max(2, p.shape[1]))

    def best(self, by: str = "affinity") -> tuple[int, int]:
        """Return (layer, expert) of the largest value over all layers.

        by: "affinity" or "lift". Raises: ConfigError for another value.
        """
        one_of("by", by, BY)
        score = self.affinity if by == "affinity" else self.lift
        index = int(score.argmax())
        return index // score.shape[1], index % score.shape[1]

    def doubts(self, expert: tuple[int, int]) -> tuple[str, ...]:
        """Return the reasons not to trust the choice of an expert, as sentences; empty if none."""
        reasons: list[str] = []
        if self.tokens < FEW:
            reasons.append(f"experts are attributed from {self.tokens} tokens; give {FEW} or more")
        entropy, share = float(self.entropy[expert[0]]), float(self.affinity[expert])
        if entropy > FLAT:
            reasons.append(
                f"layer {expert[0]} gives its experts nearly equal shares of this text (entropy "
                f"{entropy:.2f} of 1, its expert {expert[1]} has {share:.2f}): "
                "one expert holds little"
            )
        return tuple(reasons)


def affinity(routes: Trace) -> Tensor:
    """Average each expert's weight over a sequence's tokens, then over sequences, (L, E) float64.

    routes: a trace with weights; its L layers have E experts.
    Raises: DataError for a trace without weights.
    """
    if routes.weight is None:
        fix = "Record it with trace(model, texts, probabilities=True)."
        raise DataError("trace", got="no weights", want="probabilities", fix=fix)
    # each token counts 1 / (sequences x tokens of its sequence), so that long texts do not outweigh
    names, row, counts = routes.sequence.unique(return_inverse=True, return_counts=True)
    share = 1.0 / (len(names) * counts.double())[row]  # (N,)
    # the last column collects the entries of tokens with fewer than k experts, and is cut off
    total = torch.zeros(routes.layers, routes.experts + 1, dtype=torch.float64)
    weight = routes.weight.double()
    weight = weight / weight.sum(2, keepdim=True).clamp(min=1e-12)
    for layer in range(routes.layers):
        expert = routes.expert[:, layer].long()  # (N, k)
        column = torch.where(expert < 0, routes.experts, expert)
        total[layer].index_add_(0, column.flatten(), (weight[:, layer] * share[:, None]).flatten())
    return total[:, : routes.experts]


def attribute_experts(
    model: nn.Module, forget: Iterable[Any], retain: Iterable[Any] | None = None
) -> Attribution:
    """Measure how strongly the experts of a sparse model belong to a text.

    model: with routers; forget: the text, as rows for `trace`; retain: another text to compare
    with, or None. The paper uses 100,000 tokens and more. Shared experts, which every token passes,
    do not count.
    Raises: TargetError for a model without experts; DataError for no texts.
    Source: arXiv:2411.18797.
    """
    return Attribution.of(
        trace(model, forget, probabilities=True),
        None if retain is None else trace(model, retain, probabilities=True),
    )
