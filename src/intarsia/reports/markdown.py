"""Tables and reports as GitHub-flavoured Markdown, aligned in its source."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from .report import Block, Commands, Container, Facts, Figure, Listing, Note, Report
from .table import Entry, Table

MOST = 13  # columns that a page of 1280 px has room for
APART = 10  # columns after the first, where a table is cut into several


def markdown(table: Table) -> str:
    """Return a table as Markdown: first places in bold, second ones in italics.

    A table of more than MOST columns becomes several, below each other; each begins with the first
    column.
    """
    pieces = [_lines(table, columns) for columns in _cut(len(table.columns))]
    notes = [note for note in (table.caption, *table.notes) if note]
    below = [text for note in notes for text in ("", escape(note))]
    return "\n".join(["\n\n".join("\n".join(lines) for lines in pieces), *below, ""])


def _cut(columns: int) -> list[list[int]]:
    """Divide the columns of a wide table into pieces; return the column numbers of each piece."""
    if columns <= MOST:
        return [[*range(columns)]]
    pieces = -(-(columns - 1) // APART)
    ends = [1 + round((columns - 1) * i / pieces) for i in range(pieces + 1)]
    return [[0, *range(a, b)] for a, b in pairwise(ends)]


def _lines(table: Table, columns: Sequence[int]) -> list[str]:
    """Return the lines of some columns as a Markdown table.  columns: numbers of the columns."""
    rows = [[escape(table.columns[i].title) for i in columns]]
    rows += [[_marked(row[i]) for i in columns] for row in table.rows]
    # a rule needs three dashes at least
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(columns))]
    numeric = [table.columns[i].numeric for i in columns]
    # a colon at the end aligns a column of numbers to the right
    rule = ["-" * (w - 1) + ":" if n else "-" * w for w, n in zip(widths, numeric, strict=True)]
    return [_line(row, widths, numeric) for row in (rows[0], rule, *rows[1:])]


def _marked(cell: Entry) -> str:
    """Return an entry as Markdown: the best in bold, the second best in italics."""
    text = escape(f"{cell.text} ({cell.remark})" if cell.remark else cell.text)
    # the two best of a column
    around = {"first": "**", "second": "_"}.get(cell.place, "")
    return f"{around}{text}{around}"


def _line(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    """Return a row of a Markdown table, padded so that columns are aligned in the source."""
    padded = (
        c.rjust(w) if n else c.ljust(w) for c, w, n in zip(cells, widths, numeric, strict=True)
    )
    return f"| {' | '.join(padded)} |"


_SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_|<>[]#~"} | {"\n": " ", "\r": " "})


def escape(text: str) -> str:
    """Escape a text so that Markdown shows it letter by letter."""
    return text.translate(_SPECIAL)


def markdown_report(report: Report) -> str:
    """Return a report as Markdown: its sentences and tables, and the caption of each figure."""
    parts = [
        "<!-- intarsia report -->",
        f"# {escape(report.title)}",
        *map(escape, report.sentences),
    ]
    if report.notices:
        parts.append("\n".join(f"- {escape(notice)}" for notice in report.notices))
    for section in report.sections:
        parts += [f"## {escape(section.title)}", *_blocks(section.blocks)]
    return "\n\n".join(parts) + "\n"


def _blocks(blocks: Sequence[Block]) -> list[str]:
    """Return each block of a section as Markdown; blocks that need a browser are left out."""
    parts: list[str] = []
    for block in blocks:
        match block:
            case Table():
                parts.append(markdown(block).rstrip())
            case Note():
                parts.append(escape(block.text))
            case Figure():
                parts.append(f"_{escape(f'{block.title} {block.caption}'.strip())}_")
            case Facts():
                rows = [f"- **{escape(name)}**: {escape(value)}" for name, value in block.rows]
                parts.append("\n".join(rows))
            case Listing():
                parts.append("\n".join(f"- {escape(line)}" for line in block.lines))
            case Commands():
                parts.append("\n".join(["```sh", *block.lines, "```"]))
            case Container():
                heading = [f"### {escape(block.title)}"] if block.title else []
                parts += heading + _blocks(block.blocks)
            case _:  # controls, panels and pictures are of a page alone
                pass
    return parts
