"""docs/pictures/hit-rates-*.svg: what a cache of experts finds, against its slots, by policy.

    python benchmarks/hit_rates.py TRACE

One half of the trace's sequences is decoded, with one stream and with four, from empty slots; the
token table is counted on the other half.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mini_picture import THEMES

from intarsia.core.files import write_text
from intarsia.core.registry import card
from intarsia.placement import Trace
from intarsia.placement.cache import replay
from intarsia.placement.describe import demand
from intarsia.placement.expertflow import Predictive, TokenTable, predicted_steps
from intarsia.placement.policies import Belady

DOCS = Path(__file__).parents[1] / "docs"
SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
STEPS = 600  # of decoding, at most
NAMES = {
    "belady": "Belady (knows the future)",
    "predictive": "token table",
    "expected": "expected use",
    "lfu": "LFU",
    "lru": "LRU",
}
COLORS = {"belady": "soft", "predictive": "split", "expected": "adapter"}
DASHES = {"belady": "2 4", "lfu": "8 4", "lru": ""}
WIDTH, HEIGHT, TOP, BOTTOM = 720, 380, 70, 300
LEFTS, ACROSS = (56, 396), 290
Curve = list[tuple[float, float]]


def rates(trace: Trace, streams: int) -> dict[str, Curve]:
    """Of each policy: (share of the experts that are in, hit rate)."""
    learned, decoded = trace.split()
    steps = demand(decoded, streams)[:STEPS]
    told = predicted_steps(decoded, TokenTable.of(learned), streams)[:STEPS]
    sizes, found = (trace.layers, trace.experts), dict[str, Curve]()
    for name in NAMES:
        found[name] = []
        for share in SHARES:
            slots = round(share * trace.layers * trace.experts)
            if name == "belady":
                policy = Belady(*sizes, steps)
            elif name == "predictive":
                policy = Predictive().build(*sizes)
            else:
                policy = card(name).config().build(*sizes)
            known = told if name == "predictive" else ()
            seen = replay(steps, policy, slots, foreseen=known)
            found[name].append((share, round(seen.rate, 4)))
    return found


def picture(found: Mapping[int, Mapping[str, Curve]], theme: str) -> str:
    """Two plots next to each other, one for each number of streams."""
    look = THEMES[theme]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="{look["text"]}" role="img" '
        'aria-label="Hit rate against the share of experts in memory, by policy">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{look["paper"]}"/>',
        f'<text x="{LEFTS[0]}" y="24" font-size="15" font-weight="600">'
        "Experts found in memory while decoding</text>",
    ]
    for left, (streams, curves) in zip(LEFTS, found.items(), strict=True):
        parts += _plot(left, streams, curves, look)
    x = LEFTS[0]
    for name, said in NAMES.items():
        parts.append(
            f'<line x1="{x}" x2="{x + 22}" y1="358" y2="358" {_stroke(name, look)}/>'
            f'<text x="{x + 28}" y="362">{said}</text>'
        )
        x += 46 + round(6.6 * len(said))
    return "\n".join([*parts, "</svg>\n"])


def _plot(left: int, streams: int, curves: Mapping[str, Curve], look: dict[str, str]) -> list[str]:
    said = f"{streams} stream{'s' if streams > 1 else ''}"
    parts = [f'<text x="{left}" y="52">{said}</text>']
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x, y = _at(left, tick, tick)
        parts.append(
            f'<line x1="{left}" x2="{left + ACROSS}" y1="{y}" y2="{y}" stroke="{look["line"]}"/>'
            f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{100 * tick:.0f} %</text>'
            f'<text x="{x}" y="{BOTTOM + 20}" text-anchor="middle">{100 * tick:.0f} %</text>'
        )
    parts.append(
        f'<text x="{left + ACROSS / 2}" y="{BOTTOM + 38}" text-anchor="middle" '
        f'fill="{look["soft"]}">share of the experts that are in memory</text>'
    )
    for name, curve in curves.items():
        points = " ".join("{:.1f},{:.1f}".format(*_at(left, *point)) for point in curve)
        parts.append(f'<polyline points="{points}" fill="none" {_stroke(name, look)}/>')
    return parts


def _at(left: int, share: float, rate: float) -> tuple[float, float]:
    return left + ACROSS * share, BOTTOM - (BOTTOM - TOP) * rate


def _stroke(name: str, look: Mapping[str, str]) -> str:
    dashed = f' stroke-dasharray="{DASHES[name]}"' if DASHES.get(name) else ""
    return f'stroke="{look[COLORS.get(name, "text")]}" stroke-width="2"{dashed}'


def main(words: Sequence[str] | None = None) -> None:
    """Write both pictures and the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("trace", help="a file of intarsia trace")
    trace = Trace.load_file(parser.parse_args(words).trace)
    found = {streams: rates(trace, streams) for streams in (1, 4)}
    for theme in THEMES:
        write_text(DOCS / "pictures" / f"hit-rates-{theme}.svg", picture(found, theme))
    write_text(DOCS / "benchmarks" / "hit_rates.json", json.dumps(found, indent=1) + "\n")
    for streams, curves in found.items():
        print(streams, {name: dict(curve) for name, curve in curves.items()})


if __name__ == "__main__":
    main()
