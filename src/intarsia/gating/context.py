"""A batch's context, next to its inputs: one object for all routers and mixtures of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..core import Routing
from ..core.errors import ConfigError, ShapeError

MODALITIES = ("text", "image", "audio")
"""What a token may stand for; `Context.modality` has its place here."""


class LayerState:
    """The states that layers 0, 1, ... of one thread have left since `clear`.

    They are kept by layer, not by call: gradient checkpointing calls layers again, in another
    order, and must find the same state as before. A layer that runs twice in one forward finds the
    same state twice.
    """

    def __init__(self) -> None:
        self._left: dict[int, tuple[Tensor, bool]] = {}

    def clear(self) -> None:
        self._left = {}

    def leave(self, layer: int, state: Tensor) -> None:
        self._left[layer] = (state, torch.is_grad_enabled())

    def left(self, layer: int) -> Tensor | None:
        """Return the state that this very layer left."""
        return self._left[layer][0] if layer in self._left else None

    def before(self, layer: int) -> Tensor | None:
        """Return the state that the nearest earlier layer left in this forward; None at the first.

        Raises: ConfigError if that state carries no gradient though this forward needs one.
        """
        # not always layer - 1: a layer in between may have left no state
        earlier = [number for number in self._left if number < layer]
        if not earlier:
            return None
        # the nearest one that left a state
        state, with_graph = self._left[max(earlier)]
        if torch.is_grad_enabled() and not with_graph:
            raise ConfigError(
                "state of the layer before",
                got="one made under no_grad, as checkpointing with use_reentrant=True does",
                want="one through which the gradient passes",
                fix="Checkpoint with use_reentrant=False, as gradient_checkpointing_enable("
                "{'use_reentrant': False}) does.",
            )
        return state

    def __getstate__(self) -> dict[str, Any]:
        # a state holds a graph, which cannot be copied
        return {"_left": {}}


class Context:
    """The padding, ids, states and random draws of the batch that a model computes.

    All `ReadsContext` modules of a model share one after `join`; the host sets it before each
    forward. A copy, and a file, has the settings and nothing of a batch.

    valid: (B, T) bool, False = padding, or None; from the forward's `attention_mask`.
    task_ids: (B,) int64 on the CPU, the task of each sample; see `intarsia.gating.task_ids`.
    input_ids: (B, T) int64, the forward's own token ids, or None.
    modality: (B, T) int64, of each token, a place in `MODALITIES`, 0 = text;
      set by a model that sees or hears.
    ids: (B, T) or (B,) int64, given by `intarsia.gating.set_ids`; they go before `input_ids`.
    states: the `LayerState` of each thread along the depth of the model.
    held: source -> its draw for this batch; kept until `redraw` where `hold` is set, so that
      gradient checkpointing computes with the same numbers again.
    passes: how many copies of a batch are stacked (each has draws of its own).
    shard: (rank, world); each rank takes its rows of the draws of the joined batch.
    routings: router -> its routing of the newest forward in training.
    counting: do routers count their load in evaluation, too?
    joined: is it shared by the modules of a model?
    step: of the training run, from `before_step`.
    """

    def __init__(self) -> None:
        self.valid: Tensor | None = None
        self.task_ids: Tensor | None = None
        self.input_ids: Tensor | None = None
        self.modality: Tensor | None = None
        self.ids: Tensor | None = None
        self.states: list[LayerState] = []
        self.held: dict[nn.Module, Tensor] = {}
        self.hold, self.passes, self.shard = False, 1, (0, 1)
        self.routings: dict[nn.Module, Routing] = {}
        self.counting, self.joined, self.step = False, False, 0
        self._computed: Tensor | None = None  # the task ids of the newest forward, if `hold`

    def start(self) -> None:
        """Begin a new forward: forget the draws, layer states and routings of the last one."""
        self.redraw()
        for state in self.states:
            state.clear()
        self.routings.clear()

    def redraw(self) -> None:
        """Let everything random be drawn again."""
        self.held.clear()
        self._computed = None

    def tasks(self) -> Tensor | None:
        """Return the task of each sample, (B,) int64; None = no ids were set.

        With `hold` (random draws stay until the next forward) the ids stay, too: gradient
        checkpointing computes a block again after the `with task_ids` block has ended.
        """
        # the newest ids stay for a block that checkpointing computes again
        if self.task_ids is not None and self.hold:
            self._computed = self.task_ids
        return self.task_ids if self.task_ids is not None else self._computed

    def check_task_ids(self, samples: int) -> None:
        """Raise ShapeError if task ids were set for another number of samples than this batch has.

        samples: the number of samples of the batch.
        """
        # `samples` is looked at only where there are ids: a comparison in every forward would fix
        # the number of samples in an exported program
        if self.task_ids is not None and len(self.task_ids) != samples:
            got = f"{len(self.task_ids)} for a batch of {samples}"
            fix = "Repeat them as the samples are: ids.repeat_interleave(beams) for beams."
            raise ShapeError("task_ids", got=got, want="one for each sample", fix=fix)

    @contextmanager
    def having(self, **values: Any) -> Iterator[None]:
        """Set attributes of this context inside the `with` block, and restore them after it.

        values: attributes by name, such as passes=2.
        """
        before = {name: getattr(self, name) for name in values}
        vars(self).update(values)
        try:
            yield
        finally:
            vars(self).update(before)

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings alone for a copy or a file; what belongs to a batch is left out."""
        # a routing holds a graph, which cannot be copied
        settings = ("states", "hold", "passes", "shard", "counting", "joined")
        return vars(Context()) | {name: getattr(self, name) for name in settings}


