"""docs/pictures/methods-*.svg: accuracy against time, out of benchmarks/mini/results.jsonl.

`benchmarks/mini_page.py --write` writes them, one for light pages and one for dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from intarsia_lab.bench.report.summary import Findings

WIDTH, HEIGHT = 660, 480
LEFT, RIGHT, TOP, BOTTOM = 60, 640, 62, 416  # of the plot
SECONDS, PERCENT = (4.0, 400.0), (56.5, 65.0)  # of the axes
COST_SEED = 0
"""The seed of the times that are shown: at it all methods met the machine in one state. At the
others adaptformer and mosa met it at half its speed, which no mean and no median over seeds
mends."""
TICKS_X, TICKS_Y = (5, 10, 30, 100, 300), (58, 60, 62, 64)
LETTER = 7.6  # width of one at 14 px, about
# which labels are placed first; one that finds no room is left out
FIRST = [
    "lora",
    "mosl",
    "mosa-64",
    "full",
    "linear",
    "last-1",
    "adaptformer-64",
    "vpt-shallow",
    "adamix",
    "dora",
    "mosa",
    "vpt-deep",
    "ia3",
    "ssf",
    "bitfit",
    "norms",
    "houlsby",
]
BASELINES = ("linear", "full", "last-1", "bitfit", "norms", "vpt-shallow", "vpt-deep")
THEMES = {
    "light": {
        "text": "#1f2328",
        "soft": "#59636e",
        "line": "#d1d9e0",
        "split": "#b3400c",
        "adapter": "#0b5cad",
        "paper": "#ffffff",
    },
    "dark": {
        "text": "#f0f6fc",
        "soft": "#9ea7b3",
        "line": "#3d444d",
        "split": "#ff9a5c",
        "adapter": "#6cb6ff",
        "paper": "#0d1117",
    },
}


@dataclass(frozen=True)
class Dot:
    """A method: its name, CPU seconds of a run at COST_SEED, mean over tasks in per cent.

    spread: the sample standard deviation of that mean over the seeds.
    """

    name: str
    seconds: float
    percent: float
    spread: float

    @property
    def x(self) -> float:
        low, high = map(math.log, SECONDS)
        return LEFT + (RIGHT - LEFT) * (math.log(self.seconds) - low) / (high - low)

    @property
    def y(self) -> float:
        return height_of(self.percent)

    @property
    def kind(self) -> str:
        if self.name.startswith(("mosa", "mosl")):
            return "split"
        return "baseline" if self.name in BASELINES else "adapter"


def height_of(percent: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * (percent - PERCENT[0]) / (PERCENT[1] - PERCENT[0])


def dots(findings: Findings) -> list[Dot]:
    """Every method that has all tasks."""
    sheet = findings.sheet
    at = sheet.seeds.index(COST_SEED)
    seconds = sheet.values("cpu_seconds")[:, :, at].mean(1)  # (methods,)
    found = [
        Dot(
            row.method.label,
            float(seconds[findings.row(row.method)]),
            100 * row.whole.task.mean,
            100 * (row.whole.task.deviation or 0),
        )
        for row in findings.rows
        if row.whole is not None
    ]
    return sorted(found, key=lambda dot: -dot.percent)


def labels(found: Sequence[Dot]) -> Iterator[tuple[Dot, float, float, str]]:
    """(dot, x, y, anchor) of each label that has room, FIRST's before the others."""
    taken = [(dot.x - 6, dot.y - 6, dot.x + 6, dot.y + 6) for dot in found]
    order = {name: i for i, name in enumerate(FIRST)}
    for dot in sorted(found, key=lambda dot: order.get(dot.name, len(order))):
        wide = LETTER * len(dot.name)
        for dx, dy, anchor in (
            (10, 4.5, "start"),
            (-10, 4.5, "end"),
            (0, -11, "middle"),
            (0, 20, "middle"),
            (9, -8, "start"),
            (-9, -8, "end"),
            (9, 16, "start"),
            (-9, 16, "end"),
        ):
            x, y = dot.x + dx, dot.y + dy
            left = {"start": x, "end": x - wide, "middle": x - wide / 2}[anchor]
            box = (left, y - 11, left + wide, y + 3)
            if (
                left > LEFT
                and left + wide < RIGHT
                and not any(_meet(box, other) for other in taken)
            ):
                taken.append(box)
                yield dot, x, y, anchor
                break


