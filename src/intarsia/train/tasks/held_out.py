"""One item that was held out for a user: recommendation of what she has not taken yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ...core.errors import DataError
from ..objectives import logits_of
from ..order import Batch, Inputs, pair, stack
from ..outcome import LossOf, Outcome, TargetLoss
from .classes import whole_numbers
from .next_item import NextItem


@dataclass(frozen=True)
class HeldOut(NextItem):
    """The rank of a user's held-out item among all that she has not taken.

    Samples are (user, item), whole numbers, items from 1 on. In evaluation a model reads users (B,)
    and gives (B, items + 1), -inf for what the user has taken and for place 0. Training needs the
    objective `own_losses`: negatives and graphs are the model's own. Scores as in `NextItem`.
    """

    labelled: ClassVar[bool] = True

    every: bool = False
    k: int = 20

    def collate(self, items: Sequence[Any]) -> tuple[Inputs, Any]:
        return stack([pair(item) for item in items])

    def batch(self, inputs: Inputs, target: Any) -> Batch:
        """Return the batch; target: each user's held-out item, (B,).  Raises: DataError."""
        want = "one item for each user, counted from 1"
        items = whole_numbers(target, 1, want)
        if not isinstance(inputs, Tensor) or bool((items <= 0).any()):
            got, fix = "0 or inputs by name", "Add 1 to the items: 0 is none."
            raise DataError("held-out items", got=got, want=want, fix=fix)
        return inputs, items


def own_losses(model: nn.Module, x: Inputs, loss_of: LossOf) -> Outcome:
    """Let the model compute its own loss: model(x, target) -> named losses, which are added.

    Raises: DataError for a task without a target.
    """
    if not isinstance(loss_of, TargetLoss):
        fix = "Name the task: task=..."
        raise DataError("own_losses", got="a loss without a target", want="a task's own", fix=fix)
    if not model.training:  # the scores come from logits, by the task's loss
        logits = logits_of(model, x)
        return Outcome(loss_of(logits), logits)
    # the model draws its negatives itself, and gives no logits: the total stands in for them, since
    # nothing is scored in training
    parts: dict[str, Tensor] = model(x, loss_of.target)
    total = sum(parts.values(), start=next(iter(parts.values())).new_zeros(()))
    return Outcome(total, total.detach(), parts if len(parts) > 1 else {})
