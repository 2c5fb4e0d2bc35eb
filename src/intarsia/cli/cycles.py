"""`intarsia cycles`: cycles of a training on an accelerator for N:M weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from ..core.schema import setting
from .completing import models
from .declared import with_options
from .options import Json, option_of
from .shell import say, show_json, show_table


@dataclass(frozen=True)
class CycleOptions:
    """The step of a training, and the accelerator that it runs on."""

    pattern: str = setting("2:8", "Pattern n:m of the weights: n of m are kept.")
    directions: str = setting("both", "Passes with sparse weights: both, forward or backward.")
    batch: int = setting(64, "Pictures a step.", least=1)
    side: int = setting(32, "Side of the accelerator's array, in units.", least=1)


@with_options()
def cycles(
    model: Annotated[str, typer.Argument(help="Vision model, by its name.", autocompletion=models)],
    request: CycleOptions,
    size: Annotated[int | None, option_of("size")] = None,
    as_json: Json = False,
) -> None:
    """Count the cycles of a training step on the accelerator SAT, with dense and N:M weights.

    A model of an accelerator, not a measurement: products of attention are not counted.

    Example:  intarsia cycles resnet18 --pattern 2:8
    """
    pattern, batch = request.pattern, request.batch
    from ..runs.accelerator import step_cycles

    rows, dense, sparse = step_cycles(model, pattern, request.directions, batch, size, request.side)
    if as_json:
        show_json({"layers": rows, "dense": dense, "cycles": sparse, "times": dense / sparse})
        return
    # thousands with commas; flows are words
    table = [[f"{v:,}" if isinstance(v, int) else v for v in row.values()] for row in rows]
    columns = list(rows[0])
    show_table("", columns, table, right=",".join(columns[1:-1]))
    say(f"A step of {batch} pictures: {dense:,} cycles dense, {sparse:,} at {pattern}.")
    say(f"{dense / sparse:.2f} times as fast. os: outputs stay in the units; ws: weights do.")
