"""The page of `intarsia simulate`: traffic, loads, a cache's hit rate, and who did what when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.files import write_text
from ..placement.timeline import Timeline
from . import frame, plots

RESOURCES = ("compute", "link", "load")


@dataclass(frozen=True)
class Simulated:
    """What the page shows.

    plan: its name; tokens: of the batch; before, after: bytes (D, D) with the experts
    in order, and by the plan; line: of the plan; loads: title -> pairs (L, D or E) of each layer;
    hits: policy -> (share of the experts in memory, hit rate).
    """

    plan: str
    tokens: int
    before: Tensor
    after: Tensor
    line: Timeline
    before_seconds: float
    loads: Mapping[str, Tensor]
    hits: Mapping[str, Sequence[tuple[float, float]]]


def write_page(found: Simulated, out: Path | str) -> Path:
    """Write the page to `out`.  Raises: MissingExtra without plotly or jinja2."""
    target = Path(out)
    write_text(target, page(found))
    return target


def page(found: Simulated) -> str:
    """The page as text."""
    top = float(torch.stack([found.before, found.after]).max()) / 1e6
    figures = {
        "before": _traffic(found.before, top),
        "after": _traffic(found.after, top),
        "hits": _hits(found.hits),
        "timeline": _timeline(found.line),
    }
    figures |= {f"loads-{i}": _loads(load) for i, load in enumerate(found.loads.values())}
    sent = [float(of.sum()) / 1e6 for of in (found.before, found.after)]
    binds = ", ".join(f"{name} {s * 1e3:.3g} ms" for name, s in found.line.binds().items() if s)
    lead = [
        f"{found.tokens} tokens on {len(found.after)} devices, by the plan {found.plan}: "
        f"{found.line.seconds * 1e3:.3g} ms and {sent[1]:.3g} MB; experts in order by ep: "
        f"{found.before_seconds * 1e3:.3g} ms and {sent[0]:.3g} MB.",
        f"On the chain that the end waits for: {binds or 'nothing'}.",
    ]
    return frame.render(
        "simulated",
        frame.drawn(figures),
        [],
        lead,
        eyebrow="intarsia simulate",
        heading="Experts on several devices",
        notices=["A model of time, not a measurement: every product and every link at full rate."],
        traffic=[("before", _rows(found.before)), ("after", _rows(found.after))],
        loads=list(found.loads),
        hits={name: list(points) for name, points in found.hits.items()},
    )


def _rows(sent: Tensor) -> list[list[str]]:
    return [[f"{value / 1e6:.3g}" for value in row] for row in sent.tolist()]


def _traffic(sent: Tensor, top: float) -> Any:
    """Megabytes from row to column."""
    values = (sent.double() / 1e6).tolist()
    hover = [
        [f"device {i} to {j}: {v:.3g} MB" for j, v in enumerate(row)]
        for i, row in enumerate(values)
    ]
    text = [[f"{v:.3g}" if len(values) <= 8 else "" for v in row] for row in values]
    one = plots.heat(values, {}, customdata=hover, text=text, zmin=0, zmax=top, **plots.TOLD)
    return _titled(plots.figure_of([one]), "to device", "from device")


def _loads(load: Tensor) -> Any:
    """Pairs over the mean of the layer: 1 is even."""
    even = load.double() / load.double().mean(1, keepdim=True).clamp_min(1e-300)
    hover = [
        [f"layer {i}, {j}: {v:.2f} of the mean" for j, v in enumerate(row)]
        for i, row in enumerate(even.tolist())
    ]
    text = [["" for _ in row] for row in hover]
    one = plots.heat(even.tolist(), {}, customdata=hover, text=text, zmin=0, **plots.TOLD)
    return _titled(plots.figure_of([one]), "", "layer")


def _hits(hits: Mapping[str, Sequence[tuple[float, float]]]) -> Any:
    go = plots.plotly()
    traces = [
        go.Scatter(
            x=[x for x, _ in points],
            y=[y for _, y in points],
            mode="lines+markers",
            name=name,
            marker={"symbol": plots.SYMBOLS[i % len(plots.SYMBOLS)], "size": 9},
            meta={"color": i % plots.COLORS + 1},
            hovertemplate="%{x:.0%} in memory: %{y:.3f}<extra>%{fullData.name}</extra>",
        )
        for i, (name, points) in enumerate(hits.items())
    ]
    figure = plots.figure_of(traces)
    figure.update_layout(showlegend=True)
    figure.update_xaxes(title_text="Experts in memory", tickformat=".0%")
    figure.update_yaxes(title_text="Hit rate", range=[0, 1.02])
    return figure


def _timeline(line: Timeline) -> Any:
    """A bar for each span; a row for each device and resource."""
    go = plots.plotly()
    traces: list[Any] = []
    for number, resource in enumerate(RESOURCES):
        spans = [s for s in line.spans if s.resource == resource and s.end > s.start]
        if spans:
            traces.append(
                go.Bar(
                    orientation="h",
                    base=[s.start * 1e3 for s in spans],
                    x=[(s.end - s.start) * 1e3 for s in spans],
                    y=[f"device {s.device}, {resource}" for s in spans],
                    name=resource,
                    customdata=[s.name for s in spans],
                    meta={"color": number + 1},
                    hovertemplate="%{customdata}: %{x:.3g} ms<extra></extra>",
                )
            )
    figure = plots.figure_of(traces)
    figure.update_layout(barmode="overlay", showlegend=True)
    figure.update_xaxes(title_text="Milliseconds")
    figure.update_yaxes(autorange="reversed", categoryorder="category ascending")
    return figure


def _titled(figure: Any, x: str, y: str) -> Any:
    figure.update_xaxes(title_text=x, dtick=1)
    figure.update_yaxes(title_text=y, dtick=1, autorange="reversed")
    return figure
