"""`intarsia export`: a finished run as a model without any code of this library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import ConfigError, DataError
from ..core.folders import BLEND, runs_in
from ..core.schema import setting
from ..data.language_names import check_language_model
from ..runs.experiment import FILE
from .declared import with_options
from .early import QUANTS, check_run
from .labelled_steps import export_rows, is_rows_run
from .options import Json, Threads, use_threads, writes
from .shell import note, say, show_json
from .targets import target

MARKS = {"onnx": "intarsia", "torch": "preprocessing.json", "gguf": "GGUF"}  # in the files
# files of a timm folder
EXPORTED = ("config.json", "model.safetensors", "predict.py", "digests.json", "members")
SUFFIXES = {"timm": "", "onnx": ".onnx", "torch": ".pt2", "gguf": ".gguf"}

Run = Annotated[
    str,
    typer.Argument(
        help="Run of `intarsia fit`; for gguf also smollm2, or a model's or adapter's folder."
    ),
]
Out = Annotated[
    Path | None,
    writes("The file or folder to write; RUN/export with the format's suffix if not given."),
]


@dataclass(frozen=True)
class Exporting:
    """The format of an export, and how its weights are written."""

    form: str = setting(
        "timm",
        "Format: timm (a folder), onnx, torch (torch.export), or gguf (llama.cpp; texts).",
        choices=tuple(SUFFIXES),
        flag="--format",
    )
    keep_adapter: bool = setting(
        False, "Export the adapter unfolded (onnx, torch), or alone (gguf)."
    )
    quant: str | None = setting(
        None,
        "Type of gguf's weights: f32, bf16, q8_0 or q4_0; bf16 if not given, f32 for an adapter.",
        choices=QUANTS,
    )
    int8: bool = setting(False, "Round onnx to 8 bits, with ranges of the run's own pictures.")
    chosen: bool = setting(
        False, "Export the run that `intarsia compare` chose by validation; RUN is its folder."
    )


@with_options()
def export(
    run: Run,
    exporting: Exporting,
    out: Out = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Fold the adapter into the model's own weights, write it, and compare the outputs.

    The file is loaded again and held against the trained model: on pictures of the test part, or
    weight by weight.

    Example:  intarsia export runs/elpv-lora-0 --format onnx
              intarsia export runs/compare-photos --chosen
              intarsia export runs/elpv-lora-0 --format onnx --int8
              intarsia export smollm2 --format gguf --quant q4_0 --out smollm2.gguf
              intarsia export runs/notes-lora-0 --format gguf --keep-adapter
    """
    form, quant, int8 = exporting.form, exporting.quant, exporting.int8
    if is_rows_run(run):
        export_rows(Path(run), None if form == "timm" else form, out, as_json)
        return
    _check_bits(form, quant, int8)
    # the export goes into the folder that was named, not into the chosen run's
    named = run
    run = str(_chosen_run(Path(named))) if exporting.chosen else named
    place = _target(run, form, out, named)
    use_threads(threads)
    lines: list[str] = []
    options: dict[str, Any] = {
        "fold_it": not exporting.keep_adapter,
        "report": note,
        "result": lines.append,
    }
    options |= {"quant": quant} if form == "gguf" else {"int8": int8}
    path = _written(run, form, place, options)
    if as_json:
        show_json({"path": str(path), "format": form, "checks": lines})
        return
    for line in lines:
        say(line)


def _written(run: str, form: str, place: Path, options: dict[str, Any]) -> Path:
    if form == "gguf":
        from ..runs.release_text import release_text

        return release_text(run, place, **options)
    from ..runs.release import release

    return release(Path(run), form, place, **options)


def _check_bits(form: str, quant: str | None, int8: bool) -> None:
    if quant is not None and form != "gguf":
        got, fix = f"{quant} with --format {form}", "Leave it out."
        raise ConfigError("--quant", got=got, want="--format gguf with it", fix=fix)
    if int8 and form != "onnx":
        got, fix = f"it with --format {form}", "Leave it out."
        raise ConfigError("--int8", got=got, want="--format onnx with it", fix=fix)


def _chosen_run(folder: Path) -> Path:
    """Return the run of a comparison that validation scores choose, and print which one it is."""
    if (folder / FILE).is_file() or (folder / BLEND).is_file():
        want, fix = "a folder of `intarsia compare`", "Leave --chosen out."
        raise ConfigError(f"--chosen of {folder}", got="one run", want=want, fix=fix)
    runs_in(folder)  # refuses other folders
    from ..reports.runs import choice_sentence, comparison_of, gather

    # validation scores alone choose; test scores are not looked at
    comparison = comparison_of(gather([folder]))
    if comparison.chosen is None:
        want = "validation scores of every method, on the same items"
        fix = "Compare with --val 200, or name the run to export yourself."
        subject = f"choice in {folder}"
        raise DataError(subject, got=comparison.choice[1], want=want, fix=fix)
    note(choice_sentence(comparison))
    return comparison.chosen.run.folder


def _target(run: str, form: str, out: Path | None, named: str) -> Path:
    """Return the path to write, locked for other processes until the command ends."""
    if form != "gguf":
        check_run(Path(run), blends=True)
    elif not Path(run).is_dir():
        check_language_model(run)
    # A run's export goes into its folder; a named model's, next to the working folder's files.
    inside = Path(named) / "export" if Path(named).is_dir() else Path(Path(named).name)
    place = out or inside.with_name(inside.name + SUFFIXES[form])
    # An earlier export of this verb may be replaced: it is known by its mark or its files.
    return target(place, "m.onnx", mark=MARKS.get(form, ""), written_names=EXPORTED)
