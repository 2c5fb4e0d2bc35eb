"""Kernels as operators of torch: 4 us a call, and known to torch.compile and export."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "intarsia"


@functools.cache
def _library() -> torch.library.Library:
    return torch.library.Library(NAMESPACE, "FRAGMENT")


def operator(schema: str, run: Callable[..., Any], shapes: Callable[..., Any]) -> Any:
    """Define the torch operator `intarsia::name`, and return it.

    schema: its signature, "name(Tensor x, ...) -> Tensor"; run: a function that computes it on the
      CPU; shapes: one that returns an empty tensor of the result's shape, for tracing without data.
    Call it inside a cached function, so that importing a module defines nothing.
    """
    library, name = _library(), schema.partition("(")[0]
    library.define(schema)
    library.impl(name, run, "CPU")
    library.impl(name, shapes, "Meta")
    return getattr(getattr(torch.ops, NAMESPACE), name).default
