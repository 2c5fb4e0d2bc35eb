"""One table of a comparison: for the terminal, Markdown, JSON and the page, from the same rows."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from .. import numbers
from ..markdown import markdown
from ..table import Column, Entry, Table
from ..wording import capital
from . import rates
from .grouping import Comparison, RunGroup

CALIBRATION = (
    Column(
        "Tempered",
        "Loss after one temperature for all logits, fitted on the validation part, where that is "
        "large enough and has a mistake",
        spare=5,
    ),
    Column(
        "ECE",
        "Expected calibration error: mean distance of confidence from accuracy, 15 bins",
        spare=4,
    ),
)
_SEEDS = Column("Seeds", "Number of runs that differ in the seed only", spare=2)
_BY_CLASS = (
    Column("Accuracy", "Share of right answers: mean ± sample standard deviation over seeds"),
    Column("Balanced", "Mean over classes of the share of right answers: mean over seeds", spare=3),
)
_BY_LABEL = (
    Column("Average precision", "Mean over labels, of pictures in the order of their logits, %"),
    Column("F1", "Mean over labels, at a probability of one half, %"),
)


def table_of(comparison: Comparison) -> Table:
    """Return the table of results: a row for each method with its score, difference and costs."""
    groups, base = comparison.groups, comparison.baseline
    several = len({len(group.runs) for group in groups}) > 1  # else a sentence says how many
    columns = [
        Column("Method", "What was trained", numeric=False),
        *(_BY_LABEL if comparison.several_labels else _BY_CLASS),
        Column("Loss", "Mean cross-entropy of the same part, without class weights"),
        *CALIBRATION,
        *([_SEEDS] if several else []),
        Column("Adapter parameters", "Trained parameters outside the classification head"),
        Column("With head", "Trained parameters including the classification head", spare=6),
        rates.COLUMN,
        Column("Time", "Training time of one run, without evaluation: mean over seeds"),
        Column("Peak memory", "Highest memory of the process: largest of the seeds", spare=1),
    ]
    if base is not None:
        title = "Difference"
        meaning = f"{capital(comparison.measure)} minus that of {base.label} at the same seed, "
        meaning += "percentage points, and its 95 % interval over test items and seeds"
        # next to the score, as in the rows
        columns.insert(2, Column(title, meaning))
    table = Table(
        caption=caption(comparison),
        columns=tuple(columns),
        rows=tuple(_row(group, base, several) for group in groups),
        best=None if comparison.leader is None else groups.index(comparison.leader),
        baseline=groups.index(base) if base else None,
    )
    return table.filled()


def caption(comparison: Comparison) -> str:
    """Return the caption of the results: which part of the data they were measured on."""
    splits = {run.scores.split for run in comparison.runs}
    parts = " and ".join({"test": "test", "val": "validation"}.get(s, s) for s in sorted(splits))
    text = f"{capital(comparison.measure)} on the {parts} {comparison.runs[0].samples}"
    if comparison.baseline is not None:
        text += f"; differences and ratios to {comparison.baseline.label}, in percentage points"
    return text + "."


def _row(group: RunGroup, base: RunGroup | None, seeds: bool) -> tuple[Entry, ...]:
    costs = group.runs[0].costs
    accuracy, seconds = group.accuracy, group.seconds
    balanced, loss = group.balanced_accuracy or group.f1, group.loss
    calibration = group.tempered_loss, group.ece
    cells = [
        Entry(group.label),
        Entry(numbers.accuracy(accuracy), full=f"{accuracy.mean:.6f}"),
        Entry("" if balanced is None else numbers.percent(balanced.mean)),
        Entry("" if loss is None else f"{loss.mean:.3f}"),
        *(Entry("" if v is None else f"{v.mean:.3f}") for v in calibration),
        *([Entry(str(accuracy.n))] if seeds else []),
        Entry(numbers.count(costs.trained_without_head), full=f"{costs.trained_without_head:,}"),
        Entry(numbers.count(costs.trained), full=f"{costs.trained:,}"),
        rates.entry(group),
        Entry(
            numbers.seconds(seconds.mean),
            _ratio(seconds.mean, base and base.seconds.mean, group is base),
            f"{seconds.mean:.3f} s",
        ),
    ]
    if base is not None:
        cells.insert(2, _difference(group, base))
    if (peak := group.peak_bytes) is None:
        return (*cells, Entry(""))
    peak_ratio = _ratio(peak, base and base.peak_bytes, group is base)
    return (*cells, Entry(numbers.size(peak), peak_ratio, f"{peak:,} bytes"))


def _difference(group: RunGroup, base: RunGroup) -> Entry:
    if group is base:
        return Entry("baseline")
    difference = group.difference(base)
    if difference is None:
        apart = group.accuracy.mean - base.accuracy.mean
        return Entry(numbers.signed(100 * apart), "not paired", "no seed in common")
    over, missing = group.interval(base)
    remark = "no interval" if over is None else numbers.interval(over.low, over.high)
    remark = remark.replace(" ", "\N{NO-BREAK SPACE}")  # a narrow column breaks it nowhere
    full = f"{difference.mean:+.6f} over {difference.n} shared seeds, ahead in {difference.ahead}"
    full += f"; no interval: {missing}" if over is None else ""
    return Entry(numbers.points(difference.spread), remark, full)


def _ratio(value: float | None, base: float | None, is_base: bool) -> str:
    return "" if is_base or not value or not base else numbers.ratio(value / base)


def markdown_table(comparison: Comparison) -> str:
    """Return the table as GitHub-flavoured Markdown, aligned in its source."""
    return markdown(table_of(comparison))


def json_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the results of each method with all digits, as dicts for JSON.

    Scores and "seconds" are dicts with the mean over seeds, its deviation and their number; scores
    are shares, 0 ... 1, of the part "split", and None where they were not computed. "measure" says
    which score "accuracy" is. "difference": from the method "baseline", with its interval, or None.
    "parameters", "trained", "trained_without_head": counts. "lr", "search": the learning rate and
    how it was found. "peak_bytes": highest memory. "seeds", "folders": of the runs.
    """
    base = comparison.baseline
    rows: list[dict[str, Any]] = []
    for group in comparison.groups:
        costs, balanced = group.runs[0].costs, group.balanced_accuracy
        baseline = None if group is base else base
        rows.append(
            {
                "method": group.label,
                "split": group.runs[0].scores.split,
                "accuracy": asdict(group.accuracy),
                "measure": group.runs[0].scores.measure,
                "balanced_accuracy": asdict(balanced) if balanced else None,
                "f1": asdict(group.f1) if group.f1 else None,
                "loss": asdict(group.loss) if group.loss else None,
                "tempered_loss": asdict(group.tempered_loss) if group.tempered_loss else None,
                "ece": asdict(group.ece) if group.ece else None,
                "baseline": baseline.label if baseline else None,
                "difference": _paired(group, baseline) if baseline else None,
                "parameters": costs.parameters,
                "trained": costs.trained,
                "trained_without_head": costs.trained_without_head,
                "lr": rates.rate_of(group),
                "search": rates.search_of(group),
                "seconds": asdict(group.seconds),
                "peak_bytes": group.peak_bytes,
                "seeds": [run.seed for run in group.runs],
                "folders": [str(run.folder) for run in group.runs],
            }
        )
    return rows


