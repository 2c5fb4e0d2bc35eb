"""Quantisation-aware training of any cell: its weight matrices are quantised in each forward."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..core import Cell
from ..core.errors import ConfigError
from ..core.linear import plain_linear
from ..formats import Gaussian

BIASES = ("bias", "biases")
CUT = 2.0  # the initial normal distribution is cut at this many sigma


def is_coded(name: str, parameter: Tensor) -> bool:
    """Return True for a parameter that is quantised: a matrix, but no bias, gain or router."""
    is_bias = name.rpartition(".")[2] in BIASES
    return parameter.dim() > 1 and not is_bias and "router" not in name


def stored(body: nn.Module, *, biases: bool) -> dict[str, tuple[Tensor, bool]]:
    """Return the tensors of an adapter that a file must store, sorted by name.

    name -> (tensor, True if it is stored quantised).  body: the adapter, a small trained module
    that is added to one module of a model. biases: also store the biases of its linear maps.
    """
    weights = {n for n, p in body.named_parameters() if is_coded(n, p)}
    linear = {n.rpartition(".")[0] for n in weights}
    return {
        name: (tensor, name in weights)
        for name, tensor in sorted(body.state_dict(keep_vars=True).items())
        if biases or not (name.rpartition(".")[2] in BIASES and name.rpartition(".")[0] in linear)
    }


class _MethodCall(nn.Module):
    """A method of a cell as the forward of a module, for functional_call."""

    def __init__(self, body: Cell, method: str) -> None:
        super().__init__()
        self.body, self.method = body, method

    def forward(self, *args: Any) -> Tensor:
        # functional_call puts quantised weights in place for one forward, of a module alone
        return getattr(self.body, self.method)(*args)


class CodedCell(Cell):
    """body(x) with q(W) instead of each of its weight matrices W.

    format: q, with a straight-through gradient; None = no quantisation.
    biases: keep the biases of the linear maps, in float. start: sigma of the normal distribution,
    cut at 2 sigma, that initialises constant weights, because a constant cannot be quantised.

    Raises: ConfigError for a cell that has no weight matrix of its own.
    """

    def __init__(
        self,
        body: Cell,
        format: Gaussian | None,
        *,
        biases: bool = False,
        start: float = 1e-3,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.body, self.format = body, format
        # whole: the adapter also computes the host module's own output, in its method `around`
        self.whole = body.whole  # pyright: ignore[reportAttributeAccessIssue]
        weights = {n: p for n, p in body.named_parameters() if is_coded(n, p)}
        if not weights:
            got = f"{type(body).__name__} without a weight matrix of its own"
            fix = "Code a Bottleneck or a Lora."
            raise ConfigError("over", got=got, want="a cell with linear maps", fix=fix)
        # without biases the quantised cell has fewer bits to store
        if not biases:
            for name in weights:
                owner = body.get_submodule(name.rpartition(".")[0])
                for bias in BIASES:
                    if isinstance(owner._parameters.get(bias), nn.Parameter):
                        setattr(owner, bias, None)
        # a matrix of one repeated value (zero at the start) has no distribution to quantise
        for weight in weights.values() if format else ():
            if not weight.is_meta and not bool((weight != weight.flatten()[0]).any()):
                cut = CUT * start
                nn.init.trunc_normal_(weight, std=start, a=-cut, b=cut, generator=generator)

    def weights(self) -> dict[str, Tensor]:
        """Return the wrapped adapter's weight matrices, quantised, by name; {} if none are."""
        if self.format is None:
            return {}
        return {
            n: self.format.quantise(p) for n, p in self.body.named_parameters() if is_coded(n, p)
        }

    def _call(self, method: str, *args: Any) -> Tensor:
        """Return body.method(*args), computed with quantised weights, not the float ones."""
        # functional_call replaces parameters for this call alone; gradients reach the float ones
        weights = {f"body.{name}": weight for name, weight in self.weights().items()}
        return functional_call(_MethodCall(self.body, method), weights, args)

    def forward(self, x: Tensor) -> Tensor:
        return self._call("forward", x)

    def check(self, module: nn.Module) -> None:
        self.body.check(module)

    def around(self, module: nn.Module, x: Tensor) -> Tensor:
        return self._call("around", module, x)

    def merged(self) -> Cell:
        """Return a plain copy of the wrapped adapter with the quantised values as weights."""
        plain = copy.deepcopy(self.body)
        with torch.no_grad():
            # weights that were quantised in each forward are now quantised for good
            for name, weight in self.weights().items():
                plain.get_parameter(name).copy_(weight)
        # the wrapped adapter may have a plainer form of its own, as MoS has a LoRA
        return plain.merged()

    def delta(self) -> Tensor | None:
        return self.merged().delta()


class CodedLinear(nn.Linear):
    """x q(W)^T + b, a quantised head that is trained like a CodedCell.  (..., in) -> (..., out)."""

    format: Gaussian

    @classmethod
    def of(cls, linear: nn.Linear, format: Gaussian) -> CodedLinear:
        """Return a linear layer that shares `linear`'s tensors and quantises its weight when used.

        linear: the plain layer. format: the quantiser.
        """
        # skip nn.Linear's __init__, which would draw new weights
        coded = cls.__new__(cls)
        nn.Module.__init__(coded)
        coded.in_features, coded.out_features = linear.in_features, linear.out_features
        coded.weight, coded.bias = linear.weight, linear.bias
        coded.format = format
        return coded.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.format.quantise(self.weight), self.bias)

    def merged(self) -> nn.Linear:
        """Return the plain layer with the quantised weight."""
        return plain_linear(self.format.quantise(self.weight), self.bias).train(self.training)
