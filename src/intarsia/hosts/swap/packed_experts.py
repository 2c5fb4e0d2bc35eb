"""Experts whose matrices are what a format stores, read an expert at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...core import Format
from ...core.errors import ConfigError, FoldError
from ...kernels.experts import ends_of
from ...mixtures.experts import Experts, StackedExperts
from ...mixtures.experts_function import arguments

PARTS = ("codes", "row_offsets", "levels")


class PackedStack(nn.Module):
    """E matrices (out, in) as one of E out rows, in a format that stores rows one after another.

    form: `formats.Ternary`; stored: of the tall matrix; shape: (E, out, in). Buffers that are read
    from a file stay mapped: an expert's pages are read when it is first used.
    """

    def __init__(
        self, form: Format, stored: Mapping[str, Tensor], shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.form, self.sizes = form, shape
        for name in PARTS:
            self.register_buffer(name, stored[name])

    def of(self, expert: int) -> dict[str, Tensor]:
        """What is stored of one expert."""
        rows = self.sizes[1]
        offsets = self.get_buffer("row_offsets")[expert * rows : (expert + 1) * rows + 1]
        first, last = int(offsets[0]), int(offsets[-1])
        levels = self.get_buffer("levels")[expert * rows : (expert + 1) * rows]
        codes = self.get_buffer("codes")[first:last]
        return {"codes": codes, "row_offsets": offsets - first, "levels": levels}

    def linear(self, x: Tensor, expert: int) -> Tensor:
        """x W_e^T.  (N, in) -> (N, out)."""
        return self.form.matmul(x, self.of(expert), self.sizes[1:])

    def decoded(self) -> Tensor:
        """(E, out, in) float32."""
        experts, rows, width = self.sizes
        stored = {name: self.get_buffer(name) for name in PARTS}
        return self.form.decode(stored, (experts * rows, width)).view(self.sizes)

    @property
    def weights(self) -> int:
        """How many there are."""
        experts, rows, width = self.sizes
        return experts * rows * width

    @property
    def nbytes(self) -> int:
        """Of all that is stored."""
        return sum(b.numel() * b.element_size() for b in self.buffers())

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """A module is moved whole; a type that is asked for is that of inputs, not of the store."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            now = self._buffers[name]
            if old is not None and now is not None and now.dtype != old.dtype:
                self._buffers[name] = old.to(now.device)
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Take tensors as they are: those of a file are mapped, and not copied."""
        for name in PARTS:
            new, old = state_dict.get(f"{prefix}{name}"), self._buffers[name]
            if (
                new is not None
                and old is not None
                and (new.shape, new.dtype) == (old.shape, old.dtype)
            ):
                self._buffers[name] = new
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"{self.sizes}, {self.form}"


class PackedExperts(Experts):
    """`StackedExperts` whose matrices are packed; nothing is trained, rows have gradients.

    shell: the experts without their stacks, with activation and biases.
    """

    def __init__(self, shell: Any, stacks: Mapping[str, PackedStack]) -> None:
        super().__init__()
        self.experts, self.shell, self.stacks = shell.experts, shell, nn.ModuleDict(stacks)

    def forward(self, rows: Tensor, expert: Tensor) -> Tensor:
        parts = [self._linear(self._hidden(x, e), "down", e) for e, x in self._each(rows, expert)]
        outputs = self._stack("down").sizes[1]
        return torch.cat(parts) if parts else rows.new_zeros(0, outputs)

    def hidden(self, rows: Tensor, expert: Tensor) -> Tensor:
        """What `down` reads.  rows: (N, d), expert: (N,) int64, ascending -> (N, h)."""
        parts = [self._hidden(x, e) for e, x in self._each(rows, expert)]
        return torch.cat(parts) if parts else rows.new_zeros(0, self._stack("up").sizes[1])

    def every(self, x: Tensor) -> Tensor:
        made = [self._linear(self._hidden(x, e), "down", e) for e in range(self.experts)]
        return torch.stack(made, 1)

    def keep(self, index: Tensor) -> None:
        """Raises: ConfigError: rows of packed stacks cannot be moved."""
        fix = "Prune or merge experts first, then pack them."
        raise ConfigError("experts", got="packed ones", want="plain ones to choose from", fix=fix)

    def append(self, experts: Experts) -> None:
        """Raises: ConfigError, as `keep`."""
        self.keep(torch.empty(0))

    def _each(self, rows: Tensor, expert: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The experts that have rows, and these."""
        loads = ends_of(expert, self.experts).diff(prepend=expert.new_zeros(1)).tolist()
        yield from ((e, x) for e, x in enumerate(rows.split(loads)) if len(x))

    def _hidden(self, x: Tensor, expert: int) -> Tensor:
        up = self._linear(x, "up", expert)
        if "gate" not in self.stacks:
            return self.shell.act(up)
        return self.shell.act(self._linear(x, "gate", expert)) * up

    def _linear(self, x: Tensor, name: str, expert: int) -> Tensor:
        y = self._stack(name).linear(x, expert)
        bias = getattr(self.shell, f"{name}_bias")
        return y if bias is None else y + bias[expert].to(y.dtype)

    def _stack(self, name: str) -> PackedStack:
        stack = self.stacks[name]
        assert isinstance(stack, PackedStack)
        return stack


