"""What a trace looks like: loads, and how far a token's experts are foreseen."""

from __future__ import annotations

from typing import Any

import torch

from .trace import Trace


def described(trace: Trace) -> list[dict[str, Any]]:
    """A row for each layer: coefficient of variation of the loads, the largest share of an expert,
    the share of a token's experts that the token before it had, too, and that share by chance.
    """
    rows: list[dict[str, Any]] = []
    follows = trace.sequence.diff() == 0
    for layer in range(trace.layers):
        chosen = trace.chosen(layer)
        load = chosen.sum(0)
        share = load / load.sum().clamp(min=1)
        both = (chosen[1:] * chosen[:-1]).sum(1)[follows].sum()
        asked = chosen[1:].sum(1)[follows].sum().clamp(min=1)
        rows.append(
            {
                "layer": layer,
                "load_cv": float(load.std(correction=0) / load.mean().clamp(min=1e-300)),
                "largest_share": float(share.max()),
                "repeats": float(both / asked),
                "by_chance": float((share * chosen.mean(0)).sum()),
            }
        )
    return rows


def demand(trace: Trace, streams: int) -> list[list[tuple[int, int]]]:
    """The (layer, expert) that each decode step asks for, layer by layer, each once."""
    found: list[list[tuple[int, int]]] = []
    for rows in trace.steps(streams):
        expert = trace.expert[rows]
        found.append(
            [
                (layer, int(e))
                for layer in range(trace.layers)
                for e in torch.unique(expert[:, layer])
                if e >= 0
            ]
        )
    return found
