"""How experts are cut: some of them, or some hidden units of each, packed to be sent."""

from __future__ import annotations

import abc
import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Routing
from ..core.errors import ConfigError
from ..mixtures.experts import Experts, StackedExperts
from ..mixtures.fused_experts import FusedExperts
from ..placement.engines import ExpertSize
from ..processes.units import UnitAxes, own_part


class OwnExperts(Experts):
    """Experts, some of them on each process: rows go by way of `mix`, which all take part in.

    local: this process's experts.
    past: loads (E,) of the newest batches, of experts that go by them; None for others.
    owner: (E,), the process that owns each expert, where that may change; None where it stays.
    """

    local: nn.Module
    past: list[Tensor] | None = None
    owner: Tensor | None = None

    @abc.abstractmethod
    def lot(self, rank: int) -> tuple[Tensor, int, int]:
        """Return (experts, slice, slices): the part of a layer's experts that a process keeps.

        experts: (n,) int64, the numbers of its experts; slices: in how many equal slices their
          hidden units are cut, and slice: which of them it has, from 0.
        """

    def due(self, step: int) -> bool:
        """Return True if owners of experts change after `step` steps; here never."""
        return False

    def new_owners(self, layers: Sequence[Any]) -> Tensor:
        """Return the future owners (L, E) of these layers' experts, where they change."""
        raise self._fixed_owners_error()

    def moved(self, rows: Tensor, owner: Tensor) -> Tensor:
        """Send experts' rows of a weight to their future owners; here always raise ConfigError.

        rows: (own, ...), a row for each expert owned here; owner: (E,), the future owner of each
          expert.  -> (new, ...), where a strategy can do it.
        """
        raise self._fixed_owners_error()

    def set_owner(self, owner: Tensor) -> None:
        """Set the owners from now on; the caller puts the weights in."""
        raise self._fixed_owners_error()

    def _fixed_owners_error(self) -> ConfigError:
        fix = "Ask `due` first, which says when owners change."
        got, want = type(self).__name__, "experts whose owners change"
        return ConfigError("owners of experts", got=got, want=want, fix=fix)

    def forward(self, rows: Tensor, expert: Tensor) -> Tensor:
        """Compute each row by its expert, with weight 1.  (N, d), (N,) -> (N, out)."""
        token = torch.arange(len(rows), device=rows.device)
        weight = rows.new_ones(len(rows))
        return self.mix(rows, Routing(token, expert, weight, len(rows), self.experts))

    def every(self, x: Tensor) -> Tensor:
        outputs = [
            self.forward(x, torch.full((len(x),), e, device=x.device)) for e in range(self.experts)
        ]
        return torch.stack(outputs, 1)


Cuttable = StackedExperts | FusedExperts  # their weights have a row for each expert


STACKED: Mapping[str, UnitAxes] = {
    **{name: UnitAxes(1) for name in ("up", "up_bias", "gate", "gate_bias")},
    "down": UnitAxes(2),
}


def units_of(experts: nn.Module, name: str) -> UnitAxes | None:
    """Return which axis of a weight runs over the experts' hidden units, None if no axis does."""
    if not isinstance(experts, FusedExperts):
        return STACKED.get(name)
    into, out = (2, 1) if experts.transposed else (1, 2)
    # A fused weight has gate and up in one axis: as two runs after each other, or interleaved,
    # which a cut through hidden units must respect.
    two = {"runs": 2} if experts.concatenated else {"each": 2}
    fused = {
        "gate_up_proj": UnitAxes(into, **two),
        "gate_up_proj_bias": UnitAxes(1, **two),
        "up_proj": UnitAxes(into),
        "up_proj_bias": UnitAxes(1),
        "down_proj": UnitAxes(out),
    }
    return fused.get(name)


def stacked(experts: Experts) -> Cuttable:
    """Return experts as they are if their weights can be cut along experts and hidden units.

    Raises: ConfigError for experts without stacked matrices of one size as weights, and for an
      activation with weights that all experts share.
    """
    if not isinstance(experts, StackedExperts | FusedExperts):
        got, want = type(experts).__name__, "StackedExperts, whose weights can be cut and sent"
        fix = "Use intarsia.upcycle(...) with experts of one size, or the plan 'ep'."
        raise ConfigError("experts", got=got, want=want, fix=fix)
    if learned := [name for name, _ in experts.named_parameters() if "." in name]:
        got, want = f"{learned[0]!r}, which all experts share", "weights with a row for each expert"
        fix = "Use an activation without weights: act='gelu', 'relu' or 'silu'."
        raise ConfigError("experts", got=got, want=want, fix=fix)
    return experts


