"""What a training step minimises: functions of a model, a batch and a loss of logits.

An objective is `objective(model, x, loss_of) -> Outcome`; `loss_of(logits)` knows the labels.
Settings are keywords: `functools.partial(two_pass, reg=0.5)` is an objective too.
R-Drop (arXiv:2106.14448) is `two_pass` with add=1 on any model that has dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Cell
from ..core.errors import ConfigError
from ..gating import passes, redraw, task_ids
from ..mixtures import SplitLinear
from .order import IGNORED, Inputs

LossOf = Callable[[Tensor], Tensor]
Groups = Sequence[Sequence[int]]  # the classes of each task of a joint label space


@dataclass(frozen=True)
class TargetLoss:
    """A `LossOf` that shows what it knows: labels (B,) or (B, T), or soft targets (B, classes)."""

    criterion: Callable[[Tensor, Tensor], Tensor]  # (logits, target) -> mean over the batch
    target: Tensor

    def __call__(self, logits: Tensor) -> Tensor:
        return self.criterion(logits, self.target)


@dataclass(frozen=True)
class Outcome:
    """The loss to go back from, the batch's logits (..., classes), and named parts to log."""

    loss: Tensor
    logits: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


Objective = Callable[[nn.Module, Inputs, LossOf], Outcome]


@dataclass(frozen=True)
class Staged:
    """One objective for the first share of a run's steps, another one after it.

    first: for the steps s < until S of S; then: after them; until: a share, 0 = never, 1 = to the
    end. The step alone decides, so that a resumed run sees the same.

    Raises: ConfigError unless 0 <= until <= 1.
    """

    first: Objective
    until: float
    then: Objective

    def __post_init__(self) -> None:
        if not 0 <= self.until <= 1:
            raise ConfigError(
                "until", got=self.until, want="a share of the steps, 0 ... 1", fix="Try 0.6."
            )

    def at(self, step: int, steps: int) -> Objective:
        """The objective of a step of so many, counted from 0."""
        return self.first if step < self.until * steps else self.then


def logits_of(model: nn.Module, x: Inputs) -> Tensor:
    """Logits of a model that returns them or has `.logits`; draws anew.

    At least float32, but for those of tokens (B, T, V), which are large: what reads them widens
    the few that it needs.
    x: what the model reads, or its arguments by name; "task_ids" among them go to the routers.
    """
    redraw(model)
    if isinstance(x, Tensor):
        out = model(x)
    else:
        arguments = {k: v for k, v in x.items() if k != "task_ids"}
        told = task_ids(model, x["task_ids"]) if "task_ids" in x else nullcontext()
        with told:
            out = model(**arguments)
    logits = getattr(out, "logits", out)
    return logits if logits.ndim == 3 else wide(logits)


def wide(logits: Tensor) -> Tensor:
    """In float32 or better."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def next_token(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each token after the first, the mean over those whose label is not -100.

    logits: (B, T, V), of the token after each; labels: (B, T), the tokens themselves.
    """
    target = labels[:, 1:]
    known = target != IGNORED  # answers are a small part of most texts
    picked, target = wide(logits[:, :-1][known]), target[known]
    total = F.cross_entropy(picked, target, label_smoothing=label_smoothing, reduction="sum")
    return total / max(1, len(target))


def twice(x: Inputs) -> Inputs:
    """Two copies of a batch, stacked."""
    if isinstance(x, Tensor):
        return torch.cat([x, x])
    return {name: torch.cat([part, part]) for name, part in x.items()}


def plain(model: nn.Module, x: Inputs, loss_of: LossOf) -> Outcome:
    """The loss of one forward."""
    logits = logits_of(model, x)
    return Outcome(loss_of(logits), logits)


def kl(target: Tensor, logits: Tensor, *, detach: bool = True) -> Tensor:
    """KL(softmax(target) || softmax(logits)), the mean over rows.  (..., C), (..., C) -> ()."""
    target = target.detach() if detach else target
    logits, target = wide(logits.flatten(0, -2)), wide(target.flatten(0, -2))
    total = F.kl_div(
        logits.log_softmax(-1), target.log_softmax(-1), log_target=True, reduction="sum"
    )
    return total / max(1, len(target))


