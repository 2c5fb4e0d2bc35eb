"""A paper's headline as something that can be run and can fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Report = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """What a claim's run gave: `got` against the bar, one value per seed, and its table."""

    got: float
    spread: float
    values: tuple[float, ...]
    table: tuple[Mapping[str, Any], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Claim:
    """The smallest honest experiment for a headline; the bar is fixed before the run.

    `run(seeds, report)` returns a Result whose `got` is compared with `bar` ("at most" when `sense`
    is "<=", "at least" when it is ">="). `needs` is "cpu", "gpu" or "long". `work` names model and
    data in a few words. `system` is the short name of the paper whose headline this is, else "".
    """

    key: str
    sentence: str
    baseline: str
    bar: float
    sense: str
    run: Callable[[tuple[int, ...], Report], Result]
    seeds: tuple[int, ...] = (0, 1, 2)
    needs: str = "cpu"
    minutes: float = 1.0
    tags: frozenset[str] = field(default_factory=lambda: frozenset[str]())
    work: str = ""
    system: str = ""

    def holds(self, result: Result) -> bool:
        return result.got <= self.bar if self.sense == "<=" else result.got >= self.bar
