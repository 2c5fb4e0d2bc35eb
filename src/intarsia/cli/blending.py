"""`intarsia blend`: finished runs that answer together, by the mean of their probabilities."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import ConfigError
from ..core.folders import BLEND
from ..core.schema import setting
from .declared import with_options
from .early import check_run, decimals
from .options import Json, writes
from .shell import say, show_json, show_table
from .targets import target

WRITTEN = (BLEND, "run.json", "predictions.safetensors", "members")  # what a blend's folder has
COLUMNS = ("run", "weight", "temperature", "loss")


@dataclass(frozen=True)
class Blending:
    """Weights and temperatures of a blend's members."""

    weights: str | None = setting(None, "Weights of the runs, such as 2,1; all equal if not given.")
    temperatures: str | None = setting(
        None, "Temperature of each run; those that the runs fitted if not given."
    )


@with_options()
def blend(
    runs: Annotated[list[Path], typer.Argument(help="Folders of two or more finished runs.")],
    blending: Blending,
    out: Annotated[Path | None, writes("The folder to write.")] = None,
    as_json: Json = False,
) -> None:
    """Blend finished runs on pictures: the weighted mean of their probabilities.

    The runs have the same classes and test pictures, and may differ in all else: pretrained model,
    size, method. Each one's logits are first divided by the temperature that it fitted, if it did.
    The folder has copies of the runs; predict, evaluate, report and export take it as a run.

    Example:  intarsia blend runs/photos-lora-0 runs/photos-linear-0 --out blended --weights 2,1
    """
    out = target(out, "blended", written_names=WRITTEN)
    if len(runs) < 2:
        fix = "Name two or more: intarsia blend runs/a runs/b --out blended"
        raise ConfigError("runs", got=f"{len(runs)} run", want="at least two", fix=fix)
    for run in runs:
        check_run(run)
    want, fix = "a number above 0 for each run", "For example: --weights 2,1"
    weights, temperatures = blending.weights, blending.temperatures
    shares = None if weights is None else decimals("--weights", weights, want=want, fix=fix)
    fix = "For example: --temperatures 1.2,0.9"
    temps = (
        None
        if temperatures is None
        else decimals("--temperatures", temperatures, want=want, fix=fix)
    )
    for option, values in (("--weights", shares), ("--temperatures", temps)):
        if values is not None and len(values) != len(runs):
            got = f"{len(values)} for {len(runs)} runs"
            raise ConfigError(option, got=got, want=want, fix=fix)
    from ..reports.runs import read_run
    from ..runs.blending import write_blend

    command = shlex.join(["intarsia", *sys.argv[1:]])
    write_blend(out, runs, shares, temps, record={"command": command})
    record = read_run(out).record
    parts = record["record"]["blend"]
    if as_json:
        show_json({"folder": str(out), **parts, "results": record["results"]})
        return
    _show(out, [*map(read_run, runs), read_run(out)], parts)


def _show(out: Path, finished: list[Any], parts: dict[str, Any]) -> None:
    """Print a table of the members and their blend, and what to do next."""
    from ..reports.numbers import percent

    measure = finished[-1].scores.measure.replace("_", " ")
    weights = [f"{weight:.2f}" for weight in parts["weights"]]
    temperatures = [f"{temperature:.2f}" for temperature in parts["temperatures"]]
    rows = [
        (
            str(run.folder),
            weight,
            temperature,
            f"{run.scores.loss:.3f}",
            percent(run.scores.accuracy),
        )
        for run, weight, temperature in zip(
            finished, [*weights, ""], [*temperatures, ""], strict=True
        )
    ]
    columns = (*COLUMNS, measure)
    show_table("", columns, rows, right=",".join(columns[1:]))
    folder = shlex.quote(str(out))
    say(f"Scores are of the {finished[-1].scores.split} part: they are no way to choose weights.")
    say(f"Next:  intarsia predict {folder} PICTURES  |  intarsia export {folder}")
