"""A model of transformers whose weights stay in its files, for a program that reads each once.

A model of 7 billion weights in bfloat16 takes 15 GB of files; mapped, it takes the memory of the
matrix that is being read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from ..core.reading import read_tensors, read_text

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def mapped_model(kind: Any, folder: str | Path, **options: Any) -> Any:
    """Return a model with the weights of a folder of `save_pretrained`, mapped; None = it cannot.

    kind: a class with `from_config`, such as AutoModelForCausalLM. None where the files lack a
    weight of the model, or have one under another name, or of another size: then `from_pretrained`
    is the way. The files must not change while the model is in use.
    """
    from transformers import AutoConfig
    from transformers.initialization import no_init_weights

    try:
        tensors = _tensors(Path(folder))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not tensors:
        return None
    config = AutoConfig.from_pretrained(folder, **options)
    types = {t.dtype for t in tensors.values()}
    dtype = config.dtype or (types.pop() if len(types) == 1 else None)
    if dtype is None:
        return None
    with no_init_weights():
        model = kind.from_config(config, dtype=dtype, **options)
    model.tie_weights()
    persistent = model.state_dict(keep_vars=True)
    owners: dict[int, Tensor] = {id(tensor): tensor for tensor in persistent.values()}
    # a tied weight has several names, of which the files have one
    found = {id(persistent[name]): tensors[name] for name in persistent.keys() & tensors.keys()}
    suited = all(
        key in found and found[key].shape == owner.shape and found[key].dtype == owner.dtype
        for key, owner in owners.items()
    )
    if not suited or not tensors.keys() <= persistent.keys():
        return None
    for key, owner in owners.items():
        owner.data = found[key]
    return model.eval()


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Map the weights of a folder, one file or several with an index; {} where it has none."""
    files = {WEIGHTS}
    if (folder / INDEX).is_file():
        files = {str(name) for name in json.loads(read_text(folder / INDEX))["weight_map"].values()}
    if any(Path(name).name != name for name in files):
        return {}  # a file elsewhere is none of the folder's
    tensors: dict[str, Tensor] = {}
    for name in sorted(files):
        if (folder / name).is_file():
            tensors |= read_tensors(folder / name)
    return tensors
