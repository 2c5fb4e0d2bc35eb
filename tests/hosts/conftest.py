"""Tiny hosts of every supported architecture, with random weights that are always the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

VIT = {"depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 5}
SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (1, 2), "num_heads": (1, 2)}
CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (8, 8, 16, 8), "num_classes": 5}
HF = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 16, "num_labels": 5,
}  # fmt: skip

# name -> (how it is made, image size)
HOSTS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "vit": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, **VIT), 32),
    "deit": (lambda: timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, **VIT), 32),
    "dinov2": (lambda: timm.create_model("vit_small_patch14_dinov2", img_size=28, **VIT), 28),
    "eva": (lambda: timm.create_model("eva02_tiny_patch14_224", img_size=28, **VIT), 28),
    "swin": (
        lambda: timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **SWIN), 32,
    ),
    "swinv2": (lambda: timm.create_model("swinv2_tiny_window8_256", num_classes=5, **SWIN), 32),
    "convnext": (lambda: timm.create_model("convnext_tiny", **CONVNEXT), 32),
    "convnext_conv_mlp": (lambda: timm.create_model("convnext_atto", **CONVNEXT), 32),
    "convnextv2": (lambda: timm.create_model("convnextv2_atto", **CONVNEXT), 32),
    "repvit": (lambda: timm.create_model("repvit_m0_9", num_classes=5, embed_dim=(8,) * 4,
                                         depth=(1,) * 4), 32),
    "efficientnet": (lambda: timm.create_model("test_efficientnet", num_classes=5), 32),
    "hf_vit": (lambda: ViTForImageClassification(ViTConfig(**HF, intermediate_size=64)), 32),
    "hf_dinov2": (lambda: Dinov2ForImageClassification(Dinov2Config(**HF)), 32),
    "hf_deit": (lambda: DeiTForImageClassification(DeiTConfig(**HF, intermediate_size=64)), 32),
    "hf_registers": (
        lambda: Dinov2WithRegistersForImageClassification(Dinov2WithRegistersConfig(**HF)), 32,
    ),
}  # fmt: skip


@pytest.fixture
def make() -> Callable[[str], nn.Module]:
    """make(name): a host in evaluation mode; the same weights at every call."""

    def host(name: str) -> nn.Module:
        torch.manual_seed(0)
        return HOSTS[name][0]().eval()

    return host


@pytest.fixture
def images() -> Callable[[str], Tensor]:
    """images(name): four images of the size the host takes."""

    def batch(name: str) -> Tensor:
        size = HOSTS[name][1]
        return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))

    return batch


@pytest.fixture
def logits() -> Callable[..., Tensor]:
    """logits(model, x): of any host, in any mode."""

    def out(model: nn.Module, x: Tensor, **kwargs: Any) -> Tensor:
        y = model(x, **kwargs)
        y = getattr(y, "logits", y)
        return (y[0] + y[1]) / 2 if isinstance(y, tuple) else y  # DeiT's two heads in training

    return out


@pytest.fixture
def train(logits: Callable[..., Tensor]) -> Callable[..., None]:
    """train(model, x): a few steps of what is trainable, all of which must get a gradient."""

    def steps(model: nn.Module, x: Tensor, count: int = 2) -> None:
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        optimizer = torch.optim.AdamW(trained.values(), 1e-2)
        model.train()
        for _ in range(count):
            logits(model, x).square().sum().backward()
            assert not [n for n, p in trained.items() if p.grad is None]
            optimizer.step()
            optimizer.zero_grad()
        model.eval()

    return steps
