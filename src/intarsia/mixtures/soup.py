"""A linear map with N dense experts that are averaged after training (AdaMix, arXiv:2205.12410)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ..core.errors import ShapeError


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
        self.weights = nn.Parameter(base.weight.detach().expand(experts, -1, -1).clone())
        self.biases = (
            None
            if base.bias is None
            else nn.Parameter(base.bias.detach().expand(experts, -1).clone())
        )

    def merged(self) -> nn.Linear:
        """The plain linear layer that stands for the experts after training."""
        # skip_init: a merge in the middle of training draws no random numbers
        layer: nn.Linear = skip_init(  # pyright: ignore[reportAssignmentType]
            nn.Linear, self.in_features, self.out_features, self.biases is not None,
            device=self.weights.device, dtype=self.weights.dtype,
        )  # fmt: skip
        with torch.no_grad():
            layer.weight.copy_(self.weights.mean(0))
            if self.biases is not None:
                layer.bias.copy_(self.biases.mean(0))
        return layer

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        if gates is None or not x.shape[0]:
            bias = None if self.biases is None else self.biases.mean(0)
            return F.linear(x, self.weights.mean(0), bias)
        groups = gates.shape[0]
        if gates.shape[1] != self.experts or not groups or x.shape[0] % groups:
            raise ShapeError(
                "gates", got=f"{tuple(gates.shape)} for {x.shape[0]} rows",
                want=f"(G, {self.experts}) with G a divisor of the rows",
                fix="One gate row for each sample, or one for the batch.",
            )  # fmt: skip
        share = gates.to(self.weights.dtype) / self.active
        weight = torch.einsum("gn,noi->gio", share, self.weights)  # (G, in, out)
        y = torch.bmm(x.reshape(groups, -1, self.in_features), weight.to(x.dtype))
        if self.biases is not None:
            y = y + (share @ self.biases)[:, None].to(y.dtype)
        return y.view(*x.shape[:-1], self.out_features)
