"""What every page has: one HTML file that needs no network, no other file, no code but its own.

A content security policy allows the page's two scripts, by their hash, and no connection at all:
text from a run folder could not run even if it were not escaped.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from ..core.errors import MissingExtra
from . import numbers, plots

_PAGE = files("intarsia.results") / "page"
_UNIT, _NO_BREAK = re.compile(r"(?<=\d) (?=[kMG%±]|min\b)|(?<=±) "), "\N{NO-BREAK SPACE}"


def render(
    kind: str,
    figures: Mapping[str, Any],
    colors: Sequence[Any],
    sentences: Sequence[str],
    **context: Any,
) -> str:
    """A page as text: KIND.html.j2 fills the frame that all pages share, KIND.js draws its figures.

    figures: of `drawn`.  colors: of the groups, numbers of the style sheet.  sentences: at the top.
    context: for the template; the frame wants eyebrow, heading and notices.
    Raises: MissingExtra without plotly or jinja2.
    """
    plotly = plotly_source()
    script = read("plots.js") + read(f"{kind}.js")
    # "<" never appears in the JSON: no text can close its script element
    data = {"figures": figures, "colors": colors}
    text = json.dumps(data, sort_keys=True, allow_nan=False)
    text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return (
        _environment()
        .get_template(f"{kind}.html.j2")
        .render(
            kind=kind,
            version=version("intarsia"),
            css=read("page.css"),
            marks=plots.MARKS,
            data=text,
            script=script,
            plotly=plotly,
            hashes=[script_hash(plotly), script_hash(script)],
            sentences=[unbroken(text) for text in sentences],
            **context,
        )
    )


def drawn(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The plotly figures that there are, by name, ready for JSON."""
    return {
        name: json.loads(str(one.to_json())) for name, one in figures.items() if one is not None
    }


def _environment() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtra("jinja2", "report") from error

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(read),
    )
    environment.filters["percent"] = lambda share: unbroken(numbers.percent(share, 0))
    environment.filters["plural"] = numbers.plural
    environment.filters["unbroken"] = unbroken
    return environment


def read(name: str) -> str:
    """A style sheet or script of a page, as text."""
    return (_PAGE / name).read_text(encoding="utf-8")


def unbroken(text: str) -> str:
    """With spaces before units at which no line breaks."""
    return _UNIT.sub(_NO_BREAK, text)


def plotly_source() -> str:
    """plotly.js as a browser parses it.  Raises: MissingExtra without plotly."""
    plots.plotly()
    from plotly.offline import get_plotlyjs

    # browsers hash what they parsed, and parsing makes every line end a single \n
    return get_plotlyjs().replace("\r\n", "\n")


def script_hash(script: str) -> str:
    """What a content security policy calls a script."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
