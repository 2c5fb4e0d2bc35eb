"""The block walker: calibration rows go through a model block by block, each edited on the way.

For each block: the inputs its layers see, the edit, then the same inputs through the edited block;
its outputs are the next block's inputs. At no time is there more than one block's hidden states.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...core.modes import evaluating, without_caches
from ...hosts.anatomy.blocks import CONVOLUTIONAL, block_kind
from ...hosts.anatomy.compare import call
from ...scores import Statistics
from ...scores.statistics import Observed, of_all_processes
from .matrices import Matrix, seeing
from .progress import Kept

Edit = Callable[[str, Mapping[str, Matrix], Mapping[str, Statistics]], list[dict[str, Any]]]
Tune = Callable[["Stop", "Flow", int], None]


@dataclass(frozen=True)
class Stop:
    """Block of the model that is edited in turn, and the matrices in it that are edited, by path.

    outside: it is no block, but a layer outside the blocks, such as a language model's head.
    """

    path: str
    block: nn.Module
    layers: Mapping[str, Matrix]
    outside: bool = False


def walk_blocks(
    model: nn.Module,
    stops: Sequence[Stop],
    batches: Sequence[Any],
    edit: Edit,
    *,
    needs: Collection[str],
    kept: Kept,
    by_layer: bool = False,
    tune: Tune | None = None,
) -> list[dict[str, Any]]:
    """Edit each block in order, with statistics of its inputs; return the rows that `edit` returns.

    model: changed in place; batches: calibration data, as the model takes it. edit: function (path
    of the block, its layers, statistics of their inputs) -> a row for each layer; it changes the
    weights.
    needs: statistics to collect, see `Statistics.of`; empty = no forward at all.
    kept: record of finished blocks and hidden states, from which an interrupted run resumes.
    by_layer: statistics of a layer come from inputs behind the edited layers before it in its
      block; one pass for each group of layers that read one tensor.
    tune: is called with each edited block, the flow of hidden states and the block's number, before
      the block's outputs become the next one's inputs; a `Chain` has the inputs of the block.
    A model with blocks that do not directly follow one another (Swin, EfficientNet) is run whole,
    once for each block.
    """
    # a block is run more than once, and must not see what an earlier run has cached
    caches = without_caches(model)
    with torch.no_grad(), evaluating(model), caches, kept.undone_on_error():
        # finished blocks are restored, and the walk continues behind them
        chained = [stop for stop in stops if not stop.outside]
        flow = flow_of(model, chained, batches) if needs and chained else Still()
        finished = kept.restored(stops, flow)
        for number, stop in enumerate(stops[len(finished) :], len(finished)):
            clock = time.perf_counter()
            # a head reads the last block's output: the whole model is run, one sample at a time,
            # as a language model's outputs are large; layers of a model without blocks take batches
            samples = rowwise(batches) if chained else batches
            block_flow = Whole(model, samples) if needs and stop.outside else flow
            before, edited = None, list[dict[str, Any]]()
            # 1. the inputs of the block's layers: all at once, or group by group behind edited ones
            groups = [stop.layers]
            if by_layer and needs:
                groups = in_order(stop.layers, partial(block_flow.through, number, Observed()))
            for group in groups:
                with seeing(group, needs) as observed:
                    outputs = block_flow.through(number, observed)
                if group is groups[0]:
                    before = outputs
                    # the first pass shows the block as it was: its outputs measure the error
                    kept.note(stop)
                edited += edit(stop.path, group, of_all_processes(observed.found))
            # 2. further training of the block, if the method has any
            if tune is not None:
                tune(stop, block_flow, number)
            # 3. the edited block's outputs are the next block's inputs
            error = block_flow.onward(number, before)
            seconds = time.perf_counter() - clock
            kept.finished(stop, edited, flow, {"error": error, "seconds": round(seconds, 3)})
        return [row for rows in kept.blocks for row in rows["layers"]]


def in_order(layers: Mapping[str, Matrix], run: Callable[[], object]) -> list[Mapping[str, Matrix]]:
    """Group layers by the order in which a forward calls them; equal inputs make a group.

    Experts' `down` comes after their gate and up, since it reads their outputs; layers that are not
    called come last.
    """
    calls: list[tuple[nn.Module, Any]] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if all(module is not called for called, _ in calls):
            calls.append((module, next(iter((*args, *kwargs.values())), None)))

    with ExitStack() as stack:
        for owner in {m.owner for m in layers.values()}:
            hook = owner.register_forward_pre_hook(note, with_kwargs=True)
            stack.callback(hook.remove)
        run()
    places: dict[nn.Module, int] = {}
    for number, (module, first_input) in enumerate(calls):
        # q, k and v read the very same tensor, and so need only one pass
        shared = bool(number) and first_input is calls[number - 1][1]
        places[module] = places[calls[number - 1][0]] if shared else number
    groups: dict[tuple[int, bool], dict[str, Matrix]] = {}
    for name, layer in layers.items():
        # `down` reads what gate and up give, and so comes in a later group
        inner = layer.index is not None and layer.name.startswith("down")
        key = places.get(layer.owner, len(calls)), inner
        groups.setdefault(key, {})[name] = layer
    return [groups[key] for key in sorted(groups)]


class Still:
    """Hidden states for a method that looks at weights alone: nothing is computed."""

    hidden: list[Tensor] = []  # noqa: RUF012 - never written to

    def through(self, number: int, observed: Any) -> Tensor | None:
        """Do nothing."""
        return None

    def onward(self, number: int, before: Tensor | None) -> float | None:
        """Do nothing."""
        return None


class Whole:
    """Hidden states by running the whole model on all batches, once for each block.

    For models in which one block's output is not simply the next one's input.
    """

    def __init__(self, model: nn.Module, batches: Iterable[Any]) -> None:
        self.model, self.batches, self.hidden = model, batches, list[Tensor]()

    def through(self, number: int, observed: Any) -> Tensor | None:
        """Run the whole model on all batches, so that the inputs of a block's layers are observed.

        number: unused, all blocks run; observed: collects statistics, and gets each batch's mask.
        Returns None: the outputs of a single block are not known.
        """
        for batch in self.batches:
            observed.mask = mask_of(batch)
            call(self.model, inputs_of(batch))
        return None

    def onward(self, number: int, before: Tensor | None) -> float | None:
        """Do nothing: the next block's run begins at the model's inputs.

        number, before: unused, `Chain` needs them. Returns None: no error is measured.
        """
        return None


class Chain:
    """Hidden states that pass from block to block: each block runs alone.

    masks: for each batch, True where a token is no padding, None = no padding.  hidden: for each
    batch, the input of the next block.  calls: for each batch, the further arguments of each block.
    """

    def __init__(self, stops: Sequence[Stop], masks: Sequence[Tensor | None]) -> None:
        self.stops, self.masks = stops, masks
        self.hidden: list[Tensor] = []
        self.calls: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = []

    def run(self, number: int, batch: int) -> Tensor:
        """Compute one block's outputs for one batch."""
        args, kwargs = self.calls[batch][number]
        out = self.stops[number].block(self.hidden[batch], *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    def through(self, number: int, observed: Any) -> Tensor | None:
        """Run one block on all batches, so that the inputs of its layers are observed.

        number: the block's; observed: collects statistics, and gets each batch's mask.
        Returns the outputs of the first batch.
        """
        first: Tensor | None = None
        for batch, mask in enumerate(self.masks):
            observed.mask = mask
            out = self.run(number, batch)
            first = out if first is None else first
        return first

    def onward(self, number: int, before: Tensor | None) -> float | None:
        """Make the edited block's outputs the next inputs; return ||new - old|| / ||old||.

        number: the block's; before: its outputs for the first batch before the edit, None = not
        measured.
        """
        error: float | None = None
        last = number == len(self.stops) - 1  # nothing reads the last block's outputs
        for batch in range(1 if last else len(self.masks)):
            out = self.run(number, batch)
            if not batch and before is not None:
                error = float(
                    (out - before).float().norm() / before.float().norm().clamp_min(1e-12)
                )
            # instead of the inputs: one block's hidden states at a time
            self.hidden[batch] = out
        return error


Flow = Still | Whole | Chain


def flow_of(model: nn.Module, stops: Sequence[Stop], batches: Sequence[Any]) -> Flow:
    """Choose how each block's inputs are computed: from the block before, or by whole forwards.

    Returns a `Chain` if each block is given the very tensor that the one before it returned, else
    `Whole`, which runs the whole model for each block.
    """
    # convolutional blocks change the number of channels
    if any(block_kind(stop.block) in CONVOLUTIONAL for stop in stops):
        return Whole(model, batches)
    chain = Chain(stops, [mask_of(batch) for batch in batches])
    # the head is not run: its outputs are large and nothing here reads them
    inner = getattr(model, "base_model", model)  # a transformers model without its head
    body = inner if isinstance(inner, nn.Module) else model
    for batch in batches:
        with recorded(stops) as calls:
            call(body, inputs_of(batch))
        # the recorded blocks return their inputs: in a chain all of them see one and the same
        # tensor
        linked = len(calls) == len(stops) and all(x is calls[0][0] for x, _, _ in calls)
        if not linked:
            return Whole(model, batches)
        chain.hidden.append(calls[0][0])
        chain.calls.append([(args, kwargs) for _, args, kwargs in calls])
    return chain


@contextmanager
def recorded(stops: Sequence[Stop]) -> Iterator[list[tuple[Tensor, tuple[Any, ...], Any]]]:
    """Record the arguments of each block inside the `with`; blocks return their input unchanged.

    Yields a list that a forward fills with (hidden state, other positional arguments, keywords) of
    each block.
    """
    calls: list[tuple[Tensor, tuple[Any, ...], Any]] = []
    tail: list[tuple[Any, ...] | None] = []

    def forward(stop: Stop, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Record a block's arguments, and return its hidden state unchanged."""
        by_keyword = not args
        x = kwargs.pop("hidden_states") if by_keyword else args[0]
        calls.append((x, args[1:], dict(kwargs)))
        if not tail:  # further outputs of a block, besides its hidden state
            out = original(x, *args[1:], **kwargs)
            tail.append(out[1:] if isinstance(out, tuple) else None)
        return x if tail[0] is None else (x, *tail[0])

    with ExitStack() as stack:
        for stop in stops:
            module_forward = stop.block.forward
            replaced = stop.block.__dict__.get("forward")
            stop.block.forward = partial(forward, stop, module_forward)  # type: ignore[method-assign]
            stack.callback(_restore_forward, stop.block, replaced)
        yield calls


def _restore_forward(block: nn.Module, replaced: Any) -> None:
    if replaced is None:
        del block.forward
    else:
        block.forward = replaced


def inputs_of(batch: Any) -> Any:
    """Return the inputs of a batch: the tensor of (x, y), or the arguments without labels."""
    inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
    if isinstance(inputs, Mapping):
        return {name: value for name, value in inputs.items() if name != "labels"}
    return inputs


def rowwise(batches: Sequence[Any]) -> Iterator[Any]:
    """Yield each sample of the batches as a batch of one.

    A language model's head has large outputs, which are computed for one sample at a time.
    """
    for batch in batches:
        inputs = inputs_of(batch)
        if isinstance(inputs, Mapping):
            count = len(next(iter(inputs.values())))
            yield from ({n: v[i : i + 1] for n, v in inputs.items()} for i in range(count))
        else:
            yield from inputs.split(1)


def mask_of(batch: Any) -> Tensor | None:
    """Return the attention mask of a batch, True where a token is no padding; None without one."""
    inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return None if mask is None else mask.bool()
