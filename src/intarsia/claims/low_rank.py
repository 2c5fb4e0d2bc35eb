"""LoRA, PiSSA and DoRA by PEFT's own code, as baselines of claims, and what an arm trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..core import Method
from ..core.change import Change
from ..hosts import apply
from ..methods.peft_methods import PeftMethod, of_settings
from .tails import bare_tail

LINEAR = ("qkv", "projection", "mlp_linear")  # every linear map of a block
PEFT = ("LoRA", "PiSSA", "DoRA")


def by_peft(kind: str, rank: int, roles: Sequence[str] = LINEAR) -> PeftMethod:
    """One of `PEFT` with a scale of 1.

    PiSSA starts at the largest singular values of each weight, which keeps the rest; DoRA trains a
    magnitude for each output beside the rank.
    """
    given: dict[str, Any] = {"r": rank, "lora_alpha": rank, "roles": tuple(roles)}
    if kind == "PiSSA":
        given["init_lora_weights"] = "pissa"
    if kind == "DoRA":
        return of_settings("dora", use_dora=True, **given)
    return of_settings("lora", **given)


def trained(model: nn.Module) -> int:
    """Parameters that a model trains."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def parameters(method: Method | Change, first: int) -> int:
    """What a method trains of the blocks from number `first` on, without the head."""
    if isinstance(method, PeftMethod) and method.settings["init_lora_weights"] == "pissa":
        method = method.with_settings(init_lora_weights=True)  # no singular values to count
    tail = bare_tail(first)
    head = sum(p.numel() for p in tail.head.parameters())
    return trained(apply(tail, method)) - head
