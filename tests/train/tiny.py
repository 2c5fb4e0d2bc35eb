"""Small models and sets, shared by the tests of training and the scripts they start."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from intarsia.adapters import Bottleneck
from intarsia.core import Site
from intarsia.methods import Mosa

CLASSES, WIDTH = 3, 12


class Block(nn.Module):
    """A frozen residual MLP with a cell beside it."""

    def __init__(self, cell: nn.Module, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.dropout = nn.Dropout(dropout)
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + self.dropout(self.mlp(h)) + self.cell(h)


class Host(nn.Module):
    """Pictures (B, 3, 4, 4) as 4 tokens of 12 numbers, some blocks, a trained head."""

    def __init__(self, cells: list[nn.Module], dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(cell, dropout) for cell in cells)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2).reshape(len(x), 4, WIDTH)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens.mean(1))


def host(
    *, method: Any = None, blocks: int = 2, dropout: float = 0.0, seed: int = 0, scale: float = 1.0
) -> Host:
    """A host with MoSA (or `method`) in every block; everything but cells and head is frozen."""
    method = method or Mosa(over=Bottleneck(4, activation="gelu", norm="none", scale=scale))
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        site = Site("mlp", WIDTH, WIDTH)
        model = Host([method.build(site, generator=generator) for _ in range(blocks)], dropout)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".cell." in name or name.startswith("head"))
    return model


def stir(model: nn.Module, seed: int = 1) -> None:
    """Give zero-initialised weights values, so that cells do something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


def pictures(count: int, seed: int = 0) -> TensorDataset:
    """Noise with a class-dependent colour: learnable in a few steps."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (count,), generator=generator)
    x = torch.randn(count, 3, 4, 4, generator=generator)
    x[torch.arange(count), y] += 1.5
    return TensorDataset(x, y)
