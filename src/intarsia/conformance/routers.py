"""Laws of a router: x (T, width) -> a Routing of T tokens, and nothing kept or drawn elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Card, Routing
from .cards import check_card, tiny
from .verdict import Check, Checks, require, require_close, require_tag

WIDTH, TOKENS = 6, 5
DRAWS = 20


def check_router(card: Card) -> Checks:
    """Checks of a router's card.

    Its config offers `build(width, *, generator) -> nn.Module`, whose forward maps x (T, width) to
    a Routing of shape (T, experts).
    """
    yield from check_card(card)
    laws: tuple[Callable[[Card], None], ...] = (
        returns_a_routing, routes_one_token, follows_device_and_dtype, draws_from_its_generator,
        sparse_exactly_when_tagged, stochastic_exactly_when_tagged, learned_exactly_when_tagged,
        non_causal_exactly_when_tagged,
    )  # fmt: skip
    for law in laws:
        yield Check(law.__name__, partial(law, card))


def build(card: Card, seed: int = 0) -> nn.Module:
    """A router with its tiny settings."""
    generator = torch.Generator().manual_seed(seed)
    return tiny(card).build(WIDTH, generator=generator)


def tokens(count: int = TOKENS, seed: int = 1) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def route(card: Card, router: nn.Module, x: Tensor) -> Routing:
    """What the router says, checked to be a Routing of the tokens."""
    routing: Any = router(x)
    require(
        isinstance(routing, Routing), card, got=type(routing).__name__, want="a Routing",
        fix="Build it with Routing.from_topk or Routing.from_dense.",
    )  # fmt: skip
    inside = bool(
        ((routing.token >= 0) & (routing.token < len(x))).all()
        and ((routing.expert >= 0) & (routing.expert < routing.experts)).all()
    ) if routing.token.device.type != "meta" else True  # fmt: skip
    require(
        routing.tokens == len(x) and inside, card,
        got=f"{routing.tokens} tokens, {routing.experts} experts", want=f"{len(x)} tokens",
        fix="Route every token once, to experts that exist.",
    )  # fmt: skip
    return routing


def returns_a_routing(card: Card) -> None:
    """A Routing with finite weights, and scalars as losses; x stays as it was."""
    x = tokens()
    before = x.clone()
    routing = route(card, build(card), x)
    finite = bool(torch.isfinite(routing.weight).all())
    require(
        finite, card, got="weights that are not finite", want="numbers", fix="Guard the division."
    )
    scalars = all(loss.dim() == 0 for loss in routing.losses.values())
    require(scalars, card, got="losses with axes", want="scalars", fix="Take their mean.")
    same = torch.equal(x, before)
    require(same, card, got="an x that was written to", want="x as given", fix="Copy it first.")


def routes_one_token(card: Card) -> None:
    """A single token is a batch too."""
    route(card, build(card), tokens(1))


def follows_device_and_dtype(card: Card) -> None:
    """Weights are where x is and of its type."""
    for x in (tokens().double(), tokens().to("meta")):
        router = build(card).to(x.device, x.dtype)
        weight = route(card, router, x).weight
        same = (weight.dtype, weight.device.type) == (x.dtype, x.device.type)
        require(
            same, card, got=f"weights {weight.dtype} on {weight.device}",
            want=f"{x.dtype} on {x.device}", fix="Make new tensors from x: x.new_zeros, x.device.",
        )  # fmt: skip


def _gates(card: Card, router: nn.Module, x: Tensor, count: int = DRAWS) -> Tensor:
    return torch.stack([route(card, router, x).dense().detach() for _ in range(count)])


def draws_from_its_generator(card: Card) -> None:
    """One seed, one sequence of draws, whatever torch's own generator does."""
    found: list[Tensor] = []
    for seed in (3, 4):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found.append(_gates(card, build(card), tokens()))
    require_close(
        found[1], found[0], card, what="routings of one seed",
        fix="Draw from the generator that build was given.",
    )  # fmt: skip


def sparse_exactly_when_tagged(card: Card) -> None:
    """ "sparse": no token goes to every expert."""
    gates = _gates(card, build(card), tokens())  # (draws, T, E)
    shown = bool(((gates != 0).sum(-1) < gates.shape[-1]).all())
    require_tag(card, "sparse", shown, "routing that leaves some expert out for every token")


def stochastic_exactly_when_tagged(card: Card) -> None:
    """ "stochastic": two forwards in training differ."""
    gates = _gates(card, build(card).train(), tokens())
    require_tag(card, "stochastic", bool((gates != gates[0]).any()), "forwards that differ")


def learned_exactly_when_tagged(card: Card) -> None:
    """ "learned": every parameter of the router gets a gradient from the weights."""
    router = build(card)
    routing = route(card, router, tokens())
    parameters = list(router.parameters())
    shown = bool(parameters) and routing.weight.requires_grad
    if shown:
        scale = torch.randn(routing.weight.shape, generator=torch.Generator().manual_seed(2))
        (routing.weight * scale).sum().backward()
        shown = all(p.grad is not None and bool((p.grad != 0).any()) for p in parameters)
    require_tag(card, "learned", shown, "weights that carry a gradient to every parameter")


def non_causal_exactly_when_tagged(card: Card) -> None:
    """ "non_causal": another last token changes where earlier ones go."""
    shown = False
    for seed in range(DRAWS):
        x = tokens(seed=seed)
        other = torch.cat([x[:-1], 10 * tokens(1, seed=seed + 100)])
        ours, theirs = (route(card, build(card), each).dense().detach() for each in (x, other))
        shown = shown or not torch.equal(ours[:-1], theirs[:-1])
    require_tag(card, "non_causal", shown, "earlier tokens that follow a later one")
