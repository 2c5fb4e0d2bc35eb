"""`intarsia merge`: the average of finished runs with one mask."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import ConfigError
from ..core.schema import setting
from .declared import with_options
from .early import check_run, decimals
from .options import Device, Json, Threads, use_threads, writes
from .shell import note, say, show_json, show_table
from .targets import target


@dataclass(frozen=True)
class Merging:
    """Settings of an average of runs."""

    greedy: bool = setting(False, "Add runs one by one, as long as the score on val does not fall.")
    weights: str | None = setting(
        None, "Weights of the runs, such as 0.5,0.25,0.25; all equal if not given."
    )
    line: bool = setting(False, "Score 11 places between two of them, for the report.")


@with_options()
def merge(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs with one mask.")],
    merging: Merging,
    out: Annotated[Path | None, writes("The run folder to write.")] = None,
    device: Device = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Average several runs of one pruned model into one run that keeps its zeros.

    The runs differ in seed, weight decay, length or rate, and share mask and --split-seed. Batch
    norms are counted again on training data.

    Example:  intarsia merge runs/a runs/b runs/c --out merged
    """
    out = target(out, "merged")
    if len(runs) < 2:
        fix = "Name two or more: intarsia merge runs/a runs/b --out merged"
        raise ConfigError("runs", got=f"{len(runs)} run", want="at least two", fix=fix)
    # Each of them is checked before torch is imported.
    for run in runs:
        check_run(run)
    want, fix = "shares that add up to 1", "For example: --weights 0.5,0.25,0.25"
    # a list, or None for equal weights
    weights = merging.weights
    shares = None if weights is None else decimals("--weights", weights, want=want, fix=fix)
    use_threads(threads)
    from ..runs.souping import soup_runs

    options = {"by_val": merging.greedy, "line": merging.line, "device": device, "report": note}
    record = soup_runs(runs, out, weights=shares, **options)
    described, results = record["record"]["soup"], record["results"]
    if as_json:
        show_json({"folder": str(out), **described, "results": results})
        return
    # A part that the runs do not have, such as validation, has no row.
    rows = [
        (part, *(f"{results[part][name]:.4f}" for name in ("accuracy", "loss")))
        for part in ("val", "test")
        if part in results
    ]
    show_table("", ("part", "accuracy", "loss"), rows, right="accuracy,loss")
    say(f"Merged: {', '.join(described['chosen'])}; mean distance {described['distance']:.3g}.")
    say(f"Next:  intarsia evaluate {shlex.quote(str(out))}")
