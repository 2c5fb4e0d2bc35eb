"""The benchmark's results as files: a page, Markdown, LaTeX, and one tidy table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from ..core.errors import MissingExtra
from ..report import shell
from ..report.tables import escape, markdown
from .latex import PREAMBLE, latex
from .page import render
from .results import Result
from .summary import Summary, tables
from .table import tables_of
from .tidy import write_csv, write_parquet


def write(
    records: Iterable[Result],
    out: Path | str,
    baseline: str | None = None,
    cut: Sequence[str] = (),
    *,
    runs: Path | str | None = None,
) -> list[Path]:
    """Write index.html, table.md, table.tex, results.csv and, with pyarrow, results.parquet.

    baseline: name or label of the method that the others are held against.  cut: what was left out
    or changed, a sentence each.  runs: the folder that results name their runs from, None = `out`.
    The same results in any order give the same files.  Returns their paths.
    Raises: DataError and UnknownName as `tables` does; MissingExtra without plotly, jinja2 or
    statsmodels; TrainingError when a file cannot be written.
    """
    summary, out = tables(records, baseline), Path(out)
    page = render(summary, out=out, runs=Path(runs) if runs is not None else None, cut=cut)
    written = [
        shell.save(page, out / "index.html"),
        shell.save(as_markdown(summary, cut), out / "table.md"),
        shell.save(as_latex(summary, cut), out / "table.tex"),
        write_csv(summary.results, out / "results.csv"),
    ]
    with suppress(MissingExtra):  # the CSV file has the same rows
        written.append(write_parquet(summary.results, out / "results.parquet"))
    return written


def as_markdown(summary: Summary, cut: Sequence[str] = ()) -> str:
    """All tables of all sheets, and what was cut or changed."""
    parts = [
        f"## {escape(title)}\n\n{markdown(table)}"
        for findings in summary.findings
        for title, table in tables_of(findings)
    ]
    if cut:
        parts.append(
            "\n".join(["## Cut or changed", "", *(f"- {escape(line)}" for line in cut), ""])
        )
    return "\n".join(parts)


def as_latex(summary: Summary, cut: Sequence[str] = ()) -> str:
    """All tables of all sheets; what was cut stands in comments."""
    parts = [
        latex(table, title) for findings in summary.findings for title, table in tables_of(findings)
    ]
    comments = [f"% cut: {' '.join(line.split())}" for line in cut]
    return "\n".join([PREAMBLE, *comments, "", *parts])