def counted(logits: Tensor, loss_of: LossOf) -> Tensor:
    """The rows of logits that a loss of tokens reads, in float32 or better: all where it reads all.

    (B, T, V) -> (N, V), of those before a labelled token; (..., V) -> the same shape.
    """
    if logits.ndim == 3 and isinstance(loss_of, TargetLoss) and loss_of.target.ndim == 2:
        logits = logits[:, :-1][loss_of.target[:, 1:] != IGNORED]
    return wide(logits)


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
    """Two stochastic passes that should agree (MoSA, arXiv:2312.02923; R-Drop, arXiv:2106.14448).

    L = CE(p1) + add CE(p2) + reg/2 [KL(sg p2 || p1) + KL(sg p1 || p2)] + deep D
    with D the `deep_alignment` of the two passes; of texts, KL is over tokens that have a label.
    The published MoSA has add=0, reg=1; its deep term has the weight 0.01 / 12. Both passes are
    stacked in one forward. `detach`: sg as published; without, the gradient of the divergence is to
    first order twice as large.
    Twice the cost of `plain`. Not for a model without randomness: both passes are then equal.
    """
    stacked = twice(x)
    with passes(model, 2), _hidden(model, deep != 0) as hidden:
        logits = logits_of(model, stacked)
    first, second = logits.chunk(2)
    task = loss_of(first)
    one, two = counted(first, loss_of), counted(second, loss_of)
    divergence = (kl(two, one, detach=detach) + kl(one, two, detach=detach)) / 2
    loss = task + reg * divergence
    parts = {"task": task, "divergence": divergence}
    if add:
        loss = loss + add * loss_of(second)
    if deep:
        parts["deep"] = deep_alignment(hidden, x)
        loss = loss + deep * parts["deep"]
    return Outcome(loss, first, parts)


def one_backward(model: nn.Module, x: Inputs, loss_of: LossOf, *, reg: float = 1.0) -> Outcome:
    """L = CE(p1) + reg KL(sg p2 || p1), pass 2 without a graph.

    The passes are drawn alike, so the expected gradient is that of `two_pass` with add=0 and
    detached targets; its variance is larger, its cost two forwards and one backward, its memory
    that of `plain`.
    """
    with torch.no_grad():
        second = logits_of(model, x)
    first = logits_of(model, x)
    task, divergence = loss_of(first), kl(counted(second, loss_of), counted(first, loss_of))
    return Outcome(task + reg * divergence, first, {"task": task, "divergence": divergence})


def _mean(values: Tensor, x: Inputs) -> Tensor:
    """Over tokens that are no padding.  values: (B, T)."""
    mask = x.get("attention_mask") if isinstance(x, Mapping) else None
    if mask is None or mask.shape != values.shape:
        return values.mean()
    return (values * mask).sum() / mask.sum().clamp(min=1)


def local_variance(model: nn.Module, x: Inputs, loss_of: LossOf, *, weight: float = 1.0) -> Outcome:
    """L = CE(p) + weight * sum over cells of mean over tokens of Var(scale * up(z)).

    Var is the variance of a split up-projection's output over the draw of its experts, summed over
    outputs, in closed form (`SplitLinear.variance`) at the bottleneck z of this forward: half the
    expected squared distance of two passes at the cell, without the second pass. It leaves out
    what later layers make of the difference: a surrogate for `two_pass`, not the same loss.
    Raises: ConfigError for a model without a cell whose up-projection is split.
    """
    with _bottlenecks(model) as seen:
        logits = logits_of(model, x)
    if not seen:
        raise ConfigError(
            "objective 'local_variance'", got="no split up-projection in the forward",
            want="MoSA with split='up' or 'both'", fix="Use objective 'plain' or 'two_pass'.",
        )  # fmt: skip
    task = loss_of(logits)
    # outside autocast the sums of squares keep float32
    spread = torch.stack(
        [_mean(layer.variance(z.to(layer.weight.dtype), scale), x) for layer, scale, z in seen]
    ).sum()
    return Outcome(task + weight * spread, logits, {"task": task, "variance": spread})


def task_heads(
    model: nn.Module, x: Inputs, loss_of: LossOf, *, groups: Groups, over: Objective = plain
) -> Outcome:
    """`over` with a head for each task: an image's loss sees the classes of its own task only.

    As if the other logits were -inf, and with label smoothing over a task's own classes. groups:
    the classes of each task, in any order, every class once (`suites.groups(classes).values()`).
    Terms that compare two passes still see all logits.
    Raises: ConfigError for groups that are no partition of the classes, and for soft targets: a
    mixed image has no one task.
    """
    if not isinstance(loss_of, TargetLoss) or loss_of.target.ndim != 1:
        raise ConfigError(
            "objective 'task_heads'", got="a loss without one label for each image",
            want="labels (B,)", fix="Leave out mixup and cutmix.",
        )  # fmt: skip
    return over(model, x, partial(_by_task, loss_of, groups))


