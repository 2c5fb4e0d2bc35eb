"""How much each class counts in the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.checks import BALANCED, named_numbers
from ..core.errors import ConfigError, UnknownName
from .settings import ClassWeights


def weights_of(
    weights: ClassWeights, classes: Sequence[str] | None, labels: np.ndarray | None
) -> tuple[float, ...]:
    """Return the weight of each class in the loss.

    weights: "balanced", n / (C n_c) for n labels of C classes, n_c of class c, so that every class
      counts the same and the mean weight of a sample is 1; "a=1,b=2" or {"a": 1, "b": 2}, other
      classes 1; or a number for each class.
    labels: (n,) of the training part, where known.
    Raises: ConfigError where these are wanted and not known, or for a class without samples;
    UnknownName for a class that does not exist.
    """
    if weights == BALANCED:
        return _balanced(classes, labels)
    named = named_numbers("class_weights", weights) if isinstance(weights, str) else weights
    # a number for each class needs no names
    if not isinstance(named, Mapping):
        return tuple(float(value) for value in named)
    if classes is None:
        got, want = "names, of data without names of classes", "a number for each class"
        raise ConfigError("class_weights", got=got, want=want, fix="For example: [1.0, 2.0]")
    for name in named:
        if name not in classes:
            raise UnknownName("class in class_weights", name, classes)
    return tuple(float(named.get(name, 1.0)) for name in classes)


def _balanced(classes: Sequence[str] | None, labels: np.ndarray | None) -> tuple[float, ...]:
    """Return the weight n / (C n_c) of each class c: n labels, C classes, n_c of the class."""
    # labels: (n,) class numbers of the training data, None if not known
    if labels is None or labels.ndim != 1:
        got, want = "'balanced' for data whose labels cannot be counted", "one label for each image"
        fix = "Give a number for each class, or leave it out."
        raise ConfigError("class_weights", got=got, want=want, fix=fix)
    counts = np.bincount(labels, minlength=len(classes or ()))
    # n / (C n_c) would be infinite
    if not counts.all():
        got = f"no training image of {int((counts == 0).sum())} classes"
        fix = "Give a number for each class."
        raise ConfigError("class_weights='balanced'", got=got, want="at least one", fix=fix)
    return tuple((len(labels) / (len(counts) * counts)).tolist())


@dataclass(frozen=True)
class WeightedCrossEntropy:
    """The mean over samples of w[y] * cross-entropy; parts of a batch add up to the whole.

    weights: one for each class.  smoothing: of the labels.
    """

    weights: tuple[float, ...]
    smoothing: float = 0.0

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (n, C) for the labels `target` (n,), a scalar."""
        losses = F.cross_entropy(logits, target, reduction="none", label_smoothing=self.smoothing)
        return (
            torch.tensor(self.weights, device=losses.device, dtype=losses.dtype)[target] * losses
        ).mean()
