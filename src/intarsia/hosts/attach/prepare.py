"""Prepare a backbone as published recipes do: its dropout, its head's start."""

from __future__ import annotations

import math

import torch
from torch import nn

from ...core.checks import below_one
from ...core.errors import ConfigError, TargetError
from ...core.heads import heads_of

DROPOUTS = ("pos_drop", "mlp.drop1", "mlp.drop2")


def set_dropout(model: nn.Module, p: float) -> None:
    """Set the dropout of a timm vision transformer's embedding and MLPs, in place.

    For methods that compare noisy forwards, as the published MoSA and R-Drop do.
    Raises: TargetError for a model without these modules; ConfigError unless 0 <= p < 1.
    """
    below_one("dropout", p)
    # attention's modules have other names and stay as they are
    modules = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Dropout) and f".{name}".endswith(tuple(f".{d}" for d in DROPOUTS))
    ]
    if not modules:
        subject = f"dropout of {type(model).__name__}"
        got, want = f"no nn.Dropout named {DROPOUTS}", "a timm vision transformer"
        raise TargetError(subject, got=got, want=want, fix="Set the rates where the model is made.")
    for module in modules:
        module.p = p


def linear_head(model: nn.Module) -> nn.Linear:
    """Return a model's only classifier, linear.  Raises: ConfigError for another, or several."""
    heads = heads_of(model)
    if len(heads) != 1 or not isinstance(heads[0], nn.Linear):
        got = " and ".join(type(head).__name__ for head in heads) or "none"
        want, fix = "one linear classifier, whose start the recipe sets", "Use a ViT of timm."
        raise ConfigError(f"head of {type(model).__name__}", got=got, want=want, fix=fix)
    return heads[0]


def reset_head(head: nn.Linear, *, generator: torch.Generator) -> None:
    """Draw the first weights of a classifier as VPT (arXiv:2203.12119) and MoSA do, in place.

    W ~ N(0, 2 / classes) (Kaiming, fan-out) and b = -log 99: every class starts with a low
    probability.
    """
    # new tensors: the old ones are put back if an error stops the change
    for parameter in (head.weight, head.bias):
        parameter.data = torch.empty_like(parameter.data)
    nn.init.kaiming_normal_(head.weight, mode="fan_out", generator=generator)
    nn.init.constant_(head.bias, -math.log(99))
