"""Laws of a router: x (T, width) -> a Routing of T tokens, and nothing kept or drawn elsewhere."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from ..core import Card, Routing
from ..core.registry import settings_to_dict
from ..gating import PassesState, Router, expert_readers
from .batches import BATCH_LAWS, build, gates, route, shown, tokens
from .cards import CARD_LAWS, tiny
from .made import normal, require_own_draws
from .verdict import Law, laws_of, require, require_close, require_finite, require_tag

DRAWS = 20


def returns_a_routing(card: Card) -> None:
    """Check for a Routing with finite weights and scalar losses, and an unchanged input."""
    x = tokens()
    before = x.clone()
    routing = route(build(card), x)
    require_finite(routing.weight, "weights", "Guard the division.")
    # the caller adds them up
    scalars = all(loss.dim() == 0 for loss in routing.losses.values())
    require(scalars, "losses with axes", "scalars", "Take their mean.")
    unchanged = torch.equal(x, before)
    require(unchanged, "an x that was written to", "x as given", "Copy it first.")


def routes_one_token(card: Card) -> None:
    """Check that a single token can be routed."""
    route(build(card), tokens(1))


def follows_device_and_dtype(card: Card) -> None:
    """Check that the router's weights have the device and the dtype of x."""
    for x in (tokens().double(), tokens().to("meta")):
        router = shown(build(card).to(x.device, x.dtype), x)
        weight = route(router, x).weight
        follows = (weight.dtype, weight.device.type) == (x.dtype, x.device.type)
        fix = "Make new tensors from x: x.new_zeros, x.device."
        require(
            follows, f"weights {weight.dtype} on {weight.device}", f"{x.dtype} on {x.device}", fix
        )


def _resized(card: Card, **sizes: int) -> nn.Module | None:
    """Return the card's router with other sizes; None if its config has no such settings."""
    config = tiny(card)
    # a router without such a setting is left out
    if not sizes.keys() <= {f.name for f in dataclasses.fields(config)}:
        return None
    return build(card, **sizes)


def gives_one_expert_all(card: Card) -> None:
    """Check that a router with a single expert sends it every token, with weight 1."""
    # some configs fix k, and have no setting `active`
    router = _resized(card, experts=1, active=1) or _resized(card, experts=1)
    if router is None:
        return
    weights, fix = gates(router, tokens()), "A probability among one is 1."
    require_close(weights, torch.ones_like(weights), "weights of the only expert", fix)


def leaves_nobody_out_at_k_of_k(card: Card) -> None:
    """Check that a router that chooses all E of E experts sends every token to each of them."""
    experts = settings_to_dict(tiny(card)).get("experts", 0)
    router = _resized(card, experts=experts, active=experts)
    if router is None:
        return
    all_used, fix = bool((gates(router, tokens()) != 0).all()), "k = E is the dense mixture."
    require(all_used, "experts without a token", "all of them", fix)


def stands_extreme_inputs(card: Card) -> None:
    """Check that the router's weights are finite and not negative for huge inputs and for zeros."""
    # exp(1e5) overflows without subtracting the largest logit
    for scale in (0.0, 1e5):
        weight = route(build(card), scale * tokens()).weight.detach()
        fine = bool((torch.isfinite(weight) & (weight >= 0)).all())
        fix = "Use softmax, which subtracts the largest logit."
        require(fine, f"weights {weight} at inputs times {scale}", "0 or more, finite", fix)


def leaves_padding_out(card: Card) -> None:
    """Check that the router gives padding no expert, and other tokens and losses do not change.

    Routers that draw are left out: they draw for whole samples.
    """
    router = build(card)
    if "stochastic" in card.tags or not isinstance(router, Router):
        return
    x, valid = tokens(), torch.tensor([True, True, False, True, False])
    alone = route(router, x[valid])
    # padding that holds other numbers must change nothing
    for batch in (x, torch.where(valid[:, None], x, 7 * tokens(seed=9))):
        router.context.valid = valid[None]
        routing = route(router, batch)
        dense = routing.dense().detach()
        none = not bool(dense[~valid].any())
        require(none, "experts for padding", "none", "Heed `valid`.")
        pairs = {"weights": (dense[valid], alone.dense().detach())}
        pairs |= {n: (routing.losses[n].detach(), v.detach()) for n, v in alone.losses.items()}
        for name, (got, want) in pairs.items():
            fix = "Leave rows where `valid` is False out of every sum."
            require_close(got, want, f"{name} with and without padding", fix)


