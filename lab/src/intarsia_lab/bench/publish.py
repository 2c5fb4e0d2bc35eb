"""The benchmark's results as files: a page, Markdown, LaTeX, and one tidy table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from intarsia.core.errors import MissingExtra
from intarsia.core.files import write_text
from intarsia.reports.latex import PREAMBLE, latex
from intarsia.reports.markdown import escape, markdown
from intarsia.reports.page import html

from .panel import panels
from .report.flat_rows import write_csv, write_parquet
from .report.page import report_of
from .report.records import RunResult
from .report.summary import Summary, tables
from .report.tables import tables_of


def write(
    records: Iterable[RunResult],
    out: Path | str,
    baseline: str | None = None,
    cut: Sequence[str] = (),
    *,
    runs: Path | str | None = None,
) -> list[Path]:
    """Write index.html, table.md, table.tex, results.csv and, with pyarrow, results.parquet.

    records: results of runs; out: folder of the files; baseline: name or label of the method that
    the others are compared with; cut: omissions and changes of the plan, a sentence each; runs: the
    folder that results name their runs from, None = `out`. The same results in any order give the
    same files. Returns their paths.

    Raises: DataError and UnknownName as `tables` does; MissingExtra without statsmodels;
    TrainingError when a file cannot be written.
    """
    out = Path(out)
    runs = Path(runs or out)
    # all statistics before the first file: refused results leave none behind
    summary = tables(records, baseline, runs)
    # the page links to the runs' folders from its own
    page = html(report_of(summary, panels(runs, out), cut))
    written = [
        write_text(out / "index.html", page),
        write_text(out / "table.md", as_markdown(summary, cut)),
        write_text(out / "table.tex", as_latex(summary, cut)),
        write_csv(summary.results, out / "results.csv"),
    ]
    with suppress(MissingExtra):  # the CSV file has the same rows
        written.append(write_parquet(summary.results, out / "results.parquet"))
    return written


def as_markdown(summary: Summary, cut: Sequence[str] = ()) -> str:
    """Return all tables as Markdown, and the plan's cuts and changes.

    summary: statistics of all results; cut: a sentence for each change of the plan.
    """
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
    """Return all tables as LaTeX; the plan's cuts and changes stand in comments.

    summary: statistics of all results; cut: a sentence for each change of the plan.
    """
    parts = [
        latex(table, title) for findings in summary.findings for title, table in tables_of(findings)
    ]
    # one line each: a comment ends with its line
    comments = [f"% cut: {' '.join(line.split())}" for line in cut]
    return "\n".join([PREAMBLE, *comments, "", *parts])
