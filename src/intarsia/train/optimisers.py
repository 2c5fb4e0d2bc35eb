"""AdamW without decay where it does not belong, and the learning rate of a step."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim import Optimizer

from ..mixtures.split_optimizer import decay_groups
from .settings import LrFactor


def adamw(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    """Make AdamW over the trained parameters; biases, norms and scales are not decayed."""
    groups = decay_groups(model, weight_decay)
    devices = {p.device.type for group in groups for p in group["params"]}
    return torch.optim.AdamW(groups, lr=lr, fused=devices <= {"cpu", "cuda"})


def cosine(warmup: float = 0.0) -> LrFactor:
    """Return the factor of a linear warm-up, then half a cosine down to 0, step by step.

    Step s of S with W = round(warmup S): (s + 1) / W while s < W, then
    (1 + cos(pi (s - W) / (S - W))) / 2.
    """

    def factor(step: int, steps: int) -> float:
        warm = round(warmup * steps)
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return factor


class LearningRate:
    """A setter of each group's rate to its base rate times a factor; it holds no state."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.base = [float(group["lr"]) for group in optimizer.param_groups]

    def set(self, factor: float) -> float:
        """Set all groups' rates; return the first one's."""
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = base * factor
        return self.base[0] * factor
