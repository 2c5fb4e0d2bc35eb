"""`intarsia compress`: a model with its layers stored packed."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import AssetError, ConfigError
from ..core.folders import describe_folder
from ..core.reading import check_regular
from ..core.schema import setting
from ..data.language_names import check_language_model
from ..runs.experiment import FILE
from .declared import option, with_options
from .early import FORMATS, check_calibration, check_word, numbers
from .options import Calibration, Json, Length, OutFolder, Seed, TextOptions, Threads, use_threads
from .shell import note, say, show_json, warn
from .targets import target

RECORD = "compress.json"
METHODS = {"gqsa": "gqsa", "qmoe": "qmoe", "ternary": "qmoe"}  # of layers, and of experts
NETS = "chw"  # of a convolutional net, whole
HEADS: dict[str, int | None] = {"int8": 8, "int4": 4, "same": None}  # bits of a head
GGUF = ".gguf"  # a file of llama.cpp
OF_GGUF = "blockint"  # the format that has GGUF's blocks


Model = Annotated[
    str,
    typer.Argument(
        help="Language model: smollm2, a folder of save_pretrained or a GGUF file; for chw a run."
    ),
]


@dataclass(frozen=True)
class PackingOptions:
    """The format of the layers, and the settings that some formats have."""

    format: str | None = setting(
        None,
        "Format of the layers: bitmask, columns, blockint, gqsa, ternary, chw, ...; if not given "
        "bitmask, and blockint of a GGUF file.",
        offers=FORMATS,
        test=lambda word: check_word("--format", word, FORMATS),
    )
    values: str | None = setting(
        None, "Type of the kept values: same, fp32, bf16 or, of bitmask and chw, int8."
    )
    density: float | None = setting(
        None,
        "Share of weights that is kept, for formats that prune.",
        least=0.001,
        most=1,
        fix="Try 0.5.",
    )
    bits: int | None = setting(
        None,
        "Bits of a weight, for formats that round; of a GGUF file those that are neither Q4_0 nor "
        "Q8_0.",
        least=1,
        most=8,
        fix="Try 4.",
    )
    steps: str | None = setting(
        None, "Steps of gqsa's tuning, for each block and for all scales; 0,0 = none."
    )
    shared: int | None = setting(
        None, "Neighbouring rows that keep the same groups, of gqsa: 1, 4 or 8.", choices=(1, 4, 8)
    )

    def given(self) -> dict[str, Any]:
        """Return the settings of the format; None for those that were not given."""
        settings = {"values": self.values, "density": self.density, "bits": self.bits}
        return settings | {"tuning": _tuning(self.steps), "rows": self.shared}


@dataclass(frozen=True)
class PackedParts:
    """Parts of a model that are packed, and whether a packing is forced or resumed."""

    head: str | None = setting(
        None,
        "Type of a language model's head: int8, int4 or same, as it is; int8 if not given, "
        "but same for a format that rounds nothing, and the codes of a GGUF file as they come.",
        choices=tuple(HEADS),
    )
    layers: tuple[str, ...] = setting(
        (), "Glob of the layers to pack, such as 'mlp.*'; may be repeated."
    )
    force: bool = setting(False, "Pack also where dense is faster here.")
    resume: bool = setting(False, "Go on with a gqsa or ternary packing that was stopped.")


@with_options()
def compress(
    model: Model,
    packing: PackingOptions,
    parts: PackedParts,
    calib: Calibration = "mixed",
    rows: Annotated[int, option(TextOptions, "rows", least=8, fix="Try 64.")] = 64,
    length: Length = 512,
    seed: Seed = 0,
    out: OutFolder = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Store a language model's linear layers in a compact format, and compute with it directly.

    Prune first (`intarsia sparsify`): a bitmask of a dense model saves nothing. Refused where this
    machine would be slower than with the model as it is. The head is stored in 8 bits, since a
    token reads all of it; --head. gqsa prunes groups of weights and stores
    the others in 4 bits; ternary packs the experts of a mixture; both read --calib, and keep
    finished blocks next to --out: killed at any moment, the same command with --resume ends in the
    same bits. Of a GGUF file (Llama, Qwen2, Qwen3, Phi-3) Q4_0 and Q8_0 keep their codes, and other
    matrices are rounded. The folder opens with `intarsia generate`, `intarsia bench sparse --model`
    and intarsia.load. chw takes a run of `intarsia fit` with a convolutional net, for one picture
    at a time, and writes a run, for `intarsia predict` and `evaluate`; with --values int8 in codes
    of 8 bits, with ranges that training pictures choose.

    Example:  intarsia compress pruned --format bitmask --values int8 --out fast
              intarsia compress smollm2 --format gqsa --density 0.5 --shared 8 --out small
              intarsia compress model-q4_0.gguf --out small
              intarsia compress runs/pruned --format chw --out fast
    """
    check_calibration(calib, rows)
    out, of_gguf = target(out, "fast"), model.lower().endswith(GGUF)
    format = packing.format or (OF_GGUF if of_gguf else "bitmask")
    use_threads(threads)
    # those that were not given are None, and stay the format's own
    settings, layers = packing.given(), list(parts.layers) or None
    if format == NETS:
        selected = settings | {"layers": layers, "head": parts.head, "resume": parts.resume or None}
        _net(model, selected, parts.force, out, as_json)
        return
    if of_gguf:
        check_gguf(model, format, parts)
        as_stored = settings["bits"], HEADS[parts.head] or "same" if parts.head else None
        chosen_format(format, settings)
        _finish(_packed_gguf(model, *as_stored, out), out, as_json)
        return
    check_language_model(model)
    options = {"layers": layers, "force": parts.force, "seed": seed, "resume": parts.resume}
    stored = chosen_format(format, settings)
    # a format asked for without a loss stays without one
    exact = getattr(stored, "exact", False)
    bits_of_head = HEADS[parts.head or ("same" if exact else "int8")]
    texts = calib, rows, length
    _finish(_packed(model, (stored, bits_of_head), texts, options, out, format), out, as_json)


