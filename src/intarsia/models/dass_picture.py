"""Picture of a genotype's cells: nodes from left to right, an arrow for each edge."""

from __future__ import annotations

from pathlib import Path

from ..core.files import write_text

Node = tuple[tuple[int, str], ...]  # (input, operation) of each edge
Cell = tuple[Node, ...]

STEP, MIDDLE, HEIGHT, NODE, MARGIN = 130, 130, 260, 17, 60  # pixels
GREY, LINE = "#808080", "#0e7490"


def cell_svg(normal: Cell, reduction: Cell, path: str | Path | None = None) -> str:
    """Draw the normal cell above the reduction cell, operations on their edges, as SVG text.

    normal, reduction: (input, operation) of each edge by node; path: an SVG file to write, too,
      None = none.  The colours suit light and dark pages.
    """
    cells = {"normal": normal, "reduction": reduction}
    width = 2 * MARGIN + STEP * (max(map(len, cells.values())) + 2)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT * len(cells)}" '
        f'role="img" aria-label="Cells of a searched net" font-family="sans-serif" '
        f'font-size="13" fill="{GREY}">',
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{LINE}"/></marker></defs>',
    ]
    # one cell below the other
    for row, (name, nodes) in enumerate(cells.items()):
        lines.append(f'<g transform="translate(0 {row * HEIGHT})">')
        lines.append(f'<text x="12" y="22" font-weight="bold">{name} cell</text>')
        lines += [*_edges(nodes), *_nodes(len(nodes)), "</g>"]
    text = "\n".join([*lines, "</svg>"]) + "\n"
    if path is not None:
        write_text(path, text)
    return text


def _place(state: int) -> tuple[float, float]:
    """Return the position (x, y) of a state: inputs 0 and 1 at the left, nodes in a row."""
    if state < 2:
        return MARGIN, MIDDLE + (45 if state else -45)
    return MARGIN + STEP * (state - 1), MIDDLE


def _nodes(count: int) -> list[str]:
    """Draw circles of inputs, nodes and output, and dashed arcs from nodes to the output."""
    out = count + 2
    names = ["k-2", "k-1", *(str(n) for n in range(count)), "out"]
    shapes = []
    for state in range(2, out):  # every node is part of the output
        (x, y), (end, _) = _place(state), _place(out)
        low = MIDDLE + 95
        shapes.append(
            f'<path d="M{x} {y + NODE}Q{x} {low} {(x + end) / 2} {low}T{end} {y + NODE}" '
            f'fill="none" stroke="{GREY}" stroke-dasharray="3 3"/>'
        )
    for state, name in enumerate(names):
        x, y = _place(state)
        shapes.append(f'<circle cx="{x}" cy="{y}" r="{NODE}" fill="none" stroke="{GREY}"/>')
        shapes.append(f'<text x="{x}" y="{y + 4}" text-anchor="middle">{name}</text>')
    return shapes


def _edges(nodes: Cell) -> list[str]:
    """Draw an arc for each edge, higher for longer ones, with its operation's name."""
    shapes = []
    for number, node in enumerate(nodes):
        end, level = _place(number + 2)
        for place, (state, name) in enumerate(node):
            x, y = _place(state)
            start, stop = x + NODE, end - NODE
            # a node's first edge arches upwards, the others downwards
            top = level + (-1 if place == 0 else 1) * (14 + 0.22 * (stop - start))
            middle = (start + stop) / 2
            shapes.append(
                f'<path d="M{start} {y}Q{middle} {top} {stop} {level}" fill="none" '
                f'stroke="{LINE}" stroke-width="1.5" marker-end="url(#tip)"/>'
            )
            # the curve's middle is half way between its ends and the control point
            height = (y + level) / 4 + top / 2
            shapes.append(
                f'<text x="{middle}" y="{height - 4:.0f}" text-anchor="middle" fill="{LINE}">'
                f"{name}</text>"
            )
    return shapes
