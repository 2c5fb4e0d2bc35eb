"""AdamW without decay where it does not belong, and the learning rate of a step."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim import Optimizer

from ..mixtures.split_optimizer import decay_groups
from .settings import LrFactor


def adamw(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    """Make AdamW over the trained parameters; biases, norms and scales have no weight decay.

    model: has the parameters; lr: learning rate; weight_decay: of the other parameters.
    """
    groups = decay_groups(model, weight_decay)
    devices = {p.device.type for group in groups for p in group["params"]}
    # torch's fused step exists for CPUs and CUDA
    return torch.optim.AdamW(groups, lr=lr, fused=devices <= {"cpu", "cuda"})


def cosine(warmup: float = 0.0) -> LrFactor:
    """Return a function of (step, steps): a linear warm-up, then half a cosine down to 0.

    Its value multiplies the learning rate. warmup: W / S, the share of the steps that rise. At step
    s of S: (s + 1) / W while s < W, then (1 + cos(pi (s - W) / (S - W))) / 2.
    """

    def factor(step: int, steps: int) -> float:
        """Return the factor of the learning rate at a step, counted from 0, of `steps`."""
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
        """Multiply each group's base learning rate by a factor; return the first group's rate."""
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = base * factor
        return self.base[0] * factor
