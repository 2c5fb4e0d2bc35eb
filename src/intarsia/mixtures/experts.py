"""Experts on rows sorted by expert: MLPs in stacked matrices, or any modules."""

from __future__ import annotations

import abc
import copy
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ..core import Routing
from ..core.checks import at_least
from ..core.errors import ConfigError
from ..kernels.experts import by_expert, ends_of, fused, grouped, mix_mlps
from ..routers.evomoe import drop_entries

ACTS: Mapping[str, type[nn.Module]] = MappingProxyType(
    {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}
)
Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # x, weight, bias


def activation(name: str) -> nn.Module:
    """Return the activation of this name.  Raises: ConfigError for a name that is not known."""
    if name not in ACTS:
        want = f"one of {sorted(ACTS)}, or a module"
        raise ConfigError("act", got=repr(name), want=want, fix="Pick one.")
    return ACTS[name]()


class Experts(nn.Module, abc.ABC):
    """E maps of rows.  experts: E.

    Raises: ConfigError in `encoder`, for experts with hidden units that are not on or off.
    """

    experts: int

    @abc.abstractmethod
    def forward(self, rows: Tensor, expert: Tensor) -> Tensor:
        """Compute each row by its expert.

        rows: (N, d), sorted by expert; expert: (N,) int64, ascending.  -> (N, out).
        """

    @abc.abstractmethod
    def every(self, x: Tensor) -> Tensor:
        """Compute each row by all experts, slow and obvious.  x: (T, d) -> (T, E, out)."""

    def mix(self, x: Tensor, routing: Routing) -> Tensor:
        """Compute sum_e G_te expert_e(x_t), the weighted sum of its experts' outputs for token t.

        x: (T, d); routing: pairs (token t, expert e) with their weights G_te.  -> (T, out).
        """
        # Sort the pairs by expert, compute each group, and add the weighted rows to their tokens.
        pairs = by_expert(routing.expert, self.experts)
        token, weight = routing.token[pairs.order], routing.weight[pairs.order]
        outputs = self(x.index_select(0, token), pairs.expert) * weight[:, None]  # (N, out)
        return outputs.new_zeros(len(x), outputs.shape[1]).index_add(0, token, outputs)

    def encoder(self) -> tuple[Tensor, Tensor | None]:
        """Return the weights and biases that decide which hidden units are not 0, for routers.

        See `intarsia.gating.reads_experts.Encoded`. This default always raises ConfigError: it is
        for experts with hidden units that are never exactly 0.
        """
        got, want = type(self).__name__, "StackedExperts(..., act='relu')"
        fix = "Use those, or another router."
        raise ConfigError("experts that a router reads", got=got, want=want, fix=fix)

    def keep(self, index: Tensor) -> None:
        """Keep some experts, in a given order, in place.

        index: (M,) int64, the numbers of the experts to keep. Every parameter must have the
          experts along its first axis.
        """
        for name, weight in list(self.named_parameters(recurse=False)):
            replace_rows(self, name, weight[index])
        self.experts = len(index)

    def append(self, experts: Experts) -> None:
        """Append copies of the experts of another module to this one's, in place.

        experts: the other module, of the same type and shapes; it is left as it is.
        """
        theirs = dict(experts.named_parameters(recurse=False))
        for name, weight in list(self.named_parameters(recurse=False)):
            replace_rows(self, name, torch.cat([weight, theirs[name].to(weight)]))
        self.experts += experts.experts


def replace_rows(module: nn.Module, name: str, rows: Tensor) -> None:
    """Replace a parameter or buffer of a module by one that may have another number of rows."""
    old = getattr(module, name)
    rows = rows.detach()
    new = nn.Parameter(rows, old.requires_grad) if isinstance(old, nn.Parameter) else rows
    setattr(module, name, new)


