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
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from ..core.errors import MissingExtra
from ..core.files import write_text
from . import figures, numbers

_PAGE = files("intarsia.report") / "page"
_UNIT, _NO_BREAK = re.compile(r"(?<=\d) (?=[kMG%±]|min\b)|(?<=±) "), "\N{NO-BREAK SPACE}"


def render(
    template: str,
    data: Mapping[str, Any],
    *,
    css: str,
    script: str,
    folder: Traversable = _PAGE,
    **context: Any,
) -> str:
    """A page as text: `template` of `folder` fills the frame that all pages share.

    data: JSON-ready, for the script.  The frame wants eyebrow, heading, sentences and notices.
    Raises: MissingExtra without plotly or jinja2.
    """
    plotly = plotly_source()
    # "<" never appears in the JSON: no text can close its script element
    text = json.dumps(data, sort_keys=True, allow_nan=False)
    text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    environment = _environment((folder, _PAGE))
    return environment.get_template(template).render(
        version=version("intarsia"),
        css=css,
        marks=figures.MARKS,
        data=text,
        script=script,
        plotly=plotly,
        hashes=[_hash(plotly), _hash(script)],
        **context,
    )


def _environment(folders: Sequence[Traversable]) -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtra("jinja2", "report") from error

    def load(name: str) -> str | None:
        found = (read(name, place) for place in folders if (place / name).is_file())
        return next(found, None)

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        loader=jinja2.FunctionLoader(load),
    )  # fmt: skip
    environment.filters["percent"] = lambda share: unbroken(numbers.percent(share, 0))
    environment.filters["plural"] = numbers.plural
    environment.filters["unbroken"] = unbroken
    return environment


def read(name: str, folder: Traversable = _PAGE) -> str:
    """A style sheet or script of a page, as text."""
    return (folder / name).read_text(encoding="utf-8")


def unbroken(text: str) -> str:
    """With spaces before units at which no line breaks."""
    return _UNIT.sub(_NO_BREAK, text)


def plotly_source() -> str:
    """plotly.js as a browser parses it.  Raises: MissingExtra without plotly."""
    figures.plotly()
    from plotly.offline import get_plotlyjs

    # browsers hash what they parsed, and parsing makes every line end a single \n
    return get_plotlyjs().replace("\r\n", "\n")


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def save(content: str | bytes, out: Path | str) -> Path:
    """`core.files.write_text`, the content first."""
    return write_text(out, content)