def _meet(one: tuple[float, ...], two: tuple[float, ...]) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]


def picture(findings: Findings, theme: str) -> str:
    """The figure as SVG."""
    colors, found = THEMES[theme], dots(findings)
    ink = {"split": colors["split"], "adapter": colors["adapter"], "baseline": colors["soft"]}
    tasks, seeds = len(findings.sheet.tasks), len(findings.sheet.seeds)
    title = f"Accuracy against time of {len(found)} methods: mean of {tasks} tasks, {seeds} seeds"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="14" fill="{colors["text"]}">',
        f"<title>{title}</title>",
        f'<text x="{LEFT}" y="24" font-size="16" font-weight="600">Accuracy, mean of {tasks} tasks '
        f"(1,000 images each, {seeds} seeds)</text>",
        f'<text x="{(LEFT + RIGHT) / 2}" y="{BOTTOM + 44}" text-anchor="middle" '
        f'fill="{colors["soft"]}">CPU time of one training at seed {COST_SEED}, seconds '
        "(one core, log scale)</text>",
    ]
    for value in TICKS_Y:
        y = height_of(value)
        lines.append(f'<path d="M{LEFT} {y:.1f}H{RIGHT}" stroke="{colors["line"]}"/>')
        lines.append(
            f'<text x="{LEFT - 8}" y="{y + 4.5:.1f}" text-anchor="end" fill="{colors["soft"]}">'
            f"{value} %</text>"
        )
    for value in TICKS_X:
        x = Dot("", value, 0, 0).x
        lines.append(
            f'<text x="{x:.1f}" y="{BOTTOM + 20}" text-anchor="middle" fill="{colors["soft"]}">'
            f"{value}</text>"
        )
    for dot in found:
        lines.append(
            f'<path d="M{dot.x:.1f} {height_of(dot.percent - dot.spread):.1f}'
            f'V{height_of(dot.percent + dot.spread):.1f}" stroke="{ink[dot.kind]}" opacity=".55"/>'
        )
        fill = colors["paper"] if dot.kind == "baseline" else ink[dot.kind]
        lines.append(
            f'<circle cx="{dot.x:.1f}" cy="{dot.y:.1f}" r="5.5" fill="{fill}" '
            f'stroke="{ink[dot.kind]}" stroke-width="1.8"><title>{escape(dot.name)}: '
            f"{dot.percent:.1f} ± {dot.spread:.1f} %, {dot.seconds:.0f} s</title></circle>"
        )
    for dot, x, y, anchor in labels(found):
        lines.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{ink[dot.kind]}">'
            f"{escape(dot.name)}</text>"
        )
    x = LEFT
    for kind, words in (
        ("split", "adapter, split by MoSA"),
        ("adapter", "adapter"),
        ("baseline", "baseline"),
    ):
        fill = colors["paper"] if kind == "baseline" else ink[kind]
        lines.append(
            f'<circle cx="{x + 6}" cy="42" r="5" fill="{fill}" stroke="{ink[kind]}" '
            f'stroke-width="1.8"/><text x="{x + 17}" y="46.5">{words}</text>'
        )
        x += 34 + int(LETTER * len(words))
    lines.append(
        f'<text x="{x + 4}" y="46.5" fill="{colors["soft"]}">bars: ± deviation over seeds</text>'
    )
    return "\n".join([*lines, "</svg>", ""])
