"""Laws of a search for placements: every expert lives somewhere, and plans count what is sent."""

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
    """Tokens with two experts a layer, some much more often than others."""
    draws = seeded(seed)
    liked = 2 * torch.rand(LAYERS, experts, generator=draws)
    scores = liked + torch.randn(TOKENS, LAYERS, experts, generator=draws)
    row = torch.arange(TOKENS)
    return Trace(scores.topk(2).indices, experts, row // 6, row % 6)


def _placed(card: Card, trace: Trace, links: Topology) -> Placement:
    config: Any = tiny(card)
    return config.place(trace, links)


def places_every_expert(card: Card) -> None:
    """Each expert has an owner that holds it; devices have as many places each."""
    for links in (Topology.uniform(DEVICES), Topology.two_level(2, 2), Topology.uniform(1)):
        found = _placed(card, routed(), links)
        shape = found.layers, found.experts, found.devices
        require_equal(shape, (LAYERS, EXPERTS, links.devices), "Place each layer's experts.")
        copies = settings_to_dict(tiny(card)).get("redundant", 0)
        places = (EXPERTS + copies) // links.devices
        most = int(found.sizes().max())
        require(most <= places, f"{most} experts on one device", f"{places}", "Keep the counts.")


def places_the_same_each_time(card: Card) -> None:
    """Two searches, one placement, whatever torch's own generator does."""
    first = _placed(card, routed(), Topology.uniform(DEVICES))
    torch.rand(3)
    again = _placed(card, routed(), Topology.uniform(DEVICES))
    same = torch.equal(first.owner, again.owner) and torch.equal(first.holds, again.holds)
    require(same, "another placement", "the same", "Draw nothing; stop by counts, not by time.")


def leaves_the_trace_alone(card: Card) -> None:
    """A search writes to nothing that it is given."""
    trace = routed()
    _placed(card, trace, Topology.uniform(DEVICES))
    same = torch.equal(trace.expert, routed().expert)
    require(same, "a trace written to", "it as given", "Copy it.")


def takes_layers_without_tokens(card: Card) -> None:
    """Experts that no token has, and a trace of one layer, are placed, too."""
    trace = routed()
    trace.expert[:, 1] = -1
    _placed(card, trace, Topology.uniform(DEVICES))
    one = Trace(routed().expert[:, :1], EXPERTS, trace.sequence, trace.position)
    found = _placed(card, one, Topology.uniform(DEVICES))
    require_equal(found.layers, 1, "A single layer has no neighbours.")


def gives_each_expert_one_home(card: Card) -> None:
    """The owner of each expert holds it, and a plan sends rows to holders and to no one else."""
    trace, links, size = routed(), Topology.uniform(DEVICES), ExpertSize(3, 2, 4)
    found, home = _placed(card, trace, links), homes(trace, DEVICES)
    held = bool(found.holds.gather(1, found.owner[:, None]).all())
    require(held, "an owner without its expert", "copies at their owners", "Use Placement.of.")
    want = torch.zeros(DEVICES, DEVICES, dtype=torch.int64)
    for layer in range(LAYERS):
        to = destinations(
            trace.expert[:, layer], home, found.holds[layer], links.nodes(), torch.arange(TOKENS)
        ).tolist()
        for at, some in zip(home.tolist(), to, strict=True):
            for device in set(some) - {at}:
                want[device, at] += size.row
    got = expert_parallel(trace, found, size, nodes=links.nodes()).bytes(["combine"])
    require(torch.equal(got, want), got.tolist(), want.tolist(), "Hold what `holds` says.")


LAWS: tuple[Law, ...] = (*CARD_LAWS, *laws_of(__name__))
