"""Laws of a router on batches that break naive ones: empty, of padding or NaN, long, too wide."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..core import Card, Routing
from ..core.errors import IntarsiaError
from ..gating import ChangesByStep, Router, expert_readers, start
from .cards import tiny
from .made import normal, seeded
from .verdict import Broken, laws_of, require, require_close, require_finite

WIDTH, TOKENS = 6, 5
UNITS = 7  # of an expert
MANY = 256  # enough that T x T numbers outnumber everything that is linear in T


class Toy:
    """ReLU experts for a router that reads its experts: their encoder alone."""

    def __init__(self, experts: int, like: Tensor) -> None:
        """Draw W (E, UNITS, WIDTH) and b (E, UNITS), on the device and of the type of `like`."""
        draw = seeded(5)
        shapes = (experts, UNITS, WIDTH), (experts, UNITS)
        self.weight, self.bias = (
            torch.randn(s, generator=draw).to(like).requires_grad_() for s in shapes
        )

    def encoder(self) -> tuple[Tensor, Tensor]:
        return self.weight, self.bias


def build(card: Card, seed: int = 0, **sizes: int) -> nn.Module:
    """Build a card's router with the tiny settings that the card names for tests.

    A router that reads the weights of its experts gets random ones. sizes: settings that replace
    tiny ones, such as experts=1.
    """
    router = dataclasses.replace(tiny(card), **sizes).build(WIDTH, generator=seeded(seed))
    # the empty tensor says that experts to read are made in float32 on the CPU
    return shown(router, torch.empty(()))


def shown(router: nn.Module, like: Tensor) -> nn.Module:
    """Give a router that reads its experts' weights random experts to read; return the router.

    like: a tensor with the device and dtype that the experts' weights get.
    """
    for reader in expert_readers(router):
        reader.see(Toy(cast(Any, router).experts, like))
    return router


def tokens(count: int = TOKENS, seed: int = 1) -> Tensor:
    """Return random tokens, (count, WIDTH), the same for a seed."""
    return normal(count, WIDTH, seed=seed)


def route(router: nn.Module, x: Tensor) -> Routing:
    """Route tokens, and check that the result is a routing of all of them to experts that exist.

    x: (T, d). Raises: Broken for another result.
    """
    routing: Any = router(x)
    fix = "Build it with Routing.from_topk or Routing.from_dense."
    require(isinstance(routing, Routing), type(routing).__name__, "a Routing", fix)
    holds = routing.tokens == len(x)
    # meta tensors have no values to look at
    if routing.token.device.type != "meta":
        for index, count in ((routing.token, len(x)), (routing.expert, routing.experts)):
            holds = holds and bool(((index >= 0) & (index < count)).all())
    got = f"{routing.tokens} tokens, {routing.experts} experts"
    require(holds, got, f"{len(x)} tokens", "Route every token once, to experts that exist.")
    return routing


def gates(router: nn.Module, x: Tensor) -> Tensor:
    """Return the weight of each expert for each token, (T, E), without a graph.  x: (T, d)."""
    # without a graph: only values are compared
    return route(router, x).dense().detach()


def _checked_routing(call: Callable[[], Routing], condition: str) -> Routing:
    """Call a function that routes; check that weights and losses are finite; return the routing."""
    try:
        routing = call()
    except Broken:
        raise
    # whatever torch raises for an empty tensor
    except Exception as error:
        name = type(error).__name__
        fix = "Take no maximum, mean or index of what may be empty."
        raise Broken(f"{name} ({error}) at {condition}", "a routing", fix) from error
    for value in (routing.weight, *routing.losses.values()):
        require_finite(value, f"weights or losses at {condition}", "Divide by at least one token.")
    return routing


def routes_an_empty_batch(card: Card) -> None:
    """Check that the router gives no pair for no token, with finite losses, in both modes."""
    # a loss that divides by the number of tokens, or a maximum over none, fails here
    for training in (True, False):
        router = build(card).train(training)
        routing = _checked_routing(lambda r=router: route(r, tokens(0)), "an empty batch")
        require(not len(routing.token), "pairs of no tokens", "none", "Count the rows.")


def routes_padding_alone(card: Card) -> None:
    """Check that the router gives a batch of padding no expert, and finite losses.

    Routers with the tag "stochastic", which draw for whole samples, may give padding an expert.
    """
    router = build(card).train()
    # a random router reads no padding
    if not isinstance(router, Router):
        return
    router.context.valid = torch.zeros(1, TOKENS, dtype=torch.bool)
    routing = _checked_routing(lambda: route(router, tokens()), "padding alone")
    none = not len(routing.token) or "stochastic" in card.tags
    require(none, "experts for padding", "none", "Heed `valid`.")


def keeps_a_nan_in_its_row(card: Card) -> None:
    """Check that a token of NaN values gets an expert, and other tokens are routed as without it.

    Where tokens compete for experts (tag "non_causal") the token may get none, and others may be
    routed otherwise, but their weights stay finite.
    """
    # token 2 of 5: rows before and behind it must both stay
    x, bad = tokens(), 2
    broken = x.clone()
    broken[bad] = torch.nan
    finite_rows = torch.arange(TOKENS) != bad
    want, got = (gates(build(card).eval(), rows) for rows in (x, broken))
    # a NaN at the end of a competition may push another token out, but not spoil its weights
    if "non_causal" in card.tags:
        holds = bool(got[finite_rows].isfinite().all() and (got[finite_rows] != 0).any())
        fix = "Rank a token of NaN last, and leave it out of every sum over tokens."
        require(holds, "weights of other tokens that are not finite, or none", "numbers", fix)
        return
    fix = "Take no sum over tokens."
    require_close(
        got[finite_rows], want[finite_rows], "weights beside a token of NaN and without it", fix
    )
    one_expert = "one at least, so that the NaN is seen in its output"
    fix = "Drop pairs by `~(weight <= 0)`: a NaN is not above 0."
    require(bool((got[bad] != 0).any()), "no expert for a token of NaN", one_expert, fix)


def counts_a_logit_of_zero(card: Card) -> None:
    """Check that tokens of zeros, with logits that may all be 0, get experts like other tokens.

    Where tokens compete for experts (tag "non_causal") it is enough if one of them gets an expert.
    """
    # ReLU gates and top-p have ties at zero
    has_expert = gates(build(card).eval(), torch.zeros(TOKENS, WIDTH)).sum(1) > 0
    holds = bool(has_expert.any() if "non_causal" in card.tags else has_expert.all())
    fix = "Tell who is chosen by index, not by a logit that differs from 0."
    require(holds, "no expert for a token of zeros", "experts", fix)


def evaluates_as_it_trains(card: Card) -> None:
    """Check that a router routes alike in training and in evaluation, up to its capacity.

    Routers that draw random numbers are left out. A capacity drops pairs in training alone.
    """
    if "stochastic" in card.tags:
        return
    trained, evaluated = (gates(build(card).train(on), tokens()) for on in (True, False))
    # capacity drops pairs in training alone: compare the rest
    if "capacity" in card.tags:
        evaluated = torch.where(trained != 0, evaluated, 0.0)
    fix = "Differ by noise and capacity only."
    require_close(evaluated, trained, "weights in evaluation and in training", fix)


def heeds_no_autocast(card: Card) -> None:
    """Check that the weights that the router gives have the same bits with autocast and without."""
    want = gates(build(card).eval(), tokens())
    with torch.autocast("cpu", torch.bfloat16):
        got = gates(build(card).eval(), tokens())
    fault, fix = "weights that autocast changes", "Compute logits as gating.gate.wide_linear does."
    require(got.dtype == want.dtype and torch.equal(got, want), fault, "those of float32", fix)


class _Largest(TorchDispatchMode):
    """A mode that notes the bytes of the largest tensor that is made while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator of torch, and note the bytes of its largest result."""
        # every operator of the forward is seen, also those inside other libraries
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


def grows_with_tokens_alone(card: Card) -> None:
    """Check that twice the tokens T at most double the router's largest tensor: no T x T tensor."""
    sizes: list[int] = []
    # a one-hot of (T, E, C) places grows with T x T, as C grows with T
    for count in (MANY, 2 * MANY):
        router, x = build(card).train(), tokens(count)
        with _Largest() as largest:
            route(router, x)
        sizes.append(largest.bytes)
    holds = sizes[1] <= 2 * sizes[0]
    got = f"{sizes[0]:,} bytes for {MANY} tokens, {sizes[1]:,} for twice as many"
    require(holds, got, "twice as many", "Keep pairs of token and expert, not a one-hot of places.")


