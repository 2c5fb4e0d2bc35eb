"""A kind of file: how a good one is made, and how it is opened."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image


@dataclass(frozen=True)
class Kind:
    """make: writes good files into an empty folder; open: reads them, and returns what is in them.

    open raises an IntarsiaError for what it cannot read.
    """

    name: str
    make: Callable[[Path], object]
    open: Callable[[Path], Any]


def digest(value: Any) -> str:
    """Return the SHA-256 of a result: of every number, text and tensor in it, in order."""
    total = hashlib.sha256()
    _add(value, total.update)
    return total.hexdigest()


def _add(value: Any, update: Callable[[bytes], object]) -> None:
    update(type(value).__name__.encode())
    if isinstance(value, torch.Tensor):
        value = value.detach().contiguous()
        update(str((value.dtype, value.shape)).encode())
        update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Image.Image):
        update(value.tobytes())
    elif isinstance(value, np.ndarray) and value.dtype != object:
        update(str((value.dtype, value.shape)).encode() + value.tobytes())
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _add(key, update)
            _add(inner, update)
    elif isinstance(value, list | tuple | set | np.ndarray):
        for inner in sorted(value) if isinstance(value, set) else value:
            _add(inner, update)
    else:
        update(repr(value).encode("utf-8", "backslashreplace"))
