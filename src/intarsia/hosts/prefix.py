"""Compute the frozen blocks below the first adapted one once per image, not once per step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ..core.errors import ConfigError, TargetError
from .peft import is_adapted


class Prefix(nn.Module):
    """A vision transformer up to a block.  images (B, 3, H, W) -> tokens (B, T, d)."""

    def __init__(self, model: VisionTransformer, block: int) -> None:
        super().__init__()
        self.model = model
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        model = self.model
        x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
        for block in list(_blocks(model))[: self.block]:
            x = block(x)
        return x


class Tail(nn.Module):
    """The rest of it.  tokens (B, T, d) -> logits.  Its modules are the given model's own."""

    def __init__(self, model: VisionTransformer, block: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*list(_blocks(model))[block:])
        self.norm, self.fc_norm, self.head_drop, self.head = (
            model.norm, model.fc_norm, model.head_drop, model.head,
        )  # fmt: skip
        self.pool = model.pool
        self.num_patches = model.patch_embed.num_patches  # tells how long the token sequence is

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return self.head(self.head_drop(self.fc_norm(self.pool(self.norm(x)))))


def _blocks(model: VisionTransformer) -> nn.Sequential:
    return cast(nn.Sequential, model.blocks)


def split_at(model: nn.Module, block: int) -> tuple[Prefix, Tail]:
    """model(x) = tail(prefix(x)), cut before block number `block`.

    Adapting only the tail is adapting the model with `layers=range(block, depth)`, except that the
    prefix can be run once (see `run_prefix`): with half of the blocks frozen below the first cell,
    a training step costs half.
    Raises: TargetError for anything but a timm VisionTransformer; ConfigError for a block outside.
    Not with augmentation that changes each image anew: the prefix sees each image once.
    """
    if not isinstance(model, VisionTransformer):
        raise TargetError(
            "model to split", got=type(model).__name__, want="a timm VisionTransformer",
            fix="Adapt the whole model with layers=... instead.",
        )  # fmt: skip
    if not 0 <= block < len(_blocks(model)):
        raise ConfigError(
            "block",
            got=block,
            want=f"0 ... {len(_blocks(model)) - 1}",
            fix="Half the depth is usual.",
        )
    return Prefix(model, block), Tail(model, block)


@torch.no_grad()
def run_prefix(
    prefix: Prefix, dataset: Dataset[Any], *, dtype: torch.dtype, batch_size: int = 64
) -> TensorDataset:
    """(tokens, label) pairs of a set of (image, label) pairs, tokens held in `dtype`."""
    prefix.eval()
    tokens, labels = [], []
    device = next(prefix.parameters()).device
    low = dtype if dtype != torch.float32 else torch.bfloat16
    for x, y in DataLoader(dataset, batch_size):
        with torch.autocast(device.type, low, enabled=dtype != torch.float32):
            tokens.append(prefix(x.to(device)).to("cpu", dtype))
        labels.append(y)
    return TensorDataset(torch.cat(tokens), torch.cat(labels))


def first_trained_block(model: nn.Module) -> int:
    """The number of the first block with something to train in it; the last one's, if only what
    comes after the blocks is trained.

    Raises: TargetError for anything but a timm VisionTransformer; ConfigError if what comes before
    the blocks, or the first of them, is trained: nothing can be computed once.
    """
    host = model.get_base_model() if is_adapted(model) else model
    _, tail = split_at(host, 0)
    learns = [any(p.requires_grad for p in block.parameters()) for block in tail.blocks]
    first = learns.index(True) if any(learns) else len(learns) - 1
    after = {id(p) for p in split_at(host, first)[1].parameters()}
    before = [n for n, p in host.named_parameters() if p.requires_grad and id(p) not in after]
    if before or not first:
        raise ConfigError(
            "blocks to compute once", got=f"{before[0] if before else 'block 0'} is trained",
            want="frozen blocks below the first trained one",
            fix="Adapt the last blocks only, or compute every block in every step.",
        )  # fmt: skip
    return first


@contextmanager
def reading_tokens(model: nn.Module, block: int) -> Iterator[Prefix]:
    """Inside, the model takes the tokens that enter block number `block` in place of images.

    Gives the Prefix that makes them. Modules, names and hooks stay the model's own, so that it is
    trained, saved and loaded as ever.
    Raises: as split_at does.
    """
    host = model.get_base_model() if is_adapted(model) else model
    prefix, tail = split_at(host, block)
    vars(host)["forward"] = tail.forward
    try:
        yield prefix
    finally:
        del vars(host)["forward"]
