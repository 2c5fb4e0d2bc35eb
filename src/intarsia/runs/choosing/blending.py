"""A blend of candidates: the mean of their probabilities, chosen greedily by held-out loss.

Caruana and others, "Ensemble selection from libraries of models", 2004: begin with the best
candidate, and add, with replacement, whichever lowers the loss of the mean most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from ...train.folds import deal
from .judging import HeldOutAnswers, losses, order

MEMBERS = 3  # different candidates in a blend, at most
PICKS = 6  # so that weights are sixths at the finest
GROUPS = 5  # of held-out items, for the judgement of the choice itself
LEAST_GAIN = 1e-3  # of the mean loss, by which one more pick has to lower it

Choose = Callable[[Sequence[HeldOutAnswers]], "Blend"]
Affords = Callable[[Collection[int]], bool]
"""Whether there is time to train these candidates on everything."""


@dataclass(frozen=True)
class Blend:
    """Candidates by their positions, each with its weight; the weights add up to 1."""

    members: tuple[int, ...]
    weights: tuple[float, ...]

    def answers(self, candidates: Sequence[HeldOutAnswers]) -> HeldOutAnswers:
        """Return the blend's own answers: sum_k w_k p_k of its members' probabilities p."""
        first = candidates[self.members[0]]
        shares = torch.zeros_like(first.shares)
        for member, weight in zip(self.members, self.weights, strict=True):
            shares += weight * candidates[member].shares
        temperature = first.temperature if len(self.members) == 1 else 1.0
        return HeldOutAnswers.of_shares(first.picture, shares, first.labels, temperature)


def best_single(candidates: Sequence[HeldOutAnswers]) -> Blend:
    """Choose the candidate of the highest score, and among ties the one of the smallest loss."""
    return Blend((order(candidates)[0],), (1.0,))


def greedy(candidates: Sequence[HeldOutAnswers], affords: Affords = lambda _: True) -> Blend:
    """Choose up to MEMBERS candidates and their weights.

    candidates: answers of each to the same items, in the same order. affords: decides whether a
    blend of more than the best candidate may have these members.
    """
    labels = candidates[0].labels
    picks = list(best_single(candidates).members)
    total = candidates[picks[0]].shares
    loss = float(losses(total, labels).mean())
    while len(picks) < PICKS:
        members = {*picks}
        means = {
            k: (total + candidates[k].shares) / (len(picks) + 1)
            for k in range(len(candidates))
            if k in members or (len(members) < MEMBERS and affords({*members, k}))
        }
        trials = {k: float(losses(mean, labels).mean()) for k, mean in means.items()}
        best = min(trials, key=lambda k: trials[k])
        if trials[best] > loss - LEAST_GAIN:
            break
        picks.append(best)
        total, loss = total + candidates[best].shares, trials[best]
    return _of(picks)


def _of(picks: Sequence[int]) -> Blend:
    """Return the blend of some picks, the most frequent first."""
    counts = Counter(picks).most_common()
    return Blend(tuple(k for k, _ in counts), tuple(n / len(picks) for _, n in counts))


def chosen(
    candidates: Sequence[HeldOutAnswers],
    seed: int,
    affords: Affords = lambda _: True,
    *,
    one: bool = False,
) -> tuple[Blend, HeldOutAnswers]:
    """Choose a blend, or one candidate; return it, and honest answers of this way to choose.

    For the honest answers each of GROUPS groups of the items is answered by the choice made without
    it, so that their level is not the best of many on the very items that chose it. A blend is
    taken if its honest loss is below the single best's.
    candidates: answers of each to the same items, in the same order. seed: of the groups. affords:
    see `greedy`. one: take no blend.
    """
    ways: list[Choose] = [best_single]
    if not one and len(candidates) > 1:
        ways.append(partial(greedy, affords=affords))
    honest = [_nested(candidates, way, seed) for way in ways]
    best = int(np.argmin([answers.loss.mean() for answers in honest]))
    return ways[best](candidates), honest[best]


def _nested(candidates: Sequence[HeldOutAnswers], choose: Choose, seed: int) -> HeldOutAnswers:
    """Return answers in which each group of items is answered by the choice made without it."""
    first = candidates[0]
    groups = deal(first.labels.numpy(), GROUPS, seed)
    shares = torch.zeros_like(first.shares)
    for group in np.unique(groups):
        inside = np.flatnonzero(groups == group)
        outside = np.flatnonzero(groups != group)
        if not len(outside):  # a single group: there is nothing else to choose by
            outside = inside
        blend = choose([_rows(c, outside) for c in candidates])
        answers = blend.answers([_rows(c, inside) for c in candidates])
        shares[torch.from_numpy(inside)] = answers.shares
    return HeldOutAnswers.of_shares(first.picture, shares, first.labels)


def _rows(answers: HeldOutAnswers, rows: np.ndarray) -> HeldOutAnswers:
    """Return some rows of a candidate's answers."""
    index = torch.from_numpy(rows)
    return HeldOutAnswers(
        answers.picture[rows],
        answers.score[rows],
        answers.loss[rows],
        answers.shares[index],
        answers.labels[index],
        {},
        answers.temperature,
    )
