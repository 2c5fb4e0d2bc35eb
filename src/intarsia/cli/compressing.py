"""`intarsia compress`: a model with its layers stored packed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import AssetError, ConfigError
from ..core.reading import check_regular
from ..core.schema import setting
from ..data.language_names import check_language_model
from .compress_steps import NETS, chosen_format, pack_gguf, pack_language_model, pack_net
from .declared import option, with_options
from .early import FORMATS, check_calibration, check_word, numbers
from .options import Calibration, Json, Length, OutFolder, Seed, TextOptions, Threads, use_threads
from .shell import say, show_json
from .targets import target

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
    token reads all of it; --head. blockint stores the experts of a mixture, too. gqsa prunes groups
    of weights and stores the others in 4 bits; ternary packs the experts of a mixture in about one
    bit; both read --calib, and keep finished blocks next to --out: killed at any moment, the same
    command with --resume ends in the same bits. A GGUF file's Q4_0 and Q8_0 (Llama, Qwen2, Qwen3,
    Phi-3) keep their codes, its other matrices are rounded. The folder opens with `intarsia
    generate`, `intarsia bench sparse --model` and intarsia.load. chw takes a run of `intarsia fit`
    with a convolutional net, for one picture at a time, and writes a run, for `intarsia predict`
    and `evaluate`; with --values int8 in codes of 8 bits, with ranges that training pictures
    choose.

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
        pack_net(model, selected, parts.force, out, as_json)
        return
    if of_gguf:
        check_gguf(model, format, parts)
        as_stored = settings["bits"], HEADS[parts.head] or "same" if parts.head else None
        chosen_format(format, settings)
        _finish(pack_gguf(model, *as_stored, out), out, as_json)
        return
    check_language_model(model)
    options = {"layers": layers, "force": parts.force, "seed": seed, "resume": parts.resume}
    stored = chosen_format(format, settings)
    # a format asked for without a loss stays without one
    exact = getattr(stored, "exact", False)
    bits_of_head = HEADS[parts.head or ("same" if exact else "int8")]
    texts = calib, rows, length
    _finish(
        pack_language_model(model, (stored, bits_of_head), texts, options, out, format),
        out,
        as_json,
    )


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
    say(f"{_summary_lines(record)}\n{out}")
    say(f'Next:  intarsia generate {shlex.quote(str(out))} "Once"')


def _summary_lines(record: Mapping[str, Any]) -> str:
    """Return the summary to print: layers, head, embedding, and bytes of a token and the model."""
    before, after = (record["bytes"][moment] / 1e6 for moment in ("before", "after"))
    counts = {"layers": record["layers"], "stacks of experts": record["stacks of experts"]}
    packed = " and ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    parts = [f"{name} {record[name]}" for name in ("head", "embedding") if name in record]
    # of a mixture a token reads some of the experts
    if (read := record["bytes of a token"]) is not None:
        parts.append(f"a token reads {read / 1e6:.1f} MB")
    first = f"{packed} as {record['format']}, {record['seconds']} s"
    return "\n".join([first, "; ".join(parts), f"{before:.1f} MB -> {after:.1f} MB"])


def _tuning(steps: str | None) -> dict[str, int] | None:
    """Parse --steps, "BLOCKS,MODEL", as the setting of Gqsa; None gives None."""
    if steps is None:
        return None
    counts = numbers("--steps", steps)
    if len(counts) != 2:
        want, fix = "two numbers, of each block and of all scales", "For example: --steps=300,100"
        raise ConfigError("--steps", got=repr(steps), want=want, fix=fix)
    return {"blocks": counts[0], "model": counts[1]}
