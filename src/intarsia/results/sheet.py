"""Values of arms at the same seeds beside each other: means, spreads, paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (None for one value) of n values."""

    mean: float
    deviation: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True)
class Difference:
    """To the baseline, in accuracy: over n shared seeds, in `ahead` of which it was better.

    Without shared seeds (n = 0) only the difference of the means is known.
    """

    mean: float
    deviation: float | None
    n: int
    ahead: int
