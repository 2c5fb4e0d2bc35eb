"""A table as data; terminal, Markdown, LaTeX and page show the same rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .looks import Look


@dataclass(frozen=True)
class Column:
    """A heading, its meaning, and whether its cells are numbers.

    spare: 0 always stands in a terminal; of the others the highest is left out first where the
    terminal is too narrow.
    """

    title: str
    meaning: str = ""
    numeric: bool = True
    spare: int = 0


@dataclass(frozen=True)
class Entry:
    """Text of a table's entry, a smaller remark, the value in full, its place in the column.

    place: "first", "second", or nothing; "mean" for the head of a row of means; "warn" for what
    should be looked at.  shade: 0 ... 1, how dark a page draws it; None = not at all.  hidden: a
    text that a page shows when it is opened, such as a whole error.
    """

    text: str
    remark: str = ""
    full: str = ""
    place: str = ""
    shade: float | None = None
    hidden: str = ""


@dataclass(frozen=True)
class Table:
    """Columns and as many cells in every row; `best` and `baseline` are row numbers.

    notes: sentences below the table.  looks: a mark for each row, for pages.  fold: a page shows it
    closed, below this summary.  when: the choices of a reader at which it is shown, as in `Report`.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]
    best: int | None = None
    baseline: int | None = None
    notes: tuple[str, ...] = ()
    looks: tuple[Look, ...] = ()
    fold: str = ""
    when: Mapping[str, str | int] = field(default_factory=dict)

    def filled(self) -> Table:
        """Return the table without the columns that are empty in every row."""
        # best and baseline number rows, and so stay as they are
        places = [i for i in range(len(self.columns)) if any(row[i].text for row in self.rows)]
        columns = tuple(self.columns[i] for i in places)
        return replace(
            self, columns=columns, rows=tuple(tuple(r[i] for i in places) for r in self.rows)
        )


def plain(
    caption: str,
    titles: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    words: int = 1,
    **fields: Any,
) -> Table:
    """Return a table with column titles that need no explanation.

    rows: entries, or values that become text; words: number of columns at the left that are texts,
      the others are numbers; fields: further ones of `Table`.
    """
    columns = tuple(Column(title, numeric=i >= words) for i, title in enumerate(titles))
    entries = tuple(
        tuple(cell if isinstance(cell, Entry) else Entry(str(cell)) for cell in row) for row in rows
    )
    return Table(caption, columns, entries, **fields)


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV, with a header.  rows: mappings with the same keys."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
