"""A claim's history says which bars came after a figure, and which had none."""

from __future__ import annotations

from typing import Any

from intarsia_lab.kit import NoControl, Study
from intarsia_lab.pages.history import rows_of, target_of


def a_bar(date: str, value: float, seeds: int = 3, statistic: str = "theirs") -> dict[str, Any]:
    return {
        "line": "bar", "claim": "toy", "date": date, "statistic": statistic,
        "sense": ">=", "value": value, "seeds": [*range(seeds)],
    }  # fmt: skip


def a_run(date: str, figure: float, bound: str, seeds: int = 3) -> dict[str, Any]:
    return {
        "line": "run", "claim": "toy", "date": date, "statistic": "theirs",
        "bound": bound, "figure": figure, "seeds": [*range(seeds)],
    }  # fmt: skip


def study(target: float) -> Study:
    return Study(
        "toy", "Ours is better.", "theirs", target, ">=", lambda seeds, report: None,  # pyright: ignore
        NoControl("A toy."),
    )  # fmt: skip


LINES = [
    a_bar("2026-11-02", 1.0),  # its figure is of the day before
    a_run("2026-11-01", 0.9, ">= 1"),
    a_bar("2026-11-02", 0.5, statistic="another"),
    a_bar("2026-11-03", 0.8),
    a_bar("2026-11-03", 0.8, seeds=5),
    a_run("2026-11-04", 0.85, ">= 0.8", seeds=5),
    a_bar("2026-11-04", 0.9, seeds=5),
]


def test_a_bar_says_whether_it_came_late_and_whether_it_had_a_run() -> None:
    assert [(row["bar"], row["figure"]) for row in rows_of(LINES, "toy")] == [
        (">= 1", "*declared after 0.900 of 2026-11-01*"),
        (">= 1", "0.900"),
        (">= 0.5", "*declared, no run*"),
        (">= 0.8", "*declared after 0.900 of 2026-11-01, no run*"),
        (">= 0.8", "*declared after 0.900 of 2026-11-01*"),
        (">= 0.8", "0.850"),
        (">= 0.9", "*declared after 0.850 of 2026-11-04, no run*"),
    ]


def test_a_target_that_was_declared_after_a_figure_says_so() -> None:
    on_time = [a_bar("2026-11-01", 1.0), a_run("2026-11-01", 0.9, ">= 1")]
    assert target_of(study(1.0), on_time) == ">= 1"
    # more seeds for the same value move no bar
    assert target_of(study(1.0), [*on_time, a_bar("2026-11-02", 1.0, seeds=9)]) == ">= 1"
    moved = [*on_time, a_bar("2026-11-02", 0.8)]
    assert target_of(study(0.8), moved) == ">= 0.8 (declared after a figure)"
    assert target_of(study(0.8), []) == ">= 0.8"
