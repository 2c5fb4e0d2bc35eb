"""Rows of a sheet: whole means only for whole methods, shared ones for comparing, paired costs."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest

from intarsia.core.errors import UnknownName
from intarsia.reports.statistics import ppt
from intarsia_lab.bench.report.records import Done, Origin, RunResult
from intarsia_lab.bench.report.sentences import notes, sentences
from intarsia_lab.bench.report.summary import MethodRow, tables

from ...refusals import refused

Make = Callable[..., RunResult]
MakeAll = Callable[..., list[RunResult]]


def rows_of(results: list[RunResult], baseline: str | None = None) -> dict[str, MethodRow]:
    (finding,) = tables(results, baseline).findings
    return {row.method.name: row for row in finding.rows}


def test_means_are_those_of_the_records(make_suite: MakeAll) -> None:
    results = make_suite()
    for name, row in rows_of(results).items():
        by_task: dict[tuple[str, str], list[float]] = {}
        for r in results:
            if r.method.name == name and isinstance(r.outcome, Done):
                by_task.setdefault((r.task.group, r.task.name), []).append(r.outcome.accuracy)
        groups = {group for group, _ in by_task}
        means = {place: fmean(values) for place, values in by_task.items()}
        assert row.whole is not None and row.shared is not None
        assert row.whole.task.mean == pytest.approx(fmean(means.values()))
        assert row.whole.group.mean == pytest.approx(
            fmean(fmean(m for (g, _), m in means.items() if g == group) for group in groups)
        )
        assert row.whole == row.shared and row.complete == 14


def test_a_gap_takes_the_suite_mean_and_leaves_a_shared_one(make_suite: MakeAll) -> None:
    full, holed = rows_of(make_suite(), "lora"), rows_of(make_suite(gaps=True), "lora")
    for name in ("full", "vpt-deep"):
        assert holed[name].whole is None and holed[name].ppt is None
        assert holed[name].complete == 13 and holed[name].shared is not None
    mosa = holed["mosa"]
    assert mosa.whole == full["mosa"].whole and mosa.shared != mosa.whole
    assert mosa.costs is not None
    # everybody's over the same tasks
    results = [r for r in make_suite() if r.task.name not in ("azimuth", "textile")]
    small = rows_of(results, "lora")
    assert all(holed[name].shared == small[name].whole for name in holed)
    assert all(holed[name].rank == small[name].rank for name in holed)
    assert all(holed[name].costs == small[name].costs for name in holed)


def test_costs_and_ppt(make_result: Make) -> None:
    cells = [(task, seed) for task in "ab" for seed in (0, 2)]
    results = [
        make_result("mosa", *cell, 0.6, trained=10**7, seconds=cell[1] + 1) for cell in cells
    ]
    (row,) = rows_of(results).values()
    assert row.costs is not None
    assert row.costs.seconds == 2 and row.costs.cpu_seconds == 4
    assert (row.costs.trained, row.costs.trained_without_head) == (10**7 + 10, 10**7)
    assert row.costs.peak_bytes == 10**9
    assert row.ppt == ppt(0.6, 10**7) == pytest.approx(0.6 * 2.718281828**-(0.30103), rel=1e-5)


def test_rows_are_ordered_and_held_against_the_baseline(make_suite: MakeAll) -> None:
    (finding,) = tables(make_suite(), "AdaptFormer").findings
    means = [row.shared.group.mean for row in finding.rows if row.shared]
    assert means == sorted(means, reverse=True) and len(means) == 8
    without = [row.method.name for row in finding.rows if row.difference is None]
    assert without == ["adaptformer"]
    probe = finding.rows[-1]
    assert probe.method.name == "linear" and probe.difference is not None and probe.p is not None
    assert probe.difference.interval is not None and probe.difference.interval[1] < 0
    assert probe.p < 0.05
    assert probe.difference.record == (0, 0, 14) and probe.difference.n == 42
    # Holm never makes a p smaller
    assert all(
        r.p >= r.difference.p for r in finding.rows if r.difference and r.p and r.difference.p
    )
    ranks = [row.rank for row in finding.rows if row.rank is not None]
    assert sum(ranks) == pytest.approx(8 * 9 / 2)


def test_only_pairs_count_where_the_baseline_has_gaps(make_suite: MakeAll) -> None:
    full, holed = rows_of(make_suite(), "full"), rows_of(make_suite(gaps=True), "full")
    before, after = full["mosa"].difference, holed["mosa"].difference
    assert before is not None and after is not None
    assert (before.n, after.n) == (42, 41)
    assert abs(before.mean - after.mean) < 0.002


def test_the_order_of_results_changes_nothing(make_suite: MakeAll) -> None:
    results = make_suite(gaps=True)
    mixed = random.Random(0).sample(results, len(results))
    first, second = tables(results, "lora"), tables(mixed, "lora")
    assert first.results == second.results
    for a, b in zip(first.findings[0].rows, second.findings[0].rows, strict=True):
        assert (a.method, a.whole, a.shared, a.costs, a.p, a.rank) == (
            b.method, b.whole, b.shared, b.costs, b.p, b.rank)  # fmt: skip


def test_a_baseline_that_nobody_knows(make_suite: MakeAll) -> None:
    with refused(UnknownName, what="unknown baseline", got="'adaptfomer'"):
        tables(make_suite(), "adaptfomer")


def test_words_say_who_leads_and_what_is_missing(make_suite: MakeAll) -> None:
    (finding,) = tables(make_suite(gaps=True), "adaptformer").findings
    text = " ".join(sentences(finding))
    assert "8 methods on 14 tasks in 3 groups, 3 seeds each" in text
    assert "MoSA leads over the 12 shared tasks" in text
    assert "linear probe (−12.3 points) below" in text and "Friedman" in text
    text_of_notes = " ".join(notes(finding))
    assert (
        "azimuth (seed 1)" in text_of_notes and "VPT deep: was not run on textile." in text_of_notes
    )


def test_both_leaders_are_named_where_the_means_disagree(make_result: Make) -> None:
    scores = {"a": (0.9, 0.5, 0.5), "b": (0.5, 0.8, 0.79)}
    places = (("g", "t1"), ("h", "t2"), ("h", "t3"))
    results = [
        make_result(m, task, 0, score, group=group)
        for m, row in scores.items() for (group, task), score in zip(places, row, strict=True)
    ]  # fmt: skip
    (finding,) = tables(results).findings
    assert "By group mean A (70.0 %) leads, by task mean B (69.7 %)." in sentences(finding)


def test_uneven_efforts_are_told(make_result: Make) -> None:
    results = [make_result("a", t, s) for t in "xy" for s in (0, 1)]
    results += [make_result("b", "x", epochs=5, tried=9), make_result("b", "y", epochs=20)]
    (finding,) = tables(results).findings
    text = " ".join(notes(finding))
    assert "unequal numbers of seeds: A 2 and B 1" in text
    assert "Trained for 20 epochs; B for 5 to 20." in text
    assert "In 1 of 6 runs, settings were chosen among 9" in text


def test_what_scores_came_out_of_is_told(make_result: Make) -> None:
    def of(method: str, task: str, **fields: Any) -> RunResult:
        defaults = {"code": "c", "pictures": "p", "twins": 0}
        return replace(make_result(method, task), origin=Origin(**defaults | fields))

    alike = [of("a", "x"), of("b", "x", chosen={"active": 1}), of("a", "y"), of("b", "y")]
    (finding,) = tables(alike).findings
    assert notes(finding)[1:] == [
        "Chosen by the method for so many images and epochs: B active = 1."
    ]
    rest = [of("c", "x", code="d", pictures="q"), of("c", "y", twins=3), make_result("d", "x")]
    (finding,) = tables(alike + rest).findings
    text = " ".join(notes(finding))
    assert "The results are of 2 versions of the source." in text
    assert "Methods saw different pictures, so do not compare them there: x (seed 0)." in text
    assert "Pictures of the test part that were trained on, too: y 3." in text


def test_a_loss_after_a_temperature_and_a_calibration_error_stand_beside_the_loss(
    make_suite: MakeAll,
) -> None:
    results = [
        replace(r, outcome=replace(r.outcome, ece=0.1 + 0.1 * r.seed, tempered_loss=0.3))
        for r in make_suite()
        if isinstance(r.outcome, Done)
    ]
    for row in rows_of(results).values():
        assert row.whole is not None and row.whole.tempered is not None and row.whole.ece
        assert row.whole.tempered.mean == pytest.approx(0.3)
        assert row.whole.ece.mean == pytest.approx(0.2)
    # an older result lacks them: no mean over unequal tasks
    old = [replace(results[0], outcome=replace(results[0].outcome, ece=None)), *results[1:]]
    rows = rows_of(old)
    missing = rows[results[0].method.name]
    assert missing.whole is not None and missing.whole.ece is None and missing.whole.tempered
    assert all(r.whole and r.whole.ece for name, r in rows.items() if r is not missing)


def test_methods_that_were_not_tuned_alike_have_no_rank(make_suite: MakeAll) -> None:
    def tuned(counts: dict[str, int]) -> list[RunResult]:
        return [
            replace(r, setup=replace(r.setup, tried=counts.get(r.method.name, 6)))
            for r in make_suite()
        ]

    assert all(row.rank is not None for row in rows_of(tuned({})).values())
    (finding,) = tables(tuned({"mosa": 18})).findings
    assert finding.ranking is None and all(row.rank is None for row in finding.rows)
    note = "Not ranked: settings were chosen among 6 and 18 runs, not the same for all."
    assert note in notes(finding)
