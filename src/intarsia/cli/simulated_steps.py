"""The page of `intarsia simulate`: traffic, loads, hit rates and the timeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.registry import unpredicted_policies

POLICIES = (*unpredicted_policies(), "belady")
SHARES = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0)  # of the experts in memory
DECODED = 512  # tokens of which hit rates are


def write_report(
    out: Path,
    batch: Any,
    links: Any,
    plan: str,
    devices_plan: Any,
    line: Any,
    *,
    placement: Path | None,
    size: tuple[int, int] | None,
    streams: int,
    backward: bool,
) -> Path:
    """Write the page of a simulated batch by a plan, beside plain expert parallelism.

    out: the page. batch: the routing of its tokens. links: the topology. plan: its name;
    devices_plan, line: the plan and its timeline. placement: file of experts' devices, None =
    experts in order. size: (width, hidden units) of an expert, None = as recorded. streams:
    sequences decoded at once. backward: the backward pass is included.
    """
    from ..placement.cost import device_loads
    from ..placement.engines import ExpertSize, expert_parallel
    from ..placement.placement import Placement
    from ..placement.timeline import simulate
    from ..reports.simulated import EXPERTS, IN_ORDER, PLACED, Simulated, write_page

    bytes_of_expert = ExpertSize.of(batch) if size is None else ExpertSize(*size)
    # The baseline of the page: plain expert parallelism with experts in order.
    plain = Placement.contiguous(batch.layers, batch.experts, links.devices)
    before = expert_parallel(batch, plain, bytes_of_expert, nodes=links.nodes(), backward=backward)
    load = batch.load()
    loads = {EXPERTS: load, IN_ORDER: device_loads(load, plain)}
    if placement is not None:
        loads[PLACED] = device_loads(load, Placement.load_file(placement))
    simulated = Simulated(
        plan,
        len(batch),
        before.bytes(),
        devices_plan.bytes(),
        line,
        simulate(before, links).seconds,
        loads,
        hit_rates(batch.rows(slice(DECODED)), streams),
    )
    return write_page(simulated, out)


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