class PackedStock(nn.Module):
    """Fused experts of transformers whose matrices are packed; the same call as theirs."""

    def __init__(self, shell: Any, stacks: Mapping[str, PackedStack]) -> None:
        super().__init__()
        self.shell, self.stacks = shell, nn.ModuleDict(stacks)

    def forward(self, *given: Any, **named: Any) -> Tensor:
        """hidden (T, d), index (T, k), weights (T, k) -> (T, d)."""
        hidden, index, weights = arguments(given, named)
        shell: Any = self.shell
        inner = "gate_up_proj" if shell.has_gate else "up_proj"
        out = torch.zeros_like(hidden)
        count = self._stack("down_proj").sizes[0]
        for expert in index.unique().tolist():
            if expert >= count:
                continue  # nobody
            token, slot = (index == expert).nonzero(as_tuple=True)
            y = self._linear(hidden[token], inner, expert)
            y = shell._apply_gate(y) if shell.has_gate else shell.act_fn(y)
            y = self._linear(y, "down_proj", expert) * weights[token, slot, None]
            out = out.index_add(0, token, y.to(out.dtype))
        return out

    def _linear(self, x: Tensor, name: str, expert: int) -> Tensor:
        y = self._stack(name).linear(x, expert)
        return y + getattr(self.shell, f"{name}_bias")[expert] if self.shell.has_bias else y

    def _stack(self, name: str) -> PackedStack:
        stack = self.stacks[name]
        assert isinstance(stack, PackedStack)
        return stack


Packed = PackedExperts | PackedStock


def packed(experts: Any, stacks: Mapping[str, PackedStack]) -> Packed:
    """The experts with these stacks in the place of their parameters, which are let go of."""
    for name in stacks:
        delattr(experts, name)
    shell = experts.requires_grad_(False)
    own = isinstance(experts, StackedExperts)
    return (PackedExperts if own else PackedStock)(shell, stacks).train(experts.training)


def unpacked(experts: Packed, turned: Mapping[str, bool]) -> nn.Module:
    """The plain experts of the decoded matrices.  turned: stacks that are stored (E, in, out)."""
    shell: Any = experts.shell
    for name, stack in experts.stacks.items():
        if not isinstance(stack, PackedStack):
            what, fix = "experts", "Pack them again."
            raise FoldError(what, got=type(stack).__name__, want="packed stacks", fix=fix)
        whole = stack.decoded()
        whole = whole.transpose(1, 2).contiguous() if turned.get(name) else whole
        if hasattr(shell, name):
            delattr(shell, name)
        setattr(shell, name, nn.Parameter(whole))
    return shell.train(experts.training)


def packed_experts(model: nn.Module) -> dict[str, Packed]:
    """Experts that are packed, by path."""
    return {p: m for p, m in model.named_modules() if isinstance(m, PackedExperts | PackedStock)}


def packed_stacks(model: nn.Module) -> list[PackedStack]:
    """All stacks that are packed."""
    return [m for m in model.modules() if isinstance(m, PackedStack)]


def room(shape: Sequence[int], codes: int) -> dict[str, Tensor]:
    """Tensors of the sizes of what a file holds, of no memory.  shape: (E, out, in)."""
    rows = shape[0] * shape[1]
    sizes = {
        "codes": ((codes,), torch.uint16),
        "row_offsets": ((rows + 1,), torch.int64),
        "levels": ((rows, 2), torch.bfloat16),
    }
    return {n: torch.zeros(1, dtype=d).expand(s) for n, (s, d) in sizes.items()}
