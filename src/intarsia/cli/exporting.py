"""`intarsia export`: a finished run as a model without any code of this library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import UnknownName
from .completing import among
from .early import check_run
from .options import Json, RunFolder
from .shell import note, say, show_json
from .targets import target

MARKS = {"onnx": "intarsia", "torch": "preprocessing.json"}  # in the files
EXPORTED = ("config.json", "model.safetensors", "predict.py")  # files of a timm folder
SUFFIXES = {"timm": "", "onnx": ".onnx", "torch": ".pt2"}


def export(
    run: RunFolder,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="timm (a folder), onnx, or torch (torch.export).",
            autocompletion=among(("timm", "onnx", "torch")),
        ),
    ] = "timm",
    out: Annotated[
        Path | None,
        typer.Option(help="Where to; RUN/export with the format's suffix if not given."),
    ] = None,
    keep_adapter: Annotated[
        bool, typer.Option("--keep-adapter", help="Export it unfolded (onnx and torch).")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fold the adapter into the model's own weights, write it, and compare the outputs.

    The file is loaded again and held against the trained model on pictures of the test part.

    Example:  intarsia export runs/elpv-lora-0 --format onnx
    """
    if form not in SUFFIXES:
        raise UnknownName("format", form, SUFFIXES)
    check_run(run)
    from ..experiments.release import release

    place = out or run / f"export{SUFFIXES[form]}"
    target(place, "m.onnx", option="--out", mark=MARKS.get(form, ""), own=EXPORTED)
    lines: list[str] = []
    path = release(run, form, place, fold_it=not keep_adapter, report=note, result=lines.append)
    if as_json:
        show_json({"path": str(path), "format": form, "checks": lines})
        return
    for line in lines:
        say(line)
