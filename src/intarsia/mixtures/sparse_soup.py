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
    """sum_i w_i theta_i, tensor by tensor; what is 0 in one candidate must be 0 in all.

    weights: w_i, 0 or more, adding up to 1; None = 1 / m each.  names: of the candidates, for
    errors.  Whole numbers (a batch norm's counter) are those of the first candidate.

    The mean is taken as theta_1 + sum w_i (theta_i - theta_1) in float64, so that candidates that
    are equal give their own bits, and zeros stay zeros. Statistics of batch norms do not average:
    count them anew from data before the result is used (`intarsia soup` and `fit` do).
    Raises: ConfigError for less than two candidates, or for candidates that differ in names,
    shapes, types or zeros; for weights that are no shares.
    """
    names = list(names) or [str(i + 1) for i in range(len(states))]
    check_alike(states, names)
    shares = _shares(weights, len(states))
    found: dict[str, Tensor] = {}
    for name, first in states[0].items():
        if not first.is_floating_point():
            found[name] = first.clone()
            continue
        base = first.double()
        for state, share in zip(states[1:], shares[1:], strict=True):
            base = base + share * (state[name].double() - first.double())
        found[name] = base.to(first.dtype)
    return found


@dataclass(frozen=True)
class Picked:
    """A greedy soup: its tensors, the candidates in it in their order, and its score."""

    state: dict[str, Tensor]
    chosen: tuple[int, ...]
    score: float


def greedy(
    states: Sequence[State], score: Callable[[State], float], names: Sequence[str] = ()
) -> Picked:
    """Return the best candidate, averaged with each next one as long as the score does not fall.

    score: of tensors, on validation data; more is better. It is asked for every candidate, then for
    every average.  Raises: as `mixed`; ConfigError for a score that is no number.
    """
    names = list(names) or [str(i + 1) for i in range(len(states))]
    check_alike(states, names)
    alone = [score(state) for state in states]
    if not all(map(math.isfinite, alone)):
        want, fix = "numbers", "Score by accuracy, or look at the candidates."
        raise ConfigError("scores of the candidates", got=alone, want=want, fix=fix)
    order = sorted(range(len(states)), key=lambda i: -alone[i])
    chosen, best, state = [order[0]], alone[order[0]], dict(states[order[0]])
    for i in order[1:]:
        tried = mixed([states[j] for j in (*chosen, i)])
        if (found := score(tried)) >= best:
            chosen, best, state = [*chosen, i], found, tried
    return Picked(state, tuple(chosen), best)


def check_alike(states: Sequence[State], names: Sequence[str]) -> None:
    """Raises: ConfigError unless there are several, of one architecture, type and mask."""
    if len(states) < 2:
        got, fix = f"{len(states)} candidate", "Give two or more of one pruned model."
        raise ConfigError("soup", got=got, want="at least two", fix=fix)
    first = states[0]
    for state, name in zip(states[1:], names[1:], strict=True):
        two = f"candidates {names[0]} and {name}"
        if odd := sorted(first.keys() ^ state.keys()):
            got = f"{len(odd)} names in one of them only, as {odd[0]}"
            raise ConfigError(two, got=got, want="the same names", fix="Take runs of one method.")
        for key, one in first.items():
            _check_tensor(two, key, one, state[key])


def _check_tensor(two: str, key: str, one: Tensor, other: Tensor) -> None:
    for what, ours, theirs in (
        ("shape", tuple(one.shape), tuple(other.shape)),
        ("type", one.dtype, other.dtype),
    ):
        if ours != theirs:
            got, want = f"{key} of {what} {ours} and {theirs}", f"one {what}"
            raise ConfigError(two, got=got, want=want, fix="Take runs of one model.")
    if not one.is_floating_point():
        return
    if not (bool(one.isfinite().all()) and bool(other.isfinite().all())):
        fix = "Leave the candidate that diverged out."
        raise ConfigError(two, got=f"{key} that is not finite", want="numbers", fix=fix)
    if one.dim() < 2:  # norms and biases have no mask
        return
    places = int(((one != 0) != (other.to(one.device) != 0)).sum())
    if places:
        layer = key.removesuffix(".weight")
        raise ConfigError(
            two,
            got=f"they differ in {places:,} places of {layer}",
            want="the same zeros: an average of others has less of them",
            fix="Train both from one pruned model with schedule=FixedMask().",
        )


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    if weights is None:
        return [1 / count] * count
    good = len(weights) == count and all(w >= 0 for w in weights)
    if not good or not math.isclose(sum(weights), 1, abs_tol=1e-6):
        got, want = list(weights), f"{count} shares that add up to 1"
        raise ConfigError("weights of a soup", got=got, want=want, fix="Leave them out: all equal.")
    return list(weights)


def distance(states: Sequence[State], centre: State) -> float:
    """Return the mean Euclidean distance of the candidates from an average."""
    each = [
        math.sqrt(sum(float((s[n].double() - c.double()).square().sum()) for n, c in floats))
        for floats in [[(n, c) for n, c in centre.items() if c.is_floating_point()]]
        for s in states
    ]
    return sum(each) / len(each)


def pairs(states: Sequence[State]) -> list[dict[str, float]]:
    """Of each two candidates a < b, numbers from 0: Euclidean distance, and cosine of the angle."""
    found: list[dict[str, float]] = []
    for a, b in combinations(range(len(states)), 2):
        one, two = states[a], states[b]
        names = [n for n, t in one.items() if t.is_floating_point()]
        dot, first, second = (
            sum(float((x[n].double() * y[n].double()).sum()) for n in names)
            for x, y in ((one, two), (one, one), (two, two))
        )
        apart = math.sqrt(
            sum(float((one[n].double() - two[n].double()).square().sum()) for n in names)
        )
        cosine = dot / max(math.sqrt(first * second), 1e-300)
        found.append({"a": a, "b": b, "distance": apart, "cosine": cosine})
    return found


def nonzeros(state: State) -> int:
    """How many weights are not 0."""
    return sum(int(torch.count_nonzero(t)) for t in state.values() if t.is_floating_point())
