"""The settings of any router: those that routers share, and whether it looks at later tokens.

A router declares a shared setting by its constant: `experts: int = setting(8, EXPERTS)`.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import nn

from ..core.errors import ConfigError
from ..core.registry import card, method_key
from ..core.schema import Setting

EXPERTS = Setting(help="The number E of experts.", least=1, fix="Try 4.")
ACTIVE = Setting(help="The number k of a token's experts.", least=1, fix="Try 1.")
BIAS = Setting(help="Whether the gate has a bias.")
STD = Setting(help="The standard deviation of the gate's first weights.", least=0, fix="Try 0.01.")
JITTER = Setting(
    help="The width epsilon of the factors U(1 - epsilon, 1 + epsilon) on the gate's input in "
    "training.",
    least=0,
    below=1,
    fix="Try 0.01.",
)
BALANCE = Setting(help="The coefficient of the balance loss.", least=0, fix="Try 0.01.")
BALANCE_OF_K = Setting(
    help="The coefficient of the balance loss, which is k at uniform routing.",
    least=0,
    fix="Try 0.01.",
)
Z = Setting(help="The coefficient of the z-loss.", least=0, fix="Try 0.01.")


@runtime_checkable
class RouterConfig(Protocol):
    """The settings of a router."""

    @property
    def experts(self) -> int: ...

    def build(self, width: int, *, generator: torch.Generator) -> nn.Module: ...


@runtime_checkable
class LooksAhead(Protocol):
    """Settings without a card that say themselves whether later tokens decide for earlier ones."""

    @property
    def non_causal(self) -> bool: ...


def non_causal(config: object) -> bool:
    """Return True if, with this router, later tokens of a sequence decide where earlier ones go.

    The answer is a tag of the method's entry in the catalogue, or of the entry of a gate inside the
    settings; settings that are not in the catalogue may have an attribute `non_causal`.
    """
    if isinstance(config, LooksAhead) and config.non_causal:
        return True
    if not is_dataclass(config) or isinstance(config, type):
        return False
    try:
        by_itself = "non_causal" in card(method_key(cast(Any, config))).tags
    except ConfigError:  # settings without a card
        by_itself = False
    return by_itself or any(non_causal(getattr(config, f.name)) for f in fields(config))


def with_experts(config: Any, experts: int) -> Any:
    """Return a router's settings with another number of experts.

    config: a router's dataclass with a field `experts`, or with a field `gate`, another router's
    settings, which has one.
    Raises: ConfigError for settings that have no such number, or cannot have this one.
    """
    names = {f.name for f in fields(config)}
    if "experts" in names:
        return replace(config, experts=experts)
    # settings around another router's, with experts that they permute, for example
    if "gate" in names:
        return replace(config, gate=with_experts(config.gate, experts))
    got = f"a {type(config).__name__}, which has no such setting"
    want = "a router of a number of experts"
    raise ConfigError("experts", got=got, want=want, fix="Choose the number in its own settings.")
