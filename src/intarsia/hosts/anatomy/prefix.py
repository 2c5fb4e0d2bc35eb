"""Compute the frozen layers below the first trained part once per image, not once per step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast, overload

import torch
from timm.models.efficientnet import EfficientNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ...core.errors import ConfigError, TargetError
from ...core.heads import heads_of
from ...core.modes import forward_as
from ..attach.prompts import NAME, Prompts
from .blocks import base_of

SPLITTABLE = (VisionTransformer, EfficientNet)  # of timm


class Prefix(nn.Module):
    """First part of a model, up to a block: images (B, 3, H, W) -> tokens (B, T, d) or maps.

    Maps of an EfficientNet are (B, C, h, w).
    """

    def __init__(self, model: VisionTransformer | EfficientNet, block: int) -> None:
        super().__init__()
        self.model = model
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """Compute the input of the block, from images (B, 3, H, W)."""
        model = self.model
        if isinstance(model, EfficientNet):
            x = model.bn1(model.conv_stem(x))
        else:
            # as timm's forward_features, up to its blocks
            x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
        for block in _blocks(model)[: self.block]:
            x = block(x)
        return x


class Tail(nn.Module):
    """Rest of a ViT from a block on: tokens (B, T, d) -> logits; shares the model's modules."""

    def __init__(self, model: VisionTransformer, block: int) -> None:
        """Take the blocks from number `block` on, the last norm and the head from a model."""
        super().__init__()
        self.blocks = nn.Sequential(*_blocks(model)[block:])
        self.norm, self.fc_norm, self.head_drop, self.head = (
            model.norm,
            model.fc_norm,
            model.head_drop,
            model.head,
        )
        self.pool = model.pool
        # read by functions that need the length of the token sequence
        self.num_patches = model.patch_embed.num_patches

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return self.head(self.head_drop(self.fc_norm(self.pool(self.norm(x)))))


class ConvTail(nn.Module):
    """Rest of an EfficientNet from a block on: maps (B, C, h, w) -> logits; shares its modules."""

    def __init__(self, model: EfficientNet, block: int) -> None:
        """Take the blocks from number `block` on, pooling and classifier from a model."""
        super().__init__()
        self.blocks = nn.Sequential(*_blocks(model)[block:])
        self.conv_head, self.bn2, self.global_pool, self.classifier = (
            model.conv_head,
            model.bn2,
            model.global_pool,
            model.classifier,
        )

    def get_classifier(self) -> nn.Module:
        return cast(nn.Module, self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.global_pool(self.bn2(self.conv_head(self.blocks(x)))))


class Features(nn.Module):
    """Model of timm up to its classifier.  images (B, 3, H, W) -> features (B, d)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        model = cast(Any, self.model)
        return model.forward_head(model.forward_features(x), pre_logits=True)


def _blocks(model: VisionTransformer | EfficientNet) -> list[nn.Module]:
    """Return the blocks of a model in order; an EfficientNet's stages are joined."""
    stages = list(cast(nn.Sequential, model.blocks))
    if isinstance(model, EfficientNet):
        return [block for stage in stages for block in cast(nn.Sequential, stage)]
    return stages


@overload
def split_at(model: nn.Module, block: int) -> tuple[Prefix, Tail | ConvTail]: ...
@overload
def split_at(model: nn.Module, block: None) -> tuple[Features, nn.Module]: ...
@overload
def split_at(model: nn.Module, block: int | None) -> tuple[nn.Module, nn.Module]: ...
def split_at(model: nn.Module, block: int | None) -> tuple[nn.Module, nn.Module]:
    """Split a model before a block, or before its classifier (None): model(x) = tail(prefix(x)).

    Returns (prefix, tail). Adapting only the tail is adapting the model with
    `layers=range(block, depth)`, except that the prefix can be run once (see `run_prefix`): with
    half of the blocks frozen below the first adapter, a training step costs half.
    Raises: TargetError for anything but a timm VisionTransformer or EfficientNet (before the
    classifier: but a timm model that classifies); ConfigError for a block outside, or, but in a
    VisionTransformer's tail, dropout before the classifier.
    Not with augmentation that changes each image every time: the prefix sees each image once.
    """
    heads = getattr(model, "head_dist", None) or getattr(model, "aux_head", None)
    if heads is not None:
        got = f"{type(model).__name__}, with two heads"
        fix = "Adapt the whole model with layers=... instead."
        raise TargetError("model to split", got=got, want="one head", fix=fix)
    # without a block the tail is the classifier alone
    if block is None:
        return Features(model), _classifier(model)
    if not isinstance(model, SPLITTABLE):
        want = "a timm VisionTransformer or EfficientNet"
        fix = "Adapt the whole model with layers=... instead."
        raise TargetError("model to split", got=type(model).__name__, want=want, fix=fix)
    if not 0 <= block < len(_blocks(model)):
        subject, want = "block", f"0 ... {len(_blocks(model)) - 1}"
        raise ConfigError(subject, got=block, want=want, fix="Half the depth is usual.")
    if isinstance(model, EfficientNet):
        _no_dropout(model)
        return Prefix(model, block), ConvTail(model, block)
    return Prefix(model, block), Tail(model, block)


