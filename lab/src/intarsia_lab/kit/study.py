"""An experiment on a paper's headline: its question, the paper's own effect, and its measure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from intarsia.reports.statistics import paired_interval, t_interval

from .rates import ArmRate

Report = Callable[[str], None]
Word = Literal["same sign", "opposite", "unclear", ""]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Effect:
    """A paper's own effect, as it prints it: where, by which source, and in the study's unit.

    says: in the paper's unit.  where: model and data.  source: table or section.  values: the same
    in the study's unit, one number or the least and the largest; () where it cannot be said.  null:
    the value in that unit if nothing differed.  sign: 1 or -1 for an effect above or below `null`;
    0 where the paper says *as good as*.
    """

    says: str
    where: str
    source: str
    sign: Literal[-1, 0, 1]
    values: tuple[float, ...] = ()
    null: float = 0.0


@dataclass(frozen=True)
class Result:
    """Result of a study's run: its value, one for each seed, and its table.

    items: the 95 % interval over test items, or sets, and seeds together, where the run recorded
    them; else the interval is Student's, over the values.  rates: the arms' learning rates.
    """

    value: float
    values: tuple[float, ...]
    table: tuple[Mapping[str, Any], ...] = ()
    note: str = ""
    items: Interval | None = None
    rates: tuple[ArmRate, ...] = ()

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval; None where a single value, or an unbounded one, has none."""
        ends = self.items
        if ends is None and len(self.values) > 1:
            ends = t_interval(self.values)
        return ends if ends is not None and all(map(math.isfinite, ends)) else None


@dataclass(frozen=True)
class Study:
    """Experiment on one question that a paper asks.

    key: its name in `intarsia reproduce`.  system: the paper's short name; arxiv: its number.
    question: in at most fourteen words.  effect: the paper's own, None where it has none.  work:
    model and data here.  baseline: what ours is compared with.  unit: of the value.  differs: from
    the paper, in a sentence.  measure: (seeds, report) -> a Result, all that is not stored computed
    on the way.  minutes: on two cores.
    """

    key: str
    system: str
    arxiv: str
    question: str
    effect: Effect | None
    work: str
    baseline: str
    unit: str
    differs: str
    measure: Callable[[tuple[int, ...], Report], Result]
    seeds: tuple[int, ...] = (0, 1, 2)
    minutes: int = 1


def word_of(effect: Effect | None, interval: Interval | None) -> Word:
    """Return how an interval lies to the sign of a paper's effect.

    "same sign": all of it lies on the side of no effect where the paper's effect is; "opposite": on
    the other; "unclear": no effect is inside. "" without an effect, a sign or an interval.
    """
    if effect is None or effect.sign == 0 or interval is None:
        return ""
    low, high = interval
    if low <= effect.null <= high:
        return "unclear"
    return "same sign" if (low > effect.null) == (effect.sign > 0) else "opposite"


def over_items(
    items: Sequence[np.ndarray], ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]
) -> Interval | None:
    """Return the 95 % interval of a paired difference over test items and seeds together.

    items, ours, theirs: for each seed the numbers of the test items, and both arms' values of them,
    (items,) each; see `reports.statistics.paired_interval`. None where that has no interval.
    """
    paired = paired_interval(items, ours, theirs)
    return None if paired is None else (paired.low, paired.high)