def evaluates_without_chance(card: Card) -> None:
    """Check that a learned router gives the same bits each time in evaluation."""
    router = build(card).eval()
    if isinstance(router, Router):
        drawn = _drawn(router, tokens())
        equal = not bool((drawn != drawn[0]).any())
        require(equal, "evaluations that differ", "the same bits", "Draw in training only.")


def capacity_exactly_when_tagged(card: Card) -> None:
    """Check that the card has the tag "capacity" exactly if experts depend on the tokens' order.

    Routers that draw are left out.
    """
    if "stochastic" in card.tags:
        return
    differ = False
    for seed in range(DRAWS):
        x = tokens(seed=seed)
        # reversed tokens: a capacity keeps the first ones, others do not care
        ours, theirs = (gates(build(card), batch) for batch in (x, x.flip(0)))
        differ = differ or not torch.allclose(ours, theirs.flip(0), atol=1e-6)
    require_tag(card, "capacity", differ, "experts that go by a token's place")


def _drawn(router: nn.Module, x: Tensor) -> Tensor:
    """Return the weights of the experts in DRAWS forwards of the same tokens, (DRAWS, T, E)."""
    return torch.stack([gates(router, x) for _ in range(DRAWS)])


def draws_from_its_generator(card: Card) -> None:
    """Check that the router's draws follow from its generator, whatever torch's own does."""
    fix = "Draw from the generator that build was given."
    require_own_draws(lambda: [_drawn(build(card), tokens())], "routings that differ", fix)


def sparse_exactly_when_tagged(card: Card) -> None:
    """Check that the card has the tag "sparse" exactly if no token goes to every expert."""
    drawn = _drawn(build(card), tokens())
    sparse = bool(((drawn != 0).sum(-1) < drawn.shape[-1]).all())
    require_tag(card, "sparse", sparse, "routing that leaves some expert out for every token")


def stochastic_exactly_when_tagged(card: Card) -> None:
    """Check that the card has the tag "stochastic" exactly if two forwards in training differ."""
    drawn = _drawn(build(card).train(), tokens())
    require_tag(card, "stochastic", bool((drawn != drawn[0]).any()), "forwards that differ")


def learned_exactly_when_tagged(card: Card) -> None:
    """Check that the card has the tag "learned" exactly if every parameter gets a gradient."""
    router = build(card)
    routing = after_a_layer(router, tokens())
    read = [t for reader in expert_readers(router) for t in reader.encoder() if t is not None]
    parameters = [*router.parameters(), *read]
    learned = bool(parameters) and routing.weight.requires_grad
    if learned:
        # a random direction, because the sum of renormalised weights has no gradient
        scale = normal(*routing.weight.shape, seed=2)
        (routing.weight * scale).sum().backward()
        learned = all(p.grad is not None and bool((p.grad != 0).any()) for p in parameters)
    require_tag(card, "learned", learned, "weights that carry a gradient to every parameter")


def after_a_layer(router: nn.Module, x: Tensor, seed: int = 4) -> Routing:
    """Route x as in a second layer: the router of the first layer has left a random state.

    router: the one that is tested; a router without such states only routes x. x: tokens (T, d).
    Returns the routing of the T tokens.
    """
    routing = route(router, x)
    if routing.state is None or not isinstance(router, PassesState):
        return routing
    state = normal(*routing.state.shape, seed=seed)
    router.thread.leave(router.layer - 1, state.to(routing.state))
    return route(router, x)


def stateful_exactly_when_tagged(card: Card) -> None:
    """Check that the card is tagged "stateful" exactly if the last layer's state changes routing.

    Routers that draw are left out.
    """
    if "stochastic" in card.tags:
        return
    weights = [after_a_layer(build(card).eval(), tokens(), s).dense() for s in range(DRAWS)]
    differ = any(not torch.equal(after, weights[0]) for after in weights)
    require_tag(card, "stateful", differ, "routing that hears the layer before")


def non_causal_exactly_when_tagged(card: Card) -> None:
    """Check that the card is tagged "non_causal" exactly if later tokens decide earlier ones."""
    differ = False
    for seed in range(DRAWS):
        x = tokens(seed=seed)
        # a large last token changes every sum over the sequence
        changed = torch.cat([x[:-1], 10 * tokens(1, seed=seed + 100)])
        ours, theirs = (gates(build(card), batch) for batch in (x, changed))
        differ = differ or not torch.equal(ours[:-1], theirs[:-1])
    require_tag(card, "non_causal", differ, "earlier tokens that follow a later one")


LAWS: tuple[Law, ...] = (*CARD_LAWS, *laws_of(__name__), *BATCH_LAWS)
