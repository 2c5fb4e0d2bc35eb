"""Limits of how many tokens an expert takes: the first, random ones, or the best stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Routing
from ..core.checks import above, at_least, one_of
from ..core.errors import ConfigError
from ..gating import RandomSource
from ..gating.gate import keep_pairs, room_for
from ..kernels.experts import by_expert

POLICIES = ("order", "random", "score")
LOOKS_AHEAD = ("random", "score")  # a later token may take an earlier one's place


@dataclass(frozen=True)
class Capacity:
    """An expert keeps C = max(ceil(c N / E), least) of the N pairs of tokens and experts.

    factor: c while training; 1 leaves room for uniform routing, E or more drops nothing.
    policy: which pairs of a full expert stay,
      "order", the pairs of the first tokens (GShard, arXiv:2006.16668);
      "random", the first pairs of a random order (random token selection of Z-code M3,
      arXiv:2109.10465), which treats early and late tokens alike: while training, a later token may
      take the place of an earlier one;
      "score", the pairs with the largest weights.
    With the latter two a token's fate depends on where later ones go; with "order" it does so only
    through N, if tokens have different numbers of experts.
    least: the smallest C; evaluation: c in evaluation, None = all stay. There the policy "random"
    is "order": an answer is never a matter of luck.
    A dropped token gets 0 from that expert; losses count it all the same.

    Raises: ConfigError on a setting that cannot be, such as no room at all.
    """

    factor: float = 1.25
    policy: str = "order"
    least: int = 4
    evaluation: float | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError unless factors are above 0, the policy is known, and least >= 1."""
        fix = "1 leaves room for uniform routing, E or more drops nothing."
        above("capacity factor", self.factor, 0, fix)
        above("capacity evaluation", 1 if self.evaluation is None else self.evaluation, 0, fix)
        one_of("capacity policy", self.policy, POLICIES)
        at_least("capacity least", self.least, 1, "4 is DeepSpeed's.")

    def room(self, routing: Routing, training: bool) -> int | None:
        """Return how many pairs (token, expert) each expert may keep, or None for no limit.

        routing: the pairs of a batch; their number times a factor, divided by the number of
          experts, is the limit, but at least `least`. training: the factor is `factor`; otherwise
          `evaluation`.
        """
        factor = self.factor if training else self.evaluation
        if factor is None:
            return None
        return max(room_for(factor, len(routing.token), routing.experts), self.least)

    def limit(
        self, routing: Routing, *, training: bool, draws: RandomSource | None = None
    ) -> Routing:
        """Return the routing without the pairs (token, expert) that full experts drop.

        routing: the pairs of a batch; training: True in training mode; draws: the source of the
          random order, needed to train with the policy "random". Raises: ConfigError without it.
        """
        room = self.room(routing, training)
        if room is None:
            return routing
        # numbers of the pairs, in the order in which experts admit them
        if self.policy == "random" and training:
            if draws is None:
                got, fix = "policy='random' and no source of randomness", "Pass a generator."
                raise ConfigError("capacity", got=got, want="draws", fix=fix)
            # a draw for each possible pair, by token: ranks and recomputed forwards then agree
            drawn = draws.drawn(routing.tokens, lambda n: draws.uniform(n, routing.experts))
            drawn = drawn.to(routing.token.device)
            first = drawn[routing.token, routing.expert].argsort(descending=True)
        elif self.policy == "score":
            score = routing.weight.detach().nan_to_num(0)  # a NaN would come first
            first = score.argsort(descending=True, stable=True)
        else:
            first = routing.token.argsort(stable=True)
        # A pair stays if fewer pairs than there is room for come before it.
        return keep_pairs(routing, _place(routing, first) < room)


def _place(routing: Routing, first: Tensor) -> Tensor:
    """Return how many pairs an expert admits before each of the N pairs, (N,) int64."""
    # first: (N,) int64, the numbers of all pairs, in the order in which experts admit them
    pairs = by_expert(routing.expert[first], routing.experts)
    order = first[pairs.order]  # by expert, then as they came
    # a pair's place in the sorted list, less the place where its expert begins
    begin = (pairs.ends - pairs.load)[pairs.expert]
    position = torch.arange(len(order), device=order.device)
    return torch.empty_like(order).scatter(0, order, position - begin)
