"""Quality of a placement for a trace: balance of the loads, and traffic between devices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .engines import check_same
from .placement import Placement
from .trace import Trace


@dataclass(frozen=True)
class Quality:
    """Quality of a placement, three numbers where less is better.

    imbalance: the largest load of a device over the mean load, mean over layers, 1 at best;  cross:
    the share of transitions between layers that change the device (engine "stay");  destinations:
    number of devices that hold a token's experts, mean over tokens and layers (engine "home").
    """

    imbalance: float
    cross: float
    destinations: float


def quality(trace: Trace, placement: Placement) -> Quality:
    """Measure the balance and the traffic of a placement on a recorded routing.

    trace: the experts of each token; placement: the devices of each expert. Copies of an expert
      share its load equally; traffic is counted to the owner alone.
    Raises: ConfigError for a placement of other layers or experts.
    """
    check_same(trace, placement)
    load = device_loads(trace.load(), placement)
    peak = load.max(1).values / load.mean(1).clamp(min=1e-300)
    crossings = [
        crossing(trace.transitions(layer), placement, layer) for layer in range(trace.layers - 1)
    ]
    all_transitions = sum(total for _, total in crossings)
    # cross: transitions that change the device, over all transitions of all layers
    return Quality(
        float(peak.mean()),
        sum(crossed for crossed, _ in crossings) / all_transitions if all_transitions else 0.0,
        sum(
            mean_destinations(trace.membership(layer), placement.owner[layer], placement.devices)
            for layer in range(trace.layers)
        )
        / trace.layers,
    )


def device_loads(load: Tensor, placement: Placement) -> Tensor:
    """Return how many tokens each device computes in each layer, (L, D) float64.

    load: (L, E), tokens of each expert.
    """
    copies = placement.holds.sum(1).double()  # (L, E)
    # each copy takes an equal share of its expert's load
    return torch.einsum("le,lde->ld", load.double() / copies, placement.holds.double())


def crossing(transitions: Tensor, placement: Placement, layer: int) -> tuple[float, float]:
    """Count the tokens that go to another device after a layer, and all tokens, as a pair.

    transitions: (E, E), tokens from each expert to each of the next layer.
    """
    source, target = placement.owner[layer], placement.owner[layer + 1]
    apart = source[:, None] != target[None, :]
    return float(transitions[apart].sum()), float(transitions.sum())


def mean_destinations(membership: Tensor, owner: Tensor, devices: int) -> float:
    """Return on how many devices the experts of a token lie, mean over tokens.

    membership: (N, E), above 0 where a token has an expert; owner: (E,), the device of each;
      devices: D.
    """
    owned = (owner[:, None] == torch.arange(devices)[None]).to(membership.dtype)  # (E, D)
    return float((membership @ owned > 0).double().sum(1).mean())
