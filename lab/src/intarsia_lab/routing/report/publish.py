"""The files that tell of a comparison of routers: a page, Markdown, JSON and one flat table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from intarsia.core.files import write_text
from intarsia.reports.markdown import escape, markdown
from intarsia.reports.page import html
from intarsia.reports.table import csv_text
from intarsia.reports.wording import capital

from .findings import RouterSheet, tidy
from .page import report_of
from .tables import of_many, sentence, table_of


def write(
    sheets: Sequence[RouterSheet],
    rows: Sequence[dict[str, Any]],
    out: Path | str,
    command: str = "",
) -> list[Path]:
    """Write routers.html, routers.md, results.json and results.csv; returns their paths.

    sheets: the results on each data set and budget; rows: the results as `cells` gave them, for
      results.json; out: folder; command: what makes them again, for routers.md.
    Raises: TrainingError when a file cannot be written.
    """
    out = Path(out)
    return [
        write_text(out / "routers.html", html(report_of(sheets))),
        write_text(out / "routers.md", as_markdown(sheets, command)),
        write_text(out / "results.json", json.dumps(list(rows), indent=1, sort_keys=True) + "\n"),
        write_text(out / "results.csv", csv_text(tidy(sheets))),
    ]


def as_markdown(sheets: Sequence[RouterSheet], command: str = "") -> str:
    """Return all tables with their results in words, and the meaning of the columns, as Markdown.

    command: what makes them again, "" = not known.
    """
    parts = ["# Routers compared\n"]
    if command:
        parts.append(f"By intarsia {version('intarsia')}: `{command}`\n")
    for sheet in sheets:
        parts.append(f"## {escape(capital(sheet.title))}\n\n{escape(sentence(sheet))}\n")
        parts += [f"{escape(note)}\n" for note in of_many(sheet)]
        parts.append(markdown(table_of(sheet)))
    # each column once, whatever tables have it
    columns = {c.title: c.meaning for sheet in sheets for c in table_of(sheet).columns}
    meanings = [f"- **{escape(title)}**: {escape(meaning)}." for title, meaning in columns.items()]
    parts.append("\n".join(["## The columns", "", *meanings, ""]))
    return "\n".join(parts)
