"""The benchmark's page: one HTML file that needs nothing else, in the look of the run report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from intarsia.results import frame, numbers
from intarsia.results.wording import capital, first_line, joined

from . import figures
from .diagram import WIDTH, diagram
from .records import Failed, RunResult
from .sentences import heading, notes, sentences
from .summary import Findings, Summary
from .tables import difference_table, results_table, tasks_table


def render(
    summary: Summary, show: Callable[[RunResult], Mapping[str, Any]], cut: Sequence[str] = ()
) -> str:
    """The page as text.

    show: what a click on the map tells of a run.  cut: what was left out or changed, a sentence
    each.
    Raises: MissingExtra without plotly or jinja2.
    """
    plots = frame.drawn(
        {
            f"{kind}-{i}": figure
            for i, found in enumerate(summary.findings)
            for kind, figure in _plots(found, show).items()
        }
    )
    colors = [[look.color for look in figures.looks(found)] for found in summary.findings]
    return frame.render(
        "suite",
        plots,
        colors,
        _lead(summary),
        eyebrow="intarsia benchmark",
        heading=_heading(summary),
        notices=_notices(summary, cut),
        sheets=[_sheet(i, found, plots, summary) for i, found in enumerate(summary.findings)],
        failed=[_failure(result) for result in summary.failed],
        cut=list(cut),
        width=WIDTH,
    )


def _plots(findings: Findings, show: Any) -> dict[str, Any]:
    return {
        "parameters": figures.by_cost(findings, "trained"),
        "time": figures.by_cost(findings, "seconds"),
        "heat": figures.heat(findings, show),
    }


def _heading(summary: Summary) -> str:
    suites = list(dict.fromkeys(found.sheet.title.suite for found in summary.findings))
    methods = {method.name for found in summary.findings for method in found.sheet.arms}
    return f"{capital(numbers.plural(len(methods), 'method'))} on {joined(suites)}"


def _lead(summary: Summary) -> list[str]:
    """In words: of a single sheet all, of several how many there are."""
    if len(summary.findings) == 1:
        return sentences(summary.findings[0])
    named = joined([heading(found) for found in summary.findings])
    return [
        f"{len(summary.findings)} combinations of suite, backbone and protocol: {named}.",
        "Each stands for itself: no result of one is read in another.",
    ]


def _notices(summary: Summary, cut: Sequence[str]) -> list[str]:
    failed = len(summary.failed)
    found = [f"{numbers.plural(failed, 'cell')} failed; the errors are below."] if failed else []
    found += [f"It was cut or changed in {numbers.plural(len(cut), 'way')}."] if cut else []
    # several sheets have their notes below their own tables
    return found + notes(summary.findings[0]) if len(summary.findings) == 1 else found


def _sheet(i: int, findings: Findings, plots: dict[str, Any], summary: Summary) -> dict[str, Any]:
    """What the template asks of a sheet."""
    titled = len(summary.findings) > 1
    rows, looks = findings.rows, figures.looks(findings)
    base = findings.baseline
    results, against = results_table(findings), difference_table(findings)
    others = [look for look, row in zip(looks, rows, strict=True) if row.method != base]
    return {
        "number": i,
        "title": heading(findings) if titled else "",
        "sentences": sentences(findings) if titled else [],
        "labels": [row.method.label for row in rows],
        "looks": looks,
        "others": others,
        "results": results if titled else replace(results, notes=()),
        "difference": against,
        "tasks": tasks_table(findings),
        "diagram": diagram(findings),
        "baseline": base.label if base else None,
        "plots": [kind for kind in ("parameters", "time", "heat") if f"{kind}-{i}" in plots],
        "shared": int(findings.sheet.shared.sum()) if findings.ragged else None,
        "seeds": bool(findings.sheet.begun.sum(1).max() > 1),
    }


def _failure(result: RunResult) -> dict[str, Any]:
    error = result.outcome.error if isinstance(result.outcome, Failed) else ""
    setup = result.setup
    return {
        "method": result.method.label,
        "task": f"{result.task.suite}/{result.task.name}",
        "seed": result.seed,
        "setup": f"{setup.protocol}, {setup.model}",
        "line": first_line(error),
        "whole": error if error.strip() != first_line(error) else "",
    }
