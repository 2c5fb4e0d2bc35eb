"""`intarsia sparsify` and `intarsia convert`: sparse language models and their folders."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.checks import at_least, between
from ..core.errors import ConfigError, MissingExtra, UnknownName
from .completing import among
from .early import check_calibration
from .options import Calibration, Json
from .shell import note, say, show_json
from .targets import target

METHODS = ("dsnot", "magnitude", "sparsegpt", "wanda")
LAYOUTS = ("bitmask", "dense")
PACKED = "pack-quantized"
SAVED = (*LAYOUTS, PACKED)
RECORD = "sparsify.json"
ORDERS = ("block", "layer")


Method = Annotated[
    str, typer.Option(help=f"One of {', '.join(METHODS)}.", autocompletion=among(METHODS))
]
Base = Annotated[
    str,
    typer.Option(help="Of dsnot: whose mask is made better.", autocompletion=among(METHODS[1:])),
]
Pattern = Annotated[str | None, typer.Option(help="As 2:4; unstructured if not given.")]
Layers = Annotated[
    list[str] | None, typer.Option(help="A glob of layers, as 'mlp.*'; may be repeated.")
]
Layout = Annotated[
    str, typer.Option(help=f"One of {', '.join(SAVED)}.", autocompletion=among(SAVED))
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with a run to --save that was stopped.")
]
Errors = Annotated[bool, typer.Option("--errors", help="Measure layers' errors.")]
Sequential = Annotated[
    str, typer.Option(help="block, or layer: slower.", autocompletion=among(ORDERS))
]


def sparsify(
    model: Annotated[str, typer.Argument(help="smollm2, or a folder of save_pretrained.")],
    method: Method = "wanda",
    base: Base = "wanda",
    density: Annotated[float, typer.Option(help="The share of weights that is kept.")] = 0.5,
    pattern: Pattern = None,
    layers: Layers = None,
    calib: Calibration = "mixed",
    rows: Annotated[int, typer.Option(help="Calibration rows.")] = 128,
    size: Annotated[int, typer.Option(help="Tokens of a row.")] = 512,
    seed: Annotated[int, typer.Option(help="Of what a method draws.")] = 0,
    save: Annotated[Path | None, typer.Option(help="The folder to write.")] = None,
    layout: Layout = "dense",
    resume: Resume = False,
    test: Annotated[int, typer.Option(help="Other rows, for the perplexity.")] = 16,
    errors: Errors = False,
    sequential: Sequential = "block",
    as_json: Json = False,
) -> None:
    """Prune a pretrained language model block by block; no gradient is computed.

    Finished blocks are kept beside --save: killed at any moment, --resume ends in the same bits.
    The folder opens with from_pretrained (dense, or int4: pack-quantized; intarsia[hf-int4]), or is
    smaller (bitmask), which `intarsia convert` turns into a dense one. `report` draws it.

    Example:  intarsia sparsify smollm2 --method dsnot --density 0.5 --save out
    """
    _check((method, base, layout, sequential), density, rows, calib, save)
    at_least("--test", test, 0)
    from ..data.calibration import load_calibration
    from ..data.language_models import language_model
    from ..hosts.prune.files import save_sparse

    assert save is not None
    pruner = _method(method, base, density, pattern, tuple(layers or ()))
    walk = save.with_name(f"{save.name}.walk")
    host, tokenizer = language_model(model)
    texts = load_calibration(calib, tokenizer, rows=rows, length=size, test=test, progress=note)
    options = {
        "out": walk,
        "resume": resume,
        "seed": seed,
        "errors": errors,
        "sequential": sequential,
    }
    done, perplexities = _pruned(host, pruner, texts, test, options)
    record = {
        "model": model,
        "method": method,
        "seed": seed,
        "calibration": {"data": calib, "rows": rows, "tokens": size, "of": texts.record["rows"]},
        **perplexities,
        "layers": list(done.table),
    }
    save_sparse(host, save, layout=layout, tokenizer=tokenizer, record={RECORD: record})
    shutil.rmtree(walk, ignore_errors=True)
    if as_json:
        show_json({"folder": str(save), **record})
    else:
        say(f"{_said(done, perplexities)}\n{save}")


def _said(done: Any, record: dict[str, Any]) -> str:
    # Without --test there is nothing to measure on, and both are None.
    dense, pruned = (record["perplexity"][which] for which in ("dense", "pruned"))
    sentences = [] if dense is None else [f"perplexity {dense:.1f} dense, {pruned:.1f} pruned"]
    return "\n".join([str(done), *sentences, f"{record['seconds']} s"])


def _pruned(
    host: Any, method: Any, texts: Any, test: int, options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Prune and measure; returns the result of `sparsify` and the measured part of the record."""
    from ..core.registry import method_key
    from ..hosts.prune.pruner import bytes_by_part, sparsify, stops_of

    # Measured before the pruning, which changes the model in place.
    dense = _perplexity(host, texts.test) if test else None
    # The pruning alone is timed, not the two measurements around it.
    started = time.perf_counter()
    done = sparsify(host, method, texts.train, progress=note, **options)
    seconds = round(time.perf_counter() - started, 1)
    pruned = _perplexity(host, texts.test) if test else None
    return done, {
        "base": None if method.base is None else method_key(method.base),
        "settings": _settings(method),
        "density": done.density,
        "perplexity": {"dense": dense, "pruned": pruned, "rows": test},
        "bytes": dict(done.bytes),
        "parts": bytes_by_part(host, stops_of(host, method.layers)),
        "seconds": seconds,
    }


