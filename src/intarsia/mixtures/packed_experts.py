"""Experts with matrices as a format stores them, read an expert at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..core import Format
from ..core.errors import CheckpointError, ConfigError, FoldError
from ..kernels.experts import ends_of, stacked_matrices
from .experts import Experts, StackedExperts
from .experts_function import arguments

# yields experts in their order, each when its weights may be read
Turns = Callable[[list[int]], Iterator[int]]


class PackedStack(nn.Module):
    """Matrices (out, in) of E experts, stored by a format as one tall matrix of E out rows.

    An expert is a part of the stored tensors: out is a multiple of the format's `row_group`.
    form: with a `row_group`; stored: tensors of the tall matrix; shape: (E, out, in). Buffers that
    are read from a file stay memory-mapped: an expert's pages are read when it is first used.
    """

    def __init__(
        self, form: Format, stored: Mapping[str, Tensor], shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.form, self.sizes, self.names = form, shape, tuple(stored)
        for name, tensor in stored.items():
            self.register_buffer(name, tensor)

    @property
    def stored(self) -> dict[str, Tensor]:
        """Tensors of the tall matrix, by name."""
        return {name: self.get_buffer(name) for name in self.names}

    def of(self, expert: int, first: int = 0, count: int | None = None) -> dict[str, Tensor]:
        """Return the stored tensors of one expert's matrix, or of some of its rows, as views.

        first, count: the first row and the number of rows, None = all of them.
        """
        rows = self.sizes[1]
        return self.form.part(self.stored, expert * rows + first, rows if count is None else count)

    def linear(self, x: Tensor, expert: int) -> Tensor:
        """Compute x W_e^T.  (N, in) -> (N, out)."""
        return self.form.matmul(x, self.of(expert), self.sizes[1:])

    def decoded(self) -> Tensor:
        """Decode all matrices, (E, out, in) float32."""
        experts, rows, width = self.sizes
        return self.form.decode(self.stored, (experts * rows, width)).view(self.sizes)

    @property
    def weights(self) -> int:
        """Number of weights."""
        experts, rows, width = self.sizes
        return experts * rows * width

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored."""
        return sum(b.numel() * b.element_size() for b in self.buffers())

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move the stored tensors to another device, without changing their type."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            now = self._buffers[name]
            if old is not None and now is not None and now.dtype != old.dtype:
                # `model.half()` must not round codes, offsets or levels
                self._buffers[name] = old.to(now.device)
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Take the tensors of a state dict without copying them: a file's tensors stay mapped."""
        for name in self.names:
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


def _fixed_experts() -> ConfigError:
    fix = "Prune or merge experts first, then pack them."
    return ConfigError("experts", got="packed ones", want="plain ones to choose from", fix=fix)


