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

    stock: the experts as `stock_experts` gives them.  Parameters are the very ones of that module,
    under its names (gate_up_proj, down_proj, ...). Products come from the model's own experts
    function (see `set_experts_implementation`), so that any layout will do: transposed,
    interleaved, with biases or without a gate.

    Raises: TargetError for experts with weights that have no row for each expert.
    """

    def __init__(self, stock: StockExperts) -> None:
        """Register the parameters of a transformers module of experts, without a copy."""
        super().__init__()
        named = dict(stock.module.named_parameters())
        # every parameter must have a row for each expert, or merging and sharding would break it
        if odd := [n for n, p in named.items() if "." in n or p.shape[:1] != (stock.experts,)]:
            got, want = f"{odd[0]!r} among their weights", "weights with a row for each expert"
            fix = "Use another architecture."
            raise TargetError(f"experts at {stock.path!r}", got=got, want=want, fix=fix)
        self.experts, self.width, self.hidden = stock.experts, stock.width, stock.hidden
        self.outputs, self.gated = stock.width, stock.gated
        self.biased, self.names = bool(getattr(stock.module, "has_bias", False)), tuple(named)
        flags: Any = stock.module
        self.transposed, self.concatenated = bool(flags.is_transposed), bool(flags.is_concatenated)
        # True: an output is a sum over hidden units, so that units can be cut; a norm prevents it
        self.adds = not getattr(stock.module, "has_post_expert_norm", False)
        # the module without its weights: its forward is the model's own experts function
        shell = copy.copy(stock.module)
        vars(shell).update(_parameters={}, _modules=dict(stock.module._modules))
        vars(self)["shell"] = shell  # past nn.Module, which would register it as a submodule
        for name, weight in named.items():
            self.register_parameter(name, weight)

    def mix(self, x: Tensor, routing: Routing) -> Tensor:
        return mixed_by(self._function(), x, routing)

    def forward(self, rows: Tensor, expert: Tensor) -> Tensor:
        """Compute each row (N, d) by its expert (N,) int64, with weight 1.  -> (N, d)."""
        token = torch.arange(len(rows), device=rows.device)
        weight = rows.new_ones(len(rows))
        return self.mix(rows, Routing(token, expert, weight, len(rows), self.experts))

    def every(self, x: Tensor) -> Tensor:
        chosen_expert = (torch.full((len(x),), e, device=x.device) for e in range(self.experts))
        return torch.stack([self.forward(x, expert) for expert in chosen_expert], 1)

    def _function(self) -> Any:
        """Return the model's own experts function, bound to the weights of this module."""
        # f(hidden (N, d), index (N, k), weights (N, k)) -> (N, d), with k experts for each row.
        # A fresh copy each time: the weights may have been replaced, or may be traced tensors.
        module: Any = copy.copy(vars(self)["shell"])
        vars(module).update({name: getattr(self, name) for name in self.names})
        module.num_experts = self.experts
        return type(module).forward.__get__(module)

    def __deepcopy__(self, memo: dict[int, Any]) -> FusedExperts:
        """Copy the weights; share the module that computes with them."""
        duplicate = copy.copy(self)
        parameters = {name: copy.deepcopy(p, memo) for name, p in self._parameters.items()}
        vars(duplicate)["_parameters"] = parameters
        return duplicate

    def extra_repr(self) -> str:
        return f"{self.experts} experts, {self.width} -> {self.hidden}, gated={self.gated}"


def mixed_by(function: Callable[..., Tensor], x: Tensor, routing: Routing) -> Tensor:
    """Compute sum_e G_te expert_e(x_t) for each token t by an experts function of transformers.

    function: f(hidden (N, d), index (N, 1), weights (N, 1)) -> (N, d), each row computed by its
      expert and multiplied by its weight; x: (T, d); routing: N pairs (token t, expert e) with
      weights G_te.  -> (T, d).
    Without pairs the function is called with one row of zeros: the experts' weights then have
    gradients, which other processes wait for.
    """
    rows, expert = x.index_select(0, routing.token), routing.expert[:, None]
    weight = routing.weight[:, None]
    if len(rows):
        pairs = function(rows, expert, weight)
    # without pairs: call it with a row of zeros, and drop the output
    elif routing.experts:
        none = rows.sum(0, keepdim=True), expert.new_zeros(1, 1), weight.sum(0, keepdim=True)
        pairs = function(*none)[:0]
    else:
        # without experts: no output, but tied to the inputs' gradients
        pairs = rows + rows.sum() + weight.sum()
    summed = pairs.new_zeros(len(x), pairs.shape[1])
    return summed.index_add(0, routing.token, pairs)
