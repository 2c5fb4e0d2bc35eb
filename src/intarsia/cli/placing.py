"""`intarsia trace` and `place`: where tokens go, and where experts shall live."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import ConfigError
from ..core.registry import keys
from ..core.schema import setting
from ..core.sealing import sealed_names
from ..data.corpora import is_text
from ..data.language_names import check_language_model
from ..placement.topology_file import read_topology
from ..placement.trace_file import read_metadata
from .declared import option, with_options
from .devices import language_model_on, rows_on
from .early import check_data, check_file
from .options import (
    Device,
    Json,
    Length,
    OutFile,
    Seed,
    SparseModel,
    TextOptions,
    Threads,
    use_threads,
)
from .shell import note, say, show_json, show_table
from .targets import target

RECORD = "placement.json"  # of a checkpoint in a placement's order
ENGINES = {"joint_swaps": ("joint_swaps-home", "joint_swaps-stay")}
SEARCHES = tuple(name for key in keys("placement") for name in ENGINES.get(key, (key,)))
WORTH = (
    "imbalance: largest load of a device over the mean; cross: share of transitions that change\n"
    "the device; destinations: devices of a token's experts in a layer."
)

TraceFile = Annotated[Path, typer.Argument(help="A file that `intarsia trace` wrote.")]


@dataclass(frozen=True)
class DeviceOptions:
    """The devices that experts are placed on."""

    devices: int | None = setting(None, "Number of devices, all alike.", least=1, fix="Try 8.")
    topology: Path | None = setting(
        None,
        "JSON file of nodes, each, intra, inter, flops, load, memory, as "
        '{"nodes": 2, "each": 4, "intra": {"gbps": 300, "us": 2}}.',
    )

    def check(self) -> None:
        """Check that devices are given by their number, or by a file that is there.

        Raises: ConfigError unless exactly one of both is given.
        """
        # Alike devices by their number, or any others by a file, but one of both.
        if (self.devices is None) == (self.topology is None):
            got = "neither" if self.topology is None else "both"
            fix = "For example: --devices 8, or --topology a.json"
            raise ConfigError("--devices", got=got, want="it or --topology", fix=fix)
        check_file("--topology", self.topology)
        if self.topology is not None:
            read_topology(self.topology)

    def read(self) -> Any:
        """Return the topology of equal devices, or of a file, which were checked."""
        from ..placement.topology import Topology

        if self.topology is not None:
            return Topology.load_file(self.topology)
        assert self.devices is not None
        return Topology.uniform(self.devices)


def trace(
    model: SparseModel,
    text: Annotated[str, typer.Argument(help="Text that is read: a corpus, or a file.")],
    out: OutFile = None,
    rows: Annotated[int, option(TextOptions, "rows", help="Rows of text.")] = 128,
    length: Length = 128,
    seed: Seed = 0,
    device: Device = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Record the experts that a sparse model chooses for each token of a text, in every layer.

    Recording does not change the model's output. The file has one byte for each choice.

    Example:  intarsia trace my-mixtral austen --out t.safetensors
    """
    check_data(text)
    if not is_text(text):
        want, fix = "a corpus, or a .txt, .md or .jsonl file", "For example: austen"
        raise ConfigError("TEXT", got=text, want=want, fix=fix)
    file = target(out, "t.safetensors", mark="intarsia trace")
    check_language_model(model)
    use_threads(threads)
    from ..data.texts import load_texts
    from ..hosts.tracing import trace as record
    from ..placement.describe import describe_layers

    host, tokenizer = language_model_on(model, device)
    counts = {"length": length, "train": rows, "seed": seed}
    texts = load_texts(text, tokenizer, progress=note, **counts).train
    started = time.perf_counter()
    # One sequence at a time, so that a long text needs no more memory than a short one.
    routed = record(host, rows_on(texts, host.device), progress=note)
    seconds = time.perf_counter() - started
    routed.save(file)
    # the same figures for people and for --json
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


@dataclass(frozen=True)
class Placing:
    """The search for a placement, and what else is written of it."""

    by: str = setting("moetuner", "Method that places.", choices=SEARCHES)
    redundant: int = setting(0, "Places for copies of experts in all, for eplb.", least=0)
    checkpoint: Path | None = setting(
        None, "Stock model whose experts are put into the order of the placement."
    )
    write: Path | None = setting(None, "The folder to write that model to.")
    sglang: Path | None = setting(
        None, "The JSON file to write for SGLang's --init-expert-location."
    )


@with_options()
def place(
    trace: TraceFile,
    devices: DeviceOptions,
    placing: Placing,
    out: OutFile = None,
    as_json: Json = False,
) -> None:
    """Assign the experts of a trace to devices, and judge the placement on held-out text.

    Half of the sequences are searched, the other half judges. With --checkpoint and --write, the
    experts of a stock model are put into the order in which engines lay them out; copies need an
    engine that knows them.

    Example:  intarsia place t.safetensors --devices 8 --out p.json
    """
    method, redundant = placing.by, placing.redundant
    checkpoint, write, sglang = placing.checkpoint, placing.write, placing.sglang
    if redundant and method != "eplb":
        fix = "For example: --by eplb --redundant 8"
        raise ConfigError("--redundant", got=f"it with {method}", want="it with --by eplb", fix=fix)
    if (checkpoint is None) != (write is None):
        fix = "For example: --checkpoint my-mixtral --write placed"
        raise ConfigError("--write", got="one of the two", want="--checkpoint, too", fix=fix)
    file = target(out, "p.json", mark="intarsia placement")
    if write is not None:
        target(write, "placed", option="--write", written_names=sealed_names(write, RECORD))
    if sglang is not None:
        target(sglang, "location.json", option="--sglang", mark="physical_to_logical_map")
    read_metadata(trace)
    devices.check()
    from ..placement.searching import place as search
    from ..placement.trace import Trace

    routed, links = Trace.load_file(trace), devices.read()
    # judged on sequences that the search has not seen
    past, future = routed.split()
    placed = search(past, links, _search(method, redundant))
    record = _judged(method, placed, {"train": past, "held_out": future})
    placed.save(file, by=method, quality=record)
    if write is not None:
        from ..sparse.swap.relabel import write_relabelled

        write_relabelled(str(checkpoint), write, placed)
    if sglang is not None:
        from ..core.files import write_json

        write_json(sglang, {"physical_to_logical_map": placed.places()}, indent=None)
    if as_json:
        show_json({"file": str(file), "by": method, "quality": record})
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
    """Measure a placement of experts on devices, and experts in order, on each part of a trace."""
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


def _search(search: str, redundant: int) -> Any:
    from ..core.registry import card

    key, _, engine = search.partition("-")
    if engine:  # of joint_swaps: the one search with two engines
        return card(key).config(engine)
    # Only eplb knows copies of experts.
    return card(key).config(**({"redundant": redundant} if redundant else {}))


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
