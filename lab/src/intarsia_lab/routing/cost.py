"""What a model spends: floating-point operations of its matrix products, experts by the pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from intarsia.core.modes import evaluating
from intarsia.mixtures import Mixture

PASSES = 3  # of a training step: forward, and a backward that costs twice that


@dataclass(frozen=True)
class Price:
    """Operations of a forward: of all but experts and routers, and of the routers, for a row or
    picture; of a pair of a token and an expert, for each layer with experts."""

    rest: float
    routers: float
    pair: tuple[float, ...]

    def spent(self, rows: int, pairs: Sequence[int]) -> dict[str, float]:
        """Return the operations of training on some rows, by part and in total.

        rows: number of rows or pictures; pairs: (token, expert) pairs in each layer, over all of
          them.
        """
        operations = {
            "rest": PASSES * rows * self.rest,
            "routers": PASSES * rows * self.routers,
            "experts": PASSES * sum(a * b for a, b in zip(pairs, self.pair, strict=True)),
        }
        return {"total": sum(operations.values()), **operations}


def mixtures(model: nn.Module) -> dict[str, Mixture]:
    """Return every mixture of a model by path, from the first layer to the last."""
    return {path: m for path, m in model.named_modules() if isinstance(m, Mixture)}


@torch.no_grad()
def price(model: nn.Module, x: Tensor) -> Price:
    """Count the operations of a model inside and outside its mixtures, by one forward.

    x: a few rows or pictures. Returns the operations of a row outside experts, the routers'
      among them, and of one (token, expert) pair in each layer. Matrix products only: an addition,
      a softmax or a sort is nothing compared with them, which is not quite so for `Transport`: its
      solver has no products.
    """
    # the plain attention, with products that torch counts
    with evaluating(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x)
    # torch's counter names modules by the model's class and path
    name = type(model).__name__
    counts = {k: sum(v.values()) for k, v in counter.get_flop_counts().items()}
    layers = mixtures(model)
    # all of the mixtures, routers included
    inside = sum(counts.get(f"{name}.{path}", 0) for path in layers)
    routers = sum(counts.get(f"{name}.{path}.router", 0) for path in layers)
    # a multiply and an add for each entry of an expert's matrices
    pair = tuple(2.0 * matrices(m.experts) / m.experts.experts for m in layers.values())
    return Price((counter.get_total_flops() - inside) / len(x), routers / len(x), pair)


@torch.no_grad()
def operations(model: nn.Module, x: Tensor) -> int:
    """Count the floating-point operations of a forward's matrix products, two for a multiply-add.

    model, x: the model and its input. torch's counter knows our operators on experts and no fused
      attention; hence the plain attention.
    """
    with evaluating(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops()


def matrices(module: nn.Module) -> int:
    """Return the number of entries of a module's matrices."""
    # biases are added, not multiplied
    return sum(p.numel() for n, p in module.named_parameters() if p.dim() > 1 and "bias" not in n)
