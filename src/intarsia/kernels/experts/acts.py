"""Activations that operators know by name, with their derivatives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

aten = torch.ops.aten


@dataclass(frozen=True)
class Act:
    """An activation f(z), and f'(z) times a gradient."""

    forward: Any
    backward: Any


ACTS: Mapping[str, Act] = MappingProxyType(
    {
        "silu": Act(F.silu, aten.silu_backward),
        "relu": Act(F.relu, lambda grad, z: aten.threshold_backward(grad, z, 0)),
        "gelu": Act(F.gelu, aten.gelu_backward),
        "gelu_tanh": Act(
            lambda z: F.gelu(z, approximate="tanh"),
            lambda grad, z: aten.gelu_backward(grad, z, approximate="tanh"),
        ),
    }
)


def act_name(act: nn.Module) -> str | None:
    """Return the name in `ACTS` of an activation module, or None if it is not there."""
    if type(act) is nn.GELU:
        return "gelu" if act.approximate == "none" else "gelu_tanh"
    return {nn.SiLU: "silu", nn.ReLU: "relu"}.get(type(act))  # pyright: ignore
