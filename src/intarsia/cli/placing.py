"""`intarsia trace` and `place`: where tokens go, and where experts shall live."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.checks import at_least
from ..core.errors import ConfigError, UnknownName
from ..core.sealing import sealed_names
from ..data.corpora import is_text
from .completing import among
from .early import check_data
from .options import Json
from .shell import note, say, show_json, show_table
from .targets import target

RECORD = "placement.json"  # of a checkpoint in a placement's order
SEARCHES = ("eplb", "exflow", "joint_swaps-home", "joint_swaps-stay", "moetuner")
WORTH = (
    "imbalance: largest load of a device over the mean; cross: share of transitions that change\n"
    "the device; destinations: devices of a token's experts in a layer."
)

TraceFile = Annotated[Path, typer.Argument(help="A file that `intarsia trace` wrote.")]
Devices = Annotated[int | None, typer.Option(help="So many alike ones.")]
TopologyFile = Annotated[
    Path | None,
    typer.Option(
        "--topology",
        help="JSON of nodes, each, intra, inter, flops, load, memory, as "
        '{"nodes": 2, "each": 4, "intra": {"gbps": 300, "us": 2}}.',
    ),
]


def trace(
    model: Annotated[str, typer.Argument(help="A folder of save_pretrained with experts.")],
    text: Annotated[str, typer.Argument(help="A text: a corpus, or a file.")],
    save: Annotated[Path | None, typer.Option(help="The file to write.")] = None,
    rows: Annotated[int, typer.Option(help="Sequences.")] = 128,
    size: Annotated[int, typer.Option(help="Tokens of a sequence.")] = 128,
    as_json: Json = False,
) -> None:
    """Record which experts each token of a text has in every layer of a sparse model.

    The model says what it says without. The file has one byte for each choice.

    Example:  intarsia trace my-mixtral austen --save t.safetensors
    """
    check_data(text)
    if not is_text(text):
        want, fix = "a corpus, or a .txt, .md or .jsonl file", "For example: austen"
        raise ConfigError("TEXT", got=text, want=want, fix=fix)
    at_least("--rows", rows, 1)
    at_least("--size", size, 2)
    file = target(save, "t.safetensors", mark="intarsia trace")
    from ..data.language_models import language_model
    from ..data.texts import load_texts
    from ..hosts.tracing import trace as record
    from ..placement.describe import describe_layers

    host, tokenizer = language_model(model)
    texts = load_texts(text, tokenizer, length=size, train=rows, progress=note).train
    started = time.perf_counter()
    # One sequence at a time, so that a long text needs no more memory than a short one.
    routed = record(host, (texts[i] for i in range(len(texts))), progress=note)
    seconds = time.perf_counter() - started
    routed.save(file)
    summary = {"tokens": len(routed), "layers": routed.layers, "experts": routed.experts}
    summary |= {"active": routed.active, "tokens_per_second": len(routed) / seconds}
    rows_of = describe_layers(routed)
    if as_json:
        show_json({"file": str(file), **summary, "layer": rows_of})
        return
    show_table("", tuple(rows_of[0]), [tuple(map(_shown, r.values())) for r in rows_of])
    say(
        f"{len(routed)} tokens, {routed.layers} layers, "
        f"{routed.active} of {routed.experts} experts; "
        f"{len(routed) / seconds:.0f} tokens/s\n{file}"
    )


def place(
    trace: TraceFile,
    devices: Devices = None,
    topology: TopologyFile = None,
    by: Annotated[
        str, typer.Option(help=f"One of {', '.join(SEARCHES)}.", autocompletion=among(SEARCHES))
    ] = "moetuner",
    redundant: Annotated[int, typer.Option(help="Of eplb: places for copies, in all.")] = 0,
    save: Annotated[Path | None, typer.Option(help="The file to write.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A stock model, to be written with this placement.")
    ] = None,
    write: Annotated[Path | None, typer.Option(help="The folder for that model.")] = None,
    sglang: Annotated[
        Path | None, typer.Option(help="A JSON file for SGLang's --init-expert-location.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Place the experts of a trace on devices, and say what it is worth on text it did not see.

    Half of the sequences are searched, the other half judges. With --checkpoint and --write, the
    experts of a stock model are put into the order in which engines lay them out; copies need an
    engine that knows them.

    Example:  intarsia place t.safetensors --devices 8 --save p.json
    """
    if by not in SEARCHES:
        raise UnknownName("--by", by, SEARCHES)
    if redundant and by != "eplb":
        fix = "For example: --by eplb --redundant 8"
        raise ConfigError("--redundant", got=f"it with {by}", want="it with --by eplb", fix=fix)
    if (checkpoint is None) != (write is None):
        fix = "For example: --checkpoint my-mixtral --write placed"
        raise ConfigError("--write", got="one of the two", want="--checkpoint, too", fix=fix)
    file = target(save, "p.json", mark="intarsia placement")
    if write is not None:
        target(write, "placed", option="--write", written_names=sealed_names(write, RECORD))
    if sglang is not None:
        target(sglang, "location.json", option="--sglang", mark="physical_to_logical_map")
    from ..placement.searching import place as search
    from ..placement.trace import Trace

    routed, links = Trace.load_file(trace), topology_of(devices, topology)
    past, future = routed.split()
    placed = search(past, links, _search(by, redundant))
    record = _judged(by, placed, {"train": past, "held_out": future})
    placed.save(file, by=by, quality=record)
    if write is not None:
        from ..hosts.relabel import write_relabelled

        write_relabelled(str(checkpoint), write, placed)
    if sglang is not None:
        from ..core.files import write_json

        write_json(sglang, {"physical_to_logical_map": placed.places()}, indent=None)
    if as_json:
        show_json({"file": str(file), "by": by, "quality": record})
        return
    _show_quality(record)
    say("\n".join(str(path) for path in (file, write, sglang) if path is not None))


