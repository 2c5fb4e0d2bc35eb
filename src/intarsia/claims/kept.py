"""Cells of claims, each computed once: kept by all that it depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..data import packages
from ..results.store import Store, key_of


def kept(name: str, inputs: Mapping[str, Any], run: Callable[[], Any], under: str = "found") -> Any:
    """What `run` gives, JSON-ready: read from the file `name` of cells, or computed and added.

    under: what it is called in its row.
    """
    store = Store(packages.cache_dir() / "claims" / f"{name}.jsonl")
    key = key_of(inputs)
    if key not in store:
        store.add(key, {**inputs, under: run()})
    return store[key][under]