def _by_task(loss_of: TargetLoss, groups: Groups, logits: Tensor) -> Tensor:
    """Mean loss of logits (B, C), each task's images by their own columns."""
    task, place = _tasks(groups, logits)
    of_image = task[loss_of.target]
    total = logits.new_zeros(())
    for number, classes in enumerate(groups):
        rows = (of_image == number).nonzero().flatten()
        if len(rows):
            own = logits[rows][:, list(classes)]
            loss = loss_of.criterion(own, place[loss_of.target[rows]])
            total = total + loss * (len(rows) / len(logits))
    return total


def own_task(logits: Tensor, labels: Tensor, groups: Groups) -> Tensor:
    """Logits with -inf where a class is not of the task of the image's label.  (n, C) -> (n, C).

    Raises: ConfigError for groups that are no partition of the classes.
    """
    task, _ = _tasks(groups, logits)
    return logits.masked_fill(task[labels][:, None] != task, -torch.inf)


def task_accuracy(logits: Tensor, labels: Tensor, groups: Groups) -> float:
    """Share of images that are right when their task is known.  (n, C), (n,) -> 0 to 1.

    At least the accuracy over all classes.
    """
    return float((own_task(logits, labels, groups).argmax(-1) == labels).double().mean())


def _tasks(groups: Groups, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Of each class its task, and its place among the classes of that task.  (C,), (C,)."""
    order = [c for classes in groups for c in classes]
    if sorted(order) != list(range(logits.shape[-1])):
        raise ConfigError(
            "groups of classes", got=f"{len(groups)} groups with {len(order)} classes",
            want=f"each of the {logits.shape[-1]} classes once",
            fix="Take them from suites.groups(classes).",
        )  # fmt: skip
    task, place = torch.empty(2, len(order), dtype=torch.int64).unbind()
    for number, classes in enumerate(groups):
        task[list(classes)] = number
        place[list(classes)] = torch.arange(len(classes))
    return task.to(logits.device), place.to(logits.device)


def deep_alignment(hidden: list[Tensor], x: Inputs | None = None) -> Tensor:
    """Sum over blocks of the mean squared distance between two stacked passes.  [(2B, ...)] -> ().

    `hidden` are the outputs of the first half of a model's blocks; no target is detached (MoSA's
    released code: the first six of twelve). x: one pass's inputs, whose padding does not count.
    """
    halves = [h.float().chunk(2) for h in hidden]
    return torch.stack([_distance(first, second, x) for first, second in halves]).sum()


def _distance(first: Tensor, second: Tensor, x: Inputs | None) -> Tensor:
    if not isinstance(x, Mapping) or first.ndim != 3:
        return F.mse_loss(first, second)
    return _mean((first - second).square().mean(-1), x)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a model, in order: the most numerous class of list members.

    Single layers, and classes that hold less than half of the parameters of the largest one, do
    not count, so that Swin's blocks win over its stages and over what is inside a block.
    Raises: ConfigError for a model without a repeated block.
    """
    groups: dict[type, list[nn.Module]] = {}
    for module in model.modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            for child in (c for c in module.children() if any(c.children())):
                groups.setdefault(type(child), []).append(child)
    sizes = {k: sum(p.numel() for m in v for p in m.parameters()) for k, v in groups.items()}
    large = [v for k, v in groups.items() if len(v) > 1 and sizes[k] * 2 >= max(sizes.values())]
    if not large:
        raise ConfigError(
            f"blocks of {type(model).__name__}", got="no repeated block in a ModuleList",
            want="at least two", fix="Leave out the deep alignment term (deep=0).",
        )  # fmt: skip
    return max(large, key=len)


@contextmanager
def _hidden(model: nn.Module, wanted: bool) -> Iterator[list[Tensor]]:
    """Outputs of the first half of the blocks, while inside."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)  # pyright: ignore

    blocks = blocks_of(model) if wanted else []
    hooks = [block.register_forward_hook(keep) for block in blocks[: len(blocks) // 2]]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


Bottlenecks = list[tuple[SplitLinear, Tensor | float, Tensor]]


@contextmanager
def _bottlenecks(model: nn.Module) -> Iterator[Bottlenecks]:
    """(split up-projection, the cell's scale, its input) of each call while inside."""
    seen: Bottlenecks = []

    def watch(layer: SplitLinear, scale: Tensor | float) -> torch.utils.hooks.RemovableHandle:
        return layer.register_forward_pre_hook(
            lambda _m, args: seen.append((layer, scale, args[0]))
        )

    hooks = []
    for cell in model.modules():
        body = getattr(cell, "body", None)
        up = getattr(body, "up", None)
        if isinstance(cell, Cell) and isinstance(up, SplitLinear):
            hooks.append(watch(up, getattr(body, "scale", 1.0)))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


OBJECTIVES: Mapping[str, Objective] = MappingProxyType(
    {
        "plain": plain,
        "two_pass": two_pass,
        "one_backward": one_backward,
        "local_variance": local_variance,
    }
)