def size_of(experts: Experts) -> ExpertSize:
    """Return widths, bytes of a number, gate and bias of experts that all have one size.

    Raises: ConfigError if their weights cannot be cut.
    """
    weights = stacked(experts)
    if isinstance(weights, FusedExperts):
        item = next(weights.parameters()).element_size()
        return ExpertSize(weights.width, weights.hidden, item, weights.gated, weights.biased)
    # stacked weights: up is (experts, hidden units, inputs)
    _, hidden, width = weights.up.shape
    return ExpertSize(
        width,
        hidden,
        weights.up.element_size(),
        weights.gate is not None,
        weights.up_bias is not None,
    )


def cut(experts: Cuttable, index: Tensor, part: int = 0, parts: int = 1) -> Cuttable:
    """Copy some experts of a layer, whole or one slice of their hidden units.

    index: (n,), the numbers of the experts to copy; parts: in how many equal slices their hidden
      units are cut; part: which of the slices is copied, from 0. The outputs of all slices add up
      to an expert's: the first keeps the output bias, others have zeros. Raises: ConfigError for
      hidden units that cannot be divided so.
    """
    hidden = size_of(experts).hidden
    if parts > 1 and isinstance(experts, FusedExperts):
        _check_sums(experts)
    check_parts(hidden, parts)
    cut_experts = copy.copy(experts)
    # The shallow copy shares the dictionary of parameters with the original; it gets its own before
    # any parameter is replaced.
    vars(cut_experts).update(_parameters={})
    for name, weight in experts.named_parameters(recurse=False):
        units = units_of(experts, name)
        value = own_part(units, weight.detach(), index, part, parts)
        parameter = nn.Parameter(value.clone(), weight.requires_grad)
        # The output bias is zero in all parts but the first, and must stay so.
        if part and units is None and parameter.requires_grad:
            parameter.register_hook(torch.zeros_like)  # it is learned in the first part alone
        setattr(cut_experts, name, parameter)
    cut_experts.experts = len(index)
    if isinstance(cut_experts, FusedExperts):
        cut_experts.hidden = hidden // parts
    return cut_experts


def check_parts(hidden: int, parts: int) -> None:
    """Raise ConfigError for hidden units that cannot be cut into equal parts."""
    if hidden % parts:
        got, want = f"{hidden} hidden units for {parts} parts", "a number that divides them"
        raise ConfigError("slices of experts", got=got, want=want, fix="Use fewer processes.")


def _check_sums(experts: FusedExperts) -> None:
    """Raise ConfigError if experts cut along their hidden units would not add up to the whole."""
    fused = "gate_up_proj", "up_proj", "down_proj"
    summable = {f"{name}{end}" for name in fused for end in ("", "_bias")}
    if strange := sorted(set(experts.names) - summable):
        got = f"{strange[0]!r} among the weights of a stock model's experts"
    elif not experts.adds:
        got = "experts of a stock model with a norm of their outputs"
    else:
        return
    want, fix = "whole experts", f"Use at most {experts.experts} processes, or ExpertParallel()."
    raise ConfigError("slices of experts", got=got, want=want, fix=fix)


def packed(experts: Cuttable) -> Tensor:
    """Flatten the weights of each expert into a row, (E, P), to be sent."""
    weights = [w.flatten(1) for _, w in experts.named_parameters(recurse=False)]
    # the parameters' order is as in `unpacked`
    return torch.cat(weights, 1)


def unpacked(rows: Tensor, like: Cuttable) -> dict[str, Tensor]:
    """Cut rows of flattened weights into weights by name: the inverse of `packed`."""
    shapes = {name: w.shape[1:] for name, w in like.named_parameters(recurse=False)}
    # cut at the sizes of the weights of one expert
    parts = rows.split([shape.numel() for shape in shapes.values()], 1)
    return {
        name: part.reshape(len(rows), *shape)
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def joined(slices: Sequence[Mapping[str, Tensor]], like: Cuttable) -> dict[str, Tensor]:
    """Join slices of experts along their hidden units: the inverse of `cut`.  -> weights by name.

    slices: the weights of each slice by name, in order; like: experts of the same kind, which tell
      along which axis of a weight its hidden units lie.
    """
    weights: dict[str, Tensor] = {}
    for name in slices[0]:
        # A weight without hidden units, the output bias, is zero in all slices but the first: the
        # sum restores it.
        values, units = [piece[name] for piece in slices], units_of(like, name)
        if units is None:
            weights[name] = torch.stack(values).sum(0)
        else:
            apart = [units.apart(value) for value in values]
            weights[name] = units.together(torch.cat(apart, units.axis + 1))
    return weights


def having(like: Cuttable, weights: Mapping[str, Tensor], experts: int) -> Cuttable:
    """Return experts that compute with given tensors as weights, through which gradients pass.

    like: experts of the same kind, not changed; weights: name -> tensor, (experts, ...). The result
      has no parameters of its own.
    """
    copied = copy.copy(like)
    # plain attributes, found before parameters; there are no parameters
    vars(copied).update({"_parameters": {}, "experts": experts, **weights})
    return copied
