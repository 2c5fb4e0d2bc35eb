"""Statistics of batch norms, counted again."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim.swa_utils import update_bn

from ..core.modes import modes_kept
from .objectives import logits_of
from .order import Inputs


class _Reads(nn.Module):
    """A model that takes inputs as they stand in a batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Inputs) -> None:
        logits_of(self.model, x)


def has_batch_norms(model: nn.Module) -> bool:
    """Return True for a model with a batch norm that has running statistics."""
    norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return any(m.track_running_stats for m in norms)


def recalibrate(model: nn.Module, batches: Iterable[Inputs]) -> None:
    """Compute the running mean and variance of every batch norm again, over these inputs.

    Nothing else of the model changes. The forwards are in training mode, without a gradient.
    """
    if has_batch_norms(model):
        with modes_kept(model):
            # torch passes on the first element of a batch: the tuple keeps a mapping in one piece
            update_bn(((x,) for x in batches), _Reads(model))
