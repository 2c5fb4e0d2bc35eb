"""Averages of models that share one mask (Sparse Model Soups, arXiv:2306.16788, section 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from ..core.errors import ConfigError

State = Mapping[str, Tensor]


def mixed(
    states: Sequence[State], weights: Sequence[float] | None = None, names: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Return sum_i w_i theta_i, tensor by tensor; a weight that is 0 in one must be 0 in all.

    states: theta_i, state dicts of one architecture; weights: w_i, 0 or more, adding up to 1; None
      = 1 / m each.  names: the candidates', for errors.  Whole numbers (a batch norm's counter)
      are the first candidate's.
    The mean is taken as theta_1 + sum w_i (theta_i - theta_1) in float64, so that candidates that
    are equal give their own bits, and zeros stay zeros. Statistics of batch norms do not average:
    count them again from data before the result is used (`intarsia merge` and `fit` do).
    Raises: ConfigError for less than two candidates, or for candidates that differ in names,
    shapes, types or zeros; for weights that are no shares.
    """
    names = list(names) or [str(i + 1) for i in range(len(states))]
    check_alike(states, names)
    shares = _shares(weights, len(states))
    averaged: dict[str, Tensor] = {}
    for name, first in states[0].items():
        if not first.is_floating_point():
            averaged[name] = first.clone()
            continue
        # theta_1 + sum w_i (theta_i - theta_1): equal candidates keep their bits
        base = first.double()
        for state, share in zip(states[1:], shares[1:], strict=True):
            base = base + share * (state[name].double() - first.double())
        averaged[name] = base.to(first.dtype)
    return averaged


@dataclass(frozen=True)
class GreedySoup:
    """A greedy soup: its tensors, the candidates in it in their order, and its score."""

    state: dict[str, Tensor]
    indices: tuple[int, ...]
    score: float


def greedy(
    states: Sequence[State], score: Callable[[State], float], names: Sequence[str] = ()
) -> GreedySoup:
    """Build a soup from the best candidate, adding each next one that does not lower the score.

    score: computes the validation score of a state dict, the higher the better; it is called for
      every candidate, then for every average.
    Raises: ConfigError for candidates that cannot be averaged (see `mixed`), or a score that is no
      number.
    """
    names = list(names) or [str(i + 1) for i in range(len(states))]
    check_alike(states, names)
    scores = [score(state) for state in states]
    if not all(map(math.isfinite, scores)):
        want, fix = "numbers", "Score by accuracy, or look at the candidates."
        raise ConfigError("scores of the candidates", got=scores, want=want, fix=fix)
    # from the best to the worst: a candidate stays in if the average with it is no worse
    order = sorted(range(len(states)), key=lambda i: -scores[i])
    indices, best, state = [order[0]], scores[order[0]], dict(states[order[0]])
    for i in order[1:]:
        average = mixed([states[j] for j in (*indices, i)])
        if (value := score(average)) >= best:
            indices, best, state = [*indices, i], value, average
    return GreedySoup(state, tuple(indices), best)


def check_alike(states: Sequence[State], names: Sequence[str]) -> None:
    """Raise ConfigError unless several state dicts have the same tensors, dtypes and zeros."""
    if len(states) < 2:
        got, fix = f"{len(states)} candidate", "Give two or more of one pruned model."
        raise ConfigError("soup", got=got, want="at least two", fix=fix)
    first = states[0]
    for state, name in zip(states[1:], names[1:], strict=True):
        pair = f"candidates {names[0]} and {name}"
        # names that one of the two lacks
        if odd := sorted(first.keys() ^ state.keys()):
            got = f"{len(odd)} names in one of them only, as {odd[0]}"
            raise ConfigError(pair, got=got, want="the same names", fix="Take runs of one method.")
        for key, tensor in first.items():
            _check_tensor(pair, key, tensor, state[key])


def _check_tensor(pair: str, key: str, first: Tensor, second: Tensor) -> None:
    """Raise ConfigError if a tensor of two candidates differs in shape, type or zeros."""
    for trait, ours, theirs in (
        ("shape", tuple(first.shape), tuple(second.shape)),
        ("type", first.dtype, second.dtype),
    ):
        if ours != theirs:
            got, want = f"{key} of {trait} {ours} and {theirs}", f"one {trait}"
            raise ConfigError(pair, got=got, want=want, fix="Take runs of one model.")
    if not first.is_floating_point():
        return
    if not (bool(first.isfinite().all()) and bool(second.isfinite().all())):
        fix = "Leave the candidate that diverged out."
        raise ConfigError(pair, got=f"{key} that is not finite", want="numbers", fix=fix)
    if first.dim() < 2:  # norms and biases have no mask
        return
    # A weight that is 0 in one candidate alone would not stay 0 in the average.
    places = int(((first != 0) != (second.to(first.device) != 0)).sum())
    if places:
        layer = key.removesuffix(".weight")
        raise ConfigError(
            pair,
            got=f"they differ in {places:,} places of {layer}",
            want="the same zeros: an average of others has less of them",
            fix="Train both from one pruned model with schedule=FixedMask().",
        )


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    """Return the weights of the candidates, checked; None = equal ones."""
    if weights is None:
        return [1 / count] * count
    good = len(weights) == count and all(w >= 0 for w in weights)
    if not good or not math.isclose(sum(weights), 1, abs_tol=1e-6):
        got, want = list(weights), f"{count} shares that add up to 1"
        raise ConfigError("weights of a soup", got=got, want=want, fix="Leave them out: all equal.")
    return list(weights)


def distance(states: Sequence[State], centre: State) -> float:
    """Return how far candidates are from their average: the mean Euclidean distance of weights."""
    distances = [
        math.sqrt(sum(float((s[n].double() - c.double()).square().sum()) for n, c in floats))
        for floats in [[(n, c) for n, c in centre.items() if c.is_floating_point()]]
        for s in states
    ]
    return sum(distances) / len(distances)


def pairs(states: Sequence[State]) -> list[dict[str, float]]:
    """Compare all pairs of candidates: the Euclidean distance and the cosine of their weights.

    Returns a row {"a", "b", "distance", "cosine"} for each pair of candidates a < b, counted from
    0.
    """
    rows: list[dict[str, float]] = []
    for a, b in combinations(range(len(states)), 2):
        state_a, state_b = states[a], states[b]
        names = [n for n, t in state_a.items() if t.is_floating_point()]
        dot, norm_a, norm_b = (
            sum(float((x[n].double() * y[n].double()).sum()) for n in names)
            for x, y in ((state_a, state_b), (state_a, state_a), (state_b, state_b))
        )
        distance_ab = math.sqrt(
            sum(float((state_a[n].double() - state_b[n].double()).square().sum()) for n in names)
        )
        # Two candidates of zeros would divide by 0.
        cosine = dot / max(math.sqrt(norm_a * norm_b), 1e-300)
        rows.append({"a": a, "b": b, "distance": distance_ab, "cosine": cosine})
    return rows


def nonzeros(state: State) -> int:
    """Count the weights of a state that are not 0."""
    return sum(int(torch.count_nonzero(t)) for t in state.values() if t.is_floating_point())
