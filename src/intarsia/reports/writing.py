"""Write a report to a file, in the form that its name asks for."""

from __future__ import annotations

from pathlib import Path

from ..core.files import write_text
from . import page
from .latex import latex_report
from .markdown import markdown_report
from .report import Report

FORMS = {".md": markdown_report, ".tex": latex_report}


def write(report: Report, out: Path | str) -> Path:
    """Write a report to a file: Markdown for .md, LaTeX for .tex, else an HTML page.

    out: the file. Returns its path.
    Raises: TrainingError when the file cannot be written.
    """
    # any other name becomes a page, .html or not
    form = FORMS.get(Path(out).suffix.lower(), page.html)
    return write_text(out, form(report))
