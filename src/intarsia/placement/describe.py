"""Statistics of a trace: loads of experts, and how well the previous token predicts them."""

from __future__ import annotations

from typing import Any

import torch

from .trace import Trace


def describe_layers(trace: Trace) -> list[dict[str, Any]]:
    """Return a row of statistics for each layer of a recorded routing.

    Entries: layer; load_cv, coefficient of variation of the experts' loads; largest_share, of the
      busiest expert; repeats, the share of a token's experts that the previous token of its
      sequence had, too; by_chance, that share if tokens were independent.
    """
    rows: list[dict[str, Any]] = []
    # (N - 1,): the token and the one before it belong to one sequence
    follows = trace.sequence.diff() == 0
    for layer in range(trace.layers):
        membership = trace.membership(layer)
        load = membership.sum(0)
        share = load / load.sum().clamp(min=1)
        # experts that a token shares with its predecessor
        repeated = (membership[1:] * membership[:-1]).sum(1)[follows].sum()
        pairs = membership[1:].sum(1)[follows].sum().clamp(min=1)
        # by chance: sum over experts of (share of the pairs) x (share of the tokens)
        rows.append(
            {
                "layer": layer,
                "load_cv": float(load.std(correction=0) / load.mean().clamp(min=1e-300)),
                "largest_share": float(share.max()),
                "repeats": float(repeated / pairs),
                "by_chance": float((share * membership.mean(0)).sum()),
            }
        )
    return rows


def demand(trace: Trace, streams: int) -> list[list[tuple[int, int]]]:
    """Return for each decode step the (layer, expert) pairs it uses, layer by layer, each once.

    streams: sequences decoded at once, see `Trace.steps`.
    """
    steps: list[list[tuple[int, int]]] = []
    for rows in trace.steps(streams):
        expert = trace.expert[rows]
        steps.append(
            [
                (layer, int(e))
                for layer in range(trace.layers)
                for e in torch.unique(expert[:, layer])
                if e >= 0
            ]
        )
    return steps
