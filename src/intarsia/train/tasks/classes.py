"""One class for each sample; several tasks in one label space."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from timm.loss.cross_entropy import SoftTargetCrossEntropy
from torch import Tensor, nn

from ...core.errors import ConfigError, DataError
from ..objectives import Objective, plain
from ..order import Batch, Inputs
from ..outcome import LossOf, Outcome, TargetLoss
from ..scores import Metrics
from ..weights import WeightedCrossEntropy
from .task import Task, refuse_output

Groups = Sequence[Sequence[int]]  # the classes of each task of a joint label space


@dataclass(frozen=True)
class Classes(Task):
    """Cross-entropy of one class index for each sample; the scores are `Metrics`.

    classes: of the model, None = read off its output; smoothing: of the labels; mixup, cutmix:
    alpha of timm's Mixup, on tensors of pictures.  weights: of each class in the loss, none = all
    the same; the scores do not know them.
    """

    answers: ClassVar[bool] = True

    classes: int | None = None
    smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    weights: tuple[float, ...] | None = None

    def batch(self, inputs: Inputs, target: Any) -> Batch:
        return inputs, whole_numbers(target, 1, "one whole number for each image or token")

    def seen(self, output: Tensor, batch: Batch) -> Self:
        """Return the task with the number of classes that the model's output, (rows, classes), has.

        Raises: DataError for another shape; ConfigError unless each class has a weight.
        """
        if output.ndim != 2:
            refuse_output(
                output,
                batch[1],
                "(images, classes), or (texts, tokens, vocabulary) for labels of tokens",
            )
        if self.weights and len(self.weights) != output.shape[-1]:
            subject, got = "class_weights", f"{len(self.weights)} for {output.shape[-1]} classes"
            raise ConfigError(
                subject, got=got, want="one for each class", fix="Name each class once."
            )
        return dataclasses.replace(self, classes=output.shape[-1])

    def check(self, target: Tensor) -> None:
        if self.classes is not None:
            check_range(target, self.classes)

    def loss_of(self, batch: Batch) -> TargetLoss:
        if self.weights:
            return TargetLoss(WeightedCrossEntropy(self.weights, self.smoothing), batch[1])
        return TargetLoss(partial(F.cross_entropy, label_smoothing=self.smoothing), batch[1])

    def loss(self, model: nn.Module, batch: Batch, objective: Objective = plain) -> Outcome:
        """Compute the loss of one batch; its images are mixed first where mixup or cutmix is on."""
        (x, y), loss_of = batch, self.loss_of(batch)
        # timm mixes an image with its mirror place in the batch: an odd tail is left as it is
        if (self.mixup or self.cutmix) and isinstance(x, Tensor) and len(x) % 2 == 0:
            mix: Any = Mixup(
                self.mixup,
                self.cutmix,
                label_smoothing=self.smoothing,
                num_classes=self.classes or 0,
            )
            x, soft = mix(x, y)
            loss_of = TargetLoss(SoftTargetCrossEntropy(), soft)
        return objective(model, x, loss_of)

    def noted(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        if self.mixup or self.cutmix:  # a mixed image has no right answer
            return {}
        return {"accuracy": (output.argmax(-1) == batch[1]).float().mean()}

    def scores(self, *rows: Tensor) -> Metrics:
        logits, labels = rows
        check_range(labels, logits.shape[1])
        return Metrics.of(logits, labels)


@dataclass(frozen=True)
class Heads(Classes):
    """`Classes` with a head for each task: a sample's loss sees the classes of its own task only.

    As if the other logits were -inf, and with label smoothing over a task's own classes. The scores
    have `own_task_accuracy` too, for a user who knows the task.
    groups: the classes of each task, in any order, every class once.
    Raises: ConfigError for mixed images, which have no one task, and, with a model, for groups that
    are no partition of its classes.
    """

    groups: Groups = ()

    def __post_init__(self) -> None:
        """Refuse mixed images and class weights, which a head per task cannot use."""
        if self.mixup or self.cutmix:
            raise mixed()
        if self.weights:
            raise weighted()

    def loss_of(self, batch: Batch) -> TargetLoss:
        joint = super().loss_of(batch)
        return dataclasses.replace(
            joint, criterion=partial(_loss_by_task, joint.criterion, self.groups)
        )

    def scores(self, *rows: Tensor) -> Metrics:
        accuracy = task_accuracy(rows[0], rows[1], self.groups)
        return dataclasses.replace(super().scores(*rows), extra={"own_task_accuracy": accuracy})


def task_heads(
    model: nn.Module, x: Inputs, loss_of: LossOf, *, groups: Groups, over: Objective = plain
) -> Outcome:
    """Compute an objective in which a sample's loss sees the classes of its own task only.

    loss_of: cross-entropy of one class for each sample; groups: the classes of each task; over: the
      objective that is computed with this loss. Terms that compare two passes still see all logits.
    Raises: ConfigError for groups that are no partition of the classes, and for soft targets.
    model: the one in training; x: inputs of the batch.
    """
    if not isinstance(loss_of, TargetLoss) or loss_of.target.ndim != 1:
        raise mixed()
    if isinstance(loss_of.criterion, WeightedCrossEntropy):
        raise weighted()
    criterion = partial(_loss_by_task, loss_of.criterion, groups)
    return over(model, x, dataclasses.replace(loss_of, criterion=criterion))


def mixed() -> ConfigError:
    """Return the error for mixed images, which have no one task."""
    return ConfigError(
        "heads of tasks",
        got="a loss without one label for each image",
        want="labels (B,)",
        fix="Leave out mixup and cutmix.",
    )


def weighted() -> ConfigError:
    """Return the error for weights of all classes, where a head knows its task's classes only."""
    got, fix = "class_weights with them", "Leave the weights out."
    return ConfigError("heads of tasks", got=got, want="classes that count the same", fix=fix)