def _show_quality(qualities: dict[str, dict[str, dict[str, float]]]) -> None:
    cells = [
        (name, part, *(f"{value:.3f}" for value in values.values()))
        for name, parts in qualities.items()
        for part, values in parts.items()
    ]
    columns = ("placement", "sequences", "imbalance", "cross", "destinations")
    show_table("", columns, cells, right="imbalance,cross,destinations")
    say(WORTH)


def _judged(
    search: str, placed: Any, parts: dict[str, Any]
) -> dict[str, dict[str, dict[str, float]]]:
    """Measure a placement, and experts in order, on each part of a trace."""
    from ..placement.cost import quality
    from ..placement.placement import Placement

    placements = {search: placed}
    # Experts in order, the layout that engines have without any placement, if devices divide them.
    if placed.experts % placed.devices == 0:
        plain = Placement.contiguous(placed.layers, placed.experts, placed.devices)
        placements = {"contiguous": plain} | placements
    return {
        name: {part: dict(vars(quality(batch, placement))) for part, batch in parts.items()}
        for name, placement in placements.items()
    }


def topology_of(devices: int | None, file: Path | None) -> Any:
    # Alike devices by their number, or any others by a file, but one of both.
    if (devices is None) == (file is None):
        got = "neither" if file is None else "both"
        fix = "For example: --devices 8, or --topology a.json"
        raise ConfigError("--devices", got=got, want="it or --topology", fix=fix)
    from ..placement.topology import Topology

    if file is not None:
        return Topology.load_file(file)
    assert devices is not None
    return Topology.uniform(devices)


def _search(search: str, redundant: int) -> Any:
    from ..core.registry import card

    key, _, engine = search.partition("-")
    if engine:  # of joint_swaps: the one search with two engines
        return card(key).config(engine)
    # Only eplb knows copies of experts.
    return card(key).config(**({"redundant": redundant} if redundant else {}))


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
