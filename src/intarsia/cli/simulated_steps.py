"""Steps of `intarsia simulate`: a batch by a plan, next to experts in order, and hit rates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.registry import unpredicted_policies

if TYPE_CHECKING:
    from ..placement.engines import ExpertSize
    from ..placement.plan import DevicePlan
    from ..placement.timeline import Timeline
    from ..placement.topology import Topology
    from ..placement.trace import Trace
    from ..reports.simulated import Simulated

POLICIES = (*unpredicted_policies(), "belady")
SHARES = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0)  # of the experts in memory
DECODED = 512  # tokens that hit rates are measured on
WINDOW = 5  # batches that a strategy may have seen before


class Planned(NamedTuple):
    """A batch by a plan.

    plan: its name; batch: the routing of its tokens; size: of an expert; steps, line: what devices
    do, and when; seconds: of each plan that was tried, by its name.
    """

    plan: str
    batch: Trace
    size: ExpertSize
    steps: DevicePlan
    line: Timeline
    seconds: Mapping[str, float]


def by_placement(
    routed: Trace,
    links: Topology,
    plan: tuple[str, str],
    tokens: int,
    placement: Path | None,
    size: tuple[int, int] | None,
    backward: bool,
) -> Planned:
    """Simulate a batch by a placement file.

    routed: the trace; links: the topology; plan: its name, and "home" or "stay", where results go;
    tokens: of the batch; placement: file of experts' devices, None = in order; size: (width, hidden
    units) of an expert, None = as recorded; backward: add the backward pass.
    """
    from ..placement.engines import expert_parallel
    from ..placement.placement import Placement
    from ..placement.timeline import simulate

    batch = routed.rows(slice(tokens))
    in_order = Placement.contiguous(batch.layers, batch.experts, links.devices)
    placed = in_order if placement is None else Placement.load_file(placement)
    name, engine = plan
    bytes_of_expert = _size(batch, size)
    steps = expert_parallel(
        batch, placed, bytes_of_expert, engine=engine, nodes=links.nodes(), backward=backward
    )
    return Planned(name, batch, bytes_of_expert, steps, simulate(steps, links), {})


def fastest(
    routed: Trace,
    links: Topology,
    plans: tuple[str, ...],
    tokens: int,
    size: tuple[int, int] | None,
    backward: bool,
) -> Planned:
    """Simulate a batch by several plans and return the fastest.

    routed: the trace; links: the topology; plans: their names; tokens: of the batch; size: (width,
    hidden units) of an expert, None = as recorded; backward: add the backward pass.
    """
    from ..core.registry import card
    from ..parallel.tutel import Tutel
    from ..placement.timeline import simulate

    # Strategies that go by past loads get the batches before; the last batch is the one timed.
    batches_before = min(WINDOW, max(0, len(routed) // tokens - 1))
    batches = [routed.rows(slice(i * tokens, (i + 1) * tokens)) for i in range(batches_before + 1)]
    past, batch = [earlier.load() for earlier in batches[:-1]], batches[-1]
    bytes_of_expert = _size(batch, size)
    simulated: dict[str, tuple[DevicePlan, Timeline]] = {}
    for name in plans:
        strategy: Any = card(name).config()
        # Tutel's degree and chunks depend on the batch; its defaults would not do it justice.
        if name == "tutel":
            strategy = Tutel.tuned(batch, bytes_of_expert, links)
        steps = strategy.plan(batch, bytes_of_expert, links, backward=backward, past=past)
        simulated[name] = steps, simulate(steps, links)
    best = min(simulated, key=lambda name: simulated[name][1].seconds)
    seconds = {name: line.seconds for name, (_, line) in simulated.items()}
    return Planned(best, batch, bytes_of_expert, *simulated[best], seconds)


def _size(batch: Trace, size: tuple[int, int] | None) -> ExpertSize:
    from ..placement.engines import ExpertSize

    return ExpertSize.of(batch) if size is None else ExpertSize(*size)


def beside_order(
    planned: Planned, links: Topology, placement: Path | None, backward: bool
) -> Simulated:
    """Return a batch by a plan next to the same batch by plain expert parallelism, in order.

    links, placement, backward: as of `by_placement`.
    """
    from ..placement.cost import device_loads
    from ..placement.engines import expert_parallel
    from ..placement.placement import Placement
    from ..placement.timeline import simulate
    from ..reports.simulated import EXPERTS, IN_ORDER, PLACED, Simulated

    batch = planned.batch
    in_order = Placement.contiguous(batch.layers, batch.experts, links.devices)
    before = expert_parallel(batch, in_order, planned.size, nodes=links.nodes(), backward=backward)
    load = batch.load()
    loads = {EXPERTS: load, IN_ORDER: device_loads(load, in_order)}
    if placement is not None:
        loads[PLACED] = device_loads(load, Placement.load_file(placement))
    return Simulated(
        planned.plan,
        len(batch),
        before.bytes(),
        planned.steps.bytes(),
        planned.line,
        simulate(before, links).seconds,
        loads,
    )


def record_of(planned: Planned, simulated: Simulated, links: Topology) -> dict[str, Any]:
    """Return a batch's figures for JSON, next to experts in order.  links: the topology."""
    from ..placement.timeline import rows_to_hide

    record = {
        "plan": planned.plan,
        "seconds": planned.line.seconds,
        "binds": dict(planned.line.binds()),
        "link_bytes": int(simulated.after.sum()),
        "in_order": {
            "seconds": simulated.before_seconds,
            "link_bytes": int(simulated.before.sum()),
        },
        "tokens": len(planned.batch),
        "rows_to_hide_a_load": rows_to_hide(planned.size.item, links),
        "expert_bytes": planned.size.weights,
    }
    return record | ({"plans": dict(planned.seconds)} if planned.seconds else {})


def hit_rates(trace: Any, streams: int) -> dict[str, list[tuple[float, float]]]:
    """Simulate a cache of experts at several sizes, with every policy of what leaves the cache.

    trace: the experts of each token in each layer. streams: how many sequences are decoded at once:
    their experts are needed in the same step. Returns policy -> [(share of experts in memory, hit
    rate)].
    """
    from ..core.registry import card
    from ..placement.cache import replay
    from ..placement.describe import demand
    from ..placement.policies import Belady

    steps, sizes = demand(trace, streams), (trace.layers, trace.experts)
    experts = trace.layers * trace.experts
    rates: dict[str, list[tuple[float, float]]] = {}
    for name in POLICIES:
        points: list[tuple[float, float]] = []
        for share in SHARES:
            # Two at least: one expert is computed while the next is loaded.
            slots = max(2, round(share * experts))
            # Belady knows the future, which gives the best rate that any policy can reach.
            policy = (
                Belady(*sizes, steps) if name == "belady" else card(name).config().build(*sizes)
            )
            # the share that the rounded number of slots really is
            points.append((slots / experts, replay(steps, policy, slots).rate))
        rates[name] = points
    return rates
