"""A stock sparse model with experts on several processes, written as a stock checkpoint.

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
    """Write a model with experts on several processes, as `save_pretrained` would.

    Every process calls it, inside `attached`. parts: the model's layers of sharded experts; folder:
    the target; group: of the processes.
    Each process writes a shard with its experts, under the names that the architecture's
    checkpoints have (w1, w2, w3 of each expert, or gate_proj, ...); the first one also writes all
    other weights, the index and the configuration. Whole or not at all.
    AutoModelForCausalLM.from_pretrained(folder) then gives the bits of the model as one process
    would have it.

    Raises: TargetError for a model that is not of transformers; ConfigError outside `attached`, for
    slices of experts, and for architectures with checkpoints that have all experts in one tensor
    (gpt-oss): leave `attached` and call save_pretrained; TrainingError for a full disk, or a
    process that has ended.
    """
    if not isinstance(model, PreTrainedModel):
        fix = "Use intarsia.save, or the checkpoints of fit."
        raise TargetError("model", got=type(model).__name__, want="one of transformers", fix=fix)
    if not parts.shared:
        got, fix = "a model that is in one process", "Call model.save_pretrained(folder)."
        raise ConfigError("model", got=got, want="one inside of attached(...)", fix=fix)
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    rest: dict[str, Tensor] = {}
    shard: dict[str, Tensor] = {}
    for name, value in parts.pieces(model.state_dict()).items():
        if isinstance(value, Piece):
            shard |= _expert_tensors(model, name, value)
        else:
            rest[name] = value
    # tied weights are written once; loading ties them again
    for name in set(getattr(model, "all_tied_weights_keys", None) or ()):
        rest.pop(name, None)
    # what every process has alike is written by the first one
    if rank == 0:
        shard |= _stock_names(model, rest)

    def part(scratch: Path) -> dict[str, int]:
        """Write this process's shard; returns name -> bytes."""
        file = scratch / SHARD.format(rank + 1, world)
        safetensors.torch.save_file(apart(shard), file, metadata={"format": "pt"})
        return {name: t.numel() * t.element_size() for name, t in shard.items()}

    def finish(scratch: Path, shards: list[dict[str, int]]) -> None:
        """Write the index of all shards, and the configuration, into the folder."""
        weight_map = {
            k: SHARD.format(number + 1, world) for number, keys in enumerate(shards) for k in keys
        }
        size = sum(sum(keys.values()) for keys in shards)
        write_json(scratch / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
        model.config.save_pretrained(scratch)
        if (generation := getattr(model, "generation_config", None)) is not None:
            generation.save_pretrained(scratch)
        seal_stock(scratch)

    return write_together(folder, part, finish, group)


def _stock_names(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reshape weights into the form of the architecture's checkpoints."""
    from transformers.core_model_loading import revert_weight_conversion

    return dict(revert_weight_conversion(model, dict(state)))


def _expert_tensors(model: Any, name: str, piece: Piece) -> dict[str, Tensor]:
    """Return this process's experts of a stacked weight, one tensor each, by checkpoint names."""
    # with more processes than experts each has a slice of one, which no checkpoint can hold
    if piece.of > 1:
        got, want = f"slices of experts in {name!r}", "whole experts on each process"
        fix = "Use at most as many processes as experts, or ExpertParallel()."
        raise ConfigError("experts to write", got=got, want=want, fix=fix)
    if not len(piece.index):
        return {}
    tensors: dict[str, Tensor] = {}
    numbered = re.compile(r"(\.experts\.)(\d+)(\.)")
    index = piece.index.tolist()
    for key, value in _stock_names(model, {name: piece.value}).items():
        if numbered.search(key) is None:
            got = f"{key!r}, one tensor for all experts, in {type(model).__name__}'s checkpoints"
            want, fix = "a tensor for each", "Leave attached(...), then call save_pretrained."
            raise ConfigError("experts to write", got=got, want=want, fix=fix)
        # the conversion counts from 0 in this process; the file counts over all processes
        key = numbered.sub(lambda m: f"{m[1]}{index[int(m[2])]}{m[3]}", key, count=1)
        tensors[key] = value
    return tensors
