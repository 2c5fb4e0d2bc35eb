"""Which task a dataset is, by one of its samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from ...core.errors import ConfigError
from ...schedules import ByFit
from ..order import Inputs, Reader, classes_of, labels_of, size_of
from ..settings import Recipe
from ..weights import weights_of
from .classes import Classes
from .labels import MultiLabel
from .regression import Regression
from .task import Task
from .tokens import Tokens

OF_LABELS = ("mixup", "cutmix", "smoothing", "class_weights")
"""The settings of a recipe that are about the labels of classes, before the loss."""


def task_of(dataset: Dataset[Any]) -> Task:
    """Choose the task of a dataset by the label of its first sample.

    A whole number: Classes; one for each token: Tokens; a row of 0 and 1: MultiLabel; numbers with
      a fraction: Regression. Other tasks must be named.
    """
    if not size_of(dataset):
        return Classes()
    inputs, label = Reader(dataset, seed=0)[(0, (0,))]
    if not isinstance(label, Tensor):
        return Classes()
    # the number of axes and the type of the label decide
    if label.is_floating_point():
        return Regression() if label.ndim <= 2 else Classes()
    if label.ndim == 2:
        # a row of 0 and 1 is several labels of a picture, but token ids of a text
        binary = bool(((label == 0) | (label == 1)).all())
        return MultiLabel() if binary and not _of_tokens(inputs) else Tokens()
    return Classes()


def _of_tokens(inputs: Inputs) -> bool:
    if isinstance(inputs, Mapping):
        return "input_ids" in inputs
    return not inputs.is_floating_point()


def chosen(
    task: Task | None,
    dataset: Dataset[Any],
    recipe: Recipe,
    classes: Sequence[str] | None = None,
) -> Task:
    """Return `task`, or for None the default task of the dataset.

    A default task is made with the recipe's settings for labels (class weights, smoothing ...).
    classes: names of the classes, None = the dataset has them.
    Raises: ConfigError where the recipe has such a setting and the task cannot use it.
    """
    settings = {name: value for name in OF_LABELS if (value := getattr(recipe, name))}
    resolved = task or task_of(dataset)
    if isinstance(recipe.schedule, ByFit) and not resolved.answers:
        got = f"{type(recipe.schedule).__name__} for {type(resolved).__name__}"
        want = "a task with right answers, for it follows the training accuracy"
        raise ConfigError("schedule", got=got, want=want, fix="Use ActiveSchedule.")
    # only a task that was chosen here takes the recipe's settings; a named one has its own
    if task is None and type(resolved) is Classes:
        if weights := settings.pop("class_weights", None):
            names = classes or classes_of(dataset)
            settings["weights"] = weights_of(weights, names, labels_of(dataset))
        return Classes(**settings)
    if task is None and type(resolved) is Tokens and settings.keys() <= {"smoothing"}:
        return Tokens(**settings)
    # any setting left is one that this task cannot use
    for name, value in settings.items():
        got = f"{value} for {type(resolved).__name__}"
        example = f"Classes({'weights=...' if name == 'class_weights' else f'{name}={value}'})"
        fix = f"Leave it out, or give it to the task: task={example}."
        raise ConfigError(name, got=got, want="a task of classes that is not named", fix=fix)
    return resolved
