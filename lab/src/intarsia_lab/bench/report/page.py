"""The benchmark's report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from intarsia.reports import numbers
from intarsia.reports.report import (
    Block,
    Container,
    Figure,
    Listing,
    Note,
    PageControl,
    Report,
    Section,
    present,
)
from intarsia.reports.table import Entry, Table, plain
from intarsia.reports.wording import capital, first_line, joined

from . import figures
from .diagram import RankDrawing, diagram
from .records import Failed, RunResult
from .sentences import heading, notes, sentences
from .summary import Findings, Summary
from .tables import difference_table, results_table, tasks_table


def report_of(
    summary: Summary, show: Callable[[RunResult], Mapping[str, Any]], cut: Sequence[str] = ()
) -> Report:
    """Return the report page of a benchmark as blocks: heading, findings, sections, remarks.

    summary: statistics of all results; show: describes a run for a click on the map; cut: omissions
    and changes of the plan, a sentence each.
    """
    several = len(summary.findings) > 1
    # each suite, model and protocol has its own sections
    sections = [
        section
        for i, findings in enumerate(summary.findings)
        for section in _sections(i, findings, several, show)
    ]
    # failed runs are listed whatever else the page says
    if summary.failed:
        sections.append(Section("Failed runs", (_failures(summary),), "failed"))
    if cut:
        sections.append(Section("Cut or changed", (Listing(tuple(cut)),), "cut"))
    return Report(
        _heading(summary),
        tuple(_lead(summary)),
        tuple(sections),
        tuple(_notices(summary, cut)),
        "intarsia benchmark",
    )


def _heading(summary: Summary) -> str:
    """Return the page's heading: how many methods, and which suites."""
    suites = list(dict.fromkeys(findings.sheet.title.suite for findings in summary.findings))
    methods = {method.name for findings in summary.findings for method in findings.sheet.arms}
    return f"{capital(numbers.plural(len(methods), 'method'))} on {joined(suites)}"


def _lead(summary: Summary) -> list[str]:
    """Return the first sentences of the page: the findings of a single sheet, or a list of
    sheets.
    """
    if len(summary.findings) == 1:
        return sentences(summary.findings[0])
    named = joined([heading(findings) for findings in summary.findings])
    return [
        f"{len(summary.findings)} combinations of suite, backbone and protocol: {named}.",
        "Each stands for itself: no result of one is read in another.",
    ]


def _notices(summary: Summary, cut: Sequence[str]) -> list[str]:
    """Return the remarks at the head of the page: failed runs, and the plan's cuts and changes."""
    failed = len(summary.failed)
    notices = [f"{numbers.plural(failed, 'run')} failed; the errors are below."] if failed else []
    if cut:
        ways = numbers.plural(len(cut), "way")
        notices.append(f"The plan was cut or changed in {ways}: see the end of the page.")
    # several sheets have their notes below their own tables
    return notices + notes(summary.findings[0]) if len(summary.findings) == 1 else notices


def _sections(
    i: int, findings: Findings, several: bool, show: Callable[[RunResult], Mapping[str, Any]]
) -> list[Section]:
    """Return the page's sections on one sheet: results, costs, differences, tasks."""
    tail = f": {heading(findings)}" if several else ""
    looks = tuple(figures.looks(findings))
    table = results_table(findings)
    # a single sheet has its sentences at the head of the page
    lines = [Note(text, "") for text in sentences(findings)] if several else []
    table = replace(table, looks=looks, notes=table.notes if several else ())
    sections = [
        Section(f"Results{tail}", (*lines, table)),
        *_costs(i, findings, tail),
        *_against(i, findings, tail),
    ]
    # both modes are drawn; the page displays the one that is chosen
    maps, panels = figures.heat(findings, i, show)
    modes = None
    if (base := findings.baseline) is not None:
        options = (
            ("differences", f"difference to {base.label}, points"),
            ("shares", "accuracy, %"),
        )
        modes = PageControl(f"mode-{i}", "Numbers in the map", options, "radio")
    tasks = replace(tasks_table(findings), fold="Accuracy by task, as a table")
    sections.append(Section(f"Tasks{tail}", present(modes, *maps, panels, tasks)))
    return sections


def _costs(i: int, findings: Findings, tail: str) -> list[Section]:
    """Return the section with accuracy against parameters and against time."""
    parameters, time = (figures.by_cost(findings, i, cost) for cost in ("trained", "seconds"))
    if parameters is None or time is None:
        return []
    labels = tuple((n, row.method.label) for n, row in enumerate(findings.rows))
    looks = tuple(figures.looks(findings))
    control = PageControl(f"group-{i}", "Methods shown", labels, "checkbox", looks=looks)
    means = (("group", "group mean"), ("task", "task mean"))
    text = "Up and to the left is better."
    if findings.sheet.begun.sum(1).max() > 1:
        text += " Large marks are means with their spread, small ones single seeds."
    # over different tasks, means could not be compared
    if findings.ragged:
        shared = numbers.plural(int(findings.sheet.shared.sum()), "task")
        text += f" Over the {shared} that all methods share."
    mean, pair = PageControl(f"mean-{i}", "Mean", means, "radio"), (parameters, time)
    blocks = (control, mean, Note(text), Container(pair, kind="pair"))
    return [Section(f"Accuracy and cost{tail}", blocks)]


def _against(i: int, findings: Findings, tail: str) -> list[Section]:
    """Return the section of differences to the baseline and of ranks, as far as there are any."""
    table, ranks, base = difference_table(findings), diagram(findings), findings.baseline
    looks = figures.looks(findings)
    blocks: list[Block] = []
    if table is not None:
        # the baseline has a colour but no row
        rows = zip(looks, findings.rows, strict=True)
        blocks.append(replace(table, looks=tuple(look for look, row in rows if row.method != base)))
    if ranks is not None:
        caption = "A bar joins methods whose average ranks differ by less than the critical "
        caption += "difference (Nemenyi, 0.05); 1 = best."
        alt = "Critical-difference diagram; the ranks are in the tables"
        title = "Average ranks over tasks."
        blocks.append(Figure(f"ranks-{i}", alt, RankDrawing(ranks, looks), title, caption))
    title = f"Against {base.label}" if table is not None and base else "Ranks"
    return [Section(title + tail, tuple(blocks))] if blocks else []


def _failures(summary: Summary) -> Table:
    """Return the table of failed runs, with the first line of each error."""
    rows = [_failure(result) for result in summary.failed]
    return plain("", ["Method", "Task", "Seed", "Protocol, backbone", "Error"], rows, words=5)


def _failure(result: RunResult) -> list[object]:
    """Return the row of a failed run in the table of errors, with the first line of its error."""
    error = result.outcome.error if isinstance(result.outcome, Failed) else ""
    line = first_line(error)
    setup = result.setup
    return [
        result.method.label,
        f"{result.task.suite}/{result.task.name}",
        result.seed,
        f"{setup.protocol}, {setup.model}",
        Entry(line, hidden=error if error.strip() != line else ""),
    ]
