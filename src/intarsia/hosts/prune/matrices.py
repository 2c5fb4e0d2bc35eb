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
from ...kernels.experts.stacks import stacked_matrices
from ...mixtures.experts import Experts, StackedExperts
from ...scores.statistics import Observed, Statistics, observing
from ..swap.packed_linear import PackedLinear


@dataclass(frozen=True, eq=False)
class Matrix:
    """A weight (out, in); a convolution's is (out, in kh kw).

    owner: the module that has it as the parameter `name`; index: of an expert, None = no stack;
    turned: it is stored as (in, out).
    """

    owner: nn.Module
    name: str = "weight"
    index: int | None = None
    turned: bool = False

    @property
    def stored(self) -> Tensor:
        """The numbers as the parameter holds them."""
        whole: Tensor = getattr(self.owner, self.name).detach()
        return whole if self.index is None else whole[self.index]

    def detach_stack(self) -> None:
        """Give the stack numbers of its own: editing it leaves those before as they are."""
        stack: nn.Parameter = getattr(self.owner, self.name)
        stack.data = stack.data.clone()

    def read(self) -> Tensor:
        """The matrix, (out, in)."""
        weight = self.stored.flatten(1)
        return weight.T if self.turned else weight

    def write(self, weight: Tensor) -> None:
        """Put a matrix in its place.  weight: (out, in)."""
        self.put(weight.T if self.turned else weight)

    def put(self, stored: Tensor) -> None:
        """Put back what `stored` gave; a tensor of its own, except in a stack."""
        old = self.stored
        new = stored.to(old.device, old.dtype).reshape(old.shape)
        if self.index is None:
            getattr(self.owner, self.name).data = new.contiguous()
        else:
            old.copy_(new)


def matrix_of(layer: nn.Module) -> Matrix | None:
    """Of a linear layer, or a convolution that is not grouped; None for anything else.

    A layer that a format holds (`PackedLinear`) has no matrix that could be written.
    """
    if isinstance(layer, PackedLinear):
        return None
    if isinstance(layer, Conv1D):
        return Matrix(layer, turned=True)
    whole = isinstance(layer, nn.Conv2d) and layer.groups == 1
    return Matrix(layer) if whole or isinstance(layer, nn.Linear) else None


def of_experts(block: nn.Module) -> Iterator[tuple[str, Matrix]]:
    """Every matrix of stacked experts inside a block: "mlp.experts.up.3" is that of expert 3."""
    for path, module in block.named_modules():
        for name, turned in stacked_matrices(module).items():
            for expert in range(len(getattr(module, name))):
                yield f"{path}.{name}.{expert}".lstrip("."), Matrix(module, name, expert, turned)


@contextmanager
def seeing(layers: Mapping[str, Matrix], needs: Collection[str]) -> Iterator[Observed]:
    """Inside, every forward is counted as in `observing`; of an expert, the rows routed to it."""
    plain = {name: m.owner for name, m in layers.items() if m.index is None}
    stacks: dict[nn.Module, dict[tuple[str, int], str]] = {}
    for name, m in layers.items():
        if m.index is not None:
            stacks.setdefault(m.owner, {})[m.name, m.index] = name
    with observing(plain, needs=needs, unfolded=True) as seen, ExitStack() as stack:
        for owner, names in stacks.items():
            count = partial(_count, seen, frozenset(needs), owner, names)
            stack.enter_context(
                _mixing(owner, count) if isinstance(owner, Experts) else _fused(owner, count)
            )
        yield seen


@contextmanager
def _mixing(owner: Any, count: Any) -> Iterator[None]:
    """Inside, `StackedExperts` shows its rows and their pairs."""
    own = owner.mix

    def mix(x: Tensor, routing: Routing) -> Tensor:
        count(x, routing.token, routing.expert)
        return own(x, routing)

    owner.mix = mix
    try:
        yield
    finally:
        del owner.mix


@contextmanager
def _fused(owner: nn.Module, count: Any) -> Iterator[None]:
    """Inside, experts of transformers show theirs; chosen: (T, k), E = no expert."""

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x, chosen, *_ = (*args, *kwargs.values())
        x = x.reshape(-1, x.shape[-1])
        token = torch.arange(len(x), device=x.device).repeat_interleave(chosen.shape[-1])
        count(x, token, chosen.flatten())

    handle = owner.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _count(
    seen: Observed,
    needs: frozenset[str],
    owner: Any,
    names: Mapping[tuple[str, int], str],
    x: Tensor,
    token: Tensor,
    expert: Tensor,
) -> None:
    """Add up what each expert's matrices read.  x: (T, d); token, expert: (N,), the pairs."""
    if seen.mask is not None and seen.mask.numel() == len(x):
        real = seen.mask.flatten().to(x.device)[token]
        token, expert = token[real], expert[real]
    for e in sorted({index for _, index in names}):
        rows = x[token[expert == e]]
        if not len(rows):
            continue
        given = {n: name for (n, index), name in names.items() if index == e}
        outer = [name for n, name in given.items() if not n.startswith("down")]
        inner = [name for n, name in given.items() if n.startswith("down")]
        for group, read in ((outer, rows), (inner, _hidden(owner, rows, e) if inner else rows)):
            new = Statistics.of(read, needs=needs) if group else None
            for name in group:
                assert new is not None
                seen.add(name, new)


def _hidden(owner: Any, rows: Tensor, expert: int) -> Tensor:
    """What the second matrix of an expert reads.  (N, d) -> (N, h)."""
    if isinstance(owner, StackedExperts):
        return owner.hidden(rows, torch.full((len(rows),), expert, device=rows.device))
    name = "gate_up_proj" if owner.has_gate else "up_proj"
    weight = getattr(owner, name)[expert]
    y = rows @ (weight if owner.is_transposed else weight.T)
    if owner.has_bias:
        y = y + getattr(owner, f"{name}_bias")[expert]
    return owner._apply_gate(y) if owner.has_gate else owner.act_fn(y)
