"""How experts are cut: some of them, or some hidden units of each, packed to be sent."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..core import Routing
from ..core.errors import ConfigError
from ..mixtures.experts import Experts, StackedExperts
from ..mixtures.fused_experts import FusedExperts
from ..placement.engines import ExpertSize


class OwnExperts(Experts):
    """Experts of which a process has its own: rows go by way of `mix`, which all take part in."""

    def forward(self, rows: Tensor, expert: Tensor) -> Tensor:
        token = torch.arange(len(rows), device=rows.device)
        weight = rows.new_ones(len(rows))
        return self.mix(rows, Routing(token, expert, weight, len(rows), self.experts))

    def every(self, x: Tensor) -> Tensor:
        made = [
            self.forward(x, torch.full((len(x),), e, device=x.device)) for e in range(self.experts)
        ]
        return torch.stack(made, 1)


Cuttable = StackedExperts | FusedExperts  # whose weights have a row for each expert
HIDDEN: Mapping[str, int] = {"up": 1, "up_bias": 1, "gate": 1, "gate_bias": 1, "down": 2}  # axes


def stacked(experts: Experts) -> Cuttable:
    """Raises: ConfigError for other experts, whose weights are no matrices of one size."""
    if not isinstance(experts, StackedExperts | FusedExperts):
        got, want = type(experts).__name__, "StackedExperts, whose weights can be cut and sent"
        fix = "Use intarsia.upcycle(...) with experts of one size, or the plan 'ep'."
        raise ConfigError("experts", got=got, want=want, fix=fix)
    return experts


def size_of(experts: Experts) -> ExpertSize:
    """What an expert's rows and weights take."""
    of = stacked(experts)
    if isinstance(of, FusedExperts):
        item = next(of.parameters()).element_size()
        return ExpertSize(of.width, of.hidden, item, of.gated, of.biased)
    _, hidden, width = of.up.shape
    return ExpertSize(
        width, hidden, of.up.element_size(), of.gate is not None, of.up_bias is not None
    )


def cut(experts: Cuttable, index: Tensor, part: int = 0, of: int = 1) -> Cuttable:
    """A copy of these experts, with the part-th of `of` equal parts of their hidden units.

    The parts' outputs add up to the whole's: the first keeps the output bias, others have zeros.
    Raises: ConfigError for hidden units that cannot be divided so.
    """
    hidden = size_of(experts).hidden
    if of > 1 and isinstance(experts, FusedExperts):
        got, want = f"slices of the {experts.experts} experts of a stock model", "whole experts"
        fix = f"Use at most {experts.experts} processes, or ExpertParallel()."
        raise ConfigError("slices of experts", got=got, want=want, fix=fix)
    if hidden % of:
        got, want = f"{hidden} hidden units for {of} parts", "a number that divides them"
        raise ConfigError("slices of experts", got=got, want=want, fix="Use fewer processes.")
    found = copy.copy(experts)
    vars(found).update(_parameters={})
    for name, weight in experts.named_parameters(recurse=False):
        value = own_part(name, weight.detach(), index, part, of)
        own = nn.Parameter(value.clone(), weight.requires_grad)
        if part and name not in HIDDEN and own.requires_grad:
            own.register_hook(torch.zeros_like)  # it is learned in the first part alone
        setattr(found, name, own)
    found.experts = len(index)
    return found


def own_part(name: str, whole: Tensor, index: Tensor, part: int, of: int) -> Tensor:
    """Of a weight of all experts, what stands in these, in the part-th slice.  (E, ...)."""
    value = whole[index]
    if name in HIDDEN and of > 1:
        each = value.shape[HIDDEN[name]] // of
        return value.narrow(HIDDEN[name], part * each, each)
    return torch.zeros_like(value) if part else value


def put_part(
    name: str, whole: Tensor | None, value: Tensor, experts: int, index: Tensor, part: int, of: int
) -> Tensor:
    """The inverse of `own_part`, one part after another.  Returns the whole so far."""
    axis = HIDDEN.get(name) if of > 1 else None
    if whole is None:
        shape = [experts, *value.shape[1:]]
        if axis is not None:
            shape[axis] *= of
        whole = value.new_zeros(shape)
    if axis is not None:
        each = value.shape[axis]
        rows = whole.narrow(axis, part * each, each)
        rows[index] = value
    elif not part:
        whole[index] = value
    return whole


def packed(experts: Cuttable) -> Tensor:
    """All weights of each expert in a row.  Returns (E, P)."""
    weights = [w.flatten(1) for _, w in experts.named_parameters(recurse=False)]
    return torch.cat(weights, 1)


def unpacked(rows: Tensor, like: Cuttable) -> dict[str, Tensor]:
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


def having(like: Cuttable, weights: Mapping[str, Tensor], experts: int) -> Cuttable:
    """Experts that compute with these weights, through which gradients pass, and own none."""
    found = copy.copy(like)
    # plain attributes, found before parameters, of which there are none
    vars(found).update({"_parameters": {}, "experts": experts, **weights})
    return found