class StackedExperts(Experts):
    """E MLPs of one size: W2_e act(W1_e x + b1_e) + b2_e; gated W2_e (act(Wg_e x) * W1_e x).

    width, hidden: d and h; outputs: their width, d if None; act: "gelu", "relu", "silu" or an
    elementwise module; bias: has each matrix one.
    Parameters: `up` W1 (E, h, d), `gate` Wg (E, h, d), `down` W2 (E, out, h), each expert drawn
    for itself from U(-1/sqrt(n), 1/sqrt(n)), n its inputs; biases `up_bias`, ... start at 0.

    Raises: ConfigError for sizes below 1 or another activation.
    """

    matrices = ("up", "gate", "down")  # see `kernels.experts.stacked_matrices`

    def __init__(
        self,
        experts: int,
        width: int,
        hidden: int,
        outputs: int | None = None,
        *,
        act: str | nn.Module = "gelu",
        gated: bool = False,
        bias: bool = False,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        outputs = width if outputs is None else outputs
        sizes = {"experts": experts, "width": width, "hidden": hidden, "outputs": outputs}
        for name, value in sizes.items():
            at_least(name, value, 1)
        self.experts, self.outputs = experts, outputs
        self.act = activation(act) if isinstance(act, str) else act

        def drawn(rows: int, columns: int) -> nn.Parameter:
            """Draw a matrix (rows, columns) for each expert, as nn.Linear draws its own."""
            # the bound depends on the inputs of one expert
            bound = 1 / math.sqrt(columns)
            weight = torch.empty(experts, rows, columns)
            return nn.Parameter(nn.init.uniform_(weight, -bound, bound, generator=generator))

        def zeros(rows: int) -> nn.Parameter | None:
            return nn.Parameter(torch.zeros(experts, rows)) if bias else None

        self.up, self.up_bias = drawn(hidden, width), zeros(hidden)
        self.gate = drawn(hidden, width) if gated else None
        self.gate_bias = zeros(hidden) if gated else None
        self.down, self.down_bias = drawn(outputs, hidden), zeros(outputs)

    def forward(self, rows: Tensor, expert: Tensor) -> Tensor:
        """Compute each row by its expert."""
        linear = linear_of(expert, self.experts)
        return linear(self._hidden(rows, linear), self.down, self.down_bias)

    def hidden(self, rows: Tensor, expert: Tensor) -> Tensor:
        """Compute the input of `down`.  rows: (N, d), expert: (N,) int64, ascending -> (N, h)."""
        return self._hidden(rows, linear_of(expert, self.experts))

    def encoder(self) -> tuple[Tensor, Tensor | None]:
        """Return matrix (E, h, d) and bias (E, h) or None that decide which hidden units are on.

        They are the ones before the activation: the gate's, or without a gate `up`'s.
        Raises: ConfigError unless the activation is ReLU: no other leaves a unit at exactly 0.
        """
        if not isinstance(self.act, nn.ReLU):
            got, want = type(self.act).__name__, "ReLU, which alone turns units off"
            fix = "Use intarsia.upcycle(..., act='relu') or StackedExperts(..., act='relu')."
            raise ConfigError("act of experts that a router reads", got=got, want=want, fix=fix)
        if self.gate is None:
            return self.up, self.up_bias
        return self.gate, self.gate_bias

    def _hidden(self, rows: Tensor, linear: Linear) -> Tensor:
        """Compute the hidden units, act(up x), or act(gate x) * (up x) for gated experts."""
        up = linear(rows, self.up, self.up_bias)
        if self.gate is None:
            return self.act(up)
        return self.act(linear(rows, self.gate, self.gate_bias)) * up

    def mix(self, x: Tensor, routing: Routing) -> Tensor:
        """Compute sum_e G_te expert_e(x_t), the weighted sum of outputs for token t."""
        # one kernel for both products of all experts, where it has the activation and no bias
        tensors = (x, routing.weight, self.up, self.gate, self.down)
        learned = torch.is_grad_enabled() and any(
            t is not None and t.requires_grad for t in tensors
        )
        act = fused(self.act, x, learned=learned)
        if act is None or self.up_bias is not None:  # all matrices have a bias, or none has
            return super().mix(x, routing)
        x = x.to(_dtype(x))
        up, down = self.up.to(x.dtype), self.down.to(x.dtype)
        gate = None if self.gate is None else self.gate.to(x.dtype)
        pairs = routing.token, routing.expert, routing.weight
        return mix_mlps(x, *pairs, up, gate, down, act, learned=learned)

    def every(self, x: Tensor) -> Tensor:
        def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            y = torch.einsum("tei,eoi->teo", x, weight)
            return y if bias is None else y + bias

        all_x = x[:, None].expand(-1, self.experts, -1)  # (T, E, d)
        return linear(self._hidden(all_x, linear), self.down, self.down_bias)

    def diversify(self, fraction: float, generator: torch.Generator) -> None:
        """Set random weights of each expert's matrices to 0, so that copies differ (EvoMoE).

        fraction: the share of entries; generator: of the draw. Raises: ConfigError unless 0 <=
          fraction < 1.
        """
        matrices = (w for w in (self.up, self.gate, self.down) if w is not None)
        drop_entries(matrices, fraction, generator)

    def extra_repr(self) -> str:
        e, h, d = self.up.shape
        return f"{e} experts, {d} -> {h} -> {self.outputs}, gated={self.gate is not None}"


def linear_of(expert: Tensor, experts: int) -> Linear:
    """Return a function x, W, b -> x W_e^T + b_e for sorted rows, where e is each row's expert.

    expert: (N,) int64, ascending; experts: E. The function takes x (N, in), W (E, out, in), b (E,
      out) or None.
    """
    ends = ends_of(expert, experts)

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute x_n W_e^T + b_e for each row n, with e its expert."""
        # custom operators do not see autocast: cast for them
        dtype = _dtype(x)
        y = grouped(x.to(dtype).contiguous(), weight.to(dtype), ends)
        return y if bias is None else y + bias.to(dtype).index_select(0, expert)

    return linear


def _dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of a product: autocast's, which does not reach our operators, or x's."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


class ExpertList(Experts):
    """Any modules (N, d) -> (N, out) as experts, of whatever kinds and sizes.

    One without rows is called too: its gradient is then 0, and data-parallel ranks do not wait.

    Raises: ConfigError for none.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        if not len(modules):
            raise ConfigError("experts", got="none", want="at least one module", fix="Give a list.")
        self.each = nn.ModuleList(modules)
        self.experts = len(modules)

    def forward(self, rows: Tensor, expert: Tensor) -> Tensor:
        """Compute each row by its expert."""
        # every expert must be called: ranks wait for a gradient of each
        loads = ends_of(expert, self.experts).diff(prepend=expert.new_zeros(1)).tolist()
        parts = rows.split(loads)
        return torch.cat([f(x) for f, x in zip(self.each, parts, strict=True)])

    def every(self, x: Tensor) -> Tensor:
        return torch.stack([f(x) for f in self.each], 1)

    def keep(self, index: Tensor) -> None:
        """Keep some experts, in a given order, in place.  index: (M,) int64, their numbers."""
        self.each = nn.ModuleList(self.each[i] for i in index.tolist())
        self.experts = len(self.each)

    def append(self, experts: Experts) -> None:
        """Append copies of another list's experts, so that its mixture can be trained on."""
        # two mixtures are merged only if their experts are of one type
        assert isinstance(experts, ExpertList)
        self.each.extend(copy.deepcopy(expert) for expert in experts.each)
        self.experts = len(self.each)
