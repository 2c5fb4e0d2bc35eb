"""A stock sparse model whose experts are on several processes, written as a stock checkpoint.

Each process writes its own experts; nobody has all of them at once. transformers, vLLM and others
open the folder, by model.safetensors.index.json, as they open any other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from ..core.errors import ConfigError, TargetError
from ..core.files import write_json
from ..core.sealing import seal_stock
from ..processes.exchange import Group
from ..processes.parallelism import WholeModel
from ..processes.pieces import Piece, apart
from ..processes.together import write_together

INDEX = "model.safetensors.index.json"
SHARD = "model-{:05d}-of-{:05d}.safetensors"


def write_sharded(model: Any, parts: WholeModel, folder: str | Path, group: Group = None) -> Path:
    """`save_pretrained` of a model inside `attached`, called by every process.

    Each process writes a shard with its experts, under the names that the architecture's
    checkpoints have (w1, w2, w3 of each expert, or gate_proj, ...); the first one all the rest, the
    index and the configuration. Whole or not at all; AutoModelForCausalLM.from_pretrained(folder)
    then gives the bits of the model as one process would have it.

    Raises: TargetError for a model that is not of transformers; ConfigError outside `attached`, for
    slices of experts, and for architectures whose checkpoints have all experts in one tensor
    (gpt-oss): leave `attached` and call save_pretrained; TrainingError for a full disk, or a
    process that is gone.
    """
    if not isinstance(model, PreTrainedModel):
        fix = "Use intarsia.save, or the checkpoints of fit."
        raise TargetError("model", got=type(model).__name__, want="one of transformers", fix=fix)
    if not parts.shared:
        got, fix = "a model that is in one process", "Call model.save_pretrained(folder)."
        raise ConfigError("model", got=got, want="one inside of attached(...)", fix=fix)
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    rest: dict[str, Tensor] = {}
    own: dict[str, Tensor] = {}
    for name, found in parts.pieces(model.state_dict()).items():
        if isinstance(found, Piece):
            own |= _single(model, name, found)
        else:
            rest[name] = found
    for name in set(getattr(model, "all_tied_weights_keys", None) or ()):
        rest.pop(name, None)
    if rank == 0:
        own |= _stock_names(model, rest)

    def part(scratch: Path) -> dict[str, int]:
        file = scratch / SHARD.format(rank + 1, world)
        safetensors.torch.save_file(apart(own), file, metadata={"format": "pt"})
        return {name: t.numel() * t.element_size() for name, t in own.items()}

    def finish(scratch: Path, said: list[dict[str, int]]) -> None:
        where = {k: SHARD.format(of + 1, world) for of, keys in enumerate(said) for k in keys}
        size = sum(sum(keys.values()) for keys in said)
        write_json(scratch / INDEX, {"metadata": {"total_size": size}, "weight_map": where})
        model.config.save_pretrained(scratch)
        if (generation := getattr(model, "generation_config", None)) is not None:
            generation.save_pretrained(scratch)
        seal_stock(scratch)

    return write_together(folder, part, finish, group)


def _stock_names(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names and in the form of the architecture's checkpoints."""
    from transformers.core_model_loading import revert_weight_conversion

    return dict(revert_weight_conversion(model, dict(state)))


def _single(model: Any, name: str, piece: Piece) -> dict[str, Tensor]:
    """This process's experts of a weight, one tensor each."""
    if piece.of > 1:
        got, want = f"slices of experts in {name!r}", "whole experts on each process"
        fix = "Use at most as many processes as experts, or ExpertParallel()."
        raise ConfigError("experts to write", got=got, want=want, fix=fix)
    if not len(piece.index):
        return {}
    found: dict[str, Tensor] = {}
    numbered = re.compile(r"(\.experts\.)(\d+)(\.)")
    index = piece.index.tolist()
    for key, value in _stock_names(model, {name: piece.value}).items():
        if numbered.search(key) is None:
            got = f"{key!r}, one tensor for all experts, in {type(model).__name__}'s checkpoints"
            want, fix = "a tensor for each", "Leave attached(...), then call save_pretrained."
            raise ConfigError("experts to write", got=got, want=want, fix=fix)
        key = numbered.sub(lambda m: f"{m[1]}{index[int(m[2])]}{m[3]}", key, count=1)
        found[key] = value
    return found
