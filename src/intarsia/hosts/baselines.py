"""Baselines by name, built: one home for what is compared with the adapters of the registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..core.baselines import BASELINES, Baseline
from ..core.errors import UnknownName
from .prompts import add_prompts
from .select import train_part
from .through_peft import plain_settings, through_peft


def baseline(name: str) -> Baseline:
    """Raises: UnknownName for a name that is not in the list."""
    if name not in BASELINES:
        raise UnknownName("baseline", name, BASELINES)
    return BASELINES[name]


def settings_of(name: str) -> dict[str, Any]:
    """The settings of a baseline with their defaults; the type of a default is the setting's.

    Raises: UnknownName for a baseline that is not in the list.
    """
    found = baseline(name)
    return (plain_settings(found.peft) if found.peft else {}) | dict(found.settings)


def build(
    name: str, model: nn.Module, settings: Mapping[str, Any] | None = None, *, seed: int = 0
) -> nn.Module:
    """The model with a baseline in it, in place: what is trained requires a gradient.

    settings: in place of those of `settings_of`.  seed: of new weights.
    Raises: UnknownName for a baseline or a setting that does not exist; ConfigError and TargetError
    for what does not suit the model.
    """
    found, chosen = baseline(name), settings_of(name)
    for given in settings or {}:
        if given not in chosen:
            raise UnknownName(f"setting of {name!r}", given, chosen)
    chosen |= dict(settings or {})
    if found.family == "prompts":
        return add_prompts(model, deep=name == "vpt-deep", seed=seed, **chosen)
    if found.family == "peft":
        places = {key: chosen.pop(key) for key in ("roles", "last_blocks")}
        return through_peft(model, found.peft, chosen, seed=seed, **places)
    return train_part(model, name, **chosen)
