"""How experts are cut: some of them, or some hidden units of each, packed to be sent."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..mixtures.experts import Experts, StackedExperts
from ..placement.engines import ExpertSize

HIDDEN: Mapping[str, int] = {"up": 1, "up_bias": 1, "gate": 1, "gate_bias": 1, "down": 2}  # axes


def stacked(experts: Experts) -> StackedExperts:
    """Raises: ConfigError for other experts, whose weights are no matrices of one size."""
    if not isinstance(experts, StackedExperts):
        got, want = type(experts).__name__, "StackedExperts, whose weights can be cut and sent"
        fix = "Use intarsia.upcycle(...) with experts of one size, or the plan 'ep'."
        raise ConfigError("experts", got=got, want=want, fix=fix)
    return experts


def size_of(experts: Experts) -> ExpertSize:
    """What an expert's rows and weights take."""
    of = stacked(experts)
    _, hidden, width = of.up.shape
    return ExpertSize(
        width, hidden, of.up.element_size(), of.gate is not None, of.up_bias is not None
    )


def cut(experts: StackedExperts, index: Tensor, part: int = 0, of: int = 1) -> StackedExperts:
    """A copy of these experts, with the part-th of `of` equal parts of their hidden units.

    The parts' outputs add up to the whole's: the first keeps the output bias, others have zeros.
    Raises: ConfigError for hidden units that cannot be divided so.
    """
    hidden = experts.up.shape[1]
    if hidden % of:
        got, want = f"{hidden} hidden units for {of} parts", "a number that divides them"
        raise ConfigError("slices of experts", got=got, want=want, fix="Use fewer processes.")
    found = copy.copy(experts)
    vars(found).update(_parameters={})
    each = hidden // of
    for name, weight in experts.named_parameters(recurse=False):
        value = weight.detach()[index]
        if name in HIDDEN and of > 1:
            value = value.narrow(HIDDEN[name], part * each, each)
        elif part:
            value = torch.zeros_like(value)
        setattr(found, name, nn.Parameter(value.clone(), weight.requires_grad))
    found.experts = len(index)
    return found


def packed(experts: StackedExperts) -> Tensor:
    """All weights of each expert in a row.  Returns (E, P)."""
    weights = [w.flatten(1) for _, w in experts.named_parameters(recurse=False)]
    return torch.cat(weights, 1)


def unpacked(rows: Tensor, like: StackedExperts) -> dict[str, Tensor]:
    """The inverse of `packed`: weights by name.  rows: (M, P)."""
    shapes = {name: w.shape[1:] for name, w in like.named_parameters(recurse=False)}
    parts = rows.split([shape.numel() for shape in shapes.values()], 1)
    return {
        name: part.reshape(len(rows), *shape)
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def joined(slices: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Experts of as many hidden units as these slices of them have together."""
    first = slices[0]
    return {
        name: torch.cat([of[name] for of in slices], HIDDEN[name])
        if name in HIDDEN
        else torch.stack([of[name] for of in slices]).sum(0)
        for name in first
    }


def having(like: StackedExperts, weights: Mapping[str, Tensor], experts: int) -> StackedExperts:
    """Experts that compute with these weights, through which gradients pass, and own none."""
    found = copy.copy(like)
    # plain attributes, found before parameters, of which there are none
    vars(found).update({"_parameters": {}, "experts": experts, **weights})
    return found
