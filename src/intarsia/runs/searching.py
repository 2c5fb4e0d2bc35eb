"""Search a grid on validation parts: the same values for all that is compared.

`intarsia compare` (`rates`) and the protocols of `intarsia bench` share this: trials that are kept
and never run twice, the mean over tasks and draws as the judge, and a grid of learning rates that
grows while one of its edges wins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from ..core.errors import DataError, TrainingError
from ..core.store import Store
from ..reports.runs.reading import score_of
from .experiment import Experiment
from .pool import Trial, TrialEnd

SEARCHES = "searches.jsonl"
"""File in which a folder keeps the results of its trials."""

Carry = Callable[[Sequence[Trial], Callable[[TrialEnd], None]], None]
Score = tuple[float, float]


def carry_missing(
    trials: Sequence[Trial], store: Store, carry: Carry, *, again: bool = True
) -> None:
    """Run the trials without a stored result, and store each result.

    trials: with the "key" of their row among their inputs.  carry: runs trials, and calls its
    second argument with the result of each.  again: run a trial again if its stored row is an
    error.
    """

    def missing(key: str) -> bool:
        return key not in store or (again and "error" in store[key])

    def done(end: TrialEnd) -> None:
        store.add(str(end.trial.inputs["key"]), row_of(end))

    carry([trial for trial in trials if missing(str(trial.inputs["key"]))], done)


def row_of(end: TrialEnd) -> dict[str, Any]:
    """Return a trial's record to store: validation scores, seconds and temperature, or its error.

    "n" is the number of samples of the validation part, where the trial says so.
    """
    # an error is kept as well, so that a resumed search knows which trials have failed
    if end.result is None:
        return {"error": end.error}
    results = end.result["results"]
    if "val" not in results:
        want, fix = "some pictures or rows", "Give it a part: --val 100."
        return {"error": str(DataError("validation part", got="none", want=want, fix=fix))}
    if wrong := unusable(results["val"], "val"):
        return {"error": wrong, "seconds": results["seconds"]}
    row = {name: results[name] for name in ("val", "seconds")}
    # the loss of a final run is tempered by what validation found best
    row |= {"temperature": results.get("temperature")}
    return row | ({"n": sizes["val"]} if (sizes := end.result.get("sizes")) else {})


def unusable(scores: Mapping[str, Any], part: str) -> str:
    """Return why a part's scores are no result, as a message, or "" if each is a finite number."""
    for name, value in scores.items():
        if isinstance(value, float) and not math.isfinite(value):
            subject, fix = f"{name} of {part}", "The training went astray: lower the method's lr."
            return str(TrainingError(subject, got=value, want="a finite number", fix=fix))
    return ""


def scores_by(
    runs: Sequence[Experiment], ends: Sequence[Mapping[str, Any]], names: Iterable[str]
) -> dict[tuple[Any, ...], Score]:
    """Return, for each combination of settings, the mean validation score and minus the mean loss.

    ends: the stored part of each one's result: its scores on validation, or an error. names: the
    settings to group by, as ("lr",). A run that failed counts as score 0 and an infinite loss; a
    combination is left out if all its runs failed.
    """
    # draws and tasks with the same values are one group
    ended: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for run, end in zip(runs, ends, strict=True):
        flat = run.flat()
        ended.setdefault(tuple(flat[name] for name in names), []).append(end)

    def mean(rows: Sequence[Mapping[str, Any]]) -> Score:
        """Return mean score and minus the mean loss of some runs' results."""
        parts = [row.get("val") for row in rows]
        score = fmean(0.0 if val is None else score_of(val) for val in parts)
        return score, -fmean(math.inf if val is None else val.get("loss", 0.0) for val in parts)

    return {v: mean(rows) for v, rows in ended.items() if any("val" in row for row in rows)}


def best_of(scores: Mapping[Any, Score]) -> Any:
    """Return the key of the highest score; the lower loss decides among equals, then the order."""
    return max(scores, key=scores.__getitem__)


def smoothed(scores: Mapping[float, Score], rates: Iterable[float]) -> dict[float, Score]:
    """Return the score of each rate, averaged with its neighbours' scores, which count half.

    rates: the whole grid; a rate without a score, because every run failed, counts as 0. One
    trial's score is noisy, and next to a rate at which training breaks down lies one that is good
    at some seeds only.
    """
    grid = sorted(rates)
    grid_scores = [scores.get(rate, (0.0, -math.inf)) for rate in grid]

    def mean(place: int) -> Score:
        """Average the scores at a place of the grid and next to it; the place counts twice."""
        # both neighbours and the rate itself twice; at an edge the missing neighbour is left out
        near = [*grid_scores[max(0, place - 1) : place + 2], grid_scores[place]]
        return fmean(score for score, _ in near), fmean(loss for _, loss in near)

    return {rate: mean(place) for place, rate in enumerate(grid) if rate in scores}


def winning_edge(scores: Mapping[float, Score]) -> float | None:
    """Return the best rate if it is the lowest or highest of its grid, else None.

    A better rate may then lie beyond the grid. An edge that only ties with its neighbour, as where
    every answer is right, does not count.
    """
    rates, best = sorted(scores), best_of(scores)
    if len(rates) < 2 or best not in (rates[0], rates[-1]):
        return None
    # the rate next to the edge
    neighbour = rates[1] if best == rates[0] else rates[-2]
    return best if scores[best][0] > scores[neighbour][0] else None


def extended(
    rates: Sequence[float], winners: Iterable[float | None], reach: tuple[float, float]
) -> tuple[float, ...]:
    """Return the grid of rates, with a further rate beyond each edge that was best for any method.

    winners: for each method the edge that was best, or None. reach: the lowest and the highest rate
    allowed. A step is half a decade: 1e-3, 3e-3, 1e-2.
    """
    # one step at each side that won; `reach` keeps a diverging search from running away
    low, high = min(rates), max(rates)
    won = set(winners)
    beyond = [_step(edge, direction) for edge, direction in ((low, -1), (high, 1)) if edge in won]
    return tuple(sorted({*rates, *(rate for rate in beyond if reach[0] <= rate <= reach[1])}))


def _step(rate: float, direction: int) -> float:
    """Return the neighbour of a rate among 1, 3, 10, 30 ..., times a power of ten."""
    # half decades, rounded to one digit: 10 ** 0.5 becomes 3
    return float(f"{10 ** ((round(2 * math.log10(rate)) + direction) / 2):.1g}")