class ReadsContext(nn.Module):
    """A module that reads the `Context` of its model; one of its own until `join`."""

    def __init__(self) -> None:
        super().__init__()
        self.context = Context()


FOUND = "_found_once"  # of a model, while `finding_once` holds


@runtime_checkable
class ChangesByStep(Protocol):
    """A module that changes along a training, such as a router with a gate that cools."""

    def before_step(self, step: int, steps: int) -> None:
        """Get ready for a step; called before each one with its number, from 0, and how many."""
        ...


def steps_with(module: nn.Module) -> bool:
    """Return True for a module that has `before_step`, called before each training step."""
    # ask the class: hasattr of a module would search its parameters first
    return issubclass(type(module), ChangesByStep)


def told_modules(model: nn.Module) -> Sequence[nn.Module]:
    """Return the modules that read a `Context`, or have a method `before_step`, in order."""
    # inside `finding_once` the list is stored on the model
    if (cached := vars(model).get(FOUND)) is not None:
        return cached
    return [m for m in model.modules() if isinstance(m, ReadsContext) or steps_with(m)]


@contextmanager
def finding_once(*models: nn.Module) -> Iterator[None]:
    """Store in each model, during the `with` block, the list of its modules that read a `Context`.

    A `Context` holds the padding mask, ids and random draws of a batch. `told_modules`, which looks
    for these modules several times in a training step, then takes the stored list. models: no list
    is stored in one with modules that change with the training step (they have `before_step`),
    since they may come and go. Not for a model to which such modules are added inside the block.
    """
    with ExitStack() as stack:
        for model in dict.fromkeys(models):
            modules = told_modules(model)
            if FOUND not in vars(model) and not any(map(steps_with, modules)):
                vars(model)[FOUND] = modules
                stack.callback(vars(model).pop, FOUND)
        yield


def contexts(model: nn.Module) -> list[Context]:
    """Return the contexts of a model: one after `join`, else one of each module that reads it."""
    readers = (m for m in told_modules(model) if isinstance(m, ReadsContext))
    return list({id(m.context): m.context for m in readers}.values())


@contextmanager
def having(model: nn.Module, **values: Any) -> Iterator[None]:
    """Set attributes in the `Context` of a model inside the `with` block; restore them after it.

    model: any module; its `Context` holds padding, ids and random draws of a batch. values:
    attributes of the `Context` by name, such as passes=2.
    """
    with ExitStack() as stack:
        for context in contexts(model):
            stack.enter_context(context.having(**values))
        yield


def redraw(model: nn.Module) -> None:
    """Let everything random in the routers of a model be drawn again at its next call."""
    for context in contexts(model):
        context.redraw()


def passes(model: nn.Module, count: int) -> AbstractContextManager[None]:
    """Treat each input inside the `with` block as `count` copies of a batch, stacked on axis 0.

    model: its routers draw other random numbers for each of the copies.
    """
    return having(model, passes=count)


def task_ids(model: nn.Module, ids: Tensor) -> AbstractContextManager[None]:
    """Set the task of each sample inside the `with` block, for routers that choose by task.

    ids: (B,) int64, one for each sample of the batch, counted from 0. It works for every model,
    whatever arguments its forward takes: `with intarsia.gating.task_ids(model, ids): logits =
    model(images)`.
    Raises: ConfigError for ids that are no vector of whole numbers; in the model's forward, for
    tasks that it does not have.
    """
    if ids.dim() != 1 or ids.is_floating_point() or ids.dtype == torch.bool:
        got, want = f"{ids.dtype} of shape {tuple(ids.shape)}", "one whole number for each sample"
        raise ConfigError("task_ids", got=got, want=want, fix="Count tasks from 0.")
    # on the CPU, so that every layer can read them without waiting for a device
    return having(model, task_ids=ids.detach().cpu())


def set_valid(model: nn.Module, mask: Tensor | None) -> None:
    """Set which tokens are real.  mask: (B, T), 0 or False = padding; None = all are."""
    for context in contexts(model):
        context.valid = None if mask is None else mask.bool()


def set_ids(model: nn.Module, ids: Tensor | None) -> None:
    """Set the ids by which hash routers of a model choose experts, until others are set.

    model: any module; ids: (B, T) or (B,) whole numbers, used instead of a forward's own
    `input_ids`; None removes them.
    Raises: ConfigError for ids that are no whole numbers.
    """
    if ids is not None and (ids.is_floating_point() or ids.dtype == torch.bool):
        raise ConfigError("ids", got=ids.dtype, want="whole numbers", fix="Pass input_ids.")
    for context in contexts(model):
        context.ids = None if ids is None else ids.detach().long()


@contextmanager
def of_samples(model: nn.Module, selected: Tensor) -> Iterator[None]:
    """Cut the padding mask and ids of a model's batch to some samples inside the `with` block.

    model: a part of a model that gets only some samples of the batch; selected: (B,) bool on the
    CPU, True = the sample is computed in the block.
    """
    names = ("valid", "task_ids", "input_ids", "modality", "ids")
    with ExitStack() as stack:
        for context in contexts(model):
            batch = {name: getattr(context, name) for name in names}
            # only what has a row for each sample is cut
            fits = {n: t for n, t in batch.items() if t is not None and len(t) == len(selected)}
            subset = {name: t[selected.to(t.device)] for name, t in fits.items()}
            stack.enter_context(context.having(**subset))
        yield
