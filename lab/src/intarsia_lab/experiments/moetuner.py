"""MoETuner: what a placement is worth on text that it was not made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from intarsia.placement.balance import JointSwaps
from intarsia.placement.cost import Quality, quality
from intarsia.placement.engines import ExpertSize, expert_parallel
from intarsia.placement.eplb import Eplb
from intarsia.placement.exflow import ExFlow
from intarsia.placement.moetuner import MoeTuner
from intarsia.placement.placement import Placement
from intarsia.placement.timeline import simulate
from intarsia.placement.topology import Topology
from intarsia.placement.trace import Trace

from ..kit import Effect, Report, Result, Study
from ..kit.arms import result_of, shown
from ..materials.routing_traces import traces

# four experts of sixteen on each
DEVICES = 4
LINKS = Topology.uniform(DEVICES)
SEARCHES: Mapping[str, Any] = {
    "MoETuner's programmes": MoeTuner(),
    "joint swaps, stay": JointSwaps("stay"),
    "joint swaps, home": JointSwaps("home"),
    "EPLB, no copies": Eplb(),
    "EPLB, 4 copies": Eplb(4),
    "ExFlow": ExFlow(),
}
PLAIN, TUNER = "experts in order", next(iter(SEARCHES))
TWO_LEVEL = Topology.two_level(2, 2, intra=(250e9, 2e-6), inter=(25e9, 10e-6))
SIZE = ExpertSize(4096, 14336)  # of the time model: Mixtral's; routing is the small mixture's
BATCH = 7_680  # tokens


@dataclass(frozen=True)
class Placed:
    """A placement's worth on the half of the sequences that was not searched."""

    of: Quality
    seconds: float  # simulated, of a batch with rows that move on


@lru_cache
def placed(seed: int, report: Report) -> dict[str, Placed]:
    """Place the experts of a small mixture on four devices in every way; score each placement.

    The ways are the searches of SEARCHES and the experts in order. A search sees half of the
    sequences of a trace, the score is on the other half: balance of load, traffic, and
    simulated time.
    """
    full_trace = traces(seed, report)["balanced"]
    # half of the sequences is searched, the other half judged: loads drift between texts
    searched, unseen = full_trace.split(seed=seed)
    placements = {PLAIN: Placement.contiguous(full_trace.layers, full_trace.experts, DEVICES)}
    # every search sees the same half
    placements |= {name: search.place(searched, LINKS) for name, search in SEARCHES.items()}
    return {
        name: Placed(quality(unseen, placement), _seconds(unseen, placement))
        for name, placement in placements.items()
    }


def _seconds(trace: Trace, placement: Placement) -> float:
    """Return the simulated seconds of one batch under a placement."""
    rows = trace.rows(slice(BATCH))
    plan = expert_parallel(rows, placement, SIZE, engine="stay", nodes=TWO_LEVEL.nodes())
    return simulate(plan, TWO_LEVEL).seconds


def run(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the largest load of a device under MoETuner's programmes over that of experts in
    order, by seed, on sequences that no search has seen.
    """
    by_seed = [placed(seed, report) for seed in seeds]
    values = [p[TUNER].of.imbalance / p[PLAIN].of.imbalance for p in by_seed]
    return result_of(values, [_row(name, by_seed) for name in by_seed[0]], NOTE)


def _row(name: str, by_seed: Sequence[Mapping[str, Placed]]) -> dict[str, Any]:
    """Return a row on one placement of experts, with its time relative to experts in order."""
    row: dict[str, Any] = {"placement": name}
    for title in ("imbalance", "cross", "destinations"):
        row[title] = shown([getattr(placed[name].of, title) for placed in by_seed], ".3f")
    times = [placed[name].seconds / placed[PLAIN].seconds for placed in by_seed]
    return row | {"simulated time": shown(times, ".3f")}


NOTE = (
    "Four devices; half of the sequences are searched, the other half is judged; traces of small "
    "mixtures trained for each seed, top-2 of 16 in 6 layers. imbalance: largest load of a device "
    "over the mean; cross: share of transitions between layers that change the device; "
    "destinations: devices of a token's experts. Simulated time: rows that move on, experts of "
    "Mixtral's size, two nodes with links 10 : 1, over that of experts in order; it is a model of "
    "time, not a measurement."
)


STUDIES = (
    Study(
        "moetuner",
        system="MoETuner",
        arxiv="2502.06643",
        question="Does placement by an integer programme even the devices' loads?",
        effect=Effect(
            "9.3 % and 17.5 % less time",
            "Mixtral-8x7B, 8 and 16 GPUs, against experts in order",
            "abstract",
            sign=-1,
            null=1.0,
        ),
        work="routing traces of small mixtures on four devices, simulated",
        baseline="experts in order, on text that no search has seen",
        unit="times the largest load of a device",
        differs="Loads, not times; the table has simulated times and EPLB, which is as even.",
        measure=run,
        seeds=tuple(range(8)),
        minutes=17,
    ),
)