def json_choice(comparison: Comparison) -> dict[str, Any]:
    """Return the run that validation scores choose, or the reason why there is none, for JSON.

    "method", "seed", "folder": of that run; "validation": for each method its mean score and loss
    on the validation part; "seeds": the seeds of the means. Without a choice only "missing",
    a text.
    """
    choice, missing = comparison.choice
    if choice is None:
        return {"missing": missing}
    labels = [group.label for group in comparison.groups]
    values = [{"score": score, "loss": -loss} for score, loss, _ in choice.ranks]
    return {
        "method": choice.group.label,
        "seed": choice.run.seed,
        "folder": str(choice.run.folder),
        "validation": dict(zip(labels, values, strict=True)),
        "seeds": list(choice.seeds),
    }


def _paired(group: RunGroup, base: RunGroup) -> dict[str, Any]:
    """Return a method's difference to the baseline for JSON, with its interval."""
    difference = group.difference(base)
    if difference is None:
        apart = group.accuracy.mean - base.accuracy.mean
        interval = {"missing": group.interval(base)[1]}
        return {"mean": apart, "deviation": None, "n": 0, "ahead": 0, "interval": interval}
    over, missing = group.interval(base)
    interval = {"missing": missing} if over is None else asdict(over)
    return asdict(difference.spread) | {"ahead": difference.ahead, "interval": interval}
