"""Atomic checkpoints: safetensors and JSON, hashed, written aside and then renamed.

`folder/save-000012/` holds tensors.safetensors, state.json and manifest.json with the SHA-256 of
the other two. A folder of that name is complete: it was renamed after all of it was on disk.
Where processes share experts out, each writes a file with those that it has, and manifest.json says
where each is; any number of processes reads it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor

from ..core.errors import CheckpointError, TrainingError
from ..core.files import read_json, unbroken, writing
from ..core.reading import read_tensors
from ..core.sealing import sha256
from ..processes.exchange import Group
from ..processes.pieces import Piece, Pieces, Stored, apart, write_file
from ..processes.together import write_together

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
PARTS = "part-{:05d}-of-{:05d}.safetensors"
Flat = dict[str, Tensor | Piece]
_TENSOR, _TUPLE, _PAIRS = "__tensor__", "__tuple__", "__pairs__"


def flatten(tree: Any, tensors: dict[str, Any], path: str = "") -> Any:
    """Return a nested value as JSON, with its tensors moved to `tensors` under their paths.

    tree: mappings, lists and tuples of tensors, pieces of tensors and plain values; tensors: is
      filled; path: of the tree within the whole.
    Raises: TrainingError for a value that JSON cannot hold.
    """
    # a tensor leaves its path in the JSON, and its values in the safetensors file
    if isinstance(tree, Tensor | Piece):
        tensors[path] = tree.detach() if isinstance(tree, Tensor) else tree
        return {_TENSOR: path}
    if isinstance(tree, Mapping):
        if all(isinstance(key, str) for key in tree):
            return {k: flatten(v, tensors, f"{path}/{k}") for k, v in tree.items()}
        # JSON keys are strings; an optimiser counts its parameters
        return {_PAIRS: [[k, flatten(v, tensors, f"{path}/{k}")] for k, v in tree.items()]}
    if isinstance(tree, tuple | list):
        # JSON has no tuples, and Python's random state must be one
        items = [flatten(v, tensors, f"{path}/{i}") for i, v in enumerate(tree)]
        return {_TUPLE: items} if isinstance(tree, tuple) else items
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    want = "tensors, numbers, strings, lists and mappings"
    fix = "Keep only such values in the optimiser's state."
    raise TrainingError(f"checkpoint entry {path!r}", got=type(tree).__name__, want=want, fix=fix)


def unflatten(tree: Any, tensors: Mapping[str, Any]) -> Any:
    """Put tensors back into the JSON that `flatten` returned: its inverse."""
    if isinstance(tree, list):
        return [unflatten(v, tensors) for v in tree]
    if not isinstance(tree, dict):
        return tree
    if _TENSOR in tree:
        return tensors[tree[_TENSOR]]
    if _TUPLE in tree:
        return tuple(unflatten(v, tensors) for v in tree[_TUPLE])
    if _PAIRS in tree:
        return {k: unflatten(v, tensors) for k, v in tree[_PAIRS]}
    return {k: unflatten(v, tensors) for k, v in tree.items()}


def save(folder: Path, state: Mapping[str, Any]) -> Path:
    """Write a checkpoint into a run's folder, then remove the earlier ones.

    folder: of the checkpoints; state: nested mappings and lists of tensors and plain values, see
      `flatten`. Returns the checkpoint's folder.
    Raises: TrainingError when the disk is full or cannot be written; the checkpoint before stays as
      it was.
    """
    before, final = _complete_saves(folder), _next_folder(folder)
    tensors: dict[str, Tensor] = {}
    tree = flatten(state, tensors)
    # written under another name and renamed, so that it is complete or absent
    with writing(final) as scratch:
        scratch.mkdir()
        safetensors.torch.save_file(apart(tensors), scratch / TENSORS)
        (scratch / STATE).write_text(json.dumps(tree))
        hashes = {name: sha256(scratch / name) for name in (TENSORS, STATE)}
        (scratch / MANIFEST).write_text(json.dumps({"sha256": hashes}))
    _remove_old(folder, before)
    return final


def save_together(folder: Path, state: Mapping[str, Any], group: Group = None) -> Path:
    """Write a checkpoint from several processes: each writes its own experts, the first the rest.

    Called by every process. state: as in `save`, in which a `Piece` is this process's part of a
    weight; group: of the processes, None = all.
    Raises: as `save`, in all of them; TrainingError where one is gone.
    """
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    before, final = _complete_saves(folder), _next_folder(folder)
    tensors: Flat = {}
    tree = flatten(state, tensors)
    # weights that all processes have alike are written once, by the first
    mine = {key: t for key, t in tensors.items() if rank == 0 or isinstance(t, Piece)}

    def finish(scratch: Path, entries: list[dict[str, Any]]) -> None:
        """Write everything but tensors, and the manifest with the digest of everything."""
        (scratch / STATE).write_text(json.dumps(tree))
        hashes = {STATE: sha256(scratch / STATE), "parts": _digest(entries)}
        manifest = {"sha256": hashes, "parts": entries}
        (scratch / MANIFEST).write_text(json.dumps(manifest))

    def part(scratch: Path) -> dict[str, Any]:
        """Write the tensors of this process into the new checkpoint; return their entries."""
        return write_file(scratch / PARTS.format(rank + 1, world), mine)

    write_together(final, part, finish, group)
    if rank == 0:
        _remove_old(folder, before)
    return final


def _next_folder(folder: Path) -> Path:
    return folder / f"save-{1 + max(_complete_saves(folder), default=0):06d}"


def _remove_old(folder: Path, before: Mapping[int, Path]) -> None:
    """Remove the earlier checkpoints, and the scratch folders of processes that were killed."""
    # only now, when the new checkpoint is complete: a kill in between leaves two, never none
    for old in (*before.values(), *folder.glob(".save-*")):
        shutil.rmtree(old, ignore_errors=True)


def latest(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in a folder, None if there is none."""
    saves = _complete_saves(folder)
    return saves[max(saves)] if saves else None


