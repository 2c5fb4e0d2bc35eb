"""SGD with momentum .9."""

from __future__ import annotations

from torch import nn
from torch.optim import SGD, Optimizer


def momentum(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    """Make SGD with Nesterov's momentum 0.9; `fit` lowers the rate along a cosine."""
    return SGD(model.parameters(), lr, 0.9, weight_decay=weight_decay, nesterov=True)
