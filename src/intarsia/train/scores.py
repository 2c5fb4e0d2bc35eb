"""The scores of a set, by task."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, recall_score
from torch import Tensor


class Scores(abc.ABC):
    """Scores of a set: named numbers, the loss among them."""

    loss: float

    @abc.abstractmethod
    def scores(self) -> dict[str, float]:
        """Return the numbers by name, for JSON."""

    @property
    def best(self) -> float:
        """The number by which select="val" compares epochs; higher is better."""
        return -self.loss

    @property
    def predictions(self) -> dict[str, Tensor]:
        """The tensors for the run folder, one row a sample; empty where they would be large."""
        return {}


@dataclass(frozen=True)
class Metrics(Scores):
    """Scores of a set of n images, in its own order.

    loss: mean cross-entropy; accuracy: share of right answers; balanced_accuracy: mean over the
    classes that occur of the share of right answers; ece: see `calibration_error`.
    logits: (n, classes); labels: (n,).  extra: scores that only some tasks have.
    """

    loss: float
    accuracy: float
    balanced_accuracy: float
    ece: float
    logits: Tensor
    labels: Tensor
    extra: Mapping[str, float] = field(default_factory=dict[str, float])

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> Metrics:
        """Compute the scores of a classifier: logits (n, classes) against labels (n,)."""
        guess, truth = logits.argmax(1).numpy(), labels.numpy()
        present = np.unique(truth)
        return cls(
            loss=float(F.cross_entropy(logits.double(), labels)),
            accuracy=float(accuracy_score(truth, guess)),
            balanced_accuracy=float(recall_score(truth, guess, labels=present, average="macro")),
            ece=calibration_error(logits, labels),
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
        names = ("loss", "accuracy", "balanced_accuracy", "ece")
        return {name: getattr(self, name) for name in names} | dict(self.extra)

    def tempered(self, val: Metrics) -> Metrics:
        """Add the loss after the logits are divided by one temperature, fitted on validation.

        It adds `temperature` and `tempered_loss`; the accuracy stays the same. val: scores of the
        validation part; where it is too small to fit a temperature, nothing is added, see
        `best_temperature`.
        """
        fitted = best_temperature(val.logits, val.labels)
        return self if fitted is None else self.tempered_by(fitted)

    def tempered_by(self, t: float) -> Metrics:
        """Add the loss of logits / t.  t: a temperature that was not fitted on these logits."""
        loss = float(F.cross_entropy(self.logits.double() / t, self.labels))
        tempered = {"temperature": t, "tempered_loss": loss}
        return replace(self, extra=dict(self.extra) | tempered)


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Compute the expected calibration error (ECE), sum_b n_b / n |accuracy_b - confidence_b|.

    Samples are put into equal bins b by their confidence, the highest probability. logits: (n,
    classes); labels: (n,). NaN where a logit is.
    Source: arXiv:1706.04599.
    """
    confidence, guess = logits.double().softmax(1).max(1)
    if not confidence.isfinite().all():
        return math.nan
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1  # bin b holds ((b-1)/M, b/M]
    # sum_b |sum of gaps in b| / n equals sum_b n_b / n |accuracy_b - confidence_b|
    gap = (guess == labels).double() - confidence
    return float(gap.new_zeros(bins).index_add(0, place, gap).abs().sum() / max(1, len(gap)))


def tempered_loss(logits: Tensor, labels: Tensor) -> float:
    """Compute the mean loss of logits / T at their temperature T, see `comparing_temperature`.

    logits: (n, classes).  labels: (n,); or (n, classes) of 0 and 1, where several apply: then it is
    the mean binary cross-entropy as it stands.
    """
    wide = logits.double()
    if labels.ndim == 2:
        return float(F.binary_cross_entropy_with_logits(wide, labels.double()))
    return float(F.cross_entropy(wide / comparing_temperature(logits, labels), labels))


def wrong_and_loss(logits: Tensor, labels: Tensor) -> tuple[int, float]:
    """Count the wrong answers and compute their `tempered_loss`: the better answers sort first.

    logits: (n, classes).  labels: (n,); or (n, classes) of 0 and 1, where several apply: then the
    loss alone decides.
    """
    wrong = int((logits.argmax(1) != labels).sum()) if labels.ndim == 1 else 0
    return wrong, tempered_loss(logits, labels)


