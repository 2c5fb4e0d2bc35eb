"""Tutel and DeepSpeed-MoE: a degree for each batch, and tables instead of one-hot products."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from intarsia.core import Routing
from intarsia.parallel.blocks import PairTable
from intarsia.parallel.tutel import Tutel, degrees
from intarsia.placement.engines import ExpertSize
from intarsia.placement.timeline import simulate
from intarsia.placement.topology import Topology
from intarsia.placement.trace import Trace

from ..kit import SIMULATED, TIMED, Effect, Report, Result, Study, UnknownEffect
from ..kit.arms import result_of, threads

EXPERTS, DEVICES = 2, 8
# the paper's sweep is over tokens and hidden units, where the best degree changes
TOKENS, HIDDEN = (128, 512, 2048, 8192), (1024, 4096, 16384)
LINKS: Mapping[str, Topology] = {
    "one node": Topology.two_level(1, 8),
    "two nodes, 12 : 1": Topology.two_level(2, 4),
    "four nodes, 3 : 1": Topology.two_level(4, 2, intra=(75e9, 2e-6)),
}


def drawn(tokens: int, seed: int) -> Trace:
    """Draw a routing of tokens to two experts at random, in sequences of 16 tokens."""
    draws = torch.Generator().manual_seed(seed)
    expert = torch.randint(EXPERTS, (tokens, 1, 1), generator=draws)
    row = torch.arange(tokens)
    return Trace(expert, EXPERTS, row // 16, row % 16)


def adaptive(seeds: tuple[int, ...], report: Report) -> Result:
    """Return how much faster a degree of parallelism for each batch is than the best single one.

    The degree says how experts and data are divided over eight devices; times are simulated. The
    figure is the geometric mean over topologies, numbers of tokens and hidden units; by seed. The
    table also has degrees chosen by bytes sent.
    """
    values: list[float] = []
    rows: list[dict[str, str]] = []
    for seed in seeds:
        ratios: list[float] = []
        for name, links in LINKS.items():
            single = {d: _mean_seconds(Tutel(d), seed, links) for d in degrees(EXPERTS, DEVICES)}
            # the rival: the one degree that is best over all points, known afterwards
            best = min(single, key=lambda d: single[d])
            by_time, by_bytes = (
                single[best] / _mean_seconds(Tutel(by=measure), seed, links)
                for measure in ("time", "bytes")
            )
            ratios.append(by_time)
            row = {"seed": str(seed), "links": name, "best degree": str(best)}
            rows.append(row | {"times as fast": f"{by_time:.3f}", "by bytes": f"{by_bytes:.3f}"})
        values.append(statistics.geometric_mean(ratios))
    return result_of(values, rows, NOTE)


def _mean_seconds(settings: Tutel, seed: int, links: Topology) -> float:
    """Return the geometric mean of simulated seconds over numbers of tokens and hidden units."""
    return statistics.geometric_mean(
        simulate(settings.plan(drawn(tokens, seed), ExpertSize(1024, h), links), links).seconds
        for tokens in TOKENS
        for h in HIDDEN
    )


NOTE = (
    "Two experts on eight devices, so that four share one; degrees 0, 1, 2 and 4; 128 to 8,192 "
    "tokens, 1,024 to 16,384 hidden units of width 1,024, three topologies. A model of time, not a "
    "measurement. A batch has the degree of the least simulated time; by bytes: of the fewest."
)


def one_hot(x: Tensor, routing: Routing, places: int) -> Tensor:
    """Send tokens to experts and back by products with a one-hot mask, as GShard does; (T, d).

    The mask is (tokens, experts, places). x: (T, d) tokens; routing: their experts and weights;
    places: tokens that an expert has room for.
    """
    table = PairTable.of(routing, places)
    mask = x.new_zeros(routing.tokens, routing.experts * places)
    mask[routing.token, table.place] = 1
    weighed = x.new_zeros(routing.tokens, routing.experts * places)
    weighed[routing.token, table.place] = routing.weight
    shape = routing.tokens, routing.experts, places
    rows = torch.einsum("tec,td->ecd", mask.view(shape), x)
    return torch.einsum("tec,ecd->td", weighed.view(shape), rows)


def tables(x: Tensor, routing: Routing, places: int) -> Tensor:
    """Send tokens to experts and back by a table of places; (T, d), equal to `one_hot`.

    x: (T, d) tokens; routing: their experts and weights; places: tokens that an expert has room
    for.
    """
    table = PairTable.of(routing, places)
    return table.combine(table.fill(x))


def times_as_fast(
    seeds: tuple[int, ...], report: Report, *, tokens: int, experts: int, width: int, active: int
) -> Result:
    """Return how many times as fast a table of places is as one-hot products, by seed.

    Both send random tokens to experts and back, with the same result; NaN if it differs. tokens,
    experts, width: their numbers; active: experts of a token. Median wall seconds of seven calls,
    one thread.
    """
    values: list[float] = []
    rows: list[dict[str, str]] = []
    for seed in seeds:
        draws = torch.Generator().manual_seed(seed)
        x = torch.randn(tokens, width, generator=draws)
        experts_of_token = torch.rand(tokens, experts, generator=draws).topk(active).indices
        token = torch.arange(tokens).repeat_interleave(active)
        weight = torch.rand(tokens * active, generator=draws)
        routing = Routing(token, experts_of_token.flatten(), weight, tokens, experts)
        # as many places as the fullest expert needs, so that nothing is dropped
        places = int(experts_of_token.flatten().bincount(minlength=experts).max())
        with threads(1):
            slow, fast = (_seconds(product, x, routing, places) for product in (one_hot, tables))
        # a product that differs is no speed-up: NaN, which is void
        off = float((one_hot(x, routing, places) - tables(x, routing, places)).abs().max())
        values.append(slow / fast if off < 1e-4 else math.nan)
        times = {"one-hot, ms": f"{slow * 1e3:.2f}", "tables, ms": f"{fast * 1e3:.3f}"}
        rows.append({"seed": str(seed)} | times)
    note = (
        f"{tokens} tokens, {active} of {experts} experts, width {width}; median of seven, one core."
    )
    return result_of(values, rows, note)


def _seconds(
    product: Callable[[Tensor, Routing, int], Tensor], x: Tensor, routing: Routing, places: int
) -> float:
    """Return the median seconds of seven calls of a product.

    x: (tokens, width).
    """
    durations: list[float] = []
    for _ in range(7):
        begun = time.perf_counter()
        product(x, routing, places)
        durations.append(time.perf_counter() - begun)
    return statistics.median(durations)


study = partial(
    Study,
    baseline="einsum of a mask (T, E, C); times as fast",
    sense=">=",
    control=TIMED,
    minutes=1,
)

CLAIMS = (
    study(
        "tutel",
        system="Tutel",
        unit="times as fast",
        scale="A cluster on which each batch is timed at every degree of parallelism.",
        effect=UnknownEffect(
            "The gain of switching parallelism alone is drawn, not printed; the gain of pipelining "
            "over the best static choice is 1.01 to 1.11 (section 5)."
        ),
        work="routing traces, simulated",
        sentence="A degree of parallelism for each batch is faster than the best one for all "
        "(arXiv:2206.03382, section 3): simulated time.",
        baseline="the best single degree; times as fast, geometric mean, simulated",
        target=1.0,
        control=SIMULATED,
        measure=adaptive,
        minutes=2,
    ),
    study(
        "tutel-tables",
        sentence="Tables of places are faster than products with one-hot masks "
        "(arXiv:2206.03382, section 4.2).",
        target=5.0,
        measure=partial(times_as_fast, tokens=2048, experts=16, width=256, active=2),
        seeds=tuple(range(10)),
    ),
    study(
        "deepspeed-tables",
        sentence="A table in place of one-hot products takes a sixth of the time or less at many "
        "experts (arXiv:2201.05596, section 5.4).",
        target=6.0,
        effect=Effect(6.0, "arXiv:2201.05596, section 5.4: over 6x"),
        measure=partial(times_as_fast, tokens=512, experts=64, width=512, active=2),
        seeds=tuple(range(10)),
    ),
)
