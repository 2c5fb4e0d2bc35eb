"""One table of a comparison: for the terminal, Markdown, JSON and the page, from the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table as RichTable
from rich.text import Text

from . import numbers
from .groups import Comparison, Group


@dataclass(frozen=True)
class Column:
    """A heading, what it means, and whether its cells are numbers."""

    title: str
    meaning: str
    numeric: bool = True


@dataclass(frozen=True)
class Cell:
    """What is shown, a smaller remark beside it, the value in full, its place in its column.

    place: "first", "second", or nothing; "mean" for the head of a row of means.
    """

    text: str
    remark: str = ""
    full: str = ""
    place: str = ""


@dataclass(frozen=True)
class Table:
    """Columns and as many cells in every row; `best` and `baseline` are row numbers.

    notes: sentences below the table.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    best: int | None
    baseline: int | None
    notes: tuple[str, ...] = ()


def table_of(comparison: Comparison) -> Table:
    """A row for every group: accuracy, difference, trained parameters, time, memory."""
    groups, base = comparison.groups, comparison.baseline
    known = any(group.peak_bytes is not None for group in groups)
    columns = [
        Column("Method", "What was trained", numeric=False),
        Column("Accuracy", "Share of right answers: mean ± sample standard deviation over seeds"),
        Column("Seeds", "Number of runs that differ in the seed only"),
        Column("Adapter parameters", "Trained parameters outside the classification head"),
        Column("With head", "Trained parameters including the classification head"),
        Column("Time", "Training time of one run, without evaluation: mean over seeds"),
    ]
    if base is not None:
        title = "Difference"
        meaning = f"Accuracy minus that of {base.label} at the same seed, percentage points"
        columns.insert(2, Column(title, meaning))
    if known:
        columns.append(Column("Peak memory", "Highest memory of the process: largest of the seeds"))
    rows = tuple(_row(group, base, known) for group in groups)
    return Table(
        caption=caption(comparison),
        columns=tuple(columns),
        rows=rows,
        best=groups.index(comparison.best),
        baseline=groups.index(base) if base else None,
    )


def caption(comparison: Comparison) -> str:
    """What the numbers were measured on."""
    splits = {run.scores.split for run in comparison.runs}
    where = " and ".join({"test": "test", "val": "validation"}.get(s, s) for s in sorted(splits))
    text = f"Accuracy on the {where} {comparison.runs[0].samples}"
    if comparison.baseline is not None:
        text += f"; differences and ratios to {comparison.baseline.label}, in percentage points"
    return text + "."


def _row(group: Group, base: Group | None, known: bool) -> tuple[Cell, ...]:
    costs = group.runs[0].costs
    accuracy, seconds = group.accuracy, group.seconds
    cells = [
        Cell(group.label),
        Cell(numbers.accuracy(accuracy), full=f"{accuracy.mean:.6f}"),
        Cell(str(accuracy.n)),
        Cell(numbers.count(costs.trained_without_head), full=f"{costs.trained_without_head:,}"),
        Cell(numbers.count(costs.trained), full=f"{costs.trained:,}"),
        Cell(
            numbers.seconds(seconds.mean),
            _ratio(seconds.mean, base and base.seconds.mean, group is base),
            f"{seconds.mean:.3f} s",
        ),
    ]
    if base is not None:
        cells.insert(2, _difference(group, base))
    if known:
        peak = group.peak_bytes
        beside = _ratio(peak, base and base.peak_bytes, group is base)
        cells.append(
            Cell("", "", "")
            if peak is None
            else Cell(numbers.size(peak), beside, f"{peak:,} bytes")
        )
    return tuple(cells)


def _difference(group: Group, base: Group) -> Cell:
    if group is base:
        return Cell("baseline")
    found = group.difference(base)
    if not found.n:
        return Cell(numbers.points(found), "not paired", "no seed in common")
    remark = f"ahead in {found.ahead} of {found.n}" if found.n > 1 else ""
    return Cell(numbers.points(found), remark, f"{found.mean:+.6f} over {found.n} shared seeds")


def _ratio(value: float | None, base: float | None, same: bool) -> str:
    return "" if same or not value or not base else numbers.ratio(value / base)


def terminal_table(comparison: Comparison) -> RichTable:
    """For rich's console; text is shown as it is, without markup."""
    return terminal(table_of(comparison))


def terminal(table: Table) -> RichTable:
    """Any table for rich's console."""
    shown = RichTable(caption=Text(table.caption), caption_justify="left", header_style="bold")
    for column in table.columns:
        shown.add_column(Text(column.title), justify="right" if column.numeric else "left")
    for number, row in enumerate(table.rows):
        style = "bold" if number == table.best and len(table.rows) > 1 else None
        shown.add_row(*(_text(cell) for cell in row), style=style)
    return shown


def _text(cell: Cell) -> Text:
    text = Text(cell.text)
    return text.append(f"  {cell.remark}", style="dim") if cell.remark else text


def markdown_table(comparison: Comparison) -> str:
    """GitHub-flavoured, aligned in its source."""
    return markdown(table_of(comparison))


def markdown(table: Table) -> str:
    """Any table as GitHub-flavoured Markdown: first places in bold, second ones in italics."""
    rows = [[escape(column.title) for column in table.columns]]
    rows += [[_marked(cell) for cell in row] for row in table.rows]
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(table.columns))]
    numeric = [column.numeric for column in table.columns]
    rule = ["-" * (w - 1) + ":" if n else "-" * w for w, n in zip(widths, numeric, strict=True)]
    lines = [_line(rows[0], widths, numeric), _line(rule, widths, numeric)]
    lines += [_line(row, widths, numeric) for row in rows[1:]]
    below = [text for note in (table.caption, *table.notes) for text in ("", escape(note))]
    return "\n".join([*lines, *below, ""])


def _marked(cell: Cell) -> str:
    text = escape(f"{cell.text} ({cell.remark})" if cell.remark else cell.text)
    around = {"first": "**", "second": "_"}.get(cell.place, "")
    return f"{around}{text}{around}"


def _line(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    padded = (
        c.rjust(w) if n else c.ljust(w) for c, w, n in zip(cells, widths, numeric, strict=True)
    )
    return f"| {' | '.join(padded)} |"


_SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_|<>[]#~"} | {"\n": " ", "\r": " "})


def escape(text: str) -> str:
    """Text that Markdown shows letter by letter."""
    return text.translate(_SPECIAL)


def json_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """The table's values in full, ready for JSON."""
    base = comparison.baseline
    rows: list[dict[str, Any]] = []
    for group in comparison.groups:
        costs, balanced = group.runs[0].costs, group.balanced_accuracy
        other = None if group is base else base
        rows.append(
            {
                "method": group.label,
                "split": group.runs[0].scores.split,
                "accuracy": asdict(group.accuracy),
                "balanced_accuracy": asdict(balanced) if balanced else None,
                "baseline": other.label if other else None,
                "difference": asdict(group.difference(other)) if other else None,
                "parameters": costs.parameters,
                "trained": costs.trained,
                "trained_without_head": costs.trained_without_head,
                "seconds": asdict(group.seconds),
                "peak_bytes": group.peak_bytes,
                "seeds": [run.seed for run in group.runs],
                "folders": [str(run.folder) for run in group.runs],
            }
        )
    return rows
