"""Decoded pictures in one safetensors file: written once, then memory-mapped by every process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from intarsia.core.store import Store

Decoded = tuple[np.ndarray, list[int], list[str]]  # uint8 images, labels, class names


def decoded_once(
    file: Path, make: Callable[[], Decoded]
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return images, labels and class names of a data set from a file, made the first time.

    file: a safetensors file in the cache. make: returns uint8 images, labels and class names.
    Labels are (n,) int64.
    Raises: AssetError when the file is damaged or cannot be written.
    """

    def compute() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Make the data set, as tensors and JSON-ready facts for the store."""
        images, labels, classes = make()
        return {"images": torch.from_numpy(images), "labels": torch.tensor(labels)}, {
            "classes": classes
        }

    tensors, facts = Store(file.parent).tensors(file.stem, compute)
    return tensors["images"].numpy(), tensors["labels"].numpy(), tuple(facts["classes"])
