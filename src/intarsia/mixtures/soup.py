"""A linear map with N dense experts that are averaged after training (AdaMix, arXiv:2205.12410)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.linear import plain_linear
from .routed import check_gates


class SoupLinear(nn.Module):
    """N whole linear maps; training uses the mean of the active ones, the merge is the mean of all.

    x: (B, ..., in), gates: (G, N) of zeros and ones; G divides B, each gate serves B / G rows.
    Costs N times the parameters of one map while training, nothing after.
    Raises: ShapeError when gates and rows do not fit.
    """

    def __init__(self, base: nn.Linear, experts: int, *, active: int = 1) -> None:
        super().__init__()
        self.experts, self.active = experts, active
        self.in_features, self.out_features = base.in_features, base.out_features
        # each expert begins as the map itself
        self.weights = nn.Parameter(base.weight.detach().expand(experts, -1, -1).clone())
        self.biases = (
            None
            if base.bias is None
            else nn.Parameter(base.bias.detach().expand(experts, -1).clone())
        )

    def merged(self) -> nn.Linear:
        """Return the plain linear layer that stands for the experts after training."""
        bias = None if self.biases is None else self.biases.mean(0)
        return plain_linear(self.weights.mean(0), bias)

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        """Apply the mean of the active maps; without gates the mean of all.

        x: (B, ..., in); gates: (G, N) of zeros and ones, 1 = active: a row for each B / G
          consecutive samples, G a divisor of B; None = evaluation.  -> (B, ..., out).
        """
        # evaluation, and an empty batch, use the mean of all experts
        if gates is None or not x.shape[0]:
            bias = None if self.biases is None else self.biases.mean(0)
            return F.linear(x, self.weights.mean(0), bias)
        check_gates(gates, self.experts, len(x))
        groups = len(gates)
        # a mean of maps is the map of mean weights: one product for each gate
        share = gates.to(self.weights.dtype) / self.active
        weight = torch.einsum("gn,noi->gio", share, self.weights)  # (G, in, out)
        y = torch.bmm(x.reshape(groups, -1, self.in_features), weight.to(x.dtype))
        if self.biases is not None:
            y = y + (share @ self.biases)[:, None].to(y.dtype)
        return y.view(*x.shape[:-1], self.out_features)
