"""Products of sparse weights next to their floor and their peers: docs/benchmarks/kernels.md.

python benchmarks/kernels.py                 # the tables on the terminal, some minutes
python benchmarks/kernels.py --write         # and docs/benchmarks/kernels.md with its picture
python benchmarks/kernels.py --reps 1 --mebibytes 8    # a smoke test

With GLIBC_TUNABLES=glibc.malloc.hugetlb=1 before the command, which Linux reads when a process
starts, all libraries have their weights in large pages; the published page was made so.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from frame import markdown, parser, publish, read
from token_peers import LARGE_PAGES

from intarsia.core.files import write_text
from intarsia.reports.looks import MARKS, looks_of
from intarsia_lab.bench.sparse import DENSE, ShapeTable, Timed, time_shapes, verdict

SHAPES = ((4096, 4096), (1536, 576), (576, 1536), (576, 576))
DENSITIES = (0.5, 0.3, 0.1)
PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "kernels.svg"
HEAD = ("kernel", "density", "ms", "x best dense", "bytes/weight", "GB/s", "of limit", "error")
WIDTH, HEIGHT, LEFT, BELOW = 960, 500, 70, 60
RIGHT = 760  # px from the left at which the axes end
KEY = 780  # and at which the legend begins
# the colours of the reports' style sheet on light paper
COLOURS = ("#1d5fa8", "#b8530a", "#157a55", "#7a44b0", "#b52a5e", "#7d6400", "#0b7285")
ABOUT = """\
One row of inputs, as a decoder has it for each token: a product then reads every byte that is
stored and does two operations with each weight. The limit is what this machine reads from
memory, measured in the same process. Every contender has copies of its weight, which as float32
would be 128 MiB, and takes them in turns: the smallest formats then fit the last cache in part.
All are interleaved, and the best repeat counts, in CPU time of the one thread, since others
used the machine. `intarsia bench sparse` prints the same for your machine and your shapes; [how
to run a pruned model fast](../how-to/run-a-pruned-model-fast.md) says what to do with it. Masks
are random and unstructured; group-sparse int4 keeps as many groups of 16, or the same ones in 4 or
8 neighbouring rows, and rounds inputs to int8, as bitmasks of int8 do. *x best dense* is over the
fastest product of any library with all weights, whatever its bits: a sparse format below 1 is
slower than what its user could have had without pruning. Errors are the largest of the outputs,
against float32 with the same zeros, over the largest output: the quality that is paid for.

