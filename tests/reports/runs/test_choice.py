"""A run is chosen by validation scores alone; ties and what is missing are said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from intarsia.core.errors import CheckpointError
from intarsia.reports.runs import choice_sentence, comparison_of, gather, json_choice
from intarsia.reports.runs.grouping import Comparison

from ...refusals import refused

Make = Callable[..., Path]
VAL = "results.val"


def scores(accuracy: float, loss: float = 0.5) -> dict[str, Any]:
    """Return the change of a record that sets its validation scores."""
    return {VAL: {"accuracy": accuracy, "loss": loss}}


def compared(make_run: Make, changes: Mapping[tuple[str, int], Mapping[str, Any]]) -> Comparison:
    """Write a run for each (label, seed) with its change, and compare them in this order."""
    folders = [
        make_run(f"{label}-{seed}", label=label, seed=seed, change=change)
        for (label, seed), change in changes.items()
    ]
    return comparison_of(gather(folders))


def test_validation_chooses_where_the_test_part_says_otherwise(make_run: Make) -> None:
    """The test scores of the fixture are best for mosa, the validation scores for the probe."""
    comparison = compared(
        make_run,
        {
            ("mosa", 0): scores(0.8),
            ("mosa", 1): scores(0.6),
            ("linear probe", 0): scores(0.70),
            ("linear probe", 1): scores(0.74),
        },
    )
    choice = comparison.chosen
    assert choice is not None and comparison.best.label == "mosa"
    assert (choice.group.label, choice.run.seed) == ("linear probe", 1)
    assert choice_sentence(comparison) == (
        "Chosen on the validation part: linear probe, 72.0 % right over 2 seeds; MoSA has "
        "70.0 % right. Its best run there is linear probe-1."
    )
    row = json_choice(comparison)
    assert row["method"] == "linear probe" and row["folder"].endswith("linear probe-1")
    assert row["validation"]["mosa"] == {"score": 0.7, "loss": 0.5} and row["seeds"] == [0, 1]


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (scores(0.7, 0.6), scores(0.7, 0.5), "has the higher loss"),
        (scores(0.7, 0.5), scores(0.7, 0.5), "trains more parameters"),
        (scores(0.7, float("nan")), scores(0.7, 9.0), "has the higher loss"),
        (scores(float("nan"), 0.5), scores(0.1, 0.6), "has 0.0 % right"),
    ],
)
def test_ties_and_lost_trainings(
    make_run: Make, first: dict[str, Any], second: dict[str, Any], reason: str
) -> None:
    comparison = compared(make_run, {("mosa", 0): first, ("linear probe", 0): second})
    assert comparison.chosen is not None
    assert comparison.chosen.group.label == "linear probe"
    assert reason in choice_sentence(comparison)


def test_equal_methods_are_chosen_in_the_order_of_their_names(make_run: Make) -> None:
    change = scores(0.7) | {"parameters.trained": 9}
    comparison = compared(make_run, {("one", 0): change, ("other", 0): change, ("one", 1): change})
    assert comparison.chosen is not None and comparison.chosen.run.folder.name == "one-0"
    assert "other has as much, but was named later" in choice_sentence(comparison)
    # only seeds of both count: a seed more can make no method the better one
    assert comparison.chosen.seeds == (0,)


@pytest.mark.parametrize("val", [{"loss": 1.0}, {"accuracy": "0.7"}, {"perplexity": 0}])
def test_validation_scores_that_are_no_numbers_are_damage(
    make_run: Make, val: dict[str, Any]
) -> None:
    comparison = compared(make_run, {("a", 0): {VAL: val}, ("b", 0): {}})
    with refused(CheckpointError, got=f"results.val = {val!r}"):
        _ = comparison.chosen


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({("a", 0): {}, ("b", 0): {VAL: None}}, "the runs of b have no validation part"),
        ({("a", 0): {}, ("b", 1): {}}, "the methods have no seed in common"),
        (
            {("a", 0): {}, ("b", 0): {"data.val.sha256": "0" * 64}},
            "the methods were not validated on the same items",
        ),
    ],
)
def test_without_a_common_validation_nothing_is_chosen(
    make_run: Make, changes: dict[tuple[str, int], dict[str, Any]], missing: str
) -> None:
    comparison = compared(make_run, changes)
    assert comparison.chosen is None and json_choice(comparison) == {"missing": missing}
    assert choice_sentence(comparison).startswith(f"No method is chosen: {missing}, ")
