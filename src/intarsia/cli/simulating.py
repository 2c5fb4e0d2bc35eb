"""`intarsia simulate` and `pack`: what a placement takes, and experts on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.checks import at_least
from ..core.errors import ConfigError, UnknownName
from .completing import among
from .options import Json
from .placing import Devices, TopologyFile, TraceFile, topology_of
from .shell import note, say, show_json
from .targets import page_target, target

ENGINES = {"ep": "home", "stay": "stay"}  # plans that know of placements
STRATEGIES = ("deepspeed", "fssdp", "semoe", "tutel")
PLANS = ("auto", *ENGINES, *STRATEGIES)
TIMELINE = '{"otherData": {"by": "intarsia"}'  # where a file of --save begins
WINDOW = 5  # batches that a strategy may have seen before
POLICIES = ("belady", "expected", "expertflow", "lfu", "lru")


def simulate(
    trace: TraceFile,
    devices: Devices = None,
    topology: TopologyFile = None,
    plan: Annotated[
        str,
        typer.Option(
            help=f"One of {', '.join(PLANS)}; auto compares them.", autocompletion=among(PLANS)
        ),
    ] = "ep",
    placement: Annotated[
        Path | None, typer.Option(help="Of `intarsia place`; experts in order if not given.")
    ] = None,
    expert: Annotated[
        str | None, typer.Option(help="d x h, as 4096x14336; the trace's own if not given.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Of one batch, from the trace's first.")] = 4096,
    slots: Annotated[
        int | None, typer.Option(help="Also: a cache of so many experts while decoding.")
    ] = None,
    policy: Annotated[
        str,
        typer.Option(help=f"Of the cache: {', '.join(POLICIES)}.", autocompletion=among(POLICIES)),
    ] = "expected",
    streams: Annotated[int, typer.Option(help="Sequences that are decoded at once.")] = 1,
    backward: Annotated[bool, typer.Option("--backward", help="With the gradients.")] = False,
    save: Annotated[
        Path | None, typer.Option(help="A timeline for Perfetto or chrome://tracing.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="A page to write: traffic, loads, hit rates, the timeline."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say how long a batch takes on devices, what binds, and whether moving experts would pay.

    A model of time, not a measurement: products at the device's full rate, links at theirs.

    Example:  intarsia simulate t.safetensors --topology a.json --plan ep --save timeline.json
    Example:  intarsia simulate t.safetensors --devices 8 --placement p.json --report page.html
    """
    _check(plan, policy, tokens, streams, slots, placement)
    _hold(save, report)
    from ..placement.trace import Trace

    whole, links = Trace.load_file(trace), topology_of(devices, topology)
    if plan in ENGINES:
        found = whole.rows(slice(tokens))
        told, line, made = _simulated(found, links, ENGINES[plan], placement, expert, backward)
    else:
        told, line, made = _best(whole, links, plan, tokens, expert, backward)
    if slots is not None:
        told |= _decoded(whole, slots, policy, streams, told["expert_bytes"], links)
    of = whole.rows(slice(tokens)), links, told.get("plan", plan), made, line
    _written(save, report, of, placement, expert, streams, backward)
    if as_json:
        show_json(told)
        return
    _show_simulated(told)
    if slots is not None:
        _show_decoded(told, slots, policy, streams)
    for file in filter(None, (save, report)):
        say(str(file))


def _hold(save: Path | None, report: Path | None) -> None:
    """Check the timeline and the page, and keep other processes from them."""
    if save is not None:
        target(save, "timeline.json", mark=TIMELINE)
    page_target(report, "--report")


def _written(
    save: Path | None,
    report: Path | None,
    of: tuple[Any, ...],
    placement: Path | None,
    expert: str | None,
    streams: int,
    backward: bool,
) -> None:
    """The timeline and the page.  of: batch, topology, the plan's name, the plan, its timeline."""
    if save is not None:
        from ..core.files import write_text

        write_text(save, of[-1].chrome())
    if report is not None:
        from .simulated_steps import write_report

        size = None if expert is None else _size(expert)
        write_report(
            report, *of, placement=placement, size=size, streams=streams, backward=backward
        )


def _show_decoded(told: dict[str, Any], slots: int, policy: str, streams: int) -> None:
    from ..results.numbers import prefixed

    say(
        f"Decoding {streams} at once with {slots} experts in memory, {policy}: hit rate "
        f"{told['hit_rate']:.3f}, {prefixed(told['bytes_a_step'], 'B')} a step, which take "
        f"{prefixed(told['floor_seconds'], 's')} at least"
    )


def _check(
    plan: str, policy: str, tokens: int, streams: int, slots: int | None, placement: Path | None
) -> None:
    if plan not in PLANS:
        raise UnknownName("--plan", plan, PLANS)
    if policy not in POLICIES:
        raise UnknownName("--policy", policy, POLICIES)
    at_least("--tokens", tokens, 1)
    at_least("--streams", streams, 1)
    if slots is not None:
        at_least("--slots", slots, 2, "One is computed while another comes in: give 2 or more.")
    if placement is not None and plan not in ENGINES:
        fix = "Leave --placement out, or use --plan ep or stay."
        raise ConfigError("--placement", got=f"--plan {plan}", want="ep or stay", fix=fix)