class PackedExperts(Experts):
    """`StackedExperts` with packed matrices; nothing is trained, rows have gradients.

    shell: the experts without their stacks, with activation and biases.
    """

    def __init__(self, shell: Any, stacks: Mapping[str, PackedStack]) -> None:
        super().__init__()
        self.experts, self.shell, self.stacks = shell.experts, shell, nn.ModuleDict(stacks)
        self.turns: Turns = iter
        # a packed gate is no attribute of the shell any more
        self.gated = "gate" in stacks or shell.gate is not None

    def forward(self, rows: Tensor, expert: Tensor) -> Tensor:
        """Compute each expert's MLP on its rows."""
        parts = [
            self._linear(self._hidden(x, e), "down", e)
            for e, x in self._experts_with_rows(rows, expert)
        ]
        return torch.cat(parts) if parts else rows.new_zeros(0, self.shell.outputs)

    def hidden(self, rows: Tensor, expert: Tensor) -> Tensor:
        """Compute the input of `down`.  rows: (N, d), expert: (N,) int64, ascending -> (N, h)."""
        parts = [self._hidden(x, e) for e, x in self._experts_with_rows(rows, expert)]
        return torch.cat(parts) if parts else self._hidden(rows, 0)

    def every(self, x: Tensor) -> Tensor:
        outputs = [self._linear(self._hidden(x, e), "down", e) for e in range(self.experts)]
        return torch.stack(outputs, 1)

    def keep(self, index: Tensor) -> None:
        """Refuse to choose experts: rows of packed stacks cannot be moved.  Raises: ConfigError."""
        raise _fixed_experts()

    def append(self, experts: Experts) -> None:
        """Refuse more experts.  Raises: ConfigError, as `keep`."""
        raise _fixed_experts()

    def _experts_with_rows(self, rows: Tensor, expert: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield each expert that has rows: its number and these rows."""
        # rows: (N, width); expert: (N,), ascending, so that each expert has one run of rows
        loads = ends_of(expert, self.experts).diff(prepend=expert.new_zeros(1)).tolist()
        runs = {e: x for e, x in enumerate(rows.split(loads)) if len(x)}
        yield from ((e, runs[e]) for e in self.turns(list(runs)))

    def _hidden(self, x: Tensor, expert: int) -> Tensor:
        """Compute an expert's hidden units (n, h): act(gate x) * up x, or act(up x)."""
        up = self._linear(x, "up", expert)
        if not self.gated:
            return self.shell.act(up)
        return self.shell.act(self._linear(x, "gate", expert)) * up

    def _linear(self, x: Tensor, name: str, expert: int) -> Tensor:
        """Multiply rows (n, in) with one of an expert's matrices, and add its bias."""
        y = _product(self, x, name, expert)
        # an expert without a bias has None under this name
        bias = getattr(self.shell, f"{name}_bias")
        return y if bias is None else y + bias[expert].to(y.dtype)


class PackedStock(nn.Module):
    """Fused experts of transformers with packed matrices; the same call as theirs."""

    def __init__(self, shell: Any, stacks: Mapping[str, PackedStack]) -> None:
        super().__init__()
        self.shell, self.stacks = shell, nn.ModuleDict(stacks)
        self.turns: Turns = iter

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the mixture: each token's experts, weighted and summed.

        args, kwargs: as transformers calls its experts: hidden (T, d), index (T, k) of the experts
        chosen for each token, weights (T, k). Returns (T, d).
        """
        hidden, index, weights = arguments(args, kwargs)
        shell: Any = self.shell
        # transformers' experts are called with one row of k choices for each token
        inner = "gate_up_proj" if shell.has_gate else "up_proj"
        out = torch.zeros_like(hidden)
        count = cast(PackedStack, next(iter(self.stacks.values()))).sizes[0]
        # a choice that was masked out has a number that no expert has
        for expert in self.turns([e for e in index.unique().tolist() if e < count]):
            # tokens of this expert, and where among its k choices it stands
            token, slot = (index == expert).nonzero(as_tuple=True)
            y = self._linear(hidden[token], inner, expert)
            y = shell._apply_gate(y) if shell.has_gate else shell.act_fn(y)
            y = self._linear(y, "down_proj", expert) * weights[token, slot, None]
            out = out.index_add(0, token, y.to(out.dtype))
        return out

    def _linear(self, x: Tensor, name: str, expert: int) -> Tensor:
        """Multiply rows (n, in) with one of an expert's matrices, and add its bias."""
        y = _product(self, x, name, expert)
        return y + getattr(self.shell, f"{name}_bias")[expert] if self.shell.has_bias else y


Packed = PackedExperts | PackedStock


def _product(experts: Packed, x: Tensor, name: str, expert: int) -> Tensor:
    """Multiply rows with one of an expert's matrices: (n, in) -> (n, out)."""
    if name in experts.stacks:
        return cast(PackedStack, experts.stacks[name]).linear(x, expert)
    shell: Any = experts.shell
    weight = getattr(shell, name)[expert].to(x.dtype)
    return x @ (weight if getattr(shell, "is_transposed", False) else weight.T)


def packed(experts: Any, stacks: Mapping[str, PackedStack]) -> Packed:
    """Delete the parameters of experts, and return a module that computes them from packed stacks.

    experts: of this library or of transformers, changed in place; stacks: name of a parameter ->
    the packed matrices of all experts.
    """
    # the rest keeps activation, biases and sizes
    for name in stacks:
        delattr(experts, name)
    shell = experts.requires_grad_(False)
    is_ours = isinstance(experts, StackedExperts)
    return (PackedExperts if is_ours else PackedStock)(shell, stacks).train(experts.training)


def unpacked(experts: Packed, transposed: Mapping[str, bool]) -> nn.Module:
    """Decode packed experts, and return them as plain ones.

    transposed: names of the parameters that the model stores as (E, in, out) -> True.
    """
    shell: Any = experts.shell
    for name, stack in experts.stacks.items():
        if not isinstance(stack, PackedStack):
            subject, fix = "experts", "Pack them again."
            raise FoldError(subject, got=type(stack).__name__, want="packed stacks", fix=fix)
        weight = stack.decoded()
        # some models of transformers store (in, out)
        weight = weight.transpose(1, 2).contiguous() if transposed.get(name) else weight
        if hasattr(shell, name):
            delattr(shell, name)
        setattr(shell, name, nn.Parameter(weight))
    return shell.train(experts.training)


def packed_experts(model: nn.Module) -> dict[str, Packed]:
    """Return the packed experts of a model, by path."""
    return {p: m for p, m in model.named_modules() if isinstance(m, PackedExperts | PackedStock)}


def packed_stacks(model: nn.Module) -> list[PackedStack]:
    """List the packed stacks of a model."""
    return [m for m in model.modules() if isinstance(m, PackedStack)]


def put_stacks(model: nn.Module, stacks: Mapping[str, PackedStack]) -> None:
    """Replace stacks of experts by packed ones, in place.

    stacks: path of a parameter, such as "mlp.experts.down_proj", -> the packed matrices.
    """
    by_owner: dict[str, dict[str, PackedStack]] = {}
    for path, stack in stacks.items():
        owner, _, name = path.rpartition(".")
        by_owner.setdefault(owner, {})[name] = stack
    for owner, some in by_owner.items():
        model.set_submodule(owner, packed(model.get_submodule(owner), some))


def unpack_stacks(model: nn.Module, kind: type[Format]) -> None:
    """Put plain experts in the place of those that a format stores, in place."""
    for path, experts in packed_experts(model).items():
        if not all(isinstance(cast(Any, stack).form, kind) for stack in experts.stacks.values()):
            continue
        # fused experts of transformers may hold (in, out); unpacking gives back that layout
        transposed = bool(getattr(experts.shell, "is_transposed", False))
        model.set_submodule(path, unpacked(experts, dict.fromkeys(experts.stacks, transposed)))


def stack_shape(model: nn.Module, path: str, shape: Iterable[int]) -> tuple[int, int, int]:
    """Return the sizes (E, out, in) of a stack in a plan, which must be those in the model.

    path: of the parameter. Raises: CheckpointError.
    """
    owner, _, name = path.rpartition(".")
    module: Any = dict(model.named_modules()).get(owner)
    matrices = {} if module is None else stacked_matrices(module)
    sizes: list[int] = list(getattr(module, name).shape) if name in matrices else []
    # a stack that is held as (E, in, out) is compared as (E, out, in)
    if matrices.get(name):
        sizes = [sizes[0], sizes[2], sizes[1]]
    experts, rows, width = map(int, shape)
    if sizes != [experts, rows, width]:
        got, want = f"{sizes or 'none'} in the model", f"a stack of {[experts, rows, width]}"
        fix = "Create the mixture as it was, from the same pretrained model."
        raise CheckpointError(f"experts {path!r}", got=got, want=want, fix=fix)
    return experts, rows, width
