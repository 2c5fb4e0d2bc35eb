"""The outcome of a training step, and the loss of a batch's output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

LossOf = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Outcome:
    """The loss to backpropagate, the model's output, and named parts of the loss to log."""

    loss: Tensor
    logits: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


def wide(logits: Tensor) -> Tensor:
    """Return logits in float32, or in their own type if that is wider."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def kl(target: Tensor, logits: Tensor, *, detach: bool = True) -> Tensor:
    """Compute KL(softmax(target) || softmax(logits)), mean over rows.

    target, logits: (..., C); detach: no gradient for the target. Returns a scalar.
    """
    target = target.detach() if detach else target
    logits, target = wide(logits.flatten(0, -2)), wide(target.flatten(0, -2))
    total = F.kl_div(
        logits.log_softmax(-1), target.log_softmax(-1), log_target=True, reduction="sum"
    )
    return total / max(1, len(target))


def _whole_output(output: Tensor, _target: Tensor) -> Tensor:
    return output


@dataclass(frozen=True)
class TargetLoss:
    """A `LossOf` with the target it knows, and how two outputs are compared under it.

    criterion: (output, target) -> mean over the batch.  read: (output, target) -> the rows of an
    output that the loss looks at.  divergence: (rows, rows, detach=...) -> mean distance of the
    second rows from the first, which are the target.
    """

    criterion: Callable[[Tensor, Tensor], Tensor]
    target: Tensor
    read: Callable[[Tensor, Tensor], Tensor] = _whole_output
    divergence: Callable[..., Tensor] = kl

    def __call__(self, output: Tensor) -> Tensor:
        return self.criterion(output, self.target)


def counted(output: Tensor, loss_of: LossOf) -> Tensor:
    """Return the rows of an output that its loss uses, in float32 or better.

    loss_of: the loss of the batch, which may leave out tokens without a label.
    """
    if isinstance(loss_of, TargetLoss):
        output = loss_of.read(output, loss_of.target)
    return wide(output)


def divergence_of(loss_of: LossOf) -> Callable[..., Tensor]:
    """Return the function that compares two outputs: KL of their softmax, or the loss's own."""
    return loss_of.divergence if isinstance(loss_of, TargetLoss) else kl
