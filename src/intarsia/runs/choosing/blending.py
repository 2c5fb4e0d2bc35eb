"""A blend of candidates: the mean of their probabilities, chosen greedily by held-out loss.

Caruana and others, "Ensemble selection from libraries of models", 2004: begin with the best
candidate, and add, with replacement, whichever lowers the loss of the mean most. The best of many
on few items is partly luck, so a choice with an adapter keeps a share of the best converged probe,
and is given up for it where its honest answers are clearly behind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from ...train.folds import deal
from .judging import ROUNDING, HeldOutAnswers, gap, losses, order

MEMBERS = 3  # different candidates in a blend, at most, and the best probe
PICKS = 6  # so that weights are sixths at the finest
GROUPS = 5  # of held-out items, for the judgement of the choice itself
PROBE_SHARE = 0.25  # of a choice with an adapter, which the best probe has at least
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
    return _blend_of(picks)


def _blend_of(picks: Sequence[int]) -> Blend:
    """Return the blend of some picks, the most frequent first."""
    counts = Counter(picks).most_common()
    return Blend(tuple(k for k, _ in counts), tuple(n / len(picks) for _, n in counts))


def best_probe(candidates: Sequence[HeldOutAnswers], probes: Collection[int]) -> int:
    """Return the position of the probe with the most right answers; the loss decides a tie."""
    return min(probes, key=lambda k: (-candidates[k].score.mean(), candidates[k].loss.mean()))


def with_probe(
    candidates: Sequence[HeldOutAnswers],
    choose: Choose,
    probes: Collection[int],
    affords: Affords = lambda _: True,
) -> Blend:
    """Choose, and give the best probe PROBE_SHARE of a choice that has an adapter.

    probes: positions of the converged probes. The others' weights shrink alike. Without time for
    the probe's last fit the choice stays as it is.
    """
    blend = choose(candidates)
    weights = dict(zip(blend.members, blend.weights, strict=True))
    if not probes or weights.keys() <= {*probes}:
        return blend
    probe = best_probe(candidates, probes)
    if weights.get(probe, 0.0) >= PROBE_SHARE or not affords({*weights, probe}):
        return blend
    rest = 1 - weights.pop(probe, 0.0)
    weights = {k: (1 - PROBE_SHARE) * w / rest for k, w in weights.items()} | {probe: PROBE_SHARE}
    members = sorted(weights, key=lambda k: -weights[k])
    return Blend(tuple(members), tuple(weights[k] for k in members))


def ways(
    one: bool, probes: Collection[int] = (), affords: Affords = lambda _: True
) -> tuple[Choose, ...]:
    """Return the ways to choose: the best candidate and, unless `one` is wanted, a blend.

    With a blend allowed, both ways give the best probe a share of the choice, see `with_probe`.
    one: take no blend; probes: positions of the converged probes; affords: see `greedy`.
    """
    if one:
        return (best_single,)
    blend: Choose = partial(greedy, affords=affords)
    return tuple(
        partial(with_probe, choose=way, probes=probes, affords=affords)
        for way in (best_single, blend)
    )


def chosen(
    candidates: Sequence[HeldOutAnswers],
    seed: int,
    affords: Affords = lambda _: True,
    *,
    one: bool = False,
    probes: Collection[int] = (),
) -> tuple[Blend, HeldOutAnswers]:
    """Choose a blend, or one candidate; return it, and honest answers of this way to choose.

    For the honest answers each of GROUPS groups of the items is answered by the choice made without
    it, so that their level is not the best of many on the very items that chose it. A blend is
    taken if its honest loss is below the single best's. Where these answers are behind the best
    probe's by more than one standard error, that probe is the choice.
    candidates: answers of each to the same items, in the same order. seed: of the groups. affords:
    see `greedy`. one: take no blend. probes: positions of the converged probes, see `with_probe`.
    """
    choices = ways(one or len(candidates) == 1, probes, affords)
    honest = [_nested(candidates, way, seed) for way in choices]
    best = int(np.argmin([answers.loss.mean() for answers in honest]))
    if probes:
        ahead, error = gap(honest[best], candidates[best_probe(candidates, probes)], "score")
        if ahead < -error - ROUNDING:
            probe: Choose = lambda rows: Blend((best_probe(rows, probes),), (1.0,))  # noqa: E731
            return probe(candidates), _nested(candidates, probe, seed)
    return choices[best](candidates), honest[best]


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
