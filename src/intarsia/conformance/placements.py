"""Laws of a search for placements: every expert lives somewhere; plans count all that is sent."""

from __future__ import annotations

from typing import Any

import torch

from ..core import Card
from ..core.registry import settings_to_dict
from ..placement.engines import ExpertSize, destinations, expert_parallel, homes
from ..placement.placement import Placement
from ..placement.topology import Topology
from ..placement.trace import Trace
from .cards import CARD_LAWS, tiny
from .made import seeded
from .verdict import Law, laws_of, require, require_equal

LAYERS, EXPERTS, DEVICES, TOKENS = 3, 8, 4, 48


def routed(seed: int = 5, experts: int = EXPERTS) -> Trace:
    """Return a trace with two experts a token in each layer, some chosen more often."""
    draws = seeded(seed)
    popularity = 2 * torch.rand(LAYERS, experts, generator=draws)
    scores = popularity + torch.randn(TOKENS, LAYERS, experts, generator=draws)
    # eight sequences of six tokens
    row = torch.arange(TOKENS)
    return Trace(scores.topk(2).indices, experts, row // 6, row % 6)


def _placed(card: Card, trace: Trace, links: Topology) -> Placement:
    config: Any = tiny(card)
    return config.place(trace, links)


def places_every_expert(card: Card) -> None:
    """Check that the search gives each expert a device, and no device more than its share."""
    for links in (Topology.uniform(DEVICES), Topology.two_level(2, 2), Topology.uniform(1)):
        placement = _placed(card, routed(), links)
        shape = placement.layers, placement.experts, placement.devices
        require_equal(shape, (LAYERS, EXPERTS, links.devices), "Place each layer's experts.")
        # spare places for replicas count, too
        copies = settings_to_dict(tiny(card)).get("redundant", 0)
        places = (EXPERTS + copies) // links.devices
        largest = int(placement.sizes().max())
        require(
            largest <= places, f"{largest} experts on one device", f"{places}", "Keep the counts."
        )


def places_the_same_each_time(card: Card) -> None:
    """Check that the search finds one placement, whatever torch's own generator does."""
    first = _placed(card, routed(), Topology.uniform(DEVICES))
    torch.rand(3)
    again = _placed(card, routed(), Topology.uniform(DEVICES))
    # owners, and all copies
    equal = torch.equal(first.owner, again.owner) and torch.equal(first.holds, again.holds)
    require(equal, "another placement", "the same", "Draw nothing; stop by counts, not by time.")


def leaves_the_trace_alone(card: Card) -> None:
    """Check that the search does not write to the trace."""
    trace = routed()
    _placed(card, trace, Topology.uniform(DEVICES))
    # the same seed draws the trace as it was
    unchanged = torch.equal(trace.expert, routed().expert)
    require(unchanged, "a trace written to", "it as given", "Copy it.")


def takes_layers_without_tokens(card: Card) -> None:
    """Check that the search places experts without tokens, and takes a trace of one layer."""
    trace = routed()
    # no token has an expert in this layer
    trace.expert[:, 1] = -1
    _placed(card, trace, Topology.uniform(DEVICES))
    single_layer = Trace(routed().expert[:, :1], EXPERTS, trace.sequence, trace.position)
    placement = _placed(card, single_layer, Topology.uniform(DEVICES))
    require_equal(placement.layers, 1, "A single layer has no neighbours.")


def gives_each_expert_one_home(card: Card) -> None:
    """Check that each expert's owner holds it, and that plans send rows to its holders."""
    trace, links, size = routed(), Topology.uniform(DEVICES), ExpertSize(3, 2, 4)
    placement, home = _placed(card, trace, links), homes(trace, DEVICES)
    owners_hold = bool(placement.holds.gather(1, placement.owner[:, None]).all())
    require(
        owners_hold, "an owner without its expert", "copies at their owners", "Use Placement.of."
    )
    # count by hand what combining sends back: a row for each device that is not the token's own
    want = torch.zeros(DEVICES, DEVICES, dtype=torch.int64)
    for layer in range(LAYERS):
        targets = destinations(
            trace.expert[:, layer],
            home,
            placement.holds[layer],
            links.nodes(),
            torch.arange(TOKENS),
        ).tolist()
        for source, devices in zip(home.tolist(), targets, strict=True):
            for device in set(devices) - {source}:
                want[device, source] += size.row
    # the plan counts the same rows
    got = expert_parallel(trace, placement, size, nodes=links.nodes()).bytes(["combine"])
    require(torch.equal(got, want), got.tolist(), want.tolist(), "Hold what `holds` says.")


LAWS: tuple[Law, ...] = (*CARD_LAWS, *laws_of(__name__))
