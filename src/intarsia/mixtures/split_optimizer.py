"""AdamW that steps the experts of a SplitLinear as N masked copies would be (arXiv:2312.02923)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, cast, overload

import torch
import torch.distributed
from torch import Tensor, nn
from torch.optim import Optimizer

from ..core.checks import at_least, one_of
from ..core.errors import ConfigError
from ..routers import random_routers
from .split import SplitLinear

UPDATES = ("dense", "lazy")
VARIANTS = ("torch", "huggingface")
BIASES = ("bias", "biases")

Groups = list[dict[str, Any]]


def decay_groups(model: nn.Module, weight_decay: float, norm_decays: bool = False) -> Groups:
    """Return a model's trained parameters in two optimiser groups: with weight decay, and without.

    model: its parameters that need gradients; weight_decay: the first group's. The second group has
      all biases (also the biases of N experts, which form a matrix) and other vectors, such as
      gains of norms and learned scales. norm_decays: put the gains of norms into the first group,
      as MoSA's released code does with its adapter's.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        leaf = name.rpartition(".")[2]
        # gains, biases and scales are usually not decayed
        vector = parameter.ndim <= 1 and not (norm_decays and leaf == "weight")
        bias = leaf in BIASES or leaf.endswith("_bias")
        (free if vector or bias else decayed).append(parameter)
    groups = [(decayed, weight_decay), (free, 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


class SplitAdamW(Optimizer):
    """AdamW; the weights and biases of every SplitLinear are stepped expert by expert.

    With t the steps that an expert has had, m and v its moments, g the gradient:
      m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2
      p = p - lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps),  and p shrinks by 1 - lr wd.
    update: "dense", an expert is stepped at every step from the first on that it was drawn for,
      with a gradient of zero when it was not drawn (N copies with their gradients set to zero, as
      published); "lazy", only when it was drawn (N copies with their gradients set to None).
    variant: "torch", decay before the step; "huggingface", as that library's former AdamW: decay
      after the step, and eps added to sqrt(v) instead of to its corrected value.
    A SplitLinear with decay="official" has the starts of its experts shrunk too, each at the steps
    that the expert takes. All other parameters follow AdamW.

    params: parameters or groups, such as `decay_groups` gives; model: where the SplitLinears are.
    Where routers are sharded over ranks, the ranks agree on who was drawn (one small all-reduce).
    The state is tensors and numbers. Not for sharded parameters (FSDP).
    Raises: ConfigError on a setting that cannot be.
    Source: released code; this equals its N copies (see tests).
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        model: nn.Module,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        update: str = "dense",
        variant: str = "torch",
    ) -> None:
        """Store the settings in the parameter groups, and find the `SplitLinear`s of a model."""
        one_of("update", update, UPDATES)
        one_of("variant", variant, VARIANTS)
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            at_least(name, value, 0, fix="Try the default.")
        if not all(0 <= b < 1 for b in betas):
            raise ConfigError("betas", got=betas, want="0 <= b < 1", fix="Try (0.9, 0.999).")
        # in the groups, so that a checkpoint names them
        settings = {"betas": tuple(betas), "eps": eps, "update": update, "variant": variant}
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay} | settings)
        self._routers = list(random_routers(model).values())
        self._layers = [m for m in model.modules() if isinstance(m, SplitLinear)]
        self._split = {
            parameter: layer
            for layer in self._layers
            for parameter in (layer.weight, layer.biases)
            if parameter is not None
        }

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step.  closure: computes the loss again, as in torch; its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # each expert of a split layer counts its own steps, by whether it had a gradient
        drawn = self._drawn()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                layer = self._split.get(parameter)
                if layer is None:
                    self._step_plain(parameter, group)
                else:
                    self._step_split(parameter, layer, drawn[layer], group)
        self._forget()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self._forget()

    def _forget(self) -> None:
        """Reset in every layer which experts had a gradient."""
        for layer in self._layers:
            layer.forget()

    def _drawn(self) -> dict[SplitLinear, list[bool]]:
        """Return, by layer, True for each expert that had a gradient, in any process."""
        if not self._layers:
            return {}
        marks = torch.cat([layer.seen for layer in self._layers]).to(torch.uint8)
        # Routers that are sharded draw for a part of the batch on each process.
        if any(router.context.shard[1] > 1 for router in self._routers):
            torch.distributed.all_reduce(marks, torch.distributed.ReduceOp.MAX)
        flat = iter(marks.bool().tolist())  # one wait for the device, for all layers
        return {layer: [next(flat) for _ in range(layer.experts)] for layer in self._layers}

    def _moments(self, parameter: Tensor) -> dict[str, Any]:
        """Return the optimiser's state of a parameter, created at the first call."""
        state = self.state[parameter]
        if not state:
            layer = self._split.get(cast(nn.Parameter, parameter))
            # Each expert of a split parameter counts its own steps, (N,); then the running means
            # of the gradient and of its square.
            state["step"] = 0 if layer is None else torch.zeros(layer.experts, dtype=torch.int64)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state

    def _step_plain(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """Make an AdamW step of a parameter that belongs to no `SplitLinear`."""
        state = self._moments(parameter)
        state["step"] += 1
        _adamw(parameter, state, _rates(state["step"], group), group["variant"])

    def _step_split(
        self, parameter: Tensor, layer: SplitLinear, drawn: list[bool], group: dict[str, Any]
    ) -> None:
        """Step a parameter of a `SplitLinear`, each expert at its own step number t."""
        state = self._moments(parameter)
        before: list[int] = state["step"].tolist()
        lazy = group["update"] == "lazy"
        # an expert without a gradient takes a step of zero gradient, or none if lazy
        steps_taken = [d or (t > 0 and not lazy) for d, t in zip(drawn, before, strict=True)]
        state["step"] += torch.tensor(steps_taken, dtype=torch.int64)
        # a table of six rates by expert, which each weight looks up by its owner
        rows = [
            _rates(t + 1, group) if take else STAY
            for t, take in zip(before, steps_taken, strict=True)
        ]
        table = torch.tensor(rows, dtype=parameter.dtype, device=parameter.device).T  # (6, N)
        if parameter is layer.weight:
            if layer.rho is not None:
                # rho of an expert shrinks by 1 - lr wd, as the start of its copy would
                layer.rho *= table[-1].to(layer.rho.dtype)
            rates = table[:, layer.owner.int()].unbind()  # 6 of (out, in)
        else:
            rates = table[:, :, None].unbind()  # 6 of (N, 1)
        _adamw(parameter, state, rates, group["variant"])


# b1, b2, lr / (1 - b1^t), sqrt(1 - b2^t), eps, 1 - lr wd: of an expert that is left as it is
STAY = (1.0, 1.0, 0.0, 1.0, 1.0, 1.0)


def _rates(step: int, group: dict[str, Any]) -> tuple[float, ...]:
    """Return the six numbers that an AdamW step needs at step t."""
    b1, b2 = group["betas"]
    lr, eps = float(group["lr"]), group["eps"]
    corrected = math.sqrt(1 - b2**step)
    if group["variant"] == "huggingface":
        eps /= corrected  # (sqrt(v) + eps) / sqrt(1 - b2^t)
    return b1, b2, lr / (1 - b1**step), corrected, eps, 1 - lr * group["weight_decay"]


def _adamw(parameter: Tensor, state: dict[str, Any], rates: Iterable[Any], variant: str) -> None:
    """Make one step of AdamW, in place; rates: the six numbers of `_rates`, or a tensor of each."""
    b1, b2, rate, corrected, eps, keep = rates
    gradient, m, v = parameter.grad, state["exp_avg"], state["exp_avg_sq"]
    assert gradient is not None
    m.mul_(b1).add_(gradient * (1 - b1))
    v.mul_(b2).add_(gradient.square() * (1 - b2))
    # decay before the step in torch, after it in the former AdamW of transformers
    if variant == "torch":
        parameter.mul_(keep)
    parameter.sub_(m / (v.sqrt() / corrected + eps) * rate)
    if variant == "huggingface":
        parameter.mul_(keep)


def split_adamw(
    model: nn.Module, lr: float, weight_decay: float, *, norm_decays: bool = False, **settings: Any
) -> SplitAdamW:
    """Make an AdamW that steps each expert of a `SplitLinear` apart, in groups of `decay_groups`.

    model: its trained parameters; lr: the learning rate; weight_decay: the decay of matrices;
      norm_decays: True decays the gains of norms as well; settings: further keyword arguments of
      SplitAdamW, such as betas.
    """
    groups = decay_groups(model, weight_decay, norm_decays)
    return SplitAdamW(groups, model, lr=lr, weight_decay=weight_decay, **settings)
