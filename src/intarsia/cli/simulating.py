"""`intarsia simulate`: the time that a batch takes on devices by a placement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..core.errors import ConfigError
from ..core.registry import keys
from ..core.schema import setting
from ..placement.trace_file import read_metadata
from .declared import with_options
from .options import Json, writes
from .placing import DeviceOptions, TraceFile
from .shell import say, show_json
from .targets import page_target, target

if TYPE_CHECKING:
    from ..reports.simulated import Simulated

ENGINES = {"ep": "home", "stay": "stay"}  # plans that know of placements
STRATEGIES = tuple(key for key in keys("parallel") if key not in ENGINES)
PLANS = ("auto", *ENGINES, *STRATEGIES)
TIMELINE = '{"otherData": {"by": "intarsia"}'  # where a timeline begins
POLICIES = ("belady", *keys("cache"))


@dataclass(frozen=True)
class Simulating:
    """The batch, the plan of the devices, and the cache that is simulated."""

    plan: str = setting("ep", "Plan of the devices; auto compares them.", choices=PLANS)
    placement: Path | None = setting(
        None, "Placement of `intarsia place`; experts in order if not given."
    )
    expert: str | None = setting(
        None, "Size of an expert, d x h, such as 4096x14336; the trace's own if not given."
    )
    tokens: int = setting(4096, "Tokens of one batch, from the trace's first.", least=1)
    slots: int | None = setting(
        None,
        "Experts in a cache while decoding, which is then simulated, too.",
        least=2,
        fix="One is computed while another comes in: give 2 or more.",
    )
    policy: str = setting("expected", "Policy of the cache.", choices=POLICIES)
    streams: int = setting(1, "Sequences that are decoded at once.", least=1)
    backward: bool = setting(False, "Add the backward pass.")


Out = Annotated[
    list[Path] | None,
    writes(
        "The file to write: a timeline for Perfetto or chrome://tracing (.json), or a page of "
        "traffic, loads, hit rates and the timeline (.html); may be repeated."
    ),
]


@with_options()
def simulate(
    trace: TraceFile,
    devices: DeviceOptions,
    request: Simulating,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Simulate a batch on several devices: its time, its bottleneck, and if a placement helps.

    A model of time, not a measurement: products at the device's full rate, links at theirs.

    Example:  intarsia simulate t.safetensors --topology a.json --plan ep --out timeline.json
    Example:  intarsia simulate t.safetensors --devices 8 --placement p.json --out page.html
    """
    plan, placement, tokens = request.plan, request.placement, request.tokens
    slots, policy, streams, backward = (
        request.slots,
        request.policy,
        request.streams,
        request.backward,
    )
    if placement is not None and plan not in ENGINES:
        fix = "Leave --placement out, or use --plan ep or stay."
        raise ConfigError("--placement", got=f"--plan {plan}", want="ep or stay", fix=fix)
    # the two files of --out, by their endings; both are locked until the command ends
    timeline, page = _hold(out or [])
    read_metadata(trace)
    devices.check()
    size = None if request.expert is None else _size(request.expert)
    from ..placement.trace import Trace
    from .simulated_steps import beside_order, by_placement, fastest, record_of

    routed, links = Trace.load_file(trace), devices.read()
    if plan in ENGINES:
        engine = plan, ENGINES[plan]
        planned = by_placement(routed, links, engine, tokens, placement, size, backward)
    else:
        plans = ("ep", *STRATEGIES) if plan == "auto" else (plan,)
        planned = fastest(routed, links, plans, tokens, size, backward)
    # next to the same batch with the experts in order, which is what a plan has to beat
    simulated = beside_order(planned, links, placement, backward)
    record = record_of(planned, simulated, links)
    if slots is not None:
        record |= _decoded(routed, slots, policy, streams, record["expert_bytes"], links)
    _write(timeline, page, planned.batch, simulated, streams)
    if as_json:
        show_json(record)
        return
    _show_simulated(record, simulated)
    if slots is not None:
        _show_decoded(record, slots, policy, streams)
    for file in out or []:
        say(str(file))


