"""Data sets out of plain arrays and tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from ..core.errors import DataError
from .order import IGNORED


def as_dataset(data: Any, labels: Any = None, *, unlabelled: bool = False) -> Any:
    """Return plain data as a map-style data set, and every other thing as it is.

    data: (inputs, labels), two tensors or arrays of one length; inputs alone, (n, ...), with
      `labels` next to them; or rows of token ids, whole numbers (n, T), which are their own labels.
    unlabelled: inputs alone get the label -100, for work that does not look at it.
    Raises: DataError for inputs and labels of two lengths, and inputs that lack labels.
    """
    if isinstance(data, tuple) and len(data) == 2 and all(map(_is_array, data)) and labels is None:
        data, labels = data
    if not _is_array(data):
        return data
    x = _tensor(data)
    if labels is not None:
        y = _tensor(labels)
        if len(x) != len(y):
            subject, got = "inputs and labels", f"{len(x)} and {len(y)} of them"
            raise DataError(subject, got=got, want="one label for each", fix="Give both whole.")
        return TensorDataset(x, y)
    if not unlabelled and _are_ids(x):
        return [{"input_ids": row, "labels": row} for row in x]
    if not unlabelled:
        want, fix = "labels next to it", "Give both as one pair: (x, y), or TensorDataset(x, y)."
        raise DataError("data", got=f"a tensor {tuple(x.shape)} alone", want=want, fix=fix)
    return TensorDataset(x, torch.full((len(x),), IGNORED))


def are_labels(data: Any, labels: Any) -> bool:
    """Return True if two things are inputs and their labels: `fit(model, x, y)`.

    Two arrays of rows of token ids are two sets.
    """
    arrays = _is_array(data) and _is_array(labels)
    return arrays and not (_are_ids(_tensor(data)) and _are_ids(_tensor(labels)))


def _are_ids(array: Tensor) -> bool:
    return array.dtype == torch.int64 and array.ndim == 2


def _is_array(thing: Any) -> bool:
    return isinstance(thing, Tensor | np.ndarray) and thing.ndim > 0


def _tensor(array: Any) -> Tensor:
    """Return an array as a tensor of the types that layers and losses take."""
    tensor = torch.as_tensor(array)
    if tensor.dtype == torch.float64:
        return tensor.to(torch.get_default_dtype())
    return tensor.long() if tensor.dtype in (torch.int32, torch.int16) else tensor
