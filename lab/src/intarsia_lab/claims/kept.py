"""Cells of claims, each computed once: kept by all that it depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from intarsia.core.store import Store, key_of
from intarsia.data import packages

from ..kit import Result
from .study import result_of

S = TypeVar("S")  # the cells of a seed


def kept(name: str, inputs: Mapping[str, Any], run: Callable[[], Any], under: str = "found") -> Any:
    """What `run` gives, JSON-ready: read from the file `name` of cells, or computed and added.

    under: what it is called in its row.
    """
    store = Store(packages.cache_dir() / "claims" / f"{name}.jsonl")
    key = key_of(inputs)
    if key not in store:
        store.add(key, {**inputs, under: run()})
    return store[key][under]


def judged(
    seeds: Iterable[int],
    cells: Callable[[int], S],
    *,
    of: Callable[[S], float],
    rows: Callable[[int, S], Iterable[Mapping[str, Any]]],
    note: str,
) -> Result:
    """A claim's result from the cells of each seed, in the order of the seeds.

    cells: of all arms of a seed.  of: what of them is judged.  rows: of the table.
    """
    found = [(seed, cells(seed)) for seed in seeds]
    table = [row for seed, one in found for row in rows(seed, one)]
    return result_of([of(one) for _, one in found], table, note)
