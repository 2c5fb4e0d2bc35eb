"""Caches of experts on recorded decode steps: what foresight and regrouping are worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from intarsia.placement.batching import LookAhead
from intarsia.placement.cache import Key, Policy, most_used, replay
from intarsia.placement.describe import demand
from intarsia.placement.expertflow import (
    Predictive,
    TokenTable,
    active,
    predicted_steps,
    recall,
    regroup,
)
from intarsia.placement.policies import Belady, Expected, Lfu, Lru
from intarsia.placement.trace import Trace

from ..kit import Effect, Report, Result, Study
from ..kit.arms import result_of
from ..materials.routing_traces import kept, traces

# four of sixteen in each of six layers: enough to choose badly
SHARE = 0.25  # of the experts that are in memory
STREAMS = (1, 4)
AT_ONCE = 8  # sequences of a batch, for regrouping


class Perfect:
    """Knows each step, in the order of the steps."""

    def __init__(self, trace: Trace, streams: int) -> None:
        """Record which experts each decode step uses.  streams: sequences decoded at once."""
        routed = torch.stack([trace.membership(layer) for layer in range(trace.layers)], 1)
        self.steps = [routed[rows].amax(0) for rows in trace.steps(streams)]

    def chances(self, tokens: Tensor) -> Tensor:
        """Return the experts of the next step as certain, (layers, experts).  tokens: unused."""
        return self.steps.pop(0)


@lru_cache
def rates(seed: int, streams: int, report: Report) -> dict[str, float]:
    """Replay decode steps of a small mixture against caches of experts; return each one's hit rate.

    A cache holds a quarter of the 96 experts; a hit is an expert that a step needs and that is in
    memory. The eviction policies are the keys of the dict: least recently used, decayed counters of
    use, expected next use, ExpertFlow's with a table of what each token's experts were, the same
    with the true next step, and Belady's, which knows the future. Hit rates are shares, on the
    second half of the trace; caches start with the first half's most used experts, or empty
    ("cold"). streams: sequences decoded at once.
    """
    full_trace = traces(seed, report)["balanced"]
    # one half fills the cache, the other half judges
    before, trace = full_trace.split(seed=seed)
    steps, sizes = demand(trace, streams), (trace.layers, trace.experts)
    slots = round(SHARE * trace.layers * trace.experts)
    warm = most_used(demand(before, streams), slots)
    table = predicted_steps(trace, TokenTable.of(kept(seed, "trained")), streams)
    # what a predictor knows that sees the tokens of a step: in its last layer, nothing ahead
    perfect = predicted_steps(trace, Perfect(trace, streams), streams)

    def rate(policy: Policy, start: list[Key], predicted: list[Tensor] | None = None) -> float:
        """Return the hit rate of a policy."""
        return replay(steps, policy, slots, start=start, foreseen=predicted or ()).rate

    return {
        "LRU": rate(Lru().build(*sizes), warm),
        "LFU, decayed": rate(Lfu().build(*sizes), warm),
        "expected next use": rate(Expected().build(*sizes), warm),
        "table of tokens": rate(Predictive().build(*sizes), warm, table),
        "present step known": rate(Predictive().build(*sizes), warm, perfect),
        # at every layer, the routes of a whole step from there on
        "one step known": rate(LookAhead(*sizes, steps, window=1), warm),
        # the most that any cache can hit: it evicts the expert with the latest next use
        "Belady": rate(Belady(*sizes, steps), warm),
        # from an empty cache, as SE-MoE's counters begin
        "LRU, cold": rate(Lru().build(*sizes), []),
        "LFU, decayed, cold": rate(Lfu().build(*sizes), []),
    }


def hits(
    seeds: tuple[int, ...],
    report: Report,
    *,
    streams: int,
    figure: Callable[[Mapping[str, float]], float],
) -> Result:
    """Return a figure of the caches' hit rates on recorded decode steps, one value for each seed.

    streams: sequences decoded at once, 1 or 4, for the figure; the table has both. figure: hit
    rates by policy, see `rates` -> the value that is judged.
    """
    by_streams = {n: [rates(seed, n, report) for seed in seeds] for n in STREAMS}
    rows: list[dict[str, Any]] = []
    for name in by_streams[STREAMS[0]][0]:
        row: dict[str, Any] = {"cache": name}
        for n in STREAMS:
            # each seed's rate, since their spread is part of the evidence
            row[f"{n} streams"] = ", ".join(
                f"{rates_of_seed[name]:.3f}" for rates_of_seed in by_streams[n]
            )
        rows.append(row)
    return result_of([figure(rates_of_seed) for rates_of_seed in by_streams[streams]], rows, NOTE)


def regrouped(seeds: tuple[int, ...], report: Report) -> Result:
    """Return how many experts are active after sequences were regrouped, over the number before.

    At each decode step 16 sequences form two batches of 8. ExpertFlow groups sequences that are
    predicted to use the same experts, by a table of what each token's experts were in the training
    text. A batch's active experts are those that any of its tokens uses. One ratio for each seed,
    below 1 if regrouping helps.
    """
    values: list[float] = []
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        trace = traces(seed, report)["balanced"]
        table = TokenTable.of(kept(seed, "trained"))
        # (tokens, layers, experts) bool: the true routes
        routed = torch.stack([trace.membership(layer) for layer in range(trace.layers)], 1) > 0
        counts = {"arrival": 0, "table": 0, "true routes": 0}
        for step in _mixed(trace):
            routes = routed[step]
            assert trace.token is not None
            # predicted routes: what a token's experts were in the training text
            likely = table.per_token(trace.token[step]).topk(trace.active, 2).indices
            predicted = torch.zeros(routes.shape, dtype=torch.bool).scatter(2, likely, True)
            # in the order of arrival: the first eight sequences, the last eight
            order = list(range(len(step)))
            counts["arrival"] += active(routes, [order[:AT_ONCE], order[AT_ONCE:]])
            counts["table"] += active(routes, regroup(predicted))
            # what regrouping is worth if the prediction were right
            counts["true routes"] += active(routes, regroup(routes))
        values.append(counts["table"] / counts["arrival"])
        shares = {name: f"{count / counts['arrival']:.3f}" for name, count in counts.items()}
        rows.append({"seed": seed} | shares | {"recall": f"{recall(table, trace):.3f}"})
    return result_of(values, rows, REGROUPED)


def _mixed(trace: Trace) -> list[Tensor]:
    """Return decode steps of 16 sequences of mixed kinds, each a (16,) tensor of rows of
    the trace.
    """
    count = len(trace.sequence.unique())
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    rows = [(trace.sequence == s).nonzero().flatten() for s in order.tolist()]
    steps: list[Tensor] = []
    for first in range(0, count - 2 * AT_ONCE + 1, 2 * AT_ONCE):
        some = torch.stack(rows[first : first + 2 * AT_ONCE])
        # neighbouring steps have nearly the same routes; every eighth says as much
        steps += list(some.T[::8])
    return steps


NOTE = (
    "A quarter of the 96 experts in memory; decode steps of the small mixture on text that it was "
    "not trained on, from the contents that a profile of other sequences gives, or cold. Hit rates "
    "of each seed. The table of tokens is counted on training text. Eviction alone: no prefetch. "
    "With four streams a step asks for more experts than there are slots, and LRU holds what was "
    "just used, which is not used next. One step known: at each layer, as many layers ahead as a "
    "step has. Present step known: only the layers that are left of the step, on average half of "
    "them, which is all that a predictor knows that reads the tokens of a step."
)
REGROUPED = (
    "16 sequences, two batches of 8, regrouped at every step; shares of the order of arrival. "
    "recall: of the table of tokens, of a token's two experts."
)


STUDIES = (
    Study(
        "expertflow-regroup",
        system="ExpertFlow",
        arxiv="2410.17954",
        question="Do batches regrouped by predicted routes activate fewer experts?",
        effect=Effect(
            "up to 93.72 % of memory saved, 2 to 10 times as fast",
            "one GPU, experts offloaded",
            "abstract",
            sign=-1,
            null=1.0,
        ),
        work="routing traces of small mixtures, simulated",
        baseline="batches in the order of arrival; ratio of active experts",
        unit="times as many active experts",
        differs="Its scheduler alone, on traces; the paper's figures are of the whole system.",
        measure=regrouped,
        minutes=25,
    ),
)
