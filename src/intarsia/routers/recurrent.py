"""Layer-wise recurrent routing (RMoE, arXiv:2408.06793): a GRU along the depth of the model."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from ..core import Card, Paper, Routing
from ..core.schema import check, setting
from ..gating.gate import GateRouter, best, uncast, wide_linear
from ..gating.layer_state import PassesState
from ..gating.router import check_renormalised
from ..gating.settings import ACTIVE, BALANCE_OF_K, EXPERTS, Z


@dataclass(frozen=True)
class Recurrent:
    """The k experts of largest softmax(W2_l h_l), h_l = GRU(W1_l x_l, h_{l-1}), for each token.

    The recurrence goes along the depth of the model for each token, never along the sequence. All
    layers share one GRU cell; h_0 = 0. Each layer has its own W1 (hidden x d) and W2
    (experts x hidden), without bias. Weights of the k chosen experts sum to 1.

    Raises: ConfigError for a setting out of range: k above E, or one renormalised expert of
    several, as its weight would always be 1.
    Source: arXiv:2408.06793, section 3. The cell gets the gradients of all layers, so that it may
    need a smaller rate. Not where a layer must be able to run without the layers before it.
    """

    experts: int = setting(8, EXPERTS)
    active: int = setting(2, ACTIVE, fix="Try 2.")
    hidden: int = setting(128, "The width p of the recurrent state.", least=1, fix="Try 8.")
    std: float = setting(
        0.02, "The standard deviation of the first weights of W2.", least=0, fix="Try 0.01."
    )
    jitter: float = setting(
        0.0,
        "The width epsilon of the factors U(1 - epsilon, 1 + epsilon) on the input in training.",
        least=0,
        below=1,
        fix="Try 0.01.",
    )
    balance: float = setting(0.001, BALANCE_OF_K)
    z: float = setting(0.0, Z)
    carry: bool = setting(
        True,
        "Whether a layer reads the state of the layer before; False = h_{l-1} is 0 at every "
        "layer, a control for the recurrence: a router of two layers that reads its own x "
        "alone.",
    )

    def __post_init__(self) -> None:
        check(self)
        check_renormalised(self.experts, self.active)

    def build(self, width: int, *, generator: torch.Generator | None = None) -> RecurrentRouter:
        """Return a router alone; `gating.join(model)` puts a model's routers on one thread."""
        return RecurrentRouter(self, width, generator=generator)


class RecurrentRouter(GateRouter[Recurrent], PassesState):
    """The router of `Recurrent`.  x: (..., width) -> Routing (rows, E), k experts a row.

    Routing.state: h_l, (rows that are no padding, p), in float32 or better.
    cell: the GRU, in the first layer's router only; the others refer to it.
    """

    normalised = equal_counts = True

    def __init__(
        self, config: Recurrent, width: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, config.hidden, generator=generator)  # W2
        self.down = nn.Parameter(torch.empty(config.hidden, width))  # W1
        nn.init.normal_(self.down, std=width**-0.5, generator=generator)
        self.cell = nn.utils.skip_init(nn.GRUCell, config.hidden, config.hidden)
        for name, parameter in self.cell.named_parameters():
            bound = 0.0 if name.startswith("bias") else config.hidden**-0.5
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
        self._cell = (self.cell,)  # a tuple: no second registration

    @property
    def kin(self) -> Hashable:
        """The key of routers that pass a state on to each other: of one width of the GRU."""
        return RecurrentRouter, self.config.hidden

    def follow(self, first: Self, layer: int) -> None:
        """Make this the router of layer number `layer`, with the GRU cell of the first."""
        super().follow(first, layer)
        (cell,) = first._cell
        self._cell = (cell,)
        # only the first router owns the shared cell: its parameters are saved and counted once
        if first is self:
            self.cell = cell
        elif "cell" in self._modules:
            del self.cell

    def logits(self, rows: Tensor) -> Tensor:
        """Return W2 h_l, and pass h_l = GRU(W1 x, h_{l-1}), (N, p), to the next router."""
        u = wide_linear(rows, self.down)  # eq. 4, (N, p)
        before = self.carried(len(rows)) if self.config.carry else None
        state = self.recur(u, torch.zeros_like(u) if before is None else before)  # eq. 5, h_l
        self.carry(state)
        return wide_linear(state, self.weight)  # eq. 6

    def recur(self, u: Tensor, state: Tensor) -> Tensor:
        """Run the GRU: return h_l from u = W1 x and the previous layer's h_{l-1}, all (N, p).

        state: h_{l-1}, zeros in the first layer. It computes in u's type, also under autocast.
        """
        (cell,) = self._cell
        weights = {name: p.to(u.dtype) for name, p in cell.named_parameters()}
        with uncast(u.device):
            return torch.func.functional_call(cell, weights, (u, state.to(u.dtype)))

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor, None]:
        return best(logits, self.config.active)

    def route(self, rows: Tensor, valid: Tensor | None) -> Routing:
        """Route rows as every gate does, and put the recurrent state h_l into the routing."""
        routing = super().route(rows, valid)
        return replace(routing, state=self.thread.left(self.layer))


CARD = Card(
    "recurrent",
    kind="router",
    config=Recurrent,
    paper=Paper("2408.06793", 2024, "Layerwise Recurrent Router for Mixture-of-Experts"),
    tags=frozenset({"sparse", "learned", "stateful"}),
    tiny={"experts": 4, "active": 2, "hidden": 3},
    summary="Top-k gating on a state that a GRU carries along the depth of the model.",
    family="token choice",
    names=("RMoE", "Layerwise recurrent router"),
)
