"""Laws of a router: x (T, width) -> a Routing of T tokens, and nothing kept or drawn elsewhere."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from ..core import Card, Routing
from ..gating import PassesState, Router, expert_readers
from .batches import BATCH_LAWS, build, route, shown, tokens
from .cards import CARD_LAWS, tiny
from .verdict import Law, require, require_close, require_tag

DRAWS = 20


def returns_a_routing(card: Card) -> None:
    """A Routing with finite weights, and scalars as losses; x stays as it was."""
    x = tokens()
    before = x.clone()
    routing = route(build(card), x)
    finite = bool(torch.isfinite(routing.weight).all())
    require(finite, got="weights that are not finite", want="numbers", fix="Guard the division.")
    scalars = all(loss.dim() == 0 for loss in routing.losses.values())
    require(scalars, got="losses with axes", want="scalars", fix="Take their mean.")
    same = torch.equal(x, before)
    require(same, got="an x that was written to", want="x as given", fix="Copy it first.")


def routes_one_token(card: Card) -> None:
    """A single token is a batch too."""
    route(build(card), tokens(1))


def follows_device_and_dtype(card: Card) -> None:
    """Weights are where x is and of its type."""
    for x in (tokens().double(), tokens().to("meta")):
        router = shown(build(card).to(x.device, x.dtype), x)
        weight = route(router, x).weight
        same = (weight.dtype, weight.device.type) == (x.dtype, x.device.type)
        require(
            same,
            got=f"weights {weight.dtype} on {weight.device}",
            want=f"{x.dtype} on {x.device}",
            fix="Make new tensors from x: x.new_zeros, x.device.",
        )


def _resized(card: Card, **sizes: int) -> nn.Module | None:
    """A tiny router of other sizes; None if its config does not speak of all of them."""
    config = tiny(card)
    if not sizes.keys() <= {f.name for f in dataclasses.fields(config)}:
        return None
    return build(card, **sizes)


def gives_one_expert_all(card: Card) -> None:
    """E = 1: the one expert has every token, with weight 1."""
    router = _resized(card, experts=1, active=1) or _resized(card, experts=1)
    if router is None:
        return
    gates = route(router, tokens()).dense().detach()
    require_close(
        gates,
        torch.ones_like(gates),
        what="weights of the only expert",
        fix="A probability among one is 1.",
    )


def leaves_nobody_out_at_k_of_k(card: Card) -> None:
    """k = E: every expert has every token."""
    experts = getattr(tiny(card), "experts", 0)
    router = _resized(card, experts=experts, active=experts)
    if router is None:
        return
    gates = route(router, tokens()).dense()
    require(
        bool((gates != 0).all()),
        got="experts without a token",
        want="all of them",
        fix="k = E is the dense mixture.",
    )


def stands_extreme_inputs(card: Card) -> None:
    """Weights are finite and not negative, whatever the scale of the input."""
    for scale in (0.0, 1e5):
        weight = route(build(card), scale * tokens()).weight.detach()
        fine = bool((torch.isfinite(weight) & (weight >= 0)).all())
        require(
            fine,
            got=f"weights {weight} at inputs times {scale}",
            want="0 or more, finite",
            fix="Use softmax, which subtracts the largest logit.",
        )


def leaves_padding_out(card: Card) -> None:
    """Padding gets no expert, and what it holds changes neither other tokens nor losses.

    Not asked of routers that draw: they draw for whole samples.
    """
    router = build(card)
    if "stochastic" in card.tags or not isinstance(router, Router):
        return
    x, valid = tokens(), torch.tensor([True, True, False, True, False])
    alone = route(router, x[valid])
    for other in (x, torch.where(valid[:, None], x, 7 * tokens(seed=9))):
        router.context.valid = valid[None]
        routing = route(router, other)
        gates = routing.dense().detach()
        none = not bool(gates[~valid].any())
        require(none, got="experts for padding", want="none", fix="Heed `valid`.")
        same = {"weights": (gates[valid], alone.dense().detach())}
        same |= {n: (routing.losses[n].detach(), v.detach()) for n, v in alone.losses.items()}
        for what, (got, want) in same.items():
            require_close(
                got,
                want,
                what=f"{what} with and without padding",
                fix="Leave rows where `valid` is False out of every sum.",
            )


def evaluates_without_chance(card: Card) -> None:
    """A learned router says the same twice in evaluation."""
    router = build(card).eval()
    if isinstance(router, Router):
        gates = _gates(router, tokens())
        same = not bool((gates != gates[0]).any())
        require(
            same, got="evaluations that differ", want="the same bits", fix="Draw in training only."
        )


def capacity_exactly_when_tagged(card: Card) -> None:
    """ "capacity": tokens in another order get other experts.  Not asked of routers that draw."""
    if "stochastic" in card.tags:
        return
    shown = False
    for seed in range(DRAWS):
        x = tokens(seed=seed)
        ours, theirs = (route(build(card), each).dense() for each in (x, x.flip(0)))
        shown = shown or not torch.allclose(ours, theirs.flip(0), atol=1e-6)
    require_tag(card, "capacity", shown, "experts that go by a token's place")


def _gates(router: nn.Module, x: Tensor, count: int = DRAWS) -> Tensor:
    return torch.stack([route(router, x).dense().detach() for _ in range(count)])


def draws_from_its_generator(card: Card) -> None:
    """One seed, one sequence of draws, whatever torch's own generator does."""
    found: list[Tensor] = []
    for seed in (3, 4):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found.append(_gates(build(card), tokens()))
    require_close(
        found[1],
        found[0],
        what="routings of one seed",
        fix="Draw from the generator that build was given.",
    )


