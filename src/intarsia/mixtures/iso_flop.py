"""Layers made of several sparse ones: parallel branches with norms, and a sparse plus a low rank.

From a layer W: Parallel, sum_i norm_i(W_i x); Doped, W_s x + V U x (Sparse-IFT, arXiv:2303.11525).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..core.errors import FoldError

BATCH_NORM = nn.modules.batchnorm._BatchNorm


class Parallel(nn.Module):
    """sum_i norm_i(layer_i(x)) in the place of norm(layer(x)).  (..., in) -> (..., out)."""

    def __init__(self, layers: Sequence[nn.Module], norms: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers, self.norms = nn.ModuleList(layers), nn.ModuleList(norms)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the branches, sum_i norm_i(layer_i(x)).  x: (..., in) -> (..., out)."""
        y = self.norms[0](self.layers[0](x))
        for layer, norm in zip(self.layers[1:], self.norms[1:], strict=True):
            y = y + norm(layer(x))
        return y

    @torch.no_grad()
    def folded(self) -> tuple[nn.Module, nn.Module]:
        """Fold the branches into one layer and one batch norm with the same outputs in evaluation.

        Returns (layer, norm); the branches are left as they are.
        Raises: FoldError for norms that are no batch norms with running statistics.
        """
        kind = type(self.norms[0]).__name__
        if not all(isinstance(n, BATCH_NORM) and n.running_var is not None for n in self.norms):
            fix = "Keep the branches: save the model with intarsia.save."
            raise FoldError(
                "parallel branches", got=kind, want="batch norms with statistics", fix=fix
            )
        # norm(W x + b) = s W x + (beta + s (b - mean)) with s = gamma / sqrt(var + eps), summed
        layer, norm = (cast(Any, copy.deepcopy(part[0])) for part in (self.layers, self.norms))
        weight, shift = torch.zeros_like(layer.weight), torch.zeros_like(norm.bias)
        norms = cast("list[Any]", list(self.norms))
        for branch, branch_norm in zip(self.layers, norms, strict=True):
            b: Any = branch
            scale = branch_norm.weight * (branch_norm.running_var + branch_norm.eps).rsqrt()
            weight += b.weight * scale.view(-1, *[1] * (b.weight.dim() - 1))
            inner = 0 if b.bias is None else b.bias
            shift += branch_norm.bias + scale * (inner - branch_norm.running_mean)
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.zero_()
        # the remaining norm only adds the shift: mean 0, and var + eps = 1
        norm.weight.fill_(1)
        norm.bias.copy_(shift)
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
        return layer, norm


class Doped(nn.Module):
    """W_s x + V U x: a sparse layer and a dense one of low rank.  (..., in) -> (..., out)."""

    def __init__(self, sparse: nn.Module, u: nn.Module, v: nn.Module) -> None:
        """Register the sparse layer W_s and the two dense ones, U (r, in) and V (out, r)."""
        super().__init__()
        self.sparse, self.u, self.v = sparse, u, v

    def forward(self, x: Tensor) -> Tensor:
        return self.sparse(x) + self.v(self.u(x))

    @torch.no_grad()
    def folded(self) -> nn.Module:
        """Return the dense layer W_s + V U, with the bias of the sparse one."""
        layer = cast(Any, copy.deepcopy(self.sparse))
        # V U, the change of low rank as a full matrix; a convolution's kernel is flattened.
        low = cast(Any, self.v).weight.flatten(1) @ cast(Any, self.u).weight.flatten(1)
        layer.weight.add_(low.view_as(layer.weight))
        return layer
