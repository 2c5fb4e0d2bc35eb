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
from . import frame, numbers, plots

EXPERTS, IN_ORDER, PLACED = "Experts", "Devices, experts in order", "Devices, as placed"
"""Titles of the loads."""
LEAST = 0.001  # of the time: a smaller change is called none
RESOURCES = ("compute", "link", "load")


@dataclass(frozen=True)
class Simulated:
    """What the page shows.

    plan: its name; tokens: of the batch; before, after: bytes (D, D) with the experts
    in order, and by the plan; line: of the plan; loads: EXPERTS, IN_ORDER and, of a placement,
    PLACED -> pairs (L, D or E) of each layer;
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
    top = float(torch.stack([found.before, found.after]).max())
    size, prefix = numbers.prefix_of(top)
    figures = {
        "before": _traffic(found.before, top),
        "after": _traffic(found.after, top),
        "hits": _hits(found.hits),
        "timeline": _timeline(found.line),
    }
    even = {title: _over_mean(load) for title, load in found.loads.items()}
    widest = max(float(load.max()) for title, load in even.items() if title != EXPERTS)
    figures |= {
        f"loads-{i}": _loads(load, float(load.max()) if title == EXPERTS else widest)
        for i, (title, load) in enumerate(even.items())
    }
    binds = ", ".join(
        f"{name} {numbers.prefixed(s, 's')}" for name, s in found.line.binds().items() if s
    )
    lead = [*_headline(found, even), f"On the critical path: {binds or 'nothing'}."]
    return frame.render(
        "simulated",
        frame.drawn(figures),
        [],
        lead,
        eyebrow="intarsia simulate",
        heading="Experts on several devices",
        notices=["A model of time, not a measurement: every product and every link at full rate."],
        unit=f"{prefix}B",
        traffic=[("before", _rows(found.before, size)), ("after", _rows(found.after, size))],
        loads=list(found.loads),
        hits={name: list(points) for name, points in found.hits.items()},
    )


def _headline(found: Simulated, even: Mapping[str, Tensor]) -> list[str]:
    """Say what the plan takes, and if it is better than experts in order, by how much."""
    before, after = found.before_seconds, found.line.seconds
    sent = [float(of.sum()) for of in (found.before, found.after)]
    took = [
        f"{numbers.prefixed(s, 's')} and {numbers.prefixed(b, 'B')} between devices"
        for s, b in zip((before, after), sent, strict=True)
    ]
    batch = f"{found.tokens:,} tokens on {numbers.plural(len(found.after), 'device')}"
    if found.plan == "ep" and PLACED not in even:
        return [f"{batch}, experts in order: {took[1]}."]
    by = "As placed" if PLACED in even else f"By the plan {found.plan}"
    change = after / before - 1 if before else 0.0
    helps = f"takes {numbers.percent(abs(change))} {'less' if change < 0 else 'more'} time"
    if abs(change) < LEAST:
        helps = "does not change the time"
    lines = [f"{batch}. {by}, this {helps}: {took[1]}; experts in order: {took[0]}."]
    if PLACED in even:
        tops = [float(even[title].max()) for title in (IN_ORDER, PLACED)]
        lines.append(
            f"The largest load of a device in a layer is {tops[1]:.2f} times the mean, "
            f"with experts in order {tops[0]:.2f} times."
        )
    return lines


def _over_mean(load: Tensor) -> Tensor:
    """Return the loads of each layer over their mean: 1 is even."""
    return load.double() / load.double().mean(1, keepdim=True).clamp_min(1e-300)


def _rows(sent: Tensor, size: float) -> list[list[str]]:
    return [[f"{value / size:.3g}" for value in row] for row in sent.tolist()]


def _traffic(sent: Tensor, top: float) -> Any:
    """Draw bytes from row to column.  top: the end of the colours."""
    size, prefix = numbers.prefix_of(top)
    values = (sent.double() / size).tolist()
    hover = [
        [f"device {i} to {j}: {v:.3g} {prefix}B" for j, v in enumerate(row)]
        for i, row in enumerate(values)
    ]
    text = [[f"{v:.3g}" if len(values) <= 8 else "" for v in row] for row in values]
    one = plots.heat(values, {}, customdata=hover, text=text, zmin=0, zmax=top / size, **plots.TOLD)
    return _titled(plots.figure_of([one]), "to device", "from device")


def _loads(even: Tensor, top: float) -> Any:
    """Draw loads over the mean of their layer.  top: the end of the colours."""
    hover = [
        [f"layer {i}, {j}: {v:.2f} of the mean" for j, v in enumerate(row)]
        for i, row in enumerate(even.tolist())
    ]
    text = [["" for _ in row] for row in hover]
    one = plots.heat(even.tolist(), {}, customdata=hover, text=text, zmin=0, zmax=top, **plots.TOLD)
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
    size, prefix = numbers.prefix_of(line.seconds)
    for number, resource in enumerate(RESOURCES):
        spans = [s for s in line.spans if s.resource == resource and s.end > s.start]
        if spans:
            traces.append(
                go.Bar(
                    orientation="h",
                    base=[s.start / size for s in spans],
                    x=[(s.end - s.start) / size for s in spans],
                    y=[f"device {s.device}, {resource}" for s in spans],
                    name=resource,
                    customdata=[s.name for s in spans],
                    meta={"color": number + 1},
                    hovertemplate=f"%{{customdata}}: %{{x:.3g}} {prefix}s<extra></extra>",
                )
            )
    figure = plots.figure_of(traces)
    figure.update_layout(barmode="overlay", showlegend=True)
    figure.update_xaxes(title_text=f"{prefix}s")
    figure.update_yaxes(autorange="reversed", categoryorder="category ascending")
    return figure


def _titled(figure: Any, x: str, y: str) -> Any:
    figure.update_xaxes(title_text=x, dtick=1)
    figure.update_yaxes(title_text=y, dtick=1, autorange="reversed")
    return figure