def _best(
    whole: Any, links: Any, plan: str, tokens: int, expert: str | None, backward: bool
) -> tuple[dict[str, Any], Any, Any]:
    """A strategy, or the one with the least time; of the batch after those that it has seen."""
    from ..core.registry import card
    from ..parallel.tutel import Tutel
    from ..placement.engines import ExpertSize
    from ..placement.timeline import simulate as run

    seen = min(WINDOW, max(0, len(whole) // tokens - 1))
    batches = [whole.rows(slice(at * tokens, (at + 1) * tokens)) for at in range(seen + 1)]
    past, batch = [of.load() for of in batches[:-1]], batches[-1]
    size = ExpertSize.of(batch) if expert is None else ExpertSize(*_size(expert))
    lines: dict[str, tuple[Any, Any]] = {}
    for name in ("ep", *STRATEGIES) if plan == "auto" else (plan,):
        strategy: Any = card(name).config()
        if name == "tutel":
            strategy = Tutel.tuned(batch, size, links)
        made = strategy.plan(batch, size, links, backward=backward, past=past)
        lines[name] = made, run(made, links)
    best = min(lines, key=lambda name: lines[name][1].seconds)
    made, line = lines[best]
    every = {name: of.seconds for name, (_, of) in lines.items()}
    return _told(made, line, batch, size, links) | {"plan": best, "plans": every}, line, made


def _show_simulated(told: dict[str, Any]) -> None:
    from ..results.numbers import prefixed

    for name, seconds in told.get("plans", {}).items():
        least = "  <- least" if name == told["plan"] else ""
        say(f"{name:10} {prefixed(seconds, 's'):>10}{least}")
    binds = ", ".join(f"{name} {prefixed(value, 's')}" for name, value in told["binds"].items())
    took = f"{prefixed(told['seconds'], 's')}, of which {binds} (simulated)"
    say(f"{told['tokens']} tokens: {took}")
    say(f"{prefixed(told['link_bytes'], 'B')} between devices")
    say(
        f"An expert has {prefixed(told['expert_bytes'], 'B')}. Loading one hides behind its own "
        f"product from {told['rows_to_hide_a_load']:.0f} rows on."
    )


def _decoded(
    trace: Any, slots: int, policy: str, streams: int, size: int, links: Any
) -> dict[str, Any]:
    """What a cache would do while the trace's sequences are decoded, from an empty start."""
    from ..core.registry import card
    from ..placement.cache import replay
    from ..placement.describe import demand
    from ..placement.expertflow import TokenTable, foreseen
    from ..placement.policies import Belady

    if policy == "expertflow":  # learned from one half, judged on the other
        learned, trace = trace.split()
    steps = demand(trace, streams)
    sizes = trace.layers, trace.experts
    told = foreseen(trace, TokenTable.of(learned), streams) if policy == "expertflow" else ()
    of = Belady(*sizes, steps) if policy == "belady" else card(policy).config().build(*sizes)
    found = replay(steps, of, slots, expert_bytes=size, foreseen=told)
    each = found.bytes / len(steps)
    return {
        "hit_rate": found.rate,
        "bytes_a_step": each,
        "floor_seconds": each / float(links.load[0]),
    }


def pack(
    model: Annotated[Path, typer.Argument(help="A folder of save_pretrained with experts.")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
) -> None:
    """Write a sparse model's experts as records that `intarsia.offload` reads one by one.

    Needs the memory of one expert beside the other weights, however many experts there are.

    Example:  intarsia pack my-mixtral my-mixtral-experts
    """
    if not model.is_dir():
        fix = "Give the folder that holds config.json and *.safetensors."
        raise ConfigError(f"folder {str(model)!r}", got="nothing there", want="a folder", fix=fix)
    target(out, "my-mixtral-experts", option="OUT")
    from ..hosts.offload.store import ExpertStore, pack_experts
    from ..results.numbers import prefixed

    found = ExpertStore(pack_experts(model, out, progress=note))
    count = sum(len(layer["sha256"]) for layer in found.layers)
    size = found.bytes
    found.close()
    say(f"{count} experts of {prefixed(size, 'B')} each\n{out}")
    say(f"Next:  intarsia.offload({str(out)!r}, slots={max(2, count // 4)})")


def _simulated(
    found: Any, links: Any, engine: str, file: Path | None, expert: str | None, backward: bool
) -> tuple[dict[str, Any], Any, Any]:
    """What is told of a batch, and its timeline."""
    from ..placement.engines import ExpertSize, expert_parallel
    from ..placement.placement import Placement
    from ..placement.timeline import simulate as run

    size = ExpertSize.of(found) if expert is None else ExpertSize(*_size(expert))
    if file is None:
        placed = Placement.contiguous(found.layers, found.experts, links.devices)
    else:
        placed = Placement.load_file(file)
    nodes = links.nodes()
    made = expert_parallel(found, placed, size, engine=engine, nodes=nodes, backward=backward)
    line = run(made, links)
    return _told(made, line, found, size, links), line, made


def _told(made: Any, line: Any, batch: Any, size: Any, links: Any) -> dict[str, Any]:
    """What is said of a plan."""
    from ..placement.timeline import rows_to_hide

    return {
        "seconds": line.seconds,
        "binds": dict(line.binds()),
        "link_bytes": int(made.bytes().sum()),
        "tokens": len(batch),
        "rows_to_hide_a_load": rows_to_hide(size.item, links),
        "expert_bytes": size.weights,
    }


def _size(text: str) -> tuple[int, int]:
    """ "4096x14336" as two numbers.  Raises: ConfigError."""
    width, _, hidden = text.partition("x")
    if not (width.isdecimal() and hidden.isdecimal()):
        want, fix = "width x hidden units", "For example: --expert 4096x14336"
        raise ConfigError("--expert", got=repr(text), want=want, fix=fix)
    return int(width), int(hidden)
