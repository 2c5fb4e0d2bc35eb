"""A thin ResNet-8 on pictures of Fashion-MNIST, and its training's settings."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import TensorDataset

from intarsia.data import sets
from intarsia.data.decode import to_rgb
from intarsia.schedules import masked_weights

from ..kit.arms import class_scores

DATA, TRAIN, TEST = "fashion-mnist", 10_000, 2_000
WIDTHS, DENSE_EPOCHS, EPOCHS, ROUNDS, CANDIDATES = (8, 16, 32), 12, 3, 3, 3
OPTIONS: dict[str, Any] = {"batch_size": 128, "lr": 0.1, "weight_decay": 1e-4, "trackers": ()}


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions next to a shortcut, each with its batch norm behind it."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Build the convolutions and their batch norms.

        inputs, outputs: channels; stride: of the first convolution and the shortcut.
        """
        super().__init__()
        self.one = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm_one = nn.BatchNorm2d(outputs)
        self.two = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm_two = nn.BatchNorm2d(outputs)
        self.short = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm_one(self.one(x)).relu()
        return (self.norm_two(self.two(h)) + self.short(x)).relu()


def resnet(seed: int, widths: tuple[int, int, int] = WIDTHS) -> nn.Module:
    """Return a ResNet-8 for grey pictures, by default a thin one.

    seed: of its weights; widths: channels of its three blocks.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # channels in, channels out and stride of each block
        sizes = zip((1, *widths), widths, (1, 2, 2), strict=False)
        blocks = [ResidualBlock(a, b, stride) for a, b, stride in sizes]
        pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))
        return nn.Sequential(*blocks, *pool)


def nesterov(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    """Make SGD with momentum 0.9; Nesterov's form only with weight decay, as published."""
    decays = weight_decay > 0
    return SGD(model.parameters(), lr, 0.9, weight_decay=weight_decay, nesterov=decays)


@lru_cache
def rows(part: str, test: int = TEST) -> TensorDataset:
    """Return the first pictures of Fashion-MNIST's training or test part, normalised.

    part: "train" or "test"; test: number of test pictures.
    """
    dataset = sets.load(DATA, part="train" if part == "train" else "test")
    count = TRAIN if part == "train" else test
    images: Any = dataset.images
    grey = [np.asarray(to_rgb(images[i]))[:, :, 0] for i in range(count)]
    pixels = torch.from_numpy(np.stack(grey)).float()[:, None] / 255
    return TensorDataset((pixels - 0.3) / 0.35, torch.as_tensor(dataset.labels[:count]).long())


@lru_cache
def halved(part: str) -> TensorDataset:
    """Return pictures averaged down to 14 x 14, a quarter of the work, and their labels.

    part: "train", as many as `rows` has, or "test", all 10,000 of Fashion-MNIST.
    """
    # with 2,000 pictures half of a difference's spread would come from the test
    x, y = rows(part, 10_000).tensors
    return TensorDataset(F.avg_pool2d(x, 2), y)


def accuracy(model: nn.Module, part: TensorDataset | None = None) -> float:
    """Return a model's accuracy on test pictures in percent.  part: None = the ones of `rows`."""
    return 100 * class_scores(model, rows("test") if part is None else part, 512).accuracy


def density_of(model: nn.Module) -> float:
    """Return the share of weights that are not 0."""
    weights = list(masked_weights(model).values())
    return sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)
