"""Judgement of candidates by their answers to pictures that they were not trained on.

All candidates answer the same pictures, so that two of them are compared picture by picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import label_ranking_average_precision_score
from torch import Tensor

from ..reports.statistics import PairedInterval, paired_interval
from ..train.scores import Metrics, best_temperature
from ..train.tasks import MultiLabel

ROUNDING = 1e-9  # one picture more is a tie: its mean and its standard error are the same, 1 / n


@dataclass(frozen=True, eq=False)
class HeldOutAnswers:
    """A candidate's answers to held-out pictures, one row for each picture and training seed.

    picture, seed: (m,).  score: (m,), 1 for a right answer and 0 for a wrong one; where a picture
    may have several labels, the ranking precision of its logits.  loss: (m,) cross-entropy after
    one temperature for all rows.  totals: scores of all rows together, by name.
    """

    picture: np.ndarray
    seed: np.ndarray
    score: np.ndarray
    loss: np.ndarray
    totals: Mapping[str, float]

    @classmethod
    def of(cls, parts: Sequence[tuple[int, np.ndarray, Tensor, Tensor]]) -> HeldOutAnswers:
        """Join and score a candidate's answers to held-out pictures, from several trainings.

        parts: one tuple for each training: its seed, the numbers of the pictures (n,), logits (n,
        classes), and labels (n,), or (n, classes) of 0 and 1 where a picture may have several.
        """
        picture = np.concatenate([part[1] for part in parts])
        seed = np.concatenate([np.full(len(part[1]), part[0]) for part in parts])
        logits, labels = torch.cat([p[2] for p in parts]), torch.cat([p[3] for p in parts])
        # several labels for each picture: rank them, and fit no temperature
        if labels.ndim == 2:
            rows = zip(labels.numpy(), logits.numpy(), strict=True)
            ranked = [label_ranking_average_precision_score(y[None], z[None]) for y, z in rows]
            loss = F.binary_cross_entropy_with_logits(
                logits.double(), labels.double(), reduction="none"
            ).mean(1)
            totals = MultiLabel().scores(logits, labels).scores()
            return cls(picture, seed, np.array(ranked, float), loss.numpy(), totals)
        right = (logits.argmax(1) == labels).double()
        # Losses are compared at the best temperature, since a badly scaled output is easily mended.
        # There is none where the answers do not determine it: then the logits stay as they are.
        temperature = best_temperature(logits, labels) or 1.0
        loss = F.cross_entropy(logits.double() / temperature, labels, reduction="none")
        totals = Metrics.of(logits, labels).scores() | {"tempered_loss": float(loss.mean())}
        return cls(picture, seed, right.numpy(), loss.numpy(), totals)

    @property
    def pictures(self) -> int:
        """The number of different pictures."""
        return len(np.unique(self.picture))

    def shared_rows(self, second: HeldOutAnswers) -> tuple[np.ndarray, np.ndarray]:
        """Match the rows of two candidates' answers that are for the same picture and seed.

        second: the other candidate's answers. Returns two index arrays of equal length: row a[i] of
        these answers and row b[i] of the others belong together.
        """
        # Seed and picture in one integer.
        keys = [(a.seed.astype(np.int64) << 32) + a.picture for a in (self, second)]
        _, own_rows, second_rows = np.intersect1d(*keys, assume_unique=True, return_indices=True)
        return own_rows, second_rows


def gap(first: HeldOutAnswers, second: HeldOutAnswers, by: str) -> tuple[float, float]:
    """Compute how far one candidate is ahead of another: a mean difference and its standard error.

    first, second: their answers; the difference is first minus second, on the pictures that both
    answered. by: the field to compare, "score" or "loss". Differences of one picture at several
    seeds are averaged first. Returns (0, infinity) for fewer than two shared pictures.
    """
    rows_of_first, rows_of_second = first.shared_rows(second)
    _, picture_index = np.unique(first.picture[rows_of_first], return_inverse=True)
    differences = getattr(first, by)[rows_of_first] - getattr(second, by)[rows_of_second]
    # Seeds of a picture are not independent: they are averaged before the standard error.
    per_picture = (
        np.bincount(picture_index, differences) / np.bincount(picture_index)
        if len(differences)
        else differences
    )
    if len(per_picture) < 2:
        return 0.0, float("inf")
    return float(per_picture.mean()), float(per_picture.std(ddof=1) / len(per_picture) ** 0.5)


def behind(answers: HeldOutAnswers, leader: HeldOutAnswers) -> bool:
    """Decide whether a candidate may be given up: its score is not better, its loss clearly higher.

    Clearly: by more than one standard error of the paired difference.
    answers: those of the candidate; leader: those of the best candidate so far.
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
    answered with the same seed. None if they share no picture.
    """
    rows_of_first, rows_of_second = first.shared_rows(second)
    # one group of pictures for each training seed
    seeds = [first.seed[rows_of_first] == seed for seed in np.unique(first.seed[rows_of_first])]
    if not seeds:
        return None
    # Right or wrong answers allow McNemar's test; ranking precisions are real numbers.
    binary = bool(np.isin(first.score, (0, 1)).all() and np.isin(second.score, (0, 1)).all())
    kind = bool if binary else float
    return paired_interval(
        [first.picture[rows_of_first][rows] for rows in seeds],
        [first.score[rows_of_first][rows].astype(kind) for rows in seeds],
        [second.score[rows_of_second][rows].astype(kind) for rows in seeds],
    )
