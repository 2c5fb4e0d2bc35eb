"""`intarsia sparsify` and `intarsia convert`: sparse language models and their folders."""

from __future__ import annotations

import copy
import dataclasses
import shlex
import shutil
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.checks import n_of_m
from ..core.errors import ConfigError, MissingExtra
from ..core.folders import describe_folder
from ..core.schema import setting
from ..core.sealing import sealed_names
from ..data.language_names import check_language_model
from .declared import of_method, option, with_options
from .devices import language_model_on, rows_on
from .early import check_calibration
from .options import (
    Calibration,
    Device,
    Json,
    LanguageModel,
    Length,
    OutFolder,
    Seed,
    TextOptions,
    Threads,
    use_threads,
)
from .shell import note, say, show_json, warn
from .targets import target

METHODS = ("dsnot", "magnitude", "sparsegpt", "wanda")
LAYOUTS = ("bitmask", "dense")
PACKED = "pack-quantized"
SAVED = (*LAYOUTS, PACKED)
RECORD = "sparsify.json"
ORDERS = ("block", "layer")
# of --recover: passes over the rows at most, tokens of a step, AdamW's rate
PASSES, TOKENS, RATE = 1000, 512, 1e-4


@dataclass(frozen=True)
class Pruning:
    """The method of the pruning, its order, and how the result is stored."""

    method: str = setting("wanda", "Method of pruning.", choices=METHODS)
    base: str = setting("wanda", "Method whose mask dsnot improves.", choices=METHODS[1:])
    layout: str = setting("dense", "Layout of the weights.", choices=SAVED)
    sequential: str = setting(
        "block",
        "Order of the pruning: block by block, or layer by layer, which is slower.",
        choices=ORDERS,
    )


@dataclass(frozen=True)
class Measuring:
    """Measurements next to the pruning, and the training after it."""

    test: int = setting(16, "Further rows, on which the perplexity is measured.", least=0)
    recover: float | None = setting(
        None,
        "Then train the weights that are left on the rows of --calib for at most so many minutes "
        "on the clock; zeros stay zeros.",
        above=0,
        unit="minutes",
        fix="Try 3, in minutes.",
    )
    errors: bool = setting(False, "Measure the error of each layer's outputs.")
    resume: bool = setting(False, "Go on with a run to --out that was stopped.")


@with_options(
    of_method(
        "wanda",
        *("density", "pattern", "layers"),
        pattern="Pattern n:m of the zeros, such as 2:4; unstructured if not given.",
        layers="Glob of the layers to prune, such as 'mlp.*'; may be repeated.",
    )
)
def sparsify(
    model: LanguageModel,
    pruning: Pruning,
    measuring: Measuring,
    calib: Calibration = "mixed",
    rows: Annotated[int, option(TextOptions, "rows", least=8, fix="Try 128.")] = 128,
    length: Length = 512,
    seed: Seed = 0,
    out: OutFolder = None,
    device: Device = None,
    threads: Threads = None,
    as_json: Json = False,
    **pruned: Any,
) -> None:
    """Prune a pretrained language model block by block; no gradient is computed before --recover.

    Finished blocks are kept next to --out: killed at any moment, --resume ends in the same bits.
    The folder opens with from_pretrained (dense, or int4: pack-quantized; intarsia[hf-int4]), or is
    smaller (bitmask), which `intarsia convert` turns into a dense one. `report` draws it.

    Example:  intarsia sparsify smollm2 --method dsnot --density 0.5 --out pruned
    """
    _check_layout(pruning.layout)
    pruned |= {"layers": tuple(pruned["layers"] or ())}
    if pruned["pattern"] is not None:
        n_of_m(pruned["pattern"])
    check_calibration(calib, rows)
    target(out, "out", written_names=() if out is None else sealed_names(out, RECORD))
    check_language_model(model)
    use_threads(threads)
    from ..data.calibration import load_calibration
    from ..sparse.prune.files import save_sparse

    assert out is not None
    pruner, test = _method(pruning, pruned), measuring.test
    # finished blocks, which --resume reads
    walk = out.with_name(f"{out.name}.walk")
    host, tokenizer = language_model_on(model, device)
    texts = load_calibration(calib, tokenizer, rows=rows, length=length, test=test, progress=note)
    options = {"out": walk, "resume": measuring.resume, "seed": seed}
    options |= {"errors": measuring.errors, "sequential": pruning.sequential}
    done, measured = _pruned(host, pruner, texts, test, options, measuring.recover)
    record = {
        "model": model,
        "method": pruning.method,
        "seed": seed,
        "calibration": {"data": calib, "rows": rows, "tokens": length, "of": texts.record["rows"]},
        **measured,
        "layers": list(done.table),
    }
    save_sparse(host, out, layout=pruning.layout, tokenizer=tokenizer, record={RECORD: record})
    shutil.rmtree(walk, ignore_errors=True)
    if as_json:
        show_json({"folder": str(out), **record})
    else:
        say(f"{_summary_lines(done, measured)}\n{out}")
        say(f"Next:  {_next_command(shlex.quote(str(out)), pruning.layout)}")


def _next_command(folder: str, layout: str) -> str:
    """Return the commands that usually come next, for a folder as a shell reads it."""
    generate = f'intarsia generate {folder} "Once"'
    if layout != "dense":
        return generate
    return f"intarsia compress {folder} --values int8 --out fast  |  {generate}"