def _hold(files: Sequence[Path]) -> tuple[Path | None, Path | None]:
    """Return the timeline (.json) and the page (.html) to write, locked until the command ends."""
    by_suffix = {file.suffix.lower(): file for file in files}
    if by_suffix.keys() - {".json", ".html"} or len(by_suffix) < len(files):
        got, want = ", ".join(map(str, files)), "one .json, one .html, or one of both"
        fix = "For example: --out timeline.json --out page.html"
        raise ConfigError("--out", got=got, want=want, fix=fix)
    timeline, page = by_suffix.get(".json"), by_suffix.get(".html")
    if timeline is not None:
        target(timeline, "timeline.json", mark=TIMELINE)
    page_target(page)
    return timeline, page


def _write(
    timeline: Path | None, page: Path | None, batch: Any, simulated: Simulated, streams: int
) -> None:
    """Write the timeline and the page of a simulation, where their files are named."""
    if timeline is not None:
        from ..core.files import write_text

        write_text(timeline, simulated.line.chrome())
    if page is not None:
        from ..reports.simulated import write_page
        from .simulated_steps import DECODED, hit_rates

        hits = hit_rates(batch.rows(slice(DECODED)), streams)
        write_page(replace(simulated, hits=hits), page)


def _show_decoded(record: dict[str, Any], slots: int, policy: str, streams: int) -> None:
    """Print hit rate and bytes of a step of decoding; record: with what `_decoded` returned."""
    from ..reports.numbers import prefixed

    say(
        f"Decoding {streams} at once with {slots} experts in memory, {policy}: hit rate "
        f"{record['hit_rate']:.3f}, {prefixed(record['bytes_a_step'], 'B')} a step, which take "
        f"{prefixed(record['floor_seconds'], 's')} at least"
    )


def _show_simulated(record: dict[str, Any], simulated: Simulated) -> None:
    """Print the times of all plans, if the best one helps, and what limits it."""
    from ..reports.numbers import prefixed
    from ..reports.simulated import NOTICE, sentences_of

    for name, seconds in record.get("plans", {}).items():
        least = "  <- least" if name == record["plan"] else ""
        say(f"{name:10} {prefixed(seconds, 's'):>10}{least}")
    for sentence in sentences_of(simulated):
        say(sentence)
    say(
        f"An expert has {prefixed(record['expert_bytes'], 'B')}. Loading one hides behind its own "
        f"product from {record['rows_to_hide_a_load']:,.0f} rows on."
    )
    say(NOTICE)


def _decoded(
    trace: Any, slots: int, policy: str, streams: int, size: int, links: Any
) -> dict[str, Any]:
    """Simulate a cache of `slots` experts, `size` bytes each, while `streams` texts are decoded."""
    # trace: the experts of each token; policy: which one leaves the cache; links: the topology
    from ..core.registry import card
    from ..placement.cache import replay
    from ..placement.describe import demand
    from ..placement.expertflow import TokenTable, predicted_steps
    from ..placement.policies import Belady

    foreseen_experts: Any = ()
    # Expertflow learns to predict from one half of the sequences, and is judged on the other.
    if policy == "expertflow":
        learned, trace = trace.split()
        foreseen_experts = predicted_steps(trace, TokenTable.of(learned), streams)
    steps = demand(trace, streams)
    sizes = trace.layers, trace.experts
    # Belady is given the future, as a limit for all other policies; they see a step as it comes.
    cache = Belady(*sizes, steps) if policy == "belady" else card(policy).config().build(*sizes)
    replayed = replay(steps, cache, slots, expert_bytes=size, foreseen=foreseen_experts)
    bytes_a_step = replayed.bytes / len(steps)
    return {
        "hit_rate": replayed.rate,
        "bytes_a_step": bytes_a_step,
        "floor_seconds": bytes_a_step / float(links.load[0]),
    }


def _size(text: str) -> tuple[int, int]:
    """Parse an expert's size, such as "4096x14336", as two numbers.  Raises: ConfigError."""
    width, _, hidden = text.partition("x")
    if not (width.isdecimal() and hidden.isdecimal()):
        want, fix = "width x hidden units", "For example: --expert 4096x14336"
        raise ConfigError("--expert", got=repr(text), want=want, fix=fix)
    return int(width), int(hidden)
