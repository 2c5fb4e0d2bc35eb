"""A search: kept trials, the mean that decides, an edge that wins and a grid that grows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intarsia.core.store import Store
from intarsia.reports.runs.reading import score_of
from intarsia.runs.experiment import Experiment, Pictures
from intarsia.runs.pool import Trial, TrialEnd
from intarsia.runs.searching import (
    best_of,
    carry_missing,
    extended,
    scores_by,
    smoothed,
    winning_edge,
)

REACH = (1e-6, 1.0)


@pytest.mark.parametrize(
    ("scores", "edge"),
    [
        ({1e-3: 0.5, 3e-3: 0.6, 1e-2: 0.5}, None),
        ({1e-3: 0.7, 3e-3: 0.6, 1e-2: 0.5}, 1e-3),
        ({1e-3: 0.5, 3e-3: 0.6, 1e-2: 0.7}, 1e-2),
        ({1e-2: 0.7, 1e-3: 0.5}, 1e-2),  # in any order
        ({1e-3: 0.5}, None),  # no neighbour to be better than
    ],
)
def test_an_edge_wins_if_it_is_best_and_better_than_its_neighbour(
    scores: dict[float, float], edge: float | None
) -> None:
    assert winning_edge({rate: (score, -1.0) for rate, score in scores.items()}) == edge


def test_an_edge_that_only_ties_does_not_win() -> None:
    """The loss falls with the rate, however far, where every answer is right."""
    scores = {1e-3: (1.0, -0.3), 3e-3: (1.0, -0.2), 1e-2: (1.0, -0.1)}
    assert best_of(scores) == 1e-2 and winning_edge(scores) is None


def test_a_rate_beside_a_cliff_counts_for_less() -> None:
    """LoRA on Tux Paint, one draw: best by itself at .01, where another seed lost ten points."""
    accuracies = {1e-3: 0.53, 3e-3: 0.55, 1e-2: 0.58, 3e-2: 0.34}
    scores = {rate: (score, -1.0) for rate, score in accuracies.items()}
    smooth = smoothed(scores, scores)
    assert best_of(scores) == 1e-2 and best_of(smooth) == 3e-3
    assert smooth[1e-2][0] == pytest.approx((0.55 + 2 * 0.58 + 0.34) / 4)
    assert smooth[1e-3][0] == pytest.approx((2 * 0.53 + 0.55) / 3)  # an edge has one neighbour
    # a rate at which every run failed is such a cliff, too, and is not chosen itself
    del scores[3e-2]
    cliff = smoothed(scores, (1e-3, 3e-3, 1e-2, 3e-2))
    assert cliff.keys() == scores.keys() and best_of(cliff) == 3e-3
    assert cliff[1e-2][0] == pytest.approx((0.55 + 2 * 0.58) / 4)


@given(st.dictionaries(st.floats(1e-6, 1.0), st.floats(0, 1), min_size=1, max_size=6))
def test_smoothing_keeps_a_level_and_stays_within_its_scores(
    accuracies: dict[float, float],
) -> None:
    level = smoothed({rate: (0.5, -1.0) for rate in accuracies}, accuracies)
    assert all(score == (0.5, -1.0) for score in level.values())
    smooth = smoothed({rate: (score, 0.0) for rate, score in accuracies.items()}, accuracies)
    low, high = min(accuracies.values()), max(accuracies.values())
    assert all(low - 1e-9 <= score <= high + 1e-9 for score, _ in smooth.values())


def test_a_grid_grows_by_half_a_decade_at_the_edges_that_won() -> None:
    grid = (1e-3, 3e-3, 1e-2)
    assert extended(grid, [1e-2], REACH) == (1e-3, 3e-3, 1e-2, 3e-2)
    assert extended(grid, [1e-3, None, 1e-2], REACH) == (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    assert extended(grid, [3e-3, None], REACH) == grid
    assert extended(grid, [1e-3, 1e-2], (1e-3, 2e-2)) == grid
    assert extended((2e-3, 5e-3), [5e-3], REACH) == (2e-3, 5e-3, 1e-2)


@given(st.sets(st.floats(1e-6, 1.0), min_size=2, max_size=6), st.booleans(), st.booleans())
def test_a_grown_grid_keeps_its_rates_and_its_reach(
    rates: set[float], low: bool, high: bool
) -> None:
    grid = tuple(sorted(rates))
    grown = extended(grid, [grid[0]] * low + [grid[-1]] * high, REACH)
    assert set(grid) <= set(grown) and list(grown) == sorted(set(grown))
    assert len(grown) <= len(grid) + low + high
    assert all(REACH[0] <= rate <= REACH[1] for rate in grown)


def test_the_mean_over_draws_decides_and_a_failed_trial_counts_as_nothing() -> None:
    start = Experiment(Pictures("x"))
    runs = [start.changed(lr=rate, seed=seed) for rate in (1e-3, 1e-2, 1e-1) for seed in (0, 1)]
    accuracies = (0.6, 0.6, 0.9, None, None, None)
    ends: list[dict[str, Any]] = [
        {"error": "no"} if a is None else {"val": {"accuracy": a, "loss": 1.0}} for a in accuracies
    ]
    scores = scores_by(runs, ends, ["lr"])
    assert scores == {(1e-3,): (0.6, -1.0), (1e-2,): (0.45, -math.inf)}
    assert best_of(scores) == (1e-3,)


def test_a_text_is_scored_by_its_perplexity() -> None:
    assert score_of({"perplexity": 8.0, "accuracy": 0.1, "loss": 2.08}) == 1 / 8
    assert score_of({"mean_average_precision": 0.3, "accuracy": 0.9}) == 0.3


def test_a_trial_that_has_ended_is_not_carried_out_again(tmp_path: Path) -> None:
    trials = [Trial(name, {"key": name}) for name in ("good", "bad", "astray", "without")]
    ran: list[str] = []

    def carry(queue: Any, done: Any) -> None:
        for trial in queue:
            ran.append(trial.name)
            loss = math.nan if trial.name == "astray" else 1.0
            results = {"val": {"accuracy": 0.5, "loss": loss}, "seconds": 2.0}
            if trial.name == "without":
                del results["val"]
            failed = trial.name == "bad"
            result = None if failed else {"results": results, "sizes": {"val": 30}}
            done(TrialEnd(trial, result, "no memory" if failed else "", 2.0))

    path = tmp_path / "searches.jsonl"
    carry_missing(trials, Store(path.parent, path.name), carry)
    store = Store(path.parent, path.name)
    assert store["good"]["val"]["accuracy"] == 0.5 and store["good"]["n"] == 30
    assert store["bad"]["error"] == "no memory" and "loss of val" in store["astray"]["error"]
    assert "validation part" in store["without"]["error"]
    carry_missing(trials, Store(path.parent, path.name), carry, again=False)
    assert ran == ["good", "bad", "astray", "without"]
    carry_missing(trials, Store(path.parent, path.name), carry)  # failed ones once more
    assert ran[4:] == ["bad", "astray", "without"]
