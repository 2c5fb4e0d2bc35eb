"""MIX6: six tasks on scikit-learn's digits that contradict each other, and a frozen MLP to adapt.

A method is trained on the tasks mixed together and scored on the test digits of each. Real images,
and a run takes seconds, so that a claim can afford its seeds; what holds here holds for a toy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.layers import Mlp
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ..fitting import fit
from ..gating import RouterConfig
from ..mixtures import Capacity, Mixture, StackedExperts
from .study import class_scores

TRAIN, CLASSES, WIDTH, HIDDEN, BLOCKS = 1200, 10, 96, 128, 6
BATCH = 128

Pictures = np.ndarray  # (n, 8, 8)
TASKS: dict[str, Callable[[Pictures, np.ndarray], tuple[Pictures, np.ndarray]]] = {
    "identity": lambda x, y: (x, y),
    "rotate": lambda x, y: (np.rot90(x, axes=(1, 2)), y),
    "invert": lambda x, y: (1 - x, (y + 3) % CLASSES),
    "flip": lambda x, y: (x[:, :, ::-1], (9 - y) % CLASSES),
    "transpose": lambda x, y: (x.transpose(0, 2, 1), 3 * y % CLASSES),
    "roll": lambda x, y: (np.roll(x, 3, axis=1), (y + 5) % CLASSES),
}
"""Digits and labels to digits and labels; the same picture has another answer in another task."""


class MixBlock(nn.Module):
    """x + fc2(gelu(fc1(norm(x)))).  (..., 96) -> (..., 96)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.mlp = Mlp(WIDTH, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class Net(nn.Module):
    """The residual MLP.  (..., inputs) -> (..., 10)."""

    def __init__(self, inputs: int = 64) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, WIDTH)
        self.blocks = nn.ModuleList(MixBlock() for _ in range(BLOCKS))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def data(
    part: str, tasks: Sequence[str] = tuple(TASKS), *, marks: int = 0, seed: int = 0
) -> TensorDataset:
    """The digits of a part ("train" or "test") in each of the tasks, one after the other.

    x: (tasks * n, 64 + marks), y: (tasks * n,); the test part always has the same 597 digits.
    marks: so many features more, a fixed pattern of each task plus noise, by which the task can be
    seen at once, as documents can be told from photographs.
    """
    x, y = _digits(part)
    made = [TASKS[name](x, y) for name in tasks]
    pixels = torch.tensor(np.concatenate([a.reshape(-1, 64) for a, _ in made])).float()
    labels = torch.tensor(np.concatenate([b for _, b in made])).long()
    if marks:
        patterns = torch.randn(len(TASKS), marks, generator=torch.Generator().manual_seed(6))
        of = torch.tensor([list(TASKS).index(name) for name in tasks]).repeat_interleave(len(x))
        own = torch.Generator().manual_seed(2 * seed + (part == "test"))
        pixels = torch.cat(
            [pixels, patterns[of] + 0.3 * torch.randn(len(of), marks, generator=own)], 1
        )
    return TensorDataset(pixels, labels)


def task_ids(part: str, tasks: Sequence[str] = tuple(TASKS)) -> Tensor:
    """The number of the task of each row of `data`.  (tasks * n,) int64."""
    return torch.arange(len(tasks)).repeat_interleave(len(_digits(part)[0]))


@lru_cache
def _digits(part: str) -> tuple[Pictures, np.ndarray]:
    found: Any = load_digits()
    train, test = train_test_split(
        np.arange(len(found.target)), train_size=TRAIN, stratify=found.target, random_state=0
    )
    chosen = train if part == "train" else test
    return found.images[chosen] / 16, found.target[chosen]


@lru_cache
def _pretrained(marks: int) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Net(64 + marks)
        with torch.no_grad():
            net.stem.weight[:, 64:] *= 0.1  # the marks say nothing about a digit
    fit(net, data("train", ["identity"], marks=marks), epochs=60, batch_size=BATCH, lr=2e-3)
    return net


def backbone(marks: int = 0) -> Net:
    """The MLP that knows the upright digits (600 steps); a fresh copy."""
    return copy.deepcopy(_pretrained(marks))


def of_experts(
    router: RouterConfig,
    *,
    seed: int,
    layers: Sequence[int] = range(BLOCKS),
    capacity: Capacity | None = None,
    act: str = "gelu",
    inputs: int = 64,
) -> Net:
    """An untrained MLP with mixtures in these blocks, each expert as large as the MLP there was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net: Any = Net(inputs)
    for i in layers:
        draws = torch.Generator().manual_seed(seed * BLOCKS + i)
        experts = StackedExperts(router.experts, WIDTH, HIDDEN, act=act, bias=True, generator=draws)
        gate: Any = router.build(WIDTH, generator=draws)
        net.blocks[i].mlp = Mixture(experts, gate, capacity=capacity, generator=draws)
    return net


def epochs(steps: int, tasks: int = len(TASKS)) -> int:
    """Passes over the mixed tasks that make about so many steps."""
    return max(1, round(steps / -(-tasks * TRAIN // BATCH)))


def error(model: nn.Module, tasks: Sequence[str] = tuple(TASKS), *, marks: int = 0) -> float:
    """Share of wrong answers, the mean over the tasks."""
    return 1 - class_scores(model, data("test", tasks, marks=marks), 512).accuracy