def forgets_the_batch_before(card: Card) -> None:
    """Check that after `gating.start` the router's routing does not depend on earlier batches.

    Routers that draw are left out.
    """
    if "stochastic" in card.tags:
        return
    used, fresh = build(card), build(card)
    # a larger batch first, so that leftovers would not fit the next one
    route(used.train(), tokens(2 * TOKENS, seed=7))
    start(used)
    ours, theirs = (gates(r.eval(), tokens()) for r in (used, fresh))
    fix = "Keep nothing of a batch that decides about the next."
    require_close(ours, theirs, "weights after another batch and without it", fix)


def gives_as_many_if_it_says_so(card: Card) -> None:
    """Check that a router with `equal_counts` gives each token as many experts as any other."""
    # zeros, normal numbers, and logits so large that others round to 0
    for scale in (0.0, 1.0, 1e4):
        router = build(card).train()
        if isinstance(router, Router) and router.equal_counts:
            routing = route(router, scale * tokens())
            counts = routing.token.bincount(minlength=TOKENS)
            holds, got = bool((counts == counts[0]).all()), f"{counts.tolist()} experts a token"
            require(holds, got, "as many for each", "Leave `equal_counts` False.")


def comes_back_from_its_state(card: Card) -> None:
    """Check that the router's state dict holds everything that decides in evaluation."""
    saved, fresh = build(card).eval(), build(card, seed=5).eval()
    if not isinstance(saved, Router):
        return
    fresh.load_state_dict(saved.state_dict())
    ours, theirs = (gates(r, tokens()) for r in (fresh, saved))
    fix = "Register what is drawn or scheduled as a parameter or a buffer."
    require_close(ours, theirs, "weights of a router and of its copy through a state dict", fix)


