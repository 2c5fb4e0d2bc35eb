"""Gradient of a validation loss by a net's architecture, unrolled by one step (DARTS, eq. 8)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]  # pictures, labels


def architecture_gradient(
    model: nn.Module,
    alphas: Sequence[Tensor],
    train: Batch | None,
    val: Batch,
    xi: float = 0.0,
    eps: float = 0.01,
    loss: Callable[[nn.Module, Batch], Tensor] | None = None,
) -> list[Tensor]:
    """Compute dL_val(w - xi dL_train/dw)/dalpha, with finite differences (DARTS, eq. 8).

    model: the supernet, unchanged afterwards; train, val: (pictures, labels), one batch each; w:
      the trained parameters without alphas; xi: step of the weights, 0 = the first order,
      dL_val/dalpha; eps: step of the differences, relative to the gradient's norm; loss: of a model
      and a batch, cross-entropy by default.  -> one gradient for each of alphas.
    """
    loss = loss or _cross_entropy
    alpha_ids = {id(a) for a in alphas}
    w = [p for p in model.parameters() if p.requires_grad and id(p) not in alpha_ids]
    if not xi or train is None:
        return list(torch.autograd.grad(loss(model, val), list(alphas)))
    # step 1: the unrolled weights w'
    before = [p.detach().clone() for p in w]
    step = _gradient(loss(model, train), w)
    _set_weights(w, before, step, -xi)  # w' = w - xi dL_train/dw
    # step 2: gradients of the validation loss at w'
    both = _gradient(loss(model, val), [*alphas, *w])
    direct, dw = both[: len(alphas)], both[len(alphas) :]
    small = eps / max(1e-12, math.sqrt(sum(float(g.square().sum()) for g in dw)))
    # step 3: the Hessian-vector product by the training loss at two points
    sides: list[list[Tensor]] = []
    for sign in (small, -small):  # w +- eps dL_val/dw'
        _set_weights(w, before, dw, sign)
        sides.append(_gradient(loss(model, train), list(alphas)))
    _set_weights(w, before, dw, 0.0)
    pairs = zip(direct, *sides, strict=True)
    return [d - xi * (up - down) / (2 * small) for d, up, down in pairs]


def _cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _gradient(value: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of a scalar, zeros for tensors that it does not depend on."""
    gradients = torch.autograd.grad(value, list(tensors), allow_unused=True)
    return [
        torch.zeros_like(p) if g is None else g for p, g in zip(tensors, gradients, strict=True)
    ]


@torch.no_grad()
def _set_weights(
    w: Sequence[Tensor], base: Sequence[Tensor], along: Sequence[Tensor], factor: float
) -> None:
    """Set weights to base + factor * along, in place."""
    for p, b, d in zip(w, base, along, strict=True):
        p.copy_(b + factor * d)