def sparse_exactly_when_tagged(card: Card) -> None:
    """ "sparse": no token goes to every expert."""
    gates = _gates(build(card), tokens())  # (draws, T, E)
    shown = bool(((gates != 0).sum(-1) < gates.shape[-1]).all())
    require_tag(card, "sparse", shown, "routing that leaves some expert out for every token")


def stochastic_exactly_when_tagged(card: Card) -> None:
    """ "stochastic": two forwards in training differ."""
    gates = _gates(build(card).train(), tokens())
    require_tag(card, "stochastic", bool((gates != gates[0]).any()), "forwards that differ")


def learned_exactly_when_tagged(card: Card) -> None:
    """ "learned": every parameter of the router, and of what it reads, gets a gradient."""
    router = build(card)
    routing = after_a_layer(router, tokens())
    read = [t for reader in expert_readers(router) for t in reader.encoder() if t is not None]
    parameters = [*router.parameters(), *read]
    shown = bool(parameters) and routing.weight.requires_grad
    if shown:
        scale = torch.randn(routing.weight.shape, generator=torch.Generator().manual_seed(2))
        (routing.weight * scale).sum().backward()
        shown = all(p.grad is not None and bool((p.grad != 0).any()) for p in parameters)
    require_tag(card, "learned", shown, "weights that carry a gradient to every parameter")


def after_a_layer(router: nn.Module, x: Tensor, seed: int = 4) -> Routing:
    """The routing of a router that is not the first of its thread, if it is on one."""
    routing = route(router, x)
    if routing.state is None or not isinstance(router, PassesState):
        return routing
    left = torch.randn(routing.state.shape, generator=torch.Generator().manual_seed(seed))
    router.thread.leave(router.layer - 1, left.to(routing.state))
    return route(router, x)


def stateful_exactly_when_tagged(card: Card) -> None:
    """ "stateful": what the layer before left changes the routing."""
    if "stochastic" in card.tags:
        return
    gates = [after_a_layer(build(card).eval(), tokens(), s).dense() for s in range(DRAWS)]
    shown = any(not torch.equal(g, gates[0]) for g in gates)
    require_tag(card, "stateful", shown, "routing that hears the layer before")


def non_causal_exactly_when_tagged(card: Card) -> None:
    """ "non_causal": another last token changes where earlier ones go."""
    shown = False
    for seed in range(DRAWS):
        x = tokens(seed=seed)
        other = torch.cat([x[:-1], 10 * tokens(1, seed=seed + 100)])
        ours, theirs = (route(build(card), each).dense().detach() for each in (x, other))
        shown = shown or not torch.equal(ours[:-1], theirs[:-1])
    require_tag(card, "non_causal", shown, "earlier tokens that follow a later one")


LAWS: tuple[Law, ...] = (
    *CARD_LAWS,
    returns_a_routing,
    routes_one_token,
    follows_device_and_dtype,
    draws_from_its_generator,
    gives_one_expert_all,
    leaves_nobody_out_at_k_of_k,
    stands_extreme_inputs,
    leaves_padding_out,
    evaluates_without_chance,
    capacity_exactly_when_tagged,
    sparse_exactly_when_tagged,
    stochastic_exactly_when_tagged,
    learned_exactly_when_tagged,
    non_causal_exactly_when_tagged,
    stateful_exactly_when_tagged,
    *BATCH_LAWS,
)
