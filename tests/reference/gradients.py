"""Gradients of a comparison's outputs, also in inputs that became parameters of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Tensors = dict[str, Tensor]
GIVEN: list[tuple[nn.Parameter, Tensor]] = []


def give(module: nn.Module, by_path: Mapping[str, Tensor] | None = None, **named: Tensor) -> None:
    """Give parameters of a module these values, by path or name."""
    for path, value in {**(by_path or {}), **named}.items():
        parameter = module.get_parameter(path)
        with torch.no_grad():
            parameter.copy_(value)
        GIVEN.append((parameter, value))


@contextmanager
def followed(inputs: Tensors, names: Sequence[str]) -> Iterator[None]:
    """Follow some inputs, and the parameters that get them, inside the `with` block."""
    GIVEN.clear()
    for name in names:
        inputs[name].requires_grad_()
    try:
        yield
    finally:
        GIVEN.clear()


def total(outputs: Sequence[Tensor]) -> Tensor:
    """Sum outputs with weights from -1 to 1, which is what the official outputs were summed by."""
    weights = (torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y) for y in outputs)
    return torch.stack([(y * w).sum() for y, w in zip(outputs, weights, strict=True)]).sum()


def gradients(inputs: Tensors, names: Sequence[str], outputs: Sequence[Tensor]) -> Tensors:
    """Return the gradient of `total` in each input: its own and that of its parameters."""
    leaves = [inputs[name] for name in names]
    differentiable = [(p, v) for p, v in GIVEN if v.requires_grad]
    ends = [*leaves, *(p for p, _ in differentiable)]
    slopes = torch.autograd.grad(total(outputs), ends, allow_unused=True)
    own_slopes, behind = slopes[: len(leaves)], slopes[len(leaves) :]
    # a parameter's value may be a part of an input, or turned
    pairs = [(v, g) for (_, v), g in zip(differentiable, behind, strict=True) if g is not None]
    further: Sequence[Tensor | None] = [None] * len(leaves)
    if pairs:
        values, sums = zip(*pairs, strict=True)
        further = torch.autograd.grad(values, leaves, sums, allow_unused=True)
    parts = zip(names, leaves, own_slopes, further, strict=True)
    return {
        name: sum((g for g in (a, b) if g is not None), start=torch.zeros_like(x))
        for name, x, a, b in parts
    }