def _loss_by_task(criterion: Any, groups: Groups, logits: Tensor, target: Tensor) -> Tensor:
    """Compute the mean loss, each task's images by the logits of that task's classes alone."""
    # logits: (B, C); target: (B,)
    task, place = _task_of_class(groups, logits)
    of_image = task[target]
    total = logits.new_zeros(())
    for number, classes in enumerate(groups):
        rows = (of_image == number).nonzero().flatten()
        if len(rows):
            # a softmax over the task's own columns, labels counted within them
            columns = logits[rows][:, list(classes)]
            total = total + criterion(columns, place[target[rows]]) * (len(rows) / len(logits))
    return total


def own_task(logits: Tensor, labels: Tensor, groups: Groups) -> Tensor:
    """Set the logits of classes of other tasks than the label's to -inf.

    logits: (n, C); labels: (n,); groups: for each task the numbers of its classes. Returns (n, C).
    Raises: ConfigError for groups that are no partition of the classes.
    """
    task, _ = _task_of_class(groups, logits)
    return logits.masked_fill(task[labels][:, None] != task, -torch.inf)


def task_accuracy(logits: Tensor, labels: Tensor, groups: Groups) -> float:
    """Return the accuracy for a user who knows the task of each image, 0 ... 1.

    It is at least the accuracy over all classes. logits: (n, C); labels: (n,); groups: for each
    task the numbers of its classes.
    """
    return float((own_task(logits, labels, groups).argmax(-1) == labels).double().mean())


def _task_of_class(groups: Groups, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the task of each class, and its place among the classes of that task, (C,) both."""
    # a partition of the classes: each in one group, and once
    order = [c for classes in groups for c in classes]
    if sorted(order) != list(range(logits.shape[-1])):
        subject, want = "groups of classes", f"each of the {logits.shape[-1]} classes once"
        got = f"{len(groups)} groups with {len(order)} classes"
        raise ConfigError(subject, got=got, want=want, fix="Put each class into one group.")
    task, place = torch.empty(2, len(order), dtype=torch.int64).unbind()
    for number, classes in enumerate(groups):
        task[list(classes)] = number
        place[list(classes)] = torch.arange(len(classes))
    return task.to(logits.device), place.to(logits.device)


def whole_numbers(labels: Any, ndim: int, want: str) -> Tensor:
    """Return labels as int64.  Raises: DataError for another kind, or another number of axes."""
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.ndim != ndim:
        description = (
            isinstance(labels, Tensor) and f"{labels.dtype} of shape {tuple(labels.shape)}"
        )
        fix = "Give the class index, counted from 0, or say what the labels are: task=..."
        raise DataError("labels", got=description or type(labels).__name__, want=want, fix=fix)
    return labels.long()


def check_range(labels: Tensor, classes: int) -> None:
    """Raise DataError unless all labels are in 0 ... classes - 1."""
    if not labels.numel():
        return
    low, high = (int(v) for v in labels.aminmax())
    if low < 0 or high >= classes:
        want = f"0 ... {classes - 1} (the model's classes)"
        fix = "Count classes from 0 and build the model with one output per class."
        raise DataError("labels", got=f"{low} ... {high}", want=want, fix=fix)
