"""A table for the terminal, Markdown, LaTeX and a page, from the same rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

UNBOUND = 10_000  # characters, more than any table asks for


@dataclass(frozen=True)
class Column:
    """A heading, what it means, and whether its cells are numbers.

    spare: 0 always stands in a terminal; of the others the highest is left out first where the
    terminal is too narrow.
    """

    title: str
    meaning: str
    numeric: bool = True
    spare: int = 0


@dataclass(frozen=True)
class Entry:
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
    rows: tuple[tuple[Entry, ...], ...]
    best: int | None
    baseline: int | None
    notes: tuple[str, ...] = ()

    def filled(self) -> Table:
        """Without the columns that say nothing in any row."""
        kept = [i for i in range(len(self.columns)) if any(row[i].text for row in self.rows)]
        columns = tuple(self.columns[i] for i in kept)
        return replace(
            self, columns=columns, rows=tuple(tuple(r[i] for i in kept) for r in self.rows)
        )


@dataclass(frozen=True)
class Terminal:
    """A table for rich's console: spare columns are left out, and named, until the rest fits."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RichTable]:
        left = sorted({0, *(c.spare for c in self.table.columns)})
        shown = _drawn(self.table, left.pop())
        wide = options.update(width=UNBOUND)
        while left and Measurement.get(console, wide, shown).maximum > options.max_width:
            shown = _drawn(self.table, left.pop())
        yield shown


def _drawn(table: Table, most: int) -> RichTable:
    """The columns that are spare at `most`."""
    kept = [i for i, column in enumerate(table.columns) if column.spare <= most]
    missing = ", ".join(c.title for c in table.columns if c.spare > most)
    caption = table.caption + (f" In the report also: {missing}." if missing else "")
    shown = RichTable(caption=Text(caption), caption_justify="left", header_style="bold")
    for column in (table.columns[i] for i in kept):
        shown.add_column(Text(column.title), justify="right" if column.numeric else "left")
    for number, row in enumerate(table.rows):
        style = "bold" if number == table.best and len(table.rows) > 1 else None
        shown.add_row(*(_text(row[i]) for i in kept), style=style)
    return shown


def _text(cell: Entry) -> Text:
    text = Text(cell.text)
    return text.append(f"  {cell.remark}", style="dim") if cell.remark else text


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


def _marked(cell: Entry) -> str:
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


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as CSV, its header first."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
