"""Shares of each expert in each router, in the last epoch of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...gating.load import Load
from .grouping import Comparison
from .reading import FinishedRun


@dataclass(frozen=True)
class RouterRow:
    """A router: its place in the model, and its load."""

    place: str
    load: Load


@dataclass(frozen=True)
class Routed:
    """The routers of a method's first run, in the model's order."""

    label: str
    seed: int
    rows: tuple[RouterRow, ...]

    @property
    def experts(self) -> int:
        """The most experts that a router has."""
        return max(len(row.load.share) for row in self.rows)


def routings(comparison: Comparison) -> list[Routed]:
    """Return the routers of the methods that route; empty if none does."""
    by_group = [(group, _rows(group.runs[0])) for group in comparison.groups]
    return [Routed(group.label, group.runs[0].seed, rows) for group, rows in by_group if rows]


def _rows(run: FinishedRun) -> tuple[RouterRow, ...]:
    """Return each router's share of tokens by expert, from the run's record."""
    shares: Any = run.record["results"].get("routing")
    if not isinstance(shares, Mapping):
        return ()
    active: Any = run.record["results"].get("routing_active") or {}  # not in older records
    return tuple(
        RouterRow(short(str(name)), Load(tuple(map(float, share)), float(active.get(name, 1.0))))
        for name, share in shares.items()
    )


def short(path: str) -> str:
    """Return a router's path without what all routers have in theirs."""
    # PEFT's prefix, and the place of cells inside a module
    path = re.sub(r"^base_model\.model\.", "", path)
    return re.sub(r"\.intarsia_cells\..*$", "", path)
