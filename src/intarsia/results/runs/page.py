"""The page of a comparison: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ...core.files import write_text
from ...core.reading import read_bytes
from .. import frame, numbers
from ..table import Table
from . import figures, rates, sparse
from .confusion import confusion_of
from .curves import line_of, mean_line
from .grouping import Comparison, RunGroup, comparison_of
from .mistakes import Mistake, Mistakes
from .reading import FinishedRun, gather
from .routing import routings
from .sentences import notices, selection_rule, sentences, title
from .settings_rows import (
    commands,
    data_parts,
    given_rows,
    machine_rows,
    method_rows,
    run_rows,
    setting_rows,
)
from .tables import table_of


def write_report(
    folders: Iterable[Path | str],
    out: Path | str,
    *,
    baseline: str | None = None,
    heading: str | None = None,
    others: Table | None = None,
) -> Path:
    """Read run folders and write their page to `out`; returns its path.

    folders: run folders, or folders that hold some.  baseline: label of the method the others are
    held against, None = the first.  heading: of the page, None = the methods and the data set.
    others: candidates that were not chosen, below the results.
    The same runs give the same bytes.
    Raises: DataError, CheckpointError and UnknownName as `gather` and `comparison_of` do;
    MissingExtra without plotly or jinja2; TrainingError when the file cannot be written.
    """
    page = render(gather(folders), baseline=baseline, heading=heading, others=others)
    return write_text(out, page)


def render(
    runs: Iterable[FinishedRun],
    *,
    baseline: str | None = None,
    heading: str | None = None,
    others: Table | None = None,
) -> str:
    """The page as text; see `write_report`."""
    comparison = comparison_of(runs, baseline)
    plots, looks = _plots(comparison), figures.looks(comparison)
    return frame.render(
        "run",
        plots,
        [look.color for look in looks],
        sentences(comparison),
        eyebrow="intarsia report",
        heading=heading or title(comparison),
        notices=notices(comparison),
        table=table_of(comparison),
        others=others,
        groups=comparison.groups,
        score=comparison.measure,
        several_labels=comparison.several_labels,
        metrics=_metrics(plots),
        splits=_splits(plots),
        seeds=any(len(group.runs) > 1 for group in comparison.groups),
        plots=plots,
        curve_tables=_curve_tables(comparison),
        errors=[_errors(i, group) for i, group in enumerate(comparison.groups)],
        best=comparison.groups.index(comparison.best),
        routings=routings(comparison),
        courses=list(sparse.COURSES.items()),
        soups=sparse.soups(comparison),
        pictured=any(run.samples == "pictures" for run in comparison.runs),
        record=_record(comparison),
        looks=looks,
    )


def _plots(comparison: Comparison) -> dict[str, Any]:
    """The figures that there are, as JSON."""
    several = len(comparison.groups) > 1  # one method is a single point
    looks = figures.looks(comparison)
    return frame.drawn(
        {
            "parameters": figures.by_parameters(comparison) if several else None,
            "time": figures.by_time(comparison) if several else None,
            "rates": rates.against_rates(comparison, looks),
            "curves": figures.curves(comparison),
            "masks": sparse.courses(comparison, looks),
            "densities": sparse.densities(comparison),
            "line": sparse.lines(comparison, looks),
            "confusion": figures.confusions(comparison),
        }
    )


def _metrics(plots: dict[str, Any]) -> list[tuple[str, str]]:
    """(key, name, unit) of everything the curves can show."""
    traces = plots.get("curves", {"data": []})["data"]
    found = dict.fromkeys(trace["meta"]["metric"] for trace in traces)
    return [(metric, figures.metric_name(metric)) for metric in found]


def _splits(plots: dict[str, Any]) -> list[tuple[str, str]]:
    traces = plots.get("curves", {"data": []})["data"]
    found = {trace["meta"]["split"] for trace in traces}
    return [(split, name) for split, name in figures.SPLITS.items() if split in found]


def _curve_tables(comparison: Comparison) -> dict[str, Any] | None:
    """Mean accuracy by epoch, validation or else training: the curves in words."""
    for split, name in reversed(figures.SPLITS.items()):
        lines = [
            mean_line(line_of(run.curve, split, run.scores.measure) for run in group.runs)
            for group in comparison.groups
        ]
        epochs = sorted({epoch for line in lines for epoch in line})
        if epochs:
            rows = [
                (f"{epoch:g}", [numbers.percent(x[epoch]) if epoch in x else "" for x in lines])
                for epoch in epochs
            ]
            return {"split": name, "rows": rows}
    return None


def _errors(number: int, group: RunGroup) -> dict[str, Any]:
    """Confusion counts as a table, and the worst mistakes of the first run that kept some."""
    found, whole = confusion_of(group), confusion_of(group, limit=10**9)
    run = next((run for run in group.runs if run.mistakes is not None), None)
    kept: Mistakes | None = run.mistakes if run else None
    shown: Sequence[Mistake] = kept.shown if kept else ()
    return {
        "number": number,
        "label": group.label,
        "confusion": found,
        "pairs": [] if whole is None else _pairs(whole.classes, whole.counts.tolist()),
        "mistakes": kept,
        "seed": run.seed if run else None,
        "pictures": [(mistake, _data_uri(mistake.picture)) for mistake in shown],
    }


def _pairs(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> list[tuple[str, str, int]]:
    """The most frequent (true, predicted, count) off the diagonal."""
    found = [
        (classes[i], classes[j], n)
        for i, row in enumerate(counts)
        for j, n in enumerate(row)
        if i != j and n
    ]
    return sorted(found, key=lambda pair: -pair[2])[:8]


def _data_uri(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(read_bytes(picture)).decode()}"


def _record(comparison: Comparison) -> dict[str, Any]:
    """Everything needed to judge the numbers and to make them again."""
    common, own = setting_rows(comparison)
    return {
        "selection": selection_rule(comparison.runs),
        "data": data_parts(comparison),
        "methods": method_rows(comparison),
        "common": common,
        "own": own,
        "given": given_rows(comparison),
        "machine": machine_rows(comparison.runs[0]),
        "runs": run_rows(comparison),
        "commands": commands(comparison.runs),
    }
