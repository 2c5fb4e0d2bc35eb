"""PEFT's own form of plain LoRA: its names of the weights, and the settings in its config.

Ours are B and A as `up` and `down`; PEFT's are lora_B and lora_A. What that form has no room for,
as the seed and what the weights belong to, is metadata of the safetensors file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ...adapters.lora import LoraCell
from ...core.reading import open_tensors, read_tensors
from ...core.sealing import OPEN, check_file, seal_file
from ..anatomy.blocks import unwrapped
from ..anatomy.origin import CONFIG, WEIGHTS, WRITER, damaged

# end of a name: PEFT's -> ours
OURS = {
    ".lora_A.weight": ".intarsia_cells.down.weight",
    ".lora_B.weight": ".intarsia_cells.up.weight",
}
PLACES = ("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save")
# settings on which the meaning of the weights depends
MEANING = ("r", "lora_alpha", "target_modules", *PLACES)
KEY = "intarsia"


def _replace_end(key: str, ends: Mapping[str, str]) -> str:
    """Replace the end of a tensor's name, if it is listed; ends: old end -> new end."""
    end = next((end for end in ends if key.endswith(end)), None)
    return key if end is None else key.removesuffix(end) + ends[end]


def ours(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors of PEFT's LoRA to the names that this library has for them."""
    return {_replace_end(key, OURS): tensor for key, tensor in tensors.items()}


def theirs(tensors: Mapping[str, Tensor], inside: str = "") -> dict[str, Tensor]:
    """Rename tensors of this library's LoRA to PEFT's names for them."""
    ends = {
        ours.replace("_cells", f"_cells{inside}"): key.replace(".weight", f"{inside}.weight")
        for key, ours in OURS.items()
    }
    return {_replace_end(key, ends): tensor for key, tensor in tensors.items()}


def is_plain_lora(model: nn.Module, name: str) -> bool:
    """Return True if PEFT's own LoRA can express an adapter: all its layers are plain LoRA."""
    configs, modules = cast(Any, model.peft_config), model.modules()
    layers: list[Any] = [m for m in modules if name in getattr(m, "intarsia_cells", ())]
    # PEFT could not read the folder if a single layer had more than LoRA. A site of ("parallel",
    # "last") adds to its layer's output, the channels of which are the last axis.
    return configs[name].method == "lora" and all(
        type(layer.intarsia_cells[name]) is LoraCell
        and isinstance(unwrapped(layer), nn.Linear)
        and layer.intarsia_sites[name] == ("parallel", "last")
        for layer in layers
    )


def is_written(folder: Path) -> bool:
    """Return True if the weights in a folder have PEFT's names of LoRA's."""
    try:
        with open_tensors(folder / WEIGHTS) as file:
            return any(key.endswith(tuple(OURS)) for key in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return False


def write_config(config: Any, folder: Path, **kwargs: Any) -> None:
    """Write the config of plain LoRA as PEFT's, and the rest as metadata of the weights."""
    method = config.settings()
    alpha = method.rank if method.alpha is None else method.alpha
    plain = LoraConfig(
        r=method.rank,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,  # pyright: ignore
        lora_dropout=method.dropout,
        target_modules=config.target_modules,
        task_type=config.task_type,
        inference_mode=True,
        base_model_name_or_path=config.base_model_name_or_path,
        revision=config.revision,
        **{key: getattr(config, key) for key in PLACES},
    )
    # in order, so that equal adapters give equal files
    for key in ("target_modules", "exclude_modules"):
        if isinstance(value := getattr(plain, key), set):
            setattr(plain, key, sorted(value))
    plain.save_pretrained(str(folder), **kwargs)
    rest = left_out(config) | {"meaning": _digest_of_meaning(plain.to_dict())}
    # copied: they are memory-mapped from the file that is replaced
    tensors = {n: t.clone() for n, t in theirs(read_tensors(folder / WEIGHTS)).items()}
    save_file(tensors, folder / WEIGHTS, {"format": "pt", KEY: json.dumps(rest), **OPEN})
    seal_file(folder / WEIGHTS)


def left_out(config: Any) -> dict[str, Any]:
    """Return the settings for which PEFT's form has no room, ready for JSON."""
    belongs = {key: value for key, value in (config.origin or {}).items() if key != "digest"}
    return {"seed": config.seed, "init_weights": config.init_weights, "origin": belongs}


def read_left_out(folder: Path, stored: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the settings that stand in the metadata of the weights; None for files of PEFT's own.

    Raises: CheckpointError if weights or config are not as they were written.
    """
    with open_tensors(folder / WEIGHTS) as file:
        text = (file.metadata() or {}).get(KEY)
    if text is None:
        return None
    check_file(folder / WEIGHTS)
    rest = json.loads(text)
    if rest["meaning"] != _digest_of_meaning(stored):
        raise damaged(folder / CONFIG, "settings that changed after they were saved", WRITER)
    return rest


def _digest_of_meaning(stored: Mapping[str, Any]) -> str:
    values = {key: stored.get(key) for key in MEANING}
    values = {key: sorted(v) if isinstance(v, (set, list)) else v for key, v in values.items()}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
