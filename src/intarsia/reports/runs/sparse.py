"""Masks of runs that trained with some, and the candidates of soups: figures and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import charts, heat_maps
from ..looks import Look, short
from ..report import Figure
from ..table import Table, plain
from .grouping import Comparison, RunGroup

COURSES = {
    "exchanged": "Exchanged, % of kept weights",
    "ever": "Kept so far, % of all weights",
    "density": "Density, %",
}


def masks_of(group: RunGroup) -> dict[str, Any] | None:
    """Return the masks' changes and layers of the group's first run that kept them."""
    records = (run.record["results"].get("masks") for run in group.runs)
    return next((masks for masks in records if masks), None)


def soup_of(group: RunGroup) -> dict[str, Any] | None:
    """Return the record of a soup's candidates."""
    records = (run.given.get("soup") for run in group.runs)
    return next((soup for soup in records if isinstance(soup, dict)), None)


def courses(comparison: Comparison, looks: Sequence[Look]) -> list[Figure]:
    """Draw how the masks changed over training: a figure for each of COURSES.

    Methods with masks that never changed have no line.
    """
    changes = {
        number: masks
        for number, group in enumerate(comparison.groups)
        if (masks := (masks_of(group) or {}).get("changes"))
    }
    figures: list[Figure] = []
    for name, title in COURSES.items() if changes else ():
        # the record has shares; the chart shows percent
        series = [
            _chart_line(
                comparison, number, looks, [(c["step"], 100 * c[name]) for c in rows], "%", "step "
            )
            for number, rows in changes.items()
        ]
        label = f"{title}, by step"
        up = charts.Axis(title.split(",")[0], " %", zero=True)
        drawing = charts.Chart(series, charts.Axis("Step", integers=True), up)
        caption = "At each change of the masks."
        choice = {"course": name}
        figures.append(Figure(f"masks-{name}", label, drawing, caption=caption, when=choice))
    return figures


def _chart_line(
    comparison: Comparison,
    number: int,
    looks: Sequence[Look],
    points: Sequence[tuple[float, float]],
    unit: str,
    before: str,
) -> charts.Series:
    hover = [f"{y:.4g} {unit}".strip() + f" at {before}{x:g}" for x, y in points]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    label = comparison.groups[number].label
    return charts.Series(label, xs, ys, looks[number], hover, when={"group": number})


def densities(comparison: Comparison) -> Figure | None:
    """Draw the density of each layer as a heat map, a row for each method with masks.

    None if no method has masks.
    """
    # methods without masks have no row
    by_label = {g.label: masks for g in comparison.groups if (masks := masks_of(g))}
    if not by_label:
        return None
    rows = {
        label: {row["layer"]: row["density"] for row in masks["layers"]}
        for label, masks in by_label.items()
    }
    # methods may prune different layers: a column for each that any has
    layers = list(dict.fromkeys(layer for row in rows.values() for layer in row))
    # columns are numbered, since the names of layers are too long for them; tooltips have both
    names = [layer.removesuffix(".weight") for layer in layers]
    values = [[row.get(layer) for layer in layers] for row in rows.values()]
    hover = [
        [
            f"{label}, {name}: density {'none' if v is None else f'{v:.3f}'}"
            for name, v in zip(names, row, strict=True)
        ]
        for label, row in zip(rows, values, strict=True)
    ]
    numbered = [str(i + 1) for i in range(len(layers))]
    heads = [short(label, 28) for label in rows]
    cells = heat_maps.HeatMap(
        values, heads, numbered, 1.0, hover, x="Layers, from the input on", width=960
    )
    label = "Density of each masked layer"
    title, caption = "Density of each layer", "at the end; dark is dense."
    return Figure("densities", label, cells, title, caption, scale=("0", "1"))


def lines(comparison: Comparison, looks: Sequence[Look]) -> Figure | None:
    """Draw the validation scores of weighted averages of two models, from the first to the second.

    None if no run is an average of models (a soup).
    """
    series = [
        _chart_line(comparison, number, looks, line["points"], "", "")
        for number, group in enumerate(comparison.groups)
        if (line := (soup_of(group) or {}).get("line"))
    ]
    if not series:
        return None
    label = "Validation score between two candidates"
    across = charts.Axis("Share of the second candidate")
    drawing = charts.Chart(series, across, charts.Axis("Score on validation"))
    title = "On the way from one candidate to another,"
    caption = "the two that are farthest apart: a dip says that their average is worse than both."
    return Figure("line", label, drawing, title, caption)


def soups(comparison: Comparison) -> list[Table]:
    """Return a table for each averaged model (soup): distances between its candidates."""
    tables: list[Table] = []
    for group in comparison.groups:
        soup = soup_of(group)
        if soup and soup.get("pairs"):
            # folders' last parts are enough to name candidates
            names = [str(name).rpartition("/")[2] or str(name) for name in soup["candidates"]]
            rows = [
                (names[p["a"]], names[p["b"]], f"{p['distance']:.3g}", f"{p['cosine']:.5f}")
                for p in soup["pairs"]
            ]
            caption = f"{group.label}: mean distance from the average {soup['distance']:.3g}"
            titles = ["Candidate", "Another", "Distance", "Cosine"]
            tables.append(plain(caption, titles, rows, words=2))
    return tables
