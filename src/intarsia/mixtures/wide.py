"""A mixture read as one wide MLP with most hidden units 0 (MoE-X, arXiv:2503.07639)."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.linear import plain_linear
from ..kernels.experts import by_expert
from .experts import StackedExperts
from .mixture import Mixture


class WideMlp(nn.Module):
    """y_t = down(g_t . act(up(x_t))), E h units wide; block e of them is scaled by g_te.

    x: (..., d), gates: (T, E), T the rows of x -> (..., out). With gated experts the units are
    act(gate(x)) * up(x); biases of the experts' second matrices add sum_e g_te b2_e.
    Made by `as_wide_mlp`. For reading, not for speed: it computes every expert.
    """

    down_bias: nn.Parameter | None

    def __init__(self, experts: StackedExperts, shared: nn.Module | None) -> None:
        """Copy the weights of E stacked experts into one MLP of E h hidden units."""
        super().__init__()
        self.experts, self.units = experts.experts, experts.up.shape[1]
        self.act = copy.deepcopy(experts.act)
        # (E, h, d) -> (E h, d): block e of the units is expert e
        self.up = plain_linear(experts.up.flatten(0, 1), experts.up_bias)
        self.gate = None
        if experts.gate is not None:
            self.gate = plain_linear(experts.gate.flatten(0, 1), experts.gate_bias)
        # (E, out, h) -> (out, E h)
        self.down = plain_linear(experts.down.transpose(0, 1).flatten(1), None)
        bias = experts.down_bias
        self.down_bias = None if bias is None else nn.Parameter(bias.detach().clone())  # (E, out)
        self.shared = copy.deepcopy(shared)

    def hidden(self, x: Tensor, gates: Tensor) -> Tensor:
        """Compute the hidden units of all experts, each multiplied by its expert's weight.

        x: (..., d); gates: (T, E), the weights of E experts for the T rows of x, 0 = the row does
          not have the expert.  -> (..., E h).
        """
        units = self.act(self.up(x) if self.gate is None else self.gate(x))
        if self.gate is not None:
            units = units * self.up(x)
        gates = gates.view(*x.shape[:-1], self.experts).to(units.dtype)
        return units * gates.repeat_interleave(self.units, dim=-1)

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        """Compute the output of the wide MLP.

        x: (..., d); gates: (T, E), the weights of E experts for the T rows of x.  -> (..., out).
        """
        y = self.down(self.hidden(x, gates))
        # the output biases are summed by the gates
        if self.down_bias is not None:
            y = y + gates.view(*x.shape[:-1], self.experts).to(y.dtype) @ self.down_bias
        return y if self.shared is None else y + self.shared(x)


def as_wide_mlp(mixture: Mixture) -> WideMlp:
    """Return one MLP with the hidden units of all experts, which computes the same as a mixture.

    mixture: one of `StackedExperts`; the weights are copied. as_wide_mlp(mixture)(x, gates) with
    gates = mixture.routing(x).dense() is mixture(x), up to rounding.

    Raises: ConfigError for experts of other kinds.
    """
    return WideMlp(_stacked(mixture), mixture.shared).train(mixture.training)


class ActivationL0(NamedTuple):
    """Means of the number of hidden units that are not 0.

    expert: over the pairs of a token and an expert it has, of the expert's h units;
    wide: over the tokens that have an expert, of the wide MLP's E h units.
    """

    expert: float
    wide: float


@torch.no_grad()
def activation_l0(model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, ActivationL0]:
    """Count the active (non-zero) hidden units of a model's mixtures; return means by path.

    model: has mixtures of `StackedExperts`; one that is itself a mixture has the path "". args,
    kwargs: arguments of one forward, model(*args, **kwargs), in which units are counted. For each
    mixture the mean number of a pair of a token and an expert (`expert`), and of a token (`wide`).
    The model runs in its current mode: in training a capacity drops pairs. The routing is computed
    twice, so that a random router draws twice. Shared experts are not counted. NaN for a mixture
    that no token reached.
    Raises: ConfigError for a model without a mixture of stacked experts.
    """
    by_path: dict[str, list[Tensor]] = {}  # (units on, pairs, tokens), of each call
    hooks: list[Any] = []
    for path, module in model.named_modules():
        if isinstance(module, Mixture) and isinstance(module.experts, StackedExperts):
            counts = by_path.setdefault(path, [])

            def count(mixture: nn.Module, inputs: Any, counts: list[Tensor] = counts) -> None:
                counts.append(_counts(cast(Mixture, mixture), inputs[0]))

            hooks.append(module.register_forward_pre_hook(count))
    if not by_path:
        got = f"a {type(model).__name__} without a mixture of stacked experts"
        fix = "Use intarsia.upcycle, or Mixture(StackedExperts(...), router)."
        raise ConfigError("model", got=got, want="one", fix=fix)
    try:
        model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    # a mixture may be called several times in one forward, or never
    none = torch.zeros(3)
    sums = {path: torch.stack(calls).sum(0) if calls else none for path, calls in by_path.items()}
    return {
        path: ActivationL0(float(on / pairs), float(on / tokens))
        for path, (on, pairs, tokens) in sums.items()
    }


def _counts(mixture: Mixture, x: Tensor) -> Tensor:
    """Count active hidden units, pairs (token, expert), and tokens with an expert, (3,) float64."""
    # x: (..., d)
    experts, routing = _stacked(mixture), mixture.routing(x)
    has = routing.weight != 0
    pairs = by_expert(routing.expert[has], experts.experts)
    token = routing.token[has][pairs.order]
    # A pair of weight 0 counts as none, and so do its units.
    on = experts.hidden(x.reshape(-1, x.shape[-1]).index_select(0, token), pairs.expert) != 0
    return torch.tensor([int(on.sum()), len(token), len(token.unique())], dtype=torch.float64)


def _stacked(mixture: Mixture) -> StackedExperts:
    """Return the experts of a mixture, checked to be stacked.  Raises: ConfigError."""
    if not isinstance(mixture.experts, StackedExperts):
        got, want = type(mixture.experts).__name__, "StackedExperts, of one width"
        fix = "Experts of other kinds are not one wide MLP."
        raise ConfigError("experts", got=got, want=want, fix=fix)
    return mixture.experts
