"""Decoded pictures as one safetensors file: made once, then memory-mapped by every process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from intarsia.core.errors import AssetError
from intarsia.data.packages import building

Decoded = tuple[np.ndarray, list[int], list[str]]  # uint8 images, labels, class names


def decoded_once(
    file: Path, make: Callable[[], Decoded]
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return images, int64 labels and class names out of `file`, which `make` fills if need be.

    Raises: AssetError when the file is damaged, or cannot be written.
    """
    with building(file) as scratch:
        if scratch is not None:
            images, labels, classes = make()
            tensors = {"images": torch.from_numpy(images), "labels": torch.tensor(labels)}
            save_file(tensors, str(scratch), metadata={"classes": json.dumps(classes)})
    return _read(file)


def _read(file: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    try:
        with safe_open(str(file), framework="pt") as head:
            classes = tuple(json.loads(head.metadata()["classes"]))
        tensors = load_file(str(file))  # memory-mapped: processes share the pages
        return tensors["images"].numpy(), tensors["labels"].numpy(), classes
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise AssetError(
            f"cached set {file.name}",
            got=f"{type(error).__name__}: {error}",
            want="the file as it was written",
            fix=f"Delete {file}; it will be made again.",
        ) from error
