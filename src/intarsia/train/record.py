"""The record of a run: machine, versions, parameter counts, data, settings."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import hashlib
import os
import platform
import resource
import sys
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset

from ..core.heads import heads_of
from .checkpoint import tensors_hash
from .order import classes_of, digests_of, labels_of, size_of
from .precision import trained

PACKAGES = ("intarsia", "torch", "timm", "peft", "accelerate", "numpy")


def machine() -> dict[str, Any]:
    """Return a description of the machine: its processor, cores and accelerators."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": platform.system(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerators": gpus,
    }


def _processor() -> str:
    """Return the processor's name as the system states it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def forget_peak() -> int:
    """Begin to measure the peak memory here, where the system can: loading data is not training.

    Returns the bytes that are resident now, after freed memory was given back.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc's: what an earlier run freed is no memory of this
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM restarts
    return peak_bytes(0)["resident"]


def peak_bytes(start: int) -> dict[str, int]:
    """Return the highest resident memory and accelerator allocation since `forget_peak`.

    start: the value that it returned; `grown` is the peak above it, the memory of training itself.
      Where the system cannot reset the peak, it is the process's highest resident memory so far.
    """
    # macOS counts bytes, Linux kilobytes
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    with contextlib.suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text().splitlines()
        line = next(x for x in status if x.startswith("VmHWM:"))
        peak["resident"] = int(line.split()[1]) * 1024
    peak["grown"] = peak["resident"] - start
    if torch.cuda.is_available():
        peak["accelerator"] = torch.cuda.max_memory_allocated()
    return peak


def bare(model: nn.Module) -> nn.Module:
    """Return the host model inside a PeftModel; other models as they are."""
    inner = getattr(model, "get_base_model", None)
    return inner() if callable(inner) else model  # pyright: ignore[reportReturnType]


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Return the numbers of all parameters, of trained ones, and of trained ones without heads."""
    learns = trained(model)
    # papers count adapters without the head, which every method trains
    inside = {id(p) for head in heads_of(bare(model)) for p in head.parameters()}
    return {
        "all": sum(p.numel() for p in model.parameters()),
        "trained": sum(p.numel() for p in learns.values()),
        "trained_without_head": sum(p.numel() for p in learns.values() if id(p) not in inside),
    }


def method_of(model: nn.Module) -> dict[str, Any]:
    """Return the class of the model and each active adapter's settings, for the record."""
    entry: dict[str, Any] = {"host": type(bare(model)).__name__}
    configs = getattr(model, "peft_config", None)
    if isinstance(configs, Mapping):
        active = getattr(model, "active_adapters", None) or list(configs)
        entry["adapters"] = {name: plain_values(configs[name].to_dict()) for name in active}
    return entry


def plain_values(value: Any) -> Any:
    """Return settings as values that JSON can hold: sets sorted, functions and others by name."""
    # from the most special kind of value to the plainest
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {f.name: plain_values(getattr(value, f.name)) for f in fields}
    if isinstance(value, Mapping):
        return {str(k): plain_values(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(plain_values(v) for v in value)
    if isinstance(value, tuple | list):
        return [plain_values(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, Path):
        return str(value)
    return describe(value)


def describe(function: object) -> Any:
    """Return a description for the record: a function's name, a model's class and digest.

    A dataclass or a partial function is described with its settings.
    """
    if dataclasses.is_dataclass(function) and not isinstance(function, type):
        return {"name": type(function).__qualname__} | plain_values(function)
    if isinstance(function, nn.Module):
        weights = [(n, t) for n, t in function.state_dict().items() if isinstance(t, torch.Tensor)]
        if weights:
            return {"name": type(function).__qualname__, "sha256": tensors_hash(weights)}
    if isinstance(function, partial):
        settings = {k: plain_values(v) for k, v in function.keywords.items()}
        return {"name": describe(function.func)} | settings
    if isinstance(function, Callable):
        return getattr(function, "__qualname__", type(function).__qualname__)
    return repr(function)


def data_of(dataset: Dataset[Any]) -> dict[str, Any]:
    """Return the number of samples of a dataset, a digest, and the class names where known.

    The digest needs no decoding: it is of the pictures' pixel digests or the texts' row digests
      where the dataset knows them, of whole tensors, or of the labels.
    """
    classes = classes_of(dataset)
    if isinstance(dataset, Subset):
        index = np.asarray(dataset.indices, dtype=np.int64).tobytes()
        inner = data_of(dataset.dataset)
        # the parent's content and the chosen rows
        digest = _sha(inner["sha256"].encode() + index)
        classes = inner.get("classes")
    elif rows := digests_of(dataset):
        labels = labels_of(dataset)  # the rows of a text hold theirs
        digest = _sha(" ".join(rows).encode() + (b"" if labels is None else labels.tobytes()))
    elif isinstance(dataset, TensorDataset):
        digest = tensors_hash([(str(i), t) for i, t in enumerate(dataset.tensors)])
    else:
        labels = labels_of(dataset)
        digest = _sha(b"" if labels is None else labels.astype(np.int64).tobytes())
    entry: dict[str, Any] = {"n": size_of(dataset), "sha256": digest}
    if classes is not None:
        entry["classes"] = [str(name) for name in classes]
    return entry


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def shared_samples(first_set: Dataset[Any], second_set: Dataset[Any]) -> int | None:
    """Count the samples that are in both datasets; None if that would need decoding."""
    if first_set is second_set:
        return size_of(first_set)
    first, second = _sample_keys(first_set), _sample_keys(second_set)
    # digests cannot be compared with rows of bytes, nor with places in a parent set
    if first is None or second is None or first[0] != second[0]:
        return None
    # equal keys are equal samples
    return len(first[1] & second[1])


def item_numbers(dataset: Dataset[Any]) -> torch.Tensor | None:
    """Return a number for each sample, the same for equal samples of any dataset: (n,) int64.

    It is 60 bits of the sample's digest, or of the digest of a tensor's row; None where that would
    need decoding.
    """
    if isinstance(dataset, Subset):
        inner = item_numbers(dataset.dataset)
        return None if inner is None else inner[torch.as_tensor(list(dataset.indices))]
    rows = [row.encode() for row in digests_of(dataset)]
    if not rows and isinstance(dataset, TensorDataset):
        rows = [row.numpy().tobytes() for row in dataset.tensors[0].detach().cpu().contiguous()]
    return torch.tensor([int(_sha(row)[:15], 16) for row in rows]) if rows else None


def _sample_keys(dataset: Dataset[Any]) -> tuple[object, set[Any]] | None:
    """Return the kind of key by which a dataset's samples are compared, and the set of keys."""
    if rows := digests_of(dataset):
        return "digest", set(rows)
    if isinstance(dataset, TensorDataset):
        rows = dataset.tensors[0].detach().cpu().contiguous()
        # inputs alone: the same picture with another label is the same sample
        return "bytes", {_sha(row.numpy().tobytes()) for row in rows}
    if isinstance(dataset, Subset):
        parent = dataset.dataset
        if isinstance(parent, TensorDataset):
            index = torch.as_tensor(list(dataset.indices), dtype=torch.int64)
            return _sample_keys(TensorDataset(parent.tensors[0][index]))
        # two subsets of one parent share the samples with the same index
        return id(parent), {int(i) for i in dataset.indices}
    return None
