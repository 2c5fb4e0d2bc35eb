"""Cache the outputs of frozen modules that depend on the image alone, with the image's tokens."""

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
from ...data.loaders import ImageTensors
from ...gating import learned_routers
from ...train.checkpoint import tensors_hash
from ...train.precision import autocast, slow_attention, training_mode, written_out
from .blocks import base_of

SHARE = 0.25  # share of the free memory that rows may take
BATCH = 64


class _Recorded(NamedTuple):
    """Call of a module that no trained parameter reaches: its inputs and its output."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Tensor


class _Enough(Exception):
    """Signal that all outputs to be cached have been computed."""


class Constants:
    """Frozen modules of a model with outputs that depend on the image alone, and these outputs.

    While the model is trained, a row of data holds the image's tokens and the cached outputs.
    """

    def __init__(self, calls: Sequence[_Recorded], x: Tensor) -> None:
        """Take the modules to cache from calls that were recorded on tokens x (B, T, d)."""
        self.modules = [call.module for call in calls]
        self.outs = [(tuple(call.out.shape[1:]), call.out.dtype) for call in calls]
        self.needed = [True] * len(calls)  # False: only other cached modules read the output
        self.shape, self.dtype = tuple(x.shape[1:]), x.dtype
        self.now: list[Tensor] | None = None  # cached outputs of this batch

    @property
    def parts(self) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of each part of a row: first the tokens, then the cached outputs."""
        outputs = [out for out, needed in zip(self.outs, self.needed, strict=True) if needed]
        return [(self.shape, self.dtype), *outputs]

    @property
    def sizes(self) -> list[int]:
        """Length of each part of a row, in numbers of the tokens' type."""
        unit = self.dtype.itemsize
        return [torch.Size(s).numel() * t.itemsize // unit for s, t in self.parts]

    def pack(self, parts: Sequence[Tensor]) -> Tensor:
        """Join the parts of each row, bit by bit: [(B, ...)] -> (B, sum of sizes)."""
        return torch.cat([p.contiguous().flatten(1).view(self.dtype) for p in parts], 1)

    def before(self, _host: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Split a batch of rows: tokens are passed on, cached outputs are stored in `now`.

        A forward pre-hook of the model; a batch of plain tokens (B, T, d) is passed on as it is.
        """
        self.now = None
        # plain tokens have three axes, rows two
        if not args or not isinstance(args[0], Tensor) or args[0].ndim != 2:
            return args
        split = args[0].split(self.sizes, 1)
        x, *self.now = (
            row.view(dtype).unflatten(1, shape)
            for row, (shape, dtype) in zip(split, self.parts, strict=True)
        )
        return x, *args[1:]

    def give(self, number: int, compute: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the cached output of a module for this batch, instead of its forward.

        compute: its own forward, for batches without cached outputs. An output that only other
        cached modules read is not stored: x is returned for it.
        """
        if self.now is None:
            return compute(x, *args, **kwargs)
        if not self.needed[number]:
            return x
        # `now` has the needed outputs alone: this one stands behind those of earlier modules
        rows = self.now[sum(self.needed[:number])]
        return rows[: len(x)]  # a host may take fewer rows than the batch has

    @property
    def mark(self) -> dict[str, Any]:
        """Key of cached rows: digest of the modules' weights, and the parts of a row."""
        states = [(f"{n}.{k}", t) for n, m in enumerate(self.modules) for k, t in _state(m)]
        parts = [(list(shape), str(dtype)) for shape, dtype in self.parts]
        return {"weights": tensors_hash(states), "parts": parts, "needed": self.needed}

    @contextmanager
    def providing(self, host: nn.Module) -> Iterator[None]:
        """Let the modules return their cached outputs, inside the `with`."""
        with ExitStack() as stack:
            stack.callback(host.register_forward_pre_hook(self.before).remove)
            for number, module in enumerate(self.modules):
                give = partial(self.give, number, module.forward)
                stack.enter_context(forward_as(module, give))
            yield


Once = Callable[[dict[str, Any], Callable[[], Tensor]], Tensor]
"""(key of the rows, function that computes them) -> rows, computed once or read from memory."""


@contextmanager
def keeping_constants(
    model: nn.Module, tokens: ImageTensors, *, dtype: torch.dtype
) -> Iterator[tuple[ImageTensors, Callable[[ImageTensors, Once], ImageTensors]]]:
    """Let the model read rows that hold tokens and cached outputs of its frozen modules.

    Yields those rows for the training set, and a function that makes them for another set; the sets
    as they are if there is nothing to cache, or no memory for it. Plain tokens can still be read,
    and outputs are the same to rounding.
    model: one that reads tokens (`reading_tokens`), with weights in the type of the training.
    An AdaptFormer in its first trained block, for example, then computes neither that block's
    attention nor its MLP.
    """
    x, device = tokens.tensors[0][:2], next(model.parameters()).device
    # with the attention that the training uses
    with written_out(slow_attention(model, device, dtype)):
        constants = find_constants(model, x, dtype)
        # rows of the training set now, rows of further sets when they are asked for
        fits = constants is not None and _fits_memory(constants, tokens)
        rows = _rows(model, constants, tokens.tensors[0], dtype) if constants and fits else None
    if constants is None or rows is None:
        yield tokens, lambda dataset, _: dataset
        return
    mark, cached = constants.mark, constants

    def rows_of(dataset: ImageTensors, once: Once) -> ImageTensors:
        """Return a data set as rows with cached outputs, or as it is if memory is short.

        once: (key, function) -> the function's result, which is computed once for each key.
        """
        if not _fits_memory(cached, dataset):
            return dataset

        def make() -> Tensor:
            with written_out(slow_attention(model, device, dtype)):
                return _rows(model, cached, dataset.tensors[0], dtype)

        return ImageTensors(once(mark, make), dataset.tensors[1], digests=dataset.digests)

    with constants.providing(base_of(model)):
        yield ImageTensors(rows, tokens.tensors[1], digests=tokens.digests), rows_of


def _fits_memory(constants: Constants, tokens: ImageTensors) -> bool:
    """Return True if the rows of a set fit in a quarter of the free memory."""
    size = sum(constants.sizes) * len(tokens) * tokens.tensors[0].dtype.itemsize
    return size <= SHARE * psutil.virtual_memory().available


def _state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def find_constants(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Constants | None:
    """Find the frozen modules that output the same in every step; None without any.

    x: (B, T, d), a few of them.
    """
    device = next(model.parameters()).device
    x = x.to(device)
    with evaluating(model), autocast(device, dtype):
        # 1. calls that no trained parameter reaches, 2. without randomness, 3. with an output that
        # fits a row
        calls = _untrained_calls(model, x)
        with modes_kept(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
            training_mode(model)
            # modules behind the first random one may depend on its draw
            calls = list(takewhile(_same_in_training, calls))
        calls = [c for c in calls if _fits_a_row(c, x)]
        constants = Constants(calls, x)
        with torch.no_grad(), constants.providing(base_of(model)):
            rows = constants.pack([x, *(call.out for call in calls)])
            # which outputs are read is tried with NaN in their place; with a router all are kept,
            # since its choice may hide that NaN was read
            if not learned_routers(model):
                constants.needed = [
                    _reaches_logits(model, constants, rows, i) for i in range(len(calls))
                ]
    return constants if any(constants.needed) else None


def _untrained_calls(model: nn.Module, x: Tensor) -> list[_Recorded]:
    """Record the calls of the outermost modules that no trained parameter influences, in order."""
    calls: list[_Recorded] = []
    inside: list[nn.Module] = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        """Record the outermost module with no gradient in its inputs or weights."""
        if not inside and not any(p.requires_grad for p in module.parameters()):
            read = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
            # gradients are on: an input that a trained weight reached requires one
            if read and not any(v.requires_grad for v in read):
                inside.append(module)

    def after(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        if inside and inside[-1] is module:
            inside.clear()
            calls.append(_Recorded(module, args, kwargs, out))

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
    # a module that is called twice in a forward has two outputs: which one to cache is not clear
    repeated = {id(m) for n, (m, *_) in enumerate(calls) if any(m is c.module for c in calls[:n])}
    return [call for call in calls if id(call.module) not in repeated]


def _fits_a_row(call: _Recorded, x: Tensor) -> bool:
    """Return True if an output can be cached with its image: a new tensor, a row for each image."""
    _, args, _, out = call
    if not args or not isinstance(args[0], Tensor) or not isinstance(out, Tensor) or out is args[0]:
        return False
    return len(out) == len(args[0]) == len(x) and not out.dtype.itemsize % x.dtype.itemsize


def _same_in_training(call: _Recorded) -> bool:
    """Return True if a frozen module gives the same output in training as in evaluation."""
    norms = (m for m in call.module.modules() if isinstance(m, _BatchNorm))
    if any(norm.training for norm in norms):  # the output then depends on the batch
        return False
    out = call.module(*call.args, **call.kwargs)
    return isinstance(out, Tensor) and torch.equal(out, call.out)


def _reaches_logits(model: nn.Module, constants: Constants, rows: Tensor, number: int) -> bool:
    """Return True if the model still reads a cached output when other modules are cached, too."""
    first = sum(constants.sizes[: number + 1])
    spoiled = rows.clone()
    part = spoiled[:, first : first + constants.sizes[number + 1]]
    # NaN spreads to the logits from every module that reads it
    part.view(constants.outs[number][1]).fill_(float("nan"))
    out = model(spoiled)
    return not bool(torch.isfinite(logits_in(out)).all())


@torch.no_grad()
def _rows(model: nn.Module, constants: Constants, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute the cached outputs of all images, BATCH at a time, as one row for each image."""
    cached = [m for m, needed in zip(constants.modules, constants.needed, strict=True) if needed]
    rows = torch.empty(len(x), sum(constants.sizes), dtype=x.dtype)
    device = next(model.parameters()).device
    outs: list[Tensor] = []

    def after(_module: nn.Module, _args: Any, out: Tensor) -> None:
        outs.append(out)
        # the rest of the forward is not needed
        if len(outs) == len(cached):
            raise _Enough

    hooks = [m.register_forward_hook(after) for m in cached]
    try:
        with evaluating(model), autocast(device, dtype):
            for first in range(0, len(x), BATCH):
                part = x[first : first + BATCH].to(device)
                outs.clear()
                with suppress(_Enough):
                    model(part)
                rows[first : first + BATCH] = constants.pack([part, *outs]).cpu()
    finally:
        for hook in hooks:
            hook.remove()
    return rows
