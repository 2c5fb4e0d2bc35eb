"""MoETuner: what a placement is worth on text that it was not made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
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

from ..kit import SIMULATED, Report, Result, Study, UnknownEffect, worst_of
from ..kit.arms import shown
from ..materials.routing_traces import traces, uniform

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
PLAIN, TUNER, STAY, HOME = "experts in order", *list(SEARCHES)[:3]
TWO_LEVEL = Topology.two_level(2, 2, intra=(250e9, 2e-6), inter=(25e9, 10e-6))
SIZE = ExpertSize(4096, 14336)  # of the time model: Mixtral's; routing is the small mixture's
BATCH = 7_680  # tokens


@dataclass(frozen=True)
class Placed:
    """A placement's worth on the half of the sequences that was not searched."""

    of: Quality
    seconds: float  # simulated, of a batch with rows that move on


@lru_cache
def placed(kind: str, seed: int, report: Report) -> dict[str, Placed]:
    """Place the experts of a small mixture on four devices in every way; score each placement.

    The ways are the searches of SEARCHES and the experts in order. A search sees half of the
    sequences of a trace, the score is on the other half: balance of load, traffic, and simulated
    time. kind: of trace, "balanced", "skewed" or "uniform".
    """
    full_trace = uniform(seed) if kind == "uniform" else traces(seed, report)[kind]
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


Of = Callable[[Placed], float]
imbalance: Of = lambda outcome: outcome.of.imbalance  # noqa: E731
cross: Of = lambda outcome: outcome.of.cross  # noqa: E731
destinations: Of = lambda outcome: outcome.of.destinations  # noqa: E731
seconds: Of = lambda outcome: outcome.seconds  # noqa: E731


def run(
    seeds: tuple[int, ...],
    report: Report,
    *,
    kinds: Sequence[str],
    arm: str,
    figure: Of,
    over: str | None = PLAIN,
) -> Result:
    """Return a measure of a placement of experts over another's, by seed.

    kinds: of traces, the one with the worst ratio counts; arm: name of the placement;
    figure: which measure, such as the load imbalance; over: the placement to compare with, None =
    no ratio. The measures are of sequences that no search has seen.
    """
    by_kind = {kind: [placed(kind, seed, report) for seed in seeds] for kind in kinds}

    def value(placements: Mapping[str, Placed]) -> float:
        """Return the ratio of one seed on one kind of trace."""
        return figure(placements[arm]) / (figure(placements[over]) if over else 1.0)

    # a placement must help on each kind of trace, not in their mean
    ratios = {kind: [value(placements) for placements in by_kind[kind]] for kind in kinds}
    rows = [_row(kind, name, by_kind[kind]) for kind in kinds for name in by_kind[kind][0]]
    return worst_of(ratios, "<=", rows, NOTE)


def _row(kind: str, name: str, placements: Sequence[Mapping[str, Placed]]) -> dict[str, Any]:
    """Return a row on one placement of experts, with its time relative to experts in order."""
    columns = {"imbalance": imbalance, "cross": cross, "destinations": destinations}
    columns_shown = {
        title: shown([read(by_name[name]) for by_name in placements], ".3f")
        for title, read in columns.items()
    }
    times = [seconds(by_name[name]) / seconds(by_name[PLAIN]) for by_name in placements]
    return (
        {"trace": kind, "placement": name} | columns_shown | {"simulated time": shown(times, ".3f")}
    )


NOTE = (
    "Four devices; half of the sequences are searched, the other half is judged; traces of small "
    "mixtures trained for each seed, top-2 of 16 in 6 layers. imbalance: largest load of a device "
    "over the mean; cross: share of transitions between layers that change the device; "
    "destinations: devices of a token's experts. Simulated time: rows that move on, experts of "
    "Mixtral's size, two nodes with links 10 : 1, over that of experts in order; it is a model of "
    "time, not a measurement. All claims named moetuner judge the same placements."
)
PAPER = "(arXiv:2502.06643, abstract): "


def study(key: str, sentence: str, target: float, figure: Of, **overrides: Any) -> Study:
    """Return a claim on placements of experts.

    key, sentence, target: of the claim; figure: the measure that it judges; overrides: arm, kinds
    and over of `run`, and other fields of Study.
    """
    # STAY, the default arm, lowers the traffic of rows that move on from device to device
    options = {"kinds": ("balanced",), "arm": STAY}
    options |= {name: overrides.pop(name) for name in ("kinds", "arm", "over") if name in overrides}
    judged: Any = partial(run, figure=figure, **options)
    defaults = {
        "baseline": "experts in order; ratio",
        "sense": "<=",
        "needs": "long",
        "minutes": 30,
    }
    return Study(
        key, sentence, target=target, measure=judged, control=SIMULATED, **defaults | overrides
    )


CLAIMS = (
    study(
        "moetuner",
        "Clusters of experts by an integer programme even the devices' loads better than experts "
        "in order, as EPLB without copies does, too, in a simulator "
        f"{PAPER}the largest load of a device on unseen text, balanced mixture.",
        1.0,
        imbalance,
        arm=TUNER,
        system="MoETuner",
        unit="times the largest load",
        scale="Routing of a mixture of the paper's size: its layers depend on each other more.",
        effect=UnknownEffect(
            "The abstract counts time, 9.3 % on one node; loads were not found. The slowest "
            "device's time, .64 and .73 of that before, is known by notes of third parties alone."
        ),
        work="routing traces, simulated",
        # one of three mixtures gained nothing: with such a spread eight see the others' gain; five
        # of them are hecate's, and each one that is not kept takes five minutes
        seeds=tuple(range(8)),
        minutes=45,
    ),
    study(
        "moetuner-traffic",
        "Ordering the clusters by traffic lowers what goes between devices "
        f"{PAPER}share of transitions that change the device, the worse of two mixtures.",
        0.94,
        cross,
        arm=TUNER,
        kinds=("balanced", "skewed"),
    ),
    study(
        "moetuner-joint",
        "Exchanging experts for balance and traffic at once lowers traffic further than "
        "the two programmes one after the other (beside arXiv:2502.06643): transitions that "
        "change the device, balanced mixture.",
        0.86,
        cross,
    ),
    study(
        "moetuner-joint-skewed",
        "The same on a mixture whose layers are not balanced each (beside arXiv:2502.06643).",
        0.92,
        cross,
        kinds=("skewed",),
    ),
    study(
        "moetuner-home",
        "Where rows come back after each layer, exchanges by co-activation lower the "
        "devices that a token is sent to (beside arXiv:2502.06643), balanced mixture.",
        0.95,
        destinations,
        arm=HOME,
    ),
    study(
        "moetuner-uniform",
        "A trace without any structure gives nothing to gain (a control of "
        "arXiv:2502.06643): transitions that change the device, of exchanges for traffic.",
        0.98,
        cross,
        kinds=("uniform",),
        sense=">=",
        needs="cpu",
        minutes=1,
    ),
    study(
        "moetuner-time",
        "Less traffic is less time on two nodes with links 10 : 1 "
        f"{PAPER}simulated time of a batch whose rows move on, exchanges for traffic, balanced "
        "mixture.",
        0.95,
        seconds,
        baseline="experts in order; ratio, simulated",
    ),
)
