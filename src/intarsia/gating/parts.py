"""Gates in k parts, each of which ends on one expert by smooth steps (DSelect-k, COMET)."""

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
    """Return S(u): 0 up to -gamma / 2, 1 from gamma / 2, a cubic between them.

    gamma: width of the band between 0 and 1. The cubic is -2 (u / gamma)^3 + 3/2 (u / gamma) + 1/2.
    Exactly 0 and 1 outside the band, where its gradient is 0: start inside.
    """
    # on [-1/2, 1/2] the cubic has slope 0 at both ends, so that S is smooth
    t = (u / gamma).clamp(-0.5, 0.5)
    return 0.5 + t * (1.5 - 2 * t.square())


def entropy(p: Tensor) -> Tensor:
    """Return the mean over rows of the summed entropies of the parts in nats.

    p: (N, k, E) -> ().
    """
    # at p = 0 the gradient of p log p is infinite
    return -(p * (p + SMALL).log()).sum((-2, -1)).mean()


def unsettled(p: Tensor) -> Tensor:
    """Return the mean entropy of a part over log E: 1 = even, 0 = on one expert.  (N, k, E) -> ().

    p: each part's distribution over the experts. A share and no sum, so that a coefficient means
      the same at every k and E.
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
        """Weight each expert by the sum of k gates; an expert with weight 0 is not used.

        rows: (N, d), tokens; valid: (N,) bool, False = padding, None = no padding. `self.parts`
        computes the k gates, each a distribution over the E experts, and all losses together.
        Losses are returned in training only.
        """
        # padding would count in the losses' mean entropy: the real rows are routed by themselves
        if valid is not None:
            return of_real(rows, valid, lambda real: self.route(real, None))
        parts, losses = self.parts(rows)
        routing = gated(parts.sum(1), rows.dtype)
        return replace(routing, losses=losses if self.training and len(rows) else {})
