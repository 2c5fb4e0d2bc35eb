"""The page of a comparison of routers: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from intarsia.results import frame, numbers
from intarsia.results.wording import joined

from . import figures
from .findings import RouterSheet, mean_loss, tidy
from .tables import notes, sentence, table_of


def render(sheets: Sequence[RouterSheet]) -> str:
    """The page as text.  Raises: MissingExtra without plotly or jinja2."""
    found = frame.drawn(figures.plots(sheets))
    looks, names = figures.looks(sheets), figures.names_of(sheets)
    return frame.render(
        "routers",
        found,
        [look.color for look in looks],
        [sentence(sheet) for sheet in sheets],
        eyebrow="intarsia routers",
        heading=_heading(sheets),
        notices=list(dict.fromkeys(note for sheet in sheets for note in notes(sheet))),
        sheets=[_sheet(sheet, names, looks) for sheet in sheets],
        contenders=list(zip(names, looks, _shown(sheets, names), strict=True)),
        routed=_routed(found, names),
        plots=found,
        layers=max(len(r["layers"]) for s in sheets for c in s.contenders for r in c.rows),
        seeds=any(len(one.rows) > 1 for sheet in sheets for one in sheet.contenders),
        first=sheets[0].seeds[0],
        cells=tidy(sheets),
    )


def _heading(sheets: Sequence[RouterSheet]) -> str:
    data = list(dict.fromkeys(sheet.data for sheet in sheets))
    count = len(figures.names_of(sheets))
    return f"{numbers.plural(count, 'contender')} on {joined(data)}"


def _sheet(sheet: RouterSheet, names: Sequence[str], looks: Sequence[Any]) -> dict[str, Any]:
    return {
        "title": sheet.title,
        "table": table_of(sheet),
        "looks": [looks[names.index(one.name)] for one in sheet.contenders],
    }


def _shown(sheets: Sequence[RouterSheet], names: Sequence[str]) -> list[bool]:
    """Of many, those of lowest loss and the baseline: more lines than that nobody tells apart."""
    if len(names) <= figures.FEW:
        return [True] * len(names)
    shown = {sheet.baseline.name for sheet in sheets if sheet.baseline}
    for sheet in sheets:
        ranked = sorted(sheet.contenders, key=mean_loss)
        shown |= {one.name for one in ranked[: (figures.FEW - 1) // len(sheets) or 1]}
    return [name in shown for name in names]


def _routed(found: dict[str, Any], names: Sequence[str]) -> list[tuple[int, str]]:
    """(group, name) of those that have experts."""
    groups = {trace["meta"]["group"] for trace in found.get("experts", {"data": []})["data"]}
    return [(i, name) for i, name in enumerate(names) if i in groups]