def _classifier(model: nn.Module) -> nn.Module:
    """Return the classifier of a timm model that has no dropout before it."""
    is_timm = all(hasattr(model, n) for n in ("forward_features", "forward_head", "get_classifier"))
    classifier = cast(Any, model).get_classifier() if is_timm else None
    if not isinstance(classifier, nn.Module) or isinstance(classifier, nn.Identity):
        got, fix = type(model).__name__, "Train every block in every step instead."
        raise TargetError("model to split", got=got, want="a timm model with a classifier", fix=fix)
    _no_dropout(model)
    return classifier


def _no_dropout(model: nn.Module) -> None:
    """Check that no dropout stands before the classifier.  Raises: ConfigError."""
    if drop := getattr(model, "drop_rate", 0.0):
        subject, want = "dropout before the classifier", "0: each image is seen once"
        raise ConfigError(subject, got=drop, want=want, fix="Create the model with drop_rate=0.")


@torch.no_grad()
def run_prefix(
    prefix: nn.Module,
    dataset: Dataset[Any],
    *,
    dtype: torch.dtype,
    batch_size: int = 64,
    report: Callable[[int], None] = lambda _: None,
) -> TensorDataset:
    """Run the frozen first part of a model once for each image of a set.

    prefix: of `split_at`; dataset: (image, label) pairs; dtype: type in which outputs are stored;
    report: is called with the number of images done, after each batch.
    Returns the data set of (tokens, label) pairs.
    """
    prefix.eval()
    tokens, labels = [], []
    device = next(prefix.parameters()).device
    # autocast does not accept float32, and is off for it
    low = dtype if dtype != torch.float32 else torch.bfloat16
    for x, y in DataLoader(dataset, batch_size):
        with torch.autocast(device.type, low, enabled=dtype != torch.float32):
            tokens.append(prefix(x.to(device)).to("cpu", dtype))
        labels.append(y)
        report(sum(map(len, labels)))
    return TensorDataset(torch.cat(tokens), torch.cat(labels))


def first_trained_block(model: nn.Module) -> int | None:
    """Return the number of the first block with something to train in it.

    If only layers after the blocks are trained, it is the last block's; None if that is the
    classifier alone.

    Raises: TargetError for a model that cannot be split, unless the classifier alone is trained;
    ConfigError if what comes before the blocks, or the first of them, is trained: nothing can be
    computed once.
    """
    host = base_of(model)
    trained = {id(p) for p in host.parameters() if p.requires_grad}
    if trained and trained <= {id(p) for head in heads_of(host) for p in head.parameters()}:
        return None
    _, tail = split_at(host, 0)
    # the tail from block 0 on has all blocks in order
    learns = [any(p.requires_grad for p in block.parameters()) for block in tail.blocks]
    prompts = getattr(host, NAME, None)  # prompts are the model's, but enter at a block
    if isinstance(prompts, Prompts):
        learns[prompts.first] = True
    first = learns.index(True) if any(learns) else len(learns) - 1
    # prompts enter behind the cut, though they are no part of a block
    entering = list(prompts.parameters()) if isinstance(prompts, Prompts) else []
    after = {id(p) for p in (*split_at(host, first)[1].parameters(), *entering)}
    before = [n for n, p in host.named_parameters() if p.requires_grad and id(p) not in after]
    if before or not first:
        subject, got = "blocks to compute once", f"{before[0] if before else 'block 0'} is trained"
        fix = "Adapt the last blocks only, or compute every block in every step."
        raise ConfigError(
            subject, got=got, want="frozen blocks below the first trained one", fix=fix
        )
    return first


@contextmanager
def reading_tokens(model: nn.Module, block: int | None) -> Iterator[nn.Module]:
    """Let the model take tokens that enter a block instead of images, inside the `with`.

    block: its number, None = the classifier's input. Yields the prefix, which makes the tokens.
    """
    host = base_of(model)
    prefix, tail = split_at(host, block)
    with forward_as(host, tail.forward):
        yield prefix
