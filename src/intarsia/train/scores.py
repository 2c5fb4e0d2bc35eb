"""The scores of a set, by task."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, recall_score
from torch import Tensor


class Scores(abc.ABC):
    """Scores of a set: named numbers, the loss among them."""

    loss: float

    @abc.abstractmethod
    def scores(self) -> dict[str, float]:
        """The numbers, for JSON."""

    @property
    def best(self) -> float:
        """What select="val" looks at; higher is better."""
        return -self.loss

    @property
    def predictions(self) -> dict[str, Tensor]:
        """What is kept in the run folder, one row a sample; empty where that would be large."""
        return {}


@dataclass(frozen=True)
class Metrics(Scores):
    """Scores of a set of n images, in its own order.

    loss: mean cross-entropy; accuracy: share of right answers; balanced_accuracy: mean over the
    classes that occur of the share of right answers.  logits: (n, classes); labels: (n,).
    extra: scores that only some tasks have.
    """

    loss: float
    accuracy: float
    balanced_accuracy: float
    logits: Tensor
    labels: Tensor
    extra: Mapping[str, float] = field(default_factory=dict[str, float])

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> Metrics:
        """Scores of logits (n, classes) against labels (n,)."""
        guess, truth = logits.argmax(1).numpy(), labels.numpy()
        shown = np.unique(truth)
        return cls(
            loss=float(F.cross_entropy(logits.double(), labels)),
            accuracy=float(accuracy_score(truth, guess)),
            balanced_accuracy=float(recall_score(truth, guess, labels=shown, average="macro")),
            logits=logits,
            labels=labels,
        )

    @property
    def best(self) -> float:
        return self.accuracy

    @property
    def predictions(self) -> dict[str, Tensor]:
        return {"logits": self.logits, "labels": self.labels}

    def scores(self) -> dict[str, float]:
        names = ("loss", "accuracy", "balanced_accuracy")
        return {name: getattr(self, name) for name in names} | dict(self.extra)


@dataclass(frozen=True)
class TokenMetrics(Scores):
    """Scores of texts: of the tokens that have a label, each predicted from all before it.

    loss: mean cross-entropy in nats; accuracy: share of tokens that are the likeliest one;
    exact_match: share of texts with every such token right, which is what greedy generation from
    the text before them would give; tokens: how many.
    """

    loss: float
    accuracy: float
    exact_match: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))

    def scores(self) -> dict[str, float]:
        names = ("loss", "perplexity", "accuracy", "exact_match", "tokens")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Named(Scores):
    """Scores by name: `values["ndcg"]`.  by: the one that select="val" looks at, None = the loss.

    kept: predictions, one row a sample.
    """

    values: Mapping[str, float]
    by: str | None = None
    kept: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    @property
    def loss(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.values["loss"]

    @property
    def best(self) -> float:
        return -self.loss if self.by is None else self.values[self.by]

    @property
    def predictions(self) -> dict[str, Tensor]:
        return dict(self.kept)

    def scores(self) -> dict[str, float]:
        return dict(self.values)


def ranking(ranks: Tensor, k: int) -> dict[str, float]:
    """Hit rate and NDCG among the first k, and mean reciprocal rank, of one right item a row.

    ranks: (n,), 1 = best.  scikit-learn's `top_k_accuracy_score`, `ndcg_score` and
    `label_ranking_average_precision_score`, which need the scores of all items in memory.
    """
    ranks = ranks.double()
    inside = (ranks <= k).double()
    return {
        f"hit_rate_{k}": float(inside.mean()),
        f"ndcg_{k}": float((inside / (ranks + 1).log2()).mean()),
        "reciprocal_rank": float((1 / ranks).mean()),
    }


def rank_of(own: Tensor, scores: Tensor) -> Tensor:
    """The place of a score among its row's, ties at the worst of theirs.  (n,), (n, V) -> (n,)."""
    return (~(scores < own[:, None])).sum(1)  # a NaN is the worst of all
