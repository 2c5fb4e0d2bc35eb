"""`intarsia bench sparse`: shapes, of a model or any, against dense, peers and the memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from intarsia.cli.shell import note, say, show_json, show_table
from intarsia.core.checks import between
from intarsia.core.errors import ConfigError
from intarsia.data.language_names import check_language_model

SHAPES, DENSITIES = "4096x4096,576x1536", "0.5,0.3"
COLUMNS = ("kernel", "density", "ms", "x dense", "bytes/weight", "GB/s", "of limit", "error")


def bench_sparse(shapes: str | None, density: str | None, model: str | None, as_json: bool) -> None:
    """Time products of sparse weights and show them: the command `intarsia bench sparse`.

    shapes, density: the options' texts, None = their defaults; model: name or folder of a language
    model with layers that give the shapes; as_json: print JSON.

    Raises: ConfigError for shapes or densities that cannot be, or both shapes and a model.
    """
    if shapes is not None and model is not None:
        fix = "Give one of them."
        raise ConfigError("--shapes", got=f"with --model {model}", want="one", fix=fix)
    densities = _densities(density or DENSITIES)
    if model is not None:
        check_language_model(model)
    from ..bench.sparse import read_shapes, time_shapes

    shape_counts: dict[tuple[int, int], int] = {}
    if model is not None:
        shape_counts, model_densities = _of_model(model)
        # A pruned model is timed at its own density, unless --density names others.
        densities = densities if density is not None or not model_densities else model_densities
    timed_shapes = tuple(shape_counts) or read_shapes(shapes or SHAPES)
    table = time_shapes(timed_shapes, densities, report=note)
    if as_json:
        layers = {f"{out}x{width}": n for (out, width), n in shape_counts.items()}
        show_json(table.record() | {"layers": layers})
        return
    _show(table, timed_shapes, shape_counts)


def _densities(text: str) -> tuple[float, ...]:
    """Return the densities of an option's text, as "0.5,0.3"."""
    try:
        densities = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        want, fix = "numbers with commas", "For example: --density 0.5,0.3"
        raise ConfigError("--density", got=text, want=want, fix=fix) from error
    for density in densities:
        between("--density", density, 0.001, 1, "Try 0.5.")
    return densities


def _of_model(name: str) -> tuple[dict[tuple[int, int], int], tuple[float, ...]]:
    """Return how many layers of a model have each weight shape, and the density of its weights.

    Shapes are (out, in), of layers inside the blocks.
    """
    from intarsia.folders.opened import open_language_model
    from intarsia.formats.packed_linear import PackedLinear
    from intarsia.sparse.swap.compress import matrices_of

    model, _ = open_language_model(name, progress=note)
    weights = [m.weight for m in model.modules() if isinstance(m, PackedLinear)]
    # Without packed layers the model's dense matrices give the shapes.
    weights = weights or [m.read() for m in matrices_of(model, ()).values()]
    layers: dict[tuple[int, int], int] = {}
    for weight in weights:
        shape = int(weight.shape[0]), int(weight.shape[1])
        layers[shape] = layers.get(shape, 0) + 1
    density = sum(int(w.count_nonzero()) for w in weights) / max(1, sum(w.numel() for w in weights))
    note(f"{Path(name).name}: {len(weights)} layers, density {density:.3f}")
    # Above 95 % a model is taken as dense: then the usual densities are timed.
    return layers, (round(density, 2),) if density < 0.95 else ()


def _show(table: Any, shapes: Any, layers: dict[tuple[int, int], int]) -> None:
    """Print a table for each weight shape, and how fast memory and products can be at best.

    shapes: (out, in) each.
    """
    from intarsia.formats.rivals import advice

    from ..bench.sparse import DENSE, verdict

    floor = table.floor
    for shape in shapes:
        # The fastest dense product of this shape, by which all rows are divided.
        dense = table.best(shape, *DENSE)
        # A row for each product: dense ones, other libraries' and ours.
        rows = [
            (
                *(row.name, f"{row.density:g}", f"{row.ms:.3f}", f"{dense.ms / row.ms:.2f}"),
                f"{row.bytes / (shape[0] * shape[1]):.3f}",
                *(f"{row.rate / 1e9:.1f}", f"{100 * table.share(row):.0f} %", f"{row.error:.0e}"),
            )
            for row in table.rows
            if row.shape == shape
        ]
        count = f", {layers[shape]} layers" if shape in layers else ""
        title = f"{shape[0]}x{shape[1]}, one row of inputs{count}"
        show_table(title, COLUMNS, rows, right=",".join(COLUMNS[1:]))
        say(verdict(table, shape))
    peaks = ", ".join(f"{n} {f / 1e9:.0f} GFLOP/s" for n, f in floor.matmul.items())
    threads = f"{floor.threads} thread" + "s" * (floor.threads > 1)
    say(f"Floor: {floor.read / 1e9:.1f} GB/s read; products of many rows {peaks}; {threads}.")
    say(f"Kernels: {table.instructions}.")
    # A better runtime elsewhere is named where there is one.
    if line := advice("text"):
        say(line)
    for name, reason in table.left_out.items():
        note(f"{name} is left out: {reason}")