def _summary_lines(done: Any, record: dict[str, Any]) -> str:
    """Return the lines to print: density, perplexity before and after, and seconds."""
    # Without --test there is nothing to measure on, and both are None.
    names = "dense", "pruned", "recovered"
    values = {name: record["perplexity"].get(name) for name in names}
    parts = ", ".join(f"{v:.1f} {name}" for name, v in values.items() if v is not None)
    sentences = [f"perplexity {parts}"] if parts else []
    seconds = f"{record['seconds']} s"
    if "recovery" in record:
        seconds += " of pruning, {seconds} s of recovery in {steps} steps".format(
            **record["recovery"]
        )
    return "\n".join([str(done), *sentences, seconds])


def _pruned(
    host: Any, method: Any, texts: Any, test: int, options: dict[str, Any], recover: float | None
) -> tuple[Any, dict[str, Any]]:
    """Prune a language model in place and recover it; measure its perplexity before and after."""
    from ..core.registry import method_key
    from ..sparse.prune.pruner import bytes_by_part, sparsify, sparsify_report, stops_of

    # Measured before the pruning, which changes the model in place.
    dense = _perplexity(host, texts.test) if test else None
    teacher = copy.deepcopy(host) if recover is not None else None
    # The pruning alone is timed, not the two measurements around it.
    started = time.perf_counter()
    sparsify(host, method, rows_on(texts.train, host.device), progress=note, **options)
    done = sparsify_report(host)
    seconds = round(time.perf_counter() - started, 1)
    pruned = _perplexity(host, texts.test) if test else None
    measured: dict[str, Any] = {
        "base": None if method.base is None else method_key(method.base),
        "settings": _settings(method),
        "density": done.density,
        "perplexity": {"dense": dense, "pruned": pruned, "rows": test},
        "bytes": dict(done.bytes),
        "parts": bytes_by_part(host, stops_of(host, method.layers, any_model=True)),
        "seconds": seconds,
    }
    if recover is not None:
        measured["recovery"] = _recovered(host, teacher, texts, recover, options["seed"])
        recovered = _perplexity(host, texts.test) if test else None
        measured["perplexity"]["recovered"] = recovered
    return done, measured


def _recovered(host: Any, dense: Any, texts: Any, minutes: float, seed: int) -> dict[str, Any]:
    """Train the weights that are not 0, in place, to follow the dense model; return the costs."""
    from ..fitting import fit
    from ..schedules import FixedMask
    from ..train import SquareHead

    note(f"recovery: at most {minutes:g} minutes, zeros stay zeros")
    objective = SquareHead(dense, ce=0.0, kl=1.0, feature=1.0)
    batch = max(1, TOKENS // texts.record["length"])
    options: dict[str, Any] = {"schedule": FixedMask(), "most_seconds": 60 * minutes, "seed": seed}
    options |= {"epochs": PASSES, "batch_size": batch, "lr": RATE, "device": host.device.type}
    run = fit(host, texts.train, objective=objective, trackers=(), **options)
    results = run.record["results"]
    return {"minutes": minutes, "steps": results["steps"], "seconds": round(results["seconds"], 1)}


def convert(
    old: Annotated[Path, typer.Argument(help="A folder of sparse weights.")],
    out: OutFolder = None,
    layout: Annotated[str, option(Pruning, "layout")] = "dense",
    as_json: Json = False,
) -> None:
    """Write sparse weights in another layout.

    Example:  intarsia convert sparse-llama --out dense-llama
    """
    _check_layout(layout)
    if not old.is_dir():
        fix = "Give the folder that holds config.json and *.safetensors."
        raise ConfigError(f"folder {str(old)!r}", got="nothing there", want="a folder", fix=fix)
    if not any(old.glob("*.safetensors")):
        fix = "Give a folder of save_pretrained or of `intarsia sparsify`."
        raise ConfigError(f"folder {str(old)!r}", got=describe_folder(old), want="weights", fix=fix)
    names = [] if out is None or layout == PACKED else sealed_names(out, "config.json")
    out = target(out, "dense-llama", written_names=names)
    from ..sparse.prune.files import convert_sparse, layout_of

    # most layouts need no model: tensors are converted as they are
    folder = convert_sparse(old, out, layout=layout)
    if (before := layout_of(old)) == layout:
        warn(f"The weights of {old} are {before} already: {folder} has a copy of them.")
    if as_json:
        show_json({"folder": str(folder), "before": before, "layout": layout})
    else:
        say(str(folder))


def _check_layout(layout: str) -> None:
    """Check that the package of a layout of the weights is installed."""
    # Refused before hours of work, not when the folder is written.
    if layout == PACKED and find_spec("compressed_tensors") is None:
        raise MissingExtra("compressed-tensors", "hf-int4")


def _method(pruning: Pruning, pruned: dict[str, Any]) -> Any:
    from ..core.registry import card

    # DSnoT improves the mask of another method, which is a setting of it.
    improves = pruning.method == "dsnot"
    kind: Any = card(pruning.base if improves else pruning.method).config
    inner = kind(**pruned)
    return card("dsnot").config(inner) if improves else inner


def _perplexity(model: Any, rows: Any) -> float:
    from ..fitting import evaluate

    return float(evaluate(model, rows, batch_size=4).scores()["perplexity"])


def _settings(method: Any) -> dict[str, Any]:
    return dataclasses.asdict(method)
