"""The matrices that are pruned, of layers and of experts in stacks, and what each has seen."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...core import Routing
from ...formats.packed_linear import PackedLinear
from ...kernels.experts.stacks import stacked_matrices
from ...mixtures.experts import Experts, StackedExperts
from ...scores.statistics import Observed, Statistics, observing


@dataclass(frozen=True, eq=False)
class Matrix:
    """Weight (out, in) of a layer, or of one expert in a stack, that can be read and replaced.

    A convolution's weight counts as (out, in kh kw). owner: the module with the weight as its
    parameter `name`; index: number of the expert in a stack, None = no stack; turned: the parameter
    is stored as (in, out).
    """

    owner: nn.Module
    name: str = "weight"
    index: int | None = None
    turned: bool = False

    @property
    def stored(self) -> Tensor:
        """Numbers as the parameter holds them."""
        parameter: Tensor = getattr(self.owner, self.name).detach()
        return parameter if self.index is None else parameter[self.index]

    def detach_stack(self) -> None:
        """Give the stack new memory, so that editing it leaves earlier references unchanged."""
        stack: nn.Parameter = getattr(self.owner, self.name)
        stack.data = stack.data.clone()

    def read(self) -> Tensor:
        """Return the matrix, (out, in)."""
        weight = self.stored.flatten(1)
        return weight.T if self.turned else weight

    def write(self, weight: Tensor) -> None:
        """Write a matrix, (out, in), into the parameter."""
        self.put(weight.T if self.turned else weight)

    def put(self, stored: Tensor) -> None:
        """Write numbers that are laid out as the parameter is stored.

        The parameter takes over this tensor itself, without a copy; in a stack of experts it is
        copied.
        """
        old = self.stored
        new = stored.to(old.device, old.dtype).reshape(old.shape)
        if self.index is None:
            getattr(self.owner, self.name).data = new.contiguous()
        else:
            old.copy_(new)


def matrix_of(layer: nn.Module) -> Matrix | None:
    """Return the weight of a linear layer, or of a convolution without groups, as a matrix.

    None for other layers, and for layers that a format has packed (`PackedLinear`).
    """
    if isinstance(layer, PackedLinear):
        return None
    if isinstance(layer, Conv1D):
        return Matrix(layer, turned=True)
    is_plain_convolution = isinstance(layer, nn.Conv2d) and layer.groups == 1
    return Matrix(layer) if is_plain_convolution or isinstance(layer, nn.Linear) else None


def of_experts(block: nn.Module) -> Iterator[tuple[str, Matrix]]:
    """Yield the name and matrix of every stacked expert in a block, as "mlp.experts.up.3"."""
    for path, module in block.named_modules():
        for name, turned in stacked_matrices(module).items():
            for expert in range(len(getattr(module, name))):
                yield f"{path}.{name}.{expert}".lstrip("."), Matrix(module, name, expert, turned)


@contextmanager
def seeing(layers: Mapping[str, Matrix], needs: Collection[str]) -> Iterator[Observed]:
    """Collect statistics of the layers' inputs in every forward inside the `with`.

    Like `observing`, and also for matrices of stacked experts, which get the rows routed to them.
    needs: names of the statistics, as "hessian" or "square".
    Yields the statistics, which forwards update.
    """
    # layers are observed by hooks; experts in a stack have no module of their own to hook
    plain = {name: m.owner for name, m in layers.items() if m.index is None}
    stacks: dict[nn.Module, dict[tuple[str, int], str]] = {}
    for name, m in layers.items():
        if m.index is not None:
            stacks.setdefault(m.owner, {})[m.name, m.index] = name
    # unfolded: a convolution's input counts as the rows that its weight multiplies
    with observing(plain, needs=needs, unfolded=True) as observed, ExitStack() as stack:
        for owner, names in stacks.items():
            count = partial(_count, observed, frozenset(needs), owner, names)
            stack.enter_context(
                _counting_mixture(owner, count)
                if isinstance(owner, Experts)
                else _counting_fused(owner, count)
            )
        yield observed


@contextmanager
def _counting_mixture(owner: Any, count: Any) -> Iterator[None]:
    """Call `count` in each forward of a mixture with x (T, d) and each pair's token and expert."""
    original = owner.mix

    def mix(x: Tensor, routing: Routing) -> Tensor:
        count(x, routing.token, routing.expert)
        return original(x, routing)

    owner.mix = mix  # an attribute of the module hides the method of its class
    try:
        yield
    finally:
        del owner.mix


@contextmanager
def _counting_fused(owner: nn.Module, count: Any) -> Iterator[None]:
    """Call `count` in each forward of transformers' experts, with the routing of its tokens."""

    # of each of the T k choices; the number E stands for no expert
    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Report the rows of a call and the expert of each choice."""
        x, expert, *_ = (*args, *kwargs.values())
        x = x.reshape(-1, x.shape[-1])
        # (T, k) choices as T k pairs
        token = torch.arange(len(x), device=x.device).repeat_interleave(expert.shape[-1])
        count(x, token, expert.flatten())

    handle = owner.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _count(
    observed: Observed,
    needs: frozenset[str],
    owner: Any,
    names: Mapping[tuple[str, int], str],
    x: Tensor,
    token: Tensor,
    expert: Tensor,
) -> None:
    """Add the inputs of each expert's matrices to their statistics."""
    # x: (T, d); token, expert: (N,) of each pair; names: (parameter, expert) -> the matrix.
    # Padding is routed like any token, and must not count.
    if observed.mask is not None and observed.mask.numel() == len(x):
        real = observed.mask.flatten().to(x.device)[token]
        token, expert = token[real], expert[real]
    for e in sorted({index for _, index in names}):
        rows = x[token[expert == e]]
        if not len(rows):
            continue
        names_of_expert = {n: name for (n, index), name in names.items() if index == e}
        # gate and up read the token; down reads the hidden units, which are computed again
        input_names = [name for n, name in names_of_expert.items() if not n.startswith("down")]
        hidden_names = [name for n, name in names_of_expert.items() if n.startswith("down")]
        for group, read in (
            (input_names, rows),
            (hidden_names, _hidden(owner, rows, e) if hidden_names else rows),
        ):
            new = Statistics.of(read, needs=needs) if group else None
            for name in group:
                assert new is not None
                observed.add(name, new)


def _hidden(owner: Any, rows: Tensor, expert: int) -> Tensor:
    """Compute the input of an expert's last matrix, `down`: (N, d) -> (N, h)."""
    if isinstance(owner, StackedExperts):
        return owner.hidden(rows, torch.full((len(rows),), expert, device=rows.device))
    name = "gate_up_proj" if owner.has_gate else "up_proj"
    weight = getattr(owner, name)[expert]
    # as transformers' own forward computes it, up to the second matrix
    y = rows @ (weight if owner.is_transposed else weight.T)
    if owner.has_bias:
        y = y + getattr(owner, f"{name}_bias")[expert]
    return owner._apply_gate(y) if owner.has_gate else owner.act_fn(y)
