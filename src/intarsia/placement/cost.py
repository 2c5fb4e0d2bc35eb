"""How good a placement is for a trace: balance, and what goes between devices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .engines import check_same
from .placement import Placement
from .trace import Trace


@dataclass(frozen=True)
class Quality:
    """imbalance: the largest load of a device over the mean, mean of the layers;  cross: the share
    of transitions between layers that change the device ("stay");  destinations: devices that a
    token has experts on, mean over tokens and layers ("home")."""

    imbalance: float
    cross: float
    destinations: float


def quality(trace: Trace, placement: Placement) -> Quality:
    """Of a placement for a trace; the copies of an expert share its load, its owner has its place.

    Raises: ConfigError for a placement of other layers or experts.
    """
    check_same(trace, placement)
    load = device_loads(trace.load(), placement)
    peak = load.max(1).values / load.mean(1).clamp(min=1e-300)
    ways = [crossing(trace.transitions(at), placement, at) for at in range(trace.layers - 1)]
    whole = sum(total for _, total in ways)
    return Quality(
        float(peak.mean()),
        sum(crossed for crossed, _ in ways) / whole if whole else 0.0,
        sum(
            mean_destinations(trace.chosen(at), placement.owner[at], placement.devices)
            for at in range(trace.layers)
        )
        / trace.layers,
    )


def device_loads(load: Tensor, placement: Placement) -> Tensor:
    """Tokens of each device.  load: (L, E) -> (L, D) float64."""
    copies = placement.holds.sum(1).double()  # (L, E)
    return torch.einsum("le,lde->ld", load.double() / copies, placement.holds.double())


def crossing(transitions: Tensor, placement: Placement, layer: int) -> tuple[float, float]:
    """Of the transitions (E, E) after a layer: those that change the device, and all."""
    here, there = placement.owner[layer], placement.owner[layer + 1]
    apart = here[:, None] != there[None, :]
    return float(transitions[apart].sum()), float(transitions.sum())


def mean_destinations(chosen: Tensor, owner: Tensor, devices: int) -> float:
    """Return the mean number of devices that own a token's experts.

    chosen: (N, E), above 0 where a token has an expert; owner: (E,).
    """
    owned = (owner[:, None] == torch.arange(devices)[None]).to(chosen.dtype)  # (E, D)
    return float((chosen @ owned > 0).double().sum(1).mean())
