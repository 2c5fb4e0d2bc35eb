"""The losses of routers inside transformers' own Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..gating import aux_loss
from .order import IGNORED
from .tasks.tokens import next_token


def trainer_loss(model: nn.Module) -> Callable[..., Tensor]:
    """Return a loss function for `transformers.Trainer`: cross-entropy plus the routers' losses.

    arguments = TrainingArguments(..., label_names=["labels"])    # an adapted model does not say
    trainer = Trainer(model, arguments, ..., compute_loss_func=intarsia.train.trainer_loss(model))

    Labels (B,) of classes, or (B, T) of tokens, each predicted from those before it, -100 where
    nothing is to be predicted. With gradient accumulation each part counts by its labels, as in
    `Trainer`. Not for heads with another loss: there add `aux_loss(model)` to it.
    The loss raises ConfigError for a batch without labels.
    """

    def loss(outputs: Any, labels: Tensor | None, num_items_in_batch: Any = None) -> Tensor:
        """Compute the mean cross-entropy of labels that count, plus the routers' loss."""
        if labels is None:
            subject, fix = "labels of a batch", 'Pass label_names=["labels"] to TrainingArguments.'
            raise ConfigError(subject, got="none that the Trainer knows of", want="labels", fix=fix)
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs.logits
        labels = labels.to(logits.device)
        count = (labels != IGNORED).sum()  # as the Trainer counts them, the first token with them
        total = count if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        criterion = next_token if labels.ndim == 2 else F.cross_entropy
        # `next_token` widens the rows that it needs; a whole (B, T, V) would be large
        logits = logits if labels.ndim == 2 else logits.float()
        share = count / total.to(logits.device).clamp(min=1)
        return (criterion(logits, labels) + aux_loss(model)) * share

    return loss
