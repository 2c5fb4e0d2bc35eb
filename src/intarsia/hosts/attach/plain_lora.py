"""Write LoRA as PEFT's own files, which others read, and read PEFT's adapters as cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, cast

from peft import LoraConfig, PeftModel
from torch import Tensor, nn

from ...adapters.lora import Lora
from ...core.files import read_json
from ...core.registry import KEY, method_to_dict
from ..anatomy import origin
from ..anatomy.blocks import base_of, unwrapped, walk
from .adapt import exact_targets
from .config import Family, IntarsiaConfig
from .lora_form import OURS, PLACES, is_plain_lora, left_out, write_config

# settings of PEFT's LoRA that this library has, too, or that do not concern the weights
KNOWN = {f.name for f in fields(IntarsiaConfig)} | {
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "init_lora_weights",
    "peft_version",
}
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")  # others change the base's weights


def write_plain(model: PeftModel, folder: Path, name: str) -> dict[str, Any] | None:
    """Rewrite the files of an adapter in PEFT's form, if it is plain LoRA.

    Returns settings for which PEFT's form has no room (the seed, what the weights belong to); None
    for any other adapter; its files stay as they are.
    """
    config: Any = model.peft_config[name]
    if not is_plain_lora(model, name):
        return None
    place = folder if name == "default" else folder / name
    stored = read_json(place / origin.CONFIG)
    # next to adapters of other methods, PEFT's functions write our type for this one, too
    if stored["peft_type"] == Family.INTARSIA.value:
        write_config(config, place, auto_mapping_dict=stored.get("auto_mapping"))
    return left_out(config)


def own_config(stored: Mapping[str, Any], rest: Mapping[str, Any]) -> IntarsiaConfig:
    """Build this library's config of an adapter that `write_plain` wrote."""
    method = Lora(int(stored["r"]), float(stored["lora_alpha"]), float(stored["lora_dropout"]))
    options = method_to_dict(method)
    # PEFT's file has rank, scale and places; seed, start and origin stand next to it
    unchanged = ("target_modules", "task_type", "base_model_name_or_path", "revision", *PLACES)
    return IntarsiaConfig(
        method=options.pop(KEY),
        options=options,
        seed=rest["seed"],
        init_weights=rest["init_weights"],
        origin=rest["origin"],
        **cast(Any, {key: stored.get(key) for key in unchanged}),
    )


def plain_config(
    model: nn.Module, stored: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> IntarsiaConfig | None:
    """Convert the config of PEFT's LoRA to one of this library, for the layers that have tensors.

    Returns None if it is not plain LoRA: DoRA, ranks by layer, biases, embeddings, PiSSA ...
    """
    ends = tuple(OURS)
    if stored.get("peft_type") != "LORA" or not is_plain(stored):
        return None
    paths = {
        k.removeprefix("base_model.model.").rpartition(".lora_")[0]
        for k in tensors
        if k.endswith(ends)
    }
    modules = {path: unwrapped(module) for path, module in walk(base_of(model))}
    heads = tuple(f"{name}." for name in stored.get("modules_to_save") or ())
    # tensors that belong neither to LoRA nor to a head: the adapter is more than plain LoRA
    rest = [
        k for k in tensors if not k.endswith(ends) and not any(f".{h}" in f".{k}" for h in heads)
    ]
    if not paths or rest or not all(isinstance(modules.get(p), nn.Linear) for p in paths):
        return None
    rank, alpha = int(stored.get("r", 8)), float(stored.get("lora_alpha", 8))  # PEFT's defaults
    alpha = alpha * rank**0.5 if stored.get("use_rslora") else alpha  # alpha / sqrt(r)
    options = method_to_dict(Lora(rank, alpha, stored.get("lora_dropout", 0.0)))
    return IntarsiaConfig(
        method=options.pop(KEY),
        options=options,
        target_modules=exact_targets(base_of(model), sorted(paths)),
        modules_to_save=stored.get("modules_to_save"),
        base_model_name_or_path=stored.get("base_model_name_or_path"),
        revision=stored.get("revision"),
        task_type=stored.get("task_type"),
    )


def is_plain(stored: Mapping[str, Any]) -> bool:
    """Return True if a config of PEFT's LoRA uses no setting that plain LoRA does not have."""
    if stored.get("init_lora_weights", True) not in PLAIN_STARTS:
        return False
    lora_fields = {f.name: f for f in fields(LoraConfig)}
    for key in stored.keys() - KNOWN:
        field = lora_fields.get(key)
        # settings that PEFT adds later are no obstacle as long as they are off
        default = field.default if field is not None and field.default is not MISSING else None
        if stored[key] != default and stored[key]:
            return False
    return True