Other libraries are at their best: all copies are layers of one graph, so that the cost of a call
is shared, and of several settings the fastest is taken. llama.cpp's products come from ggml as
`pip install llama-cpp-python` builds it for the processor, in the fastest of its buffers;
OpenVINO's weights are compressed as nncf does, with inputs in their own type or rounded to int8;
onnxruntime's are MatMulNBits with inputs in int8; torchao's are weight-only layers that
torch.compile has compiled. All int4 are in groups of 32 inputs. Ours and torch's own are called
from Python one by one. The limit is measured last: where others use the machine, the best repeat of
a product may have had more of the memory than that, and its share is then above 1.
"""

PAGES = f"""
The run had `GLIBC_TUNABLES={LARGE_PAGES}`, so that every library's weights are in large pages, as
ours are without it."""


def lines(table: ShapeTable, shape: tuple[int, int]) -> list[str]:
    """The table of a shape."""
    dense = table.best(shape, *DENSE)
    rows = [
        (
            *(row.name, f"{row.density:g}", f"{row.ms:.3f}", f"{dense.ms / row.ms:.2f}"),
            f"{row.bytes / math.prod(shape):.3f}",
            *(f"{row.rate / 1e9:.1f}", f"{table.share(row):.2f}", f"{row.error:.0e}"),
        )
        for row in table.rows
        if row.shape == shape
    ]
    said = verdict(table, shape)
    return [f"## {shape[0]} x {shape[1]}", "", *markdown(HEAD, rows), "", f"{said}.", ""]


def picture(table: ShapeTable, shape: tuple[int, int]) -> str:
    """The roofline of one shape: products a second against bytes a weight, both in powers of 2."""
    rows = [row for row in table.rows if row.shape == shape]
    per = [row.bytes / math.prod(shape) for row in rows]
    speed = [math.prod(shape) / row.ms / 1e6 for row in rows]  # weights a ns
    left, right = 2 ** math.floor(math.log2(min(per))), 2 ** math.ceil(math.log2(max(per)))
    roof = table.floor.read / 1e9
    low, high = 2 ** math.floor(math.log2(min(speed))), 2 ** math.ceil(math.log2(roof / min(per)))

    def x(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * math.log2(value / left) / math.log2(right / left)

    def y(value: float) -> float:
        share = math.log2(min(value, high) / low) / math.log2(high / low)
        return HEIGHT - BELOW - (HEIGHT - BELOW - 20) * share

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'font-family="sans-serif" font-size="12" aria-label="Weights multiplied a nanosecond '
        f'against bytes a weight, {shape[0]} x {shape[1]}, below the line of the memory">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        *_grid(left, right, low, high, x, y),
        f'<line x1="{x(left):.1f}" y1="{y(roof / left):.1f}" x2="{x(right):.1f}" '
        f'y2="{y(roof / right):.1f}" stroke="#b3261e" stroke-width="2"/>',
        f'<text x="{x(2 * left) + 8:.1f}" y="{y(roof / (2 * left)) - 4:.1f}" fill="#b3261e">'
        f"memory: {roof:.1f} GB/s</text>",
    ]
    parts += _series(list(zip(rows, per, speed, strict=True)), x, y)
    middle = (LEFT + RIGHT) / 2
    parts += [
        f'<text x="{middle:.0f}" y="{HEIGHT - 12}" text-anchor="middle">bytes a weight</text>',
        f'<text transform="translate(16 {HEIGHT / 2 - 20:.0f}) rotate(-90)" text-anchor="middle">'
        "weights a nanosecond</text>",
    ]
    return "\n".join([*parts, "</svg>", ""])


def _series(
    rows: list[tuple[Timed, float, float]],
    x: Callable[[float], float],
    y: Callable[[float], float],
) -> Iterable[str]:
    """Draw a line with marks for each kernel, its densities in order, and a legend on the right.

    rows: a product, its bytes a weight, its weights a nanosecond; x, y: their places in px.
    """
    names = list(dict.fromkeys(row.name for row, _, _ in rows))
    for number, (name, look) in enumerate(zip(names, looks_of(len(names), None), strict=True)):
        places = sorted((x(per), y(speed)) for row, per, speed in rows if row.name == name)
        colour, mark = COLOURS[look.color - 1], MARKS[look.symbol]
        path = " ".join(f"{across:.1f},{up:.1f}" for across, up in places)
        yield f'<polyline points="{path}" fill="none" stroke="{colour}"/>'
        for across, up in (*places, (KEY, 36 + 17 * number)):
            # a mark is drawn in a box of 16 px
            corner = f"{across - 5:.1f} {up - 5:.1f}"
            yield f'<path d="{mark}" fill="{colour}" transform="translate({corner}) scale(.62)"/>'
        yield f'<text x="{KEY + 12}" y="{40 + 17 * number}">{name}</text>'


def _grid(left: float, right: float, low: float, high: float, x, y) -> Iterable[str]:  # noqa: ANN001
    for power in range(round(math.log2(left)), round(math.log2(right)) + 1):
        at = x(2.0**power)
        yield f'<line x1="{at:.1f}" y1="20" x2="{at:.1f}" y2="{HEIGHT - BELOW}" stroke="#e3e6ea"/>'
        yield (
            f'<text x="{at:.1f}" y="{HEIGHT - BELOW + 18}" text-anchor="middle">{2.0**power:g}'
            "</text>"
        )
    for power in range(round(math.log2(low)), round(math.log2(high)) + 1):
        up = y(2.0**power)
        yield f'<line x1="{LEFT}" y1="{up:.1f}" x2="{RIGHT}" y2="{up:.1f}" stroke="#e3e6ea"/>'
        yield f'<text x="{LEFT - 8}" y="{up + 4:.1f}" text-anchor="end">{2.0**power:g}</text>'


def body(table: ShapeTable, shapes: Iterable[tuple[int, int]]) -> list[str]:
    """Floors, picture, and a table for each shape."""
    floor, peaks = table.floor, table.floor.matmul
    many = ", ".join(f"{name} {flops / 1e9:.0f}" for name, flops in peaks.items())
    text = [
        f"Kernels built for {table.instructions}; {floor.threads} thread. Memory reads "
        f"{floor.read / 1e9:.1f} GB/s; products of 1024 x 1024 matrices, GFLOP/s: {many}. With "
        "many rows of inputs products are bound by that, and dense bfloat16 is the fastest here.",
        "",
        "![Roofline](../pictures/kernels.svg)",
        "",
        "The marks of a line are densities of 0.1, 0.3 and 0.5 from left to right.",
        "",
    ]
    for shape in shapes:
        text += lines(table, shape)
    text += [f"{name} is left out: {why}." for name, why in table.left_out.items()]
    return text


def main() -> None:
    made = parser(__doc__, threads=1, reps=9)
    made.add_argument("--mebibytes", type=int, default=128, help="of float32 weights to rotate")
    args: argparse.Namespace = read(made)
    torch.set_num_threads(args.threads)
    table = time_shapes(
        SHAPES, DENSITIES, repeats=args.reps, mebibytes=args.mebibytes, report=print
    )
    if args.write:
        write_text(PICTURE, picture(table, SHAPES[0]))
    about = ABOUT + PAGES if os.environ.get("GLIBC_TUNABLES") == LARGE_PAGES else ABOUT
    publish("Sparse kernels compared with the memory's speed", about, body(table, SHAPES), args)


if __name__ == "__main__":
    main()
