"""Tables as LaTeX for a paper: booktabs, the best in bold, the second best underlined."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .report import Note, Report, inside
from .table import Entry, Table

_NAMED = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "\N{MINUS SIGN}": "$-$",
    "×": r"$\times$",
    "\N{EN DASH}": "--",
    "\N{NO-BREAK SPACE}": "~",
    "\N{HORIZONTAL ELLIPSIS}": r"\ldots{}",
    "\n": " ",
    "\r": " ",
}
_SPECIAL = str.maketrans(_NAMED | {c: f"\\{c}" for c in "&%$#_{}"})
PREAMBLE = "% needs \\usepackage{adjustbox,booktabs} and \\usepackage[T1]{fontenc}"


def escape(text: str) -> str:
    """Replace the characters that mean something to LaTeX, so that it prints the text as it is."""
    return text.translate(_SPECIAL)


def latex(table: Table, title: str = "") -> str:
    """Return a table as a LaTeX environment; its notes are set below, in small print.

    title: stands before the caption, "" for none.
    """
    # numbers stand right, so that their digits are below each other
    columns = "".join("r" if column.numeric else "l" for column in table.columns)
    lines = [
        r"\begin{table}",
        rf"\caption{{{escape(f'{title}. {table.caption}' if title else table.caption)}}}",
        r"\centering",
        r"\begin{adjustbox}{max width=\textwidth}",
        rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
        r"\toprule",
        _row(escape(column.title) for column in table.columns),
        r"\midrule",
        *(_line(row) for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{adjustbox}",
        *(rf"\par\smallskip\footnotesize {escape(note)}" for note in table.notes),
        r"\end{table}",
    ]
    return "\n".join([*lines, ""])


def _line(row: Sequence[Entry]) -> str:
    # a little space before the row of means
    space = "\\addlinespace\n" if row[0].place == "mean" else ""
    return space + _row(map(_cell, row))


def _row(cells: Iterable[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


def _cell(cell: Entry) -> str:
    """Return a table entry in LaTeX: best value bold, second best underlined, remark small."""
    # the best in bold, the second best underlined
    text = escape(cell.text)
    text = {"first": rf"\textbf{{{text}}}", "second": rf"\underline{{{text}}}"}.get(
        cell.place, text
    )
    return rf"{text} {{\footnotesize {escape(cell.remark)}}}" if cell.remark else text


def latex_report(report: Report) -> str:
    """Return a report as LaTeX sections with its sentences and tables, without its figures."""
    parts = ["% intarsia report", PREAMBLE, rf"\section{{{escape(report.title)}}}"]
    parts += [escape(text) for text in (*report.sentences, *report.notices)]
    for section in report.sections:
        blocks = [block for block in inside(section.blocks) if isinstance(block, Table | Note)]
        parts += [rf"\subsection{{{escape(section.title)}}}"] if blocks else []
        parts += [latex(b) if isinstance(b, Table) else escape(b.text) for b in blocks]
    return "\n\n".join([*parts, ""])