def best_temperature(
    logits: Tensor, labels: Tensor, prior: float = 0.5, certainty: float = 0.25
) -> float | None:
    """Fit the temperature T of logits / T on a part of the data that was not trained on.

    The result is the most probable T: log T ~ N(0, prior^2) in advance, and the labels' likelihood.
      The paper has the likelihood alone: its T falls to 0 on a part without a mistake and is
      unreliable for a small one; with 2,000 samples the prior has no effect. None where the data do
      not suffice: no mistake, a standard deviation of log T (Laplace's) above `certainty`, or a
      logit that is not finite.
    logits: (n, classes); labels: (n,).
    Source: arXiv:1706.04599, section 4.2.
    """
    # without a mistake the likelihood alone would let T fall to 0
    if not logits.isfinite().all() or bool((logits.argmax(1) == labels).all()):
        return None
    temperature, curvature = _most_probable(logits, labels, prior)
    return temperature if curvature > certainty**-2 else None


def comparing_temperature(logits: Tensor, labels: Tensor, prior: float = 0.5) -> float:
    """Fit the temperature at which answers are compared with others' answers to the same samples.

    The most probable T of `best_temperature`, however uncertain it is: two classifiers are not
    compared at a temperature of the one and the scale as it came of the other. 1 if a logit is not
    finite. logits: (n, classes); labels: (n,).
    """
    return _most_probable(logits, labels, prior)[0] if logits.isfinite().all() else 1.0


def _most_probable(logits: Tensor, labels: Tensor, prior: float) -> tuple[float, float]:
    """Return the most probable temperature, and the inverse variance of its log by Laplace."""
    from scipy.optimize import minimize_scalar  # a third of a second, needed once

    wide = logits.double()

    def energy(log_t: float) -> float:
        loss = F.cross_entropy(wide / math.exp(log_t), labels, reduction="sum")
        return float(loss) + (log_t / prior) ** 2 / 2

    # eight standard deviations of the prior: no temperature lies beyond
    reach = 8 * prior
    minimum: Any = minimize_scalar(energy, bounds=(-reach, reach), method="bounded")
    best, step = float(minimum.x), 1e-3
    # the second difference of the energy
    curvature = (energy(best + step) - 2 * energy(best) + energy(best - step)) / step**2
    return math.exp(best), curvature


@dataclass(frozen=True)
class TokenMetrics(Scores):
    """Scores of texts: of the tokens that have a label, each predicted from all before it.

    loss: mean cross-entropy in nats; accuracy: share of tokens that are the likeliest one;
    exact_match: share of texts with every such token right, which is what greedy generation from
    the text before them would give; tokens: how many.
    rows: (n, 3) of each text, its loss, tokens and hits.
    """

    loss: float
    accuracy: float
    exact_match: float
    tokens: int
    rows: Tensor

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        # exp of more than 709 overflows
        return math.exp(min(self.loss, 700.0))

    @property
    def predictions(self) -> dict[str, Tensor]:
        # counts are whole numbers, and small in a file
        loss, tokens, hits = self.rows.unbind(1)
        return {"loss": loss.clone(), "tokens": tokens.int(), "hits": hits.int()}

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
        # a lower loss is better
        return -self.loss if self.by is None else self.values[self.by]

    @property
    def predictions(self) -> dict[str, Tensor]:
        return dict(self.kept)

    def scores(self) -> dict[str, float]:
        return dict(self.values)


def ranking(ranks: Tensor, k: int) -> dict[str, float]:
    """Compute hit rate and NDCG at k, and mean reciprocal rank, for one right item in each row.

    ranks: (n,), the rank of the right item, 1 = best; k: the length of the list that counts. Equal
      to scikit-learn's `top_k_accuracy_score`, `ndcg_score` and
      `label_ranking_average_precision_score`, which need the scores of all items in memory.
    """
    ranks = ranks.double()
    # with one right item the ideal DCG is 1, so that NDCG is 1 / log2(rank + 1)
    inside = (ranks <= k).double()
    return {
        f"hit_rate_{k}": float(inside.mean()),
        f"ndcg_{k}": float((inside / (ranks + 1).log2()).mean()),
        "reciprocal_rank": float((1 / ranks).mean()),
    }


def rank_of(score: Tensor, scores: Tensor) -> Tensor:
    """Rank a score among its row's scores, 1 = best; of equal scores it is the last.

    score: (n,); scores: (n, V). Returns (n,).
    """
    return (~(scores < score[:, None])).sum(1)  # a NaN is the worst of all
