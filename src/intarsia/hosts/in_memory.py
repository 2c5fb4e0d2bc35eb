"""Weights that stay as they are while they are used, and outputs that are numbers."""

from __future__ import annotations

import bisect
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from ..core.errors import CheckpointError, DataError

MAPS = Path("/proc/self/maps")  # of Linux: the parts of this process's memory that files stand for


@torch.no_grad()
def hold(model: nn.Module, source: str) -> None:
    """Copy weights that are mapped from a file into memory, one after the other, and check them.

    A mapped weight changes with its file, and a file that becomes shorter ends the process. model:
    its parameters and buffers stay the same objects.
    Raises: CheckpointError for a weight with NaN or infinity.
    """
    ranges = mapped_ranges()
    copies: dict[tuple[object, ...], Tensor] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type != "cpu" or not tensor.numel():
            continue
        if ranges is None or is_mapped(tensor, ranges):
            # several names may stand for one piece of memory
            key = tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
            tensor.data = copies.setdefault(key, tensor.detach().clone())
        # buffers may hold infinity on purpose, as masks do
        if isinstance(tensor, nn.Parameter) and not is_finite(tensor):
            fix = "Copy it again from its source, or train it again."
            got = f"NaN or infinity in {name}"
            raise CheckpointError(f"model {source!r}", got=got, want="finite weights", fix=fix)


def is_number(logits: Tensor) -> bool:
    """Return whether a most probable token can be told: no NaN, no infinity, one that may come."""
    return math.isfinite(logits.detach().max())


def check_logits(logits: Tensor) -> None:
    """Check the logits of a model (B, V).  Raises: DataError for NaN or infinity."""
    if not is_number(logits):
        fix = "Look at the model's weights: one of them is NaN, or far too large."
        raise DataError("logits", got="NaN or infinity", want="finite numbers", fix=fix)


def is_finite(weight: Tensor) -> bool:
    """Return whether a weight has neither NaN nor infinity; types of few bits count as finite."""
    if not weight.is_floating_point() or weight.element_size() < 2:
        return True
    return all(math.isfinite(end) for end in weight.detach().aminmax())


def mapped_ranges() -> list[tuple[int, int]] | None:
    """Return the parts of memory that files stand for, in order; None where nobody tells."""
    try:
        rows = [line.split() for line in MAPS.read_text("utf-8", "replace").splitlines()]
    except OSError:
        return None
    ends = [row[0].split("-") for row in rows if row[4] != "0"]
    return [(int(first, 16), int(last, 16)) for first, last in ends]


def is_mapped(tensor: Tensor, ranges: list[tuple[int, int]]) -> bool:
    """Return whether a tensor begins in one of these parts of memory, which are in order."""
    address = tensor.data_ptr()
    place = bisect.bisect(ranges, (address, math.inf)) - 1
    return place >= 0 and address < ranges[place][1]
