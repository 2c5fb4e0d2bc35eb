"""PEFT's own methods as baselines: PEFT's code in places found by role, and a trained head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

import torch
from peft import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PeftConfig,
    PeftModel,
    PeftType,
    get_peft_model,
)
from torch import nn

from ...core.errors import ConfigError
from ..anatomy.blocks import blocks
from ..anatomy.sites import call_layer, find_sites
from .adapt import check_model, exactly, find_heads, quiet_peft

# what we decide, or what is no setting of a method
DECIDED = {field.name for field in fields(PeftConfig)} | {
    "target_modules",
    "modules_to_save",
    "exclude_modules",
    "feedforward_modules",
    "bias",
    "fan_in_fan_out",
    "layers_pattern",
    "layers_to_transform",
    "save_projection",
    "megatron_core",
    "ensure_weight_tying",
}


@dataclass(frozen=True)
class _Places:
    """Roles, as a method of our own would name them; the cells are PEFT's."""

    roles: tuple[str, ...]
    position: str = "parallel"


def plain_settings(kind: str) -> dict[str, Any]:
    """Name and default of the settings of a PEFT method that are numbers, words or switches."""
    config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[kind]]
    return {
        f.name: f.default
        for f in fields(config)
        if f.name not in DECIDED
        and f.default is not MISSING
        and isinstance(f.default, (bool, int, float, str))
    }


def through_peft(
    model: nn.Module,
    kind: str,
    settings: Mapping[str, Any],
    *,
    roles: Sequence[str] = ("qkv",),
    last_blocks: int = 0,
    seed: int = 0,
) -> PeftModel:
    """The model with one of PEFT's methods in it, in place; the head is trained and saved whole.

    kind: PEFT's name for the method's type, as "LORA".  settings: of its config, see
    `plain_settings`.  roles: where it goes, as in `adapt`.  last_blocks: so many blocks, 0 = all.

    Raises: ConfigError for settings that PEFT refuses; TargetError for places that are not there.
    Not in a fused qkv layer for methods that mean single keys and values: IA3 scales queries too.
    """
    check_model(model, "default")
    paths = _paths(model, roles, last_blocks)
    own: dict[str, Any] = dict(settings) | {"modules_to_save": find_heads(model) or None}
    if kind == "IA3":  # it scales what the last layer of an MLP reads, and what others say
        last = list({p.rpartition(".")[0]: p for p in paths if ".mlp." in p}.values())
        paths = [p for p in paths if ".mlp." not in p or p in last]
        own["feedforward_modules"] = exactly(model, last)
    own["target_modules"] = exactly(model, paths)
    try:
        with torch.random.fork_rng(devices=[]), quiet_peft():
            torch.manual_seed(seed)
            config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[kind]](**own)
            adapted = get_peft_model(model, config)
    except (ValueError, TypeError, ZeroDivisionError, AssertionError) as error:
        what, fix = f"settings of PEFT's {kind}", f"It says: {str(error).rstrip('.')}."
        raise ConfigError(what, got=dict(settings), want="what PEFT can build", fix=fix) from error
    assert isinstance(adapted, PeftModel)
    return adapted


def _paths(model: nn.Module, roles: Sequence[str], last_blocks: int) -> list[str]:
    count = len(blocks(model))
    if not 0 <= last_blocks <= count:
        raise ConfigError(
            "last_blocks", got=last_blocks, want=f"0 ... {count}", fix="0 stands for all of them."
        )
    layers = range(-last_blocks, 0) if last_blocks else None
    places: Any = _Places(tuple(roles))
    found = [site.path for site in find_sites(model, places, layers=layers)]
    for path in found:
        parent, _, name = path.rpartition(".")
        call_layer(model.get_submodule(parent), name)
    return found
