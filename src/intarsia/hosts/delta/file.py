"""Write and read a delta: one safetensors file with a digest, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from ...core.errors import CheckpointError
from ...core.files import parse_json, unbroken, writing
from ...core.reading import open_tensors
from ...core.sealing import OPEN, check_file, seal_file
from ..anatomy.origin import damaged

FORMAT, WRITER = "intarsia sparse delta 1", "SparseDelta.save"


def write(path: Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    """Write tensors and JSON into one safetensors file with a digest, whole or not at all.

    path: of the file; tensors: by name; content: stored as text in the file's metadata.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # sorted, so that equal deltas have equal bytes
    text = json.dumps(content, sort_keys=True)
    metadata = {"format": FORMAT, "about": text, **OPEN}
    with writing(path) as scratch:
        safetensors.torch.save_file(stored, scratch, metadata=metadata)
        seal_file(scratch)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the JSON of a file that `write` wrote.

    Raises: CheckpointError if it is not there, cut short, changed, or no delta.
    """
    try:
        with unbroken(), open_tensors(path) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise damaged(path, f"no readable safetensors file ({error})", WRITER) from error
    # a whole file of another kind gets another error than a damaged one
    if metadata.get("format") != FORMAT:
        got = f"a file of format {metadata.get('format')!r}"
        fix = "Adapters are read with intarsia.load; other files are no deltas."
        raise CheckpointError(f"delta {str(path)!r}", got=got, want=f"{FORMAT!r}", fix=fix)
    check_file(path)
    try:
        return tensors, parse_json(metadata.get("about", ""))
    except ValueError as error:
        raise damaged(path, f"no JSON beside the tensors ({error})", WRITER) from error