def convert(
    old: Annotated[Path, typer.Argument(help="A folder of sparse weights.")],
    new: Annotated[Path, typer.Argument(help="The folder to write.")],
    layout: Annotated[
        str, typer.Option(help=f"One of {', '.join(SAVED)}.", autocompletion=among(SAVED))
    ] = "dense",
) -> None:
    """Write sparse weights in another layout; old sparse-bitmask folders open again.

    Example:  intarsia convert sparse-llama dense-llama
    """
    _check_layout(layout)
    if not old.is_dir():
        fix = "Give the folder that holds config.json and *.safetensors."
        raise ConfigError(f"folder {str(old)!r}", got="nothing there", want="a folder", fix=fix)
    target(new, "dense-llama", option="NEW")
    from ..hosts.prune.files import convert_sparse

    say(str(convert_sparse(old, new, layout=layout)))


def _check(names: Sequence[str], density: float, rows: int, calib: str, save: Path | None) -> None:
    """Refuse wrong words before torch is imported.  names: method, base, layout, sequential."""
    # Options whose values are closed lists; all are checked alike.
    closed = {"--method": METHODS, "--base": METHODS[1:], "--layout": SAVED, "--sequential": ORDERS}
    for (option, words), got in zip(closed.items(), names, strict=True):
        if got not in words:
            raise UnknownName(option, got, words)
    _check_layout(names[2])
    between("--density", density, 0.001, 1, "Try 0.5.")
    at_least("--rows", rows, 8, fix="Try 128.")
    check_calibration(calib, rows)
    target(save, "out")


def _check_layout(layout: str) -> None:
    """Raises: UnknownName; MissingExtra for a layout that another library writes."""
    if layout not in SAVED:
        raise UnknownName("--layout", layout, SAVED)
    # Refused before hours of work, not when the folder is written.
    if layout == PACKED and find_spec("compressed_tensors") is None:
        raise MissingExtra("compressed-tensors", "hf-int4")


def _method(method: str, base: str, density: float, pattern: str | None, layers: Any) -> Any:
    from ..core.registry import card

    # DSnoT improves the mask of another method, which it has as a setting.
    # DSnoT improves the mask of another method, which is a setting of it.
    inner = card(base if method == "dsnot" else method).config(density, pattern, layers)
    return card("dsnot").config(inner) if method == "dsnot" else inner


def _perplexity(model: Any, rows: Any) -> float:
    from ..fitting import evaluate

    return float(evaluate(model, rows, batch_size=4).scores()["perplexity"])


def _settings(method: Any) -> dict[str, Any]:
    return dataclasses.asdict(method)