def check_gguf(model: str, format: str, parts: PackedParts) -> None:
    """Check that a GGUF file is there, and that nothing is asked for that it cannot have.

    model: its path; format: of the layers; parts: the options of layers.
    Raises: AssetError for no file; ConfigError for another format, chosen layers or `--resume`.
    """
    path = Path(model)
    try:
        check_regular(path)
    except OSError as error:
        fix = "Copy its file there."
        raise AssetError(f"GGUF file {model!r}", got=error, want="a file", fix=fix) from error
    if not path.is_file():
        fix = "Check the path."
        raise AssetError(f"GGUF file {model!r}", got="no such file", want="a file", fix=fix)
    if format != OF_GGUF:
        want = f"{OF_GGUF}, which has GGUF's blocks"
        fix = "Leave --format out, or prune and pack a folder of save_pretrained."
        raise ConfigError("--format of a GGUF file", got=format, want=want, fix=fix)
    if parts.layers or parts.resume:
        got = "--layers" if parts.layers else "--resume"
        want, fix = "a whole file, in one go", "Leave it out."
        raise ConfigError("options of a GGUF file", got=got, want=want, fix=fix)


def _finish(record: dict[str, Any], out: Path, as_json: bool) -> None:
    """Print what was written."""
    if as_json:
        show_json({"folder": str(out), **record})
        return
    say(f"{_said(record)}\n{out}")
    say(f'Next:  intarsia generate {shlex.quote(str(out))} "Once"')


def _said(record: Mapping[str, Any]) -> str:
    """Return the summary to print: layers, head and embedding, bytes of a token and of the
    model.
    """
    before, after = (record["bytes"][moment] / 1e6 for moment in ("before", "after"))
    count = record["layers"] or record["stacks of experts"]
    parts = [f"{name} {record[name]}" for name in ("head", "embedding") if name in record]
    # of a mixture a token reads some of the experts
    if (read := record["bytes of a token"]) is not None:
        parts.append(f"a token reads {read / 1e6:.1f} MB")
    first = f"{count} layers as {record['format']}, {record['seconds']} s"
    return "\n".join([first, "; ".join(parts), f"{before:.1f} MB -> {after:.1f} MB"])


def _packed(
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
    if (Path(model) / "intarsia.json").is_file():  # a mixture of ours
        host, tokenizer = open_language_model(model)
    else:
        host, tokenizer = language_model(model, dtype="auto")
    if type(host).__name__ in ARCHITECTURES:  # llama.cpp knows it
        _warn_of_rivals("text", format, vars(stored))
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


def _packed_gguf(model: str, bits: int | None, head: int | str | None, out: Path) -> dict[str, Any]:
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
    """Return the counts and bytes of a packed model, and the seconds that it took.

    before: bytes of the model as it was; started: by `perf_counter`.
    """
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


def _net(run: str, options: dict[str, Any], force: bool, out: Path, as_json: bool) -> None:
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

    _warn_of_rivals("picture", NETS, {"bits": 8 if values == "int8" else 32})
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


def _warn_of_rivals(kind: str, format: str, settings: Mapping[str, Any]) -> None:
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


def _tuning(steps: str | None) -> dict[str, int] | None:
    """Parse --steps, "BLOCKS,MODEL", as the setting of Gqsa; None gives None."""
    if steps is None:
        return None
    counts = numbers("--steps", steps)
    if len(counts) != 2:
        want, fix = "two numbers, of each block and of all scales", "For example: --steps=300,100"
        raise ConfigError("--steps", got=repr(steps), want=want, fix=fix)
    return {"blocks": counts[0], "model": counts[1]}


def _tensors(host: Any) -> list[Any]:
    """Return the parameters and buffers of a model, tied ones once."""
    # Tied weights are one tensor in memory: by address they count once.
    tensors = {t.data_ptr(): t for t in (*host.parameters(), *host.buffers())}
    return list(tensors.values())
