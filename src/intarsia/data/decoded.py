"""Decoded pictures in one safetensors file: written once, then memory-mapped by every process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from intarsia.core.files import parse_json
from intarsia.core.reading import open_tensors, read_tensors
from intarsia.data.packages import building, reading

Decoded = tuple[np.ndarray, list[int], list[str]]  # uint8 images, labels, class names


def decoded_once(
    file: Path, make: Callable[[], Decoded]
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return images, int64 labels and class names from `file`; `make` creates it the first time.

    Raises: AssetError when the file is damaged or cannot be written.
    """
    with building(file) as scratch:
        if scratch is not None:
            images, labels, classes = make()
            tensors = {"images": torch.from_numpy(images), "labels": torch.tensor(labels)}
            save_file(tensors, str(scratch), metadata={"classes": json.dumps(classes)})
    with reading(file):
        with open_tensors(file) as head:
            classes = tuple(parse_json(head.metadata()["classes"]))
        tensors = read_tensors(file)  # memory-mapped: processes share the pages
        return tensors["images"].numpy(), tensors["labels"].numpy(), classes
