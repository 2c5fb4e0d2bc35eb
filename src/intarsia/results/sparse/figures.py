"""Figures of pruned models: perplexity by density, layers in heat maps, where the bytes are.

meta: group, of a method by number; folder, by number; what, of a heat map.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..plots import SYMBOLS, Look, figure_of, heat, plotly, safe

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MAPS = {"density": "density", "before": "error_masked", "after": "error"}
_NUMBER = re.compile(r"\.(\d+)\.")


def plots_of(found: Sequence[Any], looks: Sequence[Look]) -> dict[str, Figure | None]:
    """By name: perplexity, bytes, and a heat map for each of MAPS."""
    names = list(dict.fromkeys(one.method for one in found))
    return {
        "perplexity": _perplexity(found, names, looks),
        "bytes": _bytes(found),
        **{what: _maps(found, what, key) for what, key in MAPS.items()},
    }


def _perplexity(found: Sequence[Any], names: Sequence[str], looks: Sequence[Look]) -> Figure | None:
    """A line for each method, from the dense model on."""
    traces: list[Any] = []
    for group, name in enumerate(names):
        mine = [one for one in found if one.method == name and one.perplexity("pruned")]
        points = {one.record["density"]: one.perplexity("pruned") for one in mine}
        dense = next((d for one in mine if (d := one.perplexity("dense"))), None)
        if not points:
            continue
        line = sorted(points.items()) + ([(1.0, dense)] if dense else [])
        traces.append(
            plotly().Scatter(
                x=[x for x, _ in line],
                y=[y for _, y in line],
                name=safe(name),
                mode="lines+markers",
                line={"width": 2},
                marker={"size": 9, "symbol": SYMBOLS[looks[group].symbol]},
                hovertemplate="%{y:.1f} at density %{x:.2f}<extra>%{fullData.name}</extra>",
                meta={"group": group},
            )
        )
    if not traces:
        return None
    figure = figure_of(traces)
    figure.update_xaxes(title_text="Density", autorange="reversed")
    figure.update_yaxes(title_text="Perplexity", type="log", nticks=6)
    return figure.update_layout(hovermode="closest")


def _bytes(found: Sequence[Any]) -> Figure | None:
    """A stack for each folder: kept values, bitmasks, what is left out, the rest of the model."""
    parts = [one.record.get("parts") for one in found]
    names = list(dict.fromkeys(name for part in parts if part for name in part))
    if not names:
        return None
    traces = [
        plotly().Bar(
            y=list(range(len(found))),
            x=[(part or {}).get(name, 0) / 1e6 for part in parts],
            name=name,
            orientation="h",
            hovertemplate="%{x:.1f} MB<extra>%{fullData.name}</extra>",
            meta={"part": number, "left": name == "zeros left out"},
        )
        for number, name in enumerate(names)
    ]
    figure = figure_of(traces)
    figure.update_xaxes(title_text="MB as a bitmask file", rangemode="tozero")
    figure.update_yaxes(autorange="reversed", tickvals=list(range(len(found))))
    return figure.update_layout(barmode="stack", showlegend=True)


def _maps(found: Sequence[Any], what: str, key: str) -> Figure | None:
    """Blocks by layers, for each folder that has the values."""
    traces = [
        trace
        for number, one in enumerate(found)
        if (trace := _map(one.record["layers"], key, {"folder": number, "what": what})) is not None
    ]
    if not traces:
        return None
    figure = figure_of(traces)
    figure.update_xaxes(automargin=False, side="top")
    figure.update_yaxes(automargin=False, autorange="reversed")
    return figure.update_layout(hovermode="closest")


def _map(rows: Sequence[Mapping[str, Any]], key: str, about: dict[str, Any]) -> Any:
    values = {place_of(row["layer"]): row[key] for row in rows if row.get(key) is not None}
    if not values:
        return None
    blocks = list(dict.fromkeys(block for block, _ in values))
    kinds = list(dict.fromkeys(kind for _, kind in values))
    z = [[values.get((block, kind)) for kind in kinds] for block in blocks]
    text = [[f"{safe(b)} {safe(k)}" for k in kinds] for b in blocks]
    short = [kind.rpartition(".")[2] or kind for kind in kinds]
    ticks = short if len(set(short)) == len(short) else kinds
    return heat(
        z,
        about | {"ticks": [safe(k) for k in ticks], "rows": [safe(b) for b in blocks]},
        zmin=0,
        text=text,
        hovertemplate="%{text}: %{z:.3f}<extra></extra>",
    )


def place_of(layer: str) -> tuple[str, str]:
    """ "model.layers.3.mlp.up_proj" -> ("3", "mlp.up_proj"); without a number, itself twice."""
    found = _NUMBER.search(layer)
    return (found.group(1), layer[found.end() :]) if found else (layer, layer)
