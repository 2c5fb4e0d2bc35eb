"""The steps of `intarsia compress`: choose a format, pack a model, write it with its record."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from ..core.folders import describe_folder
from ..runs.experiment import FILE
from .shell import note, say, show_json, warn

RECORD = "compress.json"
METHODS = {"gqsa": "gqsa", "qmoe": "qmoe", "ternary": "qmoe"}  # of layers, and of experts
NETS = "chw"  # of a convolutional net, whole


def pack_language_model(
    model: str,
    formats: tuple[Any, int | None],
    text: tuple[str, int, int],
    options: dict[str, Any],
    out: Path,
    format: str,
) -> dict[str, Any]:
    """Open a language model, pack it and write it; return the record."""
    from ..core.change import Change
    from ..data.calibration import load_calibration
    from ..data.language_models import language_model
    from ..folders.opened import open_language_model, save_language_model
    from ..folders.out.gguf_model import ARCHITECTURES
    from ..sparse.swap.compress import compress as pack
    from ..sparse.swap.packed_head import pack_head

    stored, bits = formats
    if (record := _pack_mixture(model, formats, options, out)) is not None:
        return record
    if (Path(model) / "intarsia.json").is_file():  # a mixture of ours
        host, tokenizer = open_language_model(model)
    else:
        host, tokenizer = language_model(model, dtype="auto")
    if type(host).__name__ in ARCHITECTURES:  # llama.cpp knows it
        warn_of_rivals("text", format, vars(stored))
    before = sum(p.nbytes for p in host.parameters())
    calibration: Any = ()
    read: dict[str, int] = {}
    packs_itself = isinstance(stored, Change)
    # Only methods that calibrate need texts.
    if packs_itself or stored.needs:
        corpus, rows, length = text
        texts = load_calibration(corpus, tokenizer, rows=rows, length=length, progress=note)
        calibration, read = texts.train, texts.record["rows"]
    started, walk = time.perf_counter(), out.with_name(f"{out.name}.walk")
    # Finished blocks lie next to --out: --resume continues from them.
    if packs_itself and stored.walks:
        options |= {"out": walk, "progress": note}
    host = pack(host, stored, calibration, **options)
    if bits is not None:
        host = pack_head(host, bits)
    facts = {"model": model, "format": repr(stored), "calibration": read}
    record = facts | _measured(host, before, started)
    save_language_model(host, out, tokenizer=tokenizer, record={RECORD: record})
    shutil.rmtree(walk, ignore_errors=True)
    return record


def _pack_mixture(
    model: str, formats: tuple[Any, int | None], options: dict[str, Any], out: Path
) -> dict[str, Any] | None:
    """Pack a folder of a mixture an expert at a time; None for a model that is opened whole."""
    from ..core.change import Change
    from ..folders.mixture_folder import packed_mixture
    from ..folders.opened import is_changed, save_language_model
    from ..sparse.swap.compress import Compress
    from ..sparse.swap.packed_head import pack_head

    stored, bits = formats
    if isinstance(stored, Change) or is_changed(Path(model)) or options["resume"]:
        return None
    started = time.perf_counter()
    change = Compress(stored, options["layers"] or ())
    host = packed_mixture(model, change, force=options["force"])
    if host is None:
        return None
    host = host if bits is None else pack_head(host, bits)
    before = sum(file.stat().st_size for file in Path(model).glob("*.safetensors"))
    facts = {"model": model, "format": repr(stored), "calibration": {}}
    record = facts | _measured(host, before, started)
    save_language_model(host, out, record={RECORD: record})
    return record


def pack_gguf(model: str, bits: int | None, head: int | str | None, out: Path) -> dict[str, Any]:
    """Pack the model of a GGUF file and write it; return the record."""
    from ..folders.gguf_file import open_gguf, packed_gguf
    from ..folders.opened import save_language_model

    started, file = time.perf_counter(), open_gguf(model)
    host = packed_gguf(file, bits=bits, head=head, progress=note)
    facts = {"model": model, "format": file.format, "calibration": {}}
    record = facts | _measured(host, file.nbytes, started)
    save_language_model(host, out, tokenizer=file.tokenizer, record={RECORD: record})
    return record


def _measured(host: Any, before: int, started: float) -> dict[str, Any]:
    """Return the counts and bytes of a packed model, and the seconds since `started`."""
    from ..core import nbytes
    from ..formats.packed_linear import PackedLinear
    from ..mixtures.packed_experts import packed_stacks
    from ..sparse.swap.packed_head import head_and_embedding, token_bytes

    head = host.get_output_embeddings()
    packed = [m for m in host.modules() if isinstance(m, PackedLinear) and m is not head]
    stacks = packed_stacks(host)
    return {
        "layers": len(packed),
        "stacks of experts": len(stacks),
        **head_and_embedding(host),
        "bytes": {"before": before, "after": sum(t.nbytes for t in _tensors(host))},
        "bytes of a token": token_bytes(host),
        "bytes of packed layers": sum(nbytes(m.stored) for m in packed)
        + sum(m.nbytes for m in stacks),
        "weights of packed layers": sum(m.in_features * m.out_features for m in packed)
        + sum(m.weights for m in stacks),
        "seconds": round(time.perf_counter() - started, 1),
    }


def pack_net(run: str, options: dict[str, Any], force: bool, out: Path, as_json: bool) -> None:
    """Pack the convolutional net of a run into the sparse format CHW; write it as a run."""
    values = options.pop("values") or "fp32"
    if some := {name: value for name, value in options.items() if value is not None}:
        fix = "Leave them out."
        raise ConfigError("--format chw", got=f"{sorted(some)}", want="no such options", fix=fix)
    if not (Path(run) / FILE).is_file():
        fix = "In Python: net = intarsia.compress(net, intarsia.sparse.Chw(), picture)"
        want = "a run of `intarsia fit` with a convolutional net"
        raise ConfigError(f"net {run!r}", got=describe_folder(Path(run)), want=want, fix=fix)
    from ..methods.fast_convnets import Chw
    from ..runs.packing import compress_run

    warn_of_rivals("picture", NETS, {"bits": 8 if values == "int8" else 32})
    report = compress_run(run, out, Chw(force=force, values=values), report=note)
    if as_json:
        show_json({"folder": str(out), **report})
        return
    # empty where nothing was timed
    times = report["milliseconds"]
    took = [f"{times['before']:.2f} ms -> {times['after']:.2f} ms a picture"] if times else []
    notes = [f"in torch as before: {', '.join(report['left'])}"] if report["left"] else []
    if accuracy := report.get("accuracy"):
        shares = f"accuracy {accuracy['before']:.1%} -> {accuracy['after']:.1%}"
        notes.append(f"{shares} on {accuracy['pictures']} pictures of {accuracy['part']}")
    say("\n".join([f"{len(report['layers'])} layers in CHW", *took, *notes, str(out)]))
    say(f"Next:  intarsia predict {shlex.quote(str(out))} PICTURES")


def warn_of_rivals(kind: str, format: str, settings: Mapping[str, Any]) -> None:
    """Warn before a format is written that was measured to be beaten, or to be of no use."""
    from ..formats.rivals import advice

    if line := advice(kind, format, settings.get("bits"), settings.get("density")):
        warn(line)


def chosen_format(name: str, options: dict[str, Any]) -> Any:
    """Return a format, or the settings of a method that packs layers on its own.

    name: of the format; options: settings by name, None = not given.
    Raises: UnknownName; ConfigError for a setting that it does not have.
    """
    from ..core.registry import card
    from ..sparse.swap.compress import Compress, format_named

    settings = {n: v for n, v in options.items() if v is not None}
    try:
        # Methods that calibrate and prune are built by their card; plain formats by name.
        if name in METHODS:
            return card(METHODS[name]).config(**settings)
        return Compress(format_named(name, **settings)).format
    # The constructor's own complaint names the setting that it does not have.
    except TypeError as error:
        want = f"settings that {name} has"
        fix = f"Leave out those that it does not have ({error})."
        raise ConfigError("--format", got=f"{name} with {settings}", want=want, fix=fix) from error


def _tensors(host: Any) -> list[Any]:
    """Return the parameters and buffers of a model, tied ones once."""
    # Tied weights are one tensor in memory: by address they count once.
    tensors = {t.data_ptr(): t for t in (*host.parameters(), *host.buffers())}
    return list(tensors.values())
