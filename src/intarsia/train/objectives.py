"""Training objectives: functions of a model, a batch and a loss of logits.

An objective is `objective(model, x, loss_of) -> Outcome`; `loss_of(logits)` knows the labels. It
says how many forwards a step has and how they are combined; a task says what the loss of one is.
Settings are keywords: `functools.partial(two_pass, reg=0.5)` is an objective too.
R-Drop (arXiv:2106.14448) is `two_pass` with add=1 on any model that has dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.checks import at_least, between
from ..core.errors import ConfigError
from ..core.foreign import logits_in
from ..gating import contexts, passes, redraw, task_ids
from ..mixtures import SplitLinear
from ..mixtures.routed import RoutedCell, TwoSided
from . import settings
from .order import Inputs
from .outcome import LossOf, Outcome, counted, divergence_of, wide

Objective = Callable[[nn.Module, Inputs, LossOf], Outcome]


@dataclass(frozen=True)
class Staged:
    """A pair of objectives: one for the first share of a run's steps, another after it.

    first: for the steps s < until S of S; then: after them; until: a share, 0 = never, 1 = to the
    end. The step alone decides, so that a resumed run sees the same.

    Raises: ConfigError unless 0 <= until <= 1.
    """

    first: Objective
    until: float
    then: Objective

    def __post_init__(self) -> None:
        between("until", self.until, 0, 1, fix="Try 0.6: a share of the steps.")

    def at(self, step: int, steps: int) -> Objective:
        """Return the objective of a step, counted from 0, in a run of `steps` steps."""
        return self.first if step < self.until * steps else self.then


def logits_of(model: nn.Module, x: Inputs) -> Tensor:
    """Call a model and return its logits, which are its output or the output's `.logits`.

    x: the model's input, or its arguments by name; "task_ids" among them go to the routers.
      Random routers draw again. Logits are float32 at least, but logits of tokens (B, T, V) keep
      their type, since they are large: losses and scores widen the rows they need.
    """
    redraw(model)
    if isinstance(x, Tensor):
        out = model(x)
    else:
        # hosts know no task ids: routers get them outside the forward
        arguments = {k: v for k, v in x.items() if k != "task_ids"}
        tasks = task_ids(model, x["task_ids"]) if "task_ids" in x else nullcontext()
        with tasks:
            out = model(**arguments)
    logits = logits_in(out)
    return logits if logits.ndim == 3 else wide(logits)


def twice(x: Inputs) -> Inputs:
    """Return two copies of a batch, stacked along the first axis."""
    if isinstance(x, Tensor):
        return torch.cat([x, x])
    return {name: torch.cat([part, part]) for name, part in x.items()}


def plain(model: nn.Module, x: Inputs, loss_of: LossOf) -> Outcome:
    """Compute the loss of one forward.

    model: the one in training; x: inputs of the batch; loss_of: logits -> the task's loss.
    """
    logits = logits_of(model, x)
    return Outcome(loss_of(logits), logits)


def two_pass(
    model: nn.Module,
    x: Inputs,
    loss_of: LossOf,
    *,
    add: float = 0.0,
    reg: float = 1.0,
    detach: bool = True,
    deep: float = 0.0,
) -> Outcome:
    """Compute the loss of two stochastic passes that are to agree (MoSA, arXiv:2312.02923; R-Drop).

    L = CE(p1) + add CE(p2) + reg/2 [KL(sg p2 || p1) + KL(sg p1 || p2)] + deep D

    p1, p2: predictions of the two passes, which differ by their random draws; sg: without gradient;
      D: the `deep_alignment` of the two passes. For texts, KL is over tokens that have a label; a
      task without classes has its own distance instead of KL. Both passes are stacked in one
      forward.
    model: the one in training; x: inputs of the batch; loss_of: logits -> the task's loss; add,
      reg, deep: weights; the published MoSA has add=0, reg=1, and 0.01 / 12 for its deep term.
      detach: sg as published; without, the gradient of the divergence is to first order twice as
      large.
    Twice the cost of `plain`. Not for a model without randomness: both passes are then equal.
    Source: R-Drop, arXiv:2106.14448, is add=1.
    """
    # both passes are rows of one batch; `passes` has each half draw its own experts
    stacked = twice(x)
    with passes(model, 2), _hidden(model, deep != 0) as hidden:
        logits = logits_of(model, stacked)
    first, second = logits.chunk(2)
    task = loss_of(first)
    p1, p2 = counted(first, loss_of), counted(second, loss_of)
    apart = divergence_of(loss_of)
    # symmetric: each pass is the target of the other, without a gradient if `detach`
    divergence = (apart(p2, p1, detach=detach) + apart(p1, p2, detach=detach)) / 2
    loss = task + reg * divergence
    parts = {"task": task, "divergence": divergence}
    if add:
        loss = loss + add * loss_of(second)
    if deep:
        parts["deep"] = deep_alignment(hidden, x)
        loss = loss + deep * parts["deep"]
    return Outcome(loss, first, parts)


def one_backward(model: nn.Module, x: Inputs, loss_of: LossOf, *, reg: float = 1.0) -> Outcome:
    """Compute L = CE(p1) + reg KL(sg p2 || p1), with pass 2 outside the graph.

    p1, p2: predictions of two forward passes with different random draws; sg: without gradient;
      reg: weight of the divergence.

    The passes are drawn alike, so the expected gradient is as in `two_pass` with add=0 and
    detached targets; its variance is larger, its cost two forwards and one backward, its memory
    `plain`'s.
    model: the one in training; x: inputs of the batch; loss_of: logits -> the task's loss.
    """
    with torch.no_grad():
        second = logits_of(model, x)
    first = logits_of(model, x)
    apart = divergence_of(loss_of)
    task, divergence = loss_of(first), apart(counted(second, loss_of), counted(first, loss_of))
    return Outcome(task + reg * divergence, first, {"task": task, "divergence": divergence})


def pace(
    model: nn.Module, x: Inputs, loss_of: LossOf, *, weight: float = 1.0, every: int = 1
) -> Outcome:
    """Compute L = CE(z1) + weight * mean |z1 - z2|^2 of two noisy passes (PACE, arXiv:2409.17137).

    z1 and z2 are the logits of the passes, both with a gradient; the square is summed over classes.
    model: the one in training; x: inputs of the batch; loss_of: logits -> the task's loss; weight:
      0 is `plain`; every: only each so many steps, the first among them, have the second pass; the
      others are `plain` (PACE_lazy).
    The passes are stacked; a step with both costs twice `plain`. Not for a model without
    randomness: both passes are then equal.
    Raises: ConfigError for a weight below 0, and an `every` below 1 or, above 1, in a model without
      adapters that draw noise, which know the step.
    """
    at_least("weight", weight, 0)
    at_least("every", every, 1)
    # PACE_lazy: most steps have a single pass
    if not weight or _step(model, every) % every:
        return plain(model, x, loss_of)
    with passes(model, 2):
        first, second = logits_of(model, twice(x)).chunk(2)
    task = loss_of(first)
    # rows that the loss counts: tokens without a label are left out
    apart = counted(first, loss_of) - counted(second, loss_of)
    # the squared distance summed over classes, the mean over rows
    distance = apart.square().sum(-1).mean()
    return Outcome(task + weight * distance, first, {"task": task, "distance": distance})


def _step(model: nn.Module, interval: int) -> int:
    """Return the number of the training step, as `before_step` announced it to the model."""
    if interval == 1:
        return 0
    drawing = contexts(model)
    if not drawing:
        got, fix = f"{interval} in a model without cells that draw", "Use every=1, or method Pace."
        raise ConfigError("every", got=got, want="cells that know the step", fix=fix)
    return drawing[0].step


def _mean(values: Tensor, x: Inputs) -> Tensor:
    """Return the mean of values (B, T) over tokens that are not padding."""
    mask = x.get("attention_mask") if isinstance(x, Mapping) else None
    if mask is None or mask.shape != values.shape:
        return values.mean()
    return (values * mask).sum() / mask.sum().clamp(min=1)


def local_variance(model: nn.Module, x: Inputs, loss_of: LossOf, *, weight: float = 1.0) -> Outcome:
    """Compute L = CE(p) + weight * sum over adapters of mean over tokens of Var(scale * up(z)).

    Var is the variance of a split up-projection's output over the random draw of its experts,
    summed over outputs, in closed form (`SplitLinear.variance`) at the bottleneck activations z of
    this forward: half the expected squared distance of two passes at the adapter, without the
    second pass. It leaves out how later layers change the difference: a surrogate for `two_pass`,
    not the same loss.
    model: the one in training; x: inputs of the batch; loss_of: logits -> the task's loss; weight:
      of the variance; scale: the adapter's.
    Raises: ConfigError for a model without an adapter that splits its up-projection.
    """
    # the forward's own activations give the variance in closed form
    with _bottlenecks(model) as calls:
        logits = logits_of(model, x)
    if not calls:
        subject = "objective 'local_variance'"
        got, want = "no split up-projection in the forward", "MoSA with split='up' or 'both'"
        raise ConfigError(subject, got=got, want=want, fix="Use objective 'plain' or 'two_pass'.")
    task = loss_of(logits)
    # outside autocast the sums of squares keep float32
    spread = torch.stack(
        [_mean(layer.variance(z.to(layer.weight.dtype), scale), x) for layer, scale, z in calls]
    ).sum()
    return Outcome(task + weight * spread, logits, {"task": task, "variance": spread})


def deep_alignment(hidden: list[Tensor], x: Inputs | None = None) -> Tensor:
    """Sum, over blocks, the mean squared distance between the hidden states of two stacked passes.

    hidden: outputs (2B, ...) of the first half of a model's blocks, no pass detached (MoSA's
      released code: the first six of twelve); x: one pass's inputs; their padding does not count.
      Returns a scalar.
    """
    halves = [h.float().chunk(2) for h in hidden]
    return torch.stack([_distance(first, second, x) for first, second in halves]).sum()


def _distance(first: Tensor, second: Tensor, x: Inputs | None) -> Tensor:
    """Return the mean squared distance of two hidden states, over tokens that are not padding."""
    if not isinstance(x, Mapping) or first.ndim != 3:
        return F.mse_loss(first, second)
    return _mean((first - second).square().mean(-1), x)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks of a model, in order.

    They are the most numerous class among the members of lists. Single layers, and classes that
    hold less than half of the parameters of the largest one, do not count, so that Swin's blocks
    win over its stages and over the layers inside a block.
    Raises: ConfigError for a model without a repeated block.
    """
    # 1. children of lists that have children themselves, by class
    groups: dict[type, list[nn.Module]] = {}
    for module in model.modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            for child in (c for c in module.children() if any(c.children())):
                groups.setdefault(type(child), []).append(child)
    # 2. classes with at least half of the largest class's parameters
    sizes = {k: sum(p.numel() for m in v for p in m.parameters()) for k, v in groups.items()}
    large = [v for k, v in groups.items() if len(v) > 1 and sizes[k] * 2 >= max(sizes.values())]
    if not large:
        subject, got = f"blocks of {type(model).__name__}", "no repeated block in a ModuleList"
        fix = "Leave out what compares blocks: deep=0, or `distill` in place of SquareHead."
        raise ConfigError(subject, got=got, want="at least two", fix=fix)
    # 3. the most numerous of them
    return max(large, key=len)


