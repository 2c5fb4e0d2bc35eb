"""The block walker: calibration rows go through a model block by block, each edited on the way.

For each block: what its layers see, the edit, then the same inputs through the edited block, whose
outputs are the next block's inputs. At no time is there more than one block's hidden states.
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
from transformers.cache_utils import Cache

from ...core.modes import evaluating
from ...scores import Statistics
from ...scores.statistics import Observed, of_all_processes
from ..anatomy.blocks import CONVOLUTIONAL, block_kind
from ..anatomy.compare import call
from .matrices import Matrix, seeing
from .progress import Kept

Edit = Callable[[str, Mapping[str, Matrix], Mapping[str, Statistics]], list[dict[str, Any]]]
Tune = Callable[["Stop", "Flow", int], None]


@dataclass(frozen=True)
class Stop:
    """A block, and the matrices in it that are edited, by their paths in the model.

    outside: it is no block, but a layer behind them, such as a language model's head.
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
    """Edit each block in order; returns the rows that `edit` gives, block by block.

    edit: (path of the block, its layers, what they saw) -> rows, after it has changed the weights.
    by_layer: what a layer sees has gone through the edited ones before it in its block, too; a pass
    for each group of layers that are given one tensor.  batches: as the model takes them.
    tune: is given each edited block, the flow and the block's number before its outputs go on: a
    `Chain` has what the block is given.
    needs: see `Statistics.of`; empty = no forward at all.
    kept: where finished blocks and hidden states are written, and read again.
    A model whose blocks do not follow one another directly (Swin, EfficientNet) goes through
    whole, once for each block.
    """
    with torch.no_grad(), evaluating(model), kept.undone_on_error():
        chained = [stop for stop in stops if not stop.outside]
        flow = flow_of(model, chained, batches) if needs else Still()
        done = kept.restored(stops, flow)
        for number, stop in enumerate(stops[len(done) :], len(done)):
            clock = time.perf_counter()
            here = Whole(model, rowwise(batches)) if needs and stop.outside else flow
            before, found = None, list[dict[str, Any]]()
            groups = [stop.layers]
            if by_layer and needs:
                groups = in_order(stop.layers, partial(here.through, number, Observed()))
            for group in groups:
                with seeing(group, needs) as seen:
                    out = here.through(number, seen)
                if group is groups[0]:
                    before = out
                    kept.note(stop)
                found += edit(stop.path, group, of_all_processes(seen.found))
            if tune is not None:
                tune(stop, here, number)
            error = here.onward(number, before)
            seconds = time.perf_counter() - clock
            kept.finished(stop, found, flow, {"error": error, "seconds": round(seconds, 3)})
        return [row for rows in kept.blocks for row in rows["layers"]]


def in_order(layers: Mapping[str, Matrix], run: Callable[[], object]) -> list[Mapping[str, Matrix]]:
    """Layers as a forward calls them, those together that are given one tensor.

    run: the forward. Of experts those that read what the others give ("down") come behind them;
    what is not called comes last.
    """
    calls: list[tuple[nn.Module, Any]] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if all(module is not known for known, _ in calls):
            calls.append((module, next(iter((*args, *kwargs.values())), None)))

    with ExitStack() as stack:
        for owner in {m.owner for m in layers.values()}:
            hook = owner.register_forward_pre_hook(note, with_kwargs=True)
            stack.callback(hook.remove)
        run()
    places: dict[nn.Module, int] = {}
    for number, (module, given) in enumerate(calls):
        same = bool(number) and given is calls[number - 1][1]
        places[module] = places[calls[number - 1][0]] if same else number
    groups: dict[tuple[int, bool], dict[str, Matrix]] = {}
    for name, layer in layers.items():
        inner = layer.index is not None and layer.name.startswith("down")
        key = places.get(layer.owner, len(calls)), inner
        groups.setdefault(key, {})[name] = layer
    return [groups[key] for key in sorted(groups)]


class Still:
    """Nothing flows: the method looks at weights alone."""

    hidden: list[Tensor] = []  # noqa: RUF012 - never written to

    def through(self, number: int, seen: Any) -> Tensor | None:
        return None

    def onward(self, number: int, before: Tensor | None) -> float | None:
        return None


class Whole:
    """All batches through the whole model, once for each block."""

    def __init__(self, model: nn.Module, batches: Iterable[Any]) -> None:
        self.model, self.batches, self.hidden = model, batches, list[Tensor]()

    def through(self, number: int, seen: Any) -> Tensor | None:
        for batch in self.batches:
            seen.mask = mask_of(batch)
            call(self.model, inputs_of(batch))
        return None

    def onward(self, number: int, before: Tensor | None) -> float | None:
        return None


