"""Which expert? A sparse (tokens x experts) matrix in coordinate form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .errors import ShapeError


def _no_losses() -> dict[str, Tensor]:
    return {}


@dataclass(frozen=True)
class Routing:
    """The matrix G of shape (T, E) with entries `weight[n]` at (`token[n]`, `expert[n]`).

    token, expert: (N,) int64;  weight: (N,);  losses: named scalars for the caller to add;
    state: what the next layer's router remembers, if anything.
    Token-choice, expert-choice, top-p, soft, hash, per-sequence and random draws all have this
    form. A "token" is whatever is routed: a token, or a whole sample.

    Raises: ShapeError unless the three vectors have one length; so do `from_topk` and `from_dense`
    for anything but matrices.
    """

    token: Tensor
    expert: Tensor
    weight: Tensor
    tokens: int
    experts: int
    losses: Mapping[str, Tensor] = field(default_factory=_no_losses)
    state: Tensor | None = None

    def __post_init__(self) -> None:
        """Check that token, expert and weight are vectors of one length.  Raises: ShapeError."""
        if not self.token.shape == self.expert.shape == self.weight.shape or self.token.dim() != 1:
            got = ", ".join(str(tuple(t.shape)) for t in (self.token, self.expert, self.weight))
            fix = "Build it with Routing.from_topk or Routing.from_dense."
            raise ShapeError("routing", got=got, want="three vectors of one length", fix=fix)

    @classmethod
    def from_topk(
        cls,
        index: Tensor,
        weight: Tensor,
        experts: int,
        losses: Mapping[str, Tensor] | None = None,
        state: Tensor | None = None,
    ) -> Routing:
        """Build the routing of k experts for each token.

        index: (T, k) int64, the experts; weight: (T, k). experts: E. losses: named scalars to add
        to the task's loss; state: for the next layer's router.
        Raises: ShapeError for anything but two matrices of one shape.
        """
        if index.shape != weight.shape or index.dim() != 2:
            got = f"{tuple(index.shape)} and {tuple(weight.shape)}"
            fix = "Pass the outputs of topk as they are."
            raise ShapeError("top-k routing", got=got, want="two matrices (T, k)", fix=fix)
        tokens, k = index.shape
        # row t of the index becomes k entries of token t
        token = torch.arange(tokens, device=index.device).repeat_interleave(k)
        return cls(
            token, index.reshape(-1), weight.reshape(-1), tokens, experts, losses or {}, state
        )

    @classmethod
    def from_dense(
        cls, gates: Tensor, losses: Mapping[str, Tensor] | None = None, state: Tensor | None = None
    ) -> Routing:
        """Build a routing from the non-zero entries of a gate matrix.

        gates: (T, E). losses: named scalars to add to the task's loss; state: for the next layer's
        router.
        Raises: ShapeError for anything but a matrix.
        """
        if gates.dim() != 2:
            subject, got = "gates", tuple(gates.shape)
            raise ShapeError(subject, got=got, want="(T, E)", fix="Flatten the batch to tokens.")
        token, expert = gates.nonzero(as_tuple=True)
        tokens, experts = gates.shape
        return cls(token, expert, gates[token, expert], tokens, experts, losses or {}, state)

    def dense(self) -> Tensor:
        """Return the gate matrix (T, E); entries given twice add up."""
        gates = self.weight.new_zeros(self.tokens * self.experts)
        # entry (t, e) of the matrix, counted row by row
        flat = self.token * self.experts + self.expert
        return gates.index_add(0, flat, self.weight).view(self.tokens, self.experts)

    def load(self) -> Tensor:
        """Count the (token, expert) pairs that each expert received.  Returns (E,) int64."""
        none = self.expert.new_zeros(self.experts)
        return none.index_add(0, self.expert, torch.ones_like(self.expert))
