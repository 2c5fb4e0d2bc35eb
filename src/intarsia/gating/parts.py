"""Gates in k parts that each end on one expert by smooth steps (DSelect-k, COMET)."""

from __future__ import annotations

import abc
import math
from dataclasses import replace

from torch import Tensor

from ..core import Routing
from ..core.checks import at_least
from .gate import gated, of_real
from .router import Router

SMALL = 1e-6


def smooth_step(u: Tensor, gamma: float) -> Tensor:
    """Return a smooth step from 0 to 1: 0 up to -gamma / 2, 1 from gamma / 2, a cubic between them.

    gamma: width of the band between 0 and 1, in which the step is the cubic -2 (u / gamma)^3 + 3/2
    (u / gamma) + 1/2. Outside the band the gradient is exactly 0, so that a parameter has to start
    inside it.
    """
    # on [-1/2, 1/2] the cubic has slope 0 at both ends, so that the step is smooth
    t = (u / gamma).clamp(-0.5, 0.5)
    return 0.5 + t * (1.5 - 2 * t.square())


def entropy(p: Tensor) -> Tensor:
    """Return the entropy in nats of k gates, summed over the gates and averaged over tokens.

    p: (N, k, E), for each of N tokens the distribution of each gate over E experts. 0-dimensional.
    """
    # at p = 0 the gradient of p log p is infinite
    return -(p * (p + SMALL).log()).sum((-2, -1)).mean()


def unsettled(p: Tensor) -> Tensor:
    """Return how undecided gates are: their mean entropy divided by log E.  (N, k, E) -> ().

    p: for each of N tokens, the distribution of each of k gates over E experts. 1 = all are even,
    0 = each is on one expert, whatever k and E are.
    """
    return entropy(p) / (p.shape[-2] * math.log(max(2, p.shape[-1])))


class PartsRouter(Router):
    """g = sum_t g_t, where each of k parts ends on one expert: |g|_0 <= k once all have settled.

    x: (..., d) -> Routing of shape (rows, E), zeros left out; before it has settled a gate is
    denser, up to all E. Gates are in float32 or better, under autocast as well.
    Losses are there while training.
    """

    def __init__(self, experts: int, active: int) -> None:
        super().__init__(experts)
        at_least("active", active, 1, "Try 2.")
        self.active = active

    @abc.abstractmethod
    def parts(self, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the gates g_t of each of the k parts, (N, k, E), and the losses by name.

        rows: (N, d), N may be 0.
        """

    def route(self, rows: Tensor, valid: Tensor | None) -> Routing:
        """Route tokens by the sum of k gates; an expert with a summed weight of 0 is not used.

        Each gate is a distribution over the E experts (`self.parts`). Losses: in training only.
        """
        # padding would count in the losses' mean entropy: the real rows are routed alone
        if valid is not None:
            return of_real(rows, valid, lambda real: self.route(real, None))
        parts, losses = self.parts(rows)
        # (N, E): the sum over the k gates; only its nonzero entries become pairs
        routing = gated(parts.sum(1), rows.dtype)
        return replace(routing, losses=losses if self.training and len(rows) else {})
