"""The page of `intarsia simulate`: traffic, loads, a cache's hit rate, and who did what when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..placement.timeline import Timeline
from . import charts, heat_maps, numbers
from .looks import COLORS, SYMBOLS, Look
from .report import Container, Figure, Note, Report, Section
from .table import Table, plain
from .writing import write

EXPERTS, IN_ORDER, PLACED = "Experts", "Devices, experts in order", "Devices, as placed"
"""Titles of the loads."""
LEAST = 0.001  # of the time: a smaller change is called none
RESOURCES = ("compute", "link", "load")
TITLE = "Experts on several devices"
NOTICE = "A model of time, not a measurement: every product and every link at full rate."


@dataclass(frozen=True)
class Simulated:
    """Contents of the page of a simulation.

    plan: its name; tokens: number in the batch; before, after: bytes (D, D) with the experts
    in order, and by the plan; line: the plan's; loads: EXPERTS, IN_ORDER and, of a placement,
    PLACED -> pairs (L, D or E) of each layer;
    hits: policy -> (share of the experts in memory, hit rate), {} = not simulated.
    """

    plan: str
    tokens: int
    before: Tensor
    after: Tensor
    line: Timeline
    before_seconds: float
    loads: Mapping[str, Tensor]
    hits: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)


def write_page(simulation: Simulated, out: Path | str) -> Path:
    """Write the page to `out`.  Raises: TrainingError when it cannot be written."""
    return write(report_of(simulation), out)


def report_of(simulation: Simulated) -> Report:
    """Return the report of a simulation of experts on several devices."""
    sections = [
        Section("Traffic", _traffic(simulation)),
        Section("Loads by layer", _loads(_even(simulation))),
    ]
    if simulation.hits:
        sections.append(Section("A cache of experts", _hit_rates(simulation.hits)))
    sections.append(Section("Timeline", (_timeline(simulation.line),)))
    sentences = tuple(sentences_of(simulation))
    return Report(TITLE, sentences, tuple(sections), (NOTICE,), "intarsia simulate")


def sentences_of(simulation: Simulated) -> list[str]:
    """Return sentences that say if a plan or placement helps, for the page and the terminal.

    The comparison is with time and traffic of plain expert parallelism with experts in order. The
    last sentence has the time that each resource takes on the critical path.
    """
    even = _even(simulation)
    batch = f"{simulation.tokens:,} tokens on {numbers.plural(len(simulation.after), 'device')}"
    after = numbers.prefixed(simulation.line.seconds, "s")
    sent, sent_before = (
        numbers.prefixed(float(traffic.sum()), "B")
        for traffic in (simulation.after, simulation.before)
    )
    if simulation.plan == "ep" and PLACED not in even:
        lines = [f"{batch}, experts in order: {after} and {sent} between devices."]
    else:
        lines = [
            f"{_subject(simulation)} {_verdict(batch, simulation.before_seconds, simulation.line)}",
            f"{sent} are sent between devices, with experts in order {sent_before}.",
        ]
    if PLACED in even:
        tops = [float(even[title].max()) for title in (IN_ORDER, PLACED)]
        lines.append(
            f"The largest load of a device in a layer is {tops[1]:.2f} times the mean, "
            f"with experts in order {tops[0]:.2f} times."
        )
    # the seconds of each resource along the longest chain of dependent steps
    binds = ", ".join(
        f"{name} {numbers.prefixed(s, 's')}" for name, s in simulation.line.binds().items() if s
    )
    return [*lines, f"On the critical path: {binds or 'nothing'}."]


def _subject(simulation: Simulated) -> str:
    """Return the name of the judged thing: the placement, the plan, or both."""
    placed = PLACED in simulation.loads
    if placed and simulation.plan == "ep":
        return "The placement"
    return f"The plan {simulation.plan}{' with this placement' if placed else ''}"


def _verdict(tokens: str, before: float, line: Timeline) -> str:
    """Return the end of a sentence that says if a plan helps, and by how much."""
    # tokens: the batch in words; before: its seconds with experts in order
    after = numbers.prefixed(line.seconds, "s")
    change = line.seconds / before - 1 if before else 0.0
    if abs(change) < LEAST:
        return f"does not help: {tokens} take as long as with experts in order, {after}."
    verb = "helps" if change < 0 else "does not help"
    amount = f"{numbers.percent(abs(change))} {'less' if change < 0 else 'more'} time"
    times = f"{after} instead of {numbers.prefixed(before, 's')}"
    return f"{verb}: {tokens} take {amount} than with experts in order, {times}."


def _even(simulation: Simulated) -> dict[str, Tensor]:
    """Return title of a heat map -> its loads (L, n), each divided by the mean of its layer."""
    return {title: _over_mean(load) for title, load in simulation.loads.items()}


def _over_mean(load: Tensor) -> Tensor:
    """Return the loads of each layer divided by their mean: 1 is even.  (L, n), same shape."""
    return load.double() / load.double().mean(1, keepdim=True).clamp_min(1e-300)


def _traffic(simulation: Simulated) -> tuple[Container, ...]:
    """Draw the bytes that devices send each other, before and after, and list them in tables."""
    # one scale for both maps, so that their colours can be compared
    top = float(torch.stack([simulation.before, simulation.after]).max())
    size, prefix = numbers.prefix_of(top)
    unit = f"{prefix}B"
    titles = {
        "before": ("Before.", f"{unit} between devices, experts in order."),
        "after": ("After.", "By the plan, on the same scale."),
    }
    sent = {"before": simulation.before, "after": simulation.after}
    drawn = [
        _traffic_map(name, *titles[name], traffic / size, top / size, unit)
        for name, traffic in sent.items()
    ]
    # the same numbers for readers who cannot see the colours
    tables: list[Table] = []
    for name, traffic in sent.items():
        rows = [
            [i, *(f"{value / size:.3g}" for value in row)] for i, row in enumerate(traffic.tolist())
        ]
        heads = ["device", *map(str, range(len(rows)))]
        tables.append(plain(f"{name}, {unit} from row to column", heads, rows))
    return Container(tuple(drawn), kind="pair"), Container(tuple(tables), "The numbers", "fold")


def _traffic_map(
    name: str, title: str, caption: str, sent: Tensor, top: float, unit: str
) -> Figure:
    """Draw what devices send each other, (D, D) in `unit`, as a heat map."""
    values = sent.tolist()
    places = [str(i) for i in range(len(values))]
    hover = [
        [f"device {i} to {j}: {v:.3g} {unit}" for j, v in enumerate(row)]
        for i, row in enumerate(values)
    ]
    # beyond eight devices the numbers do not fit into their cells
    text = [[f"{v:.3g}" for v in row] for row in values] if len(values) <= 8 else ()
    cells = heat_maps.HeatMap(
        values, places, places, top, hover, text, x="to device", y="from device", width=480
    )
    label = f"Bytes between devices {name} placing; the numbers are in the table"
    return Figure(name, label, cells, title, caption, scale=("0", f"{top:.3g} {unit}"))


def _loads(even: Mapping[str, Tensor]) -> tuple[Note | Container, ...]:
    """Draw the loads of experts and of devices by layer, as heat maps."""
    # even: title -> loads (L, n) of L layers, each divided by its layer's mean; devices have one
    # scale, and experts, being more, have their own
    widest = max(float(load.max()) for title, load in even.items() if title != EXPERTS)
    drawn: list[Figure] = []
    for i, (title, load) in enumerate(even.items()):
        top = float(load.max()) if title == EXPERTS else widest
        rows = load.tolist()
        hover = [
            [f"layer {n}, {j}: {v:.2f} of the mean" for j, v in enumerate(row)]
            for n, row in enumerate(rows)
        ]
        names = [str(n) for n in range(len(rows))], [str(j) for j in range(len(rows[0]))]
        label = f"{title} by layer, over the mean"
        width = 960 if i == 0 else 480
        drawing = heat_maps.HeatMap(rows, *names, top, hover, y="layer", width=width)
        drawn.append(Figure(f"loads-{i}", label, drawing, title, scale=("0", f"{top:.2f}")))
    note = Note("A row is a layer; 1 is the layer's mean. The devices have one scale of colours.")
    return note, Container((drawn[0],)), Container(tuple(drawn[1:]), kind="pair")


def _hit_rates(hits: Mapping[str, Sequence[tuple[float, float]]]) -> tuple[Figure | Table, ...]:
    """Draw how often a needed expert is in memory, against the share of experts that fit there."""
    series = [
        charts.Series(
            name,
            [100 * x for x, _ in points],
            [y for _, y in points],
            Look(i % COLORS + 1, i % len(SYMBOLS)),
            [f"{x:.0%} in memory: {y:.3f}" for x, y in points],
        )
        for i, (name, points) in enumerate(hits.items())
    ]
    label = "Hit rate against the share of experts in memory; the numbers are in the table"
    across, up = charts.Axis("Experts in memory", " %"), charts.Axis("Hit rate", limits=(0, 1.02))
    figure = Figure(
        "hits",
        label,
        charts.Chart(series, across, up),
        "Hit rate against slots,",
        "while the batch's sequences are decoded from an empty start.",
        legend=tuple((line.look.color, line.name) for line in series),
    )
    # policies may have been tried at different shares
    shares = sorted({share for points in hits.values() for share, _ in points})
    rows = [
        [name, *(f"{rates[s]:.3f}" if s in rates else "" for s in shares)]
        for name, rates in ((name, dict(points)) for name, points in hits.items())
    ]
    titles = ["policy", *(f"{share:.0%}" for share in shares)]
    return figure, plain("Hit rate by experts in memory.", titles, rows, fold="The numbers")


def _timeline(line: Timeline) -> Figure:
    """Draw what each device computes, sends and loads over time, as bars."""
    size, prefix = numbers.prefix_of(line.seconds)
    # steps that take no time have no bar
    spans = [span for span in line.spans if span.end > span.start]
    names = sorted({f"device {span.device}, {span.resource}" for span in spans})
    # a bar for each step, in the row of its device and resource
    bars = [
        charts.ChartBar(
            names.index(f"device {span.device}, {span.resource}"),
            span.start / size,
            (span.end - span.start) / size,
            RESOURCES.index(span.resource) + 1,
            f"{span.name}: {(span.end - span.start) / size:.3g} {prefix}s",
        )
        for span in spans
    ]
    label = "What each device computes, sends and loads over time"
    return Figure(
        "timeline",
        label,
        charts.BarChart(bars, names, charts.Axis(f"{prefix}s")),
        "Who does what when.",
        "--out FILE.json writes the same for Perfetto.",
        legend=tuple((i + 1, name) for i, name in enumerate(RESOURCES)),
    )
