"""A report as a page: one HTML file that needs no network, no other file, no code but its own.

A content security policy allows the page's script, by its hash, and no connection at all: text from
a run folder could not run even if it were not escaped.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from . import looks
from .charts import shown_when
from .report import Report
from .table import Table

_PAGE = files("intarsia.reports") / "page"
_UNIT, _NO_BREAK = re.compile(r"(?<=\d) (?=[kMG%±]|min\b)|(?<=±) "), "\N{NO-BREAK SPACE}"
WIDTHS = (20, 28, 36, 44, 52, 60, 68)  # rem; the style sheet has a rule for each
_TEXT, _SMALL = 0.5, 0.43  # rem of a letter
_FIRST = 7.5  # rem of the first column at least
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; {connect}"
    "script-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'"
)


def html(report: Report) -> str:
    """Return the HTML text of a report's page.  The same report gives the same bytes."""
    footer = (
        f"Written by intarsia {version('intarsia')}. One file; it loads nothing from elsewhere."
    )
    return _fill(report, read("report.js"), css=_style(), footer=footer)


def live(report: Report, kind: str) -> str:
    """Return the HTML text of a page with a form and a script that asks a server on this machine.

    report: what stands on it at first; kind: the page's form is KIND.html, its script KIND.js.
    """
    footer = (
        f"intarsia {version('intarsia')}, on this machine alone. It loads nothing from elsewhere."
    )
    css, script = _style() + read("local.css"), read("local.js") + read(f"{kind}.js")
    context = {
        "form": read(f"{kind}.html"),
        "kind": f"local {kind}",
        "connect": "connect-src 'self'; ",
    }
    return _fill(report, script, css=css, footer=footer, **context)


def _fill(
    report: Report,
    script: str,
    *,
    css: str,
    footer: str,
    form: str = "",
    kind: str = "",
    connect: str = "",
) -> str:
    # torch needs jinja2, so that it is always there
    import jinja2

    # every text is escaped by default; a name the template lacks is an error
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(read),
    )
    # functions that the template calls, by name
    environment.filters["unbroken"] = unbroken
    environment.filters["width"] = width_class
    environment.filters["when"] = shown_when
    environment.filters["kind"] = lambda block: type(block).__name__
    environment.filters["data"] = embedded
    environment.filters["next"] = next
    template = environment.get_template("page.html.j2")
    # `counter`: the template takes the next number for the id of each table
    text = template.render(
        report=report,
        script=script,
        css=css,
        footer=footer,
        form=form,
        kind=kind,
        policy=POLICY.format(hash=script_hash(script), connect=connect),
        marks=looks.MARKS,
        version=version("intarsia"),
        counter=iter(range(10**9)),
    )
    return text.lstrip()  # the macros leave empty lines


def _style() -> str:
    """Return the style sheet, with a rule for each width at which a table becomes cards."""
    # media queries take no variables, so that each width has a rule of its own
    cards = read("cards.css")
    return read("page.css") + "".join(cards.replace("WIDTH", str(width)) for width in WIDTHS)


def embedded(value: Any) -> str:
    """Return a value as JSON without "<", ">" and "&", so that it cannot end a script element."""
    # sorted, so that equal reports are equal bytes
    text = json.dumps(value, sort_keys=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def width_class(table: Table) -> str:
    """Return the CSS class for the width that a table needs: "w20" ... "w68", in rem.

    On a page that is narrower each row of the table becomes a card.
    """
    needed = 0.0
    for i, column in enumerate(table.columns):
        cells = [row[i] for row in table.rows]
        # a heading may break between its words, so that the longest one counts
        word = max(map(len, re.split(r"[\s/-]", column.title)), default=0)
        if column.numeric:
            text = max((max(len(c.text) * _TEXT, len(c.remark) * _SMALL) for c in cells), default=0)
        else:  # a text breaks between its words, and is readable from 16 letters on
            text = max((min(len(c.text), 16) * _TEXT for c in cells), default=0)
        # the widest of heading and cells, and 0.8 rem between columns
        needed += max(word * _TEXT, text, 0 if i else _FIRST) + 0.8
    # the narrowest class that is wide enough
    return f"w{next((width for width in WIDTHS if needed <= width), WIDTHS[-1])}"


def read(name: str) -> str:
    """Return a template, style sheet or script of the pages as text."""
    return (_PAGE / name).read_text(encoding="utf-8")


def unbroken(text: str) -> str:
    """Return a text in which no line breaks between a number and its unit."""
    return _UNIT.sub(_NO_BREAK, text)


def script_hash(script: str) -> str:
    """Return the hash by which a content security policy allows a script."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
