"""Tables and reports for rich's console; text is shown as it is, without markup."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, Group
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from .report import Report, inside
from .table import Entry, Table

UNBOUND = 10_000  # characters, more than any table asks for


@dataclass(frozen=True)
class Terminal:
    """A table for rich's console: spare columns are left out, and named, until the rest fits."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RichTable]:
        """Yield the table for rich, without less important columns if the terminal is narrow."""
        # leave out the columns of the highest `spare` until the table fits
        levels = sorted({0, *(c.spare for c in self.table.columns)})
        drawn = _rich_table(self.table, levels.pop())
        # measured without a limit: rich would fold the text instead
        wide = options.update(width=UNBOUND)
        while levels and Measurement.get(console, wide, drawn).maximum > options.max_width:
            drawn = _rich_table(self.table, levels.pop())
        yield drawn


def _rich_table(table: Table, level: int) -> RichTable:
    """Return the table for rich, without the columns with a `spare` above `level`."""
    places = [i for i, column in enumerate(table.columns) if column.spare <= level]
    # a reader is told which columns were left out
    missing = ", ".join(c.title for c in table.columns if c.spare > level)
    caption = table.caption + (f" In the report also: {missing}." if missing else "")
    drawn = RichTable(caption=Text(caption), caption_justify="left", header_style="bold")
    for column in (table.columns[i] for i in places):
        side: Any = "right" if column.numeric else "left"
        # a word that is wider than its column has two lines instead of an ellipsis
        drawn.add_column(Text(column.title), justify=side, overflow="fold")
    for number, row in enumerate(table.rows):
        style = "bold" if number == table.best and len(table.rows) > 1 else None
        drawn.add_row(*(_text(row[i]) for i in places), style=style)
    return drawn


def _text(cell: Entry) -> Text:
    text = Text(cell.text)
    return text.append(f"  {cell.remark}", style="dim") if cell.remark else text


def summary(report: Report) -> Group:
    """Return the tables of a report's first section, its sentences and warnings, for rich."""
    first = report.sections[0].blocks if report.sections else ()
    tables = [Terminal(block) for block in inside(first) if isinstance(block, Table)]
    return Group(*tables, *map(Text, (*report.sentences, *report.notices)))
