"""Judgement of candidates by their answers to pictures that they were not trained on.

All candidates answer the same pictures, so that two of them are compared picture by picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import label_ranking_average_precision_score
from torch import Tensor

from ...reports.statistics import PairedInterval, paired_interval
from ...train.scores import Metrics, comparing_temperature
from ...train.tasks import MultiLabel

LEAST = 1e-12  # probability
ROUNDING = 1e-9  # one picture more is a tie: its mean and its standard error are the same, 1 / n


@dataclass(frozen=True, eq=False)
class HeldOutAnswers:
    """A candidate's answers to held-out pictures, one row for each.

    picture: (m,) their numbers.  score: (m,), 1 for a right answer and 0 for a wrong one; where a
    picture may have several labels, the ranking precision of its answer.  loss: (m,) cross-entropy.
    shares: (m, classes), the probabilities after one temperature for all rows.  labels: (m,) class
    numbers, or (m, classes) of 0 and 1.  totals: scores of all rows together, by name.
    temperature: by which logits were divided.
    """

    picture: np.ndarray
    score: np.ndarray
    loss: np.ndarray
    shares: Tensor
    labels: Tensor
    totals: Mapping[str, float]
    temperature: float = 1.0

    @classmethod
    def of(cls, parts: Sequence[tuple[np.ndarray, Tensor, Tensor]]) -> HeldOutAnswers:
        """Join and score a candidate's answers to held-out pictures, from several trainings.

        parts: one tuple for each training: the numbers of the pictures (n,), logits (n, classes),
        and labels (n,), or (n, classes) of 0 and 1 where a picture may have several.
        """
        picture = np.concatenate([part[0] for part in parts])
        logits, labels = torch.cat([p[1] for p in parts]).double(), torch.cat([p[2] for p in parts])
        if labels.ndim == 2:  # several labels for each picture: no temperature is fitted
            return cls.of_shares(picture, logits.sigmoid(), labels)
        # losses are compared at the best temperature, since a badly scaled output is easily mended
        temperature = comparing_temperature(logits, labels)
        return cls.of_shares(picture, (logits / temperature).softmax(1), labels, temperature)

    @classmethod
    def of_shares(
        cls, picture: np.ndarray, shares: Tensor, labels: Tensor, temperature: float = 1.0
    ) -> HeldOutAnswers:
        """Score probabilities (m, classes) of some pictures against their labels."""
        loss = losses(shares, labels)
        if labels.ndim == 2:
            rows = zip(labels.numpy(), shares.numpy(), strict=True)
            ranked = [label_ranking_average_precision_score(y[None], z[None]) for y, z in rows]
            totals = MultiLabel().scores(shares.logit(eps=LEAST), labels).scores()
            score = np.array(ranked, float)
        else:
            totals = Metrics.of(shares.clamp(LEAST, 1.0).log(), labels).scores()
            score = (shares.argmax(1) == labels).double().numpy()
        totals = totals | {"tempered_loss": float(loss.mean())}
        return cls(picture, score, loss.numpy(), shares, labels, totals, temperature)

    @property
    def pictures(self) -> int:
        """The number of different pictures."""
        return len(np.unique(self.picture))

    def shared_rows(self, second: HeldOutAnswers) -> tuple[np.ndarray, np.ndarray]:
        """Match the rows of two candidates' answers that are for the same picture.

        second: the other candidate's answers. Returns two index arrays of equal length: row a[i] of
        these answers and row b[i] of the others belong together.
        """
        numbers = self.picture, second.picture
        _, own_rows, second_rows = np.intersect1d(*numbers, assume_unique=True, return_indices=True)
        return own_rows, second_rows


def losses(shares: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each item, (m,), of probabilities (m, classes).

    labels: (m,) class numbers; or (m, classes) of 0 and 1: then the mean over the labels.
    """
    shares = shares.clamp(LEAST, 1.0)
    if labels.ndim == 1:
        return -shares.log().gather(1, labels[:, None])[:, 0]
    truth, complements = labels.double(), (1 - shares).clamp(LEAST, 1.0)
    return -(truth * shares.log() + (1 - truth) * complements.log()).mean(1)


def gap(first: HeldOutAnswers, second: HeldOutAnswers, by: str) -> tuple[float, float]:
    """Compute how far one candidate is ahead of another: a mean difference and its standard error.

    first, second: their answers; the difference is first minus second, on the pictures that both
    answered. by: the field to compare, "score" or "loss". Returns (0, infinity) for fewer than two
    shared pictures.
    """
    rows_of_first, rows_of_second = first.shared_rows(second)
    differences = getattr(first, by)[rows_of_first] - getattr(second, by)[rows_of_second]
    if len(differences) < 2:
        return 0.0, float("inf")
    return float(differences.mean()), float(differences.std(ddof=1) / len(differences) ** 0.5)


def behind(answers: HeldOutAnswers, leader: HeldOutAnswers) -> bool:
    """Decide whether a candidate may be given up: its score is not better, its loss clearly higher.

    Clearly: by more than one standard error of the paired difference.
    answers: the candidate's; leader: the answers of the best candidate so far.
    """
    score, _ = gap(answers, leader, "score")
    loss, error = gap(answers, leader, "loss")
    return score <= 0 and loss > error


def order(candidates: Sequence[HeldOutAnswers]) -> list[int]:
    """Rank the candidates; return their positions in `candidates`, the best first.

    candidates: the answers of each to held-out pictures. A candidate ties with the one of highest
    score if the paired difference between them is at most one standard error. Those that tie come
    first, ordered by loss; the rest follow by score, then by loss.
    """
    ranked = sorted(
        range(len(candidates)),
        key=lambda i: (-candidates[i].score.mean(), candidates[i].loss.mean()),
    )
    gaps_to_first = {i: gap(candidates[ranked[0]], candidates[i], "score") for i in ranked}
    tied = [i for i in ranked if gaps_to_first[i][0] <= gaps_to_first[i][1] + ROUNDING]
    tied.sort(key=lambda i: candidates[i].loss.mean())
    return tied + [i for i in ranked if i not in tied]


def interval(first: HeldOutAnswers, second: HeldOutAnswers) -> PairedInterval | None:
    """Compute the mean paired difference of two candidates' scores, with its 95 % interval.

    first, second: their answers; the difference is first minus second, on the pictures that both
    answered. None if they share no picture.
    """
    rows_of_first, rows_of_second = first.shared_rows(second)
    if not len(rows_of_first):
        return None
    # Right or wrong answers allow McNemar's test; ranking precisions are real numbers.
    binary = bool(np.isin(first.score, (0, 1)).all() and np.isin(second.score, (0, 1)).all())
    kind = bool if binary else float
    return paired_interval(
        [first.picture[rows_of_first]],
        [first.score[rows_of_first].astype(kind)],
        [second.score[rows_of_second].astype(kind)],
    )
