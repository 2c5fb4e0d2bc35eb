"""Train some entries of a model's parameters and leave the others alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .phases import Make, hooked


def pull(
    make: Make, towards: Mapping[nn.Parameter, Tensor], weight: float, total: int | None = None
) -> Make:
    """L1 pull, weight / N sum |p - start|: its gradient is added once in every step.

    towards: the start of each parameter; total: N, None = all their entries.
    Behind any clipping of the gradient, and not in the loss that is logged.
    """
    if not weight:
        return make
    share = weight / max(1, total or sum(start.numel() for start in towards.values()))
    starts = dict(towards)

    @torch.no_grad()
    def add(*_: Any) -> None:
        for parameter, start in starts.items():
            if parameter.grad is not None:
                starts[parameter] = start = start.to(parameter)  # moves at most once
                away = (parameter - start).sign_()
                parameter.grad.add_(away.to(parameter.grad.dtype), alpha=share)

    return hooked(make, before=add)


class Entries:
    """Some entries of parameters, trained as short vectors; all others keep their bits.

    While `training()` is open a parameter's gradient is gathered as soon as it is there, and then
    forgotten; the optimiser moves the vectors, so that it decays, remembers and clips nothing else,
    and each step writes them back. For one process.

    index: parameter -> flat places (n,) int64, each once.  dense: where not None, the whole
    gradients are added up in it, too.
    """

    def __init__(self, index: Mapping[nn.Parameter, Tensor]) -> None:
        self.dense: dict[nn.Parameter, Tensor] | None = None
        self.index = {p: i.to(p.device) for p, i in index.items()}
        self.vectors = {p: nn.Parameter(self._read(p)) for p in self.index}

    def _read(self, parameter: nn.Parameter) -> Tensor:
        return parameter.detach().reshape(-1)[self.index[parameter]]

    @contextmanager
    def training(self) -> Iterator[Entries]:
        for parameter in self.index:
            parameter.data = parameter.data.contiguous()
        handles = [p.register_post_accumulate_grad_hook(self._gather) for p in self.index]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def optimizer(self, make: Make) -> Make:
        """Optimisers of the vectors in place of their parameters."""

        def made(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
            for parameter, vector in self.vectors.items():  # which may have been moved since
                vector.data = vector.data.to(parameter.device)
                self.index[parameter] = self.index[parameter].to(parameter.device)
            optimizer = make(model, lr, weight_decay)
            for group in optimizer.param_groups:
                group["params"] = [self.vectors.get(p, p) for p in group["params"]]
            return optimizer

        return hooked(made, before=self._refresh, after=self._write)

    @torch.no_grad()
    def move(self, index: Mapping[nn.Parameter, Tensor], optimizer: Optimizer | None) -> None:
        """Train other entries from now on; states of those that stay go along, new ones are 0."""
        for parameter, new in index.items():
            old, new = self.index[parameter], new.to(parameter.device)
            vector = self.vectors[parameter]
            held = {} if optimizer is None else optimizer.state.get(vector, {})
            for key, value in held.items():
                if isinstance(value, Tensor) and value.shape == old.shape:
                    full = value.new_zeros(parameter.numel())
                    full[old] = value
                    held[key] = full[new]
            self.index[parameter] = new
            vector.grad = None
            vector.data = self._read(parameter)

    def _gather(self, parameter: Tensor) -> None:
        assert isinstance(parameter, nn.Parameter) and parameter.grad is not None
        vector, grad = self.vectors[parameter], parameter.grad
        if self.dense is not None:
            before = self.dense.get(parameter)
            self.dense[parameter] = grad if before is None else before + grad
        found = grad.reshape(-1)[self.index[parameter]]
        vector.grad = found if vector.grad is None else vector.grad.add_(found)
        parameter.grad = None

    @torch.no_grad()
    def _refresh(self, *_: Any) -> None:
        # the parameters may have been set since: by a checkpoint, or by another delta
        for parameter, vector in self.vectors.items():
            vector.copy_(self._read(parameter))

    @torch.no_grad()
    def _write(self, *_: Any) -> None:
        for parameter, vector in self.vectors.items():
            parameter.view(-1)[self.index[parameter]] = vector
