"""What frozen modules above the cut make of an image is the same in every step: kept with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import takewhile
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...core.foreign import logits_in
from ...core.modes import evaluating, forward_as, modes_kept
from ...data.loaders import Held
from ...gating import learned_routers
from ...train.checkpoint import tensors_hash
from ...train.precision import autocast, slow_attention, training_mode, written_out
from .blocks import base_of

SHARE = 0.25  # of the free memory
BATCH = 64


class _Recorded(NamedTuple):
    """A module that no trained parameter reaches, what it read and what it gave."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Tensor


class _Enough(Exception):
    """All that is kept has been computed."""


class Constants:
    """Modules of a host whose output depends on the image alone, and the outputs of this batch."""

    def __init__(self, calls: Sequence[_Recorded], x: Tensor) -> None:
        self.modules = [call.module for call in calls]
        self.outs = [(tuple(call.out.shape[1:]), call.out.dtype) for call in calls]
        self.needed = [True] * len(calls)
        self.shape, self.dtype = tuple(x.shape[1:]), x.dtype
        self.now: list[Tensor] | None = None

    @property
    def parts(self) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of what a row holds, tokens first."""
        kept = [out for out, needed in zip(self.outs, self.needed, strict=True) if needed]
        return [(self.shape, self.dtype), *kept]

    @property
    def sizes(self) -> list[int]:
        """Numbers of the tokens' type for each part of a row."""
        unit = self.dtype.itemsize
        return [torch.Size(s).numel() * t.itemsize // unit for s, t in self.parts]

    def pack(self, parts: Sequence[Tensor]) -> Tensor:
        """Rows of the parts' bits.  [(B, ...)] -> (B, sum of sizes)."""
        return torch.cat([p.contiguous().flatten(1).view(self.dtype) for p in parts], 1)

    def before(self, _host: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """A forward pre-hook: the tokens of the rows; what is kept is there for its modules."""
        self.now = None
        if not args or not isinstance(args[0], Tensor) or args[0].ndim != 2:
            return args
        split = args[0].split(self.sizes, 1)
        x, *self.now = (
            row.view(dtype).unflatten(1, shape)
            for row, (shape, dtype) in zip(split, self.parts, strict=True)
        )
        return x, *args[1:]

    def give(self, number: int, compute: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The output of a module for as many rows as were asked for.

        One that only other modules of these read is not kept: nobody looks at what it gives.
        """
        if self.now is None:
            return compute(x, *args, **kwargs)
        if not self.needed[number]:
            return x
        return self.now[sum(self.needed[:number])][: len(x)]

    @property
    def mark(self) -> dict[str, Any]:
        """What tells rows of the same tokens apart: the modules' weights, and what is kept."""
        states = [(f"{n}.{k}", t) for n, m in enumerate(self.modules) for k, t in _state(m)]
        parts = [(list(shape), str(dtype)) for shape, dtype in self.parts]
        return {"weights": tensors_hash(states), "parts": parts, "needed": self.needed}

    @contextmanager
    def given(self, host: nn.Module) -> Iterator[None]:
        """Inside, the modules give what is kept for rows, and compute it for tokens."""
        with ExitStack() as stack:
            stack.callback(host.register_forward_pre_hook(self.before).remove)
            for number, module in enumerate(self.modules):
                give = partial(self.give, number, module.forward)
                stack.enter_context(forward_as(module, give))
            yield


Once = Callable[[dict[str, Any], Callable[[], Tensor]], Tensor]
"""Rows from memory, by their mark, or made."""


@contextmanager
def keeping_constants(
    model: nn.Module, tokens: Held, *, dtype: torch.dtype
) -> Iterator[tuple[Held, Callable[[Held, Once], Held]]]:
    """Inside, the model reads rows that hold the tokens and what its frozen modules make of them.

    Gives those rows for the training set, and a function that gives them for another set; the sets
    as they are where there is nothing to keep, or no room for it. Tokens are read as before, and
    give the same to rounding. The model is one that reads tokens (`reading_tokens`), its weights
    held in the type that they are trained in.
    An AdaptFormer in its first trained block then needs neither the attention nor the MLP of it.
    """
    x, device = tokens.tensors[0][:2], next(model.parameters()).device
    with written_out(slow_attention(model, device, dtype)):  # as in training
        found = find_constants(model, x, dtype)
        kept = found is not None and _room(found, tokens)
        rows = _rows(model, found, tokens.tensors[0], dtype) if found and kept else None
    if found is None or rows is None:
        yield tokens, lambda held, _: held
        return
    mark, made = found.mark, found

    def also(held: Held, once: Once) -> Held:
        if not _room(made, held):
            return held

        def make() -> Tensor:
            with written_out(slow_attention(model, device, dtype)):
                return _rows(model, made, held.tensors[0], dtype)

        return Held(once(mark, make), held.tensors[1], digests=held.digests)

    with found.given(base_of(model)):
        yield Held(rows, tokens.tensors[1], digests=tokens.digests), also


def _room(found: Constants, tokens: Held) -> bool:
    """Whether there is memory for the rows of a set."""
    size = sum(found.sizes) * len(tokens) * tokens.tensors[0].dtype.itemsize
    return size <= SHARE * psutil.virtual_memory().available


def _state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def find_constants(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Constants | None:
    """The modules whose output is the same in every step, None if there are none.  x: tokens."""
    device = next(model.parameters()).device
    x = x.to(device)
    with evaluating(model), autocast(device, dtype):
        calls = _calls(model, x)
        with modes_kept(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
            training_mode(model)
            calls = list(takewhile(_same, calls))  # what comes later may read what is drawn
        calls = [c for c in calls if _keeps(c, x)]
        found = Constants(calls, x)
        with torch.no_grad(), found.given(base_of(model)):
            rows = found.pack([x, *(call.out for call in calls)])
            if not learned_routers(model):  # they choose by numbers
                found.needed = [_matters(model, found, rows, i) for i in range(len(calls))]
    return found if any(found.needed) else None


def _calls(model: nn.Module, x: Tensor) -> list[_Recorded]:
    """The outermost modules that no trained parameter reaches, in the order of their calls."""
    found: list[_Recorded] = []
    inside: list[nn.Module] = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        if not inside and not any(p.requires_grad for p in module.parameters()):
            read = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
            if read and not any(v.requires_grad for v in read):
                inside.append(module)

    def after(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        if inside and inside[-1] is module:
            inside.clear()
            found.append(_Recorded(module, args, kwargs, out))

    host = base_of(model)
    modules = [m for m in host.modules() if m is not host]
    hooks = [m.register_forward_pre_hook(before, with_kwargs=True) for m in modules]
    hooks += [m.register_forward_hook(after, with_kwargs=True) for m in modules]
    try:
        with torch.enable_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    twice = {id(m) for n, (m, *_) in enumerate(found) if any(m is c.module for c in found[:n])}
    return [call for call in found if id(call.module) not in twice]


def _keeps(call: _Recorded, x: Tensor) -> bool:
    """Whether a row can hold the output: a tensor of its own, a row for each image."""
    _, args, _, out = call
    if not args or not isinstance(args[0], Tensor) or not isinstance(out, Tensor) or out is args[0]:
        return False
    return len(out) == len(args[0]) == len(x) and not out.dtype.itemsize % x.dtype.itemsize


def _same(call: _Recorded) -> bool:
    """Whether a module gives the same in training as in evaluation: no dropout acts in it."""
    norms = (m for m in call.module.modules() if isinstance(m, _BatchNorm))
    if any(norm.training for norm in norms):  # the output then depends on the batch
        return False
    out = call.module(*call.args, **call.kwargs)
    return isinstance(out, Tensor) and torch.equal(out, call.out)


def _matters(model: nn.Module, found: Constants, rows: Tensor, number: int) -> bool:
    """Whether anything but other modules of these reads an output: without it, logits are lost."""
    first = sum(found.sizes[: number + 1])
    spoiled = rows.clone()
    kept = spoiled[:, first : first + found.sizes[number + 1]]
    kept.view(found.outs[number][1]).fill_(float("nan"))
    out = model(spoiled)
    return not bool(torch.isfinite(logits_in(out)).all())


@torch.no_grad()
def _rows(model: nn.Module, found: Constants, x: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows of all images, BATCH at a time; nothing above the last kept module is computed."""
    kept = [m for m, needed in zip(found.modules, found.needed, strict=True) if needed]
    rows = torch.empty(len(x), sum(found.sizes), dtype=x.dtype)
    device = next(model.parameters()).device
    outs: list[Tensor] = []

    def after(_module: nn.Module, _args: Any, out: Tensor) -> None:
        outs.append(out)
        if len(outs) == len(kept):
            raise _Enough

    hooks = [m.register_forward_hook(after) for m in kept]
    try:
        with evaluating(model), autocast(device, dtype):
            for first in range(0, len(x), BATCH):
                part = x[first : first + BATCH].to(device)
                outs.clear()
                with suppress(_Enough):
                    model(part)
                rows[first : first + BATCH] = found.pack([part, *outs]).cpu()
    finally:
        for hook in hooks:
            hook.remove()
    return rows
