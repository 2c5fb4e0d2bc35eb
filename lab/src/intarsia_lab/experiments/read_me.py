"""Read-ME: batches by expert, and caches that know what is queued."""

from __future__ import annotations

import statistics
from functools import lru_cache
from typing import Any

from intarsia.placement.batching import LookAhead, serve
from intarsia.placement.cache import most_used, replay
from intarsia.placement.describe import demand
from intarsia.placement.policies import Belady, Expected, Lru

from ..kit import Effect, Report, Result, Study
from ..kit.arms import result_of, shown
from ..materials.routing_traces import KINDS, traces

LIMIT, PATIENCE, STREAMS, SHARE, WINDOW = 8, 8, 24, 0.25, 8


@lru_cache
def served(kind: str, seed: int, report: Report) -> dict[str, float]:
    """Replay recorded routing in batches by expert and through caches; return their savings.

    kind: of the trace. Keys: "ratio": different experts in a batch if streams queue for their
    expert, over the number in order of arrival; "wait", "wait in order": rounds that a stream
    waits, 95th percentile; and hit rates of caches with a quarter of the experts, from least
    recently used to Belady's, which knows the future.
    """
    trace = traces(seed, report)[kind]
    ratios: list[float] = []
    waits: list[tuple[int, int]] = []
    for layer in range(trace.layers):
        aware = serve(trace, LIMIT, layer=layer, patience=PATIENCE, streams=STREAMS)
        # the same streams in the order of arrival
        fifo = serve(trace, LIMIT, layer=layer, streams=STREAMS, how="fifo")
        ratios.append(aware.unique / fifo.unique)
        waits.append((aware.wait(), fifo.wait()))
    before, after = trace.split(seed=seed)
    steps, sizes = demand(after, 4), (trace.layers, trace.experts)
    slots = round(SHARE * trace.layers * trace.experts)
    # the contents are a profile of other sequences: no cache begins with the answer
    warm = most_used(demand(before, 4), slots)
    policies = {
        "LRU": Lru().build(*sizes),
        "expected": Expected().build(*sizes),
        "one step": LookAhead(*sizes, steps, 1),
        "eight steps": LookAhead(*sizes, steps, WINDOW),
        "Belady": Belady(*sizes, steps),
    }
    rates = {name: replay(steps, p, slots, start=warm).rate for name, p in policies.items()}
    figures = {"ratio": statistics.mean(ratios)}
    figures |= {"wait": statistics.mean(a for a, _ in waits)}
    return figures | {"wait in order": statistics.mean(b for _, b in waits)} | rates


def serving(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the ratio of experts in a batch on the balanced trace, by seed; the table has three
    traces.
    """
    by_kind = {kind: [served(kind, seed, report) for seed in seeds] for kind in KINDS}
    rows: list[dict[str, Any]] = []
    for kind, some in by_kind.items():
        columns = {name: shown([figures[name] for figures in some], ".3f") for name in some[0]}
        rows.append({"trace": kind} | columns)
    return result_of([figures["ratio"] for figures in by_kind["balanced"]], rows, SERVED)


SERVED = (
    "ratio: different experts in a batch of 8 of 24 streams, by queues with ageing after 8 rounds, "
    "over batches in order, mean of the layers, each with a token's first expert. wait: rounds, "
    "95th percentile. Hit rates: a quarter of the 96 experts, four streams, warm from other "
    "sequences."
)


STUDIES = (
    Study(
        "read-me-batching",
        system="Read-ME",
        arxiv="2410.19123",
        question="Do batches formed by expert use fewer different experts?",
        effect=Effect(
            "experts of a batch 5.08 to 3.51; +10.1 % on MMLU, 6.1 % less time",
            "LLaMA2-7B cut into experts, 4.7 billion weights active",
            "abstract; tables 3 and 4",
            sign=-1,
            values=(0.69,),
            null=1.0,
        ),
        work="routing traces of small mixtures, simulated",
        baseline="batches in the order of arrival",
        unit="times as many experts in a batch",
        differs="Queues with ageing on traces; accuracy and time are not measured.",
        measure=serving,
        minutes=20,
    ),
)
