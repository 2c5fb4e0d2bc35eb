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
    """Return a factory of optimisers that pull parameters towards their start, by an L1 penalty.

    The penalty is weight / N sum |p - start|. make: f(model, lr, weight_decay) makes an optimiser;
    the result is such a function, too. towards: parameter -> its start; weight: 0 = `make` as it
    is; total: N, None = the number of all entries. The gradient of the penalty is added after any
    clipping, and the penalty is not in the loss that is logged.
    """
    if not weight:
        return make
    # the gradient of the penalty at each entry, up to its sign
    share = weight / max(1, total or sum(start.numel() for start in towards.values()))
    starts = dict(towards)

    @torch.no_grad()
    def add_pull(*_: Any) -> None:
        """Add share * sign(p - start) to each gradient, before the optimiser's step."""
        for parameter, start in starts.items():
            if parameter.grad is not None:
                starts[parameter] = start = start.to(parameter)  # moves at most once
                # the gradient of |p - start| is a sign
                away = (parameter - start).sign_()
                parameter.grad.add_(away.to(parameter.grad.dtype), alpha=share)

    return hooked(make, before=add_pull)


class Entries:
    """Some entries of parameters, trained as short vectors; all others keep their bits.

    While `training()` is open a parameter's gradient is gathered as soon as it is there, and then
    forgotten; the optimiser moves the vectors, so that it decays, remembers and clips nothing else,
    and each step writes them back. For one process.

    index: parameter -> flat places (n,) int64, each once.  dense: where not None, the whole
    gradients are added up in it, too.
    """

    def __init__(self, index: Mapping[nn.Parameter, Tensor]) -> None:
        """Make a short trained vector of some entries of each parameter."""
        self.dense: dict[nn.Parameter, Tensor] | None = None
        self.index = {p: i.to(p.device) for p, i in index.items()}
        self.vectors = {p: nn.Parameter(self._read(p)) for p in self.index}

    def _read(self, parameter: nn.Parameter) -> Tensor:
        """Return the trained entries of a parameter, (n,)."""
        return parameter.detach().reshape(-1)[self.index[parameter]]

    @contextmanager
    def training(self) -> Iterator[Entries]:
        """Collect the gradients of the trained entries inside the context; yield self.

        `vectors` has for each parameter a short vector of its trained entries, which the optimiser
        steps. Each backward fills the vectors' gradients; the gradient of the whole parameter is
        not kept.
        """
        for parameter in self.index:
            # flat views need contiguous memory
            parameter.data = parameter.data.contiguous()
        # called for each parameter as soon as its gradient is complete
        handles = [p.register_post_accumulate_grad_hook(self._gather) for p in self.index]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def optimizer(self, make: Make) -> Make:
        """Return a factory of optimisers that step the short vectors instead of their parameters.

        make: f(model, lr, weight_decay) makes the optimiser; the result is such a function, too.
        """

        def factory(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
            """Make the optimiser, and give it the vectors instead of their parameters."""
            # the model may have gone to another device since the vectors were made
            for parameter, vector in self.vectors.items():
                vector.data = vector.data.to(parameter.device)
                self.index[parameter] = self.index[parameter].to(parameter.device)
            optimizer = make(model, lr, weight_decay)
            # the optimiser sees short vectors: decay, moments and clipping touch nothing else
            for group in optimizer.param_groups:
                group["params"] = [self.vectors.get(p, p) for p in group["params"]]
            return optimizer

        return hooked(factory, before=self._refresh, after=self._write)

    @torch.no_grad()
    def move(self, index: Mapping[nn.Parameter, Tensor], optimizer: Optimizer | None) -> None:
        """Train other entries of the parameters from now on.

        index: parameter -> flat positions, (n,) int64. optimizer: its states (momentum and the
          like) of entries that stay are kept, the states of new ones are 0; None = no optimiser
          yet.
        """
        for parameter, new in index.items():
            old, new = self.index[parameter], new.to(parameter.device)
            vector = self.vectors[parameter]
            states = {} if optimizer is None else optimizer.state.get(vector, {})
            for key, value in states.items():
                if isinstance(value, Tensor) and value.shape == old.shape:
                    # scatter the state into the parameter's shape, and gather it at the new places
                    full = value.new_zeros(parameter.numel())
                    full[old] = value
                    states[key] = full[new]
            self.index[parameter] = new
            vector.grad = None
            # the optimiser keeps its vector, which now has other entries
            vector.data = self._read(parameter)

    def _gather(self, parameter: Tensor) -> None:
        """Move the trained entries of a new gradient into the short vector's gradient."""
        assert isinstance(parameter, nn.Parameter) and parameter.grad is not None
        vector, grad = self.vectors[parameter], parameter.grad
        if self.dense is not None:
            before = self.dense.get(parameter)
            self.dense[parameter] = grad if before is None else before + grad
        gathered = grad.reshape(-1)[self.index[parameter]]
        # several backwards of one step add up, as in `Tensor.grad`
        vector.grad = gathered if vector.grad is None else vector.grad.add_(gathered)
        parameter.grad = None

    @torch.no_grad()
    def _refresh(self, *_: Any) -> None:
        """Copy the trained entries from the parameters into the short vectors, before a step."""
        # the parameters may have been set since: by a checkpoint, or by another delta
        for parameter, vector in self.vectors.items():
            vector.copy_(self._read(parameter))

    @torch.no_grad()
    def _write(self, *_: Any) -> None:
        """Copy the short vectors back into the parameters, after a step."""
        for parameter, vector in self.vectors.items():
            parameter.view(-1)[self.index[parameter]] = vector