def remembers_its_steps(card: Card) -> None:
    """Check that the router's state dict holds what `before_step` changes, for a resumed run."""
    run, resumed = build(card).train(), build(card, seed=5).train()
    if not isinstance(run, ChangesByStep) or not isinstance(resumed, ChangesByStep):
        return
    # several steps, so that a counter or a mean differs from its start
    for step in range(8):
        run.before_step(step, 10)
        route(run, tokens(seed=step))
    resumed.load_state_dict(run.state_dict())
    results: list[dict[str, Tensor]] = []
    for router in (run, resumed):
        router.before_step(8, 10)
        routing = route(router.train("stochastic" not in card.tags), tokens())
        losses = {name: loss.detach() for name, loss in routing.losses.items()}
        results.append(losses | {"weights": routing.dense().detach()})
    for part, want in results[0].items():
        fix = "Keep what `before_step` reads and changes in buffers."
        require_close(results[1][part], want, f"{part} of a run and of one resumed", fix)


def says_what_width_it_takes(card: Card) -> None:
    """Check that the router takes tokens of another width, or raises an error of this library."""
    try:
        route(build(card), torch.ones(TOKENS, WIDTH + 1))
    except (Broken, IntarsiaError) as error:
        if isinstance(error, Broken):
            raise
    # torch's own message about shapes does not name the router
    except Exception as error:
        got, want = f"{type(error).__name__} ({error}) at another width", "a ShapeError"
        raise Broken(got, want, "Compute logits as gating.gate.wide_linear does.") from error


BATCH_LAWS = laws_of(__name__)
