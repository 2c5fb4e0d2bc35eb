"""The experts of a stock sparse model as `Experts`: their weights, their layout, their products."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core import Routing
from ..core.errors import TargetError
from .experts import Experts
from .experts_function import StockExperts


class FusedExperts(Experts):
    """E experts of transformers, fused into one tensor for each matrix.

    of: where they were found.  Parameters are the very ones of that module, under its names
    (gate_up_proj, down_proj, ...). Products are those of the model's own experts function (see
    `set_experts_implementation`), so that any layout will do: transposed, interleaved, with biases
    or without a gate.

    Raises: TargetError for experts with weights that have no row for each expert.
    """

    def __init__(self, of: StockExperts) -> None:
        super().__init__()
        named = dict(of.module.named_parameters())
        if odd := [n for n, p in named.items() if "." in n or p.shape[:1] != (of.experts,)]:
            got, want = f"{odd[0]!r} among their weights", "weights with a row for each expert"
            fix = "Use another architecture."
            raise TargetError(f"experts at {of.path!r}", got=got, want=want, fix=fix)
        self.experts, self.width, self.hidden = of.experts, of.width, of.hidden
        self.outputs, self.gated = of.width, of.gated
        self.biased, self.names = bool(getattr(of.module, "has_bias", False)), tuple(named)
        flags: Any = of.module
        self.transposed, self.concatenated = bool(flags.is_transposed), bool(flags.is_concatenated)
        # a norm of an expert's output is no sum over its hidden units
        self.adds = not getattr(of.module, "has_post_expert_norm", False)
        shell = copy.copy(of.module)
        vars(shell).update(_parameters={}, _modules=dict(of.module._modules))
        vars(self)["shell"] = shell  # no part of ours: it has no weights
        for name, weight in named.items():
            self.register_parameter(name, weight)

    def mix(self, x: Tensor, routing: Routing) -> Tensor:
        return mixed_by(self._function(), x, routing)

    def forward(self, rows: Tensor, expert: Tensor) -> Tensor:
        token = torch.arange(len(rows), device=rows.device)
        weight = rows.new_ones(len(rows))
        return self.mix(rows, Routing(token, expert, weight, len(rows), self.experts))

    def every(self, x: Tensor) -> Tensor:
        each = (torch.full((len(x),), e, device=x.device) for e in range(self.experts))
        return torch.stack([self.forward(x, expert) for expert in each], 1)

    def _function(self) -> Any:
        """Return the model's experts function on these weights, by a module like theirs."""
        found: Any = copy.copy(vars(self)["shell"])
        vars(found).update({name: getattr(self, name) for name in self.names})
        found.num_experts = self.experts
        return type(found).forward.__get__(found)

    def __deepcopy__(self, memo: dict[int, Any]) -> FusedExperts:
        """Return the shell is shared: it has the model's configuration, which may change."""
        found = copy.copy(self)
        own = {name: copy.deepcopy(p, memo) for name, p in self._parameters.items()}
        vars(found)["_parameters"] = own
        return found

    def extra_repr(self) -> str:
        return f"{self.experts} experts, {self.width} -> {self.hidden}, gated={self.gated}"


def mixed_by(function: Callable[..., Tensor], x: Tensor, routing: Routing) -> Tensor:
    """sum_e G_te expert_e(x_t) by an experts function.  (T, d) -> (T, d).

    function: f(hidden (N, d), index (N, 1), weights (N, 1)) -> (N, d), weighed. Without pairs it is
    called with one row of zeros: its weights then have gradients, which other processes wait for.
    """
    rows, expert = x.index_select(0, routing.token), routing.expert[:, None]
    weight = routing.weight[:, None]
    if len(rows):
        pairs = function(rows, expert, weight)
    elif routing.experts:
        none = rows.sum(0, keepdim=True), expert.new_zeros(1, 1), weight.sum(0, keepdim=True)
        pairs = function(*none)[:0]
    else:
        pairs = rows + rows.sum() + weight.sum()
    made = pairs.new_zeros(len(x), pairs.shape[1])
    return made.index_add(0, routing.token, pairs)
