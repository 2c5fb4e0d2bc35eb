"""The settings of any router: its number of experts, and whether it looks at later tokens."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import nn

from ..core.errors import ConfigError
from ..core.registry import card, method_key


class RouterConfig(Protocol):
    """The settings of a router."""

    @property
    def experts(self) -> int: ...

    def build(self, width: int, *, generator: torch.Generator) -> nn.Module: ...


def non_causal(config: object) -> bool:
    """Return True if later tokens decide where earlier ones go.

    This is a tag of the card of these settings, or of a gate inside. Settings without a card have
    an attribute `non_causal` if so.
    """
    if not is_dataclass(config) or isinstance(config, type):
        return bool(getattr(config, "non_causal", False))
    try:
        by_itself = "non_causal" in card(method_key(cast(Any, config))).tags
    except ConfigError:  # in no list
        by_itself = bool(getattr(config, "non_causal", False))
    return by_itself or any(non_causal(getattr(config, f.name)) for f in fields(config))


def with_experts(config: Any, experts: int) -> Any:
    """Return the settings with another number of experts; of the gate inside, if there is one.

    Raises: ConfigError for settings that have no such number, or cannot have this one.
    """
    names = {f.name for f in fields(config)}
    if "experts" in names:
        return replace(config, experts=experts)
    if "gate" in names:
        return replace(config, gate=with_experts(config.gate, experts))
    got = f"a {type(config).__name__}, which has no such setting"
    want = "a router of a number of experts"
    raise ConfigError("experts", got=got, want=want, fix="Choose the number in its own settings.")
