"""`intarsia merge`: the average of finished runs with one mask."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import ConfigError
from .early import check_run
from .options import Json
from .shell import note, say, show_json, show_table
from .targets import target


def merge(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs with one mask.")],
    save: Annotated[Path | None, typer.Option(help="The run folder to write.")] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Take runs in as long as the score on val holds.")
    ] = False,
    weights: Annotated[
        str | None, typer.Option(help="Shares, as 0.5,0.25,0.25; all equal if not given.")
    ] = None,
    line: Annotated[
        bool, typer.Option("--line", help="Score 11 places between two of them, for the report.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Average runs that were trained from one pruned model, zeros and all, into one run.

    The runs differ in seed, weight decay, length or rate, and share mask and --split-seed. Batch
    norms are counted anew on training data.

    Example:  intarsia merge runs/a runs/b runs/c --save merged
    """
    save = target(save, "merged")
    if len(runs) < 2:
        fix = "Name two or more: intarsia merge runs/a runs/b --save merged"
        raise ConfigError("runs", got=f"{len(runs)} run", want="at least two", fix=fix)
    # Each of them is checked before torch is imported.
    for run in runs:
        check_run(run)
    shares = _shares(weights)
    from ..experiments.souping import soup_runs

    record = soup_runs(runs, save, weights=shares, by_val=greedy, line=line, report=note)
    described, results = record["record"]["soup"], record["results"]
    if as_json:
        show_json({"folder": str(save), **described, "results": results})
        return
    rows = [
        (part, *(f"{results[part][name]:.4f}" for name in ("accuracy", "loss")))
        for part in ("val", "test")
        if part in results
    ]
    show_table("", ("part", "accuracy", "loss"), rows, right="accuracy,loss")
    say(f"Merged: {', '.join(described['chosen'])}; mean distance {described['distance']:.3g}.")
    say(f"Next:  intarsia evaluate {shlex.quote(str(save))}")


def _shares(text: str | None) -> list[float] | None:
    """Return numbers with commas as a list.  Raises: ConfigError."""
    try:
        return None if text is None else [float(word) for word in text.split(",")]
    except ValueError as error:
        want, fix = "shares that add up to 1", "For example: --weights 0.5,0.25,0.25"
        raise ConfigError("--weights", got=repr(text), want=want, fix=fix) from error
