"""Figures of pruned models: perplexity by density, layers in heat maps, where the bytes are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..charts import Axis, BarChart, Chart, ChartBar, Series
from ..heat_maps import HeatMap
from ..looks import Look
from ..report import Figure

MAPS = {
    # name: (key of the record, title, caption)
    "density": ("density", "Density", ""),
    "before": ("error_masked", "Error before,", "of the first mask alone"),
    "after": ("error", "Error after", "compensation or swaps"),
}
_NUMBER = re.compile(r"\.(\d+)\.")


def perplexity(models: Sequence[Any], names: Sequence[str], looks: Sequence[Look]) -> Figure | None:
    """Draw perplexity against density, a line for each method that begins at the dense model.

    None without a measured perplexity.
    """
    series: list[Series] = []
    for group, name in enumerate(names):
        mine = [model for model in models if model.method == name and model.perplexity("pruned")]
        points = {model.record["density"]: model.perplexity("pruned") for model in mine}
        dense = next((d for model in mine if (d := model.perplexity("dense"))), None)
        if points:
            # the dense model is the point at density 1
            line = sorted(points.items()) + ([(1.0, dense)] if dense else [])
            hover = [f"{y:.1f} at density {x:.2f}" for x, y in line]
            xs, ys = [x for x, _ in line], [y for _, y in line]
            # a reader of the page can choose a group of runs
            series.append(Series(name, xs, ys, looks[group], hover, when={"group": group}))
    if not series:
        return None
    label = "Perplexity against density; the numbers are in the table of results"
    drawing = Chart(series, Axis("Density", reverse=True), Axis("Perplexity", log=True))
    caption = "Each line begins at the dense model; lower is better."
    return Figure("perplexity", label, drawing, "Perplexity against density.", caption)


def sizes(models: Sequence[Any]) -> Figure | None:
    """Draw the file size of each model as a bar that is divided by what the bytes are for.

    models: sparse models, whose record["parts"] is name -> bytes: kept values, bitmasks, zeros left
      out, the rest. None if no record lists them.
    """
    parts = [model.record.get("parts") or {} for model in models]
    names = list(dict.fromkeys(name for part in parts for name in part))
    if not names:
        return None
    colors: dict[str, int | str] = {
        name: "left" if name == "zeros left out" else number % 7 + 1
        for number, name in enumerate(names)
    }
    drawn: list[ChartBar] = []
    for row, part in enumerate(parts):
        start = 0.0
        for name in names:
            size = part.get(name, 0) / 1e6
            drawn.append(ChartBar(row, start, size, colors[name], f"{name}: {size:.1f} MB"))
            # the next part begins where this one ends
            start += size
    rows = [f"{model.method} {model.record['density']:.3f}" for model in models]
    label = "Bytes by part; the sums are in the table of results"
    return Figure(
        "bytes",
        label,
        BarChart(drawn, rows, Axis("MB as a bitmask file")),
        "Where the bytes are.",
        "Zeros left out are what the file saves.",
        legend=tuple((colors[name], name) for name in names),
    )


def maps(layers: Sequence[Mapping[str, Any]], number: int) -> list[Figure]:
    """Draw density and errors of a model's layers as heat maps, for each of MAPS that it has.

    Errors share one scale.  number: of the model on the page.
    """
    places = {name: _values(layers, key) for name, (key, _, _) in MAPS.items()}
    # errors before and after have one scale, so that their colours can be compared
    errors = [v for name in ("before", "after") for v in places[name].values()]
    figures: list[Figure] = []
    for name, (_, title, caption) in MAPS.items():
        if not (values := places[name]):
            continue
        top = 1.0 if name == "density" else max(errors)
        # a title that ends in a comma goes on in the caption; the label is one phrase
        label = f"{title.strip(',')} {caption}".strip() + ", by block and layer"
        drawing = _layer_map(values, top)
        figures.append(
            Figure(f"{name}-{number}", label, drawing, title, caption, scale=("0", f"{top:.2g}"))
        )
    return figures


def _values(layers: Sequence[Mapping[str, Any]], key: str) -> dict[tuple[str, str], float]:
    return {place_of(row["layer"]): row[key] for row in layers if row.get(key) is not None}


def _layer_map(values: Mapping[tuple[str, str], float], top: float) -> HeatMap:
    """Draw values as a heat map with a row for each block and a column for each layer in it."""
    # in the order of the model, each once
    blocks = list(dict.fromkeys(block for block, _ in values))
    kinds = list(dict.fromkeys(kind for _, kind in values))
    z = [[values.get((block, kind)) for kind in kinds] for block in blocks]
    hover = [
        ["" if v is None else f"{b} {k}: {v:.3f}" for k, v in zip(kinds, row, strict=True)]
        for b, row in zip(blocks, z, strict=True)
    ]
    # the last word of a layer's name is enough where no two are alike
    short = [kind.rpartition(".")[2] or kind for kind in kinds]
    columns = short if len(set(short)) == len(short) else kinds
    return HeatMap(z, blocks, columns, top, hover, width=480)


def place_of(layer: str) -> tuple[str, str]:
    """Split a layer's path into block and layer: "model.layers.3.mlp.up" -> ("3", "mlp.up").

    Without a number both are the path.
    """
    # the first number in a path is the block's
    number = _NUMBER.search(layer)
    return (number.group(1), layer[number.end() :]) if number else (layer, layer)