@contextmanager
def _hidden(model: nn.Module, record: bool) -> Iterator[list[Tensor]]:
    """Record the outputs of the first half of the model's blocks inside the context."""
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)  # pyright: ignore

    # without a deep term no hook is set, and the model may have no repeated block
    blocks = blocks_of(model) if record else []
    hooks = [block.register_forward_hook(keep) for block in blocks[: len(blocks) // 2]]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


Bottlenecks = list[tuple[SplitLinear, Tensor | float, Tensor]]


@contextmanager
def _bottlenecks(model: nn.Module) -> Iterator[Bottlenecks]:
    """Record (split up-projection, adapter's scale, its input) of each call inside."""
    calls: Bottlenecks = []

    def watch(layer: SplitLinear, scale: Tensor | float) -> torch.utils.hooks.RemovableHandle:
        """Add a hook that records each call of a split up-projection.  scale: of its adapter."""
        return layer.register_forward_pre_hook(
            lambda _m, args: calls.append((layer, scale, args[0]))
        )

    hooks = []
    for cell in model.modules():
        # only a split up-projection has its variance in closed form
        body = cast(TwoSided, cell.body) if isinstance(cell, RoutedCell) else None
        if body is not None and isinstance(body.up, SplitLinear):
            hooks.append(watch(body.up, body.scale))
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


OBJECTIVES: Mapping[str, Objective] = MappingProxyType(
    {name: globals()[name] for name in settings.OBJECTIVES}
)
