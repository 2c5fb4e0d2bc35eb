"""What may be compared is in one sheet, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from intarsia.core.errors import DataError, UnknownName
from intarsia_lab.bench.report.records import RunResult
from intarsia_lab.bench.report.sheets import find, gaps, sheets
from intarsia_lab.bench.report.summary import tables

from ...refusals import refused

Make = Callable[..., RunResult]


@pytest.mark.parametrize("name", ["protocol", "model", "suite"])
def test_no_protocol_backbone_or_suite_lends_another_its_numbers(
    make_result: Make, name: str
) -> None:
    tasks = ("mnist", "textile", "elpv")
    ours = [
        make_result(method, task, accuracy=0.5 + i / 10)
        for task in tasks
        for i, method in enumerate(("mosa", "lora"))
    ]
    # better at everything, and with a task and a method that the others lack
    theirs = [make_result("mosa", task, accuracy=0.99, **{name: "other"}) for task in (*tasks, "x")]
    theirs.append(make_result("vpt", "mnist", accuracy=1.0, **{name: "other"}))
    alone, (first, second) = sheets(ours)[0], sheets(ours + theirs)
    our_sheet, their_sheet = (first, second) if len(first.results) == len(ours) else (second, first)
    assert our_sheet.arms == alone.arms and our_sheet.tasks == alone.tasks
    assert np.array_equal(our_sheet.accuracy, alone.accuracy) and our_sheet.accuracy.max() < 0.99
    assert their_sheet.accuracy[0].min() == 0.99 and len(their_sheet.tasks) == 4
    # the baseline of one is no baseline of the other
    findings = {f.sheet.title: f for f in tables(ours + theirs, "lora").findings}
    assert findings[their_sheet.title].baseline is None
    assert all(row.difference is None for row in findings[their_sheet.title].rows)
    assert findings[our_sheet.title].rows[1].difference is not None


def test_two_results_of_one_cell_are_refused(make_result: Make) -> None:
    with refused(DataError, what="results of 'MOSA' on 'mnist', seed 0"):
        sheets([make_result(), make_result(accuracy=0.9)])


def test_a_name_means_one_thing(make_result: Make) -> None:
    with refused(DataError, what="method 'mosa'"):
        sheets([make_result(), make_result(seed=1, label="other")])
    with refused(DataError, what="task 'mnist'"):
        sheets([make_result(), make_result(seed=1, group="structured")])


def test_nothing_is_no_sheet() -> None:
    with refused(DataError, what="results", got="none"):
        sheets([])


def test_a_baseline_is_found_by_name_or_label(make_result: Make) -> None:
    methods = sheets([make_result("a", label="x"), make_result("b", label="x")])[0].arms
    assert find(methods, "a").name == "a"
    with refused(DataError, what="baseline 'x'"):
        find(methods, "x")
    with pytest.raises(UnknownName):
        find(methods, "nobody")


def test_what_is_missing_is_counted_and_told(make_result: Make) -> None:
    results = [make_result("lora", task, seed) for task in ("a", "b", "c") for seed in (0, 1)]
    results += [make_result("mosa", "a", seed) for seed in (0, 1)]
    results += [make_result("mosa", "b", 0), make_result("mosa", "b", 1, None, error="Boom\nx")]
    (sheet,) = sheets(results)
    assert sheet.complete.tolist() == [[True] * 3, [True, False, False]]
    assert sheet.shared.tolist() == [True, False, False]
    assert gaps(sheet) == ["MOSA: failed (Boom) on b (seed 1); was not run on c."]


def test_fewer_seeds_everywhere_are_no_gap(make_result: Make) -> None:
    results = [make_result("lora", task, seed) for task in ("a", "b") for seed in (0, 1)]
    results += [make_result("full", task, 0) for task in ("a", "b")]
    (sheet,) = sheets(results)
    assert sheet.complete.all() and gaps(sheet) == []


def test_a_method_that_failed_everywhere_takes_no_task_from_the_others(make_result: Make) -> None:
    results = [make_result("lora", task) for task in ("a", "b")]
    results += [make_result("mosa", task, accuracy=None) for task in ("a", "b")]
    (sheet,) = sheets(results)
    assert sheet.shared.all() and not sheet.complete[1].any()
    lora, mosa = tables(results, "lora").findings[0].rows
    assert lora.whole is not None and mosa.whole is mosa.shared is mosa.rank is mosa.costs is None
