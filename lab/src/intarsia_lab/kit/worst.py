"""The worst of several comparisons, for a question that asks for all of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from intarsia.reports.statistics import ALPHA, t_interval

from .rates import ArmRate
from .study import Result


def worst_interval(
    comparisons: Iterable[Sequence[float]], sense: str, level: float = 1 - ALPHA
) -> tuple[float, float]:
    """Return the interval of the worst of several means, whichever comparison that is.

    comparisons: the values of each, one for each seed; sense: "<=" where the largest
    mean is the worst, ">=" where the least is; level: probability that the interval has at least.

    With m comparisons and alpha = 1 - level, for "<=":
        [max_k low_k(alpha / m), max_k high_k(alpha)]
    The worst mean is above the upper end only if its own interval lies below it, alpha / 2; it is
    below the lower end only if one of m intervals at alpha / m lies above its mean, alpha / 2, too.
    """
    sets = [tuple(values) for values in comparisons]
    # for ">=" all is mirrored
    sign = 1 if sense == "<=" else -1
    ends = [
        (t_interval(mirrored, 1 - (1 - level) / len(sets))[0], t_interval(mirrored, level)[1])
        for values in sets
        for mirrored in [[sign * value for value in values]]
    ]
    near, far = (max(column) for column in zip(*ends, strict=True))
    return (near, far) if sign == 1 else (-far, -near)


def worst_of(
    comparisons: Mapping[Any, Sequence[float]],
    sense: str,
    rows: Iterable[Mapping[str, Any]],
    note: str,
    rates: tuple[ArmRate, ...] = (),
) -> Result:
    """Return a study's result from several comparisons, the one with the worst mean.

    Its value and its values by seed are of that comparison; its interval is from all of them, see
    `worst_interval`.

    comparisons: name -> a value for each seed; sense: see `worst_interval`; rows: of its
    table; note: the sentences below it, to which the means are added; rates: of its arms.
    """
    means = {name: statistics.mean(values) for name, values in comparisons.items()}
    name = (max if sense == "<=" else min)(means, key=means.__getitem__)
    # each mean is in the note, since the table may not have it
    listing = ", ".join(f"{key} {mean:.3f}" for key, mean in means.items())
    note = f"{note} Means: {listing}; the value is the worst, {name}.".strip()
    values = tuple(comparisons[name])
    ends = worst_interval(comparisons.values(), sense)
    return Result(means[name], values, tuple(rows), note, ends, rates)
