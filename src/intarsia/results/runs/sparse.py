"""Masks of runs that trained with some, and the candidates of soups: figures and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .. import plots
from .grouping import Comparison, RunGroup

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COURSES = {
    "exchanged": "Exchanged, % of kept weights",
    "ever": "Kept so far, % of all weights",
    "density": "Density, %",
}


def masks_of(group: RunGroup) -> dict[str, Any] | None:
    """Of the group's first run that kept them: its changes of masks, and its layers."""
    found = (run.record["results"].get("masks") for run in group.runs)
    return next((masks for masks in found if masks), None)


def soup_of(group: RunGroup) -> dict[str, Any] | None:
    """What a soup's run says of its candidates."""
    found = (run.given.get("soup") for run in group.runs)
    return next((soup for soup in found if isinstance(soup, dict)), None)


def courses(comparison: Comparison, looks: Sequence[plots.Look]) -> Figure | None:
    """Of each of COURSES, a line for each group whose masks changed."""
    traces: list[Any] = []
    for number, group in enumerate(comparison.groups):
        changes = (masks_of(group) or {}).get("changes") or ()
        for name in COURSES if changes else ():
            traces.append(
                plots.plotly().Scatter(
                    x=[change["step"] for change in changes],
                    y=[100 * change[name] for change in changes],
                    name=plots.safe(group.label),
                    mode="lines+markers",
                    line={"width": 2},
                    marker={"size": 7, "symbol": plots.SYMBOLS[looks[number].symbol]},
                    hovertemplate="%{y:.1f} % at step %{x}<extra>%{fullData.name}</extra>",
                    meta={"group": number, "course": name},
                )
            )
    if not traces:
        return None
    figure = plots.figure_of(traces)
    figure.update_xaxes(title_text="Step")
    figure.update_yaxes(ticksuffix=" %", rangemode="tozero")
    return figure


def densities(comparison: Comparison) -> Figure | None:
    """A heat map: a row is a group with masks, a column one of its layers."""
    found = {g.label: masks for g in comparison.groups if (masks := masks_of(g))}
    if not found:
        return None
    rows = {
        label: {row["layer"]: row["density"] for row in masks["layers"]}
        for label, masks in found.items()
    }
    layers = list(dict.fromkeys(layer for row in rows.values() for layer in row))
    names = [layer.removesuffix(".weight") for layer in layers]
    z = [[row.get(layer) for layer in layers] for row in rows.values()]
    hover = [[f"{plots.safe(label)}, {plots.safe(name)}" for name in names] for label in rows]
    meta = {"rows": [plots.safe(plots.short(label, 28)) for label in rows]}
    form = "%{text}: density %{z:.3f}<extra></extra>"
    figure = plots.figure_of([plots.heat(z, meta, text=hover, zmin=0, zmax=1, hovertemplate=form)])
    figure.update_xaxes(title_text="Layers, from the input on", showticklabels=False)
    return figure.update_yaxes(autorange="reversed", automargin=True)


def lines(comparison: Comparison, looks: Sequence[plots.Look]) -> Figure | None:
    """The score on val along the way between two candidates of each soup."""
    traces: list[Any] = []
    for number, group in enumerate(comparison.groups):
        line = (soup_of(group) or {}).get("line")
        if line:
            traces.append(
                plots.plotly().Scatter(
                    x=[share for share, _ in line["points"]],
                    y=[value for _, value in line["points"]],
                    name=plots.safe(group.label),
                    mode="lines+markers",
                    line={"width": 2},
                    marker={"size": 7, "symbol": plots.SYMBOLS[looks[number].symbol]},
                    hovertemplate="%{y:.4g} at %{x:.1f}<extra>%{fullData.name}</extra>",
                    meta={"group": number},
                )
            )
    if not traces:
        return None
    figure = plots.figure_of(traces)
    figure.update_xaxes(title_text="Share of the second candidate")
    return figure.update_yaxes(title_text="Score on validation")


def soups(comparison: Comparison) -> list[dict[str, Any]]:
    """Of each soup its label, and (candidate, candidate, distance, cosine) of its pairs."""
    found: list[dict[str, Any]] = []
    for group in comparison.groups:
        said = soup_of(group)
        if said and said.get("pairs"):
            names = [str(name).rpartition("/")[2] or str(name) for name in said["candidates"]]
            pairs = [
                (names[p["a"]], names[p["b"]], f"{p['distance']:.3g}", f"{p['cosine']:.5f}")
                for p in said["pairs"]
            ]
            found.append({"label": group.label, "pairs": pairs, "distance": said["distance"]})
    return found