class Chain:
    """Hidden states that go from block to block.

    calls: of each batch, what each block is given beside its hidden state.
    """

    def __init__(self, stops: Sequence[Stop], masks: Sequence[Tensor | None]) -> None:
        self.stops, self.masks = stops, masks
        self.hidden: list[Tensor] = []
        self.calls: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = []

    def run(self, number: int, batch: int) -> Tensor:
        args, kwargs = self.calls[batch][number]
        out = self.stops[number].block(self.hidden[batch], *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    def through(self, number: int, seen: Any) -> Tensor | None:
        """Lets the layers see their inputs; returns the outputs of the first batch."""
        first: Tensor | None = None
        for batch, mask in enumerate(self.masks):
            seen.mask = mask
            out = self.run(number, batch)
            first = out if first is None else first
        return first

    def onward(self, number: int, before: Tensor | None) -> float | None:
        """The outputs of the edited block are the next inputs; returns ||new - old|| / ||old||."""
        error: float | None = None
        last = number == len(self.stops) - 1  # nothing reads what it gives
        for batch in range(1 if last else len(self.masks)):
            out = self.run(number, batch)
            if not batch and before is not None:
                error = float(
                    (out - before).float().norm() / before.float().norm().clamp_min(1e-12)
                )
            self.hidden[batch] = out
        return error


Flow = Still | Whole | Chain


def flow_of(model: nn.Module, stops: Sequence[Stop], batches: Sequence[Any]) -> Flow:
    """A chain where each block is given the very tensor that the one before it returned."""
    if any(block_kind(stop.block) in CONVOLUTIONAL for stop in stops):  # they change the channels
        return Whole(model, batches)
    chain = Chain(stops, [mask_of(batch) for batch in batches])
    inner = getattr(model, "base_model", model)  # of transformers, without its head
    body = inner if isinstance(inner, nn.Module) else model
    for batch in batches:
        with recorded(stops) as found:
            call(body, inputs_of(batch))
        linked = len(found) == len(stops) and all(x is found[0][0] for x, _, _ in found)
        if not linked:
            return Whole(model, batches)
        chain.hidden.append(found[0][0])
        chain.calls.append([(args, kwargs) for _, args, kwargs in found])
    return chain


@contextmanager
def recorded(stops: Sequence[Stop]) -> Iterator[list[tuple[Tensor, tuple[Any, ...], Any]]]:
    """Inside, blocks give back their hidden state as it is, and note what they were given."""
    found: list[tuple[Tensor, tuple[Any, ...], Any]] = []
    tail: list[tuple[Any, ...] | None] = []

    def forward(stop: Stop, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        named = not args
        x = kwargs.pop("hidden_states") if named else args[0]
        # a block is run more than once: it may not see keys of the run before
        fresh = {n: None if isinstance(v, Cache) else v for n, v in kwargs.items()}
        fresh |= {"use_cache": False} if "use_cache" in kwargs else {}
        found.append((x, args[1:], fresh))
        if not tail:  # what a block returns beside its hidden state
            out = own(x, *args[1:], **kwargs)
            tail.append(out[1:] if isinstance(out, tuple) else None)
        return x if tail[0] is None else (x, *tail[0])

    with ExitStack() as stack:
        for stop in stops:
            own = stop.block.forward
            held = stop.block.__dict__.get("forward")
            stop.block.forward = _bound(forward, stop, own)  # type: ignore[method-assign]
            stack.callback(_restore, stop.block, held)
        yield found


def _bound(forward: Callable[..., Any], stop: Stop, own: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: forward(stop, own, *args, **kwargs)


def _restore(block: nn.Module, held: Any) -> None:
    if held is None:
        del block.forward
    else:
        block.forward = held


def inputs_of(batch: Any) -> Any:
    """What a model without its head takes: the tensor, or the arguments without labels."""
    given = batch[0] if isinstance(batch, (tuple, list)) else batch
    if isinstance(given, Mapping):
        return {name: value for name, value in given.items() if name != "labels"}
    return given


def rowwise(batches: Sequence[Any]) -> Iterator[Any]:
    """Row by row: the outputs of a language model's head are large."""
    for batch in batches:
        given = inputs_of(batch)
        if isinstance(given, Mapping):
            count = len(next(iter(given.values())))
            yield from ({n: v[i : i + 1] for n, v in given.items()} for i in range(count))
        else:
            yield from given.split(1)


def mask_of(batch: Any) -> Tensor | None:
    """True where a token is no padding."""
    given = batch[0] if isinstance(batch, (tuple, list)) else batch
    mask = given.get("attention_mask") if isinstance(given, Mapping) else None
    return None if mask is None else mask.bool()