def _complete_saves(folder: Path) -> dict[int, Path]:
    inside = folder.iterdir() if folder.is_dir() else ()
    named = {path: re.fullmatch(r"save-(\d{6,})", path.name) for path in inside}
    return {int(match[1]): path for path, match in named.items() if match}


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint that `save` or `save_together` wrote; its tensors are on the CPU.

    A checkpoint of several processes has a `Stored` in the place of each tensor: a reference, which
    is read and checked by the process that needs it.
    Raises: CheckpointError for a file that is missing, truncated or changed in any bit.
    """
    try:
        manifest = read_json(path / MANIFEST)
        hashes = manifest["sha256"]
        # files of several processes have digests of each row, which `Pieces` checks on reading
        for name in (STATE,) if "parts" in manifest else (TENSORS, STATE):
            if sha256(path / name) != hashes[name]:
                raise _damaged(path / name, "other bytes than were written")
        tree = read_json(path / STATE)
        if "parts" in manifest:
            if hashes["parts"] != _digest(manifest["parts"]):
                raise _damaged(path / MANIFEST, "other words than were written")
            pieces = Pieces(path, manifest["parts"])
            with unbroken():
                weights: dict[str, Any] = {key: pieces.tensor(key) for key in pieces.whole}
            return unflatten(tree, weights | {key: Stored(pieces, key) for key in pieces.pieces})
        with unbroken():
            tensors = read_tensors(path / TENSORS)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    # clone: the file, which is mapped into memory, is deleted with the next checkpoint
    return unflatten(tree, {k: v.clone() for k, v in tensors.items()})


def _digest(entries: Any) -> str:
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def _damaged(path: Path, got: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {path}",
        got=got,
        want="the files as they were written",
        fix="Restore it from a copy, or start again in another folder.",
    )


def tensors_hash(tensors: Sequence[tuple[str, Tensor]]) -> str:
    """Return the SHA-256 over the names, types, shapes and values of tensors.

    tensors: (name, tensor), in an order that matters.
    """
    total = hashlib.sha256()
    for name, tensor in tensors:
        total.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        total.update(flat.view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]
    return total.hexdigest()
