"""Reads of other libraries' modules, configurations and outputs: an accessor for each."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def config_of(model: object) -> Any:
    """Return the configuration of a model, or of a module, of transformers; None of any other."""
    return getattr(model, "config", None)


def model_type_of(model: object) -> str | None:
    """Return transformers' name for the architecture of a model, such as "llama"."""
    return getattr(config_of(model), "model_type", None)


def is_encoder_decoder(model: object) -> bool:
    """Return True for a model of transformers that has an encoder and a decoder."""
    return getattr(config_of(model), "is_encoder_decoder", False) is True


def tensor_of(module: object, name: str = "weight") -> Tensor | None:
    """Return a weight or bias of a module, whether it is a parameter or computed; None without."""
    value: Any = getattr(module, name, None)
    return value if isinstance(value, Tensor) else None


def groups_of(layer: nn.Module) -> int:
    """Return the groups of a convolution; 1 for any other layer."""
    return layer.groups if isinstance(layer, nn.modules.conv._ConvNd) else 1  # pyright: ignore


def activation_of(norm: nn.Module) -> nn.Module | None:
    """Return the activation that a norm of timm has inside; None for a plain norm."""
    return dict(norm.named_children()).get("act")


def logits_in(output: Any) -> Tensor:
    """Return the logits of a model's output, which timm and torchvision give as they are."""
    # transformers returns an object with fields
    return getattr(output, "logits", output)
